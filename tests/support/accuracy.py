"""Rows of every regime, and how far a loss and its gradients are from float64 there, in ulp."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from assertions import f64, ulp
from cases import value_and_gradients
from compiling import as_users
from edge_cases import linear

import jxent

LOSS_ULP, LABEL_ULP, OTHERS = 4, 8, 1e-5
SMALLEST = 1e-34  # true values below are not promised

Rows = tuple[np.ndarray, np.ndarray]


def _normal(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _wide(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return 20 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _offset(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    offsets = rng.choice([-1e8, -1e4, 1e3, 1e6, 1e8], (rows, 1))
    spread = np.maximum(1, np.abs(offsets) * 2.0**-22)  # a few neighbouring float32 numbers
    return offsets + spread * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def _confident(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _normal(rng, rows, classes)
    others = np.where(np.arange(classes) == y[:, None], -np.inf, z).max(-1)
    z[np.arange(rows), y] = others + rng.uniform(10, 70, rows)
    return z, y


def _wrong(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _confident(rng, rows, classes)
    return z, (y + 1) % classes


def _ties(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    z, y = _normal(rng, rows, classes)
    z = np.round(2 * z)
    z[: rows // 2, :] = 0
    return z, y


class Regime(NamedTuple):
    """How rows are made, how many at a time, of how many classes, in which dtype."""

    make: Callable[[np.random.Generator, int, int], Rows]
    rows: int = 150_000
    classes: int = 16
    dtype: str = "float32"


REGIMES = {
    "unit normal": Regime(_normal),
    "wide": Regime(_wide),
    "large V": Regime(_normal, 4, 131072),
    "large V, confident": Regime(_confident, 4, 131072),
    "shared offset": Regime(_offset),
    "confident": Regime(_confident),
    "two classes, confident": Regime(_confident, classes=2),
    "wrong and confident": Regime(_wrong),
    "ties": Regime(_ties),
    "half precision": Regime(_confident, dtype="bfloat16"),
}
LOSSES = {
    "cross_entropy": lambda logits, labels: jxent.cross_entropy(logits, labels, reduction="none"),
    "rows": jxent.softmax_cross_entropy_with_integer_labels,
    "linear": linear(jxent.linear_cross_entropy, reduction="none"),
}


def batches(regime: Regime, seeds: range) -> Iterator[tuple[jax.Array, np.ndarray]]:
    for seed in seeds:
        z, y = regime.make(np.random.default_rng(seed), regime.rows, regime.classes)
        # Rounded by way of float32, or a batch in half precision would not be what was drawn.
        yield jnp.asarray(z, jnp.float32).astype(regime.dtype), y.astype(np.int32)


class Worst(NamedTuple):
    """The largest error of a quantity, as a share of its bound, in its unit, and where."""

    share: float
    error: float
    row: str

    def __str__(self) -> str:
        return f"{self.error:.3g}, {self.share:.2f} of its bound, at {self.row}"


class Truth:
    """What rows should come to, in float64; the promise holds where the loss is large enough."""

    def __init__(self, z: jax.Array, y: np.ndarray) -> None:
        self.z, self.at = f64(z), (np.arange(len(y)), y)
        row = oracle.row(self.z)
        self.loss = row.nll[self.at]
        self.gradient = row.p
        self.gradient[self.at] = row.p_minus_1[self.at]
        top = np.partition(self.z, -2, axis=-1)
        self.gap = top[:, -1] - top[:, -2]
        self.promised = self.loss >= SMALLEST

    def worst(self, share: np.ndarray, error: np.ndarray) -> Worst:
        i = int(np.argmax(np.where(self.promised, share, -1)))
        row = f"gap {self.gap[i]:.3g}, loss {self.loss[i]:.3g}"
        return Worst(float(share[i]), float(error[i]), row)


def worst_errors(fn: Callable[..., jax.Array], z: jax.Array, y: np.ndarray) -> dict[str, Worst]:
    """Each largest error; asserts that nothing is falsely zero or negative."""
    truth = Truth(z, y)
    value, gradients = value_and_gradients(fn, dict(logits=z, labels=jnp.asarray(y)), jit=as_users)
    loss, gradient = f64(value), f64(gradients["logits"])
    promised, wanted, at = truth.promised, truth.gradient, truth.at
    assert value.dtype == np.float32
    assert promised.mean() > 0.9
    assert np.all(loss[promised] > 0), "a false zero, or negative"
    assert np.all(loss >= 0)
    assert np.all(gradient[at][promised] < 0), "a false zero"
    # The gradient is rounded once more to a narrower dtype.
    narrow = 0.5 * ulp(wanted, z.dtype) if z.dtype != jnp.float32 else np.zeros(wanted.shape)
    in_loss = np.abs(loss - truth.loss) / ulp(truth.loss)
    in_label = np.maximum(np.abs(gradient[at] - wanted[at]) - narrow[at], 0) / ulp(wanted[at])
    seen = np.abs(wanted) >= SMALLEST
    seen[at] = False
    off = np.maximum(np.abs(gradient - wanted) - narrow, 0)
    in_others = np.divide(off, np.abs(wanted), out=np.zeros(off.shape), where=seen).max(-1)
    return {
        "loss": truth.worst(in_loss / (LOSS_ULP + truth.gap), in_loss),
        "label gradient": truth.worst(in_label / (LABEL_ULP + truth.gap), in_label),
        "other gradients": truth.worst(in_others / OTHERS, in_others),
    }


def measure(regime: Regime, fn: Callable[..., jax.Array], seeds: range) -> dict[str, Worst]:
    """The largest errors over some batches."""
    found = [worst_errors(fn, z, y) for z, y in batches(regime, seeds)]
    return {name: max(errors[name] for errors in found) for name in found[0]}
