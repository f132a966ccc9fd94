"""The training loss: check the arguments, weigh the rows, compute their losses, reduce them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jxent import _check
from jxent._core.row_terms import training_row_terms
from jxent._core.safe_math import zero_unless
from jxent._core.targets import is_labels, kept_rows
from jxent._core.weighting import (
    LossOptions,
    Reduction,
    RowInputs,
    check_mean_weights,
    class_weight,
    loss_options,
    reduce,
    reduction_options,
    row_weight,
    weighted_rows,
)
from jxent._typing import ArrayLike, AxisNames, Logits, PerRow, ReductionKind


@_check.arguments
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
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
) -> jax.Array:
    r"""Compute the softmax cross-entropy of logits against labels or distributions, in nats.

        t    = (1−ε) c_y e_y + (ε/V) c                        for a label y
        t    = c ⊙ ((1−ε) targets + ε/V)                      for a distribution
        loss = Σ_v t_v (lse(z) − z_v) + ζ lse(z)²             ∂/∂z = (Σ_v t_v + 2ζ lse) p − t
        mean = Σ_rows w loss / Σ_rows w c_y                   p = softmax(z)

    with class weights c, row weights w, smoothing ε, z-loss ζ (weighed by w, not by c) and a soft
    cap κ, z = κ tanh(logits/κ).  For a distribution the c_y of the mean is its average class
    weight Σ c t / Σ t, so that labels and their one-hot rows agree; a mean over no weight is 0.

    The gradient is a `jax.custom_vjp`: reverse mode to any order.  For forward mode use
    `softmax_cross_entropy_with_integer_labels` or `softmax_cross_entropy`.

    Args:
      logits: `[*n, V]`, floating point. −inf is an impossible class.
      targets: integer labels `[*n]` in [0, V), or distributions `[*n, V]` (floating point, not
        negative; they need not sum to 1).
      where: boolean; `[*n]` keeps rows, `[*n, V]` keeps classes (V, the sums and the smoothing are
        then over the kept ones). Dropped rows are exactly 0, loss and gradient, whatever they hold.
      ignore_index: rows with this label are dropped. Under `jax.vmap` over examples each call is a
        mean of its own, 0 where every row is ignored: for the mean over all rows call it once on
        the batch, or sum the rows of reduction="none" and divide by the sum of `label_weights`.
      class_weights: `[V]`. With label_smoothing every row pulls towards class v by (ε/V) c_v, as in
        PyTorch, and a rare class of large weight can outweigh the label of a frequent one: where
        weights are to balance classes, pass row_weights=class_weights[labels] instead.
      row_weights: `[*n]`, for example 1 for a token and 0 for padding. Negative ones, such as
        advantages, go with a `normalizer`, "sum" or "none": their own sum may be about 0.
      label_smoothing: ε in [0, 1], static.
      z_loss: ζ ≥ 0, static.
      logit_softcap: κ > 0, static.
      reduction: "mean", "sum", or "none" for one loss a row.
      normalizer: scalar in place of the mean's denominator, for example the sum of
        `label_weights` over all micro-batches or devices, or the number of rows. By 0 a sum of 0
        is 0 and any other is ±∞.
      axis_name: mesh axes to sum numerator and denominator over, inside `jax.shard_map`: value and
        gradients are those of the whole batch. Where JAX does not track what varies over the
        devices (`jax.pmap`, check_vma=False), `jax.grad` inside counts each part once a device, as
        in plain jnp code: `jax.lax.pmean` of the parts is the gradient of the whole batch.

    Returns:
      A scalar, or `[*n]` with reduction="none", in nats and in float32 (float64 for float64
      logits). Gradients have the dtype of what they are for.

    Raises:
      TypeError: a dtype that is not what is listed; a traced static option.
      ValueError: shapes that do not match exactly; an option out of range; a concrete label
        outside [0, V) that is not dropped; a concrete negative target; a concrete negative weight
        of a row that is not dropped, in a mean without `normalizer`. Under jit such a label is NaN
        in the loss and gradient of its row (`jxent.testing.checked` finds it), such a weight in
        the mean.

    Residuals:
      The arguments as given and five numbers per row.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
      >>> labels = jnp.array([0, 1])
      >>> loss, grad = jax.value_and_grad(jxent.cross_entropy)(logits, labels)
      >>> print(f"{loss:.4f} nats")
      1.5755 nats
      >>> with jnp.printoptions(precision=3, suppress=True): print(grad)
      [[-0.107  0.088  0.02 ]
       [ 0.025 -0.473  0.448]]

    References:
      Goodfellow, Bengio, Courville, *Deep Learning* (2016), §6.2.2; smoothing: Szegedy et al.,
      arXiv:1512.00567; z-loss: Chowdhery et al., arXiv:2204.02311; soft cap: Gemma Team,
      arXiv:2408.00118; the definition of weights and smoothing together is PyTorch's.
    """
    fn = "cross_entropy"
    z = _check.logits(fn, logits)
    t = _check.targets(fn, targets, z.shape)
    ignore = _check.ignore_index(fn, ignore_index, labelled=is_labels(t))
    where_rows, mask = _check.where(fn, where, z.shape)
    kept = kept_rows(t, where_rows, ignore)
    _check.label_values(fn, targets, z.shape[-1], kept, "targets")
    rows = RowInputs(
        t,
        kept,
        mask,
        _check.weights(fn, "class_weights", class_weights, z.shape[-1:]),
        _check.weights(fn, "row_weights", row_weights, z.shape[:-1]),
    )
    options = loss_options(fn, label_smoothing, z_loss, logit_softcap)
    how = reduction_options(fn, reduction, normalizer, axis_name)
    check_mean_weights(fn, row_weights, kept, how)
    with _check.reverse_only(fn, "softmax_cross_entropy or its integer-label form"):
        return _cross_entropy(z, rows, how, options=options)


@partial(jax.jit, static_argnames="options", inline=True)
def _cross_entropy(
    z: Logits, rows: RowInputs, reduction: Reduction, *, options: LossOptions
) -> jax.Array:
    losses, weights = weighted_rows(
        training_row_terms, "cross_entropy", z, rows, options, "targets"
    )
    return reduce(losses, weights, reduction)


@_check.arguments
def label_weights(
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    class_weights: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
) -> jax.Array:
    """Compute each row's share of the denominator of `cross_entropy`'s mean.

        weight = (kept?) · w · c_y            mean = Σ_rows loss / Σ_rows weight

    It needs no logits, so the denominator of a whole batch is known before the model runs: sum it
    over micro-batches (or `psum` it over devices), pass it to each as `normalizer`, and the summed
    gradients are those of the whole batch. A mean of means is not. `optax.MultiSteps` takes a mean
    of the micro-batches' gradients: it then wants use_grad_mean=False.

    Args:
      labels: integers `[*n]`.
      where: boolean `[*n]`, or `[*n, V]` as for `cross_entropy`.
      ignore_index: rows with this label weigh 0.
      class_weights: `[V]`.
      row_weights: `[*n]`.

    Returns:
      `[*n]` in float32 (float64 for float64 weights); NaN for a label without a class weight.

    Raises:
      TypeError, ValueError: as `cross_entropy`.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> labels = jnp.array([2, 0, -100, 1])
      >>> weights = jnp.array([1.0, 2.0, 4.0])
      >>> print(jxent.label_weights(labels, ignore_index=-100, class_weights=weights))
      [4. 1. 0. 2.]

    References:
      The denominator of PyTorch's weighted mean, `torch.nn.CrossEntropyLoss`.
    """
    fn = "label_weights"
    y = _check.labels(fn, labels, _check.shape_of(labels))
    keep = _check.row_mask(fn, where, y.shape)
    kept = kept_rows(y, keep, _check.ignore_index(fn, ignore_index, labelled=True))
    c = None
    if class_weights is not None:
        c = _check.weights(
            fn, "class_weights", class_weights, _check.one_axis(fn, "class_weights", class_weights)
        )
    _check.label_values(fn, labels, None if c is None else c.shape[0], kept)
    w = _check.weights(fn, "row_weights", row_weights, y.shape)
    return _label_weights(RowInputs(y, kept, class_weights=c, row_weights=w))


@partial(jax.jit, inline=True)
def _label_weights(rows: RowInputs) -> PerRow:
    given = (x for x in (rows.class_weights, rows.row_weights) if x is not None)
    dtype = next((x.dtype for x in given if x.dtype == jnp.float64), jnp.dtype(jnp.float32))
    cast = lambda x: None if x is None else x.astype(dtype)  # noqa: E731
    rows = rows._replace(class_weights=cast(rows.class_weights))
    w = cast(rows.row_weights)
    w = None if w is None else zero_unless(rows.row_mask, w)
    return row_weight(rows.targets.shape, rows.row_mask, w, class_weight(rows), dtype)
