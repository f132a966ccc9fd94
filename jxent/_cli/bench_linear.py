"""Time and memory of a projection's cross-entropy, with gradients, beside what others offer.

All contenders run in one process, in interleaved rounds whose order rotates; what is shown is the
median, over rounds, of a contender's time divided by that of `optax(hidden @ head)` in the same
round, and of the bare products (h·w, dz·wᵀ, hᵀ·dz in the operands' dtype) divided by its own: the
share of the ceiling.  optax runs twice: how far it is from itself says what a difference means.
Each contender's loss and gradients are compared with float64 in the same run, so that a speed-up
cannot be a mistake.  What would not fit into memory is not started.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxent._compat import enable_x64
from jxent._linear.api import linear_cross_entropy

PEERS = ("tokamax", "torch")
REFERENCE, CEILING = "optax", "three products"
ROUNDS = 5
MICRO_BATCH = 512  # rows that the checkpointed loop holds logits of
ROWS_CHECKED = 256  # rows of float64 logits held while checking

# The error from float64 beyond which a contender is said to be wrong: of the loss, relative, and
# of a gradient beside its largest entry.
WRONG = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 5e-2), "float16": (1e-2, 5e-2)}


class Case(NamedTuple):
    """The sizes of a head and of a batch, and the operands' dtype."""

    rows: int
    features: int
    classes: int
    dtype: str = "float32"


# The heads of GPT-2, Gemma 2 (2B) and Llama 3 (8B).
_GPT2, _GEMMA, _LLAMA = (768, 50257), (2304, 256000), (4096, 128256)
PRESETS: dict[str, tuple[Case, ...]] = {
    "cpu": (Case(2048, 512, 32768), Case(1024, *_GPT2), Case(2048, 512, 32768, "bfloat16")),
    "gpu": tuple(Case(8192, *head, "bfloat16") for head in (_GPT2, _LLAMA, _GEMMA)),
    "tpu": tuple(Case(4096, *head, "bfloat16") for head in (_GPT2, _LLAMA, _GEMMA)),
}
PRESETS["full"] = tuple(
    Case(8192, *head, dtype)
    for head in ((512, 32768), _GPT2, _LLAMA, _GEMMA)
    for dtype in ("float32", "bfloat16")
)
# Doubled twice along each axis, to see how time and memory grow beyond one chunk.
GROWTH = {"cpu": Case(2048, 64, 16384), "accelerator": Case(8192, 2048, 65536, "bfloat16")}
FACTOR = 4


class Result(NamedTuple):
    """What one contender did in one case; None where it says nothing, `note` says why."""

    case: Case
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
        """Whether loss or gradients are further from float64 than rounding explains."""
        if self.loss_error is None or self.gradient_error is None:
            return False
        loss, gradient = WRONG[self.case.dtype]
        return not (self.loss_error <= loss and self.gradient_error <= gradient)


class Growth(NamedTuple):
    """Exponents e of time ∝ Nᵉ and so on, from one size to `FACTOR` times it."""

    case: Case
    contender: str
    time_rows: float
    time_classes: float
    memory_rows: float
    memory_classes: float


Output = tuple[Any, tuple[Any, Any]]


class Runner(NamedTuple):
    """A program ready to be timed."""

    run: Callable[[], Output]
    needed_bytes: int
    temporary_bytes: int | None
    compile_seconds: float


def contenders() -> dict[str, Callable[[Case], Runner]]:
    """Those whose packages are installed, the reference first."""
    found: dict[str, Callable[[Case], Runner]] = {REFERENCE: _in_jax(_optax)}
    found[f"{REFERENCE} again"] = _in_jax(_optax)
    found["optax, checkpointed loop"] = _in_jax(_loop)
    for way in ("tokens", "vocab", "reference"):
        found[f"jxent {way}"] = _in_jax(partial(linear_cross_entropy, implementation=way))
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = _in_jax(_tokamax)
    if importlib.util.find_spec("torch"):
        found["torch"] = partial(_in_torch, "cross_entropy")
        found["torch linear_cross_entropy"] = partial(_in_torch, "linear_cross_entropy")
    found[CEILING] = _ceiling
    return found


def _optax(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(h @ w, y).mean()


def _loop(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
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


def operands(case: Case) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states and a head whose logits are standard normal, and labels."""
    h, w, y = jax.random.split(jax.random.key(0), 3)
    scale = case.features**-0.5
    hidden = jax.random.normal(h, (case.rows, case.features)) * scale
    head = jax.random.normal(w, (case.features, case.classes))
    labels = jax.random.randint(y, (case.rows,), 0, case.classes, jnp.int32)
    return hidden.astype(case.dtype), head.astype(case.dtype), labels


def _compiled(function: Callable[..., Output], case: Case) -> Runner:
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
    given: list[Any] = []

    def run() -> Output:
        if not given:
            given.extend(operands(case))
        return jax.block_until_ready(program(*given))

    return Runner(run, needed, temporary, seconds)


def _in_jax(loss: Callable[..., jax.Array]) -> Callable[[Case], Runner]:
    return partial(_compiled, jax.value_and_grad(loss, (0, 1)))


def _ceiling(case: Case) -> Runner:
    def products(h: jax.Array, w: jax.Array, _: jax.Array) -> Output:
        z = h @ w
        return z[0, 0], (z @ w.T, h.T @ z)

    return _compiled(products, case)


def _in_torch(name: str, case: Case) -> Runner:
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
    """Memory that is free on the device; None where nobody says."""
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


def measure(case: Case, rounds: int, advance: Callable[[], None]) -> list[Result]:
    """Every contender in one case; `advance` is called as often as `steps` says."""
    results, runners = {}, {}
    names = list(contenders())
    truth = None
    for name, build in contenders().items():
        advance()
        try:
            runner = build(case)
        except Exception as error:  # what others raise is theirs to choose
            results[name] = Result(case, name, note=f"refused: {_line(error)}")
            continue
        facts = Result(
            case,
            name,
            temporary_bytes=runner.temporary_bytes,
            compile_seconds=runner.compile_seconds,
        )
        free = available_bytes()
        if free is not None and runner.needed_bytes > 0.9 * free:
            gigabytes = f"{runner.needed_bytes / 1e9:.1f} GB of {free / 1e9:.1f}"
            results[name] = facts._replace(note=f"does not fit: needs {gigabytes}")
            continue
        try:
            output = runner.run()
        except Exception as error:
            results[name] = facts._replace(note=f"failed: {_line(error)}")
            continue
        if name != CEILING:
            truth = float64(case) if truth is None else truth
            loss_error, gradient_error = errors(output, truth)
            facts = facts._replace(loss_error=loss_error, gradient_error=gradient_error)
        del output
        results[name], runners[name] = facts, runner
    seconds = _times(runners, rounds, advance)
    for name in seconds:
        results[name] = _summary(results[name], seconds)
    return [results[name] for name in names]


def steps(rounds: int) -> int:
    """How often `measure` reports progress."""
    return len(contenders()) + rounds


def _times(
    runners: dict[str, Runner], rounds: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    names = list(runners)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            start = time.perf_counter()
            output = runners[name].run()
            seconds[name].append(time.perf_counter() - start)
            del output
        advance()
    return seconds


def _summary(result: Result, seconds: dict[str, list[float]]) -> Result:
    own = np.array(seconds[result.contender])
    result = result._replace(milliseconds=1e3 * float(np.median(own)))
    if REFERENCE in seconds:
        low, middle, high = np.quantile(own / np.array(seconds[REFERENCE]), (0.25, 0.5, 0.75))
        result = result._replace(ratio=float(middle), ratio_low=float(low), ratio_high=float(high))
    if CEILING in seconds:
        result = result._replace(of_ceiling=float(np.median(np.array(seconds[CEILING]) / own)))
    return result


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


class Truth(NamedTuple):
    """Loss and gradients in float64, where they were computed."""

    loss: float
    dh: jax.Array
    dw: jax.Array


def float64(case: Case) -> Truth:
    """From the operands as they are, a few rows at a time, by the textbook's formula."""
    operands_ = [np.asarray(x) for x in operands(case)]

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
        h, w, y = map(jnp.asarray, operands_)
        loss, dw, dh = jnp.zeros(()), jnp.zeros(w.shape), []
        for i in range(0, case.rows, ROWS_CHECKED):
            some = slice(i, i + ROWS_CHECKED)
            loss, dw, dh_part = add(loss, dw, h[some], w, y[some])
            dh.append(dh_part)
        return Truth(float(loss), jnp.concatenate(dh), dw)


def errors(output: Output, truth: Truth) -> tuple[float, float]:
    """Of the loss, relative; of the worse gradient, its largest error by its largest entry."""
    loss, gradients = output
    with enable_x64():
        pairs = zip(gradients, (truth.dh, truth.dw), strict=True)
        return abs(float(_ours(loss)) / truth.loss - 1), max(_error(*pair) for pair in pairs)


def _ours(x: Any) -> Any:
    return jnp.from_dlpack(x.detach().contiguous()) if hasattr(x, "detach") else x


def _error(ours: Any, truth: jax.Array) -> float:
    return float(_largest_error(jax.device_put(_ours(ours), truth.sharding), truth))


@jax.jit
def _largest_error(ours: jax.Array, truth: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(ours.astype(truth.dtype) - truth)) / jnp.max(jnp.abs(truth))


def growth(case: Case, rounds: int, advance: Callable[[], None]) -> Iterator[Growth]:
    """How time and temporary memory grow along N and along V, contender by contender."""
    more_rows = case._replace(rows=FACTOR * case.rows)
    more_classes = case._replace(classes=FACTOR * case.classes)
    for name, build in _growing().items():
        try:
            built = {size: build(size) for size in (case, more_rows, more_classes)}
        except Exception:
            continue
        for runner in built.values():
            runner.run()
        seconds = _times({str(size): runner for size, runner in built.items()}, rounds, advance)
        time_at = {size: float(np.median(seconds[str(size)])) for size in built}
        memory_at = {size: built[size].temporary_bytes or 1 for size in built}

        def exponent(at: dict[Case, Any], size: Case) -> float:
            return math.log(at[size] / at[case]) / math.log(FACTOR)

        yield Growth(
            case,
            name,
            *(exponent(at, size) for at in (time_at, memory_at) for size in list(built)[1:]),
        )


def growth_steps(rounds: int) -> int:
    """How often `growth` reports progress, at most."""
    return rounds * len(_growing())


def _growing() -> dict[str, Callable[[Case], Runner]]:
    """The contenders whose memory is known, each once."""
    return {
        name: build
        for name, build in contenders().items()
        if not (name.startswith("torch") or name.endswith("again"))
    }


def preset(name: str | None) -> Sequence[Case]:
    """The cases of a preset, by default of the device at hand."""
    backend = jax.default_backend()
    return PRESETS[name or (backend if backend in PRESETS else "cpu")]


def growth_case() -> Case:
    """What `growth` starts from on the device at hand."""
    return GROWTH["cpu" if jax.default_backend() == "cpu" else "accelerator"]
