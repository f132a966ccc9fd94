"""Metrics against scikit-learn on real predictions; any split, any devices, any length."""

import functools
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from assertions import assert_close, enable_x64, f64
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

import jxent
from jxent import metrics
from jxent._core import compensated
from jxent.metrics import Average, ClassificationMetrics, MultiLabelMetrics

inf, nan = math.inf, math.nan
AGREEMENT = 1e-6


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Held-out logits of a real model of ten classes, and the labels."""
    x, y = load_digits(return_X_y=True)
    x, held_out, y, labels = train_test_split(x / 16, y, random_state=0)
    logits = LogisticRegression(max_iter=200).fit(x[:200], y[:200]).decision_function(held_out)
    return np.float32(logits), labels.astype(np.int32)


@functools.cache
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of naive Bayes, which counts the same evidence many times."""
    x, y = load_digits(return_X_y=True)
    x = x + np.random.default_rng(0).standard_normal(x.shape)  # no feature is constant
    x, held_out, y, labels = train_test_split(x, y, random_state=0, test_size=0.5)
    return np.float32(GaussianNB().fit(x, y).predict_log_proba(held_out)), labels


def measured(logits, labels, *, top_k=(3,), classes=None, **options) -> metrics.Summary:
    empty = ClassificationMetrics.empty(classes or logits.shape[-1], top_k=top_k)
    return empty.update(logits, labels, **options).summary()


def assert_same(got: metrics.Summary, expected: metrics.Summary, rtol: float) -> None:
    for name in got._fields:
        if name not in ("reliability", "confusion", "top_k"):
            assert_close(getattr(got, name), getattr(expected, name), rtol=rtol, err_msg=name)
    if expected.confusion is not None:
        np.testing.assert_allclose(got.confusion, expected.confusion, rtol=rtol)
    for a, b in zip(got.reliability, expected.reliability, strict=True):
        assert_close(a, b, rtol=rtol)


# --- against scikit-learn ---------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.deep), True])
def test_against_sklearn(weighted):
    z, y = digits()
    w = np.random.default_rng(0).uniform(0, 2, y.size).astype(np.float32) if weighted else None
    got = measured(z, y, row_weights=w)
    p = softmax(f64(z), axis=-1)
    weights = dict(sample_weight=w)
    close = functools.partial(assert_close, rtol=AGREEMENT)
    loss = sk.log_loss(y, p, **weights)
    close(got.log_loss, loss)
    close(got.perplexity, np.exp(loss))
    close(got.bits_per_token, loss / np.log(2))
    close(got.accuracy, sk.accuracy_score(y, p.argmax(1), **weights))
    close(got.top_k_accuracy, [sk.top_k_accuracy_score(y, p, k=3, **weights)])
    close(got.brier_score, sk.brier_score_loss(y, p, scale_by_half=False, **weights))
    close(got.confusion, f64(sk.confusion_matrix(y, p.argmax(1), **weights)))
    assert np.isnan(got.bits_per_byte)
    nll, ones = -log_softmax(f64(z), axis=-1)[np.arange(y.size), y], np.ones(y.size)
    for label in range(10):
        of = y == label
        close(
            got.class_cross_entropy[label],
            np.average(nll[of], weights=None if w is None else w[of]),
        )
    close(got.class_weight, np.bincount(y, weights=ones if w is None else w))
    options = {} if w is None else dict(row_weights=w)
    if not weighted:
        return
    for name, number in {
        "log_loss": got.log_loss,
        "accuracy": got.accuracy,
        "brier_score": got.brier_score,
        "expected_calibration_error": got.expected_calibration_error,
    }.items():
        close(getattr(metrics, name)(z, y, **options), number)
    close(metrics.top_k_accuracy(z, y, 3, **options), got.top_k_accuracy[0])


def test_the_losses_are_the_library_s_own():
    """Where one row is all but sure, log p of a rounded p is 0."""
    z = np.float32([[40.0, 0.0], [50.0, 0.0]])
    y = np.array([0, 0])
    rows = jxent.cross_entropy(z, y, reduction="none")
    assert_close(metrics.log_loss(z, y), np.mean(f64(rows)), rtol=1e-6)
    assert metrics.log_loss(z, y) > 0
    assert_close(metrics.brier_score(z, y), np.mean(2 * f64(rows) ** 2), rtol=1e-5)


def test_calibration_against_sklearn():
    z, y = digits()
    p = softmax(f64(z), axis=-1)
    hit, confidence = p.argmax(1) == y, p.max(1)
    for bins in (15,):
        curve = metrics.reliability_curve(z, y, bins=bins)
        accuracy, mean = calibration_curve(hit, confidence, n_bins=bins)
        some = np.asarray(curve.weight) > 0
        assert_close(curve.accuracy[some], accuracy, rtol=AGREEMENT)
        assert_close(curve.confidence[some], mean, rtol=AGREEMENT)
        assert np.all(np.isnan(curve.accuracy[~some]))
        share = np.asarray(curve.weight)[some] / y.size
        error = np.sum(share * np.abs(accuracy - mean))
        assert_close(
            metrics.expected_calibration_error(z, y, bins=bins), error, rtol=AGREEMENT, scale=1
        )
        assert_close(jnp.sum(curve.weight), float(y.size))
    assert_close(curve.edges, np.linspace(0, 1, 16), rtol=1e-6)


def test_calibration_of_one_class_against_sklearn():
    x, y = load_breast_cancer(return_X_y=True)
    x, held_out, y, labels = train_test_split(x[:, :4], y, random_state=0)
    model = LogisticRegression(max_iter=2000).fit(x, y)
    logit = np.float32(model.decision_function(held_out))
    z = np.stack([np.zeros_like(logit), logit], axis=-1)
    p = softmax(f64(z), axis=-1)
    curve = metrics.reliability_curve(z, labels, bins=10, of_class=1)
    fraction, mean = calibration_curve(labels, p[:, 1], n_bins=10)
    some = np.asarray(curve.weight) > 0
    assert_close(curve.accuracy[some], fraction, rtol=AGREEMENT)
    assert_close(curve.confidence[some], mean, rtol=AGREEMENT)
    assert_close(metrics.log_loss(z, labels), sk.log_loss(labels, p), rtol=AGREEMENT)
    binary = sk.brier_score_loss(labels, p[:, 1])
    assert_close(metrics.brier_score(z, labels), 2 * binary, rtol=AGREEMENT)


def test_bins_are_open_below():
    """(0, 1/2] and (1/2, 1]: a confidence of 1/2 belongs to the first."""
    curve = metrics.reliability_curve(np.zeros((1, 2), np.float32), [0], bins=2)
    np.testing.assert_array_equal(curve.weight, [1, 0])
    impossible = np.float32([[0.0, -inf]])
    curve = metrics.reliability_curve(impossible, [0], bins=2, of_class=1)
    np.testing.assert_array_equal(curve.weight, [1, 0])
    curve = metrics.reliability_curve(impossible, [0], bins=2)
    np.testing.assert_array_equal(curve.weight, [0, 1])


def test_ties_go_to_the_first():
    """As argmax has it: equal logits earn no top-k by being equal."""
    z, y = np.zeros((4, 4), np.float32), np.arange(4)
    got = measured(z, y, top_k=(1, 2, 4, 9))
    assert_close(got.accuracy, 0.25)
    assert_close(got.top_k_accuracy, [0.25, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(got.confusion[:, 0], np.ones(4))


# --- any split --------------------------------------------------------------------------------


def problem(seed: int, rows: int = 60, classes: int = 4):
    rng = np.random.default_rng(seed)
    z = np.float32(3 * rng.standard_normal((rows, classes)))
    y = rng.integers(0, classes, rows).astype(np.int32)
    w = rng.uniform(0.1, 3, rows).astype(np.float32)
    w[rng.random(rows) < 0.1] = 0
    bytes_each = rng.integers(1, 9, rows).astype(np.float32)
    return z, y, w, bytes_each


@given(st.integers(0, 2**16), st.permutations([0, 7, 20, 33]), st.booleans())
def test_any_split(seed, sizes, apart):
    """In turn or measured apart and merged, whatever the batches: the numbers of the whole."""
    z, y, w, n = problem(seed)
    whole = measured(z, y, row_weights=w, byte_counts=n)
    empty = ClassificationMetrics.empty(4, top_k=(3,))
    parts = [empty]
    order = np.random.default_rng(seed).permutation(60)
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        options = dict(row_weights=w[part], byte_counts=n[part])
        if apart:
            parts.append(empty.update(z[part], y[part], **options))
        else:
            parts[0] = parts[0].update(z[part], y[part], **options)
    assert_same(functools.reduce(ClassificationMetrics.merge, parts).summary(), whole, AGREEMENT)


@given(st.integers(0, 2**16))
def test_dropped_rows_contribute_nothing(seed):
    """By where, ignore_index or a weight of 0, whatever they hold."""
    z, y, _, n = problem(seed)
    keep = np.random.default_rng(seed).permutation(60) < 40
    expected = measured(z[keep], y[keep], byte_counts=n[keep])
    bad_z, bad_n = np.where(keep[:, None], z, nan), np.where(keep, n, nan)
    for labels, options in (
        (y, dict(where=keep)),
        (np.where(keep, y, -100), dict(ignore_index=-100)),
        (y, dict(row_weights=np.float32(keep))),
    ):
        assert_same(measured(bad_z, labels, byte_counts=bad_n, **options), expected, AGREEMENT)


@pytest.mark.deep
def test_weights_count_rows():
    """A weight of 2 is the row twice."""
    z, y, *_ = problem(1)
    w = np.float32(np.arange(60) % 3)
    again = np.repeat(np.arange(60), np.arange(60) % 3)
    assert_same(measured(z, y, row_weights=w), measured(z[again], y[again]), AGREEMENT)


def test_bytes():
    z, y, w, n = problem(2)
    nll = -log_softmax(f64(z), axis=-1)[np.arange(60), y]
    got = measured(z, y, row_weights=w, byte_counts=n)
    expected = np.sum(w * nll) / np.sum(f64(w) * n) / np.log(2)
    assert_close(got.bits_per_byte, expected, rtol=AGREEMENT)
    both = ClassificationMetrics.empty(4).update(z, y, byte_counts=n).update(z[:5], y[:5])
    assert_close(both.summary().bits_per_byte, nll.sum() / n.sum() / np.log(2), rtol=AGREEMENT)


@pytest.mark.deep
def test_shapes_of_rows():
    z, y, w, _ = problem(3)
    flat = measured(z, y, row_weights=w)
    folded = measured(z.reshape(3, 4, 5, 4), y.reshape(3, 4, 5), row_weights=w.reshape(3, 4, 5))
    assert_same(folded, flat, AGREEMENT)
    assert_close(metrics.log_loss(z[0], y[0]), jxent.cross_entropy(z[0], y[0]), rtol=1e-6)
    many = ClassificationMetrics.empty(1500).update(np.zeros((2, 1500), np.float32), [0, 1])
    assert many.summary().confusion is None and many.confused is None


def test_nothing_measured():
    for got in (
        ClassificationMetrics.empty(3).summary(),
        measured(np.zeros((0, 3), np.float32), np.zeros(0, int)),
    ):
        for name in ("log_loss", "perplexity", "accuracy", "brier_score", "bits_per_token"):
            assert np.isnan(getattr(got, name)), name
        assert np.isnan(got.expected_calibration_error)
        assert got.weight == 0 and not np.any(got.confusion)
    assert np.isnan(metrics.fit_temperature(np.zeros((2, 3)), [0, 1], where=np.zeros(2, bool)))


# --- what is at fault -------------------------------------------------------------------------


@jax.jit
def every_number(z, y, w, n):
    empty = ClassificationMetrics.empty(4, top_k=(2,))
    fine = empty.update(z[:5], y[:5])
    summary = fine.merge(empty.update(z, y, row_weights=w, byte_counts=n)).summary()
    curve = metrics.reliability_curve(z, y, row_weights=w, of_class=1)
    return summary, curve, metrics.fit_temperature(z, y, row_weights=w)


@pytest.mark.parametrize("fault", ["label", "nan", "inf", "weight"])
def test_a_row_at_fault_makes_every_number_nan(fault):
    z, y, w, n = problem(4)
    w[7] = 1
    if fault == "label":
        y[7] = 4
    elif fault == "weight":
        w[7] = nan
    else:
        z[7, 2] = nan if fault == "nan" else inf

    fine, _, fine_temperature = every_number(*problem(4))
    assert np.isfinite(fine.log_loss) and np.isfinite(fine_temperature)
    summary, curve, temperature = every_number(z, y, w, n)
    for name in set(summary._fields) - {"top_k", "reliability"}:
        assert np.all(np.isnan(getattr(summary, name))), name
    for part in (*summary.reliability[1:], *curve[1:], temperature):
        assert np.all(np.isnan(part))


def test_an_impossible_label_costs_infinity():
    """+∞ is a number: the others stand."""
    z, y = np.float32([[0.0, -inf], [1.0, 0.0]]), np.array([1, 0])
    got = measured(z, y, top_k=())
    assert got.log_loss == inf and got.perplexity == inf
    assert_close(got.accuracy, 0.5)
    more = ClassificationMetrics.empty(2).update(z, y).update(z, y).summary()
    assert more.log_loss == inf
    assert np.isfinite(got.brier_score) and np.isfinite(got.expected_calibration_error)
    assert np.isnan(metrics.fit_temperature(z, y))


ERRORS = [
    (lambda m: m.update(np.zeros((2, 3)), [0, 1]), ValueError, r"must have 4 classes in the last"),
    (lambda m: m.update(np.zeros((2, 4)), [0, 4]), ValueError, r"`labels`\[1\] = 4 is outside"),
    (lambda m: m.update(np.zeros((2, 4)), [[0], [1]]), ValueError, r"`labels` must have one label"),
    (lambda m: m.update(np.zeros((2, 4)), [0.0, 1.0]), TypeError, r"`labels` must be integers"),
    (lambda m: m.update(np.zeros((2, 4)), [0, 1], where=[1, 0]), TypeError, r"must be boolean"),
    (
        lambda m: m.update(np.zeros((2, 4)), [0, 1], where=np.ones((2, 4), bool)),
        ValueError,
        r"`where` must have the rows' shape \[2\], got bool\[2, 4\]; to exclude classes, give them "
        r"logits of -inf",
    ),
    (
        lambda m: m.update(np.zeros((2, 4)), [0, 1], byte_counts=[1, 2, 3]),
        ValueError,
        r"`byte_counts` must have shape \[2\]",
    ),
    (lambda m: m.merge(ClassificationMetrics.empty(4, bins=3)), ValueError, r"other options: .*3"),
    (lambda m: ClassificationMetrics.empty(0), ValueError, r"`classes` must be at least 1, got 0"),
    (lambda m: ClassificationMetrics.empty(3, top_k=(0,)), ValueError, r"`top_k` must be at least"),
    (lambda m: ClassificationMetrics.empty(3, bins=2.5), TypeError, r"`bins` must be a static"),
    (
        lambda m: metrics.reliability_curve(np.zeros((1, 2)), [0], of_class=2),
        ValueError,
        r"reliability_curve: `of_class` 2 is outside \[0, 2\)",
    ),
    (lambda m: metrics.log_loss([[1, 2]], [0]), TypeError, r"log_loss: `logits` must be floating"),
    (lambda m: metrics.top_k_accuracy([[1.0]], [0], 0), ValueError, r"`k` must be at least 1"),
    (lambda m: Average.of(["a"]), TypeError, r"Average.of: `values` must be numbers"),
    (lambda m: Average.of([1.0], [1.0, 2.0]), ValueError, r"`weights` must have shape \[1\]"),
]


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call(ClassificationMetrics.empty(4))


def test_checked_names_the_label():
    step = jax.jit(lambda z, y: ClassificationMetrics.empty(3).update(z, y))
    words = r"^ClassificationMetrics.update: `labels`\[0, 1\] = 7 is outside \[0, 3\)"
    with pytest.raises(ValueError, match=words):
        jxent.testing.checked(step)(jnp.zeros((1, 2, 3)), jnp.array([[0, 7]]))


# --- inside JAX -------------------------------------------------------------------------------


def test_scan_and_ragged_batches():
    """One program for batches padded to one size."""
    z, y, w, n = problem(5)
    lengths = [20, 13, 20, 7]
    starts = np.cumsum([0, *lengths])
    pad = lambda x, i: np.concatenate([x[starts[i] : starts[i + 1]], x[: 20 - lengths[i]]])
    stack = lambda x: jnp.stack([jnp.asarray(pad(x, i)) for i in range(4)])
    real = jnp.arange(20)[None] < jnp.asarray(lengths)[:, None]

    @jax.jit
    def evaluate(z, y, w, n, real):
        def step(state, batch):
            z, y, w, n, real = batch
            return state.update(z, y, where=real, row_weights=w, byte_counts=n), None

        empty = ClassificationMetrics.empty(4, top_k=(3,))
        return jax.lax.scan(step, empty, (z, y, w, n, real))[0].summary()

    got = evaluate(stack(z), stack(y), stack(w), stack(n), real)
    assert_same(got, measured(z, y, row_weights=w, byte_counts=n), AGREEMENT)
    assert "top-3 accuracy" in str(got)


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_shard_map(check_vma):
    z, y, w, n = problem(6, rows=64)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P(), check_vma=check_vma
    )
    def evaluate(z, y, w, n):
        empty, half = ClassificationMetrics.empty(4, top_k=(3,)), slice(0, 4)
        first = empty.update(z[half], y[half], row_weights=w[half], byte_counts=n[half])
        rest = jax.tree.map(lambda x: x[4:].reshape(2, 2, *x.shape[1:]), (z, y, w, n))
        step = lambda m, b: (m.update(*b[:2], row_weights=b[2], byte_counts=b[3]), None)
        return jax.lax.scan(step, first, rest)[0].psum("d").summary()

    assert_same(evaluate(z, y, w, n), measured(z, y, row_weights=w, byte_counts=n), AGREEMENT)


@pytest.mark.deep
def test_sharded_rows_under_jit():
    z, y, w, _ = problem(7, rows=64)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))
    put = lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, P("d")))
    update = jax.jit(ClassificationMetrics.update)
    got = update(ClassificationMetrics.empty(4, top_k=(3,)), put(z), put(y), row_weights=put(w))
    assert_same(got.summary(), measured(z, y, row_weights=w), AGREEMENT)


def test_float64(x64):
    z, y = digits()
    got = metrics.log_loss(f64(z), y)
    assert got.dtype == jnp.float64
    assert_close(got, sk.log_loss(y, softmax(f64(z), axis=-1)), rtol=1e-12)
    assert metrics.log_loss(jnp.asarray(z, jnp.bfloat16), y).dtype == jnp.float32


@pytest.mark.parametrize(
    "made", [ClassificationMetrics.empty(3, top_k=(2,)), MultiLabelMetrics.empty(3)]
)
def test_metrics_are_pytrees_of_arrays_and_can_be_pickled(made):
    """The options (`top_k`, `threshold`) are static: part of the structure, not leaves."""
    leaves, structure = jax.tree.flatten(made)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    for again in (jax.tree.unflatten(structure, leaves), pickle.loads(pickle.dumps(made))):
        assert type(again) is type(made) and jax.tree.structure(again) == structure
        assert repr(again) == repr(made)
        made.merge(again)


def test_the_summary_is_a_table():
    z, y, _, n = problem(8)
    lines = str(measured(z, y, byte_counts=n)).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "rows", "log loss", "perplexity", "bits per token", "bits per byte", "accuracy",
        "top-3 accuracy", "Brier score", "calibration error",
    ]  # fmt: skip
    assert f"{np.mean(-log_softmax(f64(z), axis=-1)[np.arange(60), y]):.4f}" in lines[1]
    assert "bits per byte" not in str(measured(z, y))


def drawn(ax: Any) -> tuple[np.ndarray, np.ndarray, list]:
    points, _, (bars,) = ax.containers[-1]
    return points.get_xdata(), points.get_ydata(), bars.get_segments()


@pytest.mark.relaxed
@pytest.mark.parametrize("bins", [1, 7, 20])
def test_the_curve_draws_itself_with_wilson_s_intervals(bins):
    figure = pytest.importorskip("matplotlib.figure").Figure
    z, y = digits()
    curve = metrics.reliability_curve(z, y, bins=bins)
    ax = curve.plot(figure().subplots(), label="one")
    x, up, bars = drawn(ax)
    some = np.asarray(curve.weight) > 0
    np.testing.assert_array_equal(x, f64(curve.confidence)[some])
    np.testing.assert_array_equal(up, f64(curve.accuracy)[some])
    for n, share, bar in zip(np.asarray(curve.weight)[some], up, bars, strict=True):
        ci = scipy.stats.binomtest(round(n * share), round(n)).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(bar[:, 1], [ci.low, ci.high], atol=1e-6)
    error = metrics.expected_calibration_error(z, y, bins=bins)
    assert_close(curve.error, f64(error), rtol=1e-5, scale=1.0, cancels=True)
    assert f"one: calibration error {error:.4f}" in [t.get_text() for t in ax.get_legend().texts]
    assert ax.get_xlabel() == "confidence" and "right" in ax.get_ylabel()
    assert curve.plot(ax) is ax
    assert len({c.lines[0].get_color() for c in ax.containers}) == len(ax.containers) == 2
    assert len([line for line in ax.lines if line.get_label() == "calibrated"]) == 1
    few = curve.plot(figure().subplots(), rows=curve.weight / 4)
    assert np.ptp(drawn(few)[2][0][:, 1]) > np.ptp(bars[0][:, 1])


# --- averages and sums ------------------------------------------------------------------------


def test_average():
    average = Average.of([1.0, nan, 4.0], [1.0, 0.0, 2.0])
    assert_close(average.mean(), 3.0)
    assert np.isnan(Average.empty().mean())
    assert_close(Average(6, 3).merge(Average(jnp.float32(1), 1)).mean(), 7 / 4)
    assert_close(Average.of([True, False]).mean(), 0.5)
    assert np.isnan(Average.of([1.0, nan]).mean()) and Average.of([1.0, inf]).mean() == inf
    both = Average.of([1.0, inf]).update([3.0]).update([inf])
    assert both.mean() == inf
    with enable_x64():
        assert Average.of(np.float64([1.0])).mean().dtype == jnp.float64


def exactly(s: compensated.Sum) -> np.ndarray:
    return f64(s.value) + f64(s.rest)


@given(st.integers(0, 2**16), st.sampled_from([0, 33, 300]), st.sampled_from([0.1, 4.0]))
def test_sums_of_rows_and_of_segments(seed, rows, spread):
    rng = np.random.default_rng(seed)
    x = np.float32(np.exp(spread * rng.standard_normal((rows, 2))))
    segment = rng.integers(0, 3, rows).astype(np.int32)
    assert_close(
        exactly(compensated.sum_rows(jnp.asarray(x))), f64(x).sum(0), rtol=1e-12, dtype="float32"
    )
    expected = np.array([f64(x)[segment == i].sum(0) for i in range(3)])
    got = compensated.segment_sum(jnp.asarray(x), jnp.asarray(segment), 3)
    assert_close(exactly(got), expected, rtol=1e-6)


def test_psum_rounds_nothing():
    """psum in float32 is off by 1e-8 to 1e-7 here."""
    rng = np.random.default_rng(0)
    x = np.float32(np.exp(3 * rng.standard_normal((8, 50))))
    x[:, 0], x[:, 1], x[3, 2] = 0, 2**24 + 2.0, inf
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P())
    def total(x):
        return compensated.psum(
            compensated.Sum(x[0], jnp.where(jnp.isfinite(x[0]), x[0] * 2.0**-26, 0)), "d"
        )

    got = exactly(total(jnp.asarray(x)))
    finite = np.arange(50) != 2
    assert_close(got[finite], (f64(x).sum(0) * (1 + 2.0**-26))[finite], rtol=1e-12, dtype="float32")
    assert got[2] == inf


def stream(rows: int, batch: int) -> tuple[Average, float, float]:
    """A mean of losses in float32, batch after batch, beside float64 and a plain float32 sum."""
    keys = jax.random.split(jax.random.key(0), rows // batch)
    losses = jax.jit(lambda key: jax.random.exponential(key, (batch,)) + 0.1)

    @jax.jit
    def run(keys):
        def step(carry, key):
            average, plain = carry
            x = losses(key)
            return (average.update(x), plain + jnp.sum(x)), jnp.sum(x)

        return jax.lax.scan(step, (Average.empty(), jnp.float32(0)), keys)[0]

    average, plain = run(keys)
    exact = math.fsum(float(np.sum(f64(losses(key)))) for key in keys)
    return average, exact, float(plain)


@pytest.mark.parametrize(
    "rows, batch",
    [(1_000_000, 100), pytest.param(10_000_000, 1000, marks=pytest.mark.deep)],
)
def test_streaming(rows, batch):
    average, exact, plain = stream(rows, batch)
    assert abs(plain / exact - 1) > 1e-7  # what is to be avoided
    assert_close(average.mean(), exact / rows, rtol=1.2e-7)  # one division in float32
    assert float(average.total) + float(average.total_rest) == pytest.approx(exact, rel=1e-11)
    assert float(average.weight) + float(average.weight_rest) == rows


def test_counts_go_on_past_24_bits():
    average = Average(jnp.float32(2**24), jnp.float32(2**24))
    for _ in range(3):
        average = jax.jit(Average.update)(average, jnp.ones(1))
    total, weight = average.sums()
    assert exactly(total) == exactly(weight) == 2**24 + 3


@pytest.mark.parametrize(
    "rows, batch",
    [(100_000, 2000), pytest.param(10_000_000, 10_000, marks=pytest.mark.deep)],
)
def test_streaming_every_number(rows, batch):
    """In float32, beside the same predictions summed in float64."""
    classes = 3
    prior = jnp.array([1.0, 0.0, -1.0])

    def made(key):
        z = 2 * jax.random.normal(key, (batch, classes)) + prior[None]
        return z, jax.random.categorical(jax.random.fold_in(key, 1), z)

    @jax.jit
    def run(keys):
        step = lambda m, key: (m.update(*made(key)), None)
        return jax.lax.scan(step, ClassificationMetrics.empty(classes, top_k=(2,)), keys)[0]

    keys = jax.random.split(jax.random.key(0), rows // batch)
    got = run(keys).summary()
    sums = np.zeros(5)
    confusion, per_class = np.zeros((classes, classes)), np.zeros(classes)
    bins = np.zeros((15, 3))
    for key in keys:
        z, y = (np.asarray(x) for x in jax.jit(made)(key))
        nll = f64(jxent.softmax_cross_entropy_with_integer_labels(z, y))
        p = softmax(f64(z), axis=-1)
        hit, e_y = p.argmax(1) == y, np.eye(classes)[y]
        sums += [batch, nll.sum(), ((p - e_y) ** 2).sum(), hit.sum(), 0]
        np.add.at(confusion, (y, p.argmax(1)), 1)
        per_class += np.bincount(y, weights=nll, minlength=classes)
        b = np.searchsorted(np.linspace(0, 1, 16)[1:-1], p.max(1))
        bins += np.stack([np.bincount(b, v, 15) for v in (p.max(1), hit, np.ones(batch))], -1)
    assert float(got.weight) == rows
    close = functools.partial(assert_close, rtol=AGREEMENT)
    close(got.log_loss, sums[1] / rows)
    close(got.brier_score, sums[2] / rows)
    close(got.accuracy, sums[3] / rows)
    close(got.perplexity, np.exp(sums[1] / rows))
    close(got.confusion, confusion)
    close(got.class_cross_entropy, per_class / confusion.sum(1))
    error = np.abs(bins[:, 1] - bins[:, 0]).sum() / rows
    close(got.expected_calibration_error, error, scale=1.0, cancels=True)


# --- temperature ------------------------------------------------------------------------------


def best_temperature(z: np.ndarray, y: np.ndarray) -> float:
    rows = np.arange(len(y))
    loss = lambda t: -np.mean(log_softmax(f64(z) * np.exp(-t), axis=-1)[rows, y])
    return float(np.exp(minimize_scalar(loss, bounds=(-6.9, 6.9), method="bounded",
                                        options={"xatol": 1e-10}).x))  # fmt: skip


@pytest.mark.parametrize("scale", [1e-2, 0.3, 1.0, 40.0])
def test_temperature_is_the_best(scale):
    z, y = digits()
    T = metrics.fit_temperature(np.float32(scale * z), y)
    assert_close(T, best_temperature(scale * z, y), rtol=1e-4)


def test_temperature_gains_on_held_out_data():
    """A model that is too sure: fitted on one half of the held-out rows, better on the other."""
    z, y = overconfident()
    fit, test = slice(0, 450), slice(450, None)
    T = metrics.fit_temperature(z[fit], y[fit])
    assert T > 2
    before, after = (measured(x[test], y[test]) for x in (z, z / T))
    assert after.log_loss < 0.7 * before.log_loss
    assert after.expected_calibration_error < 0.5 * before.expected_calibration_error
    assert after.accuracy == before.accuracy
    assert_close(T, best_temperature(z[fit], y[fit]), rtol=1e-3)


def test_temperature_of_separable_and_of_hopeless_rows():
    """All right, T falls as long as float32 can tell; all wrong, it rises to its bound."""
    z, y = 4 * np.eye(5, dtype=np.float32), np.arange(5)
    T = metrics.fit_temperature(z, y)
    assert 1e-3 <= T < 0.5 and metrics.log_loss(z / T, y) < 1e-6
    # Too small for float32 to see a slope at T = 1; so large that nothing is left to gain.
    for scale, low, high in ((1e-4, 0.999e-3, 0.01), (1e4, 0.999, 1.001)):
        assert low <= metrics.fit_temperature(np.float32(scale * z), y) <= high
    T = metrics.fit_temperature(z, (y + 1) % 5)
    assert 900 < T <= 1001


@pytest.mark.deep
def test_temperature_of_what_is_kept():
    z, y, w, _ = problem(9, rows=200)
    w = np.float32(w > 1)
    kept = w > 0
    expected = metrics.fit_temperature(z[kept], y[kept])
    bad = np.where(kept[:, None], z, nan)
    assert_close(metrics.fit_temperature(bad, y, where=kept), expected, rtol=1e-4)
    impossible = np.concatenate([bad, np.full((200, 1), -inf, np.float32)], axis=-1)
    assert_close(metrics.fit_temperature(impossible, y, row_weights=w), expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16, jnp.complex64])
def test_empty_sums_are_floats(dtype):
    """Integers would round every loss down; float16 and bfloat16 stop counting early."""
    with pytest.raises(
        TypeError, match=r"ClassificationMetrics\.empty: `dtype` must be float32 or float64, got"
    ):
        ClassificationMetrics.empty(3, dtype=dtype)
    with pytest.raises(TypeError, match=r"Average\.empty: `dtype` must be float32 or float64, got"):
        Average.empty(dtype)
