"""Whether a prediction held to be right with probability p is right p of the time.

curve: in each bin of confidence, Σ w confidence / Σ w against Σ w hit / Σ w
error = Σ_bins |Σ w hit − Σ w confidence| / Σ w
T = argmin Σ w nll_y(z/T)
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from jxent import _check, _figures, _sums
from jxent._average import Average, averaged, weighed
from jxent._dense import loss_dtype
from jxent._sums import Sum, columns
from jxent._typing import Labels, Logits, PerRow, RowMask, Scalar
from jxent.losses import cross_entropy

# The temperature is looked for between 1/1000 and 1000.
_WIDEST = math.log(1e3)
_STEPS = 100


class Reliability(NamedTuple):
    """How often predictions of each confidence are right: one entry for each bin.

    Args:
      edges: `[B + 1]`; bin b is (edges[b], edges[b + 1]].
      weight: `[B]`, Σ w of its rows.
      confidence: `[B]`, their mean probability; NaN where there are none.
      accuracy: `[B]`, how often they were right; NaN where there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jxent import metrics
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
      >>> curve = metrics.reliability_curve(logits, jnp.array([0, 1, 1]), bins=2)
      >>> print(f"{curve.confidence[1]:.2f} {curve.accuracy[1]:.2f}")
      0.80 0.67

    Source:
      DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983; the intervals:
      Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """

    edges: Array
    weight: Array
    confidence: Array
    accuracy: Array

    @property
    def error(self) -> Array:
        """Σ_bins weight |accuracy − confidence| / Σ weight, the calibration error."""
        gap = jnp.where(self.weight > 0, jnp.abs(self.accuracy - self.confidence), 0)
        return jnp.sum(self.weight * gap) / jnp.sum(self.weight)

    def plot(self, ax: Any = None, *, label: str | None = None, rows: Any = None) -> Any:
        """Draw the diagram with matplotlib and return its axes; models may share them.

        On the diagonal a model knows how much it knows. The bars are Wilson's 95 % intervals, of
        as many rows as a bin weighs; of weighted rows say in `rows` how many there are in each.
        """
        with _check.needed("Reliability.plot", "matplotlib"):
            return _figures.reliability(
                *(np.asarray(x) for x in (self.confidence, self.accuracy)),
                rows=np.asarray(self.weight if rows is None else rows),
                error=float(self.error),
                label=label,
                ax=ax,
            )


def of_bins(
    w: Float[Array, " N"], confidence: Float[Array, " N"], hit: Bool[Array, " N"], bins: int
) -> tuple[Average, Average]:
    """Confidence and hits of the rows in each bin (b/B, (b + 1)/B]."""
    edges = jnp.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1]
    bin_of = jnp.sum(confidence[:, None] > edges[None], axis=-1, dtype=jnp.int32)
    each = jnp.stack([weighed(w, confidence), weighed(w, hit), w], axis=-1)
    confidences, hits, weight = columns(_sums.by_segment(each, bin_of, bins))
    return averaged(confidences, weight), averaged(hits, weight)


def curve(confidence: Average, hit: Average) -> Reliability:
    """The curve that the bins come to."""
    bins = hit.total.shape[0]
    edges = jnp.linspace(0, 1, bins + 1, dtype=hit.total.dtype)
    return Reliability(edges, hit.weight + hit.weight_rest, confidence.mean(), hit.mean())


def error(confidence: Average, hit: Average, count: Sum) -> Scalar:
    """The calibration error that the bins come to."""
    gap = (hit.total - confidence.total) + (hit.total_rest - confidence.total_rest)
    return jnp.sum(jnp.abs(gap)) / (count.value + count.rest)


def _cooled(z: Logits, log_T: Scalar) -> Logits:
    """z / T; what is impossible stays so, without a slope."""
    possible = z != -jnp.inf
    return jnp.where(possible, jnp.where(possible, z, 0) * jnp.exp(-log_T), -jnp.inf)


@partial(jax.jit, inline=True)
def fit(z: Logits, y: Labels, kept: RowMask | None, w: PerRow | None) -> Scalar:
    """The temperature, by L-BFGS."""
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
