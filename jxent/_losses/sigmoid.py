"""Binary cross-entropy: every logit x its own question, answered yes with σ(x) = 1/(1 + e^−x).

    softplus(x) = log(1 + e^x) = max(x, 0) + log1p(e^−|x|) = −log σ(−x)
    bce = w y softplus(−x) + (1 − y) softplus(x)            y: label in [0, 1], w: positive weight

    ∂bce/∂x = (1 − y) σ(x) − w y σ(−x)
    ∂bce/∂y = w softplus(−x) − softplus(x)                  −x without w
    ∂bce/∂w = y softplus(−x)

The focal loss weighs it by u = 1 − p_t = (1 − y) σ(x) + y σ(−x) and A = α y + (1 − α)(1 − y):

    focal = A u^γ bce                                       k = bce/u

    ∂focal/∂x = A u^γ ((1 − y) σ(x) − y σ(−x) + γ (1 − 2y) k σ(x) σ(−x))
    ∂focal/∂y = A u^γ (−x − γ k tanh(x/2)) + (2α − 1) u^γ bce
    ∂focal/∂γ = A u^γ bce log u
    ∂focal/∂α = (2y − 1) u^γ bce

σ(−x) is never 1 − σ(x), and no power of u is negative: both keep their digits where a prediction
is right and sure.  Which logits count and what they weigh is `elementwise`'s.
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
from jxent._core.elementwise import Each, within_unit
from jxent._typing import ArrayLike, AxisNames, ReductionKind

Tangents = tuple[Any, ...]


@_check.keywords
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
    """w y log(1 + e^−x) + (1 − y) log(1 + e^x), for every logit x with label y.

    With label smoothing ε, y ← (1 − ε) y + ε/2.  The gradient is (1 − y) σ(x) − w y σ(−x).  An
    infinite logit is right: sure and right is 0, sure and wrong ∞ with a finite gradient.

    Args:
      logits: x, log-odds of "yes", any shape, a scalar too; float16, bfloat16, float32, float64.
      labels: y in [0, 1], boolean, integer or floating: the logits' shape, or one for all.
      pos_weight: w ≥ 0 and finite, what a "yes" weighs against a "no": one number, one for each
        entry of the last axis, or the logits' shape.
      label_smoothing: ε in [0, 1], a static number.
      where: boolean, of the logits' shape to keep single logits (labels may be unknown), or of the
        rows' shape `[*n]` to keep rows of logits `[*n, V]`. What is dropped is exactly 0, loss and
        gradient, whatever it holds, its label too.
      row_weights: of the same shapes as `where`: what a logit, or each logit of a row, counts. They
        may be negative.
      reduction: "none", "sum", or "mean": Σ weight loss / Σ weight over the kept logits.
      normalizer: scalar in place of the mean's denominator.
      axis_name: mesh axes to sum numerator and denominator over, inside `jax.shard_map`.

    Returns:
      The loss of each logit in nats, in the logits' shape, or with a reduction a scalar: float32,
      float64 for float64 logits. NaN, gradient too, where the logit is NaN, or (when traced) the
      label is outside [0, 1] or w is negative or not finite.

    Raises:
      ValueError: for a shape that is none of these, a concrete label outside [0, 1], a concrete
        w that is negative or not finite, ε outside [0, 1].
      TypeError: for logits that are not floating, labels that are not numbers, a traced ε.

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
    which = elementwise.chosen(fn, x.shape, where, row_weights, reduction, normalizer, axis_name)
    y = _check.binary_labels(fn, labels, x.shape, which.kept)
    w = _check.per_logit(fn, "pos_weight", pos_weight, x.shape)
    if pos_weight is not None:
        _check.finite_nonnegative(fn, "pos_weight", pos_weight)
    eps = _check.fraction(fn, "label_smoothing", label_smoothing)
    return elementwise.losses(fn, _bce, _weighable, (eps,), x, y, (w,), which)


@_check.keywords
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
    """A (1 − p_t)^γ bce, for every logit x with label y: what is easy counts less.

    p = σ(x), bce = −y log p − (1 − y) log(1 − p), 1 − p_t = y (1 − p) + (1 − y) p, and with α
    A = α y + (1 − α)(1 − y), without it 1.  γ = 0 is `sigmoid_binary_cross_entropy`.

    Args:
      logits: x, log-odds of "yes", any shape, a scalar too; float16, bfloat16, float32, float64.
      labels: y in [0, 1], boolean, integer or floating: the logits' shape, or one for all.
      alpha: α in [0, 1], the weight of "yes", 1 − α being that of "no": one number, one for each
        entry of the last axis, or the logits' shape.
      gamma: γ ≥ 0 and finite, shaped like alpha.
      where, row_weights, reduction, normalizer, axis_name: as in `sigmoid_binary_cross_entropy`. A
        mean divides by what the logits weigh, not by A (1 − p_t)^γ.

    Returns:
      The loss of each logit in nats, in the logits' shape, or with a reduction a scalar: float32,
      float64 for float64 logits. NaN, gradient too, where the logit is NaN, or (when traced)
      y, α or γ is out of range.

    Raises:
      ValueError: for a shape that is none of these, a concrete label or α outside [0, 1], a
        concrete γ that is negative or not finite.
      TypeError: for logits that are not floating, or other arguments that are not numbers.

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
    which = elementwise.chosen(fn, x.shape, where, row_weights, reduction, normalizer, axis_name)
    y = _check.binary_labels(fn, labels, x.shape, which.kept)
    if alpha is not None:
        _check.within_unit(fn, "alpha", alpha)
    _check.finite_nonnegative(fn, "gamma", gamma)
    given = {"alpha": alpha, "gamma": gamma}
    parameters = tuple(_check.per_logit(fn, name, a, x.shape) for name, a in given.items())
    return elementwise.losses(fn, focal, _focusing, (), x, y, parameters, which)


def _weighable(w: Each | None) -> Bool[Array, "*s"]:
    return jnp.array(True) if w is None else (w >= 0) & (w < jnp.inf)


def _focusing(alpha: Each | None, gamma: Each) -> Bool[Array, "*s"]:
    fine = (gamma >= 0) & (gamma < jnp.inf)
    return fine if alpha is None else fine & within_unit(alpha)


def _times(w: Each, x: Each) -> Each:
    """w·x with 0·∞ = 0."""
    return jnp.where((w == 0) & jnp.isinf(x), jnp.zeros_like(x), w * x)


@jax.custom_jvp
def _finite(x: Each) -> Each:
    """x with ±∞ told as huge numbers, so that 0·∞ is 0 after it; its slope is x's own.

    A few thousand of them still add up to a number, so that their sum has the right sign.
    """
    return jnp.where(jnp.isinf(x), jnp.sign(x) * (jnp.finfo(x.dtype).max / 2**16), x)


@_finite.defjvp
def _finite_jvp(primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    return _finite(*primals), tangents[0]


@jax.custom_jvp
def _softplus(x: Each) -> tuple[Each, Each]:
    """log(1 + e^x) and log(1 + e^−x)."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.maximum(x, 0) + tail, jnp.maximum(-x, 0) + tail


@_softplus.defjvp
def _softplus_jvp(primals: Tangents, tangents: Tangents) -> tuple[Any, Any]:
    (x,), (x_dot,) = primals, tangents
    p, q = _sigmoid(x)
    return _softplus(x), (p * x_dot, -q * x_dot)


@jax.custom_jvp
def _sigmoid(x: Each) -> tuple[Each, Each]:
    """σ(x) and σ(−x) = 1 − σ(x), both to full relative accuracy."""
    e = jnp.exp(-jnp.abs(x))
    likely, unlikely = 1 / (1 + e), e / (1 + e)
    return jnp.where(x >= 0, likely, unlikely), jnp.where(x >= 0, unlikely, likely)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: Tangents, tangents: Tangents) -> tuple[Any, Any]:
    (x,), (x_dot,) = primals, tangents
    p, q = _sigmoid(x)
    return (p, q), (p * q * x_dot, -p * q * x_dot)


def _masses(eps: float, y: Each) -> tuple[Each, Each]:
    """The smoothed label and one minus it."""
    return (1 - eps) * y + eps / 2, (1 - eps) * (1 - y) + eps / 2


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bce(eps: float, x: Each, y: Each, w: Each | None) -> Each:
    """w y softplus(−x) + (1 − y) softplus(x)."""
    yes, no = _masses(eps, y)
    above, below = _softplus(x)
    return _times(yes if w is None else w * yes, below) + _times(no, above)


def _bce_jvp(eps: float, primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    x, y, w = primals
    x_dot, y_dot, w_dot = tangents
    out = _bce(eps, x, y, w)
    out_dot = jnp.zeros_like(out)
    yes, no = _masses(eps, y)
    if not isinstance(x_dot, SymbolicZero):
        p, q = _sigmoid(x)
        out_dot = out_dot + (no * p - (yes if w is None else w * yes) * q) * x_dot
    above, below = map(_finite, _softplus(x))
    if not isinstance(y_dot, SymbolicZero):
        slope = _finite(-x if w is None else w * below - above)
        out_dot = out_dot + (1 - eps) * slope * y_dot
    if w is not None and not isinstance(w_dot, SymbolicZero):
        out_dot = out_dot + yes * below * w_dot
    return out, out_dot


_bce.defjvp(_bce_jvp, symbolic_zeros=True)


class _Ratios(NamedTuple):
    """What the derivatives of log u and k are made of, each divided by u before it underflows."""

    i: Each  # 1/u
    v: Each  # σ(x) σ(−x)/u, in [0, 1]
    r: Each  # ((1 − y) σ(x) − y σ(−x))/u, in [−1, 1]


def _sides(x: Each, y: Each) -> tuple[Each, Each, Each]:
    """The label's share against x's sign, its share with it, and e^−|x|: u = (a + b e)/(1 + e)."""
    return jnp.where(x >= 0, 1 - y, y), jnp.where(x >= 0, y, 1 - y), jnp.exp(-jnp.abs(x))


def _tame(x: Each, y: Each) -> Each:
    """x, no further out than e^−|x| is a normal number where u is that small.

    Ratios of two such numbers do not move any more out there, but would become 0/0.
    """
    far = -0.9 * math.log(jnp.finfo(x.dtype).tiny)
    right = jnp.where(x >= 0, y == 1, y == 0)
    return jnp.where(right, jnp.clip(x, -far, far), x)


@jax.custom_jvp
def _ratios(x: Each, y: Each) -> _Ratios:
    a, b, e = _sides(_tame(x, y), y)
    both, difference = a + b * e, a - b * e
    r = jnp.where(x >= 0, difference, -difference) / both
    return _Ratios((1 + e) / both, e / ((1 + e) * both), r)


@_ratios.defjvp
def _ratios_jvp(primals: Tangents, tangents: Tangents) -> tuple[_Ratios, _Ratios]:
    """Products of ratios: a quotient of derivatives would divide by u², which underflows."""
    (x, y), (x_dot, y_dot) = primals, tangents
    i, v, r = _ratios(x, y)
    p, q = _sigmoid(x)
    s, d = 1 - 2 * y, q - p  # u̇ = s p q ẋ + d ẏ
    return _Ratios(i, v, r), _Ratios(
        -s * v * i * x_dot - _finite(i * i) * d * y_dot,
        v * (d - s * v) * x_dot - v * i * d * y_dot,
        v * (1 - s * r) * x_dot - i * (1 + r * d) * y_dot,
    )


@jax.custom_jvp
def _log_unsure(x: Each, y: Each) -> Each:
    """log u, where a = 0 of −|x| and not of an e that has become 0."""
    a, b, e = _sides(x, y)
    return jnp.where(a == 0, -jnp.abs(x), jnp.log(a + b * e)) - jnp.log1p(e)


@_log_unsure.defjvp
def _log_unsure_jvp(primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    (x, y), (x_dot, y_dot) = primals, tangents
    i, v, _ = _ratios(x, y)
    p, q = _sigmoid(x)
    return _log_unsure(x, y), (1 - 2 * y) * v * x_dot + (q - p) * i * y_dot


@jax.custom_jvp
def _bce_by_unsure(x: Each, y: Each) -> Each:
    """k = bce/u = (a |x| + log1p(e))/u, which is 1 and not 0/0 for a label surely right."""
    a, _, e = _sides(_tame(x, y), y)
    return (_times(a, jnp.abs(x)) + jnp.log1p(e)) * _ratios(x, y).i


@_bce_by_unsure.defjvp
def _bce_by_unsure_jvp(primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    (x, y), (x_dot, y_dot) = primals, tangents
    out, (i, v, r) = _bce_by_unsure(x, y), _ratios(x, y)
    k, (p, q) = _finite(out), _sigmoid(x)
    by_x = r - (1 - 2 * y) * (k * v)
    by_y = _finite(-(_finite(x) + k * (q - p)) * i)
    return out, by_x * x_dot + by_y * y_dot


def _power(x: Each, y: Each, gamma: Each) -> Each:
    """u^γ, 1 for γ = 0 even where u = 0."""
    return jnp.exp(gamma * _finite(_log_unsure(x, y)))


@jax.custom_jvp
def focal(x: Each, y: Each, alpha: Each | None, gamma: Each) -> Each:
    """A u^γ bce."""
    bce = _bce(0.0, x, y, None)
    weighed = jnp.where(jnp.isinf(bce), bce, _power(x, y, gamma) * bce)
    return weighed if alpha is None else _times(_balance(alpha, y), weighed)


def _balance(alpha: Each, y: Each) -> Each:
    return alpha * y + (1 - alpha) * (1 - y)


def _focal_jvp(primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    x, y, alpha, gamma = primals
    x_dot, y_dot, alpha_dot, gamma_dot = tangents
    out = focal(x, y, alpha, gamma)
    out_dot = jnp.zeros_like(out)
    # u^γ in two halves: times a slope it may be a number where by itself it is not.
    root, k = _power(x, y, gamma / 2), _finite(_bce_by_unsure(x, y))
    A = jnp.ones_like(x) if alpha is None else _balance(alpha, y)
    weighed = _finite(focal(x, y, None, gamma))
    if not isinstance(x_dot, SymbolicZero):
        p, q = _sigmoid(x)
        slope = (1 - y) * p - y * q + gamma * (1 - 2 * y) * (k * p * q)
        out_dot = out_dot + A * (root * (root * slope)) * x_dot
    if not isinstance(y_dot, SymbolicZero):
        slope = root * _finite(-_finite(x) - gamma * k * jnp.tanh(x / 2))
        slope = A * (root * slope)
        if alpha is not None:
            slope = slope + (2 * alpha - 1) * weighed
        out_dot = out_dot + _finite(slope) * y_dot
    if alpha is not None and not isinstance(alpha_dot, SymbolicZero):
        out_dot = out_dot + (2 * y - 1) * weighed * alpha_dot
    if not isinstance(gamma_dot, SymbolicZero):
        slope = root * _finite(_finite(_bce(0.0, x, y, None)) * _finite(_log_unsure(x, y)))
        out_dot = out_dot + _finite(A * (root * slope)) * gamma_dot
    return out, out_dot


focal.defjvp(_focal_jvp, symbolic_zeros=True)
