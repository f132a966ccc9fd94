"""Every logit its own loss: which of them count, what they weigh, and what they come to.

    loss = w f(x, y, …) where kept, else 0          mean = Σ loss / Σ_kept w

What is kept and what it weighs is said of each logit, or of each row of logits [*n, V] for all of
its V labels.
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
from jxent._core.safe_math import multiply_no_nan, zero_unless
from jxent._core.weighting import Reduction, reduce, row_weight
from jxent._typing import ArrayLike, AxisNames, ReductionKind, Scalar

Each = Float[Array, "*s"]  # one number for each logit
Given = Shaped[Array, "..."]  # as it was given: it broadcasts to the logits' shape


class Chosen(NamedTuple):
    """The checked options that all losses of single logits share."""

    kept: Bool[Array, "..."] | None
    weights: Float[Array, "..."] | None
    normalizer: Scalar | None
    reduction: ReductionKind
    axis_name: AxisNames | None


def chosen(
    fn: str,
    shape: tuple[int, ...],
    where: ArrayLike | None,
    row_weights: ArrayLike | None,
    reduction: ReductionKind,
    normalizer: ArrayLike | None,
    axis_name: AxisNames | None,
) -> Chosen:
    """These options for logits of this shape, or an error."""
    return Chosen(
        _check.entries_kept(fn, where, shape),
        _check.entry_weights(fn, "row_weights", row_weights, shape),
        _check.weights(fn, "normalizer", normalizer, ()),
        _check.reduction(fn, reduction, normalizer=normalizer, axis_name=axis_name),
        axis_name,
    )


def losses(
    fn: str,
    f: Callable[..., Each],
    valid: Callable[..., Bool[Array, "*s"]],
    static: tuple[float, ...],
    x: Each,
    y: Given,
    parameters: tuple[Given | None, ...],
    which: Chosen,
) -> Array:
    """f(*static, x, y, *parameters) of each logit, NaN where not `valid`(*parameters)."""
    *arrays, reduction, axis_name = which
    return _losses(
        fn, f, valid, static, x, y, parameters, *arrays, reduction=reduction, axis_name=axis_name
    )


@partial(
    jax.jit,
    static_argnames=("fn", "f", "valid", "static", "reduction", "axis_name"),
    inline=True,
)
def _losses(
    fn: str,
    f: Callable[..., Each],
    valid: Callable[..., Bool[Array, "*s"]],
    static: tuple[float, ...],
    x: Each,
    y: Given,
    parameters: tuple[Given | None, ...],
    kept: Bool[Array, "..."] | None,
    weights: Float[Array, "..."] | None,
    normalizer: Scalar | None,
    *,
    reduction: ReductionKind,
    axis_name: AxisNames | None,
) -> Array:
    dtype, shape = np.promote_types(x.dtype, np.float32), x.shape

    def each(a: Given | None, dtype: Any = dtype) -> Any:
        return None if a is None else shard_alike(jnp.broadcast_to(a.astype(dtype), shape), x)

    right = within_unit(each(y))
    right = right if kept is None else right | ~kept
    _check.traced_entries(fn, "labels", y, right, "is outside [0, 1]")

    @partial(jax.checkpoint, prevent_cse=False)
    def weighed(
        kept: Given | None, weights: Given | None, *given: Given | None
    ) -> tuple[Each, Each]:
        x, y, *parameters = map(each, given)
        counts = each(kept, bool)
        w = None if weights is None else zero_unless(counts, each(weights))
        share = row_weight(shape, counts, w, None, dtype)
        right = within_unit(y) & valid(*parameters)
        if w is not None:  # a fault that weighs nothing is dropped: 0·NaN would come back from it
            heard = (w != 0) | (right & ~jnp.isnan(x))
            counts = heard if counts is None else counts & heard
        # Added, so that every derivative is NaN too.
        x = x + jnp.where(right, jnp.zeros_like(x), jnp.nan)
        kept_only = (None if a is None else zero_unless(counts, a) for a in (x, y, *parameters))
        out = f(*static, *kept_only)
        out = out if counts is None else jnp.where(counts, out, 0)
        return (out if w is None else multiply_no_nan(w, out)), share

    out, share = weighed(*vary_alike(kept, weights, x, y, *parameters))
    return reduce(out, share, Reduction(reduction, normalizer, axis_name))


def within_unit(y: Each) -> Bool[Array, "*s"]:
    """Where 0 ≤ y ≤ 1."""
    return (y >= 0) & (y <= 1)
