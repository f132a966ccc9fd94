"""Continuous targets: against scipy's normal distribution, there and back, and trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from assertions import assert_close, f64, relaxed

import jxent
from jxent import regression as reg

NAN, INF = np.nan, np.inf
rng = np.random.default_rng(3)

# The likelihood


def logpdf(mean, target, variance):
    return -scipy.stats.norm.logpdf(f64(target), f64(mean), np.sqrt(f64(variance)))


MU, Y = np.float32(rng.standard_normal(50)), np.float32(10 * rng.standard_normal(50))
VARIANCE = np.float32(np.exp(3 * rng.standard_normal(50)))


def test_gaussian_nll():
    for v in (1.0, 0.25, VARIANCE):
        scale = np.abs(np.log(v)) + (f64(Y) - MU) ** 2 / v + 2
        out = reg.gaussian_nll(MU, Y, v)
        assert out.dtype == np.float32 and out.shape == Y.shape
        assert_close(out, logpdf(MU, Y, v), rtol=1e-6, scale=scale)
        logged = reg.gaussian_nll(MU, Y, log_variance=np.float32(np.log(v)))
        assert_close(logged, logpdf(MU, Y, v), rtol=1e-6, scale=scale)
    np.testing.assert_array_equal(reg.gaussian_nll(MU, Y), reg.gaussian_nll(MU, Y, 1.0))


def test_squared_error_is_unit_variance():
    half = 0.5 * optax.squared_error(jnp.asarray(MU), jnp.asarray(Y))
    ours = reg.gaussian_nll(MU, Y)
    np.testing.assert_allclose(ours - half, 0.5 * np.log(2 * np.pi), rtol=1e-4)
    slope = jax.grad(lambda mu: reg.gaussian_nll(mu, Y).sum())(MU)
    np.testing.assert_allclose(slope, MU - Y, rtol=1e-6)


def test_gaussian_gradients():
    fn = lambda mu, y, v, log: reg.gaussian_nll(mu, y, **{"log_variance" if log else "variance": v})
    z2 = (f64(Y) - MU) ** 2 / VARIANCE
    log_v = np.float32(np.log(VARIANCE))
    for v, log, slope in (
        (VARIANCE, False, (1 - z2) / VARIANCE / 2),
        (log_v, True, (1 - z2) / 2),
    ):
        run = jax.jit(jax.grad(lambda *a, log=log: fn(*a, log).sum(), (0, 1, 2)))
        by_mu, by_y, by_v = run(MU, Y, v)
        residual = (f64(Y) - MU) / VARIANCE
        np.testing.assert_allclose(by_mu, -residual, rtol=1e-5)
        np.testing.assert_allclose(by_y, residual, rtol=1e-5)
        np.testing.assert_allclose(by_v, slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max())


@pytest.mark.parametrize("log_variance", [-300.0, -100.0, 80.0, 300.0])
def test_extreme_variances(log_variance):
    """No 0·∞: a perfect prediction is worth its log density, however narrow."""
    run = jax.value_and_grad(lambda mu, v: reg.gaussian_nll(mu, 1.0, log_variance=v), (0, 1))
    value, (by_mu, by_l) = run(jnp.float32(1.0), jnp.float32(log_variance))
    assert_close(value, 0.5 * (log_variance + np.log(2 * np.pi)), rtol=1e-6)
    assert by_mu == 0 and by_l == 0.5


def test_gaussian_faults():
    mu = jnp.asarray([0.0, NAN, 0.0, 0.0])
    y, v = jnp.asarray([0.0, 0.0, NAN, 0.0]), jnp.asarray([1.0, 1.0, 1.0, -1.0])
    run = jax.value_and_grad(lambda mu, v: (r := reg.gaussian_nll(mu, y, v)).sum() + 0 * r.sum())
    out = jax.jit(lambda v: reg.gaussian_nll(mu, y, v))(v)
    np.testing.assert_array_equal(np.isnan(out), [False, True, True, True])
    slopes = jax.jit(run)(mu, v)[1]
    np.testing.assert_array_equal(np.isnan(slopes), [False, True, True, True])
    with pytest.raises(ValueError, match=r"`variance`\[3\] = -1.0 must be positive"):
        reg.gaussian_nll(mu, y, v)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    mu, y = jnp.asarray(MU, dtype), jnp.asarray(Y, dtype)
    out, slope = jax.value_and_grad(lambda mu: reg.gaussian_nll(mu, y, 2.0).sum())(mu)
    assert out.dtype == np.float32 and slope.dtype == dtype
    np.testing.assert_allclose(out, logpdf(mu, y, 2.0).sum(), rtol=1e-5)
    for t in (reg.two_hot(y, (-60.0, 60.0, 121)), reg.hl_gauss(y, (-60.0, 60.0, 120))):
        assert t.dtype == np.float32
        np.testing.assert_allclose(t.sum(-1), 1, rtol=1e-6)


# Two-hot

BINS = {
    "even": (-2.0, 5.0, 15),
    "uneven": np.float32([-2, -1.5, 0, 0.1, 3, 5]),
    "two": np.array([-2, 5]),
}


@pytest.mark.parametrize("name", BINS)
@pytest.mark.parametrize("shape", [(), (0,), (40,), (3, 5)])
def test_two_hot(name, shape):
    bins = BINS[name]
    b = np.linspace(*bins) if isinstance(bins, tuple) else f64(bins)
    y = np.float32(np.random.default_rng(0).uniform(-2, 5, shape))
    t = reg.two_hot(y, bins)
    assert t.shape == (*shape, b.size) and t.dtype == np.float32
    # The hats of linear interpolation: np.interp of each unit vector.
    hats = np.stack([np.interp(f64(y), b, e) for e in np.eye(b.size)], axis=-1)
    np.testing.assert_allclose(t, hats, atol=2e-6)
    np.testing.assert_allclose(t.sum(-1), 1, rtol=1e-6)
    assert np.all(np.sum(np.asarray(t) != 0, -1) <= 2) and np.all(np.asarray(t) >= 0)
    back = reg.expected_value(t, bins, probabilities=True)
    np.testing.assert_allclose(back, y, atol=1e-6)
    np.testing.assert_allclose(t @ np.float32(b), y, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 51, 300])
def test_there_and_back(classes):
    bins = np.float32(np.linspace(-2, 5, classes))
    y = np.concatenate([np.float32(rng.uniform(-2, 5, 1000)), bins])
    back = reg.expected_value(reg.two_hot(y, bins), bins, probabilities=True)
    np.testing.assert_allclose(back, y, rtol=0, atol=1e-6)


def test_at_the_class_values():
    b = np.float32([-1, 0, 2, 7])
    np.testing.assert_array_equal(reg.two_hot(b, b), np.eye(4))
    slopes = jax.vmap(jax.jacobian(lambda y: reg.two_hot(y, (0.0, 4.0, 5))))(jnp.arange(5.0))
    np.testing.assert_allclose(slopes @ jnp.arange(5.0), 1)  # ∂ mean/∂y = 1, at knots too


# HL-Gauss


def truth(y, edges, sigma):
    """Differences of Φ by scipy, in the tail where they do not cancel."""
    z = (f64(edges) - f64(y)[..., None]) / sigma
    left, right = scipy.stats.norm.cdf(z), scipy.stats.norm.sf(z)
    mass = np.where(z[..., 1:] + z[..., :-1] > 0, -np.diff(right), np.diff(left))
    return mass / mass.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("even", "sigma"),
    [(True, None), (True, 0.05), (False, 0.4), (False, 3.0), (True, 1e3)],
)
def test_hl_gauss(sigma, even):
    """To its last digits in every bin that float32 can hold, also deep in the tails."""
    edges = np.linspace(-4, 4, 33) if even else np.sort(rng.uniform(-4, 4, 20))
    edges = np.float32(edges)
    y = np.float32(np.random.default_rng(1).uniform(edges[0], edges[-1], 200))
    t = reg.hl_gauss(y, (-4.0, 4.0, 32) if even else edges, sigma)
    s = 0.75 * (f64(edges[-1]) - edges[0]) / (len(edges) - 1) if sigma is None else sigma
    expected = truth(y, edges, s)
    assert t.shape == (200, len(edges) - 1) and t.dtype == np.float32
    held = expected > 1e-30
    # Each exponent z²/2 is off by an ulp or two of itself, and by the ulp of e − y in it.
    z = np.abs(f64(edges) - f64(y)[:, None]).max() / s
    z = min(z, 12.0)
    np.testing.assert_allclose(np.asarray(t)[held], expected[held], rtol=3e-6 * (1 + z * z))
    np.testing.assert_allclose(t, expected, atol=2e-6)
    np.testing.assert_allclose(t.sum(-1), 1, rtol=1e-6)


def test_narrow_bins():
    """Bins of a ten-thousandth of σ, where Φ at the ends agrees in its leading digits."""
    y, edges = np.float32([-3.0, 0.0, 2.5]), np.float32(np.linspace(-4, 4, 20001))
    t = reg.hl_gauss(y, edges, 1.0)
    np.testing.assert_allclose(t, truth(y, edges, 1.0), rtol=2e-5)


def test_decoding_hl_gauss():
    edges = (-10.0, 10.0, 81)
    y = np.float32(rng.uniform(-9, 9, 300))  # 3 σ from the ends
    width = 20 / 81
    for sigma, bound in ((None, 1e-3), (width, 2e-4), (0.3, 3e-3)):
        t = reg.hl_gauss(y, edges, sigma)
        back = reg.expected_value(t, reg.bin_centers(edges), probabilities=True)
        assert np.abs(f64(back) - y).max() <= bound * width
    everywhere = np.float32(np.linspace(-10, 10, 101))
    t = reg.hl_gauss(everywhere, edges)
    back = reg.expected_value(t, reg.bin_centers(edges), probabilities=True)
    assert np.abs(back - everywhere).max() <= 0.75 * width


def test_gradients_of_hl_gauss(x64):
    fn = jax.jit(lambda y, s: reg.hl_gauss(y, np.linspace(-3, 3, 13), s))
    y, s, h = 0.7, 0.4, 1e-6
    by_y, by_s = jax.jit(jax.jacobian(fn, (0, 1)))(jnp.float64(y), jnp.float64(s))
    step = lambda f: (f(h) - f(-h)) / (2 * h)
    np.testing.assert_allclose(by_y, step(lambda d: fn(y + d, s)), atol=1e-8)
    np.testing.assert_allclose(by_s, step(lambda d: fn(y, s + d)), atol=1e-8)
    np.testing.assert_allclose(fn(y, s), truth(np.array(y), np.linspace(-3, 3, 13), s), rtol=1e-12)


# Outside, at fault, wrong

TARGETS = {
    "two_hot": functools.partial(reg.two_hot, bins=(-1.0, 1.0, 5)),
    "hl_gauss": functools.partial(reg.hl_gauss, edges=(-1.0, 1.0, 5)),
}
each = pytest.mark.parametrize("name", TARGETS)
OUT = np.float32([0.5, -1.25, NAN, 7.0, 1.0])


@each
def test_outside(name):
    fn = TARGETS[name]
    words = rf"^{name}: `values`\[1\] = -1.25 is outside \[-1.0, 1.0\], one of 2; widen"
    with pytest.raises(ValueError, match=words):
        fn(OUT)
    traced = jax.jit(fn)(OUT)
    wrong = np.array([False, True, True, True, False])
    np.testing.assert_array_equal(np.isnan(traced).all(-1), wrong)
    np.testing.assert_array_equal(np.isnan(traced).any(-1), wrong)
    with pytest.raises(ValueError, match=rf"{name}: `values`\[1\] = -1.25 is outside the support"):
        jxent.testing.checked(jax.jit(fn))(np.where(np.isnan(OUT), 0, OUT))
    clipped = fn(OUT, outside="clip")
    ends = fn(np.float32([0.5, -1.0, NAN, 1.0, 1.0]))
    np.testing.assert_array_equal(clipped, ends)
    traced = jax.jit(functools.partial(fn, outside="clip"))(OUT)
    np.testing.assert_allclose(traced, clipped, rtol=1e-5)
    assert np.isnan(clipped[2]).all() and np.isfinite(np.delete(clipped, 2, 0)).all()


def test_counting_what_is_outside():
    count = jax.jit(lambda y: reg.count_outside(y, (-1.0, 1.0, 5)))(OUT)
    assert count == 2 and count.dtype == np.int32
    assert reg.count_outside(np.array([3, 4]), np.array([0, 1, 3])) == 1
    assert reg.count_outside(np.zeros(0), (0.0, 1.0, 2)) == 0


@each
def test_transforms(name):
    fn, y = TARGETS[name], jnp.linspace(-0.9, 0.9, 6)
    plain = fn(y)
    np.testing.assert_allclose(jax.jit(fn)(y), plain, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(fn)(y), plain, atol=1e-7)
    assert np.all(np.isfinite(jax.jacfwd(fn)(y)))
    integers = fn(jnp.asarray([-1, 0, 1]))
    np.testing.assert_array_equal(integers, fn(jnp.asarray([-1.0, 0.0, 1.0])))


def test_expected_value():
    z = 3 * rng.standard_normal((50, 300))
    b = 1e4 + np.linspace(-3, 3, 300)
    p = np.exp(z - z.max(-1, keepdims=True))
    wanted = (p / p.sum(-1, keepdims=True)) @ f64(np.float32(b))
    out = reg.expected_value(np.float32(z), np.float32(b))
    assert_close(out, wanted, ulps=0.6)  # an offset costs no digits
    faults = reg.expected_value(jnp.asarray([[0, NAN], [0, -INF], [INF, 0]]), (0.0, 1.0, 2))
    np.testing.assert_array_equal(faults, [NAN, 0, NAN])


ERRORS = [
    ("gaussian_nll", ([1], [1.0]), {}, TypeError, "`mean` must be floating point"),
    ("gaussian_nll", ([1.0], [[1.0]]), {}, ValueError, r"`target` must have shape \[1\]"),
    ("gaussian_nll", ([1.0], [1.0], [[1.0]]), {}, ValueError, "`variance` must be one number or"),
    ("gaussian_nll", ([1.0], [1.0], 0.0), {}, ValueError, "`variance` = 0.0 must be positive"),
    (
        "gaussian_nll",
        ([1.0], [1.0], 1.0),
        dict(log_variance=0.0),
        ValueError,
        "`variance` and `log_variance` say the same",
    ),
    ("two_hot", ([0.5], [0.0]), {}, ValueError, "`bins` must have at least 2 entries"),
    ("two_hot", ([0.5], [0.0, 1.0, 1.0]), {}, ValueError, r"`bins` must be finite and increasing"),
    ("two_hot", ([0.5], [[0.0, 1.0]]), {}, ValueError, "`bins` must have one axis"),
    ("two_hot", ([0.5], (0.0, 1.0)), {}, TypeError, r"`bins` must be an array or a tuple"),
    ("two_hot", ([0.5], (1.0, 0.0, 3)), {}, ValueError, r"`bins` must have a finite low < high"),
    ("two_hot", ([0.5], (0.0, 1.0, 1)), {}, ValueError, r"`bins\[2\]` must be at least 2"),
    ("two_hot", ([0.5], (0.0, 1.0, 2.5)), {}, TypeError, r"`bins\[2\]` must be a static Python"),
    ("two_hot", ([0.5], (0.0, 1.0, 3)), dict(outside="wrap"), ValueError, "`outside` must be"),
    ("two_hot", (["a"], (0.0, 1.0, 3)), {}, TypeError, "`values` must be numbers"),
    ("hl_gauss", ([0.5], (0.0, 1.0, 3), 0.0), {}, ValueError, "`sigma` must be positive, got 0"),
    ("hl_gauss", ([0.5], [0.0, INF]), {}, ValueError, "`edges` must be finite and increasing"),
    (
        "expected_value",
        ([[0.5, 1.0]], (0.0, 1.0, 3)),
        {},
        ValueError,
        "`bins` must have one value for each of 2 classes, got 3; edges",
    ),
    ("bin_centers", ([1.0],), {}, ValueError, "`edges` must have at least 2 entries"),
]


@pytest.mark.parametrize("which", range(len(ERRORS)))
def test_errors(which, unhooked):
    name, args, options, error, words = ERRORS[which]
    with pytest.raises(error, match=f"^{name}: {words}"):
        getattr(reg, name)(*args, **options)


def test_traced_bins_that_do_not_increase():
    for fn in (reg.two_hot, reg.hl_gauss):
        assert np.isnan(jax.jit(fn)(jnp.ones(2), jnp.asarray([0.0, 2.0, 1.0]))).all()


# Trained


@pytest.mark.parametrize("name", [pytest.param("two_hot", marks=pytest.mark.deep), "hl_gauss"])
def test_training(name):
    """A small model learns y = sin 3x from the distributions alone, and predicts it."""
    x = jnp.linspace(-1, 1, 128)[:, None]
    y = jnp.sin(3 * x[:, 0])
    support = (-1.5, 1.5, 31)
    targets = {
        "two_hot": lambda: reg.two_hot(y, support),
        "hl_gauss": lambda: reg.hl_gauss(y, support),
    }[name]()
    classes = reg.bin_centers(support) if name == "hl_gauss" else support
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w": 3 * jax.random.normal(keys[0], (1, 32)),
        "b": jnp.linspace(-3, 3, 32),
        "head": 0.1 * jax.random.normal(keys[1], (32, 31)),
    }

    def logits(params):
        return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["head"]

    with relaxed():
        optimizer = optax.adam(0.02)

        def step(carry, _):
            params, state = carry
            loss = lambda params: jxent.cross_entropy(logits(params), targets)
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=500)[0][0])
        trained = run(params)
    error = lambda p: float(jnp.sqrt(jnp.mean((reg.expected_value(logits(p), classes) - y) ** 2)))
    assert error(params) > 0.4
    assert error(trained) < 0.05


# What float32 does not hold


def test_integers_keep_their_digits(x64):
    """In the dtype of the loss; the mean alone says which."""
    mean, target = jnp.array([1.7e9 + 1]), np.array([1700000001])
    for y in (target, jnp.asarray(target), target.tolist()):
        np.testing.assert_allclose(reg.gaussian_nll(mean, y), 0.5 * np.log(2 * np.pi), rtol=1e-12)
    wide = reg.gaussian_nll(jnp.zeros(1), [0], 2**60 + 1)
    np.testing.assert_allclose(wide, 0.5 * (60 * np.log(2) + np.log(2 * np.pi)), rtol=1e-12)
    assert reg.gaussian_nll(np.float32([1.0]), target).dtype == np.float32
    logits = jnp.zeros((2, 3))
    sums = jxent.cross_entropy(logits, np.array([0, 1]), normalizer=2**24 + 1)
    np.testing.assert_allclose(sums, 2 * np.log(3) / (2**24 + 1), rtol=1e-12)
    half = jxent.cross_entropy(logits.astype(jnp.float32), np.array([0, 1]), normalizer=2)
    assert half.dtype == np.float32


def test_integers_that_int32_does_not_hold():
    """They become floats before JAX narrows them."""
    out = reg.gaussian_nll(np.float32([3e9]), np.array([3_000_000_000]))
    np.testing.assert_allclose(out, 0.5 * np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize(
    "bins", [(1e8, 1e8 + 1, 5), np.linspace(1e8, 1e8 + 1, 5), [16777216, 16777217, 16777218]]
)
def test_bins_that_float32_does_not_tell_apart(bins, unhooked):
    """ValueError, when tracing too: not five equal values, and no NaN."""
    y, V = np.float32([1e8]), bins[2] if isinstance(bins, tuple) else len(bins)
    words = r"`bins`\[1\] = \d+.0 is not distinct in float32; subtract an offset from values and bi"
    edges = words.replace("`bins`", "`edges`").replace(" and bi", " and ed")
    for call, match in (
        (lambda: reg.two_hot(y, bins, outside="clip"), words),
        (lambda: reg.expected_value(jnp.zeros((1, V)), bins), words),
        (lambda: reg.hl_gauss(y, bins, outside="clip"), edges),
        (lambda: reg.bin_centers(bins), edges),
    ):
        with pytest.raises(ValueError, match=match):
            call()
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(call)
    with pytest.raises(ValueError, match=r"`bins`\[1\] = inf is not finite in float32; divide"):
        reg.two_hot(np.float32([0.0]), np.array([0.0, 1e39]))
    # The middle of neighbouring floats is one of them.
    near = np.float32([1.0, 1 + 2**-23, 1 + 2**-22, 1 + 3 * 2**-23])
    with pytest.raises(ValueError, match=r"the middles of `edges`\[\d\] = .* is not distinct"):
        reg.bin_centers(near)


def test_bins_that_float64_tells_apart(x64):
    bins = (1e8, 1e8 + 1, 5)
    np.testing.assert_allclose(reg.bin_centers(bins), 1e8 + np.arange(0.1, 1, 0.2), rtol=1e-15)
    np.testing.assert_allclose(reg.two_hot(np.array([1e8 + 0.25]), bins), [[0, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match="not distinct in float32"):  # the values' dtype
        reg.two_hot(np.float32([1e8]), bins)


def test_centres_of_half_precision():
    assert reg.bin_centers(jnp.arange(3, dtype=jnp.bfloat16)).dtype == np.float32


def test_negative_probabilities():
    p, bins = jnp.array([[0.5, 0.5], [1.5, -0.5]]), (0.0, 1.0, 2)
    with pytest.raises(
        ValueError, match=r"expected_value: `logits`\[1, 1\] = -0.5 must not be neg"
    ):
        reg.expected_value(p, bins, probabilities=True)
    run = lambda p: reg.expected_value(p, bins, probabilities=True)
    value, slope = jax.jit(lambda p: (run(p), jax.grad(lambda p: run(p).sum())(p)))(p)
    np.testing.assert_array_equal(np.isnan(value), [False, True])
    np.testing.assert_array_equal(np.isnan(slope), [[False] * 2, [True] * 2])


def test_scales_that_float32_does_not_hold():
    words = r" = 1e-(39|40) is outside float32's normal numbers, 1.2e-38 to 3.4e\+38"
    with pytest.raises(ValueError, match="gaussian_nll: `variance`" + words):
        reg.gaussian_nll(jnp.zeros(1), jnp.zeros(1), variance=1e-40)
    with pytest.raises(ValueError, match="hl_gauss: `sigma`" + words):
        reg.hl_gauss(jnp.ones(1), (0.0, 2.0, 4), 1e-39)


def test_slopes_of_hl_gauss_at_any_sigma():
    """A spike or a flat line: the slopes are next to nothing, and no NaN."""
    y, sigma = jnp.float32([0.3, 1.4]), 10.0 ** jnp.arange(-37.0, 38.0)
    edges = jnp.float32([[0, 0.5, 1, 1.5, 2], [0, 10, 100, 500, 1000]])
    share = lambda y, s, e: (t := reg.hl_gauss(y, e, s))[:, :2].sum() + 0 * t.sum()
    every = jax.vmap(jax.vmap(jax.value_and_grad(share, (0, 1)), (None, 0, None)), (None, None, 0))
    value, (by_y, by_sigma) = jax.jit(every)(y, sigma, edges)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(by_y))
    assert np.all(np.abs(by_sigma) <= 1 / f64(sigma)) and np.max(np.abs(by_sigma)) > 1e-3
    # As flat as the bins are wide, a spike in the first bin and another in the third or first.
    np.testing.assert_allclose(value[:, -1], [1.0, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(value[:, 0], [1, 2])


def test_a_square_that_only_its_half_fits():
    value, slope = jax.value_and_grad(reg.gaussian_nll)(0.0, 2.5e19)
    np.testing.assert_allclose([value, slope], [3.125e38, -2.5e19], rtol=1e-6)
