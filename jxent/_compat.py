"""What differs between JAX versions (0.7.2 to the newest), nothing else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def enable_x64() -> AbstractContextManager[Any]:
    """A context in which float64 exists."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64 as experimental_enable_x64

    return experimental_enable_x64()


def separate_traces(name: str) -> AbstractContextManager[Any]:
    """A context with jit caches of its own: nothing traced outside is reused, nothing leaks out.

    XLA metadata is part of the key of every jit cache and changes no number.
    """
    return set_xla_metadata(jxent=name)


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes of an enclosing `shard_map(check_vma=True)` over which x differs."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_alike(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """Every array marked as varying over the axes over which any of them varies.

    A custom rule must return cotangents that vary as its inputs do.  Made alike before the rule,
    they do so of themselves, and JAX sums a replicated parameter's cotangent over the mesh.
    """
    axes = frozenset[str]().union(*(_varying(x) for x in arrays if x is not None))
    cast: Callable[..., jax.Array] | None = getattr(jax.lax, "pcast", None)

    def alike(x: jax.Array | None) -> jax.Array | None:
        missing = () if x is None else tuple(axes - _varying(x))
        if x is None or not missing:
            return x
        return cast(x, missing, to="varying") if cast else jax.lax.pvary(x, missing)

    return tuple(alike(x) for x in arrays)


def sharded_explicitly(x: jax.Array, axis: int) -> bool:
    """Whether x's type says that this axis is split over an Explicit mesh."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    spec = getattr(sharding, "spec", None)
    return bool(spec) and len(spec) == x.ndim and spec[axis] is not None
