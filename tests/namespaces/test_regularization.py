"""Penalties: against derivatives written out, through every custom rule, in a training step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from assertions import assert_close, f64, relaxed
from sampling import first
from scipy import special
from scipy.stats import entropy

import jxent
from jxent.regularization import confidence_penalty, gradient_penalty

inf, nan = math.inf, math.nan
RNG = np.random.default_rng(6)
N, D, V = 6, 3, 5
X = RNG.standard_normal((N, D)).astype(np.float32)
LABELS = RNG.integers(0, V, N).astype(np.int32)
PARAMS = {
    "head": RNG.standard_normal((D, V)).astype(np.float32),
    "bias": RNG.standard_normal(V).astype(np.float32),
}
LAMBDA = 0.3


def plain(params, x):
    """No custom rule anywhere."""
    z = x @ params["head"] + params["bias"][None]
    return jnp.mean(jax.nn.logsumexp(z, axis=-1) - z[jnp.arange(N), LABELS])


def dense(params, x):
    return jxent.cross_entropy(x @ params["head"] + params["bias"][None], LABELS)


def linear(params, x, **options):
    return jxent.linear_cross_entropy(
        x, params["head"], LABELS, bias=params["bias"], chunk_size=2, **options
    )


def by_row(params, x):
    z = x @ params["head"] + params["bias"][None]
    return jnp.mean(jxent.softmax_cross_entropy_with_integer_labels(z, LABELS))


LOSSES = {
    "cross_entropy": dense,
    "tokens": linear,
    "vocab": functools.partial(linear, implementation="vocab"),
    "row losses": by_row,
}


def by_hand(params, x, of_inputs):
    """L + λ|∂L|² in NumPy: ∂L/∂z = (p − e_y)/N."""
    head, bias, x = f64(params["head"]), f64(params["bias"]), f64(x)
    z = x @ head + bias
    one_hot = np.eye(V)[LABELS]
    dz = (special.softmax(z, axis=-1) - one_hot) / N
    gradients = [dz @ head.T] if of_inputs else [x.T @ dz, dz.sum(0)]
    loss = -(special.log_softmax(z, axis=-1) * one_hot).sum() / N
    return loss + LAMBDA * sum(np.sum(g**2) for g in gradients)


@pytest.mark.parametrize("argnums", first(1, [0, 1]), ids=["parameters", "inputs"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_penalties(name, argnums):
    """The value by hand; its gradients those of a loss without custom rules, under jit."""
    ours = gradient_penalty(LOSSES[name], LAMBDA, argnums=argnums)
    theirs = gradient_penalty(plain, LAMBDA, argnums=argnums)
    assert_close(ours(PARAMS, X), by_hand(PARAMS, X, argnums == 1), rtol=1e-5)
    a, b = (jax.jit(jax.grad(f, (0, 1)))(PARAMS, X) for f in (ours, theirs))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert_close(x, y, rtol=1e-5, scale=np.max(np.abs(y)), cancels=True)


def test_the_slope_of_the_penalty_is_a_hessian_product(x64):
    """∂/∂θ λ|g|² = 2λ H g, by differences of the penalised loss in float64."""
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda a: a.astype(float), PARAMS))
    x = jnp.asarray(X, jnp.float64)
    loss = jax.jit(lambda v: gradient_penalty(dense, LAMBDA)(unravel(v), x))
    h = 1e-6
    steps = h * np.eye(flat.size)
    expected = [(loss(flat + e) - loss(flat - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(flat), expected, rtol=1e-6, atol=1e-8)


def test_steps_of_descent_follow_the_penalised_flow():
    """A step of size h is a flow of time h on L + (h/4)|∂L|² but for O(h³), on L but for O(h²)."""
    loss = lambda x: jnp.sum(jnp.cosh(x) + 0.3 * x**3)
    x = np.float64([0.4, -0.7])
    gradient = lambda x: np.sinh(x) + 0.9 * x**2
    curvature = lambda x: np.cosh(x) + 1.8 * x

    def flow(x, h, coefficient, steps=2000):
        for _ in range(steps):
            x = x - h / steps * gradient(x) * (1 + 2 * coefficient * curvature(x))
        return x

    def gaps(h):
        step = x - h * gradient(x)
        return [np.abs(step - flow(x, h, c)).max() for c in (h / 4, 0.0)]

    (fine, coarse), (finer, coarser) = gaps(0.1), gaps(0.05)
    assert fine < coarse / 5
    assert fine / finer > 6, "third order"
    assert 3 < coarse / coarser < 5, "second order"
    slope = jax.grad(gradient_penalty(loss, 0.025))(jnp.asarray(x, jnp.float32))
    assert_close(slope, gradient(x) * (1 + 0.05 * curvature(x)), rtol=1e-5)


def test_the_inputs_of_each_row():
    """N λ' of a mean is the mean over rows of λ'|∂nll/∂x|²."""
    nll = lambda x, y: jxent.cross_entropy(x @ PARAMS["head"] + PARAMS["bias"], y)
    own = jax.vmap(jax.grad(nll))(X, LABELS)
    expected = f64(dense(PARAMS, X)) + 0.2 * np.mean(np.sum(f64(own) ** 2, axis=-1))
    ours = gradient_penalty(dense, N * 0.2, argnums=1)(PARAMS, X)
    assert_close(ours, expected, rtol=1e-5)


def test_aux_options_and_schedules():
    """What goes beside the loss is handed on; keywords too; λ may be traced; several argnums."""

    def loss_fn(params, x, *, scale):
        z = x @ params["head"]
        return scale * jxent.cross_entropy(z, LABELS), {"logits": z}

    @jax.jit
    def run(params, x, coefficient):
        fn = gradient_penalty(loss_fn, coefficient, argnums=(0, 1), has_aux=True)
        return jax.value_and_grad(fn, has_aux=True)(params, x, scale=2.0)

    (value, aux), gradient = run(PARAMS, X, 0.5)
    np.testing.assert_allclose(aux["logits"], X @ PARAMS["head"], rtol=1e-5, atol=1e-6)
    g = jax.grad(lambda *a: loss_fn(*a, scale=2.0)[0], (0, 1))(PARAMS, X)
    squares = sum(np.sum(f64(x) ** 2) for x in jax.tree.leaves(g))
    assert_close(value, f64(loss_fn(PARAMS, X, scale=2.0)[0]) + 0.5 * squares, rtol=1e-5)
    assert np.all(np.asarray(gradient["bias"]) == 0)
    (without, _), _ = run(PARAMS, X, 0.0)
    assert_close(without, f64(loss_fn(PARAMS, X, scale=2.0)[0]), rtol=1e-6)
    (fault, _), slope = run(PARAMS, X, -0.5)
    assert np.isnan(fault)
    assert np.all(np.isnan(slope["head"]))
    assert gradient_penalty(loss_fn, 1.0).__name__ == "loss_fn"


def test_an_optax_step():
    """The copied training step, with the penalised loss in the place of the loss."""
    loss_fn = gradient_penalty(linear, LAMBDA)
    optimizer = optax.sgd(0.2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params, X)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = jax.tree.map(jnp.asarray, PARAMS)
    with relaxed():
        (after, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), None, 20)
    assert np.all(np.diff(losses) < 0)
    assert_close(losses[0], by_hand(PARAMS, X, False), rtol=1e-5)
    assert loss_fn(after, X) < losses[-1]


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_no_logits_are_stored(way):
    """A gradient of a gradient of a linear head, within a fraction of its logits."""
    n, d, v = 512, 8, 4096
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((d, v), (n, d))]
    y = jax.ShapeDtypeStruct((n,), jnp.int32)

    def loss(head, hidden, y):
        return jxent.linear_cross_entropy(hidden, head, y, implementation=way, chunk_size=32)

    grad = jax.jit(jax.grad(gradient_penalty(loss, 0.1)))
    held = grad.lower(*shapes, y).compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * n * v / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_of_penalties(dtype):
    params = jnp.asarray(PARAMS["head"], dtype)
    loss = lambda w: jxent.cross_entropy(jnp.asarray(X, dtype) @ w, LABELS).astype(dtype)
    value, gradient = jax.value_and_grad(gradient_penalty(loss, 0.1))(params)
    assert value.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_without_a_penalty(how):
    """λ = 0 is the loss alone, even where |g|² is no float."""
    steep = lambda x: 1e25 * jnp.sum(x)
    run = how(jax.value_and_grad(lambda x, c: gradient_penalty(steep, c)(x)))
    value, slope = run(jnp.ones(2), jnp.float32(0.0))
    assert value == jnp.float32(2e25)
    np.testing.assert_array_equal(slope, np.float32([1e25, 1e25]))


def test_a_loss_that_is_a_number():
    """As `jax.grad` takes it: a function to a Python float."""
    assert gradient_penalty(lambda x: 3.0, 0.5)(jnp.ones(2)) == 3.0
    value, aux = gradient_penalty(lambda x: (3.0, "aux"), 0.5, has_aux=True)(jnp.ones(2))
    assert value == 3.0 and aux == "aux"


# --- confidence -------------------------------------------------------------------------------

LOGITS = (3 * RNG.standard_normal((N, V))).astype(np.float32)


def test_confidence_penalties():
    """−H, and max(0, Γ − H), by scipy; gradients p (log p + H), 0 where H ≥ Γ."""
    p = special.softmax(f64(LOGITS), axis=-1)
    H = entropy(p, axis=-1)
    value, pull_back = jax.vjp(confidence_penalty, LOGITS)
    assert_close(value, -H, rtol=1e-5)
    slope = p * (np.log(p) + H[:, None])
    scale = p * (np.abs(np.log(p)) + H[:, None])
    assert_close(pull_back(jnp.ones(N))[0], slope, rtol=1e-5, scale=scale)
    limit = float(np.sort(H)[2:4].mean())
    hinge = jax.jit(confidence_penalty)
    value, pull_back = jax.vjp(lambda z: hinge(z, threshold=limit), LOGITS)
    assert_close(value, np.maximum(0, limit - H), rtol=1e-5, scale=limit)
    sure = (limit > H)[:, None]
    assert 0 < sure.sum() < N
    assert_close(pull_back(jnp.ones(N))[0], sure * slope, rtol=1e-5, scale=scale)


def test_confidence_of_a_linear_head():
    """As the docstring says: from `linear_log_probs`, gradients too."""

    def from_linear(x, w):
        return jnp.sum(-jxent.linear_log_probs(x, w, LABELS, chunk_size=2).entropy)

    from_dense = lambda x, w: jnp.sum(confidence_penalty(x @ w))
    ours, theirs = (
        jax.value_and_grad(f, (0, 1))(X, PARAMS["head"]) for f in (from_linear, from_dense)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(a, b, rtol=1e-5, scale=np.max(np.abs(b)), cancels=True)


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_confidence_of_rows_at_fault_and_dropped(threshold):
    """NaN in its own row only; dropped rows are 0, gradient too, whatever they hold."""
    z = LOGITS.copy()
    z[1, 2], z[2, 0], z[3], z[4, 1] = nan, inf, -inf, -inf
    penalty = functools.partial(confidence_penalty, threshold=threshold)
    run = jax.jit(lambda z, **kw: (penalty(z, **kw), jax.grad(lambda z: penalty(z, **kw).sum())(z)))
    value, gradient = run(z)
    fault = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(np.isnan(value), fault)
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), fault)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), fault)
    value, gradient = run(z, where=jnp.asarray(~fault))
    np.testing.assert_array_equal(np.asarray(value)[fault], 0)
    np.testing.assert_array_equal(np.asarray(gradient)[fault], 0)
    assert np.all(np.isfinite(gradient))


def test_confidence_is_differentiated_to_second_order():
    """Through `gradient_penalty` too, in both modes."""
    loss = lambda z: jnp.mean(confidence_penalty(z))
    z = LOGITS[:2, :3]
    forward, reverse = (jax.jit(d(d(loss)))(z) for d in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-6)
    g = f64(jax.grad(loss)(LOGITS))
    assert_close(
        gradient_penalty(loss, 2.0)(LOGITS), f64(loss(LOGITS)) + 2 * np.sum(g**2), rtol=1e-5
    )


ERRORS = {
    "coefficient": (
        lambda: gradient_penalty(dense, -1.0),
        ValueError,
        r"gradient_penalty: `coefficient`\[\] = -1.0 must be finite and not negative",
    ),
    "no coefficient": (
        lambda: gradient_penalty(dense, nan),
        ValueError,
        r"gradient_penalty: `coefficient`\[\] = nan must be finite and not negative",
    ),
    "coefficients": (
        lambda: gradient_penalty(dense, [1.0]),
        ValueError,
        r"gradient_penalty: `coefficient` must have shape \[\]",
    ),
    "no number": (
        lambda: gradient_penalty(dense, True),
        TypeError,
        "gradient_penalty: `coefficient` must be numbers",
    ),
    "rows": (
        lambda: gradient_penalty(lambda z: jnp.sum(z, axis=-1), 1.0)(LOGITS),
        TypeError,
        "scalar-output",
    ),
    "integer logits": (
        lambda: confidence_penalty(LABELS),
        TypeError,
        "confidence_penalty: `logits` must be floating point",
    ),
    "classes kept": (
        lambda: confidence_penalty(LOGITS, where=LOGITS > 0),
        ValueError,
        "confidence_penalty: `where` must have the rows' shape .* logits of -inf",
    ),
    "thresholds": (
        lambda: confidence_penalty(LOGITS, threshold=np.ones(N)),
        ValueError,
        r"confidence_penalty: `threshold` must have shape \[\]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, unhooked):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        call()


def test_penalties_of_huge_gradients():
    """λ g² = 1e36 at g = 1e20, whose square no float32 holds, and 0 for λ = 0."""
    penalized = jxent.regularization.gradient_penalty(lambda x: 1e20 * x, 1e-4)
    np.testing.assert_allclose(penalized(0.0), 1e36, rtol=1e-6)
    at = lambda x, lam: jxent.regularization.gradient_penalty(lambda x: 5e19 * x * x, lam)(x)
    by_x, by_lambda = jax.grad(at, (0, 1))(1.0, 1e-4)
    np.testing.assert_allclose(by_x, 2e36, rtol=1e-6)
    assert at(1.0, 0.0) == np.float32(5e19) and by_lambda == np.inf
