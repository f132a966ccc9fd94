"""Whether a prediction held to be right with probability p is right p of the time.

curve: in each bin of confidence, Σ w confidence / Σ w against Σ w hit / Σ w
error = Σ_bins |Σ w hit − Σ w confidence| / Σ w
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jxent import _check, _plot
from jxent._core import compensated
from jxent._core.compensated import columns
from jxent._core.safe_math import multiply_no_nan
from jxent.metrics.average import Average, averaged


class Reliability(NamedTuple):
    """How often predictions of each confidence are right: one entry for each bin.

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
        """Σ_bins weight |accuracy − confidence| / Σ weight, the calibration error."""
        gap = jnp.where(self.weight > 0, jnp.abs(self.accuracy - self.confidence), 0)
        return jnp.sum(self.weight * gap) / jnp.sum(self.weight)

    def plot(self, ax: Any = None, *, label: str | None = None, rows: Any = None) -> Any:
        """Draw the diagram with matplotlib and return its axes; models may share them.

        On the diagonal a model knows how much it knows. The bars are Wilson's 95 % intervals, of
        as many rows as a bin weighs; of weighted rows say in `rows` how many there are in each.
        """
        with _check.needed("Reliability.plot", "matplotlib"):
            return _plot.reliability(
                *(np.asarray(x) for x in (self.confidence, self.accuracy)),
                rows=np.asarray(self.weight if rows is None else rows),
                error=float(self.error),
                label=label,
                ax=ax,
            )


def of_bins(
    w: Float[Array, " N"], confidence: Float[Array, " N"], hit: Float[Array, " N"], bins: int
) -> tuple[Average, Average]:
    """Confidence and hits of the rows in each bin (b/B, (b + 1)/B]."""
    edges = jnp.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1]
    bin_of = jnp.sum(confidence[:, None] > edges[None], axis=-1, dtype=jnp.int32)
    each = jnp.stack([multiply_no_nan(w, confidence), multiply_no_nan(w, hit), w], axis=-1)
    confidences, hits, weight = columns(compensated.by_segment(each, bin_of, bins))
    return averaged(confidences, weight), averaged(hits, weight)


def curve(confidence: Average, hit: Average) -> Reliability:
    """The curve that the bins come to."""
    bins = hit.total.shape[0]
    edges = jnp.linspace(0, 1, bins + 1, dtype=hit.total.dtype)
    return Reliability(edges, hit.weight + hit.weight_rest, confidence.mean(), hit.mean())
