"""Labels, masks, class and row weights → each row's coefficients and the denominator.

    loss_row = a·nll + b·lse² + s·spread          (nll, lse, spread: see `log_softmax`)

    labels         a = (1−ε) w c_y     b = ζ w     s = (ε/V) w     weight = w c_y
    distributions  a = (1−ε) w         b = ζ w     s = (ε/V) w     weight = w Σ c t / Σ t

(w: row weight; ε: label smoothing; ζ: z-loss; V: the row's kept classes; for a distribution nll
holds c already).  A row that is not kept has all of them 0.

    "none"  the rows        "sum"  Σ rows        "mean"  Σ rows / Σ weights, 0 where that is 0/0

With mesh axes both sums run over the devices too, so that every device has the mean of the whole
batch and not a mean of means.  A `normalizer` takes the place of Σ weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import row_terms
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import multiply_no_nan
from jxent._core.targets import at_label, is_labels, narrow
from jxent._typing import (
    AxisNames,
    ClassMask,
    ClassWeights,
    Logits,
    PerRow,
    Reduction,
    RowMask,
    Scalar,
    Targets,
)

# A coefficient is per row, one number for all rows, or None: the term is not there.
Coefficient = PerRow | float | None


class Coefficients(NamedTuple):
    """The factors of nll, lse² and spread in a row's loss."""

    nll: Coefficient
    square: Coefficient
    smooth_loss: Coefficient


def class_weight(
    targets: Targets,
    class_weights: ClassWeights | None,
    kept: RowMask | None,
    mask: ClassMask | None,
) -> PerRow | None:
    """c_y of each row, NaN for a label outside [0, V); for a distribution Σ c t / Σ t.

    0 in rows that are not kept, whatever they hold.
    """
    if class_weights is None:
        return None
    c = class_weights
    if is_labels(targets):
        y = narrow(targets, c.shape[0])
        table = jnp.broadcast_to(c, (*y.shape, c.shape[0]))
        return only(kept, jnp.where(y < 0, jnp.nan, at_label(table, y)))
    return _average_class_weight(c, targets, kept, mask)


@jax.checkpoint
def _average_class_weight(
    c: ClassWeights, t: Float[Array, "*n V"], kept: RowMask | None, mask: ClassMask | None
) -> PerRow:
    t = t.astype(c.dtype)
    t = t if kept is None else jnp.where(kept[..., None], t, 0)
    t = t if mask is None else jnp.where(mask, t, 0)
    mass = jnp.sum(t, axis=-1)
    invalid = ~jnp.isfinite(mass)
    # Or 0·NaN would come back from a row that weighs nothing.
    t, mass = jnp.where(invalid[..., None], 0, t), jnp.where(invalid, 0, mass)
    weighted = jnp.sum(jnp.reshape(c, (1,) * (t.ndim - 1) + c.shape) * t, axis=-1)
    average = jnp.where(mass == 0, 0, weighted / jnp.where(mass == 0, 1, mass))
    return jnp.where(invalid, jnp.nan, average)


def _multiply(*factors: Coefficient) -> Coefficient:
    out: Coefficient = None
    for factor in factors:
        if factor is None or (isinstance(factor, float) and factor == 1):
            continue
        if out is None:
            out = factor
        elif isinstance(factor, float) or isinstance(out, float):
            out = factor * out
        else:
            out = multiply_no_nan(out, factor)
    return 1.0 if out is None else out


def row_weight(
    rows: tuple[int, ...],
    kept: RowMask | None,
    row_weights: PerRow | None,
    class_weight: PerRow | None,
    dtype: jnp.dtype,
) -> PerRow:
    """The row's share of the denominator, w c_y."""
    w = _multiply(row_weights, class_weight)
    if isinstance(w, jax.Array):
        return w
    return jnp.ones(rows, dtype) if kept is None else kept.astype(dtype)


def only(kept: RowMask | None, x: PerRow | None) -> PerRow | None:
    """x in the kept rows, 0 in the others, whatever they hold."""
    return x if kept is None or x is None else jnp.where(kept, x, 0)


def coefficients(
    targets: Targets,
    *,
    mask: ClassMask | None,
    classes: int,
    row_weights: PerRow | None,
    class_weight: PerRow | None,
    label_smoothing: float,
    z_loss: float,
    dtype: jnp.dtype,
) -> Coefficients:
    """Each row's factors of nll, lse² and spread; the weights are 0 in rows that are not kept."""
    own = class_weight if is_labels(targets) else None
    a = _multiply(1 - label_smoothing, row_weights, own) if label_smoothing < 1 else None
    b = _multiply(z_loss, row_weights) if z_loss else None
    s: Coefficient = None
    if label_smoothing:
        share: Coefficient = label_smoothing / classes
        if mask is not None:
            share = label_smoothing / jnp.maximum(jnp.sum(mask, axis=-1).astype(dtype), 1)
        s = _multiply(share, row_weights)
    return Coefficients(a, b, s)


def combine_terms(
    by: Coefficients, nll: PerRow, lse: PerRow | None, smooth_loss: PerRow | None
) -> PerRow:
    """a·nll + b·lse² + s·spread, a zero coefficient selecting 0 even against inf."""
    terms = [_term(by.nll, nll)]
    if by.square is not None:
        assert lse is not None
        terms.append(_term(by.square, _square(by.square, lse)))
    if by.smooth_loss is not None:
        terms.append(_term(by.smooth_loss, smooth_loss))
    present = [term for term in terms if term is not None]
    return sum(present[1:], start=present[0])


def _square(w: Coefficient, lse: PerRow) -> PerRow:
    """lse², with slope 0 where ∞ or NaN weighs nothing: 0·NaN on the way back would be NaN."""
    if not isinstance(w, jax.Array):
        return lse * lse
    inactive = (w == 0) & ~jnp.isfinite(lse)
    active = jnp.where(inactive, 0, lse)
    return jnp.where(inactive, jax.lax.stop_gradient(lse * lse), active * active)


def _term(w: Coefficient, x: PerRow | None) -> PerRow | None:
    if w is None or x is None:
        return None
    if isinstance(w, float):
        return x if w == 1 else w * x
    return multiply_no_nan(w, x)


def reduce(
    rows: PerRow,
    weights: PerRow | None,
    *,
    reduction: Reduction,
    normalizer: Scalar | None,
    axis_name: AxisNames | None,
) -> jax.Array:
    """The rows, their sum, or their weighted mean."""
    if reduction == "none":
        return rows
    total = sum_over_devices(jnp.sum(rows), axis_name)
    if reduction == "sum":
        return total
    return divide(total, denominator(weights, normalizer, axis_name))


def denominator(
    weights: PerRow | None, normalizer: Scalar | None, axis_name: AxisNames | None
) -> Scalar:
    """What the mean divides by."""
    if normalizer is not None:
        return normalizer
    assert weights is not None
    return sum_over_devices(jnp.sum(weights), axis_name)


def divide(x: Float[Array, "..."], by: Scalar) -> Float[Array, "..."]:
    """x / by, 0 where that is 0/0."""
    by = by.astype(x.dtype)
    empty = by == 0
    return jnp.where(empty, 0, x / jnp.where(empty, 1, by))


def sum_over_devices(x: Scalar, axis_name: AxisNames | None) -> Scalar:
    """The sum over the devices of these mesh axes."""
    return x if axis_name is None else lax.psum(x, axis_name)


class Prepared(NamedTuple):
    """What a loss is made of, once its arguments are checked."""

    options: row_terms.TermOptions
    targets: Targets  # labels are int32, those outside [0, V) are −1
    class_weights: ClassWeights | None
    by: Coefficients
    weights: PerRow  # what each row counts in a mean


def prepare(
    fn: str,
    name: str,
    dtype: jnp.dtype,
    classes: int,
    t: Targets,
    kept: RowMask | None,
    mask: ClassMask | None,
    class_weights: ClassWeights | None,
    row_weights: PerRow | None,
    *,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> Prepared:
    """Targets and options → coefficients, in the dtype of the loss."""
    c = None if class_weights is None else class_weights.astype(dtype)
    own = class_weight(t, c, kept, mask)
    w = only(kept, None if row_weights is None else row_weights.astype(dtype))
    by = coefficients(
        t,
        mask=mask,
        classes=classes,
        row_weights=w,
        class_weight=own,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        dtype=dtype,
    )
    rows = t.shape if is_labels(t) else t.shape[:-1]
    weights = row_weight(rows, kept, w, own, dtype)
    if is_labels(t):
        y = narrow(t, classes)
        _check.traced_labels(fn, t, y, kept, classes, name)
        t = y
    options = row_terms.TermOptions(
        softcap=logit_softcap, lse=by.square is not None, smooth_loss=by.smooth_loss is not None
    )
    return Prepared(options, t, c, by, weights)


def weighted_rows(
    numbers: Callable[..., row_terms.RowTerms],
    fn: str,
    name: str,
    z: Logits,
    t: Targets,
    kept: RowMask | None,
    mask: ClassMask | None,
    class_weights: ClassWeights | None,
    row_weights: PerRow | None,
    **options: Any,
) -> tuple[PerRow, PerRow]:
    """Each row's loss and its weight in a mean, from an attachment of the row formula."""
    dtype = loss_dtype(z.dtype)
    prepared = prepare(
        fn, name, dtype, z.shape[-1], t, kept, mask, class_weights, row_weights, **options
    )
    arguments = vary_alike(z, prepared.targets, prepared.class_weights, mask, kept)
    return combine_terms(prepared.by, *numbers(prepared.options, *arguments)), prepared.weights
