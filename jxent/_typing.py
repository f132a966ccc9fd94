"""The words: array aliases of the glossary (N rows, V classes, D features).

`*n` stands for any leading dimensions, one row each.  Inside jxent a `Logits` is an array; what a
person may pass (lists, NumPy arrays) is `ArrayLike`.
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
PerRow = Float[Array, "*n"]
Scalar = Float[Array, ""]

# A wrapped function's parameters and result.
P = ParamSpec("P")
R = TypeVar("R")
