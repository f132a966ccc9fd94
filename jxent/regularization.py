"""Terms that are added to a loss: penalties on its gradient and on confident predictions.

    gradient penalty      L + λ Σ |∂L/∂θ|²        θ: parameters, or inputs
    confidence penalty    L − β H(p)              H(p) = −Σ_v p_v log p_v

The gradient penalty differentiates the custom rules a second time.  Those of jxent are right to any
order; those of `linear_cross_entropy` store no logits in second derivatives either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jxent import _check
from jxent._compat import vary_alike
from jxent._core.safe_math import finite_at_zero, nan_unless, zero_unless
from jxent._typing import ArrayLike, Logits, PerRow, RowMask, Scalar
from jxent.information import softmax_entropy

__all__ = ["gradient_penalty", "confidence_penalty"]


@_check.arguments
def gradient_penalty(
    loss_fn: Callable[..., Any],
    coefficient: ArrayLike,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return the loss function L + λ Σ |∂L/∂θ|², to differentiate in place of L = `loss_fn`.

    With θ the parameters (the first argument) the penalty favours flat minima. Gradient descent
    with steps of size h already follows the gradient flow of L + (h/4) Σ |∂L/∂θ|²; λ = h/4 doubles
    this effect, or gives it at a smaller h. In the paper's letters λ = μ/m, for m parameters.

    With θ the inputs (chosen by `argnums`) it makes the loss less sensitive to them. In a mean over
    N rows the gradient by one row's input has a factor 1/N: λ = N λ' gives the mean over rows of
    λ' |∂nll/∂x|².

    A training step costs about twice as much; with `linear_cross_entropy` no logits are stored.

    Args:
      loss_fn: returns a scalar, or (scalar, auxiliary data) with has_aux.
      coefficient: λ ≥ 0, a scalar; it may be traced, for a schedule. λ = 0 leaves the loss alone.
      argnums: the positional arguments that form θ, as for `jax.grad`: pytrees of floats.
      has_aux: as for `jax.grad`; the auxiliary data are returned unchanged.

    Returns:
      A function with the arguments and results of loss_fn, in the dtype of its loss. NaN for a
      traced λ < 0.

    Raises:
      ValueError: λ is not a scalar; a concrete λ that is negative or not finite.
      TypeError: λ is not a number; and all that `jax.grad` raises for loss_fn, for example for a
        result that is not a scalar or parameters that are not floats.

    Residuals:
      Those of loss_fn and of its gradient.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> x, labels = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
      >>> loss_fn = lambda params, x: jxent.cross_entropy(x @ params["head"], labels)
      >>> flat = jxent.regularization.gradient_penalty(loss_fn, 0.025)  # for steps of 0.1
      >>> params = {"head": jnp.zeros((2, 2))}
      >>> loss, grads = jax.value_and_grad(flat)(params, x)
      >>> print(f"{loss:.4f} = {loss_fn(params, x):.4f} + 0.025 · 1.625")
      0.7338 = 0.6931 + 0.025 · 1.625
      >>> smooth = jxent.regularization.gradient_penalty(loss_fn, 0.1, argnums=1)

    References:
      Barrett and Dherin, Implicit Gradient Regularization, arXiv:2009.11162; of inputs: Drucker and
      LeCun, Improving Generalization Performance Using Double Backpropagation, 1992.
    """
    fn = "gradient_penalty"
    _check.finite_nonnegative(fn, "coefficient", coefficient)
    weight = _check.scalar(fn, "coefficient", coefficient)
    value_and_grad = jax.value_and_grad(loss_fn, argnums=argnums, has_aux=has_aux)

    @wraps(loss_fn)
    def penalized_loss_fn(*args: Any, **kwargs: Any) -> Any:
        out, gradient = value_and_grad(*args, **kwargs)
        loss, *aux = out if has_aux else (out,)
        loss = jnp.asarray(loss)
        wide = np.promote_types(loss.dtype, np.float32)
        by = nan_unless(weight >= 0, weight).astype(wide)
        total = loss.astype(wide) + _weighted_squared_norm(by, gradient)
        return (total.astype(loss.dtype), *aux) if has_aux else total.astype(loss.dtype)

    return penalized_loss_fn


@_check.arguments
def confidence_penalty(
    logits: ArrayLike, *, threshold: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    """Compute the negative entropy −H(p) of each row, p = softmax(z), a penalty on confidence.

        penalty = −H(p)                       ∂/∂z_v = p_v (log p_v + H)
        penalty = max(0, Γ − H(p))            with a threshold Γ: only rows with H(p) < Γ

    The paper's loss is cross_entropy(logits, labels) + β confidence_penalty(logits).mean(). It
    pulls the model towards the uniform distribution u by KL(p‖u), label smoothing does by KL(u‖p).

    For a large vocabulary, without logits: -linear_log_probs(hidden, head, labels).entropy.

    Args:
      logits: z `[*n, V]`, floating point. A class with −∞ is impossible and contributes 0.
      threshold: Γ in nats, a scalar; it may be traced.
      where: boolean `[*n]`: rows to keep. Dropped rows are exactly 0, whatever they hold.

    Returns:
      `[*n]` in nats, float32 (float64 for float64 logits): from −log V to 0, or from 0 to Γ with a
      threshold. NaN, gradient too, for a row with NaN or +∞, or with only −∞.

    Raises:
      ValueError: no classes; a `where` of another shape; a threshold that is not a scalar.
      TypeError: logits that are not floating point; a `where` that is not boolean.

    Residuals:
      The arguments.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jnp.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.regularization.confidence_penalty(logits)
      ... )
      [-1.0986 -0.0025]
      >>> with jnp.printoptions(precision=4, suppress=True): print(
      ...     jxent.regularization.confidence_penalty(logits, threshold=0.5)
      ... )
      [0.     0.4975]

    References:
      Pereyra, Tucker, Chorowski, Kaiser and Hinton, Regularizing Neural Networks by Penalizing
      Confident Output Distributions, arXiv:1701.06548.
    """
    fn = "confidence_penalty"
    z = _check.logits(fn, logits)
    kept = _check.rows_kept(fn, where, z.shape[:-1])
    return _confidence_penalty(z, _check.weights(fn, "threshold", threshold, ()), kept)


def _weighted_squared_norm(w: Scalar, tree: Any) -> Array:
    """Compute w Σ |g|² over all leaves, 0 for w = 0; |g|² alone may be too large for a float."""
    total = jnp.zeros((), w.dtype)
    for g in jax.tree.leaves(tree):
        size = finite_at_zero(w, jnp.abs(g).astype(w.dtype))
        total = total + jnp.sum((w * size) * size)
    return total


@partial(jax.jit, inline=True)
def _confidence_penalty(z: Logits, threshold: Array | None, kept: RowMask | None) -> PerRow:
    @partial(jax.checkpoint, prevent_cse=False)
    def rows(z: Logits, threshold: Array | None, kept: RowMask | None) -> PerRow:
        # Masked before the entropy: NaN in a dropped row would pass through its gradient.
        z = zero_unless(kept, z)
        penalty = 0 - softmax_entropy(z)
        if threshold is not None:
            penalty = penalty + threshold.astype(penalty.dtype)
            penalty = jnp.where(penalty <= 0, 0, penalty)
        return zero_unless(kept, penalty)

    return rows(*vary_alike(z, threshold, kept))
