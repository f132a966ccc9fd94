"""The formula of `log_softmax` attached to JAX: once for every mode, once for training.

`rows` carries a JVP rule that is right to any order, in forward and reverse mode.  Two attachments
differ in what they keep between the passes:

    training_rows   `jax.custom_vjp`: keeps the inputs as given and five numbers per row
    remembering     `jax.checkpoint` around plain uses of `rows`: the same numbers, every AD mode

Masks and poison live inside the rule: outside it they would save another [N, V] array and leave
finite gradients on poisoned rows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jxent._core import log_softmax
from jxent._core.log_softmax import (
    Statistics,
    derivative,
    log_normaliser,
    loss_dtype,
    nll_of,
    settled,
)
from jxent._core.targets import at_label, is_label, is_labels
from jxent._typing import ClassMask, ClassWeights, Logits, PerRow, RowMask, Targets

_SAVED = "jxent_row"


class Options(NamedTuple):
    """What is fixed when tracing."""

    softcap: float | None = None
    lse: bool = False
    spread: bool = False


class Row(NamedTuple):
    """The numbers a loss is made of, then the statistics, which are not differentiated."""

    nll: PerRow
    lse: PerRow
    spread: PerRow | None
    m: PerRow
    S: PerRow


def effective(options: Options, mask: ClassMask | None, u: Logits) -> Logits:
    """z from the logits as given: excluded classes at −inf, z = κ tanh(u/κ), −inf stays −inf."""
    z = u if mask is None else jnp.where(mask, u, -jnp.inf)
    if options.softcap is None:
        return z
    return _capped(options.softcap, z.astype(loss_dtype(u.dtype)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _capped(cap: float, u: Logits) -> Logits:
    """z = κ tanh(u/κ), −inf stays −inf."""
    return jnp.where(jnp.isinf(u), u, cap * jnp.tanh(u / cap))


@_capped.defjvp
def _capped_jvp(cap, primals, tangents):
    """ż = (1 − (z/κ)²) u̇, 0 where z is not finite: rows that pass nothing back hold such."""
    z = _capped(cap, *primals)
    t = jnp.where(jnp.isfinite(z), z / cap, 1)
    return z, (1 + t) * (1 - t) * tangents[0]


def _wide(options: Options, mask: ClassMask | None, u: Logits) -> Logits:
    return effective(options, mask, u).astype(loss_dtype(u.dtype))


def _spread_weights(
    c: ClassWeights | None, mask: ClassMask | None, z: Logits
) -> Float[Array, "*#n V"]:
    """Class weights against z's axes, 0 on excluded classes."""
    c = jnp.ones(z.shape[-1:], z.dtype) if c is None else c.astype(z.dtype)
    c = jnp.reshape(c, (1,) * (z.ndim - 1) + c.shape)
    return c if mask is None else jnp.where(mask, c, 0)


def _weighted_targets(t: Float[Array, "*n V"], c: ClassWeights | None, z: Logits) -> Logits:
    """c ⊙ t."""
    t = t.astype(z.dtype)
    return t if c is None else _spread_weights(c, None, z) * t


def poisoned(targets: Targets, mask: ClassMask | None) -> RowMask | None:
    """Rows with a label outside [0, V), or with mass on an excluded class."""
    if is_labels(targets):
        bad = targets < 0  # _weights.narrow has made every label outside [0, V) a −1
        if mask is None:
            return bad
        return bad | ~jnp.any(is_label(targets, mask) & mask, axis=-1)
    return None if mask is None else jnp.any((targets != 0) & ~mask, axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def rows(
    options: Options,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> Row:
    """Each row's numbers; 0 in rows that are not kept, NaN in rows at fault."""
    z, dtype = effective(options, mask, u), loss_dtype(u.dtype)
    stats = log_softmax.statistics(z, dtype)
    bad = poisoned(targets, mask)
    if bad is not None:
        bad = bad if kept is None else bad & kept
        # S and not m: exp(z − m) stays the expression that the backward pass shares.
        stats = Statistics(stats.m, jnp.where(bad, jnp.nan, stats.S))
    if is_labels(targets):
        nll = nll_of(at_label(z, targets).astype(dtype), stats)
    else:
        w = _weighted_targets(targets, c, z.astype(dtype))
        nll = log_softmax.weighted_nll(w, z.astype(dtype), stats)
        nll = jnp.where(jnp.isnan(stats.m + stats.S), jnp.nan, nll)
    spread = None
    if options.spread:
        z = z.astype(dtype)
        spread = log_softmax.weighted_nll(_spread_weights(c, mask, z), z, stats)
    lse = log_normaliser(stats)

    def keep(x: PerRow) -> PerRow:
        return x if kept is None else jnp.where(kept, x, 0)

    return Row(keep(nll), keep(lse), None if spread is None else keep(spread), *stats)


@jax.custom_jvp
def _probabilities(z: Logits, stats: Statistics, lse: PerRow, chosen: RowMask | None) -> Logits:
    """p, 0 in rows that are not chosen."""
    return _in_rows(chosen, log_softmax.probabilities(z, stats, lse))


@_probabilities.defjvp
def _probabilities_jvp(primals, tangents):
    """ṗ = p ⊙ (ż − lsė): the same derivative, without 0·NaN in rows that are not chosen."""
    p, z_dot, lse_dot = _probabilities(*primals), tangents[0], tangents[2]
    return p, p * (z_dot - lse_dot[..., None])


class _Slopes(NamedTuple):
    """The pieces of a derivative that both rules are made of."""

    p: Logits
    target: tuple[jax.Array, PerRow] | Logits
    c: Float[Array, "*#n V"]
    nll_of_each: Logits


def _slopes(
    z: Logits, targets: Targets, c: ClassWeights | None, mask, row: Row, chosen: RowMask | None
) -> _Slopes:
    """Of the chosen rows; 0 in the others, whatever they hold, so that 0 times them is 0."""
    stats = lax.stop_gradient(Statistics(row.m, row.S))
    p = _probabilities(z, stats, _only(chosen, row.lse), chosen)
    target: tuple[jax.Array, PerRow] | Logits
    if is_labels(targets):
        target = is_label(targets, z), jnp.expm1(-_only(chosen, row.nll))
    else:
        target = _weighted_targets(_in_rows(chosen, targets), c, z)
    # ∂/∂t_v and ∂/∂c_v are nll_v; +∞ is told as the largest number, so that 0·∞ is 0 after it.
    # lse itself has lost the digits of log1p(S) beside a large m: it lends its derivative only.
    rest = log_softmax.changing_as(jnp.log1p(stats.S), row.lse)
    each = log_softmax.nll_of_each(z, stats.m, rest)
    each = _in_rows(chosen, each if mask is None else jnp.where(mask, each, 0))
    return _Slopes(p, target, _spread_weights(c, mask, z), each)


def _only(chosen: RowMask | None, x: PerRow) -> PerRow:
    return x if chosen is None else jnp.where(chosen, x, 0)


def _in_rows(chosen: RowMask | None, x: Logits) -> Logits:
    return x if chosen is None else jnp.where(chosen[..., None], x, 0)


def _rows_jvp(options, primals, tangents):
    u, targets, c, mask, kept = primals
    u_dot, t_dot, c_dot, *_ = tangents
    # The public rule again, so that derivatives of these numbers are right in turn.
    row = jax.tree.map(lambda x: checkpoint_name(x, _SAVED), rows(options, *primals))
    zero = jnp.zeros_like(row.nll)
    nll_dot = lse_dot = spread_dot = zero

    def total(x: Logits) -> PerRow:
        return _only(kept, jnp.sum(x, axis=-1))

    wide = partial(_wide, options, mask)
    if isinstance(u_dot, SymbolicZero):
        z, z_dot = wide(u), None
    else:
        z, z_dot = jax.jvp(wide, (u,), (u_dot,))
    slope = _slopes(z, targets, c, mask, row, kept)
    if z_dot is not None:
        d = partial(derivative, slope.p, slope.target, slope.c)
        one = _only(kept, jnp.ones_like(row.nll))
        nll_dot = total(d(dnll=one) * z_dot)
        lse_dot = total(d(dlse=one) * z_dot)
        if options.spread:
            spread_dot = total(d(dspread=one) * z_dot)
    each = slope.nll_of_each
    if not isinstance(t_dot, SymbolicZero) and not is_labels(targets):
        nll_dot = nll_dot + total(_weighted_targets(t_dot, c, z) * each)
    if c is not None and not isinstance(c_dot, SymbolicZero):
        c_dot = _spread_weights(c_dot, None, z)
        if not is_labels(targets):
            nll_dot = nll_dot + total(c_dot * _in_rows(kept, targets.astype(z.dtype)) * each)
        if options.spread:
            spread_dot = spread_dot + total(c_dot * each)
    return row, Row(nll_dot, lse_dot, spread_dot if options.spread else None, zero, zero)


rows.defjvp(_rows_jvp, symbolic_zeros=True)

P = ParamSpec("P")
R = TypeVar("R")


def remembering(f: Callable[P, R]) -> Callable[P, R]:
    """f, keeping between the passes its arguments and the numbers of each row, nothing else."""
    saved = jax.checkpoint_policies.save_only_these_names(_SAVED)
    return jax.checkpoint(f, prevent_cse=False, policy=saved)


class Numbers(NamedTuple):
    """The numbers a loss was asked to be made of."""

    nll: PerRow
    lse: PerRow | None
    spread: PerRow | None


def _asked(options: Options, row: Row) -> Numbers:
    return Numbers(row.nll, row.lse if options.lse else None, row.spread)


def numbers(
    options: Options,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> Numbers:
    """Each row's numbers, in every mode of differentiation."""
    return _asked(options, rows(options, settled(u), targets, c, mask, kept))


def training_rows(
    options: Options,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> Numbers:
    """Each row's numbers in reverse mode; kept between the passes: the arguments and `Row`."""
    return _training_rows(options, settled(u), targets, c, mask, kept)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _training_rows(options, u, targets, c, mask, kept):
    return _fwd(options, u, targets, c, mask, kept)[0]


def _fwd(options, u, targets, c, mask, kept):
    row = rows(options, u, targets, c, mask, kept)
    return _asked(options, row), (u, targets, c, mask, kept, row)


def _bwd(options, saved, cotangents: Numbers):
    u, targets, c, mask, kept, row = saved
    z, pull = jax.vjp(partial(_wide, options, mask), u)
    # A row of weight 0 passes nothing back, whatever it holds; 0·NaN would.
    silent = ~jnp.isfinite(row.m + row.S) | jnp.isnan(row.nll)
    for cotangent in cotangents:
        silent = silent if cotangent is None else silent & (cotangent == 0)
    heard = ~silent if kept is None else kept & ~silent
    dnll = _only(heard, cotangents.nll)
    dlse, dspread = (None if d is None else _only(heard, d) for d in cotangents[1:])
    slope = _slopes(z, targets, c, mask, row, heard)
    dz = derivative(slope.p, slope.target, slope.c, dnll=dnll, dlse=dlse, dspread=dspread)
    (du,) = pull(dz)

    each = slope.nll_of_each
    dt = dc = None
    if not is_labels(targets):
        dt = _weighted_targets(dnll[..., None] * each, c, z).astype(targets.dtype)
    if c is not None:
        by_class = jnp.zeros_like(z) if dspread is None else dspread[..., None] * each
        if not is_labels(targets):
            t = _in_rows(heard, targets.astype(z.dtype))
            by_class = by_class + dnll[..., None] * t * each
        dc = jnp.sum(by_class, axis=tuple(range(z.ndim - 1))).astype(c.dtype)
    return du, dt, dc, None, None


_training_rows.defvjp(_fwd, _bwd)


@jax.custom_jvp
def nll_of_each(
    u: Logits, mask: ClassMask | None, kept: RowMask | None, bad: RowMask | None
) -> Logits:
    """nll_v of every class; 0 in rows that are not kept, NaN in rows at fault."""
    z = _wide(Options(), mask, u)
    stats = _stats_of_each(u, mask, bad)
    return _in_rows(kept, nll_of(z, Statistics(stats.m[..., None], stats.S[..., None])))


def _stats_of_each(u: Logits, mask: ClassMask | None, bad: RowMask | None) -> Statistics:
    m, S = log_softmax.statistics(effective(Options(), mask, u), loss_dtype(u.dtype))
    return Statistics(m, S if bad is None else jnp.where(bad, jnp.nan, S))


@nll_of_each.defjvp
def _nll_of_each_jvp(primals, tangents):
    u, mask, kept, bad = primals
    z, z_dot = jax.jvp(partial(_wide, Options(), mask), (u,), (tangents[0],))
    stats = _stats_of_each(u, mask, bad)
    p = _probabilities(z, stats, _only(kept, log_normaliser(stats)), kept)
    out_dot = jnp.sum(p * z_dot, axis=-1, keepdims=True) - z_dot
    return nll_of_each(*primals), _in_rows(kept, out_dot)


def every_nll(
    u: Logits,
    t: Float[Array, "*n V"],
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> tuple[Logits, Logits]:
    """c ⊙ t and the nll of every class, for losses that are not linear in nll."""
    each = nll_of_each(settled(u), mask, kept, poisoned(t, mask))
    return _in_rows(kept, _weighted_targets(t, c, each)), each
