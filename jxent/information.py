"""Information theory on probabilities, in nats: true distribution p first, prediction q second.

    H(p) = −Σ_v p_v log p_v                              entropy
    H(p, q) = −Σ_v p_v log q_v = H(p) + KL(p‖q)          cross-entropy
    KL(p‖q) = Σ_v p_v log(p_v/q_v)                       divergence
    JS(p, q) = (KL(p‖m) + KL(q‖m))/2, m = (p + q)/2      Jensen–Shannon divergence, 0 to log 2

Classes are in the last axis, and every row gives one number.  0·log 0 is 0 and log 0 is −∞, so a
class that is predicted with probability 0 and occurs costs ∞.  `eps` avoids that as textbooks do:
it clips predictions to [eps, 1 − eps] first.  Rows need not sum to 1.

Derivatives are −p_v/q_v for ∂H/∂q_v, 0 where p_v = 0, and so on.  One of ±∞ is replaced by the
largest finite number, so that 0 times it is 0, in every mode and to any order.  A row with an entry
outside [0, 1] is NaN, gradient too.  Half precision is computed in float32.

To train a model, use the losses on logits: they never take the logarithm of a rounded probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import log_softmax
from jxent._core.elementwise import in_unit_interval
from jxent._core.log_softmax import loss_dtype, pin_half_precision
from jxent._core.safe_math import clip_infinite, zero_or_nan
from jxent._core.sum_without_max import minus_max
from jxent._losses.divergence import kl_divergence as _kl_from_log
from jxent._typing import ArrayLike, Logits, PerEntry, PerRow

__all__ = [
    "entropy",
    "cross_entropy",
    "binary_cross_entropy",
    "kl_divergence",
    "js_divergence",
    "perplexity",
    "softmax_entropy",
    "nats_to_bits",
    "bits_to_nats",
]


@_check.arguments
def entropy(p: ArrayLike) -> jax.Array:
    """Compute the entropy H(p) = −Σ_v p_v log p_v of each row, in nats.

    Args:
      p: probabilities `[*n, V]` in [0, 1], numbers of any kind.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 probabilities): 0 for a one-hot row, log V for a
      uniform one. NaN, gradient too, for a row with a traced entry outside [0, 1].

    Raises:
      ValueError: a concrete entry outside [0, 1]; no axis of classes, or no classes.
      TypeError: not numbers.

    Residuals:
      The argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import information
      >>> print(information.entropy(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).round(4))
      [0.6931 0.    ]

    References:
      Shannon, A Mathematical Theory of Communication, 1948; Cover and Thomas, Elements of
      Information Theory, 2006, §2.1.
    """
    return _compute_rows(_row_entropy, "entropy", (_checked_probabilities("entropy", "p", p),))


@_check.arguments
def cross_entropy(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """Compute the cross-entropy H(p, q) = −Σ_v p_v log q_v of each row, in nats.

    To train a model use `jxent.cross_entropy`, which takes logits first, targets second, and
    returns a mean.

    Args:
      p: true probabilities `[*n, V]`, or `[V]` for all rows; one-hot integers too.
      q: predicted probabilities, of the same shapes.
      eps: q is clipped to [eps, 1 − eps] first; static. The gradient by a clipped entry is 0.

    Returns:
      `[*n]` in nats, float32 (float64 if p or q is); +∞, with a finite gradient, where some
      p_v > 0 = q_v. NaN, gradient too, for a row with a traced entry outside [0, 1].

    Raises:
      ValueError: a concrete entry outside [0, 1]; shapes that do not match; eps outside [0, 0.5).
      TypeError: not numbers; a traced eps.

    Residuals:
      The arguments.

    Example:
      >>> from jxent import information
      >>> print(information.cross_entropy([0.1, 0.4, 0.5], [0.8, 0.15, 0.05]).round(4))
      2.279

    References:
      Cover and Thomas, Elements of Information Theory, 2006, §5.4.
    """
    return _compute_rows(
        _row_cross_entropy, "cross_entropy", _check_pair("cross_entropy", p, q), eps=eps
    )


@_check.arguments
def binary_cross_entropy(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """Compute the binary cross-entropy −p log q − (1 − p) log(1 − q) of each entry, in nats.

    Nothing is summed: append `.sum()` or `.mean()` as your textbook does.

    Args:
      p: true probabilities of the positive class, in [0, 1], any shape; or one number for all.
      q: predicted probabilities of the positive class, likewise.
      eps: q is clipped to [eps, 1 − eps] first; static. Where 1 − eps rounds to 1, as for
        eps = 1e-15 in float32, 1 − q is eps for q = 1. The gradient by a clipped entry is 0.

    Returns:
      One number for each entry in nats, float32 (float64 if p or q is); +∞, with a finite gradient,
      where the prediction excludes what p holds possible. NaN, gradient too, where a traced entry
      is outside [0, 1].

    Raises:
      ValueError: a concrete entry outside [0, 1]; shapes that do not match; eps outside [0, 0.5).
      TypeError: not numbers; a traced eps.

    Residuals:
      The arguments.

    Example:
      >>> from jxent import information
      >>> losses = information.binary_cross_entropy([1, 0, 1], [0.8, 0.1, 0.0], eps=1e-15)
      >>> print([f"{loss:.4f}" for loss in losses])
      ['0.2231', '0.1054', '34.5388']

    References:
      Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2.2.
    """
    fn = "binary_cross_entropy"
    p, q = _check_pair(fn, p, q, rows=False)
    return _binary_cross_entropy(fn, p, q, eps=_check.static_number(fn, "eps", eps, "[0, 0.5)"))


@_check.arguments
def kl_divergence(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """Compute the divergence KL(p‖q) = Σ_v p_v log(p_v/q_v) = H(p, q) − H(p) of each row, in nats.

    `jxent.kl_divergence` computes the same from log q, as models predict it, and p.

    Args:
      p: true probabilities `[*n, V]`, or `[V]` for all rows.
      q: predicted probabilities, of the same shapes.
      eps: q is clipped to [eps, 1 − eps] first; static. The gradient by a clipped entry is 0.

    Returns:
      `[*n]` in nats, float32 (float64 if p or q is); +∞, with a finite gradient, where some
      p_v > 0 = q_v. Where p and q are nearly equal the terms cancel: the result is right to 1e-6 of
      Σ_v p_v and may be negative by as much. NaN, gradient too, for a row with a traced entry
      outside [0, 1].

    Raises:
      ValueError: a concrete entry outside [0, 1]; shapes that do not match; eps outside [0, 0.5).
      TypeError: not numbers; a traced eps.

    Residuals:
      The arguments.

    Example:
      >>> from jxent import information
      >>> nats = information.kl_divergence([0.1, 0.4, 0.5], [0.8, 0.15, 0.05])
      >>> print(f"{nats:.4f}")
      1.3357

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return _compute_rows(_row_kl, "kl_divergence", _check_pair("kl_divergence", p, q), eps=eps)


@_check.arguments
def js_divergence(p: ArrayLike, q: ArrayLike) -> jax.Array:
    """Compute the Jensen–Shannon divergence (KL(p‖m) + KL(q‖m))/2 of each row, m = (p + q)/2.

    It is symmetric, finite for every p and q, and its square root is a metric.
    ∂JS/∂p_v = log(p_v/m_v)/2.

    Args:
      p: probabilities `[*n, V]`, or `[V]` for all rows.
      q: probabilities, of the same shapes.

    Returns:
      `[*n]` in nats between 0 and log 2, never negative; float32 (float64 if p or q is). NaN,
      gradient too, for a row with a traced entry outside [0, 1].

    Raises:
      ValueError: a concrete entry outside [0, 1]; shapes that do not match.
      TypeError: not numbers.

    Residuals:
      The arguments.

    Example:
      >>> from jxent import information
      >>> divergences = information.js_divergence([[1.0, 0.0], [0.5, 0.5]], [0.0, 1.0])
      >>> print([f"{nats:.4f}" for nats in divergences])
      ['0.6931', '0.2158']

    References:
      Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """
    return _compute_rows(_row_js, "js_divergence", _check_pair("js_divergence", p, q))


@_check.arguments
def perplexity(p: ArrayLike) -> jax.Array:
    """Compute the perplexity exp H(p) of each row.

    A uniform distribution over k classes has perplexity k. The perplexity of a model on data is
    something else, the exponential of its mean log loss: see `jxent.metrics`.

    Args:
      p: probabilities `[*n, V]` in [0, 1], numbers of any kind.

    Returns:
      `[*n]` between 1 and V for rows that sum to 1; dtype and NaN as for `entropy`.

    Raises:
      ValueError, TypeError: as `entropy`.

    Residuals:
      The argument, and one number a row.

    Example:
      >>> from jxent import information
      >>> print(information.perplexity([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]))
      [4. 1.]

    References:
      Jelinek, Mercer, Bahl and Baker, Perplexity: a Measure of the Difficulty of Speech
      Recognition Tasks, 1977.
    """
    return jnp.exp(
        _compute_rows(_row_entropy, "perplexity", (_checked_probabilities("perplexity", "p", p),))
    )


@_check.arguments
def softmax_entropy(logits: ArrayLike) -> jax.Array:
    """Compute the entropy H(softmax(z)) of each row of logits z, in nats.

        H = log1p(S) + E/(1 + S)            S = Σ_v exp(z_v − m) − 1, m = max z
        ∂H/∂z_v = p_v (−log p_v − H)        E = Σ_v exp(z_v − m)(m − z_v)

    No term cancels, and no logarithm of a rounded probability is taken, so even the entropy of a
    very confident row is accurate. Uses: a confidence penalty, an exploration bonus, a measure of
    uncertainty.

    Args:
      logits: z `[*n, V]`, floating point. A class with −∞ is impossible and contributes 0.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits). NaN, gradient too, for a row with NaN or
      +∞, or with only −∞.

    Raises:
      ValueError: no axis of classes, or no classes.
      TypeError: logits that are not floating point.

    Residuals:
      The argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import information
      >>> logits = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, 40.0, 0.0]])
      >>> print([f"{nats:.4g}" for nats in information.softmax_entropy(logits)])
      ['0.6931', '3.484e-16']

    References:
      Cover and Thomas, Elements of Information Theory, 2006, §2.1.
    """
    return _softmax_entropy(_check.logits("softmax_entropy", logits))


@_check.arguments
def nats_to_bits(nats: ArrayLike) -> jax.Array:
    """Convert nats to bits: divide by log 2.

    Args:
      nats: any numbers.

    Returns:
      Bits, in the same shape and dtype (float32 for integers).

    Raises:
      TypeError: not numbers.

    Example:
      >>> from jxent import information
      >>> print(information.nats_to_bits(information.entropy([0.25, 0.25, 0.25, 0.25])))
      2.0

    References:
      Cover and Thomas, Elements of Information Theory, 2006, §2.1.
    """
    return _check.number("nats_to_bits", "nats", nats) / math.log(2)


@_check.arguments
def bits_to_nats(bits: ArrayLike) -> jax.Array:
    """Convert bits to nats: multiply by log 2.

    Args:
      bits: any numbers.

    Returns:
      Nats, in the same shape and dtype (float32 for integers).

    Raises:
      TypeError: not numbers.

    Example:
      >>> from jxent import information
      >>> print(information.bits_to_nats(8.0).round(4))
      5.5452

    References:
      Cover and Thomas, Elements of Information Theory, 2006, §2.1.
    """
    return _check.number("bits_to_nats", "bits", bits) * math.log(2)


def _check_pair(fn: str, p: ArrayLike, q: ArrayLike, *, rows: bool = True) -> tuple[Array, Array]:
    """Check p and q and broadcast them to one shape: one of them may be given once for all."""
    p = _checked_probabilities(fn, "p", p, rows=rows)
    q = _checked_probabilities(fn, "q", q, rows=rows)
    shape = _common_shape(fn, p, q, one=int(rows))
    return jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape)


def _checked_probabilities(fn: str, name: str, x: ArrayLike, *, rows: bool = True) -> PerEntry:
    """Return numbers in [0, 1] as floats; as `rows` with at least one class in the last axis."""
    _check.numeric(fn, name, x, jnp.bool_)
    shape = _check.shape_of(x)
    if rows and not shape:
        raise ValueError(
            f"{fn}: `{name}` needs an axis of classes, got a scalar; the probability of a yes is "
            "[1 - p, p]"
        )
    if rows:
        _check.some_classes(fn, name, shape, (-1,))
    _check.between_0_and_1(fn, name, x)
    return _check.as_floats(x)


def _common_shape(fn: str, p: Array, q: Array, one: int) -> tuple[int, ...]:
    """Return the shape of `p` and `q` together: the same, or one is given once for all the other's.

    `one` is how many axes such an argument keeps: 1 for a row, 0 for a number.
    """
    for small, large in ((p.shape, q.shape), (q.shape, p.shape)):
        if small in (large, large[len(large) - one :]):
            return large
    raise ValueError(
        f"{fn}: `p` and `q` must have the same shape, or one of them be a single "
        f"{'row' if one else 'number'} for all of the other, got {_check.describe(p)} and "
        f"{_check.describe(q)}; jnp.broadcast_to says which belong together"
    )


def _compute_rows(
    formula: Callable[..., PerRow], fn: str, given: tuple[Array, ...], *, eps: float = 0.0
) -> PerRow:
    return _compute_rows_jit(
        formula, fn, given, eps=_check.static_number(fn, "eps", eps, "[0, 0.5)")
    )


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("eps",), inline=True)
def _compute_rows_jit(
    formula: Callable[..., PerRow], fn: str, given: tuple[Array, ...], *, eps: float
) -> PerRow:
    @partial(jax.checkpoint, prevent_cse=False)
    def rows(*given: Array) -> Array:
        *first, last = _nan_where_invalid(fn, *given, by_row=True)
        return formula(*first, _clip_probabilities(last, eps))

    return rows(*vary_alike(*given))


@partial(jax.jit, static_argnums=(0,), static_argnames=("eps",), inline=True)
def _binary_cross_entropy(fn: str, p: PerEntry, q: PerEntry, *, eps: float) -> PerEntry:
    @partial(jax.checkpoint, prevent_cse=False)
    def each(p: Array, q: Array) -> Array:
        p, q = _nan_where_invalid(fn, p, q, by_row=False)
        q = _clip_probabilities(q, eps)
        no = _cross_entropy_term(True, 1 - p, q)
        if eps:
            # 1 − eps may have rounded to 1, and 1 − q to 0 instead of eps.
            no = jnp.where(q == 1, (p - 1) * math.log(eps), no)
        return _cross_entropy_term(False, p, q) + no

    return each(*vary_alike(p, q))


def _nan_where_invalid(fn: str, *given: Array, by_row: bool) -> list[Array]:
    """Promote to float32 or wider; an entry outside [0, 1] makes itself, or its row, NaN."""
    names = ("p", "q")[: len(given)]
    dtype = reduce(np.promote_types, (x.dtype for x in given), np.dtype(np.float32))
    valid = [in_unit_interval(x) for x in given]
    for name, x, ok in zip(names, given, valid, strict=True):
        _check.traced_entries(fn, name, x, ok, "is outside [0, 1]")
    all_valid = reduce(jnp.logical_and, valid)
    if by_row:
        all_valid = jnp.all(all_valid, axis=-1, keepdims=True)
    # A factor, not a select: NaN then reaches every derivative of the row, of any order.
    factor = 1 + zero_or_nan(all_valid, dtype)
    return [x.astype(dtype) * jnp.broadcast_to(factor, x.shape) for x in given]


def _clip_probabilities(q: PerEntry, eps: float) -> PerEntry:
    """Clip q to [eps, 1 − eps]; the derivative is 0 where it is clipped."""
    if eps == 0:
        return q
    return jnp.where(q < eps, eps, jnp.where(q > 1 - eps, 1 - eps, q))


@jax.custom_jvp
def _safe_ratio(p: PerEntry, q: PerEntry) -> PerEntry:
    """Compute p/q, 0 where p = 0; ∞ is replaced by the largest finite number."""
    return clip_infinite(p / jnp.where(p == 0, 1, q))


@_safe_ratio.defjvp
def _safe_ratio_jvp(primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    out = _safe_ratio(p, q)
    return out, _safe_ratio(jnp.ones_like(q), q) * p_dot - _safe_ratio(out, q) * q_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log(complement: bool, q: PerEntry) -> PerEntry:
    """Compute log q, or log(1 − q) if `complement`."""
    if not complement:
        return jnp.log(q)
    # XLA's log1p loses two digits of float64 around −0.4, where 1 − q loses nothing.
    return jnp.where(q < 0.25, jnp.log1p(-q), jnp.log(1 - q))


@_log.defjvp
def _log_jvp(complement, primals, tangents):
    ((q,), (q_dot,)) = primals, tangents
    by_q = -_safe_ratio(jnp.ones_like(q), 1 - q) if complement else _safe_ratio(jnp.ones_like(q), q)
    return _log(complement, q), by_q * q_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _cross_entropy_term(complement: bool, p: PerEntry, q: PerEntry) -> PerEntry:
    """Compute −p log q, or −p log(1 − q) if `complement`; 0 where p = 0."""
    return jnp.where(p == 0, 0, -p * _log(complement, q))


@_cross_entropy_term.defjvp
def _cross_entropy_term_jvp(complement, primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    by_q = _safe_ratio(p, 1 - q) if complement else -_safe_ratio(p, q)
    minus_by_p = clip_infinite(_log(complement, q), straight_through=True)
    return _cross_entropy_term(complement, p, q), by_q * q_dot - minus_by_p * p_dot


def _row_entropy(p: PerEntry) -> PerRow:
    """Compute H(p) = −KL(p‖1)."""
    return 0 - _kl_from_log(jnp.zeros_like(p), p)


def _row_cross_entropy(p: PerEntry, q: PerEntry) -> PerRow:
    return jnp.sum(_cross_entropy_term(False, p, q), axis=-1)


@jax.custom_jvp
def _row_kl(p: PerEntry, q: PerEntry) -> PerRow:
    return _kl_from_log(jnp.log(q), p)


@_row_kl.defjvp
def _row_kl_jvp(primals, tangents):
    """Differentiate by p through log q, but by q directly: ∂/∂q_v = −p_v/q_v.

    Second derivatives through log q would need 1/q², which overflows long before p/q² does.
    """
    (p, q), (p_dot, q_dot) = primals, tangents
    by_p = jax.jvp(lambda p: _kl_from_log(_log(False, q), p), (p,), (p_dot,))[1]
    return _row_kl(p, q), by_p - jnp.sum(_safe_ratio(p, q) * q_dot, axis=-1)


@jax.custom_jvp
def _row_js(p: PerEntry, q: PerEntry) -> PerRow:
    """Compute Σ_v m_v g(d_v)/2 with p = m(1 − d), q = m(1 + d), every term ≥ 0.

        g(d) = (1−d) log(1−d) + (1+d) log(1+d) = log(1−d²) + 2d artanh d

    The second form is accurate for small d, the first near d = ±1.
    """
    m = (p + q) / 2
    d = jnp.where(m == 0, 0, (q - p) / jnp.where(m == 0, 1, 2 * m))
    close = jnp.abs(d) < 0.5
    small = jnp.where(close, d, 0)
    near = m * (jnp.log1p(-small * small) + 2 * small * jnp.arctanh(small))
    m = jnp.where(close, 1, m)
    far = xlogy(p, p / m) + xlogy(q, q / m)
    return jnp.sum(jnp.where(close, near, far), axis=-1) / 2


@_row_js.defjvp
def _row_js_jvp(primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    by_p, by_q = (
        clip_infinite(_half_log_ratio(*pair), straight_through=True) for pair in ((p, q), (q, p))
    )
    out_dot = by_p * p_dot + by_q * q_dot
    return _row_js(p, q), jnp.sum(out_dot, axis=-1)


@jax.custom_jvp
def _half_log_ratio(p: PerEntry, q: PerEntry) -> PerEntry:
    """Compute log(p/m)/2 = ∂JS/∂p; 0 where p = q = 0, between its limits from either side."""
    total = p + q
    d = (q - p) / jnp.where(total == 0, 1, total)
    return jnp.where(d < 0.5, jnp.log1p(-d), jnp.log(2 * p / total)) / 2


@_half_log_ratio.defjvp
def _half_log_ratio_jvp(primals, tangents):
    """∂/∂p = q/(2p(p + q)), ∂/∂q = −1/(2(p + q))."""
    (p, q), (p_dot, q_dot) = primals, tangents
    share = _safe_ratio(q, p + q)
    by_q = _safe_ratio(jnp.ones_like(q), p + q) / 2
    return _half_log_ratio(p, q), _safe_ratio(share, p) / 2 * p_dot - by_q * q_dot


@partial(jax.jit, inline=True)
def _softmax_entropy(z: Logits) -> PerRow:
    return jax.checkpoint(_entropy_of_softmax, prevent_cse=False)(pin_half_precision(z))


@jax.custom_jvp
def _entropy_of_softmax(u: Logits) -> PerRow:
    z = u.astype(loss_dtype(u.dtype))
    return jnp.log1p(log_softmax.statistics(z, z.dtype).S) + _mean_gap(z)


@_entropy_of_softmax.defjvp
def _entropy_of_softmax_jvp(primals, tangents):
    """Ḣ = Σ p (m − z − G) ż."""
    (u,), (u_dot,) = primals, tangents
    H = _entropy_of_softmax(u)
    z = u.astype(H.dtype)
    p, gap = _p_and_gap(z)
    by_z = log_softmax.entropy_derivative(p, gap, _mean_gap(z))
    return H, jnp.sum(by_z * u_dot.astype(H.dtype), axis=-1)


@jax.custom_jvp
def _mean_gap(z: Logits) -> PerRow:
    """Compute G = Σ_v p_v (m − z_v) = E/(1 + S)."""
    m, S = log_softmax.statistics(z, z.dtype)
    return log_softmax.weighted_gap(jnp.exp(minus_max(z, m[..., None])), z, m) / (1 + S)


@_mean_gap.defjvp
def _mean_gap_jvp(primals, tangents):
    """Ġ = Σ p (m − z − G − 1) ż."""
    (z,), (z_dot,) = primals, tangents
    G = _mean_gap(z)
    p, gap = _p_and_gap(z)
    return G, jnp.sum(log_softmax.entropy_derivative(p, gap, G + 1) * z_dot, axis=-1)


def _p_and_gap(z: Logits) -> tuple[Logits, Logits]:
    """Compute p and m − z, which is nll minus log1p(S), the part that all classes share."""
    stats = log_softmax.statistics(z, z.dtype, probabilities_follow=True)
    p = log_softmax.softmax_probabilities(z, stats, log_softmax.logsumexp(stats))
    return p, log_softmax.clipped_neg_log_softmax(z, stats.m, jnp.zeros_like(stats.m))
