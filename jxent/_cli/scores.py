"""What saved predictions are worth: every row's loss, and the figures of a model, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jxent import metrics
from jxent._compat import enable_x64
from jxent._losses.cross_entropy import cross_entropy


class Score(NamedTuple):
    """A model's losses [N] in nats and its figures.

    `bin_rows` are the rows that count in each bin of `summary.reliability`; `impossible` those in
    which the model gave probability 0 to what happened.
    """

    rows: Float[np.ndarray, " N"]
    summary: metrics.Summary
    bin_rows: Float[np.ndarray, " B"]
    impossible: Integer[np.ndarray, " n"]


def score(
    logits: Float[np.ndarray, "N V"],
    labels: Integer[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
) -> Score:
    """The figures of one model."""
    kept = np.ones(len(labels), bool) if weights is None else weights > 0
    with enable_x64():
        z = jnp.asarray(logits)
        dtype = np.promote_types(z.dtype, np.float32)
        empty = metrics.ClassificationMetrics.empty(z.shape[-1], confusion=False, dtype=dtype)
        measured = empty.update(z, labels, where=kept, row_weights=weights)
        summary = jax.tree.map(np.asarray, measured.summary())
        rows = np.asarray(cross_entropy(z, labels, reduction="none"))
        bin_rows = np.asarray(metrics.reliability_curve(z, labels, where=kept).weight)
    return Score(rows, summary, bin_rows, np.flatnonzero(np.isinf(rows) & kept))
