"""Calibration: of the predictions with confidence p, a share p should be right.

curve: in each bin of confidence, Σ w confidence / Σ w against Σ w hit / Σ w
error = Σ_bins |Σ w hit − Σ w confidence| / Σ w
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jxent import _check, _plot
from jxent._core import compensated
from jxent._core.compensated import Sum, unstack
from jxent._core.safe_math import multiply_no_nan
from jxent.metrics.average import Average, average_of_sums
from jxent.metrics.debug_flags import without_debug_checks

BINS = 15  # by default


class Reliability(NamedTuple):
    """Confidence and accuracy of the predictions in each bin of confidence.

    Args:
      edges: `[B + 1]`; bin b is (edges[b], edges[b + 1]].
      weight: `[B]`, Σ w of its rows.
      confidence: `[B]`, their mean probability; NaN where there are none.
      accuracy: `[B]`, how often they were right; NaN where there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> curve = metrics.reliability_curve(logits, jnp.array([0, 1, 1]), bins=2)
      >>> print(f"{curve.confidence[1]:.2f} {curve.accuracy[1]:.2f}")
      0.80 0.67

    References:
      DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983; the intervals:
      Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """

    edges: Array
    weight: Array
    confidence: Array
    accuracy: Array

    @property
    def error(self) -> Array:
        """The calibration error, Σ_bins weight |accuracy − confidence| / Σ weight."""
        any_rows = self.weight > 0
        accuracy, confidence = (jnp.where(any_rows, x, 0) for x in (self.accuracy, self.confidence))
        return jnp.sum(self.weight * jnp.abs(accuracy - confidence)) / jnp.sum(self.weight)

    def plot(self, ax: Any = None, *, label: str | None = None, rows: Any = None) -> Any:
        """Draw the diagram with matplotlib and return its axes; models may share them.

        A calibrated model is on the diagonal. The bars are Wilson's 95 % intervals for as many
        rows as a bin weighs; where rows have weights, give the number of rows a bin as `rows`.
        """
        with _check.needed("Reliability.plot", "matplotlib"):
            return _plot.reliability(
                *(np.asarray(x) for x in (self.confidence, self.accuracy)),
                rows=np.asarray(self.weight if rows is None else rows),
                error=float(self.error),
                label=label,
                ax=ax,
            )


def average_in_bins(
    w: Float[Array, "N *V"], confidence: Float[Array, "N *V"], hit: Float[Array, "N *V"], bins: int
) -> tuple[Average, Average]:
    """Average confidence and hits in each bin (b/B, (b + 1)/B], `[B]`, or `[V, B]` of V columns."""
    columns = confidence.shape[1:]
    edges = jnp.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1]
    above = confidence[..., None] > jnp.expand_dims(edges, range(confidence.ndim))
    first_bin = bins * jnp.arange(math.prod(columns), dtype=jnp.int32).reshape(columns)
    bin_of = first_bin[None] + jnp.sum(above, axis=-1, dtype=jnp.int32)
    terms = (multiply_no_nan(w, confidence), multiply_no_nan(w, hit), w)
    sums = compensated.segment_sum(
        jnp.stack([term.ravel() for term in terms], axis=-1), bin_of.ravel(), first_bin.size * bins
    )
    confidences, hits, weight = (
        Sum(*(x.reshape(*columns, bins) for x in term)) for term in unstack(sums)
    )
    return average_of_sums(confidences, weight), average_of_sums(hits, weight)


def reliability_of_bins(confidence: Average, hit: Average) -> Reliability:
    """Divide the sums of each bin; NaN where it is empty, which no debugging flag is to report."""
    with without_debug_checks():
        return _reliability_of_bins(confidence, hit)


def _reliability_of_bins(confidence: Average, hit: Average) -> Reliability:
    bins = hit.total.shape[0]
    edges = jnp.linspace(0, 1, bins + 1, dtype=hit.total.dtype)
    return Reliability(edges, hit.sums()[1].rounded(), confidence.mean(), hit.mean())
