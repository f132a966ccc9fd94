"""A chunk of rows at a time, each chunk's gradients beside its loss.

    loss = Σ_chunks Σ_rows loss        dh_chunk = dz·wᵀ        dw = Σ_chunks hᵀ·dz

A chunk is the dense loss and its own rule, on logits that are dropped after it.  The sum has one
cotangent, which multiplies the gradients afterwards: 6·N·V·D flops, and only the products that
are asked for.  Kept between the passes: the gradients.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent import _dense
from jxent._linear.cut import Index, cut
from jxent._linear.head import (
    Bias,
    Head,
    Hidden,
    Static,
    dtype_of,
    flag,
    nothing,
    perturbed,
    project,
    rounded,
    selected,
    to_head,
    to_hidden,
    types_of,
)
from jxent._typing import ClassWeights, Labels, Logits, RowMask, Scalar
from jxent._weights import Coefficients, weigh


class Slopes(NamedTuple):
    """The gradients, in the dtype of the loss; None where nobody asked."""

    h: Float[Array, "N D"] | None
    w: Float[Array, "_ _"] | None
    b: Float[Array, "V"] | None
    c: Float[Array, "V"] | None
    by: Coefficients | None


class _Asked(NamedTuple):
    h: bool = False
    w: bool = False
    b: bool = False
    c: bool = False
    by: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def losses(
    static: Static,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels,
    c: ClassWeights | None,
    kept: RowMask | None,
    by: Coefficients,
) -> Scalar:
    """The sum of the rows' losses."""
    return _sweep(static, _Asked(), h, w, b, y, c, kept, by)[0]


def _sweep(static: Static, asked: _Asked, h, w, b, y, c, kept, by) -> tuple[Scalar, Slopes]:
    """Σ_rows loss, and the slopes that are asked for."""
    dtype = dtype_of(h, w, b)
    pieces = cut(h.shape[0], static.size)

    def chunk(carry: tuple[Scalar, Slopes], i: Index) -> tuple[Scalar, Slopes]:
        loss, slopes = carry
        own, keep = pieces.owns(i), None if kept is None else pieces.take(kept, i)
        keep = own if keep is None else keep if own is None else keep & own
        h_i, y_i, by_i = jax.tree.map(lambda x: pieces.take(x, i), (h, y, by))
        h_i = selected(keep, h_i)

        def total(z: Logits, c: ClassWeights | None, by: Coefficients) -> Scalar:
            rows = _dense.training_rows(static.options, z, y_i, c, None, keep)
            return jnp.sum(weigh(by, *rows))

        z = project(static, h_i, w, b)
        if not any(asked):
            return loss + total(z, c, by_i), slopes
        part, pull = jax.vjp(total, z, c, by_i)
        dz, dc, dby = pull(jnp.ones_like(part))
        narrow = rounded(dz, h, w)
        dh, dw, db, dc_before, dby_before = slopes
        if dh is not None:
            dh = pieces.put(dh, to_hidden(static, narrow, w, dtype), i)
        if dw is not None:
            dw = dw + to_head(static, h_i, narrow, dtype)
        if db is not None:
            db = db + jnp.sum(dz, axis=0)
        if dc_before is not None:
            dc_before = dc_before + dc
        if dby_before is not None:
            dby_before = jax.tree.map(lambda x, part: pieces.put(x, part, i), dby_before, dby)
        return loss + part, Slopes(dh, dw, db, dc_before, dby_before)

    given = zip((h, w, b, c, by), asked, strict=True)
    zeros = [_zeros(x, dtype) if wanted else None for x, wanted in given]
    return pieces.sweep(chunk, (jnp.zeros((), dtype), Slopes(*zeros)), like=h)


def _zeros(x: Array | Coefficients, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), x)


def _fwd(static, h, w, b, y, c, kept, by):
    given = h, w, b, y, c, kept, by
    h, w, b, y, c, kept, by = jax.tree.map(lambda x: x.value, given)
    operands = (h, w, b, c, by)
    asked = _Asked(*(perturbed(given[i]) for i in (0, 1, 2, 4, 6)))
    loss, slopes = _sweep(static, asked, h, w, b, y, c, kept, by)
    # One structure whatever is asked: an empty array where it is not.
    pairs = zip(slopes, operands, strict=True)
    told = (jax.tree.map(lambda _: flag(False), x) if s is None else s for s, x in pairs)
    return loss, (tuple(told), types_of(operands))


def _bwd(_, saved, g):
    slopes, types = saved
    leaves, structure = jax.tree.flatten(slopes)

    def back(slope: Array, like: Any) -> Any:
        unasked = slope.dtype == bool
        return nothing(like) if unasked else (g * slope).astype(like.dtype)

    found = [back(slope, like) for slope, like in zip(leaves, types.leaves, strict=True)]
    h, w, b, c, by = jax.tree.unflatten(structure, found)
    return h, w, b, None, c, None, by


losses.defvjp(_fwd, _bwd, symbolic_zeros=True)
