"""Which gradients are wanted, in a tree structure that does not depend on the answer.

A `custom_vjp` with symbolic zeros must return one structure from its forward and backward rules,
whatever is perturbed.  So a yes or no travels as an array with one entry or none, and a gradient
that is not wanted is a `SymbolicZero`, not None.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool


def needs_grad(argument: Any) -> bool:
    """Tell whether a derivative is wanted of an argument to a rule with symbolic zeros."""
    return any(x.perturbed for x in jax.tree.leaves(argument))


def encode_flag(flag: bool) -> Bool[Array, "_"]:
    """Encode a boolean as an array with one entry (True) or none (False)."""
    return jnp.zeros(int(flag), bool)


def decode_flag(flag: Bool[Array, "_"]) -> bool:
    """Decode `encode_flag`: True if the array has one entry."""
    return flag.size == 1


@jax.tree_util.register_static
@dataclass(frozen=True)
class Types:
    """The types of a tree's leaves in order, to be saved in place of the arrays."""

    leaves: tuple[Any, ...]


def types_of(tree: Any) -> Types:
    """Collect the types of a tree's leaves."""
    return Types(tuple(map(jax.typeof, jax.tree.leaves(tree))))


def symbolic_zero(like: Any) -> SymbolicZero:
    """Build the cotangent of an argument whose gradient is not wanted, from its type."""
    return SymbolicZero(like)
