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
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxent._cli.gradcheck import CONFIDENT_GAP
from jxent._losses.cross_entropy import cross_entropy

REFERENCE = "optax"
ROUNDS = 15
SHAPES: tuple[tuple[int, int], ...] = ((8192, 1000), (1024, 32768))
KINDS = ("ordinary", "confident")


# Read by glibc when a process starts, and by JAX on a GPU; elsewhere they do nothing.
_OF_A_PROCESS = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


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
    loss_error: float | None
    gradient_error: float | None


def _optax(z: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()


def _copy(z: jax.Array, _: jax.Array) -> jax.Array:
    return -z


# A copy reads and writes the logits once: what memory alone costs.
COPY = "copy"
CONTENDERS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    REFERENCE: _optax,
    "optax again": _optax,
    "jxent": cross_entropy,
    COPY: _copy,
}


def cases() -> Iterator[Case]:
    """Both shapes, ordinary and confident rows: float32 with and without gradient, bfloat16."""
    for rows, classes in SHAPES:
        for kind in KINDS:
            for dtype, gradient in (("float32", False), ("float32", True), ("bfloat16", True)):
                yield Case(rows, classes, dtype, kind, gradient)


def measure(case: Case, rounds: int) -> list[Result]:
    """Every contender in one case."""
    with ExitStack() as stack:
        # A TPU belongs to one process.
        alone = jax.default_backend() != "tpu"
        start = partial(_in_process, stack) if alone else _here
        contenders = {name: start(case, name) for name in CONTENDERS}
        facts = {name: contender.facts() for name, contender in contenders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for turn in range(rounds):
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                seconds[name].append(contenders[name].time())
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


Facts = tuple[int, float | None, float | None]


class _Contender(NamedTuple):
    facts: Callable[[], Facts]
    time: Callable[[], float]


def _here(case: Case, name: str) -> _Contender:
    """A contender ready to be timed."""
    z, labels = logits_and_labels(case)
    loss = CONTENDERS[name]
    program = jax.value_and_grad(loss) if case.gradient and name != COPY else loss
    compiled = jax.jit(program).lower(z, labels).compile()
    analysis = compiled.memory_analysis()
    temporary = 0 if analysis is None else int(analysis.temp_size_in_bytes)
    out = jax.block_until_ready(compiled(z, labels))
    errors = (None, None) if name == COPY else _errors(case, z, labels, out)
    del out

    def time_() -> float:
        begin = time.perf_counter()
        out = jax.block_until_ready(compiled(z, labels))
        seconds = time.perf_counter() - begin
        del out
        return seconds

    return _Contender(lambda: (temporary, *errors), time_)


def _in_process(stack: ExitStack, case: Case, name: str) -> _Contender:
    """The same in a process of its own, until the stack closes."""
    os.environ.update(_OF_A_PROCESS)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, case, name), daemon=True)
    process.start()
    stack.callback(process.kill)

    def ask(what: str) -> Any:
        ours.send(what)
        return ours.recv()

    return _Contender(partial(ask, "facts"), partial(ask, "time"))


def _serve(end: Connection, case: Case, name: str) -> None:
    contender = _here(case, name)
    while True:
        end.send(getattr(contender, end.recv())())


def logits_and_labels(case: Case) -> tuple[jax.Array, jax.Array]:
    """Standard normal logits; in confident rows the label leads by `CONFIDENT_GAP`."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((case.rows, case.classes), dtype=np.float32)
    labels = rng.integers(case.classes, size=case.rows, dtype=np.int32)
    if case.kind == "confident":
        z[np.arange(case.rows), labels] = z.max(axis=-1) + np.float32(CONFIDENT_GAP)
    return jnp.asarray(z, case.dtype), jnp.asarray(labels)


def _errors(
    case: Case, z: jax.Array, labels: jax.Array, out: jax.Array | tuple[jax.Array, jax.Array]
) -> tuple[float, float | None]:
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
    loss_error = abs(float(loss) * case.rows / total - 1)
    return loss_error, None if gradient is None else worst
