"""Divergence of two rows of logits: the student's s, q = softmax(s/T); the teacher's t, p.

    u = s − t          d_v = (u_v − Σ p u)/T
    x_v = log q_v − log p_v = d_v − log1p(Σ p (e^d − 1 − d))
    excess(p, q)_v = q_v − p_v − p_v x_v ≥ 0

    forward    KL(p‖q) = Σ_v excess(p, q)_v
               T ∂/∂s = q − p          T ∂/∂t_v = −p_v (x_v + KL(p‖q))
    reverse    KL(q‖p), p and q in each other's place
    jsd        β KL(p‖m) + (1−β) KL(q‖m), m = β p + (1−β) q
               T ∂/∂s_v = (1−β) q_v (log(q_v/m_v) − KL(q‖m))
               T ∂/∂t_v =      β p_v (log(p_v/m_v) − KL(p‖m))

Distillation ends where the student is near its teacher, and there everything cancels.  So x is not
the difference of two rounded logarithms: it is made of differences of logits, which are exact, and
of a sum without negative terms.  (Only where logits are too far apart, so that e^d p of a p below
the smallest float would be missing from the sum, is x the difference of logarithms.)  Since
Σ_v (q_v − p_v) = 0, a divergence is the sum of the Bregman terms excess(p, q)_v ≥ 0, computed as
p (e^x − 1 − x), by its series where x is small.  For the same reason q − p is p·expm1(x) there.

The result is T² times the divergence, while x shrinks as 1/T at high temperature: T x is squared,
not x, which would underflow.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jxent._core.compensated import two_sum
from jxent._core.row_terms import neg_log_softmax
from jxent._core.safe_math import clip_infinite
from jxent._core.sum_without_max import force_rounding, minus_max, with_gradient_of
from jxent._typing import Logits, PerRow, Scalar

DivergenceName = Literal["forward", "reverse", "jsd"]

# Where the series takes over, and how many terms of it a dtype needs there.
_SERIES_BELOW = 0.5
_SERIES_TERMS = {4: 9, 8: 16}
# Up to this distance (in units of T), e^d p of a p below the smallest float adds nothing to 1.
_APART = 16


class Divergence(NamedTuple):
    """Which divergence, and the teacher's share β of the mixture of "jsd"; static."""

    name: DivergenceName
    beta: float


class _SoftmaxPair(NamedTuple):
    """p, q and x = log(q/p); x is ±∞ for a class impossible in one of them, 0 in both."""

    p: Logits
    q: Logits
    x: Float[Array, "*n V"]


def _softmax_pair(s: Logits, t: Logits, T: Scalar) -> _SoftmaxPair:
    """Compute p, q and log(q/p) without cancellation where the rows are near."""
    nll_q, nll_p = (neg_log_softmax(_tempered_logits(z, T), None, None, None) for z in (s, t))
    p, q = jnp.exp(-nll_p), jnp.exp(-nll_q)
    neither = (nll_q == jnp.inf) & (nll_p == jnp.inf)
    far = jnp.where(neither, 0, nll_p) - jnp.where(neither, 0, nll_q)
    u, near = _logit_difference(s, t, p, T)
    d = (u - jnp.sum(p * u, axis=-1, keepdims=True)) / T
    x = d - jnp.log1p(jnp.sum(p * _expm1_minus_x(d), axis=-1, keepdims=True))
    return _SoftmaxPair(p, q, jnp.where(near, x, far))


def _top(z: Logits) -> Float[Array, "*n 1"]:
    return lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def _tempered_logits(z: Logits, T: Scalar) -> Logits:
    """Compute (z − max z)/T; ∞ stays, without a derivative by T: 0·∞ would be NaN."""
    m = _top(z)
    d = force_rounding(z, m) / 2 - m / 2  # z − m may be too large for a float
    finite = jnp.isfinite(d)
    return jnp.where(finite, jnp.where(finite, d, 0) / (T / 2), d)


def _logit_difference(
    s: Logits, t: Logits, p: Logits, T: Scalar
) -> tuple[Logits, Bool[Array, "*n 1"]]:
    """Compute s − t up to an offset of the row, and in which rows it is small everywhere.

    It is 0 in the other rows and for classes impossible in both.
    """
    neither = (s == -jnp.inf) & (t == -jnp.inf)
    s, t = (jnp.where(neither, 0, force_rounding(z, _top(z))) for z in (s, t))
    # The offset may be large, and `lost` then holds the digits that tell the two rows apart.
    u, lost = lax.stop_gradient(two_sum(s, -t))
    # The offset makes it exactly 0 at the teacher's most probable class: the other p may be so
    # small that rounding there would exceed their terms.
    p = lax.stop_gradient(p)
    first = p == jnp.max(p, axis=-1, keepdims=True)
    offset = _largest(u, first)
    u = with_gradient_of((u - offset) + (lost - _largest(lost, first & (u == offset))), s - t)
    small = neither | (jnp.abs(u) < _APART * T)
    near = jnp.all(small, axis=-1, keepdims=True)
    return jnp.where(near & ~neither, u, 0), near


def _largest(x: Logits, among: Bool[Array, "*n V"]) -> Float[Array, "*n 1"]:
    return jnp.max(jnp.where(among, x, -jnp.inf), axis=-1, keepdims=True)


def _expm1_minus_x(x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """Compute e^x − 1 − x."""
    near = jnp.abs(x) < _SERIES_BELOW
    x_near = jnp.where(near, x, 0)
    return jnp.where(near, 0.5 * x_near * x_near * _expm1_minus_x_series(x_near), jnp.expm1(x) - x)


def _expm1_minus_x_series(x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """Compute (e^x − 1 − x) 2/x² for a small x."""
    series = jnp.ones_like(x)
    for k in range(_SERIES_TERMS[x.dtype.itemsize], 2, -1):
        series = 1 + (x / k) * series
    return series


def _bregman_terms(
    p: Logits, q: Logits, x: Float[Array, "*n V"], T: Scalar
) -> Float[Array, "*n V"]:
    """Compute T² (q − p − p x) for q = p e^x, with 0·∞ = 0; +∞ where only q is impossible."""
    near = jnp.abs(x) < _SERIES_BELOW
    x_near = jnp.where(near, x, 0)
    far = jnp.where(p == 0, q, (q - p) - p * x)
    far = jnp.where(x == -jnp.inf, jnp.inf, far)
    return jnp.where(
        near, p * (0.5 * jnp.square(T * x_near)) * _expm1_minus_x_series(x_near), T * (T * far)
    )


def _probability_difference(p: Logits, q: Logits, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """Compute q − p for q = p e^x."""
    near = jnp.abs(x) < 1
    return jnp.where(near, p * jnp.expm1(jnp.where(near, x, 0)), q - p)


# Rows of ∞ replaced by the largest number are summed: 2²⁰ of them must fit.
_clip_infinite = partial(clip_infinite, headroom=2.0**20)


def _softmax_pullback(r: Logits, x: Float[Array, "*n V"], T: Scalar) -> Float[Array, "*n V"]:
    """Compute T r (x − Σ r x): pull the gradient T x by probabilities r back to their logits."""
    x = _clip_infinite(T * _clip_infinite(x))
    return r * (x - jnp.sum(r * x, axis=-1, keepdims=True))


def _log_mixture(share: float, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """Compute log(share + (1 − share) e^x), without cancellation where x is small."""
    near, x = jnp.abs(x) < 1, _clip_infinite(x)
    small = jnp.log1p((1 - share) * jnp.expm1(jnp.where(near, x, 0)))
    large = jnp.where(near, 1, x)
    up = jnp.maximum(large, 0)
    return jnp.where(
        near, small, up + jnp.log(share * jnp.exp(-up) + (1 - share) * jnp.exp(large - up))
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def divergence(kind: Divergence, s: Logits, t: Logits, T: Scalar) -> PerRow:
    """Compute T² times the divergence of each row, ≥ 0; NaN, gradients too, in invalid rows."""
    pair = p, q, x = _softmax_pair(s, t, T)
    if kind.name == "forward":
        return jnp.sum(_bregman_terms(*pair, T), axis=-1)
    if kind.name == "reverse":
        return jnp.sum(_bregman_terms(q, p, -x, T), axis=-1)
    m, of_p, of_q = _mixture(kind.beta, pair)
    each = kind.beta * _bregman_terms(p, m, of_p, T) + (1 - kind.beta) * _bregman_terms(
        q, m, of_q, T
    )
    return jnp.sum(each, axis=-1)


def _mixture(beta: float, pair: _SoftmaxPair) -> tuple[Logits, Logits, Logits]:
    """Compute m, log(m/p) and log(m/q)."""
    p, q, x = pair
    return beta * p + (1 - beta) * q, _log_mixture(beta, x), _log_mixture(1 - beta, -x)


def _logit_gradients(kind: Divergence, pair: _SoftmaxPair, T: Scalar) -> tuple[Logits, Logits]:
    """Compute T² times ∂/∂s and ∂/∂t."""
    p, q, x = pair
    if kind.name == "forward":
        return T * _probability_difference(*pair), _softmax_pullback(p, -x, T)
    if kind.name == "reverse":
        return _softmax_pullback(q, x, T), -T * _probability_difference(*pair)
    _, of_p, of_q = _mixture(kind.beta, pair)
    by_s, by_t = _softmax_pullback(q, -of_q, T), _softmax_pullback(p, -of_p, T)
    return (1 - kind.beta) * by_s, kind.beta * by_t


def _divergence_jvp(kind: Divergence, primals: Any, tangents: Any) -> tuple[Array, Array]:
    out, T = divergence(kind, *primals), primals[-1]
    *dots, T_dot = tangents
    gradients = _logit_gradients(kind, _softmax_pair(*primals), T)
    out_dot = jnp.zeros_like(out)
    for gradient, dot in zip(gradients, dots, strict=True):
        if not isinstance(dot, SymbolicZero):
            out_dot = out_dot + jnp.sum(gradient * dot, axis=-1)
    if not isinstance(T_dot, SymbolicZero):
        # Of T² D(s/T, t/T): T ∂/∂T = 2 − s ∂/∂s − t ∂/∂t, whatever the offsets of s and t.
        through = sum(
            jnp.sum(gradient * _minus_max_or_zero(z), axis=-1)
            for gradient, z in zip(gradients, primals, strict=False)
        )
        out_dot = out_dot + (2 * out - through) / T * T_dot
    return out, out_dot


def _minus_max_or_zero(z: Logits) -> Logits:
    """Compute z − max z, 0 where that is infinite."""
    d = minus_max(z, _top(z))
    return jnp.where(jnp.isinf(d), 0, d)


divergence.defjvp(_divergence_jvp, symbolic_zeros=True)
