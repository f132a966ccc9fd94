"""From predictions to numbers: log loss, accuracy, calibration, over any batches and devices.

    log loss = Σ w nll_y / Σ w            nll_y: the row losses of `jxent.cross_entropy`
    perplexity = exp(log loss)            bits = nats / log 2
    accuracy, top k = Σ w [y among the k most probable] / Σ w
    Brier score = Σ w Σ_v (p_v − [v = y])² / Σ w
    calibration error = Σ_bins |Σ w hit − Σ w confidence| / Σ w

Every number is a ratio of sums over rows.  `ClassificationMetrics` carries the sums, each in two
floats (`_core.compensated`), and divides and exponentiates once, at the end: the split into batches
does not matter, nor how many there are.  The functions are the same on arrays that are in hand.
Where each row has any number of labels it is `MultiLabelMetrics`, whose formulas are in
`multilabel`.

Logits [*n, V] come first and integer labels [*n] second.  log p of probabilities p are logits too;
of a binary logit x they are [0, x].  A row that `where`, `ignore_index` or a weight of 0 drops
contributes nothing, whatever it holds.  A row at fault (under `jit` a label outside [0, V), NaN
among its logits) makes every number NaN: it is not left out in silence.  What was measured on no
row is 0/0, NaN.
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
