"""Binary cross-entropy of single logits x: P(positive) = σ(x) = 1/(1 + e^−x).

    softplus(x) = log(1 + e^x) = max(x, 0) + log1p(e^−|x|) = −log σ(−x)
    bce = w y softplus(−x) + (1 − y) softplus(x)            y: label in [0, 1], w: positive weight

    ∂bce/∂x = (1 − y) σ(x) − w y σ(−x)
    ∂bce/∂y = w softplus(−x) − softplus(x)                  −x without w
    ∂bce/∂w = y softplus(−x)

The focal loss multiplies bce by u^γ, u = 1 − p_t = (1 − y) σ(x) + y σ(−x), and by the class
weight A = α y + (1 − α)(1 − y):

    focal = A u^γ bce                                       k = bce/u

    ∂focal/∂x = A u^γ ((1 − y) σ(x) − y σ(−x) + γ (1 − 2y) k σ(x) σ(−x))
    ∂focal/∂y = A u^γ (−x − γ k tanh(x/2)) + (2α − 1) u^γ bce
    ∂focal/∂γ = A u^γ bce log u
    ∂focal/∂α = (2y − 1) u^γ bce

Two rules keep the digits of confident, correct predictions: σ(−x) is never computed as 1 − σ(x),
and no power of u is negative.  `elementwise` applies masks, weights and reductions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool

from jxent import _check
from jxent._core import elementwise
from jxent._core.elementwise import ElementwiseLoss, elementwise_losses, in_unit_interval
from jxent._core.safe_math import clip_infinite
from jxent._typing import ArrayLike, AxisNames, PerEntry, ReductionKind, Tangents


@_check.arguments
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    reduction: ReductionKind = "none",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
) -> jax.Array:
    """Compute the binary cross-entropy of each logit x with its label y, in nats.

        loss = w y log(1 + e^−x) + (1 − y) log(1 + e^x)        ∂/∂x = (1 − y) σ(x) − w y σ(−x)

    Label smoothing ε replaces y by (1 − ε) y + ε/2.  Infinite logits are accepted: the loss is 0
    where such a logit agrees with its label, and ∞ with a finite gradient where it does not.

    Args:
      logits: x, the log-odds of the positive class, any shape, a scalar too; float16, bfloat16,
        float32 or float64.
      labels: y in [0, 1], boolean, integer or floating: the logits' shape, or one for all.
      pos_weight: w ≥ 0 and finite, the weight of a positive label relative to a negative one: one
        number, one for each entry of the last axis, or the logits' shape.
      label_smoothing: ε in [0, 1], a static number.
      where: boolean mask, True keeps: of the logits' shape for single logits (labels may be
        unknown), or of the rows' shape `[*n]` for rows of logits `[*n, V]`. Loss and gradient of
        dropped logits are exactly 0, whatever the logit or its label holds.
      row_weights: the weight of each logit, or of all logits of each row: the same shapes as
        `where`. Negative ones go with a `normalizer`, "sum" or "none": their sum may be about 0.
      reduction: "none", "sum", or "mean": Σ weight loss / Σ weight over the kept logits.
      normalizer: scalar that replaces the denominator of the mean. By 0 a sum of 0 is 0 and any
        other is ±∞.
      axis_name: mesh axes to sum numerator and denominator over, as in `cross_entropy`.

    Returns:
      The loss of each logit in nats, in the logits' shape, or a scalar with a reduction: float32,
      float64 for float64 logits. NaN, gradient too, where the logit is NaN, or where a traced label
      is outside [0, 1] or a traced w is negative or not finite.

    Raises:
      ValueError: a shape other than those above; a concrete label outside [0, 1]; a concrete w that
        is negative or not finite; ε outside [0, 1]; a concrete negative row weight in a mean
        without `normalizer` (NaN under jit).
      TypeError: logits that are not floating point; labels that are not numbers; a traced ε.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> loss = jxent.sigmoid_binary_cross_entropy(jnp.array([-2.0, 3.0]), jnp.array([0, 1]))
      >>> print(loss.round(4))
      [0.1269 0.0486]

      Two rows of two labels, one of them unknown:

      >>> logits, labels = jnp.array([[-2.0, 3.0], [0.5, 1.0]]), jnp.array([[0, 1], [1, -1]])
      >>> loss = jxent.sigmoid_binary_cross_entropy(
      ...     logits, labels, where=labels >= 0, reduction="mean"
      ... )
      >>> print(f"{loss:.4f}")
      0.2165

    References:
      Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2.2.
    """
    fn = "sigmoid_binary_cross_entropy"
    x = _check.floats(fn, "logits", logits)
    options = elementwise.check_options(
        fn, x.shape, where, row_weights, reduction, normalizer, axis_name
    )
    y = _check.binary_labels(fn, labels, x.shape, options.kept)
    w = _check.per_logit(fn, "pos_weight", pos_weight, x.shape)
    if pos_weight is not None:
        _check.finite_nonnegative(fn, "pos_weight", pos_weight)
    eps = _check.fraction(fn, "label_smoothing", label_smoothing)
    loss = ElementwiseLoss(fn, _bce, _valid_pos_weight, (eps,))
    return elementwise_losses(loss, x, y, (w,), options)


@_check.arguments
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    reduction: ReductionKind = "none",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
) -> jax.Array:
    """Compute the focal loss of each logit x with its label y, in nats.

        loss = A (1 − p_t)^γ bce        bce = −y log p − (1 − y) log(1 − p),  p = σ(x)
                                        1 − p_t = y (1 − p) + (1 − y) p
                                        A = α y + (1 − α)(1 − y), 1 without α

    Well-classified logits count less, the less the larger γ is; γ = 0 and no α give
    `sigmoid_binary_cross_entropy`.

    Args:
      logits: x, the log-odds of the positive class, any shape, a scalar too; float16, bfloat16,
        float32 or float64.
      labels: y in [0, 1], boolean, integer or floating: the logits' shape, or one for all.
      alpha: α in [0, 1], the weight of the positive class, 1 − α being that of the negative one:
        one number, one for each entry of the last axis, or the logits' shape.
      gamma: γ ≥ 0 and finite, of the same shapes as alpha.
      where, row_weights, reduction, normalizer, axis_name: as in `sigmoid_binary_cross_entropy`. A
        mean divides by the sum of the row weights, which does not include A (1 − p_t)^γ.

    Returns:
      The loss of each logit in nats, in the logits' shape, or a scalar with a reduction: float32,
      float64 for float64 logits. NaN, gradient too, where the logit is NaN, or where a traced y,
      α or γ is out of range.

    Raises:
      ValueError: a shape other than those above; a concrete label or α outside [0, 1]; a concrete
        γ that is negative or not finite.
      TypeError: logits that are not floating point; other arguments that are not numbers.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> loss = jxent.sigmoid_focal_loss(jnp.array([-2.0, 1.0]), jnp.array([0, 1]), alpha=0.25)
      >>> print(loss.round(4))
      [0.0014 0.0057]

    References:
      Lin, Goyal, Girshick, He, Dollár, Focal Loss for Dense Object Detection, 2017.
    """
    fn = "sigmoid_focal_loss"
    x = _check.floats(fn, "logits", logits)
    options = elementwise.check_options(
        fn, x.shape, where, row_weights, reduction, normalizer, axis_name
    )
    y = _check.binary_labels(fn, labels, x.shape, options.kept)
    if alpha is not None:
        _check.between_0_and_1(fn, "alpha", alpha)
    _check.finite_nonnegative(fn, "gamma", gamma)
    given = {"alpha": alpha, "gamma": gamma}
    parameters = tuple(_check.per_logit(fn, name, a, x.shape) for name, a in given.items())
    loss = ElementwiseLoss(fn, binary_focal, _valid_alpha_and_gamma)
    return elementwise_losses(loss, x, y, parameters, options)


def _valid_pos_weight(w: PerEntry | None) -> Bool[Array, "*s"]:
    return jnp.array(True) if w is None else (w >= 0) & (w < jnp.inf)


def _valid_alpha_and_gamma(alpha: PerEntry | None, gamma: PerEntry) -> Bool[Array, "*s"]:
    valid = (gamma >= 0) & (gamma < jnp.inf)
    return valid if alpha is None else valid & in_unit_interval(alpha)


def _multiply_zero_inf(w: PerEntry, x: PerEntry) -> PerEntry:
    """Multiply w·x with 0·∞ = 0; 0·NaN stays NaN."""
    return jnp.where((w == 0) & jnp.isinf(x), jnp.zeros_like(x), w * x)


# Thousands of infinite terms add up to a finite sum of the right sign.
_bounded = partial(clip_infinite, headroom=2.0**16, straight_through=True)


@jax.custom_jvp
def _softplus(x: PerEntry) -> tuple[PerEntry, PerEntry]:
    """Compute log(1 + e^x) and log(1 + e^−x)."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.maximum(x, 0) + tail, jnp.maximum(-x, 0) + tail


@_softplus.defjvp
def _softplus_jvp(primals: Tangents, tangents: Tangents) -> tuple[Any, Any]:
    (x,), (x_dot,) = primals, tangents
    p, q = _sigmoid(x)
    return _softplus(x), (p * x_dot, -q * x_dot)


@jax.custom_jvp
def _sigmoid(x: PerEntry) -> tuple[PerEntry, PerEntry]:
    """Compute σ(x) and σ(−x) = 1 − σ(x), both to full relative accuracy."""
    e = jnp.exp(-jnp.abs(x))
    likely, unlikely = 1 / (1 + e), e / (1 + e)
    return jnp.where(x >= 0, likely, unlikely), jnp.where(x >= 0, unlikely, likely)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: Tangents, tangents: Tangents) -> tuple[Any, Any]:
    (x,), (x_dot,) = primals, tangents
    p, q = _sigmoid(x)
    return (p, q), (p * q * x_dot, -p * q * x_dot)


def _smoothed_labels(eps: float, y: PerEntry) -> tuple[PerEntry, PerEntry]:
    """Return the smoothed label and its complement, without subtracting a rounded one from 1."""
    return (1 - eps) * y + eps / 2, (1 - eps) * (1 - y) + eps / 2


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bce(eps: float, x: PerEntry, y: PerEntry, w: PerEntry | None) -> PerEntry:
    """Compute w y softplus(−x) + (1 − y) softplus(x)."""
    yes, no = _smoothed_labels(eps, y)
    above, below = _softplus(x)
    return _multiply_zero_inf(yes if w is None else w * yes, below) + _multiply_zero_inf(no, above)


def _bce_jvp(eps: float, primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    x, y, w = primals
    x_dot, y_dot, w_dot = tangents
    out = _bce(eps, x, y, w)
    out_dot = jnp.zeros_like(out)
    yes, no = _smoothed_labels(eps, y)
    if not isinstance(x_dot, SymbolicZero):
        p, q = _sigmoid(x)
        out_dot = out_dot + (no * p - (yes if w is None else w * yes) * q) * x_dot
    above, below = map(_bounded, _softplus(x))
    if not isinstance(y_dot, SymbolicZero):
        by_y = _bounded(-x if w is None else w * below - above)
        out_dot = out_dot + (1 - eps) * by_y * y_dot
    if w is not None and not isinstance(w_dot, SymbolicZero):
        out_dot = out_dot + yes * below * w_dot
    return out, out_dot


_bce.defjvp(_bce_jvp, symbolic_zeros=True)


class _Ratios(NamedTuple):
    """The factors of the derivatives of log u and k, each divided by u before u underflows."""

    i: PerEntry  # 1/u
    v: PerEntry  # σ(x) σ(−x)/u, in [0, 1]
    r: PerEntry  # ((1 − y) σ(x) − y σ(−x))/u, in [−1, 1]


def _label_shares(x: PerEntry, y: PerEntry) -> tuple[PerEntry, PerEntry, PerEntry]:
    """Return a, b and e = e^−|x| of u = (a + b e)/(1 + e).

    b is the label's share of the class that x predicts, a = 1 − b that of the other.
    """
    return jnp.where(x >= 0, 1 - y, y), jnp.where(x >= 0, y, 1 - y), jnp.exp(-jnp.abs(x))


def _clip_logits(x: PerEntry, y: PerEntry) -> PerEntry:
    """Clip x where u = e/(1 + e), e = e^−|x|, so that e stays a normal number.

    u is that for a hard label and a logit of its sign.  The ratios over u do not change with x out
    there, and without the clip would become 0/0.
    """
    far = -0.9 * math.log(jnp.finfo(x.dtype).tiny)
    right = jnp.where(x >= 0, y == 1, y == 0)
    return jnp.where(right, jnp.clip(x, -far, far), x)


@jax.custom_jvp
def _ratios(x: PerEntry, y: PerEntry) -> _Ratios:
    a, b, e = _label_shares(_clip_logits(x, y), y)
    both, difference = a + b * e, a - b * e
    r = jnp.where(x >= 0, difference, -difference) / both
    return _Ratios((1 + e) / both, e / ((1 + e) * both), r)


@_ratios.defjvp
def _ratios_jvp(primals: Tangents, tangents: Tangents) -> tuple[_Ratios, _Ratios]:
    """Differentiate into products of ratios: the quotient rule divides by u², which underflows."""
    (x, y), (x_dot, y_dot) = primals, tangents
    i, v, r = _ratios(x, y)
    p, q = _sigmoid(x)
    s, d = 1 - 2 * y, q - p  # u̇ = s p q ẋ + d ẏ
    return _Ratios(i, v, r), _Ratios(
        -s * v * i * x_dot - _bounded(i * i) * d * y_dot,
        v * (d - s * v) * x_dot - v * i * d * y_dot,
        v * (1 - s * r) * x_dot - i * (1 + r * d) * y_dot,
    )


@jax.custom_jvp
def _log_u(x: PerEntry, y: PerEntry) -> PerEntry:
    """Compute log u; for a = 0 (then b = 1) it starts from −|x|, since e may have become 0.

    Where u is near 1 it is log1p of u − 1 = −(b + a e)/(1 + e): u itself would be rounded.
    """
    a, b, e = _label_shares(x, y)
    rest = (b + a * e) / (1 + e)
    near = rest < 0.25
    far = jnp.where(a == 0, -jnp.abs(x), jnp.log(a + b * e)) - jnp.log1p(e)
    return jnp.where(near, jnp.log1p(-jnp.where(near, rest, 0)), far)


@_log_u.defjvp
def _log_u_jvp(primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    (x, y), (x_dot, y_dot) = primals, tangents
    i, v, _ = _ratios(x, y)
    p, q = _sigmoid(x)
    return _log_u(x, y), (1 - 2 * y) * v * x_dot + (q - p) * i * y_dot


@jax.custom_jvp
def _bce_over_u(x: PerEntry, y: PerEntry) -> PerEntry:
    """Compute k = bce/u = (a |x| + log1p(e))/u: 1, not 0/0, where a prediction is surely right."""
    a, _, e = _label_shares(_clip_logits(x, y), y)
    return (_multiply_zero_inf(a, jnp.abs(x)) + jnp.log1p(e)) * _ratios(x, y).i


@_bce_over_u.defjvp
def _bce_over_u_jvp(primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    (x, y), (x_dot, y_dot) = primals, tangents
    out, (i, v, r) = _bce_over_u(x, y), _ratios(x, y)
    k, (p, q) = _bounded(out), _sigmoid(x)
    by_x = r - (1 - 2 * y) * (k * v)
    by_y = _bounded(-(_bounded(x) + k * (q - p)) * i)
    return out, by_x * x_dot + by_y * y_dot


def _modulating_factor(x: PerEntry, y: PerEntry, gamma: PerEntry) -> PerEntry:
    """Compute u^γ, 1 for γ = 0 even where u = 0."""
    return jnp.exp(gamma * _bounded(_log_u(x, y)))


@jax.custom_jvp
def binary_focal(x: PerEntry, y: PerEntry, alpha: PerEntry | None, gamma: PerEntry) -> PerEntry:
    """Compute A u^γ bce."""
    bce = _bce(0.0, x, y, None)
    modulated = jnp.where(jnp.isinf(bce), bce, _modulating_factor(x, y, gamma) * bce)
    return modulated if alpha is None else _multiply_zero_inf(_alpha_weight(alpha, y), modulated)


def _alpha_weight(alpha: PerEntry, y: PerEntry) -> PerEntry:
    """Compute A = α y + (1 − α)(1 − y)."""
    return alpha * y + (1 - alpha) * (1 - y)


def _binary_focal_jvp(primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    # Constants arrive as NumPy arrays under `jax_custom_jvp3`.
    x, y, alpha, gamma = jax.tree.map(jnp.asarray, primals)
    x_dot, y_dot, alpha_dot, gamma_dot = tangents
    out = binary_focal(x, y, alpha, gamma)
    out_dot = jnp.zeros_like(out)
    # u^γ is applied as two factors u^(γ/2), one before and one after: u^γ itself may underflow
    # where its product with a large derivative does not.
    root, k = _modulating_factor(x, y, gamma / 2), _bounded(_bce_over_u(x, y))
    A = jnp.ones_like(x) if alpha is None else _alpha_weight(alpha, y)
    modulated = _bounded(binary_focal(x, y, None, gamma))
    if not isinstance(x_dot, SymbolicZero):
        p, q = _sigmoid(x)
        by_x = (1 - y) * p - y * q + gamma * (1 - 2 * y) * (k * p * q)
        out_dot = out_dot + A * (root * (root * by_x)) * x_dot
    if not isinstance(y_dot, SymbolicZero):
        by_y = root * _bounded(-_bounded(x) - gamma * k * jnp.tanh(x / 2))
        by_y = A * (root * by_y)
        if alpha is not None:
            by_y = by_y + (2 * alpha - 1) * modulated
        out_dot = out_dot + _bounded(by_y) * y_dot
    if alpha is not None and not isinstance(alpha_dot, SymbolicZero):
        out_dot = out_dot + (2 * y - 1) * modulated * alpha_dot
    if not isinstance(gamma_dot, SymbolicZero):
        by_gamma = root * _bounded(_bounded(_bce(0.0, x, y, None)) * _bounded(_log_u(x, y)))
        out_dot = out_dot + _bounded(A * (root * by_gamma)) * gamma_dot
    return out, out_dot


binary_focal.defjvp(_binary_focal_jvp, symbolic_zeros=True)
