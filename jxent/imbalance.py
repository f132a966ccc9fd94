"""Losses for rare classes: weights, shifted logits and margins from the number of rows per class.

With N_v rows of class v, N = Σ_v N_v, V classes and the prior π_v = N_v/N:

    balanced            c_v = N/(V N_v)                             N_v c_v is the same for all v
    effective number    c_v ∝ (1 − β)/(1 − β^N_v),  Σ_v c_v = V     β = 0: 1,  β → 1: ∝ balanced
    logit adjustment    z_v + τ log π_v                             trained with, predicted without
    label margin        Δ_v ∝ N_v^(−1/4)                            z_y − Δ_y in place of z_y

Weights are passed as `class_weights`.  A logit adjustment changes only the last layer's bias, so a
linear head needs no logits for it.  A margin can be computed from the row's loss nll = −log p_y:

    p_y/(1 − p_y) shrinks by e^−Δ       nll → log(1 + e^Δ (e^nll − 1)) = nll + Δ + log r
                                        r = e^(−nll−Δ) + (1 − e^−nll) in (0, 1]
    ∂/∂nll = 1/r        ∂/∂Δ = (1 − e^−nll)/r

Both terms of r are ≥ 0, so neither derivative cancels or overflows.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.safe_math import nan_unless, zero_or_nan
from jxent._core.targets import narrow
from jxent._core.weighting import RowInputs, class_weight
from jxent._typing import ArrayLike, ClassWeights, Labels, PerRow

__all__ = [
    "balanced_class_weights",
    "effective_number_weights",
    "logit_adjustment",
    "ldam_margins",
    "ldam",
]


@_check.arguments
def balanced_class_weights(counts: ArrayLike) -> jax.Array:
    """Compute class weights c_v = N/(V N_v), by which all classes have the same total weight.

    The mean weight of a row is 1.

    Args:
      counts: N_v `[V]`, the number of rows of each class, integers or floats; for example
        `jnp.bincount(labels, length=V)`.

    Returns:
      `[V]` in float32 (float64 for float64 counts), for `class_weights=`. NaN, when traced, for a
      class whose count is not positive.

    Raises:
      ValueError: a concrete count that is not positive and finite; counts not of one axis.
      TypeError: not numbers.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.imbalance.balanced_class_weights(jnp.array([90, 9, 1]))
      ... )
      [ 0.3704  3.7037 33.3333]

    References:
      King and Zeng, Logistic Regression in Rare Events Data, 2001; scikit-learn's
      `compute_class_weight("balanced")`.
    """
    n = _valid_counts(_class_counts("balanced_class_weights", counts))
    return jnp.sum(_replace_nan(n, 0.0)) / n / n.size


@_check.arguments
def effective_number_weights(counts: ArrayLike, beta: float) -> jax.Array:
    """Compute class weights c_v ∝ 1/E_v from effective numbers of rows E_v, with Σ_v c_v = V.

        E_v = (1 − β^N_v)/(1 − β)

    Each further row of a class adds less to E_v. For β = 0 all E_v and all weights are 1; for β → 1
    E_v → N_v, and the weights are proportional to inverse frequencies. 1 − β^N is computed as
    −expm1(N log β) with log β in Python's floats: as a float32, β = 1 − 1e-7 would lose its digits.

    Args:
      counts: N_v `[V]`, the number of rows of each class.
      beta: β in [0, 1], a static number; the paper uses 0.9, 0.99, 0.999 and 0.9999.

    Returns:
      `[V]` in float32 (float64 for float64 counts), for `class_weights=`. NaN, when traced, for a
      class whose count is not positive.

    Raises:
      ValueError: a concrete count that is not positive and finite; counts not of one axis; β
        outside [0, 1].
      TypeError: counts that are not numbers; a traced β.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> counts = jnp.array([5000, 500, 50])
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.imbalance.effective_number_weights(counts, 0.999)
      ... )
      [0.1256 0.317  2.5574]

    References:
      Cui, Jia, Lin, Song and Belongie, Class-Balanced Loss Based on Effective Number of Samples,
      arXiv:1901.05555, equation 3.
    """
    fn = "effective_number_weights"
    n = _valid_counts(_class_counts(fn, counts))
    beta = _check.fraction(fn, "beta", beta)
    log_beta = math.log(beta) if beta else -math.inf
    each = 1 / (n if beta == 1 else -jnp.expm1(n * log_beta))
    return each / jnp.mean(_replace_nan(each, 0.0))


@_check.arguments
def logit_adjustment(logits: ArrayLike, prior: ArrayLike, tau: ArrayLike = 1.0) -> jax.Array:
    """Compute adjusted logits z_v + τ log π_v, with which to train on imbalanced classes.

    Train with the adjusted logits and predict with the unadjusted ones, which then do not favour
    frequent classes. τ = 1 is the balanced softmax, Bayes-consistent for the balanced error. The
    logits of a model that was trained without are adjusted afterwards, with τ = −1.

    Adding to the last layer's bias adds to the logits of every row. So a linear head needs no array
    of size N·V:

        linear_cross_entropy(hidden, head, labels, bias=logit_adjustment(bias, prior))

    with jnp.zeros(V) for the bias of a head that has none.

    Args:
      logits: z `[*n, V]`, or a bias `[V]`, floating point.
      prior: π `[V]`, counts or probabilities: they are divided by their sum. A class of prior 0
        gets −∞: it is impossible, and the loss of a row with that label is ∞. To avoid this count
        at least one row: np.maximum(counts, 1).
      tau: τ, a scalar; it may be traced. τ = 0 leaves the logits unchanged.

    Returns:
      The shape of the logits, float32 for half precision (too coarse for the sum), else their
      dtype. NaN, when traced, for a class whose prior is negative or NaN, or is 0 with τ < 0.

    Raises:
      ValueError: a prior of another shape; a concrete prior that is negative, not finite or 0
        everywhere, or 0 somewhere with a concrete τ < 0.
      TypeError: logits that are not floating point; a prior or τ that is not numeric.

    Residuals:
      The prior and τ.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> hidden = jax.random.normal(jax.random.key(0), (6, 4))
      >>> head = jax.random.normal(jax.random.key(1), (4, 3))
      >>> labels, counts = jnp.array([0, 0, 0, 1, 0, 2]), jnp.array([4, 1, 1])
      >>> adjusted = jxent.imbalance.logit_adjustment(hidden @ head, counts)
      >>> bias = jxent.imbalance.logit_adjustment(jnp.zeros(3), counts)
      >>> loss = jxent.linear_cross_entropy(hidden, head, labels, bias=bias)
      >>> bool(jnp.allclose(loss, jxent.cross_entropy(adjusted, labels)))
      True

    References:
      Menon et al., Long-Tail Learning via Logit Adjustment, arXiv:2007.07314, equation 10; Ren et
      al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, arXiv:2007.10740.
    """
    fn = "logit_adjustment"
    z = _check.logits(fn, logits)
    pi = _class_prior(fn, prior, z.shape[-1])
    t = _check.scalar(fn, "tau", tau)
    _possible_prior(fn, prior, tau)
    return _logit_adjustment(z, pi, t)


@_check.arguments
def ldam_margins(counts: ArrayLike, max_margin: float = 0.5) -> jax.Array:
    """Compute the label margins Δ_v = C N_v^(−1/4) of `ldam`, the largest being max_margin.

    They minimise a bound on the balanced error: the fewer rows a class has, the larger its margin
    to the decision boundary. The rarest class has the largest.

    Args:
      counts: N_v `[V]`, the number of rows of each class.
      max_margin: the margin of the rarest class, static, in units of the logits.

    Returns:
      `[V]` in float32 (float64 for float64 counts). NaN, when traced, for a class whose count is
      not positive.

    Raises:
      ValueError: a concrete count that is not positive and finite; counts not of one axis;
        max_margin negative.
      TypeError: counts that are not numbers; a traced max_margin.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.imbalance.ldam_margins(jnp.array([16, 1, 81]))
      ... )
      [0.25   0.5    0.1667]

    References:
      Cao, Wei, Gaidon, Arechiga and Ma, Learning Imbalanced Datasets with Label-Distribution-Aware
      Margin Loss, arXiv:1906.07413, equation 13.
    """
    fn = "ldam_margins"
    n = _valid_counts(_class_counts(fn, counts))
    largest = _check.not_negative(fn, "max_margin", max_margin)
    return largest * (jnp.min(_replace_nan(n, jnp.inf)) / n) ** 0.25


@_check.arguments
def ldam(row_losses: ArrayLike, labels: ArrayLike, margins: ArrayLike) -> jax.Array:
    """Compute row losses with the label's logit lowered by its margin, from those without.

        loss = −log(e^(z_y−Δ_y)/(e^(z_y−Δ_y) + Σ_{v≠y} e^z_v))
             = log(1 + e^Δ (e^nll − 1)) = nll + Δ + log r        r = e^(−nll−Δ) + (1 − e^−nll)
        ∂/∂nll = 1/r        ∂/∂Δ = (1 − e^−nll)/r

    It needs no logits, only the row losses of `cross_entropy` or `linear_cross_entropy` with
    reduction="none", without class weights, smoothing or z-loss; weight the result instead. Losses
    of confident rows are as accurate as there. For the paper's scale s multiply logits and margins
    by s.

    Args:
      row_losses: nll `[*n]` in nats, −log p_y of each row.
      labels: integers `[*n]` in [0, V).
      margins: Δ `[V]`, not negative, from `ldam_margins`.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 losses): ∞ where nll is, with derivative 1. A
      loss of exactly 0 marks a dropped row: it stays 0, whatever its label is. NaN, when traced,
      for a negative loss or margin, or a label outside [0, V).

    Raises:
      ValueError: shapes that do not match; a concrete label outside [0, V) in a row that was not
        dropped; a concrete negative loss or margin.
      TypeError: losses that are not floating point; labels that are not integers; margins that are
        not numbers.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits, labels = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.5]]), jnp.array([0, 1])
      >>> margins = jxent.imbalance.ldam_margins(jnp.array([100, 10, 1]))
      >>> rows = jxent.cross_entropy(logits, labels, reduction="none")
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.imbalance.ldam(rows, labels, margins)
      ... )
      [0.4634 0.161 ]

    References:
      Cao, Wei, Gaidon, Arechiga and Ma, Learning Imbalanced Datasets with Label-Distribution-Aware
      Margin Loss, arXiv:1906.07413, equation 12.
    """
    fn = "ldam"
    _check.nonnegative(fn, "row_losses", row_losses)
    nll = _check.floats(fn, "row_losses", row_losses)
    y = _check.labels(fn, labels, nll.shape)
    delta = _check.weights(fn, "margins", margins, _check.one_axis(fn, "margins", margins))
    assert delta is not None
    _check.nonnegative(fn, "margins", margins)
    _check.label_values(fn, labels, delta.size, nll != 0)
    return _ldam(nll, y, delta)


def _class_numbers(fn: str, name: str, x: ArrayLike, interval: str, must: str) -> Float[Array, "V"]:
    """Return one number for each of at least one class; raise ValueError at one outside."""
    out = _check.number(fn, name, x)
    _check.some_classes(fn, name, _check.one_axis(fn, name, x), (0,))
    _check.every_entry(fn, name, x, _check.inside(interval), must)
    return out


def _class_counts(fn: str, x: ArrayLike) -> Float[Array, "V"]:
    """Return how often each class occurs: finite, and not 0."""
    return _class_numbers(
        fn,
        "counts",
        x,
        "(0, inf)",
        "must be finite and positive: nothing is known of a class that does not occur; "
        "np.maximum(counts, 1) counts it as seen once",
    )


def _class_prior(fn: str, x: ArrayLike, classes: int) -> Float[Array, "V"]:
    """Return counts or probabilities, one a class, finite, not negative and not all 0."""
    out = _class_numbers(fn, "prior", x, "[0, inf)", "must be finite and not negative")
    if out.shape != (classes,):
        raise ValueError(
            f"{fn}: `prior` must have one number a class, shape {[classes]}, got "
            f"{_check.describe(x)}"
        )
    values = _check.concrete(x)
    if values is not None and not np.any(values):
        raise ValueError(f"{fn}: `prior` is 0 for every class")
    return out


def _possible_prior(fn: str, prior: ArrayLike, tau: ArrayLike) -> None:
    """Raise ValueError if a class of prior 0 would become certain, when both are concrete."""
    t, found = _check.concrete(tau), _check.first_invalid(prior, lambda p: p != 0)
    if t is not None and t < 0 and found:
        raise ValueError(
            f"{fn}: `prior`{found[0]} = 0 with tau = {t} would make that class certain; "
            "np.maximum(counts, 1) counts it as seen once"
        )


def _valid_counts(n: Float[Array, "V"]) -> Float[Array, "V"]:
    """Convert counts to float32 or wider; NaN for a count that is not positive and finite."""
    n = n.astype(np.promote_types(n.dtype, np.float32))
    return nan_unless((n > 0) & jnp.isfinite(n), n)


def _replace_nan(x: Float[Array, "V"], by: float) -> Float[Array, "V"]:
    """Replace NaN, so that an invalid class does not make the statistics of all classes NaN."""
    return jnp.where(jnp.isnan(x), by, x)


@partial(jax.jit, inline=True)
def _logit_adjustment(
    z: Float[Array, "*n V"], prior: Float[Array, "V"], tau: Float[Array, ""]
) -> Float[Array, "*n V"]:
    dtype = np.promote_types(z.dtype, np.float32)
    prior, tau = prior.astype(dtype), tau.astype(dtype)
    positive = prior > 0
    shift = jnp.where(positive, tau * _log_prior(prior, positive), jnp.where(tau == 0, 0, -jnp.inf))
    shift = nan_unless((prior >= 0) & (positive | (tau >= 0)), shift)
    return z.astype(dtype) + jnp.reshape(shift, (1,) * (z.ndim - 1) + shift.shape)


def _log_prior(prior: Float[Array, "V"], positive: Bool[Array, "V"]) -> Float[Array, "V"]:
    """Compute log(π_v / Σ π) of positive priors, even if Σ π overflows or π_v / Σ π underflows."""
    # Scaling by a power of two is exact, and keeps both the sum and its square, which the
    # derivative divides by, in the range of the dtype.
    largest = jnp.max(jnp.where(positive, prior, 0))
    scale = jnp.where(largest > 2.0**60, 2.0**-80, jnp.where(largest < 2.0**-60, 2.0**80, 1.0))
    scale = scale.astype(prior.dtype)
    total = jnp.sum(scale * jnp.where(positive, prior, 0))
    each = jnp.where(positive, prior, 1)
    share = scale * each / total
    small = share < 2 * jnp.finfo(prior.dtype).tiny
    by_logs = jnp.log(each) + jnp.log(scale) - jnp.log(total)
    return jnp.where(small, by_logs, jnp.log(jnp.where(small, 1, share)))


@partial(jax.jit, inline=True)
def _ldam(nll: PerRow, labels: Labels, margins: ClassWeights) -> PerRow:
    dtype = np.promote_types(nll.dtype, np.float32)

    @partial(jax.checkpoint, prevent_cse=False)
    def losses(nll: PerRow, y: Labels, margins: ClassWeights) -> PerRow:
        nll, kept = nll.astype(dtype), nll != 0
        _check.traced_labels("ldam", y, narrow(y, margins.size), kept, margins.size)
        delta = class_weight(RowInputs(y, kept, class_weights=margins.astype(dtype)))
        assert delta is not None
        invalid = (nll < 0) | (delta < 0)
        return _with_margin(nll + zero_or_nan(~invalid, dtype), delta)

    return losses(*vary_alike(nll, labels, margins))


@jax.custom_jvp
def _with_margin(nll: PerRow, delta: PerRow) -> PerRow:
    """Compute log(1 + x), x = e^Δ (e^nll − 1); as nll + Δ + log r where x overflows."""
    x = jnp.exp(delta) * jnp.expm1(nll)
    by_r = nll + delta + jnp.log(_normalizer_ratio(nll, delta))
    return jnp.where(x < jnp.inf, jnp.log1p(x), by_r)


def _normalizer_ratio(nll: PerRow, delta: PerRow) -> PerRow:
    """Compute r = e^(−nll−Δ) + (1 − e^−nll), never 0.

    It is Σ_v e^z_v with the margin, relative to the same sum without.
    """
    return jnp.maximum(jnp.exp(-nll - delta) - jnp.expm1(-nll), jnp.finfo(nll.dtype).tiny)


@_with_margin.defjvp
def _with_margin_jvp(primals, tangents):
    (nll, delta), (nll_dot, delta_dot) = primals, tangents
    r = _normalizer_ratio(nll, delta)
    return _with_margin(nll, delta), nll_dot / r - jnp.expm1(-nll) / r * delta_dot
