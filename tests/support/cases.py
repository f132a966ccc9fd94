"""Every loss under test, with arguments and its oracle: a new one joins the suites by one entry.

Arguments are float64 NumPy; `cast` gives them a dtype.  Those that are floating-point arrays are
differentiated, other arrays are passed along, everything else is static.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from compiling import as_users

import jxent

Arguments = dict[str, Any]


def _as_labels(out: oracle.Loss) -> oracle.Loss:
    """What softmax row losses call labels, the oracle calls targets."""
    renamed = lambda by_name: {"labels" if k == "targets" else k: x for k, x in by_name.items()}
    return oracle.Loss(out.value, renamed(out.gradient), renamed(out.scale))


def _softmax(labels: Any, **kw: Any) -> oracle.Loss:
    return _as_labels(oracle.softmax_cross_entropy(targets=labels, **kw))


def _focal(labels: Any, **kw: Any) -> oracle.Loss:
    return _as_labels(oracle.softmax_focal_loss(targets=labels, **kw))


# Ways of `linear_cross_entropy`, in pieces that divide nothing.
LINEAR = {
    way: functools.partial(jxent.linear_cross_entropy, implementation=way, chunk_size=3)
    for way in ("tokens", "vocab", "reference")
}


def ldam(logits: Any, labels: Any, margins: Any, **options: Any) -> jax.Array:
    """The margin loss of rows that keep every JAX transform."""
    rows = jxent.softmax_cross_entropy_with_integer_labels(logits, labels, **options)
    return jxent.imbalance.ldam(rows, labels, margins)


_linear_distillation = functools.partial(jxent.distillation.linear_distillation_loss, chunk_size=3)

# The oracle of each loss, under the loss's own argument names.
ORACLES: dict[Callable[..., jax.Array], Callable[..., oracle.Loss]] = {
    jxent.cross_entropy: oracle.cross_entropy,
    jxent.softmax_cross_entropy_with_integer_labels: _softmax,
    jxent.softmax_cross_entropy: _softmax,
    jxent.softmax_focal_loss: _focal,
    jxent.poly_loss_cross_entropy: oracle.poly_loss_cross_entropy,
    jxent.kl_divergence: oracle.kl_divergence,
    jxent.kl_divergence_with_log_targets: oracle.kl_divergence_with_log_targets,
    jxent.sigmoid_binary_cross_entropy: oracle.sigmoid_binary_cross_entropy,
    jxent.sigmoid_focal_loss: oracle.sigmoid_focal_loss,
    jxent.robust.generalized_cross_entropy: oracle.generalized_cross_entropy,
    jxent.robust.symmetric_cross_entropy: oracle.symmetric_cross_entropy,
    jxent.robust.asymmetric_loss: oracle.asymmetric_loss,
    ldam: oracle.ldam,
    **dict.fromkeys(LINEAR.values(), oracle.linear_cross_entropy),
    jxent.distillation.distillation_loss: oracle.distillation_loss,
    _linear_distillation: oracle.linear_distillation_loss,
}


@dataclass(frozen=True)
class Case:
    """A loss and arguments for it."""

    fn: Callable[..., jax.Array]
    arguments: Arguments

    def expected(self, arguments: Arguments | None = None, cotangent: Any = 1.0) -> oracle.Loss:
        """What the oracle says of these arguments (by default the case's own)."""
        given = self.arguments if arguments is None else arguments
        return ORACLES[self.fn](**given, cotangent=cotangent)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the loss."""
        return np.shape(self.expected().value)


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def cast(arguments: Arguments, dtype: Any) -> Arguments:
    """The floating-point arrays in a dtype."""
    return {k: jnp.asarray(x, dtype) if _is_float(x) else x for k, x in arguments.items()}


def split(arguments: Arguments) -> tuple[Arguments, Arguments, tuple[tuple[str, Any], ...]]:
    """(differentiated, passed along, static)."""
    floats = {k: x for k, x in arguments.items() if _is_float(x)}
    arrays = {k: x for k, x in arguments.items() if hasattr(x, "dtype") and k not in floats}
    static = {k: x for k, x in arguments.items() if not hasattr(x, "dtype")}
    return floats, arrays, tuple(sorted(static.items()))


def function(case: Case) -> tuple[Callable[[Arguments], jax.Array], Arguments]:
    """The loss as a function of its differentiated arguments alone, and those arguments."""
    floats, arrays, static = split(case.arguments)
    return lambda x: case.fn(**x, **arrays, **dict(static)), floats


def _value_and_gradients(fn, static, floats, arrays, cotangent):
    value, pull_back = jax.vjp(lambda x: fn(**x, **arrays, **dict(static)), floats)
    return value, pull_back(jnp.broadcast_to(cotangent.astype(value.dtype), value.shape))[0]


_COMPILED = {
    jit: jit(_value_and_gradients, static_argnames=("fn", "static")) for jit in (jax.jit, as_users)
}


def value_and_gradients(
    fn: Callable[..., jax.Array], arguments: Arguments, cotangent: Any = 1.0, jit: Any = jax.jit
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The jitted loss and its gradients by every floating-point argument; labels are traced."""
    floats, arrays, static = split(arguments)
    if next(_calls) % PROGRAMS_KEPT == 0:
        _COMPILED[jit].clear_cache()  # every program holds on to memory maps of the process
    return _COMPILED[jit](fn, static, floats, arrays, jnp.asarray(cotangent))


PROGRAMS_KEPT = 500
_calls = itertools.count(1)


rng = np.random.default_rng(20)
N, V = 4, 5
LOGITS = 2 * rng.standard_normal((N, V))
LOGITS[1] = [1.0, 1.0, -0.5, 1.0, 0.3]  # three maxima
LABELS = np.array([2, 0, 4, 1], np.int32)
SOFT = rng.gamma(1.0, size=(N, V))
SOFT[0, 3] = SOFT[2, 0] = 0
ROWS_KEPT = np.array([True, True, False, True])
CLASSES_KEPT = np.array(
    [[1, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=bool
)
SOFT_KEPT = np.where(CLASSES_KEPT, SOFT, 0)
C = rng.uniform(0.5, 2, V)
C[0] = 0
W = rng.uniform(0.5, 2, N)
W[3] = 0
BINARY = rng.random((N, V))
WEIGHTS = rng.uniform(0.5, 2, (N, V))
WEIGHTS[2, 1] = 0


_everything = dict(class_weights=C, label_smoothing=0.1, z_loss=0.1, logit_softcap=4.0)
_integer = jxent.softmax_cross_entropy_with_integer_labels
_soft = jxent.softmax_cross_entropy

# Unreduced: every JAX transform.
ROW_LOSSES: dict[str, Case] = {
    "labels": Case(_integer, dict(logits=LOGITS, labels=LABELS)),
    "labels, rows kept": Case(_integer, dict(logits=LOGITS, labels=LABELS, where=ROWS_KEPT)),
    "labels, classes kept": Case(
        _integer, dict(logits=LOGITS, labels=LABELS, where=CLASSES_KEPT, **_everything)
    ),
    "distributions": Case(_soft, dict(logits=LOGITS, labels=SOFT)),
    "distributions, classes kept": Case(
        _soft, dict(logits=LOGITS, labels=SOFT_KEPT, where=CLASSES_KEPT, **_everything)
    ),
    "focal": Case(
        jxent.softmax_focal_loss,
        dict(logits=LOGITS, labels=LABELS, gamma=1.5, class_weights=C, where=ROWS_KEPT),
    ),
    "focal, distributions": Case(
        jxent.softmax_focal_loss, dict(logits=LOGITS, labels=SOFT, class_weights=C)
    ),
    "poly": Case(
        jxent.poly_loss_cross_entropy,
        dict(logits=LOGITS, labels=SOFT, epsilon=-0.5, where=ROWS_KEPT),
    ),
    "poly, labels": Case(
        jxent.poly_loss_cross_entropy,
        dict(logits=LOGITS, labels=LABELS, epsilon=(2.0, -0.5), class_weights=C),
    ),
    "generalized": Case(
        jxent.robust.generalized_cross_entropy,
        dict(logits=LOGITS, labels=LABELS, q=0.7, class_weights=C, where=ROWS_KEPT),
    ),
    "generalized, distributions": Case(
        jxent.robust.generalized_cross_entropy,
        dict(logits=LOGITS, labels=SOFT_KEPT, q=np.array(0.3), where=CLASSES_KEPT),
    ),
    "symmetric": Case(
        jxent.robust.symmetric_cross_entropy,
        dict(
            logits=LOGITS,
            labels=LABELS,
            alpha=np.array(0.3),
            beta=np.array(0.7),
            where=ROWS_KEPT,
            class_weights=C,
        ),
    ),
    "symmetric, distributions": Case(
        jxent.robust.symmetric_cross_entropy,
        dict(logits=LOGITS, labels=SOFT_KEPT, log_zero=-2.0, where=CLASSES_KEPT, class_weights=C),
    ),
    "ldam": Case(ldam, dict(logits=LOGITS, labels=LABELS, margins=C + 0.1, where=ROWS_KEPT)),
    "kl": Case(jxent.kl_divergence, dict(log_predictions=LOGITS - 3, targets=SOFT + 0.5)),
    "kl, log targets": Case(
        jxent.kl_divergence_with_log_targets,
        dict(log_predictions=LOGITS - 3, log_targets=LOGITS[::-1] - 2.0),
    ),
    "sigmoid": Case(
        jxent.sigmoid_binary_cross_entropy,
        dict(logits=LOGITS, labels=BINARY, pos_weight=C + 0.5, label_smoothing=0.1),
    ),
    "sigmoid, rows kept": Case(
        jxent.sigmoid_binary_cross_entropy,
        dict(
            logits=LOGITS,
            labels=BINARY,
            pos_weight=C + 0.5,
            label_smoothing=0.1,
            where=ROWS_KEPT,
            row_weights=W,
        ),
    ),
    "sigmoid focal": Case(
        jxent.sigmoid_focal_loss, dict(logits=LOGITS, labels=BINARY, alpha=0.25, gamma=1.5)
    ),
    "asymmetric": Case(
        jxent.robust.asymmetric_loss,
        dict(logits=LOGITS, labels=BINARY, gamma_pos=0.5, gamma_neg=2.0),
    ),
}

TEACHER = 2 * np.random.default_rng(21).standard_normal((N, V))
ROW_LOSSES |= {
    f"distillation, {name}": Case(
        jxent.distillation.distillation_loss,
        dict(
            student_logits=LOGITS,
            teacher_logits=TEACHER,
            hard_labels=LABELS,
            divergence=name,
            beta=0.3,
            temperature=2.0,
            alpha=0.75,
            row_weights=W,
            where=CLASSES_KEPT,
            reduction="none",
        ),
    )
    for name in ("forward", "jsd")
}

_options: dict[str, Arguments] = {
    "plain": {},
    "rows kept": dict(where=ROWS_KEPT, row_weights=W),
    "smoothing": dict(label_smoothing=0.1, class_weights=C),
    "z-loss": dict(z_loss=0.1),
    "soft cap": dict(logit_softcap=4.0),
    "everything": dict(where=CLASSES_KEPT, row_weights=W, **_everything),
}
# Reverse mode at least, as often as wanted.
TRAINING_LOSSES: dict[str, Case] = {
    f"{targets}, {name}, {reduction}": Case(
        jxent.cross_entropy,
        dict(
            logits=LOGITS,
            targets=LABELS if targets == "labels" else SOFT_KEPT,
            reduction=reduction,
            **options,
        ),
    )
    for targets in ("labels", "distributions")
    for name, options in _options.items()
    for reduction in ("mean", "none")
    if reduction == "mean" or name in ("rows kept", "everything")
}

HIDDEN, HEAD, BIAS = (rng.standard_normal(shape) for shape in ((N, 3), (3, V), V))
TRAINING_LOSSES |= {
    f"{way}, {reduction}": Case(
        fn,
        dict(
            hidden=HIDDEN,
            head=HEAD,
            labels=LABELS,
            bias=BIAS,
            where=ROWS_KEPT,
            row_weights=W,
            reduction=reduction,
            **_everything,
        ),
    )
    for way, fn in LINEAR.items()
    for reduction in ("mean", "none")
    if (way, reduction) != ("tokens", "none")
}

CLASS_MASK = np.array([True, True, True, False, True])
TRAINING_LOSSES |= {
    f"{way}, {name}, {reduction}": Case(
        fn, dict(hidden=HIDDEN, head=HEAD, bias=BIAS, reduction=reduction, row_weights=W, **options)
    )
    for way, fn in LINEAR.items()
    for reduction in ("mean", "none")
    if (way, reduction) != ("tokens", "none")
    for name, options in {
        "classes kept": dict(labels=LABELS, class_mask=CLASS_MASK, **_everything),
        "distributions": dict(labels=SOFT),
        "distributions, classes kept": dict(
            labels=np.where(CLASS_MASK, SOFT, 0),
            class_mask=CLASS_MASK,
            where=ROWS_KEPT,
            **_everything,
        ),
    }.items()
}

TRAINING_LOSSES |= {
    f"linear distillation, {reduction}": Case(
        _linear_distillation,
        dict(
            student_hidden=HIDDEN,
            student_head=HEAD,
            teacher_hidden=TEACHER,
            teacher_head=rng.standard_normal((V, V)),
            student_bias=BIAS,
            hard_labels=LABELS,
            temperature=2.0,
            where=ROWS_KEPT,
            row_weights=W,
            reduction=reduction,
        ),
    )
    for reduction in ("mean", "none")
}

TRAINING_LOSSES |= {
    "sigmoid, mean": Case(
        jxent.sigmoid_binary_cross_entropy,
        dict(
            logits=LOGITS,
            labels=BINARY,
            where=CLASSES_KEPT,
            row_weights=WEIGHTS,
            reduction="mean",
        ),
    ),
    "sigmoid focal, mean by a normalizer": Case(
        jxent.sigmoid_focal_loss,
        dict(
            logits=LOGITS,
            labels=BINARY,
            gamma=0.5,
            where=ROWS_KEPT,
            row_weights=W,
            reduction="mean",
            normalizer=np.array(7.0),
        ),
    ),
    "asymmetric, sum": Case(
        jxent.robust.asymmetric_loss,
        dict(
            logits=LOGITS,
            labels=BINARY,
            where=CLASSES_KEPT,
            row_weights=WEIGHTS,
            reduction="sum",
        ),
    ),
}

# One of each family: what the longer suites run every time; the rest is behind their marker.
OFTEN = (
    "labels, classes kept",
    "distributions, classes kept",
    "focal",
    "poly",
    "kl",
    "sigmoid focal",
    "labels, everything, mean",
    "distributions, everything, none",
    "tokens, mean",
    "vocab, none",
    "tokens, distributions, classes kept, mean",
    "vocab, distributions, classes kept, none",
    "distillation, forward",
)
