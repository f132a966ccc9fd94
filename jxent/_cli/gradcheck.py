"""Compare the loss and its gradient with float64 and with plain JAX, in ulp.

For a row of logits z with label y, divide every exponential by exp z_y and nothing cancels:

    S = Σ_{v≠y} exp(z_v − z_y)        loss = log1p(S)
    ∂/∂z_y = −S/(1 + S)               ∂/∂z_v = exp(z_v − z_y)/(1 + S)

In float64 NumPy this is exact to some 1e-15.  Plain JAX is logsumexp(z) − z_y under `jax.grad`.
An ulp is the distance between neighbouring float32 numbers at the float64 value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jxent._losses.cross_entropy import cross_entropy

PROMISED_ON = "cpu"
ROWS, CLASSES = 1000, 1000
ROW_KINDS = ("ordinary", "confident")
CONFIDENT_GAP = 40.0  # float32 logsumexp(z) − z_y is exactly 0 from a gap of 17
# By how much the label leads all others, in turn; None: as it is drawn.
GAPS: dict[str, tuple[float | None, ...]] = {
    "ordinary": (None,),
    "confident": (CONFIDENT_GAP,),
    "trained": (None, 5.0, 20.0),  # as a trained model's batch is: a third each
}

# The promise for float32.  In ulp beyond the row's gap (m − the largest other logit):
LOSS_BOUND, LABEL_GRADIENT_BOUND = 4.0, 8.0
# and 1e-5 relative for the other gradients, in ulp where an ulp is largest against its number.
OTHER_GRADIENTS_BOUND = 1e-5 / float(np.finfo(np.float32).eps)

LossRows = Callable[[Float[Array, "N V"], Int[Array, " N"]], Float[Array, " N"]]


class Values(NamedTuple):
    """The loss of each row, and its derivative by the label's logit and by the others."""

    loss: np.ndarray
    label_gradient: np.ndarray
    other_gradients: np.ndarray


class UlpDifference(NamedTuple):
    """The largest differences of one quantity over rows of one kind, in ulp."""

    rows: str
    quantity: str
    jxent_from_float64: float
    plain_from_float64: float
    jxent_from_plain: float
    bound: str
    within: bool


class GradientCheck(NamedTuple):
    """Every difference, and the number of confident rows whose plain loss is exactly 0.

    `promised` says whether the bounds are promised on this device.
    """

    differences: tuple[UlpDifference, ...]
    plain_false_zeros: int
    promised: bool

    @property
    def passed(self) -> bool:
        """True if every quantity is within its bound, or the bounds are not promised here."""
        return not self.promised or all(difference.within for difference in self.differences)


def jxent_rows(z: Float[Array, "N V"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Compute the loss under test: the one people train with, row by row."""
    return cross_entropy(z, labels, reduction="none")


def plain_rows(z: Float[Array, "N V"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Compute logsumexp(z) − z_y, without a derivative rule of its own."""
    return jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, labels[:, None], axis=-1)[:, 0]


def logits_and_labels(
    rows: int, classes: int, kind: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw standard normal logits, in which labels lead by the `GAPS` of this kind of rows."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, classes), dtype=np.float32)
    labels = rng.integers(classes, size=rows, dtype=np.int32)
    top = z.max(axis=-1)
    for first, gap in enumerate(GAPS[kind]):
        if gap is not None:
            row = np.arange(first, rows, len(GAPS[kind]))
            z[row, labels[row]] = top[row] + np.float32(gap)
    return z, labels


def float64_values(z: np.ndarray, labels: np.ndarray) -> Values:
    """Compute loss and derivatives in float64, by the formulas above."""
    is_label = np.arange(z.shape[-1]) == labels[:, None]
    wide = z.astype(np.float64)
    ratios = np.exp(wide - wide[is_label][:, None])
    S = ratios.sum(axis=-1, where=~is_label)
    gradient = ratios / (1 + S)[:, None]
    return Values(np.log1p(S), -S / (1 + S), _others(gradient, is_label))


def float32_values(loss_rows: LossRows, z: np.ndarray, labels: np.ndarray) -> Values:
    """Compute a float32 loss and its derivatives, compiled."""

    @jax.jit
    def both(z: Float[Array, "N V"]) -> tuple[Float[Array, " N"], Float[Array, "N V"]]:
        loss, pull_back = jax.vjp(lambda z: loss_rows(z, jnp.asarray(labels)), z)
        (gradient,) = pull_back(jnp.ones_like(loss))
        return loss, gradient

    loss, gradient = (np.asarray(x) for x in both(z))
    is_label = np.arange(z.shape[-1]) == labels[:, None]
    return Values(loss, gradient[is_label], _others(gradient, is_label))


def check_gradients(seed: int = 0, loss_rows: LossRows = jxent_rows) -> GradientCheck:
    """Compare ordinary and confident rows with float64 and with plain JAX."""
    differences: list[UlpDifference] = []
    false_zeros = 0
    for kind in ROW_KINDS:
        z, labels = logits_and_labels(ROWS, CLASSES, kind, seed)
        second, first = np.partition(z, -2, axis=-1)[:, -2:].astype(np.float64).T
        gap = first - second
        exact = float64_values(z, labels)
        ours = float32_values(loss_rows, z, labels)
        plain = float32_values(plain_rows, z, labels)
        if kind == "confident":
            false_zeros = int(np.sum(plain.loss == 0))
        for quantity, allowance, bound, words in (
            ("loss", gap, LOSS_BOUND, f"{LOSS_BOUND:.0f} + gap"),
            ("label_gradient", gap, LABEL_GRADIENT_BOUND, f"{LABEL_GRADIENT_BOUND:.0f} + gap"),
            ("other_gradients", 0.0, OTHER_GRADIENTS_BOUND, f"{OTHER_GRADIENTS_BOUND:.0f}"),
        ):
            true, got, naive = (getattr(values, quantity) for values in (exact, ours, plain))
            ulp = np.spacing(np.abs(true).astype(np.float32)).astype(np.float64)
            error = np.abs(got - true) / ulp
            differences.append(
                UlpDifference(
                    rows=kind,
                    quantity=quantity.replace("_", " "),
                    jxent_from_float64=float(np.max(error)),
                    plain_from_float64=float(np.max(np.abs(naive - true) / ulp)),
                    jxent_from_plain=float(np.max(np.abs(got.astype(np.float64) - naive) / ulp)),
                    bound=words,
                    within=bool(np.all(error <= bound + allowance)),
                )
            )
    promised = jax.default_backend() == PROMISED_ON
    return GradientCheck(tuple(differences), false_zeros, promised)


def _others(gradient: np.ndarray, is_label: np.ndarray) -> np.ndarray:
    return gradient[~is_label].reshape(len(gradient), -1)
