"""Losses for noisy labels: bounded for each row, or less sensitive to confident disagreement.

With p = softmax(z), nll = −log p_y and targets t (e_y for a label y):

    generalized    (1 − p_y^q)/q = (1 − e^(−q nll))/q       q → 0: nll,  q = 1: 1 − p_y, at most 1/q
    symmetric      α H(t, p) + β H(p, t),  log 0 := A       for a label α nll + β |A| (1 − p_y)

and for binary labels, p = σ(x), most of them negative and some of those wrong:

    asymmetric     −y (1 − p)^γ₊ log p − (1 − y) u^γ₋ log(1 − u)        u = max(p − m, 0)

The first is a function of nll alone, so it is as accurate for confident rows as nll.  In the last,
u is not computed as a difference: where p > m it is (1 − m) σ(x) (1 − e^(x₀−x)), with σ(x₀) = m.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import elementwise, row_terms
from jxent._core.elementwise import ElementwiseLoss, elementwise_losses, in_unit_interval
from jxent._core.log_softmax import loss_dtype, pin_half_precision
from jxent._core.row_losses import row_losses_of_nll, softmax_inputs
from jxent._core.safe_math import multiply_no_nan, nan_unless, propagate_nan, zero_unless
from jxent._core.targets import is_labels
from jxent._core.weighting import RowInputs, class_weight
from jxent._losses.sigmoid import binary_focal
from jxent._typing import (
    ArrayLike,
    Axes,
    AxisNames,
    Logits,
    PerEntry,
    PerRow,
    ReductionKind,
    Scalar,
)

__all__ = ["generalized_cross_entropy", "symmetric_cross_entropy", "asymmetric_loss"]

# Below these u, ∂/∂q and −log(1 − u) are computed by their series, with terms enough for float64.
_BY_Q_SERIES_BELOW, _LOG_SERIES_BELOW, _POWER_SERIES_TERMS = 0.5, 0.1, 17


@_check.arguments
def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    q: ArrayLike = 0.7,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute (1 − p_y^q)/q of each row, from cross-entropy (q = 0) to mean absolute error (q = 1).

        loss = c_y (1 − e^(−q nll_y))/q                    for a label y
        loss = Σ_v t_v c_v (1 − e^(−q nll_v))/q            for a distribution t
        ∂/∂nll = p^q

    The loss of a row is at most 1/q, and its gradient is p^q times that of cross-entropy: it
    vanishes for a label that the model holds impossible, as it does most wrong labels.

    For a large vocabulary compute it from the row losses of `linear_cross_entropy` with
    reduction="none": -jnp.expm1(-q * rows) / q.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: integers `[*n]`, or distributions or one-hot integers of the logits' shape.
      q: in [0, 1], a scalar; it may be traced.
      axis, where, class_weights: as in `softmax_cross_entropy_with_integer_labels`.

    Returns:
      `[*n]`, float32 (float64 for float64 logits); in nats only for q = 0. NaN, gradient too, for a
      traced q outside [0, 1].

    Raises:
      TypeError, ValueError: as `cross_entropy`; a concrete q outside [0, 1].

    Residuals:
      The arguments and a few numbers per row for labels, the arguments for distributions.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits, labels = jnp.array([[4.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), jnp.array([0, 2])
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.robust.generalized_cross_entropy(logits, labels)
      ... )
      [0.0355 1.4259]

    References:
      Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
      Labels, arXiv:1805.07836, equation 6.
    """
    fn = "generalized_cross_entropy"
    _check.between_0_and_1(fn, "q", q)
    z, rows = softmax_inputs(fn, logits, labels, axis, where, class_weights)
    return row_losses_of_nll(fn, _generalized, z, rows, {"q": q})


@_check.arguments
def symmetric_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.1,
    beta: ArrayLike = 1.0,
    log_zero: float = -4.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the symmetric cross-entropy α H(t, p) + β H(p, t) of each row, with A for log 0.

        loss = c_y (α nll_y + β |A| (1 − p_y))                             for a label y
        loss = α Σ_v c_v t_v nll_v + β c̄ Σ_v p_v min(−log t_v, −A)         for a distribution t

    c̄ = Σ_v c_v t_v / Σ_v t_v is the row's average class weight, by which a label and its one-hot
    row have the same loss.

    The second term is bounded like mean absolute error, so that a wrong label, from which the model
    disagrees with confidence, has a limited effect.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: integers `[*n]`, or distributions or one-hot integers of the logits' shape.
      alpha: α ≥ 0, a scalar; it may be traced.
      beta: β ≥ 0, likewise.
      log_zero: A ≤ 0, which replaces log 0; static.
      axis, where, class_weights: as in `softmax_cross_entropy_with_integer_labels`.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits). NaN, gradient too, for a traced α or β
      below 0.

    Raises:
      TypeError, ValueError: as `cross_entropy`; a concrete α or β that is negative or not
        finite; A above 0.

    Residuals:
      The arguments and a few numbers per row.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits, labels = jnp.array([[4.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), jnp.array([0, 2])
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.robust.symmetric_cross_entropy(logits, labels)
      ... )
      [0.1449 4.8995]

    References:
      Wang, Ma, Chen, Luo, Yi and Bailey, Symmetric Cross Entropy for Robust Learning with Noisy
      Labels, arXiv:1908.06112, equation 7.
    """
    fn = "symmetric_cross_entropy"
    _check.finite_nonnegative(fn, "alpha", alpha)
    _check.finite_nonnegative(fn, "beta", beta)
    A = _check.static_number(
        fn, "log_zero", log_zero, "(-inf, 0]", "stands for log 0: finite, not positive"
    )
    a, b = _check.scalar(fn, "alpha", alpha), _check.scalar(fn, "beta", beta)
    z, rows = softmax_inputs(fn, logits, labels, axis, where, class_weights)
    if is_labels(rows.targets):
        return row_losses_of_nll(fn, _symmetric_of_labels, z, rows, {"alpha": a, "beta": -A * b})
    return _symmetric_of_distributions(z, rows, a, b, log_zero=A)


@_check.arguments
def asymmetric_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma_pos: ArrayLike = 0.0,
    gamma_neg: ArrayLike = 4.0,
    clip: float = 0.05,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    reduction: ReductionKind = "none",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
) -> jax.Array:
    """Compute the asymmetric focal loss of each logit x with its label y, in nats.

        loss = −y (1 − p)^γ₊ log p − (1 − y) u^γ₋ log(1 − u)          p = σ(x), u = max(p − m, 0)

    It is made for many labels of which most are negative: easy negatives (small p) count less the
    larger γ₋ is, and not at all below the margin m. Where p is near 1, as for a positive label that
    was left out, the gradient is small again. With m = 0 and γ₊ = γ₋ it is `sigmoid_focal_loss`.

    Args:
      logits: x, the log-odds of the positive class, any shape: `[N, V]` for V labels of each row.
      labels: y in [0, 1], boolean, integer or floating: the logits' shape, or one for all.
      gamma_pos: γ₊ ≥ 0 and finite: one number, one for each entry of the last axis, or the logits'
        shape.
      gamma_neg: γ₋, likewise.
      clip: the margin m in [0, 1), static.
      where, row_weights, reduction, normalizer, axis_name: as in `sigmoid_binary_cross_entropy`.

    Returns:
      The loss of each logit in nats, in the logits' shape, or a scalar with a reduction: float32,
      float64 for float64 logits. NaN, gradient too, where the logit is NaN, or where a traced y,
      γ₊ or γ₋ is out of range.

    Raises:
      ValueError: a shape other than those above; a concrete label outside [0, 1]; a concrete γ that
        is negative or not finite; m outside [0, 1).
      TypeError: logits that are not floating point; a traced m; other arguments that are not
        numbers.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits, labels = jnp.array([[2.0, -4.0, 1.0]]), jnp.array([[1, 0, 0]])
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.robust.asymmetric_loss(logits, labels)
      ... )
      [[0.1269 0.     0.2459]]

    References:
      Ridnik et al., Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119, equation 7.
    """
    fn = "asymmetric_loss"
    x = _check.floats(fn, "logits", logits)
    options = elementwise.check_options(
        fn, x.shape, where, row_weights, reduction, normalizer, axis_name
    )
    y = _check.binary_labels(fn, labels, x.shape, options.kept)
    gammas = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg}
    for name, gamma in gammas.items():
        _check.finite_nonnegative(fn, name, gamma)
    parameters = tuple(_check.per_logit(fn, name, a, x.shape) for name, a in gammas.items())
    m = _check.static_number(fn, "clip", clip, "[0, 1)")
    loss = ElementwiseLoss(fn, _asymmetric, _valid_gammas, (m,))
    return elementwise_losses(loss, x, y, parameters, options)


def _generalized(nll: Array, q: Scalar) -> Array:
    return _box_cox(nll, nan_unless(in_unit_interval(q), q))


@jax.custom_jvp
def _box_cox(nll: Array, q: Scalar) -> Array:
    """Compute (1 − e^(−q nll))/q, by its series nll (1 − q nll/2) where q nll is tiny."""
    u = q * jnp.where((q == 0) & jnp.isinf(nll), 0, nll)
    small = u < jnp.finfo(nll.dtype).eps
    return jnp.where(small, nll * (1 - u / 2), -jnp.expm1(-u) / jnp.where(q == 0, 1, q))


def _box_cox_jvp(primals, tangents):
    (nll, q), (nll_dot, q_dot) = primals, tangents
    out = _box_cox(nll, q)
    out_dot = jnp.zeros_like(out)
    if not isinstance(nll_dot, SymbolicZero):
        out_dot = out_dot + _p_to_q(nll, q) * nll_dot
    if not isinstance(q_dot, SymbolicZero):
        out_dot = out_dot + _box_cox_by_q(nll, q) * q_dot
    return out, out_dot


_box_cox.defjvp(_box_cox_jvp, symbolic_zeros=True)


def _zero_if_infinite(nll: Array) -> Array:
    return jnp.where(jnp.isinf(nll), 0, nll)


def _p_to_q(nll: Array, q: Scalar) -> Array:
    """Compute ∂/∂nll = e^(−q nll) = p^q, whose derivatives at p = 0 are 0."""
    return jnp.where(jnp.isinf(nll) & (q > 0), 0, jnp.exp(-q * _zero_if_infinite(nll)))


def _box_cox_by_q(nll: Array, q: Scalar) -> Array:
    """Compute ∂/∂q = (nll p^q − loss)/q, by −nll² (1/2 − u/3 + u²/8 − …) for small u = q nll."""
    u, impossible = q * _zero_if_infinite(nll), jnp.isinf(nll)
    small = ~impossible & (u < _BY_Q_SERIES_BELOW)
    v, series = jnp.where(small, u, 0), jnp.zeros_like(u)
    for k in reversed(range(_POWER_SERIES_TERMS)):
        series = (-1) ** k * (k + 1) / math.factorial(k + 2) + v * series
    far = (_zero_if_infinite(nll) * _p_to_q(nll, q) - _box_cox(nll, q)) / jnp.where(q == 0, 1, q)
    # −∞ is replaced by the largest negative number, so that 0 times it is 0.
    far = jnp.maximum(far, -jnp.finfo(nll.dtype).max)
    n = jnp.where(small, nll, 0)
    return jnp.where(small, -(n * series) * n, far)


def _multiply_nonnegative(w: Scalar, x: Array) -> Array:
    """Multiply w·x, 0 where w = 0, NaN for w < 0."""
    w = nan_unless(w >= 0, w).astype(x.dtype)
    return multiply_no_nan(jnp.broadcast_to(w, x.shape), x)


def _symmetric_of_labels(nll: Array, alpha: Scalar, beta: Scalar) -> Array:
    """Compute α nll + β (1 − p), where β includes |A|."""
    return (
        _multiply_nonnegative(alpha, nll)
        + _multiply_nonnegative(beta, -jnp.expm1(-nll))
        + propagate_nan(nll)
    )


@partial(jax.jit, static_argnames=("log_zero",), inline=True)
def _symmetric_of_distributions(
    z: Logits, rows: RowInputs, alpha: Scalar, beta: Scalar, *, log_zero: float
) -> PerRow:
    """Compute α Σ_v c_v t_v nll_v + β c̄ Σ_v p_v min(−log t_v, −A)."""
    dtype = loss_dtype(z.dtype)

    @row_terms.rematerialized
    def losses(z: Logits, rows: RowInputs, alpha: Scalar, beta: Scalar) -> PerRow:
        t, kept, mask, c, _ = rows
        t, c = t.astype(dtype), None if c is None else c.astype(dtype)
        average = class_weight(RowInputs(t, kept, mask, c))
        given = vary_alike(pin_half_precision(z).astype(dtype), t, c, mask, kept)
        forward = row_terms.row_terms(row_terms.TermOptions(), *given).nll
        t, nll = row_terms.weighted_targets_and_nll(given[0], given[1], None, *given[3:])
        known = t > math.exp(log_zero)
        surprisal = jnp.where(known, -jnp.log(jnp.where(known, t, 1)), -log_zero)
        backward = jnp.sum(jnp.exp(-nll) * surprisal, axis=-1)
        backward = zero_unless(kept, backward)
        backward = backward if average is None else multiply_no_nan(average, backward)
        both = _multiply_nonnegative(alpha, forward) + _multiply_nonnegative(beta, backward)
        return both + propagate_nan(forward, backward)

    return losses(z, rows, alpha, beta)


def _valid_gammas(pos: PerEntry, neg: PerEntry) -> Bool[Array, "*s"]:
    return (pos >= 0) & (pos < jnp.inf) & (neg >= 0) & (neg < jnp.inf)


def _asymmetric(
    m: float, x: PerEntry, y: PerEntry, gamma_pos: PerEntry, gamma_neg: PerEntry
) -> PerEntry:
    yes = binary_focal(x, jnp.ones_like(x), None, gamma_pos)
    if m:
        no = _shifted_negative(m, x, gamma_neg)
    else:
        no = binary_focal(x, jnp.zeros_like(x), None, gamma_neg)
    return multiply_no_nan(y, yes) + multiply_no_nan(1 - y, no)


def _shifted_negative(m: float, x: PerEntry, gamma: PerEntry) -> PerEntry:
    """Compute −u^γ log(1 − u) where u > 0; elsewhere 0, with derivatives of 0."""
    x0 = math.log(m) - math.log1p(-m)
    outside = x <= x0
    u, rest = _shifted_probability(m, jnp.where(outside, x0 + 1, x))
    limit = _LOG_SERIES_BELOW
    small = u < limit
    v, series = jnp.where(small, u, limit), jnp.zeros_like(u)
    for k in reversed(range(_POWER_SERIES_TERMS)):
        series = 1 / (k + 1) + v * series
    near = v ** (gamma + 1) * series
    far = jnp.where(small, limit, u) ** gamma * -jnp.log(jnp.where(small, 1 - limit, rest))
    return jnp.where(outside, 0, jnp.where(small, near, far))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted_probability(m: float, x: PerEntry) -> tuple[PerEntry, PerEntry]:
    """Compute u = σ(x) − m, not as a difference, and 1 − u, for x > x₀."""
    x0 = math.log(m) - math.log1p(-m)
    u = (1 - m) * jax.nn.sigmoid(x) * -jnp.expm1(x0 - x)
    return u, m + jax.nn.sigmoid(-x)


@_shifted_probability.defjvp
def _shifted_probability_jvp(m, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    u_dot = jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) * x_dot
    return _shifted_probability(m, x), (u_dot, -u_dot)
