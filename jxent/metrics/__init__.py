"""Metrics of predictions over any batches and devices: log loss, accuracy, calibration.

    log loss = Σ w nll_y / Σ w            nll_y: the row losses of `jxent.cross_entropy`
    perplexity = exp(log loss)            bits = nats / log 2
    accuracy, top k = Σ w [y among the k most probable] / Σ w
    Brier score = Σ w Σ_v (p_v − [v = y])² / Σ w
    calibration error = Σ_bins |Σ w hit − Σ w confidence| / Σ w

Every metric is a ratio of sums over rows.  `ClassificationMetrics` carries the sums, each in two
floats (`_core.compensated`), and divides and exponentiates once, at the end: the split into batches
does not matter, nor how many there are.  The functions compute the same from whole arrays.  For any
number of labels a row there is `MultiLabelMetrics`, whose formulas are in `multilabel`.

Logits [*n, V] come first and integer labels [*n] second.  log p of probabilities p are logits too;
a binary logit x is [0, x].  A row that `where`, `ignore_index` or a weight of 0 drops contributes
nothing, whatever it holds.  An invalid row (NaN among its logits or, under `jit`, a label outside
[0, V)) makes every metric NaN: it is not left out in silence.  Metrics of no rows are 0/0, NaN.
"""

from jxent.metrics.average import Average
from jxent.metrics.calibration import Reliability
from jxent.metrics.classification import ClassificationMetrics, Summary
from jxent.metrics.functions import (
    accuracy,
    brier_score,
    expected_calibration_error,
    f1_score,
    fit_temperature,
    hamming_loss,
    log_loss,
    multilabel_log_loss,
    reliability_curve,
    subset_accuracy,
    top_k_accuracy,
)
from jxent.metrics.multilabel import MultiLabelMetrics, MultiLabelSummary

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
    "MultiLabelMetrics",
    "MultiLabelSummary",
    "multilabel_log_loss",
    "hamming_loss",
    "subset_accuracy",
    "f1_score",
]
