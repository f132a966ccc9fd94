"""What saved predictions are worth: every row's loss, and the figures of a model.

    log loss −log p_y      Brier score Σ_v (p_v − [v = y])²      perplexity exp(mean log loss)

Source: Brier, *Verification of Forecasts Expressed in Terms of Probability*, 1950.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from jxent._calibration import calibration
from jxent._compat import enable_x64
from jxent.losses import cross_entropy


class Score(NamedTuple):
    """A model's losses [N] in nats, how sure and whether right it was, and the weighted means.

    `impossible` are the rows that count in which it gave probability 0 to what happened.
    """

    rows: Float[np.ndarray, " N"]
    confidence: Float[np.ndarray, " N"]
    correct: Bool[np.ndarray, " N"]
    log_loss: float
    accuracy: float
    perplexity: float
    brier_score: float
    calibration_error: float
    impossible: Integer[np.ndarray, " n"]


def score(
    logits: Float[np.ndarray, "N V"],
    labels: Integer[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
) -> Score:
    """The figures of one model, in float64."""
    w = np.ones(len(labels)) if weights is None else weights
    kept = w > 0
    with enable_x64():
        rows = np.asarray(cross_entropy(logits, labels, reduction="none"))
    p = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    p /= np.sum(p, axis=1, keepdims=True)
    correct = np.argmax(logits, axis=1) == labels
    confidence = np.max(p, axis=1)
    p[np.arange(len(labels)), labels] -= 1

    def mean(x: np.ndarray) -> float:
        return float(np.average(x[kept], weights=w[kept]))

    log_loss = mean(rows)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(log_loss))
    return Score(
        rows=rows,
        confidence=confidence,
        correct=correct,
        log_loss=log_loss,
        accuracy=mean(correct),
        perplexity=perplexity,
        brier_score=mean(np.sum(p**2, axis=1)),
        calibration_error=calibration(confidence, correct, w).error,
        impossible=np.flatnonzero(np.isinf(rows) & kept),
    )
