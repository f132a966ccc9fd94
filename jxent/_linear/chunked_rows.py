"""A chunk of rows at a time: any loss of the logits of some projections, which are never stored.

    z_k = h_k·w_k + b_k        dh_k of a chunk = dz_k·w_kᵀ        dw_k = Σ_chunks h_kᵀ·dz_k

A chunk is the dense loss and its own rule, on logits that are dropped after it.  There are two
sums to be had of it:

    total      Σ_rows loss.  It has one cotangent, which multiplies afterwards the gradients that
               were computed beside the loss: no logit is computed twice.  Kept: the gradients.
    each_row   each row's loss.  The gradients wait for the cotangents, and the logits are computed
               again.  Kept: the arguments and the losses.

Only the products that are asked for are done.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._core.needs_grad import Types, flag, nothing, perturbed, raised, types_of
from jxent._core.safe_math import scale
from jxent._linear.projection import (
    Static,
    dtype_of,
    project,
    rounded,
    selected,
    to_head,
    to_hidden,
)
from jxent._linear.tiling import Cut, Index, cut
from jxent._typing import Logits, PerRow, RowMask, Scalar

Zs = tuple[Logits, ...]
# (logits of each projection, shared, each, rows, kept) → the losses of some rows
Loss = Callable[[Zs, Any, Any, Any, RowMask | None], PerRow]


class Projection(NamedTuple):
    """Hidden states [N, D], a head, a bias or None; or their slopes, None where nobody asked."""

    h: Any
    w: Any
    b: Any


class Operands(NamedTuple):
    """What is differentiated: projections, numbers for all rows, and arrays [N] of numbers."""

    projections: tuple[Projection, ...]
    shared: Any
    each: Any


def _fields(operands: Operands) -> tuple[Any, ...]:
    """Its arguments one by one."""
    return (*(x for p in operands.projections for x in p), operands.shared, operands.each)


def _operands(fields: Iterable[Any]) -> Operands:
    *of_projections, shared, each = fields
    triples = (of_projections[k : k + 3] for k in range(0, len(of_projections), 3))
    return Operands(tuple(Projection(*triple) for triple in triples), shared, each)


class _Part(NamedTuple):
    """One chunk of the rows."""

    hs: tuple[Array, ...]
    zs: Zs
    each: Any
    rows: Any
    kept: RowMask | None


def _pieces(statics: tuple[Static, ...], operands: Operands) -> Cut:
    return cut(operands.projections[0].h.shape[0], statics[0].size)


def _part(
    statics: tuple[Static, ...], operands: Operands, rows: Any, kept: RowMask | None, i: Index
) -> _Part:
    pieces = _pieces(statics, operands)
    own, keep = pieces.owns(i), None if kept is None else pieces.take(kept, i)
    keep = own if keep is None else keep if own is None else keep & own
    rows_i, each_i = jax.tree.map(lambda x: pieces.take(x, i), (rows, operands.each))
    hs = tuple(selected(keep, pieces.take(p.h, i)) for p in operands.projections)
    triples = zip(statics, hs, operands.projections, strict=True)
    zs = tuple(project(static, h, p.w, p.b) for static, h, p in triples)
    return _Part(hs, zs, each_i, rows_i, keep)


def _dtype(operands: Operands) -> jnp.dtype:
    return dtype_of(*jax.tree.leaves(operands.projections))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def total(
    loss: Loss, statics: tuple[Static, ...], operands: Operands, rows: Any, kept: RowMask | None
) -> Scalar:
    """The sum of the rows' losses."""
    nobody = (False,) * len(_fields(operands))
    return _sweep(loss, statics, nobody, operands, rows, kept, None)[0]


def _sweep(
    loss: Loss,
    statics: tuple[Static, ...],
    asked: tuple[bool, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
    g: PerRow | None,
) -> tuple[Scalar, Operands]:
    """Σ_rows g loss, and the slopes that are asked for; g is 1 without."""
    dtype, pieces = _dtype(operands), _pieces(statics, operands)

    def chunk(carry: tuple[Scalar, Operands], i: Index) -> tuple[Scalar, Operands]:
        value, slopes = carry
        part = _part(statics, operands, rows, kept, i)
        g_i = None if g is None else pieces.take(g, i)

        def summed(zs: Zs, shared: Any, each: Any) -> Scalar:
            losses = loss(zs, shared, each, part.rows, part.kept)
            return jnp.sum(losses if g_i is None else scale(g_i, losses))

        if not any(asked):
            return value + summed(part.zs, operands.shared, part.each), slopes
        more, pull = jax.vjp(summed, part.zs, operands.shared, part.each)
        dzs, dshared, deach = pull(jnp.ones_like(more))
        every = zip(statics, slopes.projections, operands.projections, part.hs, dzs, strict=True)
        projections = tuple(_added(pieces, i, dtype, *each) for each in every)
        shared, each = slopes.shared, slopes.each
        if shared is not None:
            shared = jax.tree.map(jnp.add, shared, dshared)
        if each is not None:
            each = jax.tree.map(lambda x, d: pieces.put(x, d, i), each, deach)
        return value + more, Operands(projections, shared, each)

    fields = zip(_fields(operands), asked, strict=True)
    zeros = _operands(_zeros(field, dtype) if wanted else None for field, wanted in fields)
    like = operands.projections[0].h
    return pieces.sweep(chunk, (jnp.zeros((), dtype), zeros), like=like)


def _zeros(field: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), field)


def _added(
    pieces: Cut,
    i: Index,
    dtype: jnp.dtype,
    static: Static,
    slopes: Projection,
    given: Projection,
    h_i: Array,
    dz: Logits,
) -> Projection:
    """The slopes of a projection with those of a chunk."""
    dh, dw, db = slopes
    narrow = rounded(dz, given.h, given.w)
    if dh is not None:
        dh = pieces.put(dh, to_hidden(static, narrow, given.w, dtype), i)
    if dw is not None:
        dw = dw + to_head(static, h_i, narrow, dtype)
    if db is not None:
        db = db + jnp.sum(dz, axis=0, dtype=dtype)
    return Projection(dh, dw, db)


def _given(operands: Operands) -> tuple[Operands, tuple[bool, ...]]:
    """The values of what a forward rule with symbolic zeros is given, and which are asked for."""
    return jax.tree.map(lambda x: x.value, operands), tuple(map(perturbed, _fields(operands)))


def _back(slopes: Operands, types: Types, g: Scalar | None) -> Operands:
    """The slopes times g, each in the dtype of what it is for."""
    leaves, structure = jax.tree.flatten(slopes)

    def back(slope: Array, like: Any) -> Any:
        if slope.dtype == bool:
            return nothing(like)
        return (slope if g is None else g * slope).astype(like.dtype)

    found = [back(slope, like) for slope, like in zip(leaves, types.leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def _told(slopes: Operands, operands: Operands) -> Operands:
    """One structure whatever is asked: an empty array where it is not."""
    pairs = zip(_fields(slopes), _fields(operands), strict=True)
    return _operands(jax.tree.map(lambda _: flag(False), x) if s is None else s for s, x in pairs)


def _total_fwd(loss, statics, operands, rows, kept):
    operands, asked = _given(operands)
    rows, kept = jax.tree.map(lambda x: x.value, (rows, kept))
    value, slopes = _sweep(loss, statics, asked, operands, rows, kept, None)
    return value, (_told(slopes, operands), types_of(operands))


def _total_bwd(loss, statics, saved, g):
    slopes, types = saved
    return _back(slopes, types, g), None, None


total.defvjp(_total_fwd, _total_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def each_row(
    loss: Loss, statics: tuple[Static, ...], operands: Operands, rows: Any, kept: RowMask | None
) -> PerRow:
    """Each row's loss."""
    return _losses(loss, statics, operands, rows, kept)


def _losses(
    loss: Loss, statics: tuple[Static, ...], operands: Operands, rows: Any, kept: RowMask | None
) -> PerRow:
    pieces, h = _pieces(statics, operands), operands.projections[0].h

    def chunk(losses: PerRow, i: Index) -> PerRow:
        part = _part(statics, operands, rows, kept, i)
        found = loss(part.zs, operands.shared, part.each, part.rows, part.kept)
        return pieces.put(losses, found, i)

    return pieces.sweep(chunk, jnp.zeros(h.shape[0], _dtype(operands)), like=h)


def _each_row_fwd(loss, statics, operands, rows, kept):
    operands, asked = _given(operands)
    rows, kept = jax.tree.map(lambda x: x.value, (rows, kept))
    losses = _losses(loss, statics, operands, rows, kept)
    return losses, (operands, rows, kept, losses, tuple(map(flag, asked)))


def _each_row_bwd(loss, statics, saved, g):
    operands, rows, kept, losses, flags = saved
    # A row at fault that weighs nothing passes nothing back: 0·NaN would be NaN in the head.
    heard = (g != 0) | jnp.isfinite(losses)
    heard = heard if kept is None else heard & kept
    asked = tuple(map(raised, flags))
    _, slopes = _sweep(loss, statics, asked, operands, rows, heard, g)
    return _back(_told(slopes, operands), types_of(operands), None), None, None


each_row.defvjp(_each_row_fwd, _each_row_bwd, symbolic_zeros=True)
