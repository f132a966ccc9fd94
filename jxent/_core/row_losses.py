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
from jxent._core.weighting import class_weight, weighted_rows
from jxent._typing import (
    ArrayLike,
    Axes,
    ClassMask,
    ClassWeights,
    Logits,
    PerRow,
    RowMask,
    Scalar,
    Targets,
)


def classes_last(
    fn: str, logits: ArrayLike, axis: Axes
) -> tuple[Logits, Callable[[ArrayLike | None], ArrayLike | None]]:
    """Logits as [*n, V], and the same move for whatever else has the logits' shape."""
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
    one_row: bool = False,
) -> Logits:
    """Distributions [*n, V] from those of the logits' shape, or one-hot integers.

    Where optax takes it also from `one_row` [V] for all.
    """
    moved = rows_of(labels)
    assert moved is not None
    return _check.soft_labels(fn, moved, z, one_row)


@partial(jax.jit, static_argnames=("fn", "label_smoothing", "z_loss", "logit_softcap"), inline=True)
def weighted_row_losses(
    fn: str,
    z: Logits,
    t: Targets,
    kept: RowMask | None,
    mask: ClassMask | None,
    class_weights: ClassWeights | None,
    *,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> PerRow:
    """Compute each row's loss, every option in it."""

    @row_terms.rematerialized
    def losses(
        z: Logits,
        t: Targets,
        kept: RowMask | None,
        mask: ClassMask | None,
        c: ClassWeights | None,
    ) -> PerRow:
        return weighted_rows(
            row_terms.row_terms,
            fn,
            "labels",
            z,
            t,
            kept,
            mask,
            c,
            None,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
        )[0]

    return losses(z, t, kept, mask, class_weights)


def row_losses_of_nll(
    fn: str,
    g: Callable[..., Array],
    parameters: Mapping[str, ArrayLike],
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes,
    where: ArrayLike | None,
    class_weights: ArrayLike | None,
    *,
    one_row: bool = False,
) -> PerRow:
    """c_y g(nll_y) for labels, Σ_v t_v c_v g(nll_v) for distributions; g(nll, *parameters)."""
    z, rows_of = classes_last(fn, logits, axis)
    kept, mask = _check.where(fn, rows_of(where), z.shape)
    t: Targets
    # Floats [V] may be one distribution for all rows; else what has the rows' shape are labels.
    soft = one_row and not _check.is_integer(labels)
    if _check.shape_of(labels) == z.shape[:-1] and not soft:
        t = _check.labels(fn, labels, z.shape[:-1])
        _check.label_values(fn, labels, z.shape[-1], kept)
    else:
        t = as_distributions(fn, labels, z, rows_of, one_row=one_row)
    c = _check.weights(fn, "class_weights", class_weights, z.shape[-1:])
    scalars = tuple(_check.weights(fn, name, x, ()) for name, x in parameters.items())
    return _transformed_rows(fn, g, z, t, kept, mask, c, scalars)


@partial(jax.jit, static_argnames=("fn", "g"), inline=True)
def _transformed_rows(
    fn: str,
    g: Callable[..., Array],
    z: Logits,
    t: Targets,
    kept: RowMask | None,
    mask: ClassMask | None,
    class_weights: ClassWeights | None,
    parameters: tuple[Scalar, ...],
) -> PerRow:
    dtype = loss_dtype(z.dtype)
    largest = jnp.finfo(dtype).max

    @row_terms.rematerialized
    def losses(
        z: Logits,
        t: Targets,
        kept: RowMask | None,
        mask: ClassMask | None,
        c: ClassWeights | None,
        parameters: tuple[Scalar, ...],
    ) -> PerRow:
        parameters = tuple(x.astype(dtype) for x in parameters)
        c = None if c is None else c.astype(dtype)
        if not is_labels(t):
            w, nll = row_terms.weighted_targets_and_nll(*vary_alike(z, t, c, mask, kept))
            each = g(nll, *parameters)
            # ∂/∂t_v: ∞ is told as the largest number, and an excluded class has none.
            each = jnp.where(w == 0, jnp.clip(each, -largest, largest), each)
            each = multiply_no_nan(w, each)
            return jnp.sum(each if mask is None else jnp.where(mask, each, 0), axis=-1)
        own = class_weight(t, c, kept, mask)
        y = narrow(t, z.shape[-1])
        _check.traced_labels(fn, t, y, kept, z.shape[-1])
        nll = row_terms.row_terms(row_terms.TermOptions(), *vary_alike(z, y, None, mask, kept)).nll
        out = g(nll, *parameters)
        return out if own is None else multiply_no_nan(own, out)

    return losses(z, t, kept, mask, class_weights, parameters)
