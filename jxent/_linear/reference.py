"""Stored logits: plain `cross_entropy(hidden @ head + bias)`, in every mode of JAX.

What the other implementations are tested against.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from jxent._core.row_terms import invalid_rows, rematerialized, row_terms
from jxent._core.safe_math import zero_unless
from jxent._core.targets import is_labels
from jxent._core.weighting import combine_terms
from jxent._linear.projection import Static, project
from jxent._linear.row_loss import CrossEntropyRows, Masks, Operands, mask_each_row
from jxent._typing import ClassMask, Labels, PerRow, RowMask, Targets


def reference_losses(
    loss: CrossEntropyRows,
    static: Static,
    operands: Operands,
    labels: Labels | None,
    masks: Masks,
) -> PerRow:
    """Compute each row's loss."""
    (p,), c, by, distribution = operands
    targets = labels if distribution is None else distribution
    assert targets is not None
    z = project(static, replace(p, hidden=zero_unless(masks.rows, p.hidden)))
    mask = mask_each_row(masks.classes, z)
    # An invalid row that weighs nothing is dropped: in every mode of JAX 0·NaN would come back.
    kept = _valid_rows(targets, mask)
    for coefficient in jax.tree.leaves(by):
        kept = kept | (coefficient != 0)
    kept = kept if masks.rows is None else kept & masks.rows
    terms = rematerialized(partial(row_terms, loss.options))
    return combine_terms(loss.options, by, terms(z, targets, c, mask, kept))


def _valid_rows(targets: Targets, mask: ClassMask | None) -> RowMask:
    """Find rows whose targets are valid."""
    if is_labels(targets):
        valid = jnp.ones(targets.shape, bool)
    else:
        valid = jnp.all(jnp.isfinite(targets), axis=-1)
    invalid = invalid_rows(targets, mask)
    return valid if invalid is None else valid & ~invalid
