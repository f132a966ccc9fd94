"""Losses of a projection whose logits are never stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.row_terms import TermOptions
from jxent._core.targets import kept_rows, narrow
from jxent._core.weighting import denominator, divide, prepare, reduce, sum_over_devices
from jxent._linear import reference, tokens, vocab
from jxent._linear.projection import (
    Bias,
    Head,
    Layout,
    LinearOptions,
    classes_axis,
    dtype_of,
    pad_classes,
)
from jxent._linear.tiling import default_tile_size
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

_WAYS: dict[str, Callable[..., jax.Array]] = {
    "tokens": tokens.run,
    "vocab": vocab.run,
    "reference": reference.run,
}


@_check.keywords
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
      head: `[D, V]`, or `[V, D]` with head_layout="vd"; any floating dtype. It is not copied, but
        on a GPU where V is no multiple of 8: the copy has up to 127 impossible classes more.
      labels: integers `[*n]` in [0, V).
      bias: `[V]`; −inf excludes a class.
      head_layout: "dv", or "vd" for a tied embedding.
      where: boolean `[*n]`: rows to keep. Dropped rows are exactly 0, whatever they hold.
      ignore_index: rows with this label are dropped.
      class_weights: `[V]`.
      row_weights: `[*n]`; they may be negative.
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

    Residuals:
      By "tokens" the gradients themselves, in float32, and nothing of size N·V; by "vocab" the
      arguments (a copied head too) and six numbers per row; by "reference" the logits.

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

    References:
      Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models*, arXiv:2411.09009, for
      blocks of classes; Hsu et al., *Liger Kernel*, arXiv:2410.10989, for gradients beside the
      loss.
    """
    fn = "linear_cross_entropy"
    h = _check.hidden(fn, hidden)
    w = _check.head(fn, head, head_layout, h)
    rows, classes = h.shape[:-1], w.shape[classes_axis(head_layout)]
    y = _check.labels(fn, labels, rows)
    where_rows = _check.rows_kept(fn, where, rows, "a bias")
    kept = kept_rows(y, where_rows, _check.ignore_index(fn, ignore_index, labelled=True))
    _check.label_values(fn, labels, classes, kept)
    reduction = _check.reduction(fn, reduction, normalizer=normalizer, axis_name=axis_name)
    run = partial(
        _linear_cross_entropy,
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
    with _check.reverse_only(fn, "implementation='reference'"):
        return run()


_OPTIONS = ("head_layout", "logit_softcap", "chunk_size", "precision")


@partial(
    jax.jit,
    static_argnames=(*_OPTIONS, "label_smoothing", "z_loss", "reduction", "axis_name", "way"),
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
    classes = w.shape[classes_axis(head_layout)]
    prepared = prepare(
        "linear_cross_entropy",
        "labels",
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
    y, kept = jax.tree.map(jnp.ravel, (prepared.targets, kept))
    each_row = lambda x: jnp.broadcast_to(jnp.asarray(x, dtype), rows).ravel()  # noqa: E731
    by, c = (
        jax.tree.map(each_row, prepared.by),
        prepared.class_weights if prepared.options.smooth_loss else None,
    )
    summed = way == "tokens"
    if summed and reduction == "mean":
        # Before the sum and not after it, so that a slope of 1 leaves the gradients as they are.
        by = jax.tree.map(
            partial(divide, by=denominator(prepared.weights, normalizer, axis_name)), by
        )
    if way != "reference":
        w, b = pad_classes(head_layout, w, b)
    made = w.shape[classes_axis(head_layout)]
    if made > classes and prepared.options.smooth_loss:
        c = jnp.pad(jnp.ones(classes, dtype) if c is None else c, (0, made - classes))
    default = (
        default_tile_size("classes", y.size) if way == "vocab" else default_tile_size("rows", made)
    )
    static = LinearOptions(head_layout, precision, chunk_size or default, prepared.options)
    hidden = h.reshape(math.prod(rows), h.shape[-1])
    if any(isinstance(x, jax.Array) for x in prepared.by) or normalizer is not None:
        # A row of weight 0 with ∞ in it is dropped: a slope of 0 times ∞ would be NaN in dhead.
        counts = jnp.any(jnp.stack([x != 0 for x in by if x is not None]), axis=0)
        counts = counts | jnp.all(jnp.isfinite(hidden), axis=-1)
        kept = counts if kept is None else kept & counts
    operands = vary_alike(hidden, w, b, y, c, kept, *by)
    losses = _WAYS[way](static, *operands[:6], type(by)(*operands[6:]))
    if summed:
        return sum_over_devices(losses, axis_name)
    return reduce(
        losses.reshape(rows),
        prepared.weights,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )


class LogProbs(NamedTuple):
    """What `linear_log_probs` gives: two numbers a row, in nats."""

    log_probs: PerRow
    entropy: PerRow


@_check.keywords
def linear_log_probs(
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    head_layout: Layout = "dv",
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> LogProbs:
    """Each label's log-probability and each row's entropy, the logits never stored.

        z = hidden·head + bias        log p_y = z_y − lse        H = −Σ_v p_v log p_v
        ∂log p_y/∂z = e_y − p                                    ∂H/∂z_v = −p_v (log p_v + H)

    What policy gradients, importance ratios and distillation are made of. Both come from one pass
    over the vocabulary and are differentiable; the way is that of "vocab" in
    `linear_cross_entropy`, whose other arguments these are.

    Args:
      hidden: `[*n, D]`, floating point; divide it by a temperature for one.
      head: `[D, V]`, or `[V, D]` with head_layout="vd".
      labels: integers `[*n]` in [0, V), for example the tokens that were sampled.
      bias: `[V]`; −inf excludes a class.
      head_layout: "dv" or "vd".
      where: boolean `[*n]`: rows to keep. Both numbers of dropped rows are 0.
      ignore_index: rows with this label are dropped.
      logit_softcap: κ > 0, static.
      chunk_size: classes in a block.
      precision: of every matrix product.

    Returns:
      `LogProbs(log_probs, entropy)`, each `[*n]` in nats, float32 (float64 if an operand is).

    Raises:
      TypeError, ValueError: as `linear_cross_entropy`.

    Residuals:
      The arguments and seven numbers per row.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> hidden = jax.random.normal(jax.random.key(0), (3, 4))
      >>> head = jax.random.normal(jax.random.key(1), (4, 1000))
      >>> out = jxent.linear_log_probs(hidden, head, jnp.array([3, 1, 4]))
      >>> bool(jnp.all(out.log_probs < 0)), bool(jnp.all(out.entropy < jnp.log(1000)))
      (True, True)

    References:
      Shannon, *A Mathematical Theory of Communication* (1948); Williams, *Simple Statistical
      Gradient-Following Algorithms* (1992), for what is done with both.
    """
    fn = "linear_log_probs"
    h = _check.hidden(fn, hidden)
    w = _check.head(fn, head, head_layout, h)
    rows, classes = h.shape[:-1], w.shape[classes_axis(head_layout)]
    y = _check.labels(fn, labels, rows)
    where_rows = _check.rows_kept(fn, where, rows, "a bias")
    kept = kept_rows(y, where_rows, _check.ignore_index(fn, ignore_index, labelled=True))
    _check.label_values(fn, labels, classes, kept)
    run = partial(
        _linear_rows,
        fn,
        h,
        w,
        y,
        _check.bias(fn, bias, classes),
        kept,
        head_layout=head_layout,
        logit_softcap=_check.softcap(fn, logit_softcap),
        chunk_size=_check.chunk_size(fn, chunk_size),
        precision=precision,
    )
    with _check.reverse_only(fn, "the row losses on stored logits"):
        row = run()
    assert row.entropy is not None
    return LogProbs(-row.nll, row.entropy)


class Predictions(NamedTuple):
    """What `linear_predictions` gives: a class and its log-probability a row."""

    labels: Labels
    log_probs: PerRow


@_check.keywords
def linear_predictions(
    hidden: ArrayLike,
    head: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    head_layout: Layout = "dv",
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> Predictions:
    """The most probable class of each row and its log-probability, the logits never stored.

        z = hidden·head + bias        label = argmax_v z_v        log p = −log1p(S)

    with S = Σ exp(z − max z) without the maximum itself. Ties go to the first class, as in
    `jnp.argmax`. The log-probability is differentiable, at the class that was chosen.

    Args:
      hidden: `[*n, D]`, floating point.
      head: `[D, V]`, or `[V, D]` with head_layout="vd".
      bias: `[V]`; −inf excludes a class.
      head_layout: "dv" or "vd".
      logit_softcap: κ > 0, static.
      chunk_size: classes in a block.
      precision: of every matrix product.

    Returns:
      `Predictions(labels, log_probs)`, `[*n]` each: int32, and nats in float32 (float64 if an
      operand is). A row with NaN or +inf among its logits, or nothing but −inf, is (−1, NaN).

    Raises:
      TypeError, ValueError: as `linear_cross_entropy`.

    Residuals:
      The arguments and five numbers per row.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> hidden = jax.random.normal(jax.random.key(0), (3, 4))
      >>> head = jax.random.normal(jax.random.key(1), (4, 1000))
      >>> out = jxent.linear_predictions(hidden, head)
      >>> bool(jnp.all(out.labels == jnp.argmax(hidden @ head, axis=-1)))
      True

    References:
      Goodfellow, Bengio, Courville, *Deep Learning* (2016), §6.2.2.
    """
    fn = "linear_predictions"
    h = _check.hidden(fn, hidden)
    w = _check.head(fn, head, head_layout, h)
    run = partial(
        _linear_rows,
        fn,
        h,
        w,
        None,
        _check.bias(fn, bias, w.shape[classes_axis(head_layout)]),
        None,
        head_layout=head_layout,
        logit_softcap=_check.softcap(fn, logit_softcap),
        chunk_size=_check.chunk_size(fn, chunk_size),
        precision=precision,
    )
    with _check.reverse_only(fn, "the row losses on stored logits"):
        row = run()
    return Predictions(row.label, -row.nll)


@partial(jax.jit, static_argnames=("fn", *_OPTIONS), inline=True)
def _linear_rows(
    fn: str,
    h: jax.Array,
    w: Head,
    y: Labels | None,
    b: Bias | None,
    kept: RowMask | None,
    *,
    head_layout: Layout,
    logit_softcap: float | None,
    chunk_size: int | None,
    precision: Any,
) -> vocab.VocabTerms:
    """The numbers of each row; the entropy too when there are labels."""
    rows, classes = h.shape[:-1], w.shape[classes_axis(head_layout)]
    narrowed = None
    if y is not None:
        narrowed = narrow(y, classes)
        _check.traced_labels(fn, y, narrowed, kept, classes)
    narrowed, kept = jax.tree.map(jnp.ravel, (narrowed, kept))
    hidden = h.reshape(math.prod(rows), h.shape[-1])
    size = chunk_size or default_tile_size("classes", hidden.shape[0])
    static = LinearOptions(
        head_layout, precision, size, TermOptions(softcap=logit_softcap, lse=True)
    )
    w, b = pad_classes(head_layout, w, b)
    h_, w_, b_, y_, kept_ = vary_alike(hidden, w, b, narrowed, kept)
    row = vocab.vocab_terms(static, y is not None, h_, w_, b_, y_, None, kept_)
    return jax.tree.map(lambda x: x.reshape(rows), row)
