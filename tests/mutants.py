"""Faults put into jxent by hand, each with the part of the suite that must notice.

To add one: the file in jxent/, a passage that occurs in it once, what is put in its place, and the
tests that must fail, as a file in tests/ and a `-k` expression.  `pytest -m deep
tests/test_mutants.py` runs them all; one that survives wants a new test, not a new mutant.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault."""

    file: str
    old: str
    new: str
    tests: str
    chosen: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())[:60]}"


_ULP, _HOSTILE, _LOSSES = "test_accuracy.py", "test_hostile.py", "test_losses.py"
_TRANSFORMS, _LINEAR, _MEMORY = "test_transforms.py", "test_linear.py", "test_memory.py"
_DISTILLATION, _REGRESSION = "test_distillation.py", "test_regression.py"
_ONE_OF_EACH = "test_training_losses and labels"

MUTANTS = [
    # One row's mathematics.
    Mutant(
        "_rows.py",
        "S = lax.cond(jnp.any(total < _CONFIDENT), exact, lambda: total - 1)",
        "S = total - 1",
        _ULP,
        "ulp_bounds and confident",
    ),
    Mutant("_rows.py", "jnp.where(S < _FAINT, rest, S)", "S", _ULP, "faint"),
    Mutant(
        "_rows.py",
        "gap) + jnp.log1p(stats.S)",
        "gap) + jnp.log(1 + stats.S)",
        _ULP,
        "confident_rows",
    ),
    Mutant(
        "_rows.py",
        "on = (dnll * p_y_minus_1)[..., None]",
        "on = (dnll * (1 + p_y_minus_1) - dnll)[..., None]",
        _ULP,
        "confident_rows",
    ),
    Mutant(
        "_rows.py",
        "out = out - dspread[..., None] * class_weights",
        "out = out + dspread[..., None] * class_weights",
        _LOSSES,
        _ONE_OF_EACH,
    ),
    Mutant(
        "_rows.py",
        "through_nll = dnll * jnp.sum(target, axis=-1)",
        "through_nll = dnll",
        _LOSSES,
        "test_training_losses and distributions",
    ),
    Mutant(
        "_rows.py",
        "jnp.minimum(m[..., None] - z, ceiling)",
        "(m[..., None] - z)",
        _HOSTILE,
        "rows_at_fault and float32-jit and cross_entropy",
    ),
    Mutant(
        "_rows.py",
        "return x + (other - lax.stop_gradient(other))",
        "return x",
        _TRANSFORMS,
        "inside_a_scan",
    ),
    Mutant(
        "_rows.py",
        "(jnp.exp(lax.stop_gradient(lse) - lse) / (1 + S))",
        "(1 / (1 + S))",
        _LINEAR,
        "third_order",
    ),
    Mutant(
        "_rows.py",
        "lead + rest * jnp.exp(behind)",
        "lead + rest * jnp.exp(behind) - 1",
        _LINEAR,
        "every_size",
    ),
    Mutant(
        "_rows.py",
        "jnp.sum(class_weights, axis=-1) if total is None else total",
        "jnp.sum(class_weights, axis=-1)",
        _LINEAR,
        "every_option and vocab",
    ),
    Mutant(
        "_rows.py",
        "m = lax.stop_gradient(jnp.max(z",
        "m = lax.stop_gradient(jnp.min(z",
        _ULP,
        "ulp_bounds and wide",
    ),
    # Weights, masks, the denominator.
    Mutant(
        "_weights.py",
        "jnp.where((wide >= 0) & (wide < classes), wide, -1)",
        "jnp.where(wide < classes, wide, -1)",
        _HOSTILE,
        "wide_labels",
    ),
    Mutant(
        "_weights.py",
        "return counts if where is None else where & counts",
        "return counts",
        _LINEAR,
        "every_option and everything",
    ),
    Mutant(
        "_weights.py",
        "jnp.where(y < 0, jnp.nan, at_label(table, y))",
        "at_label(table, y)",
        _HOSTILE,
        "label_weights",
    ),
    Mutant(
        "_weights.py",
        "weighted / jnp.where(mass == 0, 1, mass))",
        "weighted)",
        _LOSSES,
        "test_training_losses and distributions",
    ),
    Mutant(
        "_weights.py",
        "t, mass = jnp.where(fault[..., None], 0, t), jnp.where(fault, 0, mass)",
        "pass",
        _HOSTILE,
        "dropped_rows and row_weights",
    ),
    Mutant(
        "_weights.py",
        "jnp.ones(rows, dtype) if kept is None else kept.astype(dtype)",
        "jnp.ones(rows, dtype)",
        _LOSSES,
        "label_weights",
    ),
    Mutant(
        "_weights.py",
        "_product(1 - label_smoothing, row_weights, own)",
        "_product(1 - label_smoothing, row_weights)",
        _LOSSES,
        _ONE_OF_EACH,
    ),
    Mutant(
        "_weights.py",
        "b = _product(z_loss, row_weights)",
        "b = _product(z_loss)",
        _LOSSES,
        _ONE_OF_EACH,
    ),
    Mutant(
        "_weights.py",
        "if mask is not None:\n            share",
        "if False:\n            share",
        _LOSSES,
        _ONE_OF_EACH,
    ),
    Mutant(
        "_weights.py",
        "return jnp.where(silent, jax.lax.stop_gradient(lse * lse), heard * heard)",
        "return lse * lse",
        _HOSTILE,
        "dropped_rows and row_weights",
    ),
    Mutant(
        "_reduce.py",
        "return jnp.where(empty, 0, x / jnp.where(empty, 1, by))",
        "return x / by",
        _HOSTILE,
        "means_over_nothing",
    ),
    Mutant(
        "_reduce.py",
        "return over_devices(jnp.sum(weights), axis_name)",
        "return jnp.sum(weights)",
        _TRANSFORMS,
        "axis_name",
    ),
    Mutant(
        "_reduce.py",
        "total = over_devices(jnp.sum(rows), axis_name)",
        "total = jnp.sum(rows)",
        _TRANSFORMS,
        "axis_name",
    ),
    Mutant(
        "_reduce.py",
        "    if normalizer is not None:\n        return normalizer\n",
        "",
        _LOSSES,
        "accumulation",
    ),
    Mutant(
        "_product.py", "return w * _told(w, x)", "return w * x", _HOSTILE, "zero_weights or dropped"
    ),
    # The formula attached to JAX.
    Mutant("_dense.py", "(1 + t) * (1 - t) * tangents[0]", "tangents[0]", _LOSSES, "soft and cap"),
    Mutant(
        "_dense.py",
        "stats = Statistics(stats.m, jnp.where(bad, jnp.nan, stats.S))",
        "stats = Statistics(stats.m, stats.S)",
        _HOSTILE,
        "rows_at_fault and float32-jit",
    ),
    Mutant(
        "_dense.py",
        "return Row(keep(nll), keep(lse)",
        "return Row(nll, lse",
        _LOSSES,
        "test_row_losses",
    ),
    Mutant(
        "_dense.py",
        "heard = ~silent if kept is None else kept & ~silent",
        "heard = jnp.ones_like(silent) if kept is None else kept",
        _HOSTILE,
        "dropped_rows and row_weights",
    ),
    Mutant(
        "_dense.py",
        "| jnp.isnan(row.nll)",
        "",
        _HOSTILE,
        "dropped_rows and row_weights and distributions",
    ),
    Mutant(
        "_dense.py",
        "dt = _weighted_targets(dnll[..., None] * each, c, z)",
        "dt = _weighted_targets(dnll[..., None] * each, None, z)",
        _LOSSES,
        "test_training_losses and distributions",
    ),
    Mutant(
        "_dense.py",
        "jnp.zeros_like(z) if dspread is None else dspread[..., None] * each",
        "jnp.zeros_like(z)",
        _LOSSES,
        _ONE_OF_EACH,
    ),
    Mutant(
        "_dense.py",
        "t = _in_rows(heard, targets.astype(z.dtype))",
        "t = targets.astype(z.dtype)",
        _HOSTILE,
        "dropped_rows and distributions",
    ),
    Mutant(
        "_dense.py",
        "spread_dot = total(d(dspread=one) * z_dot)",
        "spread_dot = zero",
        _TRANSFORMS,
        "test_row_losses and jacfwd",
    ),
    Mutant(
        "_dense.py",
        "return dtype if jnp.finfo(dtype).bits > jnp.finfo(wide).bits else wide",
        "return dtype",
        _LOSSES,
        "test_row_losses and bfloat16",
    ),
    Mutant(
        "_dense.py",
        "jax.checkpoint_policies.save_only_these_names(_SAVED)",
        "jax.checkpoint_policies.everything_saveable",
        _MEMORY,
        "what_is_saved and labels",
    ),
    Mutant(
        "_dense.py",
        "z = u if mask is None else jnp.where(mask, u, -jnp.inf)",
        "z = u",
        _LOSSES,
        "excluded_classes",
    ),
    Mutant(
        "_dense.py",
        "return p, p * (z_dot - lse_dot[..., None])",
        "return p, p * z_dot",
        _TRANSFORMS,
        "second_derivatives and everything",
    ),
    Mutant(
        "_dense.py",
        "return bad | ~jnp.any(is_label(targets, mask) & mask, axis=-1)",
        "return bad",
        _HOSTILE,
        "class_masks_at_fault",
    ),
    # Logits never stored.
    Mutant(
        "_linear/cut.py",
        "jnp.where(i == 0, self.first, self.size)",
        "jnp.full_like(i, self.size)",
        _LINEAR,
        "every_size",
    ),
    Mutant(
        "_linear/cut.py",
        "jnp.maximum(i * self.size - (self.size - self.first), 0)",
        "i * self.size",
        _LINEAR,
        "every_size",
    ),
    Mutant("_linear/head.py", "exponent - 14", "exponent - 40", _LINEAR, "half_precision"),
    Mutant(
        "_linear/head.py",
        "return x if unit is None else x * unit",
        "return x",
        _LINEAR,
        "half_precision",
    ),
    Mutant(
        "_linear/head.py",
        "preferred_element_type=dtype",
        "preferred_element_type=a.dtype",
        _LINEAR,
        "half_precision or dtypes",
    ),
    Mutant(
        "_linear/chunks.py",
        "selected(keep, pieces.take(p.h, i))",
        "pieces.take(p.h, i)",
        _LINEAR,
        "does_not_count",
    ),
    Mutant(
        "_linear/chunks.py",
        "keep = own if keep is None else keep if own is None else keep & own",
        "pass",
        _LINEAR,
        "every_size",
    ),
    Mutant(
        "_linear/chunks.py",
        "db = db + jnp.sum(dz, axis=0, dtype=dtype)",
        "db = jnp.sum(dz, axis=0, dtype=dtype)",
        _LINEAR,
        "every_option",
    ),
    Mutant(
        "_linear/chunks.py",
        "else g * slope).astype",
        "else slope).astype",
        _LINEAR,
        "every_option",
    ),
    Mutant(
        "_linear/vocab.py",
        "c_i = None if c_i is None else jnp.where(own, c_i, 0)",
        "pass",
        _LINEAR,
        "every_option",
    ),
    Mutant(
        "_linear/vocab.py",
        "at < pieces.owned(i)",
        "at < pieces.size",
        _LINEAR,
        "every_label",
    ),
    Mutant(
        "_linear/vocab.py",
        "left * E + (left * rise) * (1 + seen.stats.S)",
        "left * E",
        _LINEAR,
        "log_probs",
    ),
    Mutant(
        "_linear/vocab.py",
        "jnp.minimum(rise, jnp.finfo(z.dtype).max)",
        "rise",
        _HOSTILE,
        "rows_at_fault and entropy and float32-jit",
    ),
    Mutant("_linear/vocab.py", "gaps + scale(share, rise) +", "gaps +", _LINEAR, "every_option"),
    Mutant("_rows.py", "nll - entropy[..., None]", "nll", _LINEAR, "log_probs"),
    Mutant(
        "_linear/vocab.py",
        "jnp.where(m == -jnp.inf, -1, S)",
        "S",
        _LINEAR,
        "impossible",
    ),
    Mutant(
        "_linear/vocab.py", "m > seen.stats.m, m", "m >= seen.stats.m, m", _LINEAR, "predictions"
    ),
    Mutant(
        "linear.py",
        "by=denominator(said.weights, normalizer, axis_name)",
        "by=denominator(said.weights, None, axis_name)",
        _LINEAR,
        "normalizer",
    ),
    # One logit a loss; divergences.
    Mutant(
        "binary.py",
        "slope = A * (root * slope)",
        "slope = A * (root * root) * slope / root",
        "test_binary.py",
        "keeps_its_digits or beyond_underflow",
    ),
    # Rare classes, wrong labels, penalties.
    Mutant(
        "softmax.py",
        "near, w * jnp.exp(-w) / -jnp.expm1(-w))",
        "near, w / jnp.expm1(w))",
        "test_robust.py",
        "focal_gradients_are_finite",
    ),
    Mutant(
        "imbalance.py",
        "log_beta = math.log(beta) if beta else -math.inf",
        "log_beta = jnp.log(jnp.float32(beta))",
        "test_imbalance.py",
        "mpmath",
    ),
    Mutant(
        "imbalance.py",
        "jnp.where(x < jnp.inf, jnp.log1p(x), by_r)",
        "by_r",
        "test_imbalance.py",
        "ldam_keeps_its_digits",
    ),
    Mutant(
        "imbalance.py",
        "nll_dot / r - jnp.expm1(-nll) / r * delta_dot",
        "nll_dot / r + jnp.exp(-nll) / r * delta_dot",
        "test_imbalance.py",
        "ldam_keeps_its_digits",
    ),
    Mutant(
        "imbalance.py",
        "delta = class_weight(y, margins.astype(dtype), kept, None)",
        "delta = class_weight(y, margins.astype(dtype), None, None)",
        "test_imbalance.py",
        "ldam_at_the_ends",
    ),
    Mutant(
        "imbalance.py",
        "tau * jnp.log(each / total)",
        "jnp.log(each / total) / tau",
        "test_imbalance.py",
        "adjusted_logits",
    ),
    Mutant(
        "robust.py",
        "jnp.where(jnp.isinf(nll) & (q > 0), 0, jnp.exp(-q * _finite(nll)))",
        "jnp.exp(-q * _finite(nll))",
        "test_robust.py",
        "generalized_keeps_its_digits",
    ),
    Mutant(
        "robust.py",
        "(-1) ** k * (k + 1) / math.factorial(k + 2)",
        "(k + 1) / math.factorial(k + 2)",
        "test_robust.py",
        "slope_by_q",
    ),
    Mutant(
        "robust.py",
        "known, -jnp.log(jnp.where(known, t, 1)), -log_zero)",
        "known, -jnp.log(jnp.where(known, t, 1)), log_zero)",
        "test_robust.py",
        "symmetric_is_the_papers",
    ),
    Mutant(
        "robust.py",
        "u_dot = jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) * x_dot",
        "u_dot = jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x)) * x_dot",
        "test_robust.py",
        "slopes_keep_their_digits",
    ),
    Mutant(
        "robust.py",
        "return u, m + jax.nn.sigmoid(-x)",
        "return u, 1 - jax.nn.sigmoid(x)",
        "test_robust.py",
        "asymmetric_is_the_papers",
    ),
    Mutant(
        "regularization.py",
        "jnp.square(jnp.abs(g).astype(dtype))",
        "jnp.abs(g).astype(dtype)",
        "test_regularization.py",
        "gradient_penalties and vocab-parameters",
    ),
    Mutant(
        "regularization.py",
        "z = z if kept is None else jnp.where(kept[..., None], z, 0)",
        "z = z + 0",
        "test_regularization.py",
        "fault_and_dropped",
    ),
    Mutant(
        "binary.py",
        "return jnp.where((w == 0) & jnp.isinf(x), jnp.zeros_like(x), w * x)",
        "return w * x",
        _HOSTILE,
        "rows_at_fault and sigmoid and float32-jit",
    ),
    # A student beside its teacher.
    Mutant(
        "_between.py",
        "return jnp.where(near, p * (0.5 * x_near * x_near) * series, far)",
        "return far",
        _DISTILLATION,
        "near_the_teacher and forward",
    ),
    Mutant(
        "_between.py",
        "return jnp.where(near, p * jnp.expm1(jnp.where(near, x, 0)), q - p)",
        "return q - p",
        _DISTILLATION,
        "near_the_teacher and forward",
    ),
    Mutant(
        "_between.py",
        "jnp.where(x == -jnp.inf, jnp.inf, far)",
        "far",
        _DISTILLATION,
        "impossible_classes",
    ),
    Mutant("_between.py", "_told(x)\n    return r", "x\n    return r", _DISTILLATION, "impossible"),
    Mutant("distillation.py", "T * T * _between", "T * _between", _DISTILLATION, "dense and temp"),
    Mutant(
        "distillation.py",
        "jnp.where(jnp.isfinite(z), T, lax.stop_gradient(T))",
        "T",
        _DISTILLATION,
        "impossible_classes",
    ),
    Mutant(
        "distillation.py",
        "else sound & ~bad",
        "else sound",
        _DISTILLATION,
        "do_not_count and row_weights",
    ),
    Mutant(
        "_linear/chunks.py",
        "heard = (g != 0) | jnp.isfinite(losses)",
        "heard = g == g",
        _DISTILLATION,
        "nobody_hears",
    ),
    Mutant(
        "_linear/chunks.py",
        "jnp.sum(losses if g_i is None else scale(g_i, losses))",
        "jnp.sum(losses)",
        _DISTILLATION,
        "test_linear and none and plain",
    ),
    # Continuous targets.
    Mutant("regression.py", "right = middle > 0", "right = middle > 1e9", _REGRESSION, "hl_gauss"),
    Mutant("regression.py", "< _NARROW", "< 0", _REGRESSION, "narrow_bins"),
    Mutant(
        "regression.py",
        "((e[1:] - e[:-1]) / sigma.astype(y.dtype)).reshape((1,) * y.ndim + (-1,))",
        "z[..., 1:] - z[..., :-1]",
        _REGRESSION,
        "narrow_bins",
    ),
    Mutant(
        "regression.py",
        "f = (y - b[i]) / (b[i + 1] - b[i])",
        "f = (y - b[i]) / (b[1] - b[0])",
        _REGRESSION,
        "two_hot and uneven",
    ),
    Mutant(
        "regression.py",
        "z = (y - mu) * jnp.exp(steep)",
        "z = (y - mu) ** 2 * jnp.exp(-v)",
        _REGRESSION,
        "gaussian or extreme",
    ),
    Mutant(
        "regression.py", "origin = b[b.size // 2]", "origin = 0 * b[0]", _REGRESSION, "expected"
    ),
]
