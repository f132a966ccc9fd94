"""w·x with 0·x = 0 for every x, inf and NaN included, and both derivatives real.

    scale(w, x) = w·x, 0 where w = 0        ∂/∂x = w        ∂/∂w = x (also where w = 0)

A zero weight contributes nothing, whatever it weighs, by select and not by multiplication; what
a little more weight would do is still told by ∂/∂w.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


@jax.custom_jvp
def scale(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """w·x, selected to 0 where w = 0."""
    return jnp.where(w == 0, jnp.zeros_like(x), w * x)


def _scale_jvp(primals, tangents):
    w, x = primals
    w_dot, x_dot = tangents
    out = scale(w, x)
    out_dot = jnp.zeros_like(out)
    if not isinstance(x_dot, SymbolicZero):
        out_dot = w * x_dot  # no select: ∂²/∂w∂x is 1 at w = 0 too
    if not isinstance(w_dot, SymbolicZero):
        # Where nothing is weighed, ∞ is told as the largest number and a fault as 0, so that
        # neither makes NaN of the 0 that w itself is on the way back.
        told = jnp.where(w == 0, jnp.nan_to_num(x), x)
        out_dot = out_dot + w_dot * told
    return out, out_dot


scale.defjvp(_scale_jvp, symbolic_zeros=True)
