"""What the command line shows: tables, progress bars, the verdict in words, the picture."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from jxent._cli import bench_dense, bench_linear, demo, gradcheck
from jxent._cli.predictions import Predictions
from jxent._cli.scores import Score
from jxent._plot import COLOURS
from jxent.metrics import Summary
from jxent.selection.comparison import Comparison

SCIENTIFIC_FROM = 1e4
BENCHMARK_WIDTH, COMPARISON_WIDTH = 125, 110


def console(at_least: int = 0) -> Console:
    """Standard output; numbers keep their colour, lines their length, wide tables their columns."""
    to = Console(highlight=False, soft_wrap=True)
    to.width = max(to.width, at_least)
    return to


def show_setting(to: Console, versions: dict[str, str], device: str) -> None:
    """Which device, which versions."""
    to.print(" · ".join(f"{name} {version}" for name, version in versions.items()))
    to.print(f"device: {device}")


def show_gradient_check(to: Console, check: gradcheck.GradientCheck) -> None:
    """The largest differences, and what plain JAX loses in confident rows."""
    to.print(
        "\n[bold]Gradient check[/bold]: "
        f"{gradcheck.ROWS} rows of {gradcheck.CLASSES} float32 logits of each kind; "
        "largest differences in ulp"
    )
    table = Table("rows", "quantity", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("jxent −\nfloat64", "plain −\nfloat64", "jxent −\nplain", "bound", "ok"):
        table.add_column(column, justify="right")
    for d in check.differences:
        table.add_row(
            d.rows,
            d.quantity,
            _ulp(d.jxent_from_float64),
            _ulp(d.plain_from_float64),
            _ulp(d.jxent_from_plain),
            d.bound,
            "yes" if d.within else "[bold red]NO[/bold red]",
        )
    to.print(table)
    if not check.promised:
        to.print("the bound is promised on CPU; here it is only shown")
    to.print("plain: logsumexp(z) − z_y under jax.grad; gap: the largest logit − the next")
    to.print(
        f"In confident rows the label leads by {gradcheck.CONFIDENT_GAP:.0f}: the plain loss is "
        f"exactly 0 in {check.plain_false_zeros} of {gradcheck.ROWS}"
    )


def show_data(to: Console, config: demo.Config, data: demo.Data) -> None:
    """What is trained on, and how."""
    to.print(
        f"\n[bold]Training[/bold] on {config.dataset}: {data.x.shape[-1]} features, "
        f"{data.classes} classes, {len(data.labels)} examples, {len(data.held_out_labels)} held out"
    )
    to.print(f"train loss: {_train_loss(config)}; seed {config.seed}")


@contextmanager
def progress(to: Console, names: Sequence[str], epochs: int) -> Iterator[Any]:
    """A bar for each model; yields `advance(name, epoch)`."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    figures = TextColumn("{task.fields[figures]}")
    with Progress(*columns, TextColumn("epochs"), figures, console=to) as bars:
        tasks: dict[str, TaskID] = {
            name: bars.add_task(name, total=epochs, figures="") for name in names
        }

        def advance(name: str, epoch: demo.Epoch) -> None:
            figures = f"train {epoch.train_loss:.4f}  held out {epoch.held_out_log_loss:.4f}"
            bars.update(tasks[name], advance=1, figures=figures)

        yield advance


@contextmanager
def steps(to: Console, name: str, total: int) -> Iterator[Callable[[], None]]:
    """One bar; yields `advance()`."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, console=to) as bars:
        task = bars.add_task(name, total=total)
        yield lambda: bars.advance(task)


def show_benchmark(to: Console, results: Sequence[bench_dense.Result]) -> None:
    """Every contender beside optax in the same case."""
    to.print(
        "\n[bold]Dense losses[/bold], medians; ratios to optax in the same round, with quartiles"
    )
    table = Table("logits", "rows", "program", "contender", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("ms", "time / optax", "temporary MB", "loss error", "gradient error"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            f"{r.case.dtype} {r.case.rows}×{r.case.classes}",
            r.case.kind,
            "loss and gradient" if r.case.gradient else "loss",
            r.contender,
            f"{r.milliseconds:.1f}",
            f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})",
            f"{r.temporary_bytes / 1e6:.1f}",
            _number(r.loss_error, ".0e"),
            _number(r.gradient_error, ".0e"),
        )
    to.print(table)
    to.print("errors: relative to float64, of the mean loss and of the labels' gradient; 1 is a 0")
    to.print("copy: reads and writes the logits once")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show_linear_benchmark(to: Console, results: Sequence[bench_linear.Result]) -> None:
    """Every contender in each case, beside optax and beside the bare products."""
    to.print(
        "\n[bold]From hidden states to loss and both gradients[/bold], medians; ratios to optax in "
        "the same round, with quartiles"
    )
    for case in dict.fromkeys(r.case for r in results):
        to.print(f"\n{size_of(case)}")
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("contender", no_wrap=True)
        columns = ("ms", "time / optax", "of ceiling", "temporary MB", "compile s")
        for column in (*columns, "loss error", "gradient error"):
            table.add_column(column, justify="right")
        for r in results:
            if r.case != case:
                continue
            ratio = (
                "" if r.ratio is None else f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})"
            )
            mark = " [bold red]WRONG[/bold red]" if r.wrong else ""
            table.add_row(
                r.contender + mark,
                _number(r.milliseconds, ".1f"),
                ratio,
                _number(r.of_ceiling, ".2f"),
                _number(None if r.temporary_bytes is None else r.temporary_bytes / 1e6, ".1f"),
                _number(r.compile_seconds or None, ".2f"),
                _number(r.loss_error, ".0e"),
                _number(r.gradient_error, ".0e"),
            )
        to.print(table)
        for r in results:
            if r.case == case and r.note:
                to.print(f"{r.contender}: {r.note}", markup=False)
    to.print("of ceiling: the time of the three bare products by its own")
    to.print("errors: of the loss, relative; of a gradient, by its largest entry; from float64")


def size_of(case: bench_linear.Case) -> str:
    """A case in words."""
    return f"N = {case.rows}, D = {case.features}, V = {case.classes}, {case.dtype}"


def show_growth(to: Console, rows: Sequence[bench_linear.Growth]) -> None:
    """The exponents, contender by contender."""
    if not rows:
        return
    to.print(
        f"\n[bold]Growth[/bold] from {size_of(rows[0].case)} to {bench_linear.FACTOR} times N, and "
        f"to {bench_linear.FACTOR} times V: exponents"
    )
    table = Table("contender", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("time, N", "time, V", "temporary, N", "temporary, V"):
        table.add_column(column, justify="right")
    for r in rows:
        exponents = (r.time_rows, r.time_classes, r.memory_rows, r.memory_classes)
        table.add_row(r.contender, *(f"{e:.2f}" for e in exponents))
    to.print(table)


def draw_linear_benchmark(results: Sequence[bench_linear.Result], suffix: str) -> bytes:
    """A picture: time and temporary memory of each contender, one row of panels a case."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r.case for r in results))
    figure = Figure(figsize=(11, 3.2 * len(cases)), dpi=150, layout="constrained")
    panels = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(panels, cases, strict=True):
        own = [r for r in results if r.case == case and r.milliseconds is not None][::-1]
        names = [r.contender for r in own]
        ours = [COLOURS[0] if name.startswith("jxent") else "#999999" for name in names]
        left.barh(names, [r.milliseconds or 0 for r in own], color=ours)
        left.set_xlabel("time of loss and both gradients (ms)")
        memory = [(r.temporary_bytes or 0) / 1e6 for r in own]
        right.barh(names, memory, color=ours)
        right.set_xlabel("temporary memory (MB); none known where empty")
        right.set_yticklabels([])
        left.set_title(size_of(case), loc="left", fontsize=10)
    return _saved(figure, suffix)


def show_result(to: Console, result: demo.Result) -> None:
    """Held-out figures of every model, then both side by side."""
    to.print("\n[bold]Held out[/bold], unweighted and unsmoothed")
    table = Table("model", box=SIMPLE_HEAD, pad_edge=False)
    columns = ("log loss\n(nats)", "−\nscikit-learn's", "accuracy", "perplexity")
    for column in (*columns, "Brier\nscore", "calibration\nerror"):
        table.add_column(column, justify="right")
    for name, e in result.evaluations.items():
        said = e.score.summary
        table.add_row(
            name,
            f"{e.log_loss:.6f}",
            f"{e.log_loss - e.sklearn_log_loss:+.0e}",
            f"{said.accuracy:.2%}",
            f"{said.perplexity:.4f}",
            f"{said.brier_score:.4f}",
            f"{said.expected_calibration_error:.4f}",
        )
    to.print(table)
    for name, e in result.evaluations.items():
        if e.clipped:
            to.print(
                f"{name}: scikit-learn raises p_y to 2.2e-16 in {e.clipped} rows, jxent does not"
            )
    to.print(f"knowing only how frequent each class is: {result.guess:.6f} nats")
    to.print("\n[bold]With a temperature[/bold], each half's fitted to the other half")
    table = Table("model", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("temperatures", "log loss\n(nats)", "calibration\nerror"):
        table.add_column(column, justify="right")
    for name, e in result.evaluations.items():
        table.add_row(
            name,
            " and ".join(f"{T:.3g}" for T in e.temperatures),
            f"{e.cooled.log_loss:.6f}",
            f"{e.cooled.expected_calibration_error:.4f}",
        )
    to.print(table)
    to.print("[bold]Compared[/bold] in pairs of losses, row by row\n")
    to.print(str(result.comparison).removesuffix(result.comparison.verdict), markup=False)


def draw(config: demo.Config, result: demo.Result, suffix: str) -> bytes:
    """A picture: training and held-out curves; the difference; how sure against how right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), dpi=150, layout="constrained")
    panels = figure.subplot_mosaic([["curves", "curves"], ["difference", "reliability"]])
    _draw_curves(panels["curves"], config, result)
    scores = {name: e.score for name, e in result.evaluations.items()}
    _draw_scores([panels["difference"], panels["reliability"]], scores, result.comparison)
    return _saved(figure, suffix)


def _draw_curves(axes: Any, config: demo.Config, result: demo.Result) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for (name, history), colour in zip(result.histories.items(), COLOURS, strict=True):
        for what, style, fill, values in (
            ("train loss", "--", "none", [epoch.train_loss for epoch in history]),
            ("held out", "-", "full", [epoch.held_out_log_loss for epoch in history]),
        ):
            axes.plot(
                range(1, len(history) + 1),
                values,
                color=colour,
                linestyle=style,
                marker="o" if len(history) == 1 else None,  # one point makes no line
                fillstyle=fill,
                label=f"{name}, {what} (at the end {values[-1]:.4f})",
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(
        title=f"{config.dataset}, seed {config.seed}, by epoch\ntrain loss: {_train_loss(config)}",
        xlabel="epoch",
        xlim=(0.5, config.epochs + 0.5),
        ylabel="cross-entropy, nats per example (log scale)",
    )
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, frameon=False, fontsize="small")


def show_scores(
    to: Console, read: dict[str, Predictions], scores: dict[str, Score], given: Sequence[str]
) -> None:
    """What each file was read as, and the figures of each model."""
    for path, (name, predictions) in zip(given, read.items(), strict=True):
        to.print(f"{name}: {path}, {predictions.words}", markup=False)
    table = Table("model", box=SIMPLE_HEAD, pad_edge=False)
    columns = ("log loss\n(nats)", "accuracy", "perplexity", "Brier\nscore", "calibration\nerror")
    for column in columns:
        table.add_column(column, justify="right")
    for name, e in scores.items():
        table.add_row(
            Text(name),
            f"{e.summary.log_loss:.6f}",
            f"{e.summary.accuracy:.2%}",
            f"{e.summary.perplexity:.4f}",
            f"{e.summary.brier_score:.4f}",
            f"{e.summary.expected_calibration_error:.4f}",
        )
    to.print()
    to.print(table)
    for name, e in scores.items():
        if e.impossible.size:
            to.print(f"{impossible(name, e)}: its log loss is infinite", markup=False)


def impossible(name: str, e: Score) -> str:
    """Where a model ruled out what happened."""
    first, others = e.impossible[0], e.impossible.size - 1
    more = f" and {others} more" if others else ""
    return f"{name} gives probability 0 to the label of row {first}{more}"


def show_comparison(to: Console, comparison: Comparison | None, said: str) -> None:
    """The comparison's tables, then in words which model wins."""
    if comparison is not None:
        to.print(str(comparison).removesuffix(comparison.verdict), markup=False)
    if said:
        show_verdict(to, said)


def show_verdict(to: Console, said: str) -> None:
    """Which model wins."""
    to.print(Text(said, style="bold"))


def compared(scores: dict[str, Score], comparison: Comparison | None) -> str:
    """Which model wins and whether that is real, in one line; nothing of one model."""
    ruled_out = [name for name, e in scores.items() if e.impossible.size]
    if len(scores) == 1:
        return ""
    last = f"; with an infinite log loss {', '.join(ruled_out)} cannot win" if ruled_out else ""
    if comparison is not None:
        return comparison.verdict + last
    finite = [name for name in scores if name not in ruled_out]
    if finite:
        return f"{finite[0]} alone has a finite log loss{last}"
    return "no winner: every log loss is infinite"


def draw_comparison(
    scores: dict[str, Score],
    comparison: Comparison | None,
    suffix: str,
) -> bytes:
    """A picture: how far every model is above the best, and how sure against how right each is."""
    from matplotlib.figure import Figure

    both = comparison is not None
    height = 5 if comparison is None else max(5, 2 + 0.4 * len(comparison.models))
    figure = Figure(figsize=(12 if both else 6, height), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    _draw_scores(list(panels), scores, comparison)
    return _saved(figure, suffix)


def _saved(figure: Any, suffix: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=suffix)
    return out.getvalue()


def _draw_scores(
    panels: Sequence[Any], scores: dict[str, Score], comparison: Comparison | None
) -> None:
    """The differences in the first panel, if there are any, the calibration in the last."""
    if comparison is not None:
        comparison.plot(ax=panels[0])
    for name, e in scores.items():
        e.summary.reliability.plot(panels[-1], label=name, rows=e.bin_rows)


def comparison_record(
    read: dict[str, Predictions],
    scores: dict[str, Score],
    given: Sequence[str],
    comparison: Comparison | None,
    said: str,
) -> dict[str, Any]:
    """Every number shown, for JSON."""
    return {
        "models": {
            name: {"file": path, "kind": read[name].kind}
            | _figures_of(e.summary)
            | {"impossible_rows": e.impossible.tolist()}
            for path, (name, e) in zip(given, scores.items(), strict=True)
        },
        "comparison": None if comparison is None else comparison.to_dict(),
        "verdict": said or None,
    }


def _figures_of(summary: Summary) -> dict[str, float]:
    names = ("log_loss", "accuracy", "perplexity", "brier_score", "expected_calibration_error")
    return {name: float(getattr(summary, name)) for name in names}


def record(
    config: demo.Config,
    data: demo.Data,
    check: gradcheck.GradientCheck,
    result: demo.Result,
    versions: dict[str, str],
    device: str,
    seconds: float,
) -> dict[str, Any]:
    """Every number shown, for JSON."""
    return {
        "versions": versions,
        "device": device,
        "config": config._asdict(),
        "constants": {
            "batch": demo.BATCH,
            "hidden": demo.HIDDEN,
            "optimizer": "adamw",
            "learning_rate": {model.name: model.learning_rate for model in demo.MODELS},
            "weight_decay": {model.name: model.weight_decay for model in demo.MODELS},
            "confidence": demo.CONFIDENCE,
        },
        "gradient_check": {
            "rows": gradcheck.ROWS,
            "classes": gradcheck.CLASSES,
            "confident_gap": gradcheck.CONFIDENT_GAP,
            "plain_false_zeros": check.plain_false_zeros,
            "bound_promised_here": check.promised,
            "passed": check.passed,
            "differences_in_ulp": [d._asdict() for d in check.differences],
        },
        "data": {
            "features": data.x.shape[-1],
            "classes": data.classes,
            "examples": len(data.labels),
            "held_out": len(data.held_out_labels),
        },
        "models": {
            name: _figures_of(e.score.summary)
            | {
                "sklearn_log_loss": e.sklearn_log_loss,
                "clipped": e.clipped,
                "temperatures": e.temperatures,
                "cooled": _figures_of(e.cooled),
                "epochs": [epoch._asdict() for epoch in result.histories[name]],
            }
            for name, e in result.evaluations.items()
        },
        "class_frequencies_log_loss": result.guess,
        "comparison": result.comparison.to_dict(),
        "seconds": seconds,
    }


def _train_loss(config: demo.Config) -> str:
    options = []
    if config.class_weights:
        options.append(f"{config.class_weights} class weights")
    if config.label_smoothing:
        options.append(f"label smoothing {config.label_smoothing:g}")
    return "cross-entropy" + (f" with {' and '.join(options)}" if options else "")


def _ulp(value: float) -> str:
    return f"{value:.1e}" if value >= SCIENTIFIC_FROM else f"{value:.1f}"
