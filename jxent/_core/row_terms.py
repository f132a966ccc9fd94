"""The formula of `log_softmax` attached to JAX: once for every mode, once for training.

`row_terms_and_statistics` carries a JVP rule that is right to any order, in forward and reverse
mode.  Two attachments differ in what they keep between the passes:

    training_row_terms   `jax.custom_vjp`: keeps the inputs as given and five numbers per row
    rematerialized       `jax.checkpoint` around `row_terms`: the same residuals, every AD mode

The backward pass.  With cotangents dnll, dlse and dsmooth of a row's terms,

    dz = (dlse + dsmooth·Σc)·p − dsmooth·c + dnll·((Σ c t)·p − c t)       `log_softmax.derivative`
    dt_v = dnll c_v nll_v          dc_v = dnll t_v nll_v + dsmooth nll_v

(c t = e_y for a label), where p and nll_v are computed again from the saved (m, S).  All of it is
0 in inactive rows: those dropped, and those that are invalid and have no cotangent, where 0·NaN
would come back.

Masks and invalid rows live inside the rule: outside it they would save another [N, V] array and
leave finite gradients on invalid rows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
    logsumexp,
    loss_dtype,
    nll_of,
    pin_half_precision,
)
from jxent._core.safe_math import nan_unless, zero_unless
from jxent._core.sum_without_max import with_gradient_of
from jxent._core.targets import at_label, is_label, is_labels
from jxent._typing import ClassMask, ClassWeights, Logits, P, PerRow, R, RowMask, Targets

_SAVED = "jxent_row"


class TermOptions(NamedTuple):
    """The soft cap, the terms beside nll, the factor ζ of lse², whether p comes next; static."""

    softcap: float | None = None
    lse: bool = False
    smooth_loss: bool = False
    z_loss: float = 0.0
    probabilities_follow: bool = False


class RowTermsAndStatistics(NamedTuple):
    """The terms of each row's loss, then its statistics, which are not differentiated."""

    nll: PerRow
    lse: PerRow
    smooth_loss: PerRow | None
    m: PerRow
    S: PerRow


def apply_mask_and_softcap(options: TermOptions, mask: ClassMask | None, u: Logits) -> Logits:
    """Compute z from the logits as given: excluded classes at −inf, z = κ tanh(u/κ).

    In the dtype of the loss, unless z is u itself: not every dtype has an infinity.
    """
    if mask is None and options.softcap is None:
        return u
    z = u.astype(loss_dtype(u.dtype))
    z = z if mask is None else jnp.where(mask, z, -jnp.inf)
    return z if options.softcap is None else _softcap(options.softcap, z)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softcap(cap: float, u: Logits) -> Logits:
    """Compute z = κ tanh(u/κ); −inf stays −inf."""
    return jnp.where(jnp.isinf(u), u, cap * jnp.tanh(u / cap))


@_softcap.defjvp
def _softcap_jvp(cap, primals, tangents):
    """Compute ż = sech²(u/κ) u̇."""
    return _softcap(cap, *primals), _sech_squared(cap, *primals) * tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sech_squared(cap: float, u: Logits) -> Logits:
    """Compute sech²(u/κ) = 4e/(1 + e)², e = exp(−2|u|/κ), since 1 − tanh² cancels near 0.

    0 for NaN too: 0·NaN would come back from a dropped row.
    """
    e = jnp.exp(-2 * jnp.abs(jnp.where(jnp.isnan(u), jnp.inf, u) / cap))
    return 4 * e / jnp.square(1 + e)


@_sech_squared.defjvp
def _sech_squared_jvp(cap, primals, tangents):
    """Compute −(2/κ) tanh(u/κ) sech²(u/κ) u̇: by |u| itself, the next derivative at 0 would be 0."""
    (u,), slope = primals, _sech_squared(cap, *primals)
    u = jnp.where(jnp.isnan(u), jnp.inf, u)
    return slope, (-2 / cap) * (jnp.tanh(u / cap) * slope) * tangents[0]


def _loss_logits(options: TermOptions, mask: ClassMask | None, u: Logits) -> Logits:
    """Compute z in the dtype of the loss."""
    return apply_mask_and_softcap(options, mask, u).astype(loss_dtype(u.dtype))


def _broadcast_class_weights(
    c: ClassWeights | None, mask: ClassMask | None, z: Logits
) -> Float[Array, "*#n V"]:
    """Give class weights z's rank, with 0 on excluded classes."""
    c = jnp.ones(z.shape[-1:], z.dtype) if c is None else c.astype(z.dtype)
    c = jnp.reshape(c, (1,) * (z.ndim - 1) + c.shape)
    return c if mask is None else jnp.where(mask, c, 0)


def _weighted_targets(t: Float[Array, "*n V"], c: ClassWeights | None, z: Logits) -> Logits:
    """Compute c ⊙ t."""
    t = t.astype(z.dtype)
    return t if c is None else _broadcast_class_weights(c, None, z) * t


def invalid_rows(targets: Targets, mask: ClassMask | None) -> RowMask | None:
    """Find rows with a label outside [0, V), or with mass on an excluded class."""
    if is_labels(targets):
        invalid = targets < 0  # `narrow` has made every label outside [0, V) a −1
        if mask is None:
            return invalid
        return invalid | ~jnp.any(is_label(targets, mask) & mask, axis=-1)
    return None if mask is None else jnp.any((targets != 0) & ~mask, axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def row_terms_and_statistics(
    options: TermOptions,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> RowTermsAndStatistics:
    """Compute each row's terms and statistics; 0 in dropped rows, NaN in invalid ones."""
    z, dtype = apply_mask_and_softcap(options, mask, u), loss_dtype(u.dtype)
    stats = log_softmax.statistics(z, dtype, probabilities_follow=options.probabilities_follow)
    invalid = invalid_rows(targets, mask)
    if invalid is not None:
        invalid = invalid if kept is None else invalid & kept
        # S becomes NaN and not m: exp(z − m) stays the expression that the backward pass shares.
        stats = Statistics(stats.m, nan_unless(~invalid, stats.S))
    if is_labels(targets):
        nll = nll_of(at_label(z, targets).astype(dtype), stats)
    else:
        w = _weighted_targets(targets, c, z.astype(dtype))
        nll = log_softmax.weighted_nll(w, z.astype(dtype), stats)
        nll = nan_unless(~jnp.isnan(stats.m + stats.S), nll)
    smooth_loss = None
    if options.smooth_loss:
        z = z.astype(dtype)
        smooth_loss = log_softmax.weighted_nll(_broadcast_class_weights(c, mask, z), z, stats)
        smooth_loss = zero_unless(kept, smooth_loss)
    nll, lse = zero_unless(kept, nll), zero_unless(kept, logsumexp(stats))
    return RowTermsAndStatistics(nll, lse, smooth_loss, *stats)


@jax.custom_jvp
def _probabilities(z: Logits, stats: Statistics, lse: PerRow, chosen: RowMask | None) -> Logits:
    """Compute p; 0 in rows that are not chosen."""
    return zero_unless(chosen, log_softmax.softmax_probabilities(z, stats, lse))


@_probabilities.defjvp
def _probabilities_jvp(primals, tangents):
    """Compute ṗ = p ⊙ (ż − lsė): JAX's own derivative, without 0·NaN in rows not chosen."""
    p, z_dot, lse_dot = _probabilities(*primals), tangents[0], tangents[2]
    return p, p * (z_dot - lse_dot[..., None])


class _DerivativeParts(NamedTuple):
    """The parts of the derivatives by logits, targets and class weights."""

    p: Logits
    target: tuple[jax.Array, PerRow] | Logits
    c: Float[Array, "*#n V"]
    neg_log_softmax: Logits


def _derivative_parts(
    z: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask,
    row: RowTermsAndStatistics,
    chosen: RowMask | None,
) -> _DerivativeParts:
    """Compute the parts in the chosen rows; 0 in the others, so that 0 times them is 0."""
    stats = lax.stop_gradient(Statistics(row.m, row.S))
    p = _probabilities(z, stats, zero_unless(chosen, row.lse), chosen)
    target: tuple[jax.Array, PerRow] | Logits
    if is_labels(targets):
        target = is_label(targets, z), jnp.expm1(-zero_unless(chosen, row.nll))
    else:
        target = _weighted_targets(zero_unless(chosen, targets), c, z)
    # ∂/∂t_v and ∂/∂c_v are nll_v, clipped so that 0·∞ is 0.  lse has lost the digits of log1p(S)
    # beside a large m, so only its derivative is used.
    rest = with_gradient_of(jnp.log1p(stats.S), row.lse)
    each = log_softmax.clipped_neg_log_softmax(z, stats.m, rest)
    each = zero_unless(chosen, each if mask is None else jnp.where(mask, each, 0))
    return _DerivativeParts(p, target, _broadcast_class_weights(c, mask, z), each)


def _row_terms_jvp(options, primals, tangents):
    u, targets, c, mask, kept = primals
    u_dot, t_dot, c_dot, *_ = tangents
    options = options._replace(probabilities_follow=True)
    # The function with the rule again, so that derivatives of these terms are right in turn.
    row = jax.tree.map(
        lambda x: checkpoint_name(x, _SAVED), row_terms_and_statistics(options, *primals)
    )
    zero = jnp.zeros_like(row.nll)
    nll_dot = lse_dot = smooth_loss_dot = zero

    def total(x: Logits) -> PerRow:
        return zero_unless(kept, jnp.sum(x, axis=-1))

    wide = partial(_loss_logits, options, mask)
    if isinstance(u_dot, SymbolicZero):
        z, z_dot = wide(u), None
    else:
        z, z_dot = jax.jvp(wide, (u,), (u_dot,))
    parts = _derivative_parts(z, targets, c, mask, row, kept)
    if z_dot is not None:
        d = partial(derivative, parts.p, parts.target, parts.c)
        one = zero_unless(kept, jnp.ones_like(row.nll))
        nll_dot = total(d(dnll=one) * z_dot)
        lse_dot = total(d(dlse=one) * z_dot)
        if options.smooth_loss:
            smooth_loss_dot = total(d(dsmooth_loss=one) * z_dot)
    each = parts.neg_log_softmax
    if not isinstance(t_dot, SymbolicZero) and not is_labels(targets):
        nll_dot = nll_dot + total(_weighted_targets(t_dot, c, z) * each)
    if c is not None and not isinstance(c_dot, SymbolicZero):
        c_dot = _broadcast_class_weights(c_dot, None, z)
        if not is_labels(targets):
            nll_dot = nll_dot + total(c_dot * zero_unless(kept, targets.astype(z.dtype)) * each)
        if options.smooth_loss:
            smooth_loss_dot = smooth_loss_dot + total(c_dot * each)
    return row, RowTermsAndStatistics(
        nll_dot, lse_dot, smooth_loss_dot if options.smooth_loss else None, zero, zero
    )


row_terms_and_statistics.defjvp(_row_terms_jvp, symbolic_zeros=True)


def rematerialized(f: Callable[P, R]) -> Callable[P, R]:
    """Wrap f to save, between the passes, its arguments and the terms of each row, nothing else."""
    saved = jax.checkpoint_policies.save_only_these_names(_SAVED)
    return jax.checkpoint(f, prevent_cse=False, policy=saved)


class RowTerms(NamedTuple):
    """The terms of each row's loss; None: not requested."""

    nll: PerRow
    lse: PerRow | None
    smooth_loss: PerRow | None


def _requested(options: TermOptions, row: RowTermsAndStatistics) -> RowTerms:
    return RowTerms(row.nll, row.lse if options.lse else None, row.smooth_loss)


def row_terms(
    options: TermOptions,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> RowTerms:
    """Compute each row's terms, in every mode of differentiation."""
    return _requested(
        options, row_terms_and_statistics(options, pin_half_precision(u), targets, c, mask, kept)
    )


def training_row_terms(
    options: TermOptions,
    u: Logits,
    targets: Targets,
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> RowTerms:
    """Compute each row's terms in reverse mode; saves the arguments and five numbers per row."""
    return _training_row_terms(options, pin_half_precision(u), targets, c, mask, kept)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _training_row_terms(options, u, targets, c, mask, kept):
    # Not `_training_fwd`: without a gradient there are no probabilities to share exponentials with.
    return _requested(options, row_terms_and_statistics(options, u, targets, c, mask, kept))


def _training_fwd(options, u, targets, c, mask, kept):
    options = options._replace(probabilities_follow=True)
    row = row_terms_and_statistics(options, u, targets, c, mask, kept)
    return _requested(options, row), (u, targets, c, mask, kept, row)


def _training_bwd(options, saved, cotangents: RowTerms):
    u, targets, c, mask, kept, row = saved
    z, pull = jax.vjp(partial(_loss_logits, options, mask), u)
    # An invalid row without a cotangent passes nothing back: 0·NaN would be NaN.
    inactive = ~jnp.isfinite(row.m + row.S) | jnp.isnan(row.nll)
    for cotangent in cotangents:
        inactive = inactive if cotangent is None else inactive & (cotangent == 0)
    active = ~inactive if kept is None else kept & ~inactive
    dnll = zero_unless(active, cotangents.nll)
    dlse, dsmooth_loss = (None if d is None else zero_unless(active, d) for d in cotangents[1:])
    parts = _derivative_parts(z, targets, c, mask, row, active)
    dz = derivative(parts.p, parts.target, parts.c, dnll=dnll, dlse=dlse, dsmooth_loss=dsmooth_loss)
    (du,) = pull(dz)

    each = parts.neg_log_softmax
    dt = dc = None
    if not is_labels(targets):
        dt = _weighted_targets(dnll[..., None] * each, c, z).astype(targets.dtype)
    if c is not None:
        by_class = jnp.zeros_like(z) if dsmooth_loss is None else dsmooth_loss[..., None] * each
        if not is_labels(targets):
            t = zero_unless(active, targets.astype(z.dtype))
            by_class = by_class + dnll[..., None] * t * each
        dc = jnp.sum(by_class, axis=tuple(range(z.ndim - 1))).astype(c.dtype)
    return du, dt, dc, None, None


_training_row_terms.defvjp(_training_fwd, _training_bwd)


@jax.custom_jvp
def neg_log_softmax(
    u: Logits, mask: ClassMask | None, kept: RowMask | None, invalid: RowMask | None
) -> Logits:
    """Compute nll_v = −log p_v of every class; 0 in dropped rows, NaN in invalid ones."""
    z = _loss_logits(TermOptions(), mask, u)
    stats = _statistics_of_rows(u, mask, invalid)
    return zero_unless(kept, nll_of(z, Statistics(stats.m[..., None], stats.S[..., None])))


def _statistics_of_rows(u: Logits, mask: ClassMask | None, invalid: RowMask | None) -> Statistics:
    z = apply_mask_and_softcap(TermOptions(), mask, u)
    m, S = log_softmax.statistics(z, loss_dtype(u.dtype), probabilities_follow=True)
    return Statistics(m, S if invalid is None else nan_unless(~invalid, S))


@neg_log_softmax.defjvp
def _neg_log_softmax_jvp(primals, tangents):
    u, mask, kept, invalid = primals
    z, z_dot = jax.jvp(partial(_loss_logits, TermOptions(), mask), (u,), (tangents[0],))
    stats = _statistics_of_rows(u, mask, invalid)
    p = _probabilities(z, stats, zero_unless(kept, logsumexp(stats)), kept)
    out_dot = jnp.sum(p * z_dot, axis=-1, keepdims=True) - z_dot
    return neg_log_softmax(*primals), zero_unless(kept, out_dot)


def weighted_targets_and_nll(
    u: Logits,
    t: Float[Array, "*n V"],
    c: ClassWeights | None,
    mask: ClassMask | None,
    kept: RowMask | None,
) -> tuple[Logits, Logits]:
    """Compute c ⊙ t and the nll of every class, for losses that are not linear in nll."""
    each = neg_log_softmax(pin_half_precision(u), mask, kept, invalid_rows(t, mask))
    return zero_unless(kept, _weighted_targets(t, c, each)), each
