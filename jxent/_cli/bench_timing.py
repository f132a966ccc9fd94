"""Time contenders in interleaved rounds, and divide by the reference's time in the same round.

Rounds are interleaved and their order rotates, so that a machine that slows down slows every
contender down.  A ratio is the median, over rounds, of a contender's time divided by the
reference's in the same round.
"""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

REFERENCE = "optax"


def optax_cross_entropy(z: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the reference's mean loss of logits."""
    import optax  # only a benchmark needs it here

    return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()


def time_once(run: Callable[[], object]) -> float:
    """Time one run in seconds; freeing its output is not in them."""
    start = time.perf_counter()
    output = run()
    seconds = time.perf_counter() - start
    del output
    return seconds


def time_rounds(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time every contender once a round; `advance` is called after each round."""
    names = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            seconds[name].append(timers[name]())
        advance()
    return seconds


def milliseconds(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1e3 * float(np.median(seconds))


def ratio_quartiles(own: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Divide times by those of the same round; returns the median ratio and its quartiles."""
    ratios = np.array(own) / np.array(reference)
    low, middle, high = map(float, np.quantile(ratios, (0.25, 0.5, 0.75)))
    return middle, low, high
