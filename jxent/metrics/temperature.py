"""How sure a model may be: the one number that all its logits are to be divided by.

T = argmin Σ w nll_y(z/T)        log T is what is fitted, by L-BFGS, within ±log 1000
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jxent._core.log_softmax import loss_dtype
from jxent._losses.cross_entropy import cross_entropy
from jxent._typing import Labels, Logits, PerRow, RowMask, Scalar

_WIDEST = math.log(1e3)
_STEPS = 100


def _cooled(z: Logits, log_T: Scalar) -> Logits:
    """z / T; what is impossible stays so, without a slope."""
    possible = z != -jnp.inf
    return jnp.where(possible, jnp.where(possible, z, 0) * jnp.exp(-log_T), -jnp.inf)


@partial(jax.jit, inline=True)
def fit(z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None) -> Scalar:
    """The temperature, by L-BFGS."""
    import optax  # where it is used: `import jxent` is quicker without it

    z = z.astype(loss_dtype(z.dtype))
    weight = jnp.ones(y.shape, z.dtype) if w is None else w
    weight = weight if kept is None else jnp.where(kept, weight, 0)
    # Whatever a dropped row holds would come back through z/T: a slope of 0 times NaN.
    z = jnp.where((weight != 0)[..., None], z, 0)

    def log_T(u: Scalar) -> Scalar:
        return _WIDEST * jnp.tanh(u / _WIDEST)

    def loss(u: Scalar) -> Scalar:
        return cross_entropy(_cooled(z, log_T(u)), y, where=kept, row_weights=w)

    tolerance = 4 * jnp.finfo(z.dtype).eps
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any) -> Any:
        u, state = carry
        value, grad = value_and_grad(u, state=state)
        updates, state = solver.update(grad, state, u, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(u, updates), state

    def goes_on(carry: Any) -> Any:
        state = carry[1]
        steps, grad = optax.tree_utils.tree_get(state, "count"), state[-1].grad
        return (steps == 0) | ((steps < _STEPS) & (jnp.abs(grad) > tolerance))

    # From far off, float32 can see no slope: begin at the power of ten nearest to 1 that will do.
    tens = jnp.array([0, -1, 1, -2, 2], z.dtype) * math.log(10)
    starts = _WIDEST * jnp.arctanh(tens / _WIDEST)
    losses = lax.map(loss, starts)
    start = starts[jnp.argmax(losses <= (jnp.min(losses) + tolerance))]
    u, _ = lax.while_loop(goes_on, step, (start, solver.init(start)))
    known = jnp.isfinite(loss(u)) & jnp.any(weight != 0)
    return jnp.where(known, jnp.exp(log_T(u)), jnp.nan)
