"""Paired differences of row losses: Student's t and the bootstrap, corrected for all pairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Integer

from jxent import _check
from jxent._typing import ArrayLike
from jxent.selection.bootstrap import least_resamples, resampled_means
from jxent.selection.checks import (
    check_at_least_two,
    check_finite_losses,
    check_groups,
    check_paired_losses,
    check_test_fraction,
    check_weights,
)
from jxent.selection.comparison import Comparison, Difference, Model

_ROUNDINGS = 8  # ulp of the largest loss: differences that vary by less are constant
_TIE = 1e-5  # standard errors: the float32 sums of the resamples may be off by this


@_check.arguments
def compare(
    losses: Mapping[str, ArrayLike],
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    test_fraction: float | None = None,
) -> Comparison:
    """Rank models by mean loss and test every pair's difference d̄ = Σ w_i (b_i − a_i) / Σ w_i.

    Rows that share something (a document, a patient) are worth less than their number: name it in
    `groups`, and groups are resampled and give the standard errors.

    A difference is called real if its p value, corrected by Holm's method for all M(M−1)/2 pairs,
    is at most 1 − confidence. All pairs, because the best model is chosen on the same rows. The
    intervals are not corrected: each is for its pair alone. There are two, Student's t and the
    bootstrap's BCa, which follows skewed differences (its end points are corrected for bias and
    skewness, unlike plain percentiles) and is expanded for small samples. With fewer than 30 rows
    or groups trust the first.

    They hold for these trained models on new rows, not for training them anew. For that, give one
    mean loss for each of J random splits, and `test_fraction`: s² = (1/J + n_test/n_train) s_d²,
    which allows for training sets that overlap. The bootstrap is widened alike.

    k-fold predictions come from scikit-learn, one for every row, by a model that did not see it:

        from sklearn.model_selection import GroupKFold, cross_val_predict
        p = cross_val_predict(model, x, y, cv=GroupKFold(5), groups=groups, method="predict_proba")
        rows = jxent.cross_entropy(jnp.log(p), y, reduction="none")

    and J random splits from `ShuffleSplit(15, test_size=0.2)`, whose `test_fraction` is 0.2.

    Args:
      losses: names and row losses `[N]` in nats, at least two models, the same rows in the same
        order: arrays or lists.
      weights: `[N]`, ≥ 0. A row of weight 0 counts for nothing, whatever its loss.
      groups: `[N]` integers or strings: rows with the same one belong together.
      confidence: of the intervals, and 1 − the level of the tests.
      resamples: of the bootstrap. Its time is proportional to resamples × groups; memory is
        bounded; a progress bar comes when it is long, if rich is there.
      seed: of the bootstrap.
      test_fraction: the share of rows that each of J splits held out; rows are then splits.

    Returns:
      A `Comparison`: `models` from best to worst, `pairs`, `best`, `verdict`; `print` it, or
      `.to_dict()`, `.plot()`.

    Raises:
      ValueError: for fewer than two models, rows or groups; for lengths that differ; for losses
        that are not finite; for weights that are negative, not finite, or all 0.
      TypeError: for losses that are not numbers by name, or traced.
      ImportError: without SciPy.

    Example:
      >>> import jxent
      >>> a = [0.1, 0.2, 0.4, 0.1, 0.3, 0.2]
      >>> b = [0.3, 0.3, 0.5, 0.4, 0.3, 0.5]
      >>> comparison = jxent.selection.compare({"b": b, "a": a})
      >>> comparison.best
      'a'
      >>> (pair,) = comparison.pairs
      >>> print(f"{pair.mean:.3f} ± {pair.standard_error:.3f}, p = {pair.p_value:.3f}")
      0.167 ± 0.049, p = 0.020
      >>> print(comparison.verdict)
      a is better than b, by 0.167 nats per row, and the difference is real

    References:
      Paired tests and why plain ones of resampled trainings fail: Dietterich, *Approximate
      Statistical Tests for Comparing Supervised Classification Learning Algorithms*, 1998;
      `test_fraction`: Nadeau and Bengio, *Inference for the Generalization Error*, 2003. Holm, *A
      Simple Sequentially Rejective Multiple Test Procedure*, 1979. BCa: Efron, *Better Bootstrap
      Confidence Intervals*, 1987; expanded: Hesterberg, *What Teachers Should Know About the
      Bootstrap*, 2015. Groups: Liang and Zeger, *Longitudinal Data Analysis Using
      Generalized Linear Models*, 1986.
    """
    fn = "compare"
    with _check.needed(fn, "SciPy"):
        from scipy.special import stdtr, stdtrit
    names, columns = check_paired_losses(fn, losses)
    count = len(columns)
    w = check_weights(fn, weights, count)
    group = check_groups(fn, groups, count)
    kept = w > 0
    check_finite_losses(fn, names, columns, kept)
    confidence = _check.strictly_between(fn, "confidence", confidence)
    least, why = least_resamples(confidence), f" at confidence {confidence:g}"
    resamples = _check.whole(fn, "resamples", resamples, least, why)
    seed = _check.whole(fn, "seed", seed, 0)
    overlap = check_test_fraction(fn, test_fraction, weights, groups)

    columns, w = columns[kept], w[kept] / np.sum(w[kept])
    group = None if group is None else np.unique(group[kept], return_inverse=True)[1]
    shares = _sums_by(group, w)
    units = len(shares)
    check_at_least_two(fn, "rows" if group is None else "groups", units)
    wider = float(np.sqrt(1 + units * overlap))
    t = float(stdtrit(units - 1, (1 + confidence) / 2))
    reach = t * float(np.sqrt(units / (units - 1)))

    def estimate(d: Float[np.ndarray, " N"], size: float) -> tuple[float, np.ndarray, float]:
        """Compute d̄, u and s; `size` is the largest of the losses that d is made from."""
        mean = float(np.sum(w * d))
        u = _sums_by(group, w * (d - mean))
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * size
        if np.all(np.abs(u) <= rounding * shares):
            return (mean if abs(mean) > rounding else 0.0), np.zeros(units), 0.0
        return mean, u, wider * float(np.sqrt(units / (units - 1) * np.sum(u**2)))

    models = []
    for name, a in zip(names, columns.T, strict=True):
        mean, _, s = estimate(a, 0.0)
        models.append(Model(name, mean, s, mean - t * s, mean + t * s))
    order = sorted(range(len(models)), key=lambda m: models[m].mean)
    models, columns = [models[m] for m in order], columns[:, order]
    sizes = np.max(np.abs(columns), axis=0)
    places = [(m, n) for m in range(len(models)) for n in range(m + 1, len(models))]
    estimates = {
        (m, n): estimate(columns[:, n] - columns[:, m], max(sizes[m], sizes[n])) for m, n in places
    }

    # Resample the differences of neighbours in rank; every other pair's is a sum of these.
    steps = np.stack([estimates[m, m + 1][1] for m in range(len(models) - 1)], axis=1)
    moved = wider * np.cumsum(resampled_means(steps, shares, resamples, seed), axis=1)
    moved = np.pad(moved, ((0, 0), (1, 0)))

    tests, figures = [], []
    for m, n in places:
        mean, u, s = estimates[m, n]
        move = moved[:, n] - moved[:, m] if s > 0 else np.zeros(resamples)
        low, high = (mean, mean) if s == 0 else mean + _bca(move, u, s, reach)
        tests.append(2 * float(stdtr(units - 1, -abs(mean) / s)) if s > 0 else float(mean == 0))
        better = 1 - _share_below(mean + move, _TIE * s)
        figures.append((mean, s, mean - t * s, mean + t * s, float(low), float(high), better))
    pairs = tuple(
        Difference(
            models[m].name, models[n].name, *figure, p, corrected, corrected <= 1 - confidence
        )
        for (m, n), figure, p, corrected in zip(places, figures, tests, _holm(tests), strict=True)
    )
    return Comparison(
        models=tuple(models),
        pairs=pairs,
        rows=len(w),
        groups=None if group is None else units,
        weighted=weights is not None,
        test_fraction=None if test_fraction is None else float(test_fraction),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _sums_by(
    group: Integer[np.ndarray, " N"] | None, x: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " G"]:
    """Sum x over each group."""
    return x if group is None else np.bincount(group, weights=x)


def _share_below(x: Float[np.ndarray, " R"], tie: float) -> float:
    """Compute the share of x below 0, those at 0 counted half."""
    return float(np.mean((x < -tie) + 0.5 * (np.abs(x) <= tie)))


def _bca(
    move: Float[np.ndarray, " R"], u: Float[np.ndarray, " G"], s: float, reach: float
) -> Float[np.ndarray, "2"]:
    """Compute the ends of the bootstrap's interval about the mean: percentiles α₁, α₂ of the moves.

    α = Φ(z₀ + (z₀ + z)/(1 − a (z₀ + z)))     z = ∓ t √(G/(G−1))
    z₀ = Φ⁻¹(share of moves below 0)           a = Σ u³ / 6 (Σ u²)^(3/2)

    Efron's has Φ⁻¹ in the place of t √(G/(G−1)). With few groups that is too narrow, since moves
    spread less than s by that root and s is itself uncertain.
    """
    from scipy.special import ndtr, ndtri

    half = 0.5 / len(move)
    z0 = ndtri(np.clip(_share_below(move, _TIE * s), half, 1 - half))
    a = np.sum(u**3) / (6 * np.sum(u**2) ** 1.5)
    z = z0 + np.array([-reach, reach])
    levels = ndtr(z0 + z / np.maximum(1 - a * z, np.finfo(np.float64).tiny))
    return np.quantile(move, levels)


def _holm(p: list[float]) -> list[float]:
    """Correct m p values: the k-th smallest times m − k + 1, never below a smaller one's."""
    order = np.argsort(p, kind="stable")
    times = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1, times * np.asarray(p)[order]))
    return [float(c) for c in corrected]
