"""Labels, masks, class and row weights → each row's coefficients and the denominator.

    loss_row = a·nll + b·lse² + s·spread          (nll, lse, spread: see `_rows`)

    labels         a = (1−ε) w c_y     b = ζ w     s = (ε/V) w     weight = w c_y
    distributions  a = (1−ε) w         b = ζ w     s = (ε/V) w     weight = w Σ c t / Σ t

(w: row weight; ε: label smoothing; ζ: z-loss; V: the row's kept classes; for a distribution nll
holds c already).  "mean" is Σ loss_row / Σ weight.  A row that is not kept has all of them 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent._product import scale
from jxent._rows import at_label
from jxent._typing import ClassMask, ClassWeights, Labels, PerRow, RowMask, Targets

# A coefficient is per row, one number for all rows, or None: the term is not there.
Coefficient = PerRow | float | None


class Coefficients(NamedTuple):
    """The factors of nll, lse² and spread in a row's loss."""

    nll: Coefficient
    square: Coefficient
    spread: Coefficient


def is_labels(targets: Targets) -> bool:
    """Whether targets are integer labels (otherwise distributions)."""
    return bool(jnp.issubdtype(targets.dtype, jnp.integer))


def narrow(labels: Labels, classes: int) -> Integer[Array, "*n"]:
    """int32 labels: those outside [0, classes) are −1, none wraps on the way."""
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    return jnp.where((wide >= 0) & (wide < classes), wide, -1).astype(jnp.int32)


def kept_rows(targets: Targets, where: RowMask | None, ignore_index: int | None) -> RowMask | None:
    """The rows that count; None when all do."""
    if ignore_index is None or not is_labels(targets):
        return where
    bounds = jnp.iinfo(targets.dtype)
    if not bounds.min <= ignore_index <= bounds.max:
        return where
    counts = targets != jnp.asarray(ignore_index, targets.dtype)
    return counts if where is None else where & counts


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
    fault = ~jnp.isfinite(mass)
    # Or 0·NaN would come back from a row that weighs nothing.
    t, mass = jnp.where(fault[..., None], 0, t), jnp.where(fault, 0, mass)
    weighted = jnp.sum(jnp.reshape(c, (1,) * (t.ndim - 1) + c.shape) * t, axis=-1)
    average = jnp.where(mass == 0, 0, weighted / jnp.where(mass == 0, 1, mass))
    return jnp.where(fault, jnp.nan, average)


def _product(*factors: Coefficient) -> Coefficient:
    out: Coefficient = None
    for factor in factors:
        if factor is None or (isinstance(factor, float) and factor == 1):
            continue
        if out is None:
            out = factor
        elif isinstance(factor, float) or isinstance(out, float):
            out = factor * out
        else:
            out = scale(out, factor)
    return 1.0 if out is None else out


def row_weight(
    rows: tuple[int, ...],
    kept: RowMask | None,
    row_weights: PerRow | None,
    class_weight: PerRow | None,
    dtype: jnp.dtype,
) -> PerRow:
    """The row's share of the denominator, w c_y."""
    w = _product(row_weights, class_weight)
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
    a = _product(1 - label_smoothing, row_weights, own) if label_smoothing < 1 else None
    b = _product(z_loss, row_weights) if z_loss else None
    s: Coefficient = None
    if label_smoothing:
        share: Coefficient = label_smoothing / classes
        if mask is not None:
            share = label_smoothing / jnp.maximum(jnp.sum(mask, axis=-1).astype(dtype), 1)
        s = _product(share, row_weights)
    return Coefficients(a, b, s)


def weigh(by: Coefficients, nll: PerRow, lse: PerRow | None, spread: PerRow | None) -> PerRow:
    """a·nll + b·lse² + s·spread, a zero coefficient selecting 0 even against inf."""
    terms = [_times(by.nll, nll)]
    if by.square is not None:
        assert lse is not None
        terms.append(_times(by.square, _square(by.square, lse)))
    if by.spread is not None:
        terms.append(_times(by.spread, spread))
    present = [term for term in terms if term is not None]
    return sum(present[1:], start=present[0])


def _square(w: Coefficient, lse: PerRow) -> PerRow:
    """lse², with slope 0 where ∞ or NaN weighs nothing: 0·NaN on the way back would be NaN."""
    if not isinstance(w, jax.Array):
        return lse * lse
    silent = (w == 0) & ~jnp.isfinite(lse)
    heard = jnp.where(silent, 0, lse)
    return jnp.where(silent, jax.lax.stop_gradient(lse * lse), heard * heard)


def _times(w: Coefficient, x: PerRow | None) -> PerRow | None:
    if w is None or x is None:
        return None
    if isinstance(w, float):
        return x if w == 1 else w * x
    return scale(w, x)
