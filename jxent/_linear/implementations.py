"""The implementations of a loss of projected rows, and what all of them share.

    tokens      Σ_rows loss; gradients computed beside it, a chunk of rows at a time: 6·N·V·D flops
    vocab       each row's loss; logits computed again in the backward pass, a block of classes at a
                time: 8·N·V·D flops, least memory
    reference   each row's loss, from stored logits: what the others are tested against

A loss alone costs 2·N·V·D in each.  A new one is a file with a function
`(loss, static, operands, labels, masks) → losses` and an entry in `IMPLEMENTATIONS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jxent._compat import vary_alike
from jxent._core.targets import is_labels
from jxent._core.weighting import (
    RowInputs,
    class_weight,
    denominator,
    divide,
    is_empty,
    reduce,
    sum_over_devices,
)
from jxent._linear import chunked_rows, reference, vocab
from jxent._linear.projection import Projection, Static, keep_classes, pad_classes
from jxent._linear.row_loss import ClassWeightOfRows, Masks, Operands, RowLoss, RowReduction
from jxent._linear.tiling import default_tile_size
from jxent._typing import PerRow, SharedClassMask


class Implementation(NamedTuple):
    """One way to compute a loss of projected rows."""

    run: Callable[..., jax.Array]
    tiles: Literal["rows", "classes"] | None  # the axis of the logits that is tiled, if one is
    sums_rows: bool  # the result is Σ_rows loss, not each row's loss
    pads_classes: bool  # the head may have impossible classes more, for alignment

    def tile_size(self, rows: int, classes: int) -> int:
        """Choose how many rows or classes a tile has; 0 without tiles."""
        if self.tiles is None:
            return 0
        return default_tile_size(self.tiles, classes if self.tiles == "rows" else rows)

    def pad(
        self, p: Projection, mask: SharedClassMask | None, *, align: bool = True
    ) -> tuple[Projection, Bool[Array, "_"] | None]:
        """Exclude classes, and add impossible ones where the implementation takes them.

        Not with distributions (`align=False`): a copy of them, with those classes, would be larger
        than what tiling avoids.
        """
        p = keep_classes(p, mask)
        return pad_classes(p, mask) if align and self.pads_classes else (p, mask)


IMPLEMENTATIONS = {
    "tokens": Implementation(chunked_rows.sum_of_rows, "rows", sums_rows=True, pads_classes=True),
    "vocab": Implementation(vocab.vocab_losses, "classes", sums_rows=False, pads_classes=True),
    "reference": Implementation(
        reference.reference_losses, None, sums_rows=False, pads_classes=False
    ),
}
# Any loss row by row: linear distillation's, which no name is needed for.
EACH_ROW = Implementation(chunked_rows.each_row, "rows", sums_rows=False, pads_classes=True)


def class_weight_of_rows(rows: RowInputs) -> PerRow | None:
    """Compute `class_weight`, of distributions a chunk of rows at a time."""
    c, t = rows.class_weights, rows.targets
    if c is None or is_labels(t):
        return class_weight(rows)
    n, classes = math.prod(t.shape[:-1]), t.shape[-1]
    kept = None if rows.row_mask is None else rows.row_mask.ravel()
    c, t, kept, mask = vary_alike(c, t.reshape(n, classes), kept, rows.class_mask)
    static = Static(None, EACH_ROW.tile_size(n, classes))
    weights = EACH_ROW.run(
        ClassWeightOfRows(), static, Operands((), c, None, t), None, Masks(kept, mask)
    )
    return weights.reshape(rows.targets.shape[:-1])


def run(
    implementation: Implementation,
    static: Static,
    loss: RowLoss,
    operands: Operands,
    labels: Any,
    masks: Masks,
    row_reduction: RowReduction,
) -> jax.Array:
    """Compute a loss of projected rows [*n] and reduce it."""
    reduction, weights, may_be_zero = row_reduction
    shape = operands.projections[0].hidden.shape[:-1]
    each, kept = operands.each, masks.rows
    if implementation.sums_rows and reduction.kind == "mean":
        # Before the sum, not after it: a cotangent of 1 then leaves the gradients as they are.
        # But a normalizer of 0 divides the sum: where that is 0 too, so is the mean.
        by = denominator(weights, reduction)
        before = by if reduction.normalizer is None else jnp.where(by == 0, 1, by)
        each = jax.tree.map(functools.partial(divide, by=before, empty=before == 0), each)
    each, labels, kept = jax.tree.map(jnp.ravel, (each, labels, kept))
    projections = tuple(
        replace(p, hidden=p.hidden.reshape(math.prod(shape), p.hidden.shape[-1]))
        for p in operands.projections
    )
    if may_be_zero:
        # A row of weight 0 with ∞ in it is dropped: 0·∞ would be NaN in a head's gradient.
        active = (x != 0 for x in jax.tree.leaves(each))
        finite = (jnp.all(jnp.isfinite(p.hidden), axis=-1) for p in projections)
        counts = functools.reduce(jnp.logical_or, active) | functools.reduce(
            jnp.logical_and, finite
        )
        kept = counts if kept is None else kept & counts
    t = operands.distribution
    t = None if t is None else t.reshape(math.prod(shape), t.shape[-1])
    operands = Operands(projections, operands.shared, each, t)
    leaves, structure = jax.tree.flatten((operands, labels, Masks(kept, masks.classes)))
    operands, labels, masks = jax.tree.unflatten(structure, vary_alike(*leaves))
    losses = implementation.run(loss, static, operands, labels, masks)
    if implementation.sums_rows:
        total = sum_over_devices(losses, reduction)
        if reduction.normalizer is None:
            return total
        by = denominator(weights, reduction)
        return divide(total, jnp.where(by == 0, by, 1), empty=is_empty(total, by, reduction))
    return reduce(losses.reshape(shape), weights, reduction)
