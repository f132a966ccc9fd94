"""What every loss should be: float64 NumPy, written from the mathematics, free of jxent and JAX.

A row of logits z over the kept classes, with a target row T ≥ 0 (labels are one-hot, smoothing and
class weights are in T), is

    loss = Σ_v T_v nll_v        nll_v = −log p_v        ∂loss/∂z = (ΣT) p − T

Confident rows keep their digits in float64 as well: nll_v = (m − z_v) + log1p(S), where S is the
sum of exp(z − m) without the maximum itself, and p_v − 1 = expm1(−nll_v).

Each function returns the loss, its gradients written out by hand (for a `cotangent` of the loss),
and for each of them the sum of its absolute terms: what an error is measured against where terms
cancel.  0·∞ is 0 throughout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Axis = int | Sequence[int] | None


@dataclass(frozen=True)
class Loss:
    """A loss, its gradients by argument name, and the sums of absolute terms ("value" included)."""

    value: Array
    gradient: dict[str, Array]
    scale: dict[str, Array]


def times(w: Any, x: Any) -> Array:
    """w·x, where 0·∞ = 0·NaN = 0 for a zero w."""
    w, x = np.broadcast_arrays(np.asarray(w, np.float64), np.asarray(x, np.float64))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(w == 0, 0.0, w * x)


def _f64(x: Any) -> Array:
    return np.asarray(x).astype(np.float64)


@dataclass(frozen=True)
class Row:
    """p, nll, lse of each row; classes that are not kept have p = 0 and nll = ∞."""

    m: Array
    log1p_S: Array
    nll: Array
    p: Array
    p_minus_1: Array

    @property
    def lse(self) -> Array:
        return self.m + self.log1p_S


def row(z: Any) -> Row:
    """The statistics of rows of logits [*n, V]; NaN for NaN, +inf and all −inf."""
    z = _f64(z)
    m = z.max(axis=-1)
    bad = ~np.isfinite(m)
    z = np.where(bad[..., None], 0.0, z)
    top = np.where(bad, 0.0, m)[..., None]
    below = z < top
    exp = np.exp(z - top)
    S = np.where(below, exp, 0).sum(-1) + (np.sum(~below, axis=-1) - 1)
    nll = (top - z) + np.log1p(S)[..., None]
    nan = np.where(bad, np.nan, 0.0)
    return Row(
        m=np.where(bad, np.nan, m),
        log1p_S=np.log1p(S) + nan,
        nll=nll + nan[..., None],
        p=exp / (1 + S)[..., None] + nan[..., None],
        p_minus_1=np.expm1(-nll) + nan[..., None],
    )


def is_labels(logits: Any, targets: Any) -> bool:
    return np.ndim(targets) == np.ndim(logits) - 1


def label_weights(
    labels: Any,
    *,
    where: Any = None,
    ignore_index: int | None = None,
    class_weights: Any = None,
    row_weights: Any = None,
) -> Array:
    """(kept?) × row weight × c_y of each label: their sum is what "mean" divides by."""
    y = np.asarray(labels)
    kept = np.ones(y.shape, bool) if where is None else np.asarray(where)
    if kept.ndim > y.ndim:
        kept = kept.any(-1)
    if ignore_index is not None:
        kept = kept & (y != ignore_index)
    w = np.ones(y.shape) if row_weights is None else _f64(row_weights)
    c = np.ones(y.shape)
    if class_weights is not None:
        C = _f64(class_weights)
        inside = (y >= 0) & (y < C.size)
        c = np.where(inside, C[np.where(inside, y, 0)], np.nan)
    return np.where(kept, times(w, c), 0.0)


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    where: Any = None,
    ignore_index: int | None = None,
    class_weights: Any = None,
    row_weights: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: str = "mean",
    normalizer: Any = None,
    cotangent: Any = 1.0,
) -> Loss:
    """Cross-entropy with every option; gradients of all its arguments that are numbers."""
    u = _f64(logits)
    V = u.shape[-1]
    rows = u.shape[:-1]
    eps, zeta, kappa = label_smoothing, z_loss, logit_softcap

    # Which rows and which classes count.
    kept, mask = np.ones(rows, bool), np.ones(u.shape, bool)
    if where is not None and np.ndim(where) == u.ndim:
        mask = np.asarray(where, bool)
        kept = mask.any(-1)
    elif where is not None:
        kept = np.asarray(where, bool)
    if ignore_index is not None:
        kept = kept & (np.asarray(targets) != ignore_index)
    K = np.maximum(mask.sum(-1, keepdims=True), 1)

    # Targets t; the rows at fault.
    if is_labels(u, targets):
        t = (np.arange(V) == np.asarray(targets)[..., None]).astype(np.float64)
        wrong_target = ~np.any((t > 0) & mask, axis=-1)
    else:
        t = _f64(targets)
        wrong_target = np.any((t != 0) & ~mask | np.isnan(t), axis=-1)
    wrong_logits = np.any(mask & (np.isnan(u) | (u == np.inf)), axis=-1)
    wrong_logits |= np.all(~mask | (u == -np.inf), axis=-1)
    fault = wrong_target | wrong_logits
    healthy = (kept & ~fault)[..., None]

    # z = κ tanh(u/κ).
    z = np.where(healthy & mask, u, -np.inf)
    z = np.where(healthy, z, 0.0)
    slope = np.ones_like(z)
    if kappa is not None:
        e = np.exp(-2 * np.abs(z) / kappa)
        slope = 4 * e / (1 + e) ** 2
        z = np.where(z == -np.inf, z, kappa * np.tanh(z / kappa))

    r = row(z)
    nan = np.where(fault & kept, np.nan, 0.0)
    nll = np.where(mask, r.nll, 0.0) + nan[..., None]
    lse, lse_scale = r.lse + nan, np.abs(r.m) + r.log1p_S + nan
    p, p_minus_1 = r.p + nan[..., None], r.p_minus_1 + nan[..., None]

    # T = c ⊙ ((1−ε) t + ε/K) over the kept classes.
    C = np.ones(V) if class_weights is None else _f64(class_weights)
    c = np.where(mask, C, 0.0)
    share = np.where(mask, eps / K, 0.0)
    own = (1 - eps) * np.where(mask, t, 0.0)
    T = c * (own + share)
    mass = T.sum(-1, keepdims=True)

    target_nan = np.where(wrong_target & kept, np.nan, 0.0)
    loss = times(T, nll).sum(-1) + times(zeta, lse**2) + target_nan
    loss_scale = times(np.abs(T), nll).sum(-1) + times(zeta, lse_scale**2)

    # (ΣT) p_v − T_v = T_v (p_v − 1) + (ΣT − T_v) p_v, where nothing cancels.
    dz = times(T, p_minus_1) + times(mass - T, p) + times(zeta, 2 * lse[..., None] * p)
    dz = dz + target_nan[..., None]
    c_own, c_share = np.abs(c * own), np.abs(c * share)
    if is_labels(u, targets):
        dz_scale = times(c_own, 1 - p) + times(c_own.sum(-1, keepdims=True) - c_own, p)
    else:
        dz_scale = times(c_own.sum(-1, keepdims=True), p) + c_own
    dz_scale = dz_scale + times(c_share.sum(-1, keepdims=True), p) + c_share
    dz_scale = dz_scale + times(zeta, 2 * lse_scale[..., None] * p)

    # Each row's weight: w and its (average) class weight.
    w = np.ones(rows) if row_weights is None else _f64(row_weights)
    w = np.where(kept, w, 0.0)
    total_t = np.where(mask, t, 0.0).sum(-1)
    safe = np.where(total_t == 0, 1, total_t)
    c_bar = np.where(total_t == 0, 0, (c * t).sum(-1) / safe)
    dc_bar_dt = np.where(
        mask & (total_t != 0)[..., None], (c - c_bar[..., None]) / safe[..., None], 0
    )
    dc_bar_dt_scale = np.where(mask, (np.abs(c) + np.abs(c_bar)[..., None]) / safe[..., None], 0)
    dc_bar_dc = np.where(mask & (total_t != 0)[..., None], t / safe[..., None], 0)
    if class_weights is None:
        c_bar, dc_bar_dt, dc_bar_dt_scale = np.ones(rows), np.zeros(u.shape), np.zeros(u.shape)
    elif is_labels(u, targets):
        c_bar = np.where((t > 0).any(-1), c_bar, np.nan)
    weights = times(w, c_bar)

    # rows → number: value = Σ G·row with G = g/D, and D itself depends on the weights.
    g = np.broadcast_to(_f64(cotangent), rows if reduction == "none" else ())
    weighted, weighted_scale = times(w, loss), times(np.abs(w), loss_scale)
    total, total_scale = weighted.sum(), weighted_scale.sum()
    D, through_D = np.float64(1), np.float64(0)
    if reduction == "mean":
        D = weights.sum() if normalizer is None else _f64(normalizer)
    with np.errstate(divide="ignore", invalid="ignore"):
        G = np.where(D == 0, 0, g / D)
        value = np.where(D == 0, 0, total / D)
        value_scale = np.where(D == 0, 0, total_scale / np.abs(D))
        dD = np.where(D == 0, 0, -g * value / D)
        dD_scale = np.where(D == 0, 0, np.abs(g) * value_scale / np.abs(D))
    if reduction == "none":
        value, value_scale = weighted, weighted_scale
    if reduction == "mean" and normalizer is None:
        through_D, through_D_scale = dD, dD_scale
    else:
        through_D = through_D_scale = np.float64(0)

    Gw = times(w, G)
    each = Gw[..., None]
    class_axes = tuple(range(len(rows)))
    gradient = {
        "logits": times(each, dz * slope),
        "targets": times(each, times((1 - eps) * c, nll)) + through_D * w[..., None] * dc_bar_dt,
        "row_weights": np.where(kept, times(G, loss) + times(through_D, c_bar), 0.0),
        "class_weights": (
            times(each, times(own + share, nll)) + through_D * w[..., None] * dc_bar_dc
        ).sum(class_axes),
        "normalizer": dD,
    }
    aw = np.abs(w)[..., None]
    scale = {
        "value": value_scale,
        "logits": times(np.abs(each), dz_scale * slope),
        "targets": times(np.abs(each), times((1 - eps) * np.abs(c), nll))
        + through_D_scale * aw * dc_bar_dt_scale,
        "row_weights": np.where(
            kept, times(np.abs(G), loss_scale) + times(through_D_scale, np.abs(c_bar)), 0.0
        ),
        "class_weights": (
            times(np.abs(each), times(own + share, nll)) + through_D_scale * aw * dc_bar_dc
        ).sum(class_axes),
        "normalizer": dD_scale,
    }
    return Loss(value, gradient, scale)


def _axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in ((axis,) if isinstance(axis, int) else axis))


def classes_last(x: Any, axis: Axis) -> Array:
    """x with its class axes moved to the end and flattened into one."""
    x = np.asarray(x)
    axes = _axes(axis, x.ndim)
    batch = tuple(a for a in range(x.ndim) if a not in axes)
    moved = x.transpose(batch + axes)
    classes = int(np.prod(moved.shape[len(batch) :]))
    return moved.reshape(*moved.shape[: len(batch)], classes)


def classes_back(x: Array, axis: Axis, shape: tuple[int, ...]) -> Array:
    """The inverse of `classes_last` for an array of this shape."""
    axes = _axes(axis, len(shape))
    order = tuple(a for a in range(len(shape)) if a not in axes) + axes
    return x.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def _over_axis(fn: Any, axis: Axis, logits: Any, targets: Any, where: Any, **options: Any) -> Loss:
    shape = np.shape(logits)
    soft = np.ndim(targets) == len(shape)
    if where is not None and np.ndim(where) == len(shape):
        where = classes_last(where, axis)
    out = fn(
        classes_last(logits, axis),
        classes_last(targets, axis) if soft else targets,
        where=where,
        **options,
    )

    def back(by_name: dict[str, Array]) -> dict[str, Array]:
        full = ("logits", "log_predictions") + (
            ("targets", "labels", "log_targets") if soft else ()
        )
        return {k: classes_back(v, axis, shape) if k in full else v for k, v in by_name.items()}

    return Loss(out.value, back(out.gradient), back(out.scale))


def softmax_cross_entropy(
    logits: Any, targets: Any, axis: Axis = -1, where: Any = None, **options: Any
) -> Loss:
    """Rows over any class axes, for labels and for distributions."""
    return _over_axis(cross_entropy, axis, logits, targets, where, reduction="none", **options)


def _rows_only(where: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(rows kept, classes kept) of an optional mask of rows or classes."""
    kept, mask = np.ones(shape[:-1], bool), np.ones(shape, bool)
    if where is None:
        return kept, mask
    if np.ndim(where) == len(shape):
        return np.asarray(where).any(-1), np.asarray(where, bool)
    return np.asarray(where, bool), mask


def _kept_row(z: Any, kept: Array, mask: Array) -> Row:
    z = np.where(mask, _f64(z), -np.inf)
    return row(np.where(kept[..., None], z, 0.0))


def softmax_focal_loss(
    logits: Any,
    targets: Any,
    *,
    gamma: float = 2.0,
    axis: Axis = -1,
    where: Any = None,
    class_weights: Any = None,
    cotangent: Any = 1.0,
) -> Loss:
    """Σ_v c_v t_v (1 − p_v)^γ nll_v, for a label c_y (1 − p_y)^γ nll_y (Lin et al., 2017).

    With φ(n) = (1 − e^−n)^γ n:   φ'(n) = u^γ + γ n p u^(γ−1), u = 1 − p,
    and ∂nll_v/∂z = p − e_v.
    """

    def rows(logits: Any, targets: Any, where: Any) -> Loss:
        V = np.shape(logits)[-1]
        kept, mask = _rows_only(where, np.shape(logits))
        r = _kept_row(logits, kept, mask)
        t = (
            (np.arange(V) == np.asarray(targets)[..., None]).astype(np.float64)
            if is_labels(logits, targets)
            else _f64(targets)
        )
        bad = np.any((t != 0) & ~mask, -1) | (t.sum(-1) == 0) & is_labels(logits, targets)
        nan = np.where(bad & kept, np.nan, 0.0)
        C = np.ones(V) if class_weights is None else _f64(class_weights)
        t = np.where(mask & kept[..., None], t, 0.0)
        n = np.where(t == 0, 1.0, r.nll)
        u, p = -np.expm1(-n), np.exp(-n)
        with np.errstate(divide="ignore", invalid="ignore"):
            phi = u**gamma * n
            slope = u**gamma + times(gamma, times(p, n) * u ** (gamma - 1))
            dgamma = times(phi, np.log(u))
        value = times(C * t, phi).sum(-1) + nan
        q = times(C * t, slope)
        g = np.broadcast_to(_f64(cotangent), value.shape)[..., None]
        # (Σq) p_v − q_v without cancellation, as in cross_entropy.
        dz = times(q, r.p_minus_1) + times(q.sum(-1, keepdims=True) - q, r.p) + nan[..., None]
        scale = times(q, 1 - r.p) + times(q.sum(-1, keepdims=True) - q, r.p)
        full_n = np.where(mask, r.nll, 0.0)
        full_phi = (-np.expm1(-full_n)) ** gamma * full_n
        gradient = {
            "logits": times(g, dz),
            "targets": times(g * kept[..., None], times(C, full_phi)),
            "class_weights": times(g, times(t, phi)).sum(tuple(range(value.ndim))),
            "gamma": times(g, times(C * t, dgamma)).sum(),
        }
        scales = {
            "value": np.abs(value),
            "logits": times(np.abs(g), scale),
            "class_weights": times(np.abs(g), times(t, phi)).sum(tuple(range(value.ndim))),
            "gamma": times(np.abs(g), np.abs(times(C * t, dgamma))).sum(),
        }
        return Loss(value, gradient, scales)

    return _over_axis(rows, axis, logits, targets, where)


def _of_nll(
    logits: Any,
    labels: Any,
    phi: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    by: dict[str, Callable[[Array], Array]],
    *,
    bound: tuple[Callable[[Array], Array], Callable[[Array], Array]] | None = None,
    axis: Axis = -1,
    where: Any = None,
    class_weights: Any = None,
    cotangent: Any = 1.0,
) -> Loss:
    """Σ_v c_v t_v φ(nll_v), with φ' and its derivatives `by` parameters; `bound`: of φ, φ' for
    terms that cancel.  ∂nll_v/∂z = p − e_v.
    """
    phi_bound, slope_bound = bound or (phi, slope)

    def rows(logits: Any, targets: Any, where: Any) -> Loss:
        V = np.shape(logits)[-1]
        kept, mask = _rows_only(where, np.shape(logits))
        r = _kept_row(logits, kept, mask)
        hard = is_labels(logits, targets)
        t = (np.arange(V) == np.asarray(targets)[..., None]).astype(np.float64)
        t = t if hard else _f64(targets)
        bad = np.any((t != 0) & ~mask, -1) | (t.sum(-1) == 0) & hard
        nan = np.where(bad & kept, np.nan, 0.0)
        C = np.ones(V) if class_weights is None else _f64(class_weights)
        t = np.where(mask & kept[..., None], t, 0.0)
        n, full = np.where(t == 0, 1.0, r.nll), np.where(mask, r.nll, 0.0)
        g = np.broadcast_to(_f64(cotangent), nan.shape)[..., None]
        q, size = times(C * t, slope(n)), times(np.abs(C * t), slope_bound(n))
        dz = times(q, r.p_minus_1) + times(q.sum(-1, keepdims=True) - q, r.p) + nan[..., None]
        dz_scale = times(size, 1 - r.p) + times(size.sum(-1, keepdims=True) - size, r.p)
        counts = kept[..., None] & mask
        gradient = {
            "logits": times(g, dz),
            "labels": times(g * counts, times(C, phi(full))),
            "class_weights": times(g, times(t, phi(n))).sum(tuple(range(nan.ndim))),
        }
        scale = {
            "value": times(np.abs(C * t), phi_bound(n)).sum(-1),
            "logits": times(np.abs(g), dz_scale if hard else dz_scale + size),
            "labels": times(np.abs(g) * counts, times(np.abs(C), phi_bound(full))),
            "class_weights": times(np.abs(g), times(t, phi_bound(n))).sum(tuple(range(nan.ndim))),
        }
        for name, derivative in by.items():
            terms = times(C * t, derivative(n))
            gradient[name] = times(g, terms).sum()
            scale[name] = times(np.abs(g), np.abs(terms)).sum()
        return Loss(times(C * t, phi(n)).sum(-1) + nan, gradient, scale)

    return _over_axis(rows, axis, logits, labels, where)


def poly_loss_cross_entropy(
    logits: Any, labels: Any, *, epsilon: Any = 2.0, **options: Any
) -> Loss:
    """Σ_v c_v t_v (nll_v + Σ_k ε_k u_v^k), u = 1 − p (Leng et al., 2022)."""
    eps = [float(e) for e in (epsilon if isinstance(epsilon, tuple) else (epsilon,))]

    def phi(eps: Sequence[float], n: Array) -> Array:
        return n + sum(e * (-np.expm1(-n)) ** k for k, e in enumerate(eps, 1))

    def slope(eps: Sequence[float], n: Array) -> Array:
        u, p = -np.expm1(-n), np.exp(-n)
        return 1 + sum(k * e * u ** (k - 1) * p for k, e in enumerate(eps, 1))

    size = np.abs(eps)
    return _of_nll(
        logits,
        labels,
        lambda n: phi(eps, n),
        lambda n: slope(eps, n),
        {"epsilon": lambda n: -np.expm1(-n)},
        bound=(lambda n: phi(size, n), lambda n: slope(size, n)),
        **options,
    )


def generalized_cross_entropy(logits: Any, labels: Any, *, q: Any = 0.7, **options: Any) -> Loss:
    """Σ_v c_v t_v (1 − p_v^q)/q; for q = 0 cross-entropy (Zhang and Sabuncu, 2018)."""
    q = float(q)

    def by_q(n: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return (times(np.exp(-q * n), n) + np.expm1(-q * n) / q) / q

    return _of_nll(
        logits,
        labels,
        lambda n: -np.expm1(-q * n) / q if q else n,
        lambda n: np.exp(-q * n) if q else np.ones_like(n),
        {"q": by_q} if q else {},
        **options,
    )


def symmetric_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    alpha: Any = 0.1,
    beta: Any = 1.0,
    log_zero: float = -4.0,
    axis: Axis = -1,
    where: Any = None,
    class_weights: Any = None,
    cotangent: Any = 1.0,
) -> Loss:
    """α Σ c_v t_v nll_v + β c̄ Σ p_v s_v, s_v = −max(log t_v, A), c̄ = Σ c t/Σ t (Wang et al., 2019).

    Labels are one-hot rows.
    """
    a, b = float(alpha), float(beta)

    def rows(logits: Any, targets: Any, where: Any) -> Loss:
        V = np.shape(logits)[-1]
        kept, mask = _rows_only(where, np.shape(logits))
        r = _kept_row(logits, kept, mask)
        hard = is_labels(logits, targets)
        t = (np.arange(V) == np.asarray(targets)[..., None]).astype(np.float64)
        t = t if hard else _f64(targets)
        C = np.ones(V) if class_weights is None else _f64(class_weights)
        bad = np.where(kept & hard & (t.sum(-1) == 0), np.nan, 0.0)
        counts = kept[..., None] & mask
        t = np.where(counts, t, 0.0)
        mass = t.sum(-1)
        some = np.where(mass == 0, 1.0, mass)
        c = np.ones(mass.shape) if class_weights is None else (C * t).sum(-1) / some
        with np.errstate(divide="ignore"):
            s = -np.maximum(np.log(t), log_zero)
        p = np.where(counts, r.p, 0.0)
        other, size = (p * s).sum(-1), (p * np.abs(s)).sum(-1)
        g = np.broadcast_to(_f64(cotangent), other.shape)
        options = dict(where=where, reduction="none", class_weights=C, cotangent=g)
        one = cross_entropy(logits, t, **options)
        known = t > np.exp(log_zero)
        back = times(p, s - other[..., None])
        if hard:  # −|A| p_v (e_y − p_y), where nothing cancels
            y = (t > 0) & counts
            p_y = (p * y).sum(-1, keepdims=True)
            back = log_zero * np.where(y, -times(p, r.p_minus_1), -p * p_y)
        fall = c[..., None] * np.where(known, -p / np.where(known, t, 1), 0.0)
        # ∂c̄/∂t_v = (c_v − c̄)/Σ t, ∂c̄/∂c_v = t_v/Σ t
        lift = np.where(mass == 0, 0.0, other / some)[..., None] * (C - c[..., None])
        lift = np.zeros_like(t) if class_weights is None else lift
        spread = p * (np.abs(s) + size[..., None])
        spread = np.abs(back) if hard else spread
        share, G = t / some[..., None], g[..., None]
        every = tuple(range(g.ndim))
        gradient = {
            "logits": a * one.gradient["logits"]
            + b * times(G * c[..., None], back)
            + bad[..., None],
            "labels": a * one.gradient["targets"] + b * times(G * counts, fall + lift),
            "class_weights": a * one.gradient["class_weights"]
            + b * times(G * share, other[..., None]).sum(every),
            "alpha": times(g, one.value).sum(),
            "beta": times(g, c * other).sum(),
        }
        scale = {
            "value": a * one.scale["value"] + b * c * size,
            "logits": a * one.scale["logits"] + b * times(np.abs(G) * c[..., None], spread),
            "labels": a * one.scale["targets"]
            + b * times(np.abs(G) * counts, np.abs(fall) + np.abs(lift)),
            "class_weights": a * one.scale["class_weights"]
            + b * times(np.abs(G) * share, size[..., None]).sum(every),
            "alpha": times(np.abs(g), one.value).sum(),
            "beta": times(np.abs(g), c * size).sum(),
        }
        return Loss(times(a, one.value) + b * c * other + bad, gradient, scale)

    return _over_axis(rows, axis, logits, labels, where)


def ldam(
    logits: Any, labels: Any, margins: Any, *, where: Any = None, cotangent: Any = 1.0
) -> Loss:
    """Cross-entropy of logits of which each label's is Δ_y less (Cao et al., 2019)."""
    one_hot = np.arange(np.shape(logits)[-1]) == np.asarray(labels)[..., None]
    z = _f64(logits)
    m = z.max(-1, keepdims=True)
    z = z - np.where(np.isfinite(m), m, 0)  # first, or a margin is lost in 3e38
    out = cross_entropy(
        z - np.where(one_hot, _f64(margins), 0),
        labels,
        where=where,
        reduction="none",
        cotangent=cotangent,
    )
    rows = tuple(range(np.ndim(labels)))
    dz, size = out.gradient["logits"], out.scale["logits"]
    return Loss(
        out.value,
        {"logits": dz, "margins": -times(one_hot, dz).sum(rows)},
        {"value": out.scale["value"], "logits": size, "margins": times(one_hot, size).sum(rows)},
    )


def kl_divergence(
    log_predictions: Any,
    targets: Any,
    axis: Axis = -1,
    where: Any = None,
    *,
    cotangent: Any = 1.0,
) -> Loss:
    """Σ_v t_v (log t_v − q_v), q in log space; ∂/∂t_v = log t_v + 1 − q_v."""

    def rows(q: Any, t: Any, where: Any) -> Loss:
        q, t = _f64(q), _f64(t)
        kept, mask = _rows_only(where, q.shape)
        counts = mask & kept[..., None]
        t = np.where(counts, t, 0.0)
        q = np.where(counts, q, 0.0)
        with np.errstate(divide="ignore"):
            log_t = np.log(t)
        value = times(t, log_t - np.where(t == 0, 0, q)).sum(-1)
        scale = times(t, np.abs(log_t) + np.abs(np.where(t == 0, 0, q))).sum(-1)
        g = np.broadcast_to(_f64(cotangent), value.shape)[..., None]
        with np.errstate(invalid="ignore"):
            dt = log_t + 1 - q
        gradient = {"log_predictions": times(g, -t), "targets": times(g * counts, dt)}
        scales = {
            "value": scale,
            "log_predictions": times(np.abs(g), t),
            "targets": times(np.abs(g) * counts, np.abs(log_t) + 1 + np.abs(q)),
        }
        return Loss(value, gradient, scales)

    return _over_axis(rows, axis, log_predictions, targets, where)


def kl_divergence_with_log_targets(
    log_predictions: Any,
    log_targets: Any,
    axis: Axis = -1,
    where: Any = None,
    *,
    cotangent: Any = 1.0,
) -> Loss:
    """Σ_v e^l_v (l_v − q_v), both in log space; ∂/∂l_v = e^l_v (l_v − q_v + 1)."""

    def rows(q: Any, log_t: Any, where: Any) -> Loss:
        q, log_t = _f64(q), _f64(log_t)
        kept, mask = _rows_only(where, q.shape)
        counts = mask & kept[..., None]
        t = np.where(counts, np.exp(log_t), 0.0)
        log_t, q = np.where(t == 0, 0.0, log_t), np.where(t == 0, 0.0, q)
        value = times(t, log_t - q).sum(-1)
        g = np.broadcast_to(_f64(cotangent), value.shape)[..., None]
        gradient = {
            "log_predictions": times(g, -t),
            "log_targets": times(g, times(t, log_t - q + 1)),
        }
        scales = {
            "value": times(t, np.abs(log_t) + np.abs(q)).sum(-1),
            "log_predictions": times(np.abs(g), t),
            "log_targets": times(np.abs(g), times(t, np.abs(log_t) + np.abs(q) + 1)),
        }
        return Loss(value, gradient, scales)

    return _over_axis(rows, axis, log_predictions, log_targets, where)


def _softplus(x: Array) -> Array:
    """log(1 + e^x) = −log σ(−x)."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _total(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an argument that was broadcast from `shape`."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    stretched = tuple(a for a, size in enumerate(shape) if size == 1)
    return x.sum(stretched, keepdims=True)


def _of_entries(loss: Callable[..., Loss]) -> Callable[..., Loss]:
    """A loss of every logit, of those kept, times what each or its row weighs, reduced."""

    def weighed(
        logits: Any,
        labels: Any,
        *,
        where: Any = None,
        row_weights: Any = None,
        reduction: str = "none",
        normalizer: Any = None,
        cotangent: Any = 1.0,
        **options: Any,
    ) -> Loss:
        x, y = _f64(logits), _f64(labels)
        over = lambda a: np.broadcast_to(a if a.ndim == x.ndim else a[..., None], x.shape)
        kept = over(np.array(True) if where is None else np.asarray(where))
        w = _f64(np.ones(x.shape) if row_weights is None else row_weights)
        weight = np.where(kept, over(w), 0.0)
        D = weight.sum() if normalizer is None else float(normalizer)
        share = 1.0 if reduction != "mean" else 1 / D if D else 0.0
        g = np.where(kept, share * np.broadcast_to(_f64(cotangent), x.shape), 0.0)
        clean = np.where(kept, y, 0.0) if y.shape == x.shape else y
        out = loss(np.where(kept, x, 0.0), clean, **options, cotangent=g * weight)
        rows, rows_scale = times(weight, out.value), times(np.abs(weight), out.scale["value"])
        value, scale = (a if reduction == "none" else a.sum() * share for a in (rows, rows_scale))
        own = share if reduction == "mean" and normalizer is None else 0.0  # w in the denominator
        total = lambda a: a.sum(-1) if w.ndim < x.ndim else a
        of_weights = total(times(g, out.value - (value if own else 0.0)))
        of_weights_scale = total(times(np.abs(g), out.value + (scale if own else 0.0)))
        of_normalizer = -np.sum(cotangent * value) * share
        return Loss(
            value,
            {**out.gradient, "row_weights": of_weights, "normalizer": of_normalizer},
            {
                **out.scale,
                "value": scale,
                "row_weights": of_weights_scale,
                "normalizer": np.abs(of_normalizer),
            },
        )

    return weighed


@_of_entries
def sigmoid_binary_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    cotangent: Any = 1.0,
) -> Loss:
    """w y log(1 + e^−x) + (1 − y) log(1 + e^x), y ← (1−ε) y + ε/2 (two classes)."""
    x = _f64(logits)
    labels = _f64(labels)
    w = _f64(1.0 if pos_weight is None else pos_weight)
    y = (1 - label_smoothing) * labels + label_smoothing / 2
    g = np.broadcast_to(_f64(cotangent), x.shape)
    positive, negative = _softplus(-x), _softplus(x)
    value = times(w * y, positive) + times(1 - y, negative)
    gradient = {
        "logits": g * ((1 - y) * _sigmoid(x) - w * y * _sigmoid(-x)),
        "labels": _total(g * (1 - label_smoothing) * (w * positive - negative), labels.shape),
        "pos_weight": _total(g * times(y, positive), w.shape),
    }
    scale = {
        "value": np.abs(value),
        "logits": np.abs(g) * ((1 - y) * _sigmoid(x) + w * y * _sigmoid(-x)),
        "labels": _total(
            np.abs(g) * (1 - label_smoothing) * (w * positive + negative), labels.shape
        ),
        "pos_weight": _total(np.abs(g) * times(y, positive), w.shape),
    }
    return Loss(value, gradient, scale)


@_of_entries
def sigmoid_focal_loss(
    logits: Any,
    labels: Any,
    *,
    alpha: Any = None,
    gamma: Any = 2.0,
    cotangent: Any = 1.0,
) -> Loss:
    """A·u^γ·ce with ce the binary cross-entropy, u = 1 − p_t = y σ(−x) + (1 − y) σ(x) and
    A = α y + (1 − α)(1 − y), 1 without α (Lin et al., 2017; soft labels as in optax).
    """
    x = _f64(logits)
    labels = _f64(labels)
    y = np.broadcast_to(labels, x.shape)
    gamma = _f64(gamma)
    p, q = _sigmoid(x), _sigmoid(-x)
    ce = times(y, _softplus(-x)) + times(1 - y, _softplus(x))
    u = y * q + (1 - y) * p
    A, dA_dy = np.ones_like(x), np.zeros_like(x)
    if alpha is not None:
        A = alpha * y + (1 - alpha) * (1 - y)
        dA_dy = np.broadcast_to(2 * _f64(alpha) - 1, x.shape)
    g = np.broadcast_to(_f64(cotangent), x.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = u**gamma
        slope = times(gamma, u ** (gamma - 1))
        log_u = times(ce, np.log(u))
    dce_dx = (1 - y) * p - y * q
    du_dx = (1 - 2 * y) * p * q
    value = A * power * ce
    gradient = {
        "logits": g * A * (power * dce_dx + times(times(du_dx, ce), slope)),
        "labels": _total(
            g * (dA_dy * power * ce + A * (-x * power + times(ce * (q - p), slope))), labels.shape
        ),
        "alpha": (g * (2 * y - 1) * power * ce).sum(),
        "gamma": _total(g * A * times(power, log_u), gamma.shape),
    }
    scale = {
        "value": np.abs(value),
        "logits": np.abs(g * A)
        * (power * ((1 - y) * p + y * q) + times(times(np.abs(du_dx), ce), slope)),
    }
    return Loss(value, gradient, scale)


@_of_entries
def asymmetric_loss(
    logits: Any,
    labels: Any,
    *,
    gamma_pos: Any = 0.0,
    gamma_neg: Any = 4.0,
    clip: float = 0.05,
    cotangent: Any = 1.0,
) -> Loss:
    """−y (1−p)^γ₊ log p − (1−y) u^γ₋ log(1−u), u = max(p − m, 0) (Ridnik et al., 2020)."""
    x, labels = _f64(logits), _f64(labels)
    y = np.broadcast_to(labels, x.shape)
    pos, neg = _f64(gamma_pos), _f64(gamma_neg)
    p, q = _sigmoid(x), _sigmoid(-x)
    g = np.broadcast_to(_f64(cotangent), x.shape)
    u = np.maximum(p - clip, 0.0)
    rest = np.where(u > 0, q + clip, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.where(rest > 0.5, -np.log1p(-u), -np.log(rest)) if clip else _softplus(x)
        yes, no = times(q**pos, _softplus(-x)), times(u**neg, surprise)
        dyes = -times(q**pos, q) - times(pos, times(q**pos * p, _softplus(-x)))
        inside = np.where(u > 0, p * q, 0.0)
        dno = times(neg, times(inside, times(np.where(u > 0, u, 1) ** (neg - 1), surprise)))
        dno = dno + u**neg * (inside / rest if clip else p)
        dpos, dneg = times(yes, np.log(q)), times(no, np.where(u > 0, np.log(u), 0))
    gradient = {
        "logits": g * (times(y, dyes) + times(1 - y, dno)),
        "labels": _total(g * (yes - no), labels.shape),
        "gamma_pos": _total(g * times(y, dpos), pos.shape),
        "gamma_neg": _total(g * times(1 - y, dneg), neg.shape),
    }
    scale = {
        "value": times(y, yes) + times(1 - y, no),
        "logits": np.abs(g) * (times(y, -dyes) + times(1 - y, dno)),
        "labels": _total(np.abs(g) * (yes + no), labels.shape),
    }
    return Loss(times(y, yes) + times(1 - y, no), gradient, scale)


def linear_cross_entropy(
    hidden: Any,
    head: Any,
    labels: Any,
    *,
    bias: Any = None,
    class_mask: Any = None,
    head_layout: str = "dv",
    where: Any = None,
    ignore_index: int | None = None,
    **options: Any,
) -> Loss:
    """Cross-entropy of z = h·W + b: dh = dz·Wᵀ, dW = hᵀ·dz, db = Σ dz.  0·∞ = 0 in the products.

    Classes that `class_mask` excludes are excluded in every row; whatever W and b hold there.
    """
    h = _f64(hidden)
    W = _f64(head) if head_layout == "dv" else _f64(head).T
    W, b, where = _in_kept_classes(W, bias, class_mask, where, h.shape[:-1])
    kept = np.ones(h.shape[:-1], bool) if where is None else where
    kept = kept if kept.ndim < h.ndim else kept.any(-1)
    if ignore_index is not None:
        kept = kept & (np.asarray(labels) != ignore_index)
    h = np.where(kept[..., None], h, 0.0)
    with np.errstate(invalid="ignore"):
        z = h @ W + b
    out = cross_entropy(z, labels, where=where, ignore_index=ignore_index, **options)
    rows = tuple(range(h.ndim - 1))

    def back(dz: Array, h: Array, W: Array) -> dict[str, Array]:
        dW = times(dz[..., None, :], h[..., :, None]).sum(rows)
        return {
            "hidden": times(dz[..., None, :], W).sum(-1),
            "head": dW if head_layout == "dv" else dW.T,
            "bias": dz.sum(rows),
        }

    own = lambda by: {"labels" if k == "targets" else k: x for k, x in by.items() if k != "logits"}
    return Loss(
        out.value,
        own(out.gradient) | back(out.gradient["logits"], h, W),
        own(out.scale) | back(out.scale["logits"], np.abs(h), np.abs(W)),
    )


def _in_kept_classes(
    W: Array, bias: Any, class_mask: Any, where: Any, rows: tuple[int, ...]
) -> tuple[Array, Array, Any]:
    """Head and bias, 0 in excluded classes, and which rows, or classes of which rows, count."""
    b = np.zeros(W.shape[1]) if bias is None else _f64(bias)
    where = None if where is None else np.asarray(where, bool)
    if class_mask is None:
        return W, b, where
    mask = np.asarray(class_mask, bool)
    kept = np.ones(rows, bool) if where is None else where
    return np.where(mask, W, 0.0), np.where(mask, b, 0.0), kept[..., None] & mask


def _log_mixture(share: float, log_p: Array, log_q: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.logaddexp(np.log(share) + log_p, np.log1p(-share) + log_q)


def distillation_loss(
    student_logits: Any,
    teacher_logits: Any,
    *,
    temperature: Any = 1.0,
    hard_labels: Any = None,
    alpha: Any = None,
    divergence: str = "forward",
    beta: float = 0.5,
    where: Any = None,
    ignore_index: int | None = None,
    row_weights: Any = None,
    reduction: str = "mean",
    normalizer: Any = None,
    cotangent: Any = 1.0,
) -> Loss:
    """α T² D(p, q) + (1 − α) nll_y, p and q = softmax of teacher/T and student/T (Hinton, 2015).

    KL(p‖q) = Σ p log(p/q): by q's logits q − p, by p's p (log(p/q) − KL); the mixture's divergence
    (Lin, 1991) by q's (1−β) q (log(q/m) − KL(q‖m)).
    """
    s, t, T = _f64(student_logits), _f64(teacher_logits), float(temperature)
    kept, mask = _rows_only(where, s.shape)
    if ignore_index is not None:
        kept = kept & (np.asarray(hard_labels) != ignore_index)
    s, t = (np.where(kept[..., None], np.where(mask, z, -np.inf), 0.0) for z in (s, t))
    r_q, r_p = row(s / T), row(t / T)
    p, q, log_p, log_q = r_p.p, r_q.p, -r_p.nll, -r_q.nll

    def kl(p: Array, log_p: Array, log_q: Array) -> tuple[Array, Array, Array, Array]:
        """The divergence, its terms' sum, its slope by p's logits, and that one's scale."""
        with np.errstate(invalid="ignore"):
            terms = times(p, log_p - log_q)
            sizes = np.abs(terms)
        D, size = terms.sum(-1), sizes.sum(-1)
        with np.errstate(invalid="ignore"):
            slope = terms - times(p, D[..., None])
        return D, size, slope, sizes + times(p, size[..., None])

    if divergence == "forward":
        D, size, by_t, t_size = kl(p, log_p, log_q)
        by_s, s_size = q - p, q + p
    elif divergence == "reverse":
        D, size, by_s, s_size = kl(q, log_q, log_p)
        by_t, t_size = p - q, q + p
    else:
        log_m = _log_mixture(beta, log_p, log_q)
        of_p, of_q = kl(p, log_p, log_m), kl(q, log_q, log_m)
        D, size = (beta * x + (1 - beta) * y for x, y in zip(of_p[:2], of_q[:2], strict=True))
        by_s, s_size = ((1 - beta) * x for x in of_q[2:])
        by_t, t_size = (beta * x for x in of_p[2:])
    by_T = 2 * T * D - times(by_s, s).sum(-1) - times(by_t, t).sum(-1)
    T_size = 2 * T * size + (times(s_size, np.abs(s)) + times(t_size, np.abs(t))).sum(-1)

    a = 1.0 if hard_labels is None else 0.5 if alpha is None else float(alpha)
    hard, by_hard, hard_size = np.zeros(D.shape), np.zeros(s.shape), np.zeros(s.shape)
    if hard_labels is not None:
        e_y = np.arange(s.shape[-1]) == np.asarray(hard_labels)[..., None]
        r = row(s)
        hard = np.where(e_y, r.nll, 0.0).sum(-1)
        hard = np.where(e_y.any(-1), hard, np.nan)
        by_hard = np.where(e_y, r.p_minus_1, r.p)
        hard_size = np.where(e_y, 1 - r.p, r.p)
    value = times(a * T**2, D) + times(1 - a, hard)
    value_size = times(a * T**2, size) + times(1 - a, hard)

    w = np.where(kept, 1.0 if row_weights is None else _f64(row_weights), 0.0)
    g = np.broadcast_to(_f64(cotangent), value.shape if reduction == "none" else ())
    total, through = np.float64(1), np.float64(0)
    if reduction == "mean":
        total = w.sum() if normalizer is None else _f64(normalizer)
    G = np.where(total == 0, 0, g / np.where(total == 0, 1, total))
    out, out_size = times(w, value), times(np.abs(w), value_size)
    if reduction != "none":
        out, out_size = (G / np.where(g == 0, 1, g) * x.sum() for x in (out, out_size))
    if reduction == "mean" and normalizer is None:
        through = -G * out
    Gw = times(w, G)
    each = Gw[..., None]
    gradient = {
        "student_logits": times(each, a * T * by_s + (1 - a) * by_hard),
        "teacher_logits": times(each, a * T * by_t),
        "row_weights": np.where(kept, times(G, value) + through, 0.0),
        "temperature": times(Gw, a * by_T).sum(),
        "alpha": times(Gw, T**2 * D - hard).sum(),
    }
    scale = {
        "value": out_size,
        "student_logits": times(np.abs(each), a * T * s_size + (1 - a) * hard_size),
        "teacher_logits": times(np.abs(each), a * T * t_size),
        "row_weights": np.where(kept, times(np.abs(G), value_size) + np.abs(through), 0.0),
        "temperature": times(np.abs(Gw), a * T_size).sum(),
        "alpha": times(np.abs(Gw), T**2 * size + hard).sum(),
    }
    return Loss(out, gradient, scale)


def linear_distillation_loss(
    student_hidden: Any,
    student_head: Any,
    teacher_hidden: Any,
    teacher_head: Any,
    *,
    student_bias: Any = None,
    teacher_bias: Any = None,
    class_mask: Any = None,
    head_layout: str = "dv",
    teacher_head_layout: str | None = None,
    where: Any = None,
    **options: Any,
) -> Loss:
    """The same of z = h·W + b for each: dh = dz·Wᵀ, dW = hᵀ·dz, db = Σ dz."""
    names, logits, sides = ("student", "teacher"), [], []
    layouts = head_layout, teacher_head_layout or head_layout
    given = (
        (student_hidden, student_head, student_bias),
        (teacher_hidden, teacher_head, teacher_bias),
    )
    for (h, W, b), layout in zip(given, layouts, strict=True):
        h, W = _f64(h), _f64(W) if layout == "dv" else _f64(W).T
        W, b, counts = _in_kept_classes(W, b, class_mask, where, h.shape[:-1])
        if where is not None:
            h = np.where(np.asarray(where)[..., None], h, 0.0)
        logits.append(h @ W + b)
        sides.append((h, W, layout))
    out = distillation_loss(*logits, where=counts, **options)
    gradient, scale = dict(out.gradient), dict(out.scale)
    for name, (h, W, layout) in zip(names, sides, strict=True):
        for by_name, size in ((gradient, lambda x: x), (scale, np.abs)):
            dz = by_name.pop(f"{name}_logits")
            rows = tuple(range(h.ndim - 1))
            dW = (dz[..., None, :] * size(h)[..., :, None]).sum(rows)
            by_name[f"{name}_hidden"] = dz @ size(W).T
            by_name[f"{name}_head"] = dW if layout == "dv" else dW.T
            by_name[f"{name}_bias"] = dz.sum(rows)
    return Loss(out.value, gradient, scale)
