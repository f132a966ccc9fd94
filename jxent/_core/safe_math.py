"""w·x with 0·x = 0 for every x, inf and NaN included, and both derivatives real.

    scale(w, x) = w·x, 0 where w = 0        ∂/∂x = w        ∂/∂w = x (also where w = 0)

A zero weight contributes nothing, whatever it weighs; what a little more weight would do is still
told by ∂/∂w.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


def propagate_nan(*terms: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """0, NaN where one of the terms is: to be added to their sum, whatever they weigh in it.

    The slope of a fault stays NaN under a weight of 0, and the loss must not hide it.
    """
    out = jnp.zeros_like(terms[0])
    for x in terms:
        out = jnp.where(jnp.isnan(x), jnp.nan, out)
    return out


def _nan_to_num_at_zero(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x; where nothing is weighed, ∞ is told as the largest number and a fault as 0.

    So neither makes NaN of the 0 that w is, there and on the way back.
    """
    return jnp.where(w == 0, jnp.nan_to_num(x), x)


@jax.custom_jvp
def multiply_no_nan(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """w·x, 0 where w = 0."""
    return w * _nan_to_num_at_zero(w, x)


def _multiply_no_nan_jvp(primals, tangents):
    """What differentiating `scale` gives, with less to remember."""
    w, x = primals
    w_dot, x_dot = tangents
    out = multiply_no_nan(w, x)
    out_dot = jnp.zeros_like(out)
    if not isinstance(x_dot, SymbolicZero):
        out_dot = w * x_dot
    if not isinstance(w_dot, SymbolicZero):
        out_dot = out_dot + w_dot * _nan_to_num_at_zero(w, x)
    return out, out_dot


multiply_no_nan.defjvp(_multiply_no_nan_jvp, symbolic_zeros=True)
