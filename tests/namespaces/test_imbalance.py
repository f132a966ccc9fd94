"""Rare classes: weights, adjusted logits and margins against scikit-learn, mpmath, dense losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from assertions import assert_close, enable_x64, f64
from derivatives import assert_derivatives
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.utils.class_weight import compute_class_weight

import jxent
from jxent import imbalance

inf, nan = math.inf, math.nan
EPS = np.finfo(np.float32).eps
V, N, D = 6, 9, 4
RNG = np.random.default_rng(3)
COUNTS = np.array([1000, 300, 40, 40, 7, 1])
LABELS = RNG.integers(0, V, N).astype(np.int32)
LOGITS = (3 * RNG.standard_normal((N, V))).astype(np.float32)
HIDDEN = RNG.standard_normal((N, D)).astype(np.float32)
HEAD = RNG.standard_normal((D, V)).astype(np.float32)

counts_of = st.lists(st.integers(1, 10**6), min_size=1, max_size=8).map(np.array)


# --- weights ----------------------------------------------------------------------------------


few = settings(max_examples=8)


@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_balanced_weights_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    theirs = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    for given_as in (counts, np.array(counts), jnp.array(counts, jnp.float32)):
        ours = imbalance.balanced_class_weights(given_as)
        assert ours.dtype == jnp.float32
        assert_close(ours, theirs, rtol=3 * EPS)


def test_balanced_weights_of_real_labels():
    """The same weights, and so scikit-learn's weighted mean of any losses."""
    y = load_breast_cancer().target
    theirs = compute_class_weight("balanced", classes=np.arange(2), y=y)
    c = imbalance.balanced_class_weights(np.bincount(y))
    assert_close(c, theirs, rtol=3 * EPS)
    weights = jxent.label_weights(y, class_weights=c)
    assert_close(jnp.sum(weights), float(y.size), rtol=1e-6)
    assert_close(jnp.sum(jnp.where(y == 1, weights, 0.0)), y.size / 2, rtol=1e-6)


@few
@given(counts_of, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-7, 1.0]))
def test_effective_numbers_against_mpmath(counts, beta):
    from mpmath import mp, mpf

    with mp.workdps(40):
        b = mpf(beta)
        each = [(1 - b) / (1 - b ** int(n)) if beta < 1 else 1 / mpf(int(n)) for n in counts]
        expected = [float(e * len(counts) / sum(each)) for e in each]
    assert_close(imbalance.effective_number_weights(counts, beta), expected, rtol=1e-6)


def test_effective_numbers_are_a_geometric_series():
    """E_N = 1 + β + … + β^(N−1): a new row is worth β of the one before."""
    counts = np.array([1, 2, 5, 40])
    each = np.array([1 / sum(0.9**k for k in range(n)) for n in counts])
    ours = imbalance.effective_number_weights(counts, 0.9)
    assert_close(ours, each / each.mean(), rtol=1e-6)


def test_limits_of_effective_numbers():
    """β = 0 weighs all alike, β = 1 as the inverse frequency, which is balanced but for Σ c = V."""
    np.testing.assert_array_equal(imbalance.effective_number_weights(COUNTS, 0.0), np.ones(V))
    balanced = f64(imbalance.balanced_class_weights(COUNTS))
    for beta in (1.0, 1 - 1e-15):
        ours = imbalance.effective_number_weights(COUNTS, beta)
        assert_close(ours, balanced / balanced.mean(), rtol=1e-6)


def test_counts_beyond_int32():
    """Tokens are counted in thousands of millions: NumPy's integers are not wrapped."""
    counts = np.array([6 * 10**9, 2**32 + 1, 5])
    c = imbalance.balanced_class_weights(counts)
    assert_close(c, counts.sum() / counts / 3, rtol=1e-6)
    assert_close(imbalance.ldam_margins(counts)[2], 0.5, rtol=1e-6)
    assert_close(
        imbalance.effective_number_weights(counts, 1.0)[:2],
        3 / counts[:2] / np.sum(1 / counts),
        rtol=1e-6,
    )


def test_float64_counts_give_float64(x64):
    counts = jnp.asarray(COUNTS, jnp.float64)
    for fn in (
        imbalance.balanced_class_weights,
        lambda n: imbalance.effective_number_weights(n, 0.99),
        imbalance.ldam_margins,
    ):
        assert fn(counts).dtype == jnp.float64
    n = f64(counts)
    assert_close(imbalance.ldam_margins(counts), 0.5 * (1 / n) ** 0.25, rtol=1e-14)


@pytest.mark.parametrize("bad", [0.0, -1.0, nan, inf])
def test_a_traced_count_at_fault_is_nan_alone(bad):
    counts = jnp.array([4.0, bad, 1.0])
    for fn in (
        imbalance.balanced_class_weights,
        lambda n: imbalance.effective_number_weights(n, 0.9),
        imbalance.ldam_margins,
    ):
        np.testing.assert_array_equal(np.isnan(jax.jit(fn)(counts)), [False, True, False])


# --- logit adjustment -------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.3, 2.0, -1.0, 0.0])
def test_adjusted_logits(tau):
    expected = f64(LOGITS) + tau * np.log(COUNTS / COUNTS.sum())
    scale = np.abs(LOGITS) + np.abs(tau * np.log(COUNTS / COUNTS.sum()))
    for prior in (COUNTS, COUNTS / COUNTS.sum(), jnp.asarray(COUNTS, jnp.float32)):
        ours = imbalance.logit_adjustment(LOGITS, prior, tau)
        assert_close(ours, expected, rtol=1e-6, scale=scale)
        traced = jax.jit(imbalance.logit_adjustment)(LOGITS, jnp.asarray(prior), tau)
        assert_close(traced, expected, rtol=1e-6, scale=scale)


def test_tau_one_is_balanced_softmax():
    """−log(N_y e^z_y/Σ_v N_v e^z_v), Ren et al.'s equation."""
    weighed = COUNTS * np.exp(f64(LOGITS))
    expected = -np.log(weighed[np.arange(N), LABELS] / weighed.sum(-1))
    adjusted = imbalance.logit_adjustment(LOGITS, COUNTS)
    ours = jxent.cross_entropy(adjusted, LABELS, reduction="none")
    assert_close(ours, expected, rtol=1e-5)


WAYS = [("tokens", "mean"), ("vocab", "mean"), ("vocab", "none"), ("reference", "mean")]


@pytest.mark.parametrize(("way", "reduction"), WAYS)
@pytest.mark.parametrize("tau", [1.0, pytest.param(0.5, marks=pytest.mark.deep)])
def test_a_bias_adjusts_a_linear_head(way, reduction, tau):
    """The same loss and gradients as adjusted logits; every option goes with it."""
    options = dict(label_smoothing=0.1, class_weights=imbalance.balanced_class_weights(COUNTS))
    options["reduction"] = reduction

    def linear(hidden, head, bias):
        adjusted = imbalance.logit_adjustment(bias, COUNTS, tau)
        fn = functools.partial(jxent.linear_cross_entropy, implementation=way, chunk_size=4)
        return jnp.sum(fn(hidden, head, LABELS, bias=adjusted, **options))

    def dense(hidden, head, bias):
        adjusted = imbalance.logit_adjustment(hidden @ head + bias[None], COUNTS, tau)
        return jnp.sum(jxent.cross_entropy(adjusted, LABELS, **options))

    bias = np.linspace(-1, 1, V, dtype=np.float32)
    ours, theirs = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(HIDDEN, HEAD, bias) for f in (linear, dense)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(a, b, rtol=1e-5, scale=np.max(np.abs(b)), cancels=True)


def test_an_adjusted_bias_stores_no_logits():
    n, d, v = 512, 8, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, v), (v,))]
    y = jax.ShapeDtypeStruct((n,), jnp.int32)

    def loss(hidden, head, prior, y):
        bias = imbalance.logit_adjustment(jnp.zeros(v), prior)
        fn = functools.partial(jxent.linear_cross_entropy, chunk_size=32)
        return fn(hidden, head, y, bias=bias)

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes, y).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * v / 4


def test_a_class_of_prior_zero_is_impossible():
    prior = np.array([3, 0, 1])
    z = imbalance.logit_adjustment(jnp.zeros((2, 3)), prior)
    np.testing.assert_array_equal(z[:, 1], [-inf, -inf])
    loss = jxent.cross_entropy(z, np.array([0, 1]), reduction="none")
    assert_close(loss, [-math.log(0.75), inf], rtol=1e-6)
    np.testing.assert_array_equal(imbalance.logit_adjustment(jnp.ones(3), prior, 0.0), np.ones(3))
    gradients = jax.grad(
        lambda z, p, t: jxent.cross_entropy(imbalance.logit_adjustment(z, p, t), np.array([0, 2])),
        (0, 1, 2),
    )(jnp.zeros((2, 3)), jnp.array([3.0, 0.0, 1.0]), 1.0)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert np.all(gradients[0][:, 1] == 0)
    assert np.any(np.asarray(gradients[1]) != 0)


def test_traced_faults_of_a_prior():
    run = jax.jit(imbalance.logit_adjustment)
    z = jnp.zeros(3)
    np.testing.assert_array_equal(np.isnan(run(z, jnp.array([1.0, -2.0, 3.0]))), [0, 1, 0])
    np.testing.assert_array_equal(np.isnan(run(z, jnp.array([1.0, 0.0, 3.0]), -1.0)), [0, 1, 0])
    np.testing.assert_array_equal(np.isnan(run(z, jnp.array([1.0, nan, 3.0]))), [0, 1, 0])
    assert np.all(np.isnan(run(z, jnp.array([1.0, inf, 3.0]))[1]))


def test_half_precision_is_adjusted_in_float32():
    z = jnp.asarray(LOGITS, jnp.bfloat16)
    out = imbalance.logit_adjustment(z, COUNTS)
    assert out.dtype == jnp.float32
    assert_close(out, f64(z) + np.log(COUNTS / COUNTS.sum()), rtol=1e-6, scale=10.0, cancels=True)
    gradient = jax.grad(
        lambda z: jxent.cross_entropy(imbalance.logit_adjustment(z, COUNTS), LABELS)
    )
    assert gradient(z).dtype == jnp.bfloat16


# --- margins ----------------------------------------------------------------------------------


@few
@given(counts_of, st.sampled_from([0.0, 0.5, 15.0]))
def test_margins_are_the_papers(counts, largest):
    """Δ ∝ N^(−1/4), scaled to the largest, as the authors' program has it."""
    each = 1.0 / np.sqrt(np.sqrt(counts.astype(np.float64)))
    ours = imbalance.ldam_margins(counts, max_margin=largest)
    assert_close(ours, each * (largest / each.max()), rtol=1e-6)


MARGINS = np.asarray(imbalance.ldam_margins(COUNTS))


@pytest.mark.parametrize("way", ["cross_entropy", "vocab", "reference"])
@pytest.mark.parametrize("scale", [1.0, pytest.param(30.0, marks=pytest.mark.deep)])
def test_ldam_is_a_smaller_label_logit(way, scale):
    """From row losses alone, what subtracting Δ_y from the stored logits gives."""
    margins = scale * MARGINS

    def rows(hidden, head):
        if way == "cross_entropy":
            return jxent.cross_entropy(scale * (hidden @ head), LABELS, reduction="none")
        fn = functools.partial(jxent.linear_cross_entropy, implementation=way, chunk_size=4)
        return fn(scale * hidden, head, LABELS, reduction="none")

    g = RNG.standard_normal(N)
    value, pull_back = jax.vjp(lambda *x: imbalance.ldam(rows(*x), LABELS, margins), HIDDEN, HEAD)
    z = scale * (f64(HIDDEN) @ f64(HEAD))
    expected = oracle.ldam(z, LABELS, margins, cotangent=g)
    dz, size = expected.gradient["logits"], expected.scale["logits"]
    close = dict(rtol=1e-4 if scale > 1 else 1e-5)  # what rounding h·W to float32 leaves
    assert_close(value, expected.value, **close)
    dh, dw = pull_back(jnp.asarray(g, jnp.float32))
    assert_close(dh / scale, dz @ f64(HEAD).T, scale=size @ np.abs(HEAD).T, cancels=True, **close)
    assert_close(
        dw / scale, f64(HIDDEN).T @ dz, scale=np.abs(HIDDEN).T @ size, cancels=True, **close
    )


NLL = [0.0, 1e-37, 1e-30, 1e-10, 1e-3, 0.3, 1.0, 5.0, 40.0, 87.0, 88.9, 500.0, 1e4, 1e30, 3e38]


@pytest.mark.parametrize("delta", [0.0, 0.5, 15.0, 60.0])
def test_ldam_keeps_its_digits(delta):
    """Loss and both slopes, from faint to huge, against fifty digits."""
    from mpmath import mp, mpf

    nll = np.float32(NLL[1:])
    one = lambda n, d: imbalance.ldam(n[None], jnp.zeros(1, jnp.int32), d[None])[0]
    run = jax.jit(jax.vmap(jax.value_and_grad(one, (0, 1)), (0, None)))
    value, (by_nll, by_delta) = run(jnp.asarray(nll), jnp.float32(delta))
    with mp.workdps(60):
        d = mpf(float(np.float32(delta)))
        for i, n in enumerate(map(mpf, map(float, nll))):
            r = mp.exp(-n - d) - mp.expm1(-n)
            loss = n + d + mp.log(r) if n > 1 else mp.log1p(mp.exp(d) * mp.expm1(n))
            assert_close(value[i], float(loss), rtol=3e-6, err_msg=f"{n}")
            assert_close(by_nll[i], float(1 / r), rtol=3e-6, err_msg=f"{n}")
            assert_close(by_delta[i], float(-mp.expm1(-n) / r), rtol=3e-6, err_msg=f"{n}")


def test_ldam_at_the_ends():
    """A dropped row stays 0 whatever its label; ∞ stays ∞ with slope 1; no margin, no change."""
    nll, labels = jnp.array([0.0, inf, 2.0, nan]), np.array([-100, 1, 0, 1])
    margins = jnp.array([0.0, 0.5])
    total = lambda n, m: jnp.sum(imbalance.ldam(n[:3], labels[:3], m))
    value = imbalance.ldam(nll, labels, margins)
    np.testing.assert_array_equal(value, np.float32([0, inf, 2, nan]))
    by_nll, by_margin = jax.jit(jax.grad(total, (0, 1)))(nll, margins)
    assert_close(by_nll, [1.0, 1.0, 1.0, 0.0], rtol=1e-6)
    assert_close(by_margin, [1 - math.exp(-2.0), 1.0], rtol=1e-6)
    logits = jnp.array([[0.0, nan], [1.0, 2.0]])
    dropped = jax.grad(
        lambda z: jnp.sum(
            imbalance.ldam(
                jxent.cross_entropy(z, labels[:2], ignore_index=-100, reduction="none"),
                labels[:2],
                margins,
            )
        )
    )(logits)
    assert np.all(dropped[0] == 0)
    assert np.all(np.isfinite(dropped))


def test_ldam_with_weights_and_a_mean():
    """Deferred re-weighting: the margin first, then the weights, one denominator."""
    c = imbalance.balanced_class_weights(COUNTS)
    rows = imbalance.ldam(jxent.cross_entropy(LOGITS, LABELS, reduction="none"), LABELS, MARGINS)
    weights = jxent.label_weights(LABELS, class_weights=c)
    ours = jnp.sum(weights * rows) / jnp.sum(weights)
    z = f64(LOGITS) - np.where(np.arange(V) == LABELS[:, None], MARGINS, 0)
    expected = oracle.cross_entropy(z, LABELS, class_weights=np.asarray(c))
    assert_close(ours, expected.value, rtol=1e-5)


def test_ldam_derivatives():
    f = lambda v: imbalance.ldam(v[:1], jnp.zeros(1, jnp.int32), v[1:])[0]
    assert_derivatives(f, np.array([[0.01, 0.5], [0.7, 0.2], [3.0, 1.0], [60.0, 0.5], [2.0, 8.0]]))


def test_traced_faults_of_ldam():
    run = jax.jit(jax.value_and_grad(lambda n, y, m: jnp.sum(imbalance.ldam(n, y, m))))
    rows = jax.jit(imbalance.ldam)
    nll, margins = jnp.array([1.0, -1.0, 1.0]), jnp.array([0.1, 0.2])
    np.testing.assert_array_equal(np.isnan(rows(nll, jnp.array([0, 1, 1]), margins)), [0, 1, 0])
    bad = jnp.array([0, 2, -1])
    np.testing.assert_array_equal(np.isnan(rows(jnp.abs(nll), bad, margins)), [0, 1, 1])
    _, gradient = run(jnp.abs(nll), bad, margins)
    np.testing.assert_array_equal(np.isnan(gradient), [0, 1, 1])
    value = rows(jnp.abs(nll), jnp.array([0, 1, 1]), -margins)
    assert np.all(np.isnan(value))
    with pytest.raises(ValueError, match=r"^ldam: `labels`\[1\] = 2 is outside \[0, 2\)"):
        jxent.testing.checked(rows)(jnp.abs(nll), bad, margins)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_of_ldam(dtype):
    with enable_x64():
        nll = jnp.asarray([0.5, 2.0], dtype)
        value, pull_back = jax.vjp(lambda n: imbalance.ldam(n, np.array([0, 1]), [0.5, 0.1]), nll)
        assert value.dtype == np.promote_types(nll.dtype, np.float32)
        assert pull_back(value)[0].dtype == nll.dtype


# --- errors -----------------------------------------------------------------------------------

_adjust, _effective, _ldam = (
    imbalance.logit_adjustment,
    imbalance.effective_number_weights,
    imbalance.ldam,
)
ROWS, Y = np.ones(3, np.float32), np.zeros(3, int)
ERRORS = {
    "no rows of a class": (
        imbalance.balanced_class_weights,
        ([3, 0],),
        ValueError,
        r"`counts`\[1\] = 0 must be finite and positive.*np.maximum\(counts, 1\)",
    ),
    "negative": (imbalance.ldam_margins, ([-1, 2],), ValueError, r"`counts`\[0\] = -1 must be"),
    "two axes": (imbalance.ldam_margins, ([[1, 2]],), ValueError, r"`counts` must have one axis"),
    "no classes": (imbalance.balanced_class_weights, ([],), ValueError, "`counts` has no classes"),
    "booleans": (imbalance.balanced_class_weights, ([True],), TypeError, "`counts` must be num"),
    "margin": (imbalance.ldam_margins, ([1], -0.5), ValueError, "`max_margin` must be finite"),
    "beta": (_effective, ([1, 2], 1.5), ValueError, r"`beta` must be in \[0, 1\], got 1.5"),
    "prior": (_adjust, (LOGITS, [1, 2]), ValueError, r"`prior` must have one number .*\[6\]"),
    "negative prior": (_adjust, (LOGITS, -COUNTS), ValueError, r"`prior`\[0\] = -1000 must be"),
    "no prior": (_adjust, (LOGITS, 0 * COUNTS), ValueError, "`prior` is 0 for every class"),
    "certain": (_adjust, (ROWS, [1, 0, 2], -1.0), ValueError, r"`prior`\[1\] = 0 with tau = -1.0"),
    "tau": (_adjust, (ROWS, [1, 1, 2], [1.0]), ValueError, r"`tau` must have shape \[\]"),
    "integer logits": (_adjust, (Y, [1, 1, 2]), TypeError, "`logits` must be floating point"),
    "losses": (_ldam, (Y, Y, [0.5]), TypeError, "`row_losses` must be floating point"),
    "negative loss": (_ldam, (-ROWS, Y, [0.5]), ValueError, r"`row_losses`\[0\] = -1.0 must not"),
    "labels": (_ldam, (ROWS, Y[:, None], [0.5]), ValueError, "`labels` must have one label a row"),
    "label": (_ldam, (ROWS, Y + 1, [0.5]), ValueError, r"`labels`\[0\] = 1 is outside \[0, 1\)"),
    "margins": (_ldam, (ROWS, Y, 0.5), ValueError, "`margins` must have one axis"),
    "negative margin": (_ldam, (ROWS, Y, [-0.5]), ValueError, r"`margins`\[0\] = -0.5 must not"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, unhooked):
    fn, arguments, error, words = ERRORS[name]
    with pytest.raises(error, match=rf"^{fn.__name__}: .*{words}"):
        fn(*arguments)


def test_a_traced_beta_is_an_error(unhooked):
    with pytest.raises(TypeError, match=r"^effective_number_weights: `beta` must be a static"):
        jax.jit(_effective)(jnp.ones(2), 0.9)


@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
@pytest.mark.parametrize("prior", [(3e38, 3e38, 1.0), (1e-30, 2e-30, 0.0), (3e38, 1e-37, 2e38)])
def test_adjusting_by_huge_and_tiny_counts(prior, how):
    """Neither their sum nor a share of it need be a float32; slopes neither."""
    prior = np.float32(prior)
    out = how(imbalance.logit_adjustment)(jnp.zeros(3), prior)
    with np.errstate(divide="ignore"):
        expected = np.log(f64(prior)) - np.log(f64(prior).sum())
    assert_close(out, expected, rtol=1e-6)
    by_tau = jax.grad(lambda t: imbalance.logit_adjustment(jnp.zeros(3), prior, t)[0])(1.0)
    assert_close(by_tau, expected[0], rtol=1e-6)
    shift = lambda p: imbalance.logit_adjustment(jnp.zeros(3), p)[1]
    assert np.all(np.isfinite(jax.grad(shift)(jnp.asarray(prior))))
