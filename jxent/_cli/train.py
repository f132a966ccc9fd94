"""The verb `train`: the demonstration's training run, shown and written."""

import argparse
import io
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jxent._cli import demo, display, gradcheck
from jxent._cli.check import exit_code, show_gradient_check
from jxent._cli.common import (
    LARGEST_SEED,
    CommandError,
    add_verb,
    describe_setting,
    make_writable,
    need_packages,
    to_json,
    unit_interval,
    whole_number,
    write_files,
)
from jxent._cli.scores import draw_scores, figures_of, format_figures
from jxent._plot import COLOURS

CURVES, RESULTS, HELD_OUT = "curves.png", "results.json", "held_out.npz"


def add_train(verbs: Any) -> None:
    """Add the verb's parser."""
    default = demo.Config()
    words = "train two classifiers on real data and say which has the lower cross-entropy"
    parser = add_verb(verbs, "train", run_train, words)
    parser.add_argument(
        "--dataset",
        choices=demo.DATASETS,
        default=default.dataset,
        help="which of scikit-learn's data sets (default %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=whole_number(1),
        default=default.epochs,
        metavar="N",
        help="passes over the training data (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        default=default.seed,
        metavar="N",
        help="decides the split, the initial parameters and the batches (default %(default)s)",
    )
    parser.add_argument(
        "--label-smoothing",
        type=unit_interval,
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


def run_train(options: argparse.Namespace) -> int:
    """Check the gradients, train, evaluate and compare; show all of it and write it."""
    need_packages("rich", "sklearn", "scipy", *(("matplotlib",) if options.out else ()))
    start = time.perf_counter()
    if options.out is not None:
        files = [options.out / name for name in (CURVES, RESULTS, HELD_OUT)]
        make_writable("--out", options.out, *files)
    config = demo.Config(**{name: getattr(options, name) for name in demo.Config._fields})
    setting = describe_setting()
    data = _load(config)

    console = display.open_console(display.COMPARISON_WIDTH)
    display.show_setting(console, setting)
    check = gradcheck.check_gradients()
    show_gradient_check(console, check)
    show_data(console, config, data)
    names = [model.name for model in demo.MODELS]
    with show_epochs(console, names, config.epochs) as advance, _defer_interrupt(advance) as tick:
        result = demo.train_and_compare(config, data, on_epoch=tick)
    show_result(console, result)
    seconds = time.perf_counter() - start
    if options.out is not None:
        record = setting | train_record(config, data, check, result) | {"seconds": seconds}
        picture = draw_result(config, result, Path(CURVES).suffix[1:])
        contents = (picture, to_json(record), _held_out_arrays(data, result))
        write_files(dict(zip(files, contents, strict=True)))
        console.print(f"wrote {', '.join(map(str, files))}", markup=False)
    console.print(f"{seconds:.1f} s\n")
    display.show_verdict(console, result.comparison.verdict)
    return exit_code(check)


def _load(config: demo.Config) -> demo.Data:
    try:
        return demo.load(config.dataset, seed=config.seed)
    except (OSError, ValueError) as error:
        raise CommandError(f"--dataset {config.dataset}: cannot read it: {error}") from error


def _held_out_arrays(data: demo.Data, result: demo.Result) -> bytes:
    """Return the labels and every model's logits as an .npz, for the verb `compare`."""
    logits: dict[str, Any] = {name: e.logits for name, e in result.evaluations.items()}
    file = io.BytesIO()
    np.savez(file, labels=data.held_out_labels, **logits)
    return file.getvalue()


@contextmanager
def _defer_interrupt(advance: Callable[[str, demo.Epoch], None]) -> Iterator[Any]:
    """Yield `advance`, made to end the run after the epoch in which an interrupt came.

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


def show_data(console: display.Console, config: demo.Config, data: demo.Data) -> None:
    """Print the data set and the training loss."""
    console.print(
        f"\n[bold]Training[/bold] on {config.dataset}: {data.x.shape[-1]} features, "
        f"{data.classes} classes, {len(data.labels)} examples, {len(data.held_out_labels)} held out"
    )
    console.print(f"train loss: {_describe_loss(config)}; seed {config.seed}")


@contextmanager
def show_epochs(console: display.Console, names: Sequence[str], epochs: int) -> Iterator[Any]:
    """Show a bar for each model; yields `advance(name, epoch)`."""
    with display.progress_bars(console, "epochs", "{task.fields[figures]}") as bars:
        tasks = {name: bars.add_task(name, total=epochs, figures="") for name in names}

        def advance(name: str, epoch: demo.Epoch) -> None:
            figures = f"train {epoch.train_loss:.4f}  held out {epoch.held_out_log_loss:.4f}"
            bars.update(tasks[name], advance=1, figures=figures)

        yield advance


def show_result(console: display.Console, result: demo.Result) -> None:
    """Print the held-out figures of every model, then their comparison."""
    console.print("\n[bold]Held out[/bold], unweighted and unsmoothed")
    figures = ("accuracy", "perplexity", "Brier\nscore", "calibration\nerror")
    numbers = ["log loss\n(nats)", "−\nscikit-learn's", *figures]
    table = display.make_table("model", numbers=numbers)
    for name, e in result.evaluations.items():
        difference = f"{e.log_loss - e.sklearn_log_loss:+.0e}"
        table.add_row(name, f"{e.log_loss:.6f}", difference, *format_figures(e.score.summary))
    console.print(table)
    for name, e in result.evaluations.items():
        if e.clipped:
            console.print(
                f"{name}: scikit-learn raises p_y to 2.2e-16 in {e.clipped} rows, jxent does not"
            )
    frequencies = result.class_frequencies_log_loss
    console.print(f"knowing only how frequent each class is: {frequencies:.6f} nats")
    console.print("\n[bold]With a temperature[/bold], each half's fitted to the other half")
    numbers = ["temperatures", "log loss\n(nats)", "calibration\nerror"]
    table = display.make_table("model", numbers=numbers)
    for name, e in result.evaluations.items():
        table.add_row(
            name,
            " and ".join(f"{T:.3g}" for T in e.temperatures),
            f"{e.tempered.log_loss:.6f}",
            f"{e.tempered.expected_calibration_error:.4f}",
        )
    console.print(table)
    console.print("[bold]Compared[/bold] in pairs of losses, row by row\n")
    console.print(str(result.comparison).removesuffix(result.comparison.verdict), markup=False)


def draw_result(config: demo.Config, result: demo.Result, suffix: str) -> bytes:
    """Draw the curves, the paired difference, and confidence against accuracy."""
    figure = display.make_figure(11, 9)
    panels = figure.subplot_mosaic([["curves", "curves"], ["difference", "reliability"]])
    _draw_curves(panels["curves"], config, result)
    scores = {name: e.score for name, e in result.evaluations.items()}
    draw_scores([panels["difference"], panels["reliability"]], scores, result.comparison)
    return display.encode_figure(figure, suffix)


def _draw_curves(axes: Any, config: demo.Config, result: demo.Result) -> None:
    """Draw training and held-out losses by epoch."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for (name, history), color in zip(result.histories.items(), COLOURS, strict=True):
        for words, style, fill, values in (
            ("train loss", "--", "none", [epoch.train_loss for epoch in history]),
            ("held out", "-", "full", [epoch.held_out_log_loss for epoch in history]),
        ):
            axes.plot(
                range(1, len(history) + 1),
                values,
                color=color,
                linestyle=style,
                marker="o" if len(history) == 1 else None,  # one point makes no line
                fillstyle=fill,
                label=f"{name}, {words} (at the end {values[-1]:.4f})",
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    title = f"{config.dataset}, seed {config.seed}, by epoch"
    axes.set(
        title=f"{title}\ntrain loss: {_describe_loss(config)}",
        xlabel="epoch",
        xlim=(0.5, config.epochs + 0.5),
        ylabel="cross-entropy, nats per example (log scale)",
    )
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, frameon=False, fontsize="small")


def train_record(
    config: demo.Config,
    data: demo.Data,
    check: gradcheck.GradientCheck,
    result: demo.Result,
) -> dict[str, Any]:
    """Return every number shown, for JSON."""
    return {
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
            name: figures_of(e.score.summary)
            | {
                "sklearn_log_loss": e.sklearn_log_loss,
                "clipped": e.clipped,
                "temperatures": e.temperatures,
                "cooled": figures_of(e.tempered),
                "epochs": [epoch._asdict() for epoch in result.histories[name]],
            }
            for name, e in result.evaluations.items()
        },
        "class_frequencies_log_loss": result.class_frequencies_log_loss,
        "comparison": result.comparison.to_dict(),
    }


def _describe_loss(config: demo.Config) -> str:
    options = []
    if config.class_weights:
        options.append(f"{config.class_weights} class weights")
    if config.label_smoothing:
        options.append(f"label smoothing {config.label_smoothing:g}")
    return "cross-entropy" + (f" with {' and '.join(options)}" if options else "")
