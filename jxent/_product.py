"""w·x with 0·x = 0 for every x, inf and NaN included, and both derivatives real.

    scale(w, x) = w·x, 0 where w = 0        ∂/∂x = w        ∂/∂w = x (also where w = 0)

A zero weight contributes nothing, whatever it weighs; what a little more weight would do is still
told by ∂/∂w: of ∞ as the largest number, of a fault as 0, so that neither makes NaN of the 0 that
w itself is on the way back.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def scale(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """w·x, 0 where w = 0."""
    return w * jnp.where(w == 0, jnp.nan_to_num(x), x)
