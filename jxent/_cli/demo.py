"""Train two classifiers on real data, and compare their cross-entropies.

    softmax regression    z = x W + b
    MLP                   z = relu(x W₁ + b₁) W₂ + b₂

trained on the same batches by `train`; `make_step` is the training step to copy.  The held-out log
loss −mean log p_y in nats, without weights or smoothing, decides, by the paired difference of its
rows in `jxent.selection`.  Beside it stands each model's calibration, with and without a
temperature.

optax is imported where it is used: other verbs start without it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jxent import imbalance, metrics, selection
from jxent._cli.common import CommandError
from jxent._cli.scores import Score, score
from jxent._losses.cross_entropy import cross_entropy
from jxent._typing import ArrayLike
from jxent.selection.comparison import Comparison

DATASETS = ("digits", "wine", "breast_cancer", "iris")
HELD_OUT_FRACTION = 0.25
BATCH = 32
HIDDEN = 128
CONFIDENCE = 0.95
AGREEMENT = 1e-6  # nats between jxent's log loss and scikit-learn's

Params = dict[str, jax.Array]
Features = Float[Array, "N D"]
ClassLabels = Int[Array, " N"]
Step = Callable[[Params, Any, Features, ClassLabels], tuple[Params, Any, jax.Array, jax.Array]]


class Data(NamedTuple):
    """Standardised features [N, D] and labels [N], for training and held out."""

    x: np.ndarray
    labels: np.ndarray
    held_out_x: np.ndarray
    held_out_labels: np.ndarray
    classes: int


class Classifier(NamedTuple):
    """A model: its parameters for D features and V classes, its logits, its rates for AdamW."""

    name: str
    init: Callable[[jax.Array, int, int], Params]
    apply: Callable[[Params, Features], Float[Array, "N V"]]
    learning_rate: float
    weight_decay: float


class Epoch(NamedTuple):
    """One epoch: the mean of its batches while training, then the held-out log loss."""

    train_loss: float
    train_accuracy: float
    held_out_log_loss: float


class Evaluation(NamedTuple):
    """A trained model on held-out rows: logits [N, V], losses and figures, scikit-learn's loss.

    `clipped` rows have a p_y below the float64 epsilon, which scikit-learn raises to it.
    `tempered` is of logits divided by the temperature that fits the other half of the rows.
    """

    logits: np.ndarray
    score: Score
    sklearn_log_loss: float
    clipped: int
    temperatures: tuple[float, float]
    tempered: metrics.Summary

    @property
    def log_loss(self) -> float:
        """The mean loss in nats."""
        return float(self.score.summary.log_loss)


class Config(NamedTuple):
    """The options of a run; the held-out figures are never weighted or smoothed."""

    dataset: str = "digits"
    epochs: int = 40
    seed: int = 0
    label_smoothing: float = 0.0
    class_weights: str | None = None


class Result(NamedTuple):
    """Every model's history and evaluation, and their comparison."""

    histories: dict[str, list[Epoch]]
    evaluations: dict[str, Evaluation]
    comparison: Comparison
    class_frequencies_log_loss: float


class MismatchError(CommandError):
    """Two computations of one number came out different."""


def load(name: str, *, seed: int) -> Data:
    """Load one of `DATASETS`, split by class and standardised by the training rows' statistics."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    x, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, held_out_x, labels, held_out_labels = train_test_split(
        x, labels, test_size=HELD_OUT_FRACTION, stratify=labels, random_state=seed
    )
    scaler = StandardScaler().fit(x)
    return Data(
        x=scaler.transform(x).astype(np.float32),
        labels=labels.astype(np.int32),
        held_out_x=scaler.transform(held_out_x).astype(np.float32),
        held_out_labels=held_out_labels.astype(np.int32),
        classes=int(labels.max()) + 1,
    )


def _linear_init(key: jax.Array, features: int, classes: int) -> Params:
    return {"W": jnp.zeros((features, classes)), "b": jnp.zeros(classes)}


def _linear_apply(params: Params, x: Features) -> Float[Array, "N V"]:
    return x @ params["W"] + params["b"]


def _mlp_init(key: jax.Array, features: int, classes: int) -> Params:
    # The last layer starts at zero: the first prediction is uniform, at log V nats.
    return {
        "W1": jax.nn.initializers.he_normal()(key, (features, HIDDEN)),
        "b1": jnp.zeros(HIDDEN),
        "W2": jnp.zeros((HIDDEN, classes)),
        "b2": jnp.zeros(classes),
    }


def _mlp_apply(params: Params, x: Features) -> Float[Array, "N V"]:
    return jax.nn.relu(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]


# The MLP can memorise 1000 digits: it is decayed harder, and learns more slowly.
MODELS = (
    Classifier(
        "softmax regression", _linear_init, _linear_apply, learning_rate=1e-2, weight_decay=0.03
    ),
    Classifier("MLP", _mlp_init, _mlp_apply, learning_rate=3e-3, weight_decay=0.3),
)


def make_step(
    model: Classifier,
    optimizer: Any,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
) -> Step:
    """Make the compiled training step of an optax optimizer: it replaces the old parameters."""
    import optax

    def loss_fn(params: Params, x: Features, labels: ClassLabels) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, x)
        # Weights of rows: those of classes would weigh the smoothing too, for the rare ones.
        weights = None if class_weights is None else jnp.asarray(class_weights)[labels]
        loss = cross_entropy(logits, labels, row_weights=weights, label_smoothing=label_smoothing)
        return loss, logits

    @partial(jax.jit, donate_argnames=("params", "opt_state"))
    def step(
        params: Params, opt_state: Any, x: Features, labels: ClassLabels
    ) -> tuple[Params, Any, jax.Array, jax.Array]:
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, x, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return params, opt_state, loss, accuracy

    return step


def train(
    model: Classifier,
    data: Data,
    *,
    epochs: int,
    seed: int,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[Params, list[Epoch]]:
    """Train a model; returns the last parameters and every epoch's figures.

    The batches depend on `seed` alone.
    """
    import optax

    rng = np.random.default_rng(seed)
    optimizer = optax.adamw(model.learning_rate, weight_decay=model.weight_decay)
    step = make_step(model, optimizer, label_smoothing=label_smoothing, class_weights=class_weights)
    params = model.init(jax.random.key(seed), data.x.shape[-1], data.classes)
    opt_state = optimizer.init(params)
    history = []
    for _ in range(epochs):
        figures = []
        for x, labels in _batches(rng, data):
            params, opt_state, *figure = step(params, opt_state, x, labels)
            figures.append(figure)
        loss, accuracy = np.mean(jax.device_get(figures), axis=0)
        rows = row_log_losses(held_out_logits(model, params, data), data.held_out_labels)
        epoch = Epoch(float(loss), float(accuracy), float(rows.mean()))
        history.append(epoch)
        on_epoch(epoch)
    return params, history


def held_out_logits(model: Classifier, params: Params, data: Data) -> Float[Array, "N V"]:
    """Compute the logits of every held-out row."""
    return model.apply(params, jnp.asarray(data.held_out_x))


def row_log_losses(logits: Float[Array, "N V"], labels: np.ndarray) -> np.ndarray:
    """Compute −log p_y of each row [N], in float64 so that their mean adds no rounding."""
    return np.asarray(cross_entropy(logits, labels, reduction="none"), np.float64)


def evaluate(model: Classifier, params: Params, data: Data) -> Evaluation:
    """Compute the held-out figures, and check the log loss against scikit-learn's.

    Raises:
        MismatchError: the two log losses differ by more than `AGREEMENT`.
    """
    from scipy.special import softmax
    from sklearn.metrics import log_loss

    z = np.asarray(held_out_logits(model, params, data), np.float64)
    labels = data.held_out_labels
    ours = score(z, labels)
    most = -np.log(np.finfo(np.float64).eps)
    clipped = np.minimum(ours.rows, most)
    theirs = float(log_loss(labels, softmax(z, axis=-1), labels=np.arange(data.classes)))
    if not abs(clipped.mean() - theirs) <= AGREEMENT:
        raise MismatchError(
            f"{model.name}: held-out log loss: expected scikit-learn's {theirs:.9f} nats "
            f"to {AGREEMENT:.0e}, got {clipped.mean():.9f}"
        )
    temperatures, tempered = temper(z, labels)
    return Evaluation(
        logits=z,
        score=ours,
        sklearn_log_loss=theirs,
        clipped=int(np.sum(ours.rows > most)),
        temperatures=temperatures,
        tempered=score(tempered, labels).summary,
    )


def temper(z: np.ndarray, labels: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """Divide each half of the rows by the T that fits the other half best; returns T and logits."""
    even = np.arange(len(labels)) % 2 == 0
    of_even, of_odd = (
        float(metrics.fit_temperature(z, labels, where=half)) for half in (even, ~even)
    )
    return (of_even, of_odd), z / np.where(even, of_odd, of_even)[:, None]


def class_frequencies_log_loss(data: Data) -> float:
    """Compute the held-out log loss of predicting the training classes' frequencies."""
    frequencies = np.bincount(data.labels, minlength=data.classes) / len(data.labels)
    return float(-np.log(frequencies[data.held_out_labels]).mean())


def train_and_compare(
    config: Config, data: Data, *, on_epoch: Callable[[str, Epoch], None] = lambda name, epoch: None
) -> Result:
    """Train and evaluate every model, and compare the two."""
    weights = None
    if config.class_weights == "balanced":
        counts = np.bincount(data.labels, minlength=data.classes)
        weights = imbalance.balanced_class_weights(counts)
    histories, evaluations = {}, {}
    for model in MODELS:
        params, histories[model.name] = train(
            model,
            data,
            epochs=config.epochs,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            class_weights=weights,
            on_epoch=partial(on_epoch, model.name),
        )
        evaluations[model.name] = evaluate(model, params, data)
    rows = {name: e.score.rows for name, e in evaluations.items()}
    comparison = selection.compare(rows, confidence=CONFIDENCE, seed=config.seed)
    return Result(histories, evaluations, comparison, class_frequencies_log_loss(data))


def _batches(rng: np.random.Generator, data: Data) -> Iterator[tuple[Features, ClassLabels]]:
    """Yield one shuffled epoch of full batches: a ragged last one would compile the step again."""
    order = rng.permutation(len(data.labels))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        yield jnp.asarray(data.x[rows]), jnp.asarray(data.labels[rows])
