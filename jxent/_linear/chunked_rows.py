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

from jxent._core.needs_grad import (
    Types,
    decode_flag,
    encode_flag,
    needs_grad,
    symbolic_zero,
    types_of,
)
from jxent._core.safe_math import multiply_no_nan
from jxent._linear.projection import (
    LinearOptions,
    dtype_of,
    head_gradient,
    hidden_gradient,
    project,
    scale_to_half,
    selected,
)
from jxent._linear.tiling import Index, Tiles, split_axis
from jxent._typing import Logits, PerRow, RowMask, Scalar

Zs = tuple[Logits, ...]
# (logits of each projection, shared, each, rows, kept) → the losses of some rows
RowLoss = Callable[[Zs, Any, Any, Any, RowMask | None], PerRow]


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


class _Chunk(NamedTuple):
    """One chunk of the rows."""

    hs: tuple[Array, ...]
    zs: Zs
    each: Any
    rows: Any
    kept: RowMask | None


def _row_tiles(statics: tuple[LinearOptions, ...], operands: Operands) -> Tiles:
    return split_axis(operands.projections[0].h.shape[0], statics[0].size)


def _chunk(
    statics: tuple[LinearOptions, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
    i: Index,
) -> _Chunk:
    tiles = _row_tiles(statics, operands)
    own, keep = tiles.owns(i), None if kept is None else tiles.take(kept, i)
    keep = own if keep is None else keep if own is None else keep & own
    rows_i, each_i = jax.tree.map(lambda x: tiles.take(x, i), (rows, operands.each))
    hs = tuple(selected(keep, tiles.take(p.h, i)) for p in operands.projections)
    triples = zip(statics, hs, operands.projections, strict=True)
    zs = tuple(project(static, h, p.w, p.b) for static, h, p in triples)
    return _Chunk(hs, zs, each_i, rows_i, keep)


def _chunk_dtype(operands: Operands) -> jnp.dtype:
    return dtype_of(*jax.tree.leaves(operands.projections))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_of_rows(
    loss: RowLoss,
    statics: tuple[LinearOptions, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
) -> Scalar:
    """The sum of the rows' losses."""
    none_wanted = (False,) * len(_fields(operands))
    return _scan_chunks(loss, statics, none_wanted, operands, rows, kept, None)[0]


def _scan_chunks(
    loss: RowLoss,
    statics: tuple[LinearOptions, ...],
    wanted: tuple[bool, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
    g: PerRow | None,
) -> tuple[Scalar, Operands]:
    """Σ_rows g loss, and the slopes that are asked for; g is 1 without."""
    dtype, tiles = _chunk_dtype(operands), _row_tiles(statics, operands)

    def chunk(carry: tuple[Scalar, Operands], i: Index) -> tuple[Scalar, Operands]:
        value, gradients = carry
        part = _chunk(statics, operands, rows, kept, i)
        g_i = None if g is None else tiles.take(g, i)

        def summed(zs: Zs, shared: Any, each: Any) -> Scalar:
            losses = loss(zs, shared, each, part.rows, part.kept)
            return jnp.sum(losses if g_i is None else multiply_no_nan(g_i, losses))

        if not any(wanted):
            return value + summed(part.zs, operands.shared, part.each), gradients
        more, pull = jax.vjp(summed, part.zs, operands.shared, part.each)
        dzs, dshared, deach = pull(jnp.ones_like(more))
        every = zip(statics, gradients.projections, operands.projections, part.hs, dzs, strict=True)
        projections = tuple(_accumulate(tiles, i, dtype, *each) for each in every)
        shared, each = gradients.shared, gradients.each
        if shared is not None:
            shared = jax.tree.map(jnp.add, shared, dshared)
        if each is not None:
            each = jax.tree.map(lambda x, d: tiles.put(x, d, i), each, deach)
        return value + more, Operands(projections, shared, each)

    fields = zip(_fields(operands), wanted, strict=True)
    zeros = _operands(_zeros(field, dtype) if wanted else None for field, wanted in fields)
    like = operands.projections[0].h
    return tiles.scan(chunk, (jnp.zeros((), dtype), zeros), like=like)


def _zeros(field: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), field)


def _accumulate(
    tiles: Tiles,
    i: Index,
    dtype: jnp.dtype,
    static: LinearOptions,
    gradients: Projection,
    given: Projection,
    h_i: Array,
    dz: Logits,
) -> Projection:
    """The slopes of a projection with those of a chunk."""
    dh, dw, db = gradients
    narrow = scale_to_half(dz, given.h, given.w)
    if dh is not None:
        dh = tiles.put(dh, hidden_gradient(static, narrow, given.w, dtype), i)
    if dw is not None:
        dw = dw + head_gradient(static, h_i, narrow, dtype)
    if db is not None:
        db = db + jnp.sum(dz, axis=0, dtype=dtype)
    return Projection(dh, dw, db)


def _values_and_needs(operands: Operands) -> tuple[Operands, tuple[bool, ...]]:
    """The values of what a forward rule with symbolic zeros is given, and which are asked for."""
    return jax.tree.map(lambda x: x.value, operands), tuple(map(needs_grad, _fields(operands)))


def _scaled_gradients(gradients: Operands, types: Types, g: Scalar | None) -> Operands:
    """The slopes times g, each in the dtype of what it is for."""
    leaves, structure = jax.tree.flatten(gradients)

    def back(gradient: Array, like: Any) -> Any:
        if gradient.dtype == bool:
            return symbolic_zero(like)
        return (gradient if g is None else g * gradient).astype(like.dtype)

    found = [back(gradient, like) for gradient, like in zip(leaves, types.leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def _encode_structure(gradients: Operands, operands: Operands) -> Operands:
    """One structure whatever is asked: an empty array where it is not."""
    pairs = zip(_fields(gradients), _fields(operands), strict=True)
    return _operands(
        jax.tree.map(lambda _: encode_flag(False), x) if s is None else s for s, x in pairs
    )


def _sum_of_rows_fwd(loss, statics, operands, rows, kept):
    operands, wanted = _values_and_needs(operands)
    rows, kept = jax.tree.map(lambda x: x.value, (rows, kept))
    value, gradients = _scan_chunks(loss, statics, wanted, operands, rows, kept, None)
    return value, (_encode_structure(gradients, operands), types_of(operands))


def _sum_of_rows_bwd(loss, statics, saved, g):
    gradients, types = saved
    return _scaled_gradients(gradients, types, g), None, None


sum_of_rows.defvjp(_sum_of_rows_fwd, _sum_of_rows_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def each_row(
    loss: RowLoss,
    statics: tuple[LinearOptions, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
) -> PerRow:
    """Each row's loss."""
    return _row_losses(loss, statics, operands, rows, kept)


def _row_losses(
    loss: RowLoss,
    statics: tuple[LinearOptions, ...],
    operands: Operands,
    rows: Any,
    kept: RowMask | None,
) -> PerRow:
    tiles, h = _row_tiles(statics, operands), operands.projections[0].h

    def chunk(losses: PerRow, i: Index) -> PerRow:
        part = _chunk(statics, operands, rows, kept, i)
        found = loss(part.zs, operands.shared, part.each, part.rows, part.kept)
        return tiles.put(losses, found, i)

    return tiles.scan(chunk, jnp.zeros(h.shape[0], _chunk_dtype(operands)), like=h)


def _each_row_fwd(loss, statics, operands, rows, kept):
    operands, wanted = _values_and_needs(operands)
    rows, kept = jax.tree.map(lambda x: x.value, (rows, kept))
    losses = _row_losses(loss, statics, operands, rows, kept)
    return losses, (operands, rows, kept, losses, tuple(map(encode_flag, wanted)))


def _each_row_bwd(loss, statics, saved, g):
    operands, rows, kept, losses, flags = saved
    # A row at fault that weighs nothing passes nothing back: 0·NaN would be NaN in the head.
    active = (g != 0) | jnp.isfinite(losses)
    active = active if kept is None else active & kept
    wanted = tuple(map(decode_flag, flags))
    _, gradients = _scan_chunks(loss, statics, wanted, operands, rows, active, g)
    return (
        _scaled_gradients(_encode_structure(gradients, operands), types_of(operands), None),
        None,
        None,
    )


each_row.defvjp(_each_row_fwd, _each_row_bwd, symbolic_zeros=True)
