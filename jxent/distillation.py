"""Distillation: a student q learns from the whole distribution p of a teacher, not only its label.

    p = softmax(teacher/T)        q = softmax(student/T)
    loss = α T² D(p, q) + (1 − α) nll_y(student)          T² D alone without hard labels y

    D    forward  KL(p‖q)        reverse  KL(q‖p)        jsd  β KL(p‖m) + (1−β) KL(q‖m),
                                                              m = β p + (1−β) q

A slope in the logits of D shrinks as 1/T², with p and q both nearly uniform: T² makes up for it, so
that α keeps its meaning when T changes.  For the forward divergence

    ∂/∂student = α T (q − p) + (1 − α) (softmax(student) − e_y)

The teacher has a gradient as real as the student's; `jax.lax.stop_gradient` freezes it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jxent import _check
from jxent._compat import vary_alike
from jxent._core import logit_divergence, row_terms
from jxent._core.log_softmax import pin_half_precision
from jxent._core.logit_divergence import Divergence, DivergenceName
from jxent._core.safe_math import multiply_no_nan, propagate_nan
from jxent._core.targets import kept_rows, narrow
from jxent._core.weighting import denominator, divide, only, reduce, row_weight, sum_over_devices
from jxent._linear import chunked_rows
from jxent._linear.chunked_rows import Operands, Projection, Zs
from jxent._linear.projection import Layout, LinearOptions, classes_axis, dtype_of, pad_classes
from jxent._linear.tiling import default_tile_size
from jxent._typing import (
    ArrayLike,
    AxisNames,
    ClassMask,
    Labels,
    Logits,
    PerRow,
    Reduction,
    RowMask,
    Scalar,
)

__all__ = ["distillation_loss", "linear_distillation_loss"]

_ALPHA = 0.5
_NAMES = ("forward", "reverse", "jsd")
# Of the rows that fit the budget for one array of logits: there are two, and what is between them.
_CHUNK_SHARE = 4


@_check.keywords
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    hard_labels: ArrayLike | None = None,
    alpha: ArrayLike | None = None,
    divergence: DivergenceName = "forward",
    beta: float = 0.5,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
) -> jax.Array:
    """How far a student's distribution is from its teacher's, and both from the labels, in nats.

        p, q = softmax(teacher/T), softmax(student/T)
        loss = α T² D(p, q) + (1 − α) nll_y(student)        T² D alone without hard labels
        mean = Σ_rows w loss / Σ_rows w

    `divergence` chooses D: "forward" KL(p‖q) covers all that the teacher does, "reverse" KL(q‖p)
    settles on what it does most, "jsd" is between them, finite and bounded:
    β KL(p‖m) + (1−β) KL(q‖m) with m = β p + (1−β) q.  None is ever negative.

    Loss and gradients are right to 1e-5 of their row's sum of absolute terms; and to 1e-5 of the
    row itself, however near the student is to its teacher, at any T ≥ 1 and whatever offset either
    has, as long as no class that is possible is more than 16 T from where the others are.
    Beyond that, terms smaller than 1e-5 of their logarithms may be lost. The gradient by T has the
    terms (∂loss/∂z_v)(z_v − max z) and 2 loss, which all but cancel near the teacher.

    Every mode of differentiation works. The teacher has a real gradient:
    `jax.lax.stop_gradient(teacher_logits)` freezes it.

    Args:
      student_logits: `[*n, V]`, floating point. −inf is an impossible class.
      teacher_logits: the same shape, any floating dtype.
      temperature: T in (0, 1e18], a scalar; it may be traced.
      hard_labels: integers `[*n]` in [0, V), for the second term, at temperature 1.
      alpha: α in [0, 1], the share of the soft term, 0.5 by default; a scalar that may be traced.
        Only with hard labels.
      divergence: "forward", "reverse" or "jsd".
      beta: β in (0, 1), the teacher's share of the mixture of "jsd"; static.
      where: boolean; `[*n]` keeps rows, `[*n, V]` keeps classes. Dropped rows are exactly 0, loss
        and gradient, whatever they hold.
      ignore_index: rows with this hard label are dropped, from both terms.
      row_weights: `[*n]`.
      reduction: "mean", "sum", or "none" for one loss a row.
      normalizer: scalar in place of the mean's denominator.
      axis_name: mesh axes to sum numerator and denominator over, inside `jax.shard_map`.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 if logits are).
      +∞ where D is: a class impossible for the student that the teacher holds possible in
      "forward", the other way round in "reverse"; the gradient is finite. Gradients have the dtype
      of what they are for.

    Raises:
      TypeError: a dtype that is not what is listed; a traced static option.
      ValueError: shapes that do not match exactly; an option out of range; a concrete label
        outside [0, V) that is not dropped; `alpha` or `ignore_index` without hard labels. Under jit
        such a label, and a temperature or α out of range, are NaN.

    Residuals:
      The arguments as given and a few numbers per row.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jxent.distillation import distillation_loss
      >>> teacher = jnp.array([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
      >>> student = jnp.array([[1.0, 1.0, 0.0], [0.5, 2.0, 0.0]])
      >>> loss = distillation_loss(student, jax.lax.stop_gradient(teacher), temperature=2.0)
      >>> print(f"{loss:.4f} nats")
      0.2118 nats
      >>> labels = jnp.array([0, 1])
      >>> loss = distillation_loss(student, teacher, hard_labels=labels, alpha=0.9, temperature=2.0)
      >>> print(f"{loss:.4f} nats")
      0.2491 nats

    References:
      Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, arXiv:1503.02531, for
      T² and α; Agarwal et al., *On-Policy Distillation of Language Models*, arXiv:2306.13649, for
      the reverse divergence and the generalised Jensen–Shannon divergence; Lin, *Divergence
      Measures Based on the Shannon Entropy* (1991).
    """
    fn = "distillation_loss"
    s = _check.logits(fn, student_logits, "student_logits")
    t = _check.like_rows(fn, "teacher_logits", teacher_logits, "student_logits", s.shape)
    where_rows, mask = _check.where(fn, where, s.shape)
    y, kept = _hard_targets(fn, hard_labels, ignore_index, where_rows, s.shape[:-1], s.shape[-1])
    return _distillation_loss(
        s,
        t,
        y,
        kept,
        mask,
        _temperature(fn, temperature),
        _alpha(fn, alpha, hard_labels),
        _check.weights(fn, "row_weights", row_weights, s.shape[:-1]),
        _check.weights(fn, "normalizer", normalizer, ()),
        kind=_divergence_options(fn, divergence, beta),
        reduction=_check.reduction(fn, reduction, normalizer=normalizer, axis_name=axis_name),
        axis_name=axis_name,
    )


@_check.keywords
def linear_distillation_loss(
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike,
    *,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    head_layout: Layout = "dv",
    teacher_head_layout: Layout | None = None,
    temperature: ArrayLike = 1.0,
    hard_labels: ArrayLike | None = None,
    alpha: ArrayLike | None = None,
    divergence: DivergenceName = "forward",
    beta: float = 0.5,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    row_weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisNames | None = None,
    chunk_size: int | None = None,
    precision: Any = None,
) -> jax.Array:
    """`distillation_loss` of two projections, neither of whose logits are ever stored.

        student = student_hidden·student_head + student_bias        teacher likewise
        loss    = as `distillation_loss`, every option

    Rows go in chunks. For a mean or a sum the gradients are computed beside the loss and scaled
    afterwards; for "none" the logits are computed again on the way back. Products nobody asks for
    are not done: a frozen teacher costs its one projection.

    Args:
      student_hidden: `[*n, D]`, floating point.
      student_head: `[D, V]`, or `[V, D]` with head_layout="vd"; any floating dtype; copied as
        in `linear_cross_entropy`.
      teacher_hidden: `[*n, E]`: the teacher may be wider.
      teacher_head: `[E, V]` or `[V, E]`, over the same vocabulary.
      student_bias, teacher_bias: `[V]`; −inf excludes a class.
      head_layout: "dv", or "vd" for a tied embedding.
      teacher_head_layout: the same for the teacher's head; None: as the student's.
      temperature, hard_labels, alpha, divergence, beta: as in `distillation_loss`.
      where: boolean `[*n]`: rows to keep.
      ignore_index, row_weights, reduction, normalizer, axis_name: as in `distillation_loss`.
      chunk_size: rows in a chunk; by default what fits a budget for the device.
      precision: of every matrix product, as for `jax.lax.dot_general`.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 if an operand is).

    Raises:
      TypeError, ValueError: as `distillation_loss` and `linear_cross_entropy`.

    Residuals:
      For a mean or a sum the gradients that are asked for, in float32; for "none" the arguments and
      one number per row. Reverse mode, to any order.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jxent.distillation import distillation_loss, linear_distillation_loss
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> shapes = (6, 4), (4, 1000), (6, 8), (8, 1000)
      >>> h, w, teacher_h, teacher_w = map(jax.random.normal, keys, shapes)
      >>> loss = linear_distillation_loss(h, w, teacher_h, teacher_w, temperature=2.0)
      >>> stored = distillation_loss(h @ w, teacher_h @ teacher_w, temperature=2.0)
      >>> bool(jnp.allclose(loss, stored))
      True

    References:
      As `distillation_loss`; Hsu et al., *Liger Kernel*, arXiv:2410.10989, for gradients beside
      the loss.
    """
    fn = "linear_distillation_loss"
    h = _check.hidden(fn, student_hidden, "student_hidden")
    w = _check.head(fn, student_head, head_layout, h, "student_head")
    u = _check.hidden(fn, teacher_hidden, "teacher_hidden")
    rows, layout = h.shape[:-1], head_layout if teacher_head_layout is None else teacher_head_layout
    _check.same_rows(fn, "teacher_hidden", u, "student_hidden", rows)
    v = _check.head(fn, teacher_head, layout, u, "teacher_head", "teacher_head_layout")
    classes = w.shape[classes_axis(head_layout)]
    of_teacher = v.shape[classes_axis(layout)]
    _check.same_vocabulary(fn, "teacher_head", of_teacher, "student_head", classes)
    where_rows = _check.rows_kept(fn, where, rows, "a bias")
    y, kept = _hard_targets(fn, hard_labels, ignore_index, where_rows, rows, classes)
    run = partial(
        _linear_distillation_loss,
        Projection(h, w, _check.bias(fn, student_bias, classes, "student_bias")),
        Projection(u, v, _check.bias(fn, teacher_bias, classes, "teacher_bias")),
        y,
        kept,
        _temperature(fn, temperature),
        _alpha(fn, alpha, hard_labels),
        _check.weights(fn, "row_weights", row_weights, rows),
        _check.weights(fn, "normalizer", normalizer, ()),
        layouts=(head_layout, layout),
        kind=_divergence_options(fn, divergence, beta),
        reduction=_check.reduction(fn, reduction, normalizer=normalizer, axis_name=axis_name),
        axis_name=axis_name,
        chunk_size=_check.chunk_size(fn, chunk_size),
        precision=precision,
    )
    with _check.reverse_only(fn, "distillation_loss of stored logits"):
        return run()


def _hard_targets(
    fn: str,
    labels: ArrayLike | None,
    ignore_index: int | None,
    where: RowMask | None,
    rows: tuple[int, ...],
    classes: int,
) -> tuple[Labels | None, RowMask | None]:
    """Hard labels, −1 for those outside [0, V), and the rows that count."""
    ignore = _check.labels_ignored(fn, ignore_index, labels)
    if labels is None:
        return None, where
    y = _check.labels(fn, labels, rows, "hard_labels")
    kept = kept_rows(y, where, ignore)
    _check.label_values(fn, labels, classes, kept, "hard_labels")
    narrowed = narrow(y, classes)
    _check.traced_labels(fn, y, narrowed, kept, classes, "hard_labels")
    return narrowed, kept


def _temperature(fn: str, T: ArrayLike) -> Scalar:
    """T, whose square is a float; the loss has long been that of T = ∞ where it is not."""
    return _check.scalar_within(fn, "temperature", T, "positive and at most 1e18")


def _alpha(fn: str, alpha: ArrayLike | None, hard_labels: Any) -> Scalar | None:
    """The share of the soft term; None when it is all there is."""
    share = _check.hard_share(fn, alpha, hard_labels, _ALPHA)
    if hard_labels is None:
        return None
    return _check.scalar_within(fn, "alpha", share, "in [0, 1]")


def _divergence_options(fn: str, name: DivergenceName, beta: float) -> Divergence:
    chosen = _check.one_of(fn, "divergence", name, _NAMES)
    return Divergence(chosen, _check.strictly_between(fn, "beta", beta))


class _Shares(NamedTuple):
    """What a row's soft and hard term are multiplied by; None without the hard one."""

    soft: PerRow
    hard: PerRow | None

    @property
    def counts(self) -> RowMask:
        """The rows that weigh something."""
        return self.soft != 0 if self.hard is None else (self.soft != 0) | (self.hard != 0)


def _shares(rows: tuple[int, ...], alpha: Scalar | None, w: PerRow | None, dtype: Any) -> _Shares:
    w = jnp.ones(rows, dtype) if w is None else w
    if alpha is None:
        return _Shares(w, None)
    share = jnp.broadcast_to(alpha.astype(dtype), rows)
    return _Shares(share * w, (1 - share) * w)


_HARD = row_terms.TermOptions()


def _distillation_rows(
    kind: Divergence,
    weighed: bool,
    zs: Zs,
    T: Scalar,
    by: _Shares,
    y: Labels | None,
    kept: RowMask | None,
    mask: ClassMask | None = None,
) -> PerRow:
    """The losses of rows of logits, a student's and a teacher's; `weighed`: some may weigh 0."""
    dtype = by.soft.dtype
    s, t = map(pin_half_precision, zs)
    s, t = (z if mask is None else jnp.where(mask, z, -jnp.inf) for z in (s, t))
    if weighed:
        valid = _valid_rows(s, t, y, mask) | by.counts
        kept = valid if kept is None else kept & valid
    s, t = (z if kept is None else jnp.where(kept[..., None], z, 0) for z in (s, t))
    s, t, T = s.astype(dtype), t.astype(dtype), T.astype(dtype)
    soft = logit_divergence.divergence(kind, s, t, T)
    loss = multiply_no_nan(by.soft, soft)
    if y is not None:
        assert by.hard is not None
        nll = row_terms.row_terms(_HARD, s, y, None, mask, kept).nll
        loss = (loss + multiply_no_nan(by.hard, nll)) + propagate_nan(soft, nll)
    return loss if kept is None else jnp.where(kept, loss, 0)


def _valid_rows(s: Logits, t: Logits, y: Labels | None, mask: ClassMask | None) -> RowMask:
    """The rows that are not at fault.  From others that weigh nothing, 0·NaN would come back."""
    valid = jnp.ones(s.shape[:-1], bool)
    for z in (s, t):
        valid = valid & jnp.isfinite(lax.stop_gradient(jnp.max(z, axis=-1)))
    bad = None if y is None else row_terms.invalid_rows(y, mask)
    return valid if bad is None else valid & ~bad


@partial(jax.jit, static_argnames=("kind", "reduction", "axis_name"), inline=True)
def _distillation_loss(
    s: Logits,
    t: Logits,
    y: Labels | None,
    kept: RowMask | None,
    mask: ClassMask | None,
    T: Scalar,
    alpha: Scalar | None,
    row_weights: PerRow | None,
    normalizer: Scalar | None,
    *,
    kind: Divergence,
    reduction: Reduction,
    axis_name: AxisNames | None,
) -> jax.Array:
    rows, dtype = s.shape[:-1], dtype_of(s, t)
    w = only(kept, None if row_weights is None else row_weights.astype(dtype))
    by = _shares(rows, alpha, w, dtype)
    s, t, T, y, kept, mask, *each = vary_alike(s, t, T, y, kept, mask, *by)
    losses = row_terms.rematerialized(partial(_distillation_rows, kind, w is not None))
    return reduce(
        losses((s, t), T, _Shares(*each), y, kept, mask),
        row_weight(rows, kept, w, None, dtype),
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )


@partial(
    jax.jit,
    static_argnames=("layouts", "kind", "reduction", "axis_name", "chunk_size", "precision"),
    inline=True,
)
def _linear_distillation_loss(
    student: Projection,
    teacher: Projection,
    y: Labels | None,
    kept: RowMask | None,
    T: Scalar,
    alpha: Scalar | None,
    row_weights: PerRow | None,
    normalizer: Scalar | None,
    *,
    layouts: tuple[Layout, Layout],
    kind: Divergence,
    reduction: Reduction,
    axis_name: AxisNames | None,
    chunk_size: int | None,
    precision: Any,
) -> jax.Array:
    both = student, teacher
    rows, dtype = student.h.shape[:-1], dtype_of(*jax.tree.leaves(both))
    w = only(kept, None if row_weights is None else row_weights.astype(dtype))
    by, weights = _shares(rows, alpha, w, dtype), row_weight(rows, kept, w, None, dtype)
    if reduction == "mean":
        by = jax.tree.map(partial(divide, by=denominator(weights, normalizer, axis_name)), by)
    by, y, kept = jax.tree.map(jnp.ravel, (by, y, kept))
    n = math.prod(rows)
    projections = tuple(
        Projection(p.h.reshape(n, p.h.shape[-1]), *pad_classes(layout, p.w, p.b))
        for p, layout in zip(both, layouts, strict=True)
    )
    weighed = w is not None or normalizer is not None
    if weighed:
        # A row of weight 0 with ∞ in it is dropped: a slope of 0 times ∞ would be NaN in a head.
        finite = [jnp.all(jnp.isfinite(p.h), axis=-1) for p in projections]
        counts = by.counts | (finite[0] & finite[1])
        kept = counts if kept is None else kept & counts
    classes = projections[0].w.shape[classes_axis(layouts[0])]
    size = chunk_size or max(1, default_tile_size("rows", classes) // _CHUNK_SHARE)
    statics = tuple(LinearOptions(layout, precision, size, _HARD) for layout in layouts)
    leaves, structure = jax.tree.flatten((Operands(projections, T, by), y, kept))
    operands, y, kept = jax.tree.unflatten(structure, vary_alike(*leaves))
    way = chunked_rows.each_row if reduction == "none" else chunked_rows.sum_of_rows
    losses = way(partial(_distillation_rows, kind, weighed), statics, operands, y, kept)
    return losses.reshape(rows) if reduction == "none" else sum_over_devices(losses, axis_name)
