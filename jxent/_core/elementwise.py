"""Losses of single logits: mask, weights and reduction around the formula f of one logit.

    loss = w f(x, y, …) where kept, else 0          mean = Σ loss / Σ_kept w

Mask and weights are given for each logit, or for each row of logits [*n, V] and then apply to all
of its V labels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jxent import _check
from jxent._compat import shard_alike, vary_alike
from jxent._core.safe_math import multiply_no_nan, zero_or_nan, zero_unless
from jxent._core.weighting import (
    Reduction,
    check_mean_weights,
    reduce,
    reduction_options,
    row_weight,
)
from jxent._typing import ArrayLike, AxisNames, PerEntry, ReductionKind

Broadcastable = Shaped[Array, "..."]  # of any dtype; its shape broadcasts to the logits' shape


class ElementwiseLoss(NamedTuple):
    """The loss of one logit: static, and the key of a jit cache.

    So its functions belong at the top level of a module, where they are always the same objects.
    """

    fn: str  # the public function, for messages
    formula: Callable[..., PerEntry]  # f(*static, x, y, *parameters)
    valid: Callable[..., Bool[Array, "*s"]]  # valid(*parameters): f is NaN where it is False
    static: tuple[float, ...] = ()


class ElementwiseOptions(NamedTuple):
    """The checked options that all losses of single logits share."""

    kept: Bool[Array, "..."] | None
    weights: Float[Array, "..."] | None
    reduction: Reduction


def check_options(
    fn: str,
    shape: tuple[int, ...],
    where: ArrayLike | None,
    row_weights: ArrayLike | None,
    reduction: ReductionKind,
    normalizer: ArrayLike | None,
    axis_name: AxisNames | None,
) -> ElementwiseOptions:
    """Check the shared options for logits of this shape."""
    kept = _check.entries_kept(fn, where, shape)
    weights = _check.entry_weights(fn, "row_weights", row_weights, shape)
    how = reduction_options(fn, reduction, normalizer, axis_name)
    by_row = row_weights is not None and _check.shape_of(row_weights) != shape
    counting = jnp.any(kept, axis=-1) if by_row and kept is not None else kept
    check_mean_weights(fn, row_weights, counting, how)
    return ElementwiseOptions(kept, weights, how)


@partial(jax.jit, static_argnames=("loss",), inline=True)
def elementwise_losses(
    loss: ElementwiseLoss,
    x: PerEntry,
    y: Broadcastable,
    parameters: tuple[Broadcastable | None, ...],
    options: ElementwiseOptions,
) -> Array:
    """Compute the loss of each logit and reduce it; NaN where labels or parameters are invalid."""
    dtype, shape = np.promote_types(x.dtype, np.float32), x.shape

    def broadcast(a: Broadcastable | None, dtype: Any = dtype) -> Any:
        return None if a is None else shard_alike(jnp.broadcast_to(a.astype(dtype), shape), x)

    valid = in_unit_interval(broadcast(y))
    valid = valid if options.kept is None else valid | ~options.kept
    _check.traced_entries(loss.fn, "labels", y, valid, "is outside [0, 1]")

    @partial(jax.checkpoint, prevent_cse=False)
    def weighted_losses(
        kept: Broadcastable | None, weights: Broadcastable | None, *arguments: Broadcastable | None
    ) -> tuple[PerEntry, PerEntry]:
        x, y, *parameters = map(broadcast, arguments)
        kept = broadcast(kept, bool)
        w = None if weights is None else zero_unless(kept, broadcast(weights))
        weight = row_weight(shape, kept, w, None, dtype)
        valid = in_unit_interval(y) & loss.valid(*parameters)
        if w is not None:
            # Invalid entries of weight 0 are dropped like masked ones: their gradient would be
            # 0·NaN.  Valid ones of weight 0 stay, since their loss is the gradient by the weight.
            active = (w != 0) | (valid & ~jnp.isnan(x))
            kept = active if kept is None else kept & active
        # NaN enters by x and not by the result, so that derivatives of any order are NaN too.
        x = x + zero_or_nan(valid, dtype)
        selected = (None if a is None else zero_unless(kept, a) for a in (x, y, *parameters))
        out = zero_unless(kept, loss.formula(*loss.static, *selected))
        return (out if w is None else multiply_no_nan(w, out)), weight

    out, weight = weighted_losses(*vary_alike(options.kept, options.weights, x, y, *parameters))
    return reduce(out, weight, options.reduction)


def in_unit_interval(y: PerEntry) -> Bool[Array, "*s"]:
    """Return where 0 ≤ y ≤ 1."""
    return (y >= 0) & (y <= 1)
