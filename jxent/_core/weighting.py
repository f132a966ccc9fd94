"""Masks, weights and smoothing → each row's coefficients, the denominator, the reduction.

    loss_row = a·nll + b·ζ lse² + s·smooth_loss      (nll, lse, smooth_loss: see `log_softmax`)

    labels         a = (1−ε) w c_y     b = w     s = (ε/V) w     weight = w c_y
    distributions  a = (1−ε) w         b = w     s = (ε/V) w     weight = w Σ c t / Σ t

(w: row weight; ε: label smoothing; ζ: z-loss; V: the row's kept classes; for a distribution nll
holds c already).  In a dropped row w, the weight and the terms are 0.

    "none"  the rows        "sum"  Σ rows        "mean"  Σ rows / Σ weights, 0 where Σ weights = 0

With mesh axes both sums run over the devices too, so that every device has the mean of the whole
batch and not a mean of means.  A `normalizer` takes the place of Σ weights; by a normalizer of 0
only a sum of 0 is 0.  Weights of both signs may add up to nothing, whatever the rows are: a mean
by them is NaN, and `normalizer` the way out.

Options travel as records, made once by the checks: `RowInputs`, `LossOptions`, `Reduction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.log_softmax import loss_dtype
from jxent._core.row_terms import RowTerms, TermOptions
from jxent._core.safe_math import multiply_no_nan, nan_unless, zero_or_nan, zero_unless
from jxent._core.targets import at_label, is_labels, narrow
from jxent._typing import (
    ArrayLike,
    AxisNames,
    ClassMask,
    ClassWeights,
    Logits,
    PerRow,
    ReductionKind,
    RowMask,
    Scalar,
    SharedClassMask,
    Targets,
)

# A coefficient is per row, one number for all rows, or None: the term is absent.
Coefficient = PerRow | float | None


class RowInputs(NamedTuple):
    """Targets, masks and weights of the rows; a mask of classes may be one for all rows."""

    targets: Targets
    row_mask: RowMask | None = None
    class_mask: ClassMask | SharedClassMask | None = None
    class_weights: ClassWeights | None = None
    row_weights: PerRow | None = None


class LossOptions(NamedTuple):
    """The static options of a row's loss: ε, ζ and κ."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_softcap: float | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["normalizer"],
    meta_fields=["kind", "axis_names"],
)
@dataclass(frozen=True, eq=False)
class Reduction:
    """The reduction of rows to a result, with its denominator and mesh axes."""

    kind: ReductionKind
    normalizer: Scalar | None
    axis_names: AxisNames | None


def loss_options(
    fn: str, label_smoothing: float, z_loss: float, logit_softcap: float | None
) -> LossOptions:
    """Check the static options of a row's loss."""
    return LossOptions(
        _check.fraction(fn, "label_smoothing", label_smoothing),
        _check.not_negative(fn, "z_loss", z_loss),
        _check.softcap(fn, logit_softcap),
    )


def reduction_options(
    fn: str, kind: ReductionKind, normalizer: ArrayLike | None, axis_name: AxisNames | None
) -> Reduction:
    """Check a reduction and what goes with it."""
    if kind not in ("mean", "sum", "none"):
        raise ValueError(f'{fn}: `reduction` must be "mean", "sum" or "none", got {kind!r}')
    if normalizer is not None and kind != "mean":
        raise ValueError(
            f'{fn}: `normalizer` replaces the denominator of "mean"; with reduction={kind!r} '
            "divide the result yourself"
        )
    if axis_name is not None and kind == "none":
        raise ValueError(f'{fn}: `axis_name` sums over devices; it cannot go with reduction="none"')
    axis_names = tuple(axis_name) if isinstance(axis_name, list) else axis_name  # to be hashed
    return Reduction(kind, _check.weights(fn, "normalizer", normalizer, ()), axis_names)


def check_mean_weights(
    fn: str, row_weights: ArrayLike | None, kept: RowMask | None, reduction: Reduction
) -> None:
    """Raise ValueError at a concrete negative weight of a kept row that a mean divides by."""
    if row_weights is None or reduction.kind != "mean" or reduction.normalizer is not None:
        return
    must = (
        "is negative, and a mean divides by the sum of the weights; give normalizer=, for example "
        'the number of rows, or reduction="sum"'
    )
    _check.every_entry(fn, "row_weights", row_weights, lambda w: ~(w < 0), must, kept)


class Coefficients(NamedTuple):
    """The factors of nll, ζ lse² and smooth_loss in a row's loss."""

    nll: Coefficient
    square: Coefficient
    smooth_loss: Coefficient


def class_weight(rows: RowInputs) -> PerRow | None:
    """Compute c_y of each row, NaN for a label outside [0, V); for a distribution Σ c t / Σ t.

    0 in dropped rows, whatever they hold.
    """
    c = rows.class_weights
    if c is None:
        return None
    if is_labels(rows.targets):
        y = narrow(rows.targets, c.shape[0])
        table = jnp.broadcast_to(c, (*y.shape, c.shape[0]))
        return zero_unless(rows.row_mask, nan_unless(y >= 0, at_label(table, y)))
    return average_class_weight(c, rows.targets, rows.row_mask, rows.class_mask)


@jax.checkpoint
def average_class_weight(
    c: ClassWeights,
    t: Float[Array, "*n V"],
    kept: RowMask | None,
    mask: Bool[Array, "... V"] | None,
) -> PerRow:
    """Compute Σ c t / Σ t of distributions."""
    t = zero_unless(kept, t.astype(c.dtype))
    t = t if mask is None else jnp.where(jnp.broadcast_to(mask, t.shape), t, 0)
    mass = jnp.sum(t, axis=-1)
    invalid = ~jnp.isfinite(mass)
    # Or 0·NaN would come back from a row that weighs nothing.
    t, mass = jnp.where(invalid[..., None], 0, t), jnp.where(invalid, 0, mass)
    weighted = jnp.sum(jnp.reshape(c, (1,) * (t.ndim - 1) + c.shape) * t, axis=-1)
    average = jnp.where(mass == 0, 0, weighted / jnp.where(mass == 0, 1, mass))
    return nan_unless(~invalid, average)


def _multiply(*factors: Coefficient) -> Coefficient:
    """Multiply what is there: None is an absent factor, and so is the number 1."""
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
    shape: tuple[int, ...],
    kept: RowMask | None,
    row_weights: PerRow | None,
    class_weight: PerRow | None,
    dtype: jnp.dtype,
) -> PerRow:
    """Compute each row's share of the denominator, w c_y."""
    w = _multiply(row_weights, class_weight)
    if isinstance(w, jax.Array):
        return w
    return jnp.ones(shape, dtype) if kept is None else kept.astype(dtype)


def _coefficients(
    rows: RowInputs, options: LossOptions, classes: int, c_y: PerRow | None, dtype: jnp.dtype
) -> Coefficients:
    """Compute each row's coefficients; `c_y` is its class weight."""
    epsilon, w = options.label_smoothing, rows.row_weights
    c_y = c_y if is_labels(rows.targets) else None
    a = _multiply(1 - epsilon, w, c_y) if epsilon < 1 else None
    b = _multiply(w) if options.z_loss else None
    s: Coefficient = None
    if epsilon:
        share: Coefficient = epsilon / classes
        if rows.class_mask is not None:
            kept_classes = jnp.sum(rows.class_mask, axis=-1).astype(dtype)
            share = epsilon / jnp.maximum(kept_classes, 1)
            if w is not None:  # a mask of classes may be one for all rows
                share = jnp.broadcast_to(share, w.shape)
        s = _multiply(share, w)
    return Coefficients(a, b, s)


def combine_terms(options: TermOptions, by: Coefficients, row: RowTerms) -> PerRow:
    """Compute a·nll + b·ζ lse² + s·smooth_loss; a zero coefficient selects 0 even against ∞."""
    terms = [_term(by.nll, row.nll)]
    if by.square is not None:
        assert row.lse is not None
        terms.append(_weighted_square(options.z_loss, by.square, row.lse))
    if by.smooth_loss is not None:
        terms.append(_term(by.smooth_loss, row.smooth_loss))
    present = [term for term in terms if term is not None]
    return sum(present[1:], start=present[0])


def _weighted_square(zeta: float, w: PerRow | float, lse: PerRow) -> PerRow:
    """Compute w ζ lse², 0 where w = 0; neither it nor a derivative overflows on the way."""
    if isinstance(w, jax.Array):
        lse = jnp.where((w == 0) & jnp.isnan(lse), 0, lse)
    return (w * (zeta * lse)) * lse


def _term(w: Coefficient, x: PerRow | None) -> PerRow | None:
    if w is None or x is None:
        return None
    if isinstance(w, float):
        return x if w == 1 else w * x
    return multiply_no_nan(w, x)


def reduce(rows: PerRow, weights: PerRow | None, reduction: Reduction) -> jax.Array:
    """Reduce row losses to a scalar, or return them as they are for "none"."""
    if reduction.kind == "none":
        return rows
    total = sum_over_devices(jnp.sum(rows), reduction)
    if reduction.kind == "sum":
        return total
    by = denominator(weights, reduction)
    return divide(total, by, empty=is_empty(total, by, reduction))


def denominator(weights: PerRow | None, reduction: Reduction) -> Scalar:
    """Compute the denominator of a mean: NaN if it is the sum of weights and one is negative."""
    assert weights is not None
    if reduction.normalizer is not None:
        return reduction.normalizer.astype(weights.dtype)
    nan_if_negative = zero_or_nan(~jnp.any(weights < 0), weights.dtype)
    return sum_over_devices(jnp.sum(weights) + nan_if_negative, reduction)


def is_empty(total: Scalar, by: Scalar, reduction: Reduction) -> Bool[Array, ""]:
    """Tell whether a mean is over nothing: no weight, or a sum of 0 by a normalizer of 0."""
    return (by == 0) if reduction.normalizer is None else (by == 0) & (total == 0)


def divide(x: Float[Array, "..."], by: Scalar, *, empty: Bool[Array, ""]) -> Float[Array, "..."]:
    """Divide; where `empty`, 0 with derivatives of 0."""
    return jnp.where(empty, 0, x / jnp.where(empty, 1, by))


def sum_over_devices(x: Scalar, reduction: Reduction) -> Scalar:
    """Sum a device's number over the devices of the reduction's mesh axes."""
    return x if reduction.axis_names is None else lax.psum(x, reduction.axis_names)


class Prepared(NamedTuple):
    """Checked inputs as coefficients, static options and weights."""

    options: TermOptions
    rows: RowInputs  # labels are int32, those outside [0, V) are −1
    by: Coefficients
    weights: PerRow  # each row's share of the denominator of a mean


def prepare(
    fn: str,
    dtype: jnp.dtype,
    classes: int,
    rows: RowInputs,
    options: LossOptions,
    name: str = "labels",
    class_weight: Callable[[RowInputs], PerRow | None] = class_weight,
) -> Prepared:
    """Turn checked inputs and options into coefficients, in the dtype of the loss.

    `name` is what `fn` calls its targets, for errors; `class_weight` gives each row's.
    """
    cast = lambda x: None if x is None else x.astype(dtype)  # noqa: E731
    w = cast(rows.row_weights)
    rows = rows._replace(
        class_weights=cast(rows.class_weights),
        row_weights=None if w is None else zero_unless(rows.row_mask, w),
    )
    c_y = class_weight(rows)
    by = _coefficients(rows, options, classes, c_y, dtype)
    t = rows.targets
    shape = t.shape if is_labels(t) else t.shape[:-1]
    weights = row_weight(shape, rows.row_mask, rows.row_weights, c_y, dtype)
    if is_labels(t):
        y = narrow(t, classes)
        _check.traced_labels(fn, t, y, rows.row_mask, classes, name)
        rows = rows._replace(targets=y)
    terms = TermOptions(
        softcap=options.logit_softcap,
        lse=by.square is not None,
        smooth_loss=by.smooth_loss is not None,
        z_loss=options.z_loss,
    )
    return Prepared(terms, rows, by, weights)


def weighted_rows(
    terms: Callable[..., RowTerms],
    fn: str,
    z: Logits,
    rows: RowInputs,
    options: LossOptions,
    name: str = "labels",
) -> tuple[PerRow, PerRow]:
    """Compute each row's loss and weight, by `row_terms` or `training_row_terms`."""
    prepared = prepare(fn, loss_dtype(z.dtype), z.shape[-1], rows, options, name)
    t, kept, mask, c, _ = prepared.rows
    row = terms(prepared.options, *vary_alike(z, t, c, mask, kept))
    return combine_terms(prepared.options, prepared.by, row), prepared.weights
