"""Temperature scaling (Guo et al. 2017): one T for all logits, by L-BFGS on log T.

T = argmin Σ w nll_y(z/T)        within 1/1000 ≤ T ≤ 1000
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jxent._core.log_softmax import loss_dtype
from jxent._core.safe_math import nan_unless
from jxent._losses.cross_entropy import cross_entropy
from jxent._typing import Labels, Logits, PerRow, RowMask, Scalar
from jxent.metrics.debug_flags import without_debug_checks

_MAX_LOG_T = math.log(1e3)
_MAX_STEPS = 100


def _divide_by_temperature(z: Logits, log_T: Scalar) -> Logits:
    """Compute z / T; −∞ stays, with derivative 0 in log T."""
    possible = z != -jnp.inf
    return jnp.where(possible, jnp.where(possible, z, 0) * jnp.exp(-log_T), -jnp.inf)


@partial(jax.jit, inline=True)
def fit_by_lbfgs(z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None) -> Scalar:
    """Fit T to checked arguments; NaN where the loss is not finite or no row is kept."""
    import optax  # where it is used: `import jxent` is quicker without it

    z = z.astype(loss_dtype(z.dtype))
    weight = jnp.ones(y.shape, z.dtype) if w is None else w
    weight = weight if kept is None else jnp.where(kept, weight, 0)
    # A NaN in a dropped row would reach ∂/∂T of z/T as 0·NaN.
    z = jnp.where((weight != 0)[..., None], z, 0)

    def log_T(u: Scalar) -> Scalar:
        return _MAX_LOG_T * jnp.tanh(u / _MAX_LOG_T)

    def loss(u: Scalar) -> Scalar:
        return cross_entropy(_divide_by_temperature(z, log_T(u)), y, where=kept, row_weights=w)

    tolerance = 4 * jnp.finfo(z.dtype).eps
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any) -> Any:
        u, state = carry
        value, grad = value_and_grad(u, state=state)
        updates, state = solver.update(grad, state, u, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(u, updates), state

    def unfinished(carry: Any) -> Any:
        state = carry[1]
        steps, grad = optax.tree_utils.tree_get(state, "count"), state[-1].grad
        return (steps == 0) | ((steps < _MAX_STEPS) & (jnp.abs(grad) > tolerance))

    # Far from the minimum float32 has a gradient of 0: begin at the best power of ten, of equally
    # good ones at that nearest to 1.
    tens = jnp.array([0, -1, 1, -2, 2], z.dtype) * math.log(10)
    starts = _MAX_LOG_T * jnp.arctanh(tens / _MAX_LOG_T)
    losses = lax.map(loss, starts)
    start = starts[jnp.argmax(losses <= (jnp.min(losses) + tolerance))]
    with without_debug_checks():  # optax divides by 0 and selects
        u, _ = lax.while_loop(unfinished, step, (start, solver.init(start)))
    fitted = jnp.isfinite(loss(u)) & jnp.any(weight != 0)
    return nan_unless(fitted, jnp.exp(log_T(u)))
