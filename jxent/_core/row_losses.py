"""Row losses of softmax logits: c_y g(nll_y), or Σ_v t_v c_v g(nll_v)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import row_terms
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import multiply_no_nan
from jxent._core.targets import is_labels, narrow
from jxent._core.weighting import LossOptions, RowInputs, class_weight, weighted_rows
from jxent._typing import (
    ArrayLike,
    Axes,
    Logits,
    PerRow,
    Scalar,
    Targets,
)


def classes_last(
    fn: str, logits: ArrayLike, axis: Axes
) -> tuple[Logits, Callable[[ArrayLike | None], ArrayLike | None]]:
    """Move classes to the last axis, and return how to move whatever else has that shape."""
    given = _check.floats(fn, "logits", logits)
    axes = _check.axes(fn, axis, given.ndim)
    rows = tuple(a for a in range(given.ndim) if a not in axes)

    def moved(x: Array) -> Array:
        if axes == (x.ndim - 1,):
            return x
        x = jnp.transpose(x, rows + axes)
        return x if len(axes) == 1 else jnp.reshape(x, (*x.shape[: len(rows)], -1))

    def move(x: ArrayLike | None) -> ArrayLike | None:
        if x is None or _check.shape_of(x) != given.shape:
            return x
        return moved(jnp.asarray(x))

    return _check.logits(fn, moved(given)), move


def as_distributions(
    fn: str,
    labels: ArrayLike,
    z: Logits,
    rows_of: Callable[[ArrayLike | None], ArrayLike | None],
    *,
    as_optax: bool = False,
) -> Logits:
    """Check distributions, or one-hot integers, and move their classes last.

    With `as_optax` also floats [V], one distribution for all rows, and negative entries. Integers
    [V] raise: more likely they are labels of another batch.
    """
    x = rows_of(labels)
    assert x is not None
    rows, one_for_all, shape = z.shape[:-1], z.shape[-1:], _check.shape_of(x)
    if _check.is_integer(x) and shape == rows and z.ndim > 1:
        raise ValueError(
            f"{fn}: `labels` must be distributions of the logits' shape {list(z.shape)}, got "
            f"{_check.describe(x)}; for integer labels use "
            "softmax_cross_entropy_with_integer_labels"
        )
    floating = _check.has_dtype(x, jnp.floating)
    if shape != z.shape and not (as_optax and floating and shape == one_for_all):
        other = (
            f"be floats {list(one_for_all)} for all rows"
            if as_optax
            else f"be integers, one a row, shape {list(rows)}"
        )
        raise ValueError(
            f"{fn}: `labels` must have the logits' shape {list(z.shape)} (classes last), or "
            f"{other}, got {_check.describe(x)}"
        )
    if not as_optax:
        _check.nonnegative(fn, "labels", x)
    t = jnp.asarray(x)
    return jnp.broadcast_to(t if floating else t.astype(jnp.float32), z.shape)


def softmax_inputs(
    fn: str,
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes,
    where: ArrayLike | None,
    class_weights: ArrayLike | None,
    *,
    as_optax: bool = False,
) -> tuple[Logits, RowInputs]:
    """Check the arguments of a row loss that takes labels or distributions, told by shape."""
    z, rows_of = classes_last(fn, logits, axis)
    kept, mask = _check.where(fn, rows_of(where), z.shape)
    t: Targets
    # Floats [V] may be one distribution for all rows; else what has the rows' shape are labels.
    soft = as_optax and not _check.is_integer(labels)
    if _check.shape_of(labels) == z.shape[:-1] and not soft:
        t = _check.labels(fn, labels, z.shape[:-1])
        _check.label_values(fn, labels, z.shape[-1], kept)
    else:
        t = as_distributions(fn, labels, z, rows_of, as_optax=as_optax)
    c = _check.weights(fn, "class_weights", class_weights, z.shape[-1:])
    return z, RowInputs(t, kept, mask, c)


def _without_excluded(rows: RowInputs) -> RowInputs:
    """Drop the mass that distributions have on excluded classes, as optax does."""
    if is_labels(rows.targets) or rows.class_mask is None:
        return rows
    return rows._replace(targets=jnp.where(rows.class_mask, rows.targets, 0))


@partial(jax.jit, static_argnames=("fn", "options"), inline=True)
def weighted_row_losses(fn: str, z: Logits, rows: RowInputs, options: LossOptions) -> PerRow:
    """Compute each row's cross-entropy, with every option that a row loss has."""

    @row_terms.rematerialized
    def losses(z: Logits, rows: RowInputs) -> PerRow:
        return weighted_rows(row_terms.row_terms, fn, z, _without_excluded(rows), options)[0]

    return losses(z, rows)


def row_losses_of_nll(
    fn: str,
    g: Callable[..., Array],
    z: Logits,
    rows: RowInputs,
    parameters: Mapping[str, ArrayLike],
    *,
    as_optax: bool = False,
) -> PerRow:
    """Compute c_y g(nll_y) for labels, Σ_v t_v c_v g(nll_v) for distributions.

    `g(nll, *parameters)` has its own derivatives, to any order. Mass on an excluded class is NaN,
    or dropped with `as_optax`.
    """
    scalars = tuple(_check.weights(fn, name, x, ()) for name, x in parameters.items())
    return _transformed_rows(fn, g, z, rows, scalars, as_optax=as_optax)


@partial(jax.jit, static_argnames=("fn", "g", "as_optax"), inline=True)
def _transformed_rows(
    fn: str,
    g: Callable[..., Array],
    z: Logits,
    rows: RowInputs,
    parameters: tuple[Scalar, ...],
    *,
    as_optax: bool,
) -> PerRow:
    dtype = loss_dtype(z.dtype)
    largest = jnp.finfo(dtype).max

    @row_terms.rematerialized
    def losses(z: Logits, rows: RowInputs, parameters: tuple[Scalar, ...]) -> PerRow:
        parameters = tuple(x.astype(dtype) for x in parameters)
        t, kept, mask, c, _ = _without_excluded(rows) if as_optax else rows
        c = None if c is None else c.astype(dtype)
        if not is_labels(t):
            w, nll = row_terms.weighted_targets_and_nll(*vary_alike(z, t, c, mask, kept))
            each = g(nll, *parameters)
            # ∂/∂t_v is g(nll_v): finite where t_v = 0, and 0 of an excluded class.
            each = jnp.where(w == 0, jnp.clip(each, -largest, largest), each)
            each = multiply_no_nan(w, each)
            return jnp.sum(each if mask is None else jnp.where(mask, each, 0), axis=-1)
        own = class_weight(rows._replace(class_weights=c))
        y = narrow(t, z.shape[-1])
        _check.traced_labels(fn, t, y, kept, z.shape[-1])
        nll = row_terms.row_terms(row_terms.TermOptions(), *vary_alike(z, y, None, mask, kept)).nll
        out = g(nll, *parameters)
        return out if own is None else multiply_no_nan(own, out)

    return losses(z, rows, parameters)
