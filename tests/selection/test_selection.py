"""Comparisons beside SciPy and explicit formulas, and how often their intervals are right."""

import io
import json
import math
import sys
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from assertions import relaxed
from hypothesis import given
from hypothesis import strategies as st
from sampling import first

from jxent import selection
from jxent.selection import bootstrap, compare, paired, progress
from jxent.selection.comparison import Comparison, Difference, Model

FEW, MANY = 60, bootstrap.MANY + 5  # rows: drawn one by one, and counted
QUICK = 1000


@pytest.fixture(autouse=True)
def without_a_screen():
    import matplotlib

    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


def losses(seed: int, rows: int = FEW, models: int = 2) -> dict[str, np.ndarray]:
    """Skewed losses that share how hard a row is."""
    rng = np.random.default_rng(seed)
    hard = rng.exponential(0.5, rows)
    return {f"m{m}": hard + rng.exponential(0.2 + 0.05 * m, rows) for m in range(models)}


def only_pair(x: dict, **options) -> Difference:
    (pair,) = compare(x, **{"resamples": 40, **options}).pairs
    return pair


def of_b_minus_a(x: dict, **options) -> Difference:
    """The pair with its figures turned so that they are of b − a."""
    d = only_pair(x, **options)
    first, second = x
    if (d.better, d.worse) == (first, second):
        return d
    return Difference(
        first,
        second,
        -d.mean,
        d.standard_error,
        -d.high,
        -d.low,
        -d.bootstrap_high,
        -d.bootstrap_low,
        1 - d.probability,
        d.p_value,
        d.adjusted_p_value,
        d.real,
    )


# --- the t interval


@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([2, 3, 20, 200]),
    confidence=st.sampled_from([0.8, 0.95]),
)
def test_the_t_interval_is_scipy_s(seed, rows, confidence):
    x = losses(seed, rows)
    d = of_b_minus_a(x, confidence=confidence)
    a, b = x.values()
    theirs = scipy.stats.ttest_rel(b, a)
    interval = theirs.confidence_interval(confidence)
    np.testing.assert_allclose(
        [d.mean, d.low, d.high, d.p_value],
        [np.mean(b - a), interval.low, interval.high, theirs.pvalue],
        rtol=1e-9,
        atol=1e-12,
    )
    assert d.real == (d.low > 0 or d.high < 0)


def test_each_model_s_own_interval_is_scipy_s():
    x = losses(1, 30, models=3)
    for model in compare(x, resamples=40).models:
        theirs = scipy.stats.ttest_1samp(x[model.name], 0).confidence_interval(0.95)
        np.testing.assert_allclose([model.low, model.high], [theirs.low, theirs.high], rtol=1e-9)
        np.testing.assert_allclose(model.mean, np.mean(x[model.name]), rtol=1e-12)


@given(seed=st.integers(0, 10**6), rows=st.sampled_from([3, 20, 60]), groups=st.integers(2, 4))
def test_grouped_and_weighted_by_the_explicit_formula(seed, rows, groups):
    rng = np.random.default_rng(seed)
    x, w = losses(seed, rows), rng.uniform(0.1, 3, rows)
    g = rng.integers(0, groups, rows)
    g[:2] = [0, 1]
    d = of_b_minus_a(x, weights=w, groups=g)
    a, b = x.values()
    mean = sum(w * (b - a)) / sum(w)
    of_group = [sum(w[g == k] * (b - a - mean)[g == k]) / sum(w) for k in set(g.tolist())]
    count = len(of_group)
    s = math.sqrt(count / (count - 1) * sum(u * u for u in of_group))
    t = scipy.stats.t(count - 1)
    expected = [mean, s, mean - t.ppf(0.975) * s, mean + t.ppf(0.975) * s, 2 * t.sf(abs(mean) / s)]
    figures = [d.mean, d.standard_error, d.low, d.high, d.p_value]
    np.testing.assert_allclose(figures, expected, rtol=1e-8, atol=1e-12)


def test_rows_that_are_groups_are_rows():
    x = losses(2)
    alone = compare(x, resamples=QUICK)
    grouped = compare(x, groups=[f"row {i:03}" for i in range(FEW)], resamples=QUICK)
    assert grouped.groups == FEW and alone.groups is None
    for one, other in zip(alone.pairs, grouped.pairs, strict=True):
        np.testing.assert_allclose(*[list(asdict(d).values())[2:] for d in (one, other)], rtol=1e-9)


def test_repeated_rows_in_groups_say_no_more_than_once():
    x = losses(3)
    tripled = {name: np.repeat(rows, 3) for name, rows in x.items()}
    one, three = only_pair(x), only_pair(tripled, groups=np.repeat(np.arange(FEW), 3))
    np.testing.assert_allclose(three.standard_error, one.standard_error, rtol=1e-12)
    assert only_pair(tripled).standard_error < 0.6 * one.standard_error


def test_rows_of_weight_zero_are_not_there():
    x = losses(4, 40)
    w = np.where(np.arange(40) % 4 == 0, 0.0, 2.0)
    groups = np.arange(40) // 4
    groups[::4] = 99  # a group of which nothing counts
    dropped = {name: np.where(w > 0, rows, np.inf) for name, rows in x.items()}
    kept = {name: rows[w > 0] for name, rows in x.items()}
    one = compare(dropped, weights=w, groups=groups, resamples=QUICK)
    other = compare(kept, groups=groups[w > 0], resamples=QUICK)
    assert (one.rows, one.groups) == (30, 10)
    for d, e in zip(one.pairs, other.pairs, strict=True):
        np.testing.assert_allclose(*[list(asdict(p).values())[2:] for p in (d, e)], rtol=1e-9)


def test_the_unit_of_weights_is_nothing():
    x, w = losses(5), np.random.default_rng(5).uniform(0.5, 2, FEW)
    one, other = only_pair(x, weights=w), only_pair(x, weights=1e6 * w)
    np.testing.assert_allclose(*[list(asdict(p).values())[2:] for p in (one, other)], rtol=1e-9)


def test_resampled_trainings_by_nadeau_and_bengio_s_formula():
    x = losses(6, 15)
    plain, d = only_pair(x, resamples=QUICK), only_pair(x, resamples=QUICK, test_fraction=0.2)
    a, b = x["m0"], x["m1"]
    s = math.sqrt((1 / 15 + 0.2 / 0.8) * np.var(b - a, ddof=1))
    np.testing.assert_allclose(d.standard_error, s, rtol=1e-12)
    np.testing.assert_allclose(
        d.p_value, 2 * scipy.stats.t(14).sf(abs(np.mean(b - a)) / s), rtol=1e-9
    )
    wider = d.standard_error / plain.standard_error
    np.testing.assert_allclose(
        d.bootstrap_high - d.mean, wider * (plain.bootstrap_high - plain.mean), rtol=1e-9
    )


# --- the bootstrap


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("weighted", [False, True])
def test_resampled_means_have_the_bootstrap_s_moments(rows, weighted):
    rng = np.random.default_rng(7)
    w = rng.uniform(0.5, 2, rows) if weighted else np.ones(rows)
    w /= np.sum(w)
    d = rng.exponential(1.0, (rows, 2)) ** 1.5
    u = w[:, None] * (d - w @ d)
    resamples = 20_000
    m = bootstrap.resampled_means(u, w, resamples, 8)
    spread = np.sqrt(np.sum(u**2, axis=0))
    assert m.shape == (resamples, 2)
    np.testing.assert_allclose(
        np.mean(m, axis=0) / spread, 0, atol=4 / math.sqrt(resamples) + 1 / rows
    )
    np.testing.assert_allclose(
        np.std(m, axis=0), spread, rtol=4 / math.sqrt(2 * resamples) + 1 / rows
    )
    skewness = np.sum(u**3, axis=0) / spread**3
    tolerance = 4 * math.sqrt(6 / resamples) + 3 * weighted / math.sqrt(rows)
    np.testing.assert_allclose(scipy.stats.skew(m), skewness, atol=tolerance)
    assert weighted or np.all(skewness > tolerance) or rows == MANY
    together = np.corrcoef(u.T)[0, 1]  # both columns were resampled alike
    np.testing.assert_allclose(np.corrcoef(m.T)[0, 1], together, atol=0.04)


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_what_is_proportional_to_the_weights_has_one_mean(rows):
    w = np.random.default_rng(27).uniform(0.5, 2, rows)
    w /= np.sum(w)
    m = bootstrap.resampled_means(np.stack([3 * w, -w], axis=1), w, 100, 0)
    np.testing.assert_allclose(m, np.broadcast_to([3.0, -1.0], m.shape), rtol=1e-5)


def test_counts_have_poisson_s_moments():
    n, c = np.array(bootstrap.FREQUENCIES), np.arange(6)
    assert np.sum(n) == np.sum(n * c) == np.sum(n * c * (c - 1)) == 256
    assert abs(np.sum(n * c * (c - 1) * (c - 2)) / 256 - 1) < 0.01


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_intervals_are_scipy_s_bootstrap(rows):
    rng = np.random.default_rng(9)
    a = rng.exponential(1.0, rows)
    b = a + rng.exponential(1.0, rows) ** 2 - 1.5
    resamples = 40_000 if rows == FEW else 10_000
    d = of_b_minus_a({"a": a, "b": b}, resamples=resamples)
    reach = math.sqrt(rows / (rows - 1)) * scipy.stats.t(rows - 1).ppf(0.975)
    theirs = scipy.stats.bootstrap(
        (b - a,),
        np.mean,
        n_resamples=resamples,
        batch=500,
        method="BCa",
        confidence_level=1 - 2 * scipy.stats.norm.sf(reach),  # expanded: that of t
        rng=np.random.default_rng(1),
    )
    ours = np.array([d.bootstrap_low, d.bootstrap_high])
    interval = theirs.confidence_interval
    apart = np.abs(ours - [interval.low, interval.high]) / d.standard_error
    assert np.all(apart < 0.1), apart
    # As far as this from Student's, whose interval knows nothing of skewness.
    skewed = abs((d.bootstrap_high + d.bootstrap_low) / 2 - d.mean) / d.standard_error
    assert skewed > (0.1 if rows == FEW else 0.01)
    better = np.mean(theirs.bootstrap_distribution > 0)
    np.testing.assert_allclose(d.probability, better, atol=0.03)


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_a_resample_depends_on_seed_and_number_alone(rows, monkeypatch):
    rng = np.random.default_rng(10)
    u, w = rng.normal(size=(rows, 2)), np.full(rows, 1 / rows)
    whole = bootstrap.resampled_means(u, w, 50, 3)
    np.testing.assert_array_equal(bootstrap.resampled_means(u, w, 50, 3), whole)
    assert len(np.unique(whole)) == whole.size
    assert not np.any(np.isin(bootstrap.resampled_means(u, w, 50, 4), whole))
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * u.size if rows == FEW else 7 * rows)
    monkeypatch.setattr(bootstrap, "CALL", 20 * rows)
    np.testing.assert_allclose(bootstrap.resampled_means(u, w, 50, 3), whole, rtol=1e-5, atol=1e-7)


def test_other_generators_and_precisions_change_nothing():
    x = losses(11)
    plain = compare(x, resamples=QUICK)
    with relaxed(), jax.default_prng_impl("rbg"):
        assert compare(x, resamples=QUICK) == plain
    assert not jax.config.jax_enable_x64


def test_ties_count_half():
    a = np.tile([0.0, 1.0, 1.0], 20)  # zero-one losses, as often better as worse
    d = only_pair({"a": a, "b": np.roll(a, 1)}, resamples=QUICK)
    assert d.mean == 0
    assert abs(d.probability - 0.5) < 0.05
    np.testing.assert_allclose(d.bootstrap_low, -d.bootstrap_high, atol=0.06)


# --- how often they are right


def coverage(experiments: int, draw, **options) -> tuple[float, float]:
    """How often the t and the bootstrap intervals of `draw(rng)` hold the true difference 0.

    One call makes 10 experiments: independent differences from a model whose losses are 0.
    """
    rng = np.random.default_rng(12)
    hits = np.zeros(2)
    for call in range(experiments // 10):
        d, more = draw(rng, 10)
        zero = d.shape[0] * [0.0]
        models = {"0": zero} | {f"{m + 1}": d[:, m] for m in range(10)}
        pairs = compare(models, seed=call, resamples=600, **more, **options).pairs
        own = [p for p in pairs if "0" in (p.better, p.worse)]
        assert len(own) == 10
        hits += np.sum(
            [[p.low <= 0 <= p.high, p.bootstrap_low <= 0 <= p.bootstrap_high] for p in own], axis=0
        )
    t, bootstrap = hits / experiments
    return float(t), float(bootstrap)


def independent(rng, models):
    return rng.gamma(4.0, 1.0, (80, models)) - rng.gamma(4.0, 1.0, (80, models)), {}


def clustered(rng, models):
    sizes = np.resize([1, 2, 3, 6], 80)
    groups = np.repeat(np.arange(80), sizes)
    shared = rng.normal(size=(80, models))[groups]
    return shared + 0.5 * rng.normal(size=shared.shape), {"groups": groups}


@pytest.mark.parametrize("draw", first(1, [independent, clustered]))
def test_intervals_cover_as_often_as_they_say(draw):
    t, bootstrap = coverage(2000, draw)
    assert 0.93 <= t <= 0.97, t
    assert 0.93 <= bootstrap <= 0.97, bootstrap


def test_without_their_groups_they_do_not():
    t, bootstrap = coverage(200, lambda rng, models: (clustered(rng, models)[0], {}))
    assert t < 0.85 and bootstrap < 0.85


@pytest.mark.deep
@pytest.mark.parametrize("draw", [independent, clustered])
def test_weighted_intervals_cover_as_often_as_they_say(draw):
    def weighted(rng, models):
        d, more = draw(rng, models)
        return d, more | {"weights": rng.uniform(0.5, 2.0, len(d))}

    t, bootstrap = coverage(2000, weighted)
    assert 0.93 <= t <= 0.97, t
    assert 0.93 <= bootstrap <= 0.97, bootstrap


@pytest.mark.deep
def test_a_hundred_thousand_rows_take_seconds():
    import time

    start = time.perf_counter()
    x = losses(13, 100_000)
    d = only_pair(x, resamples=10_000)
    assert time.perf_counter() - start < 60
    ends = np.array([d.low - d.bootstrap_low, d.high - d.bootstrap_high])
    assert np.all(np.abs(ends) < 0.1 * d.standard_error)


# --- many models


def test_holm_by_hand():
    corrected = paired._holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p):
    """A hypothesis is rejected at level α if its corrected p value is at most α."""
    corrected = paired._holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(p)), key=p.__getitem__)
        for step, i in enumerate(order):
            if p[i] * (len(p) - step) > level:
                break
            rejected.add(i)
        assert {i for i, c in enumerate(corrected) if c <= level} == rejected
    assert all(c >= q for c, q in zip(corrected, p, strict=True)) and max(corrected) <= 1


def test_every_pair_is_as_if_alone():
    x = losses(14, 50, models=4)
    comparison = compare(x, resamples=10_000)
    means = {name: float(np.mean(rows)) for name, rows in x.items()}
    assert [m.name for m in comparison.models] == sorted(means, key=means.__getitem__)
    assert len(comparison.pairs) == 6
    assert len({frozenset((d.better, d.worse)) for d in comparison.pairs}) == 6
    assert {d.better for d in comparison.with_best} == {comparison.best} and len(
        comparison.with_best
    ) == 3
    for d in comparison.pairs:
        alone = only_pair({d.better: x[d.better], d.worse: x[d.worse]}, resamples=10_000)
        assert (d.better, d.worse) == (alone.better, alone.worse)
        same = ("mean", "standard_error", "low", "high", "p_value")
        for name in same:
            assert getattr(d, name) == pytest.approx(getattr(alone, name), rel=1e-12)
        for name in ("bootstrap_low", "bootstrap_high"):
            assert abs(getattr(d, name) - getattr(alone, name)) < 0.1 * d.standard_error
        assert abs(d.probability - alone.probability) < 0.03
    assert [d.adjusted_p_value for d in comparison.pairs] == paired._holm(
        [d.p_value for d in comparison.pairs]
    )
    for d in comparison.pairs:
        assert d.real == (d.adjusted_p_value <= 0.05)


def test_the_correction_decides():
    rng = np.random.default_rng(15)
    noise = rng.normal(size=(40, 5))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    x = {"a": np.zeros(40)} | {f"b{m}": noise[:, m] * math.sqrt(40) + 2.3 for m in range(5)}
    comparison = compare(x, resamples=40)
    assert all(d.low > 0 and not d.real for d in comparison.with_best)
    assert not comparison.real and "no clear winner" in comparison.verdict


# --- differences that do not differ


def test_the_same_losses_are_no_difference():
    a = losses(16)["m0"]
    comparison = compare({"a": a, "b": a.copy()}, resamples=40)
    (d,) = comparison.pairs
    zeros = (d.mean, d.standard_error, d.low, d.high, d.bootstrap_low, d.bootstrap_high)
    assert zeros == (0,) * 6 and d.p_value == 1 and not d.real and d.probability == 0.5
    assert comparison.verdict == "no difference between a and b: the same losses"


@pytest.mark.parametrize("shift", [0.5, 0.1])  # 0.1 is not constant once it is added
def test_a_constant_difference_has_an_interval_without_width(shift):
    a = losses(17)["m0"]
    d = only_pair({"a": a, "b": a + shift})
    assert d.low == d.mean == d.high == d.bootstrap_low == d.bootstrap_high
    assert d.mean == pytest.approx(shift)
    assert (d.standard_error, d.p_value, d.probability, d.real) == (0, 0, 1, True)


def test_a_constant_difference_of_many_rows_and_of_groups():
    rng = np.random.default_rng(26)
    a = rng.exponential(1.0, 200_000)
    w = rng.uniform(0.5, 2.0, a.size)
    d = only_pair({"a": a, "b": a + 0.1}, weights=w)
    assert d.standard_error == 0 and d.mean == pytest.approx(0.1, rel=1e-12)
    a, swing = a[:60], np.tile([0.1, 0.3, -0.4], 20)  # of which no group knows anything
    d = only_pair({"a": a, "b": a + swing}, groups=np.arange(60) // 3)
    assert (d.mean, d.standard_error, d.p_value, d.real) == (0, 0, 1, False)


def test_rounding_is_no_difference():
    a = losses(18)["m0"]
    d = only_pair({"a": a, "b": a * (1 + 2**-52)})
    assert d.mean == 0 and d.p_value == 1


def test_a_tiny_difference_is_one():
    rng = np.random.default_rng(19)
    a = losses(19)["m0"]
    d = of_b_minus_a({"a": a, "b": a + 1e-9 * rng.normal(1, 1, FEW)}, resamples=QUICK)
    assert 0.5e-9 < d.mean < 1.5e-9
    assert 0.5e-9 < d.bootstrap_low < d.bootstrap_high < 1.5e-9


# --- what comes in


def test_lists_and_every_array_are_the_same():
    x = {name: np.round(rows * 16) / 16 for name, rows in losses(20).items()}
    expected = compare(x, resamples=QUICK)
    for form in (list, tuple, jnp.asarray, np.float32, lambda r: jnp.asarray(r, jnp.bfloat16)):
        assert compare({n: form(r) for n, r in x.items()}, resamples=QUICK) == expected
    hits = compare({"a": [True, False, True], "b": [0, 0, 1]}, resamples=40)
    assert hits.best == "b"


ROWS = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            ([1.0, 2.0],),
            TypeError,
            "`losses` must be a dictionary of names and row losses, got list",
        ),
        (({"a": ROWS},), ValueError, "has 1 model; it takes two"),
        (({},), ValueError, "has 0 models"),
        (({"a": ROWS, 1: ROWS},), TypeError, "has the name 1; names are strings"),
        (
            ({"a": ROWS, "b": [1.0, 2.0]},),
            ValueError,
            "of the same rows in the same order, got 3 of 'a' and 2 of 'b'",
        ),
        (
            ({"a": ROWS, "b": [[1.0], [2.0], [4.0]]},),
            ValueError,
            "`losses['b']` must have one axis",
        ),
        (({"a": ROWS, "b": [[1.0], [2.0, 3.0]]},), ValueError, "`losses['b']` is ragged"),
        (({"a": ROWS, "b": ["x", "y", "z"]},), TypeError, "`losses['b']` must be numbers"),
        (
            ({"a": ROWS, "b": [1.0, math.nan, 2.0]},),
            ValueError,
            "`losses`['b'][1] is nan: drop the row from every model",
        ),
        (
            ({"a": ROWS, "b": [1.0, 2.0, math.inf]},),
            ValueError,
            "`losses`['b'][2] is inf: the model gives probability 0",
        ),
        (
            ({"a": [1.0], "b": [2.0]},),
            ValueError,
            "needs at least 2 rows of positive weight, got 1",
        ),
        (({"a": [], "b": []},), ValueError, "got 0"),
    ],
)
def test_bad_losses(arguments, kind, words, unhooked):
    with pytest.raises(kind) as error:
        compare(*arguments)
    assert str(error.value).startswith("compare: ") and words in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"weights": [1.0, -1.0, 1.0]}, ValueError, "`weights`[1] = -1.0 must be finite and not"),
        ({"weights": [1.0, math.nan, 1.0]}, ValueError, "`weights`[1] = nan"),
        ({"weights": [0, 0, 0]}, ValueError, "`weights` are all 0"),
        ({"weights": [0, 0, 1]}, ValueError, "at least 2 rows of positive weight, got 1"),
        ({"weights": [1.0, 1.0]}, ValueError, "`weights` must have one number a row, 3, got 2"),
        ({"groups": [1, 1, 1]}, ValueError, "at least 2 groups of positive weight, got 1"),
        ({"groups": [1, 2]}, ValueError, "`groups` must have one name a row, [3]"),
        ({"groups": [1.0, math.nan, 2.0]}, ValueError, "`groups`[1] is nan"),
        ({"groups": [None, "a", "b"]}, TypeError, "`groups` must be integers or strings"),
        ({"confidence": 1.0}, ValueError, "`confidence` must lie between 0 and 1, got 1.0"),
        ({"confidence": "95%"}, TypeError, "`confidence` must be a static Python number"),
        (
            {"resamples": 39},
            ValueError,
            "`resamples` must be at least 40 at confidence 0.95, got 39",
        ),
        ({"resamples": 1e4}, TypeError, "`resamples` must be a static Python integer"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"test_fraction": 0.0}, ValueError, "`test_fraction` must lie between 0 and 1"),
        (
            {"test_fraction": 0.2, "groups": [1, 2, 3]},
            ValueError,
            "`test_fraction` is for one mean loss a split",
        ),
    ],
)
def test_bad_options(options, kind, words, unhooked):
    with pytest.raises(kind) as error:
        compare({"a": ROWS, "b": [2.0, 2.5, 3.0]}, **options)
    assert str(error.value).startswith("compare: ") and words in str(error.value)


def test_traced_losses_are_told_where_to_go():
    with pytest.raises(TypeError, match="call compare outside jit"):
        jax.jit(lambda a: compare({"a": a, "b": a}))(jnp.ones(3))


# --- what comes out


def made(*pairs: tuple[str, float, float, bool], **changes) -> Comparison:
    """A comparison of "a" with others that says so much."""
    models = ("a", *(name for name, *_ in pairs))
    return Comparison(
        models=tuple(Model(name, 1.0, 0.1, 0.8, 1.2) for name in models),
        pairs=tuple(
            Difference("a", n, mean, s, mean - 2 * s, mean + 2 * s, 0.0, 0.0, 1.0, 0.01, 0.01, real)
            for n, mean, s, real in pairs
        ),
        **{
            "rows": 9,
            "groups": None,
            "weighted": False,
            "test_fraction": None,
            "confidence": 0.95,
            "resamples": 1000,
            "seed": 0,
        }
        | changes,
    )


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (
            [("b", 0.25, 0.1, True)],
            "a is better than b, by 0.25 nats per row, and the difference is",
        ),
        (
            [("b", 0.25, 0.1, True), ("c", 0.5, 0.1, True)],
            "a is better than every other, by 0.25 nats per row or more, and that is real",
        ),
        (
            [("b", 0.25, 0.2, False), ("c", 0.5, 0.1, True)],
            "lowest mean loss, but b cannot be told from it: no clear winner (the next is 0.25",
        ),
        ([("b", 0.1, 0.2, False), ("c", 0.2, 0.2, False)], "but b and c cannot be told from it"),
        ([("b", 0.0, 0.0, False)], "no difference between a and b: the same losses"),
        ([("b", 0.0, 0.0, False), ("c", 1.0, 0.1, True)], "no difference between a and b"),
        ([("b", 0.0, 0.1, False)], "b cannot be told from it"),
    ],
)
def test_verdict(pairs, words):
    comparison = made(*pairs)
    assert words in comparison.verdict and "\n" not in comparison.verdict
    assert comparison.real == all(real for *_, real in pairs)


def test_splits_and_groups_are_called_so():
    assert "nats per split" in made(("b", 0.25, 0.1, True), test_fraction=0.2).verdict
    assert "9 splits" in str(made(("b", 0.25, 0.1, True), test_fraction=0.2))
    assert "9 rows in 3 groups, weighted" in str(
        made(("b", 0.2, 0.1, True), groups=3, weighted=True)
    )


def test_the_table_needs_nothing_but_text(monkeypatch):
    for module in ("rich", "rich.console", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    comparison = compare(losses(21, models=3), resamples=QUICK)
    text = str(comparison)
    assert text.endswith(comparison.verdict)
    for model in comparison.models:
        assert f"{model.mean:.4f}" in text
    for d in comparison.with_best:
        (line,) = [line for line in text.splitlines() if line.startswith(d.worse) and "0." in line][
            1:
        ]
        assert f"{d.mean:.4f}" in line and f"{d.low:.4f} to {d.high:.4f}" in line
        assert f"{d.bootstrap_low:.4f} to {d.bootstrap_high:.4f}" in line
        assert line.endswith("yes" if d.real else "no")
    assert "Holm's for all 3 pairs" in text
    assert "Holm" not in str(compare(losses(21), resamples=QUICK))


def test_the_table_does_not_call_certain_what_no_resample_denied():
    assert ">0.9990" in str(made(("b", 0.25, 0.1, True)))
    assert ">0.99" not in str(made(("b", 0.25, 0.0, True)))


def test_to_dict_is_json():
    comparison = compare(losses(22, models=3), groups=np.arange(FEW) // 2, resamples=QUICK)
    d = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert d["best"] == comparison.best and d["verdict"] == comparison.verdict
    assert [Difference(**p) for p in d["pairs"]] == list(comparison.pairs)
    assert [Model(**m) for m in d["models"]] == list(comparison.models)
    assert (d["rows"], d["groups"], d["resamples"], d["seed"]) == (FEW, 30, QUICK, 0)


@pytest.mark.relaxed
def test_plot_draws_the_intervals():
    comparison = compare(losses(23, models=3), resamples=QUICK)
    ax = comparison.plot()
    spans = [tuple(line.get_xdata()) for line in ax.lines]
    for d in comparison.with_best:
        assert (d.low, d.high) in spans and (d.bootstrap_low, d.bootstrap_high) in spans
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        d.worse for d in comparison.with_best
    ]
    assert ax.get_xlabel() == f"mean loss above {comparison.best} (nats per row)"
    assert comparison.plot(ax=ax) is ax
    ax.figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("scipy.special", "SciPy", lambda: compare({"a": ROWS, "b": ROWS})),
        ("matplotlib", "matplotlib", lambda: made(("b", 0.2, 0.1, True)).plot()),
    ],
)
def test_a_missing_extra_is_named(module, package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'jxent\[demo\]'"):
        call()


# --- likelihood and criteria


def test_criteria_by_their_formulas():
    rng = np.random.default_rng(24)
    sample = rng.normal(1.0, 2.0, 50)
    rows = -scipy.stats.norm(sample.mean(), sample.std()).logpdf(sample)
    fitted = scipy.stats.norm.logpdf(sample, sample.mean(), sample.std()).sum()
    assert selection.log_likelihood(rows) == pytest.approx(fitted)
    assert selection.aic(rows, 2) == pytest.approx(4 - 2 * fitted)
    assert selection.bic(jnp.asarray(rows), 2) == pytest.approx(2 * math.log(50) - 2 * fitted)
    assert selection.log_likelihood([1.0, math.inf]) == -math.inf
    assert selection.aic([1.0, math.inf], 0) == selection.bic([1.0, math.inf], 0) == math.inf


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: selection.log_likelihood([]), ValueError, "log_likelihood: `row_losses` is empty"),
        (lambda: selection.aic([1.0, math.nan], 1), ValueError, "aic: `row_losses`[1] is nan"),
        (lambda: selection.bic([-math.inf], 1), ValueError, "bic: `row_losses`[0] is -inf"),
        (lambda: selection.bic([[1.0]], 1), ValueError, "must have one axis"),
        (lambda: selection.aic([1.0], -1), ValueError, "`parameters` must be at least 0, got -1"),
        (
            lambda: selection.aic([1.0], 1.5),
            TypeError,
            "`parameters` must be a static",
        ),
        (lambda: selection.aic(["x"], 1), TypeError, "`row_losses` must be numbers"),
    ],
)
def test_bad_row_losses(call, kind, words, unhooked):
    with pytest.raises(kind) as error:
        call()
    assert words in str(error.value)


# --- the bar


def test_a_bar_comes_when_it_is_long(monkeypatch):
    import rich.console

    stream = io.StringIO()
    console = rich.console.Console(file=stream, force_terminal=True)
    monkeypatch.setattr(rich.console, "Console", lambda **options: console)
    assert list(progress.track(range(5), "bootstrap")) == list(range(5))
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert list(progress.track(range(5), "bootstrap")) == list(range(5))
    assert "bootstrap" in stream.getvalue()


def test_no_bar_where_nobody_looks(monkeypatch, capfd):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert list(progress.track(range(3), "bootstrap")) == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert list(progress.track(range(3), "bootstrap")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
