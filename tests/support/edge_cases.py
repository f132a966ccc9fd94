"""Hostile rows for every loss, and what they should come to: a new one joins by a line of LOSSES.

A loss is a function of (x, t), differentiated by x, which gives a number for each row; a row that
is at fault must be NaN, loss and gradient, and every other is the oracle's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle

import jxent

V = 6
INF, NAN = np.inf, np.nan
LABEL = 2
BAD_LABELS = {"-1": -1, "-100": -100, "V": V, "the largest": 2**31 - 1, "the smallest": -(2**31)}


@dataclass(frozen=True)
class Row:
    """One hostile row."""

    x: Any
    t: Any
    fault: bool = False


Rows = dict[str, Row]


def tops(dtype: str) -> float:
    """The largest number to meet."""
    return {"float16": 65504.0, "float64": 1e300}.get(dtype, 3e38)


def logit_rows(dtype: str) -> dict[str, tuple[list[float], bool]]:
    """Rows of logits to be given the label LABEL, or mass on every class but the first."""
    top = tops(dtype)
    far = 2e4 if dtype == "float16" else 1e8
    rows: dict[str, tuple[list[float], bool]] = {
        "only the target is possible": ([-INF, -INF, 1, -INF, -INF, -INF], False),
        "-inf on target": ([0, 1, -INF, 2, 0, 1], False),
        "all -inf": ([-INF] * V, True),
        "+inf twice": ([INF, 1, INF, 2, 0, 1], True),
        "NaN and -inf": ([-INF, 0, NAN, 2, 0, 1], True),
        "+inf and -inf": ([-INF, 0, INF, 2, 0, 1], True),
        "1e4": ([1e4, 1e4, 1e4 - 8, -1e4, 0, 9e3], False),
        "-1e4": ([-1e4, -1e4 - 8, -1e4, -1.5e4, -2e4, -1e4], False),
        "offset": ([far, far + 16, far + 32, far, far, far], False),
        "largest on target": ([0, 1, top, 2, 0, 1], False),
        "largest off target": ([0, 1, 2, top, 0, 1], False),
        "smallest, then largest": ([-top, -top, -top, top, 0, 1], False),
        "all largest": ([top] * V, False),
        "all smallest": ([-top] * V, False),
        "all zero": ([0] * V, False),
    }
    for name, value in (("NaN", NAN), ("+inf", INF), ("-inf", -INF)):
        for v in range(V):
            row: list[float] = [0, 1, 1, 2, 0, 1]
            row[v] = value
            rows[f"{name} at {v}"] = (row, value != -INF)
    return rows


def label_rows(dtype: str) -> Rows:
    rows = {name: Row(x, LABEL, fault) for name, (x, fault) in logit_rows(dtype).items()}
    good = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    return rows | {f"label {name}": Row(good, y, True) for name, y in BAD_LABELS.items()}


def plain_rows(dtype: str) -> Rows:
    """Rows of logits whose targets say nothing."""
    return {name: Row(x, 0.0, fault) for name, (x, fault) in logit_rows(dtype).items()}


def hidden_rows(dtype: str) -> Rows:
    """Hidden states in front of a head of 1s: 0·∞ makes any infinity a fault of the row."""
    return _of_finite_states(label_rows(dtype))


def _of_finite_states(rows: Rows) -> Rows:
    del rows["only the target is possible"]
    return {k: Row(r.x, r.t, r.fault or not np.all(np.isfinite(r.x))) for k, r in rows.items()}


SOFT = np.array([0, 0.1, 0.4, 0.2, 0.05, 0.25], np.float32)


def soft_rows(dtype: str) -> Rows:
    rows = {name: Row(x, SOFT, fault) for name, (x, fault) in logit_rows(dtype).items()}
    one_hot = np.eye(V, dtype=np.float32)[LABEL]
    return rows | {
        "one-hot, -inf elsewhere": Row([-INF, -INF, 1, -INF, 0, 1], one_hot),
        "no mass": Row([0, 1, 2, -INF, 0, 1], 0 * SOFT),
        "not summing to 1": Row([0, 1, 2, 3, 0, 1], 7 * SOFT),
        "NaN target": Row([0, 1, 2, 3, 0, 1], SOFT + np.float32(NAN), True),
    }


def hidden_soft_rows(dtype: str) -> Rows:
    """Hidden states in front of a head of 1s, with distributions."""
    return _of_finite_states(soft_rows(dtype))


def binary_rows(dtype: str) -> Rows:
    top = tops(dtype)
    rows = {
        f"{x:g} against {y:g}": Row(x, y)
        for x in (INF, -INF, 1e4, -1e4, top, -top, 0.0)
        for y in (0.0, 1.0, 0.25)
    }
    return rows | {
        "NaN": Row(NAN, 0.5, True),
        "label above 1": Row(1.0, 1.25, True),
        "negative label": Row(1.0, -0.5, True),
        "NaN label": Row(1.0, NAN, True),
        "infinite label": Row(INF, INF, True),
    }


LOG_Q = [-1.0, -2.0, -0.5, -3.0, -1.0, -2.0]


def divergence_rows(dtype: str) -> Rows:
    """Log-predictions against targets without mass on class 0."""
    rows: Rows = {
        "impossible, no mass": Row([-INF, *LOG_Q[1:]], SOFT),
        "impossible, with mass": Row([*LOG_Q[:5], -INF], SOFT),
        "all impossible": Row([-INF] * V, SOFT),
        "no mass": Row(LOG_Q, 0 * SOFT),
        "-1e4": Row([-1e4] * V, SOFT),
        "NaN target": Row(LOG_Q, SOFT + np.float32(NAN), True),
        "infinite target": Row(LOG_Q, np.where(SOFT == 0, np.float32(INF), SOFT), True),
        "negative target": Row(LOG_Q, np.where(SOFT == 0, np.float32(-0.5), SOFT), True),
    }
    for name, value in (("NaN", NAN), ("+inf", INF)):
        for v in (0, 2):
            row = list(LOG_Q)
            row[v] = value
            rows[f"{name} at {v}"] = Row(row, SOFT, True)
    return rows


def log_divergence_rows(dtype: str) -> Rows:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {k: Row(r.x, np.log(r.t), r.fault) for k, r in divergence_rows(dtype).items()}
    del logs["negative target"]  # has no logarithm
    return logs


def taught_rows(dtype: str) -> Rows:
    """Students of a teacher that holds class 0 impossible, and teachers at fault."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {k: Row(r.x, np.log(r.t), r.fault) for k, r in soft_rows(dtype).items()}
    logs["no mass"] = Row(logs["no mass"].x, logs["no mass"].t, True)  # a teacher of only -inf
    teacher = [0.0, 2.0, -1.0, 0.5, 0.0, 1.0]
    for name, value in (("NaN", NAN), ("+inf", INF)):
        row = np.array(teacher, np.float32)
        row[1] = value
        logs[f"teacher with {name}"] = Row([0, 1, 2, 3, 0, 1], row, True)
    return logs


def clean(hostile: Rows, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary rows of the same kind."""
    rng = np.random.default_rng(seed)
    like = next(iter(hostile.values()))
    x = rng.standard_normal((n, *np.shape(like.x)))
    if isinstance(like.t, int):
        return x, rng.integers(0, V, n).astype(np.int32)
    if np.shape(like.t) == ():
        return x, rng.random(n).astype(np.float32)
    t = rng.dirichlet(np.ones(V), n).astype(np.float32)
    return x, np.log(t) if np.any(like.t < 0) else t


@dataclass(frozen=True)
class Between:
    """Hostile rows at the odd places, clean ones at the even; and clean ones in all places."""

    x: np.ndarray
    t: np.ndarray
    clean_x: np.ndarray
    clean_t: np.ndarray
    fault: np.ndarray

    @property
    def hostile(self) -> np.ndarray:
        return np.arange(len(self.x)) % 2 == 1


def between(hostile: Rows) -> Between:
    n = 2 * len(hostile) + 1
    clean_x, clean_t = clean(hostile, 5, n)
    x, t, fault = clean_x.copy(), clean_t.copy(), np.zeros(n, bool)
    x[1::2] = [row.x for row in hostile.values()]
    t[1::2] = [row.t for row in hostile.values()]
    fault[1::2] = [row.fault for row in hostile.values()]
    return Between(x, t, clean_x, clean_t, fault)


def per_row(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A mask of rows against the axes of an array."""
    return mask.reshape((-1,) + (1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Loss:
    """fn(x, t) → rows, with hostile rows for it and the oracle's loss and gradient by x."""

    fn: Callable[[Any, Any], Any]
    rows: Callable[[str], Rows]
    oracle: Callable[[Any, Any], oracle.Loss]
    by: str = "logits"
    summed: bool = False  # fn gives the sum of the rows
    soft_too: bool = False  # fn takes distributions as well as labels

    @property
    def labelled(self) -> bool:
        return self.rows in (label_rows, hidden_rows)

    @property
    def argument(self) -> str:
        """The argument that takes the labels."""
        return "targets" if self.fn is _training else "labels"


def linear(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """fn of hidden states in front of a head of 1s, so that its logits are they."""
    head = lambda h: jnp.eye(h.shape[-1], dtype=h.dtype)
    return lambda logits, labels, **more: fn(
        logits, head(logits), labels, chunk_size=4, **options, **more
    )


def negative(out: oracle.Loss) -> oracle.Loss:
    return oracle.Loss(-out.value, {k: -g for k, g in out.gradient.items()}, out.scale)


def entropy(x: Any, y: Any) -> oracle.Loss:
    """H = Σ_v p_v nll_v, ∂H/∂z_v = p_v (nll_v − H)."""
    row = oracle.row(x)
    terms = oracle.times(row.p, row.nll)
    H = terms.sum(-1)
    slope = oracle.times(row.p, row.nll - H[:, None])
    scale = terms + row.p * H[:, None]
    return oracle.Loss(H, {"logits": slope}, {"value": H, "logits": scale})


_ce = partial(oracle.cross_entropy, reduction="none")
_linear = linear(jxent.linear_cross_entropy, reduction="none", implementation="vocab")
_reference = linear(jxent.linear_cross_entropy, reduction="none", implementation="reference")
_tokens = linear(jxent.linear_cross_entropy, reduction="sum", implementation="tokens")
_training = partial(jxent.cross_entropy, reduction="none")
_label, _soft = jxent.softmax_cross_entropy_with_integer_labels, jxent.softmax_cross_entropy
_softmax, _focal, _kl = oracle.softmax_cross_entropy, oracle.softmax_focal_loss, "log_predictions"

# α = 1, since α·nll is ∞ where nll is.
_symmetric = partial(jxent.robust.symmetric_cross_entropy, alpha=1.0, beta=0.5)
_symmetric_oracle = partial(oracle.symmetric_cross_entropy, alpha=1.0, beta=0.5)

# A margin for every class, however many there are.
MARGIN = 0.4


def _ldam(logits: Any, labels: Any, **more: Any) -> Any:
    margins = jnp.full(np.shape(logits)[-1], MARGIN, np.promote_types(logits.dtype, np.float32))
    return jxent.imbalance.ldam(_label(logits, labels, **more), labels, margins)


_distilled = partial(jxent.distillation.distillation_loss, reduction="none", temperature=2.0)
_from_teacher = partial(oracle.distillation_loss, reduction="none", temperature=2.0)


def distillation(name: str) -> Loss:
    return Loss(
        partial(_distilled, divergence=name),
        taught_rows,
        partial(_from_teacher, divergence=name),
        by="student_logits",
    )


def weighed(fn: Callable[..., Any], by: Callable[..., oracle.Loss]) -> Loss:
    """A loss of logits with what they weigh, all of them kept."""
    options = lambda x: dict(
        where=np.ones(np.shape(x), bool), row_weights=np.full(np.shape(x), 1.5)
    )
    cast = lambda o: {k: v if v.dtype == bool else v.astype(np.float32) for k, v in o.items()}
    return Loss(
        lambda x, t: fn(x, t, **cast(options(x))), binary_rows, lambda x, t: by(x, t, **options(x))
    )


LOSSES: dict[str, Loss] = {
    "distillation_loss, forward": distillation("forward"),
    "distillation_loss, jsd": distillation("jsd"),
    "cross_entropy, labels": Loss(_training, label_rows, _ce),
    "cross_entropy, distributions": Loss(_training, soft_rows, _ce),
    "softmax_cross_entropy_with_integer_labels": Loss(_label, label_rows, _softmax),
    "softmax_cross_entropy": Loss(_soft, soft_rows, _softmax),
    "softmax_focal_loss, labels": Loss(jxent.softmax_focal_loss, label_rows, _focal, soft_too=True),
    "softmax_focal_loss, distributions": Loss(jxent.softmax_focal_loss, soft_rows, _focal),
    "poly_loss_cross_entropy": Loss(
        jxent.poly_loss_cross_entropy, soft_rows, oracle.poly_loss_cross_entropy
    ),
    "poly_loss_cross_entropy, labels": Loss(
        partial(jxent.poly_loss_cross_entropy, epsilon=(-1.0, 2.0)),
        label_rows,
        partial(oracle.poly_loss_cross_entropy, epsilon=(-1.0, 2.0)),
        soft_too=True,
    ),
    "generalized_cross_entropy, labels": Loss(
        jxent.robust.generalized_cross_entropy,
        label_rows,
        oracle.generalized_cross_entropy,
        soft_too=True,
    ),
    "generalized_cross_entropy, distributions": Loss(
        jxent.robust.generalized_cross_entropy, soft_rows, oracle.generalized_cross_entropy
    ),
    "symmetric_cross_entropy, labels": Loss(
        _symmetric,
        label_rows,
        _symmetric_oracle,
        soft_too=True,
    ),
    "symmetric_cross_entropy, distributions": Loss(_symmetric, soft_rows, _symmetric_oracle),
    "ldam": Loss(_ldam, label_rows, partial(oracle.ldam, margins=MARGIN)),
    "kl_divergence": Loss(jxent.kl_divergence, divergence_rows, oracle.kl_divergence, _kl),
    "kl_divergence_with_log_targets": Loss(
        jxent.kl_divergence_with_log_targets,
        log_divergence_rows,
        oracle.kl_divergence_with_log_targets,
        _kl,
    ),
    "sigmoid_binary_cross_entropy": Loss(
        jxent.sigmoid_binary_cross_entropy, binary_rows, oracle.sigmoid_binary_cross_entropy
    ),
    "sigmoid_focal_loss": Loss(jxent.sigmoid_focal_loss, binary_rows, oracle.sigmoid_focal_loss),
    "asymmetric_loss": Loss(jxent.robust.asymmetric_loss, binary_rows, oracle.asymmetric_loss),
    "asymmetric_loss without a margin": Loss(
        partial(jxent.robust.asymmetric_loss, gamma_pos=0.5, clip=0.0),
        binary_rows,
        partial(oracle.asymmetric_loss, gamma_pos=0.5, clip=0.0),
    ),
    "sigmoid_binary_cross_entropy, weighed": weighed(
        jxent.sigmoid_binary_cross_entropy, oracle.sigmoid_binary_cross_entropy
    ),
    "asymmetric_loss, weighed": weighed(jxent.robust.asymmetric_loss, oracle.asymmetric_loss),
    "linear_cross_entropy, tokens": Loss(_tokens, hidden_rows, _ce, summed=True),
    "linear_cross_entropy, vocab": Loss(_linear, hidden_rows, _ce),
    "linear_cross_entropy, reference": Loss(_reference, hidden_rows, _ce),
    "linear_cross_entropy, tokens, distributions": Loss(
        _tokens, hidden_soft_rows, _ce, summed=True
    ),
    "linear_cross_entropy, vocab, distributions": Loss(_linear, hidden_soft_rows, _ce),
    "information.softmax_entropy": Loss(
        lambda z, t: jxent.information.softmax_entropy(z), plain_rows, entropy
    ),
    "linear_log_probs, log_probs": Loss(
        lambda h, y, **more: linear(jxent.linear_log_probs)(h, y, **more).log_probs,
        hidden_rows,
        lambda x, y: negative(_ce(x, y)),
    ),
    "linear_log_probs, entropy": Loss(
        lambda h, y, **more: linear(jxent.linear_log_probs)(h, y, **more).entropy,
        hidden_rows,
        entropy,
    ),
}
