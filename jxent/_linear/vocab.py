"""A block of classes at a time: each row's terms online, logits computed again on the way back.

    forward     (m, S) ← merge((m, S), those of z = h·w_block)
    backward    dh ← dh + dz·w_blockᵀ        dw_block = hᵀ·dz

Every row has its own cotangent, so the gradients wait for it: 8·N·V·D flops.  Residuals: the
arguments and a few numbers per row.

Online.  A block that raises the maximum from m to m' moves what was summed so far.  With
r = m' − m, the sums over the classes before, all relative to the maximum, become

    Σ c_v (m' − z_v) = Σ c_v (m − z_v) + r Σ c_v
    E' = Σ exp(z_v − m')(m' − z_v) = e^(−r) E + r e^(−r) (1 + S)

and Σ c_v t_v (m' − z_v) of a distribution likewise.  Two terms more than those of the dense losses
come out of the same pass: the largest logit's class, and the entropy of the row,

    H = Σ_v p_v nll_v = log1p(S) + E/(1 + S)        ∂H/∂z_v = p_v (nll_v − H)

Backward.  p and nll of a block follow from its logits and the row's (m, S) alone, so dz is
`log_softmax.derivative` block by block, where Σc and Σ c t, sums over all classes, are passed as
`total` and `mass`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jxent._core import log_softmax
from jxent._core.log_softmax import Statistics, derivative, logsumexp
from jxent._core.needs_grad import decode_flag, encode_flag, needs_grad, symbolic_zero
from jxent._core.row_terms import RowTerms, TermOptions, apply_mask_and_softcap
from jxent._core.safe_math import multiply_no_nan, nan_unless, zero_unless
from jxent._core.sum_without_max import minus_max, with_gradient_of
from jxent._core.targets import at_label, is_label, is_labels
from jxent._core.weighting import combine_terms
from jxent._linear.projection import (
    Projection,
    Static,
    head_gradient,
    hidden_gradient,
    project_rows,
    scale_to_half,
)
from jxent._linear.row_loss import CrossEntropyRows, Masks, Operands, mask_each_row
from jxent._linear.tiling import Index, Tiles, split_axis
from jxent._typing import (
    ClassWeights,
    Distribution,
    Labels,
    Logits,
    PerRow,
    RowMask,
    SharedClassMask,
    Targets,
)

_LARGEST_GAP = 1e6


class VocabOptions(NamedTuple):
    """The product's options, the terms to compute, and whether the entropy is one; static."""

    static: Static
    terms: TermOptions
    entropy: bool


class VocabTerms(NamedTuple):
    """The terms of each row, then what is not differentiated."""

    nll: PerRow
    lse: PerRow
    smooth_loss: PerRow | None
    entropy: PerRow | None
    label: Labels  # as given, or the class of the largest logit; −1 in invalid rows
    m: PerRow
    S: PerRow
    mass: PerRow | None  # Σ_v c_v t_v of a distribution


class _WeightedGap(NamedTuple):
    """Sums of each row over the blocks so far, for Σ_v w_v nll_v."""

    gap: PerRow  # Σ_v w_v (m − z_v)
    total: PerRow  # Σ_v w_v


class _OnlineState(NamedTuple):
    """The sums of each row over the blocks so far."""

    stats: Statistics
    label: Labels
    z_y: PerRow
    smooth: _WeightedGap | None  # w = c
    soft: _WeightedGap | None  # w = c ⊙ t
    E: PerRow | None


class _Block(NamedTuple):
    """Some classes' part of the arguments."""

    start: Index
    projection: Projection
    y: Labels | None  # −1 where the label is not among them
    t: Distribution | None
    c: ClassWeights | None
    mask: SharedClassMask | None
    outside: RowMask | None  # rows with mass on an excluded class among them

    @property
    def weighted_targets(self) -> Distribution:
        """Compute c ⊙ t."""
        assert self.t is not None
        return self.t if self.c is None else self.c[None, :] * self.t

    def logits(self, options: VocabOptions, u: Logits) -> Logits:
        """Compute z, the loss's logits, from those of the projection."""
        return apply_mask_and_softcap(options.terms, mask_each_row(self.mask, u), u)


def _class_tiles(static: Static, p: Projection) -> Tiles:
    return split_axis(p.classes, static.tile_size)


def _block(
    options: VocabOptions,
    i: Index,
    p: Projection,
    targets: Targets | None,
    c: ClassWeights | None,
    masks: Masks,
) -> _Block:
    """Slice block i; classes that another block owns are impossible here and weigh nothing."""
    tiles = _class_tiles(options.static, p)
    owned, start = tiles.owns(i), tiles.start(i)
    b_i = None if p.bias is None else tiles.take(p.bias, i).astype(p.dtype)
    c_i = y_i = t_i = outside = None
    if c is not None:
        c_i = tiles.take(c, i)
    elif options.terms.smooth_loss:
        c_i = jnp.ones(tiles.size, p.dtype)
    if targets is not None and is_labels(targets):
        at = targets - start
        y_i = jnp.where((at >= 0) & (at < tiles.owned(i)), at, -1)
    if owned is not None:
        b_i = jnp.where(owned, jnp.zeros(tiles.size, p.dtype) if b_i is None else b_i, -jnp.inf)
        c_i = None if c_i is None else jnp.where(owned, c_i, 0)
    head = tiles.take(p.head, i, p.classes_axis)
    mask_i = None if masks.classes is None else tiles.take(masks.classes, i)
    if targets is not None and not is_labels(targets):
        t_i = zero_unless(masks.rows, tiles.take(targets, i, axis=1).astype(p.dtype))
        t_i = t_i if owned is None else jnp.where(owned[None, :], t_i, 0)
        if mask_i is not None:
            outside = jnp.any((t_i != 0) & ~mask_i[None, :], axis=-1)
            t_i = jnp.where(mask_i[None, :], t_i, 0)
    return _Block(start, replace(p, head=head, bias=b_i), y_i, t_i, c_i, mask_i, outside)


def _update(state: _OnlineState, z: Logits, block: _Block) -> _OnlineState:
    """Update the state with a block's logits."""
    m, S = log_softmax.statistics(z, z.dtype)
    # In a block, unlike in a row, all classes may be impossible.
    stats = log_softmax.merge(state.stats, Statistics(m, jnp.where(m == -jnp.inf, -1, S)))
    here, z_y, label = None, state.z_y, state.label
    if block.t is not None:
        label = label if block.outside is None else jnp.where(block.outside, -1, label)
    elif block.y is None:
        here, z_y = m > state.stats.m, m
        label = jnp.where(here, block.start + jnp.argmax(z, axis=-1).astype(jnp.int32), state.label)
    else:
        here, z_y = block.y >= 0, at_label(z, block.y)
    # Distances are taken from m, or from 0 as long as every class is impossible.
    top = jnp.where(jnp.isinf(stats.m), 0, stats.m)
    rise = jnp.where(jnp.isinf(state.stats.m), 0, top - state.stats.m)
    smooth, soft, E = state.smooth, state.soft, state.E
    if smooth is not None:
        assert block.c is not None
        smooth = _add(smooth, block.c, z, top, rise)
    if soft is not None:
        soft = _add(soft, block.weighted_targets, z, top, rise)
    if E is not None:
        # exp(−d) d is 0 long before this gap, and so are its derivatives; ∞ would make them NaN.
        d = jnp.minimum(-minus_max(z, top[:, None]), _LARGEST_GAP)
        left, rise = jnp.exp(-rise), jnp.minimum(rise, jnp.finfo(z.dtype).max)
        E = left * E + (left * rise) * (1 + state.stats.S) + jnp.sum(jnp.exp(-d) * d, axis=-1)
    z_y = z_y if here is None else jnp.where(here, z_y, state.z_y)
    return _OnlineState(stats, label, z_y, smooth, soft, E)


def _add(
    sums: _WeightedGap, w: Float[Array, "*_ V"], z: Logits, top: PerRow, rise: PerRow
) -> _WeightedGap:
    """Add w_v (top − z_v) and w_v of a block, after the maximum has risen to `top`."""
    gap = sums.gap + multiply_no_nan(sums.total, rise)
    gap = gap + log_softmax.weighted_gap(w if w.ndim == 2 else w[None, :], z, top)
    return _WeightedGap(gap, sums.total + jnp.sum(w, axis=-1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def vocab_terms(
    options: VocabOptions,
    p: Projection,
    targets: Targets | None,
    c: ClassWeights | None,
    masks: Masks,
) -> VocabTerms:
    """Compute each row's terms; 0 in dropped rows, NaN in invalid ones.

    Class weights are 0 on the classes that the masks exclude.  Labels are in [0, V), or −1.
    """
    return _vocab_terms(options, p, targets, c, masks)


def _vocab_terms(options: VocabOptions, p: Projection, targets, c, masks: Masks) -> VocabTerms:
    """Compute each in plain JAX: the forward rule runs this, and second derivatives follow it."""
    dtype, n = p.dtype, p.hidden.shape[0]
    kept, mask = masks
    soft = targets is not None and not is_labels(targets)
    if targets is None:
        label = jnp.full(n, -1, jnp.int32)
    elif soft:
        label = jnp.zeros(n, jnp.int32)
    else:
        if mask is not None:
            targets = jnp.where(jnp.take(mask, targets, mode="clip"), targets, -1)
        label = targets
    zero = jnp.zeros(n, dtype)
    nothing = _WeightedGap(zero, zero)
    start = _OnlineState(
        Statistics(jnp.full(n, -jnp.inf, dtype), jnp.full(n, -1, dtype)),
        label=label,
        z_y=zero,
        smooth=nothing if options.terms.smooth_loss else None,
        soft=nothing if soft else None,
        E=zero if options.entropy else None,
    )

    def update(state: _OnlineState, i: Index) -> _OnlineState:
        block = _block(options, i, p, targets, c, masks)
        u = project_rows(options.static, kept, block.projection)
        return _update(state, block.logits(options, u), block)

    state = _class_tiles(options.static, p).scan(update, start, like=p.hidden)
    m, S = state.stats
    invalid = ~jnp.isfinite(m) | jnp.isnan(S) | (state.label < 0)
    invalid = invalid if kept is None else invalid & kept
    stats = Statistics(m, nan_unless(~invalid, S))
    rest = jnp.log1p(stats.S)
    weighted_nll = lambda x: x.gap + multiply_no_nan(x.total, rest)  # noqa: E731
    smooth_loss = entropy = mass = None
    if state.smooth is not None:
        smooth_loss = zero_unless(kept, weighted_nll(state.smooth))
    if state.E is not None:
        entropy = zero_unless(kept, rest + state.E / (1 + stats.S))
    if state.soft is None:
        nll = log_softmax.nll_of(state.z_y, stats)
    else:
        nll, mass = weighted_nll(state.soft), state.soft.total
        nll = nan_unless(~jnp.isnan(stats.m + stats.S), nll)
    nll, lse = zero_unless(kept, nll), zero_unless(kept, logsumexp(stats))
    label = jnp.where(invalid, -1, state.label)
    return VocabTerms(nll, lse, smooth_loss, entropy, label, *stats, mass)


def _vocab_fwd(options, p, targets, c, masks):
    t = None if targets is None or is_labels(targets.value) else targets
    flags = tuple(encode_flag(needs_grad(x)) for x in (p.hidden, p.head, p.bias, c, t))
    given = jax.tree.map(lambda x: x.value, (p, targets, c, masks))
    row = _vocab_terms(options, *given)
    return row, (given, row, flags)


class _Gradients(NamedTuple):
    """The gradients by hidden states, head, bias, class weights and distribution, if wanted."""

    h: Any
    w: Any
    b: Any
    c: Any
    t: Any


def _vocab_bwd(options, residuals, cotangents: VocabTerms):
    (p, targets, c, (kept, mask)), row, flags = residuals
    soft = row.mass is not None
    static, wanted = options.static, _Gradients(*map(decode_flag, flags))
    dtype, tiles = row.nll.dtype, _class_tiles(static, p)
    terms = [None if isinstance(x, SymbolicZero) else x for x in cotangents[:4]]
    # An invalid row without a cotangent passes nothing back: a row of zeros takes its place.
    active = jnp.isfinite(row.m + row.S)
    active = active & ~jnp.isnan(row.nll) if soft else active
    for cotangent in terms:
        active = active if cotangent is None else active | (cotangent != 0)
    active = active if kept is None else kept & active
    select = partial(zero_unless, active)
    dnll, dlse, dsmooth_loss, dentropy = (None if x is None else select(x) for x in terms)
    share = None
    if dsmooth_loss is not None:
        share = jnp.asarray(p.classes, dtype) if c is None else jnp.sum(c)
        share = jnp.broadcast_to(share, dsmooth_loss.shape)
    # The derivatives of p and nll go through lse, their digits come from m and S.
    m, S, nll, lse = map(select, (*lax.stop_gradient((row.m, row.S)), row.nll, row.lse))
    entropy, mass = (None if x is None else select(x) for x in (row.entropy, row.mass))
    log1p_S = with_gradient_of(jnp.log1p(S), lse)

    def add_block(gradients: _Gradients, i: Index) -> _Gradients:
        block = _block(options, i, p, targets if soft else row.label, c, Masks(active, mask))
        u = project_rows(static, active, block.projection)
        z, pull = jax.vjp(partial(block.logits, options), u)
        probabilities = log_softmax.softmax_probabilities(z, Statistics(m, S), lse)
        target: tuple[Any, PerRow] | Distribution
        if block.y is None:
            target = block.weighted_targets
        else:
            target = is_label(block.y, z), jnp.expm1(-nll)
        c_i = None if block.c is None else block.c[None, :]
        dz = jnp.zeros_like(probabilities)
        if not dnll is dlse is dsmooth_loss is None:
            by_terms = dict(dnll=dnll, dlse=dlse, dsmooth_loss=dsmooth_loss)
            dz = derivative(probabilities, target, c_i, **by_terms, total=share, mass=mass)
        each = log_softmax.clipped_neg_log_softmax(z, m, log1p_S)
        if dentropy is not None and entropy is not None:
            by_entropy = log_softmax.entropy_derivative(probabilities, each, entropy)
            dz = dz + dentropy[:, None] * by_entropy
        (dz,) = pull(dz)
        masked = replace(block.projection, hidden=select(p.hidden))
        by = scale_to_half(dz, p)
        dh, dw, db, dc, dt = gradients
        if dh is not None:
            dh = dh + hidden_gradient(static, by, masked, dtype)
        if dw is not None:
            dw_i = head_gradient(static, by, masked, dtype).astype(dw.dtype)
            dw = tiles.put(dw, dw_i, i, p.classes_axis)
        if db is not None:
            db = tiles.put(db, jnp.sum(dz, axis=0).astype(db.dtype), i)
        if dc is not None:
            by_nll = 0 if dsmooth_loss is None else dsmooth_loss[:, None]
            if block.t is not None and dnll is not None:
                by_nll = by_nll + dnll[:, None] * block.t
            dc = tiles.put(dc, jnp.sum(by_nll * each, axis=0), i)
        if dt is not None and dnll is not None:
            dt_i = dnll[:, None] * each if c_i is None else dnll[:, None] * c_i * each
            if block.mask is not None:
                dt_i = jnp.where(block.mask[None, :], dt_i, 0)
            dt = tiles.put(dt, dt_i.astype(dt.dtype), i, axis=1)
        return _Gradients(dh, dw, db, dc, dt)

    by_class = dsmooth_loss is not None or (soft and dnll is not None)
    start = _Gradients(
        jnp.zeros(p.hidden.shape, dtype) if wanted.h else None,
        jnp.zeros_like(p.head) if wanted.w else None,
        jnp.zeros_like(p.bias) if wanted.b and p.bias is not None else None,
        jnp.zeros_like(c) if wanted.c and c is not None and by_class else None,
        jnp.zeros_like(targets) if wanted.t and dnll is not None else None,
    )
    dh, dw, db, dc, dt = tiles.scan(add_block, start, like=p.hidden)
    dh = None if dh is None else dh.astype(p.hidden.dtype)
    like = p.hidden, p.head, p.bias, c, targets if soft else None
    pairs = zip((dh, dw, db, dc, dt), like, strict=True)
    # None would make the structure depend on which gradients are wanted.
    dh, dw, db, dc, dt = (
        symbolic_zero(jax.typeof(x)) if d is None and x is not None else d for d, x in pairs
    )
    return Projection(dh, dw, db, p.layout), dt, dc, None


vocab_terms.defvjp(_vocab_fwd, _vocab_bwd, symbolic_zeros=True)


def vocab_losses(
    loss: CrossEntropyRows,
    static: Static,
    operands: Operands,
    labels: Labels | None,
    masks: Masks,
) -> PerRow:
    """Compute each row's loss."""
    (p,), c, by, distribution = operands
    if loss.options.smooth_loss and masks.classes is not None:
        c = jnp.where(masks.classes, jnp.ones(p.classes, p.dtype) if c is None else c, 0)
    targets = labels if distribution is None else distribution
    row = vocab_terms(VocabOptions(static, loss.options, False), p, targets, c, masks)
    return combine_terms(loss.options, by, RowTerms(row.nll, row.lse, row.smooth_loss))
