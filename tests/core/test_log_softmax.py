"""A row's statistics, on every device's path: confident, faint, tied and lone rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jxent._core import log_softmax

ULP = 4  # beyond the gap, as promised for the loss
F32 = jnp.dtype(jnp.float32)


@pytest.fixture(params=["cpu", "default"])
def path(request, monkeypatch):
    """The code that one platform runs, here."""

    def chosen(*operands, default, **platforms):
        return {"default": default, **platforms}[request.param](*operands)

    monkeypatch.setattr(lax, "platform_dependent", chosen)


def exact(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m, and Σ exp(z − m) without one of the largest, in float64."""
    wide = z.astype(np.float64)
    m = wide.max(-1)
    rest = np.exp(wide - m[:, None])
    np.put_along_axis(rest, wide.argmax(-1)[:, None], 0, -1)
    return m, rest.sum(-1)


def gap(z: np.ndarray) -> np.ndarray:
    second, first = np.partition(z.astype(np.float64), -2, axis=-1)[:, -2:].T
    return first - second


def leading(rows: int, classes: int, by: float) -> np.ndarray:
    z = np.random.default_rng(0).standard_normal((rows, classes)).astype(np.float32)
    z[np.arange(rows), np.arange(rows) % classes] = z.max(-1) + np.float32(by)
    return z


CASES = {
    "ordinary": leading(64, 100, 0.5),
    "sure": leading(64, 100, 9),
    "confident": leading(64, 100, 30),
    "faint": leading(64, 100, 77),
    "ties": np.round(leading(64, 100, 0) / 2),
    "all equal": np.zeros((3, 7), np.float32),
    "one class": np.ones((3, 1), np.float32),
    "lone, thousands equal": np.r_[np.float32(10), np.zeros(8191, np.float32)][None],
    "impossible classes": np.where(np.arange(100) < 50, -np.inf, leading(64, 100, 30)),
    # Its second largest is 1e-38 of the largest, where exp is flushed to 0, and told in 1e-34.
    "flushed": np.tile(np.float32([87.35, 11.0] + 98 * [0.0]), (64, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_statistics(path, name):
    z = CASES[name].astype(np.float32)
    m, S = jax.jit(lambda z: log_softmax.statistics(z, F32))(z)
    true_m, true_S = exact(z)
    np.testing.assert_array_equal(m, true_m)
    allowed = ULP + (gap(z) if z.shape[-1] > 1 else 0)
    assert np.all(np.abs(S - true_S) <= allowed * np.spacing(true_S.astype(np.float32)))


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_row_at_fault_has_no_statistics(path, fault):
    z = leading(4, 10, 20)
    clean = jax.jit(lambda z: log_softmax.statistics(z, F32))(z)
    z[2, 3] = fault
    z = np.concatenate([z, np.full((1, 10), -np.inf, np.float32)])
    m, S = jax.jit(lambda z: log_softmax.statistics(z, F32))(z)
    np.testing.assert_array_equal(np.isnan(S), [False, False, True, False, True])
    for ours, theirs in zip((m, S), clean, strict=True):
        np.testing.assert_array_equal(np.delete(ours, [2, 4]), np.delete(theirs, 2))


def test_weighted_nll_meets_zero_times_infinity(path):
    z = np.float32([[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0], [2.0, 1.0, 1.0]])
    w = np.float32([[0.5, 0.0, 0.5], [0.5, 1e-30, 0.5], [0.0, 0.0, 0.0]])
    found = jax.jit(lambda w, z: log_softmax.weighted_nll(w, z, log_softmax.statistics(z, F32)))(
        w, z
    )
    np.testing.assert_allclose(found, [np.log(1 + np.e) - 0.5, np.inf, 0], rtol=1e-6)
