"""An axis in pieces of one size, without padding: the first two overlap instead.

Piece 0 owns only its first entries, and what it writes beyond them piece 1 writes again.  So every
piece has one shape, one body is compiled, and nothing is copied to make room.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
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
    """The size of a piece of one axis of the logits, given the length of the other."""
    budget, least = _BUDGET[axis, "cpu" if _on_cpu() else "accelerator"]
    return max(least, budget // (4 * max(other, 1)))


class Tiles(NamedTuple):
    """`number` pieces of `size`, which together make `length`."""

    length: int
    number: int
    size: int

    @property
    def first(self) -> int:
        """How many entries piece 0 owns."""
        return self.length - (self.number - 1) * self.size

    def start(self, i: Index) -> Index:
        """Where piece i begins."""
        return jnp.maximum(i * self.size - (self.size - self.first), 0)

    def owned(self, i: Index) -> Index:
        """How many of its entries piece i owns."""
        return jnp.where(i == 0, self.first, self.size)

    def owns(self, i: Index) -> Bool[Array, "size"] | None:
        """Which entries of piece i are its own; None when all pieces own all."""
        if self.first == self.size:
            return None
        return lax.iota(jnp.int32, self.size) < self.owned(i)

    def take(self, x: Shaped[Array, "..."], i: Index, axis: int = 0) -> Shaped[Array, "..."]:
        """Piece i of x."""
        if self.number == 1:
            return x
        return lax.dynamic_slice_in_dim(x, self.start(i), self.size, axis)

    def put(
        self, x: Shaped[Array, "..."], part: Shaped[Array, "..."], i: Index, axis: int = 0
    ) -> Shaped[Array, "..."]:
        """x with piece i replaced."""
        if self.number == 1:
            return part
        return lax.dynamic_update_slice_in_dim(x, part, self.start(i), axis)

    def scan(self, body: Callable[[Carry, Index], Carry], carry: Carry, like: Array) -> Carry:
        """Body after body over the pieces in order; a derivative computes each again.

        The carry is marked as varying over a mesh as `like` does, which it will once it is summed.
        """
        leaves, structure = jax.tree.flatten(carry)
        carry = jax.tree.unflatten(structure, vary_alike(like, *leaves)[1:])
        # What a piece makes on its way is as large as what a cut is there to avoid.
        rematerialized = jax.checkpoint(body, prevent_cse=self.number == 1)
        if self.number == 1:
            return rematerialized(carry, jnp.int32(0))
        tiles = lax.iota(jnp.int32, self.number)
        return lax.scan(lambda carry, i: (rematerialized(carry, i), None), carry, tiles)[0]


def split_axis(length: int, size: int) -> Tiles:
    """As few pieces as can be of at most `size`, all of one size.

    On an accelerator a round one, unless another divides the length.
    """
    count = max(1, -(-length // size))
    least = -(-length // count)
    round_ = -(-least // _ALIGNMENT) * _ALIGNMENT
    rounds = length % count and round_ <= size and not _on_cpu()
    return Tiles(length, count, round_ if rounds else least)
