"""Kullback–Leibler divergence of log-predictions q from targets t, of each row, in nats.

    KL = Σ_v t_v (log t_v − q_v)        ∂/∂q_v = −t_v        ∂/∂t_v = log t_v + 1 − q_v

With targets in log space, r = log t,

    KL = Σ_v e^r_v (r_v − q_v)          ∂/∂q_v = −e^r_v      ∂/∂r_v = e^r_v (r_v − q_v + 1)

0·log 0 = 0·∞ = 0: a class without mass contributes nothing, whatever its prediction.  Derivatives
of ±∞ are replaced by the largest finite numbers, so that 0 times them is 0.  Only the inputs are
saved between the passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.safe_math import clip_infinite, nan_unless
from jxent._typing import ArrayLike, Axes, PerEntry, Tangents


@_check.arguments
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Compute the divergence KL(t‖e^q) of log-predictions q from targets t, of each row, in nats.

        KL = Σ_v t_v (log t_v − q_v)        ∂/∂q_v = −t_v        ∂/∂t_v = log t_v + 1 − q_v

    Neither t nor e^q has to sum to 1. Classes with t_v = 0 contribute 0, also where q_v = −∞. Where
    t_v > 0 and q_v = −∞ the loss is ∞, and the gradient −t_v by q_v is finite.

    Args:
      log_predictions: q, log-probabilities (`jax.nn.log_softmax` of logits), any shape, floating.
      targets: t ≥ 0, floating, of the same shape; or, when `axis` is the last, `[V]` for all rows.
      axis: the axis or axes of the classes; None for all.
      where: boolean mask, True keeps: rows (the shape without `axis`) or single classes (the whole
        shape). Dropped entries contribute 0 to loss and gradients, whatever they hold.

    Returns:
      The divergence of each row in nats, in the shape without `axis`: float32, float64 for float64
      predictions. A row is NaN, gradient too, if a kept q is NaN or +∞, if a kept t is NaN or ∞, or
      if a kept traced t is negative.

    Raises:
      ValueError: shapes that do not match; a concrete negative target; no classes.
      TypeError: predictions or targets that are not floating; a `where` that is not boolean.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> targets = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
      >>> predictions = jnp.array([[0.3, 0.7, 0.0], [0.25, 0.25, 0.5]])
      >>> print(jxent.kl_divergence(jnp.log(predictions), targets).round(4))
      [0.0872 1.3863]

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    fn = "kl_divergence"
    q, t, counts, axes = _check_arguments(fn, log_predictions, "targets", targets, axis, where)
    _check.nonnegative(fn, "targets", targets, counts)
    return _kl_divergence(q, t, counts, axes=axes)


@_check.arguments
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Compute KL(e^r‖e^q) of log-predictions q from targets in log space r, of each row, in nats.

        KL = Σ_v e^r_v (r_v − q_v)        ∂/∂q_v = −e^r_v        ∂/∂r_v = e^r_v (r_v − q_v + 1)

    `kl_divergence` with targets in log space, where tiny probabilities keep their digits. Classes
    with r_v = −∞ contribute 0 to loss and gradients, also where q_v = −∞.

    Args:
      log_predictions: q, log-probabilities (`jax.nn.log_softmax` of logits), any shape, floating.
      log_targets: r, floating, of the same shape; or, when `axis` is the last, `[V]` for all rows.
      axis: the axis or axes of the classes; None for all.
      where: boolean mask, True keeps: rows (the shape without `axis`) or single classes (the whole
        shape). Dropped entries contribute 0 to loss and gradients, whatever they hold.

    Returns:
      The divergence of each row in nats, in the shape without `axis`: float32, float64 for float64
      predictions. A row is NaN, gradient too, if a kept q or r is NaN or +∞.

    Raises:
      ValueError: shapes that do not match; no classes.
      TypeError: predictions or targets that are not floating; a `where` that is not boolean.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> log_targets = jnp.log(jnp.array([[0.5, 0.5, 0.0]]))
      >>> log_predictions = jnp.log(jnp.array([[0.3, 0.7, 0.0]]))
      >>> print(jxent.kl_divergence_with_log_targets(log_predictions, log_targets).round(4))
      [0.0872]

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    fn = "kl_divergence_with_log_targets"
    q, r, counts, axes = _check_arguments(
        fn, log_predictions, "log_targets", log_targets, axis, where
    )
    return _kl_divergence_with_log_targets(q, r, counts, axes=axes)


def _check_arguments(
    fn: str,
    log_predictions: ArrayLike,
    name: str,
    targets: ArrayLike,
    axis: Axes,
    where: ArrayLike | None,
) -> tuple[PerEntry, Float[Array, "..."], Bool[Array, "..."] | None, tuple[int, ...]]:
    q = _check.floats(fn, "log_predictions", log_predictions)
    axes = _check.axes(fn, axis, q.ndim)
    _check.some_classes(fn, "log_predictions", q.shape, axes)
    last = axes == (q.ndim - 1,)
    t = same_or_one_row(fn, name, targets, "log_predictions", q.shape, one_row=last)
    return q, t, counted(fn, where, "log_predictions", q.shape, axes), axes


def same_or_one_row(
    fn: str, name: str, x: ArrayLike, other: str, shape: tuple[int, ...], one_row: bool
) -> Float[Array, "..."]:
    """Return floats of the other argument's shape, or as `one_row` floats [V] for all rows."""
    array = _check.floats(fn, name, x)
    if array.shape != shape and not (one_row and array.shape == shape[-1:]):
        alternative = f", or {list(shape[-1:])} for all rows" if one_row else ""
        raise ValueError(
            f"{fn}: `{name}` must have the shape of `{other}` {list(shape)}{alternative}, got "
            f"{_check.describe(x)}; jnp.broadcast_to(..., {other}.shape) says which rows you mean"
        )
    return array


def counted(
    fn: str, x: ArrayLike | None, other: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> Bool[Array, "..."] | None:
    """Return `where` against all axes of the other argument: what a sum over `axes` counts."""
    if x is None:
        return None
    if not _check.has_dtype(x, jnp.bool_):
        raise TypeError(
            f"{fn}: `where` must be boolean, got {_check.describe(x)}; compare it (mask != 0)"
        )
    rows = tuple(size for a, size in enumerate(shape) if a not in axes)
    if _check.shape_of(x) == shape:
        return jnp.asarray(x)
    if _check.shape_of(x) == rows:
        return jnp.expand_dims(jnp.asarray(x), axes)
    raise ValueError(
        f"{fn}: `where` must have the rows' shape {list(rows)} or the shape of `{other}` "
        f"{list(shape)}, got {_check.describe(x)}"
    )


@partial(jax.jit, static_argnames=("axes",), inline=True)
def _kl_divergence(
    q: PerEntry,
    t: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
    *,
    axes: tuple[int, ...],
) -> Float[Array, "..."]:
    valid = jnp.broadcast_to(t >= 0, q.shape)
    if counts is not None:
        valid = valid | ~jnp.broadcast_to(counts, q.shape)
    _check.traced_entries("kl_divergence", "targets", t, valid, "must not be negative")
    return _sum_kept_terms(_TARGETS, axes, q, t, counts)


@partial(jax.jit, static_argnames=("axes",), inline=True)
def _kl_divergence_with_log_targets(
    q: PerEntry,
    r: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
    *,
    axes: tuple[int, ...],
) -> Float[Array, "..."]:
    return _sum_kept_terms(_LOG_TARGETS, axes, q, r, counts)


class _TargetForm(NamedTuple):
    """The term of one class, and its derivatives, for one of the two forms of a target."""

    term: Callable[[PerEntry, PerEntry], PerEntry]
    mass: Callable[[PerEntry], PerEntry]  # −∂term/∂q
    by_target: Callable[[PerEntry, PerEntry], PerEntry]  # ∂term/∂target
    zero: float  # its term with q = 0 is 0


def _sum_kept_terms(
    form: _TargetForm,
    axes: tuple[int, ...],
    q: PerEntry,
    t: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
) -> Float[Array, "..."]:
    """Sum the terms that `counts` keeps over the axes."""

    @partial(jax.checkpoint, prevent_cse=False)
    def rows(q: Array, t: Array, counts: Array | None) -> Array:
        dtype = np.promote_types(q.dtype, np.float32)
        q, t = q.astype(dtype), jnp.broadcast_to(t.astype(dtype), q.shape)
        if counts is not None:
            counts = jnp.broadcast_to(counts, q.shape)
            q, t = jnp.where(counts, q, 0), jnp.where(counts, t, form.zero)
        return _sum_terms(form, axes, q, t)

    return rows(*vary_alike(q, t, counts))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum_terms(
    form: _TargetForm, axes: tuple[int, ...], q: PerEntry, t: PerEntry
) -> Float[Array, "..."]:
    """Sum the terms over the axes; NaN if one of them is."""
    return jnp.sum(form.term(q, t), axis=axes)


def _sum_terms_jvp(
    form: _TargetForm, axes: tuple[int, ...], primals: Tangents, tangents: Tangents
) -> tuple[Array, Array]:
    (q, t), (q_dot, t_dot) = primals, tangents
    out = _sum_terms(form, axes, q, t)
    # NaN enters as a factor, for all entries of an invalid row: added, it would be missing from
    # derivatives of higher order.
    one_or_nan = jnp.where(jnp.isnan(out), out, 1)
    one_or_nan = jnp.broadcast_to(jnp.expand_dims(one_or_nan, axes), q.shape)
    out_dot = jnp.zeros_like(q)
    if not isinstance(q_dot, SymbolicZero):
        out_dot = out_dot - one_or_nan * form.mass(t) * q_dot
    if not isinstance(t_dot, SymbolicZero):
        out_dot = out_dot + one_or_nan * form.by_target(q, t) * t_dot
    return out, jnp.sum(out_dot, axis=axes)


_sum_terms.defjvp(_sum_terms_jvp, symbolic_zeros=True)


def _nan_if_invalid(q: PerEntry, t: PerEntry, term: PerEntry) -> PerEntry:
    """Replace the term by NaN where q or t is NaN or +∞; it is NaN already where t is negative."""
    return nan_unless((q < jnp.inf) & (t < jnp.inf), term)


def _kl_term(q: PerEntry, t: PerEntry) -> PerEntry:
    """Compute t (log t − q), 0 where t = 0."""
    none = t == 0
    term = jnp.where(none, jnp.zeros_like(q), t * (jnp.log(jnp.where(none, 1, t)) - q))
    return _nan_if_invalid(q, t, term)


@jax.custom_jvp
def _kl_term_by_target(q: PerEntry, t: PerEntry) -> PerEntry:
    """Compute log t + 1 − q, clipped; where q = −∞ it is +∞ before the clip, even where t = 0."""
    return clip_infinite(jnp.where(q == -jnp.inf, jnp.inf, jnp.log(t) + 1 - q))


@_kl_term_by_target.defjvp
def _kl_term_by_target_jvp(primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    (q, t), (q_dot, t_dot) = primals, tangents
    return _kl_term_by_target(q, t), clip_infinite(1 / t) * t_dot - q_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kl_log_term(n: int, q: PerEntry, r: PerEntry) -> PerEntry:
    """Compute e^r (r − q + n), the n-th derivative of the term by r; 0 where r = −∞."""
    term = jnp.where(q == -jnp.inf, jnp.inf, jnp.exp(r) * (r - q + n))
    return _nan_if_invalid(q, r, jnp.where(r == -jnp.inf, jnp.zeros_like(q), term))


def _kl_log_term_jvp(n: int, primals: Tangents, tangents: Tangents) -> tuple[PerEntry, PerEntry]:
    (q, r), (q_dot, r_dot) = primals, tangents
    out = _kl_log_term(n, q, r)
    out_dot = jnp.zeros_like(out)
    if not isinstance(q_dot, SymbolicZero):
        out_dot = out_dot - jnp.exp(r) * q_dot
    if not isinstance(r_dot, SymbolicZero):
        out_dot = out_dot + _kl_log_term_by_target(n, q, r) * r_dot
    return out, out_dot


_kl_log_term.defjvp(_kl_log_term_jvp, symbolic_zeros=True)


def _kl_log_term_by_target(n: int, q: PerEntry, r: PerEntry) -> PerEntry:
    return clip_infinite(_kl_log_term(n + 1, q, r))


_TARGETS = _TargetForm(_kl_term, lambda t: t, _kl_term_by_target, zero=1.0)
_LOG_TARGETS = _TargetForm(
    partial(_kl_log_term, 0), jnp.exp, partial(_kl_log_term_by_target, 0), zero=0.0
)
