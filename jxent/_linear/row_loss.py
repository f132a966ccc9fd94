"""A loss of rows of logits that projections make: its operands, and cross-entropy as one.

    loss(zs, shared, each, targets, kept, mask) → [n]        zs: the logits of each projection

What is differentiated travels as `Operands`; the loss itself is static.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from jxent._compat import shard_alike
from jxent._core.row_terms import TermOptions, training_row_terms
from jxent._core.weighting import (
    Coefficients,
    Reduction,
    average_class_weight,
    combine_terms,
)
from jxent._linear.projection import Projection
from jxent._typing import (
    ClassMask,
    ClassWeights,
    Distribution,
    Logits,
    PerRow,
    RowMask,
    SharedClassMask,
    Targets,
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
        targets: Any,
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
    """What is differentiated: projections, numbers for all rows, numbers and targets of each row.

    Without a distribution the targets are labels, which are no operand.
    """

    projections: tuple[Projection, ...]
    shared: Any
    each: Any
    distribution: Distribution | None = None


class RowReduction(NamedTuple):
    """How the rows' losses are reduced, and what each of them weighs."""

    reduction: Reduction
    weights: PerRow  # each row's share of the denominator of a mean
    may_be_zero: bool  # some coefficients may be 0


class ClassWeightOfRows(NamedTuple):
    """The average class weight of distributions, a "loss" without logits; `shared` are c."""

    def __call__(
        self,
        zs: Zs,
        c: ClassWeights,
        each: None,
        t: Distribution,
        kept: RowMask | None,
        mask: ClassMask | None,
    ) -> PerRow:
        """Compute each row's Σ c t / Σ t."""
        return average_class_weight(c, t, kept, mask)


class CrossEntropyRows(NamedTuple):
    """Cross-entropy of rows: `shared` are class weights or None, `each` its coefficients."""

    options: TermOptions

    def __call__(
        self,
        zs: Zs,
        c: ClassWeights | None,
        by: Coefficients,
        targets: Targets,
        kept: RowMask | None,
        mask: ClassMask | None,
    ) -> PerRow:
        """Compute each row's loss."""
        (z,) = zs
        terms = training_row_terms(self.options, z, targets, c, mask, kept)
        return combine_terms(self.options, by, terms)
