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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jxent._core.safe_math import multiply_no_nan, nan_unless
from jxent._core.sum_without_max import minus_max, row_sum, sum_without_max
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


class Statistics(NamedTuple):
    """A row's maximum m, and S = Σ exp(z − m) − 1: the sum without one maximum."""

    m: PerRow
    S: PerRow


def statistics(z: Logits, dtype: jnp.dtype, *, probabilities_follow: bool = False) -> Statistics:
    """Compute (m, S) of each row, in `dtype`; S is NaN for NaN, +inf, or a row of −inf.

    The maximum is taken in z's own dtype: it is exact there, and half-precision logits then need
    one wide temporary less.  It is a constant to every derivative, since lse does not depend on
    the number subtracted in the exponents.

    `probabilities_follow` says that `softmax_probabilities` of the same logits come in the same
    program.  Their exponentials are shared then, unless z is narrower: the gradient has no room to
    keep them in.
    """
    m = lax.stop_gradient(jnp.max(z, axis=-1)).astype(dtype)
    share = probabilities_follow and z.dtype == dtype
    S = sum_without_max(z.astype(dtype), m, probabilities_follow=share)
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
    return row_sum(w * jnp.minimum(-minus_max(z, m[..., None]), ceiling))


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
