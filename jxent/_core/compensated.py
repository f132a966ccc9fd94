"""Sums in two numbers: what a float holds of them, and what rounding took from it.

    a + b = s + e exactly,  s = fl(a + b),  e = (a − (s − b′)) + (b − b′),  b′ = s − a

Sums of float32 then keep about 48 bits, however many terms there are: a mean of ten million rows
is right to its last digits, and a count goes on past 2²⁴.  XLA changes no order of float additions,
so this survives `jit`.  An infinite sum stays infinite, NaN stays NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jxent._typing import AxisNames

Numbers = Float[Array, "..."]

# Terms added up one after the other in a segment before the sum takes two numbers.
_TOGETHER = 32
_LARGEST = 2**22  # numbers held while segments are summed


class Sum(NamedTuple):
    """value + rest."""

    value: Numbers
    rest: Numbers


def two_sum(a: Numbers, b: Numbers) -> Sum:
    """a + b, and what rounding takes from it; nothing from an infinite one."""
    s = a + b
    b_kept = s - a
    e = (a - (s - b_kept)) + (b - b_kept)
    return Sum(s, jnp.where(jnp.isfinite(s), e, 0))


def add(a: Sum, b: Sum) -> Sum:
    """The sum of two sums."""
    s, e = two_sum(a.value, b.value)
    return two_sum(s, e + (a.rest + b.rest))


def down(x: Float[Array, "N ..."]) -> Sum:
    """Σ over the first axis."""
    zero = jnp.zeros((), x.dtype)
    together = lambda a, b: tuple(add(Sum(*a), Sum(*b)))  # noqa: E731
    return Sum(*lax.reduce((x, jnp.zeros_like(x)), (zero, zero), together, (0,)))


def columns(a: Sum) -> tuple[Sum, ...]:
    """The sums along the last axis, one by one."""
    return tuple(Sum(a.value[..., i], a.rest[..., i]) for i in range(a.value.shape[-1]))


def by_segment(x: Float[Array, "N K"], segment: Int[Array, " N"], segments: int) -> Sum:
    """Σ over the rows of each segment, `[segments, K]`, few rows at a time."""
    rows, columns = x.shape
    groups = max(1, min(-(-rows // _TOGETHER), _LARGEST // (segments * columns)))
    group = jnp.arange(rows, dtype=jnp.int32) % groups
    part = jax.ops.segment_sum(x, group * segments + segment, groups * segments)
    return down(part.reshape(groups, segments, columns))


def over_devices(a: Sum, axis_name: AxisNames) -> Sum:
    """The sum over the devices of these mesh axes.

    psum alone would round.  So the leading digits, on a grid so coarse that any sum of them fits
    into a float, are summed apart from the others.
    """
    devices = lax.psum(1, axis_name)
    coarse = 4 * devices * lax.pmax(lax.stop_gradient(jnp.abs(a.value)), axis_name)
    coarse = jnp.where(jnp.isfinite(coarse), coarse, 0)
    leading = (a.value + coarse) - coarse
    other = jnp.where(jnp.isfinite(a.value), a.value - leading, 0) + a.rest
    return two_sum(lax.psum(leading, axis_name), lax.psum(other, axis_name))
