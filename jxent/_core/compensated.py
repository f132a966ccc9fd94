"""Sums in two numbers: what a float holds of them, and what rounding took from it.

    a + b = s + e exactly,  s = fl(a + b),  e = (a − (s − b′)) + (b − b′),  b′ = s − a

Sums of float32 then keep about 48 bits, however many terms there are: a mean of ten million rows
is right to its last digits, and a count goes on past 2²⁴.  XLA changes no order of float additions,
so this survives `jit`.  An infinite sum stays infinite, NaN stays NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import core, lax
from jaxtyping import Array, Float, Int

from jxent._typing import AxisNames

_PLAIN_TERMS = 32  # added up in one float before a segment's sum takes two
_LARGEST = 2**22  # entries held while segments are summed


class Sum(NamedTuple):
    """value + rest."""

    value: Float[Array, "..."]
    rest: Float[Array, "..."]

    def rounded(self) -> Float[Array, "..."]:
        """Round the sum to one float."""
        return self.value + self.rest


def two_sum(a: Float[Array, "..."], b: Float[Array, "..."]) -> Sum:
    """Add two floats without error; the rest of an infinite sum is 0."""
    s = a + b
    b_kept = s - a
    e = (a - (s - b_kept)) + (b - b_kept)
    return Sum(s, jnp.where(jnp.isfinite(s), e, 0))


def add(a: Sum, b: Sum) -> Sum:
    """Add two sums."""
    s, e = two_sum(a.value, b.value)
    return two_sum(s, e + (a.rest + b.rest))


def sum_rows(x: Float[Array, "N ..."]) -> Sum:
    """Sum over the first axis."""
    zero = jnp.zeros((), x.dtype)
    both = lambda a, b: tuple(add(Sum(*a), Sum(*b)))  # noqa: E731
    return Sum(*lax.reduce((x, jnp.zeros_like(x)), (zero, zero), both, (0,)))


def segment_sum(x: Float[Array, "N K"], segment: Int[Array, " N"], segments: int) -> Sum:
    """Sum the rows of each segment, `[segments, K]`.

    Row i goes to group i mod `groups`.  A group's sums are plain floats, of few terms each where
    memory allows; only the sum over the groups is compensated.
    """
    rows, columns = x.shape
    # The dimensions' own min and max: `jax.export` may not know how many rows there are.
    most = max(1, _LARGEST // (segments * columns))
    groups = core.max_dim(1, core.min_dim(-(-rows // _PLAIN_TERMS), most))
    group = jnp.arange(rows, dtype=jnp.int32) % groups
    part = jax.ops.segment_sum(x, group * segments + segment, groups * segments)
    return sum_rows(part.reshape(groups, segments, columns))


def unstack(a: Sum) -> tuple[Sum, ...]:
    """Split sums along the last axis."""
    return tuple(Sum(a.value[..., i], a.rest[..., i]) for i in range(a.value.shape[-1]))


def psum(a: Sum, axis_name: AxisNames) -> Sum:
    """Add up the sums of all devices along these mesh axes.

    `lax.psum` alone would round.  So the leading digits, on a grid so coarse that any sum of them
    fits into a float, are summed apart from the others.
    """
    devices = lax.psum(1, axis_name)
    coarse = 4 * devices * lax.pmax(lax.stop_gradient(jnp.abs(a.value)), axis_name)
    coarse = jnp.where(jnp.isfinite(coarse), coarse, 0)
    leading = (a.value + coarse) - coarse
    other = jnp.where(jnp.isfinite(a.value), a.value - leading, 0) + a.rest
    return two_sum(lax.psum(leading, axis_name), lax.psum(other, axis_name))
