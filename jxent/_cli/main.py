"""The command line: its verbs, their arguments, their files and exit codes.

    python -m jxent [train]    train two classifiers and say which has the lower cross-entropy
    python -m jxent check      only the gradient check
    python -m jxent bench      time and memory of every loss beside others'
    python -m jxent compare    which of several models' saved predictions are better, and how sure

Exit codes: 0 done; 1 something failed or missed its bound; 2 a flag is wrong; 130 interrupted.
A verb is one function that adds its parser, with the function to run.
"""

import argparse
import importlib.util
import io
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jxent import __version__, selection
from jxent._cli import bench_dense, bench_linear, demo, gradcheck, predictions
from jxent._cli.scores import score
from jxent.selection.bootstrap import least_resamples

PROGRAM = "python -m jxent"
FAILED, BAD_FLAG, INTERRUPTED = 1, 2, 130
LARGEST_SEED = 2**32 - 1  # NumPy's
CURVES, RESULTS, HELD_OUT = "curves.png", "results.json", "held_out.npz"
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")


class Refused(Exception):
    """Why the command stops, in one line, and its exit code."""

    def __init__(self, reason: str, code: int = FAILED) -> None:
        super().__init__(" ".join(reason.split()))
        self.code = code


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise Refused(f"{message} (see {self.prog} --help)", BAD_FLAG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows only ASCII gets a "?"
    parser = _parser()
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["train", *arguments]
    try:
        options = parser.parse_args(arguments)
        return int(options.run(options))
    except Refused as refused:
        print(f"{PROGRAM}: {refused}", file=sys.stderr)
        return refused.code
    except BrokenPipeError:
        # Whoever read standard output has gone: leave nothing for the interpreter to flush there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Cross-entropy for JAX: a real training run, and the checks behind it.",
        epilog=f"Without a verb: train, with train's flags (see {PROGRAM} train --help).",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (_add_train, _add_check, _add_bench, _add_compare):
        add(verbs)
    return parser


def _add_train(verbs: Any) -> None:
    default = demo.Config()
    words = "train two classifiers on real data and say which has the lower cross-entropy"
    parser = verbs.add_parser(
        "train", help=words, description=f"{words.capitalize()}.", allow_abbrev=False
    )
    parser.add_argument(
        "--dataset",
        choices=demo.DATASETS,
        default=default.dataset,
        help="which of scikit-learn's data sets (default %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=_whole(1),
        default=default.epochs,
        metavar="N",
        help="passes over the training data (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=default.seed,
        metavar="N",
        help="decides the split, the initial parameters and the batches (default %(default)s)",
    )
    parser.add_argument(
        "--label-smoothing",
        type=_fraction,
        default=default.label_smoothing,
        metavar="E",
        help="of the training loss, in [0, 1] (default %(default)g)",
    )
    parser.add_argument(
        "--class-weights",
        choices=("balanced",),
        default=default.class_weights,
        help="of the training loss: every class weighs the same in total (default: none)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"write {CURVES}, {RESULTS} and {HELD_OUT} there (default: no files)",
    )
    parser.set_defaults(run=_train)


def _add_check(verbs: Any) -> None:
    words = "compare loss and gradient with float64 and with jax.grad, in ulp"
    parser = verbs.add_parser(
        "check", help=words, description=f"{words.capitalize()}.", allow_abbrev=False
    )
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    _need("rich")
    from jxent._cli import display as report

    console = report.console()
    report.show_setting(console, _versions(), _device())
    check = gradcheck.check_gradients()
    report.show_gradient_check(console, check)
    return _outcome(check)


def _add_bench(verbs: Any) -> None:
    words = "time and memory of every loss beside what others offer, in one run"
    parser = verbs.add_parser(
        "bench", help=words, description=f"{words.capitalize()}.", allow_abbrev=False
    )
    parser.add_argument(
        "--only", choices=("dense", "linear"), help="the losses of logits, or of a projection"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(bench_linear.PRESETS),
        help="sizes of the projection (default: those of the device)",
    )
    parser.add_argument(
        "--shape",
        nargs=3,
        type=_whole(1),
        action="append",
        metavar=("N", "D", "V"),
        help="rows, features, classes of a projection, in place of a preset; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(bench_linear.WRONG),
        default="float32",
        help="of the operands, with --shape (default %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_whole(1),
        metavar="N",
        help="how often each contender runs in each case "
        f"(default {bench_dense.ROUNDS} dense, {bench_linear.ROUNDS} linear)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the projection's times and memory there"
    )
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    _need("rich", *(("matplotlib",) if options.plot else ()))
    from jxent._cli import display as report

    suffix = _picture(options.plot)
    for flag, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None:
            _make_writable(flag, path, path)
    console = report.console(at_least=report.BENCHMARK_WIDTH)
    versions, device = _versions(bench_linear.PEERS), _device()
    report.show_setting(console, versions, device)
    record: dict[str, Any] = {"versions": versions, "device": device}
    # First the projection: the dense losses run in processes of their own.
    linear = [] if options.only == "dense" else _bench_linear(options, console, record)
    if options.only != "linear":
        rounds, cases, results = options.rounds or bench_dense.ROUNDS, list(bench_dense.cases()), []
        with report.steps(console, "logits", len(cases)) as advance:
            for case in cases:
                results.extend(bench_dense.measure(case, rounds))
                advance()
        report.show_benchmark(console, results)
        record["dense"] = [{**r._asdict(), "case": r.case._asdict()} for r in results]
    contents = {}
    if options.json is not None:
        contents[options.json] = _json(record)
    if options.plot is not None and linear:
        contents[options.plot] = report.draw_linear_benchmark(linear, suffix)
    _write(contents)
    for path in contents:
        console.print(f"wrote {path}", markup=False)
    wrong = [r.contender for r in linear if r.wrong and r.contender.startswith("jxent")]
    if wrong:
        raise Refused(f"{', '.join(wrong)}: not what float64 gives; see the rows marked WRONG")
    return 0


def _bench_linear(
    options: argparse.Namespace, console: Any, record: dict[str, Any]
) -> list[bench_linear.Result]:
    from jxent._cli import display as report

    rounds = options.rounds or bench_linear.ROUNDS
    cases = list(bench_linear.preset(options.preset))
    if options.shape:
        cases = [bench_linear.Case(n, d, v, options.dtype) for n, d, v in options.shape]
    results: list[bench_linear.Result] = []
    with report.steps(console, "projections", len(cases) * bench_linear.steps(rounds)) as advance:
        for case in cases:
            results.extend(bench_linear.measure(case, rounds, advance))
    report.show_linear_benchmark(console, results)
    record["linear"] = [{**r._asdict(), "case": r.case._asdict()} for r in results]
    if not options.shape:
        with report.steps(console, "growth", bench_linear.growth_steps(rounds)) as advance:
            rows = list(bench_linear.growth(bench_linear.growth_case(), rounds, advance))
        report.show_growth(console, rows)
        record["growth"] = [{**r._asdict(), "case": r.case._asdict()} for r in rows]
    return results


def _add_compare(verbs: Any) -> None:
    words = "say which of several models' saved predictions are better, and how sure that is"
    parser = verbs.add_parser(
        "compare",
        help=words,
        description=f"{words.capitalize()}. Files are .npy, .npz (file.npz:key where it holds "
        "several arrays) or .csv, with a header or without; rows are counted from 0. Of one PRED: "
        "only its figures.",
        allow_abbrev=False,
    )
    parser.add_argument("labels", metavar="LABELS", help="integers [N] in [0, V)")
    parser.add_argument(
        "predictions",
        metavar="PRED",
        nargs="+",
        help="of the same rows: numbers [N, V], or [N] of class 1 of two",
    )
    parser.add_argument(
        "--kind",
        choices=predictions.KINDS,
        help="what every PRED holds (default: as the values say, where they can be nothing else)",
    )
    parser.add_argument("--names", metavar="A,B", help="of the models (default: of the files)")
    parser.add_argument(
        "--groups",
        metavar="FILE",
        help="integers or strings [N]: rows with the same one belong together",
    )
    parser.add_argument("--weights", metavar="FILE", help="of the rows, numbers [N] ≥ 0")
    parser.add_argument(
        "--confidence",
        type=_between_0_and_1,
        default=0.95,
        metavar="C",
        help="of the intervals, and 1 − the level of the tests (default %(default)s)",
    )
    parser.add_argument(
        "--resamples",
        type=_whole(1),
        default=10_000,
        metavar="N",
        help="of the bootstrap (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=0,
        metavar="N",
        help="of the bootstrap (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the differences and the calibration there"
    )
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    _need("rich", "scipy", *(("matplotlib",) if options.plot else ()))
    from jxent._cli import display as report

    least = least_resamples(options.confidence)
    if options.resamples < least:
        raise Refused(
            f"argument --resamples: expected at least {least} at confidence "
            f"{options.confidence:g}, got {options.resamples}",
            BAD_FLAG,
        )
    given = options.predictions
    names = predictions.names_of(given) if options.names is None else options.names.split(",")
    if len(names) != len(given) or len(set(names)) < len(names) or not all(names):
        raise Refused(
            f"argument --names: expected {len(given)} different names, one for each PRED, got "
            f"{','.join(names)!r}",
            BAD_FLAG,
        )
    suffix = _picture(options.plot)
    try:
        labels = predictions.read_labels(options.labels)
        count = len(labels)
        read = {
            name: predictions.read_predictions(path, count, options.kind)
            for name, path in zip(names, given, strict=True)
        }
        classes = {name: p.logits.shape[1] for name, p in read.items()}
        for name, path in zip(names, given, strict=True):
            if classes[name] != classes[names[0]]:
                raise predictions.Unreadable(
                    f"{path}: {classes[name]} classes, but {given[0]} has {classes[names[0]]}"
                )
        predictions.check_labels(options.labels, labels, classes[names[0]])
        weights = options.weights and predictions.read_weights(options.weights, count)
        groups = options.groups and predictions.read_groups(options.groups, count)
    except predictions.Unreadable as unreadable:
        raise Refused(str(unreadable)) from unreadable
    outputs = {
        flag: path for flag, path in (("--json", options.json), ("--plot", options.plot)) if path
    }
    inputs = [options.labels, *given, *filter(None, (options.weights, options.groups))]
    taken = {predictions.file_of(path).resolve(): path for path in inputs}
    for flag, path in outputs.items():
        if path.resolve() in taken:
            raise Refused(f"{flag} {path}: it is read, and would be lost", BAD_FLAG)
        taken[path.resolve()] = path
    for flag, path in outputs.items():
        _make_writable(flag, path, path)

    scores = {name: score(p.logits, labels, weights) for name, p in read.items()}
    finite = {name: e.rows for name, e in scores.items() if not e.impossible.size}
    comparison = None
    if len(finite) > 1:
        chosen = {name: getattr(options, name) for name in ("confidence", "resamples", "seed")}
        try:
            comparison = selection.compare(finite, weights=weights, groups=groups, **chosen)
        except ValueError as error:
            raise Refused(str(error)) from error
    said = report.compared(scores, comparison)
    contents = {}
    if options.json is not None:
        record = {"versions": _versions(), "device": _device(), "labels": options.labels}
        record |= report.comparison_record(read, scores, given, comparison, said)
        contents[options.json] = _json(record)
    if options.plot is not None:
        contents[options.plot] = report.draw_comparison(scores, comparison, suffix)
    console = report.console(report.COMPARISON_WIDTH)
    report.show_scores(console, read, scores, given)
    report.show_comparison(console, comparison, said)
    _write(contents)
    for path in contents:
        console.print(f"wrote {path}", markup=False)
    return 0


def _picture(path: Path | None) -> str:
    """The format that a file name asks for."""
    if path is None:
        return ""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = path.suffix[1:].lower()
    if suffix not in known:
        raise Refused(f"--plot {path}: expected one of .{', .'.join(sorted(known))}", BAD_FLAG)
    return suffix


def _json(record: dict[str, Any]) -> bytes:
    """JSON, which has no infinite number and no NaN: null in their place."""
    finite = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return json.dumps(finite, indent=2).encode() + b"\n"


def _write(contents: dict[Path, bytes]) -> None:
    """All beside their places first, then moved there: what does not fit replaces nothing."""
    beside: dict[Path, Path] = {}
    try:
        try:
            for path, content in contents.items():
                with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                    beside[path] = Path(file.name)
                    file.write(content)
            for path, temporary in beside.items():
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
        finally:
            for temporary in beside.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"{path}: cannot write there: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _train(options: argparse.Namespace) -> int:
    _need("rich", "sklearn", "scipy", *(("matplotlib",) if options.out else ()))
    from jxent._cli import display as report

    start = time.perf_counter()
    if options.out is not None:
        files = [options.out / name for name in (CURVES, RESULTS, HELD_OUT)]
        _make_writable("--out", options.out, *files)
    config = demo.Config(**{name: getattr(options, name) for name in demo.Config._fields})
    versions, device = _versions(), _device()
    try:
        data = demo.load(config.dataset, seed=config.seed)
    except (OSError, ValueError) as error:
        raise Refused(f"--dataset {config.dataset}: cannot read it: {error}") from error

    console = report.console(report.COMPARISON_WIDTH)
    report.show_setting(console, versions, device)
    check = gradcheck.check_gradients()
    report.show_gradient_check(console, check)
    report.show_data(console, config, data)
    names = [model.name for model in demo.MODELS]
    try:
        with report.progress(console, names, config.epochs) as advance, _between(advance) as tick:
            result = demo.run(config, data, on_epoch=tick)
    except demo.Disagreement as disagreement:
        raise Refused(str(disagreement)) from disagreement
    report.show_result(console, result)
    seconds = time.perf_counter() - start
    if options.out is not None:
        logits: dict[str, Any] = {name: e.logits for name, e in result.evaluations.items()}
        held_out = io.BytesIO()
        np.savez(held_out, labels=data.held_out_labels, **logits)
        record = report.record(config, data, check, result, versions, device, seconds)
        drawn = report.draw(config, result, Path(CURVES).suffix[1:])
        _write(dict(zip(files, (drawn, _json(record), held_out.getvalue()), strict=True)))
        console.print(f"wrote {', '.join(map(str, files))}", markup=False)
    console.print(f"{seconds:.1f} s\n")
    report.show_verdict(console, result.comparison.verdict)
    return _outcome(check)


@contextmanager
def _between(advance: Callable[[str, demo.Epoch], None]) -> Iterator[Any]:
    """`advance`, which an interrupt ends after the epoch in which it came.

    JAX runs Python callbacks of its own; a KeyboardInterrupt raised inside one is lost.
    """
    interrupts: list[int] = []

    def tick(name: str, epoch: demo.Epoch) -> None:
        if interrupts:
            raise KeyboardInterrupt
        advance(name, epoch)

    default = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is not default:  # someone decided otherwise: nohup, say
        yield tick
        return
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield tick
    finally:
        signal.signal(signal.SIGINT, default)


def _outcome(check: gradcheck.GradientCheck) -> int:
    if check.passed:
        return 0
    raise Refused("the gradient check missed its bound: see the rows marked NO")


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `least`, to `most` if there is a most."""
    words = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {words}, got {text!r}")
        return value

    return parse


def _fraction(text: str) -> float:
    """An argument type: a number in [0, 1]; NaN is not."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text!r}")
    return value


def _between_0_and_1(text: str) -> float:
    """An argument type: a number in (0, 1)."""
    value = _fraction(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _need(*modules: str) -> None:
    """Refuse before any work if an optional package is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"needs: pip install 'jxent[demo]' (missing: {', '.join(missing)})")


def _make_writable(flag: str, given: Path, *files: Path) -> None:
    """Make the directory of the files, and find out now whether they can be written."""
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
            if path.exists():
                path.open("ab").close()
    except OSError as error:
        raise Refused(f"{flag} {given}: cannot write there: {error}", BAD_FLAG) from error


def _versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Python, the packages in use, and those of the others that are installed."""
    versions = {"Python": platform.python_version(), "jxent": __version__}
    for name in (*PACKAGES, *others):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                versions[name] = "not installed"
    return versions


def _device() -> str:
    try:
        device, *others = jax.devices()
    except RuntimeError as error:
        raise Refused(f"JAX finds no device: {error}") from error
    kind = device.device_kind
    name = device.platform if kind == device.platform else f"{device.platform} ({kind})"
    return f"{name} and {len(others)} more" if others else name
