"""Means of other rows, drawn from the same: the bootstrap.

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
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from jxent._compat import enable_x64

MANY = 2048  # rows, from which the counts are independent
BLOCK = 2**20  # numbers in memory at once
CALL = 2**26  # draws between two looks at the clock

# Of 256 values of eight bits, how many give the count 0, 1, …, 5:
# Σ n = Σ c n = Σ c(c−1) n = 256, Σ c(c−1)(c−2) n = 258.
FREQUENCIES = (93, 98, 43, 17, 4, 1)
_STEPS = np.cumsum(FREQUENCIES, dtype=np.uint32)[:-1]  # a count is how many of these it reaches
_LANES = 8  # counts in a word


def least_resamples(confidence: float) -> int:
    """So many that one lies beyond each end of the interval."""
    return math.ceil(2 / (1 - confidence) - 1e-9)  # 0.95 is not 19/20 in binary


def resampled_means(
    u: Float[np.ndarray, "N K"], w: Float[np.ndarray, " N"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples K"]:
    """Σ c u / Σ c w of each resample; every w is positive.

    Of many rows in float32: an error of some 1e-6 of the spread of m*, where the Σ u are 0.
    """
    rows, many = len(w), len(w) >= MANY
    # Numbers of order 1, in float32 too.
    unit = np.sqrt(np.mean(np.square(u), axis=0))
    unit = np.where(unit > 0, unit, 1.0)
    x = np.column_stack([u / unit, w / np.mean(w)])
    if many:
        lanes = np.pad(x, ((0, -rows % _LANES), (0, 0))).reshape(-1, _LANES, x.shape[-1])
        x = lanes.transpose(1, 2, 0).astype(np.float32)
    block = max(1, min(resamples, BLOCK // (rows if many else x.size)))
    blocks = max(1, min(-(-resamples // block), CALL // (rows * block)))
    with enable_x64():
        key, on_device = jax.random.key(seed, impl="threefry2x32"), jnp.asarray(x)
        parts = [
            np.asarray(_sums(key, jnp.uint32(start), on_device, blocks=blocks, block=block))
            for start in watched(range(0, resamples, blocks * block), "bootstrap")
        ]
    sums = np.concatenate(parts)[:resamples].astype(np.float64)
    return sums[:, :-1] / sums[:, -1:] * (unit / np.mean(w))


@partial(jax.jit, static_argnames=("blocks", "block"))
def _sums(
    key: Key[Array, ""],
    start: UInt32[Array, ""],
    x: Float[Array, "..."],
    *,
    blocks: int,
    block: int,
) -> Float[Array, "R K"]:
    """Of resamples start, start + 1, …; x is [N, K], or [lanes, K, words] where rows are many."""
    few = x.ndim == 2
    of_block = jax.vmap(partial(_single, key, x)) if few else partial(_counted, key, x)
    each = start + jnp.arange(blocks * block, dtype=jnp.uint32)
    sums = jax.lax.map(of_block, each.reshape(blocks, block))
    return sums.reshape(blocks * block, -1)


def _single(key: Key[Array, ""], x: Float[Array, "N K"], r: UInt32[Array, ""]) -> Array:
    """Σ x over N rows drawn one by one."""
    rows = x.shape[0]
    draws = jax.random.bits(jax.random.fold_in(key, r), (rows,), jnp.uint32)
    return jnp.sum(x[(draws % np.uint32(rows)).astype(jnp.int32)], axis=0)


def _counted(
    key: Key[Array, ""], x: Float[Array, "lanes K words"], each: UInt32[Array, " b"]
) -> Float[Array, "b K"]:
    """Σ c x with independent counts."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(each)
    words = jax.vmap(lambda k: jax.random.bits(k, x.shape[2:], jnp.uint64))(keys)
    sums = jnp.zeros((each.shape[0], x.shape[1]), x.dtype)
    for lane in range(_LANES):
        bits = (words >> np.uint64(8 * lane)).astype(jnp.uint32) & np.uint32(255)
        c = sum(
            ((bits >= step).astype(jnp.int32) for step in _STEPS), jnp.zeros_like(bits, "int32")
        )
        sums = sums + jnp.einsum("bw,kw->bk", c.astype(x.dtype), x[lane])
    return sums


T = TypeVar("T")

PATIENCE = 1.0  # seconds without a bar


def watched(items: Sequence[T], what: str) -> Iterator[T]:
    """The items; beyond `PATIENCE` seconds a bar of rich, if rich and a terminal are there."""
    start, bars = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if bars is None and time.monotonic() - start > PATIENCE:
                bars = _bars()
                if bars is not None:
                    bars.add_task(what, total=len(items))
                    bars.start()
            if bars is not None:
                bars.update(bars.task_ids[0], completed=done)
            yield item
    finally:
        if bars is not None:
            bars.stop()


def _bars() -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter
    return Progress(console=console, transient=True) if seen else None
