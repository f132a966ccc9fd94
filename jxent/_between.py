"""How far two rows of logits are apart: the student's q = softmax(a), the teacher's p = softmax(b).

    x_v = log q_v − log p_v = nll_v(b) − nll_v(a)          excess(p, q)_v = q_v − p_v − p_v x_v ≥ 0

    forward    KL(p‖q) = Σ_v excess(p, q)_v       ∂/∂a = q − p      ∂/∂b_v = −p_v (x_v + KL(p‖q))
    reverse    KL(q‖p), p and q in each other's place
    jsd        β KL(p‖m) + (1−β) KL(q‖m), m = β p + (1−β) q
               ∂/∂a_v = (1−β) q_v (log(q_v/m_v) − KL(q‖m))
               ∂/∂b_v =      β p_v (log(p_v/m_v) − KL(p‖m))

Σ_v p_v (log p_v − log q_v) cancels as the student nears the teacher, which is where distillation
ends.  Since Σ_v (q_v − p_v) = 0 it is also the sum of the excesses, none of which is negative:
p (e^x − 1 − x), by its series where x is small.  For the same reason q − p is p·expm1(x) there.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jxent._dense import nll_of_each
from jxent._typing import Logits, PerRow

Name = Literal["forward", "reverse", "jsd"]

# Where the series takes over, and how many terms of it a dtype needs there.
_NEAR = 0.5
_TERMS = {4: 9, 8: 16}


class Divergence(NamedTuple):
    """Which one, and the teacher's share β of the mixture of "jsd"."""

    name: Name
    beta: float


class _Pair(NamedTuple):
    """p, q and x = log(q/p); ±∞ where one of them holds a class impossible, 0 where both do."""

    p: Logits
    q: Logits
    x: Float[Array, "*n V"]


def _pair(a: Logits, b: Logits) -> _Pair:
    nll_q, nll_p = (nll_of_each(z, None, None, None) for z in (a, b))
    neither = (nll_q == jnp.inf) & (nll_p == jnp.inf)
    x = jnp.where(neither, 0, nll_p) - jnp.where(neither, 0, nll_q)
    return _Pair(jnp.exp(-nll_p), jnp.exp(-nll_q), x)


def _excess(p: Logits, q: Logits, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """q − p − p x for q = p e^x, with 0·∞ = 0; +∞ where q is impossible and p is not."""
    near = jnp.abs(x) < _NEAR
    x_near = jnp.where(near, x, 0)
    series = jnp.ones_like(x)
    for k in range(_TERMS[x.dtype.itemsize], 2, -1):
        series = 1 + (x_near / k) * series
    far = jnp.where(p == 0, q, (q - p) - p * x)
    far = jnp.where(x == -jnp.inf, jnp.inf, far)
    return jnp.where(near, p * (0.5 * x_near * x_near) * series, far)


def _difference(p: Logits, q: Logits, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """q − p for q = p e^x."""
    near = jnp.abs(x) < 1
    return jnp.where(near, p * jnp.expm1(jnp.where(near, x, 0)), q - p)


def _told(x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """x with ±∞ told as a huge number, which leaves room to be summed: 0·∞ is 0 after it."""
    huge = float(jnp.finfo(x.dtype).max) * 2.0**-20
    return jnp.where(jnp.isinf(x), jnp.sign(x) * huge, x)


def _about_mean(r: Logits, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """r (x − Σ r x): what of the slope x of a row of probabilities r comes to its logits."""
    x = _told(x)
    return r * (x - jnp.sum(r * x, axis=-1, keepdims=True))


def _log_mixture(share: float, x: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """log(share + (1 − share) e^x), which is x (1 − share) + … where x is small."""
    near, x = jnp.abs(x) < 1, _told(x)
    small = jnp.log1p((1 - share) * jnp.expm1(jnp.where(near, x, 0)))
    large = jnp.where(near, 1, x)
    up = jnp.maximum(large, 0)
    return jnp.where(
        near, small, up + jnp.log(share * jnp.exp(-up) + (1 - share) * jnp.exp(large - up))
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def divergence(kind: Divergence, a: Logits, b: Logits) -> PerRow:
    """The divergence of each row, never negative; NaN, slopes too, in a row at fault."""
    pair = p, q, x = _pair(a, b)
    if kind.name == "forward":
        return jnp.sum(_excess(*pair), axis=-1)
    if kind.name == "reverse":
        return jnp.sum(_excess(q, p, -x), axis=-1)
    m, of_p, of_q = _mixture(kind.beta, pair)
    each = kind.beta * _excess(p, m, of_p) + (1 - kind.beta) * _excess(q, m, of_q)
    return jnp.sum(each, axis=-1)


def _mixture(beta: float, pair: _Pair) -> tuple[Logits, Logits, Logits]:
    """m, log(m/p) and log(m/q)."""
    p, q, x = pair
    return beta * p + (1 - beta) * q, _log_mixture(beta, x), _log_mixture(1 - beta, -x)


def _slopes(kind: Divergence, pair: _Pair) -> tuple[Logits, Logits]:
    """∂/∂a and ∂/∂b."""
    p, q, x = pair
    if kind.name == "forward":
        return _difference(*pair), _about_mean(p, -x)
    if kind.name == "reverse":
        return _about_mean(q, x), -_difference(*pair)
    _, of_p, of_q = _mixture(kind.beta, pair)
    return (1 - kind.beta) * _about_mean(q, -of_q), kind.beta * _about_mean(p, -of_p)


def _divergence_jvp(kind: Divergence, primals: Any, tangents: Any) -> tuple[Array, Array]:
    out = divergence(kind, *primals)
    out_dot = jnp.zeros_like(out)
    for slope, dot in zip(_slopes(kind, _pair(*primals)), tangents, strict=True):
        if not isinstance(dot, SymbolicZero):
            out_dot = out_dot + jnp.sum(slope * dot, axis=-1)
    return out, out_dot


divergence.defjvp(_divergence_jvp, symbolic_zeros=True)
