"""The divergences: value and every gradient against the oracle and optax; their limits."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from assertions import assert_close, enable_x64, f64, relaxed
from cases import value_and_gradients
from derivatives import assert_derivatives
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import jxent

KL, KL_LOG = jxent.kl_divergence, jxent.kl_divergence_with_log_targets
LOSSES = {"targets": KL, "log targets": KL_LOG}
ORACLES = {KL: oracle.kl_divergence, KL_LOG: oracle.kl_divergence_with_log_targets}
NAMES = {KL: "targets", KL_LOG: "log_targets"}
PROMISE = {"float32": 1e-5, "bfloat16": 1e-5, "float16": 1e-5, "float64": 1e-13}
inf, nan = math.inf, math.nan
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def targets_for(loss: Any, t: Any) -> Any:
    """What the loss takes for a target t."""
    with np.errstate(divide="ignore"):
        return t if loss is KL else np.log(t)


# --- against the oracle -----------------------------------------------------------------------


def check(loss: Any, arguments: dict[str, Any], g: np.ndarray) -> None:
    q, target = arguments["log_predictions"], arguments[NAMES[loss]]
    given_in_f64 = {k: a if k in ("axis", "where") else f64(a) for k, a in arguments.items()}
    one_row = target.shape != q.shape
    given_in_f64[NAMES[loss]] = np.broadcast_to(f64(target), q.shape)
    expected = ORACLES[loss](**given_in_f64, cotangent=g)
    value, gradients = value_and_gradients(loss, arguments, np.float32(g))
    rtol = PROMISE[q.dtype.name]
    assert value.dtype == np.promote_types(q.dtype, np.float32)
    scale = expected.scale["value"]
    assert_close(value, expected.value, rtol=rtol, scale=scale, cancels=True, err_msg="value")
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        wanted, scale = expected.gradient[name], expected.scale[name]
        if one_row and name != "log_predictions":
            rows = tuple(range(q.ndim - 1))
            wanted, scale = wanted.sum(rows), scale.sum(rows)
        # An infinite slope is told as the largest number.
        largest = float(jnp.finfo(value.dtype).max)
        large = np.isinf(wanted) & (np.abs(f64(gradient)) > 0.1 * largest)
        assert_close(
            np.where(large & (np.sign(wanted) == np.sign(f64(gradient))), wanted, f64(gradient)),
            wanted,
            rtol=rtol,
            ulps=0.5 if gradient.dtype.itemsize < value.dtype.itemsize else 0,  # rounded once
            scale=scale,
            dtype=gradient.dtype,
            cancels=True,
            err_msg=name,
        )


# shape, axis, where, dtypes of predictions and targets
CALLS = [
    ((5,), -1, None, "float32", "float32"),
    ((3, 4), -1, "rows", "float32", "float32"),
    ((3, 4), 0, "classes", "float32", "bfloat16"),
    ((3, 4), -1, "one row", "float32", "float32"),
    ((2, 3, 4), (0, -1), "rows", "bfloat16", "float32"),
    ((2, 3, 4), None, "classes", "float32", "float32"),
    ((2, 3, 4), (1,), "classes", "float16", "float32"),
    ((), None, None, "float32", "float32"),
]
CALLS_IN_FLOAT64 = [((3, 4), -1, "classes", "float64", "float64")]


def call(loss: Any, spec: tuple, seed: int, spread: float) -> tuple[dict[str, Any], np.ndarray]:
    """Arguments of a call, with some targets of 0 and some mass where none is predicted."""
    shape, axis, where, dtype, target_dtype = spec
    rng = np.random.default_rng(seed)
    costs = lambda s: np.minimum(spread * rng.gamma(1.0, size=s), 60)
    row = shape[-1:] if where == "one row" else shape
    q, t = -costs(shape), np.exp(-costs(row))
    if loss is KL_LOG:  # by a target of 0 the slope is −∞: mixed with others only in log space
        t = np.where(rng.random(row) < 0.2, 0, t)
    arguments = {
        "log_predictions": jnp.asarray(q, dtype),
        NAMES[loss]: jnp.asarray(targets_for(loss, t), target_dtype),
        "axis": axis,
    }
    rows = np.sum(np.zeros(shape), axis).shape
    if where in ("rows", "classes"):
        arguments["where"] = rng.random(rows if where == "rows" else shape) < 0.7
    return arguments, np.asarray(rng.standard_normal(rows), np.float32)


drawn = given(seed=st.integers(0, 2**16), spread=st.sampled_from([0.01, 1.0, 10.0]))


@pytest.mark.parametrize("spec", CALLS, ids=str)
@each_loss
@settings(max_examples=12)
@drawn
def test_oracle(loss, spec, seed, spread):
    check(loss, *call(loss, spec, seed, spread))


@pytest.mark.parametrize("spec", CALLS_IN_FLOAT64, ids=str)
@each_loss
@settings(max_examples=12)
@drawn
def test_oracle_float64(loss, spec, seed, spread):
    with enable_x64():
        check(loss, *call(loss, spec, seed, spread))


@pytest.mark.deep
@pytest.mark.parametrize("spec", CALLS, ids=str)
@each_loss
@settings(settings.get_profile("deep"))
@drawn
def test_oracle_deep(loss, spec, seed, spread):
    check(loss, *call(loss, spec, seed, spread))


# --- against optax ----------------------------------------------------------------------------

rng = np.random.default_rng(5)
Q = np.asarray(jax.nn.log_softmax(2 * rng.standard_normal((3, 4, 2)), axis=1), np.float32)
T = np.asarray(jax.nn.softmax(2 * rng.standard_normal((3, 4, 2)), axis=1), np.float32)
KEPT = rng.random(Q.shape) < 0.7


def close(a: Any, b: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize("axis, where", [(-1, None), (0, KEPT), ((0, 2), KEPT), (None, None)])
@each_loss
def test_optax(loss, axis, where):
    theirs = getattr(optax.losses, loss.__name__)
    arguments = jnp.asarray(Q), jnp.asarray(targets_for(loss, T))

    def both(fn):
        total = lambda q, t: jnp.sum(jnp.sin(fn(q, t, axis, where)))
        gradients = jax.grad(total, (0, 1))
        return jax.jit(lambda q, t: (fn(q, t, axis, where), gradients(q, t)))(*arguments)

    ours = both(loss)
    with relaxed():
        close(ours, both(theirs))


@each_loss
def test_one_row_of_targets_for_all(loss):
    t = targets_for(loss, T[0, :, 0])
    q = jnp.asarray(Q.swapaxes(1, 2))
    full = np.broadcast_to(t, q.shape)
    np.testing.assert_allclose(loss(q, t), loss(q, full), rtol=1e-6)
    theirs = getattr(optax.losses, loss.__name__)
    with relaxed():
        np.testing.assert_allclose(loss(q, t), theirs(q, t), rtol=1e-5, atol=1e-6)


# --- laws -------------------------------------------------------------------------------------


@each_loss
def test_laws(loss):
    t = targets_for(loss, T)
    np.testing.assert_allclose(loss(np.log(T), t, 1), 0, atol=1e-7)
    assert np.all(np.asarray(loss(Q, t, 1)) > 0)
    # Predictions off by a constant a cost a for each unit of mass.
    np.testing.assert_allclose(loss(Q - 2, t, 1), loss(Q, t, 1) + 2, rtol=1e-5)
    np.testing.assert_allclose(loss(Q[:, ::-1], t[:, ::-1], 1), loss(Q, t, 1), rtol=1e-5)
    np.testing.assert_allclose(loss(Q, t, None), np.sum(loss(Q, t, 1)), rtol=1e-6)
    np.testing.assert_allclose(loss(Q, t, 1, np.ones(Q.shape, bool)), loss(Q, t, 1), rtol=1e-6)
    rows = KEPT[:, 0]
    kept = np.where(rows, loss(Q, t, 1), 0)
    np.testing.assert_allclose(loss(Q, t, 1, rows), kept, rtol=1e-6)


def test_both_agree():
    np.testing.assert_allclose(KL_LOG(Q, np.log(T), 1), KL(Q, T, 1), rtol=1e-5)
    entropy = -np.sum(T * np.log(T), 1)
    soft = jxent.softmax_cross_entropy(Q, T, 1)
    np.testing.assert_allclose(KL(Q, T, 1), soft - entropy, rtol=1e-4)


# --- at the limits ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def all_derivatives(fn: Any, q: jax.Array, t: jax.Array) -> list[jax.Array]:
    """The loss of one row, its gradients, and the same forward."""
    value, pull = jax.vjp(fn, q, t)
    by_q, by_t = jax.jacfwd(fn, (0, 1))(q, t)
    return [value, *pull(jnp.ones_like(value)), by_q.sum(0), by_t.sum(0)]


def test_no_mass_costs_nothing():
    q = jnp.array([[-1.0, -inf, -2.0]])
    t = jnp.array([[0.5, 0.0, 0.5]])
    cost = math.log(0.5) + 1.5
    value, by_q, by_t, *forward = map(np.asarray, all_derivatives(KL, q, t))
    np.testing.assert_allclose(value, [cost], rtol=1e-6)
    np.testing.assert_array_equal(by_q, [[-0.5, 0, -0.5]])
    slope = math.log(0.5) + 1
    np.testing.assert_allclose(by_t[:, [0, 2]], [[slope + 1, slope + 2]], rtol=1e-6)
    # A little mass on the impossible class would cost ∞.
    assert by_t[0, 1] == np.finfo(np.float32).max
    for backward, other in zip((by_q, by_t), forward, strict=True):
        np.testing.assert_array_equal(backward, other)

    value, by_q, by_r, *forward = map(np.asarray, all_derivatives(KL_LOG, q, jnp.log(t)))
    np.testing.assert_allclose(value, [cost], rtol=1e-6)
    np.testing.assert_allclose(by_q, [[-0.5, 0, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(by_r, [[(slope + 1) / 2, 0, (slope + 2) / 2]], rtol=1e-6)
    for backward, other in zip((by_q, by_r), forward, strict=True):
        np.testing.assert_array_equal(backward, other)


def test_slope_of_a_target_of_zero_is_the_lowest_number():
    value, by_q, by_t, _, forward = all_derivatives(
        KL, jnp.array([[-1.0, -2.0]]), jnp.array([[1.0, 0.0]])
    )
    assert value == 1 and by_q.tolist() == [[-1, 0]]
    assert by_t.tolist() == forward.tolist() == [[2, np.finfo(np.float32).min]]


@pytest.mark.parametrize(
    "loss, t", [(KL, 0.5), (KL, 1e-30), (KL_LOG, 0.5), (KL_LOG, 1e-30), (KL_LOG, 1e-200)]
)
def test_mass_on_an_impossible_class(loss, t):
    """∞, with the finite gradient −t by q, even where e^r underflows."""
    target = jnp.asarray([[0.5, targets_for(loss, t)]], jnp.float32)
    if loss is KL_LOG:
        target = target.at[0, 0].set(math.log(0.5))
    value, by_q, by_t, *forward = map(
        np.asarray, all_derivatives(loss, jnp.array([[-1.0, -inf]]), target)
    )
    assert value == inf
    np.testing.assert_allclose(by_q, [[-0.5, -t if t > 1e-38 else 0]], rtol=1e-5)
    assert by_t[0, 1] == np.finfo(np.float32).max and np.isfinite(by_t[0, 0])
    np.testing.assert_array_equal([by_q, by_t], forward)


def test_subnormal_targets():
    """Whether XLA flushes them or not, they never turn to NaN."""
    t = jnp.array([[1e-40, 1.0]])
    assert all(np.all(np.isfinite(d)) for d in all_derivatives(KL, jnp.array([[-2.0, -1.0]]), t))


def test_second_derivatives_at_zero():
    """∂²/∂t∂q = −1 there too, and nothing becomes NaN."""
    x = jnp.array([[-1.0, 0.0], [-inf, 0.0], [-inf, 0.5], [-2.0, 0.5]])
    f = lambda v: KL(v[:1], v[1:])
    hessian = np.asarray(jax.jit(jax.vmap(jax.hessian(f)))(x))
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(hessian[:, 0, 0], [0, 0, 0, 0])
    np.testing.assert_array_equal(hessian[:, 0, 1], [-1, -1, -1, -1])
    np.testing.assert_array_equal(hessian[:, 1, 0], [-1, -1, -1, -1])
    np.testing.assert_array_equal(hessian[:, 1, 1], [largest, largest, 2, 2])
    f = lambda v: KL_LOG(v[:1], v[1:])
    hessian = np.asarray(jax.jit(jax.vmap(jax.hessian(f)))(x.at[:2, 1].set(-inf)))
    assert np.all(np.isfinite(hessian)) and not np.any(hessian[:2])


# --- at fault, and dropped --------------------------------------------------------------------

FAULTS = {
    "NaN prediction": (KL, nan, 0.5),
    "infinite prediction": (KL, inf, 0.5),
    "NaN prediction without mass": (KL, nan, 0.0),
    "negative target": (KL, -1.0, -0.5),
    "negative target, impossible class": (KL, -inf, -0.5),
    "NaN target": (KL, -1.0, nan),
    "infinite target": (KL, -1.0, inf),
    "NaN prediction, log": (KL_LOG, nan, -1.0),
    "NaN prediction without mass, log": (KL_LOG, nan, -inf),
    "infinite prediction, log": (KL_LOG, inf, -1.0),
    "NaN log target": (KL_LOG, -1.0, nan),
    "NaN log target, impossible class": (KL_LOG, -inf, nan),
    "infinite log target": (KL_LOG, -1.0, inf),
}
keeping = lambda where: {
    loss: functools.partial(loss, where=np.array(where, bool)) for loss in LOSSES.values()
}
KEEPING = keeping([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
KEEPING_ROWS = keeping([1, 0, 1])


@functools.partial(jax.jit, static_argnums=0)
def row_derivatives(fn: Any, q: jax.Array, t: jax.Array) -> list[jax.Array]:
    """The loss and its gradients, and its derivatives along each argument, forward."""
    value, pull = jax.vjp(fn, q, t)
    ones, zeros = jnp.ones_like(q), jnp.zeros_like(q)
    along = [jax.jvp(fn, (q, t), tangents)[1] for tangents in ((ones, zeros), (zeros, ones))]
    return [value, *pull(jnp.ones_like(value)), *along]


def clean_rows(loss: Any) -> tuple[jax.Array, jax.Array]:
    t = np.array([[0.5, 0.25, 0.25], [1, 0, 0.5], [0.25, 0.5, 1]])
    return jnp.full((3, 3), -1.0), jnp.asarray(targets_for(loss, t), jnp.float32)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_nan_in_its_row_alone(fault):
    loss, bad_q, bad_t = FAULTS[fault]
    q, t = clean_rows(loss)
    clean = row_derivatives(loss, q, t)
    faulty = row_derivatives(loss, q.at[1, 1].set(bad_q), t.at[1, 1].set(bad_t))
    for got, wanted in zip(map(np.asarray, faulty), map(np.asarray, clean), strict=True):
        assert np.all(np.isnan(got[1])) and np.all(np.isfinite(wanted))
        np.testing.assert_array_equal(got[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_dropped_counts_nothing(fault):
    """Exactly 0 in loss and gradients, whatever it holds."""
    loss, bad_q, bad_t = FAULTS[fault]
    q, t = clean_rows(loss)
    clean = row_derivatives(KEEPING[loss], q, t)
    dropped = row_derivatives(KEEPING[loss], q.at[1, 1].set(bad_q), t.at[1, 1].set(bad_t))
    for got, wanted in zip(map(np.asarray, dropped), map(np.asarray, clean), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.ndim == 1 or got[1, 1] == 0
    value, *gradients = row_derivatives(
        KEEPING_ROWS[loss], q.at[1, 1].set(bad_q), t.at[1, 1].set(bad_t)
    )
    assert value[1] == 0 and not any(np.any(g[1]) for g in gradients)
    assert np.all(np.isfinite(np.asarray(value)))


@each_loss
def test_nothing_kept(loss):
    q, t = clean_rows(loss)
    for where in (np.zeros(3, bool), np.zeros((3, 3), bool)):
        derivatives = row_derivatives(functools.partial(loss, where=where), q, t)
        assert not any(np.any(d) for d in derivatives)


def test_dropped_negative_target_is_no_error():
    t = [[-1.0, 1.0], [0.5, 0.5]]
    q = np.zeros((2, 2), np.float32)
    assert KL(q, t, where=[False, True])[0] == 0
    assert KL(q, t, where=[[False, True], [True, True]])[0] == 0
    assert KL(q, [-1.0, 1.0], where=[[False, True], [False, True]])[0] == 0
    with pytest.raises(ValueError, match=r"`targets`\[0, 0\] = -1.0 must not be negative"):
        KL(q, t, where=[True, False])


ERRORS = [
    (KL, ([0.0, 0.0], [1.5, -0.5]), {}, ValueError, r"`targets`\[1\] = -0.5 must not be negative"),
    (KL, ([[0.0]], [1.0, 1.0]), {}, ValueError, r"shape of `log_predictions` \[1, 1\], or \[1\]"),
    (
        KL,
        ([[0.0, 0.0]] * 3, [[1.0]] * 3),
        {},
        ValueError,
        r"`targets` must have the shape of `log_predictions` \[3, 2\], or \[2\] for all rows, got "
        r"float64\[3, 1\]; jnp.broadcast_to\(..., log_predictions.shape\)",
    ),
    (KL, ([[0.0, 0.0]] * 3, [1.0] * 3), {"axis": 0}, ValueError, r"`targets` must .*\[3, 2\], got"),
    (
        KL,
        ([0, 0], [1.0, 0.0]),
        {},
        TypeError,
        r"`log_predictions` must be floating point, got int64",
    ),
    (KL, ([0.0, 0.0], [1, 0]), {}, TypeError, r"`targets` must be floating point, got int64"),
    (KL, ([0.0], [1.0]), {"axis": 1}, ValueError, r"`axis` 1 is out of bounds for 1 dimensions"),
    (KL, (0.0, 1.0), {}, ValueError, r"`axis` -1 is out of bounds for 0 dimensions"),
    (
        KL,
        (np.zeros((2, 0)),) * 2,
        {},
        ValueError,
        r"`log_predictions` has no classes, got shape \[2, 0\]",
    ),
    (KL, ([0.0], [1.0]), {"where": [1.0]}, TypeError, r"`where` must be boolean, got float64\[1\]"),
    (
        KL,
        (np.zeros((2, 3)),) * 2,
        {"where": [[True], [True]]},
        ValueError,
        r"`where` must have the rows' shape \[2\] or the shape of `log_predictions` \[2, 3\], got "
        r"bool\[2, 1\]",
    ),
    (KL_LOG, ([0.0], [0.0, 0.0]), {}, ValueError, r"`log_targets` must have the shape of"),
    (KL_LOG, ([0.0], [0]), {}, TypeError, r"`log_targets` must be floating point"),
]


@pytest.mark.parametrize("loss, arguments, options, error, message", ERRORS)
def test_errors(loss, arguments, options, error, message):
    options = {k: v if k == "axis" else np.asarray(v) for k, v in options.items()}
    with pytest.raises(error, match=f"^{loss.__name__}: .*{message}"):
        loss(*(np.asarray(a) for a in arguments), **options)


def test_checked_names_the_traced_target():
    step = jax.jit(jax.grad(lambda q, t, k: jnp.sum(KL(q, t, where=k))))
    t = jnp.ones((3, 4)).at[1, 2].set(-2).at[0, 1].set(-1)
    kept = jnp.ones((3, 4), bool).at[0, 1].set(False)
    with pytest.raises(ValueError, match=r"^kl_divergence: `targets`\[1, 2\] = -2.0 must not be"):
        jxent.testing.checked(step)(jnp.zeros((3, 4)), t, kept)


# --- every transformation ---------------------------------------------------------------------


def arguments_of(loss: Any) -> tuple[Any, jax.Array, jax.Array]:
    """Rows with their own mask; the target is one for all of them."""
    t = targets_for(loss, T[0, :, 0])
    fn = lambda q, t: loss(q, t, where=q > -4)
    return fn, jnp.asarray(Q.swapaxes(1, 2).reshape(6, 4)), jnp.asarray(t)


@each_loss
def test_modes_agree(loss):
    fn, *arguments = arguments_of(loss)
    tangents = tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in arguments)

    @jax.jit
    def every_mode(*arguments):
        value = fn(*arguments)
        out, linear = jax.linearize(fn, *arguments)
        return {
            "jacrev": jax.jacrev(fn, (0, 1))(*arguments),
            "jacfwd": jax.jacfwd(fn, (0, 1))(*arguments),
            "jvp": jax.jvp(fn, arguments, tangents),
            "linearize": (out, linear(*tangents)),
            "transpose": jax.linear_transpose(linear, *tangents)(value),
            "vjp": jax.vjp(fn, *arguments)[1](value),
        }

    got = every_mode(*arguments)
    close(got["jacfwd"], got["jacrev"])
    along = sum(jnp.tensordot(d, t, t.ndim) for d, t in zip(got["jacrev"], tangents, strict=True))
    close(got["jvp"], (fn(*arguments), along))
    close(got["linearize"], got["jvp"])
    close(got["transpose"], got["vjp"])


@each_loss
def test_transformations(loss):
    fn, q, t = arguments_of(loss)
    weights = jnp.asarray(rng.standard_normal(6), q.dtype)
    total = lambda q: jnp.sum(fn(q, t) * weights)
    either = lambda q: jax.lax.cond(q[0, 0] < 9, total, lambda q: 0.0, q)

    def scanned(q):
        step = lambda s, row: (s + fn(row[0], t) * row[1], None)
        return jax.lax.scan(step, jnp.float32(0), (q, weights))[0]

    mapped = lambda q: jnp.sum(jax.vmap(fn, (0, None))(q, t) * weights)
    forms = (total, either, scanned, mapped, jax.checkpoint(total))
    first, *others = jax.jit(lambda q: [jax.value_and_grad(form)(q) for form in forms])(q)
    for other in others:
        close(other, first)


@pytest.mark.parametrize("check_vma", [True, False])
@each_loss
def test_shard_map(loss, check_vma):
    """Rows over devices, one replicated target: its cotangents are summed over the mesh."""
    fn, q, t = arguments_of(loss)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    specs = (P("d"), P())
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check_vma)
    both = lambda f: jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)))
    close(both(sharded)(q, t), both(fn)(q, t))


@each_loss
def test_sharded_arguments(loss):
    """On a mesh as `jax.make_mesh` makes it, Explicit where that is JAX's default."""
    fn, q, t = arguments_of(loss)
    mesh = jax.make_mesh((2, 2), ("rows", "classes"), devices=jax.devices()[:4])
    put = lambda a, *spec: jax.device_put(a, jax.sharding.NamedSharding(mesh, P(*spec)))

    @jax.jit
    def both(*arguments):
        value, pull = jax.vjp(fn, *arguments)
        return value, pull(value)

    value, gradients = both(put(q, "rows", "classes"), put(t))
    close((value, gradients), both(q, t))
    assert value.sharding.spec == P("rows")


@each_loss
def test_derivatives(loss):
    points = rng.uniform([-4, -3, 0.1, 0.1], [0, 0, 2, 2], (40, 4))
    points[:, 2:] = targets_for(loss, points[:, 2:])
    assert_derivatives(lambda v: jnp.sin(loss(v[:2], v[2:])), points)


# --- what is kept, and in which dtype ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_loss
def test_only_the_inputs_are_kept(loss, dtype):
    q, t, kept = jnp.asarray(Q, dtype), jnp.asarray(targets_for(loss, T), dtype), jnp.asarray(KEPT)
    for f in (loss, jax.jit(loss)):
        _, pull = jax.vjp(f, q, t)
        assert [(a.shape, a.dtype) for a in jax.tree.leaves(pull)] == [(q.shape, q.dtype)] * 2
    _, pull = jax.vjp(lambda q, t: loss(q, t, where=kept), q, t)
    saved = sorted((a.shape, a.dtype.name) for a in jax.tree.leaves(pull))
    assert saved == sorted([(q.shape, dtype), (q.shape, dtype), (q.shape, "bool")])


@each_loss
def test_no_rows(loss):
    value, pull = jax.vjp(loss, jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    assert value.shape == (0,) and [d.shape for d in pull(value)] == [(0, 3)] * 2


@each_loss
def test_dtypes(loss):
    """The predictions decide: float32, or float64 for float64; gradients are as their arguments."""
    t = targets_for(loss, T)

    def with_gradients(*arguments):
        value, pull = jax.vjp(loss, *arguments)
        return value, pull(value)

    for dtype in ("float16", "bfloat16", "float32"):
        arguments = jnp.asarray(Q, dtype), jnp.asarray(t, "bfloat16")
        value, gradients = jax.eval_shape(with_gradients, *arguments)
        assert value.dtype == jnp.float32
        assert [d.dtype for d in gradients] == [dtype, "bfloat16"]
    with enable_x64():
        assert loss(jnp.asarray(Q, "float64"), jnp.asarray(t)).dtype == "float64"
        assert loss(jnp.asarray(Q), jnp.asarray(t, "float64")).dtype == "float32"
