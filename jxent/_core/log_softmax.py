"""One row's mathematics: its statistics and THE derivative formula, in plain jnp.

For a row of logits z over V classes, with m = max z and S the sum without the maximum,

    S = Σ_{v: z_v < m} exp(z_v − m) + (#ties − 1)         lse = m + log1p(S)
    p_v = exp(z_v − m)/(1 + S)                            nll_v = (m − z_v) + log1p(S)

Both terms of nll are ≥ 0, so nothing cancels: `lse − z_y` is exactly 0 from a gap of 17 in
float32, nll is not.  For the same reason p_y − 1 is expm1(−nll_y).  (m, S) and not lse alone are
the row's statistics: at z ≈ 1e4 exp(z − lse) has lost three digits.

A loss on a row is arithmetic on a few numbers,

    nll = nll_y for a label y, Σ_v c_v t_v nll_v for a distribution t
    lse
    smooth_loss = Σ_v c_v nll_v

(c: class weights, 1 without), so there is one derivative formula, `derivative`:

    ∂/∂z = (dlse + dsmooth·Σc)·p − dsmooth·c + dnll·(p − e_y)           for a label
                                             + dnll·((Σ c t)·p − c t)   for a distribution

since ∂lse/∂z = p and ∂nll_v/∂z = p − e_v.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from jxent._compat import sharded_explicitly
from jxent._core.safe_math import multiply_no_nan, nan_unless
from jxent._typing import Distribution, Logits, PerRow


def loss_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of a loss: float32, or the logits' own where that is wider."""
    wide = jnp.dtype(jnp.float32)
    return dtype if jnp.finfo(dtype).bits > jnp.finfo(wide).bits else wide


def pin_half_precision(u: Logits) -> Logits:
    """Round half-precision logits to their dtype once, for every pass that reads them.

    Inside jit XLA may keep in float32 what the program rounds to half precision, in one pass over
    it and not in another: the maximum would then not be that of the numbers it is subtracted from.
    An optimization_barrier on the rounded value stops that, and costs nothing.
    """
    return lax.optimization_barrier(u) if jnp.finfo(u.dtype).bits < 32 else u


def _row_sum(x: Float[Array, "*n V"]) -> PerRow:
    """Sum each row: Σ_v x_v.

    A lone long row is summed in blocks of blocks, since XLA:CPU would add its entries one by one.
    """
    rows, block = x.shape[:-1], 32
    if x.size != x.shape[-1] or x.size < 4096:
        return jnp.sum(x, axis=-1)
    x = x.ravel()
    while x.size > block:
        x = jnp.sum(jnp.pad(x, (0, -x.size % block)).reshape(-1, block), axis=-1)
    return jnp.sum(x).reshape(rows)


def force_rounding(z: Float[Array, "..."], m: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return z ≤ m unchanged, but rounded before anything is subtracted from it.

    Inside jit z may be a product that XLA fuses into the subtraction: a·b − m is then rounded once
    and not twice, and is not 0 where a·b rounds to m, although a confident row's loss is that
    difference.  An optimization_barrier does not stop this; a comparison does, since a compared
    product has been rounded.  The bound 2|m| + 1 is above every z, so that the minimum is z.
    """
    return jnp.minimum(z, 2 * jnp.abs(m) + 1)


def minus_max(z: Float[Array, "..."], m: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute d = z − m: exactly 0 at the maximum, −∞ where z = m = −∞."""
    m = jnp.where(m == -jnp.inf, 0, m)
    return force_rounding(z, m) - m


class Statistics(NamedTuple):
    """A row's maximum m, and S = Σ exp(z − m) − 1: the sum without one maximum."""

    m: PerRow
    S: PerRow


def with_gradient_of(x: PerRow, other: PerRow) -> PerRow:
    """Return the value of x with the derivatives of `other`, which is finite wherever x is."""
    return x + (other - lax.stop_gradient(other))


def _scaled_exp(d: Float[Array, "..."], root: float) -> Float[Array, "..."]:
    """Compute root² exp(d) for d ≤ 0 as (root·exp(d/2))², in which terms of 1e-38 still count.

    exp itself is flushed to 0 from d = −87, and 131072 terms of 1e-38 are more than the smallest
    loss that is promised.  Sums of squares are as fast as plain sums on XLA:CPU.
    """
    x = root * jnp.exp(0.5 * d)
    return x * x


# Roots of the scale.  XLA:CPU is slower where two sums share a constant, so there are two.
_ROOT, _OTHER_ROOT = 2.0**32, 2.0**31


def _block_size(classes: int) -> int | None:
    """Choose the classes of a block: the divisor of `classes` nearest to 3√classes, if any will do.

    Measured: a block costs some time by itself, and the one with the maximum is summed twice.  The
    number of blocks keeps factors of 2 up to 8, so that classes on 2, 4 or 8 devices stay there.
    """
    best, smallest, devices = 3 * math.sqrt(classes), 32, math.gcd(classes, 8)
    sizes = [n for n in range(smallest, classes // 4 + 1) if classes % (n * devices) == 0]
    return min(sizes, key=lambda n: abs(math.log(n / best)), default=None)


# Below this Σ exp(z − m) the 1 of the maximum itself has swallowed digits of the rest.
_CONFIDENT = 2.0

# Below this S, terms that exp flushes to 0 would have contributed to it.
_FAINT = 1e-25


def _more_rows_for_vmap(f: Callable[..., PerRow]) -> Callable[..., PerRow]:
    """Make f of rows take a batch as more rows, for arrays that are not differentiated.

    `vmap` makes a select of a cond, and both branches would run.
    """
    of_rows = custom_vmap(f)

    @of_rows.def_vmap
    def rule(size: int, batched: list[bool], *arrays: Array) -> tuple[PerRow, bool]:
        full = (
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(arrays, batched, strict=True)
        )
        return of_rows(*full), True

    return lambda *arrays: of_rows(*lax.stop_gradient(arrays))


@_more_rows_for_vmap
def _sum_confident_rows_again(z: Logits, m: PerRow, total: PerRow) -> PerRow:
    """Compute S of Σ exp(d), and without the maximum where it has swallowed digits.

    Σ exp(d) = #ties + Σ_{d < 0} exp(d), and −sign(d) is the mask of the rest: a mask by a select
    inside a row sum costs XLA:CPU five times as much.
    """

    def again() -> PerRow:
        d = minus_max(z, m[..., None])
        rest = _row_sum(-jnp.sign(d) * jnp.exp(d))
        return jnp.where(total < _CONFIDENT, rest + (jnp.round(total - rest) - 1), total - 1)

    return lax.cond(jnp.any(total < _CONFIDENT), again, lambda: total - 1)


@_more_rows_for_vmap
def _sum_faint_rows_again(z: Logits, m: PerRow, S: PerRow) -> PerRow:
    """Replace S where it is so small that terms flushed to 0 count; there are no ties there."""
    faint = S < _FAINT

    def again() -> PerRow:
        d = minus_max(z, m[..., None])
        return jnp.where(faint, _row_sum(-jnp.sign(d) * _scaled_exp(d, _ROOT)) / _ROOT**2, S)

    return lax.cond(jnp.any(faint), again, lambda: S)


def _sum_by_signs(z: Logits, m: PerRow) -> PerRow:
    """Compute S by plain row sums, and again in rows that need it."""
    total = _row_sum(jnp.exp(minus_max(z, m[..., None])))
    S = _sum_faint_rows_again(z, m, _sum_confident_rows_again(z, m, total))
    return with_gradient_of(S, total)


def _sum_by_blocks(z: Logits, m: PerRow, *, probabilities_follow: bool) -> PerRow:
    """Compute S by plain sums of blocks of classes, and one block again without the maximum.

    With s_b = Σ exp(z_v − m) over block b and a block a that holds the maximum,

        S = Σ_{b ≠ a} s_b + Σ_{v in a: z_v < m} exp(z_v − m) + (#ties in a − 1)

    where nothing is added to a 1 that would swallow it.  One exponential a logit, and some more for
    a.  The block of the largest sum is taken: if it does not hold the maximum, two blocks have sums
    of 1 or more, S is at least 1, and counting the 1 of another block as a tie is right.

    If the probabilities follow, their exponentials are stored, and summed from there.  They are not
    scaled, since XLA:CPU would store the scaled ones as well.
    """
    size = _block_size(z.shape[-1])
    if size is None or sharded_explicitly(z, -1):  # a row on several devices is in blocks already
        return _sum_by_signs(z, m)
    blocks = z.reshape(*z.shape[:-1], -1, size)
    scale = _ROOT**2
    if probabilities_follow:
        sums, scale = jnp.sum(jnp.exp(minus_max(z, m[..., None])).reshape(blocks.shape), -1), 1.0
    else:
        sums = jnp.sum(_scaled_exp(minus_max(blocks, m[..., None, None]), _ROOT), axis=-1)
    block = lax.broadcasted_iota(jnp.int32, sums.shape, sums.ndim - 1)
    largest = sums == jnp.max(sums, axis=-1, keepdims=True)
    # Not argmax, which gathers where the classes are on several devices.
    chosen = jnp.min(jnp.where(largest, block, block.shape[-1] - 1), axis=-1, keepdims=True)
    is_chosen = block == chosen
    others = jnp.sum(jnp.where(is_chosen, 0, sums), axis=-1)
    own = jnp.sum(jnp.where(is_chosen, sums, 0), axis=-1)
    z_a = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)[..., 0, :]
    top = m[..., None]
    # Stored, since a select inside the sum would cost more than it.
    d = lax.optimization_barrier(jnp.where(z_a < top, minus_max(z_a, top), -jnp.inf))
    rest = jnp.sum(_scaled_exp(d, _OTHER_ROOT), axis=-1) / _OTHER_ROOT**2
    # Not before here: XLA:CPU is slow where it divides the sums of blocks.
    S = others / scale + rest + (jnp.round(own / scale - rest) - 1)
    S = _sum_faint_rows_again(z, m, S) if probabilities_follow else lax.stop_gradient(S)
    # Not the sum of all sums: XLA would make one sum of the two, and store the exponentials.
    return with_gradient_of(S, (others + own) / scale)


def _sum_by_mask(z: Logits, m: PerRow) -> PerRow:
    """Compute S as it is defined: one masked sum, and the ties."""
    d = minus_max(z, m[..., None])
    rest = jnp.sum(jnp.where(d < 0, _scaled_exp(d, _ROOT), 0), axis=-1) / _ROOT**2
    S = rest + (jnp.sum((d == 0).astype(d.dtype), axis=-1) - 1)
    return with_gradient_of(lax.stop_gradient(S), jnp.sum(jnp.exp(d), axis=-1))


def statistics(z: Logits, dtype: jnp.dtype, *, probabilities_follow: bool = False) -> Statistics:
    """Compute (m, S) of each row, in `dtype`; S is NaN for NaN, +inf, or a row of −inf.

    The maximum is taken in z's own dtype: it is exact there, and half-precision logits then need
    one wide temporary less.  It is a constant to every derivative, since lse does not depend on
    the number subtracted in the exponents; S has the derivatives of Σ_v exp(z_v − m), which are
    right at ties too, where a mask "z < m" would be wrong.

    `probabilities_follow` says that `softmax_probabilities` of the same logits come in the same
    program.  Their exponentials are shared then, unless z is narrower: the gradient has no room to
    keep them in.
    """
    m = lax.stop_gradient(jnp.max(z, axis=-1)).astype(dtype)
    share = probabilities_follow and z.dtype == dtype
    by_blocks = partial(_sum_by_blocks, probabilities_follow=share)
    S = lax.platform_dependent(z.astype(dtype), m, cpu=by_blocks, default=_sum_by_mask)
    return Statistics(m, nan_unless(jnp.isfinite(m), S))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Merge the statistics of two disjoint sets of classes; those of no class are (−∞, −1).

    m = max(m_a, m_b)      S = S_hi + (1 + S_lo)·exp(m_lo − m_hi)
    """
    a_leads = a.m >= b.m
    lead = jnp.where(a_leads, a.S, b.S)
    rest = 1 + jnp.where(a_leads, b.S, a.S)
    # Where neither holds a class both are −∞, and −∞ − (−∞) would be NaN.
    behind = jnp.where(a.m == b.m, 0, -jnp.abs(a.m - b.m))
    return Statistics(jnp.maximum(a.m, b.m), lead + rest * jnp.exp(behind))


def logsumexp(stats: Statistics) -> PerRow:
    """Compute lse = m + log1p(S)."""
    return stats.m + jnp.log1p(stats.S)


def nll_of(z_y: PerRow, stats: Statistics) -> PerRow:
    """Compute nll_y = (m − z_y) + log1p(S), never negative."""
    gap = -minus_max(z_y, stats.m)
    # Below 0 only if XLA rounded z_y differently in another pass: 0, with the gap's derivative.
    return jnp.where(gap < 0, gap - lax.stop_gradient(gap), gap) + jnp.log1p(stats.S)


def weighted_gap(w: Float[Array, "*#n V"], z: Logits, m: PerRow) -> PerRow:
    """Compute Σ_v w_v (m − z_v), with 0·∞ = 0.

    The 0·∞ is avoided by a ceiling on m − z_v: ∞ where w_v ≠ 0; where w_v = 0 a number 2²⁰ below
    the largest, so that ∂/∂w_v can still be multiplied.  The ceiling is arithmetic, which fuses
    into one pass; a select costs XLA:CPU an [N, V] array.
    """
    largest = jnp.asarray(jnp.finfo(z.dtype).max, z.dtype)
    zero_only = 1 - jnp.abs(lax.stop_gradient(w)) * largest
    ceiling = jnp.maximum(1 / jnp.maximum(zero_only, 0), largest * 2.0**-20)
    m = lax.optimization_barrier(m)  # a broadcast shared with `statistics` would be stored
    return _row_sum(w * jnp.minimum(-minus_max(z, m[..., None]), ceiling))


def weighted_nll(w: Float[Array, "*#n V"], z: Logits, stats: Statistics) -> PerRow:
    """Compute Σ_v w_v nll_v = Σ_v w_v (m − z_v) + (Σ_v w_v) log1p(S), with 0·∞ = 0."""
    return weighted_gap(w, z, stats.m) + multiply_no_nan(jnp.sum(w, axis=-1), jnp.log1p(stats.S))


def softmax_probabilities(z: Logits, stats: Statistics, lse: PerRow) -> Float[Array, "*n V"]:
    """Compute p_v = exp(z_v − m)/(1 + S).

    exp(z_v − m) is the very expression of `statistics`, so that XLA shares it within one jit.
    m and S are constants here, and the factor exp(lse − lse), which is 1, brings the derivatives
    of exp(z_v − lse): ṗ = p ⊙ (ż − Σ p ż), to any order.
    """
    m, S = lax.stop_gradient(stats)
    return (
        jnp.exp(minus_max(z, m[..., None]))
        * (jnp.exp(lax.stop_gradient(lse) - lse) / (1 + S))[..., None]
    )


def clipped_neg_log_softmax(z: Logits, m: PerRow, log1p_S: PerRow) -> Float[Array, "*n V"]:
    """Compute nll_v of each class, at most the largest number, so that 0·nll_v is 0 and not NaN."""
    return jnp.minimum(-minus_max(z, m[..., None]) + log1p_S[..., None], jnp.finfo(z.dtype).max)


def entropy_derivative(
    p: Float[Array, "*n V"], nll: Float[Array, "*n V"], entropy: PerRow
) -> Float[Array, "*n V"]:
    """Compute ∂H/∂z_v = p_v (nll_v − H) of H = Σ_v p_v nll_v; 0 where p_v = 0, to any order.

    An offset common to all nll_v and to H cancels, and may be left out.
    """
    return p * jnp.where(p == 0, 0, nll - entropy[..., None])


def derivative(
    p: Float[Array, "*n V"],
    target: tuple[Bool[Array, "*n V"], PerRow] | Distribution,
    class_weights: Float[Array, "*#n V"] | None,
    *,
    dnll: PerRow | None = None,
    dlse: PerRow | None = None,
    dsmooth_loss: PerRow | None = None,
    total: PerRow | None = None,
    mass: PerRow | None = None,
) -> Float[Array, "*n V"]:
    """Compute ∂/∂z of dnll·nll + dlse·lse + dsmooth_loss·smooth_loss; None: the term is absent.

    `target` is (e_y, p_y − 1) for labels (p_y − 1 = expm1(−nll), which does not cancel), or c ⊙ t
    for distributions.  `class_weights` are those of the kept classes, 0 on the others.  `total` is
    their sum, and `mass` that of c ⊙ t, where z holds only some of the classes.
    """
    k = dlse
    if dsmooth_loss is not None:
        assert class_weights is not None
        total = jnp.sum(class_weights, axis=-1) if total is None else total
        through_lse = dsmooth_loss * total
        k = through_lse if k is None else k + through_lse
    every = dnll if k is None else k
    out: jax.Array
    if dnll is None:
        assert k is not None
        out = k[..., None] * p
    elif isinstance(target, tuple):
        e_y, p_y_minus_1 = target
        on = (dnll * p_y_minus_1)[..., None]
        if k is not None:
            every = dnll + k
            on = on + k[..., None] * p
        assert every is not None
        out = jnp.where(e_y, on, every[..., None] * p)
    else:
        through_nll = dnll * (jnp.sum(target, axis=-1) if mass is None else mass)
        every = through_nll if k is None else through_nll + k
        out = every[..., None] * p - dnll[..., None] * target
    if dsmooth_loss is not None:
        assert class_weights is not None
        out = out - dsmooth_loss[..., None] * class_weights
    return out
