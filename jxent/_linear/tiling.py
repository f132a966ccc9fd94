"""An axis in tiles of one size, without padding: the first two overlap instead.

Tile 0 owns only its first entries, and what it writes beyond them tile 1 writes again.  So every
tile has one shape, one body is compiled, and nothing is copied to make room.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import core, lax
from jaxtyping import Array, Bool, Integer, Shaped

from jxent._compat import vary_alike

Carry = TypeVar("Carry")
Index = Integer[Array, ""]


# Logits to hold at a time, in bytes, and the least size that keeps a device busy: every chunk of
# rows reads and writes the whole of dhead, every block of classes the whole of dhidden.
_BUDGET = {
    ("rows", "cpu"): (2**26, 512),
    ("classes", "cpu"): (2**24, 512),
    ("rows", "accelerator"): (2**30, 2048),
    ("classes", "accelerator"): (2**28, 4096),
}
_ALIGNMENT = 128  # what products on accelerators are tiled by


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def default_tile_size(axis: Literal["rows", "classes"], other: int) -> int:
    """Choose the size of a tile of one axis of the logits, given the length of the other.

    The least where `jax.export` does not know that length.
    """
    budget, least = _BUDGET[axis, "cpu" if _on_cpu() else "accelerator"]
    if not isinstance(other, int):
        return least
    return max(least, budget // (4 * max(other, 1)))


class Tiles(NamedTuple):
    """`number` tiles of `size`, which together cover `length`."""

    length: int
    number: int
    size: int

    @property
    def first(self) -> int:
        """How many entries tile 0 owns."""
        return self.length - (self.number - 1) * self.size

    def start(self, i: Index) -> Index:
        """Compute where tile i begins."""
        return jnp.maximum(i * self.size - (self.size - self.first), 0)

    def owned(self, i: Index) -> Index:
        """Count the entries that tile i owns."""
        return jnp.where(i == 0, self.first, self.size)

    def owns(self, i: Index) -> Bool[Array, "size"] | None:
        """Mark the entries that tile i owns; None when all tiles own all of theirs."""
        if self.first == self.size:
            return None
        return lax.iota(jnp.int32, self.size) < self.owned(i)

    def take(self, x: Shaped[Array, "..."], i: Index, axis: int = 0) -> Shaped[Array, "..."]:
        """Slice tile i out of x."""
        if self.number == 1:
            return x
        return lax.dynamic_slice_in_dim(x, self.start(i), self.size, axis)

    def put(
        self, x: Shaped[Array, "..."], part: Shaped[Array, "..."], i: Index, axis: int = 0
    ) -> Shaped[Array, "..."]:
        """Replace tile i of x."""
        if self.number == 1:
            return part
        return lax.dynamic_update_slice_in_dim(x, part, self.start(i), axis)

    def scan(self, body: Callable[[Carry, Index], Carry], carry: Carry, like: Array) -> Carry:
        """Fold `body` over the tiles in order; a derivative computes each again.

        The carry is marked as varying over a mesh as `like` does: it will, after the first tile.
        """
        leaves, structure = jax.tree.flatten(carry)
        carry = jax.tree.unflatten(structure, vary_alike(like, *leaves)[1:])
        # Saved, the intermediates of all tiles would be as large as what tiling avoids.
        rematerialized = jax.checkpoint(body, prevent_cse=self.number == 1)
        if self.number == 1:
            return rematerialized(carry, jnp.int32(0))
        tiles = lax.iota(jnp.int32, self.number)
        return lax.scan(lambda carry, i: (rematerialized(carry, i), None), carry, tiles)[0]


def split_axis(length: int, size: int) -> Tiles:
    """Split an axis into as few tiles as possible, all of one size of at most `size`.

    On an accelerator a multiple of 128, unless another size divides the length, or `jax.export`
    does not know it: number and size are then expressions of it.
    """
    if not isinstance(length, int):
        number = -(-length // size)
        return Tiles(length, number, core.min_dim(-(-length // number), length))
    number = max(1, -(-length // size))
    least = -(-length // number)
    aligned = -(-least // _ALIGNMENT) * _ALIGNMENT
    aligns = length % number and aligned <= size and not _on_cpu()
    return Tiles(length, number, aligned if aligns else least)
