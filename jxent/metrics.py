"""From predictions to numbers: log loss, accuracy, calibration, over any batches and devices.

    log loss = Σ w nll_y / Σ w            nll_y: the row losses of `jxent.cross_entropy`
    perplexity = exp(log loss)            bits = nats / log 2
    accuracy, top k = Σ w [y among the k most probable] / Σ w
    Brier score = Σ w Σ_v (p_v − [v = y])² / Σ w
    calibration error = Σ_bins |Σ w hit − Σ w confidence| / Σ w

Every number is a ratio of sums over rows.  `ClassificationMetrics` carries the sums, each in two
floats (`_sums`), and divides and exponentiates once, at the end: the split into batches does not
matter, nor how many there are.  The functions are the same on arrays that are in hand.

Logits [*n, V] come first and integer labels [*n] second.  log p of probabilities p are logits too;
of a binary logit x they are [0, x].  A row that `where`, `ignore_index` or a weight of 0 drops
contributes nothing, whatever it holds.  A row at fault (under `jit` a label outside [0, V), NaN
among its logits) makes every number NaN: it is not left out in silence.  What was measured on no
row is 0/0, NaN.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jxent import _check, _rows, _sums
from jxent._average import Average, averaged, nothing, weighed
from jxent._calibration import Reliability, curve, error, fit, of_bins
from jxent._dense import loss_dtype
from jxent._sums import Sum, columns
from jxent._typing import ArrayLike, AxisNames, Labels, Logits, PerRow, RowMask, Scalar
from jxent._weights import kept_rows, narrow
from jxent.losses import cross_entropy

__all__ = [
    "Average",
    "ClassificationMetrics",
    "Summary",
    "Reliability",
    "log_loss",
    "accuracy",
    "top_k_accuracy",
    "brier_score",
    "expected_calibration_error",
    "reliability_curve",
    "fit_temperature",
]

BINS = 15
CONFUSION_UP_TO = 1000  # classes


class Summary(NamedTuple):
    """What `ClassificationMetrics` come to; `str` is a table.

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

    Source:
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
        """The numbers that are one each."""
        lines = [
            ("rows", f"{float(self.weight):,.10g}", ""),
            ("log loss", f"{self.log_loss:.4f}", "nats"),
            ("perplexity", f"{self.perplexity:.4f}", ""),
            ("bits per token", f"{self.bits_per_token:.4f}", ""),
            ("bits per byte", f"{self.bits_per_byte:.4f}", ""),
            ("accuracy", f"{self.accuracy:.2%}", ""),
            *(
                (f"top-{k} accuracy", f"{share:.2%}", "")
                for k, share in zip(self.top_k, self.top_k_accuracy, strict=True)
            ),
            ("Brier score", f"{self.brier_score:.4f}", ""),
            ("calibration error", f"{self.expected_calibration_error:.4f}", ""),
        ]
        if math.isnan(self.bits_per_byte) and not math.isnan(self.log_loss):
            del lines[4]  # no bytes were counted
        return "\n".join(f"{a:<20}{b:>13}  {c}".rstrip() for a, b, c in lines)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "loss",
        "per_byte",
        "brier",
        "hit",
        "top",
        "class_loss",
        "bin_confidence",
        "bin_hit",
        "confused",
    ),
    meta_fields=("top_k",),
)
@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """Every number of `Summary` on its way, over batches of logits and labels.

    A pytree of fixed size for `jit`, `lax.scan` and `jax.shard_map`: begin with `empty`, `update`
    it with every batch, `merge` what was measured apart, `psum` over devices, and ask for the
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

    Source:
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
    top_k: tuple[int, ...]

    @classmethod
    def empty(
        cls,
        classes: int,
        *,
        top_k: tuple[int, ...] = (),
        bins: int = BINS,
        confusion: bool | None = None,
        dtype: Any = jnp.float32,
    ) -> "ClassificationMetrics":
        """Nothing measured yet.

        Args:
          classes: V.
          top_k: which k to measure the top-k accuracy for.
          bins: of equal width in confidence, for calibration.
          confusion: whether to keep the `[V, V]` confusion; None for up to 1000 classes.
          dtype: of the sums; each is kept in two numbers of it.
        """
        fn = "ClassificationMetrics.empty"
        classes = _check.whole(fn, "classes", classes, 1)
        bins = _check.whole(fn, "bins", bins, 1)
        top_k = tuple(_check.whole(fn, "top_k", k, 1) for k in top_k)
        confusion = classes <= CONFUSION_UP_TO if confusion is None else confusion
        of_class, of_bin = (classes,), (bins,)
        empty = partial(nothing, dtype)
        return cls(
            loss=empty(),
            per_byte=empty(),
            brier=empty(),
            hit=empty(),
            top=empty((len(top_k),)),
            class_loss=empty(of_class, of_class),
            bin_confidence=empty(of_bin, of_bin),
            bin_hit=empty(of_bin, of_bin),
            confused=empty((classes, classes)) if confusion else None,
            top_k=top_k,
        )

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
        """A batch of rows as well.

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
        z, y, kept, w = _rows_of(fn, logits, labels, where, ignore_index, row_weights)
        _check.same_classes(fn, z, self.class_loss.total.shape[0])
        counted = _check.weights(fn, "byte_counts", byte_counts, y.shape)
        return _update(self, z, y, kept, w, counted)

    def merge(self, other: "ClassificationMetrics") -> "ClassificationMetrics":
        """Both together; they must have been made with the same options.

        Raises:
          ValueError: they were not.
        """
        _check.same_made("ClassificationMetrics.merge", self._options(), other._options())
        return _each(Average.merge, self, other)

    def psum(self, axis_name: AxisNames) -> "ClassificationMetrics":
        """All devices' of these mesh axes together, inside `jax.shard_map`.

        Sum once, at the end, what each device has measured. There `empty` is the same on every
        device: before it can be the carry of a `lax.scan`, update it once.
        """
        return _each(lambda average: average.psum(axis_name), self)

    def summary(self) -> Summary:
        """The numbers, also inside `jit`."""
        log_loss = self.loss.mean()
        count = self.loss.sums()[1]
        return Summary(
            weight=count.value + count.rest,
            log_loss=log_loss,
            perplexity=jnp.exp(log_loss),
            bits_per_token=log_loss / math.log(2),
            bits_per_byte=self.per_byte.mean() / math.log(2),
            accuracy=self.hit.mean(),
            top_k=self.top_k,
            top_k_accuracy=self.top.mean(),
            brier_score=self.brier.mean(),
            expected_calibration_error=error(self.bin_confidence, self.bin_hit, count),
            class_weight=self.class_loss.weight + self.class_loss.weight_rest,
            class_cross_entropy=self.class_loss.mean(),
            confusion=None
            if self.confused is None
            else self.confused.total + self.confused.total_rest,
            reliability=curve(self.bin_confidence, self.bin_hit),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "classes": self.class_loss.total.shape[0],
            "top_k": self.top_k,
            "bins": self.bin_hit.total.shape[0],
            "confusion": self.confused is not None,
            "dtype": jnp.dtype(self.loss.total.dtype).name,
        }


def _each(fn: Any, *metrics: ClassificationMetrics) -> ClassificationMetrics:
    """fn on every `Average`."""
    return jax.tree.map(fn, *metrics, is_leaf=lambda x: isinstance(x, Average))


def _rows_of(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    ignore_index: int | None,
    row_weights: ArrayLike | None,
) -> tuple[Logits, Labels, RowMask | None, PerRow | None]:
    """The arguments, checked: logits, labels, the rows that are kept, what they weigh."""
    z = _check.logits(fn, logits)
    y = _check.labels(fn, labels, z.shape[:-1])
    keep = _check.rows_to_keep(fn, where, y.shape)
    kept = kept_rows(y, keep, _check.ignore_index(fn, ignore_index, labelled=True))
    _check.label_values(fn, labels, z.shape[-1], kept)
    return z, y, kept, _check.weights(fn, "row_weights", row_weights, y.shape)


class _Measured(NamedTuple):
    """A batch, one row after the other; what is dropped weighs 0."""

    w: Float[Array, " N"]
    loss: Float[Array, " N"]
    y: Int[Array, " N"]  # 0 for a bad label, whose row is at fault
    predicted: Int[Array, " N"]
    rank: Int[Array, " N"]  # how many classes come before the label
    p: Float[Array, "N V"]
    confidence: Float[Array, " N"]
    poison: Scalar  # NaN if a row is at fault: it could have told in any sum


def _measured(
    z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None, dtype: jnp.dtype
) -> _Measured:
    z, y = z.reshape(-1, z.shape[-1]), y.ravel()
    w = jnp.ones(y.shape, dtype) if w is None else w.ravel().astype(dtype)
    w = w if kept is None else jnp.where(kept.ravel(), w, 0)
    loss = cross_entropy(z, y, where=w != 0, reduction="none")
    fault = jnp.any(jnp.isnan(loss) | jnp.isnan(w))
    y = jnp.maximum(narrow(y, z.shape[-1]), 0)
    stats = _rows.statistics(z, loss.dtype)
    p = _rows.probabilities(z.astype(loss.dtype), stats, _rows.log_normaliser(stats))
    z_y, classes = _rows.at_label(z, y)[:, None], lax.broadcasted_iota(jnp.int32, z.shape, 1)
    before = (z > z_y) | ((z == z_y) & (classes < y[:, None]))
    return _Measured(
        w=w,
        loss=loss.astype(dtype),
        y=y,
        predicted=jnp.argmax(z, axis=-1).astype(jnp.int32),
        rank=jnp.sum(before, axis=-1, dtype=jnp.int32),
        p=p.astype(dtype),
        confidence=(1 / (1 + stats.S)).astype(dtype),
        poison=jnp.where(fault, jnp.nan, 0).astype(dtype),
    )


def _brier(m: _Measured) -> Float[Array, " N"]:
    minus_1 = jnp.expm1(-m.loss)[:, None]  # p_y − 1 without cancellation
    return jnp.sum(jnp.where(_rows.is_label(m.y, m.p), minus_1, m.p) ** 2, axis=-1)


def _add(
    metrics: ClassificationMetrics,
    z: Logits,
    y: Labels,
    kept: RowMask | None,
    w: PerRow | None,
    byte_counts: PerRow | None,
) -> ClassificationMetrics:
    m = _measured(z, y, kept, w, metrics.loss.total.dtype)
    classes, bins = z.shape[-1], metrics.bin_hit.total.shape[0]
    nats, hit = weighed(m.w, m.loss), m.rank < 1
    weight, loss, brier, hits = columns(
        _sums.down(jnp.stack([m.w, nats, weighed(m.w, _brier(m)), weighed(m.w, hit)], axis=-1))
    )
    top = jnp.stack([m.rank < k for k in metrics.top_k] or [hit], axis=-1)
    tops = _sums.down(weighed(m.w[:, None], top)[:, : len(metrics.top_k)])
    per_class = _sums.by_segment(jnp.stack([nats, m.w], axis=-1), m.y, classes)
    per_byte, confused = nothing(m.w.dtype), None
    if byte_counts is not None:
        each = [nats, weighed(m.w, byte_counts.ravel())]
        per_byte = averaged(*columns(_sums.down(jnp.stack(each, axis=-1))))
    if metrics.confused is not None:
        cells = _sums.by_segment(m.w[:, None], m.y * classes + m.predicted, classes**2)
        confused = averaged(Sum(*(x.reshape(classes, classes) for x in cells)), weight)
    bin_confidence, bin_hit = of_bins(m.w, m.confidence, hit, bins)
    batch = ClassificationMetrics(
        loss=averaged(loss, weight),
        per_byte=per_byte,
        brier=averaged(brier, weight),
        hit=averaged(hits, weight),
        top=averaged(tops, weight),
        class_loss=averaged(*columns(per_class)),
        bin_confidence=bin_confidence,
        bin_hit=bin_hit,
        confused=confused,
        top_k=metrics.top_k,
    )
    return metrics.merge(_each(lambda average: average.poisoned(m.poison), batch))


_update = jax.jit(_add, inline=True)


@partial(jax.jit, static_argnames=("number", "top_k", "bins"), inline=True)
def _measure(
    z: Logits,
    y: Labels,
    kept: RowMask | None,
    w: PerRow | None,
    *,
    number: str,
    top_k: tuple[int, ...] = (),
    bins: int = BINS,
) -> Any:
    """One number of the summary; what it does not need is not computed."""
    empty = ClassificationMetrics.empty(
        z.shape[-1], top_k=top_k, bins=bins, confusion=False, dtype=loss_dtype(z.dtype)
    )
    return getattr(_add(empty, z, y, kept, w, None).summary(), number)


def log_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Σ w nll_y / Σ w, the mean cross-entropy of the labels: what `sklearn.metrics.log_loss` gives.

    The training loss of the same rows is `jxent.cross_entropy`; over no rows that is 0, this NaN.

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where: boolean `[*n]`, the rows to keep.
      ignore_index: rows with this label are dropped.
      row_weights: w, `[*n]`.

    Returns:
      Nats a row, float32 (float64 for float64 logits); NaN if a row is at fault.

    Raises:
      ValueError: shapes that do not match, a concrete label outside [0, V).
      TypeError: logits that are not floating point, labels that are not integers.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(f"{metrics.log_loss(logits, jnp.array([0, 1])):.4f}")
      1.5755

    Source:
      Good, Rational Decisions, 1952.
    """
    rows = _rows_of("log_loss", logits, labels, where, ignore_index, row_weights)
    return _measure(*rows, number="log_loss")


def accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Σ w [argmax z = y] / Σ w; of equal logits the first counts.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is at fault.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(metrics.accuracy(logits, jnp.array([0, 1])))
      0.5

    Source:
      `sklearn.metrics.accuracy_score`.
    """
    rows = _rows_of("accuracy", logits, labels, where, ignore_index, row_weights)
    return _measure(*rows, number="accuracy")


def top_k_accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    k: int,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Σ w [y among the k largest logits] / Σ w; of equal logits the first count.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      k: how many classes may be named, static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is at fault.

    Raises:
      ValueError, TypeError: as `log_loss`; k < 1, or a traced one.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(metrics.top_k_accuracy(logits, jnp.array([0, 1]), 2))
      1.0

    Source:
      `sklearn.metrics.top_k_accuracy_score`, which of equal scores takes the last.
    """
    fn = "top_k_accuracy"
    rows = _rows_of(fn, logits, labels, where, ignore_index, row_weights)
    return _measure(*rows, number="top_k_accuracy", top_k=(_check.whole(fn, "k", k, 1),))[0]


def brier_score(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Σ w Σ_v (p_v − [v = y])² / Σ w, between 0 and 2, p = softmax(z).

    Summed over all classes, as Brier did. For two classes that is twice (p_1 − y)².

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 2, float32 (float64 for float64 logits); NaN if a row is at fault.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> probabilities = jnp.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
      >>> print(f"{metrics.brier_score(jnp.log(probabilities), jnp.array([0, 1])):.2f}")
      0.32

    Source:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    rows = _rows_of("brier_score", logits, labels, where, ignore_index, row_weights)
    return _measure(*rows, number="brier_score")


def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = BINS,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Σ_b (w_b/w) |accuracy_b − confidence_b| over bins of equal width of the confidence max p.

    It depends on the bins, and is above 0 by chance even for a calibrated model. Compare models on
    the same rows with the same bins, and by log loss first.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      bins: B; bin b is (b/B, (b + 1)/B], static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is at fault.

    Raises:
      ValueError, TypeError: as `log_loss`; bins < 1, or traced.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> print(f"{metrics.expected_calibration_error(logits, jnp.array([0, 1, 1]), bins=2):.4f}")
      0.1333

    Source:
      Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning,
      2015; Guo et al., arXiv:1706.04599.
    """
    fn = "expected_calibration_error"
    rows = _rows_of(fn, logits, labels, where, ignore_index, row_weights)
    return _measure(*rows, number=fn, bins=_check.whole(fn, "bins", bins, 1))


def reliability_curve(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = BINS,
    of_class: int | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> Reliability:
    """How often predictions are right, by how probable they were held to be.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      bins: B; bin b is (b/B, (b + 1)/B], the first with its 0, static.
      of_class: None for the most probable class of each row; or one class, whose probability is
        set against how often the label is it (`sklearn.calibration.calibration_curve`), static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      A `Reliability`, of all bins, empty ones too; NaN if a row is at fault.

    Raises:
      ValueError, TypeError: as `log_loss`; bins < 1, or traced; of_class outside [0, V).

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> curve = metrics.reliability_curve(logits, jnp.array([0, 1, 1]), bins=2, of_class=1)
      >>> print([f"{p:.2f}" for p in curve.confidence], [f"{p:.2f}" for p in curve.accuracy])
      ['0.15', '0.70'] ['0.50', '1.00']

    Source:
      DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983; Guo et al.,
      arXiv:1706.04599.
    """
    fn = "reliability_curve"
    z, *rest = _rows_of(fn, logits, labels, where, ignore_index, row_weights)
    bins = _check.whole(fn, "bins", bins, 1)
    of = _check.class_index(fn, "of_class", of_class, z.shape[-1])
    if of is None:
        return _measure(z, *rest, number="reliability", bins=bins)
    return _curve_of_class(z, *rest, bins=bins, of_class=of)


@partial(jax.jit, static_argnames=("bins", "of_class"), inline=True)
def _curve_of_class(
    z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None, *, bins: int, of_class: int
) -> Reliability:
    m = _measured(z, y, kept, w, loss_dtype(z.dtype))
    both = of_bins(m.w, m.p[:, of_class], m.y == of_class, bins)
    return curve(*(average.poisoned(m.poison) for average in both))


def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """The temperature T that minimises the log loss of logits / T: one number, fitted by L-BFGS.

    A model that is too sure of itself has T > 1. Fit it on rows that the model was not trained on,
    and divide the logits of all others by it: no prediction changes, only how sure it is.

    What is fitted is log T, within 1/1000 ≤ T ≤ 1000. On rows that are all classified right a
    smaller T is always better by a little: it stops where that is less than float32 can tell.

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      T, float32 (float64 for float64 logits); NaN if a row is at fault, the loss is infinite
      whatever T, or no row is kept.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Saved for the backward pass: it is not meant to be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[6.0, 0.0], [0.0, 6.0], [6.0, 0.0], [6.0, 0.0]])  # 99.8 % sure
      >>> labels = jnp.array([0, 1, 0, 1])  # right three times of four
      >>> T = metrics.fit_temperature(logits, labels)
      >>> print(f"{T:.2f}: {metrics.log_loss(logits, labels):.3f} nats, "
      ...       f"then {metrics.log_loss(logits / T, labels):.3f}")
      5.46: 1.502 nats, then 0.562

    Source:
      Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    rows = _rows_of("fit_temperature", logits, labels, where, ignore_index, row_weights)
    # optax relies on JAX's ordinary promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return fit(*rows)
