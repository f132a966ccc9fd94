"""Losses of a projection whose logits are never stored."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jxent import _check
from jxent._compat import vary_alike
from jxent._dense import Options
from jxent._linear import reference, tokens, vocab
from jxent._linear.cut import budgeted
from jxent._linear.head import Bias, Head, Layout, Static, dtype_of
from jxent._reduce import denominator, divide, over_devices, reduce
from jxent._typing import (
    ArrayLike,
    AxisNames,
    ClassWeights,
    Labels,
    PerRow,
    Reduction,
    RowMask,
    Scalar,
)
from jxent._weights import kept_rows, narrow
from jxent.losses import prepare

_WAYS = {"tokens": tokens.losses, "vocab": vocab.losses, "reference": reference.losses}


def linear_cross_entropy(
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    head_layout: Layout = "dv",
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    class_weights: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
    implementation: str | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> jax.Array:
    r"""`cross_entropy(hidden @ head + bias, labels, ...)` without ever storing the logits.

        z    = hidden·head + bias                  loss: as `cross_entropy` of z, every option
        ∂/∂hidden = dz·headᵀ        ∂/∂head = hiddenᵀ·dz        ∂/∂bias = Σ_rows dz

    Three ways give the same numbers. None takes the first that can:

        "tokens"     (every scalar reduction) rows in chunks; gradients are computed beside the
                     loss and scaled afterwards, 6·N·V·D flops; every mode of JAX
        "vocab"      (reduction="none"; asked for: least memory) classes in blocks; logits are
                     computed again on the way back, 8·N·V·D flops; reverse mode, to any order
        "reference"  (only when asked for) plain `cross_entropy` of stored logits; every mode

    A loss without a gradient costs 2·N·V·D in each, and products nobody asks for (a frozen head,
    frozen hidden states) are not done.

    Args:
      hidden: `[*n, D]`, floating point.
      head: `[D, V]`, or `[V, D]` with head_layout="vd"; any floating dtype, not copied.
      labels: integers `[*n]` in [0, V).
      bias: `[V]`; −inf excludes a class.
      head_layout: "dv", or "vd" for a tied embedding.
      where: boolean `[*n]`: rows to keep. Dropped rows are exactly 0, whatever they hold.
      ignore_index: rows with this label are dropped.
      class_weights: `[V]`.
      row_weights: `[*n]`.
      label_smoothing: ε in [0, 1], static.
      z_loss: ζ ≥ 0, static.
      logit_softcap: κ > 0, static.
      reduction: "mean", "sum", or "none" for one loss a row.
      normalizer: scalar in place of the mean's denominator, see `label_weights`.
      axis_name: mesh axes to sum numerator and denominator over, inside `jax.shard_map`.
      implementation: "tokens", "vocab", "reference" or None.
      chunk_size: rows in a chunk ("tokens"), classes in a block ("vocab"); by default what fits a
        budget for the device. The last chunk need not be full.
      precision: of every matrix product, as for `jax.lax.dot_general`.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 if an operand
      is). Products are added up in that dtype; gradients have the dtype of what they are for.

    Raises:
      TypeError: a dtype that is not what is listed; a traced static option.
      ValueError: shapes that do not match exactly; an option out of range; "tokens" with
        reduction="none"; a concrete label outside [0, V) that is not dropped. Under jit such a
        label is NaN in the loss and in ∂/∂hidden of its row, and so in what sums over rows.

    Saved for the backward pass: by "tokens" the gradients themselves, in float32, and nothing of
    size N·V; by "vocab" the arguments and six numbers per row; by "reference" the logits.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> hidden = jax.random.normal(jax.random.key(0), (6, 4))
      >>> head = jax.random.normal(jax.random.key(1), (4, 1000))
      >>> labels = jnp.array([3, 1, 4, 1, 5, 9])
      >>> loss, (dhidden, dhead) = jax.value_and_grad(jxent.linear_cross_entropy, (0, 1))(
      ...     hidden, head, labels
      ... )
      >>> bool(jnp.allclose(loss, jxent.cross_entropy(hidden @ head, labels)))
      True
      >>> dhidden.shape, dhead.shape
      ((6, 4), (4, 1000))

    Source:
      Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models*, arXiv:2411.09009, for
      blocks of classes; Hsu et al., *Liger Kernel*, arXiv:2410.10989, for gradients beside the
      loss.
    """
    fn = "linear_cross_entropy"
    h = _check.hidden(fn, hidden)
    w = _check.head(fn, head, head_layout, h)
    rows, classes = h.shape[:-1], w.shape[1 if head_layout == "dv" else 0]
    y = _check.labels(fn, labels, rows)
    where_rows = _check.rows_kept(fn, where, rows)
    kept = kept_rows(y, where_rows, _check.ignore_index(fn, ignore_index, labelled=True))
    _check.label_values(fn, labels, classes, kept)
    reduction = _check.reduction(fn, reduction, normalizer=normalizer, axis_name=axis_name)
    return _linear_cross_entropy(
        h,
        w,
        y,
        _check.bias(fn, bias, classes),
        kept,
        _check.weights(fn, "class_weights", class_weights, (classes,)),
        _check.weights(fn, "row_weights", row_weights, rows),
        _check.weights(fn, "normalizer", normalizer, ()),
        head_layout=head_layout,
        label_smoothing=_check.fraction(fn, "label_smoothing", label_smoothing),
        z_loss=_check.not_negative(fn, "z_loss", z_loss),
        logit_softcap=_check.softcap(fn, logit_softcap),
        reduction=reduction,
        axis_name=axis_name,
        way=_check.implementation(fn, implementation, reduction),
        chunk_size=_check.chunk_size(fn, chunk_size),
        precision=precision,
    )


@partial(
    jax.jit,
    static_argnames=(
        "head_layout",
        "label_smoothing",
        "z_loss",
        "logit_softcap",
        "reduction",
        "axis_name",
        "way",
        "chunk_size",
        "precision",
    ),
    inline=True,
)
def _linear_cross_entropy(
    h: jax.Array,
    w: Head,
    t: Labels,
    b: Bias | None,
    kept: RowMask | None,
    class_weights: ClassWeights | None,
    row_weights: PerRow | None,
    normalizer: Scalar | None,
    *,
    head_layout: Layout,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    reduction: Reduction,
    axis_name: AxisNames | None,
    way: str,
    chunk_size: int | None,
    precision: Any,
) -> jax.Array:
    rows, dtype = h.shape[:-1], dtype_of(h, w, b)
    classes = w.shape[1 if head_layout == "dv" else 0]
    said = prepare(
        "linear_cross_entropy",
        dtype,
        classes,
        t,
        kept,
        None,
        class_weights,
        row_weights,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
    )
    flat = lambda x: x.reshape(-1)
    each = lambda x: flat(jnp.broadcast_to(jnp.asarray(x, dtype), rows))
    y, kept = jax.tree.map(flat, (said.targets, kept))
    by, c = jax.tree.map(each, said.by), said.class_weights if said.options.spread else None
    summed = way == "tokens"
    if summed and reduction == "mean":
        # Before the sum and not after it, so that a slope of 1 leaves the gradients as they are.
        by = jax.tree.map(partial(divide, by=denominator(said.weights, normalizer, axis_name)), by)
    size = chunk_size or budgeted(y.size if way == "vocab" else classes)
    static = Static(head_layout, precision, size, said.options)
    operands = vary_alike(h.reshape(-1, h.shape[-1]), w, b, y, c, kept, *by)
    losses = _WAYS[way](static, *operands[:6], type(by)(*operands[6:]))
    if summed:
        return over_devices(losses, axis_name)
    return reduce(
        losses.reshape(rows),
        said.weights,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )
