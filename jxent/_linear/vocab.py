"""A block of classes at a time: each row's numbers online, logits computed again on the way back.

    forward     (m, S) ← merge((m, S), those of z = h·w_block)
    backward    dh ← dh + dz·w_blockᵀ        dw_block = hᵀ·dz

Every row has a cotangent of its own, so the gradients wait for it: 8·N·V·D flops.  Kept between
the passes: the arguments and a few numbers per row.

Two numbers more than those of the dense losses come out of the same pass: the largest logit's
class, and the entropy of the row, from E = Σ_v exp(z_v − m)(m − z_v),

    H = Σ_v p_v nll_v = log1p(S) + E/(1 + S)        ∂H/∂z_v = p_v (nll_v − H)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jxent._core import log_softmax
from jxent._core.log_softmax import Statistics, derivative, logsumexp
from jxent._core.needs_grad import decode_flag, encode_flag, needs_grad, symbolic_zero
from jxent._core.row_terms import apply_mask_and_softcap
from jxent._core.safe_math import multiply_no_nan
from jxent._core.targets import at_label, is_label
from jxent._core.weighting import Coefficients, combine_terms
from jxent._linear.projection import (
    Bias,
    Head,
    Hidden,
    LinearOptions,
    dtype_of,
    head_gradient,
    hidden_gradient,
    project_rows,
    scale_to_half,
    selected,
)
from jxent._linear.tiling import Index, Tiles, split_axis
from jxent._typing import ClassWeights, Labels, Logits, PerRow, RowMask

_LARGEST_GAP = 1e6


class VocabTerms(NamedTuple):
    """Each row's numbers, then what is not differentiated."""

    nll: PerRow
    lse: PerRow
    smooth_loss: PerRow | None
    entropy: PerRow | None
    label: Labels  # as given, or the class of the largest logit; −1 in rows at fault
    m: PerRow
    S: PerRow


class _OnlineState(NamedTuple):
    """What is known of each row after some blocks."""

    stats: Statistics
    label: Labels
    z_y: PerRow
    gaps: PerRow | None  # Σ_v c_v (m − z_v)
    share: PerRow | None  # Σ_v c_v
    E: PerRow | None


class _Block(NamedTuple):
    """Some classes' part of the arguments."""

    start: Index
    w: Head
    b: Bias | None
    y: Labels | None  # −1 where the label is not among them
    c: ClassWeights | None


def _class_tiles(static: LinearOptions, w: Head) -> Tiles:
    return split_axis(w.shape[static.classes_axis], static.size)


def _block(static: LinearOptions, i: Index, w, b, y, c, dtype) -> _Block:
    """Piece i; classes that another piece owns are impossible here and weigh nothing."""
    tiles = _class_tiles(static, w)
    own, start = tiles.owns(i), tiles.start(i)
    b_i = None if b is None else tiles.take(b, i)
    c_i = y_i = None
    if static.options.smooth_loss:
        c_i = jnp.ones(tiles.size, dtype) if c is None else tiles.take(c, i)
    if y is not None:
        at = y - start
        y_i = jnp.where((at >= 0) & (at < tiles.owned(i)), at, -1)
    if own is not None:
        b_i = jnp.where(own, jnp.zeros(tiles.size, dtype) if b_i is None else b_i, -jnp.inf)
        c_i = None if c_i is None else jnp.where(own, c_i, 0)
    return _Block(start, tiles.take(w, i, static.classes_axis), b_i, y_i, c_i)


def _update_state(seen: _OnlineState, z: Logits, block: _Block) -> _OnlineState:
    m, S = log_softmax.statistics(z, z.dtype)
    # In a block, unlike in a row, all classes may be impossible.
    stats = log_softmax.merge(seen.stats, Statistics(m, jnp.where(m == -jnp.inf, -1, S)))
    if block.y is None:
        here, z_y = m > seen.stats.m, m
        label = jnp.where(here, block.start + jnp.argmax(z, axis=-1).astype(jnp.int32), seen.label)
    else:
        here, z_y, label = block.y >= 0, at_label(z, block.y), seen.label
    # Distances are taken from m, or from 0 as long as every class is impossible.
    top = jnp.where(jnp.isinf(stats.m), 0, stats.m)
    rise = jnp.where(jnp.isinf(seen.stats.m), 0, top - seen.stats.m)
    gaps, share, E = seen.gaps, seen.share, seen.E
    if gaps is not None:
        assert share is not None and block.c is not None
        gaps = (
            gaps + multiply_no_nan(share, rise) + log_softmax.weighted_gap(block.c[None, :], z, top)
        )
        share = share + jnp.sum(block.c)
    if E is not None:
        # exp(−d) d is 0 long before there, and so is what its derivatives make of it.
        d = jnp.minimum(-log_softmax.minus_max(z, top[:, None]), _LARGEST_GAP)
        left, rise = jnp.exp(-rise), jnp.minimum(rise, jnp.finfo(z.dtype).max)
        E = left * E + (left * rise) * (1 + seen.stats.S) + jnp.sum(jnp.exp(-d) * d, axis=-1)
    return _OnlineState(stats, label, jnp.where(here, z_y, seen.z_y), gaps, share, E)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def vocab_terms(
    static: LinearOptions,
    entropy: bool,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels | None,
    c: ClassWeights | None,
    kept: RowMask | None,
) -> VocabTerms:
    """Each row's numbers; 0 in rows that are not kept, NaN in rows at fault."""
    return _plain_vocab_terms(static, entropy, h, w, b, y, c, kept)


def _plain_vocab_terms(static: LinearOptions, entropy: bool, h, w, b, y, c, kept) -> VocabTerms:
    """The same without a rule, which has the same derivatives, only more dearly."""
    dtype, n = dtype_of(h, w, b), h.shape[0]
    zero = jnp.zeros(n, dtype)
    smooth_loss = zero if static.options.smooth_loss else None
    start = _OnlineState(
        Statistics(jnp.full(n, -jnp.inf, dtype), jnp.full(n, -1, dtype)),
        label=jnp.full(n, -1, jnp.int32) if y is None else y,
        z_y=zero,
        gaps=smooth_loss,
        share=smooth_loss,
        E=zero if entropy else None,
    )

    def see(seen: _OnlineState, i: Index) -> _OnlineState:
        block = _block(static, i, w, b, y, c, dtype)
        u = project_rows(static, kept, h, block.w, block.b)
        return _update_state(seen, apply_mask_and_softcap(static.options, None, u), block)

    seen = _class_tiles(static, w).scan(see, start, like=h)
    m, S = seen.stats
    invalid = ~jnp.isfinite(m) | jnp.isnan(S) | (seen.label < 0)
    invalid = invalid if kept is None else invalid & kept
    stats = Statistics(m, jnp.where(invalid, jnp.nan, S))
    rest = jnp.log1p(stats.S)

    def keep(x: PerRow) -> PerRow:
        return x if kept is None else jnp.where(kept, x, 0)

    out_smooth_loss = out_entropy = None
    if seen.gaps is not None and seen.share is not None:
        out_smooth_loss = keep(seen.gaps + multiply_no_nan(seen.share, rest))
    if seen.E is not None:
        out_entropy = keep(rest + seen.E / (1 + stats.S))
    nll = keep(log_softmax.nll_of(seen.z_y, stats))
    label = jnp.where(invalid, -1, seen.label)
    return VocabTerms(nll, keep(logsumexp(stats)), out_smooth_loss, out_entropy, label, *stats)


def _vocab_fwd(static, entropy, h, w, b, y, c, kept):
    given = h, w, b, y, c, kept
    wanted = tuple(encode_flag(needs_grad(x)) for x in (h, w, b, c))
    values = jax.tree.map(lambda x: x.value, given)
    row = _plain_vocab_terms(static, entropy, *values)
    return row, (values, row, wanted)


class _Gradients(NamedTuple):
    h: Any
    w: Any
    b: Any
    c: Any


def _vocab_bwd(static, _, saved, cotangents: VocabTerms):
    (h, w, b, _y, c, kept), row, flags = saved
    wanted = _Gradients(*map(decode_flag, flags))
    dtype, tiles = row.nll.dtype, _class_tiles(static, w)
    dnll, dlse, dsmooth_loss, dentropy = (
        None if isinstance(x, SymbolicZero) else x for x in cotangents[:4]
    )
    # A row of weight 0 passes nothing back, whatever it holds: a row of zeros is put in its place.
    active = jnp.isfinite(row.m + row.S)
    for cotangent in (dnll, dlse, dsmooth_loss, dentropy):
        active = active if cotangent is None else active | (cotangent != 0)
    active = active if kept is None else kept & active

    def only(x: PerRow) -> PerRow:
        return jnp.where(active, x, 0)

    dnll, dlse, dsmooth_loss, dentropy = (
        None if x is None else only(x) for x in (dnll, dlse, dsmooth_loss, dentropy)
    )
    share = None
    if dsmooth_loss is not None:
        share = jnp.asarray(w.shape[static.classes_axis], dtype) if c is None else jnp.sum(c)
        share = jnp.broadcast_to(share, dsmooth_loss.shape)
    # lse keeps its derivative, and m and S its digits.
    m, S, nll, lse = map(only, (*lax.stop_gradient((row.m, row.S)), row.nll, row.lse))
    entropy = None if row.entropy is None else only(row.entropy)
    log1p_S = log_softmax.with_gradient_of(jnp.log1p(S), lse)

    def back(gradients: _Gradients, i: Index) -> _Gradients:
        block = _block(static, i, w, b, row.label, c, dtype)
        u = project_rows(static, active, h, block.w, block.b)
        z, pull = jax.vjp(partial(apply_mask_and_softcap, static.options, None), u)
        p = log_softmax.softmax_probabilities(z, Statistics(m, S), lse)
        assert block.y is not None
        target = is_label(block.y, z), jnp.expm1(-nll)
        c_i = None if block.c is None else block.c[None, :]
        dz = jnp.zeros_like(p)
        if not dnll is dlse is dsmooth_loss is None:
            dz = derivative(
                p, target, c_i, dnll=dnll, dlse=dlse, dsmooth_loss=dsmooth_loss, total=share
            )
        each = log_softmax.clipped_neg_log_softmax(z, m, log1p_S)
        if dentropy is not None and entropy is not None:
            dz = dz + dentropy[:, None] * log_softmax.entropy_derivative(p, each, entropy)
        (dz,) = pull(dz)
        narrow = scale_to_half(dz, h, w)
        dh, dw, db, dc = gradients
        if dh is not None:
            dh = dh + hidden_gradient(static, narrow, block.w, dtype)
        if dw is not None:
            dw_i = head_gradient(static, selected(active, h), narrow, dtype).astype(dw.dtype)
            dw = tiles.put(dw, dw_i, i, static.classes_axis)
        if db is not None:
            db = tiles.put(db, jnp.sum(dz, axis=0).astype(db.dtype), i)
        if dc is not None and dsmooth_loss is not None:
            dc = tiles.put(dc, jnp.sum(dsmooth_loss[:, None] * each, axis=0), i)
        return _Gradients(dh, dw, db, dc)

    start = _Gradients(
        jnp.zeros(h.shape, dtype) if wanted.h else None,
        jnp.zeros_like(w) if wanted.w else None,
        jnp.zeros_like(b) if wanted.b and b is not None else None,
        jnp.zeros_like(c) if wanted.c and c is not None and dsmooth_loss is not None else None,
    )
    dh, dw, db, dc = tiles.scan(back, start, like=h)
    dh = None if dh is None else dh.astype(h.dtype)
    pairs = zip((dh, dw, db, dc), (h, w, b, c), strict=True)
    given = (symbolic_zero(jax.typeof(x)) if d is None and x is not None else d for d, x in pairs)
    dh, dw, db, dc = given
    return dh, dw, db, None, dc, None


vocab_terms.defvjp(_vocab_fwd, _vocab_bwd, symbolic_zeros=True)


def run(
    static: LinearOptions,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels,
    c: ClassWeights | None,
    kept: RowMask | None,
    by: Coefficients,
) -> PerRow:
    """Each row's loss."""
    row = vocab_terms(static, False, h, w, b, y, c, kept)
    return combine_terms(by, row.nll, row.lse, row.smooth_loss)
