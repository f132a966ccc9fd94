"""All metrics of multi-label data, any number of labels a row, from sums as in `classification`.

Of label v, with x its logit, p = σ(x), ŷ = [p > threshold], over the rows in which it is known:

    log loss = Σ w bce / Σ w                       Hamming loss = Σ w [ŷ ≠ y] / Σ w
    precision = Σ w y ŷ / Σ w ŷ                    recall = Σ w y ŷ / Σ w y
    F1 = 2 Σ w y ŷ / (Σ w y + Σ w ŷ)

"micro" sums over labels as well as rows, "macro" is the mean of the labels' F1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jxent import _check
from jxent._core import compensated
from jxent._core.compensated import unstack
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import multiply_no_nan, nan_unless, zero_or_nan
from jxent._losses.sigmoid import sigmoid_binary_cross_entropy
from jxent._typing import ArrayLike, Logits, PerRow
from jxent.metrics.average import Average, average_of_sums, zero_average
from jxent.metrics.base import MetricSums, add_batch, text_table
from jxent.metrics.calibration import BINS, Reliability, average_in_bins, reliability_of_bins
from jxent.metrics.debug_flags import without_debug_checks

THRESHOLD = 0.5


class MultiLabelSummary(NamedTuple):
    """The metrics computed from the sums of `MultiLabelMetrics`; `str` is a table.

    An F1 (precision, recall) that is 0/0, of a label that is nowhere true or predicted, is NaN, and
    the macro F1 is the mean of the others.

    Args:
      weight: Σ w over all known labels, their number where rows have no weights.
      log_loss: nats a label.
      hamming_loss: the share of labels that are wrong.
      subset_accuracy: the share of rows whose known labels are all right.
      micro_precision: of what is predicted, the share that is true.
      micro_recall: of what is true, the share that is predicted.
      micro_f1: their harmonic mean.
      macro_f1: the mean of `label_f1`.
      expected_calibration_error: between 0 and 1, of the probability of a yes.
      label_weight: `[V]`, Σ w of the rows in which each label is known.
      label_share: `[V]`, how often it is true.
      label_log_loss: `[V]`, nats.
      label_precision: `[V]`.
      label_recall: `[V]`.
      label_f1: `[V]`.
      label_calibration_error: `[V]`.
      reliability: of all labels together, how often a yes of each probability is true.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.metrics import MultiLabelMetrics
      >>> logits = jnp.array([[2.0, -1.0, 0.5], [-3.0, 1.0, 0.5]])
      >>> labels = jnp.array([[1, 0, 1], [0, 0, 1]])
      >>> print(MultiLabelMetrics.empty(3).update(logits, labels).summary())
      labels                          6
      log loss                   0.4584  nats
      Hamming loss               16.67%
      subset accuracy            50.00%
      micro precision            75.00%
      micro recall              100.00%
      micro F1                   0.8571
      macro F1                   0.6667
      calibration error          0.3203

    References:
      Tsoumakas, Katakis and Vlahavas, Mining Multi-label Data, 2010.
    """

    weight: Array
    log_loss: Array
    hamming_loss: Array
    subset_accuracy: Array
    micro_precision: Array
    micro_recall: Array
    micro_f1: Array
    macro_f1: Array
    expected_calibration_error: Array
    label_weight: Array
    label_share: Array
    label_log_loss: Array
    label_precision: Array
    label_recall: Array
    label_f1: Array
    label_calibration_error: Array
    reliability: Reliability

    def __str__(self) -> str:
        """Print the scalars."""
        return text_table(
            ("labels", self.weight, ",.10g", ""),
            ("log loss", self.log_loss, ".4f", "nats"),
            ("Hamming loss", self.hamming_loss, ".2%", ""),
            ("subset accuracy", self.subset_accuracy, ".2%", ""),
            ("micro precision", self.micro_precision, ".2%", ""),
            ("micro recall", self.micro_recall, ".2%", ""),
            ("micro F1", self.micro_f1, ".4f", ""),
            ("macro F1", self.macro_f1, ".4f", ""),
            ("calibration error", self.expected_calibration_error, ".4f", ""),
        )


@_check.made_by("empty(classes)")
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MultiLabelMetrics(MetricSums):
    """Sums over batches of logits and labels `[*n, V]`, from which `MultiLabelSummary` is computed.

    Used as `ClassificationMetrics` is: a pytree of fixed size for `jit`, `lax.scan` and
    `jax.shard_map`.

    Args:
      loss: `[V]`, nats of each label, an `Average`, as are all others.
      wrong: `[V]`, whether ŷ ≠ y.
      true: `[V]`, y.
      predicted: `[V]`, ŷ.
      both: `[V]`, y ŷ.
      subset: whether all known labels of a row are right.
      bin_confidence: `[V, B]`, p of the labels in each bin of p.
      bin_true: `[V, B]`, how often they are true.
      threshold: a probability above it is a yes, static.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.metrics import MultiLabelMetrics
      >>> logits = jnp.array([[2.0, -1.0, 0.5], [-3.0, 1.0, 0.5]])
      >>> labels = jnp.array([[1, 0, 1], [0, -1, -1]])  # −1: unknown
      >>> metrics = MultiLabelMetrics.empty(3)
      >>> for rows in (slice(0, 1), slice(1, 2)):
      ...     known = labels[rows] >= 0
      ...     metrics = metrics.update(logits[rows], labels[rows], where=known)
      >>> summary = metrics.summary()
      >>> print(f"{summary.weight:.0f} labels, {summary.hamming_loss:.0%} wrong")
      4 labels, 0% wrong

    References:
      Tsoumakas, Katakis and Vlahavas, Mining Multi-label Data, 2010.
    """

    loss: Average
    wrong: Average
    true: Average
    predicted: Average
    both: Average
    subset: Average
    bin_confidence: Average
    bin_true: Average
    threshold: float = field(metadata={"static": True})

    @classmethod
    @_check.arguments
    def empty(
        cls,
        classes: int,
        *,
        threshold: float = THRESHOLD,
        bins: int = BINS,
        dtype: Any = jnp.float32,
    ) -> "MultiLabelMetrics":
        """Begin with no rows.

        Args:
          classes: V.
          threshold: a probability above it is a yes, between 0 and 1.
          bins: of equal width in the probability of a yes, for calibration.
          dtype: of the sums, float32 or float64; each is kept in two numbers of it.
        """
        fn = "MultiLabelMetrics.empty"
        classes = _check.whole(fn, "classes", classes, 1)
        bins = _check.whole(fn, "bins", bins, 1)
        sums_dtype = _check.sums_dtype(fn, dtype)

        def zero(*shape: int) -> Average:
            return zero_average(sums_dtype, shape, shape)

        return cls(
            loss=zero(classes),
            wrong=zero(classes),
            true=zero(classes),
            predicted=zero(classes),
            both=zero(classes),
            subset=zero(),
            bin_confidence=zero(classes, bins),
            bin_true=zero(classes, bins),
            threshold=_check.strictly_between(fn, "threshold", threshold),
        )

    @_check.arguments
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        row_weights: ArrayLike | None = None,
    ) -> "MultiLabelMetrics":
        """Add a batch of rows.

        Args:
          logits: `[*n, V]`, floating point, log-odds of each label; ±∞ is sure.
          labels: `[*n, V]`, 0 or 1: booleans, integers or floats.
          where: boolean, `[*n, V]` to keep the labels that are known, or `[*n]` to keep rows.
          row_weights: `[*n]`.

        Raises:
          ValueError: another number of labels, other shapes, a concrete label that is not 0 or 1.
          TypeError: logits that are not floating point.
        """
        fn = "MultiLabelMetrics.update"
        z, y, known, w = check_labelled_rows(fn, logits, labels, where, row_weights)
        _check.same_classes(fn, z, self.loss.total.shape[0])
        return add_labelled_rows(self, z, y, known, w)

    def summary(self) -> MultiLabelSummary:
        """Compute the metrics, also inside `jit`."""
        with without_debug_checks():  # what was not counted is NaN
            return _summarize_labels(self)

    def _options(self) -> dict[str, Any]:
        classes, bins = self.bin_true.total.shape
        return {
            "classes": classes,
            "bins": bins,
            "threshold": self.threshold,
            "dtype": jnp.dtype(self.loss.total.dtype).name,
        }


@partial(jax.jit, inline=True)
def _summarize_labels(m: MultiLabelMetrics) -> MultiLabelSummary:
    loss = _sum_over_labels(m.loss)
    f1 = _f1(m.both, m.true, m.predicted)
    both, true, predicted = map(_sum_over_labels, (m.both, m.true, m.predicted))
    reliability = reliability_of_bins(
        _sum_over_labels(m.bin_confidence), _sum_over_labels(m.bin_true)
    )
    return MultiLabelSummary(
        weight=loss.sums()[1].rounded(),
        log_loss=loss.mean(),
        hamming_loss=_sum_over_labels(m.wrong).mean(),
        subset_accuracy=m.subset.mean(),
        micro_precision=_quotient(both, predicted),
        micro_recall=_quotient(both, true),
        micro_f1=_f1(both, true, predicted),
        macro_f1=_macro_f1(f1, m.loss),
        expected_calibration_error=reliability.error,
        label_weight=m.loss.sums()[1].rounded(),
        label_share=m.true.mean(),
        label_log_loss=m.loss.mean(),
        label_precision=_quotient(m.both, m.predicted),
        label_recall=_quotient(m.both, m.true),
        label_f1=f1,
        label_calibration_error=jax.vmap(lambda p, true: reliability_of_bins(p, true).error)(
            m.bin_confidence, m.bin_true
        ),
        reliability=reliability,
    )


def _quotient(a: Average, b: Average) -> Array:
    """Divide Σ w a by Σ w b."""
    return a.sums()[0].rounded() / b.sums()[0].rounded()


def _f1(both: Average, true: Average, predicted: Average) -> Array:
    """Compute 2 Σ w y ŷ / (Σ w y + Σ w ŷ)."""
    denominator = compensated.add(true.sums()[0], predicted.sums()[0])
    return 2 * both.sums()[0].rounded() / denominator.rounded()


def _macro_f1(f1: Float[Array, "V"], loss: Average) -> Array:
    """Average the labels' F1 that are not 0/0; NaN if a row is invalid."""
    known = ~jnp.isnan(f1)
    mean = jnp.sum(jnp.where(known, f1, 0)) / jnp.sum(known, dtype=f1.dtype)
    return nan_unless(~jnp.any(jnp.isnan(loss.weight)), mean)


def _sum_over_labels(a: Average) -> Average:
    """Sum an average over its first axis, the labels."""
    total, weight = (
        compensated.add(compensated.sum_rows(s.value), compensated.sum_rows(s.rest))
        for s in a.sums()
    )
    return average_of_sums(total, weight)


def check_labelled_rows(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    row_weights: ArrayLike | None,
) -> tuple[Logits, Shaped[Array, "*n V"], Bool[Array, "..."] | None, PerRow | None]:
    """Check the arguments; return logits, labels, which of them are known and the row weights."""
    z = _check.logits(fn, logits)
    kept = _check.entries_kept(fn, where, z.shape)
    y = _check_labels(fn, labels, z.shape, kept)
    return z, y, kept, _check.weights(fn, "row_weights", row_weights, z.shape[:-1])


def _check_labels(
    fn: str, x: ArrayLike, shape: tuple[int, ...], kept: Bool[Array, "..."] | None
) -> Shaped[Array, "..."]:
    """Check labels of the logits' shape, each 0 or 1 where kept."""
    if not _check.has_dtype(x, jnp.bool_, jnp.integer, jnp.floating):
        raise TypeError(
            f"{fn}: `labels` must be booleans, integers or floats, got {_check.describe(x)}"
        )
    if _check.shape_of(x) != shape:
        raise ValueError(
            f"{fn}: `labels` must say 0 or 1 of each label, shape {list(shape)}, got "
            f"{_check.describe(x)}"
        )
    must = "is neither 0 nor 1; leave unknown labels out with where="
    _check.every_entry(fn, "labels", x, lambda v: (v == 0) | (v == 1), must, kept)
    return jnp.asarray(x)


@partial(jax.jit, inline=True)
def add_labelled_rows(
    metrics: MultiLabelMetrics,
    z: Logits,
    y: Shaped[Array, "*n V"],
    kept: Bool[Array, "..."] | None,
    row_weights: PerRow | None,
) -> MultiLabelMetrics:
    """Add a batch of checked arguments to the sums."""
    dtype, (classes, bins) = metrics.loss.total.dtype, metrics.bin_true.total.shape
    known = jnp.broadcast_to(True if kept is None else kept, z.shape).reshape(-1, classes)
    z, y = z.reshape(-1, classes), y.reshape(-1, classes)
    y = y.astype(jnp.int32) if y.dtype == bool else y
    w = jnp.ones(z.shape[0], dtype) if row_weights is None else row_weights.ravel().astype(dtype)
    known = known & (w != 0)[:, None]  # a row of weight 0 contributes nothing, whatever it holds
    invalid = known & ~(~jnp.isnan(z) & ((y == 0) | (y == 1)) & ~jnp.isnan(w)[:, None])
    nan_if_invalid = zero_or_nan(~jnp.any(invalid), dtype)

    true = known & (y == 1)
    z = jnp.where(known & ~invalid, z.astype(loss_dtype(z.dtype)), 0)
    t = metrics.threshold
    predicted = known & (z > math.log(t) - math.log1p(-t))
    wrong = true != predicted
    label_w = jnp.where(known, w[:, None], 0)
    nats = jnp.where(known, sigmoid_binary_cross_entropy(z, true), 0).astype(dtype)
    terms = (nats, *(a.astype(dtype) for a in (wrong, true, predicted, true & predicted)))
    weighted = jnp.stack([*(multiply_no_nan(label_w, a) for a in terms), label_w], axis=-1)
    *totals, weight = unstack(compensated.sum_rows(weighted))
    loss, wrongs, trues, predictions, both = (average_of_sums(total, weight) for total in totals)

    row_w = jnp.where(jnp.any(known, axis=-1), w, 0)
    right = ~jnp.any(wrong, axis=-1)
    subset = jnp.stack([multiply_no_nan(row_w, right.astype(dtype)), row_w], axis=-1)

    p = jax.nn.sigmoid(z).astype(dtype)
    bin_confidence, bin_true = average_in_bins(label_w, p, true.astype(dtype), bins)
    batch = MultiLabelMetrics(
        loss=loss,
        wrong=wrongs,
        true=trues,
        predicted=predictions,
        both=both,
        subset=average_of_sums(*unstack(compensated.sum_rows(subset))),
        bin_confidence=bin_confidence,
        bin_true=bin_true,
        threshold=metrics.threshold,
    )
    return add_batch(metrics, batch, nan_if_invalid)
