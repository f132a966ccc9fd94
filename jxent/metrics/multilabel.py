"""Any number of labels for each row: what is reported of them, on its way.

Of label v, with x its logit, p = σ(x), ŷ = [p > threshold], over the rows in which it is known:

    log loss = Σ w bce / Σ w                       Hamming loss = Σ w [ŷ ≠ y] / Σ w
    precision = Σ w y ŷ / Σ w ŷ                    recall = Σ w y ŷ / Σ w y
    F1 = 2 Σ w y ŷ / (Σ w y + Σ w ŷ)

"micro" sums over labels as well as rows, "macro" is the mean of the labels' F1.  Sums are kept as
in `classification`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jxent import _check
from jxent._core import compensated
from jxent._core.compensated import Sum, columns
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import multiply_no_nan
from jxent._losses.sigmoid import sigmoid_binary_cross_entropy
from jxent._typing import ArrayLike, AxisNames, Logits, PerRow
from jxent.metrics.average import Average, averaged, nothing, on_each
from jxent.metrics.calibration import Reliability, curve
from jxent.metrics.classification import BINS

THRESHOLD = 0.5


class MultiLabelSummary(NamedTuple):
    """What `MultiLabelMetrics` come to; `str` is a table.

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
        """The numbers that are one each."""
        lines = [
            ("labels", f"{float(self.weight):,.10g}", ""),
            ("log loss", f"{self.log_loss:.4f}", "nats"),
            ("Hamming loss", f"{self.hamming_loss:.2%}", ""),
            ("subset accuracy", f"{self.subset_accuracy:.2%}", ""),
            ("micro precision", f"{self.micro_precision:.2%}", ""),
            ("micro recall", f"{self.micro_recall:.2%}", ""),
            ("micro F1", f"{self.micro_f1:.4f}", ""),
            ("macro F1", f"{self.macro_f1:.4f}", ""),
            ("calibration error", f"{self.expected_calibration_error:.4f}", ""),
        ]
        return "\n".join(f"{a:<20}{b:>13}  {c}".rstrip() for a, b, c in lines)


@_check.made_by("empty(classes)")
@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "loss",
        "wrong",
        "true",
        "predicted",
        "both",
        "subset",
        "bin_confidence",
        "bin_true",
    ),
    meta_fields=("threshold",),
)
@dataclass(frozen=True, eq=False)
class MultiLabelMetrics:
    """Every number of `MultiLabelSummary` on its way, over batches of logits and labels `[*n, V]`.

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
      >>> labels = jnp.array([[1, 0, 1], [0, -1, -1]])  # −1: nobody knows
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
    threshold: float

    @classmethod
    @_check.keywords
    def empty(
        cls,
        classes: int,
        *,
        threshold: float = THRESHOLD,
        bins: int = BINS,
        dtype: Any = jnp.float32,
    ) -> "MultiLabelMetrics":
        """Nothing measured yet.

        Args:
          classes: V.
          threshold: a probability above it is a yes, between 0 and 1.
          bins: of equal width in the probability of a yes, for calibration.
          dtype: of the sums, float32 or float64; each is kept in two numbers of it.
        """
        fn = "MultiLabelMetrics.empty"
        classes = _check.whole(fn, "classes", classes, 1)
        bins = _check.whole(fn, "bins", bins, 1)

        of = _check.sums_dtype(fn, dtype)

        def each(*shape: int) -> Average:
            return nothing(of, shape, shape)

        return cls(
            loss=each(classes),
            wrong=each(classes),
            true=each(classes),
            predicted=each(classes),
            both=each(classes),
            subset=each(),
            bin_confidence=each(classes, bins),
            bin_true=each(classes, bins),
            threshold=_check.strictly_between(fn, "threshold", threshold),
        )

    @_check.keywords
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        row_weights: ArrayLike | None = None,
    ) -> "MultiLabelMetrics":
        """A batch of rows as well.

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
        z, *rest = labelled_rows(fn, logits, labels, where, row_weights)
        _check.same_classes(fn, z, self.loss.total.shape[0])
        return _update(self, z, *rest)

    def merge(self, other: "MultiLabelMetrics") -> "MultiLabelMetrics":
        """Both together; they must have been made with the same options.

        Raises:
          ValueError: they were not.
        """
        _check.same_made("MultiLabelMetrics.merge", self._options(), other._options())
        return on_each(Average.merge, self, other)

    def psum(self, axis_name: AxisNames) -> "MultiLabelMetrics":
        """All devices' of these mesh axes together, inside `jax.shard_map`, once, at the end."""
        return on_each(lambda average: average.psum(axis_name), self)

    def summary(self) -> MultiLabelSummary:
        """The numbers, also inside `jit`."""
        return _summary(self)

    def _options(self) -> dict[str, Any]:
        classes, bins = self.bin_true.total.shape
        return {
            "classes": classes,
            "bins": bins,
            "threshold": self.threshold,
            "dtype": jnp.dtype(self.loss.total.dtype).name,
        }


@partial(jax.jit, inline=True)
def _summary(m: MultiLabelMetrics) -> MultiLabelSummary:
    loss = _together(m.loss)
    f1 = _f1(m.both, m.true, m.predicted)
    micro = [_together(a) for a in (m.both, m.true, m.predicted)]
    confidence, true = _together(m.bin_confidence), _together(m.bin_true)
    reliability = curve(confidence, true)
    return MultiLabelSummary(
        weight=_weight(loss),
        log_loss=loss.mean(),
        hamming_loss=_together(m.wrong).mean(),
        subset_accuracy=m.subset.mean(),
        micro_precision=_share(micro[0], micro[2]),
        micro_recall=_share(micro[0], micro[1]),
        micro_f1=_f1(*micro),
        macro_f1=_mean_known(f1, m.loss),
        expected_calibration_error=reliability.error,
        label_weight=_weight(m.loss),
        label_share=m.true.mean(),
        label_log_loss=m.loss.mean(),
        label_precision=_share(m.both, m.predicted),
        label_recall=_share(m.both, m.true),
        label_f1=f1,
        label_calibration_error=jax.vmap(lambda a, b: curve(a, b).error)(
            m.bin_confidence, m.bin_true
        ),
        reliability=reliability,
    )


def _total(a: Average) -> Array:
    return a.total + a.total_rest


def _weight(a: Average) -> Array:
    return a.weight + a.weight_rest


def _share(a: Average, b: Average) -> Array:
    """Σ w a / Σ w b."""
    return _total(a) / _total(b)


def _f1(both: Average, true: Average, predicted: Average) -> Array:
    """2 Σ w y ŷ / (Σ w y + Σ w ŷ)."""
    either = compensated.add(true.sums()[0], predicted.sums()[0])
    return 2 * _total(both) / (either.value + either.rest)


def _mean_known(f1: Float[Array, "V"], loss: Average) -> Array:
    """The mean of what is not 0/0; NaN if a row was at fault."""
    known = ~jnp.isnan(f1)
    mean = jnp.sum(jnp.where(known, f1, 0)) / jnp.sum(known, dtype=f1.dtype)
    return jnp.where(jnp.any(jnp.isnan(loss.weight)), jnp.nan, mean)


def _together(a: Average) -> Average:
    """All labels as one."""
    return averaged(
        *(compensated.add(compensated.down(s.value), compensated.down(s.rest)) for s in a.sums())
    )


def labelled_rows(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    row_weights: ArrayLike | None,
) -> tuple[Logits, Shaped[Array, "*n V"], Bool[Array, "..."] | None, PerRow | None]:
    """The arguments, checked: logits, labels, which of them are known, what rows weigh."""
    z = _check.logits(fn, logits)
    kept = _check.entries_kept(fn, where, z.shape)
    y = _check.yes_or_no(fn, labels, z.shape, kept)
    return z, y, kept, _check.weights(fn, "row_weights", row_weights, z.shape[:-1])


def add(
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
    known = known & (w != 0)[:, None]  # what weighs nothing contributes nothing, whatever it holds
    fault = known & ~(~jnp.isnan(z) & ((y == 0) | (y == 1)) & ~jnp.isnan(w)[:, None])
    poison = jnp.where(jnp.any(fault), jnp.nan, 0).astype(dtype)

    true = known & (y == 1)
    z = jnp.where(known & ~fault, z.astype(loss_dtype(z.dtype)), 0)
    t = metrics.threshold
    predicted = known & (z > math.log(t) - math.log1p(-t))
    wrong = true != predicted
    each_w = jnp.where(known, w[:, None], 0)
    nats = jnp.where(known, sigmoid_binary_cross_entropy(z, true), 0).astype(dtype)
    of_label = (nats, *(a.astype(dtype) for a in (wrong, true, predicted, true & predicted)))
    each = jnp.stack([*(multiply_no_nan(each_w, a) for a in of_label), each_w], axis=-1)
    *totals, weight = columns(compensated.down(each))

    of_row = jnp.where(jnp.any(known, axis=-1), w, 0)
    right = ~jnp.any(wrong, axis=-1)
    subset = jnp.stack([multiply_no_nan(of_row, right.astype(dtype)), of_row], axis=-1)

    p = jax.nn.sigmoid(z).astype(dtype)
    edges = jnp.linspace(0, 1, bins + 1, dtype=dtype)[1:-1]
    bin_of = jnp.sum(p[..., None] > edges[None, None], axis=-1, dtype=jnp.int32)
    segment = jnp.arange(classes, dtype=jnp.int32)[None] * bins + bin_of
    cells = [multiply_no_nan(each_w, p), multiply_no_nan(each_w, true.astype(dtype)), each_w]
    binned = compensated.by_segment(
        jnp.stack([a.ravel() for a in cells], axis=-1), segment.ravel(), classes * bins
    )
    confidence, hits, of_bin = (
        Sum(*(a.reshape(classes, bins) for a in s)) for s in columns(binned)
    )
    loss, wrongs, trues, predictions, both = (averaged(total, weight) for total in totals)
    batch = MultiLabelMetrics(
        loss=loss,
        wrong=wrongs,
        true=trues,
        predicted=predictions,
        both=both,
        subset=averaged(*columns(compensated.down(subset))),
        bin_confidence=averaged(confidence, of_bin),
        bin_true=averaged(hits, of_bin),
        threshold=metrics.threshold,
    )
    return metrics.merge(on_each(lambda average: average.poisoned(poison), batch))


_update = jax.jit(add, inline=True)
