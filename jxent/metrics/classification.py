"""All metrics of a classifier at once, from sums over batches, scans and devices.

Each sum is kept in two floats (`_core.compensated`), and is divided and exponentiated once, at the
end.  The formulas are in `metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jxent import _check
from jxent._core import compensated, log_softmax
from jxent._core.compensated import Sum, unstack
from jxent._core.log_softmax import pin_half_precision
from jxent._core.safe_math import multiply_no_nan, zero_or_nan
from jxent._core.targets import at_label, is_label, kept_rows, narrow
from jxent._losses.cross_entropy import cross_entropy
from jxent._typing import ArrayLike, Labels, Logits, PerRow, RowMask, Scalar
from jxent.metrics.average import Average, average_of_sums, zero_average
from jxent.metrics.base import MetricSums, add_batch, text_table
from jxent.metrics.calibration import BINS, Reliability, average_in_bins, reliability_of_bins
from jxent.metrics.debug_flags import without_debug_checks

CONFUSION_UP_TO = 1000  # classes


class Summary(NamedTuple):
    """The metrics computed from the sums of `ClassificationMetrics`; `str` is a table.

    Args:
      weight: Σ w, the number of rows where they have no weights.
      log_loss: nats a row.
      perplexity: exp of it.
      bits_per_token: log loss in bits a row.
      bits_per_byte: over the rows whose bytes were counted.
      accuracy: the first of the most probable classes is the label.
      top_k: the k of `top_k_accuracy`.
      top_k_accuracy: `[K]`, the label is among the k most probable classes.
      brier_score: between 0 and 2, summed over classes.
      expected_calibration_error: between 0 and 1.
      class_weight: `[V]`, Σ w of each label's rows.
      class_cross_entropy: `[V]`, nats a row of that label.
      confusion: `[V, V]`, Σ w of label (row) against prediction (column); None if not kept.
      reliability: the curve that the calibration error sums up.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent.metrics import ClassificationMetrics
      >>> metrics = ClassificationMetrics.empty(3, top_k=(2,))
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(metrics.update(logits, jnp.array([0, 1])).summary())
      rows                            2
      log loss                   1.5755  nats
      perplexity                 4.8329
      bits per token             2.2729
      accuracy                   50.00%
      top-2 accuracy            100.00%
      Brier score                0.8889
      calibration error          0.5553

    References:
      Murphy, Probabilistic Machine Learning, 2022, §5.1.
    """

    weight: Array
    log_loss: Array
    perplexity: Array
    bits_per_token: Array
    bits_per_byte: Array
    accuracy: Array
    top_k: tuple[Any, ...]
    top_k_accuracy: Array
    brier_score: Array
    expected_calibration_error: Array
    class_weight: Array
    class_cross_entropy: Array
    confusion: Array | None
    reliability: Reliability

    def __str__(self) -> str:
        """Print the scalars."""
        # NaN where no bytes were counted; after an invalid row too, but then every metric is.
        uncounted = math.isnan(self.bits_per_byte) and not math.isnan(self.log_loss)
        per_byte = [] if uncounted else [("bits per byte", self.bits_per_byte, ".4f", "")]
        top = zip(self.top_k, self.top_k_accuracy, strict=True)
        return text_table(
            ("rows", self.weight, ",.10g", ""),
            ("log loss", self.log_loss, ".4f", "nats"),
            ("perplexity", self.perplexity, ".4f", ""),
            ("bits per token", self.bits_per_token, ".4f", ""),
            *per_byte,
            ("accuracy", self.accuracy, ".2%", ""),
            *((f"top-{k} accuracy", accuracy, ".2%", "") for k, accuracy in top),
            ("Brier score", self.brier_score, ".4f", ""),
            ("calibration error", self.expected_calibration_error, ".4f", ""),
        )


@_check.made_by("empty(classes)")
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ClassificationMetrics(MetricSums):
    """Sums over batches of logits and labels, from which `Summary` is computed.

    A pytree of fixed size for `jit`, `lax.scan` and `jax.shard_map`: begin with `empty`, `update`
    it with every batch, `merge` what was measured apart, `psum` over devices, and take the
    `summary` at the end.

    Args:
      loss: nats a row, an `Average`, as are all others.
      per_byte: nats a byte, of the rows whose bytes were counted.
      brier: Σ_v (p_v − [v = y])².
      hit: whether the most probable class is the label.
      top: `[K]`, whether the label is among the k most probable.
      class_loss: `[V]`, nats a row of each label.
      bin_confidence: `[B]`, max p of the rows in each bin of max p.
      bin_hit: `[B]`, how often they are right.
      confused: `[V, V]`, label against prediction; None if not kept.
      top_k: the k of `top`, static.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jxent.metrics import ClassificationMetrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0], [9.0, 9.0, 9.0]])
      >>> labels = jnp.array([0, 1, -100])
      >>> @jax.jit
      ... def evaluate(metrics, logits, labels):
      ...     return metrics.update(logits, labels, ignore_index=-100)
      >>> metrics = ClassificationMetrics.empty(3)
      >>> for batch in (slice(0, 1), slice(1, 3)):  # batches may differ in size
      ...     metrics = evaluate(metrics, logits[batch], labels[batch])
      >>> summary = metrics.summary()
      >>> print(f"{summary.log_loss:.4f} nats, accuracy {summary.accuracy:.0%}")
      1.5755 nats, accuracy 50%

    References:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950; Naeini, Cooper and
      Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015; Guo et al.,
      On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """

    loss: Average
    per_byte: Average
    brier: Average
    hit: Average
    top: Average
    class_loss: Average
    bin_confidence: Average
    bin_hit: Average
    confused: Average | None
    top_k: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    @_check.arguments
    def empty(
        cls,
        classes: int,
        *,
        top_k: tuple[int, ...] = (),
        bins: int = BINS,
        confusion: bool | None = None,
        dtype: Any = jnp.float32,
    ) -> "ClassificationMetrics":
        """Begin with no rows.

        Args:
          classes: V.
          top_k: which k to measure the top-k accuracy for.
          bins: of equal width in confidence, for calibration.
          confusion: whether to keep the `[V, V]` confusion; None for up to 1000 classes.
          dtype: of the sums, float32 or float64; each is kept in two numbers of it.
        """
        fn = "ClassificationMetrics.empty"
        classes = _check.whole(fn, "classes", classes, 1)
        bins = _check.whole(fn, "bins", bins, 1)
        top_k = tuple(_check.whole(fn, "top_k", k, 1) for k in top_k)
        confusion = classes <= CONFUSION_UP_TO if confusion is None else confusion
        of_class, of_bin = (classes,), (bins,)
        zero = partial(zero_average, _check.sums_dtype(fn, dtype))
        return cls(
            loss=zero(),
            per_byte=zero(),
            brier=zero(),
            hit=zero(),
            top=zero((len(top_k),)),
            class_loss=zero(of_class, of_class),
            bin_confidence=zero(of_bin, of_bin),
            bin_hit=zero(of_bin, of_bin),
            confused=zero((classes, classes)) if confusion else None,
            top_k=top_k,
        )

    @_check.arguments
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        ignore_index: int | None = None,
        row_weights: ArrayLike | None = None,
        byte_counts: ArrayLike | None = None,
    ) -> "ClassificationMetrics":
        """Add a batch of rows.

        Args:
          logits: `[*n, V]`, floating point; −inf is an impossible class.
          labels: integers `[*n]` in [0, V).
          where: boolean `[*n]`, the rows to keep.
          ignore_index: rows with this label are dropped.
          row_weights: `[*n]`.
          byte_counts: `[*n]`, how many bytes each row's token stands for.

        Raises:
          ValueError: another number of classes, other shapes, a concrete label outside [0, V).
          TypeError: logits that are not floating point, labels that are not integers.
        """
        fn = "ClassificationMetrics.update"
        z, y, kept, w = check_rows(fn, logits, labels, where, ignore_index, row_weights)
        _check.same_classes(fn, z, self.class_loss.total.shape[0])
        counted = _check.weights(fn, "byte_counts", byte_counts, y.shape)
        return add_rows(self, z, y, kept, w, counted)

    def summary(self) -> Summary:
        """Compute the metrics, also inside `jit`."""
        with without_debug_checks():  # what was not counted is NaN
            # jit makes arrays of the ks.
            return _summarize_rows(self)._replace(top_k=self.top_k)

    def _options(self) -> dict[str, Any]:
        return {
            "classes": self.class_loss.total.shape[0],
            "top_k": self.top_k,
            "bins": self.bin_hit.total.shape[0],
            "confusion": self.confused is not None,
            "dtype": jnp.dtype(self.loss.total.dtype).name,
        }


@partial(jax.jit, inline=True)
def _summarize_rows(m: ClassificationMetrics) -> Summary:
    log_loss = m.loss.mean()
    reliability = reliability_of_bins(m.bin_confidence, m.bin_hit)
    return Summary(
        weight=m.loss.sums()[1].rounded(),
        log_loss=log_loss,
        perplexity=jnp.exp(log_loss),
        bits_per_token=log_loss / math.log(2),
        bits_per_byte=m.per_byte.mean() / math.log(2),
        accuracy=m.hit.mean(),
        top_k=m.top_k,
        top_k_accuracy=m.top.mean(),
        brier_score=m.brier.mean(),
        expected_calibration_error=reliability.error,
        class_weight=m.class_loss.sums()[1].rounded(),
        class_cross_entropy=m.class_loss.mean(),
        confusion=None if m.confused is None else m.confused.sums()[0].rounded(),
        reliability=reliability,
    )


def check_rows(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    ignore_index: int | None,
    row_weights: ArrayLike | None,
) -> tuple[Logits, Labels, RowMask | None, PerRow | None]:
    """Check the arguments; return logits, labels, the rows that are kept and their weights."""
    z = _check.logits(fn, logits)
    y = _check.labels(fn, labels, z.shape[:-1])
    keep = _check.rows_kept(fn, where, y.shape)
    kept = kept_rows(y, keep, _check.ignore_index(fn, ignore_index, labelled=True))
    _check.label_values(fn, labels, z.shape[-1], kept)
    if _check.CHECKING.get():
        _check.traced_labels(fn, y, narrow(y, z.shape[-1]), kept, z.shape[-1])
    return z, y, kept, _check.weights(fn, "row_weights", row_weights, y.shape)


class MeasuredRows(NamedTuple):
    """The rows of a batch on one axis; dropped ones weigh 0."""

    w: Float[Array, " N"]
    loss: Float[Array, " N"]
    y: Int[Array, " N"]  # 0 for a label outside [0, V), whose row is invalid
    predicted: Int[Array, " N"]
    rank: Int[Array, " N"]  # how many classes come before the label
    p: Float[Array, "N V"]
    confidence: Float[Array, " N"]
    nan_if_invalid: Scalar  # NaN if a row is invalid, else 0: an invalid row belongs to any sum


def measure_rows(
    z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None, dtype: jnp.dtype
) -> MeasuredRows:
    """Measure each row: its loss, its label's rank, its probabilities and confidence."""
    z, y = pin_half_precision(z).reshape(-1, z.shape[-1]), y.ravel()
    w = jnp.ones(y.shape, dtype) if w is None else w.ravel().astype(dtype)
    w = w if kept is None else jnp.where(kept.ravel(), w, 0)
    loss = cross_entropy(z, y, where=w != 0, reduction="none")
    invalid = jnp.any(jnp.isnan(loss) | jnp.isnan(w))
    y = jnp.maximum(narrow(y, z.shape[-1]), 0)
    stats = log_softmax.statistics(z, loss.dtype, probabilities_follow=True)
    p = log_softmax.softmax_probabilities(z.astype(loss.dtype), stats, log_softmax.logsumexp(stats))
    z_y, classes = at_label(z, y)[:, None], lax.broadcasted_iota(jnp.int32, z.shape, 1)
    before = (z > z_y) | ((z == z_y) & (classes < y[:, None]))
    return MeasuredRows(
        w=w,
        loss=loss.astype(dtype),
        y=y,
        predicted=jnp.argmax(z, axis=-1).astype(jnp.int32),
        rank=jnp.sum(before, axis=-1, dtype=jnp.int32),
        p=p.astype(dtype),
        confidence=(1 / (1 + stats.S)).astype(dtype),
        nan_if_invalid=zero_or_nan(~invalid, dtype),
    )


def _brier(m: MeasuredRows) -> Float[Array, " N"]:
    """Compute Σ_v (p_v − [v = y])² of each row."""
    minus_1 = jnp.expm1(-m.loss)[:, None]  # p_y − 1 without cancellation
    return jnp.sum(jnp.where(is_label(m.y, m.p), minus_1, m.p) ** 2, axis=-1)


@partial(jax.jit, inline=True)
def add_rows(
    metrics: ClassificationMetrics,
    z: Logits,
    y: Labels,
    kept: RowMask | None,
    w: PerRow | None,
    byte_counts: PerRow | None,
) -> ClassificationMetrics:
    """Add a batch of checked arguments to the sums."""
    m = measure_rows(z, y, kept, w, metrics.loss.total.dtype)
    classes, bins = z.shape[-1], metrics.bin_hit.total.shape[0]
    dtype = m.w.dtype
    nats, hit = multiply_no_nan(m.w, m.loss), (m.rank < 1).astype(dtype)
    terms = [m.w, nats, multiply_no_nan(m.w, _brier(m)), multiply_no_nan(m.w, hit)]
    weight, loss, brier, hits = unstack(compensated.sum_rows(jnp.stack(terms, axis=-1)))
    top = jnp.stack([(m.rank < k).astype(dtype) for k in metrics.top_k] or [hit], axis=-1)
    tops = compensated.sum_rows(multiply_no_nan(m.w[:, None], top)[:, : len(metrics.top_k)])
    per_class = compensated.segment_sum(jnp.stack([nats, m.w], axis=-1), m.y, classes)
    per_byte, confused = zero_average(dtype), None
    if byte_counts is not None:
        terms = [nats, multiply_no_nan(m.w, byte_counts.ravel().astype(dtype))]
        per_byte = average_of_sums(*unstack(compensated.sum_rows(jnp.stack(terms, axis=-1))))
    if metrics.confused is not None:
        cells = compensated.segment_sum(m.w[:, None], m.y * classes + m.predicted, classes**2)
        confused = average_of_sums(Sum(*(x.reshape(classes, classes) for x in cells)), weight)
    bin_confidence, bin_hit = average_in_bins(m.w, m.confidence, hit, bins)
    batch = ClassificationMetrics(
        loss=average_of_sums(loss, weight),
        per_byte=per_byte,
        brier=average_of_sums(brier, weight),
        hit=average_of_sums(hits, weight),
        top=average_of_sums(tops, weight),
        class_loss=average_of_sums(*unstack(per_class)),
        bin_confidence=bin_confidence,
        bin_hit=bin_hit,
        confused=confused,
        top_k=metrics.top_k,
    )
    return add_batch(metrics, batch, m.nan_if_invalid)
