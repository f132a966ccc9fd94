"""A mean on its way: sums that go on over batches, scans and devices, divided at the end.

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
    """A mean on its way: Σ w x and Σ w, each with what rounding took from it.

    A pytree for `jit`, `lax.scan` and `jax.shard_map`. `Average(total, weight)` takes up known
    sums; mostly it is begun with `empty` or `of`.

    Args:
      total: Σ w x, any shape.
      weight: Σ w, the same shape, or one number for all.
      total_rest, weight_rest: what a float could not hold of them.

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
    @_check.keywords
    def empty(cls, dtype: Any = jnp.float32) -> "Average":
        """Nothing yet, in float32 or float64: the mean is NaN until something comes."""
        return nothing(_check.sums_dtype("Average.empty", dtype))

    @classmethod
    @_check.keywords
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> "Average":
        """All values of an array; a weight of 0 drops its value, whatever that is."""
        x = _check.entries("Average.of", "values", values)
        w = _check.weights("Average.of", "weights", weights, x.shape)
        return _average_of(x, w)

    @_check.keywords
    def update(self, values: ArrayLike, weights: ArrayLike | None = None) -> "Average":
        """These values as well."""
        return self.merge(Average.of(values, weights))

    def merge(self, other: "Average") -> "Average":
        """Both together."""
        return averaged(
            compensated.add(self.sums()[0], other.sums()[0]),
            compensated.add(self.sums()[1], other.sums()[1]),
        )

    def psum(self, axis_name: AxisNames) -> "Average":
        """All devices' of these mesh axes together, inside `jax.shard_map`."""
        total, weight = (compensated.over_devices(s, axis_name) for s in self.sums())
        return averaged(total, weight)

    def mean(self) -> jax.Array:
        """Σ w x / Σ w; 0/0 is NaN."""
        total, weight = self.sums()
        return (total.value + total.rest) / (weight.value + weight.rest)

    def poisoned(self, poison: jax.Array) -> "Average":
        """NaN if that is NaN, unchanged if it is 0."""
        return self._replace(total=self.total + poison, weight=self.weight + poison)

    def sums(self) -> tuple[Sum, Sum]:
        """Σ w x and Σ w, each in two floats."""
        given = (jnp.asarray(x).dtype for x in (self.total, self.weight))
        floats = (dtype for dtype in given if jnp.issubdtype(dtype, jnp.floating))
        dtype = reduce(np.promote_types, floats, np.dtype(np.float32))
        total, weight, *rests = (jnp.asarray(x).astype(dtype) for x in self)
        # Rests given as a plain 0 stand for all.
        total_rest, weight_rest = map(jnp.broadcast_to, rests, (total.shape, weight.shape))
        return Sum(total, total_rest), Sum(weight, weight_rest)


def nothing(dtype: Any, shape: tuple[int, ...] = (), weight_shape: tuple[int, ...] = ()) -> Average:
    """The average of no rows."""
    total, weight = jnp.zeros(shape, dtype), jnp.zeros(weight_shape, dtype)
    return Average(total, weight, total, weight)


def averaged(total: Sum, weight: Sum) -> Average:
    """The average of two sums."""
    return Average(total.value, weight.value, total.rest, weight.rest)


def on_each(fn: Any, *metrics: Any) -> Any:
    """fn on every `Average` of a pytree, as of the same one in the others."""
    return jax.tree.map(fn, *metrics, is_leaf=lambda x: isinstance(x, Average))


@partial(jax.jit, inline=True)
def _average_of(x: Float[Array, "..."], w: Float[Array, "..."] | None) -> Average:
    dtype = np.promote_types(x.dtype, np.float32)
    w = jnp.ones(x.shape, dtype) if w is None else w.astype(dtype)
    each = jnp.stack([multiply_no_nan(w, x.astype(dtype)).ravel(), w.ravel()], axis=-1)
    return averaged(*compensated.columns(compensated.down(each)))
