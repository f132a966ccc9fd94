"""How sure a model is against how often it is right, in equal intervals of confidence.

    interval b of B:  (b/B, (b+1)/B]        error = Σ_b n_b/N |right_b − sure_b|

Source: Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks*, 2017.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

BINS = 15


class Bins(NamedTuple):
    """The intervals that are not empty: rows, mean confidence, share of right predictions."""

    rows: Integer[np.ndarray, " b"]
    sure: Float[np.ndarray, " b"]
    right: Float[np.ndarray, " b"]
    error: float


def calibration(
    confidence: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
    bins: int = BINS,
) -> Bins:
    """Confidences by interval, and the expected calibration error."""
    w = np.ones(len(confidence)) if weights is None else weights
    confidence, correct, w = confidence[w > 0], correct[w > 0], w[w > 0]
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    some = rows > 0
    weight = np.bincount(place, w, bins)[some]
    sure = np.bincount(place, w * confidence, bins)[some] / weight
    right = np.bincount(place, w * correct, bins)[some] / weight
    error = float(np.sum(weight * np.abs(right - sure)) / np.sum(w))
    return Bins(rows[some], sure, right, error)
