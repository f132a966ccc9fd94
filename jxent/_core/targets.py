"""Targets: labels or distributions; labels narrowed, masked, and compared with the classes."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Shaped

from jxent._compat import shard_alike, sharded_explicitly
from jxent._typing import Labels, Logits, RowMask, Targets


def is_labels(targets: Targets) -> bool:
    """Tell integer labels (True) from distributions (False)."""
    return bool(jnp.issubdtype(targets.dtype, jnp.integer))


def narrow(labels: Labels, classes: int) -> Integer[Array, "*n"]:
    """Cast labels to int32, with −1 for those outside [0, classes).

    Small integers are widened before they are compared: 300 does not fit an int8, and would wrap.
    """
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    return jnp.where((wide >= 0) & (wide < classes), wide, -1).astype(jnp.int32)


def kept_rows(targets: Targets, where: RowMask | None, ignore_index: int | None) -> RowMask | None:
    """Combine `where` and `ignore_index` into one row mask; None keeps all rows."""
    if ignore_index is None or not is_labels(targets):
        return where
    bounds = jnp.iinfo(targets.dtype)
    if not bounds.min <= ignore_index <= bounds.max:  # no label of this dtype can equal it
        return where
    counts = targets != jnp.asarray(ignore_index, targets.dtype)
    return counts if where is None else where & counts


def is_label(labels: Labels, z: Shaped[Array, "*n V"]) -> Bool[Array, "*n V"]:
    """Compute e_y as a mask over z, by comparing an int32 iota: a sharded axis stays sharded."""
    classes = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
    return shard_alike(classes, z) == labels[..., None]


def at_label(z: Logits, labels: Labels) -> Float[Array, "*n"]:
    """Take z_y of each row; any entry for a label outside [0, V)."""
    if sharded_explicitly(z, -1):  # a gather along a sharded axis is an error on an Explicit mesh
        return jnp.sum(jnp.where(is_label(labels, z), z, 0), axis=-1, dtype=z.dtype)
    index = jnp.clip(labels, 0, z.shape[-1] - 1)[..., None]
    return jnp.take_along_axis(z, index, axis=-1, mode="clip")[..., 0]
