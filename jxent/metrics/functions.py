"""Metrics of whole arrays: one update of the metric classes' sums, and one metric of their summary.

The compiler drops the sums that the metric does not need.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array, Bool, Shaped

from jxent import _check
from jxent._core.log_softmax import loss_dtype
from jxent._typing import ArrayLike, Labels, Logits, PerRow, RowMask
from jxent.metrics.average import Average
from jxent.metrics.calibration import BINS, Reliability, average_in_bins, reliability_of_bins
from jxent.metrics.classification import (
    ClassificationMetrics,
    add_rows,
    check_rows,
    measure_rows,
)
from jxent.metrics.multilabel import (
    THRESHOLD,
    MultiLabelMetrics,
    add_labelled_rows,
    check_labelled_rows,
)
from jxent.metrics.temperature import fit_by_lbfgs


@partial(jax.jit, static_argnames=("name", "top_k", "bins"), inline=True)
def _classification_metric(
    z: Logits,
    y: Labels,
    kept: RowMask | None,
    w: PerRow | None,
    *,
    name: str,
    top_k: tuple[int, ...] = (),
    bins: int = BINS,
) -> Any:
    """Compute one field of `Summary` from checked arguments."""
    empty = ClassificationMetrics.empty(
        z.shape[-1], top_k=top_k, bins=bins, confusion=False, dtype=loss_dtype(z.dtype)
    )
    return getattr(add_rows(empty, z, y, kept, w, None).summary(), name)


@_check.arguments
def log_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the mean cross-entropy of labels, Σ w nll_y / Σ w, as `sklearn.metrics.log_loss`.

    The training loss of the same rows is `jxent.cross_entropy`; over no rows that is 0, this NaN.

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where: boolean `[*n]`, the rows to keep.
      ignore_index: rows with this label are dropped.
      row_weights: w, `[*n]`.

    Returns:
      Nats a row, float32 (float64 for float64 logits); NaN if a row is invalid.

    Raises:
      ValueError: shapes that do not match, a concrete label outside [0, V).
      TypeError: logits that are not floating point, labels that are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(f"{metrics.log_loss(logits, jnp.array([0, 1])):.4f}")
      1.5755

    References:
      Good, Rational Decisions, 1952.
    """
    rows = check_rows("log_loss", logits, labels, where, ignore_index, row_weights)
    return _classification_metric(*rows, name="log_loss")


@_check.arguments
def accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the share of rows classified right, Σ w [argmax z = y] / Σ w.

    Of equal logits the first is predicted.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is invalid.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(metrics.accuracy(logits, jnp.array([0, 1])))
      0.5

    References:
      `sklearn.metrics.accuracy_score`.
    """
    rows = check_rows("accuracy", logits, labels, where, ignore_index, row_weights)
    return _classification_metric(*rows, name="accuracy")


@_check.arguments
def top_k_accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    k: int,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the share Σ w [y among the k largest logits] / Σ w; of equal logits the first count.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      k: how many classes may be named, static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is invalid.

    Raises:
      ValueError, TypeError: as `log_loss`; k < 1, or a traced one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> print(metrics.top_k_accuracy(logits, jnp.array([0, 1]), 2))
      1.0

    References:
      `sklearn.metrics.top_k_accuracy_score`, which of equal scores takes the last.
    """
    fn = "top_k_accuracy"
    rows = check_rows(fn, logits, labels, where, ignore_index, row_weights)
    return _classification_metric(
        *rows, name="top_k_accuracy", top_k=(_check.whole(fn, "k", k, 1),)
    )[0]


@_check.arguments
def brier_score(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute Σ w Σ_v (p_v − [v = y])² / Σ w, with p = softmax(z).

    Summed over all classes, as Brier did. For two classes that is twice (p_1 − y)².

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 2, float32 (float64 for float64 logits); NaN if a row is invalid.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> probabilities = jnp.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
      >>> print(f"{metrics.brier_score(jnp.log(probabilities), jnp.array([0, 1])):.2f}")
      0.32

    References:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    rows = check_rows("brier_score", logits, labels, where, ignore_index, row_weights)
    return _classification_metric(*rows, name="brier_score")


@_check.arguments
def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = BINS,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute Σ_b (w_b/w) |accuracy_b − confidence_b| over bins of equal width in max p.

    It depends on the bins, and is above 0 by chance even for a calibrated model. Compare models on
    the same rows with the same bins, and by log loss first.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      bins: B; bin b is (b/B, (b + 1)/B], static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN if a row is invalid.

    Raises:
      ValueError, TypeError: as `log_loss`; bins < 1, or traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> print(f"{metrics.expected_calibration_error(logits, jnp.array([0, 1, 1]), bins=2):.4f}")
      0.1333

    References:
      Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning,
      2015; Guo et al., arXiv:1706.04599.
    """
    fn = "expected_calibration_error"
    rows = check_rows(fn, logits, labels, where, ignore_index, row_weights)
    return _classification_metric(*rows, name=fn, bins=_check.whole(fn, "bins", bins, 1))


@_check.arguments
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
    """Compute how often predictions are right in each bin of their probability.

    Args:
      logits: `[*n, V]`, floating point.
      labels: integers `[*n]` in [0, V).
      bins: B; bin b is (b/B, (b + 1)/B], the first with its 0, static.
      of_class: None for the most probable class of each row; or one class, whose probability is
        set against how often the label is it (`sklearn.calibration.calibration_curve`), static.
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      A `Reliability`, of all bins, empty ones too; NaN if a row is invalid.

    Raises:
      ValueError, TypeError: as `log_loss`; bins < 1, or traced; of_class outside [0, V).

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> curve = metrics.reliability_curve(logits, jnp.array([0, 1, 1]), bins=2, of_class=1)
      >>> print([f"{p:.2f}" for p in curve.confidence], [f"{p:.2f}" for p in curve.accuracy])
      ['0.15', '0.70'] ['0.50', '1.00']

    References:
      DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983; Guo et al.,
      arXiv:1706.04599.
    """
    fn = "reliability_curve"
    z, *rest = check_rows(fn, logits, labels, where, ignore_index, row_weights)
    bins = _check.whole(fn, "bins", bins, 1)
    of, classes = of_class, z.shape[-1]
    if of is not None and _check.whole(fn, "of_class", of, 0) >= classes:
        raise ValueError(f"{fn}: `of_class` {of_class} is outside [0, {classes})")
    return reliability_of_bins(*_averages_in_bins(z, *rest, bins=bins, of_class=of))


@partial(jax.jit, static_argnames=("bins", "of_class"), inline=True)
def _averages_in_bins(
    z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None, *, bins: int, of_class: int | None
) -> tuple[Average, ...]:
    m = measure_rows(z, y, kept, w, loss_dtype(z.dtype))
    p, hit = m.confidence, m.rank < 1
    if of_class is not None:
        p, hit = m.p[:, of_class], m.y == of_class
    averages = average_in_bins(m.w, p, hit.astype(m.w.dtype), bins)
    return tuple(average.poisoned(m.nan_if_invalid) for average in averages)


@_check.arguments
def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Fit the one temperature T that minimises the log loss of logits / T, by L-BFGS.

    An overconfident model has T > 1. Fit T on rows that the model was not trained on, and divide
    the logits of all others by it: the confidence changes, the predicted class does not.

    The fit is of log T, within 1/1000 ≤ T ≤ 1000. On rows that are all classified right a smaller
    T is always a little better: it stops where float32 sees no difference.

    Args:
      logits: `[*n, V]`, floating point; −inf is an impossible class.
      labels: integers `[*n]` in [0, V).
      where, ignore_index, row_weights: as in `log_loss`.

    Returns:
      T, float32 (float64 for float64 logits); NaN if a row is invalid, the loss is infinite
      whatever T, or no row is kept.

    Raises:
      ValueError, TypeError: as `log_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.array([[6.0, 0.0], [0.0, 6.0], [6.0, 0.0], [6.0, 0.0]])  # 99.8 % sure
      >>> labels = jnp.array([0, 1, 0, 1])  # right three times of four
      >>> T = metrics.fit_temperature(logits, labels)
      >>> print(f"{T:.2f}: {metrics.log_loss(logits, labels):.3f} nats, "
      ...       f"then {metrics.log_loss(logits / T, labels):.3f}")
      5.46: 1.502 nats, then 0.562

    References:
      Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    rows = check_rows("fit_temperature", logits, labels, where, ignore_index, row_weights)
    # optax relies on JAX's ordinary promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return fit_by_lbfgs(*rows)


@partial(jax.jit, static_argnames=("name", "threshold"), inline=True)
def _multilabel_metric(
    z: Logits,
    y: Shaped[Array, "*n V"],
    kept: Bool[Array, "..."] | None,
    w: PerRow | None,
    *,
    name: str,
    threshold: float = THRESHOLD,
) -> jax.Array:
    """Compute one field of `MultiLabelSummary` from checked arguments."""
    empty = MultiLabelMetrics.empty(
        z.shape[-1], threshold=threshold, bins=1, dtype=loss_dtype(z.dtype)
    )
    return getattr(add_labelled_rows(empty, z, y, kept, w).summary(), name)


@_check.arguments
def multilabel_log_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the mean binary cross-entropy of all known labels, Σ w bce / Σ w.

    Label by label it is the `label_log_loss` of a `MultiLabelSummary`. The training loss of the
    same labels is `jxent.sigmoid_binary_cross_entropy` with reduction="mean".

    Args:
      logits: `[*n, V]`, floating point, log-odds of each label; ±∞ is sure.
      labels: `[*n, V]`, 0 or 1: booleans, integers or floats.
      where: boolean, `[*n, V]` to keep the labels that are known, or `[*n]` to keep rows. What is
        dropped contributes nothing, whatever it holds.
      row_weights: w, `[*n]`.

    Returns:
      Nats a label, float32 (float64 for float64 logits); NaN if a label or logit is invalid, or
      none is known.

    Raises:
      ValueError: shapes that do not match, a concrete label that is neither 0 nor 1.
      TypeError: logits that are not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits, labels = jnp.array([[2.0, -1.0], [-3.0, 1.0]]), jnp.array([[1, 0], [0, 0]])
      >>> print(f"{metrics.multilabel_log_loss(logits, labels):.4f}")
      0.4505

    References:
      Good, Rational Decisions, 1952.
    """
    rows = check_labelled_rows("multilabel_log_loss", logits, labels, where, row_weights)
    return _multilabel_metric(*rows, name="log_loss")


@_check.arguments
def hamming_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: float = THRESHOLD,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the share of known labels that are wrong, Σ w [ŷ ≠ y] / Σ w, ŷ = [σ(x) > threshold].

    Args:
      logits: `[*n, V]`, floating point, log-odds of each label.
      labels: `[*n, V]`, 0 or 1.
      threshold: a probability above it is a yes, between 0 and 1, static.
      where, row_weights: as in `multilabel_log_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN as in `multilabel_log_loss`.

    Raises:
      ValueError, TypeError: as `multilabel_log_loss`; a threshold outside (0, 1), or traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits, labels = jnp.array([[2.0, -1.0], [-3.0, 1.0]]), jnp.array([[1, 0], [0, 0]])
      >>> print(metrics.hamming_loss(logits, labels))
      0.25

    References:
      `sklearn.metrics.hamming_loss`.
    """
    return _thresholded_metric("hamming_loss", logits, labels, threshold, where, row_weights)


@_check.arguments
def subset_accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: float = THRESHOLD,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute the share of rows whose known labels are all right, Σ w [ŷ = y in each] / Σ w.

    Args:
      logits: `[*n, V]`, floating point, log-odds of each label.
      labels: `[*n, V]`, 0 or 1.
      threshold, where, row_weights: as in `hamming_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN as in `multilabel_log_loss`.

    Raises:
      ValueError, TypeError: as `hamming_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits, labels = jnp.array([[2.0, -1.0], [-3.0, 1.0]]), jnp.array([[1, 0], [0, 0]])
      >>> print(metrics.subset_accuracy(logits, labels))
      0.5

    References:
      `sklearn.metrics.accuracy_score` of indicator matrices.
    """
    return _thresholded_metric("subset_accuracy", logits, labels, threshold, where, row_weights)


@_check.arguments
def f1_score(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    average: Literal["micro", "macro"],
    threshold: float = THRESHOLD,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute 2 Σ w y ŷ / (Σ w y + Σ w ŷ), of all labels together or the mean over labels.

    A label that is nowhere true or predicted has no F1 (0/0): the macro mean leaves it out, as
    scikit-learn does with zero_division=np.nan. Label by label it is the `label_f1` of a
    `MultiLabelSummary`.

    Args:
      logits: `[*n, V]`, floating point, log-odds of each label.
      labels: `[*n, V]`, 0 or 1.
      average: "micro" sums over labels too, "macro" takes the mean of the labels' F1.
      threshold, where, row_weights: as in `hamming_loss`.

    Returns:
      Between 0 and 1, float32 (float64 for float64 logits); NaN as in `multilabel_log_loss`, and
      where no label is true or predicted.

    Raises:
      ValueError, TypeError: as `hamming_loss`; another average.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits, labels = jnp.array([[2.0, -1.0], [-3.0, 1.0]]), jnp.array([[1, 0], [0, 0]])
      >>> print(f"{metrics.f1_score(logits, labels, average='micro'):.4f}")
      0.6667

    References:
      `sklearn.metrics.f1_score`.
    """
    fn = "f1_score"
    name = _check.one_of(fn, "average", average, ("micro", "macro")) + "_f1"
    return _thresholded_metric(fn, logits, labels, threshold, where, row_weights, name)


def _thresholded_metric(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    where: ArrayLike | None,
    row_weights: ArrayLike | None,
    name: str | None = None,
) -> jax.Array:
    """Check the arguments and compute a metric of thresholded predictions, by default `fn`."""
    rows = check_labelled_rows(fn, logits, labels, where, row_weights)
    t = _check.strictly_between(fn, "threshold", threshold)
    return _multilabel_metric(*rows, name=name or fn, threshold=t)
