"""Rows → number.

    "none"  the rows        "sum"  Σ rows        "mean"  Σ rows / Σ weights, 0 where that is 0/0

With mesh axes both sums run over the devices too, so that every device has the mean of the whole
batch and not a mean of means.  A `normalizer` takes the place of Σ weights.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jxent._typing import AxisNames, PerRow, Reduction, Scalar


def reduce(
    rows: PerRow,
    weights: PerRow | None,
    *,
    reduction: Reduction,
    normalizer: Scalar | None,
    axis_name: AxisNames | None,
) -> jax.Array:
    """The rows, their sum, or their weighted mean."""
    if reduction == "none":
        return rows
    total = over_devices(jnp.sum(rows), axis_name)
    if reduction == "sum":
        return total
    return divide(total, denominator(weights, normalizer, axis_name))


def denominator(
    weights: PerRow | None, normalizer: Scalar | None, axis_name: AxisNames | None
) -> Scalar:
    """What the mean divides by."""
    if normalizer is not None:
        return normalizer
    assert weights is not None
    return over_devices(jnp.sum(weights), axis_name)


def divide(x: Float[Array, "..."], by: Scalar) -> Float[Array, "..."]:
    """x / by, 0 where that is 0/0."""
    by = by.astype(x.dtype)
    empty = by == 0
    return jnp.where(empty, 0, x / jnp.where(empty, 1, by))


def over_devices(x: Scalar, axis_name: AxisNames | None) -> Scalar:
    """The sum over the devices of these mesh axes."""
    return x if axis_name is None else lax.psum(x, axis_name)
