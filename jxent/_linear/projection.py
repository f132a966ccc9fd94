"""The projection of hidden states onto classes, and its transposes.

    z = h·w + b        dh = dz·wᵀ        dw = hᵀ·dz        db = Σ_rows dz

Products accumulate in the dtype of the loss, whatever the operands' dtypes.  Before the two
backward products dz is rounded to the operands' dtype, so that they run in that dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jxent._compat import shard_alike, sharded_explicitly
from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import zero_unless
from jxent._typing import Logits, RowMask, SharedClassMask

Layout = Literal["dv", "vd"]
Hidden = Float[Array, "N D"]
Head = Float[Array, "_ _"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["hidden", "head", "bias"],
    meta_fields=["layout"],
)
@dataclass(frozen=True, eq=False)
class Projection:
    """Hidden states, a head and a bias or None; or their gradients, None where not wanted."""

    hidden: Any
    head: Any
    bias: Any
    layout: Layout

    @property
    def classes_axis(self) -> int:
        """The head's axis of classes."""
        return 1 if self.layout == "dv" else 0

    @property
    def classes(self) -> int:
        """How many classes the head has."""
        return int(self.head.shape[self.classes_axis])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of logits and losses: float32, or wider if an operand is."""
        return widest_dtype(self.hidden, self.head, self.bias)


class Static(NamedTuple):
    """The precision of products, and the size of a tile of rows or classes; static."""

    precision: Any
    tile_size: int


def widest_dtype(*operands: Array | None) -> jnp.dtype:
    """Return the dtype of a loss of these operands: float32, or wider if one of them is."""
    dtypes = [loss_dtype(x.dtype) for x in operands if x is not None]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def alignment_padding(classes: int) -> int:
    """Count the classes to add so that on a GPU each row of logits begins at 16-byte multiples.

    Where rows do not (GPT-2 has 50257 classes) the products take three times as long.
    """
    aligned = jax.default_backend() != "gpu" or classes % 8 == 0
    return 0 if aligned else -classes % (128 if classes > 1024 else 8)


def pad_classes(
    p: Projection, mask: SharedClassMask | None
) -> tuple[Projection, Bool[Array, "_"] | None]:
    """Add impossible classes (a bias of −∞) for alignment; the copied head is the price."""
    spare = alignment_padding(p.classes)
    if spare == 0 or sharded_explicitly(p.head, p.classes_axis):
        return p, mask
    dtype = widest_dtype(p.head, p.bias)
    b = jnp.zeros(p.classes, dtype) if p.bias is None else p.bias.astype(dtype)
    wider = [(0, spare) if axis == p.classes_axis else (0, 0) for axis in range(2)]
    padded = replace(
        p, head=jnp.pad(p.head, wider), bias=jnp.pad(b, (0, spare), constant_values=-jnp.inf)
    )
    return padded, None if mask is None else jnp.pad(mask, (0, spare))


def keep_classes(p: Projection, mask: SharedClassMask | None) -> Projection:
    """Replace the head by 0 where a class is excluded: 0·NaN would come back to the hidden states.

    It is then the mask, in the loss, that makes these classes impossible.
    """
    if mask is None:
        return p
    kept = jnp.broadcast_to(jnp.expand_dims(mask, 1 - p.classes_axis), p.head.shape)
    return replace(p, head=jnp.where(shard_alike(kept, p.head), p.head, 0))


def _dot(static: Static, a: Array, b: Array, axes: tuple[int, int], dtype: jnp.dtype) -> Array:
    contract = ((axes[:1], axes[1:]), ((), ()))
    return lax.dot_general(a, b, contract, precision=static.precision, preferred_element_type=dtype)


def project(static: Static, p: Projection) -> Logits:
    """Compute z = h·w + b."""
    z = _dot(static, p.hidden, p.head, (1, 1 - p.classes_axis), p.dtype)
    return z if p.bias is None else z + p.bias.astype(p.dtype)[None, :]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def project_rows(static: Static, kept: RowMask | None, p: Projection) -> Logits:
    """Compute the logits of kept rows, and 0 in the others, without a masked copy of h.

    Its derivative is that of the product of the masked h: in what comes back to the head a dropped
    row's 0·∞ would be NaN.
    """
    return zero_unless(kept, project(static, p))


@project_rows.defjvp
def _project_rows_jvp(static, primals, tangents):
    kept, p = primals
    masked = replace(p, hidden=zero_unless(kept, p.hidden))
    _, z_dot = jax.jvp(partial(project, static), (masked,), (tangents[1],))
    return project_rows(static, *primals), zero_unless(kept, z_dot)


class ScaledGradient(NamedTuple):
    """dz/scale in the operands' dtype; a scale of None is 1."""

    dz: Logits
    scale: Float[Array, ""] | None


def scale_to_half(dz: Logits, p: Projection) -> ScaledGradient:
    """Round dz to the operands' dtype, lifted into the range of float16 where that is it.

    The gradients of a mean would vanish there.  The scale is a power of two that takes the largest
    to some 2¹⁴, which leaves 2²⁸ below it in full precision.  Eight bits and fewer hold no gradient
    well enough: with such operands dz stays as it is.
    """
    alike = p.hidden.dtype == p.head.dtype and jnp.finfo(p.hidden.dtype).bits >= 16
    dtype = p.hidden.dtype if alike else dz.dtype
    if dtype != jnp.float16:
        return ScaledGradient(dz.astype(dtype), None)
    largest = jnp.max(jnp.where(jnp.isfinite(dz), jnp.abs(dz), 0), initial=0)
    _, exponent = jnp.frexp(jnp.where(largest == 0, 1, lax.stop_gradient(largest)))
    scale = jnp.ldexp(jnp.ones((), dz.dtype), exponent - 14)
    return ScaledGradient((dz / scale).astype(dtype), scale)


def _unscale(x: Array, scale: Float[Array, ""] | None) -> Array:
    return x if scale is None else x * scale


def hidden_gradient(static: Static, by: ScaledGradient, p: Projection, dtype: jnp.dtype) -> Hidden:
    """Compute dh = dz·wᵀ."""
    return _unscale(_dot(static, by.dz, p.head, (1, p.classes_axis), dtype), by.scale)


def head_gradient(static: Static, by: ScaledGradient, p: Projection, dtype: jnp.dtype) -> Head:
    """Compute dw = hᵀ·dz, in the head's layout."""
    if p.layout == "vd":
        return _unscale(_dot(static, by.dz, p.hidden, (0, 0), dtype), by.scale)
    # XLA:CPU has no fast product over both first axes: the small operand is transposed before, and
    # the barrier keeps XLA from undoing that.
    transposed = lax.optimization_barrier(p.hidden.T)
    return _unscale(_dot(static, transposed, by.dz, (1, 0), dtype), by.scale)
