"""Stored logits: plain `cross_entropy(hidden @ head + bias)`, in every mode of JAX.

What the other implementations are tested against.
"""

from dataclasses import replace
from functools import partial

from jxent._core.row_terms import rematerialized, row_terms
from jxent._core.safe_math import zero_unless
from jxent._core.weighting import combine_terms
from jxent._linear.projection import Static, project
from jxent._linear.row_loss import CrossEntropyRows, Masks, Operands, mask_each_row
from jxent._typing import Labels, PerRow


def reference_losses(
    loss: CrossEntropyRows, static: Static, operands: Operands, labels: Labels, masks: Masks
) -> PerRow:
    """Compute each row's loss."""
    (p,), c, by = operands
    kept = masks.rows
    z = project(static, replace(p, hidden=zero_unless(kept, p.hidden)))
    terms = rematerialized(partial(row_terms, loss.options))
    return combine_terms(by, terms(z, labels, c, mask_each_row(masks.classes, z), kept))
