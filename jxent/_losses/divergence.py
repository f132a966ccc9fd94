"""Kullback–Leibler divergence: what a row of log-predictions q costs beyond its targets t, in nats.

    KL = Σ_v t_v (log t_v − q_v)        ∂/∂q_v = −t_v        ∂/∂t_v = log t_v + 1 − q_v

With targets in log space, r = log t,

    KL = Σ_v e^r_v (r_v − q_v)          ∂/∂q_v = −e^r_v      ∂/∂r_v = e^r_v (r_v − q_v + 1)

0·log 0 is 0, and 0·∞ is 0: what has no mass costs nothing, whatever was predicted for it.  A slope
of ±∞ is told as the largest number, so that 0·∞ is 0 after it.  Between the passes only the inputs
are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._typing import ArrayLike, Axes

Each = Float[Array, "*s"]  # one number for each class of each row
Tangents = tuple[Any, ...]


@_check.keywords
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Σ_v t_v (log t_v − q_v), the divergence of a prediction e^q from a target t, of each row.

    Neither has to sum to 1. Classes with t_v = 0 contribute 0, also where q_v = −∞; mass on an
    impossible class is ∞, with a finite gradient −t_v by q_v.

    Args:
      log_predictions: q, log-probabilities (`jax.nn.log_softmax` of logits), any shape, floating.
      targets: t ≥ 0, floating, of the same shape; or, when `axis` is the last, `[V]` for all rows.
      axis: the axis or axes of the classes; None for all.
      where: boolean, what to keep: rows (the shape without `axis`) or classes (the whole shape).
        What is dropped contributes 0 to loss and gradients, whatever it holds.

    Returns:
      The divergence of each row in nats, in the shape without `axis`: float32, float64 for float64
      predictions. A row is NaN, gradient too, where a kept q is NaN or +∞, a kept t is NaN or ∞,
      or (when traced) negative.

    Raises:
      ValueError: for another shape, a concrete negative target, or no classes.
      TypeError: for predictions or targets that are not floating, a `where` that is not boolean.

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
    q, t, counts, axes = _checked(fn, log_predictions, "targets", targets, axis, where)
    _check.nonnegative_where(fn, "targets", targets, counts)
    return _kl_divergence(q, t, counts, axes=axes)


@_check.keywords
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Σ_v e^r_v (r_v − q_v), the divergence of a prediction e^q from a target e^r, of each row.

    `kl_divergence` with targets in log space, which keep their digits where they are tiny. Classes
    with r_v = −∞ contribute 0 to loss and gradients, also where q_v = −∞.

    Args:
      log_predictions: q, log-probabilities (`jax.nn.log_softmax` of logits), any shape, floating.
      log_targets: r, floating, of the same shape; or, when `axis` is the last, `[V]` for all rows.
      axis: the axis or axes of the classes; None for all.
      where: boolean, what to keep: rows (the shape without `axis`) or classes (the whole shape).
        What is dropped contributes 0 to loss and gradients, whatever it holds.

    Returns:
      The divergence of each row in nats, in the shape without `axis`: float32, float64 for float64
      predictions. A row is NaN, gradient too, where a kept q or r is NaN or +∞.

    Raises:
      ValueError: for another shape, or no classes.
      TypeError: for predictions or targets that are not floating, a `where` that is not boolean.

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
    q, r, counts, axes = _checked(fn, log_predictions, "log_targets", log_targets, axis, where)
    return _kl_divergence_with_log_targets(q, r, counts, axes=axes)


def _checked(
    fn: str,
    log_predictions: ArrayLike,
    name: str,
    targets: ArrayLike,
    axis: Axes,
    where: ArrayLike | None,
) -> tuple[Each, Float[Array, "..."], Bool[Array, "..."] | None, tuple[int, ...]]:
    q = _check.floats(fn, "log_predictions", log_predictions)
    axes = _check.axes(fn, axis, q.ndim)
    _check.some_classes(fn, "log_predictions", q.shape, axes)
    last = axes == (q.ndim - 1,)
    t = _check.same_or_one_row(fn, name, targets, "log_predictions", q.shape, one_row=last)
    return q, t, _check.counted(fn, where, "log_predictions", q.shape, axes), axes


@partial(jax.jit, static_argnames=("axes",), inline=True)
def _kl_divergence(
    q: Each,
    t: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
    *,
    axes: tuple[int, ...],
) -> Float[Array, "..."]:
    valid = jnp.broadcast_to(t >= 0, q.shape)
    if counts is not None:
        valid = valid | ~jnp.broadcast_to(counts, q.shape)
    _check.traced_entries("kl_divergence", "targets", t, valid, "must not be negative")
    return _rows(_TARGETS, axes, q, t, counts)


@partial(jax.jit, static_argnames=("axes",), inline=True)
def _kl_divergence_with_log_targets(
    q: Each,
    r: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
    *,
    axes: tuple[int, ...],
) -> Float[Array, "..."]:
    return _rows(_LOG_TARGETS, axes, q, r, counts)


class _Form(NamedTuple):
    """One of the two ways to give a target: the formula of its cost and of both slopes."""

    cost: Callable[[Each, Each], Each]
    mass: Callable[[Each], Each]  # −∂cost/∂q
    slope: Callable[[Each, Each], Each]  # ∂cost/∂target
    nothing: float  # the target that costs nothing


def _rows(
    form: _Form,
    axes: tuple[int, ...],
    q: Each,
    t: Float[Array, "..."],
    counts: Bool[Array, "..."] | None,
) -> Float[Array, "..."]:
    """Σ cost over the axes, of what counts."""

    @partial(jax.checkpoint, prevent_cse=False)
    def rows(q: Array, t: Array, counts: Array | None) -> Array:
        dtype = np.promote_types(q.dtype, np.float32)
        q, t = q.astype(dtype), jnp.broadcast_to(t.astype(dtype), q.shape)
        if counts is not None:
            counts = jnp.broadcast_to(counts, q.shape)
            q, t = jnp.where(counts, q, 0), jnp.where(counts, t, form.nothing)
        return _sum(form, axes, q, t)

    return rows(*vary_alike(q, t, counts))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum(form: _Form, axes: tuple[int, ...], q: Each, t: Each) -> Float[Array, "..."]:
    """Σ cost over the axes; NaN when an entry is at fault."""
    return jnp.sum(form.cost(q, t), axis=axes)


def _sum_jvp(
    form: _Form, axes: tuple[int, ...], primals: Tangents, tangents: Tangents
) -> tuple[Array, Array]:
    (q, t), (q_dot, t_dot) = primals, tangents
    out = _sum(form, axes, q, t)
    # Factors, not terms: a row at fault then has NaN for all its derivatives, of any order.
    sound = jnp.where(jnp.isnan(out), out, 1)
    sound = jnp.broadcast_to(jnp.expand_dims(sound, axes), q.shape)
    out_dot = jnp.zeros_like(q)
    if not isinstance(q_dot, SymbolicZero):
        out_dot = out_dot - sound * form.mass(t) * q_dot
    if not isinstance(t_dot, SymbolicZero):
        out_dot = out_dot + sound * form.slope(q, t) * t_dot
    return out, jnp.sum(out_dot, axis=axes)


_sum.defjvp(_sum_jvp, symbolic_zeros=True)


def _finite(x: Each) -> Each:
    """x with ±∞ told as the largest numbers, so that 0·∞ is 0 after it."""
    return jnp.where(jnp.isinf(x), jnp.sign(x) * jnp.finfo(x.dtype).max, x)


def _unless_at_fault(q: Each, t: Each, cost: Each) -> Each:
    """NaN where an argument is NaN or +∞; a negative target has a NaN logarithm of its own."""
    return jnp.where((q < jnp.inf) & (t < jnp.inf), cost, jnp.nan)


def _cost(q: Each, t: Each) -> Each:
    """t (log t − q), 0 where t = 0."""
    some = jnp.where(t == 0, jnp.zeros_like(q), t * (jnp.log(t) - q))
    return _unless_at_fault(q, t, some)


@jax.custom_jvp
def _slope(q: Each, t: Each) -> Each:
    """log t + 1 − q; on an impossible class +∞, even where t = 0."""
    return _finite(jnp.where(q == -jnp.inf, jnp.inf, jnp.log(t) + 1 - q))


@_slope.defjvp
def _slope_jvp(primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    (q, t), (q_dot, t_dot) = primals, tangents
    return _slope(q, t), _finite(1 / t) * t_dot - q_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_cost(n: int, q: Each, r: Each) -> Each:
    """e^r (r − q + n), the n-th derivative by r of the cost; 0 where r = −∞."""
    some = jnp.where(q == -jnp.inf, jnp.inf, jnp.exp(r) * (r - q + n))
    return _unless_at_fault(q, r, jnp.where(r == -jnp.inf, jnp.zeros_like(q), some))


def _log_cost_jvp(n: int, primals: Tangents, tangents: Tangents) -> tuple[Each, Each]:
    (q, r), (q_dot, r_dot) = primals, tangents
    out = _log_cost(n, q, r)
    out_dot = jnp.zeros_like(out)
    if not isinstance(q_dot, SymbolicZero):
        out_dot = out_dot - jnp.exp(r) * q_dot
    if not isinstance(r_dot, SymbolicZero):
        out_dot = out_dot + _log_slope(n, q, r) * r_dot
    return out, out_dot


_log_cost.defjvp(_log_cost_jvp, symbolic_zeros=True)


def _log_slope(n: int, q: Each, r: Each) -> Each:
    return _finite(_log_cost(n + 1, q, r))


_TARGETS = _Form(_cost, lambda t: t, _slope, nothing=0.0)
_LOG_TARGETS = _Form(partial(_log_cost, 0), jnp.exp, partial(_log_slope, 0), nothing=-jnp.inf)
