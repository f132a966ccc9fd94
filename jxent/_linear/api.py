"""Losses and numbers of a projection whose logits are never stored: what people call."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.row_terms import TermOptions
from jxent._core.targets import is_labels, kept_rows, narrow
from jxent._core.weighting import (
    LossOptions,
    Reduction,
    RowInputs,
    check_mean_weights,
    class_weight,
    loss_options,
    prepare,
    reduction_options,
)
from jxent._linear import vocab
from jxent._linear.implementations import IMPLEMENTATIONS, class_weight_of_rows, run
from jxent._linear.projection import Layout, Projection, Static
from jxent._linear.row_loss import CrossEntropyRows, Masks, Operands, RowReduction
from jxent._typing import ArrayLike, AxisNames, Labels, PerRow, ReductionKind, Targets


@_check.arguments
def linear_cross_entropy(
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    head_layout: Layout = "dv",
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    class_weights: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: ReductionKind = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
    implementation: str | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> jax.Array:
    r"""Compute `cross_entropy(hidden @ head + bias, labels, ...)` without storing the logits.

        z    = hidden·head + bias                  loss: as `cross_entropy` of z
        ∂/∂hidden = dz·headᵀ        ∂/∂head = hiddenᵀ·dz        ∂/∂bias = Σ_rows dz

    Every option of `cross_entropy`; a mask of classes is one for all rows, `class_mask`. Three
    implementations give the same numbers; by default it is "tokens" for a mean or a sum, and
    "vocab" for "none":

        "tokens"     (every scalar reduction) rows in chunks; gradients are computed beside the
                     loss and scaled afterwards, 6·N·V·D flops; reverse mode, to any order
        "vocab"      (reduction="none"; or chosen for least memory) classes in blocks; logits are
                     computed again in the backward pass, 8·N·V·D flops; reverse mode, to any
                     order
        "reference"  (only when chosen) plain `cross_entropy` of stored logits, 6·N·V·D flops;
                     every mode of JAX, forward mode too

    A loss without a gradient costs 2·N·V·D flops in each, and gradients that are not wanted (of a
    frozen head, of frozen hidden states) cost nothing.

    Args:
      hidden: `[*n, D]`, floating point.
      head: `[D, V]`, or `[V, D]` with head_layout="vd"; any floating dtype. It is not copied, but
        with `class_mask`, and with labels on a GPU where V is no multiple of 8: that copy has
        classes of probability 0 added, up to the next multiple of 128 (of 8 if V ≤ 1024).
      labels: integers `[*n]` in [0, V); or distributions `[*n, V]` (floating point, not negative;
        they need not sum to 1), which are read a tile at a time and have a gradient, too.
      bias: `[V]`; −inf makes a class impossible.
      class_mask: boolean `[V]`, traced or not: classes to keep, in every row. An excluded class has
        p = 0 and gradients of 0, whatever the head holds there; V, the sums and the smoothing are
        over the kept ones; a row with its label, or mass, there is NaN.
      head_layout: "dv", or "vd" for a tied embedding.
      where: boolean `[*n]`: rows to keep. Dropped rows are exactly 0, whatever they hold.
      ignore_index: rows with this label are dropped.
      class_weights: `[V]`. With label_smoothing they also weigh the smoothing, see `cross_entropy`:
        to balance rare classes pass row_weights=class_weights[labels] instead.
      row_weights: `[*n]`; negative ones as in `cross_entropy`.
      label_smoothing: ε in [0, 1], static.
      z_loss: ζ ≥ 0, static.
      logit_softcap: κ > 0, static.
      reduction: "mean", "sum", or "none" for one loss a row.
      normalizer: scalar in place of the mean's denominator, as in `cross_entropy`.
      axis_name: mesh axes to sum numerator and denominator over, as in `cross_entropy`.
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
        reduction="none"; a concrete label outside [0, V) that is not dropped; a concrete negative
        row weight as in `cross_entropy`; a concrete negative target. Under jit such a label is NaN
        in the loss and in ∂/∂hidden of its row, and so in what sums over rows.

    Residuals:
      By "tokens" the gradients themselves, in float32, and nothing of size N·V but a gradient by
      distributions; by "vocab" the arguments (a copied head too) and seven numbers per row; by
      "reference" the logits.

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
    p = _projection(fn, hidden, head, bias, head_layout)
    n = p.hidden.shape[:-1]
    t = _check.targets(fn, labels, (*n, p.classes), "labels")
    rows = RowInputs(
        t,
        *_masks(fn, labels, t, p, where, class_mask, ignore_index),
        class_weights=_check.weights(fn, "class_weights", class_weights, (p.classes,)),
        row_weights=_check.weights(fn, "row_weights", row_weights, n),
    )
    options = loss_options(fn, label_smoothing, z_loss, logit_softcap)
    how = reduction_options(fn, reduction, normalizer, axis_name)
    check_mean_weights(fn, row_weights, rows.row_mask, how)
    choice = Choice(
        choose_implementation(fn, implementation, reduction),
        _check.chunk_size(fn, chunk_size),
        precision,
    )
    with _check.reverse_only(fn, "implementation='reference'"):
        return _linear_cross_entropy(p, rows, how, options=options, choice=choice)


class Choice(NamedTuple):
    """The implementation, its tile size and the precision of products; static."""

    implementation: str
    chunk_size: int | None
    precision: Any


def _projection(
    fn: str, hidden: ArrayLike, head: ArrayLike, bias: ArrayLike | None, layout: Layout
) -> Projection:
    """Check the operands of a projection."""
    h = _check.hidden(fn, hidden)
    p = Projection(h, _check.head(fn, head, layout, h), None, layout)
    return replace(p, bias=_check.bias(fn, bias, p.classes))


def _masks(
    fn: str,
    given: ArrayLike,
    t: Targets,
    p: Projection,
    where: ArrayLike | None,
    class_mask: ArrayLike | None,
    ignore_index: int | None,
) -> Masks:
    """Check which rows and classes are kept, and the labels, as they were given, of these rows."""
    rows = p.hidden.shape[:-1]
    where_rows, mask = _check.rows_and_classes_kept(fn, where, class_mask, rows, p.classes)
    kept = kept_rows(t, where_rows, _check.ignore_index(fn, ignore_index, labelled=is_labels(t)))
    _check.label_values(fn, given, p.classes, kept)
    return Masks(kept, mask)


def choose_implementation(fn: str, x: str | None, reduction: ReductionKind) -> str:
    """Return the implementation that was chosen, or the default of the reduction."""
    if x is None:
        return "vocab" if reduction == "none" else "tokens"
    _check.one_of(fn, "implementation", x, (*IMPLEMENTATIONS, None))
    if reduction == "none" and IMPLEMENTATIONS[x].sums_rows:
        raise ValueError(
            f"{fn}: implementation={x!r} gives a sum of rows; with reduction='none' use 'vocab'"
        )
    return x


@partial(jax.jit, static_argnames=("options", "choice"), inline=True)
def _linear_cross_entropy(
    p: Projection, rows: RowInputs, reduction: Reduction, *, options: LossOptions, choice: Choice
) -> jax.Array:
    shape, classes, dtype = p.hidden.shape[:-1], p.classes, p.dtype
    implementation = IMPLEMENTATIONS[choice.implementation]
    weight = class_weight if implementation.tiles is None else class_weight_of_rows
    prepared = prepare("linear_cross_entropy", dtype, classes, rows, options, class_weight=weight)
    by = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, dtype), shape), prepared.by)
    t = prepared.rows.targets
    labels, distribution = (t, None) if is_labels(t) else (None, t)
    weighs = prepared.options.smooth_loss or distribution is not None
    c = prepared.rows.class_weights if weighs else None
    p, mask = implementation.pad(p, prepared.rows.class_mask, align=distribution is None)
    if p.classes > classes and prepared.options.smooth_loss:
        c = jnp.pad(jnp.ones(classes, dtype) if c is None else c, (0, p.classes - classes))
    size = choice.chunk_size or implementation.tile_size(math.prod(shape), p.classes)
    weighted = any(isinstance(x, jax.Array) for x in prepared.by)
    return run(
        implementation,
        Static(choice.precision, size),
        CrossEntropyRows(prepared.options),
        Operands((p,), c, by, distribution),
        labels,
        Masks(prepared.rows.row_mask, mask),
        RowReduction(
            reduction, prepared.weights, may_be_zero=weighted or reduction.normalizer is not None
        ),
    )


class LogProbs(NamedTuple):
    """What `linear_log_probs` gives: two numbers a row, in nats."""

    log_probs: PerRow
    entropy: PerRow


@_check.arguments
def linear_log_probs(
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    head_layout: Layout = "dv",
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> LogProbs:
    """Compute each label's log-probability and each row's entropy, logits never stored.

        z = hidden·head + bias        log p_y = z_y − lse        H = −Σ_v p_v log p_v
        ∂log p_y/∂z = e_y − p                                    ∂H/∂z_v = −p_v (log p_v + H)

    What policy gradients, importance ratios and distillation are made of. Both come from one pass
    over the vocabulary and are differentiable; the way is that of "vocab" in
    `linear_cross_entropy`, whose other arguments these are.

    Args:
      hidden: `[*n, D]`, floating point; divide it by a temperature for one.
      head: `[D, V]`, or `[V, D]` with head_layout="vd".
      labels: integers `[*n]` in [0, V), for example the tokens that were sampled.
      bias: `[V]`; −inf makes a class impossible.
      class_mask: boolean `[V]`: classes to keep.
      head_layout: "dv" or "vd".
      where: boolean `[*n]`: rows to keep. Both numbers of dropped rows are 0.
      ignore_index: rows with this label are dropped.
      logit_softcap: κ > 0, static.
      chunk_size: classes in a block.
      precision: of every matrix product.

    Returns:
      `LogProbs(log_probs, entropy)`, each `[*n]` in nats, float32 (float64 if an operand is).

    Raises:
      TypeError, ValueError: as `linear_cross_entropy`. Both numbers of a row with its label on an
        excluded class are NaN.

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
    p = _projection(fn, hidden, head, bias, head_layout)
    y = _check.labels(fn, labels, p.hidden.shape[:-1])
    masks = _masks(fn, labels, y, p, where, class_mask, ignore_index)
    choice = Choice("vocab", _check.chunk_size(fn, chunk_size), precision)
    cap = _check.softcap(fn, logit_softcap)
    with _check.reverse_only(fn, "the row losses on stored logits"):
        row = _linear_rows(fn, p, y, masks, logit_softcap=cap, choice=choice)
    assert row.entropy is not None
    return LogProbs(-row.nll, row.entropy)


class Predictions(NamedTuple):
    """What `linear_predictions` gives: a class and its log-probability a row."""

    labels: Labels
    log_probs: PerRow


@_check.arguments
def linear_predictions(
    hidden: ArrayLike,
    head: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    head_layout: Layout = "dv",
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> Predictions:
    """Find the most probable class of each row and its log-probability, logits never stored.

        z = hidden·head + bias        label = argmax_v z_v        log p = −log1p(S)

    with S = Σ exp(z − max z) without the maximum itself. Ties go to the first class, as in
    `jnp.argmax`. The log-probability is differentiable, at the class that was chosen.

    Args:
      hidden: `[*n, D]`, floating point.
      head: `[D, V]`, or `[V, D]` with head_layout="vd".
      bias: `[V]`; −inf makes a class impossible.
      class_mask: boolean `[V]`: classes to keep.
      head_layout: "dv" or "vd".
      logit_softcap: κ > 0, static.
      chunk_size: classes in a block.
      precision: of every matrix product.

    Returns:
      `Predictions(labels, log_probs)`, `[*n]` each: int32, and nats in float32 (float64 if an
      operand is). A row with NaN or +inf among its logits, or nothing but −inf, is (−1, NaN); so is
      every row without a kept class.

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
    p = _projection(fn, hidden, head, bias, head_layout)
    rows = p.hidden.shape[:-1]
    _, mask = _check.rows_and_classes_kept(fn, None, class_mask, rows, p.classes)
    masks = Masks(None, mask)
    choice = Choice("vocab", _check.chunk_size(fn, chunk_size), precision)
    cap = _check.softcap(fn, logit_softcap)
    with _check.reverse_only(fn, "the row losses on stored logits"):
        row = _linear_rows(fn, p, None, masks, logit_softcap=cap, choice=choice)
    return Predictions(row.label, -row.nll)


@partial(jax.jit, static_argnames=("fn", "logit_softcap", "choice"), inline=True)
def _linear_rows(
    fn: str,
    p: Projection,
    y: Labels | None,
    masks: Masks,
    *,
    logit_softcap: float | None,
    choice: Choice,
) -> vocab.VocabTerms:
    """Compute the terms of each row, the entropy too when there are labels."""
    shape = p.hidden.shape[:-1]
    narrowed = None
    if y is not None:
        narrowed = narrow(y, p.classes)
        _check.traced_labels(fn, y, narrowed, masks.rows, p.classes)
    n = math.prod(shape)
    size = choice.chunk_size or IMPLEMENTATIONS["vocab"].tile_size(n, p.classes)
    terms = TermOptions(softcap=logit_softcap, lse=True)
    options = vocab.VocabOptions(Static(choice.precision, size), terms, entropy=y is not None)
    p = replace(p, hidden=p.hidden.reshape(n, p.hidden.shape[-1]))
    p, mask = IMPLEMENTATIONS["vocab"].pad(p, masks.classes)
    narrowed, kept = jax.tree.map(jnp.ravel, (narrowed, masks.rows))
    leaves, structure = jax.tree.flatten((p, narrowed, Masks(kept, mask)))
    p, narrowed, masks = jax.tree.unflatten(structure, vary_alike(*leaves))
    row = vocab.vocab_terms(options, p, narrowed, None, masks)
    return jax.tree.map(lambda x: x.reshape(shape), row)
