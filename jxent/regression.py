"""Continuous targets: a Gaussian likelihood, or distributions over V classes of values.

    nll(y) = ½ (ℓ + (y − μ)² e^−ℓ + log 2π)                    ℓ = log σ²

With σ² = 1 this is half the squared error plus a constant: squared error is the cross-entropy of a
Gaussian.  The alternative is classification: turn each value y into a distribution t over V
classes, train with `cross_entropy(logits, t)`, and predict the mean Σ_v p_v b_v:

    two_hot    mass on the two class values next to y, b_1 < … < b_V, such that Σ_v t_v b_v = y
    hl_gauss   mass of a Gaussian centered at y in each bin [e_v, e_{v+1}], relative to all bins:
               t_v = (Φ_{v+1} − Φ_v) / (Φ_V − Φ_0),  Φ_v = Φ((e_v − y)/σ),  b_v = (e_v + e_{v+1})/2

Classes are given as an array, or as (low, high, V): V class values for `two_hot`, V bins for
`hl_gauss`.  A difference of Φ is taken in the tail where Φ is small, so that it does not cancel;
narrow bins are integrated by quadrature instead.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Bool, Float, Shaped

from jxent import _check
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import nan_unless, zero_or_nan
from jxent._typing import ArrayLike, PerEntry

__all__ = [
    "gaussian_nll",
    "two_hot",
    "hl_gauss",
    "expected_value",
    "bin_centers",
    "count_outside",
]

Points = Float[Array, "K"]  # class values or edges of bins, increasing
# An array of points, or (low, high, number of classes).
Support = ArrayLike | tuple[float, float, int]
Outside = Literal["error", "clip"]

_LOG_2PI = math.log(2 * math.pi)
# The default σ of hl_gauss, in widths of a bin.
_DEFAULT_SIGMA = 0.75
# Limits that change no result and avoid overflow: for σ, in widths of the support (the target is
# uniform from there on), and for |z| (Φ is 0 or 1).
_SIGMA_LIMIT, _Z_LIMIT = 1e10, 1e18
# In bins narrower than this, in units of σ/(1 + |z|), the difference of Φ would cancel: their mass
# is found by Gauss–Legendre quadrature.
_QUADRATURE_WIDTH = 0.5
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(6)


@_check.arguments
def gaussian_nll(
    mean: ArrayLike,
    target: ArrayLike,
    variance: ArrayLike | None = None,
    *,
    log_variance: ArrayLike | None = None,
) -> jax.Array:
    """Compute the negative log-likelihood of each target under a Gaussian, in nats.

        nll = ½ (ℓ + (y − μ)² e^−ℓ + log 2π)        ℓ = log σ²
        ∂/∂μ = −(y − μ) e^−ℓ        ∂/∂ℓ = ½ (1 − (y − μ)² e^−ℓ)

    The constant is included, so that likelihoods of different models can be compared. The loss is
    negative where the density is above 1. With σ² = 1 it is ½ (y − μ)² + 0.9189…, and its gradient
    is that of half the squared error. A model that predicts the variance too should predict its
    logarithm.

    Args:
      mean: μ, any shape, floating point.
      target: y, the same shape, numbers of any kind.
      variance: σ² > 0, the same shape or one number; 1 by default.
      log_variance: ℓ instead of `variance`, the same shape or one number.

    Returns:
      One number for each target in nats, float32 (float64 for float64 means). NaN where an
      argument is, or where a traced variance is not positive.

    Raises:
      TypeError: a mean that is not floating; targets or variances that are not numbers.
      ValueError: shapes that do not match; a concrete variance that is not positive or not in the
        range of the loss's dtype; both `variance` and `log_variance`.

    Residuals:
      The arguments and the intermediate arrays that JAX saves of plain arithmetic on them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.regression import gaussian_nll
      >>> mean, target = jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0])
      >>> print([f"{nll:.4f}" for nll in gaussian_nll(mean, target)])
      ['0.9189', '2.9189']
      >>> print([f"{nll:.4f}" for nll in gaussian_nll(mean, target, 4.0)])
      ['1.6121', '2.1121']

    References:
      Nix and Weigend, *Estimating the Mean and Variance of the Target Probability Distribution*
      (1994); Goodfellow, Bengio, Courville, *Deep Learning* (2016), §5.5.1.
    """
    fn = "gaussian_nll"
    mu = _check.floats(fn, "mean", mean)
    dtype = loss_dtype(mu.dtype)
    y = _check.weights(fn, "target", target, mu.shape, dtype)
    if variance is not None and log_variance is not None:
        raise ValueError(f"{fn}: `variance` and `log_variance` say the same; give one of them")
    one_or_each = partial(_one_or_each, fn, shape=mu.shape, other="mean", dtype=dtype)
    assert y is not None
    if log_variance is not None:
        return _gaussian_nll(mu, y, one_or_each("log_variance", log_variance), logged=True)
    given = 1.0 if variance is None else variance
    _every_number(fn, "variance", given, lambda v: ~(v <= 0), "must be positive")
    _within_range(fn, "variance", given, dtype)
    return _gaussian_nll(mu, y, one_or_each("variance", given), logged=False)


@partial(jax.jit, static_argnames="logged", inline=True)
def _gaussian_nll(mu: PerEntry, y: PerEntry, v: Float[Array, "..."], *, logged: bool) -> PerEntry:
    dtype = loss_dtype(mu.dtype)
    mu, y, v = mu.astype(dtype), y.astype(dtype), jnp.broadcast_to(v.astype(dtype), mu.shape)
    if not logged:
        v = jnp.log(nan_unless(v > 0, v))
    # e^(−ℓ/2) is multiplied before the square: it reaches twice the range of ℓ that e^−ℓ does. It
    # is kept finite, so that 0 times it is 0.
    minus_log_sigma = jnp.minimum(-v / 2, 0.99 * math.log(float(jnp.finfo(dtype).max)))
    z = (y - mu) * jnp.exp(minus_log_sigma)
    return 0.5 * (v + _LOG_2PI) + (0.5 * z) * z


@_check.arguments
def two_hot(values: ArrayLike, bins: Support, *, outside: Outside = "error") -> jax.Array:
    """Turn each value y into a distribution over the two class values next to it, with mean y.

        t_v = (b_{v+1} − y)/(b_{v+1} − b_v),  t_{v+1} = (y − b_v)/(b_{v+1} − b_v)
        for b_v ≤ y ≤ b_{v+1}, 0 elsewhere                               Σ_v t_v b_v = y

    Train with `cross_entropy(logits, two_hot(y, bins))`; predict `expected_value(logits, bins)`.

    Args:
      values: y `[*n]`, numbers.
      bins: the class values b `[V]`, V ≥ 2, increasing; or a tuple (low, high, V) of V values
        evenly spaced from low to high.
      outside: the treatment of values outside [b_1, b_V]: "error", or "clip" to the nearer end
        (`count_outside` counts them).

    Returns:
      `[*n, V]`, float32 (float64 for float64 values); rows sum to 1. A row is NaN where its value
      is NaN, and with "error" where a traced value is outside. Differentiable in the values.

    Raises:
      ValueError: a concrete value outside, with "error"; bins that are not finite and increasing in
        the dtype of the targets.
      TypeError: values or bins that are not numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.regression import expected_value, two_hot
      >>> t = two_hot(jnp.array([0.25, 2.0]), (0.0, 3.0, 4))
      >>> print(t)
      [[0.75 0.25 0.   0.  ]
       [0.   0.   1.   0.  ]]
      >>> print(expected_value(t, (0.0, 3.0, 4), probabilities=True))
      [0.25 2.  ]

    References:
      Bellemare, Dabney, Munos, *A Distributional Perspective on Reinforcement Learning*,
      arXiv:1707.06887, for the projection; Schrittwieser et al., arXiv:1911.08265, as targets.
    """
    fn = "two_hot"
    y = _floating_values(fn, values)
    b = _support_points(fn, "bins", bins, 0, 2, y.dtype)
    _check.one_of(fn, "outside", outside, ("error", "clip"))
    return _two_hot(_restrict_to_support(fn, values, y, b, outside), b)


@partial(jax.jit, inline=True)
def _two_hot(y: PerEntry, b: Points) -> Float[Array, "*s V"]:
    i = jnp.clip(jnp.searchsorted(b, y, side="right") - 1, 0, b.size - 2).astype(jnp.int32)
    f = (y - b[i]) / (b[i + 1] - b[i])
    classes = jax.lax.broadcasted_iota(jnp.int32, (*y.shape, b.size), y.ndim)
    f, i = f[..., None], i[..., None]
    t = jnp.where(classes == i, 1 - f, jnp.where(classes == i + 1, f, 0))
    return nan_unless(~jnp.isnan(y)[..., None] & _is_increasing(b), t)


@_check.arguments
def hl_gauss(
    values: ArrayLike,
    edges: Support,
    sigma: ArrayLike | None = None,
    *,
    outside: Outside = "error",
) -> jax.Array:
    """Turn each value y into the histogram of a Gaussian centered at y.

        t_v = (Φ((e_{v+1} − y)/σ) − Φ((e_v − y)/σ)) / (Φ((e_V − y)/σ) − Φ((e_0 − y)/σ))

    Train with `cross_entropy(logits, hl_gauss(y, edges))`; predict
    `expected_value(logits, bin_centers(edges))`. The mean of the target is y except near the ends
    of the support, where the Gaussian is truncated: keep values 3 σ away from them.

    Args:
      values: y `[*n]`, numbers.
      edges: e `[V+1]`, increasing; or a tuple (low, high, V) of V bins of one width.
      sigma: σ > 0, in the unit of the values, a scalar; by default 0.75 of the mean bin width.
      outside: the treatment of values outside [e_0, e_V]: "error", or "clip" to the nearer end
        (`count_outside` counts them).

    Returns:
      `[*n, V]`, float32 (float64 for float64 values); rows sum to 1. A row is NaN where its value
      is NaN, and with "error" where a traced value is outside. Differentiable in values and sigma.

    Raises:
      ValueError: a concrete value outside, with "error"; edges that are not finite and increasing,
        or a concrete sigma that is not positive, in the dtype of the targets.
      TypeError: values, edges or a sigma that are not numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.regression import bin_centers, expected_value, hl_gauss
      >>> t = hl_gauss(jnp.array([1.5]), (0.0, 3.0, 3), sigma=0.5)
      >>> print(t.round(4))
      [[0.1577 0.6845 0.1577]]
      >>> print(expected_value(t, bin_centers((0.0, 3.0, 3)), probabilities=True))
      [1.5]

    References:
      Imani and White, *Improving Regression Performance with Distributional Losses*,
      arXiv:1806.04613; Farebrother et al., *Stop Regressing*, arXiv:2403.03950, for σ.
    """
    fn = "hl_gauss"
    y = _floating_values(fn, values)
    e = _support_points(fn, "edges", edges, 1, 2, y.dtype)
    _check.one_of(fn, "outside", outside, ("error", "clip"))
    s = None
    if sigma is not None:
        s = _check.valid_scalar(fn, "sigma", sigma, _check.inside("(0, inf)"), "positive")
        _within_range(fn, "sigma", sigma, y.dtype)
        s = s.astype(y.dtype)
    return _hl_gauss(_restrict_to_support(fn, values, y, e, outside), e, s)


@partial(jax.jit, inline=True)
def _hl_gauss(y: PerEntry, e: Points, sigma: Float[Array, ""] | None) -> Float[Array, "*s V"]:
    if sigma is None:
        sigma = _DEFAULT_SIGMA * (e[-1] - e[0]) / (e.size - 1)
    sigma = jnp.minimum(sigma, _SIGMA_LIMIT * (e[-1] - e[0]))
    fixed = jax.lax.stop_gradient(sigma)
    # x/σ as (x/fixed)/one, where one has the value 1 and the derivative 1/σ: differentiating x/σ
    # would form 1/σ², which over- or underflows.
    one = 1 + (sigma - fixed) / fixed
    by_sigma = lambda x: jnp.clip(x / fixed, -_Z_LIMIT, _Z_LIMIT) / one  # noqa: E731
    z = by_sigma(e.reshape((1,) * y.ndim + e.shape) - y[..., None])
    # Widths come from the edges: differences of z, which are rounded, lose digits.
    width = by_sigma(e[1:] - e[:-1]).reshape((1,) * y.ndim + (-1,))
    mass = _gaussian_mass(z[..., :-1], z[..., 1:], width)
    t = mass / jnp.sum(mass, axis=-1, keepdims=True)
    return nan_unless(_is_increasing(e), t)


def _gaussian_mass(a: PerEntry, b: PerEntry, width: Float[Array, "*#s"]) -> PerEntry:
    """Compute Φ(b) − Φ(a) for a < b without cancellation, as Φ(−a) − Φ(−b) in the right tail."""
    middle = (a + b) / 2
    narrow = width * (1 + jnp.abs(middle)) < _QUADRATURE_WIDTH
    nodes = [middle + (0.5 * float(x)) * width for x in _NODES]
    total = jnp.zeros_like(middle)
    for x, w in zip(nodes, _NODE_WEIGHTS, strict=True):
        total = total + float(w) * jnp.exp(-0.5 * x * x)
    by_quadrature = (width / math.sqrt(8 * math.pi)) * total
    right = middle > 0
    lower, upper = jnp.where(right, -b, a), jnp.where(right, -a, b)
    phi = lambda x: 0.5 * erfc(x * -math.sqrt(0.5))  # noqa: E731
    return jnp.where(narrow, by_quadrature, phi(upper) - phi(lower))


@_check.arguments
def expected_value(logits: ArrayLike, bins: Support, *, probabilities: bool = False) -> jax.Array:
    """Compute the mean Σ_v p_v b_v of each predicted distribution over class values.

    Args:
      logits: `[*n, V]`, floating point; p = softmax(logits).
      bins: the class values b `[V]`, or (low, high, V), as in `two_hot`; `bin_centers(edges)` for
        targets of `hl_gauss`.
      probabilities: True if the first argument holds probabilities p ≥ 0 instead of logits. They
        are divided by their sum, which need not be 1 exactly.

    Returns:
      `[*n]`, float32 (float64 for float64 logits). NaN for a row of logits with NaN, +∞ or only
      −∞, and for a row of probabilities with NaN, a traced negative entry, or a sum of 0 or ∞.

    Raises:
      ValueError: a number of bins other than the number of classes; bins that are not finite and
        increasing in the dtype of the result; concrete negative probabilities.
      TypeError: logits that are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.regression import expected_value
      >>> print(expected_value(jnp.zeros((1, 5)), (0.0, 8.0, 5)))
      [4.]

    References:
      Farebrother et al., *Stop Regressing*, arXiv:2403.03950.
    """
    fn = "expected_value"
    z = _check.logits(fn, logits)
    b = _support_points(fn, "bins", bins, 0, 1, loss_dtype(z.dtype))
    if z.shape[-1] != b.size:
        raise ValueError(
            f"{fn}: `bins` must have one value for each of {z.shape[-1]} classes, got {b.size}; "
            "edges of bins become values by bin_centers(edges)"
        )
    if probabilities:
        _check.nonnegative(fn, "logits", logits)
    return _expected_value(z, b, probabilities=probabilities)


@partial(jax.jit, static_argnames="probabilities", inline=True)
def _expected_value(z: Float[Array, "*s V"], b: Points, *, probabilities: bool) -> PerEntry:
    z = z.astype(loss_dtype(z.dtype))
    if probabilities:
        z = z + zero_or_nan(~jnp.any(z < 0, axis=-1, keepdims=True), z.dtype)
    p = z / jnp.sum(z, axis=-1, keepdims=True) if probabilities else jax.nn.softmax(z, axis=-1)
    # Relative to a bin in the middle, so that a common offset of all bins costs no digits.
    origin = b[b.size // 2]
    mean = origin + jnp.sum(p * (b - origin).reshape((1,) * (z.ndim - 1) + b.shape), axis=-1)
    return nan_unless(_is_increasing(b), mean)


@_check.arguments
def bin_centers(edges: Support) -> jax.Array:
    """Compute the middle of each bin, (e_v + e_{v+1})/2: the class values of `hl_gauss`.

    Args:
      edges: e `[V+1]`, increasing; or a tuple (low, high, V) of V bins of one width.

    Returns:
      `[V]`, float32 (float64 for float64 edges).

    Raises:
      ValueError: edges that are not finite and increasing.
      TypeError: edges that are not numbers.

    Example:
      >>> from jxent.regression import bin_centers
      >>> print(bin_centers((0.0, 3.0, 3)))
      [0.5 1.5 2.5]

    References:
      Farebrother et al., *Stop Regressing*, arXiv:2403.03950.
    """
    fn = "bin_centers"
    e = _support_points(fn, "edges", edges, 1, 2)
    middles = e[:-1] + (e[1:] - e[:-1]) / 2
    _distinct(fn, "the middles of `edges`", "edges", middles)
    return middles


@_check.arguments
def count_outside(values: ArrayLike, support: Support) -> jax.Array:
    """Count the values outside the support, which "clip" moves to its ends.

    Args:
      values: `[*n]`, numbers. NaN is neither inside nor outside.
      support: the bins of `two_hot` or the edges of `hl_gauss`, or (low, high, V).

    Returns:
      An int32 scalar.

    Raises:
      ValueError: a support that is not finite and increasing.
      TypeError: not numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.regression import count_outside
      >>> print(count_outside(jnp.array([-1.0, 0.0, 2.0, 7.0]), (0.0, 5.0, 51)))
      2

    References:
      On the choice of the support: Farebrother et al., *Stop Regressing*, arXiv:2403.03950, §4.
    """
    fn = "count_outside"
    y = _floating_values(fn, values)
    b = _support_points(fn, "support", support, 0, 2, y.dtype)
    return jnp.sum(_is_outside(y, b), dtype=jnp.int32)


def _is_outside(y: PerEntry, b: Points) -> Bool[Array, "*s"]:
    return (y < b[0]) | (y > b[-1])


def _is_increasing(b: Points) -> Bool[Array, ""]:
    return jnp.all(b[1:] > b[:-1]) & jnp.all(jnp.isfinite(b))


def _floating_values(fn: str, x: ArrayLike) -> PerEntry:
    """Convert values to the dtype of the targets."""
    y = _check.number(fn, "values", x)
    return y.astype(loss_dtype(y.dtype))


def _support_points(
    fn: str, name: str, x: Support, more: int, least: int, dtype: Any | None = None
) -> Points:
    """Return the given points, or V + more evenly spaced ones, in this dtype or their own.

    Raise ValueError unless there are at least `least`, finite and increasing when concrete, in the
    dtype they are returned in, too.
    """
    if isinstance(x, tuple):
        low, high, classes = _spacing(fn, name, x, least - more)
        x = np.linspace(low, high, classes + more)
    with np.errstate(over="ignore"):  # `_distinct` raises
        given = _check.number(fn, name, x, np.float32 if dtype is None else dtype)
        given = given.astype(np.promote_types(given.dtype, np.float32) if dtype is None else dtype)
    _check.one_axis(fn, name, x)
    if given.size < least:
        raise ValueError(
            f"{fn}: `{name}` must have at least {least} entries, got {_check.describe(x)}"
        )
    values = _check.concrete(x)
    if values is not None:
        values = values.astype(np.float64)
        if found := _check.first_invalid(values, lambda b: np.isfinite(b) & _above_previous(b)):
            at, value = found
            raise ValueError(
                f"{fn}: `{name}` must be finite and increasing, got {value} at "
                f"{at}; np.sort(np.unique(...)) makes them so"
            )
        with np.errstate(over="ignore"):
            _distinct(fn, f"`{name}`", name, values.astype(given.dtype))
    return given


def _spacing(fn: str, name: str, x: tuple[Any, ...], least: int) -> tuple[float, float, int]:
    """Return (low, high, how many classes)."""
    if len(x) != 3:
        raise TypeError(
            f"{fn}: `{name}` must be an array or a tuple (low, high, classes), got a tuple of "
            f"{len(x)}; np.array(...) makes an array of it"
        )
    low, high = (_check.static_number(fn, f"{name}[{i}]", x[i]) for i in (0, 1))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{fn}: `{name}` must have a finite low < high, got {low} and {high}")
    return low, high, _check.whole(fn, f"{name}[2]", x[2], least, " classes")


def _above_previous(x: Shaped[np.ndarray, "K"]) -> Bool[np.ndarray, "K"]:
    return np.append(True, x[1:] > x[:-1])


def _distinct(fn: str, what: str, name: str, x: Shaped[Any, "K"]) -> None:
    """Raise ValueError at the first concrete increasing number that rounding made ∞ or the same."""
    found = _check.first_invalid(x, lambda b: np.isfinite(b) & _above_previous(b))
    if found:
        at, value = found
        fault, way = "finite", "divide {} by a scale"
        if np.isfinite(value):
            fault, way = "distinct", "subtract an offset from {}"
        raise ValueError(
            f"{fn}: {what}{at} = {value} is not {fault} in {value.dtype.name}; "
            f"{way.format(f'values and {name}')}"
        )


def _one_or_each(
    fn: str, name: str, x: ArrayLike, *, shape: tuple[int, ...], other: str, dtype: Any
) -> Float[Array, "..."]:
    """Return numbers, one for all or one for each of the other's; integers in this dtype."""
    if _check.shape_of(x) not in ((), shape):
        raise ValueError(
            f"{fn}: `{name}` must be one number or have the shape of `{other}` {list(shape)}, got "
            f"{_check.describe(x)}; jnp.broadcast_to(..., {other}.shape) says which belong together"
        )
    return _check.number(fn, name, x, dtype)


def _every_number(fn: str, name: str, x: ArrayLike, valid: _check.Predicate, must: str) -> None:
    """Raise ValueError at the first number that is not valid; a scalar has no position."""
    if found := _check.first_invalid(x, valid):
        at, value = found
        raise ValueError(f"{fn}: `{name}`{at or ''} = {value} {must}")


def _within_range(fn: str, name: str, x: ArrayLike, dtype: Any) -> None:
    """Raise ValueError at the first positive entry that this dtype makes 0 or ∞, when concrete."""
    tiny, largest = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)

    def normal(x: np.ndarray) -> Any:
        wide = x.astype(np.float64)
        return ~((wide < tiny) | ((wide > largest) & (wide < np.inf)))

    must = (
        f"is outside {np.dtype(dtype).name}'s normal numbers, {tiny:.2g} to {largest:.2g}; use "
        "another unit"
    )
    _every_number(fn, name, x, normal, must)


def _restrict_to_support(
    fn: str, given: ArrayLike, y: PerEntry, b: Points, outside: Outside
) -> PerEntry:
    """Clip values to the support, or replace those outside by NaN and report them."""
    if outside == "clip":
        return jnp.clip(y, b[0], b[-1])
    bad = _is_outside(y, b)
    far, ends = _check.concrete(bad), _check.concrete(b)
    if far is not None and ends is not None:
        must = (
            f"is outside [{ends[0]}, {ends[-1]}], one of {int(np.sum(far))}; widen the "
            "support, or outside='clip'"
        )
        _every_number(fn, "values", given, lambda _: ~far, must)
    _check.traced_entries(fn, "values", y, ~bad, "is outside the support")
    return nan_unless(~bad, y)
