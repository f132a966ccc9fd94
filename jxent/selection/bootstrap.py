"""The bootstrap: means of rows drawn with replacement from the given ones.

    m* = Σ_i c_i u_i / Σ_i c_i w_i        c ~ multinomial(N; 1/N, …), one c for all columns of u

Of few rows, N are drawn, one by one.  Of many, the counts are independent: their total is N up to a
share 1/√N, by which the quotient does not change, and Σ c_i u_i is a product of matrices, which
costs a tenth of N gathers.  Eight random bits make a count of Poisson(1)'s mean and variance, both
exactly 1, its third moment to 1 %; so a word of 64 bits holds eight.  In blocks, so that memory is
bounded; resample r depends on the seed and on r alone.

Source: Efron, *Bootstrap Methods: Another Look at the Jackknife*, 1979; independent counts:
Præstgaard and Wellner, *Exchangeably Weighted Bootstraps of the General Empirical Process*, 1993.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from jxent._compat import enable_x64
from jxent.selection.progress import track

MANY = 2048  # rows, from which the counts are independent
BLOCK = 2**20  # entries in memory at once
CALL = 2**26  # draws in a call, between two steps of the progress bar

# Of 256 values of eight bits, how many give the count 0, 1, …, 5:
# Σ n = Σ c n = Σ c(c−1) n = 256, Σ c(c−1)(c−2) n = 258.
FREQUENCIES = (93, 98, 43, 17, 4, 1)
_THRESHOLDS = np.cumsum(FREQUENCIES, dtype=np.uint32)[:-1]  # a count is how many are reached
_LANES = 8  # counts in a word


def least_resamples(confidence: float) -> int:
    """Return how many resamples leave one beyond each end of the interval."""
    return math.ceil(2 / (1 - confidence) - 1e-9)  # 0.95 is not 19/20 in binary


def resampled_means(
    u: Float[np.ndarray, "N K"], w: Float[np.ndarray, " N"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples K"]:
    """Compute Σ c u / Σ c w of each resample; every w is positive.

    From `MANY` rows on in float32: where Σ u = 0, off by about 1e-6 of the spread of m*.
    """
    rows, many = len(w), len(w) >= MANY
    # Of order 1, which float32 holds whatever the unit of u and w.
    scale = np.sqrt(np.mean(np.square(u), axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    x = np.column_stack([u / scale, w / np.mean(w)])
    if many:
        lanes = np.pad(x, ((0, -rows % _LANES), (0, 0))).reshape(-1, _LANES, x.shape[-1])
        x = lanes.transpose(1, 2, 0).astype(np.float32)
    block = max(1, min(resamples, BLOCK // (rows if many else x.size)))
    blocks = max(1, min(-(-resamples // block), CALL // (rows * block)))
    with enable_x64():
        key, on_device = jax.random.key(seed, impl="threefry2x32"), jnp.asarray(x)
        parts = [
            np.asarray(_sums(key, jnp.uint32(start), on_device, blocks=blocks, block=block))
            for start in track(range(0, resamples, blocks * block), "bootstrap")
        ]
    sums = np.concatenate(parts)[:resamples].astype(np.float64)
    return sums[:, :-1] / sums[:, -1:] * (scale / np.mean(w))


@partial(jax.jit, static_argnames=("blocks", "block"))
def _sums(
    key: Key[Array, ""],
    start: UInt32[Array, ""],
    x: Float[Array, "..."],
    *,
    blocks: int,
    block: int,
) -> Float[Array, "R K"]:
    """Sum resamples start, start + 1, …; x is [N, K], or [lanes, K, words] where rows are many."""
    few = x.ndim == 2
    sums_of_block = jax.vmap(partial(_drawn_sum, key, x)) if few else partial(_counted_sums, key, x)
    resamples = start + jnp.arange(blocks * block, dtype=jnp.uint32)
    sums = jax.lax.map(sums_of_block, resamples.reshape(blocks, block))
    return sums.reshape(blocks * block, -1)


def _drawn_sum(key: Key[Array, ""], x: Float[Array, "N K"], r: UInt32[Array, ""]) -> Array:
    """Sum x over N rows drawn one by one."""
    rows = x.shape[0]
    draws = jax.random.bits(jax.random.fold_in(key, r), (rows,), jnp.uint32)
    return jnp.sum(x[(draws % np.uint32(rows)).astype(jnp.int32)], axis=0)


def _counted_sums(
    key: Key[Array, ""], x: Float[Array, "lanes K words"], resamples: UInt32[Array, " b"]
) -> Float[Array, "b K"]:
    """Compute Σ c x of each resample, with independent counts c."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(resamples)
    words = jax.vmap(lambda k: jax.random.bits(k, x.shape[2:], jnp.uint64))(keys)
    sums = jnp.zeros((resamples.shape[0], x.shape[1]), x.dtype)
    for lane in range(_LANES):
        bits = (words >> np.uint64(8 * lane)).astype(jnp.uint32) & np.uint32(255)
        reached = ((bits >= threshold).astype(jnp.int32) for threshold in _THRESHOLDS)
        c = sum(reached, jnp.zeros_like(bits, "int32"))
        sums = sums + jnp.einsum("bw,kw->bk", c.astype(x.dtype), x[lane])
    return sums
