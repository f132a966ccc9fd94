"""Distillation: train a student q on the whole distribution p of a teacher, not only on labels.

    p = softmax(teacher/T)        q = softmax(student/T)
    loss = α T² D(p, q) + (1 − α) nll_y(student)          T² D alone without hard labels y

    D    forward  KL(p‖q)        reverse  KL(q‖p)        jsd  β KL(p‖m) + (1−β) KL(q‖m),
                                                              m = β p + (1−β) q

The gradient of D by the logits shrinks as 1/T², with p and q both nearly uniform.  The factor T²
compensates, so that α keeps its meaning when T changes.  For the forward divergence

    ∂/∂student = α T (q − p) + (1 − α) (softmax(student) − e_y)

The teacher has a gradient too; `jax.lax.stop_gradient` freezes it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import logit_divergence, row_terms
from jxent._core.log_softmax import pin_half_precision
from jxent._core.logit_divergence import Divergence, DivergenceName
from jxent._core.safe_math import multiply_no_nan, propagate_nan, zero_unless
from jxent._core.targets import kept_rows, narrow
from jxent._core.weighting import (
    Reduction,
    check_mean_weights,
    reduce,
    reduction_options,
    row_weight,
)
from jxent._linear.implementations import EACH_ROW, IMPLEMENTATIONS, run
from jxent._linear.projection import Layout, Projection, Static, widest_dtype
from jxent._linear.row_loss import Masks, Operands, RowReduction, Zs
from jxent._typing import (
    ArrayLike,
    AxisNames,
    ClassMask,
    Labels,
    Logits,
    PerRow,
    ReductionKind,
    RowMask,
    Scalar,
    SharedClassMask,
)

__all__ = ["distillation_loss", "linear_distillation_loss"]

_ALPHA = 0.5
_NAMES = ("forward", "reverse", "jsd")
# A chunk holds two arrays of logits and the intermediates of their divergence: so it has only this
# share of the rows that fit the budget for one array of logits.
_CHUNK_SHARE = 4


@_check.arguments
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    hard_labels: ArrayLike | None = None,
    alpha: ArrayLike | None = None,
    divergence: DivergenceName = "forward",
    beta: float = 0.5,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
    reduction: ReductionKind = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
) -> jax.Array:
    """Compute how far a student is from its teacher's distribution and from labels, in nats.

        p, q = softmax(teacher/T), softmax(student/T)
        loss = α T² D(p, q) + (1 − α) nll_y(student)        T² D alone without hard labels
        mean = Σ_rows w loss / Σ_rows w

    `divergence` chooses D: "forward" KL(p‖q) covers all that the teacher does, "reverse" KL(q‖p)
    settles on what it does most, "jsd" is between them, finite and bounded:
    β KL(p‖m) + (1−β) KL(q‖m) with m = β p + (1−β) q.  None is ever negative.

    Loss and gradients are right to 1e-5 of their row's sum of absolute terms; and to 1e-5 of the
    row itself, however near the student is to its teacher, at any T ≥ 1 and whatever offset either
    has, as long as no class that is possible is more than 16 T from where the others are.
    Beyond that, terms smaller than 1e-5 of their logarithms may be lost. The gradient by T has the
    terms (∂loss/∂z_v)(z_v − max z) and 2 loss, which all but cancel near the teacher.

    Every mode of differentiation works. The teacher has a real gradient:
    `jax.lax.stop_gradient(teacher_logits)` freezes it.

    Args:
      student_logits: `[*n, V]`, floating point. −inf is an impossible class.
      teacher_logits: the same shape, any floating dtype.
      temperature: T in (0, 1e18], a scalar; it may be traced.
      hard_labels: integers `[*n]` in [0, V), for the second term, at temperature 1.
      alpha: α in [0, 1], the share of the soft term, 0.5 by default; a scalar that may be traced.
        Only with hard labels.
      divergence: "forward", "reverse" or "jsd".
      beta: β in (0, 1), the teacher's share of the mixture of "jsd"; static.
      where: boolean; `[*n]` keeps rows, `[*n, V]` keeps classes. Dropped rows are exactly 0, loss
        and gradient, whatever they hold.
      ignore_index: rows with this hard label are dropped, from both terms.
      row_weights: `[*n]`; negative ones as in `cross_entropy`.
      reduction: "mean", "sum", or "none" for one loss a row.
      normalizer: scalar in place of the mean's denominator, as in `cross_entropy`.
      axis_name: mesh axes to sum numerator and denominator over, as in `cross_entropy`.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 if logits are).
      +∞ where D is: a class impossible for the student that the teacher holds possible in
      "forward", the other way round in "reverse"; the gradient is finite. Gradients have the dtype
      of what they are for.

    Raises:
      TypeError: a dtype that is not what is listed; a traced static option.
      ValueError: shapes that do not match exactly; an option out of range; a concrete label
        outside [0, V) that is not dropped; `alpha` or `ignore_index` without hard labels; a
        concrete negative row weight as in `cross_entropy`. Under jit such a label or weight, and a
        temperature or α out of range, are NaN.

    Residuals:
      The arguments as given and a few numbers per row.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jxent.distillation import distillation_loss
      >>> teacher = jnp.array([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
      >>> student = jnp.array([[1.0, 1.0, 0.0], [0.5, 2.0, 0.0]])
      >>> loss = distillation_loss(student, jax.lax.stop_gradient(teacher), temperature=2.0)
      >>> print(f"{loss:.4f} nats")
      0.2118 nats
      >>> labels = jnp.array([0, 1])
      >>> loss = distillation_loss(student, teacher, hard_labels=labels, alpha=0.9, temperature=2.0)
      >>> print(f"{loss:.4f} nats")
      0.2491 nats

    References:
      Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, arXiv:1503.02531, for
      T² and α; Agarwal et al., *On-Policy Distillation of Language Models*, arXiv:2306.13649, for
      the reverse divergence and the generalised Jensen–Shannon divergence; Lin, *Divergence
      Measures Based on the Shannon Entropy* (1991).
    """
    fn = "distillation_loss"
    s = _check.logits(fn, student_logits, "student_logits")
    t = _like_rows(fn, "teacher_logits", teacher_logits, "student_logits", s.shape)
    where_rows, mask = _check.where(fn, where, s.shape)
    y, kept = _hard_targets(fn, hard_labels, ignore_index, where_rows, s.shape[:-1], s.shape[-1])
    given = _Inputs(
        _temperature(fn, temperature),
        _alpha(fn, alpha, hard_labels),
        y,
        kept,
        mask,
        _check.weights(fn, "row_weights", row_weights, s.shape[:-1]),
    )
    how = reduction_options(fn, reduction, normalizer, axis_name)
    check_mean_weights(fn, row_weights, kept, how)
    kind = _divergence_options(fn, divergence, beta)
    return _distillation_loss(s, t, given, how, kind=kind)


@_check.arguments
def linear_distillation_loss(
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike,
    *,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    head_layout: Layout = "dv",
    teacher_head_layout: Layout | None = None,
    temperature: ArrayLike = 1.0,
    hard_labels: ArrayLike | None = None,
    alpha: ArrayLike | None = None,
    divergence: DivergenceName = "forward",
    beta: float = 0.5,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
    reduction: ReductionKind = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> jax.Array:
    """Compute `distillation_loss` of two projections without storing the logits of either.

        student = student_hidden·student_head + student_bias        teacher likewise
        loss    = as `distillation_loss`

    Rows go in chunks. For a mean or a sum the gradients are computed beside the loss and scaled
    afterwards; for "none" the logits are computed again on the way back. Gradients
    that are not wanted cost nothing: a frozen teacher costs its one projection.

    Args:
      student_hidden: `[*n, D]`, floating point.
      student_head: `[D, V]`, or `[V, D]` with head_layout="vd"; any floating dtype; copied as
        in `linear_cross_entropy`.
      teacher_hidden: `[*n, E]`: the teacher may be wider.
      teacher_head: `[E, V]` or `[V, E]`, over the same vocabulary.
      student_bias, teacher_bias: `[V]`; −inf makes a class impossible.
      class_mask: boolean `[V]`: classes to keep, of student and teacher alike and in every row;
        as `where` of `[*n, V]` in `distillation_loss`.
      head_layout: "dv", or "vd" for a tied embedding.
      teacher_head_layout: the same for the teacher's head; None: as the student's.
      temperature, hard_labels, alpha, divergence, beta: as in `distillation_loss`.
      where: boolean `[*n]`: rows to keep.
      ignore_index, row_weights, reduction, normalizer, axis_name: as in `distillation_loss`.
      chunk_size: rows in a chunk; by default what fits a budget for the device.
      precision: of every matrix product, as for `jax.lax.dot_general`.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 if an operand is).

    Raises:
      TypeError, ValueError: as `distillation_loss` and `linear_cross_entropy`.

    Residuals:
      For a mean or a sum the gradients that are wanted, in float32; for "none" the arguments and
      one number per row. Reverse mode, to any order.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jxent.distillation import distillation_loss, linear_distillation_loss
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> shapes = (6, 4), (4, 1000), (6, 8), (8, 1000)
      >>> h, w, teacher_h, teacher_w = map(jax.random.normal, keys, shapes)
      >>> loss = linear_distillation_loss(h, w, teacher_h, teacher_w, temperature=2.0)
      >>> stored = distillation_loss(h @ w, teacher_h @ teacher_w, temperature=2.0)
      >>> bool(jnp.allclose(loss, stored))
      True

    References:
      As `distillation_loss`; Hsu et al., *Liger Kernel*, arXiv:2410.10989, for gradients beside
      the loss.
    """
    fn = "linear_distillation_loss"
    h = _check.hidden(fn, student_hidden, "student_hidden")
    w = _check.head(fn, student_head, head_layout, h, "student_head")
    u = _check.hidden(fn, teacher_hidden, "teacher_hidden")
    rows, layout = h.shape[:-1], head_layout if teacher_head_layout is None else teacher_head_layout
    _same_rows(fn, "teacher_hidden", u, "student_hidden", rows)
    v = _check.head(fn, teacher_head, layout, u, "teacher_head", "teacher_head_layout")
    classes = Projection(h, w, None, head_layout).classes
    of_teacher = Projection(u, v, None, layout).classes
    _same_vocabulary(fn, "teacher_head", of_teacher, "student_head", classes)
    where_rows, mask = _check.rows_and_classes_kept(fn, where, class_mask, rows, classes)
    y, kept = _hard_targets(fn, hard_labels, ignore_index, where_rows, rows, classes)
    given = _Inputs(
        _temperature(fn, temperature),
        _alpha(fn, alpha, hard_labels),
        y,
        kept,
        mask,
        _check.weights(fn, "row_weights", row_weights, rows),
    )
    b = _check.bias(fn, student_bias, classes, "student_bias")
    c = _check.bias(fn, teacher_bias, classes, "teacher_bias")
    both = Projection(h, w, b, head_layout), Projection(u, v, c, layout)
    how = reduction_options(fn, reduction, normalizer, axis_name)
    check_mean_weights(fn, row_weights, kept, how)
    kind = _divergence_options(fn, divergence, beta)
    size = _check.chunk_size(fn, chunk_size)
    with _check.reverse_only(fn, "distillation_loss of stored logits"):
        return _linear_distillation_loss(
            both, given, how, kind=kind, chunk_size=size, precision=precision
        )


class _Inputs(NamedTuple):
    """Temperature, labels, masks and weights of the rows."""

    temperature: Scalar
    alpha: Scalar | None  # None: there is no hard term
    hard_labels: Labels | None
    row_mask: RowMask | None
    class_mask: ClassMask | SharedClassMask | None
    row_weights: PerRow | None


def _like_rows(
    fn: str, name: str, x: ArrayLike, other: str, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Return floats of exactly the other argument's shape."""
    array = _check.floats(fn, name, x)
    if array.shape != shape:
        raise ValueError(
            f"{fn}: `{name}` must have the shape of `{other}` {list(shape)}, got "
            f"{_check.describe(x)}"
        )
    return array


def _same_rows(fn: str, name: str, x: Array, other: str, rows: tuple[int, ...]) -> None:
    """Raise ValueError unless hidden states have these rows; their features may differ."""
    if x.shape[:-1] != rows:
        raise ValueError(
            f"{fn}: `{name}` must have the rows of `{other}`, shape {[*rows, x.shape[-1]]}, got "
            f"{_check.describe(x)}"
        )


def _same_vocabulary(fn: str, name: str, classes: int, other: str, expected: int) -> None:
    """Raise ValueError unless two heads have the same classes."""
    if classes != expected:
        raise ValueError(
            f"{fn}: `{name}` has {classes} classes and `{other}` {expected}; cut or pad one of "
            "them, with a bias of -inf for what is padded"
        )


def _hard_targets(
    fn: str,
    labels: ArrayLike | None,
    ignore_index: int | None,
    where: RowMask | None,
    rows: tuple[int, ...],
    classes: int,
) -> tuple[Labels | None, RowMask | None]:
    """Check hard labels, −1 for those outside [0, V), and which rows are kept."""
    if ignore_index is not None and labels is None:
        raise ValueError(f"{fn}: `ignore_index` goes with `hard_labels`; drop rows with where=")
    ignore = _check.ignore_index(fn, ignore_index, labelled=True)
    if labels is None:
        return None, where
    y = _check.labels(fn, labels, rows, "hard_labels")
    kept = kept_rows(y, where, ignore)
    _check.label_values(fn, labels, classes, kept, "hard_labels")
    narrowed = narrow(y, classes)
    _check.traced_labels(fn, y, narrowed, kept, classes, "hard_labels")
    return narrowed, kept


def _temperature(fn: str, T: ArrayLike) -> Scalar:
    """Check T; beyond 1e18, where T² overflows, the loss is that of T = ∞ anyway."""
    has_square = lambda v: (v > 0) & (v < math.inf) & (v <= 1e18)  # noqa: E731
    return _check.valid_scalar(fn, "temperature", T, has_square, "positive and at most 1e18")


def _alpha(fn: str, alpha: ArrayLike | None, hard_labels: Any) -> Scalar | None:
    """Check the share of the soft term; None without a hard one."""
    if alpha is not None and hard_labels is None:
        raise ValueError(
            f"{fn}: `alpha` weighs the soft term against `hard_labels`, which are not given; scale "
            "the result yourself"
        )
    if hard_labels is None:
        return None
    share = _ALPHA if alpha is None else alpha
    return _check.valid_scalar(fn, "alpha", share, _check.inside("[0, 1]"), "in [0, 1]")


def _divergence_options(fn: str, name: DivergenceName, beta: float) -> Divergence:
    """Check which divergence is meant."""
    chosen = _check.one_of(fn, "divergence", name, _NAMES)
    return Divergence(chosen, _check.strictly_between(fn, "beta", beta))


class _Shares(NamedTuple):
    """The coefficients of a row's soft and hard term; None without the hard one."""

    soft: PerRow
    hard: PerRow | None

    @property
    def active(self) -> RowMask:
        """The rows with a coefficient that is not 0."""
        return self.soft != 0 if self.hard is None else (self.soft != 0) | (self.hard != 0)


def _shares(shape: tuple[int, ...], alpha: Scalar | None, w: PerRow | None, dtype: Any) -> _Shares:
    """Compute α w and (1 − α) w of each row."""
    w = jnp.ones(shape, dtype) if w is None else w
    if alpha is None:
        return _Shares(w, None)
    share = jnp.broadcast_to(alpha.astype(dtype), shape)
    return _Shares(share * w, (1 - share) * w)


class _DistillationRows(NamedTuple):
    """The loss of rows of logits, a student's and a teacher's."""

    kind: Divergence
    may_be_zero: bool  # some rows may weigh 0

    def __call__(
        self,
        zs: Zs,
        T: Scalar,
        by: _Shares,
        y: Labels | None,
        kept: RowMask | None,
        mask: ClassMask | None = None,
    ) -> PerRow:
        """Compute each row's loss."""
        dtype = by.soft.dtype
        s, t = (pin_half_precision(z).astype(dtype) for z in zs)
        s, t = (z if mask is None else jnp.where(mask, z, -jnp.inf) for z in (s, t))
        if self.may_be_zero:
            valid = _valid_rows(s, t, y, mask) | by.active
            kept = valid if kept is None else kept & valid
        s, t = zero_unless(kept, s), zero_unless(kept, t)
        soft = logit_divergence.divergence(self.kind, s, t, T.astype(dtype))
        loss = multiply_no_nan(by.soft, soft)
        if y is not None:
            assert by.hard is not None
            nll = row_terms.row_terms(row_terms.TermOptions(), s, y, None, mask, kept).nll
            loss = (loss + multiply_no_nan(by.hard, nll)) + propagate_nan(soft, nll)
        return zero_unless(kept, loss)


def _valid_rows(s: Logits, t: Logits, y: Labels | None, mask: ClassMask | None) -> RowMask:
    """Find the rows that are valid.  Of others that weigh nothing, 0·NaN would come back."""
    valid = jnp.ones(s.shape[:-1], bool)
    for z in (s, t):
        valid = valid & jnp.isfinite(lax.stop_gradient(jnp.max(z, axis=-1)))
    invalid = None if y is None else row_terms.invalid_rows(y, mask)
    return valid if invalid is None else valid & ~invalid


def _weights(
    shape: tuple[int, ...], given: _Inputs, dtype: Any
) -> tuple[_Shares, PerRow, PerRow | None]:
    """Compute each row's coefficients, its share of the denominator, and its weight if given."""
    w = given.row_weights
    w = None if w is None else zero_unless(given.row_mask, w.astype(dtype))
    by = _shares(shape, given.alpha, w, dtype)
    return by, row_weight(shape, given.row_mask, w, None, dtype), w


@partial(jax.jit, static_argnames="kind", inline=True)
def _distillation_loss(
    s: Logits, t: Logits, given: _Inputs, reduction: Reduction, *, kind: Divergence
) -> jax.Array:
    by, weights, w = _weights(s.shape[:-1], given, widest_dtype(s, t))
    T, _, y, kept, mask, _ = given
    s, t, T, y, kept, mask, *each = vary_alike(s, t, T, y, kept, mask, *by)
    losses = row_terms.rematerialized(_DistillationRows(kind, w is not None).__call__)
    return reduce(losses((s, t), T, _Shares(*each), y, kept, mask), weights, reduction)


@partial(jax.jit, static_argnames=("kind", "chunk_size", "precision"), inline=True)
def _linear_distillation_loss(
    both: tuple[Projection, Projection],
    given: _Inputs,
    reduction: Reduction,
    *,
    kind: Divergence,
    chunk_size: int | None,
    precision: Any,
) -> jax.Array:
    shape = both[0].hidden.shape[:-1]
    dtype = widest_dtype(*jax.tree.leaves(both))
    by, weights, w = _weights(shape, given, dtype)
    may_be_zero = w is not None or reduction.normalizer is not None
    implementation = EACH_ROW if reduction.kind == "none" else IMPLEMENTATIONS["tokens"]
    padded = [implementation.pad(p, given.class_mask) for p in both]
    projections = tuple(p for p, _ in padded)
    size = implementation.tile_size(math.prod(shape), projections[0].classes)
    return run(
        implementation,
        Static(precision, chunk_size or max(1, size // _CHUNK_SHARE)),
        _DistillationRows(kind, may_be_zero),
        Operands(projections, given.temperature, by),
        given.hard_labels,
        Masks(given.row_mask, padded[0][1]),
        RowReduction(reduction, weights, may_be_zero),
    )
