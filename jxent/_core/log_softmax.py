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
    spread = Σ_v c_v nll_v

(c: class weights, 1 without), so there is one derivative formula, `derivative`:

    ∂/∂z = (dlse + dspread·Σc)·p − dspread·c + dnll·(p − e_y)           for a label
                                             + dnll·((Σ c t)·p − c t)   for a distribution
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jxent._core.safe_math import multiply_no_nan
from jxent._typing import Distribution, Logits, PerRow


def loss_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or wider if the logits are."""
    wide = jnp.dtype(jnp.float32)
    return dtype if jnp.finfo(dtype).bits > jnp.finfo(wide).bits else wide


def pin_half_precision(u: Logits) -> Logits:
    """u, rounded to its dtype once for all who read it.

    Inside jit XLA may keep in float32 what the program rounds to half precision, in one pass over
    it and not in another: the maximum would then not be that of the numbers it is taken from.
    """
    return lax.optimization_barrier(u) if jnp.finfo(u.dtype).bits < 32 else u


# Below this Σ exp(z − m) the 1 of the maximum itself has swallowed digits of the rest.
_CONFIDENT = 2.0

# Below this S, terms that exp flushes to 0 (from d = −87) would have told in it.
_FAINT = 1e-25
_EXP_SCALE = 2.0**64
_SHIFT = 44.0


def _row_sum(x: Float[Array, "*n V"]) -> PerRow:
    """Σ_v x_v; for one row in blocks of blocks, since XLA:CPU adds up a lone row one by one."""
    rows, block = x.shape[:-1], 32
    if x.size != x.shape[-1]:
        return jnp.sum(x, axis=-1)
    x = x.ravel()
    while x.size > block:
        x = jnp.sum(jnp.pad(x, (0, -x.size % block)).reshape(-1, block), axis=-1)
    return jnp.sum(x).reshape(rows)


def _scaled_exp(d: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """2⁶⁴ exp(d) for d ≤ 0, in which terms of 1e-38 still count.

    Far terms take 44 out of the exponent, which is exact; the step has no select, so that it fuses.
    """
    far = jnp.maximum(jnp.sign(-_SHIFT - d), 0)
    return jnp.exp(d + _SHIFT * far) * (
        far * (_EXP_SCALE * math.exp(-_SHIFT)) + (1 - far) * _EXP_SCALE
    )


def force_rounding(z: Float[Array, "..."], m: Float[Array, "..."]) -> Float[Array, "..."]:
    """z, none of which is above m, to take something from.

    Inside jit z may be a product that XLA computes as it goes, and a·b − m is then rounded once and
    not twice: it is not 0 where a·b is m, and a confident row's loss is that difference.  What has
    been compared has been rounded before; and no logit is above a number that is above m.
    """
    return jnp.minimum(z, 2 * jnp.abs(m) + 1)


def minus_max(z: Float[Array, "..."], m: Float[Array, "..."]) -> Float[Array, "..."]:
    """d = z − m, exactly 0 where z is m; −∞ where both are, which is nobody's maximum."""
    m = jnp.where(m == -jnp.inf, 0, m)
    return force_rounding(z, m) - m


class Statistics(NamedTuple):
    """What normalises a row: its maximum, and the rest of Σ exp(z − m)."""

    m: PerRow
    S: PerRow


def with_gradient_of(x: PerRow, other: PerRow) -> PerRow:
    """The number x with the derivatives of another, which is finite wherever x is."""
    return x + (other - lax.stop_gradient(other))


def statistics(z: Logits, dtype: jnp.dtype) -> Statistics:
    """(m, S) of each row, in `dtype`; NaN statistics for NaN, +inf, or a row of −inf.

    The maximum is taken in z's own dtype: it is exact there, and half-precision logits then need
    one wide temporary less.  It is a constant to every derivative, since lse does not depend on
    what is taken out of the exponents; S changes as Σ_v exp(z_v − m) does, ties included.
    """
    m = lax.stop_gradient(jnp.max(z, axis=-1)).astype(dtype)

    def d() -> Float[Array, "*n V"]:
        return minus_max(z.astype(dtype), m[..., None])

    def masked(exp: Callable[[Logits], Logits], unit: float) -> PerRow:
        rest = jnp.sum(jnp.where(d() < 0, exp(d()), 0), axis=-1) / unit
        ties = jnp.sum((d() == 0).astype(dtype), axis=-1)
        return rest + (ties - 1)

    def fused() -> PerRow:
        # XLA:CPU fuses a plain row sum; a mask inside it costs five times as much.  So the rest
        # is summed by signs, only when some row needs it, and the ties are what is missing.
        total = _row_sum(jnp.exp(d()))

        def exact() -> PerRow:
            rest = _row_sum(-jnp.sign(d()) * jnp.exp(d()))
            ties = jnp.round(total - rest)
            return jnp.where(total < _CONFIDENT, rest + (ties - 1), total - 1)

        S = lax.cond(jnp.any(total < _CONFIDENT), exact, lambda: total - 1)

        def raised() -> PerRow:
            rest = _row_sum(-jnp.sign(d()) * _scaled_exp(d())) / _EXP_SCALE
            return jnp.where(S < _FAINT, rest, S)

        return lax.cond(jnp.any(S < _FAINT), raised, lambda: S)

    # A GPU's exp reaches below 1e-38 by itself, and shares its exponentials with the sum below.
    plain, raised = partial(masked, jnp.exp, 1.0), partial(masked, _scaled_exp, _EXP_SCALE)
    S = lax.stop_gradient(lax.platform_dependent(cpu=fused, cuda=plain, default=raised))
    S = jnp.where(jnp.isfinite(m), S, jnp.nan)
    return Statistics(m, with_gradient_of(S, _row_sum(jnp.exp(d()))))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two disjoint sets of classes together; no classes: (−∞, −1)."""
    a_leads = a.m >= b.m
    lead = jnp.where(a_leads, a.S, b.S)
    rest = 1 + jnp.where(a_leads, b.S, a.S)
    # Where neither holds a class both are −∞, and their distance 0.
    behind = jnp.where(a.m == b.m, 0, -jnp.abs(a.m - b.m))
    return Statistics(jnp.maximum(a.m, b.m), lead + rest * jnp.exp(behind))


def logsumexp(stats: Statistics) -> PerRow:
    """lse = m + log1p(S)."""
    return stats.m + jnp.log1p(stats.S)


def nll_of(z_y: PerRow, stats: Statistics) -> PerRow:
    """nll_y = (m − z_y) + log1p(S), never negative."""
    gap = -minus_max(z_y, stats.m)
    # Less than 0 is a logit which XLA rounded otherwise in another pass.
    return jnp.where(gap < 0, gap - lax.stop_gradient(gap), gap) + jnp.log1p(stats.S)


def weighted_gap(w: Float[Array, "*#n V"], z: Logits, m: PerRow) -> PerRow:
    """Σ_v w_v (m − z_v), with 0·∞ = 0.

    The 0·∞ is met by a ceiling on m − z_v: ∞ where w_v ≠ 0, a huge number where w_v = 0, which
    leaves ∂/∂w_v room to be multiplied.  Arithmetic fuses into one pass, where a select costs
    XLA:CPU an [N, V] array.
    """
    largest = jnp.asarray(jnp.finfo(z.dtype).max, z.dtype)
    zero_only = 1 - jnp.abs(lax.stop_gradient(w)) * largest
    ceiling = jnp.maximum(1 / jnp.maximum(zero_only, 0), largest * 2.0**-20)
    m = lax.optimization_barrier(m)  # a broadcast shared with `statistics` would be stored
    return _row_sum(w * jnp.minimum(-minus_max(z, m[..., None]), ceiling))


def weighted_nll(w: Float[Array, "*#n V"], z: Logits, stats: Statistics) -> PerRow:
    """Σ_v w_v nll_v = Σ_v w_v (m − z_v) + (Σ_v w_v) log1p(S), with 0·∞ = 0."""
    return weighted_gap(w, z, stats.m) + multiply_no_nan(jnp.sum(w, axis=-1), jnp.log1p(stats.S))


def softmax_probabilities(z: Logits, stats: Statistics, lse: PerRow) -> Float[Array, "*n V"]:
    """p_v = exp(z_v − m)/(1 + S), by the exponential of the forward pass, which is shared.

    Its derivatives are those of exp(z_v − lse): ṗ = p ⊙ (ż − Σ p ż), and so on.
    """
    m, S = lax.stop_gradient(stats)
    return (
        jnp.exp(minus_max(z, m[..., None]))
        * (jnp.exp(lax.stop_gradient(lse) - lse) / (1 + S))[..., None]
    )


def clipped_neg_log_softmax(z: Logits, m: PerRow, log1p_S: PerRow) -> Float[Array, "*n V"]:
    """nll_v, ∞ told as the largest number, so that 0·∞ is 0 after it."""
    return jnp.minimum(-minus_max(z, m[..., None]) + log1p_S[..., None], jnp.finfo(z.dtype).max)


def entropy_derivative(
    p: Float[Array, "*n V"], nll: Float[Array, "*n V"], entropy: PerRow
) -> Float[Array, "*n V"]:
    """∂H/∂z_v = p_v (nll_v − H) of H = Σ_v p_v nll_v, 0 where p_v = 0, to any order.

    What all of nll_v have in common may be left out of them and of H.
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
) -> Float[Array, "*n V"]:
    """∂/∂z of dnll·nll + dlse·lse + dspread·spread; a coefficient that is None is not computed.

    `target` is (e_y, p_y − 1) for labels (p_y − 1 = expm1(−nll), which does not cancel), or c ⊙ t
    for distributions.  `class_weights` are those of the kept classes, 0 on the others; `total` is
    their sum where z holds only some of the classes.
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
        through_nll = dnll * jnp.sum(target, axis=-1)
        every = through_nll if k is None else through_nll + k
        out = every[..., None] * p - dnll[..., None] * target
    if dsmooth_loss is not None:
        assert class_weights is not None
        out = out - dsmooth_loss[..., None] * class_weights
    return out
