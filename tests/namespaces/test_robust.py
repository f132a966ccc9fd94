"""Losses for wrong and missing labels: the papers' formulas in float64, limits, digits, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from assertions import assert_close, f64, relaxed
from derivatives import assert_derivatives
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import jxent
from jxent import robust

inf, nan = math.inf, math.nan
RNG = np.random.default_rng(4)
N, V = 5, 4
LOGITS = (3 * RNG.standard_normal((N, V))).astype(np.float32)
LABELS = RNG.integers(0, V, N).astype(np.int32)
SOFT = RNG.dirichlet(np.ones(V), N).astype(np.float32)
GCE, SCE, ASL = (
    robust.generalized_cross_entropy,
    robust.symmetric_cross_entropy,
    robust.asymmetric_loss,
)
P_Y = special.softmax(f64(LOGITS), axis=-1)[np.arange(N), LABELS]


# --- generalized cross-entropy ----------------------------------------------------------------


@pytest.mark.parametrize("q", [1.0, 0.7, 0.3, 0.01])
def test_generalized_is_the_papers(q):
    """(1 − f_y^q)/q."""
    assert_close(GCE(LOGITS, LABELS, q=q), (1 - P_Y**q) / q, rtol=1e-5)
    one_hot = np.eye(V, dtype=np.float32)[LABELS]
    assert_close(GCE(LOGITS, one_hot, q=q), (1 - P_Y**q) / q, rtol=1e-5)


def test_generalized_between_two_losses():
    """q = 0 is cross-entropy, and so is q → 0; q = 1 is half the mean absolute error."""
    ce = jxent.softmax_cross_entropy_with_integer_labels
    value, pull_back = jax.vjp(lambda z: GCE(z, LABELS, q=0.0), LOGITS)
    theirs, their_pull = jax.vjp(lambda z: ce(z, LABELS), LOGITS)
    np.testing.assert_array_equal(value, theirs)
    np.testing.assert_array_equal(pull_back(value)[0], their_pull(value)[0])
    assert_close(GCE(LOGITS, LABELS, q=1e-12), theirs, rtol=1e-6)
    p = special.softmax(f64(LOGITS), axis=-1)
    absolute = np.abs(p - np.eye(V)[LABELS]).sum(-1)
    assert_close(GCE(LOGITS, LABELS, q=1.0), absolute / 2, rtol=1e-5)


def test_generalized_of_a_linear_head():
    """As the docstring says: from row losses, no logits stored."""
    hidden, head = RNG.standard_normal((N, 3)), RNG.standard_normal((3, V))
    hidden, head = hidden.astype(np.float32), head.astype(np.float32)

    def linear(h, w):
        rows = jxent.linear_cross_entropy(h, w, LABELS, reduction="none", chunk_size=2)
        return jnp.sum(-jnp.expm1(-0.7 * rows) / 0.7)

    dense = lambda h, w: jnp.sum(GCE(h @ w, LABELS))
    ours, theirs = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (linear, dense))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(a, b, rtol=1e-5, scale=np.max(np.abs(b)), cancels=True)


def test_generalized_keeps_its_digits():
    """Confident rows, where 1 − p^q cancels; wrong ones, where it is bounded by 1/q."""
    z = jnp.array([[40.0, 0.0], [80.0, 0.0], [-200.0, 0.0], [-inf, 0.0]])
    y = np.zeros(4, int)
    value, pull_back = jax.vjp(lambda z: GCE(z, y), z)
    assert_close(value, [math.exp(-40), math.exp(-80), 1 / 0.7, 1 / 0.7], rtol=1e-5)
    slope = pull_back(jnp.ones(4))[0][:, 0]
    assert_close(slope, [-math.exp(-40), -math.exp(-80), -math.exp(-140), 0], rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.01, 0.4, 0.7, 1.0])
def test_the_slope_by_q(q):
    """∂/∂q, from series to limit, against fifty digits."""
    from mpmath import mp, mpf

    nll = np.float32([1e-6, 0.01, 0.6, 2.0, 30.0, 80.0])
    z = jnp.stack([-jnp.log(jnp.expm1(nll)), jnp.zeros(6)], axis=-1)
    y = np.zeros(6, int)
    ours = jax.jacfwd(lambda q: GCE(z, y, q=q))(jnp.float32(q))
    rows = f64(jxent.softmax_cross_entropy_with_integer_labels(z, y))
    with mp.workdps(60):
        exact = mpf(float(np.float32(q)))
        f = lambda n: (n * mp.exp(-exact * n) + mp.expm1(-exact * n) / exact) / exact
        expected = [float(f(mpf(n)) if q else -(mpf(n) ** 2) / 2) for n in map(float, rows)]
    assert_close(ours, expected, rtol=1e-5)


@pytest.mark.deep
def test_generalized_derivatives():
    """To third order by logit and q, where q → 0 as well."""
    f = lambda v: GCE(jnp.stack([v[0], jnp.zeros((), v.dtype)])[None], np.zeros(1, int), q=v[1])[0]
    points = np.array([[0.3, 0.7], [2.0, 0.3], [-4.0, 0.05], [5.0, 0.9], [-1.0, 0.35]])
    assert_derivatives(f, points)


# --- what may stand for labels ----------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, V])
@pytest.mark.parametrize("loss", [GCE, SCE, jxent.softmax_focal_loss])
def test_one_distribution_is_not_for_all_rows(loss, rows, unhooked):
    """V labels are not a distribution, nor are floats: as many rows as classes or not."""
    z = jnp.asarray(RNG.standard_normal((rows, V)), jnp.float32)
    for labels in (np.full(V, 0.25, np.float32), np.arange(V)[: V - (rows == V)]):
        wrong = TypeError if labels.shape == (rows,) else ValueError
        words = "must be integers, got float32" if wrong is TypeError else "must have the logits'"
        with pytest.raises(wrong, match=rf"{loss.__name__}: `labels` {words}"):
            loss(z, labels)
        with pytest.raises(wrong, match=words):
            jax.eval_shape(loss, z, labels)
    with pytest.raises(TypeError, match="`labels` must be integers, got float32"):
        loss(z, np.zeros(rows, np.float32))


@pytest.mark.parametrize("loss", [jxent.softmax_cross_entropy, jxent.poly_loss_cross_entropy])
def test_one_distribution_for_all_rows_is_floats(loss, unhooked):
    """As in optax, but for integers: V labels for two rows."""
    z = jnp.asarray(RNG.standard_normal((2, V)), jnp.float32)
    t = np.float32([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(loss(z, t), loss(z, np.stack([t, t])))
    for labels in (np.arange(V), np.eye(V, dtype=bool)[0]):
        with pytest.raises(ValueError, match=r"or be floats \[4\] for all rows, got \w+\[4\]"):
            loss(z, labels)
    one_hot = np.eye(V, dtype=np.int32)[0]
    np.testing.assert_array_equal(loss(z[0], one_hot), loss(z[:1], one_hot[None])[0])


@pytest.mark.parametrize("bad", [-1.0, nan, inf])
def test_parameters_are_finite_and_not_negative(bad):
    """ValueError when concrete; a traced one is never a plausible number."""
    cases = ((SCE, "alpha"), (SCE, "beta"), (jxent.softmax_focal_loss, "gamma"))
    for loss, name in cases:
        with pytest.raises(
            ValueError, match=rf"{loss.__name__}: `{name}`.* must be finite and not"
        ):
            loss(LOGITS, LABELS, **{name: bad})
    run = jax.jit(lambda g: jxent.softmax_focal_loss(LOGITS, LABELS, gamma=g))
    assert np.all(np.isnan(run(bad))) and np.all(np.isfinite(run(1.0)))


# --- symmetric cross-entropy ------------------------------------------------------------------


@pytest.mark.parametrize("A", [-4.0, -9.2, 0.0])
def test_symmetric_is_the_papers(A):
    """α H(t, p) + β H(p, t) with log 0 := A."""
    p = special.softmax(f64(LOGITS), axis=-1)
    for t in (np.eye(V)[LABELS], SOFT):
        log_t = np.maximum(np.log(np.maximum(f64(t), 1e-300)), A)
        expected = 0.3 * -(f64(t) * np.log(p)).sum(-1) + 0.7 * -(p * log_t).sum(-1)
        given = dict(alpha=0.3, beta=0.7, log_zero=A)
        assert_close(SCE(LOGITS, jnp.asarray(t, jnp.float32), **given), expected, rtol=1e-5)
        if t is not SOFT:
            assert_close(SCE(LOGITS, LABELS, **given), expected, rtol=1e-5)


def test_symmetric_with_class_weights():
    """c_y of a label's loss, of a one-hot row too; of a mixture the average class weight."""
    c = jnp.asarray(RNG.uniform(0.5, 2, V), jnp.float32)
    plain, weighted = SCE(LOGITS, LABELS), SCE(LOGITS, LABELS, class_weights=c)
    assert_close(weighted, f64(plain) * f64(c)[LABELS], rtol=1e-6)
    one_hot = np.eye(V, dtype=np.float32)[LABELS]
    assert_close(SCE(LOGITS, one_hot, class_weights=c), f64(weighted), rtol=1e-6)
    ones = jnp.ones(V)
    assert_close(SCE(LOGITS, SOFT, class_weights=ones), f64(SCE(LOGITS, SOFT)), rtol=1e-6)
    p, t = special.softmax(f64(LOGITS), axis=-1), f64(SOFT)
    forward = -(f64(c) * t * np.log(p)).sum(-1)
    backward = -(p * np.maximum(np.log(t), -4)).sum(-1) * (f64(c) * t).sum(-1) / t.sum(-1)
    got = SCE(LOGITS, SOFT, alpha=0.3, beta=0.7, class_weights=c)
    assert_close(got, 0.3 * forward + 0.7 * backward, rtol=1e-5)
    # A class without weight: its rows are 0, even where it was held impossible.
    none = SCE(jnp.array([[-inf, 0.0]]), np.array([0]), class_weights=jnp.array([0.0, 1.0]))
    assert none == 0
    with pytest.raises(ValueError, match=r"symmetric_cross_entropy: `class_weights` must have sh"):
        SCE(LOGITS, SOFT, class_weights=jnp.ones(V + 1))


def test_symmetric_of_impossible_labels():
    """α = 0 leaves the bounded part, and 0·∞ is 0."""
    z = jnp.array([[-inf, 0.0], [0.0, 50.0]])
    value, slope = jax.vjp(lambda z: SCE(z, np.array([0, 1]), alpha=0.0), z)
    assert_close(value, [4.0, 4 * math.exp(-50)], rtol=1e-5)
    assert np.all(np.isfinite(slope(value)[0]))
    assert SCE(z, np.array([0, 1]))[0] == inf


# --- asymmetric loss --------------------------------------------------------------------------

each = st.floats(-30, 30, width=32)


@settings(max_examples=15)
@given(
    st.lists(each, min_size=4, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    st.sampled_from([0.0, 0.5, 2.0, 4.0]),
    st.sampled_from([0.0, 0.05, 0.3, 0.7]),
)
def test_asymmetric_is_the_papers(x, pos, neg, m):
    """−y (1−p)^γ₊ log p − (1−y) p_m^γ₋ log(1 − p_m), p_m = max(p − m, 0), in float64."""
    x = np.array(x)
    p = special.expit(x)
    p_m = np.maximum(p - m, 0)
    # Nearer to the threshold than float64 resolves the paper's difference there is nothing to see.
    x = x[(p_m == 0) | (p_m > 1e-6)]
    p, p_m = special.expit(x), np.maximum(special.expit(x) - m, 0)
    rest = special.expit(-x) + m if m else special.expit(-x)
    log_rest = np.where(p_m > 0, np.where(p_m < 0.5, np.log1p(-p_m), np.log(rest)), 0.0)
    yes = -(special.expit(-x) ** pos) * special.log_expit(x)
    no = -(p_m**neg) * log_rest
    given = dict(gamma_pos=pos, gamma_neg=neg, clip=m)
    for y, expected in ((1, yes), (0, no), (0.25, 0.25 * yes + 0.75 * no)):
        # What rounding x to float32 does near the threshold, where the loss begins.
        near = np.where((p_m > 0) & (y < 1), (neg + 1) * p / np.maximum(p_m, 1e-30), 1)
        ours = ASL(jnp.asarray(x, jnp.float32), y, **given)
        assert_close(ours, expected, rtol=1e-5, scale=expected * np.maximum(near, 1), cancels=True)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_without_a_margin_it_is_the_focal_loss(gamma):
    x, y = jnp.asarray(LOGITS), jnp.asarray(RNG.random(LOGITS.shape), jnp.float32)
    ours = lambda x: ASL(x, (y > 0.5), gamma_pos=gamma, gamma_neg=gamma, clip=0.0)
    theirs = lambda x: jxent.sigmoid_focal_loss(x, (y > 0.5), gamma=gamma)
    for a, b in zip(jax.vjp(ours, x), jax.vjp(theirs, x), strict=True):
        a, b = (f if not callable(f) else f(jnp.ones_like(x))[0] for f in (a, b))
        assert_close(a, b, rtol=1e-6)


def test_asymmetric_at_the_ends():
    """Bounded noes, a slope for every yes; easy noes are exactly 0 with slope 0."""
    x = jnp.array([-inf, -200.0, -3.0, 200.0, inf])
    run = jax.jit(jax.vmap(jax.value_and_grad(ASL), (0, None)))
    no, slope = run(x, 0.0)
    assert_close(no[3:], np.full(2, -math.log(0.05) * 0.95**4), rtol=1e-5)
    assert_close(no[:3], np.zeros(3))
    assert np.all(slope == 0)
    yes, slope = run(x, 1.0)
    assert_close(yes, [inf, 200.0, math.log1p(math.exp(3)), 0.0, 0.0], rtol=1e-6)
    assert_close(slope, [-1.0, -1.0, -1 / (1 + math.exp(-3)), 0.0, 0.0], rtol=1e-6)


def test_asymmetric_slopes_keep_their_digits():
    """Where σ(x) is all but 1 its slope is still e^−x."""
    x = jnp.array([20.0, 40.0, 80.0])
    slope = jax.vmap(jax.grad(ASL), (0, None))(x, 0.0)
    u, m = 0.95, 0.05
    expected = np.exp(-f64(x)) * (4 * u**3 * -math.log(m) + u**4 / m)
    assert_close(slope, expected, rtol=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("clip", [0.05, 0.6, 0.0])
def test_asymmetric_derivatives(clip):
    """Third order by logit, label and both γ, on both sides of the series' end."""
    f = lambda v: ASL(v[0], v[1], gamma_pos=v[2], gamma_neg=v[3], clip=clip)
    points = np.array([[0.8, 0.3, 1.5, 2.5], [2.0, 0.6, 0.5, 3.0], [1.0, 0.5, 2.0, 1.5]])
    if clip == 0.05:  # u just below and above 0.1, and no u
        x = special.logit([0.149, 0.151, 0.02])
        points = np.concatenate([points, [[a, 0.4, 1.2, 3.5] for a in x]])
    assert_derivatives(f, points)


def test_asymmetric_gammas_against_the_oracle():
    """By γ for each class, each logit, or one for all."""
    y = RNG.random(LOGITS.shape).astype(np.float32)
    for pos, neg in (
        (np.float32(0.5), RNG.uniform(1, 4, V)),
        (RNG.uniform(0, 2, V), RNG.uniform(0, 3, LOGITS.shape)),
    ):
        pos, neg = np.asarray(pos, np.float32), np.asarray(neg, np.float32)
        value, pull_back = jax.vjp(lambda p, n: ASL(LOGITS, y, gamma_pos=p, gamma_neg=n), pos, neg)
        expected = oracle.asymmetric_loss(LOGITS, y, gamma_pos=pos, gamma_neg=neg)
        assert_close(value, expected.value, rtol=1e-5)
        for name, ours in zip(
            ("gamma_pos", "gamma_neg"), pull_back(jnp.ones_like(value)), strict=True
        ):
            assert_close(ours, expected.gradient[name], rtol=1e-5)


# --- focal and poly, in full ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soft", "gamma"),
    [
        pytest.param(soft, gamma, marks=() if gamma == 0.25 else pytest.mark.deep)
        for soft in (False, True)
        for gamma in (0.0, 0.25, 1.0, 3.0)
    ],
)
def test_focal_gradients_are_finite_where_p_is_one(soft, gamma):
    """γ < 1 has an infinite power at p = 1, and a gradient of 0."""
    z = jnp.array([[gap, 0.0, 0.0] for gap in (200.0, 90.0, 80.0, 40.0, -200.0)])
    y = np.zeros(5, int)
    t = jnp.eye(3)[y] if soft else y
    focal = lambda z, gamma: jxent.softmax_focal_loss(z, t, gamma=gamma)

    @jax.jit
    def value_and_slopes(z, gamma):
        value, pull_back = jax.vjp(focal, z, gamma)
        return value, *pull_back(jnp.ones(5))

    value, dz, dgamma = value_and_slopes(z, gamma)
    expected = oracle.softmax_focal_loss(z, y, gamma=gamma)
    assert_close(value, expected.value, rtol=1e-5)
    if not soft:
        assert_close(dz, expected.gradient["logits"], rtol=1e-5, cancels=True)
    assert np.all(np.isfinite(dz))
    assert np.isfinite(dgamma)
    hessian = jax.jit(jax.jacfwd(jax.jacrev(lambda z: jnp.sum(focal(z, gamma)))))(z)
    assert np.all(np.isfinite(hessian))


def test_focal_laws():
    """γ = 0 is the weighted cross-entropy; one-hot rows and labels agree; γ may be traced."""
    c = jnp.asarray(RNG.uniform(0.5, 2, V), jnp.float32)
    weighted = jxent.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS, class_weights=c)
    focal = jax.jit(lambda t, g: jxent.softmax_focal_loss(LOGITS, t, gamma=g, class_weights=c))
    assert_close(focal(LABELS, 0.0), f64(weighted), rtol=1e-6)
    one_hot = jnp.eye(V)[LABELS]
    assert_close(focal(one_hot, 0.7), f64(focal(LABELS, 0.7)), rtol=1e-6)
    soft = f64(focal(SOFT, 0.7))
    parts = [f64(SOFT)[:, v] * f64(focal(np.full(N, v), 0.7)) for v in range(V)]
    assert_close(jnp.asarray(soft, jnp.float32), sum(parts), rtol=1e-5)


def test_poly_of_several_terms():
    """ε_k = −1/k drops the k-th term of Σ (1 − p)^k/k; one term is optax's loss."""
    import optax

    u = 1 - P_Y
    ours = jxent.poly_loss_cross_entropy(LOGITS, LABELS, epsilon=(-1.0, -0.5, 1.0))
    assert_close(ours, -np.log(P_Y) - u - u**2 / 2 + u**3, rtol=1e-5, scale=2 - np.log(P_Y))
    one = jxent.poly_loss_cross_entropy(LOGITS, SOFT, epsilon=(1.5,))
    np.testing.assert_array_equal(one, jxent.poly_loss_cross_entropy(LOGITS, SOFT, epsilon=1.5))
    with relaxed():
        theirs = optax.losses.poly_loss_cross_entropy(LOGITS, SOFT, epsilon=1.5)
    assert_close(one, f64(theirs), rtol=1e-5)
    traced = jax.jit(lambda *e: jxent.poly_loss_cross_entropy(LOGITS, LABELS, epsilon=e))
    assert_close(traced(-1.0, -0.5, 1.0), f64(ours), rtol=1e-6, scale=2 - np.log(P_Y))
    slopes = jax.jacfwd(traced, (0, 1, 2))(0.0, 0.0, 0.0)
    for k, slope in enumerate(slopes, 1):
        assert_close(slope, u**k, rtol=1e-5)


# --- faults -----------------------------------------------------------------------------------


def test_traced_parameters_at_fault():
    """NaN, loss and gradient, for what cannot be read."""
    for fn, name, bad in (
        (GCE, "q", 1.5),
        (GCE, "q", -0.1),
        (SCE, "alpha", -1.0),
        (SCE, "beta", -1.0),
        (SCE, "beta", nan),
    ):
        for t in (LABELS, SOFT)[: 2 if name == "alpha" else 1]:
            run = jax.jit(
                jax.value_and_grad(lambda z, x, f=fn, n=name, t=t: f(z, t, **{n: x}).sum())
            )
            value, gradient = run(LOGITS, bad)
            assert np.isnan(value)
            assert np.all(np.isnan(gradient)), (name, bad)
    x = jnp.array([0.5, 0.5, 0.5])
    for name in ("gamma_pos", "gamma_neg"):
        run = jax.jit(jax.grad(lambda x, g, n=name: ASL(x, 0.5, **{n: g}).sum()))
        np.testing.assert_array_equal(np.isnan(run(x, jnp.array([1.0, -1.0, inf]))), [0, 1, 1])
    with pytest.raises(ValueError, match=r"^asymmetric_loss: `labels`\[1\] = 1.5 is outside"):
        jxent.testing.checked(jax.jit(ASL))(x, jnp.array([0.0, 1.5, 1.0]))


X = np.zeros((3, 2), np.float32)
Y = np.zeros(3, int)
ERRORS = {
    "q": (GCE, (X, Y), dict(q=1.5), ValueError, r"`q`\[\] = 1.5 is outside \[0, 1\]"),
    "q of rows": (GCE, (X, Y), dict(q=np.ones(3)), ValueError, r"`q` must have shape \[\]"),
    "generalized labels": (GCE, (X, Y + 2), {}, ValueError, r"`labels`\[0\] = 2 is outside"),
    "float labels": (GCE, (X, X[:, 0]), {}, TypeError, "`labels` must be integers, got float32"),
    "alpha": (SCE, (X, Y), dict(alpha=-1.0), ValueError, r"`alpha`\[\] = -1.0 must be finite"),
    "beta": (SCE, (X, Y), dict(beta=[1.0]), ValueError, r"`beta` must have shape \[\]"),
    "log_zero": (SCE, (X, Y), dict(log_zero=4.0), ValueError, "`log_zero` stands for log 0"),
    "symmetric labels": (SCE, (X, Y - 1), {}, ValueError, r"`labels`\[0\] = -1 is outside"),
    "clip": (ASL, (X, X), dict(clip=1.0), ValueError, r"`clip` must be in \[0, 1\), got 1.0"),
    "gamma": (ASL, (X, X), dict(gamma_neg=-1), ValueError, r"`gamma_neg`\[\] = -1 must be fin"),
    "binary labels": (ASL, (X, X + 2), {}, ValueError, r"`labels`\[0, 0\] = 2.0 is outside"),
    "rows of labels": (ASL, (X, Y), {}, ValueError, "`labels` must have the logits' shape"),
    "integer logits": (ASL, (Y, Y), {}, TypeError, "`logits` must be floating point"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, unhooked):
    fn, arguments, options, error, words = ERRORS[name]
    with pytest.raises(error, match=rf"^{fn.__name__}: .*{words}"):
        fn(*arguments, **options)


def test_poly_terms_are_named(unhooked):
    with pytest.raises(ValueError, match=r"^poly_loss_cross_entropy: `epsilon\[1\]` must have"):
        jxent.poly_loss_cross_entropy(X, Y, epsilon=(1.0, np.ones(3)))


@pytest.mark.parametrize("name", ["clip", "log_zero"])
def test_traced_static_options(name, unhooked):
    fn, t = (ASL, X) if name == "clip" else (SCE, Y)
    with pytest.raises(TypeError, match=f"^{fn.__name__}: `{name}` must be a static"):
        jax.jit(lambda x: fn(X, t, **{name: x}))(0.5)


def test_a_fault_where_both_terms_weigh_nothing():
    """α = β = 0 is a loss of 0, but not of a row at fault."""
    z = jnp.asarray([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
    nothing = dict(alpha=0.0, beta=0.0)
    soft = jnp.asarray([[1.0, 0.0, 0.0], [jnp.nan, 0.0, 0.0]])
    for labels in (jnp.array([0, 7]), soft):
        fn = jax.jit(lambda z, y: jxent.robust.symmetric_cross_entropy(z, y, **nothing))
        losses, pull_back = jax.vjp(lambda z, y=labels, fn=fn: fn(z, y), z)
        (slope,) = pull_back(jnp.ones_like(losses))
        np.testing.assert_array_equal(losses, [0, np.nan])
        np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True])


def test_the_slope_by_q_of_a_huge_nll():
    """−nll²/2 at q = 0, where only the half fits into a float32."""
    logits = jnp.array([0.0, 2.5e19])
    slope = jax.grad(lambda q: jxent.robust.generalized_cross_entropy(logits, 0, q=q))(0.0)
    np.testing.assert_allclose(slope, -3.125e38, rtol=1e-6)
