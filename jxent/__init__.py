"""jxent: cross-entropy for JAX.

What the model said comes first, what was true second, every option by keyword; values are in nats.

Training losses: one call, a scalar by default, custom gradients

    cross_entropy(logits, targets, ...)     integer labels or distributions, every option
    linear_cross_entropy(hidden, head, labels, ...)     the same of hidden @ head, logits not stored
    label_weights(labels, ...)              the denominator of their mean, before the model runs

Of a large vocabulary, logits not stored, two numbers a row

    linear_log_probs(hidden, head, labels, ...)         the label's log-probability, the entropy
    linear_predictions(hidden, head, ...)               the most probable class, its log-probability

Row losses: optax's names and arguments, one loss a row, every transformation

    softmax_cross_entropy_with_integer_labels, softmax_cross_entropy, safe_softmax_cross_entropy
    softmax_focal_loss, poly_loss_cross_entropy
    sigmoid_binary_cross_entropy, sigmoid_focal_loss
    kl_divergence, kl_divergence_with_log_targets

Namespaces

    jxent.information   entropy, cross_entropy, binary_cross_entropy, kl_divergence, js_divergence,
                        perplexity, softmax_entropy, nats_to_bits, bits_to_nats: of probabilities
    jxent.imbalance     balanced_class_weights, effective_number_weights; logit_adjustment;
                        ldam of row losses, with ldam_margins: for rare classes
    jxent.robust        generalized_cross_entropy, symmetric_cross_entropy, asymmetric_loss:
                        for labels of which some are wrong or missing
    jxent.regularization    gradient_penalty, confidence_penalty: what is added to a loss
    jxent.distillation  distillation_loss, linear_distillation_loss: a teacher's whole distribution
    jxent.regression    gaussian_nll; two_hot, hl_gauss, expected_value, bin_centers,
                        count_outside: continuous targets as distributions
    jxent.metrics       ClassificationMetrics, Average, Summary: over batches, scans and devices;
                        log_loss, accuracy, top_k_accuracy, brier_score; reliability_curve,
                        Reliability, expected_calibration_error, fit_temperature;
                        MultiLabelMetrics, MultiLabelSummary; multilabel_log_loss, hamming_loss,
                        subset_accuracy, f1_score
    jxent.selection     compare row losses of models, with intervals; log_likelihood, aic, bic
    jxent.testing       assert_gradients_match, checked: for losses of your own

`python -m jxent` trains two classifiers with optax on real data and says which is better;
`python -m jxent compare` does so for saved predictions of any models.
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
