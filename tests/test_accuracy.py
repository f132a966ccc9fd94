"""The promise: float32 rows of integer labels within 4 + gap ulp, and gradients within theirs.

gap = m − the largest other logit.  The largest errors found are printed (`pytest -s`), and told in
notebooks/tables/accuracy.md by `tests/promises.py`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import value_and_gradients
from compare import f64, ulp
from compiling import as_users
from hostile import linear
from often import first, only

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


class Regime(NamedTuple):
    """How rows are made, how many at a time, of how many classes, in which dtype."""

    make: Callable[[np.random.Generator, int, int], Rows]
    rows: int = 150_000
    classes: int = 16
    dtype: str = "float32"


REGIMES = {
    "unit normal": Regime(_normal),
    "wide": Regime(_wide),
    "large V": Regime(_normal, 4, 131072),
    "large V, confident": Regime(_confident, 4, 131072),
    "shared offset": Regime(_offset),
    "confident": Regime(_confident),
    "two classes, confident": Regime(_confident, classes=2),
    "wrong and confident": Regime(_wrong),
    "ties": Regime(_ties),
    "half precision": Regime(_confident, dtype="bfloat16"),
}
LOSSES = {
    "cross_entropy": lambda logits, labels: jxent.cross_entropy(logits, labels, reduction="none"),
    "rows": jxent.softmax_cross_entropy_with_integer_labels,
    "linear": linear(jxent.linear_cross_entropy, reduction="none"),
}


def batches(regime: Regime, seeds: range) -> Iterator[tuple[jax.Array, np.ndarray]]:
    for seed in seeds:
        z, y = regime.make(np.random.default_rng(seed), regime.rows, regime.classes)
        # Rounded by way of float32, or a batch in half precision would not be what was drawn.
        yield jnp.asarray(z, jnp.float32).astype(regime.dtype), y.astype(np.int32)


class Worst(NamedTuple):
    """The largest error of a quantity, as a share of its bound, in its unit, and where."""

    share: float
    error: float
    row: str

    def __str__(self) -> str:
        return f"{self.error:.3g}, {self.share:.2f} of its bound, at {self.row}"


class Truth:
    """What rows should come to, in float64; the promise holds where the loss is large enough."""

    def __init__(self, z: jax.Array, y: np.ndarray) -> None:
        self.z, self.at = f64(z), (np.arange(len(y)), y)
        row = oracle.row(self.z)
        self.loss = row.nll[self.at]
        self.gradient = row.p
        self.gradient[self.at] = row.p_minus_1[self.at]
        top = np.partition(self.z, -2, axis=-1)
        self.gap = top[:, -1] - top[:, -2]
        self.promised = self.loss >= SMALLEST

    def worst(self, share: np.ndarray, error: np.ndarray) -> Worst:
        i = int(np.argmax(np.where(self.promised, share, -1)))
        row = f"gap {self.gap[i]:.3g}, loss {self.loss[i]:.3g}"
        return Worst(float(share[i]), float(error[i]), row)


def worst_errors(fn: Callable[..., jax.Array], z: jax.Array, y: np.ndarray) -> dict[str, Worst]:
    """Each largest error; asserts that nothing is falsely zero or negative."""
    truth = Truth(z, y)
    value, gradients = value_and_gradients(fn, dict(logits=z, labels=jnp.asarray(y)), jit=as_users)
    loss, gradient = f64(value), f64(gradients["logits"])
    promised, wanted, at = truth.promised, truth.gradient, truth.at
    assert value.dtype == np.float32
    assert promised.mean() > 0.9
    assert np.all(loss[promised] > 0), "a false zero, or negative"
    assert np.all(loss >= 0)
    assert np.all(gradient[at][promised] < 0), "a false zero"
    # The gradient is rounded once more to a narrower dtype.
    narrow = 0.5 * ulp(wanted, z.dtype) if z.dtype != jnp.float32 else np.zeros(wanted.shape)
    in_loss = np.abs(loss - truth.loss) / ulp(truth.loss)
    in_label = np.maximum(np.abs(gradient[at] - wanted[at]) - narrow[at], 0) / ulp(wanted[at])
    seen = np.abs(wanted) >= SMALLEST
    seen[at] = False
    off = np.maximum(np.abs(gradient - wanted) - narrow, 0)
    in_others = np.divide(off, np.abs(wanted), out=np.zeros(off.shape), where=seen).max(-1)
    return {
        "loss": truth.worst(in_loss / (LOSS_ULP + truth.gap), in_loss),
        "label gradient": truth.worst(in_label / (LABEL_ULP + truth.gap), in_label),
        "other gradients": truth.worst(in_others / OTHERS, in_others),
    }


def measure(regime: Regime, fn: Callable[..., jax.Array], seeds: range) -> dict[str, Worst]:
    """The largest errors over some batches."""
    found = [worst_errors(fn, z, y) for z, y in batches(regime, seeds)]
    return {name: max(errors[name] for errors in found) for name in found[0]}


def assert_promise(regime: str, name: str, seeds: range) -> None:
    worst = measure(REGIMES[regime], LOSSES[name], seeds)
    for quantity, found in worst.items():
        print(f"{regime}, {name}, {quantity}: {found}")
        assert found.share <= 1, f"{quantity}: {found}"
    half = REGIMES[regime].dtype != "float32"
    assert worst["loss"].share > 0 and (half or worst["label gradient"].share > 0)


CASES = [
    (regime, name) for regime in REGIMES for name in LOSSES if "V" not in regime or name != "linear"
]


@pytest.mark.parametrize(("regime", "name"), only(lambda case: case[1] != "rows", CASES))
def test_ulp_bounds(regime, name):
    assert_promise(regime, name, range(1))


@pytest.mark.deep
@pytest.mark.parametrize("regime", REGIMES)
def test_ulp_bounds_deep(regime):
    assert_promise(regime, "cross_entropy", range(1, 21))


def test_how_many_rows():
    assert sum(regime.rows for regime in REGIMES.values()) >= 1_000_000


@pytest.mark.deep
@pytest.mark.parametrize("classes", [2, 3, 7, 33, 100, 1000, 10_000, 50_257])
@pytest.mark.parametrize("make", [_normal, _wide, _confident, _wrong, _ties])
def test_every_number_of_classes(make, classes):
    regime = Regime(make, max(4, 4_000_000 // classes), classes)
    for quantity, found in measure(regime, LOSSES["cross_entropy"], range(1)).items():
        assert found.share <= 1, f"{quantity}: {found}"


@pytest.mark.parametrize("regime", REGIMES)
def test_the_oracle(regime):
    """The truth itself, against 60 digits."""
    mp = pytest.importorskip("mpmath").mp
    few = REGIMES[regime]._replace(rows=4, classes=min(REGIMES[regime].classes, 300))
    z, y = next(batches(few, range(1)))
    truth = Truth(z, y)
    with mp.workdps(60):
        for i, row in enumerate(truth.z):
            exact = [mp.exp(mp.mpf(float(x)) - mp.mpf(float(row.max()))) for x in row]
            p = [x / mp.fsum(exact) for x in exact]
            np.testing.assert_allclose(truth.loss[i], float(-mp.log(p[y[i]])), rtol=1e-14)
            slopes = [float(v - (v is p[y[i]])) for v in p]
            np.testing.assert_allclose(truth.gradient[i], slopes, rtol=1e-14)


@pytest.mark.parametrize("gap", [17, 18, 20, 30, 40, 60, 75])
def test_confident_rows(gap):
    """From a gap of 17 float32 logsumexp(z) − z_y is 0, loss and gradient; the truth is not."""
    z = jnp.asarray([[gap, 0.0, 0.0, -1.0]], jnp.float32)
    y = jnp.asarray([0])
    naive = jax.nn.logsumexp(z, axis=-1) - z[:, 0]
    assert naive[0] == 0
    for fn in LOSSES.values():
        assert all(found.share <= 1 for found in worst_errors(fn, z, np.asarray(y)).values())


SCALE = 0.7
MADE = {
    "scaled": lambda a: a * jnp.asarray(SCALE, a.dtype),
    "squared": lambda a: a * a * jnp.asarray(SCALE, a.dtype),
    "soft cap": lambda a: 50 * jnp.tanh(a / 50),
}


@pytest.mark.parametrize("dtype", first(2, ["float32", "bfloat16", "float16"]))
@pytest.mark.parametrize("made", first(1, MADE))
@pytest.mark.parametrize("name", ["cross_entropy", "rows"])
def test_logits_made_in_the_same_program(name, made, dtype):
    """XLA may leave out the rounding of what makes the logits: all passes see the same ones."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, (2000, 50))
    y = rng.integers(0, 50, 2000)
    a[np.arange(2000), y] += rng.uniform(4, 9 if made == "squared" else 40, 2000)
    a = jnp.asarray(a, jnp.float32).astype(dtype)
    truth = Truth(as_users(MADE[made])(a), y)
    _, pull_back = jax.vjp(MADE[made], a)

    @as_users
    def both(a: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, back = jax.vjp(lambda a: LOSSES[name](MADE[made](a), labels), a)
        return value, back(jnp.ones_like(value))[0]

    value, gradient = both(a, jnp.asarray(y, jnp.int32))
    loss, wanted = f64(value), f64(pull_back(jnp.asarray(truth.gradient, dtype))[0])
    assert np.all(loss[truth.promised] > 0), "a false zero, or negative"
    share = np.abs(loss - truth.loss) / ulp(truth.loss) / (LOSS_ULP + truth.gap)
    assert np.max(share[truth.promised]) <= 1
    seen = np.abs(wanted) > max(SMALLEST, float(jnp.finfo(dtype).tiny))
    off = np.abs(f64(gradient) - wanted)[seen] / np.abs(wanted)[seen]
    assert np.max(off) <= (OTHERS if dtype == "float32" else 4 * float(jnp.finfo(dtype).eps))


def _one_hot(z: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype)


OTHER_LOSSES = {
    "distributions": lambda z, y: jxent.softmax_cross_entropy(z, _one_hot(z, y)),
    "focal": jxent.softmax_focal_loss,
    "focal, distributions": lambda z, y: jxent.softmax_focal_loss(z, _one_hot(z, y)),
    "generalized": lambda z, y: jxent.robust.generalized_cross_entropy(z, y, q=0.5),
    "symmetric": lambda z, y: jxent.robust.symmetric_cross_entropy(z, y, alpha=1.0, beta=0.0),
    "distillation": lambda z, y: jxent.distillation.distillation_loss(
        z, jnp.flip(z), hard_labels=y, alpha=0.0, reduction="none"
    ),
    "entropy": lambda z, y: jxent.information.softmax_entropy(z),
    "metrics": jxent.metrics.log_loss,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_other_losses_of_logits_made_in_the_same_program(name, dtype):
    """They are those of the logits as they are rounded."""
    z, y = _confident(np.random.default_rng(0), 500, 20)
    z[np.arange(500), y] += 20
    a, y = jnp.asarray(z, jnp.float32).astype(dtype), jnp.asarray(y, jnp.int32)
    fn, made = OTHER_LOSSES[name], as_users(MADE["scaled"])(a)
    apart, together = as_users(fn)(made, y), as_users(lambda a, y: fn(MADE["scaled"](a), y))(a, y)
    assert np.max(apart) > 0 and np.min(apart) < 1e-8
    np.testing.assert_allclose(together, apart, rtol=1e-5)


@pytest.mark.parametrize("gap", [86, 87.5, 88])
@pytest.mark.parametrize("name", ["cross_entropy", "rows"])
def test_many_faint_classes(name, gap):
    """Each is flushed to 0 by exp, and all together they are the loss."""
    z = jnp.full((1, 131072), -gap, jnp.float32).at[0, 7].set(0)
    for found in worst_errors(LOSSES[name], z, np.array([7])).values():
        assert found.share <= 1, found


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
