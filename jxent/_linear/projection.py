"""The projection of hidden states onto classes, and its transposes.

    z = h·w + b        dh = dz·wᵀ        dw = hᵀ·dz        db = Σ_rows dz

Products are added up in the dtype of the loss whatever the operands' dtypes.  Before the two on
the way back dz is rounded to the operands' dtype, so that they are products in that dtype.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jxent._compat import sharded_explicitly
from jxent._core.log_softmax import loss_dtype
from jxent._core.row_terms import TermOptions
from jxent._typing import Logits, RowMask

Layout = Literal["dv", "vd"]
Hidden = Float[Array, "N D"]
Head = Float[Array, "_ _"]
Bias = Float[Array, "V"]


def classes_axis(layout: Layout) -> int:
    """The head's axis of classes."""
    return 1 if layout == "dv" else 0


class LinearOptions(NamedTuple):
    """What is fixed when tracing."""

    layout: Layout
    precision: Any
    size: int  # rows in a chunk, or classes in a block
    options: TermOptions

    @property
    def classes_axis(self) -> int:
        """The head's axis of classes."""
        return classes_axis(self.layout)


def alignment_padding(classes: int) -> int:
    """How many to add, so that on a GPU each row of logits begins at a multiple of 16 bytes.

    Where one does not (GPT-2 has 50257 classes) the products take three times as long.
    """
    aligned = jax.default_backend() != "gpu" or classes % 8 == 0
    return 0 if aligned else -classes % (128 if classes > 1024 else 8)


def pad_classes(layout: Layout, w: Head, b: Bias | None) -> tuple[Head, Float[Array, "_"] | None]:
    """Head and bias with those classes, all of them impossible."""
    axis = classes_axis(layout)
    spare = alignment_padding(w.shape[axis])
    if spare == 0 or sharded_explicitly(w, axis):
        return w, b
    dtype = dtype_of(w, b)
    b = jnp.zeros(w.shape[axis], dtype) if b is None else b.astype(dtype)
    wider = [(0, spare) if i == axis else (0, 0) for i in range(2)]
    return jnp.pad(w, wider), jnp.pad(b, (0, spare), constant_values=-jnp.inf)


def dtype_of(*operands: Array | None) -> jnp.dtype:
    """The dtype of logits and losses: float32, or wider if an operand is."""
    dtypes = [loss_dtype(x.dtype) for x in operands if x is not None]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _dot(
    static: LinearOptions, a: Array, b: Array, axes: tuple[int, int], dtype: jnp.dtype
) -> Array:
    contract = ((axes[:1], axes[1:]), ((), ()))
    return lax.dot_general(a, b, contract, precision=static.precision, preferred_element_type=dtype)


def selected(kept: RowMask | None, x: Float[Array, "N _"]) -> Float[Array, "N _"]:
    """x, with 0 in rows that are not kept, whatever they hold: 0·∞ would be NaN in dhead."""
    return x if kept is None else jnp.where(kept[:, None], x, 0)


def project(static: LinearOptions, h: Hidden, w: Head, b: Bias | None) -> Logits:
    """z = h·w + b."""
    dtype = dtype_of(h, w, b)
    z = _dot(static, h, w, (1, 1 - static.classes_axis), dtype)
    return z if b is None else z + b.astype(dtype)[None, :]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def project_rows(
    static: LinearOptions, kept: RowMask | None, h: Hidden, w: Head, b: Bias | None
) -> Logits:
    """`project` of `selected` rows, with logits 0 in the others, without a copy of h."""
    return selected(kept, project(static, h, w, b))


@project_rows.defjvp
def _project_rows_jvp(static, primals, tangents):
    kept, h, w, b = primals
    # Here the copy is made: the other rows' 0·∞ would be NaN in what comes back to the head.
    run = partial(project, static)
    _, z_dot = jax.jvp(run, (selected(kept, h), w, b), tangents[1:])
    return project_rows(static, *primals), selected(kept, z_dot)


class ScaledGradient(NamedTuple):
    """dz in the operands' dtype, and what its products are to be multiplied by."""

    dz: Logits
    scale: Float[Array, ""] | None


def scale_to_half(dz: Logits, h: Hidden, w: Head) -> ScaledGradient:
    """dz as an operand.  Slopes of a mean would vanish in float16: they are lifted into its range.

    The lift is a power of two that takes the largest slope to 2¹⁴ or so, which leaves 2²⁸ below it
    in full precision.
    """
    dtype = h.dtype if h.dtype == w.dtype else dz.dtype
    if dtype != jnp.float16:
        return ScaledGradient(dz.astype(dtype), None)
    largest = jnp.max(jnp.where(jnp.isfinite(dz), jnp.abs(dz), 0), initial=0)
    _, exponent = jnp.frexp(jnp.where(largest == 0, 1, lax.stop_gradient(largest)))
    scale = jnp.ldexp(jnp.ones((), dz.dtype), exponent - 14)
    return ScaledGradient((dz / scale).astype(dtype), scale)


def _unscale(x: Array, scale: Float[Array, ""] | None) -> Array:
    return x if scale is None else x * scale


def hidden_gradient(static: LinearOptions, by: ScaledGradient, w: Head, dtype: jnp.dtype) -> Hidden:
    """dz·wᵀ."""
    return _unscale(_dot(static, by.dz, w, (1, static.classes_axis), dtype), by.scale)


def head_gradient(static: LinearOptions, h: Hidden, by: ScaledGradient, dtype: jnp.dtype) -> Head:
    """hᵀ·dz, in the head's layout."""
    if static.layout == "vd":
        return _unscale(_dot(static, by.dz, h, (0, 0), dtype), by.scale)
    # XLA:CPU has no fast product over both first axes: the small operand is transposed before.
    turned = lax.optimization_barrier(h.T)
    return _unscale(_dot(static, turned, by.dz, (1, 0), dtype), by.scale)
