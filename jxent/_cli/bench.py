"""The verb `bench`: time and memory of every loss beside what others offer, in one run."""

import argparse
from collections.abc import Sequence
from typing import Any

from jxent._cli import bench_dense, bench_linear, display
from jxent._cli.bench_dense import DenseResult
from jxent._cli.bench_linear import Growth, LinearCase, LinearResult
from jxent._cli.common import (
    CommandError,
    add_output_flags,
    add_verb,
    describe_setting,
    make_writable,
    need_packages,
    outputs_by_flag,
    picture_format,
    to_json,
    whole_number,
    write_files,
)
from jxent._plot import COLOURS


def add_bench(verbs: Any) -> None:
    """Add the verb's parser."""
    words = "time and memory of every loss beside what others offer, in one run"
    parser = add_verb(verbs, "bench", run_bench, words)
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
        type=whole_number(1),
        action="append",
        metavar=("N", "D", "V"),
        help="rows, features, classes of a projection, in place of a preset; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(bench_linear.ERROR_BOUNDS),
        default="float32",
        help="of the operands, with --shape (default %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=whole_number(1),
        metavar="N",
        help="how often each contender runs in each case (default "
        f"{bench_dense.DENSE_ROUNDS} dense, {bench_linear.LINEAR_ROUNDS} linear)",
    )
    add_output_flags(parser, plot="draw the projection's times and memory there")


def run_bench(options: argparse.Namespace) -> int:
    """Measure what was chosen, show it and write it."""
    need_packages("rich", *(("matplotlib",) if options.plot else ()))
    suffix = picture_format(options.plot)
    for flag, path in outputs_by_flag(options).items():
        make_writable(flag, path, path)
    console = display.open_console(at_least=display.BENCHMARK_WIDTH)
    record = describe_setting(bench_linear.PEERS)
    display.show_setting(console, record)
    linear: list[LinearResult] = []
    # First the projection: the dense losses run in processes of their own.
    if options.only != "dense":
        linear = bench_projections(console, options)
        record["linear"] = _as_records(linear)
        if not options.shape:
            record["growth"] = _as_records(bench_growth(console, options.rounds))
    if options.only != "linear":
        record["dense"] = _as_records(bench_dense_losses(console, options.rounds))
    contents = {}
    if options.json is not None:
        contents[options.json] = to_json(record)
    if options.plot is not None and linear:
        contents[options.plot] = draw_linear_benchmark(linear, suffix)
    write_files(contents)
    display.show_written(console, contents)
    wrong = [r.contender for r in linear if r.wrong and r.contender.startswith("jxent")]
    if wrong:
        raise CommandError(f"{', '.join(wrong)}: not what float64 gives; see the rows marked WRONG")
    return 0


def bench_projections(console: display.Console, options: argparse.Namespace) -> list[LinearResult]:
    """Measure and show every contender in the shapes given, or else in a preset's."""
    rounds = options.rounds or bench_linear.LINEAR_ROUNDS
    cases = list(bench_linear.preset_cases(options.preset))
    if options.shape:
        cases = [LinearCase(n, d, v, options.dtype) for n, d, v in options.shape]
    results: list[LinearResult] = []
    steps = len(cases) * bench_linear.linear_steps(rounds)
    with display.show_progress(console, "projections", steps) as advance:
        for case in cases:
            results.extend(bench_linear.measure_linear(case, rounds, advance))
    show_linear_benchmark(console, results)
    return results


def bench_growth(console: display.Console, rounds: int | None) -> list[Growth]:
    """Measure and show how time and memory grow."""
    rounds = rounds or bench_linear.LINEAR_ROUNDS
    case = bench_linear.growth_case()
    with display.show_progress(console, "growth", bench_linear.growth_steps(rounds)) as advance:
        rows = list(bench_linear.measure_growth(case, rounds, advance))
    show_growth(console, rows)
    return rows


def bench_dense_losses(console: display.Console, rounds: int | None) -> list[DenseResult]:
    """Measure and show the losses of logits."""
    cases, results = list(bench_dense.dense_cases()), []
    with display.show_progress(console, "logits", len(cases)) as advance:
        for case in cases:
            results.extend(bench_dense.measure_dense(case, rounds or bench_dense.DENSE_ROUNDS))
            advance()
    show_dense_benchmark(console, results)
    return results


def _as_records(results: Sequence[DenseResult | LinearResult | Growth]) -> list[dict[str, Any]]:
    return [{**r._asdict(), "case": r.case._asdict()} for r in results]


def show_dense_benchmark(console: display.Console, results: Sequence[DenseResult]) -> None:
    """Print every contender beside optax in the same case."""
    console.print(
        "\n[bold]Dense losses[/bold], medians; ratios to optax in the same round, with quartiles"
    )
    numbers = ("ms", "time / optax", "temporary MB", "loss error", "gradient error")
    table = display.make_table("logits", "rows", "program", "contender", numbers=numbers)
    for r in results:
        table.add_row(
            f"{r.case.dtype} {r.case.rows}×{r.case.classes}",
            r.case.kind,
            "loss and gradient" if r.case.gradient else "loss",
            r.contender,
            f"{r.milliseconds:.1f}",
            _format_ratio(r),
            f"{r.temporary_bytes / 1e6:.1f}",
            _format(r.loss_error, ".0e"),
            _format(r.gradient_error, ".0e"),
        )
    console.print(table)
    console.print(
        "errors: relative to float64, of the mean loss and of the labels' gradient; 1 is a 0"
    )
    console.print(
        "trained: in a third of the rows the label leads by 5, in a third by 20; copy: reads and "
        "writes the logits once"
    )


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _format_ratio(r: DenseResult | LinearResult) -> str:
    return "" if r.ratio is None else f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})"


def show_linear_benchmark(console: display.Console, results: Sequence[LinearResult]) -> None:
    """Print every contender in each case, beside optax and beside the bare products."""
    console.print(
        "\n[bold]From hidden states to loss and both gradients[/bold], medians; ratios to optax in "
        "the same round, with quartiles"
    )
    numbers = ("ms", "time / optax", "of ceiling", "temporary MB", "compile s")
    for case in _cases_of(results):
        console.print(f"\n{describe_case(case)}")
        table = display.make_table("contender", numbers=(*numbers, "loss error", "gradient error"))
        table.columns[0].no_wrap = True
        own = [r for r in results if r.case == case]
        for r in own:
            table.add_row(
                r.contender + (" [bold red]WRONG[/bold red]" if r.wrong else ""),
                _format(r.milliseconds, ".1f"),
                _format_ratio(r),
                _format(r.of_ceiling, ".2f"),
                _format(None if r.temporary_bytes is None else r.temporary_bytes / 1e6, ".1f"),
                _format(r.compile_seconds or None, ".2f"),
                _format(r.loss_error, ".0e"),
                _format(r.gradient_error, ".0e"),
            )
        console.print(table)
        for r in own:
            if r.note:
                console.print(f"{r.contender}: {r.note}", markup=False)
    console.print("of ceiling: the time of the three bare products by its own")
    console.print(
        "errors: of the loss, relative; of a gradient, by its largest entry; from float64"
    )


def _cases_of(results: Sequence[LinearResult]) -> list[LinearCase]:
    """List the different cases in the order they were measured."""
    return list(dict.fromkeys(r.case for r in results))


def describe_case(case: LinearCase) -> str:
    """Describe a case in words."""
    return f"N = {case.rows}, D = {case.features}, V = {case.classes}, {case.dtype}"


def show_growth(console: display.Console, rows: Sequence[Growth]) -> None:
    """Print the exponents of every contender."""
    if not rows:
        return
    times = f"{bench_linear.GROWTH_FACTOR} times"
    console.print(
        f"\n[bold]Growth[/bold] from {describe_case(rows[0].case)} to {times} N, and "
        f"to {times} V: exponents"
    )
    numbers = ("time, N", "time, V", "temporary, N", "temporary, V")
    table = display.make_table("contender", numbers=numbers)
    for r in rows:
        exponents = (r.time_rows, r.time_classes, r.memory_rows, r.memory_classes)
        table.add_row(r.contender, *(f"{e:.2f}" for e in exponents))
    console.print(table)


def draw_linear_benchmark(results: Sequence[LinearResult], suffix: str) -> bytes:
    """Draw time and temporary memory of each contender, one row of panels a case."""
    cases = _cases_of(results)
    figure = display.make_figure(11, 3.2 * len(cases))
    panels = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(panels, cases, strict=True):
        own = [r for r in results if r.case == case and r.milliseconds is not None][::-1]
        names = [r.contender for r in own]
        colors = [COLOURS[0] if name.startswith("jxent") else "#999999" for name in names]
        left.barh(names, [r.milliseconds or 0 for r in own], color=colors)
        left.set_xlabel("time of loss and both gradients (ms)")
        memory = [(r.temporary_bytes or 0) / 1e6 for r in own]
        right.barh(names, memory, color=colors)
        right.set_xlabel("temporary memory (MB); none known where empty")
        right.set_yticklabels([])
        left.set_title(describe_case(case), loc="left", fontsize=10)
    return display.encode_figure(figure, suffix)
