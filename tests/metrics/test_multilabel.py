"""Multi-label metrics against scikit-learn; what is unknown is left out; any split, any devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_close, f64
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

import jxent
from jxent import metrics
from jxent.metrics import MultiLabelMetrics

inf, nan = math.inf, math.nan
AGREEMENT = 1e-6
close = functools.partial(assert_close, rtol=AGREEMENT)


@functools.cache
def predicted() -> tuple[np.ndarray, np.ndarray]:
    """Held-out logits of one regression for each of five labels, and the labels."""
    x, y = make_multilabel_classification(n_samples=400, n_classes=5, random_state=0)
    model = MultiOutputClassifier(LogisticRegression(max_iter=500)).fit(x[:200], y[:200])
    logits = [e.decision_function(x[200:]) for e in model.estimators_]
    return np.float32(logits).T, y[200:].astype(np.int32)


def measured(z, y, *, threshold=0.5, bins=15, **options) -> metrics.MultiLabelSummary:
    empty = MultiLabelMetrics.empty(z.shape[-1], threshold=threshold, bins=bins)
    return empty.update(z, y, **options).summary()


def numbers(s: metrics.MultiLabelSummary) -> dict[str, np.ndarray]:
    each = {k: v for k, v in s._asdict().items() if k != "reliability"}
    return each | {f"reliability {k}": v for k, v in s.reliability._asdict().items()}


def assert_same(got, expected) -> None:
    for name, value in numbers(expected).items():
        np.testing.assert_allclose(
            numbers(got)[name], value, rtol=AGREEMENT, atol=1e-7, err_msg=name
        )


# --- against scikit-learn ---------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_against_sklearn(weighted, threshold):
    z, y = predicted()
    w = np.random.default_rng(0).uniform(0, 2, len(y)).astype(np.float32) if weighted else None
    p, weights = expit(f64(z)), dict(sample_weight=w)
    guess = (p > threshold).astype(int)
    given = dict(threshold=threshold, row_weights=w)
    got = measured(z, y, **given)
    close(got.hamming_loss, sk.hamming_loss(y, guess, **weights))
    close(got.subset_accuracy, sk.accuracy_score(y, guess, **weights))
    for name, fn in (("f1", sk.f1_score), ("precision", sk.precision_score),
                     ("recall", sk.recall_score)):  # fmt: skip
        close(getattr(got, f"micro_{name}"), fn(y, guess, average="micro", **weights))
        each = fn(y, guess, average=None, zero_division=np.nan, **weights)
        close(getattr(got, f"label_{name}"), each)
    close(got.macro_f1, sk.f1_score(y, guess, average="macro", **weights))
    losses = [sk.log_loss(y[:, v], p[:, v], **weights) for v in range(5)]
    close(got.label_log_loss, losses)
    close(got.log_loss, np.mean(losses))
    total = float(len(y) if w is None else f64(w).sum())
    close(got.weight, 5 * total)
    close(got.label_weight, np.full(5, total))
    close(got.label_share, np.average(y, axis=0, weights=w))
    if weighted and threshold == 0.3:
        close(metrics.hamming_loss(z, y, **given), f64(got.hamming_loss))
        close(metrics.subset_accuracy(z, y, **given), f64(got.subset_accuracy))
        close(metrics.f1_score(z, y, average="micro", **given), f64(got.micro_f1))
        close(metrics.f1_score(z, y, average="macro", **given), f64(got.macro_f1))
        close(metrics.multilabel_log_loss(z, y, row_weights=w), f64(got.log_loss))


def test_calibration_against_sklearn():
    z, y = predicted()
    p, got = expit(f64(z)), measured(z, y, bins=8)
    fraction, mean = calibration_curve(y.ravel(), p.ravel(), n_bins=8)
    some = np.asarray(got.reliability.weight) > 0
    close(got.reliability.accuracy[some], fraction)
    close(got.reliability.confidence[some], mean)
    weight = np.asarray(got.reliability.weight)[some]
    error = np.sum(weight * np.abs(fraction - mean)) / z.size
    assert_close(got.expected_calibration_error, error, rtol=1e-5)
    for v in range(5):
        fraction, mean = calibration_curve(y[:, v], p[:, v], n_bins=8)
        count = np.histogram(p[:, v], 8, (0, 1))[0]
        error = np.sum(count[count > 0] * np.abs(fraction - mean)) / len(y)
        assert_close(got.label_calibration_error[v], error, rtol=1e-5)


def test_a_label_that_is_nowhere():
    """No yes, true or predicted: F1 is 0/0, and the macro mean is of the others."""
    z, y = np.float32([[1.0, -1.0, -1.0], [1.0, -2.0, 1.0]]), np.array([[1, 0, 1], [1, 0, 0]])
    got, guess = measured(z, y), z > 0
    each = sk.f1_score(y, guess, average=None, zero_division=np.nan)
    close(got.label_f1, each)
    assert np.isnan(each[1]) and np.isnan(got.label_precision[1])
    close(got.macro_f1, sk.f1_score(y, guess, average="macro", zero_division=np.nan))
    nothing = measured(z[:, 1:2], y[:, 1:2])
    assert np.isnan(nothing.macro_f1) and np.isnan(nothing.micro_f1) and nothing.hamming_loss == 0


# --- what is unknown, what is at fault, any split -----------------------------------------------


def problem(seed: int, rows: int = 60, classes: int = 4):
    rng = np.random.default_rng(seed)
    z = np.float32(3 * rng.standard_normal((rows, classes)))
    y = rng.integers(0, 2, (rows, classes)).astype(np.int32)
    w = rng.uniform(0.1, 3, rows).astype(np.float32) * (rng.random(rows) < 0.9)
    known = rng.random((rows, classes)) < 0.7
    known[:3] = False
    return z, y, np.float32(w), known


@settings(max_examples=2)
@given(st.integers(0, 2**16))
def test_unknown_labels_are_left_out(seed):
    """Whatever they hold; a row of which nothing is known is no row."""
    z, y, w, known = problem(seed)
    known[-1], w[-1] = True, 1
    bad_z, bad_y = np.where(known, z, nan), np.where(known, y, -1)
    got = measured(bad_z, bad_y, where=known, row_weights=w)
    guess, weight = z > 0, known * f64(w)[:, None]
    wrong = (guess != y) * weight
    close(got.hamming_loss, wrong.sum() / weight.sum())
    close(got.label_weight, weight.sum(0))
    of_row = f64(w) * known.any(1)
    close(got.subset_accuracy, (of_row * ~wrong.any(1)).sum() / of_row.sum())
    bce = np.logaddexp(0, np.where(y == 1, -f64(z), f64(z)))
    close(got.label_log_loss, (weight * bce).sum(0) / weight.sum(0))
    for v in range(4):
        f1 = sk.f1_score(y[:, v], guess[:, v], sample_weight=weight[:, v])
        close(got.label_f1[v], f1)
    rows = known.any(1)
    whole = measured(np.where(rows[:, None], z, nan), y, where=rows)
    assert_same(whole, measured(z[rows], y[rows]))
    mean = jxent.sigmoid_binary_cross_entropy(
        bad_z, bad_y, where=known, row_weights=w, reduction="mean"
    )
    close(got.log_loss, f64(mean))


@settings(max_examples=3)
@given(st.integers(0, 2**16), st.permutations([0, 7, 20, 33]), st.booleans())
def test_any_split(seed, sizes, apart):
    z, y, w, known = problem(seed)
    empty = MultiLabelMetrics.empty(4)
    parts = [empty]
    order = np.random.default_rng(seed).permutation(60)
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        given = dict(where=known[part], row_weights=w[part])
        if apart:
            parts.append(empty.update(z[part], y[part], **given))
        else:
            parts[0] = parts[0].update(z[part], y[part], **given)
    whole = measured(z, y, where=known, row_weights=w)
    assert_same(functools.reduce(MultiLabelMetrics.merge, parts).summary(), whole)


@jax.jit
def every_number(z, y, w, known):
    empty = MultiLabelMetrics.empty(4)
    return empty.merge(empty.update(z, y, where=known, row_weights=w)).summary()


@pytest.mark.parametrize("fault", ["label", "half", "logit", "weight", None])
def test_a_label_at_fault_makes_every_number_nan(fault):
    z, y, w, known = problem(4)
    y, w[7], known[7] = y.astype(np.float32), 1, True
    if fault == "label":
        y[7, 2] = 2
    elif fault == "half":
        y[7, 2] = 0.5
    elif fault == "logit":
        z[7, 2] = nan
    elif fault == "weight":
        w[7] = nan
    got = numbers(every_number(z, y, w, known))
    for name, value in got.items():
        if name != "reliability edges":
            assert np.all(np.isnan(value) if fault else np.isfinite(value)), name
    if fault not in (None, "weight"):  # dropped, or weighing nothing
        for w_7, known_7 in ((0, True), (1, False)):
            w[7], known[7] = w_7, known_7
            assert np.isfinite(every_number(z, y, w, known).log_loss)


def test_infinite_logits():
    """Sure and right is 0, sure and wrong ∞; the other numbers stand."""
    z, y = np.float32([[inf, -inf], [-inf, 1.0]]), np.array([[1, 0], [0, 1]])
    close(measured(z, y).log_loss, math.log1p(math.exp(-1)) / 4)
    got = measured(z, 1 - y)
    assert got.log_loss == inf and got.hamming_loss == 1 and got.subset_accuracy == 0
    assert np.isfinite(got.expected_calibration_error)


def test_nothing_measured():
    for got in (
        MultiLabelMetrics.empty(3).summary(),
        measured(np.zeros((0, 3), np.float32), np.zeros((0, 3), int)),
        measured(np.zeros((2, 3), np.float32), np.zeros((2, 3)), where=np.zeros(2, bool)),
    ):
        for name in ("log_loss", "hamming_loss", "subset_accuracy", "micro_f1", "macro_f1"):
            assert np.isnan(getattr(got, name)), name
        assert got.weight == 0


ERRORS = [
    (lambda m: m.update(np.zeros((2, 3)), np.zeros((2, 3))), ValueError, "must have 4 classes"),
    (lambda m: m.update(np.zeros((2, 4)), [0, 1]), ValueError, r"`labels` must say 0 or 1 of each"),
    (
        lambda m: m.update(np.zeros((1, 4)), [[0, 1, 2, 0]]),
        ValueError,
        r"`labels`\[0, 2\] = 2 is neither 0 nor 1; leave unknown labels out",
    ),
    (
        lambda m: m.update(np.zeros((1, 4)), [[0, 1, 1, 0]], where=np.ones((1, 1), bool)),
        ValueError,
        r"`where` must have the rows' shape \[1\]",
    ),
    (
        lambda m: m.update(np.zeros((1, 4)), [[0, 1, 1, 0]], row_weights=np.ones((1, 4))),
        ValueError,
        r"`row_weights` must have shape \[1\]",
    ),
    (lambda m: m.merge(MultiLabelMetrics.empty(4, threshold=0.4)), ValueError, "other options"),
    (lambda m: MultiLabelMetrics.empty(4, threshold=1.0), ValueError, "between 0 and 1"),
    (lambda m: metrics.f1_score([[1.0]], [[1]], average="none"), ValueError, "f1_score: `average`"),
    (lambda m: metrics.hamming_loss([[1]], [[1]]), TypeError, "hamming_loss: `logits` must be"),
    (lambda m: metrics.subset_accuracy([[1.0]], [[1]], threshold=0), ValueError, "`threshold`"),
    (lambda m: metrics.multilabel_log_loss([[1.0]], [["a"]]), TypeError, "`labels` must be bool"),
]


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call(MultiLabelMetrics.empty(4))


# --- inside JAX -------------------------------------------------------------------------------


def test_scan():
    z, y, w, known = problem(5)
    batches = jax.tree.map(lambda a: jnp.asarray(a).reshape(4, 15, *a.shape[1:]), (z, y, w, known))

    @jax.jit
    def evaluate(batches):
        step = lambda m, b: (m.update(b[0], b[1], row_weights=b[2], where=b[3]), None)
        return jax.lax.scan(step, MultiLabelMetrics.empty(4), batches)[0].summary()

    got = evaluate(batches)
    assert_same(got, measured(z, y, where=known, row_weights=w))
    assert [line.split("  ")[0] for line in str(got).splitlines()] == [
        "labels", "log loss", "Hamming loss", "subset accuracy", "micro precision", "micro recall",
        "micro F1", "macro F1", "calibration error",
    ]  # fmt: skip


def test_shard_map():
    z, y, w, known = problem(6, rows=64)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P())
    def evaluate(z, y, w, known):
        batch = MultiLabelMetrics.empty(4).update(z, y, row_weights=w, where=known)
        return batch.psum("d").summary()

    assert_same(evaluate(z, y, w, known), measured(z, y, where=known, row_weights=w))


def test_dtypes_and_shapes(x64):
    z, y, _, known = problem(7)
    folded = measured(z.reshape(3, 20, 4), y.reshape(3, 20, 4), where=known.reshape(3, 20, 4))
    assert_same(folded, measured(z, y, where=known))
    got = metrics.multilabel_log_loss(f64(z), y.astype(bool))
    assert got.dtype == jnp.float64
    assert_close(got, np.logaddexp(0, np.where(y == 1, -f64(z), f64(z))).mean(), rtol=1e-12)
    assert metrics.hamming_loss(jnp.asarray(z, jnp.bfloat16), y).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16, jnp.complex64])
def test_empty_sums_are_floats(dtype):
    """Integers would round every loss down; float16 and bfloat16 stop counting early."""
    with pytest.raises(
        TypeError, match=r"MultiLabelMetrics\.empty: `dtype` must be float32 or float64, got"
    ):
        MultiLabelMetrics.empty(3, dtype=dtype)
