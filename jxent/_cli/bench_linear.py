"""Measure time and memory of a projection's cross-entropy, with gradients, beside its peers.

All contenders run in one process.  Shown are a contender's time divided by that of
`optax(hidden @ head)`, and the time of the bare products (h·w, dz·wᵀ, hᵀ·dz in the operands' dtype)
divided by its own: the share of the ceiling.  optax runs twice: its ratio to itself is the noise of
every other ratio.  Each contender's loss and gradients are compared with float64 in the same run,
so that a speed-up cannot be a mistake.  A contender that would not fit into memory is not started.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
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
from jxent._compat import enable_x64
from jxent._linear.api import linear_cross_entropy
from jxent._linear.implementations import IMPLEMENTATIONS

PEERS = ("tokamax", "torch")
CEILING = "three products"
LINEAR_ROUNDS = 5
MICRO_BATCH = 512  # rows that the checkpointed loop holds logits of
ROWS_CHECKED = 256  # rows of float64 logits held while checking

# The error from float64 beyond which a contender is marked wrong: of the loss, relative, and of a
# gradient beside its largest entry.
ERROR_BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 5e-2), "float16": (1e-2, 5e-2)}


class LinearCase(NamedTuple):
    """The sizes of a head and of a batch, and the operands' dtype."""

    rows: int
    features: int
    classes: int
    dtype: str = "float32"


# The heads of GPT-2, Gemma 2 (2B) and Llama 3 (8B).
_GPT2, _GEMMA, _LLAMA = (768, 50257), (2304, 256000), (4096, 128256)
_SMALL_HEAD = (512, 32768)
PRESETS: dict[str, tuple[LinearCase, ...]] = {
    "cpu": (
        LinearCase(2048, *_SMALL_HEAD),
        LinearCase(1024, *_GPT2),
        LinearCase(2048, *_SMALL_HEAD, "bfloat16"),
    ),
    "gpu": tuple(LinearCase(8192, *head, "bfloat16") for head in (_GPT2, _LLAMA, _GEMMA)),
    "tpu": tuple(LinearCase(4096, *head, "bfloat16") for head in (_GPT2, _LLAMA, _GEMMA)),
    "full": tuple(
        LinearCase(8192, *head, dtype)
        for head in (_SMALL_HEAD, _GPT2, _LLAMA, _GEMMA)
        for dtype in ("float32", "bfloat16")
    ),
}
# Doubled twice along each axis, to see how time and memory grow beyond one chunk.
GROWTH_CASES = {
    "cpu": LinearCase(2048, 64, 16384),
    "accelerator": LinearCase(8192, 2048, 65536, "bfloat16"),
}
GROWTH_FACTOR = 4


class LinearResult(NamedTuple):
    """The figures of one contender in one case; None where there is none, and `note` says why."""

    case: LinearCase
    contender: str
    milliseconds: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    of_ceiling: float | None = None
    temporary_bytes: int | None = None
    compile_seconds: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""

    @property
    def wrong(self) -> bool:
        """True if loss or gradients are further from float64 than rounding explains."""
        if self.loss_error is None or self.gradient_error is None:
            return False
        loss, gradient = ERROR_BOUNDS[self.case.dtype]
        return not (self.loss_error <= loss and self.gradient_error <= gradient)


class Growth(NamedTuple):
    """Exponents e of time ∝ Nᵉ and so on, from one size to `GROWTH_FACTOR` times it."""

    case: LinearCase
    contender: str
    time_rows: float
    time_classes: float
    memory_rows: float
    memory_classes: float


class ExactGradients(NamedTuple):
    """Loss and gradients in float64, on the device that computed them."""

    loss: float
    dh: jax.Array
    dw: jax.Array


Output = tuple[Any, tuple[Any, Any]]


class Runner(NamedTuple):
    """A program ready to be timed."""

    run: Callable[[], Output]
    needed_bytes: int
    temporary_bytes: int | None
    compile_seconds: float


def contenders() -> dict[str, Callable[[LinearCase], Runner]]:
    """Return the contenders whose packages are installed, the reference first."""
    found: dict[str, Callable[[LinearCase], Runner]] = {REFERENCE: _in_jax(_optax_of_product)}
    found[f"{REFERENCE} again"] = _in_jax(_optax_of_product)
    found["optax, checkpointed loop"] = _in_jax(_checkpointed_loop)
    for name in IMPLEMENTATIONS:
        found[f"jxent {name}"] = _in_jax(partial(linear_cross_entropy, implementation=name))
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = _in_jax(_tokamax)
    if importlib.util.find_spec("torch"):
        found["torch"] = partial(_in_torch, "cross_entropy")
        found["torch linear_cross_entropy"] = partial(_in_torch, "linear_cross_entropy")
    found[CEILING] = _ceiling
    return found


def _optax_of_product(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    return optax_cross_entropy(h @ w, y)


def _checkpointed_loop(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    import optax

    row = jax.checkpoint(
        lambda row: optax.softmax_cross_entropy_with_integer_labels(row[0] @ w, row[1])
    )
    return jax.lax.map(row, (h, y), batch_size=min(MICRO_BATCH, len(y))).mean()


def _tokamax(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # or tokamax would read this program's own flags
    return tokamax.linear_softmax_cross_entropy_loss(h, y, w, reduction="mean")


def operands(case: LinearCase) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw hidden states and a head whose logits are standard normal, and labels."""
    h, w, y = jax.random.split(jax.random.key(0), 3)
    scale = case.features**-0.5
    hidden = jax.random.normal(h, (case.rows, case.features)) * scale
    head = jax.random.normal(w, (case.features, case.classes))
    labels = jax.random.randint(y, (case.rows,), 0, case.classes, jnp.int32)
    return hidden.astype(case.dtype), head.astype(case.dtype), labels


def _compile(function: Callable[..., Output], case: LinearCase) -> Runner:
    shapes = jax.eval_shape(partial(operands, case))
    start = time.perf_counter()
    # float32 means float32, on a GPU and a TPU too; torch does so by itself.
    with jax.default_matmul_precision("highest" if case.dtype == "float32" else "default"):
        program = jax.jit(function).lower(*shapes).compile()
    seconds = time.perf_counter() - start
    analysis = program.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    total = sum(x.size * x.dtype.itemsize for x in shapes)
    needed = 2 * total + (temporary or 0)
    given: list[Any] = []  # made by the first run: a program that does not fit makes none

    def run() -> Output:
        if not given:
            given.extend(operands(case))
        return jax.block_until_ready(program(*given))

    return Runner(run, needed, temporary, seconds)


def _in_jax(loss: Callable[..., jax.Array]) -> Callable[[LinearCase], Runner]:
    return partial(_compile, jax.value_and_grad(loss, (0, 1)))


def _ceiling(case: LinearCase) -> Runner:
    def products(h: jax.Array, w: jax.Array, _: jax.Array) -> Output:
        z = h @ w
        return z[0, 0], (z @ w.T, h.T @ z)

    return _compile(products, case)


def _in_torch(name: str, case: LinearCase) -> Runner:
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    if name == "linear_cross_entropy" and not hasattr(torch.nn.functional, name):
        raise NotImplementedError("this torch has none")
    given: list[Any] = []

    def run() -> Output:
        if not given:
            h, w, y = operands(case)
            moved = lambda x: torch.tensor(np.asarray(x.astype(jnp.float32))).to(device)  # noqa: E731
            kind = getattr(torch, case.dtype)
            given.extend(moved(x).to(kind).requires_grad_() for x in (h, w.T))
            given.append(torch.tensor(np.asarray(y), device=device).long())
        h, w, y = given
        h.grad = w.grad = None
        functional = torch.nn.functional
        if name == "cross_entropy":
            loss = functional.cross_entropy(functional.linear(h, w), y)
        else:
            loss = functional.linear_cross_entropy(h, w, y)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss, (h.grad, w.grad.T)

    itemsize = jnp.dtype(case.dtype).itemsize
    weights = (case.rows + case.classes) * case.features
    return Runner(run, itemsize * (2 * weights + 3 * case.rows * case.classes), None, 0.0)


def available_bytes() -> int | None:
    """Return the free memory of the device; None where it is not known."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0)) or None
    try:
        with open("/proc/meminfo") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(kilobytes)
    except (OSError, StopIteration):
        return None


def measure_linear(
    case: LinearCase, rounds: int, advance: Callable[[], None]
) -> list[LinearResult]:
    """Measure every contender in one case; `advance` is called `linear_steps(rounds)` times."""
    exact = cache(partial(exact_gradients, case))  # not computed where no contender fits
    results, runners = {}, {}
    for name, build in contenders().items():
        advance()
        results[name], runner = _start_contender(case, name, build, exact)
        if runner is not None:
            runners[name] = runner
    seconds = _time_runners(runners, rounds, advance)
    return [_add_times(result, seconds) for result in results.values()]


def linear_steps(rounds: int) -> int:
    """Count how often `measure_linear` reports progress."""
    return len(contenders()) + rounds


def _start_contender(
    case: LinearCase,
    name: str,
    build: Callable[[LinearCase], Runner],
    exact: Callable[[], ExactGradients],
) -> tuple[LinearResult, Runner | None]:
    """Compile, run and check one contender; no runner where there is nothing to time."""
    result = LinearResult(case, name)
    try:
        runner = build(case)
    except Exception as error:  # a peer may raise anything
        return result._replace(note=f"refused: {_first_line(error)}"), None
    result = result._replace(
        temporary_bytes=runner.temporary_bytes, compile_seconds=runner.compile_seconds
    )
    free = available_bytes()
    if free is not None and runner.needed_bytes > 0.9 * free:
        gigabytes = f"{runner.needed_bytes / 1e9:.1f} GB of {free / 1e9:.1f}"
        return result._replace(note=f"does not fit: needs {gigabytes}"), None
    try:
        output = runner.run()
    except Exception as error:
        return result._replace(note=f"failed: {_first_line(error)}"), None
    if name != CEILING:
        loss_error, gradient_error = linear_errors(output, exact())
        result = result._replace(loss_error=loss_error, gradient_error=gradient_error)
    return result, runner


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def _time_runners(
    runners: dict[str, Runner], rounds: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    timers = {name: partial(time_once, runner.run) for name, runner in runners.items()}
    return time_rounds(timers, rounds, advance)


def _add_times(result: LinearResult, seconds: dict[str, list[float]]) -> LinearResult:
    """Add a contender's time and its ratios, if it was timed."""
    own = seconds.get(result.contender)
    if own is None:
        return result
    result = result._replace(milliseconds=milliseconds(own))
    if REFERENCE in seconds:
        ratio, low, high = ratio_quartiles(own, seconds[REFERENCE])
        result = result._replace(ratio=ratio, ratio_low=low, ratio_high=high)
    if CEILING in seconds:
        of_ceiling, _, _ = ratio_quartiles(seconds[CEILING], own)
        result = result._replace(of_ceiling=of_ceiling)
    return result


def exact_gradients(case: LinearCase) -> ExactGradients:
    """Compute loss and gradients of `operands` in float64, by dz = (p − e_y)/N, in row chunks."""
    rounded = [np.asarray(x) for x in operands(case)]

    @partial(jax.jit, donate_argnums=(0, 1))
    def add(
        loss: jax.Array, dw: jax.Array, h: jax.Array, w: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        h, w = h.astype(jnp.float64), w.astype(jnp.float64)
        z = h @ w
        lse = jax.nn.logsumexp(z, axis=-1)
        e_y = y[:, None] == jnp.arange(case.classes)[None, :]
        dz = (jnp.exp(z - lse[:, None]) - e_y) / case.rows
        z_y = jnp.take_along_axis(z, y[:, None], -1)[:, 0]
        return loss + jnp.sum(lse - z_y) / case.rows, dw + h.T @ dz, dz @ w.T

    # TPUs have no float64.
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else jax.devices()[0]
    with enable_x64(), jax.default_device(device):
        h, w, y = map(jnp.asarray, rounded)
        loss, dw, dh = jnp.zeros(()), jnp.zeros(w.shape), []
        for i in range(0, case.rows, ROWS_CHECKED):
            some = slice(i, i + ROWS_CHECKED)
            loss, dw, dh_part = add(loss, dw, h[some], w, y[some])
            dh.append(dh_part)
        return ExactGradients(float(loss), jnp.concatenate(dh), dw)


def linear_errors(output: Output, exact: ExactGradients) -> tuple[float, float]:
    """Compare with float64: the loss relatively, the worse gradient beside its largest entry."""
    loss, gradients = output
    with enable_x64():
        pairs = zip(gradients, (exact.dh, exact.dw), strict=True)
        return abs(float(_to_jax(loss)) / exact.loss - 1), max(_error(*pair) for pair in pairs)


def _to_jax(x: Any) -> Any:
    return jnp.from_dlpack(x.detach().contiguous()) if hasattr(x, "detach") else x


def _error(computed: Any, exact: jax.Array) -> float:
    return float(_largest_error(jax.device_put(_to_jax(computed), exact.sharding), exact))


@jax.jit
def _largest_error(computed: jax.Array, exact: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(computed.astype(exact.dtype) - exact)) / jnp.max(jnp.abs(exact))


def measure_growth(case: LinearCase, rounds: int, advance: Callable[[], None]) -> Iterator[Growth]:
    """Measure how time and temporary memory grow along N and along V, contender by contender."""
    more_rows = case._replace(rows=GROWTH_FACTOR * case.rows)
    more_classes = case._replace(classes=GROWTH_FACTOR * case.classes)
    larger = (more_rows, more_classes)
    for name, build in _growing_contenders().items():
        try:
            built = {size: build(size) for size in (case, *larger)}
        except Exception:  # `measure_linear` shows why
            continue
        for runner in built.values():
            runner.run()
        runners = {str(size): runner for size, runner in built.items()}
        seconds = _time_runners(runners, rounds, advance)
        time_at = {size: float(np.median(seconds[str(size)])) for size in built}
        memory_at = {size: built[size].temporary_bytes or 1 for size in built}

        def exponent(at: dict[LinearCase, Any], size: LinearCase) -> float:
            return math.log(at[size] / at[case]) / math.log(GROWTH_FACTOR)

        yield Growth(
            case,
            name,
            *(exponent(at, size) for at in (time_at, memory_at) for size in larger),
        )


def growth_steps(rounds: int) -> int:
    """Count how often `measure_growth` reports progress, at most."""
    return rounds * len(_growing_contenders())


def _growing_contenders() -> dict[str, Callable[[LinearCase], Runner]]:
    """Return the contenders whose memory is known, each once."""
    return {
        name: build
        for name, build in contenders().items()
        if not (name.startswith("torch") or name.endswith("again"))
    }


def preset_cases(name: str | None) -> Sequence[LinearCase]:
    """Return the cases of a preset, by default of the device at hand."""
    backend = jax.default_backend()
    return PRESETS[name or (backend if backend in PRESETS else "cpu")]


def growth_case() -> LinearCase:
    """Return the case that `measure_growth` starts from on the device at hand."""
    return GROWTH_CASES["cpu" if jax.default_backend() == "cpu" else "accelerator"]
