"""Arithmetic with zeros and infinities: 0·∞ = 0, "0 where dropped", ∞ as a large finite number.

    multiply_no_nan(w, x) = w·x, 0 where w = 0      ∂/∂x = w      ∂/∂w = x (also where w = 0)

A zero weight contributes nothing, whatever it multiplies.  ∂/∂w stays x at w = 0, so that weights
remain trainable.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float


def zero_unless(kept: Bool[Array, "..."] | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Select x in the kept rows and 0 in the others, whatever they hold; x where kept is None.

    A product with the mask would not do: 0·∞ is NaN.  Axes that x has beyond those of `kept` are
    the entries of a row.
    """
    if kept is None:
        return x
    return jnp.where(jnp.expand_dims(kept, range(kept.ndim, x.ndim)), x, 0)


def zero_or_nan(valid: Bool[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """Return 0 where valid, else NaN, as 0/0.

    A constant NaN would itself be what `jax.debug_nans` finds, op by op, where nothing is invalid.
    """
    return 0 / valid.astype(dtype)


def nan_unless(valid: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Select x where valid and NaN elsewhere."""
    return jnp.where(valid, x, zero_or_nan(valid, x.dtype))


def propagate_nan(*terms: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return NaN where one of the terms is NaN, else 0, to be added to their weighted sum.

    A zero weight selects 0 even against NaN, but the gradient of an invalid term stays NaN under
    it, and the loss must not hide that.
    """
    out = jnp.zeros_like(terms[0])
    for x in terms:
        out = nan_unless(~jnp.isnan(x), out)
    return out


def clip_infinite(
    x: Float[Array, "*s"], headroom: float = 1.0, *, straight_through: bool = False
) -> Float[Array, "*s"]:
    """Replace ±∞ by ± the largest number over `headroom`, so that 0 times it is 0, not NaN.

    Up to `headroom` such numbers can be added without overflow.  The derivative at ±∞ is 0, or 1
    if `straight_through`.
    """
    return _clip_straight_through(headroom, x) if straight_through else _clip(headroom, x)


def _clip(headroom: float, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    largest = float(jnp.finfo(x.dtype).max) / headroom
    return jnp.where(jnp.isinf(x), jnp.sign(x) * largest, x)


_clip_straight_through = jax.custom_jvp(_clip, nondiff_argnums=(0,))


@_clip_straight_through.defjvp
def _clip_straight_through_jvp(headroom, primals, tangents):
    return _clip_straight_through(headroom, *primals), tangents[0]


def finite_at_zero(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Replace ±∞ by the largest number and NaN by 0 where w = 0: w·x is then 0, not NaN."""
    return jnp.where(w == 0, _clip(1.0, jnp.where(jnp.isnan(x), 0, x)), x)


@jax.custom_jvp
def multiply_no_nan(w: Float[Array, "*#s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Multiply, with 0·x = 0 for every x, ∞ and NaN included."""
    return w * finite_at_zero(w, x)


def _multiply_no_nan_jvp(primals, tangents):
    """Differentiate w·x as JAX would, but save w and x alone."""
    w, x = primals
    w_dot, x_dot = tangents
    out = multiply_no_nan(w, x)
    out_dot = jnp.zeros_like(out)
    if not isinstance(x_dot, SymbolicZero):
        out_dot = w * x_dot
    if not isinstance(w_dot, SymbolicZero):
        out_dot = out_dot + w_dot * finite_at_zero(w, x)
    return out, out_dot


multiply_no_nan.defjvp(_multiply_no_nan_jvp, symbolic_zeros=True)
