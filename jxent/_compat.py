"""Hide the differences between JAX versions, 0.7.2 to the newest; nothing else belongs here."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def enable_x64() -> AbstractContextManager[Any]:
    """Enter a context in which float64 is enabled."""
    home = jax if hasattr(jax, "enable_x64") else jax.experimental
    enable: Callable[[bool], AbstractContextManager[Any]] = getattr(home, "enable_x64")  # noqa: B009
    return enable(True)


def separate_traces(name: str) -> AbstractContextManager[Any]:
    """Enter a context with its own jit caches, which shares no trace with the outside.

    XLA metadata is part of the key of every jit cache and changes no number.
    """
    return set_xla_metadata(jxent=name)


def _varying(x: jax.Array) -> frozenset[str]:
    """Return the mesh axes of an enclosing `shard_map(check_vma=True)` over which x varies."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_alike(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """Mark every array as varying over all mesh axes over which any of them varies.

    A custom rule must return cotangents that vary over the same axes as its inputs.  Where all
    inputs vary alike, every cotangent does so without further work; and JAX, which transposes the
    marking, sums a replicated parameter's cotangent over the mesh.
    """
    axes = frozenset[str]().union(*(_varying(x) for x in arrays if x is not None))
    pcast: Callable[..., jax.Array] | None = getattr(jax.lax, "pcast", None)
    pvary: Callable[..., jax.Array] | None = getattr(jax.lax, "pvary", None)

    def alike(x: jax.Array | None) -> jax.Array | None:
        missing = () if x is None else tuple(axes - _varying(x))
        if x is None or not missing:
            return x
        if pcast is not None:
            return pcast(x, missing, to="varying")
        assert pvary is not None
        return pvary(x, missing)

    return tuple(alike(x) for x in arrays)


def _explicit_spec(x: jax.Array) -> tuple[Any, ...]:
    """Return the PartitionSpec in x's type, as a tuple; () unless an Explicit mesh splits x."""
    spec = getattr(getattr(jax.typeof(x), "sharding", None), "spec", None)
    return tuple(spec) if spec is not None and any(names is not None for names in spec) else ()


def sharded_explicitly(x: jax.Array, axis: int) -> bool:
    """Return True if x's type says that this axis is split over an Explicit mesh."""
    spec = _explicit_spec(x)
    return bool(spec) and spec[axis] is not None


def shard_alike(x: jax.Array, like: jax.Array) -> jax.Array:
    """Shard x as the type of `like` says, which has the same shape."""
    if not _explicit_spec(like):
        return x
    reshard: Callable[..., jax.Array] = getattr(jax, "reshard", None) or jax.sharding.reshard
    return reshard(x, jax.typeof(like).sharding)
