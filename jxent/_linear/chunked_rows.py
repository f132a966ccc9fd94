"""A chunk of rows at a time: any loss of the logits of some projections, which are never stored.

    z_k = h_k·w_k + b_k        dh_k of a chunk = dz_k·w_kᵀ        dw_k = Σ_chunks h_kᵀ·dz_k

A chunk is the dense loss and its own rule, on logits that are dropped after it.  Two functions:

    sum_of_rows  Σ_rows loss.  The sum has one cotangent g, and every gradient is linear in it:

                     ∂(g Σ loss)/∂x = g · ∂(Σ loss)/∂x

                 so the forward rule computes the gradients beside the loss, for g = 1, and the
                 backward rule multiplies them by g: no logit is computed twice.
                 Residuals: the gradients.
    each_row     Each row's loss.  Row r's cotangent g_r is not known before the backward pass,
                 which computes the logits again and differentiates Σ_r g_r loss_r.
                 Residuals: the arguments and the losses.

Only the products whose gradients are wanted are computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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
from jxent._core.safe_math import multiply_no_nan, zero_unless
from jxent._linear.projection import (
    Projection,
    Static,
    head_gradient,
    hidden_gradient,
    project,
    scale_to_half,
    widest_dtype,
)
from jxent._linear.row_loss import Masks, Operands, RowLoss, Zs, mask_each_row
from jxent._linear.tiling import Index, Tiles, split_axis
from jxent._typing import Distribution, Logits, PerRow, Scalar


def _fields(operands: Operands) -> tuple[Any, ...]:
    """List the arguments of which a gradient may be wanted, one by one."""
    of_projections = (x for p in operands.projections for x in (p.hidden, p.head, p.bias))
    return (*of_projections, *operands[1:])


def _with_fields(like: Operands, fields: Iterable[Any]) -> Operands:
    """Build operands in the structure of `like` from the list of `_fields`."""
    *of_projections, shared, each, distribution = fields
    triples = (of_projections[k : k + 3] for k in range(0, len(of_projections), 3))
    pairs = zip(triples, like.projections, strict=True)
    projections = tuple(Projection(h, w, b, p.layout) for (h, w, b), p in pairs)
    return Operands(projections, shared, each, distribution)


class _Chunk(NamedTuple):
    """Some of the rows: their projections and what belongs to them."""

    projections: tuple[Projection, ...]
    each: Any
    distribution: Distribution | None
    labels: Any
    masks: Masks


def _row_tiles(static: Static, operands: Operands) -> Tiles:
    return split_axis(_of_each_row(operands).shape[0], static.tile_size)


def _of_each_row(operands: Operands) -> Array:
    """Choose an operand with rows: hidden states, or a distribution without any."""
    rows: Array = jax.tree.leaves((operands.projections, operands.distribution))[0]
    return rows


def _chunk(tiles: Tiles, operands: Operands, labels: Any, masks: Masks, i: Index) -> _Chunk:
    """Slice chunk i; rows that another chunk owns, and dropped ones, have hidden states of 0."""
    own, kept = tiles.owns(i), None if masks.rows is None else tiles.take(masks.rows, i)
    kept = own if kept is None else kept if own is None else kept & own
    labels_i, each_i, t_i = jax.tree.map(
        lambda x: tiles.take(x, i), (labels, operands.each, operands.distribution)
    )
    # Wide, so that its gradient is rounded once, at the end.
    t_i = None if t_i is None else t_i.astype(_loss_dtype(operands))
    projections = tuple(
        replace(p, hidden=zero_unless(kept, tiles.take(p.hidden, i))) for p in operands.projections
    )
    return _Chunk(projections, each_i, t_i, labels_i, Masks(kept, masks.classes))


def _logits(static: Static, chunk: _Chunk) -> Zs:
    return tuple(project(static, p) for p in chunk.projections)


def _losses(
    loss: RowLoss, zs: Zs, shared: Any, each: Any, distribution: Distribution | None, chunk: _Chunk
) -> PerRow:
    """Compute the losses of a chunk's rows, from what is differentiated and the rest of it."""
    kept, classes = chunk.masks
    targets = chunk.labels if distribution is None else distribution
    return loss(zs, shared, each, targets, kept, mask_each_row(classes, zs[0] if zs else targets))


def _loss_dtype(operands: Operands) -> jnp.dtype:
    """Return the dtype of the losses: that of the logits, or where there are none of `shared`."""
    return widest_dtype(*jax.tree.leaves(operands.projections or operands.shared))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_of_rows(
    loss: RowLoss, static: Static, operands: Operands, labels: Any, masks: Masks
) -> Scalar:
    """Compute the sum of the rows' losses."""
    wanted = (False,) * len(_fields(operands))
    return _sum_and_gradients(loss, static, wanted, operands, labels, masks, None)[0]


def _sum_and_gradients(
    loss: RowLoss,
    static: Static,
    wanted: tuple[bool, ...],
    operands: Operands,
    labels: Any,
    masks: Masks,
    g: PerRow | None,
) -> tuple[Scalar, Operands]:
    """Compute Σ_rows g loss (g = 1 if None), and the gradients that are wanted."""
    dtype, tiles = _loss_dtype(operands), _row_tiles(static, operands)

    def add_chunk(carry: tuple[Scalar, Operands], i: Index) -> tuple[Scalar, Operands]:
        value, gradients = carry
        chunk = _chunk(tiles, operands, labels, masks, i)
        g_i = None if g is None else tiles.take(g, i)

        def total(zs: Zs, shared: Any, each: Any, distribution: Distribution | None) -> Scalar:
            losses = _losses(loss, zs, shared, each, distribution, chunk)
            return jnp.sum(losses if g_i is None else multiply_no_nan(g_i, losses))

        given = _logits(static, chunk), operands.shared, chunk.each, chunk.distribution
        if not any(wanted):
            return value + total(*given), gradients
        more, pull = jax.vjp(total, *given)
        dzs, dshared, *dchunk = pull(jnp.ones_like(more))
        triples = zip(gradients.projections, chunk.projections, dzs, strict=True)
        add = partial(_add_gradients, static, tiles, i, dtype)
        projections = tuple(add(*triple) for triple in triples)
        shared, *of_rows = gradients[1:]
        if shared is not None:
            shared = jax.tree.map(jnp.add, shared, dshared)
        of_rows = [
            None if x is None else jax.tree.map(lambda x, d: tiles.put(x, d, i), x, d)
            for x, d in zip(of_rows, dchunk, strict=True)
        ]
        return value + more, Operands(projections, shared, *of_rows)

    fields = zip(_fields(operands), wanted, strict=True)
    zeros = _with_fields(operands, (_zeros(x, dtype) if w else None for x, w in fields))
    return tiles.scan(add_chunk, (jnp.zeros((), dtype), zeros), like=_of_each_row(operands))


def _zeros(field: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), field)


def _add_gradients(
    static: Static,
    tiles: Tiles,
    i: Index,
    dtype: jnp.dtype,
    gradients: Projection,
    chunk: Projection,
    dz: Logits,
) -> Projection:
    """Add a chunk's gradients to those of a projection."""
    dh, dw, db = gradients.hidden, gradients.head, gradients.bias
    by = scale_to_half(dz, chunk)
    if dh is not None:
        dh = tiles.put(dh, hidden_gradient(static, by, chunk, dtype), i)
    if dw is not None:
        dw = dw + head_gradient(static, by, chunk, dtype)
    if db is not None:
        db = db + jnp.sum(dz, axis=0, dtype=dtype)
    return Projection(dh, dw, db, chunk.layout)


def _primal_values(tree: Any) -> Any:
    """Take the values of what a forward rule with symbolic zeros is given."""
    return jax.tree.map(lambda x: x.value, tree)


def _scaled_gradients(gradients: Operands, types: Types, g: Scalar | None) -> Operands:
    """Multiply gradients by g, and cast each to the dtype of what it belongs to."""
    leaves, structure = jax.tree.flatten(gradients)

    def scaled(gradient: Array, like: Any) -> Any:
        if gradient.dtype == bool:  # `_encode_structure`: not wanted
            return symbolic_zero(like)
        if g is not None:
            # In a dropped row 0·g is 0, also for the infinite g of a mean by a normalizer of 0.
            gradient = multiply_no_nan(gradient, jnp.broadcast_to(g, gradient.shape))
        return gradient.astype(like.dtype)

    found = [scaled(gradient, like) for gradient, like in zip(leaves, types.leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def _encode_structure(gradients: Operands, operands: Operands) -> Operands:
    """Give gradients one structure whatever is wanted: an empty array where one is not."""
    pairs = zip(_fields(gradients), _fields(operands), strict=True)
    encoded = (
        jax.tree.map(lambda _: encode_flag(False), x) if gradient is None else gradient
        for gradient, x in pairs
    )
    return _with_fields(operands, encoded)


def _sum_of_rows_fwd(loss, static, operands, labels, masks):
    wanted = tuple(map(needs_grad, _fields(operands)))
    operands, labels, masks = map(_primal_values, (operands, labels, masks))
    value, gradients = _sum_and_gradients(loss, static, wanted, operands, labels, masks, None)
    return value, (_encode_structure(gradients, operands), types_of(operands))


def _sum_of_rows_bwd(loss, static, residuals, g):
    gradients, types = residuals
    return _scaled_gradients(gradients, types, g), None, None


sum_of_rows.defvjp(_sum_of_rows_fwd, _sum_of_rows_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def each_row(
    loss: RowLoss, static: Static, operands: Operands, labels: Any, masks: Masks
) -> PerRow:
    """Compute each row's loss."""
    return _loss_of_each_row(loss, static, operands, labels, masks)


def _loss_of_each_row(
    loss: RowLoss, static: Static, operands: Operands, labels: Any, masks: Masks
) -> PerRow:
    tiles, like = _row_tiles(static, operands), _of_each_row(operands)

    def put_chunk(losses: PerRow, i: Index) -> PerRow:
        chunk = _chunk(tiles, operands, labels, masks, i)
        given = _logits(static, chunk), operands.shared, chunk.each, chunk.distribution
        found = _losses(loss, *given, chunk)
        return tiles.put(losses, found, i)

    return tiles.scan(put_chunk, jnp.zeros(like.shape[0], _loss_dtype(operands)), like=like)


def _each_row_fwd(loss, static, operands, labels, masks):
    flags = tuple(encode_flag(needs_grad(x)) for x in _fields(operands))
    operands, labels, masks = map(_primal_values, (operands, labels, masks))
    losses = _loss_of_each_row(loss, static, operands, labels, masks)
    return losses, (operands, labels, masks, losses, flags)


def _each_row_bwd(loss, static, residuals, g):
    operands, labels, masks, losses, flags = residuals
    # An invalid row without a cotangent passes nothing back: 0·NaN would be NaN in the head.
    active = (g != 0) | jnp.isfinite(losses)
    masks = Masks(active if masks.rows is None else active & masks.rows, masks.classes)
    wanted = tuple(map(decode_flag, flags))
    _, gradients = _sum_and_gradients(loss, static, wanted, operands, labels, masks, g)
    types = types_of(operands)
    return _scaled_gradients(_encode_structure(gradients, operands), types, None), None, None


each_row.defvjp(_each_row_fwd, _each_row_bwd, symbolic_zeros=True)
