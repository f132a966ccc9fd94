"""Entropies and divergences of probabilities: scipy, the textbooks' snippets, laws, limits."""

import math
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_close, enable_x64, f64
from derivatives import assert_derivatives
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from sampling import first
from scipy import special
from scipy.spatial.distance import jensenshannon

import jxent
from jxent import information as info

inf, nan = math.inf, math.nan
LARGEST = float(np.finfo(np.float32).max)
RTOL = {"float16": 1e-5, "bfloat16": 1e-5, "float32": 1e-5, "float64": 1e-13}
ONE = {"entropy": info.entropy, "perplexity": info.perplexity}
TWO = {
    "cross_entropy": info.cross_entropy,
    "kl_divergence": info.kl_divergence,
    "js_divergence": info.js_divergence,
    "binary_cross_entropy": info.binary_cross_entropy,
}
BY_ROW = {k: f for k, f in TWO.items() if k != "binary_cross_entropy"}


two = pytest.mark.parametrize("name", TWO)


def binary_terms(p, q):
    return -special.xlogy(p, q) - special.xlog1py(1 - p, -q)


ORACLES = {
    "entropy": lambda p: special.entr(p).sum(-1),
    "perplexity": lambda p: np.exp(special.entr(p).sum(-1)),
    "cross_entropy": lambda p, q: -special.xlogy(p, q).sum(-1),
    "kl_divergence": lambda p, q: special.rel_entr(p, q).sum(-1),
    "js_divergence": lambda p, q: jensenshannon(p, q, axis=-1) ** 2,
    "binary_cross_entropy": binary_terms,
}


def distributions(seed: int, shape: tuple[int, ...], peak: float = 1.0) -> np.ndarray:
    """Rows that sum to 1, some entries 0; the larger `peak`, the surer."""
    rng = np.random.default_rng(seed)
    p = rng.gamma(1 / peak, size=shape) * (rng.random(shape) < 0.8)
    p[..., 0] += 1e-3
    return p / p.sum(-1, keepdims=True)


def positive(p: np.ndarray) -> np.ndarray:
    p = p + 1e-3
    return p / p.sum(-1, keepdims=True)


# --- values -----------------------------------------------------------------------------------

drawn = given(seed=st.integers(0, 2**16), peak=st.sampled_from([0.3, 1.0, 8.0]))
dtypes = pytest.mark.parametrize("dtype", RTOL)


@dtypes
@drawn
def test_against_scipy(dtype, seed, peak):
    with enable_x64():
        p = jnp.asarray(distributions(seed, (3, 5), peak), dtype)
        q = jnp.asarray(positive(distributions(seed + 1, (3, 5), peak)), dtype)
        wide = np.promote_types(p.dtype, np.float32)
        for name, fn in {**ONE, **TWO}.items():
            given = (p,) if name in ONE else (p, q)
            got, expected = fn(*given), ORACLES[name](*map(f64, given))
            assert got.dtype == wide, name
            scale = None
            if name == "kl_divergence":
                scale = np.abs(special.rel_entr(f64(p), f64(q))).sum(-1)
            if name == "js_divergence" and dtype in ("float16", "bfloat16"):
                continue  # scipy normalises rows; these do not sum to 1
            if name == "js_divergence" and np.any(expected < 1e-6):
                continue  # scipy cancels
            assert_close(got, expected, rtol=RTOL[dtype], scale=scale, cancels=True, err_msg=name)


@given(st.integers(0, 2**16), st.floats(-7, 0))
def test_js_keeps_its_digits(seed, magnitude):
    """Where p and q all but agree: JS ≈ Σ (p − q)²/(8 m), which scipy's way loses."""
    from mpmath import mp, mpf

    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4)).astype(np.float32)
    q = (p * np.exp(10**magnitude * rng.standard_normal(4))).astype(np.float32).clip(0, 1)
    with mp.workdps(60):
        exact = mpf(0)
        for a, b in zip(map(mpf, map(float, p)), map(mpf, map(float, q)), strict=True):
            m = (a + b) / 2
            exact += ((a * mp.log(a / m) if a else 0) + (b * mp.log(b / m) if b else 0)) / 2
        assert_close(info.js_divergence(p, q), float(exact), rtol=1e-5)


@drawn
def test_laws(seed, peak):
    """H(p, q) = H(p) + KL(p‖q) ≥ H(p);  0 ≤ JS ≤ log 2, symmetric;  H ≤ log V; permutation."""
    p, q = (np.float32(distributions(s, (4, 6), peak)) for s in (seed, seed + 1))
    h, cross, kl = info.entropy(p), info.cross_entropy(p, q), info.kl_divergence(p, q)
    assert_close(cross, f64(h) + f64(kl), rtol=1e-5)
    assert np.all(f64(kl) >= -1e-6)
    js = info.js_divergence(p, q)
    assert np.all(js >= 0) and np.all(f64(js) <= log(2) * (1 + 1e-6))
    np.testing.assert_array_equal(js, info.js_divergence(q, p))
    assert np.all(f64(h) >= 0) and np.all(f64(h) <= log(6) * (1 + 1e-6))
    order = np.random.default_rng(seed).permutation(6)
    assert_close(info.cross_entropy(p[:, order], q[:, order]), cross, rtol=1e-6)
    for fn in (info.kl_divergence, info.js_divergence):
        assert not np.any(fn(p, p))


def test_limits():
    sure, uniform = np.eye(4), np.full((3, 4), 0.25)
    assert not np.any(info.entropy(sure)) and not np.any(np.signbit(info.entropy(sure)))
    assert_close(info.entropy(uniform), np.full(3, log(4)), rtol=1e-6)
    assert_close(info.perplexity(uniform), np.full(3, 4.0), rtol=1e-6)
    assert np.array_equal(info.cross_entropy([1.0, 0.0], [0.0, 1.0]), inf)
    assert np.array_equal(info.cross_entropy([0.0, 1.0], [0.0, 1.0]), 0)
    assert np.array_equal(info.kl_divergence([0.5, 0.5], [0.0, 1.0]), inf)
    assert_close(info.js_divergence([1.0, 0.0], [0.0, 1.0]), log(2), rtol=1e-6)
    got = info.binary_cross_entropy([1, 0, 1, 0, 0.5], [1.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(got, [0, 0, inf, inf, inf])


def test_rows_need_not_sum_to_one():
    p, q = np.array([0.3, 0.2]), np.array([0.5, 0.9])
    for name in ("cross_entropy", "kl_divergence"):
        assert_close(TWO[name](p, q), ORACLES[name](p, q), rtol=1e-5)
    assert_close(info.entropy(p), special.entr(p).sum(), rtol=1e-5)


def test_one_row_for_all():
    p, q = np.float32(distributions(1, (3, 4))), np.float32(positive(distributions(2, (4,))))
    for fn in BY_ROW.values():
        np.testing.assert_array_equal(fn(p, q), fn(p, np.broadcast_to(q, p.shape)))
        np.testing.assert_array_equal(fn(q, q[None]), fn(q[None], q[None]))
    np.testing.assert_array_equal(
        info.binary_cross_entropy(1, q), info.binary_cross_entropy(np.ones(4), q)
    )


def test_bits():
    assert_close(info.nats_to_bits(log(2)), 1.0, rtol=1e-6)
    assert_close(info.bits_to_nats(jnp.array([1, 8])), [log(2), 8 * log(2)], rtol=1e-6)
    assert info.nats_to_bits(jnp.float16(1)).dtype == jnp.float16
    assert_close(info.bits_to_nats(info.nats_to_bits(3.0)), 3.0, rtol=1e-6)


# --- the textbooks' snippets ------------------------------------------------------------------


def snippet_binary(actual: list[float], predicted: list[float]) -> float:
    """The binary sum over two lists, as tutorials write it."""
    total = 0.0
    for p, q in zip(actual, predicted, strict=True):
        total += p * log(q) + (1 - p) * log(1 - q)
    return -total


def snippet_categorical(targets: np.ndarray, predictions: np.ndarray, eps: float = 1e-15) -> float:
    """The categorical mean with clipped predictions, as tutorials write it."""
    predictions = np.clip(predictions, eps, 1 - eps)
    return -np.mean(np.sum(targets * np.log(predictions), axis=1))


def test_the_classic_snippets(x64):
    actual = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    predicted = [0.8, 0.9, 0.9, 0.6, 0.8, 0.1, 0.4, 0.2, 0.1, 0.3]
    got = info.binary_cross_entropy(actual, predicted).sum()
    assert_close(got, snippet_binary(actual, predicted), rtol=1e-15)
    clipped = np.clip([*predicted, 0.0, 1.0, 1.0, 0.0], 1e-15, 1 - 1e-15)
    actual = [*actual, 1, 0, 1, 0]
    for reduce in (np.sum, np.mean):
        got = reduce(info.binary_cross_entropy(actual, [*predicted, 0, 1, 1, 0], eps=1e-15))
        expected = snippet_binary(actual, list(clipped)) / (1 if reduce is np.sum else 14)
        assert_close(got, expected, rtol=1e-15)
    targets = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    predictions = np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1], [1.0, 0, 0], [0.5, 0, 0.5]])
    got = info.cross_entropy(targets, predictions, eps=1e-15).mean()
    assert_close(got, snippet_categorical(targets, predictions), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.deep)])
def test_eps(x64, dtype):
    """Finite at 0 and 1 also where 1 − eps rounds to 1; no slope where clipped."""
    q = jnp.array([0.0, 1.0, 0.3], dtype)
    p = jnp.array([1.0, 0.0, 0.3], dtype)
    expected = [-log(1e-15), -math.log1p(-(1 - 1e-15)), binary_terms(0.3, 0.3)]
    if dtype == "float32":
        expected[1] = -log(1e-15)
    got, slope = jax.vmap(
        jax.value_and_grad(lambda p, q: info.binary_cross_entropy(p, q, eps=1e-15), 1)
    )(p, q)
    assert_close(got, expected, rtol=1e-6)
    assert_close(slope[:2], [0.0, 0.0])
    assert np.isfinite(info.kl_divergence(p, q, eps=1e-7))
    assert_close(info.cross_entropy(p, q, eps=0.1), -log(0.1) - special.xlogy(0.3, 0.3), rtol=1e-6)


# --- derivatives ------------------------------------------------------------------------------

rng = np.random.default_rng(3)
INSIDE = rng.uniform(0.05, 0.95, (30, 4))


@pytest.mark.deep
@two
def test_derivatives(name):
    fn = lambda v: jnp.sin(jnp.sum(TWO[name](v[:2], v[2:])))
    assert_derivatives(fn, INSIDE)


@pytest.mark.deep
def test_derivatives_of_one():
    assert_derivatives(lambda p: jnp.sin(info.perplexity(p)), INSIDE)
    tied = np.array([[1.0, 1.0, 0.3, 1.0]])
    points = np.concatenate([4 * INSIDE - 2, tied])
    assert_derivatives(lambda z: jnp.sin(info.softmax_entropy(z)), points)


# p, q, then the slopes by each; +-inf is told as the largest number.
AT_THE_EDGES = {
    "cross_entropy": ([0.0, 0.4, 0.6], [0.0, 0.0, 1.0], [inf, inf, 0], [0, -inf, -0.6]),
    "kl_divergence": ([0.0, 0.4, 1.0], [0.0, 0.0, 1.0], [inf, inf, 1], [0, -inf, -1]),
    "js_divergence": (
        [0.0, 0.0, 1.0],
        [0.0, 0.5, 1.0],
        [0, -inf, 0],
        [0, log(2) / 2, 0],
    ),
}
MODES = {
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "jit of grad": lambda f, i: jax.jit(jax.grad(f, i)),
    "linearize": lambda f, i: (
        lambda p, q: jax.vmap(
            lambda e: jax.linearize(lambda x: f(*((x, q) if i == 0 else (p, x))), (p, q)[i])[1](e)
        )(jnp.eye(p.size))
    ),
}


@pytest.mark.parametrize("mode", first(2, MODES))
@pytest.mark.parametrize("name", AT_THE_EDGES)
def test_slopes_at_the_edges(name, mode):
    p, q, *slopes = map(jnp.array, AT_THE_EDGES[name])
    for i, expected in enumerate(slopes):
        got = MODES[mode](TWO[name], i)(p, q)
        assert np.all(np.isfinite(got)), (name, mode, got)
        told = f64(got)
        told[told > 0.4 * LARGEST], told[told < -0.4 * LARGEST] = inf, -inf
        assert_close(told, expected, rtol=1e-6, cancels=True)


@two
def test_second_order_at_the_edges(name):
    """Never NaN; 0 where p = 0 = q, and everywhere the textbook's where it is finite."""
    p, q = jnp.array([0.0, 0.5, 1.0, 0.0]), jnp.array([0.0, 0.5, 1.0, 1.0])
    total = lambda p, q: jnp.sum(TWO[name](p, q))
    for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd)):
        hessian = jax.jit(inner(outer(total, (0, 1)), (0, 1)))(p, q)
        assert all(np.all(np.isfinite(block)) for row in hessian for block in row)
    third = jax.jit(jax.jacrev(jax.hessian(total, 1), 1))(p, q)
    assert not np.any(np.isnan(third))


def test_curvature():
    """−p/q and p/q², at the edges and where 1/q² has left the floats."""
    p, q = jnp.float32([0, 0.5, 1, 0, 1e-20]), jnp.float32([0, 0.5, 1, 1, 1e-20])
    for name in ("cross_entropy", "kl_divergence"):
        slope, curvature = jax.jit(
            lambda p, q, fn=TWO[name]: (jax.grad(fn, 1)(p, q), jax.hessian(fn, 1)(p, q))
        )(p, q)
        assert_close(slope, [0, -1, -1, 0, -1], rtol=1e-6)
        assert_close(np.diag(curvature), [0, 2, 1, 0, 1e20], rtol=1e-5)


def test_binary_slopes_at_the_edges():
    f = lambda p, q: info.binary_cross_entropy(p, q)
    for p, q, expected in [(0.0, 0.0, 1), (1.0, 1.0, -1), (1.0, 0.0, -inf), (0.0, 1.0, inf)]:
        for slope in (jax.grad(f, 1), jax.jacfwd(f, 1)):
            got = float(slope(jnp.float32(p), jnp.float32(q)))
            assert got == expected or (got == math.copysign(LARGEST, expected))


def test_only_the_arguments_are_kept():
    p, q = jnp.asarray(INSIDE, jnp.float32), jnp.asarray(INSIDE[::-1], jnp.float32)
    for fn in TWO.values():
        _, pull = jax.vjp(fn, p, q)
        assert [a.shape for a in jax.tree.leaves(pull)] == [p.shape] * 2
    _, pull = jax.vjp(info.entropy, p)
    assert [a.shape for a in jax.tree.leaves(pull)] == [p.shape]
    z = p.astype(jnp.bfloat16)
    _, pull = jax.vjp(info.softmax_entropy, z)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(pull)] == [(z.shape, z.dtype)]


# --- what is at fault -------------------------------------------------------------------------

BAD = [nan, 1.1, -0.1, inf, -1e-30]


@pytest.mark.parametrize("value", first(2, BAD))
@two
def test_a_bad_entry_is_nan_in_its_row_only(name, value):
    fn = jax.jit(TWO[name])
    p, q = (jnp.float32(distributions(s, (3, 4))) for s in (5, 6))
    both = lambda p, q: jax.vjp(fn, p, q)[1](jnp.ones_like(fn(p, q)))
    clean = (fn(p, q), *both(p, q))
    for bad in ((p.at[1, 2].set(value), q), (p, q.at[1, 2].set(value))):
        for got, fine in zip((fn(*bad), *both(*bad)), clean, strict=True):
            at_fault = got[1, 2] if name == "binary_cross_entropy" else got[1]
            assert np.all(np.isnan(at_fault))
            np.testing.assert_array_equal(got[np.array([0, 2])], fine[np.array([0, 2])])
            if name == "binary_cross_entropy":
                np.testing.assert_array_equal(got[1, :2], fine[1, :2])
    for outer in (jax.jacfwd, jax.jacrev):
        hessian = jax.jit(outer(jax.grad(lambda q: jnp.sum(fn(p, q)))))(q.at[1, 2].set(value))
        assert np.isnan(hessian[1, 2, 1, 2]) and not np.any(np.isnan(hessian[0, :, 0]))


def test_a_bad_entry_of_one_argument():
    p = jnp.float32(distributions(5, (3, 4))).at[1, 2].set(1.5)
    for fn in ONE.values():
        value, pull = jax.vjp(jax.jit(fn), p)
        np.testing.assert_array_equal(np.isnan(value), [False, True, False])
        assert np.all(np.isnan(pull(value)[0][1]))


ERRORS = [
    (lambda: info.entropy([0.5, 1.5]), ValueError, r"entropy: `p`\[1\] = 1.5 is outside \[0, 1\]"),
    (lambda: info.perplexity([[0.5, nan]]), ValueError, r"perplexity: `p`\[0, 1\] = nan is outs"),
    (lambda: info.kl_divergence([1.0], [-0.5]), ValueError, r"kl_divergence: `q`\[0\] = -0.5 is"),
    (lambda: info.binary_cross_entropy([1, 2], 0.5), ValueError, r"`p`\[1\] = 2 is outside"),
    (lambda: info.entropy(0.5), ValueError, r"`p` needs an axis of classes, got a scalar"),
    (lambda: info.entropy(np.zeros((3, 0))), ValueError, r"`p` has no classes, got shape \[3, 0\]"),
    (lambda: info.entropy(["a"]), TypeError, r"`p` must be numbers"),
    (
        lambda: info.cross_entropy(np.zeros((3, 1)), np.zeros(3)),
        ValueError,
        r"`p` and `q` must have the same shape, or one of them be a single row for all of the "
        r"other, got float32\[3, 1\] and float32\[3\]",
    ),
    (
        lambda: info.binary_cross_entropy(np.zeros((3, 2)), np.zeros(2)),
        ValueError,
        r"a single number for all of the other",
    ),
    (lambda: info.cross_entropy([1.0], [1.0], eps=0.5), ValueError, r"`eps` must be in \[0, 0.5\)"),
    (
        lambda: jax.jit(lambda e: info.cross_entropy([1.0], [1.0], eps=e))(0.1),
        TypeError,
        r"`eps` must be a static Python number",
    ),
    (lambda: info.softmax_entropy([1, 2]), TypeError, r"`logits` must be floating point"),
    (lambda: info.nats_to_bits([True]), TypeError, r"`nats` must be numbers"),
]


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()


def test_checked_names_the_entry():
    with pytest.raises(ValueError, match=r"^cross_entropy: `q`\[1, 0\] = 1.5 is outside \[0, 1\]"):
        jxent.testing.checked(jax.jit(info.cross_entropy))(
            jnp.full((2, 2), 0.5), jnp.array([[0.5, 0.5], [1.5, 0.0]])
        )


# --- from logits ------------------------------------------------------------------------------


def softmax_entropy_oracle(z: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, slopes, and the slopes' terms without their signs."""
    from mpmath import mp, mpf

    with mp.workdps(80):
        weights = [mp.e ** mpf(float(x)) if np.isfinite(x) else mpf(0) for x in z]
        p = [w / mp.fsum(weights) for w in weights]
        surprise = [-mp.log(x) if x else mpf(0) for x in p]
        H = mp.fsum(x * s for x, s in zip(p, surprise, strict=True))
        slopes = [x * (s - H) for x, s in zip(p, surprise, strict=True)]
        low = min(s for x, s in zip(p, surprise, strict=True) if x)
        terms = [x * abs(s - low) + x * (H - low) for x, s in zip(p, surprise, strict=True)]
        return float(H), np.array(slopes, float), np.array(terms, float)


@given(st.integers(0, 2**16), st.sampled_from([0.01, 1.0, 15.0]), st.sampled_from([0.0, 1e4]))
def test_softmax_entropy(seed, spread, shift):
    rng = np.random.default_rng(seed)
    z = np.float32(spread * rng.standard_normal((2, 5)) + shift)
    z[0, 2] = -inf
    value, slopes, terms = zip(*map(softmax_entropy_oracle, z), strict=True)
    assert_close(info.softmax_entropy(z), value, rtol=1e-5)
    got = jax.grad(lambda z: jnp.sum(info.softmax_entropy(z)))(jnp.asarray(z))
    assert_close(got, slopes, rtol=1e-5, scale=terms, cancels=True)


def test_softmax_entropy_of_sure_rows():
    """A gap of 40, where −Σ p log p in float32 is 0."""
    z = np.float32([[40.0, 0.0, 0.0], [0.0, 80.0, -inf]])
    expected = [softmax_entropy_oracle(row)[0] for row in z]
    assert_close(info.softmax_entropy(z), expected, rtol=1e-5)
    half = info.softmax_entropy(jnp.asarray(z, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert_close(half, expected, rtol=1e-5)


def test_softmax_entropy_second_order_with_impossible_classes():
    z = jnp.array([0.3, -inf, 1.0, 1.0])
    finite = jnp.array([0.3, 1.0, 1.0])
    keep = np.array([0, 2, 3])
    for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd)):
        both = jax.jit(outer(inner(info.softmax_entropy)))
        got, expected = both(z), both(finite)
        assert_close(got[np.ix_(keep, keep)], expected, rtol=1e-5, cancels=True)
        assert not np.any(got[1]) and not np.any(got[:, 1])


@pytest.mark.parametrize("bad", [nan, inf])
def test_softmax_entropy_of_bad_rows(bad):
    z = jnp.zeros((3, 3)).at[1, 1].set(bad).at[2].set(-inf)
    value, pull = jax.vjp(info.softmax_entropy, z)
    slope = pull(jnp.ones(3))[0]
    np.testing.assert_array_equal(np.isnan(value), [False, True, True])
    assert np.all(np.isnan(slope[1:])) and not np.any(np.isnan(slope[0]))


# --- transformations --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    first(
        3,
        [
            "softmax_entropy",
            "cross_entropy",
            "js_divergence",
            *ONE,
            "kl_divergence",
            "binary_cross_entropy",
        ],
    ),
)
def test_transformations(name):
    fn = getattr(info, name)
    p = jnp.float32(distributions(1, (4, 3)))
    given = (p,) if name in ONE or name == "softmax_entropy" else (p, p[::-1] * 0.9 + 0.05)
    total = lambda f: jax.value_and_grad(lambda *a: jnp.sum(jnp.cos(f(*a))), range(len(given)))
    scanned = lambda *a: jax.lax.scan(lambda c, x: (c, fn(*x)), 0, a)[1]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    specs = (P("d"),) * len(given)
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=True)
    expected = jax.jit(total(fn))(*given)
    for form in (jax.vmap(fn), scanned, sharded, jax.checkpoint(fn)):
        got = jax.jit(total(form))(*given)
        jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-5, cancels=True), got, expected)
