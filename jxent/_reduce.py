"""Rows → number.

    "none"  the rows        "sum"  Σ rows        "mean"  Σ rows / Σ weights, 0 where that is 0/0

With mesh axes both sums run over the devices too, so that every device has the mean of the whole
batch and not a mean of means.  A `normalizer` takes the place of Σ weights.
"""

import jax
import jax.numpy as jnp
from jax import lax

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
    total = _sum(rows, axis_name)
    if reduction == "sum":
        return total
    if normalizer is None:
        assert weights is not None
        denominator = _sum(weights, axis_name)
    else:
        denominator = normalizer.astype(total.dtype)
    empty = denominator == 0
    return jnp.where(empty, 0, total / jnp.where(empty, 1, denominator))


def _sum(x: PerRow, axis_name: AxisNames | None) -> Scalar:
    total = jnp.sum(x)
    return total if axis_name is None else lax.psum(total, axis_name)
