"""Distillation: against the oracle, near the teacher, and with neither set of logits stored."""

import functools
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.special
from assertions import assert_close, f64
from cases import value_and_gradients
from compiling import as_users
from derivatives import assert_derivatives
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jaxprs import BIG, equations, largest, products
from sampling import chosen

import jxent
from jxent.distillation import distillation_loss, linear_distillation_loss

NAMES = ("forward", "reverse", "jsd")
N, D, E, V = 11, 6, 4, 23
rng = np.random.default_rng(11)


def eighths(*shape: int) -> np.ndarray:
    """Multiples of 1/8: their products over a few features are exact in float32."""
    return rng.integers(-12, 13, shape) / 8


HIDDEN, HEAD, BIAS = eighths(N, D), eighths(D, V), eighths(V)
T_HIDDEN, T_HEAD, T_BIAS = eighths(N, E), eighths(E, V), eighths(V)
LABELS = rng.integers(0, V, N).astype(np.int32)
KEPT = np.arange(N) % 4 != 1
W = rng.uniform(0.5, 2, N)
W[4] = 0
IGNORED = np.where(np.arange(N) % 3 == 2, -100, LABELS).astype(np.int32)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": dict(temperature=np.asarray(2.5)),
    "hard labels": dict(hard_labels=LABELS, alpha=np.asarray(0.9), temperature=np.asarray(0.5)),
    "everything": dict(
        hard_labels=IGNORED,
        ignore_index=-100,
        temperature=np.asarray(4.0),
        alpha=np.asarray(0.25),
        where=KEPT,
        row_weights=W,
    ),
}


def cast(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    wide = lambda k: "float32" if k in ("temperature", "alpha", "row_weights") else dtype
    is_float = lambda x: hasattr(x, "dtype") and x.dtype == np.float64
    return {k: jnp.asarray(x, wide(k)) if is_float(x) else x for k, x in arguments.items()}


def check(fn: Any, oracle_fn: Any, arguments: Any, g: Any, rounded: float = 0.0) -> None:
    expected = oracle_fn(**arguments, cotangent=f64(g))
    value, gradients = value_and_gradients(fn, arguments, g)
    assert value.dtype == np.float32
    assert_close(value, expected.value, rtol=1e-5, scale=expected.scale["value"], cancels=True)
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        assert_close(
            gradient,
            expected.gradient[name],
            rtol=1e-5 + (rounded if name.endswith(("hidden", "head")) else 0),
            ulps=0.5 if gradient.dtype.itemsize < 4 else 0,
            scale=expected.scale.get(name),
            dtype=gradient.dtype,
            cancels=True,
            err_msg=name,
        )


def cotangent(reduction: str) -> Any:
    g = np.random.default_rng(3).standard_normal(N)
    return np.float32(g if reduction == "none" else 0.7)


DENSE = ("forward", "temperature"), ("jsd", "everything"), ("reverse", "hard labels")


@pytest.mark.parametrize(("divergence", "options"), chosen(product(NAMES, OPTIONS), *DENSE))
def test_dense(divergence, options):
    logits = dict(student_logits=HIDDEN @ HEAD, teacher_logits=T_HIDDEN @ T_HEAD)
    reduction = "none" if options == "temperature" else "mean"
    more = dict(divergence=divergence, beta=0.3, reduction=reduction)
    arguments = cast(logits | OPTIONS[options] | more, "float32")
    check(distillation_loss, oracle.distillation_loss, arguments, cotangent(reduction))


@pytest.mark.parametrize("dtype", chosen(["bfloat16", "float16"], "bfloat16"))
def test_half_precision(dtype):
    logits = dict(student_logits=HIDDEN @ HEAD, teacher_logits=T_HIDDEN @ T_HEAD)
    arguments = cast(logits | OPTIONS["everything"], dtype)
    check(distillation_loss, oracle.distillation_loss, arguments, cotangent("mean"))


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    pick = lambda *values: draw(st.sampled_from(values))
    r = np.random.default_rng(draw(st.integers(0, 99)))
    rows, classes = pick((), (3,), (2, 2), (0,)), pick(1, 2, 7)
    size = pick(0.1, 3.0, 30.0)
    logits = lambda: jnp.asarray(size * r.standard_normal((*rows, classes)), jnp.float32)
    arguments: dict[str, Any] = dict(
        student_logits=logits(),
        teacher_logits=logits(),
        temperature=jnp.float32(pick(0.5, 1.0, 8.0)),
        divergence=pick(*NAMES),
        beta=pick(0.1, 0.5, 0.9),
        reduction=pick("mean", "sum", "none"),
    )
    if pick(False, True):
        arguments |= dict(
            hard_labels=np.asarray(r.integers(0, classes, rows), np.int32),
            alpha=jnp.float32(pick(0.0, 0.3, 1.0)),
        )
    if pick(False, True):
        arguments["where"] = np.asarray(r.random(rows) < 0.6)
    if pick(False, True):
        arguments["row_weights"] = jnp.asarray(r.uniform(0, 2, rows), jnp.float32)
    none = arguments["reduction"] == "none"
    return arguments, np.float32(r.standard_normal(rows) if none else 0.7)


@pytest.mark.deep
@given(calls())
def test_calls(call):
    check(distillation_loss, oracle.distillation_loss, *call)


def test_the_oracle_against_scipy():
    s, t, T = HIDDEN @ HEAD, T_HIDDEN @ T_HEAD, 2.5
    q, p = (scipy.special.softmax(z / T, axis=-1) for z in (s, t))
    m = 0.3 * p + 0.7 * q
    kl = lambda p, q: scipy.special.rel_entr(p, q).sum(-1)
    wanted = dict(forward=kl(p, q), reverse=kl(q, p), jsd=0.3 * kl(p, m) + 0.7 * kl(q, m))
    for name, D in wanted.items():
        out = oracle.distillation_loss(
            s, t, temperature=T, divergence=name, beta=0.3, reduction="none"
        )
        np.testing.assert_allclose(out.value, T**2 * D, rtol=1e-12)
    hard = oracle.distillation_loss(s, t, hard_labels=LABELS, alpha=0.0, reduction="none")
    nll = -scipy.special.log_softmax(s, axis=-1)[np.arange(N), LABELS]
    np.testing.assert_allclose(hard.value, nll, rtol=1e-12)


# Laws


# How far apart, the temperature, offsets of the student and the teacher, how sure the teacher is.
NEAR = [
    *((nudge, 1.0, 0.0, 0.0, False) for nudge in 10.0 ** -np.arange(7)),
    *((1.0, T, 0.0, 0.0, False) for T in (10.0, 100.0, 1000.0, 1e10)),
    *((0.1, 3.0, *offsets, False) for offsets in ((1e4, 1e4), (1e4, 0.0), (7.0, -1e4))),
    *((nudge, 1.0, 0.0, 0.0, True) for nudge in (1e-1, 1e-5)),
]


def parted(name: str, s: Any, t: Any, T: float, beta: float) -> tuple[Any, Any, Any]:
    """T² D and its slopes, without the terms that cancel: as Σ (q − p) = 0, Σ p (e^x − 1 − x)."""
    # Multiplied by T only here, so that T is no part of what float64 has to hold: x is 1/T.
    r_p, r_q = (oracle.row((z - z.max(-1, keepdims=True)) / T) for z in (t, s))
    p, q = r_p.p, r_q.p
    d = ((s - t) - (p * (s - t)).sum(-1, keepdims=True)) / T
    x = d - np.log1p((p * (np.expm1(d) - d)).sum(-1, keepdims=True))
    tail = lambda x: np.where(
        np.abs(x) < 1e-3, x * x * (1 / 2 + x / 6 + x * x / 24), np.expm1(x) - x
    )
    excess = lambda p, x: (p * tail(x)).sum(-1)
    about = lambda p, x: p * (x - (p * x).sum(-1, keepdims=True))
    mixed = lambda share, x: np.log1p((1 - share) * np.expm1(x))
    of_p, of_q = mixed(beta, x), mixed(1 - beta, -x)
    D, by_s, by_t = dict(
        forward=(excess(p, x), p * np.expm1(x), about(p, -x)),
        reverse=(excess(q, -x), about(q, x), q * np.expm1(-x)),
        jsd=(
            beta * excess(p, of_p) + (1 - beta) * excess(q, of_q),
            (1 - beta) * about(q, -of_q),
            beta * about(p, -of_p),
        ),
    )[name]
    return T * T * D, T * by_s, T * by_t


@pytest.mark.parametrize("divergence", chosen(NAMES, "forward", "jsd"))
def test_near_the_teacher(divergence):
    """Where the textbook's terms cancel: loss and slopes are right to 5e-6 of the row."""
    r = np.random.default_rng(0)

    @jax.jit
    def run(s, t, T):
        options = dict(divergence=divergence, beta=0.3, reduction="none", temperature=T)
        value, pull_back = jax.vjp(lambda *z: distillation_loss(*z, **options), s, t)
        return value, *pull_back(jnp.ones_like(value))

    for case in NEAR:
        nudge, T, of_s, of_t, sure = case
        z = 3 * r.standard_normal((64, 50)) + 20 * np.eye(64, 50) * sure
        s = np.float32(z + nudge * r.standard_normal(z.shape) + of_s)
        t = np.float32(z + of_t)
        found = run(s, t, np.float32(T))
        assert np.all(found[0] >= 0)
        wanted = parted(divergence, f64(s), f64(t), T, 0.3)
        for ours, truth in zip(found, wanted, strict=True):
            ours, truth = (f64(x).reshape(64, -1) for x in (ours, truth))
            off = np.abs(ours - truth).sum(-1) / np.abs(truth).sum(-1)
            assert off.max() <= 5e-6, (case, off.max())


def test_near_the_teacher_with_logits_made_in_the_same_program():
    """XLA leaves out the rounding of what makes logits: the difference is that of rounded ones."""
    r = np.random.default_rng(2)
    scaled = lambda z: z * np.float32(0.7)

    @as_users
    def run(a, b):
        return distillation_loss(scaled(a), scaled(b), reduction="none")

    for nudge, offset in ((1e-4, 0), (3, 0), (3, 1e4)):
        a = np.float32(offset + 3 * r.standard_normal((64, 50)))
        b = np.float32(a + nudge * r.standard_normal(a.shape))
        wanted = parted("forward", *(f64(scaled(z)) for z in (a, b)), 1.0, 0.3)[0]
        np.testing.assert_allclose(run(a, b), wanted, rtol=5e-6)


def test_a_class_far_apart_that_says_nothing():
    """One improbable class must not cost the others their digits; nor where the ways part."""
    r = np.random.default_rng(1)
    z = r.standard_normal((32, 20))
    z[:, 0] -= 40
    for gap in (3.0, 15.0, 17.0):
        s, t = np.float32(z + 1e-2 * r.standard_normal(z.shape)), np.float32(z)
        s[:, 0] += np.float32(gap)
        found = distillation_loss(s, t, reduction="none")
        wanted = parted("forward", f64(s), f64(t), 1.0, 0.3)[0]
        np.testing.assert_allclose(found, wanted, rtol=5e-6 if gap < 16 else 1e-3)


@pytest.mark.deep
@pytest.mark.parametrize("divergence", NAMES)
def test_derivatives(divergence):
    """To the third order, by both logits and T, near the teacher and far from it."""
    r = np.random.default_rng(4)
    z = r.standard_normal((4, 3))
    s = z + np.array([0.0, 1e-2, 1.0, 40.0])[:, None] * r.standard_normal((4, 3))
    points = np.concatenate([s, z, np.full((4, 1), 1.5)], axis=-1)
    f = lambda x: distillation_loss(x[:3], x[3:6], temperature=x[6], divergence=divergence)
    assert_derivatives(f, points)


@pytest.mark.parametrize("name", chosen(NAMES, "jsd"))
def test_hottest(name):
    """T² is near the largest float there, and x below the smallest of whom it is the square."""
    s, t = (jnp.asarray(rng.standard_normal((4, 10)), jnp.float32) for _ in range(2))
    fn = lambda s, T: distillation_loss(s, t, temperature=T, divergence=name)
    run = jax.jit(jax.value_and_grad(fn, (0, 1)))
    (hot, (slope, by_T)), (cool, (cooler, _)) = run(s, 1e18), run(s, 1e6)
    np.testing.assert_allclose(hot, cool, rtol=1e-4)
    np.testing.assert_allclose(slope, cooler, rtol=1e-3, atol=1e-6)
    assert abs(by_T) < 1e-17
    with pytest.raises(ValueError, match="`temperature` must be positive and at most 1e18, got"):
        distillation_loss(s, t, temperature=1e20)
    assert np.isnan(jax.jit(lambda T: distillation_loss(s, t, temperature=T))(1e20))


@pytest.mark.parametrize("divergence", chosen(NAMES, "forward", "jsd"))
def test_the_teacher_itself(divergence):
    """Exactly 0, loss and gradient."""
    z = np.float32(30 * rng.standard_normal((8, 40)))
    z[:, 3] = -np.inf
    fn = functools.partial(distillation_loss, divergence=divergence, reduction="sum")
    value, gradients = jax.jit(jax.value_and_grad(fn, (0, 1)))(z, z)
    assert value == 0
    for gradient in gradients:
        assert np.all(np.asarray(gradient) == 0)


@pytest.mark.deep
def test_two_ways_round():
    s, t = (jnp.asarray(3 * rng.standard_normal((5, 9)), jnp.float32) for _ in range(2))
    fn = jax.jit(
        functools.partial(distillation_loss, reduction="none"),
        static_argnames=("divergence", "beta"),
    )
    np.testing.assert_allclose(fn(s, t), fn(t, s, divergence="reverse"), rtol=1e-6)
    one, other = fn(s, t, divergence="jsd", beta=0.2), fn(t, s, divergence="jsd", beta=0.8)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.all(fn(1000 * s, -1000 * t, divergence="jsd", beta=0.5) <= np.log(2) * (1 + 1e-6))


@pytest.mark.deep
def test_hot_is_matching_logits():
    """Hinton's limit: T² KL → Σ (s − t)²/2V for centred logits as T grows, its slope (s − t)/V."""
    s, t = (rng.standard_normal((4, 10)) for _ in range(2))
    s, t = (jnp.asarray(z - z.mean(-1, keepdims=True), jnp.float32) for z in (s, t))
    fn = lambda s: distillation_loss(s, t, temperature=1e3, reduction="sum")
    value, slope = jax.value_and_grad(fn)(s)
    np.testing.assert_allclose(value, jnp.sum((s - t) ** 2) / 20, rtol=1e-2)
    np.testing.assert_allclose(slope, (s - t) / 10, rtol=1e-2, atol=1e-3)


@pytest.mark.deep
def test_the_same_gradient_as_soft_cross_entropy():
    """At temperature 1, forward: cross-entropy with the teacher's p, but for its entropy."""
    s, t = (jnp.asarray(rng.standard_normal((4, 10)), jnp.float32) for _ in range(2))
    p = jax.nn.softmax(t)
    ours = jax.grad(distillation_loss)(s, t)
    np.testing.assert_allclose(ours, jax.grad(jxent.cross_entropy)(s, p), atol=1e-7)
    hard = distillation_loss(s, t, hard_labels=LABELS[:4] % 10, alpha=0.0)
    np.testing.assert_allclose(hard, jxent.cross_entropy(s, LABELS[:4] % 10), rtol=1e-6)


@pytest.mark.parametrize("name", chosen(NAMES, "forward"))
def test_impossible_classes(name):
    """What the student holds impossible and the teacher does not costs ∞, with finite slopes."""
    s, t = jnp.asarray([[0.0, -jnp.inf, 1.0]]), jnp.asarray([[0.5, 0.0, 1.0]])
    cooled = lambda T, *z: distillation_loss(*z, temperature=T, divergence=name)
    run, twice = (jax.jit(f) for f in (jax.value_and_grad(cooled, (0, 1, 2)), jax.hessian(cooled)))
    for a, b, cost in ((s, t, name == "forward"), (t, s, name == "reverse")):
        value, (by_T, *slopes) = run(jnp.float32(2), a, b)
        assert np.isinf(value) == cost
        assert all(np.all(np.isfinite(x)) for x in slopes)
        assert cost or (np.isfinite(by_T) and np.isfinite(twice(jnp.float32(2), a, b)))
    # Also where the teacher's probability of it is too small for a float.
    assert distillation_loss(jnp.asarray([[0.0, -jnp.inf]]), jnp.asarray([[200.0, 0.0]])) == np.inf


# Rows and options


LINEAR = functools.partial(linear_distillation_loss, chunk_size=4)
both = pytest.mark.parametrize("linear", [False, True], ids=["dense", "linear"])


def call(linear: bool, **options: Any) -> Any:
    """A function of the student's logits and the teacher's, through heads of 1s if linear."""
    if not linear:
        return functools.partial(distillation_loss, **options)
    head = lambda z: jnp.eye(z.shape[-1], dtype=z.dtype)
    return lambda s, t: LINEAR(s, head(s), t, head(t), **options)


@pytest.mark.parametrize(
    ("linear", "how", "reduction"),
    chosen(
        product([False, True], ["where", "ignore_index", "row_weights"], ["mean", "none"]),
        (False, "row_weights", "none"),
        (True, "where", "mean"),
    ),
)
def test_rows_that_do_not_count(linear, how, reduction):
    """Exactly 0, loss and gradient, whatever they hold; the others as in clean company."""
    r = np.random.default_rng(2)
    s, t = (np.float32(r.standard_normal((9, 7))) for _ in range(2))
    y = np.asarray(r.integers(0, 7, 9), np.int32)
    bad_s, bad_t, bad_y = s.copy(), t.copy(), y.copy()
    bad_s[1], bad_s[3, 2], bad_t[4], bad_t[6, 1] = np.nan, np.inf, -np.inf, np.nan
    dropped = np.isin(np.arange(9), [1, 3, 4, 6, 7])
    bad_y[7] = -1
    options: dict[str, Any] = dict(reduction=reduction, temperature=2.0)
    if how == "where":
        options["where"] = ~dropped
    elif how == "ignore_index":
        y, bad_y = (np.where(dropped, -100, x) for x in (y, bad_y))
        options["ignore_index"] = -100
    else:
        options["row_weights"] = np.float32(~dropped)

    @jax.jit
    def run(s: Any, t: Any, y: Any) -> Any:
        value, pull_back = jax.vjp(call(linear, hard_labels=y, **options), s, t)
        return value, *pull_back(jnp.ones_like(value))

    found, clean = run(bad_s, bad_t, jnp.asarray(bad_y)), run(s, t, jnp.asarray(y))
    for ours, theirs in zip(found, clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for gradient in found[1:]:
        assert np.all(np.asarray(gradient)[dropped] == 0)
        assert np.all(np.any(np.asarray(gradient)[~dropped] != 0, axis=-1))


@both
def test_a_fault_that_nobody_hears(linear):
    """A row at fault whose cotangent is 0 leaves the heads' gradients clean."""
    h = np.float32(eighths(6, 4))
    w = jnp.asarray(eighths(4, 5), jnp.float32)
    h[2] = np.nan
    keep = jnp.arange(6) != 2

    def run(w):
        if linear:
            losses = LINEAR(h, w, h, -w, reduction="none")
        else:
            z = jnp.where(keep[:, None], h, 0) @ w + jnp.where(keep, 0, jnp.nan)[:, None]
            losses = distillation_loss(z, -z, reduction="none", row_weights=keep.astype("f4"))
        return jnp.sum(jnp.where(keep, losses, 0))

    slope = jax.jit(jax.grad(run))(w)
    assert np.all(np.isfinite(slope)) and np.any(np.asarray(slope) != 0)


@both
def test_bad_hard_labels(linear):
    s, t = (jnp.asarray(rng.standard_normal((3, 5)), jnp.float32) for _ in range(2))
    y = np.array([0, 5, 1])
    name = "linear_distillation_loss" if linear else "distillation_loss"
    with pytest.raises(ValueError, match=rf"^{name}: `hard_labels`\[1\] = 5 is outside \[0, 5\)"):
        call(linear, hard_labels=y)(s, t)
    run = lambda y: jax.value_and_grad(
        lambda s: jnp.sum(call(linear, hard_labels=y, reduction="none")(s, t))
    )(s)
    _, slope = jax.jit(run)(jnp.asarray(y))
    np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(slope).any(-1), [False, True, False])
    with pytest.raises(ValueError, match=r"`hard_labels`\[1\] = 5 is outside"):
        jxent.testing.checked(jax.jit(run))(jnp.asarray(y))


@both
def test_a_fault_in_the_term_that_weighs_nothing(linear):
    """NaN in loss and gradient of its row; where the row itself weighs nothing 0 in both."""
    s, t = (jnp.asarray(rng.standard_normal((4, 5)), jnp.float32) for _ in range(2))
    y, bad_y = jnp.array([0, 1, 2, 3]), jnp.array([0, 5, 2, 5])
    w = jnp.array([1, 1, 1, 0], jnp.float32)
    bad_t = t.at[jnp.array([1, 3]), 2].set(jnp.nan)

    @jax.jit
    def run(s, t, y, alpha):
        options = dict(hard_labels=y, alpha=alpha, row_weights=w, reduction="none")
        losses, pull_back = jax.vjp(lambda s: call(linear, **options)(s, t), s)
        return losses, *pull_back(jnp.ones_like(losses))

    cases = [(t, bad_y, 1.0)] if linear else [(t, bad_y, 1.0), (bad_t, y, 0.0)]
    for teacher, labels, alpha in cases:
        losses, slope = run(s, teacher, labels, jnp.float32(alpha))
        np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])
        np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, False, False])
        assert losses[3] == 0 and np.all(np.asarray(slope)[3] == 0)
        assert np.all(np.isfinite(slope[jnp.array([0, 2])]))


def test_a_label_that_is_masked_out_and_weighs_nothing():
    s, t = (jnp.asarray(rng.standard_normal((2, 5)), jnp.float32) for _ in range(2))
    keep = jnp.ones((2, 5), bool).at[1, 3].set(False)
    options = dict(hard_labels=jnp.array([3, 3]), alpha=1.0, where=keep, reduction="none")
    losses = jax.jit(lambda s: distillation_loss(s, t, **options))(s)
    np.testing.assert_array_equal(np.isnan(losses), [False, True])


@pytest.mark.parametrize("linear", chosen([False, True], False), ids=["dense", "linear"])
def test_temperatures_out_of_range(linear):
    s, t = (jnp.asarray(rng.standard_normal((3, 5)), jnp.float32) for _ in range(2))
    y = jnp.zeros(3, jnp.int32)
    for T in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(
            ValueError, match="`temperature` must be positive and at most 1e18, got"
        ):
            call(linear, temperature=T)(s, t)
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got"):
            call(linear, hard_labels=y, alpha=alpha)(s, t)
    traced = jax.jit(lambda T, a: call(linear, temperature=T, alpha=a, hard_labels=y)(s, t))
    assert np.isfinite(traced(2.0, 0.5)) and np.isnan(traced(-2.0, 0.5))
    assert np.isnan(traced(2.0, 1.5))


Z = np.zeros((4, 5), np.float32)
H = np.zeros((4, 3), np.float32)
HEAD_DV = np.zeros((3, 5), np.float32)
ERRORS = [
    ((Z, Z[:, :4]), {}, ValueError, r"`teacher_logits` must have the shape of `student_logits`"),
    ((Z, Z.astype(int)), {}, TypeError, r"`teacher_logits` must be floating point"),
    ((Z[:, :0], Z[:, :0]), {}, ValueError, r"`student_logits` has no classes"),
    ((Z, Z), dict(alpha=0.5), ValueError, r"`alpha` weighs the soft term against `hard_labels`"),
    ((Z, Z), dict(ignore_index=0), ValueError, r"`ignore_index` goes with `hard_labels`"),
    ((Z, Z), dict(divergence="js"), ValueError, r"`divergence` must be 'forward', 'reverse' or"),
    ((Z, Z), dict(beta=1.0), ValueError, r"`beta` must lie between 0 and 1"),
    ((Z, Z), dict(temperature=H), ValueError, r"`temperature` must have shape \[\]"),
    ((Z, Z), dict(hard_labels=Z[:, 0]), TypeError, r"`hard_labels` must be integers"),
    ((Z, Z), dict(hard_labels=[[0]] * 4), ValueError, r"`hard_labels` must have one label a row"),
    ((Z, Z), dict(where=Z[:, 0]), TypeError, r"`where` must be boolean"),
    ((Z, Z), dict(reduction="batchmean"), ValueError, r"`reduction` must be"),
    ((H, HEAD_DV, H[:3], HEAD_DV), {}, ValueError, r"`teacher_hidden` must have the rows of"),
    ((H, HEAD_DV, H, HEAD_DV[:, :4]), {}, ValueError, r"`teacher_head` has 4 classes and `stu"),
    ((H, HEAD_DV.T, H, HEAD_DV), {}, ValueError, r"`student_head` must have shape \[3, V\]"),
    (
        (H, HEAD_DV, H, HEAD_DV),
        dict(teacher_head_layout="vd"),
        ValueError,
        r"`teacher_head` must have shape \[V, 3\] with teacher_head_layout='vd'.*fits",
    ),
    ((H, HEAD_DV, H, HEAD_DV), dict(teacher_bias=Z), ValueError, r"`teacher_bias` must have"),
    ((H, HEAD_DV, H, HEAD_DV), dict(chunk_size=0), ValueError, r"`chunk_size` must be at least"),
    ((H, HEAD_DV, H, HEAD_DV), dict(where=Z == 0), ValueError, r"`where` must .*class_mask="),
    ((H, HEAD_DV, H, HEAD_DV), dict(class_mask=Z == 0), ValueError, r"`class_mask` must have"),
]


@pytest.mark.parametrize("which", range(len(ERRORS)))
def test_errors(which, unhooked):
    args, options, error, words = ERRORS[which]
    fn = distillation_loss if len(args) == 2 else linear_distillation_loss
    with pytest.raises(error, match=f"^{fn.__name__}: {words}"):
        fn(*args, **options)


def test_forward_mode_says_what_to_do(unhooked):
    with pytest.raises(TypeError, match="use distillation_loss of stored logits"):
        jax.jvp(lambda h: linear_distillation_loss(h, HEAD_DV, H, HEAD_DV), (H,), (H,))


# Logits never stored


def linear_arguments(options: dict[str, Any], dtype: str, layouts: tuple[str, str]) -> Any:
    turned = lambda w, layout: w if layout == "dv" else w.T
    return cast(
        dict(
            student_hidden=HIDDEN,
            student_head=turned(HEAD, layouts[0]),
            teacher_hidden=T_HIDDEN,
            teacher_head=turned(T_HEAD, layouts[1]),
            student_bias=BIAS,
            teacher_bias=T_BIAS,
        )
        | options,
        dtype,
    ) | dict(head_layout=layouts[0], teacher_head_layout=layouts[1])


SETS = [*zip(OPTIONS, (*NAMES, "jsd"), strict=True)]


@pytest.mark.parametrize(
    ("options", "divergence", "reduction"),
    chosen(
        [(*each, reduction) for each in SETS for reduction in ("mean", "sum", "none")],
        ("plain", "forward", "none"),
        ("everything", "jsd", "mean"),
    ),
)
def test_linear(options, divergence, reduction):
    layouts = ("dv", "vd") if reduction == "mean" else ("vd", "dv")
    arguments = linear_arguments(OPTIONS[options], "float32", layouts)
    arguments |= dict(divergence=divergence, reduction=reduction)
    check(LINEAR, oracle.linear_distillation_loss, arguments, cotangent(reduction))


@pytest.mark.parametrize("size", chosen([1, 5, 11, 12], 5))
def test_every_chunk_size(size):
    fn = functools.partial(linear_distillation_loss, chunk_size=size)
    arguments = linear_arguments(OPTIONS["everything"], "float32", ("dv", "dv"))
    check(fn, oracle.linear_distillation_loss, arguments, cotangent("mean"))


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    chosen([("bfloat16", 2.0**-8), ("float16", 2.0**-11)], ("bfloat16", 2.0**-8)),
)
def test_half_precision_projections(dtype, rounded):
    arguments = linear_arguments(OPTIONS["everything"], dtype, ("dv", "dv"))
    check(LINEAR, oracle.linear_distillation_loss, arguments, cotangent("mean"), rounded)


@pytest.mark.parametrize("reduction", chosen(["mean", "none"], "mean"))
def test_excluded_classes(reduction):
    """Excluded for student and teacher alike, whatever their heads hold there."""
    out, label = np.arange(V) % 5 == 0, IGNORED % 5 == 0
    options = OPTIONS["everything"] | dict(hard_labels=np.where(label, IGNORED + 1, IGNORED))
    options["hard_labels"] = np.where(IGNORED < 0, IGNORED, options["hard_labels"])
    arguments = linear_arguments(options, "float32", ("dv", "vd"))
    arguments |= dict(class_mask=~out, reduction=reduction)
    arguments["student_head"] = arguments["student_head"].at[:, out].set(jnp.nan)
    arguments["teacher_head"] = arguments["teacher_head"].at[out].set(jnp.inf)
    arguments["teacher_bias"] = arguments["teacher_bias"].at[out].set(jnp.inf)
    check(LINEAR, oracle.linear_distillation_loss, arguments, cotangent(reduction))
    arguments["class_mask"] = np.zeros(V, bool)
    value, gradients = value_and_gradients(LINEAR, arguments, cotangent(reduction))
    assert np.all(value == 0)
    assert all(np.all(g == 0) for g in gradients.values())


def test_a_mean_s_normalizer_and_micro_batches():
    a = linear_arguments({}, "float32", ("dv", "dv"))
    whole = linear_distillation_loss(**a)
    part = lambda rows: linear_distillation_loss(
        **{k: x[rows] if "hidden" in k else x for k, x in a.items()}, normalizer=jnp.float32(N)
    )
    np.testing.assert_allclose(part(slice(0, 4)) + part(slice(4, N)), whole, rtol=1e-6)
    nothing = linear_distillation_loss(**a, where=np.zeros(N, bool), normalizer=jnp.float32(0))
    assert nothing == 0


@pytest.mark.deep
def test_second_order_once():
    """Hessian-vector products of the sums and of the rows are those of stored logits."""
    a = linear_arguments(OPTIONS["hard labels"], "float32", ("dv", "dv"))
    names = "student_hidden", "student_head", "teacher_hidden", "teacher_head"
    given = tuple(a.pop(name) for name in names)
    biases = a.pop("student_bias"), a.pop("teacher_bias")
    del a["head_layout"], a["teacher_head_layout"]

    def stored(h, w, u, v):
        return distillation_loss(h @ w + biases[0][None], u @ v + biases[1][None], **a)

    def never(h, w, u, v, **more):
        return LINEAR(h, w, u, v, student_bias=biases[0], teacher_bias=biases[1], **a, **more)

    def hvp(f):
        slopes = jax.grad(f, (0, 1, 2, 3))
        inner = lambda *x: sum(jnp.vdot(g, y) for g, y in zip(slopes(*x), x, strict=True))
        return jax.jit(jax.grad(inner, (0, 1, 2, 3)))(*given)

    wanted = hvp(stored)
    each = lambda *x: jnp.mean(never(*x, reduction="none"))
    for f in (never, each):
        for ours, theirs in zip(hvp(f), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_over_devices():
    """axis_name inside shard_map: the whole batch's mean, and its gradients."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    a = linear_arguments({}, "float32", ("dv", "dv"))
    h, u = (jnp.asarray(a.pop(f"{who}_hidden")[:8]) for who in ("student", "teacher"))
    w = a.pop("student_head")
    keep = jnp.arange(8) != 1
    run = lambda h, u, w, keep, **more: jax.value_and_grad(
        lambda w: linear_distillation_loss(h, w, u, where=keep, **a, **more)
    )(w)
    sharded = jax.shard_map(
        functools.partial(run, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"), P("data"), P(), P("data")),
        out_specs=P(),
    )
    for ours, theirs in zip(
        jax.tree.leaves(jax.jit(sharded)(h, u, w, keep)),
        jax.tree.leaves(run(h, u, w, keep)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def traced(wrt: tuple[int, ...], reduction: str = "mean", order: int = 1, **options: Any) -> Any:
    n, d, v = BIG["n"], BIG["d"], BIG["v"]
    arguments = tuple(jnp.ones(shape) for shape in ((n, d), (d, v), (n, d), (d, v)))

    def f(*x):
        return jnp.sum(
            linear_distillation_loss(
                *x, hard_labels=jnp.zeros(n, int), chunk_size=32, reduction=reduction, **options
            )
        )

    for _ in range(order - 1):
        f = lambda *x, f=f: jnp.vdot(jax.grad(f, 1)(*x), x[1] + 1)
    return jax.make_jaxpr(jax.grad(f, wrt) if wrt else f)(*arguments)


@pytest.mark.parametrize(
    ("wrt", "needed"),
    chosen(
        [((), 0), ((0, 1), 2), ((1,), 1), ((2, 3), 2), ((0, 1, 2, 3), 4)],
        ((), 0),
        ((0, 1), 2),
        ((0, 1, 2, 3), 4),
    ),
)
def test_products_that_nobody_asks_for(wrt, needed):
    """A frozen teacher costs its projection and no more."""
    assert products(traced(wrt)) == 2 + needed
    assert products(traced(wrt, "none")) == (4 if wrt else 2) + needed


@pytest.mark.parametrize(
    ("reduction", "order"),
    chosen(product(["mean", "none"], [1, 2]), ("mean", 1), ("none", 1), ("mean", 2)),
)
def test_no_array_of_all_logits(reduction, order):
    found = largest(traced((0, 1, 2, 3), reduction, order, divergence="jsd"))
    assert 0 < found <= 32 * BIG["v"] * (1 if order == 1 else 3)
    assert any(e.primitive.name == "dot_general" for e, _ in equations(traced((0,)).jaxpr))


@pytest.mark.parametrize(
    ("wrt", "divergence"),
    chosen(product([(0, 1), (0, 1, 2, 3)], ["forward", "jsd"]), ((0, 1), "forward")),
)
def test_temporary_memory(wrt, divergence):
    """At most a fifteenth of what stored logits need, as `linear_cross_entropy`."""
    n, d, v = 4096, 256, 16384
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((n, d), (d, v)) * 2]
    options = dict(temperature=2.0, divergence=divergence)
    held = lambda f: (
        jax.jit(jax.value_and_grad(f, wrt))
        .lower(*shapes)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    dense = held(lambda h, w, u, v: distillation_loss(h @ w, u @ v, **options))
    assert dense >= 2 * 4 * n * v, "stored logits are not stored"
    linear = held(lambda h, w, u, v: linear_distillation_loss(h, w, u, v, **options))
    rows = held(
        lambda h, w, u, v: jnp.mean(
            linear_distillation_loss(h, w, u, v, reduction="none", **options)
        )
    )
    assert linear <= dense / 15
    assert rows <= dense / 15


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("divergence", NAMES)
def test_what_is_saved(divergence, dtype):
    """Both logits as given, and a few numbers per row."""
    rows, classes = 64, 512
    z = jax.ShapeDtypeStruct((rows, classes), dtype)
    y = jnp.zeros(rows, jnp.int32)
    fn = lambda s, t: distillation_loss(
        s, t, hard_labels=y, divergence=divergence, temperature=2.0, where=y == 0
    )
    saved = nbytes(jax.eval_shape(lambda s, t: jax.vjp(fn, s, t)[1], z, z))
    given = 2 * rows * classes * jnp.dtype(dtype).itemsize
    assert given <= saved <= given + 4 * 16 * rows


def test_what_the_linear_loss_saves():
    n, d, v = BIG["n"], BIG["d"], BIG["v"]
    shapes = [jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((n, d), (d, v)) * 2]
    for reduction, size in (("mean", 4), ("none", 2)):
        fn = functools.partial(linear_distillation_loss, reduction=reduction, chunk_size=16)
        saved = nbytes(jax.eval_shape(lambda *a, fn=fn: jax.vjp(fn, *a)[1], *shapes))
        given = 2 * (n * d + d * v) * size
        assert given <= saved <= given + 4 * 16 * n
