"""Score a model's predictions: every row's loss, and its figures, in float64."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jxent import metrics
from jxent._compat import enable_x64
from jxent._losses.cross_entropy import cross_entropy
from jxent.selection.comparison import Comparison

FIGURES = ("log_loss", "accuracy", "perplexity", "brier_score", "expected_calibration_error")


class Score(NamedTuple):
    """A model's losses [N] in nats and its figures.

    `bin_rows` counts the rows in each bin of `summary.reliability`; `impossible` are the rows in
    which the model gave probability 0 to the label.
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
    """Score one model."""
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


def figures_of(summary: metrics.Summary) -> dict[str, float]:
    """Return a model's figures by name, for JSON."""
    return {name: float(getattr(summary, name)) for name in FIGURES}


def format_figures(summary: metrics.Summary) -> tuple[str, ...]:
    """Format a model's figures but its log loss, for a table."""
    return (
        f"{summary.accuracy:.2%}",
        f"{summary.perplexity:.4f}",
        f"{summary.brier_score:.4f}",
        f"{summary.expected_calibration_error:.4f}",
    )


def draw_scores(
    panels: Sequence[Any], scores: dict[str, Score], comparison: Comparison | None
) -> None:
    """Draw the differences in the first panel, if there are any, the calibration in the last."""
    if comparison is not None:
        comparison.plot(ax=panels[0])
    for name, s in scores.items():
        s.summary.reliability.plot(panels[-1], label=name, rows=s.bin_rows)
