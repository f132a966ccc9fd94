"""The binary losses: value and every gradient against the oracle, optax and torch; their limits."""

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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import jxent

BCE, FOCAL = jxent.sigmoid_binary_cross_entropy, jxent.sigmoid_focal_loss
LOSSES = {"bce": BCE, "focal": FOCAL}
PROMISE = {"float32": 1e-5, "bfloat16": 1e-5, "float16": 1e-5, "float64": 1e-13}
inf, nan = math.inf, math.nan
with_weight = lambda x, y, w: BCE(x, y, pos_weight=w)
with_both = lambda x, y, a, g: FOCAL(x, y, alpha=a, gamma=g)


each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# --- against the oracle -----------------------------------------------------------------------


def expected_by_oracle(fn: Any, arguments: dict[str, Any], g: np.ndarray) -> oracle.Loss:
    """The oracle's loss, with the sums of absolute terms of every gradient."""
    given_in_f64 = {k: f64(a) if hasattr(a, "dtype") else a for k, a in arguments.items()}
    if fn is BCE:
        out = oracle.sigmoid_binary_cross_entropy(**given_in_f64, cotangent=g)
        absolute = oracle.sigmoid_binary_cross_entropy(**given_in_f64, cotangent=np.abs(g))
        return oracle.Loss(out.value, out.gradient, absolute.scale)
    out = oracle.sigmoid_focal_loss(**given_in_f64, cotangent=g)
    x, y, gamma = (given_in_f64[k] for k in ("logits", "labels", "gamma"))
    alpha = given_in_f64.get("alpha")
    shape, y = np.shape(y), np.broadcast_to(y, g.shape)
    plain = oracle.sigmoid_focal_loss(x, y, gamma=gamma)
    A, dA = (1.0, 0.0) if alpha is None else (alpha * y + (1 - alpha) * (1 - y), 2 * alpha - 1)
    # By label and by γ the terms of the derivative of u^γ bce have one sign.
    by_label = np.abs(g) * (np.abs(dA) * plain.value + A * np.abs(plain.gradient["labels"]))
    absolute = oracle.sigmoid_focal_loss(**given_in_f64, cotangent=np.abs(g))
    error_of_log_u = 1e-10 * np.abs(g) * absolute.value  # the oracle's own, at u → 1
    by_gamma = np.abs(absolute.gradient["gamma"]) + oracle._total(error_of_log_u, np.shape(gamma))
    scale = {
        **out.scale,
        "labels": oracle._total(by_label, shape),
        "alpha": (np.abs(g * (2 * y - 1)) * plain.value).sum(),
        "gamma": by_gamma,
    }
    return oracle.Loss(out.value, out.gradient, scale)


def check(fn: Any, arguments: dict[str, Any], g: np.ndarray) -> None:
    logits_dtype = arguments["logits"].dtype
    expected = expected_by_oracle(fn, arguments, g)
    value, gradients = value_and_gradients(fn, arguments, np.float32(g))
    rtol = PROMISE[logits_dtype.name]
    assert value.dtype == np.promote_types(logits_dtype, np.float32)
    assert_close(
        value,
        expected.value,
        rtol=rtol,
        scale=expected.scale["value"],
        cancels=not np.any(expected.value),
        err_msg="value",
    )
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        rounded_once = 0.5 if gradient.dtype.itemsize < value.dtype.itemsize else 0
        assert_close(
            gradient,
            expected.gradient[name],
            rtol=rtol,
            ulps=rounded_once,
            scale=expected.scale[name],
            dtype=gradient.dtype,
            cancels=True,
            err_msg=name,
        )


# loss, shape, dtypes of logits and of labels, shape of the labels, static options, other arrays
CALLS = [
    (BCE, (), "float32", "float32", (), {"label_smoothing": 0.1}, {}),
    (BCE, (5,), "float32", "bool", (5,), {}, {"pos_weight": (5,)}),
    (BCE, (3, 4), "float32", "float32", (3, 4), {"label_smoothing": 0.1}, {"pos_weight": (4,)}),
    (BCE, (3, 4), "bfloat16", "float32", (), {}, {"pos_weight": ()}),
    (
        BCE,
        (2, 3, 4),
        "float16",
        "uint8",
        (2, 3, 4),
        {"label_smoothing": 1e-7},
        {"pos_weight": (4,)},
    ),
    (BCE, (3, 4), "float32", "bfloat16", (3, 4), {"label_smoothing": 1.0}, {"pos_weight": (3, 4)}),
    (BCE, (0, 3), "float32", "float32", (0, 3), {}, {"pos_weight": (3,)}),
    (FOCAL, (), "float32", "float32", (), {}, {"gamma": ()}),
    (FOCAL, (3, 4), "float32", "float32", (3, 4), {}, {"gamma": (), "alpha": ()}),
    (FOCAL, (3, 4), "bfloat16", "int32", (3, 4), {}, {"gamma": (4,), "alpha": ()}),
    (FOCAL, (2, 3, 4), "float16", "float16", (2, 3, 4), {}, {"gamma": (2, 3, 4)}),
    (FOCAL, (5,), "float32", "float32", (), {"gamma": 0.0}, {"alpha": ()}),
    (FOCAL, (0, 3), "float32", "bool", (0, 3), {"gamma": 2.0}, {"alpha": ()}),
]
CALLS_IN_FLOAT64 = [
    (BCE, (3, 4), "float64", "float64", (3, 4), {"label_smoothing": 0.1}, {"pos_weight": (4,)}),
    (FOCAL, (3, 4), "float64", "float64", (3, 4), {}, {"gamma": (), "alpha": ()}),
]


def call(spec: tuple, seed: int, spread: float) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Arguments of a call, some labels hard and some logits 0, and a cotangent."""
    fn, shape, dtype, labels_dtype, labels_shape, static, others = spec
    rng = np.random.default_rng(seed)
    floating = jnp.dtype(dtype)
    labels = rng.random(labels_shape) if "float" in labels_dtype else rng.random(labels_shape) < 0.5
    labels = np.where(rng.random(labels_shape) < 0.3, np.round(labels), labels)
    logits = np.clip(spread * rng.standard_normal(shape), -80, 80)
    logits = np.where(rng.random(shape) < 0.1, 0, logits)
    high = {"pos_weight": 4, "gamma": 3, "alpha": 1}
    numbers = lambda name, s: np.round(rng.uniform(0, high[name], s) * 128) / 128  # 1 − α is exact
    arguments = {
        "logits": jnp.asarray(logits, floating),
        "labels": jnp.asarray(labels, labels_dtype),
        **static,
        **{k: jnp.asarray(numbers(k, s), floating) for k, s in others.items()},
    }
    return fn, arguments, np.asarray(rng.standard_normal(shape), np.float32)


def named(spec: tuple) -> str:
    """A test's name that is the same in every process."""
    return "-".join(str(getattr(part, "__name__", part)) for part in spec)


def drawn(test: Any) -> Any:
    """Any call, and one in which u^γ underflows where its product with a slope does not."""
    spreads = st.sampled_from([0.01, 1.0, 10.0, 60.0])
    return given(seed=st.integers(0, 2**16), spread=spreads)(example(seed=124, spread=60.0)(test))


@pytest.mark.parametrize("spec", CALLS, ids=named)
@settings(max_examples=12)
@drawn
def test_oracle(spec, seed, spread):
    check(*call(spec, seed, spread))


@pytest.mark.parametrize("spec", CALLS_IN_FLOAT64, ids=named)
@settings(max_examples=12)
@drawn
def test_oracle_float64(spec, seed, spread):
    with enable_x64():
        check(*call(spec, seed, spread))


@pytest.mark.deep
@pytest.mark.parametrize("spec", CALLS, ids=named)
@settings(settings.get_profile("deep"), max_examples=1000)
@drawn
def test_oracle_deep(spec, seed, spread):
    check(*call(spec, seed, spread))


FAR = np.concatenate([np.linspace(-87, 87, 349), [-1e-3, 1e-3]]).astype(np.float32)


@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_bce_keeps_its_digits(y):
    """Relative to the true value and gradient, not to their terms: nothing cancels."""
    x = jnp.asarray(FAR)
    out = expected_by_oracle(BCE, {"logits": x, "labels": y}, np.ones(x.shape))
    value, gradients = value_and_gradients(BCE, {"logits": x, "labels": y})
    assert_close(value, out.value, rtol=1e-6)
    scale = out.scale["logits"] if y == 0.25 else None
    assert_close(gradients["logits"], out.gradient["logits"], rtol=1e-6, scale=scale)


@pytest.mark.parametrize("x", [6.4179645, 12.0, -9.0])
def test_focal_of_nearly_wrong_predictions_by_gamma(x):
    """∂/∂γ = u^γ bce log u where u is near 1: log u is small, u itself is rounded."""
    y = 0.00038793 if x > 0 else 1 - 2.0**-12
    given = {"logits": np.float32(x), "labels": np.float32(y), "gamma": np.float32(1.7734375)}
    out = expected_by_oracle(FOCAL, given, np.ones(()))
    _, gradients = value_and_gradients(FOCAL, {k: jnp.asarray(v) for k, v in given.items()})
    assert_close(gradients["gamma"], out.gradient["gamma"], rtol=2e-6)


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_focal_keeps_its_digits(y):
    """Relative to the true ones again; e^(γ log u) errs by as many ulp as its exponent is large."""
    side = (2 * y - 1) * f64(FAR)
    u, log_u = oracle._sigmoid(-side), -oracle._softplus(side)
    bce, tanh = oracle._softplus(-side), np.tanh(side / 2)
    for gamma in (0.0, 0.3, 1.0, 2.0):
        power = np.exp(gamma * log_u)
        truth = {
            "logits": -(2 * y - 1) * power * (u + gamma * bce * (1 - u)),
            "labels": -(2 * y - 1) * power * (side + gamma * bce / u * tanh),
            "gamma": power * bce * log_u,
        }
        full = lambda v: jnp.full(FAR.shape, v, jnp.float32)
        arguments = {"logits": jnp.asarray(FAR), "labels": full(y), "gamma": full(gamma)}
        value, gradients = value_and_gradients(FOCAL, arguments)
        rtol = 2e-6 + 1.2e-7 * gamma * np.abs(FAR)
        assert_close(value, power * bce, rtol=1, scale=rtol * power * bce)
        for name, expected in truth.items():
            seen = np.abs(expected) > 1e-34
            scale = rtol[seen] * np.abs(expected[seen])
            got = np.asarray(gradients[name])[seen]
            assert_close(got, expected[seen], rtol=1, scale=scale, err_msg=name)


def test_label_slope_of_a_small_gamma_beyond_underflow():
    """u^γ is a number still where u is not: −u^γ (x + γ) for a label surely right."""
    for x, gamma in ((100.0, 0.1), (1000.0, 0.01)):
        by_label = jax.grad(lambda y, x, g: FOCAL(x, y, gamma=g))(1.0, x, gamma)
        np.testing.assert_allclose(by_label, -math.exp(-gamma * x) * (x + gamma), rtol=2e-6)


def test_slopes_beyond_the_underflow_of_the_power():
    """u^γ, or u^γ bce, is 0 in float32, and what it is multiplied by makes a number of it."""
    x, y = 80.0, 1.0
    for gamma, by in ((0.094, "gamma"), (1.1, "labels")):
        slope = jax.grad(lambda a, g=gamma: FOCAL(x, a[0], gamma=a[1]))(jnp.array([y, gamma]))
        log_u = -x - math.log1p(math.exp(-x))
        bce = math.log1p(math.exp(-x))
        exact = {
            "gamma": math.exp(gamma * log_u) * bce * log_u,
            "labels": -math.exp(gamma * log_u) * (x + gamma),
        }[by]
        assert abs(exact) / 80 < 1.2e-38 < abs(exact)
        np.testing.assert_allclose(slope[("labels", "gamma").index(by)], exact, rtol=2e-5)


# --- against optax and torch ------------------------------------------------------------------

rng = np.random.default_rng(7)
X = (3 * rng.standard_normal((6, 4))).astype(np.float32)
Y = {
    "soft": rng.random((6, 4)).astype(np.float32),
    "integer": rng.integers(0, 2, (6, 4)),
    "boolean": rng.integers(0, 2, (6, 4)).astype(bool),
    "scalar": np.float32(1),
}
OPTAX = {
    "bce": (BCE, optax.sigmoid_binary_cross_entropy, {}),
    "focal": (FOCAL, optax.sigmoid_focal_loss, {}),
    "focal, gamma": (FOCAL, optax.sigmoid_focal_loss, {"alpha": 0.7, "gamma": 1}),
}


def close(a: Any, b: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize(
    "name, labels",
    [(name, "soft") for name in OPTAX]
    + [("bce", "integer"), ("focal, gamma", "boolean"), ("bce", "scalar")],
)
def test_optax(name, labels):
    ours, theirs, options = OPTAX[name]
    x, y = jnp.asarray(X), jnp.asarray(Y[labels])

    def both(fn):
        total = lambda x, y: jnp.sum(fn(x, y, **options) * X)
        gradients = jax.grad(total, (0, 1) if labels == "soft" else 0)
        return jax.jit(lambda x, y: (fn(x, y, **options), gradients(x, y)))(x, y)

    mine = both(ours)
    with relaxed():
        other = both(theirs)
    close(mine, other)


@pytest.mark.parametrize("shape", [(), (4,), (6, 4)])
def test_torch(shape):
    torch = pytest.importorskip("torch")
    w = rng.uniform(0.2, 3, shape).astype(np.float32)
    theirs = [torch.tensor(a, requires_grad=True) for a in (X, Y["soft"])]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        *theirs, pos_weight=torch.tensor(w), reduction="none"
    )
    loss.backward(torch.tensor(X))
    ours = lambda x, y: BCE(x, y, pos_weight=jnp.asarray(w))
    value, pull = jax.vjp(ours, jnp.asarray(X), jnp.asarray(Y["soft"]))
    np.testing.assert_allclose(value, loss.detach(), rtol=1e-5)
    for mine, their in zip(pull(jnp.asarray(X)), theirs, strict=True):
        np.testing.assert_allclose(mine, their.grad, rtol=1e-5, atol=1e-6)


# --- laws -------------------------------------------------------------------------------------


def test_laws():
    x, y = jnp.asarray(X), jnp.asarray(Y["soft"])
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    same(BCE(-x, 1 - y), BCE(x, y))
    same(BCE(x, y, pos_weight=1), BCE(x, y))
    same(BCE(x, 0, pos_weight=3), BCE(x, 0))
    same(BCE(x, True, pos_weight=4), 4 * BCE(x, True))
    same(BCE(x, y, label_smoothing=0.2), BCE(x, 0.8 * y + 0.1))
    same(FOCAL(x, y, gamma=0), BCE(x, y))
    same(FOCAL(x, y, alpha=0.5), FOCAL(x, y) / 2)
    same(FOCAL(-x, 1 - y, alpha=0.75), FOCAL(x, y, alpha=0.25))
    for fn in LOSSES.values():
        by_rows = jnp.stack([fn(x[0], True), fn(x[1], False)])
        same(fn(x[:2], jnp.array([[True] * 4, [False] * 4])), by_rows)


@pytest.mark.parametrize("name", ["alpha", "gamma"])
@pytest.mark.parametrize("shape", [(4,), (6, 4)])
def test_focal_parameters_of_each_logit(name, shape):
    p = rng.random(shape).astype(np.float32)
    full = np.broadcast_to(p, X.shape)
    together = FOCAL(X, Y["soft"], **{name: p})
    one_by_one = [
        float(FOCAL(x, y, **{name: v}))
        for x, y, v in zip(X.flat, Y["soft"].flat, full.flat, strict=True)
    ]
    np.testing.assert_allclose(together, np.reshape(one_by_one, X.shape), rtol=1e-6)


@each_loss
def test_python_scalars(loss):
    out = loss(0.5, 1)
    assert out.shape == () and out.dtype == jnp.float32 and not out.weak_type
    assert float(out) == float(loss(jnp.array([0.5]), np.array([True]))[0])
    assert loss([0.5, -1.0], [1, 0]).shape == (2,)


# --- at the limits ----------------------------------------------------------------------------

# logit, label → loss, gradient
LIMITS = [
    (inf, 1, 0.0, 0.0),
    (-inf, 0, 0.0, 0.0),
    (inf, 0, inf, 1.0),
    (-inf, 1, inf, -1.0),
    (inf, 0.75, inf, 0.25),
    (-inf, 0.75, inf, -0.75),
    (1e30, 1, 0.0, 0.0),
    (1e30, 0, 1e30, 1.0),
    (3e38, 0, 3e38, 1.0),
]


bce_at = jax.jit(jax.value_and_grad(BCE, argnums=(0, 1)))
weighed_at = jax.jit(jax.value_and_grad(with_weight, argnums=(0, 1, 2)))
focal_at = jax.jit(jax.value_and_grad(lambda x, y, g: FOCAL(x, y, gamma=g), argnums=(0, 1, 2)))


@pytest.mark.parametrize("x, y, value, gradient", LIMITS)
def test_bce_limits(x, y, value, gradient):
    got, (by_logit, by_label) = bce_at(x, float(y))
    assert (got, by_logit) == (jnp.float32(value), gradient)
    assert (
        np.sign(by_label) == -np.sign(x) and np.isfinite(by_label) and abs(by_label) >= 1e30 * 0.99
    )


@pytest.mark.parametrize("w", [0.0, 2.0])
@pytest.mark.parametrize("x", [inf, -inf])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_pos_weight_at_infinite_logits(x, y, w):
    value, (by_logit, by_label, by_weight) = weighed_at(x, y, w)
    right = (x > 0) == (y > 0)
    weighed = 1 - y + w * y
    assert value == (0 if right or weighed == 0 else inf)
    assert by_logit == (0 if right else np.sign(x) * weighed)
    # softplus(−x) is ∞ for x = −∞ alone, and costs only w of it.
    assert np.isfinite(by_label) and np.isfinite(by_weight)
    assert (by_weight > 1e30) == (y == 1 and x < 0) and (by_weight == 0) == (y == 0 or x > 0)
    assert (by_label < -1e30) == (x > 0) and (by_label > 1e30) == (x < 0 and w > 0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("x, y, value, gradient", LIMITS)
def test_focal_limits(x, y, value, gradient, gamma):
    """Where the prediction is sure and wrong u is 1 for a hard label, 1 − y or y for a soft one."""
    got, gradients = focal_at(x, float(y), gamma)
    u = (1 - y) if x > 0 else y
    assert got == jnp.float32(value) * (u**gamma if value else 1)
    np.testing.assert_allclose(gradients[0], gradient * u**gamma, rtol=1e-6)
    assert np.all(np.isfinite(np.asarray(gradients)))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
def focal_to_second_order(x, y, alpha, gamma):
    f = lambda v: FOCAL(v[0], v[1], alpha=alpha, gamma=gamma)
    return jax.grad(f)(jnp.stack([x, y])), jax.hessian(f)(jnp.stack([x, y]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0])
def test_focal_second_derivatives_stay_finite(alpha, gamma):
    """Right and sure, wrong and sure, out to infinity: at p → 1 powers of u become 0."""
    x = jnp.array([40.0, 60, 88, 100, 1e4, 1e30, inf])
    x = jnp.concatenate([x, -x, x, -x, x])
    y = jnp.repeat(jnp.array([1.0, 1.0, 0.0, 0.0, 0.5]), 7)

    gradient, hessian = map(np.asarray, focal_to_second_order(x, y, alpha, gamma))
    by_logit = hessian[:, :, 0]
    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(by_logit))
    # Where e^−|x| is subnormal it has become 0 in one of the two, u^γ not yet in the other.
    seen = np.abs(x) != 88
    np.testing.assert_allclose(by_logit[seen, 1], hessian[seen, 0, 1], rtol=1e-4, atol=1e-20)
    if gamma == 0:
        A, dA = (1, 0) if alpha is None else (alpha * y + (1 - alpha) * (1 - y), 2 * alpha - 1)
        p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
        expected = -A + dA * ((1 - y) * p - y * q)
        np.testing.assert_allclose(by_logit[:, 1], expected, rtol=1e-6)


def test_subnormal_side_is_zero_not_nan():
    """Beyond |x| = 87.3 e^−|x| is subnormal: XLA may flush it, never more than that."""
    x = jnp.linspace(87, 105, 37)
    for fn in LOSSES.values():
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda x: fn(x, 1))))(x)  # noqa: B023
        tiny = float(jnp.finfo(jnp.float32).tiny)
        assert np.all((value >= 0) & (value < 2 * tiny) & (slope <= 0) & (slope > -2 * tiny))


# --- at fault ---------------------------------------------------------------------------------


# logits, labels, α, γ
FAULTS = {
    "logit": (nan, 0.5, 0.5, 1.0),
    "label above 1": (1.0, 1.25, 0.5, 1.0),
    "negative label": (1.0, -0.5, 0.5, 1.0),
    "NaN label": (1.0, nan, 0.5, 1.0),
    "infinite label": (1.0, inf, 0.5, 1.0),
    "alpha above 1": (1.0, 0.5, 1.5, 1.0),
    "negative alpha": (1.0, 0.5, -0.5, 1.0),
    "negative gamma": (1.0, 0.5, 0.5, -1.0),
    "infinite gamma": (1.0, 0.5, 0.5, inf),
    "NaN gamma": (1.0, 0.5, 0.5, nan),
}


@functools.partial(jax.jit, static_argnums=0)
def all_derivatives(fn: Any, *arguments: jax.Array) -> list[jax.Array]:
    """The loss, its gradients, and its derivatives along each argument in forward mode."""
    value, pull = jax.vjp(fn, *arguments)
    nothing = [jnp.zeros_like(a) for a in arguments]
    along = [
        jax.jvp(fn, arguments, (*nothing[:i], jnp.ones_like(a), *nothing[i + 1 :]))[1]
        for i, a in enumerate(arguments)
    ]
    return [value, *pull(jnp.ones_like(value)), *along]


@pytest.mark.parametrize(
    "fn, fault",
    [(with_weight, fault) for fault in list(FAULTS)[:5]] + [(with_both, fault) for fault in FAULTS],
)
def test_fault_is_nan_in_its_element_alone(fn, fault):
    n = 3 if fn is with_weight else 4
    clean = [jnp.array([0.75, v, 0.25]) for v in (1.0, 0.5, 0.5, 1.0)[:n]]
    faulty = [a.at[1].set(v) for a, v in zip(clean, FAULTS[fault][:n], strict=True)]
    outputs = zip(all_derivatives(fn, *faulty), all_derivatives(fn, *clean), strict=True)
    for got, wanted in outputs:
        assert np.isnan(got[1]) and np.isfinite(wanted[1])
        np.testing.assert_array_equal(np.asarray(got)[[0, 2]], np.asarray(wanted)[[0, 2]])


@each_loss
def test_traced_integer_labels_out_of_range(loss):
    y = jnp.array([1, 2, -1, 0])
    each = jax.vmap(jax.value_and_grad(loss))
    value, gradient = jax.jit(each)(jnp.ones(4), y)
    assert np.isnan(value).tolist() == np.isnan(gradient).tolist() == [False, True, True, False]


ERRORS = [
    (
        BCE,
        ([[1.0], [2.0]], [1, 0]),
        {},
        ValueError,
        r"`labels` must have the logits' shape \[2, 1\]",
    ),
    (
        BCE,
        ([1.0, 2.0], [[1], [0]]),
        {},
        ValueError,
        r"one number for all, got int64\[2, 1\]; reshape",
    ),
    (BCE, (1.0, [1]), {}, ValueError, r"`labels` must have the logits' shape \[\]"),
    (BCE, ([1.0, 2.0], [1, 2]), {}, ValueError, r"`labels`\[1\] = 2 is outside \[0, 1\]"),
    (BCE, (1.0, -0.5), {}, ValueError, r"`labels`\[\] = -0.5 is outside \[0, 1\]"),
    (BCE, (1.0, nan), {}, ValueError, r"`labels`\[\] = nan is outside \[0, 1\]"),
    (
        BCE,
        (1.0, 1j),
        {},
        TypeError,
        r"`labels` must be booleans, integers or floats, got complex128",
    ),
    (BCE, (1, 1), {}, TypeError, r"`logits` must be floating point, got int64"),
    (BCE, (1.0, 1), {"label_smoothing": 1.5}, ValueError, r"`label_smoothing` must be in \[0, 1\]"),
    (BCE, (1.0, 1), {"pos_weight": True}, TypeError, r"`pos_weight` must be numbers, got bool"),
    (
        BCE,
        ([[1.0, 2.0]] * 3, [[1, 0]] * 3),
        {"pos_weight": [1.0, 1.0, 1.0]},
        ValueError,
        r"`pos_weight` must be one number, have the size of the last axis \[2\] or the logits' "
        r"shape \[3, 2\], got float64\[3\]; jnp.broadcast_to",
    ),
    (
        FOCAL,
        ([1.0, 2.0], [[1], [0]]),
        {},
        ValueError,
        r"`labels` must have the logits' shape \[2\]",
    ),
    (FOCAL, ([1.0, 2.0], [0, 7]), {}, ValueError, r"`labels`\[1\] = 7 is outside \[0, 1\]"),
    (FOCAL, (1.0, 1), {"alpha": 2.0}, ValueError, r"`alpha`\[\] = 2.0 is outside \[0, 1\]"),
    (
        FOCAL,
        (1.0, 1),
        {"gamma": -1},
        ValueError,
        r"`gamma`\[\] = -1 must be finite and not negative",
    ),
    (FOCAL, ([1.0], [1]), {"gamma": [nan]}, ValueError, r"`gamma`\[0\] = nan must be finite"),
    (
        jxent.robust.asymmetric_loss,
        (1.0, 1),
        {"gamma_neg": inf},
        ValueError,
        r"`gamma_neg`\[\] = inf must be finite",
    ),
    (
        BCE,
        (1.0, 1),
        {"pos_weight": -1.0},
        ValueError,
        r"`pos_weight`\[\] = -1.0 must be finite and",
    ),
    (BCE, ([1.0], [1]), {"pos_weight": [nan]}, ValueError, r"`pos_weight`\[0\] = nan must be"),
    (FOCAL, ([1.0], [1]), {"gamma": [[1.0]]}, ValueError, r"`gamma` must be one number"),
    (FOCAL, ([1], [1]), {}, TypeError, r"`logits` must be floating point"),
]


def test_traced_positive_weights_below_zero():
    """NaN, gradient too: a loss below 0 would be believed."""
    run = jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(BCE(x, 1, pos_weight=w)), (0, 1)))
    value, slopes = run(jnp.float32(1.0), jnp.float32(-1.0))
    assert np.all(np.isnan([value, *slopes]))
    losses = jax.jit(BCE)(jnp.ones(3), 1, pos_weight=jnp.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False])


@pytest.mark.parametrize("fn, arguments, options, error, message", ERRORS)
def test_errors(fn, arguments, options, error, message):
    with pytest.raises(error, match=f"^{fn.__name__}: .*{message}"):
        fn(*(np.asarray(a) for a in arguments), **options)


def test_traced_smoothing_is_an_error():
    # Words of jxent.binary or, where annotations are checked as in these tests, of that check.
    with pytest.raises(TypeError, match="label_smoothing"):
        jax.jit(lambda eps: BCE(1.0, 1, label_smoothing=eps))(0.1)


@each_loss
def test_checked_names_the_traced_label(loss):
    step = jax.jit(jax.grad(lambda x, y: jnp.sum(loss(x, y))))
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: `labels`\[1, 2\] = 2.0 is outside"):
        jxent.testing.checked(step)(jnp.ones((3, 4)), jnp.ones((3, 4)).at[1, 2].set(2))


# --- every transformation ---------------------------------------------------------------------


def arguments_of(loss: Any) -> tuple[Any, list[jax.Array]]:
    x, y = jnp.asarray(X), jnp.asarray(Y["soft"])
    if loss is BCE:
        fn = lambda x, y, w: BCE(x, y, pos_weight=w, label_smoothing=0.1)
        return fn, [x, y, jnp.array([0.5, 2.0, 1.0, 0.0])]
    return with_both, [x, y, jnp.array([0.5, 0.25, 1.0, 0.0]), jnp.float32(1.5)]


@each_loss
def test_modes_agree(loss):
    fn, arguments = arguments_of(loss)
    everywhere = tuple(range(len(arguments)))
    tangents = tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in arguments)

    @jax.jit
    def every_mode(*arguments):
        value = fn(*arguments)
        out, linear = jax.linearize(fn, *arguments)
        return {
            "jacrev": jax.jacrev(fn, everywhere)(*arguments),
            "jacfwd": jax.jacfwd(fn, everywhere)(*arguments),
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
    fn, (x, y, *rest) = arguments_of(loss)
    total = lambda x: jnp.sum(fn(x, y, *rest) * X)
    either = lambda x: jax.lax.cond(x[0, 0] < 1e9, total, lambda x: 0.0, x)

    def scanned(x):
        step = lambda s, row: (s + jnp.sum(fn(row[0], row[1], *rest) * row[2]), None)
        return jax.lax.scan(step, jnp.float32(0), (x, y, jnp.asarray(X)))[0]

    mapped = lambda x: jnp.sum(jax.vmap(lambda x, y: fn(x, y, *rest))(x, y) * X)
    by_columns = jax.vmap(fn, (1, 1, *(0 if a.ndim else None for a in rest)), 1)
    forms = (total, either, scanned, mapped, lambda x: jnp.sum(by_columns(x, y, *rest) * X))
    forms = (*forms, jax.checkpoint(total))
    first, *others = jax.jit(lambda x: [jax.value_and_grad(form)(x) for form in forms])(x)
    for other in others:
        close(other, first)


@pytest.mark.parametrize("check_vma", [True, False])
@each_loss
def test_shard_map(loss, check_vma):
    """Rows over devices, parameters replicated: their cotangents are summed over the mesh."""
    fn, (x, y, *rest) = arguments_of(loss)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    specs = (P("d"), P("d"), *(P() for _ in rest))
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check_vma)
    everywhere = tuple(range(len(specs)))
    both = lambda f: jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a) * X), everywhere))
    close(both(sharded)(x, y, *rest), both(fn)(x, y, *rest))


@each_loss
def test_sharded_arguments(loss):
    """On a mesh as `jax.make_mesh` makes it, Explicit where that is JAX's default."""
    fn, (x, y, *rest) = arguments_of(loss)
    mesh = jax.make_mesh((2, 2), ("rows", "classes"), devices=jax.devices()[:4])
    put = lambda a, *spec: jax.device_put(a, jax.sharding.NamedSharding(mesh, P(*spec)))
    sharded = put(x, "rows", "classes"), put(y, "rows", "classes"), *map(put, rest)

    @jax.jit
    def both(*arguments):
        value, pull = jax.vjp(fn, *arguments)
        return value, pull(value)

    value, gradients = both(*sharded)
    close((value, gradients), both(x, y, *rest))
    assert value.sharding.spec == P("rows", "classes")


POINTS = rng.uniform([-4, 0.1, 0.3, 0.2], [4, 0.9, 2.0, 2.5], (40, 4))
POINTS[:5, 0] = 0
POINTS[5:8, 0] = [20, -20, 45]
# Hard labels, and γ = 0: no step across these bounds.
INSIDE = np.ones(POINTS.shape, bool)
POINTS[20:30, 1], INSIDE[20:30, 1] = [0, 1] * 5, False
POINTS[25:40, 3], INSIDE[25:40, 3] = 0, False


@pytest.mark.deep
def test_bce_derivatives():
    f = lambda v: BCE(v[0], v[1], pos_weight=v[2], label_smoothing=0.1)
    assert_derivatives(f, POINTS[:, :3], INSIDE[:, :3])
    assert_derivatives(lambda v: BCE(v[0], v[1]), POINTS[:, :2], INSIDE[:, :2])


@pytest.mark.deep
def test_focal_derivatives():
    f = lambda v: FOCAL(v[0], v[1], alpha=v[2] / 2, gamma=v[3])
    assert_derivatives(f, POINTS, INSIDE)


# --- what is kept, and in which dtype ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_loss
def test_only_the_inputs_are_kept(loss, dtype):
    fn, arguments = arguments_of(loss)
    arguments = [a.astype(dtype) for a in arguments]
    for f in (fn, jax.jit(fn)):
        _, pull = jax.vjp(f, *arguments)
        kept = sorted((a.shape, a.dtype.name) for a in jax.tree.leaves(pull))
        assert kept == sorted((a.shape, dtype) for a in arguments)
    _, pull = jax.vjp(lambda x: loss(x, jnp.asarray(Y["boolean"])), arguments[0])
    kept = [(a.shape, a.dtype.name) for a in jax.tree.leaves(pull) if a.ndim]
    assert sorted(kept) == sorted([((6, 4), dtype), ((6, 4), "bool")])


@each_loss
def test_dtypes(loss):
    """The logits decide: float32, or float64 for float64; gradients are as their arguments."""

    def with_gradients(*arguments):
        value, pull = jax.vjp(loss, *arguments)
        return value, pull(value)

    for dtype in ("float16", "bfloat16", "float32"):
        x, y = jnp.asarray(X, dtype), jnp.asarray(Y["soft"], "bfloat16")
        value, gradients = jax.eval_shape(with_gradients, x, y)
        assert value.dtype == jnp.float32
        assert [d.dtype for d in gradients] == [dtype, "bfloat16"]
    with enable_x64():
        assert loss(jnp.asarray(X, "float64"), jnp.asarray(Y["soft"])).dtype == "float64"
        assert loss(jnp.asarray(X), jnp.asarray(Y["soft"], "float64")).dtype == "float32"
        assert loss(jnp.asarray(X), jnp.asarray(Y["integer"])).dtype == "float32"


# --- which logits count, what they weigh, and what they come to ---------------------------------

ASYMMETRIC = jxent.robust.asymmetric_loss
EACH = {**LOSSES, "asymmetric": ASYMMETRIC}
ORACLES = {
    BCE: oracle.sigmoid_binary_cross_entropy,
    FOCAL: oracle.sigmoid_focal_loss,
    ASYMMETRIC: oracle.asymmetric_loss,
}
every_loss = pytest.mark.parametrize("loss", EACH.values(), ids=EACH)

masks = st.sampled_from([None, "rows", "logits", "nothing"])
numbers_of = st.sampled_from([None, "rows", "logits", "zero"])
reductions = st.sampled_from(["none", "sum", "mean", "normalizer"])


shapes = st.sampled_from([(4,), (3, 4), (2, 3, 4)])


@every_loss
@settings(max_examples=3)
@given(st.integers(0, 2**16), shapes, masks, numbers_of, reductions)
def test_weighed_against_the_oracle(loss, seed, shape, mask, weights, reduction):
    check_weighed(loss, seed, shape, mask, weights, reduction)


@pytest.mark.deep
@every_loss
@settings(max_examples=100)
@given(st.integers(0, 2**16), shapes, masks, numbers_of, reductions)
def test_weighed_against_the_oracle_deep(loss, seed, shape, mask, weights, reduction):
    check_weighed(loss, seed, shape, mask, weights, reduction)


def check_weighed(loss, seed, shape, mask, weights, reduction) -> None:
    """The value, and every gradient, the weights' own too."""
    rng = np.random.default_rng(seed)
    sizes = {"rows": shape[:-1], "logits": shape, "nothing": shape, "zero": shape[:-1]}
    arguments = {
        "logits": jnp.asarray(3 * rng.standard_normal(shape), jnp.float32),
        "labels": jnp.asarray(rng.random(shape), jnp.float32),
        "reduction": "mean" if reduction == "normalizer" else reduction,
    }
    if mask:
        arguments["where"] = (rng.random(sizes[mask]) < 0.6) & (mask != "nothing")
    if weights:
        w = rng.uniform(0.2, 2, sizes[weights]) * (rng.random(sizes[weights]) < 0.8)
        arguments["row_weights"] = jnp.asarray(w * (weights != "zero"), jnp.float32)
    if reduction == "normalizer":
        arguments["normalizer"] = jnp.float32(rng.choice([0.25, 5.0]))
    g = rng.standard_normal(shape if reduction == "none" else ())
    given_in_f64 = {k: f64(a) if hasattr(a, "dtype") else a for k, a in arguments.items()}
    if mask:
        given_in_f64["where"] = arguments["where"]
    expected = ORACLES[loss](**given_in_f64, cotangent=np.float32(g))
    value, gradients = value_and_gradients(loss, arguments, np.float32(g))
    scale = expected.scale["value"]
    assert_close(value, expected.value, rtol=1e-5, scale=scale, cancels=True)
    for name, gradient in gradients.items():
        wanted, size = expected.gradient[name], expected.scale.get(name)
        if loss is FOCAL and name == "labels":  # both terms of its slope may be the smaller
            size = np.abs(wanted) + 1e-2 * np.abs(g)
        assert_close(gradient, wanted, rtol=1e-5, scale=size, cancels=True, err_msg=name)


HOSTILE = [nan, inf, -inf, 3e38]


@every_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_what_is_dropped_is_exactly_nothing(loss, reduction):
    """Whatever it holds, in loss and gradient: of what is kept every bit is as without it."""
    x, y, keep = jnp.asarray(X), jnp.asarray(Y["soft"]), np.arange(24).reshape(6, 4) % 3 > 0
    w = jnp.asarray(rng.uniform(0.5, 2, (6, 4)), jnp.float32)

    @jax.jit
    def run(x, y, w):
        f = lambda *a: loss(a[0], a[1], where=keep, row_weights=a[2], reduction=reduction)
        value, pull = jax.vjp(f, x, y, w)
        tangent = jax.jvp(f, (x, y, w), (x * 0 + 1, y * 0 + 1, w * 0 + 1))[1]
        return value, tangent, *pull(jnp.ones_like(value))

    clean = run(x, y, w)
    for bad in HOSTILE:
        put = lambda a: jnp.where(keep, a, bad)  # noqa: B023
        for arguments in ((put(x), y, w), (x, put(y), w), (x, y, put(w)), map(put, (x, y, w))):
            for got, wanted in zip(run(*arguments), clean, strict=True):
                np.testing.assert_array_equal(got, wanted)
                if got.ndim:
                    assert not np.any(np.asarray(got)[~keep])
    assert loss(x, np.where(keep, Y["soft"], -1), where=keep).shape == (6, 4)
    with pytest.raises(ValueError, match=r"`labels`\[0, 0\] = -1"):
        loss(x, np.full((6, 4), -1.0), where=~keep)


def test_parameters_of_what_is_dropped():
    """Of the logits' shape they are dropped too."""
    keep = np.arange(4) > 0
    full = lambda v: jnp.where(keep, 0.5, v)
    names = {BCE: ["pos_weight"], FOCAL: ["alpha", "gamma"], ASYMMETRIC: ["gamma_pos", "gamma_neg"]}
    for loss, own in names.items():
        f = jax.jit(lambda x, p, f=loss, n=own: f(x, 0.5, where=keep, **dict.fromkeys(n, p)))
        value, pull = jax.vjp(f, jnp.ones(4), full(nan))
        wanted, wanted_pull = jax.vjp(f, jnp.ones(4), full(0.5))
        np.testing.assert_array_equal(value, wanted)
        for a, b in zip(pull(value), wanted_pull(value), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a[0] == 0


@every_loss
def test_weights_of_zero(loss):
    """Nothing, even of ∞ and of faults; what a little more would cost is told by ∂/∂w."""
    x = jnp.array([-inf, -inf, nan, 1.0, 1.0, 0.5])
    y = jnp.array([0.25, 1.0, 0.5, 1.5, 0.5, 0.5])
    w = jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    for reduction, share in (("none", 1), ("sum", 1), ("mean", 0.5)):
        f = lambda x, w, y, r=reduction: jnp.sum(loss(x, y, row_weights=w, reduction=r))
        value, (by_logit, by_weight) = jax.jit(jax.value_and_grad(f, (0, 1)))(x, w, y)
        alone, slope = jax.value_and_grad(loss)(x[5], 0.5)
        assert_close(value, 2 * share * f64(alone), rtol=1e-6)
        assert_close(by_logit, [0, 0, 0, 0, 0, 2 * share * float(slope)], rtol=1e-6)
        assert not np.any(np.isnan(by_weight)) and np.all(by_weight[:2] > 1e30)
        mean = float(value) if reduction == "mean" else 0
        assert_close(by_weight[4], share * (float(loss(1.0, 0.5)) - mean), rtol=1e-5)
    rows = lambda x, w, y: jnp.sum(loss(x, y, row_weights=w))
    heard = jax.jit(jax.grad(rows))(x, w.at[2:4].set(1), y)
    np.testing.assert_array_equal(np.isnan(heard), [0, 0, 1, 1, 0, 0])


@every_loss
def test_means(loss):
    """Σ w loss / Σ w over what is kept; nothing kept is 0, and so is its gradient."""
    x, y = jnp.asarray(X), jnp.asarray(Y["soft"])
    rows, w = np.arange(6) % 2 > 0, jnp.arange(6.0)
    each = f64(loss(x, y))
    mean = functools.partial(loss, reduction="mean")
    assert_close(mean(x, y), each.mean(), rtol=1e-6)
    assert_close(mean(x, y, where=rows), each[rows].mean(), rtol=1e-6)
    weighed = (f64(w)[:, None] * each)[rows].sum()
    got = mean(x, y, where=rows, row_weights=w)
    assert_close(got, weighed / (4 * f64(w)[rows].sum()), rtol=1e-6)
    by_entry = jnp.broadcast_to(w[:, None], (6, 4))
    assert_close(mean(x, y, where=rows, row_weights=by_entry), f64(got), rtol=1e-6)
    assert_close(mean(x, y, normalizer=3.0), each.sum() / 3, rtol=1e-6)
    for nothing in (dict(where=np.zeros(6, bool)), dict(row_weights=0 * w)):
        value, slope = jax.value_and_grad(lambda x, o=nothing: mean(x, y, **o))(x)
        assert value == 0 and not np.any(slope)
    assert mean(jnp.zeros((0, 4)), jnp.zeros((0, 4))) == 0
    assert loss(0.5, 1, where=False) == 0 and loss(0.5, 1, reduction="mean", row_weights=2.0) > 0


@every_loss
def test_means_over_devices(loss):
    """Unequal numbers of kept logits a device: one mean of all, and its gradient."""
    x, y = jnp.asarray(X), jnp.asarray(Y["soft"])
    w, keep = jnp.arange(1.0, 7.0), np.arange(24).reshape(6, 4) % 5 > 0
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("d",))
    local = lambda x, y, w, k: loss(x, y, where=k, row_weights=w, reduction="mean", axis_name="d")
    sharded = jax.shard_map(local, mesh=mesh, in_specs=P("d"), out_specs=P())
    whole = lambda x, y, w, k: loss(x, y, where=k, row_weights=w, reduction="mean")
    both = lambda f: jax.jit(jax.value_and_grad(f, (0, 1, 2)))(x, y, w, keep)
    close(both(sharded), both(whole))
    plain = jax.shard_map(
        lambda x, y: loss(x, y, reduction="mean", axis_name="d"),
        mesh=mesh, in_specs=P("d"), out_specs=P(),
    )  # fmt: skip
    close(jax.jit(plain)(x, y), jnp.mean(loss(x, y)))


@pytest.mark.parametrize(
    "loss", [BCE, *(pytest.param(f, marks=pytest.mark.deep) for f in (FOCAL, ASYMMETRIC))]
)
def test_weighed_to_second_order(loss):
    """Forward over reverse, by logits and weights together, against differences."""
    keep = np.array([True, False, True])

    def f(v):
        return loss(v[:3], jnp.array([0.2, 0.5, 1.0], v.dtype), where=keep, row_weights=v[3:],
                    reduction="mean")  # fmt: skip

    points = np.array([[0.5, 1.0, 2.0, 0.7, 0.1, 1.5], [2.0, 0, -0.5, 2.0, 1, 0.0]])
    # A step from the weight of 0 would be to a negative one, by which there is no mean.
    assert_derivatives(f, points, inside=(np.arange(6) < 3) | (points > 0))


@every_loss
def test_only_the_arguments_are_kept(loss):
    arguments = [jnp.asarray(X), jnp.asarray(Y["soft"]), jnp.arange(6.0)]
    rows, entries = jnp.arange(6) > 1, jnp.asarray(X) > 0
    for keep, reduction in ((rows, "mean"), (entries, "none")):
        f = lambda x, y, w, k, r=reduction: loss(x, y, where=k, row_weights=w, reduction=r)
        _, pull = jax.vjp(lambda *a, f=f, k=keep: f(*a, k), *arguments)
        kept = sum(a.nbytes for a in jax.tree.leaves(pull) if a.ndim)
        assert kept == sum(a.nbytes for a in (*arguments, keep))


def test_weighed_on_a_sharded_mesh():
    mesh = jax.make_mesh((2, 2), ("rows", "classes"), devices=jax.devices()[:4])
    put = lambda a, *spec: jax.device_put(a, jax.sharding.NamedSharding(mesh, P(*spec)))
    x, y, w = jnp.asarray(X), jnp.asarray(Y["soft"]), jnp.arange(6.0)
    for k, split in ((np.arange(6) > 1, P("rows")), (X > 0, P("rows", "classes"))):
        f = jax.jit(lambda x, y, w, k: BCE(x, y, where=k, row_weights=w, reduction="mean"))
        x_, y_ = (put(a, "rows", "classes") for a in (x, y))
        assert_close(f(x_, y_, put(w, "rows"), put(k, *split)), f64(f(x, y, w, k)), rtol=1e-6)


ENTRY_ERRORS = [
    (dict(where=[True, False]), ValueError, r"`where` must have the rows' shape \[3\] or the log"),
    (dict(where=[1, 0, 1]), TypeError, r"`where` must be boolean, got int64\[3\]"),
    (dict(where=[[True], [True], [False]]), ValueError, r"got bool\[3, 1\]"),
    (
        dict(row_weights=[1.0, 2.0]),
        ValueError,
        r"`row_weights` must have the rows' shape \[3\] or the logits' shape \[3, 2\], got "
        r"float64\[2\]; jnp.broadcast_to",
    ),
    (dict(row_weights=[True] * 3), TypeError, r"`row_weights` must be numbers"),
    (dict(reduction="average"), ValueError, r'`reduction` must be "mean", "sum" or "none"'),
    (dict(normalizer=2.0), ValueError, r'`normalizer` replaces the denominator of "mean"'),
    (dict(reduction="mean", normalizer=[2.0]), ValueError, r"`normalizer` must have shape \[\]"),
    (dict(axis_name="d"), ValueError, r'cannot go with reduction="none"'),
]


@every_loss
@pytest.mark.parametrize("options, error, message", ENTRY_ERRORS)
def test_errors_of_the_shared_options(loss, options, error, message, unhooked):
    options = {k: np.asarray(v) if isinstance(v, list) else v for k, v in options.items()}
    with pytest.raises(error, match=f"^{loss.__name__}: .*{message}"):
        loss(np.zeros((3, 2), np.float32), np.zeros((3, 2)), **options)


def test_checked_passes_over_dropped_labels():
    step = jax.jit(lambda x, y, k: BCE(x, y, where=k))
    y = jnp.array([[0.0, -1.0], [2.0, 1.0]])
    checked = jxent.testing.checked(step)
    checked(jnp.ones((2, 2)), y, (y >= 0) & (y <= 1))
    with pytest.raises(ValueError, match=r"`labels`\[1, 0\] = 2.0 is outside"):
        checked(jnp.ones((2, 2)), y, y >= 0)
