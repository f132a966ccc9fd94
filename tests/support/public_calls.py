"""Every public function, called on clean data: a new one must join, by an entry of CALLS.

Clean is what a sound program gives: finite logits, labels in their range, no class masked.  Rows
are dropped and weighed, classes weighed, wherever a function can.  A key is the function's public
name, or that name, a comma and what the entry adds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from jxent.metrics import Average, ClassificationMetrics, MultiLabelMetrics

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A function with arguments: arrays with an axis of rows, arrays without, options."""

    fn: Callable[..., Any]
    rows: Arrays  # their first axis is that of the rows
    others: Arrays = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    constant: tuple[str, ...] = ()  # floating-point arguments that have no derivative
    on_host: bool = False  # reads values: never traced

    def __call__(self, **arrays: Any) -> Any:
        """The function's result for other arrays of the same names."""
        return self.fn(**{**self.rows, **self.others, **arrays}, **self.options)

    @property
    def arrays(self) -> Arrays:
        """All arrays by name."""
        return {**self.rows, **self.others}

    @property
    def differentiated(self) -> Arrays:
        """The arrays that a gradient may be taken by."""
        return {
            name: x
            for name, x in self.arrays.items()
            if jnp.issubdtype(np.asarray(x).dtype, jnp.floating) and name not in self.constant
        }


def total(out: Any) -> jax.Array:
    """The sum of all floating-point results."""
    leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]
    return sum((jnp.sum(x) for x in leaves), start=jnp.zeros((), leaves[0].dtype))


def value_and_gradients(call: Call, arrays: Arrays) -> tuple[Any, Arrays]:
    """The result, and the derivative of its sum by every array that has one."""
    by = {name: arrays[name] for name in call.differentiated}

    def summed(x: Arrays) -> tuple[jax.Array, Any]:
        out = call(**{**arrays, **x})
        return total(out), out

    (_, out), gradients = jax.value_and_grad(summed, has_aux=True)(by)
    return out, gradients


rng = np.random.default_rng(7)
N, V, D = 4, 5, 3


def _normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _uniform(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def _probabilities(*shape: int) -> np.ndarray:
    p = _uniform(*shape)
    return p / p.sum(axis=-1, keepdims=True)


Z, Y = _normal(N, V), np.array([2, 0, 4, 1], np.int32)
KEPT = np.array([True, True, False, True])
W, C, BIAS, COUNTS = _uniform(N), _uniform(V), _normal(V), np.array([9, 4, 3, 2, 6], np.int32)
P, Q = _probabilities(N, V), _probabilities(N, V)
BINARY = (rng.random((N, V)) < 0.5).astype(np.float32)
HIDDEN, HEAD, TEACHER = _normal(N, D), _normal(D, V), _normal(N, V)
NLL = _uniform(N)
VALUES = np.array([0.3, 1.2, 2.0, 3.9], np.float32)
EDGES = np.arange(V + 1, dtype=np.float32)

_weighed = dict(label_smoothing=0.1, z_loss=1e-4)
_rows = dict(where=KEPT, row_weights=W)
_metric = Call(
    jxent.metrics.log_loss, dict(logits=Z, labels=Y, **_rows), constant=("logits", "row_weights")
)
_labelled = dict(logits=Z, labels=BINARY, where=KEPT, row_weights=W)
_classification = ClassificationMetrics.empty(V, top_k=(1, 2), bins=3)
_multi_label = MultiLabelMetrics.empty(V, bins=3)


def _metric_of(fn: Callable[..., Any], **options: Any) -> Call:
    return Call(fn, _metric.rows, options=options, constant=("logits", "row_weights"))


def _labelled_metric_of(fn: Callable[..., Any], **options: Any) -> Call:
    return Call(fn, _labelled, options=options, constant=("logits", "labels", "row_weights"))


def _penalized(logits: Any, labels: Any, coefficient: Any) -> Any:
    loss = lambda z: jxent.cross_entropy(z, labels)
    return jxent.regularization.gradient_penalty(loss, coefficient)(logits)


def _summary(metrics: Any, **arguments: Any) -> Any:
    return metrics.update(**arguments).summary()


def _linear(**more: Any) -> Call:
    return Call(
        jxent.linear_cross_entropy,
        dict(hidden=HIDDEN, labels=Y, **_rows),
        dict(head=HEAD, bias=BIAS, class_weights=C),
        dict(**_weighed, **more),
    )


def _row_loss(fn: Callable[..., Any], **more: Any) -> Call:
    return Call(fn, dict(logits=Z, labels=Y, where=KEPT), dict(class_weights=C, **more))


def _distributions(fn: Callable[..., Any], **more: Any) -> Call:
    return Call(fn, dict(logits=Z, labels=P, where=KEPT), dict(class_weights=C, **more))


def _binary(fn: Callable[..., Any], reduction: str = "mean", **more: Any) -> Call:
    return Call(fn, _labelled, more, dict(reduction=reduction))


_information = jxent.information
_two = np.float32(2)

CALLS: dict[str, Call] = {
    "cross_entropy": Call(
        jxent.cross_entropy, dict(logits=Z, targets=Y, **_rows), dict(class_weights=C), _weighed
    ),
    "cross_entropy, plain": Call(jxent.cross_entropy, dict(logits=0 * Z, targets=Y)),
    "cross_entropy, distributions": Call(
        jxent.cross_entropy, dict(logits=Z, targets=P, **_rows), dict(class_weights=C), _weighed
    ),
    "label_weights": Call(
        jxent.label_weights, dict(labels=Y, **_rows), dict(class_weights=C), dict(ignore_index=4)
    ),
    "linear_cross_entropy": _linear(),
    "linear_cross_entropy, vocab": _linear(implementation="vocab", reduction="none"),
    "linear_cross_entropy, reference": _linear(implementation="reference"),
    "linear_log_probs": Call(
        jxent.linear_log_probs,
        dict(hidden=HIDDEN, labels=Y, where=KEPT),
        dict(head=HEAD, bias=BIAS),
    ),
    "linear_predictions": Call(
        jxent.linear_predictions, dict(hidden=HIDDEN), dict(head=HEAD, bias=BIAS)
    ),
    "softmax_cross_entropy_with_integer_labels": _row_loss(
        jxent.softmax_cross_entropy_with_integer_labels
    ),
    "softmax_cross_entropy": _distributions(jxent.softmax_cross_entropy),
    "safe_softmax_cross_entropy": _distributions(jxent.safe_softmax_cross_entropy),
    "softmax_focal_loss": _row_loss(jxent.softmax_focal_loss, gamma=np.float32(1.5)),
    "softmax_focal_loss, distributions": _distributions(jxent.softmax_focal_loss, gamma=_two),
    "poly_loss_cross_entropy": _row_loss(jxent.poly_loss_cross_entropy, epsilon=_two),
    "poly_loss_cross_entropy, distributions": _distributions(
        jxent.poly_loss_cross_entropy, epsilon=_two
    ),
    "sigmoid_binary_cross_entropy": _binary(jxent.sigmoid_binary_cross_entropy, pos_weight=C),
    "sigmoid_focal_loss": _binary(
        jxent.sigmoid_focal_loss, alpha=np.float32(0.25), gamma=np.float32(1.5)
    ),
    "kl_divergence": Call(
        jxent.kl_divergence, dict(log_predictions=np.log(Q), targets=P, where=KEPT)
    ),
    "kl_divergence_with_log_targets": Call(
        jxent.kl_divergence_with_log_targets,
        dict(log_predictions=np.log(Q), log_targets=np.log(P), where=KEPT),
    ),
    "information.entropy": Call(_information.entropy, dict(p=P)),
    "information.cross_entropy": Call(_information.cross_entropy, dict(p=P, q=Q)),
    "information.binary_cross_entropy": Call(_information.binary_cross_entropy, dict(p=P, q=Q)),
    "information.kl_divergence": Call(_information.kl_divergence, dict(p=P, q=Q)),
    "information.js_divergence": Call(_information.js_divergence, dict(p=P, q=Q)),
    "information.perplexity": Call(_information.perplexity, dict(p=P)),
    "information.softmax_entropy": Call(_information.softmax_entropy, dict(logits=Z)),
    "information.nats_to_bits": Call(_information.nats_to_bits, dict(nats=NLL)),
    "information.bits_to_nats": Call(_information.bits_to_nats, dict(bits=NLL)),
    "imbalance.balanced_class_weights": Call(
        jxent.imbalance.balanced_class_weights, {}, dict(counts=COUNTS)
    ),
    "imbalance.effective_number_weights": Call(
        jxent.imbalance.effective_number_weights, {}, dict(counts=COUNTS), dict(beta=0.9)
    ),
    "imbalance.logit_adjustment": Call(
        jxent.imbalance.logit_adjustment, dict(logits=Z), dict(prior=C, tau=np.float32(0.5))
    ),
    "imbalance.ldam_margins": Call(jxent.imbalance.ldam_margins, {}, dict(counts=COUNTS)),
    "imbalance.ldam": Call(jxent.imbalance.ldam, dict(row_losses=NLL, labels=Y), dict(margins=C)),
    "robust.generalized_cross_entropy": _row_loss(
        jxent.robust.generalized_cross_entropy, q=np.float32(0.7)
    ),
    "robust.generalized_cross_entropy, distributions": _distributions(
        jxent.robust.generalized_cross_entropy, q=np.float32(0.7)
    ),
    "robust.symmetric_cross_entropy": _row_loss(
        jxent.robust.symmetric_cross_entropy, alpha=np.float32(0.3), beta=np.float32(0.7)
    ),
    "robust.symmetric_cross_entropy, distributions": _distributions(
        jxent.robust.symmetric_cross_entropy, alpha=np.float32(0.3), beta=np.float32(0.7)
    ),
    "robust.asymmetric_loss": _binary(
        jxent.robust.asymmetric_loss, gamma_pos=np.float32(0.5), gamma_neg=_two
    ),
    "regularization.gradient_penalty": Call(
        _penalized, dict(logits=Z, labels=Y), dict(coefficient=np.float32(0.1))
    ),
    "regularization.confidence_penalty": Call(
        jxent.regularization.confidence_penalty,
        dict(logits=Z, where=KEPT),
        dict(threshold=np.float32(1.5)),
    ),
    "distillation.distillation_loss": Call(
        jxent.distillation.distillation_loss,
        dict(student_logits=Z, teacher_logits=TEACHER, hard_labels=Y, **_rows),
        dict(temperature=_two, alpha=np.float32(0.5)),
    ),
    "distillation.distillation_loss, jsd": Call(
        jxent.distillation.distillation_loss,
        dict(student_logits=Z, teacher_logits=TEACHER),
        dict(temperature=_two),
        dict(divergence="jsd", reduction="none"),
    ),
    "distillation.distillation_loss, reverse": Call(
        jxent.distillation.distillation_loss,
        dict(student_logits=Z, teacher_logits=TEACHER),
        options=dict(divergence="reverse"),
    ),
    "distillation.linear_distillation_loss": Call(
        jxent.distillation.linear_distillation_loss,
        dict(student_hidden=HIDDEN, teacher_hidden=TEACHER, hard_labels=Y, **_rows),
        dict(
            student_head=HEAD,
            teacher_head=_normal(V, V),
            student_bias=BIAS,
            teacher_bias=_normal(V),
            temperature=_two,
            alpha=np.float32(0.5),
        ),
    ),
    "distillation.linear_distillation_loss, rows": Call(
        jxent.distillation.linear_distillation_loss,
        dict(student_hidden=HIDDEN, teacher_hidden=TEACHER),
        dict(student_head=HEAD, teacher_head=_normal(V, V)),
        dict(reduction="none"),
    ),
    "regression.gaussian_nll": Call(
        jxent.regression.gaussian_nll, dict(mean=NLL, target=VALUES, variance=W)
    ),
    "regression.gaussian_nll, log variance": Call(
        jxent.regression.gaussian_nll, dict(mean=NLL, target=VALUES, log_variance=NLL)
    ),
    "regression.two_hot": Call(
        jxent.regression.two_hot, dict(values=VALUES), dict(bins=EDGES[:-1]), constant=("bins",)
    ),
    "regression.hl_gauss": Call(
        jxent.regression.hl_gauss, dict(values=VALUES), dict(edges=EDGES, sigma=np.float32(0.7))
    ),
    "regression.expected_value": Call(
        jxent.regression.expected_value, dict(logits=Z), dict(bins=EDGES[:-1])
    ),
    "regression.expected_value, probabilities": Call(
        jxent.regression.expected_value,
        dict(logits=P),
        dict(bins=EDGES[:-1]),
        dict(probabilities=True),
    ),
    "regression.bin_centers": Call(jxent.regression.bin_centers, {}, dict(edges=EDGES)),
    "regression.count_outside": Call(
        jxent.regression.count_outside,
        dict(values=VALUES),
        dict(support=EDGES[:3]),
        constant=("values", "support"),
    ),
    "metrics.log_loss": _metric,
    "metrics.accuracy": _metric_of(jxent.metrics.accuracy),
    "metrics.top_k_accuracy": _metric_of(jxent.metrics.top_k_accuracy, k=2),
    "metrics.brier_score": _metric_of(jxent.metrics.brier_score),
    "metrics.expected_calibration_error": _metric_of(
        jxent.metrics.expected_calibration_error, bins=2
    ),
    "metrics.reliability_curve": _metric_of(jxent.metrics.reliability_curve, bins=3),
    "metrics.reliability_curve, of a class": _metric_of(
        jxent.metrics.reliability_curve, bins=3, of_class=1
    ),
    "metrics.fit_temperature": _metric_of(jxent.metrics.fit_temperature),
    "metrics.multilabel_log_loss": _labelled_metric_of(jxent.metrics.multilabel_log_loss),
    "metrics.hamming_loss": _labelled_metric_of(jxent.metrics.hamming_loss),
    "metrics.subset_accuracy": _labelled_metric_of(jxent.metrics.subset_accuracy),
    "metrics.f1_score": _labelled_metric_of(jxent.metrics.f1_score, average="macro"),
    "metrics.ClassificationMetrics.update": Call(
        _classification.update,
        dict(logits=Z, labels=Y, byte_counts=np.array([1, 2, 3, 4], np.int32), **_rows),
        constant=("logits", "row_weights"),
    ),
    "metrics.ClassificationMetrics.summary": Call(
        partial(_summary, _classification),
        _metric.rows,
        constant=("logits", "row_weights"),
    ),
    "metrics.MultiLabelMetrics.update": Call(
        _multi_label.update, _labelled, constant=("logits", "labels", "row_weights")
    ),
    "metrics.MultiLabelMetrics.summary": Call(
        partial(_summary, _multi_label), _labelled, constant=("logits", "labels", "row_weights")
    ),
    "metrics.Average.of": Call(
        Average.of, dict(values=NLL, weights=W), constant=("values", "weights")
    ),
    "metrics.Average.update": Call(
        Average.empty().update, dict(values=NLL, weights=W), constant=("values", "weights")
    ),
    "metrics.Average.mean": Call(
        lambda values, weights: Average.of(values, weights).mean(),
        dict(values=NLL, weights=W),
        constant=("values", "weights"),
    ),
    "selection.compare": Call(
        lambda a, b, weights, groups: jxent.selection.compare(
            {"a": a, "b": b}, weights=weights, groups=groups, resamples=50
        ),
        dict(a=NLL, b=W, weights=C[:N], groups=np.array([0, 1, 2, 2])),
        on_host=True,
    ),
    "selection.log_likelihood": Call(
        jxent.selection.log_likelihood, dict(row_losses=NLL), on_host=True
    ),
    "selection.aic": Call(
        jxent.selection.aic, dict(row_losses=NLL), options=dict(parameters=2), on_host=True
    ),
    "selection.bic": Call(
        jxent.selection.bic, dict(row_losses=NLL), options=dict(parameters=2), on_host=True
    ),
}

# Public, but not functions of arrays: what they return is built by calls above, or by their users.
OTHERS = {
    "testing.assert_gradients_match",
    "testing.checked",
    "metrics.Average",
    "metrics.ClassificationMetrics",
    "metrics.MultiLabelMetrics",
    "metrics.Summary",
    "metrics.MultiLabelSummary",
    "metrics.Reliability",
}
