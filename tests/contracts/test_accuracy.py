"""The promise: float32 rows of integer labels within 4 + gap ulp, and gradients within theirs.

gap = m − the largest other logit.  The largest errors found are printed (`pytest -s`), and told in
notebooks/tables/accuracy.md by `tests/support/measure_accuracy.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accuracy import (
    LOSS_ULP,
    LOSSES,
    OTHERS,
    REGIMES,
    SMALLEST,
    Regime,
    Truth,
    _confident,
    _normal,
    _ties,
    _wide,
    _wrong,
    batches,
    measure,
    worst_errors,
)
from assertions import f64, ulp
from cases import value_and_gradients
from compiling import as_users
from sampling import first, only

import jxent


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
