"""Information theory on probabilities: the truth p first, the prediction q second, nats out.

    H(p) = −Σ_v p_v log p_v                              entropy
    H(p, q) = −Σ_v p_v log q_v = H(p) + KL(p‖q)          cross-entropy
    KL(p‖q) = Σ_v p_v log(p_v/q_v)                       divergence
    JS(p, q) = (KL(p‖m) + KL(q‖m))/2, m = (p + q)/2      Jensen–Shannon divergence, 0 to log 2

Classes are in the last axis, and every row gives one number.  0·log 0 is 0, and log 0 is −∞: what
was held impossible and happened costs ∞.  With `eps` predictions are first clipped to
[eps, 1 − eps], the textbooks' way around that.  Rows need not sum to 1.

The slopes are ∂H/∂q_v = −p_v/q_v, 0 where p_v = 0, and so on; one of ±∞ is told as the largest
number, so that 0·∞ is 0 after it, in every mode and to any order.  A row with an entry outside
[0, 1] is NaN, gradient too.  Half precision is computed in float32.

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
from jaxtyping import Array, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import log_softmax
from jxent._core.log_softmax import loss_dtype, pin_half_precision
from jxent._losses.divergence import kl_divergence as _kl_from_log
from jxent._typing import ArrayLike, Logits, PerRow

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

Each = Float[Array, "*s"]  # one number for each class of each row


@_check.keywords
def entropy(p: ArrayLike) -> jax.Array:
    """H(p) = −Σ_v p_v log p_v, what is not known before looking.

    Args:
      p: probabilities `[*n, V]` in [0, 1], numbers of any kind.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 probabilities): 0 for a sure row, log V for a
      uniform one. NaN, gradient too, in a row with a traced entry outside [0, 1].

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
    return _by_row(_entropy, "entropy", (_check.probabilities("entropy", "p", p),))


@_check.keywords
def cross_entropy(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """H(p, q) = −Σ_v p_v log q_v, what q costs where p is the truth.

    `jxent.cross_entropy` is the loss to train with: logits first, labels second, a mean.

    Args:
      p: true probabilities `[*n, V]`, or `[V]` for all rows; one-hot integers are such.
      q: predicted probabilities, likewise.
      eps: q is clipped to [eps, 1 − eps] first; static. A clipped entry passes no gradient.

    Returns:
      `[*n]` in nats, float32 (float64 if p or q is); +∞ where p_v > 0 = q_v, with a finite
      gradient. NaN, gradient too, in a row with a traced entry outside [0, 1].

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
    return _by_row(_cross_entropy, "cross_entropy", _pair("cross_entropy", p, q), eps=eps)


@_check.keywords
def binary_cross_entropy(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """−p log q − (1 − p) log(1 − q), for every entry: each its own question, answered yes with q.

    Nothing is summed: add `.sum()` or `.mean()`, as the textbook at hand does.

    Args:
      p: the truth in [0, 1], 1 for yes, any shape; one number for all.
      q: the predicted probability of yes, likewise.
      eps: q is clipped to [eps, 1 − eps] first; static. Where 1 − eps rounds to 1, as 1e-15 does in
        float32, a q of 1 leaves eps for no. A clipped entry passes no gradient.

    Returns:
      One number for every entry in nats, float32 (float64 if p or q is); +∞ where what was held
      impossible happened, with a finite gradient. NaN, gradient too, where a traced entry is
      outside [0, 1].

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
    return _each_alone(fn, *_pair(fn, p, q, rows=False), eps=_check.clip_fraction(fn, eps))


@_check.keywords
def kl_divergence(p: ArrayLike, q: ArrayLike, *, eps: float = 0.0) -> jax.Array:
    """KL(p‖q) = Σ_v p_v log(p_v/q_v) = H(p, q) − H(p), what q costs beyond p's own entropy.

    `jxent.kl_divergence` is the same from log q and p, as a model gives it.

    Args:
      p: true probabilities `[*n, V]`, or `[V]` for all rows.
      q: predicted probabilities, likewise.
      eps: q is clipped to [eps, 1 − eps] first; static. A clipped entry passes no gradient.

    Returns:
      `[*n]` in nats, float32 (float64 if p or q is); +∞ where p_v > 0 = q_v, with a finite
      gradient. Where p and q all but agree the terms cancel: right to 1e-6 of Σ_v p_v, and below 0
      by no more. NaN, gradient too, in a row with a traced entry outside [0, 1].

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
    return _by_row(_kl_divergence, "kl_divergence", _pair("kl_divergence", p, q), eps=eps)


@_check.keywords
def js_divergence(p: ArrayLike, q: ArrayLike) -> jax.Array:
    """JS(p, q) = (KL(p‖m) + KL(q‖m))/2, m = (p + q)/2: symmetric, and finite whatever is 0.

    Its square root is a distance. ∂JS/∂p_v = log(p_v/m_v)/2.

    Args:
      p: probabilities `[*n, V]`, or `[V]` for all rows.
      q: probabilities, likewise.

    Returns:
      `[*n]` in nats between 0 and log 2, never below 0; float32 (float64 if p or q is). NaN,
      gradient too, in a row with a traced entry outside [0, 1].

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
    return _by_row(_js_divergence, "js_divergence", _pair("js_divergence", p, q))


@_check.keywords
def perplexity(p: ArrayLike) -> jax.Array:
    """exp H(p), how many classes are as uncertain as p when all are equally probable.

    A model's perplexity on data is exp of its mean log loss: `jxent.metrics`.

    Args:
      p: probabilities `[*n, V]` in [0, 1], numbers of any kind.

    Returns:
      `[*n]` between 1 and V, as `entropy`.

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
    return jnp.exp(_by_row(_entropy, "perplexity", (_check.probabilities("perplexity", "p", p),)))


@_check.keywords
def softmax_entropy(logits: ArrayLike) -> jax.Array:
    """H(softmax(z)) from the logits, without a logarithm of a rounded probability.

        H = log1p(S) + E/(1 + S)            S = Σ_v exp(z_v − m) − 1, m = max z
        ∂H/∂z_v = p_v (−log p_v − H)        E = Σ_v exp(z_v − m)(m − z_v)

    Nothing cancels, so a row that is all but sure keeps its digits. A penalty on confidence, an
    exploration bonus, a measure of doubt.

    Args:
      logits: z `[*n, V]`, floating point. −∞ is an impossible class and counts 0.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits). NaN, gradient too, in a row with NaN or
      +∞, or with −∞ only.

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


@_check.keywords
def nats_to_bits(nats: ArrayLike) -> jax.Array:
    """Nats / log 2: the same information in bits.

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


@_check.keywords
def bits_to_nats(bits: ArrayLike) -> jax.Array:
    """Bits · log 2: the same information in nats.

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


def _pair(fn: str, p: ArrayLike, q: ArrayLike, *, rows: bool = True) -> tuple[Array, Array]:
    """p and q in one shape, of which one may have been given once for all."""
    p = _check.probabilities(fn, "p", p, rows=rows)
    q = _check.probabilities(fn, "q", q, rows=rows)
    shape = _check.same_shape_or_one(fn, p, q, one=int(rows))
    return jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape)


def _by_row(
    formula: Callable[..., PerRow], fn: str, given: tuple[Array, ...], *, eps: float = 0.0
) -> PerRow:
    return _one_a_row(formula, fn, given, eps=_check.clip_fraction(fn, eps))


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("eps",), inline=True)
def _one_a_row(
    formula: Callable[..., PerRow], fn: str, given: tuple[Array, ...], *, eps: float
) -> PerRow:
    @partial(jax.checkpoint, prevent_cse=False)
    def rows(*given: Array) -> Array:
        *first, last = _sound(fn, *given, by_row=True)
        return formula(*first, _clipped(last, eps))

    return rows(*vary_alike(*given))


@partial(jax.jit, static_argnums=(0,), static_argnames=("eps",), inline=True)
def _each_alone(fn: str, p: Each, q: Each, *, eps: float) -> Each:
    @partial(jax.checkpoint, prevent_cse=False)
    def each(p: Array, q: Array) -> Array:
        p, q = _sound(fn, p, q, by_row=False)
        q = _clipped(q, eps)
        no = _surprise(True, 1 - p, q)
        if eps:
            no = jnp.where(q == 1, (p - 1) * math.log(eps), no)
        return _surprise(False, p, q) + no

    return each(*vary_alike(p, q))


def _sound(fn: str, *given: Array, by_row: bool) -> list[Array]:
    """The same numbers wide; where one is outside [0, 1], NaN in all of its row."""
    names = ("p", "q")[: len(given)]
    dtype = reduce(np.promote_types, (x.dtype for x in given), np.dtype(np.float32))
    fine = [(x >= 0) & (x <= 1) for x in given]
    for name, x, ok in zip(names, given, fine, strict=True):
        _check.traced_entries(fn, name, x, ok, "is outside [0, 1]")
    all_fine = reduce(jnp.logical_and, fine)
    if by_row:
        all_fine = jnp.all(all_fine, axis=-1, keepdims=True)
    # A factor, not a select: NaN then goes to every derivative of the row, of any order.
    factor = jnp.where(all_fine, 1, jnp.nan).astype(dtype)
    return [x.astype(dtype) * jnp.broadcast_to(factor, x.shape) for x in given]


def _clipped(q: Each, eps: float) -> Each:
    """q in [eps, 1 − eps]."""
    if eps == 0:
        return q
    return jnp.where(q < eps, eps, jnp.where(q > 1 - eps, 1 - eps, q))


@jax.custom_jvp
def _ratio(p: Each, q: Each) -> Each:
    """p/q, 0 where p = 0; ∞ is told as the largest number."""
    return jnp.where(p == 0, 0, jnp.nan_to_num(p / q, nan=jnp.nan))


@_ratio.defjvp
def _ratio_jvp(primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    out = _ratio(p, q)
    return out, _ratio(jnp.ones_like(q), q) * p_dot - _ratio(out, q) * q_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log(no: bool, q: Each) -> Each:
    """The log of yes, q; or of no, 1 − q."""
    # XLA's log1p loses two digits of float64 around −0.4, where 1 − q loses nothing.
    return jnp.where(q < 0.25, jnp.log1p(-q), jnp.log(1 - q)) if no else jnp.log(q)


@_log.defjvp
def _log_jvp(no, primals, tangents):
    ((q,), (q_dot,)) = primals, tangents
    slope = -_ratio(jnp.ones_like(q), 1 - q) if no else _ratio(jnp.ones_like(q), q)
    return _log(no, q), slope * q_dot


@jax.custom_jvp
def _told(x: Each) -> Each:
    """x, ±∞ told as the largest numbers; its slope is 1."""
    return jnp.nan_to_num(x, nan=jnp.nan)


_told.defjvp(lambda primals, tangents: (_told(*primals), tangents[0]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _surprise(no: bool, p: Each, q: Each) -> Each:
    """−p log q, or −p log(1 − q); 0 where p = 0."""
    return jnp.where(p == 0, 0, -p * _log(no, q))


@_surprise.defjvp
def _surprise_jvp(no, primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    by_q = _ratio(p, 1 - q) if no else -_ratio(p, q)
    return _surprise(no, p, q), by_q * q_dot - _told(_log(no, q)) * p_dot


def _entropy(p: Each) -> PerRow:
    """H(p) = −KL(p‖1)."""
    return 0 - _kl_from_log(jnp.zeros_like(p), p)


def _cross_entropy(p: Each, q: Each) -> PerRow:
    return jnp.sum(_surprise(False, p, q), axis=-1)


@jax.custom_jvp
def _kl_divergence(p: Each, q: Each) -> PerRow:
    return _kl_from_log(jnp.log(q), p)


@_kl_divergence.defjvp
def _kl_divergence_jvp(primals, tangents):
    """By p from log q; by q not through log q, where 1/q² leaves the floats long before p/q²."""
    (p, q), (p_dot, q_dot) = primals, tangents
    by_p = jax.jvp(lambda p: _kl_from_log(_log(False, q), p), (p,), (p_dot,))[1]
    return _kl_divergence(p, q), by_p - jnp.sum(_ratio(p, q) * q_dot, axis=-1)


@jax.custom_jvp
def _js_divergence(p: Each, q: Each) -> PerRow:
    """Σ_v m_v g(d_v)/2 with p = m(1 − d), q = m(1 + d), every term ≥ 0.

        g(d) = (1−d) log(1−d) + (1+d) log(1+d) = log(1−d²) + 2d artanh d

    The second way keeps the digits of a small d, the first those near d = ±1.
    """
    m = (p + q) / 2
    d = jnp.where(m == 0, 0, (q - p) / jnp.where(m == 0, 1, 2 * m))
    close = jnp.abs(d) < 0.5
    small = jnp.where(close, d, 0)
    near = m * (jnp.log1p(-small * small) + 2 * small * jnp.arctanh(small))
    m = jnp.where(close, 1, m)
    far = xlogy(p, p / m) + xlogy(q, q / m)
    return jnp.sum(jnp.where(close, near, far), axis=-1) / 2


@_js_divergence.defjvp
def _js_divergence_jvp(primals, tangents):
    (p, q), (p_dot, q_dot) = primals, tangents
    out_dot = _told(_half_log(p, q)) * p_dot + _told(_half_log(q, p)) * q_dot
    return _js_divergence(p, q), jnp.sum(out_dot, axis=-1)


@jax.custom_jvp
def _half_log(p: Each, q: Each) -> Each:
    """log(p/m)/2; where both are 0, the 0 between the slopes on either side."""
    total = p + q
    d = (q - p) / jnp.where(total == 0, 1, total)
    return jnp.where(d < 0.5, jnp.log1p(-d), jnp.log(2 * p / total)) / 2


@_half_log.defjvp
def _half_log_jvp(primals, tangents):
    """∂/∂p = q/(2p(p + q)), ∂/∂q = −1/(2(p + q))."""
    (p, q), (p_dot, q_dot) = primals, tangents
    share = _ratio(q, p + q)
    by_q = _ratio(jnp.ones_like(q), p + q) / 2
    return _half_log(p, q), _ratio(share, p) / 2 * p_dot - by_q * q_dot


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
    slope = log_softmax.entropy_derivative(p, gap, _mean_gap(z))
    return H, jnp.sum(slope * u_dot.astype(H.dtype), axis=-1)


@jax.custom_jvp
def _mean_gap(z: Logits) -> PerRow:
    """G = Σ_v p_v (m − z_v) = E/(1 + S)."""
    m, S = log_softmax.statistics(z, z.dtype)
    return log_softmax.weighted_gap(jnp.exp(log_softmax.minus_max(z, m[..., None])), z, m) / (1 + S)


@_mean_gap.defjvp
def _mean_gap_jvp(primals, tangents):
    """Ġ = Σ p (m − z − G − 1) ż."""
    (z,), (z_dot,) = primals, tangents
    G = _mean_gap(z)
    p, gap = _p_and_gap(z)
    return G, jnp.sum(log_softmax.entropy_derivative(p, gap, G + 1) * z_dot, axis=-1)


def _p_and_gap(z: Logits) -> tuple[Logits, Logits]:
    """p and m − z, which is nll without what all classes share."""
    stats = log_softmax.statistics(z, z.dtype)
    p = log_softmax.softmax_probabilities(z, stats, log_softmax.logsumexp(stats))
    return p, log_softmax.clipped_neg_log_softmax(z, stats.m, jnp.zeros_like(stats.m))
