"""A loss of rows of logits that projections make: its operands, and cross-entropy as one.

    loss(zs, shared, each, labels, kept, mask) → [n]        zs: the logits of each projection

What is differentiated travels as `Operands`; the loss itself is static.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from jxent._compat import shard_alike
from jxent._core.row_terms import TermOptions, training_row_terms
from jxent._core.weighting import Coefficients, Reduction, combine_terms
from jxent._linear.projection import Projection
from jxent._typing import (
    ClassMask,
    ClassWeights,
    Labels,
    Logits,
    PerRow,
    RowMask,
    SharedClassMask,
)

Zs = tuple[Logits, ...]


@runtime_checkable
class RowLoss(Protocol):
    """The loss of some rows, from the logits of each projection."""

    def __call__(
        self,
        zs: Zs,
        shared: Any,
        each: Any,
        labels: Any,
        kept: RowMask | None,
        mask: ClassMask | None,
        /,
    ) -> PerRow:
        """Compute each row's loss."""


class Masks(NamedTuple):
    """Which rows are kept, and which classes in all of them; None: all."""

    rows: RowMask | None
    classes: SharedClassMask | None


def mask_each_row(mask: SharedClassMask | None, z: Logits) -> ClassMask | None:
    """Broadcast a mask of classes to the rows of z."""
    return None if mask is None else shard_alike(jnp.broadcast_to(mask, z.shape), z)


class Operands(NamedTuple):
    """What is differentiated: projections, numbers for all rows, and numbers of each row."""

    projections: tuple[Projection, ...]
    shared: Any
    each: Any


class RowReduction(NamedTuple):
    """How the rows' losses are reduced, and what each of them weighs."""

    reduction: Reduction
    weights: PerRow  # each row's share of the denominator of a mean
    may_be_zero: bool  # some coefficients may be 0


class CrossEntropyRows(NamedTuple):
    """Cross-entropy of rows: `shared` are class weights or None, `each` its coefficients."""

    options: TermOptions

    def __call__(
        self,
        zs: Zs,
        c: ClassWeights | None,
        by: Coefficients,
        y: Labels,
        kept: RowMask | None,
        mask: ClassMask | None,
    ) -> PerRow:
        """Compute each row's loss."""
        (z,) = zs
        return combine_terms(by, training_row_terms(self.options, z, y, c, mask, kept))
