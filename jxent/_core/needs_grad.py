"""Which gradients are wanted, kept in a tree structure that does not depend on the answer."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool


def needs_grad(argument: Any) -> bool:
    """Whether a derivative is asked for, of an argument to a forward rule with symbolic zeros."""
    return any(x.perturbed for x in jax.tree.leaves(argument))


def encode_flag(up: bool) -> Bool[Array, "_"]:
    """A boolean in an array's shape: what a rule saves must have one structure whatever it says."""
    return jnp.zeros(int(up), bool)


def decode_flag(flag: Bool[Array, "_"]) -> bool:
    """What it says."""
    return flag.size == 1


@jax.tree_util.register_static
@dataclass(frozen=True)
class Types:
    """The types of some arrays, to be saved in their place."""

    leaves: tuple[Any, ...]


def types_of(tree: Any) -> Types:
    """Of its leaves in order."""
    return Types(tuple(map(jax.typeof, jax.tree.leaves(tree))))


def symbolic_zero(like: Any) -> SymbolicZero:
    """The cotangent that nobody asked for: not None, or the structure would depend on who asks."""
    return SymbolicZero(like)
