"""The oracle against central differences of its own loss, and mpmath; `assert_close` itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from assertions import assert_close

H = 1e-6


def central(fn: Callable[[np.ndarray], Any], x: np.ndarray, h: float = H) -> np.ndarray:
    """∂ Σ fn/∂x by central differences."""
    x = np.asarray(x, np.float64)
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = h
        out[at] = (np.sum(fn(x + step)) - np.sum(fn(x - step))) / (2 * h)
    return out


def check_gradients(fn: Callable[..., oracle.Loss], arguments: dict[str, Any], g: Any) -> None:
    """Every gradient the oracle gives for these arguments, against central differences."""
    given = fn(**arguments, cotangent=g)
    for name, gradient in given.gradient.items():
        if not isinstance(arguments.get(name), np.ndarray) or arguments[name].dtype.kind != "f":
            continue
        measured = central(lambda x, n=name: g * fn(**{**arguments, n: x}).value, arguments[name])
        # h² of curvature, and ε/h of the rounding of losses up to 100.
        atol = 2e-8 * (1 + np.max(np.abs(gradient)))
        np.testing.assert_allclose(gradient, measured, rtol=0, atol=atol, err_msg=name)
        spread_alone = name == "targets" and arguments.get("label_smoothing") == 1
        if gradient.size > 1 and not spread_alone:
            assert np.max(np.abs(gradient)) > 1e-3, f"{name}: nothing was compared"


rng = np.random.default_rng(0)
ROWS, V = (2, 3), 5
LOGITS = 3 * rng.standard_normal((*ROWS, V))
LOGITS[0, 1] = [40.0, 0.0, 1.0, -2.0, 3.0]
LOGITS[1, 2] = [2.0, 2.0, 2.0, -1.0, 0.5]
LABELS = rng.integers(0, V, ROWS)
LABELS[0, 0] = 2
SOFT = rng.gamma(1.0, size=(*ROWS, V))
SOFT[0, 1, 2:4] = 0
ROW_MASK = np.array([[True, True, False], [True, False, True]])
CLASS_MASK = rng.random((*ROWS, V)) < 0.7
np.put_along_axis(CLASS_MASK, LABELS[..., None], True, axis=-1)
CLASS_MASK[1, 1] = False
C = rng.uniform(0.5, 2.0, V)
W = rng.uniform(0.5, 2.0, ROWS)
G = rng.standard_normal(ROWS)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows dropped": dict(where=ROW_MASK),
    "classes dropped": dict(where=CLASS_MASK),
    "weights": dict(class_weights=C, row_weights=W),
    "zero weights": dict(
        class_weights=np.where(np.arange(V) == 1, 0, C), row_weights=np.where(ROW_MASK, W, 0)
    ),
    "smoothing": dict(label_smoothing=0.1),
    "all smoothing": dict(label_smoothing=1.0, class_weights=C),
    "z-loss": dict(z_loss=0.3, row_weights=W, class_weights=C),
    "soft cap": dict(logit_softcap=4.0),
    "normalizer": dict(normalizer=np.array(3.7), row_weights=W),
    "everything": dict(
        where=CLASS_MASK,
        class_weights=C,
        row_weights=W,
        label_smoothing=0.2,
        z_loss=0.1,
        logit_softcap=6.0,
    ),
}


# A normalizer goes with the mean.
CASES = [
    (options, reduction)
    for options in OPTIONS
    for reduction in ("mean", "sum", "none")
    if reduction == "mean" or "normalizer" not in OPTIONS[options]
]


@pytest.mark.parametrize("targets", ["labels", "distributions"])
@pytest.mark.parametrize(("options", "reduction"), CASES)
def test_cross_entropy_gradients(options, targets, reduction):
    arguments = {"logits": LOGITS, **OPTIONS[options], "reduction": reduction}
    where = arguments.get("where")
    t = SOFT if where is None or where.ndim < 3 else np.where(where, SOFT, 0)
    arguments["targets"] = LABELS if targets == "labels" else t

    def fn(**kw: Any) -> oracle.Loss:
        out = oracle.cross_entropy(**kw)
        if where is not None and where.ndim == 3:  # mass there is a fault, not a direction
            out.gradient.pop("targets")
        return out

    check_gradients(fn, arguments, G if reduction == "none" else np.float64(0.7))


def test_cross_entropy_ignores_labels():
    y = np.where(ROW_MASK, LABELS, -100)
    ignored = oracle.cross_entropy(LOGITS, y, ignore_index=-100, class_weights=C)
    dropped = oracle.cross_entropy(LOGITS, LABELS, where=ROW_MASK, class_weights=C)
    np.testing.assert_array_equal(ignored.value, dropped.value)
    np.testing.assert_array_equal(ignored.gradient["logits"], dropped.gradient["logits"])
    assert np.all(ignored.gradient["logits"][~ROW_MASK] == 0)


LOG_P = np.log(SOFT + 0.1)
BINARY = dict(logits=LOGITS, labels=rng.random((*ROWS, V)))
ROW_LOSSES: dict[str, tuple[Callable[..., oracle.Loss], dict[str, Any], tuple[int, ...]]] = {
    "softmax, labels": (
        oracle.softmax_cross_entropy,
        dict(logits=np.moveaxis(LOGITS, -1, 0), targets=LABELS, axis=0, class_weights=C),
        ROWS,
    ),
    "softmax, axes": (
        oracle.softmax_cross_entropy,
        dict(logits=LOGITS, targets=SOFT, axis=(2, 0), z_loss=0.1),
        ROWS[1:],
    ),
    "softmax, all axes": (
        oracle.softmax_cross_entropy,
        dict(logits=LOGITS, targets=SOFT, axis=None, label_smoothing=0.1),
        (),
    ),
    "focal, labels": (
        oracle.softmax_focal_loss,
        dict(logits=LOGITS, targets=LABELS, gamma=np.array(1.5), class_weights=C),
        ROWS,
    ),
    "focal, distributions": (
        oracle.softmax_focal_loss,
        dict(logits=LOGITS, targets=SOFT, where=ROW_MASK, gamma=np.array(2.0)),
        ROWS,
    ),
    "poly": (
        oracle.poly_loss_cross_entropy,
        dict(logits=LOGITS, labels=SOFT, epsilon=np.array(-0.7)),
        ROWS,
    ),
    "poly, axes": (
        oracle.poly_loss_cross_entropy,
        dict(logits=LOGITS, labels=SOFT, axis=(0, 2), where=np.ones_like(CLASS_MASK)),
        ROWS[1:],
    ),
    "poly, labels": (
        oracle.poly_loss_cross_entropy,
        dict(logits=LOGITS, labels=LABELS, epsilon=(-0.7, 2.0), class_weights=C, where=ROW_MASK),
        ROWS,
    ),
    "generalized, labels": (
        oracle.generalized_cross_entropy,
        dict(logits=LOGITS, labels=LABELS, q=np.array(0.7), class_weights=C),
        ROWS,
    ),
    "generalized, distributions": (
        oracle.generalized_cross_entropy,
        dict(logits=LOGITS, labels=SOFT, q=np.array(0.3), where=ROW_MASK),
        ROWS,
    ),
    "symmetric, labels": (
        oracle.symmetric_cross_entropy,
        dict(
            logits=LOGITS,
            labels=LABELS,
            alpha=np.array(0.3),
            beta=np.array(0.7),
            class_weights=C,
        ),
        ROWS,
    ),
    "symmetric, distributions": (
        oracle.symmetric_cross_entropy,
        dict(logits=LOGITS, labels=SOFT + 0.02, log_zero=-2.0, where=ROW_MASK, class_weights=C),
        ROWS,
    ),
    "ldam": (oracle.ldam, dict(logits=LOGITS, labels=LABELS, margins=C), ROWS),
    "kl": (oracle.kl_divergence, dict(log_predictions=LOG_P, targets=SOFT + 0.01), ROWS),
    "kl, log targets": (
        oracle.kl_divergence_with_log_targets,
        dict(log_predictions=LOG_P, log_targets=LOGITS - 3, where=ROW_MASK),
        ROWS,
    ),
    "sigmoid": (
        oracle.sigmoid_binary_cross_entropy,
        dict(**BINARY, pos_weight=C, label_smoothing=0.1),
        (*ROWS, V),
    ),
    "sigmoid, entries": (
        oracle.sigmoid_binary_cross_entropy,
        dict(**BINARY, where=CLASS_MASK, row_weights=SOFT + 0.5, reduction="mean"),
        (),
    ),
    "sigmoid focal, rows": (
        oracle.sigmoid_focal_loss,
        dict(
            **BINARY,
            where=ROW_MASK,
            row_weights=SOFT[..., 0] + 0.5,
            reduction="mean",
            normalizer=np.array(5.0),
        ),
        (),
    ),
    "asymmetric": (
        oracle.asymmetric_loss,
        dict(**BINARY, gamma_pos=np.array(0.5), gamma_neg=np.array(3.0)),
        (*ROWS, V),
    ),
    "asymmetric without a margin": (oracle.asymmetric_loss, dict(**BINARY, clip=0.0), (*ROWS, V)),
    "sigmoid focal": (
        oracle.sigmoid_focal_loss,
        dict(**BINARY, alpha=np.array(0.25), gamma=np.array(1.5)),
        (*ROWS, V),
    ),
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_row_loss_gradients(name):
    fn, arguments, shape = ROW_LOSSES[name]
    check_gradients(fn, arguments, np.random.default_rng(1).standard_normal(shape))


def test_against_mpmath():
    """Confident, wrong, tied, shifted and ordinary rows to 1e-14."""
    mp = pytest.importorskip("mpmath").mp
    confident = [[g, 0.0, -1.0, 0.5] for g in (5.0, 17.0, 40.0, 75.0)]
    rows = np.array(
        [*confident, [0.0, 90.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0], [1e4, 1e4 - 1, 9e3, 1e4 + 2]]
    )
    given = oracle.cross_entropy(
        rows, np.zeros(len(rows), int), reduction="none", z_loss=0.01, label_smoothing=0.0
    )
    plain = oracle.cross_entropy(rows, np.zeros(len(rows), int), reduction="none")
    poly = oracle.poly_loss_cross_entropy(rows, np.eye(4)[np.zeros(len(rows), int)])
    focal = oracle.softmax_focal_loss(rows, np.zeros(len(rows), int), gamma=2.0)
    sigmoid = oracle.sigmoid_focal_loss(rows[:, 0], np.ones(len(rows)), gamma=2.0)
    with mp.workdps(60):
        for i, z in enumerate(rows):
            exact = [mp.mpf(float(x)) for x in z]
            total = sum(mp.exp(x) for x in exact)
            p = [mp.exp(x) / total for x in exact]
            nll, lse = -mp.log(p[0]), mp.log(total)
            loss = float(nll)
            close = dict(rtol=1e-14, atol=0)
            np.testing.assert_allclose(plain.value[i], loss, **close)
            np.testing.assert_allclose(given.value[i], float(nll + lse**2 / 100), **close)
            d = [float(v - (j == 0)) for j, v in enumerate(p)]
            np.testing.assert_allclose(plain.gradient["logits"][i], d, **close)
            np.testing.assert_allclose(poly.value[i], float(nll + 2 * (1 - p[0])), **close)
            np.testing.assert_allclose(focal.value[i], float((1 - p[0]) ** 2 * nll), **close)
            q = 1 / (1 + mp.exp(exact[0]))
            np.testing.assert_allclose(
                sigmoid.value[i], float(-(q**2) * mp.log(1 - q)), rtol=1e-12, atol=0
            )


def test_edges():
    """Faults are NaN, dropped rows 0, empty means 0, 0·∞ = 0."""
    inf = np.inf
    z = np.array([[1.0, np.nan], [inf, 0], [-inf, -inf], [0, -inf], [0, -inf], [1, 2]])
    out = oracle.cross_entropy(z, np.array([0, 0, 0, 0, 1, 5]), reduction="none")
    np.testing.assert_array_equal(out.value, [np.nan, np.nan, np.nan, 0, inf, np.nan])
    np.testing.assert_array_equal(out.gradient["logits"][3], [0, 0])
    np.testing.assert_array_equal(out.gradient["logits"][4], [1, -1])
    np.testing.assert_array_equal(np.isnan(out.gradient["logits"]).all(-1), np.isnan(out.value))
    none = oracle.cross_entropy(z, np.zeros(6, int), where=np.zeros(6, bool), z_loss=1.0)
    assert none.value == 0
    assert not np.any(none.gradient["logits"])
    soft = oracle.cross_entropy(z[3:4], np.array([[1.0, 0.0]]), reduction="none")
    assert soft.value == 0
    assert soft.gradient["targets"][0, 1] == inf


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(3),
        -np.array([1.0, 2.0, 3.0]),
        np.array([1.0, 2.0, 3.1]),
        np.array([1.0, 2.0, np.nan]),
    ],
)
def test_assert_close_refuses_wrong_values(wrong):
    with pytest.raises(AssertionError):
        assert_close(wrong.astype(np.float32), [1.0, 2.0, 3.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (dict(rtol=2.0), "zeros"),
        (dict(rtol=1.0), "zeros"),
        (dict(rtol=1e-5, scale=4e5), "zeros"),
        (dict(ulps=2.0**24), "zeros"),
        (dict(rtol=1e-5, scale=50.0), "ten times"),
    ],
)
def test_assert_close_refuses_vacuous_tolerances(tolerance, words):
    with pytest.raises(AssertionError, match=f"would accept {words}"):
        assert_close(np.float32([1, 2, 3]), [1.0, 2.0, 3.0], **tolerance)


def test_assert_close_compares_zeros_and_infinities():
    assert_close(np.float32([0, np.inf, np.nan]), [0.0, np.inf, np.nan], rtol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(np.float32([1e-30]), [0.0], rtol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(np.float32([-np.inf]), [np.inf], rtol=1e-6)
