"""Names for array types: N rows, V classes, D features.

`*n` stands for any leading dimensions, one row each.  Public functions take `ArrayLike` (lists and
NumPy arrays too); the checks make arrays of them, and inside jxent `Logits` is always an array.
"""

from collections.abc import Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import jax
from jaxtyping import Array, Bool, Float, Integer

ArrayLike = jax.typing.ArrayLike | Sequence[Any]
ReductionKind = Literal["mean", "sum", "none"]
Axes = int | tuple[int, ...] | None
AxisNames = str | tuple[str, ...]

Logits = Float[Array, "*n V"]
Labels = Integer[Array, "*n"]
Distribution = Float[Array, "*n V"]
Targets = Labels | Distribution
ClassWeights = Float[Array, "V"]
RowMask = Bool[Array, "*n"]
ClassMask = Bool[Array, "*n V"]
SharedClassMask = Bool[Array, "V"]  # one for all rows
PerRow = Float[Array, "*n"]
PerEntry = Float[Array, "*s"]  # one number for each logit, or for each class of each row
Scalar = Float[Array, ""]

Tangents = tuple[Any, ...]  # of a JVP rule: all primals, or all tangents

# A wrapped function's parameters and result.
P = ParamSpec("P")
R = TypeVar("R")
