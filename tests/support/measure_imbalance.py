"""What remedies for rare classes change, and what losses of continuous values do: tables.

    python tests/support/measure_imbalance.py            print them
    python tests/support/measure_imbalance.py --write    put them into notebooks/tables/imbalance.md

A seed is a split of the rows, a first model and an order of batches.  They are the same for every
loss, so differences are taken seed by seed, and an interval is Student's t of those differences.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import generated_tables
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import RidgeCV

import jxent
from jxent import imbalance, regression, regularization

FILE = "imbalance.md"
SEEDS = range(20)
OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-2)

Params = dict[str, jax.Array]
Measured = dict[str, np.ndarray]  # by its name, each measure of every seed [S]

# One hidden layer, and many steps of it.


def init(key: jax.Array, features: int, hidden: int, outputs: int) -> Params:
    first, second = jax.random.split(key)
    return {
        "W1": jax.nn.initializers.he_normal()(first, (features, hidden)),
        "b1": jnp.zeros(hidden),
        "W2": jax.nn.initializers.lecun_normal()(second, (hidden, outputs)),
        "b2": jnp.zeros(outputs),
    }


@partial(jax.jit, static_argnums=(1, 2, 3))
def _first_models(seeds: jax.Array, features: int, hidden: int, outputs: int) -> Params:
    return jax.vmap(lambda seed: init(jax.random.key(seed), features, hidden, outputs))(seeds)


def first_models(seeds: Iterable[int], *sizes: int) -> Params:
    """The model that each seed starts from, with one axis more."""
    return _first_models(jnp.asarray(seeds), *sizes)


def mlp(params: Params, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]


def train(loss_fn: Callable, state: Any, x: jax.Array, y: jax.Array, batches: jax.Array) -> Any:
    """(parameters, optimiser's state) after one step for each batch of row numbers [steps, B]."""

    def step(state, rows):
        params, opt_state = state
        grads = jax.grad(loss_fn)(params, x[rows], y[rows])
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, state, batches)[0]


def batches_of(rng: np.random.Generator, rows: int, batch: int, steps: int) -> np.ndarray:
    """Row numbers [steps, batch], epoch by epoch, each of full batches of shuffled rows."""
    epochs = -(-steps // (rows // batch))
    each = [rng.permutation(rows)[: rows // batch * batch] for _ in range(epochs)]
    return np.concatenate(each).reshape(-1, batch)[:steps]


def of_seeds(split: Callable[[int], Any], seeds: Iterable[int]) -> Any:
    """The split of every seed, with one axis more."""
    return jax.tree.map(lambda *each: np.stack(each), *map(split, seeds))


# Rare classes: the digits, of which the odd ones are rare.

CLASSES = 10
RARE = np.arange(CLASSES) % 2 == 1
COUNTS = np.where(RARE, 6, 120)  # N_v in training
PRIOR = COUNTS / COUNTS.sum()
HELD_OUT = 50  # rows of each class, the rare ones too
STEPS, BATCH, HIDDEN = 1000, 64, 128


class Digits(NamedTuple):
    """Training rows at the imbalanced prior, held-out rows with all classes alike."""

    x: np.ndarray
    labels: np.ndarray
    held_out_x: np.ndarray
    held_out_labels: np.ndarray
    batches: np.ndarray


def digits(seed: int, steps: int = STEPS) -> Digits:
    x, labels = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels == v)) for v in range(CLASSES)]
    held_out = np.concatenate([rows[:HELD_OUT] for rows in order])
    rows = np.concatenate(
        [rows[HELD_OUT : HELD_OUT + n] for rows, n in zip(order, COUNTS, strict=True)]
    )
    batches = batches_of(rng, len(rows), BATCH, steps)
    return Digits(x[rows], labels[rows], x[held_out], labels[held_out], batches)


def plain(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    return jxent.cross_entropy(mlp(params, x), labels)


def weighted(params: Params, x: jax.Array, labels: jax.Array, *, weights: jax.Array) -> jax.Array:
    return jxent.cross_entropy(mlp(params, x), labels, class_weights=weights)


def adjusted(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    return jxent.cross_entropy(imbalance.logit_adjustment(mlp(params, x), COUNTS), labels)


def ldam(params: Params, x: jax.Array, labels: jax.Array, *, largest: float) -> jax.Array:
    rows = jxent.cross_entropy(mlp(params, x), labels, reduction="none")
    return imbalance.ldam(rows, labels, imbalance.ldam_margins(COUNTS, largest)).mean()


def focal(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    return jxent.softmax_focal_loss(mlp(params, x), labels, gamma=2.0).mean()


def unsure(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    penalty = regularization.confidence_penalty(mlp(params, x)).mean()
    return plain(params, x, labels) + 0.1 * penalty


PLAIN = "none: plain cross-entropy"
AFTERWARDS = "none, logits adjusted afterwards"
ADJUSTED = "logit adjustment"
REMEDIES = {
    PLAIN: plain,
    "balanced class weights": partial(weighted, weights=imbalance.balanced_class_weights(COUNTS)),
    "effective-number weights, β = 0.99": partial(
        weighted, weights=imbalance.effective_number_weights(COUNTS, 0.99)
    ),
    ADJUSTED: adjusted,
    "LDAM, margins to 0.5": partial(ldam, largest=0.5),
    "LDAM, margins to 5": partial(ldam, largest=5.0),
    "focal, γ = 2": focal,
    "gradient penalty of parameters, λ = 0.1": regularization.gradient_penalty(plain, 0.1),
    # Of a mean over a batch: λ is BATCH times that of a row.
    "gradient penalty of inputs, λ = 0.1 a row": regularization.gradient_penalty(
        plain, 0.1 * BATCH, argnums=1
    ),
    "confidence penalty, β = 0.1": unsure,
}


def held_out_logits(loss_fn: Callable, data: Digits, seeds: Iterable[int]) -> jax.Array:
    """z of the held-out rows [S, N, V], by the model that each seed ends with."""

    @jax.jit
    @jax.vmap
    def run(params: Params, data: Digits) -> jax.Array:
        state = train(loss_fn, (params, OPTIMIZER.init(params)), data.x, data.labels, data.batches)
        return mlp(state[0], data.held_out_x)

    return run(first_models(seeds, data.x.shape[-1], HIDDEN, CLASSES), data)


@jax.jit
@jax.vmap
def _summary(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Recall and cross-entropy of each class [V]."""
    empty = jxent.metrics.ClassificationMetrics.empty(classes=CLASSES)
    summary = empty.update(logits, labels).summary()
    recall = jnp.diagonal(summary.confusion) / jnp.sum(summary.confusion, axis=-1)
    return recall, summary.class_cross_entropy


def measures(logits: jax.Array, labels: np.ndarray) -> Measured:
    recall, nats = (np.asarray(x, np.float64) for x in _summary(logits, jnp.asarray(labels)))
    return {
        "recall of the rare": 100 * recall[:, RARE].mean(axis=1),
        "recall of the frequent": 100 * recall[:, ~RARE].mean(axis=1),
        "nats, prior of training": nats @ PRIOR,
        "nats, classes alike": nats.mean(axis=1),
    }


def rare_classes(
    seeds: Iterable[int] = SEEDS, steps: int = STEPS, remedies: Iterable[str] = REMEDIES
) -> dict[str, Measured]:
    """What each remedy gives on the held-out rows; the plain model's logits adjusted as well."""
    data, found = of_seeds(partial(digits, steps=steps), seeds), {}
    for name in remedies:
        logits = held_out_logits(REMEDIES[name], data, seeds)
        found[name] = measures(logits, data.held_out_labels)
        if name == PLAIN:
            after = imbalance.logit_adjustment(logits, COUNTS, tau=-1)
            found[AFTERWARDS] = measures(after, data.held_out_labels)
    return found


# Continuous targets: how far a disease went on in a year, in hundreds of points about 150.

POINTS, MIDDLE = 100.0, 150.0
TRAINING, VALIDATION = 266, 88  # rows, of 442; the rest are held out
EDGES = (-1.5, 2.5, 40)  # 0 to 400 points; the values go from 25 to 346
MIDDLES = regression.bin_centers(EDGES)
CHECKPOINTS, BETWEEN = 80, 20  # evaluated after every 20 steps
SMALL_BATCH, SMALL = 32, 64


class Diabetes(NamedTuple):
    """Rows to train on, to stop by, and held out."""

    x: np.ndarray
    y: np.ndarray
    validation_x: np.ndarray
    validation_y: np.ndarray
    held_out_x: np.ndarray
    held_out_y: np.ndarray
    batches: np.ndarray


def diabetes(seed: int, checkpoints: int = CHECKPOINTS) -> Diabetes:
    x, y = load_diabetes(return_X_y=True)
    # As shipped, Σ x² = 1 of each feature over all rows.
    x, y = (x * len(x) ** 0.5).astype(np.float32), ((y - MIDDLE) / POINTS).astype(np.float32)
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(x)), [TRAINING, TRAINING + VALIDATION])
    batches = batches_of(rng, TRAINING, SMALL_BATCH, checkpoints * BETWEEN)
    rows = [part for i in parts for part in (x[i], y[i])]
    return Diabetes(*rows, batches.reshape(checkpoints, BETWEEN, SMALL_BATCH))


class Continuous(NamedTuple):
    """How many outputs a model has, their loss, and the value that they stand for."""

    outputs: int
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    value: Callable[[jax.Array], jax.Array]


def first(z: jax.Array) -> jax.Array:
    return z[:, 0]


def expected(z: jax.Array) -> jax.Array:
    return regression.expected_value(z, MIDDLES)


def squared(z: jax.Array, y: jax.Array) -> jax.Array:
    return regression.gaussian_nll(z[:, 0], y).mean()


def gaussian(z: jax.Array, y: jax.Array) -> jax.Array:
    return regression.gaussian_nll(z[:, 0], y, log_variance=z[:, 1]).mean()


def hl_gauss(z: jax.Array, y: jax.Array) -> jax.Array:
    return jxent.cross_entropy(z, regression.hl_gauss(y, EDGES))


def two_hot(z: jax.Array, y: jax.Array) -> jax.Array:
    return jxent.cross_entropy(z, regression.two_hot(y, MIDDLES))


SQUARED = "squared error"
HL_GAUSS = "`hl_gauss`, 40 bins"
CONTINUOUS = {
    SQUARED: Continuous(1, squared, first),
    "`gaussian_nll` with `log_variance=`": Continuous(2, gaussian, first),
    HL_GAUSS: Continuous(MIDDLES.size, hl_gauss, expected),
    "`two_hot`, 40 values": Continuous(MIDDLES.size, two_hot, expected),
}
RIDGE = "scikit-learn's ridge regression"


def errors(value: Any, y: Any) -> Measured:
    """Of each seed's rows."""
    error = POINTS * (np.asarray(value, np.float64) - y)
    return {
        "root mean squared error": np.sqrt(np.mean(error**2, axis=-1)),
        "mean absolute error": np.mean(np.abs(error), axis=-1),
    }


def stopped(loss: Continuous, data: Diabetes, seeds: Iterable[int]) -> np.ndarray:
    """Held-out values [S, N] at the checkpoint that does best on the validation rows."""

    @jax.jit
    @jax.vmap
    def run(params: Params, data: Diabetes) -> tuple[jax.Array, jax.Array]:
        def loss_fn(params, x, y):
            return loss.loss(mlp(params, x), y)

        def checkpoint(state, batches):
            state = train(loss_fn, state, data.x, data.y, batches)
            valid = loss.value(mlp(state[0], data.validation_x))
            return state, (
                jnp.mean((valid - data.validation_y) ** 2),
                loss.value(mlp(state[0], data.held_out_x)),
            )

        return jax.lax.scan(checkpoint, (params, OPTIMIZER.init(params)), data.batches)[1]

    params = first_models(seeds, data.x.shape[-1], SMALL, loss.outputs)
    return kept(*run(params, data))


def kept(validation: Any, values: Any) -> np.ndarray:
    """Of each seed's checkpoints [S, K] the values [S, K, N] of the least error."""
    best = np.argmin(validation, axis=1)
    return np.asarray(values)[np.arange(len(best)), best]


def continuous(
    seeds: Iterable[int] = SEEDS,
    checkpoints: int = CHECKPOINTS,
    losses: Iterable[str] = CONTINUOUS,
) -> dict[str, Measured]:
    """The held-out errors by each loss, and those of a linear model."""
    data = of_seeds(partial(diabetes, checkpoints=checkpoints), seeds)
    found = {
        name: errors(stopped(CONTINUOUS[name], data, seeds), data.held_out_y) for name in losses
    }
    ridge = [
        RidgeCV(np.logspace(-2, 3, 20)).fit(x, y).predict(held_out)
        for x, y, held_out in zip(data.x, data.y, data.held_out_x, strict=True)
    ]
    return found | {RIDGE: errors(ridge, data.held_out_y)}


# Tables.


class Interval(NamedTuple):
    """A mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float

    @property
    def real(self) -> bool:
        """0 is outside."""
        return abs(self.mean) > self.half


def interval(x: np.ndarray) -> Interval:
    n = len(x)
    half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / n**0.5
    return Interval(float(x.mean()), float(half))


def cell(measure: str, x: np.ndarray, base: np.ndarray | None) -> str:
    """The mean, or that of the differences from the base: bold where they are real."""
    places, sign = 4 if "nats" in measure else 1, "" if base is None else "+"
    found = interval(x if base is None else x - base)
    text = f"{found.mean:{sign}.{places}f} ± {found.half:.{places}f}".replace("-", "−")
    return text if base is None or not found.real else f"**{text}**"


def table(found: dict[str, Measured], title: str) -> str:
    """The first row as it is, the others' differences from it."""
    first, *_ = found
    names = list(found[first])
    lines = [f"| {' | '.join([title, *names])} |", "|---" * (1 + len(names)) + "|"]
    for row, measured in found.items():
        base = {} if row == first else found[first]
        cells = [cell(name, measured[name], base.get(name)) for name in names]
        lines.append(f"| {' | '.join([row, *cells])} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Each table by the name of its marks."""
    return {
        "remedies": table(rare_classes(), "remedy"),
        "continuous": table(continuous(), "loss"),
        "remedies with": generated_tables.versions("jax", "optax", "scikit-learn"),
    }


if __name__ == "__main__":
    generated_tables.main(tables, FILE)
