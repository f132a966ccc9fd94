"""Measure time and memory of the dense losses beside optax's, as ratios within one run.

Every contender is a process of its own, because programs that share one disturb each other, and
keeps the memory it frees: whether the system takes 32 MB back is chance, and costs five times the
loss.  optax runs twice: its ratio to itself is the noise of every other ratio.  Each contender's
loss and gradient are compared with float64 in the same run, so that a speed-up cannot be a mistake.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jxent._cli.bench_timing import (
    REFERENCE,
    milliseconds,
    optax_cross_entropy,
    ratio_quartiles,
    time_once,
    time_rounds,
)
from jxent._cli.gradcheck import logits_and_labels
from jxent._losses.cross_entropy import cross_entropy

DENSE_ROUNDS = 15
SHAPES: tuple[tuple[int, int], ...] = ((8192, 1000), (2048, 8192), (1024, 32768), (1024, 50257))
# Kind of rows, dtype, with gradient.
PROGRAMS = (
    ("trained", "float32", False),
    ("trained", "float32", True),
    ("ordinary", "float32", True),
    ("trained", "bfloat16", True),
)

# Read by glibc when a process starts, and by JAX on a GPU; elsewhere they do nothing.
_PROCESS_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class DenseCase(NamedTuple):
    """One program to time: the loss alone or with its gradient, on logits of one kind."""

    rows: int
    classes: int
    dtype: str
    kind: str
    gradient: bool


class DenseResult(NamedTuple):
    """The figures of one contender in one case."""

    case: DenseCase
    contender: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    temporary_bytes: int
    loss_error: float | None
    gradient_error: float | None


def _vmapped(z: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the mean of losses of single examples, as Equinox users write it."""
    return jnp.mean(jax.vmap(cross_entropy)(z, labels))


def _copy(z: jax.Array, _: jax.Array) -> jax.Array:
    return -z


# A copy reads and writes the logits once: the cost of memory alone.
COPY = "copy"
CONTENDERS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    REFERENCE: optax_cross_entropy,
    f"{REFERENCE} again": optax_cross_entropy,
    "jxent": cross_entropy,
    "jxent vmap": _vmapped,
    COPY: _copy,
}


def dense_cases() -> Iterator[DenseCase]:
    """Yield every program in every shape."""
    for rows, classes in SHAPES:
        for kind, dtype, gradient in PROGRAMS:
            yield DenseCase(rows, classes, dtype, kind, gradient)


def measure_dense(case: DenseCase, rounds: int) -> list[DenseResult]:
    """Measure every contender in one case."""
    with ExitStack() as stack:
        # A TPU belongs to one process.
        alone = jax.default_backend() != "tpu"
        start = partial(_start_process, stack) if alone else _start_here
        contenders = {name: start(case, name) for name in CONTENDERS}
        facts = {name: contender.facts() for name, contender in contenders.items()}
        seconds = time_rounds({name: c.time for name, c in contenders.items()}, rounds)
    return [
        DenseResult(
            case,
            name,
            milliseconds(own),
            *ratio_quartiles(own, seconds[REFERENCE]),
            *facts[name],
        )
        for name, own in seconds.items()
    ]


Facts = tuple[int, float | None, float | None]  # temporary bytes, loss error, gradient error


class _Contender(NamedTuple):
    facts: Callable[[], Facts]
    time: Callable[[], float]


def _start_here(case: DenseCase, name: str) -> _Contender:
    """Compile and check a contender in this process."""
    z, labels = dense_inputs(case)
    loss = CONTENDERS[name]
    program = jax.value_and_grad(loss) if case.gradient and name != COPY else loss
    compiled = jax.jit(program).lower(z, labels).compile()
    analysis = compiled.memory_analysis()
    temporary = 0 if analysis is None else int(analysis.temp_size_in_bytes)

    def run() -> Any:
        return jax.block_until_ready(compiled(z, labels))

    output = run()  # the first run is not timed
    errors = (None, None) if name == COPY else dense_errors(case, z, labels, output)
    return _Contender(lambda: (temporary, *errors), partial(time_once, run))


def _start_process(stack: ExitStack, case: DenseCase, name: str) -> _Contender:
    """Start a contender in a process of its own, which ends when the stack closes."""
    os.environ.update(_PROCESS_ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, case, name), daemon=True)
    process.start()
    stack.callback(process.kill)

    def request(attribute: str) -> Any:
        here.send(attribute)
        return here.recv()

    return _Contender(partial(request, "facts"), partial(request, "time"))


def _serve(end: Connection, case: DenseCase, name: str) -> None:
    """Answer requests for a contender's facts and times, until the process is killed."""
    contender = _start_here(case, name)
    while True:
        end.send(getattr(contender, end.recv())())


def dense_inputs(case: DenseCase) -> tuple[jax.Array, jax.Array]:
    """Draw a case's logits, rounded to its dtype, and labels."""
    z, labels = logits_and_labels(case.rows, case.classes, case.kind, seed=0)
    return jnp.asarray(z, case.dtype), jnp.asarray(labels)


def dense_errors(
    case: DenseCase, z: jax.Array, labels: jax.Array, out: jax.Array | tuple[jax.Array, jax.Array]
) -> tuple[float, float | None]:
    """Compare the mean loss, and the gradient by the labels' logits, with float64, relatively.

    In confident rows both are as small as e^−gap, so an error of 1 is a false zero.
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
            exact = -S / (1 + S) / case.rows
            got = np.asarray(gradient[i : i + 256]).astype(np.float64)[row, y]
            worst = max(worst, float(np.max(np.abs(got / exact - 1))))
    loss_error = abs(float(loss) * case.rows / total - 1)
    return loss_error, None if gradient is None else worst
