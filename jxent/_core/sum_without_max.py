"""S = Σ exp(z − m) − 1 of each row, m = max z, without cancellation, as each platform sums fast.

The 1 is the maximum's own term.  Where the other terms are small, it must not be added and taken
away again; so it is left out of the sum,

    S = Σ_{v: z_v < m} exp(z_v − m) + (#ties − 1)

which is one masked sum where masks are free (GPU, TPU).  On XLA:CPU a select inside a row sum costs
five times as much as the sum, so there are two forms without one:

    blocks   s_b = Σ exp(z_v − m) of blocks b of classes, plain sums, and of the block a that holds
             the maximum its other terms once more:
             S = Σ_{b ≠ a} s_b + Σ_{v in a: z_v < m} exp(z_v − m) + (#ties in a − 1)
    signs    T = Σ exp(z_v − m), and in rows that need it once more with the mask −sign(z_v − m)
"""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from jxent._compat import sharded_explicitly
from jxent._typing import Logits, PerRow


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


def with_gradient_of(x: PerRow, other: PerRow) -> PerRow:
    """Return the value of x with the derivatives of `other`, which is finite wherever x is."""
    return x + (other - lax.stop_gradient(other))


def row_sum(x: Float[Array, "*n V"]) -> PerRow:
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


# Below this S the 1 of the maximum has swallowed digits of S = T − 1.
_SWALLOWED = 1.0

# Below this S, terms that exp flushes to 0 would have contributed to it.
_FLUSHED = 1e-25


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


def _sum_again_below(bound: float) -> Callable[..., PerRow]:
    """Make the function that replaces S where S < bound by a sum without the maximum."""

    @_more_rows_for_vmap
    def sum_again(z: Logits, m: PerRow, S: PerRow) -> PerRow:
        few = bound > S

        def again() -> PerRow:
            d = minus_max(z, m[..., None])
            rest = row_sum(-jnp.sign(d) * _scaled_exp(d, _ROOT)) / _ROOT**2
            ties = jnp.round((S + 1) - rest)
            return jnp.where(few, rest + (ties - 1), S)

        return lax.cond(jnp.any(few), again, lambda: S)

    return sum_again


_sum_swallowed_again, _sum_flushed_again = map(_sum_again_below, (_SWALLOWED, _FLUSHED))


def _sum_by_signs(z: Logits, m: PerRow) -> PerRow:
    """Compute S as a plain sum less 1, and again where that 1 has swallowed digits."""
    total = row_sum(jnp.exp(minus_max(z, m[..., None])))
    return with_gradient_of(_sum_swallowed_again(z, m, total - 1), total)


def _sum_by_blocks(z: Logits, m: PerRow, *, probabilities_follow: bool) -> PerRow:
    """Compute S by sums of blocks.

    Block a is the one of the largest sum.  If it does not hold the maximum, two blocks have sums of
    1 or more, S is at least 1, and counting the 1 of another block as a tie is right.

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
    S = _sum_flushed_again(z, m, S) if probabilities_follow else lax.stop_gradient(S)
    # Not the sum of all sums: XLA would make one sum of the two, and store the exponentials.
    return with_gradient_of(S, (others + own) / scale)


def _sum_by_mask(z: Logits, m: PerRow, *, exp: Callable[[Logits], Logits], scale: float) -> PerRow:
    """Compute S as it is defined, from `exp`, which is scaled."""
    d = minus_max(z, m[..., None])
    rest = jnp.sum(jnp.where(d < 0, exp(d), 0), axis=-1) / scale
    S = rest + (jnp.sum((d == 0).astype(d.dtype), axis=-1) - 1)
    return with_gradient_of(lax.stop_gradient(S), jnp.sum(jnp.exp(d), axis=-1))


def sum_without_max(z: Logits, m: PerRow, *, probabilities_follow: bool) -> PerRow:
    """Compute S; it has the derivatives of Σ exp(z − m), which are right at ties too.

    `probabilities_follow`: exp(z − m) will be computed in the same program, and kept.
    """
    return lax.platform_dependent(
        z,
        m,
        cpu=partial(_sum_by_blocks, probabilities_follow=probabilities_follow),
        # A GPU's exp reaches below 1e-38 by itself, and is shared with the sum of the derivatives.
        cuda=partial(_sum_by_mask, exp=jnp.exp, scale=1.0),
        default=partial(_sum_by_mask, exp=partial(_scaled_exp, root=_ROOT), scale=_ROOT**2),
    )
