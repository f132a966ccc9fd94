"""Row losses of softmax logits: optax's names, order, keywords and defaults, one loss a row.

Rows are not reduced, and every transformation of JAX applies: jvp, linearize, jacfwd and hessian
as well as grad.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent import _check
from jxent._core.row_losses import (
    as_distributions,
    classes_last,
    row_losses_of_nll,
    softmax_inputs,
    weighted_row_losses,
)
from jxent._core.safe_math import nan_unless
from jxent._core.weighting import RowInputs, loss_options
from jxent._typing import ArrayLike, Axes, Scalar


@_check.arguments
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
) -> jax.Array:
    """Compute the softmax cross-entropy of each row with its integer label, in nats.

        loss = (1−ε) c_y nll_y + (ε/V) Σ_v c_v nll_v + ζ lse(z)²        nll_v = lse(z) − z_v

    The drop-in for `optax.softmax_cross_entropy_with_integer_labels`, in every mode of
    differentiation. `cross_entropy` is the same loss reduced, with row weights and a denominator.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: integers `[*n]` in [0, V); flat indices where `axis` is a tuple.
      axis: the class axis, a tuple of axes that are flattened together, or None for all.
      where: boolean, `[*n]` to keep rows or of the logits' shape to keep classes. A row without
        any class is dropped. Dropped rows are exactly 0, loss and gradient.
      class_weights: `[V]`, over the flattened class axes. With label_smoothing they also weigh the
        smoothing, see `cross_entropy`: to balance rare classes multiply the losses by
        class_weights[labels] instead.
      label_smoothing: ε in [0, 1], static.
      z_loss: ζ ≥ 0, static.
      logit_softcap: κ > 0, static; z = κ tanh(logits/κ).

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits).

    Raises:
      TypeError, ValueError: as `cross_entropy`; concrete labels outside [0, V) too. Under jit they
        are NaN in the loss and gradient of their row.

    Residuals:
      The arguments and a few numbers per row.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> labels = jnp.array([0, 1])
      >>> losses = jxent.softmax_cross_entropy_with_integer_labels(logits, labels)
      >>> with jnp.printoptions(precision=4, suppress=True): print(losses)
      [0.2761 2.9518]

    References:
      Goodfellow, Bengio, Courville, *Deep Learning* (2016), §6.2.2.
    """
    fn = "softmax_cross_entropy_with_integer_labels"
    z, rows_of = classes_last(fn, logits, axis)
    y = _check.labels(fn, labels, z.shape[:-1])
    kept, mask = _check.where(fn, rows_of(where), z.shape)
    _check.label_values(fn, labels, z.shape[-1], kept)
    c = _check.weights(fn, "class_weights", class_weights, z.shape[-1:])
    options = loss_options(fn, label_smoothing, z_loss, logit_softcap)
    return weighted_row_losses(fn, z, RowInputs(y, kept, mask, c), options)


@_check.arguments
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
) -> jax.Array:
    """Compute the softmax cross-entropy of each row with a distribution, in nats; 0·∞ = 0.

        loss = Σ_v c_v ((1−ε) t_v + ε/V) nll_v + ζ lse(z)²        nll_v = lse(z) − z_v

    The drop-in for `optax.softmax_cross_entropy` and for `optax.safe_softmax_cross_entropy` (under
    that name it is this same function), in every mode of differentiation.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: distributions or one-hot integers of the logits' shape, or one distribution, floats
        `[V]`, for all rows. They need not sum to 1, and may be negative: the loss is linear in
        them. Mass on a class that `where` excludes is dropped.
      axis, where, class_weights, label_smoothing, z_loss, logit_softcap: as in
        `softmax_cross_entropy_with_integer_labels`.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits).

    Raises:
      TypeError, ValueError: as `cross_entropy`, which is stricter: there a concrete negative target
        raises, and mass on an excluded class is NaN in its row.

    Residuals:
      The arguments and a few numbers per row.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jnp.array([[1.2, -0.8, -jnp.inf], [0.9, -1.2, 1.1]])
      >>> targets = jnp.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
      >>> losses = jxent.softmax_cross_entropy(logits, targets)
      >>> with jnp.printoptions(precision=4, suppress=True): print(losses)
      [0.3269 1.8018]

    References:
      Goodfellow, Bengio, Courville, *Deep Learning* (2016), §6.2.2.
    """
    fn = "softmax_cross_entropy"
    z, rows_of = classes_last(fn, logits, axis)
    kept, mask = _check.where(fn, rows_of(where), z.shape)
    t = as_distributions(fn, labels, z, rows_of, as_optax=True)
    c = _check.weights(fn, "class_weights", class_weights, z.shape[-1:])
    options = loss_options(fn, label_smoothing, z_loss, logit_softcap)
    return weighted_row_losses(fn, z, RowInputs(t, kept, mask, c), options)


safe_softmax_cross_entropy = softmax_cross_entropy


@_check.arguments
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the focal loss of each row: cross-entropy with less weight on easy rows, in nats.

        loss = c_y (1 − p_y)^γ nll_y             for a label y
        loss = Σ_v t_v c_v (1 − p_v)^γ nll_v     for a distribution t

    γ = 0 is the cross-entropy. 1 − p is −expm1(−nll), so confident rows keep their digits and the
    gradient is finite for every γ ≥ 0.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: integers `[*n]`, or distributions or one-hot integers of the logits' shape.
      gamma: γ ≥ 0 and finite, a scalar; it may be traced.
      axis, where, class_weights: as in `softmax_cross_entropy_with_integer_labels`.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits). NaN, gradient too, for a traced γ that
      is negative or not finite.

    Raises:
      TypeError, ValueError: as `cross_entropy`; a concrete γ that is negative or not finite.

    Residuals:
      The arguments and a few numbers per row for labels, the arguments for distributions.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jnp.array([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> labels = jnp.array([0, 2])
      >>> losses = jxent.softmax_focal_loss(logits, labels)
      >>> with jnp.printoptions(precision=4, suppress=True): print(losses)
      [0.     0.9635]

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, arXiv:1708.02002, with the softmax.
    """
    fn = "softmax_focal_loss"
    _check.finite_nonnegative(fn, "gamma", gamma)
    z, rows = softmax_inputs(fn, logits, labels, axis, where, class_weights)
    return row_losses_of_nll(fn, _focal_of_nll, z, rows, {"gamma": gamma})


@_check.arguments
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike | tuple[ArrayLike, ...] = 2.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the poly loss of each row: other coefficients of powers of 1 − p, in nats.

        loss = Σ_v t_v c_v (nll_v + ε (1 − p_v))                  one ε: Poly-1
        loss = Σ_v t_v c_v (nll_v + Σ_k ε_k (1 − p_v)^k)          a tuple (ε_1, …, ε_K): Poly-K

    nll is Σ_k (1 − p)^k/k, so ε_k makes the k-th coefficient 1/k + ε_k, and ε_k = −1/k drops it.
    The drop-in for `optax.poly_loss_cross_entropy`; integer labels are accepted too.

    Args:
      logits: floating point, classes along `axis`; the other axes `[*n]` are rows.
      labels: distributions or one-hot integers of the logits' shape, one distribution, floats
        `[V]`, or integers `[*n]`. Distributions as in `softmax_cross_entropy`.
      epsilon: ε, a scalar, or a tuple of scalars ε_1, ε_2, …; they may be traced, and negative.
      axis, where, class_weights: as in `softmax_cross_entropy_with_integer_labels`.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits).

    Raises:
      TypeError, ValueError: as `cross_entropy`.

    Residuals:
      As `softmax_focal_loss`.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jnp.array([[1.2, -0.8, -0.5]])
      >>> losses = jxent.poly_loss_cross_entropy(logits, jnp.array([[1.0, 0.0, 0.0]]))
      >>> with jnp.printoptions(precision=4, suppress=True): print(losses)
      [0.7587]

    References:
      Leng et al., *PolyLoss*, arXiv:2204.12511.
    """
    fn = "poly_loss_cross_entropy"
    terms = {"epsilon": epsilon}
    if isinstance(epsilon, tuple):
        terms = {f"epsilon[{k}]": e for k, e in enumerate(epsilon)}
    z, rows = softmax_inputs(fn, logits, labels, axis, where, class_weights, as_optax=True)
    return row_losses_of_nll(fn, _poly_of_nll, z, rows, terms, as_optax=True)


@jax.custom_jvp
def _focal_of_nll(nll: Array, gamma: Scalar) -> Array:
    """Compute (1 − p)^γ nll with 1 − p = −expm1(−nll), which does not cancel where p ≈ 1."""
    return _modulation(nll, gamma) * nll


def _modulation(nll: Array, gamma: Scalar) -> Array:
    """Compute (1 − p)^γ; NaN for a γ that is negative or not finite."""
    inside = ~(nll <= 0)
    base = -jnp.expm1(-jnp.where(inside, nll, 1))
    right = (gamma >= 0) & (gamma < jnp.inf)
    power = jnp.where(inside, base**gamma, (gamma == 0).astype(nll.dtype))
    return nan_unless(right, power)


@_focal_of_nll.defjvp
def _focal_of_nll_jvp(
    primals: tuple[Array, Scalar], tangents: tuple[Array, Scalar]
) -> tuple[Array, Array]:
    """Differentiate (1−p)^γ nll: d/dnll = (1−p)^γ (1 + γ nll/(e^nll − 1)), finite for γ ≥ 0."""
    nll, gamma = primals
    nll_dot, gamma_dot = tangents
    # nll/(e^nll − 1) is 1 at 0 and 0 at ∞.
    inside = (nll > 0) & jnp.isfinite(nll)
    safe = jnp.where(inside, nll, 1)
    ratio = jnp.where(inside, _x_over_expm1(safe), jnp.where(nll > 0, 0, 1))
    by_nll = _modulation(nll, gamma) * (1 + gamma * ratio)
    # log(1 − p), by log1p where p is small: 1 − p itself would be rounded.
    small = safe > 2
    log_rest = jnp.where(
        small, jnp.log1p(-jnp.exp(-safe)), jnp.log(-jnp.expm1(-jnp.where(small, 1, safe)))
    )
    by_gamma = _focal_of_nll(nll, gamma) * log_rest
    by_gamma = jnp.where(inside | jnp.isnan(nll), by_gamma, 0)
    return _focal_of_nll(nll, gamma), by_nll * nll_dot + by_gamma * gamma_dot


def _x_over_expm1(n: Array) -> Array:
    """Compute n/(e^n − 1), without e^n, which overflows, and without 1/n², which would in ∂/∂n."""
    small = n < 0.1
    v, w = jnp.where(small, n, 0), jnp.where(small, 1, n)
    square = v * v
    # n/(e^n − 1) = Σ_k B_k n^k/k! with Bernoulli's numbers B_k.
    even = 1 / 30240 - square / 1209600
    near = 1 - v / 2 + square * (1 / 12 + square * (-1 / 720 + square * even))
    return jnp.where(small, near, w * jnp.exp(-w) / -jnp.expm1(-w))


def _poly_of_nll(nll: Array, *epsilon: Scalar) -> Array:
    """Compute nll + Σ_k ε_k u^k with u = 1 − p = −expm1(−nll)."""
    u, terms = -jnp.expm1(-nll), jnp.zeros_like(nll)
    for e in reversed(epsilon):
        terms = u * (e + terms)
    return nll + terms
