"""jxent: cross-entropy for JAX.

Predictions come first, targets second.  Options are keyword-only.  Values are in nats.

Training losses, reduced to a scalar by default

    cross_entropy(logits, targets, ...)     integer labels or distributions as targets
    linear_cross_entropy(hidden, head, labels, ...)     the same for logits = hidden @ head, which
                                            are never stored
    label_weights(labels, ...)              each row's weight in the mean; needs no logits

For a large vocabulary, without storing the logits

    linear_log_probs(hidden, head, labels, ...)         each label's log-probability, each entropy
    linear_predictions(hidden, head, ...)               the most probable class, its log-probability

Row losses with optax's names and arguments: not reduced, every JAX transformation

    softmax_cross_entropy_with_integer_labels, softmax_cross_entropy, safe_softmax_cross_entropy
    softmax_focal_loss, poly_loss_cross_entropy
    sigmoid_binary_cross_entropy, sigmoid_focal_loss
    kl_divergence, kl_divergence_with_log_targets

Namespaces

    jxent.information   of probabilities: entropy, cross_entropy, binary_cross_entropy,
                        kl_divergence, js_divergence, perplexity; softmax_entropy of logits;
                        nats_to_bits, bits_to_nats
    jxent.imbalance     for rare classes: balanced_class_weights, effective_number_weights,
                        logit_adjustment, ldam with ldam_margins
    jxent.robust        for wrong or missing labels: generalized_cross_entropy,
                        symmetric_cross_entropy, asymmetric_loss
    jxent.regularization    added to a loss: gradient_penalty, confidence_penalty
    jxent.distillation  from a teacher's distribution: distillation_loss, linear_distillation_loss
    jxent.regression    continuous targets: gaussian_nll; as distributions two_hot, hl_gauss,
                        expected_value, bin_centers, count_outside
    jxent.metrics       over batches, scans and devices: ClassificationMetrics, MultiLabelMetrics,
                        Average, with Summary, MultiLabelSummary; log_loss, accuracy,
                        top_k_accuracy, brier_score; multilabel_log_loss, hamming_loss,
                        subset_accuracy, f1_score; reliability_curve, Reliability,
                        expected_calibration_error, fit_temperature
    jxent.selection     compare models by their row losses, with intervals; log_likelihood, aic, bic
    jxent.testing       for losses of your own: assert_gradients_match, checked

`python -m jxent` trains two classifiers with optax on real data and reports which is better;
`python -m jxent compare` compares saved predictions of any models.
"""

from jxent import distillation as distillation
from jxent import imbalance as imbalance
from jxent import information as information
from jxent import metrics as metrics
from jxent import regression as regression
from jxent import regularization as regularization
from jxent import robust as robust
from jxent import selection as selection
from jxent import testing as testing
from jxent._linear.api import linear_cross_entropy as linear_cross_entropy
from jxent._linear.api import linear_log_probs as linear_log_probs
from jxent._linear.api import linear_predictions as linear_predictions
from jxent._losses.cross_entropy import cross_entropy as cross_entropy
from jxent._losses.cross_entropy import label_weights as label_weights
from jxent._losses.divergence import kl_divergence as kl_divergence
from jxent._losses.divergence import (
    kl_divergence_with_log_targets as kl_divergence_with_log_targets,
)
from jxent._losses.sigmoid import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jxent._losses.sigmoid import sigmoid_focal_loss as sigmoid_focal_loss
from jxent._losses.softmax import poly_loss_cross_entropy as poly_loss_cross_entropy
from jxent._losses.softmax import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from jxent._losses.softmax import softmax_cross_entropy as softmax_cross_entropy
from jxent._losses.softmax import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jxent._losses.softmax import softmax_focal_loss as softmax_focal_loss

__version__ = "0.2.0"

__all__ = [
    "cross_entropy",
    "linear_cross_entropy",
    "linear_log_probs",
    "linear_predictions",
    "label_weights",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "softmax_focal_loss",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "information",
    "imbalance",
    "robust",
    "regularization",
    "distillation",
    "regression",
    "metrics",
    "selection",
    "testing",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# Tab completion shows what a namespace offers, not what its code imports.
for _name in __all__:
    if hasattr(globals()[_name], "__all__"):
        vars(globals()[_name])["__dir__"] = globals()[_name].__all__.copy
del _name
