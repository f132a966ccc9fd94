"""The promise: float32 rows of integer labels within 4 + gap ulp, and gradients within theirs.

gap = m − the largest other logit.  The largest errors found are printed (`pytest -s`).
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import value_and_gradients
from compare import f64, ulp

import jxent

LOSS_ULP, LABEL_ULP, OTHERS = 4, 8, 1e-5
SMALLEST = 1e-34  # true values below are not promised

Rows = tuple[np.ndarray, np.ndarray]


def _normal(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _wide(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return 20 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _offset(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    offsets = rng.choice([-1e8, -1e4, 1e3, 1e6, 1e8], (rows, 1))
    spread = np.maximum(1, np.abs(offsets) * 2.0**-22)  # a few neighbouring float32 numbers
    return offsets + spread * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _confident(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _normal(rng, rows, classes)
    others = np.where(np.arange(classes) == y[:, None], -np.inf, z).max(-1)
    z[np.arange(rows), y] = others + rng.uniform(10, 70, rows)
    return z, y


def _wrong(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _confident(rng, rows, classes)
    return z, (y + 1) % classes


def _ties(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _normal(rng, rows, classes)
    z = np.round(2 * z)
    z[: rows // 2, :] = 0
    return z, y


def _half(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _confident(rng, rows, classes)
    return np.asarray(jnp.asarray(z, jnp.bfloat16), np.float64), y


# (how rows are made, rows, classes).
REGIMES: dict[str, tuple[Callable[[np.random.Generator, int, int], Rows], int, int]] = {
    "unit normal": (_normal, 2000, 100),
    "wide": (_wide, 2000, 100),
    "large V": (_normal, 4, 131072),
    "large V, confident": (_confident, 4, 131072),
    "shared offset": (_offset, 2000, 100),
    "confident": (_confident, 2000, 100),
    "two classes, confident": (_confident, 2000, 2),
    "wrong and confident": (_wrong, 2000, 100),
    "ties": (_ties, 2000, 100),
    "half precision": (_half, 2000, 100),
}
LOSSES = {
    "cross_entropy": lambda logits, labels: jxent.cross_entropy(logits, labels, reduction="none"),
    "rows": jxent.softmax_cross_entropy_with_integer_labels,
}


def batches(regime: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    make, rows, classes = REGIMES[regime]
    for seed in range(count):
        z, y = make(np.random.default_rng(seed), rows, classes)
        yield z.astype(np.float32), y.astype(np.int32)


def worst_errors(fn: Callable[..., jax.Array], z: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Each error over its bound; asserts that nothing is falsely zero or negative."""
    expected = oracle.cross_entropy(z, y, reduction="none")
    value, gradients = value_and_gradients(fn, dict(logits=jnp.asarray(z), labels=jnp.asarray(y)))
    loss, gradient = f64(value), f64(gradients["logits"])
    top = np.partition(z.astype(np.float64), -2, axis=-1)
    gap = top[:, -1] - top[:, -2]

    promised = expected.value >= SMALLEST
    assert promised.mean() > 0.9
    assert np.all(loss[promised] > 0), "a false zero, or negative"
    assert np.all(loss >= 0)
    error = np.abs(loss - expected.value) / ulp(expected.value) / (LOSS_ULP + gap)

    at = np.arange(len(y)), y
    wanted = expected.gradient["logits"]
    assert np.all(gradient[at][promised] < 0), "a false zero"
    of_label = np.abs(gradient[at] - wanted[at]) / ulp(wanted[at]) / (LABEL_ULP + gap)
    others = np.where(np.abs(wanted) >= SMALLEST, np.abs(gradient / wanted - 1), 0) / OTHERS
    others[at] = 0
    return {
        "loss": error[promised].max(),
        "label gradient": of_label[promised].max(),
        "other gradients": others.max(),
    }


def assert_promise(regime: str, name: str, count: int) -> None:
    worst = {"loss": 0.0, "label gradient": 0.0, "other gradients": 0.0}
    for z, y in batches(regime, count):
        found = worst_errors(LOSSES[name], z, y)
        worst = {k: max(worst[k], found[k]) for k in worst}
    print(f"{regime}, {name}: " + ", ".join(f"{k} {v:.2f} of its bound" for k, v in worst.items()))
    for quantity, share in worst.items():
        assert 0 < share <= 1, f"{quantity}: {share:.2f} of its bound"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_ulp_bounds(regime, name):
    assert_promise(regime, name, 1)


@pytest.mark.deep
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_ulp_bounds_deep(regime, name):
    assert_promise(regime, name, 25)


@pytest.mark.parametrize("gap", [17, 18, 20, 30, 40, 60, 75])
def test_confident_rows(gap):
    """From a gap of 17 float32 logsumexp(z) − z_y is 0, loss and gradient; the truth is not."""
    z = jnp.asarray([[gap, 0.0, 0.0, -1.0]], jnp.float32)
    y = jnp.asarray([0])
    naive = jax.nn.logsumexp(z, axis=-1) - z[:, 0]
    assert naive[0] == 0
    for fn in LOSSES.values():
        errors = worst_errors(fn, np.asarray(z), np.asarray(y))
        assert max(errors.values()) <= 1


@pytest.mark.parametrize("gap", [88, 95, 100])
def test_confident_rows_that_underflow(gap):
    """Below the smallest normal number 0 is right enough, and nothing is negative or NaN."""
    z = jnp.asarray([[gap, 0.0, 0.0, -1.0]], jnp.float32)
    for fn in LOSSES.values():
        value, gradients = value_and_gradients(fn, dict(logits=z, labels=jnp.asarray([0])))
        assert 0 <= value[0] <= 2 * np.exp(-float(gap)) * 2
        assert np.all(np.abs(gradients["logits"]) <= 4 * np.exp(-float(gap)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits(name, dtype):
    """The loss to float32's bound; the gradient is the float32 one, rounded once."""
    z, y = _confident(np.random.default_rng(0), 500, 100)
    z = jnp.asarray(z, dtype)
    given = dict(logits=z, labels=jnp.asarray(y))
    wide = {**given, "logits": z.astype(jnp.float32)}
    value, gradients = value_and_gradients(LOSSES[name], given)
    expected, wanted = value_and_gradients(LOSSES[name], wide)
    assert value.dtype == jnp.float32
    assert gradients["logits"].dtype == z.dtype
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    rounded = np.asarray(wanted["logits"].astype(dtype))
    off = np.abs(f64(gradients["logits"]) - f64(rounded))
    # Two float32 results an ulp apart may round to neighbours, seldom.
    assert np.all(off <= ulp(rounded, dtype) + 1e-38)
    assert np.mean(off > 0) < 0.01
