"""Time and memory of the dense losses beside optax's, as ratios within one run.

Every contender is a process of its own, because programs that share one disturb each other, and
keeps the memory it frees, because whether the system takes 32 MB back is a lottery that costs five
times the loss; rounds are interleaved and their order rotates; what is shown is the median, over
rounds, of a contender's time divided by optax's in the same round.  optax runs twice: how far it
is from itself says what a difference means.  Each contender's loss and gradient are compared with
float64 in the same run, so that a speed-up cannot be a mistake.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxent.gradcheck import CONFIDENT_GAP
from jxent.losses import cross_entropy

REFERENCE = "optax"
ROUNDS = 15
SHAPES: tuple[tuple[int, int], ...] = ((8192, 1000), (1024, 32768))
KINDS = ("ordinary", "confident")


# Read by glibc when a process starts; elsewhere they do nothing.
_KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}


class Case(NamedTuple):
    """One program to time: the loss alone or with its gradient, on logits of one kind."""

    rows: int
    classes: int
    dtype: str
    kind: str
    gradient: bool


class Result(NamedTuple):
    """What one contender did in one case."""

    case: Case
    contender: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    temporary_bytes: int
    loss_error: float
    gradient_error: float


def _optax(z: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()


CONTENDERS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    REFERENCE: _optax,
    "optax again": _optax,
    "jxent": cross_entropy,
}


def cases() -> Iterator[Case]:
    """Both shapes, ordinary and confident rows: float32 with and without gradient, bfloat16."""
    for rows, classes in SHAPES:
        for kind in KINDS:
            for dtype, gradient in (("float32", False), ("float32", True), ("bfloat16", True)):
                yield Case(rows, classes, dtype, kind, gradient)


def measure(case: Case, rounds: int) -> list[Result]:
    """Every contender in one case."""
    os.environ.update(_KEEP_FREED_MEMORY)
    context = multiprocessing.get_context("spawn")
    processes, ends = [], {}
    for name in CONTENDERS:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, case, name), daemon=True)
        process.start()
        processes.append(process)
        ends[name] = ours
    try:
        facts = {name: end.recv() for name, end in ends.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ends}
        names = list(ends)
        for turn in range(rounds):
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                ends[name].send(True)
                seconds[name].append(ends[name].recv())
    finally:
        for process in processes:
            process.kill()
    reference = np.array(seconds[REFERENCE])
    results = []
    for name in names:
        low, middle, high = np.quantile(np.array(seconds[name]) / reference, (0.25, 0.5, 0.75))
        results.append(
            Result(
                case,
                name,
                1e3 * float(np.median(seconds[name])),
                float(middle),
                float(low),
                float(high),
                *facts[name],
            )
        )
    return results


def logits_and_labels(case: Case) -> tuple[jax.Array, jax.Array]:
    """Standard normal logits; in confident rows the label leads by `CONFIDENT_GAP`."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((case.rows, case.classes), dtype=np.float32)
    labels = rng.integers(case.classes, size=case.rows, dtype=np.int32)
    if case.kind == "confident":
        z[np.arange(case.rows), labels] = z.max(axis=-1) + np.float32(CONFIDENT_GAP)
    return jnp.asarray(z, case.dtype), jnp.asarray(labels)


def _serve(end: Connection, case: Case, name: str) -> None:
    z, labels = logits_and_labels(case)
    loss = CONTENDERS[name]
    program = jax.jit(jax.value_and_grad(loss) if case.gradient else loss)
    compiled = program.lower(z, labels).compile()
    analysis = compiled.memory_analysis()
    temporary = 0 if analysis is None else int(analysis.temp_size_in_bytes)
    out = jax.block_until_ready(compiled(z, labels))
    end.send((temporary, *_errors(case, z, labels, out)))
    while True:
        end.recv()
        begin = time.perf_counter()
        out = jax.block_until_ready(compiled(z, labels))
        seconds = time.perf_counter() - begin
        del out
        end.send(seconds)


def _errors(
    case: Case, z: jax.Array, labels: jax.Array, out: jax.Array | tuple[jax.Array, jax.Array]
) -> tuple[float, float]:
    """Relative error of the mean loss, and of the gradient by the labels' logits, from float64.

    In confident rows both are e^−40 or so, so an error of 1 is a false zero.
    """
    loss, gradient = out if isinstance(out, tuple) else (out, None)
    total, worst = 0.0, 0.0
    for i in range(0, case.rows, 256):
        wide = np.asarray(z[i : i + 256]).astype(np.float64)
        y = np.asarray(labels[i : i + 256])
        row = np.arange(len(y))
        rest = np.exp(wide - wide[row, y][:, None])
        rest[row, y] = 0
        S = rest.sum(axis=-1)
        total += float(np.log1p(S).sum())
        if gradient is not None:
            truth = -S / (1 + S) / case.rows
            got = np.asarray(gradient[i : i + 256]).astype(np.float64)[row, y]
            worst = max(worst, float(np.max(np.abs(got / truth - 1))))
    return abs(float(loss) * case.rows / total - 1), worst
