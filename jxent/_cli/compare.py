"""The verb `compare`: read saved predictions, score and compare them, write the result.

    read     labels, every model's predictions, weights and groups, from files    → Inputs
    score    every model's row losses and figures                                 → Score
    compare  the models whose log loss is finite, in pairs                        → Comparison
    write    every number, to the terminal, as JSON and as a picture

Every flag, file and place to write is checked before anything is computed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jxent import selection
from jxent._cli import display
from jxent._cli.common import (
    BAD_FLAG,
    LARGEST_SEED,
    CommandError,
    add_output_flags,
    add_verb,
    describe_setting,
    make_writable,
    need_packages,
    open_unit_interval,
    outputs_by_flag,
    picture_format,
    to_json,
    whole_number,
    write_files,
)
from jxent._cli.predictions import (
    PREDICTION_KINDS,
    InputFileError,
    SavedPredictions,
    check_labels,
    file_path,
    name_files,
    read_groups,
    read_labels,
    read_predictions,
    read_weights,
)
from jxent._cli.scores import Score, draw_scores, figures_of, format_figures, score
from jxent.selection.bootstrap import least_resamples
from jxent.selection.comparison import Comparison


def add_compare(verbs: Any) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        verbs,
        "compare",
        run_compare,
        "say which of several models' saved predictions are better, and how sure that is",
        more=" Files are .npy, .npz (file.npz:key where it holds several arrays) or .csv, with a "
        "header or without; rows are counted from 0. Of one PRED: only its figures.",
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
        choices=PREDICTION_KINDS,
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
        type=open_unit_interval,
        default=0.95,
        metavar="C",
        help="of the intervals, and 1 − the level of the tests (default %(default)s)",
    )
    parser.add_argument(
        "--resamples",
        type=whole_number(1),
        default=10_000,
        metavar="N",
        help="of the bootstrap (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        default=0,
        metavar="N",
        help="of the bootstrap (default %(default)s)",
    )
    add_output_flags(parser, plot="draw the differences and the calibration there")


def run_compare(options: argparse.Namespace) -> int:
    """Read, score, compare, write."""
    need_packages("rich", "scipy", *(("matplotlib",) if options.plot else ()))
    check_resamples(options.resamples, options.confidence)
    names = model_names(options.names, options.predictions)
    suffix = picture_format(options.plot)
    inputs = read_inputs(options, names)
    check_outputs(options)
    scores = {
        name: score(saved.logits, inputs.labels, inputs.weights)
        for name, saved in inputs.models.items()
    }
    comparison = compare_finite(inputs, scores, options)
    verdict = describe_verdict(scores, comparison)
    contents = {}
    if options.json is not None:
        record = describe_setting() | {"labels": options.labels}
        record |= comparison_record(inputs, scores, comparison, verdict)
        contents[options.json] = to_json(record)
    if options.plot is not None:
        contents[options.plot] = draw_comparison(scores, comparison, suffix)
    console = display.open_console(display.COMPARISON_WIDTH)
    show_scores(console, inputs, scores)
    show_comparison(console, comparison, verdict)
    write_files(contents)
    display.show_written(console, contents)
    return 0


# --- read


class Inputs(NamedTuple):
    """Labels [N], the predictions of each model by name, and the rows' weights and groups."""

    labels: np.ndarray
    models: dict[str, SavedPredictions]
    weights: np.ndarray | None
    groups: np.ndarray | None


def check_resamples(resamples: int, confidence: float) -> None:
    """Raise CommandError if the bootstrap's interval would need more resamples."""
    least = least_resamples(confidence)
    if resamples < least:
        raise CommandError(
            f"argument --resamples: expected at least {least} at confidence "
            f"{confidence:g}, got {resamples}",
            BAD_FLAG,
        )


def model_names(given: str | None, files: Sequence[str]) -> list[str]:
    """Return a different name for each file: those given, or else the files' own."""
    names = name_files(files) if given is None else given.split(",")
    if len(names) != len(files) or len(set(names)) < len(names) or not all(names):
        raise CommandError(
            f"argument --names: expected {len(files)} different names, one for each PRED, got "
            f"{','.join(names)!r}",
            BAD_FLAG,
        )
    return names


def read_inputs(options: argparse.Namespace, names: Sequence[str]) -> Inputs:
    """Read every file, and check that they are of the same rows and classes."""
    labels = read_labels(options.labels)
    rows = len(labels)
    models = {
        name: read_predictions(given, rows, options.kind)
        for name, given in zip(names, options.predictions, strict=True)
    }
    check_labels(options.labels, labels, _shared_classes(list(models.values())))
    weights = read_weights(options.weights, rows) if options.weights else None
    groups = read_groups(options.groups, rows) if options.groups else None
    return Inputs(labels, models, weights, groups)


def _shared_classes(models: Sequence[SavedPredictions]) -> int:
    """Return the number of classes, the same in every file."""
    first, *others = models
    for other in others:
        if other.classes != first.classes:
            raise InputFileError(
                f"{other.given}: {other.classes} classes, but {first.given} has {first.classes}"
            )
    return first.classes


def check_outputs(options: argparse.Namespace) -> None:
    """Raise CommandError if an output cannot be written or would replace another file in use."""
    inputs = [options.labels, *options.predictions]
    inputs += filter(None, (options.weights, options.groups))
    taken: dict[Path, Any] = {file_path(given).resolve(): given for given in inputs}
    outputs = outputs_by_flag(options)
    for flag, path in outputs.items():
        if path.resolve() in taken:
            raise CommandError(f"{flag} {path}: it is read, and would be lost", BAD_FLAG)
        taken[path.resolve()] = path
    for flag, path in outputs.items():
        make_writable(flag, path, path)


# --- compare


def compare_finite(
    inputs: Inputs, scores: dict[str, Score], options: argparse.Namespace
) -> Comparison | None:
    """Compare the models whose log loss is finite; None if fewer than two are."""
    finite = {name: s.rows for name, s in scores.items() if not s.impossible.size}
    if len(finite) < 2:
        return None
    try:
        return selection.compare(
            finite,
            weights=inputs.weights,
            groups=inputs.groups,
            confidence=options.confidence,
            resamples=options.resamples,
            seed=options.seed,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def describe_verdict(scores: dict[str, Score], comparison: Comparison | None) -> str:
    """Describe in one line which model wins and whether that is real; "" of one model."""
    infinite = [name for name, s in scores.items() if s.impossible.size]
    if len(scores) == 1:
        return ""
    last = f"; with an infinite log loss {', '.join(infinite)} cannot win" if infinite else ""
    if comparison is not None:
        return comparison.verdict + last
    finite = [name for name in scores if name not in infinite]
    if finite:
        return f"{finite[0]} alone has a finite log loss{last}"
    return "no winner: every log loss is infinite"


# --- write


def show_scores(console: display.Console, inputs: Inputs, scores: dict[str, Score]) -> None:
    """Print how each file was read, and the figures of each model."""
    for name, saved in inputs.models.items():
        console.print(f"{name}: {saved.given}, {saved.description}", markup=False)
    numbers = ("log loss\n(nats)", "accuracy", "perplexity", "Brier\nscore", "calibration\nerror")
    table = display.make_table("model", numbers=numbers)
    for name, s in scores.items():
        table.add_row(
            display.literal(name), f"{s.summary.log_loss:.6f}", *format_figures(s.summary)
        )
    console.print()
    console.print(table)
    for name, s in scores.items():
        if s.impossible.size:
            console.print(f"{describe_impossible(name, s)}: its log loss is infinite", markup=False)


def describe_impossible(name: str, s: Score) -> str:
    """Describe the rows in which a model ruled its label out."""
    first, others = s.impossible[0], s.impossible.size - 1
    more = f" and {others} more" if others else ""
    return f"{name} gives probability 0 to the label of row {first}{more}"


def show_comparison(console: display.Console, comparison: Comparison | None, verdict: str) -> None:
    """Print the comparison's tables, then in words which model wins."""
    if comparison is not None:
        console.print(str(comparison).removesuffix(comparison.verdict), markup=False)
    if verdict:
        display.show_verdict(console, verdict)


def draw_comparison(scores: dict[str, Score], comparison: Comparison | None, suffix: str) -> bytes:
    """Draw every model's difference from the best, and confidence against accuracy of each."""
    if comparison is None:
        figure = display.make_figure(6, 5)
        panels = [figure.subplots()]
    else:
        figure = display.make_figure(12, max(5, 2 + 0.4 * len(comparison.models)))
        panels = list(figure.subplots(1, 2))
    draw_scores(panels, scores, comparison)
    return display.encode_figure(figure, suffix)


def comparison_record(
    inputs: Inputs, scores: dict[str, Score], comparison: Comparison | None, verdict: str
) -> dict[str, Any]:
    """Return every number shown, for JSON."""
    return {
        "models": {
            name: {"file": saved.given, "kind": saved.kind}
            | figures_of(scores[name].summary)
            | {"impossible_rows": scores[name].impossible.tolist()}
            for name, saved in inputs.models.items()
        },
        "comparison": None if comparison is None else comparison.to_dict(),
        "verdict": verdict or None,
    }
