"""A weighted mean whose sums grow over batches, scans and devices, and are divided at the end.

mean = Σ w x / Σ w        each sum in two floats, see `_core.compensated`
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jxent import _check
from jxent._core import compensated
from jxent._core.compensated import Sum
from jxent._core.safe_math import multiply_no_nan
from jxent._typing import ArrayLike, AxisNames


@_check.made_by("empty()", "of(values)")
class Average(NamedTuple):
    """A weighted mean in the making: Σ w x and Σ w, each with what rounding took from it.

    A pytree for `jit`, `lax.scan` and `jax.shard_map`. Begin with `empty` or `of`, or continue
    known sums with `Average(total, weight)`.

    Args:
      total: Σ w x, any shape.
      weight: Σ w, the same shape, or one number for all.
      total_rest, weight_rest: the rounding errors of the two sums.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.metrics import Average
      >>> average = Average.empty()
      >>> for batch in (jnp.array([1.0, 2.0]), jnp.array([6.0])):
      ...     average = average.update(batch)
      >>> print(average.mean())
      3.0

    References:
      Neumaier, Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen, 1974.
    """

    total: Any
    weight: Any
    total_rest: Any = 0.0
    weight_rest: Any = 0.0

    @classmethod
    @_check.arguments
    def empty(cls, dtype: Any = jnp.float32) -> "Average":
        """Begin with no values, in float32 or float64; the mean of none is NaN."""
        return zero_average(_check.sums_dtype("Average.empty", dtype))

    @classmethod
    @_check.arguments
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> "Average":
        """Average all values of an array; a weight of 0 drops its value, whatever that is."""
        _check.numeric("Average.of", "values", values, jnp.bool_)
        x = _check.as_floats(values)
        w = _check.weights("Average.of", "weights", weights, x.shape)
        return _weighted_average(x, w)

    @_check.arguments
    def update(self, values: ArrayLike, weights: ArrayLike | None = None) -> "Average":
        """Add the values of an array, as `of` takes them."""
        return self.merge(Average.of(values, weights))

    def merge(self, other: "Average") -> "Average":
        """Add the sums of another average."""
        total, weight = map(compensated.add, self.sums(), other.sums())
        return average_of_sums(total, weight)

    def psum(self, axis_name: AxisNames) -> "Average":
        """Add up the sums of all devices along these mesh axes, inside `jax.shard_map`."""
        total, weight = (compensated.psum(s, axis_name) for s in self.sums())
        return average_of_sums(total, weight)

    def mean(self) -> jax.Array:
        """Divide Σ w x by Σ w; 0/0 is NaN."""
        total, weight = self.sums()
        return total.rounded() / weight.rounded()

    def poisoned(self, poison: jax.Array) -> "Average":
        """Add NaN, or 0, to both sums: NaN makes the mean NaN for good."""
        return self._replace(total=self.total + poison, weight=self.weight + poison)

    def sums(self) -> tuple[Sum, Sum]:
        """Return Σ w x and Σ w, each in two floats."""
        given = (jnp.asarray(x).dtype for x in (self.total, self.weight))
        floats = (dtype for dtype in given if jnp.issubdtype(dtype, jnp.floating))
        dtype = reduce(np.promote_types, floats, np.dtype(np.float32))
        total, weight, *rests = (jnp.asarray(x).astype(dtype) for x in self)
        # The default rests are a plain 0 for all entries.
        total_rest, weight_rest = map(jnp.broadcast_to, rests, (total.shape, weight.shape))
        return Sum(total, total_rest), Sum(weight, weight_rest)


def zero_average(
    dtype: Any, shape: tuple[int, ...] = (), weight_shape: tuple[int, ...] = ()
) -> Average:
    """Make the average of no rows."""
    total, weight = jnp.zeros(shape, dtype), jnp.zeros(weight_shape, dtype)
    return Average(total, weight, total, weight)


def average_of_sums(total: Sum, weight: Sum) -> Average:
    """Make the average of two sums."""
    return Average(total.value, weight.value, total.rest, weight.rest)


@partial(jax.jit, inline=True)
def _weighted_average(x: Float[Array, "..."], w: Float[Array, "..."] | None) -> Average:
    dtype = np.promote_types(x.dtype, np.float32)
    w = jnp.ones(x.shape, dtype) if w is None else w.astype(dtype)
    terms = jnp.stack([multiply_no_nan(w, x.astype(dtype)).ravel(), w.ravel()], axis=-1)
    return average_of_sums(*compensated.unstack(compensated.sum_rows(terms)))
