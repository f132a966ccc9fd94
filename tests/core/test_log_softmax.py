"""A row's statistics, on every device's path: confident, faint, tied and lone rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import as_users
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from jxent._core import log_softmax

ULP = 4  # beyond the gap, as promised for the loss
F32 = jnp.dtype(jnp.float32)


@pytest.fixture(params=["cpu", "cuda", "default"])
def path(request, monkeypatch):
    """The code that one platform runs, here."""

    def chosen(*operands, default, **platforms):
        return {"default": default, **platforms}[request.param](*operands)

    monkeypatch.setattr(lax, "platform_dependent", chosen)
    return request.param


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


def cases(V: int) -> dict[str, np.ndarray]:
    return {
        "ordinary": leading(64, V, 0.5),
        "sure": leading(64, V, 9),
        "confident": leading(64, V, 30),
        "faint": leading(64, V, 77),
        "ties": np.round(leading(64, V, 0) / 2),
        "all equal": np.zeros((3, V), np.float32),
        "impossible classes": np.where(np.arange(V) < V // 2, -np.inf, leading(64, V, 30)),
        # Its second largest is 1e-38 of the largest, where exp is flushed to 0, and told in 1e-34.
        "flushed": np.tile(np.float32([87.35, 11.0] + (V - 2) * [0.0]), (64, 1)),
    }


# 101 classes make no blocks, 1000 make eight.  "Crowded": the block of the largest sum is not the
# one that holds the maximum.
CASES = {f"{name}, {V}": z for V in (101, 1000) for name, z in cases(V).items()} | {
    "one class": np.ones((3, 1), np.float32),
    "lone, thousands equal": np.r_[np.float32(10), np.zeros(8191, np.float32)][None],
    "crowded": np.tile(np.float32([1] + 949 * [-50] + 50 * [0.9]), (2, 1)),
}


@pytest.mark.parametrize("follow", [False, True], ids=["alone", "probabilities follow"])
@pytest.mark.parametrize("name", CASES)
def test_statistics(path, name, follow):
    if path == "cuda" and "flushed" in name:
        pytest.skip("a GPU's exp is not flushed there, a CPU's is")
    z = CASES[name].astype(np.float32)
    run = jax.jit(lambda z: log_softmax.statistics(z, F32, probabilities_follow=follow))
    m, S = run(z)
    true_m, true_S = exact(z)
    np.testing.assert_array_equal(m, true_m)
    allowed = ULP + (gap(z) if z.shape[-1] > 1 else 0)
    assert np.all(np.abs(S - true_S) <= allowed * np.spacing(true_S.astype(np.float32)))


@pytest.mark.parametrize("V", [101, 1000])
def test_a_batch_is_more_rows(V):
    """`vmap` computes what the batched call does, bit by bit, and stores no more."""
    batched = lambda z: log_softmax.statistics(z, F32)
    z = leading(64, V, 5)
    one, other = (as_users(f).lower(z).compile() for f in (jax.vmap(batched), batched))
    for ours, theirs in zip(one(z), other(z), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    stored = [f.memory_analysis().temp_size_in_bytes for f in (one, other)]
    assert stored[0] <= stored[1] + z.nbytes / 10


@pytest.mark.parametrize("spec", [P("a"), P(None, "b"), P("a", "b")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_sharded_logits(kind, spec):
    """Of rows or classes on several devices, value and gradient, and no logits are gathered."""
    z, y = leading(8, 2000, 5), jnp.arange(8)
    loss = jax.value_and_grad(jxent.cross_entropy)
    shape = (1, 8) if spec[0] is None else (2, 4)
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(kind, kind))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    sharded = put(z, *spec), put(y, *spec[:1])
    compiled = jax.jit(loss).lower(*sharded).compile()
    for ours, theirs in zip(compiled(*sharded), loss(jnp.asarray(z), y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("follow", [False, True], ids=["alone", "probabilities follow"])
@pytest.mark.parametrize("V", [7, 256])
def test_derivatives(path, V, follow):
    """Those of Σ exp(z − m) at a constant m, at ties too."""
    z = np.float32(np.random.default_rng(0).standard_normal((2, V)))
    z[1, :3] = z[1].max()
    along = jnp.asarray(np.random.default_rng(1).standard_normal((2, V)), jnp.float32)

    def derivatives(f):
        total = lambda z: jnp.sum(jnp.sin(f(z)))
        first = jax.grad(total)
        return jax.jit(lambda z: (first(z), jax.grad(lambda z: jnp.vdot(first(z), along))(z)))(z)

    m = jnp.asarray(z.max(-1, keepdims=True))
    S = lambda z: log_softmax.statistics(z, F32, probabilities_follow=follow).S
    plain = lambda z: jnp.sum(jnp.exp(z - m), -1) - 1
    for ours, theirs in zip(derivatives(S), derivatives(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


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
