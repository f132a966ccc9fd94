"""Read labels and predictions from files, checked row by row.

    logits z          any numbers; −∞ for a class that cannot be
    log-probs log p   Σ_v exp log p_v = 1; they are logits too
    probs p           Σ_v p_v = 1; their logits are log p

`.npy`, `.npz` (as file.npz:key where it holds several arrays) and `.csv`, with a header or without.
Predictions are [N, V]; or [N], of class 1 of two: its probability, log-probability or log-odds.
The kind of predictions is inferred only where the values can be nothing else.  Rows are counted
from 0.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from jxent._cli.common import CommandError

PREDICTION_KINDS = ("logits", "log-probs", "probs")
SUM_TOLERANCE = 1e-3  # what float16, or four digits in a text, leave of a sum of 1
USUAL_KEYS = {  # keys of an .npz that need not be named
    "labels": ("labels", "y", "y_true", "targets"),
    "predictions": ("predictions", "logits", "log_probs", "probs", "probabilities", "y_pred"),
    "weights": ("weights", "sample_weight"),
    "groups": ("groups",),
}


class InputFileError(CommandError):
    """Which file cannot be used, from which row on, and why."""


class SavedPredictions(NamedTuple):
    """Logits [N, V] in float64, from the file `given`, which holds `kind`."""

    logits: Float[np.ndarray, "N V"]
    given: str
    kind: str
    description: str  # of the kind, and how it was found out

    @property
    def classes(self) -> int:
        """V."""
        return self.logits.shape[1]


def read_labels(given: str) -> Integer[np.ndarray, " N"]:
    """Read integer labels [N]."""
    y = _read_array(given, "labels")
    if y.dtype.kind == "U":
        y = _parse_cells(given, y, int, "a whole number")
    if y.dtype.kind not in "iu":
        raise InputFileError(f"{given}: labels must be integers, got {y.dtype}; save .astype(int)")
    if y.ndim != 1:
        raise InputFileError(f"{given}: labels must be [N], one a row, got {list(y.shape)}")
    if y.size == 0:
        raise InputFileError(f"{given}: no rows")
    return y


def read_predictions(given: str, rows: int, kind: str | None = None) -> SavedPredictions:
    """Read the predictions of so many rows, as logits."""
    x = _read_array(given, "predictions")
    if x.dtype.kind == "U":
        x = _parse_cells(given, x, float, "a number")
    if x.dtype.kind not in "fiu":
        raise InputFileError(f"{given}: predictions must be numbers, got {x.dtype}")
    if x.ndim not in (1, 2) or x.shape[1:] == (0,):
        raise InputFileError(f"{given}: predictions must be [N, V], or [N], got {list(x.shape)}")
    if x.shape[1:] == (1,):
        raise InputFileError(
            f"{given}: predictions have one class, {list(x.shape)}; of two classes save both, or "
            "[N] for class 1"
        )
    _check_count(given, x, rows)
    x = x.astype(np.float64)
    _check_rows(given, np.isnan(x), x, "is not a number")
    inferred = kind is None
    kind = _infer_kind(given, x) if kind is None else kind
    z = _to_logits(given, x, kind)
    words = {"logits": "logits", "log-probs": "log-probabilities", "probs": "probabilities"}[kind]
    if x.ndim == 1:
        words = "log-odds of class 1" if kind == "logits" else f"{words} of class 1"
    return SavedPredictions(z, given, kind, words + (", by their values" if inferred else ""))


def read_weights(given: str, rows: int) -> Float[np.ndarray, " N"]:
    """Read finite weights [N] ≥ 0, not all 0."""
    w = _read_array(given, "weights")
    if w.dtype.kind == "U":
        w = _parse_cells(given, w, float, "a number")
    if w.dtype.kind not in "fiu" or w.ndim != 1:
        raise InputFileError(f"{given}: weights must be numbers [N], got {w.dtype}{list(w.shape)}")
    _check_count(given, w, rows)
    w = w.astype(np.float64)
    _check_rows(given, ~((w >= 0) & np.isfinite(w)), w, "must be finite and not negative")
    if not np.any(w):
        raise InputFileError(f"{given}: all weights are 0: no row counts")
    return w


def read_groups(given: str, rows: int) -> np.ndarray:
    """Read the groups of rows: integers or strings [N]."""
    g = _read_array(given, "groups", rows)
    if g.ndim != 1 or g.dtype.kind not in "iuSU":
        raise InputFileError(
            f"{given}: groups must be integers or strings [N], got {g.dtype}{list(g.shape)}"
        )
    _check_count(given, g, rows)
    return g


def check_labels(given: str, labels: Integer[np.ndarray, " N"], classes: int) -> None:
    """Raise InputFileError at the first label outside [0, classes)."""
    bad = (labels < 0) | (labels >= classes)
    _check_rows(given, bad, labels, f"is outside [0, {classes}), the classes of the predictions")


def _check_count(given: str, x: np.ndarray, rows: int) -> None:
    if len(x) != rows:
        raise InputFileError(f"{given}: {len(x)} rows, but there are {rows} labels")


def _check_rows(given: str, bad: np.ndarray, x: np.ndarray, words: str) -> None:
    """Raise InputFileError at the first row in which anything is bad."""
    if np.any(bad):
        at = np.argwhere(bad)[0]
        column = f", column {at[1]}" if bad.ndim == 2 else ""
        value = x[tuple(at)] if bad.ndim == x.ndim else ""
        raise InputFileError(f"{given}: row {at[0]}{column}: {value} {words}".replace(":  ", ": "))


def _infer_kind(given: str, x: np.ndarray) -> str:
    """Return the only kind that the numbers can be."""
    low, high = np.min(x), np.max(x)
    hint = "; say which with --kind logits, log-probs or probs"
    if x.ndim == 1:
        if np.all(x == np.round(x)):
            raise InputFileError(f"{given}: whole numbers [N], as of predicted classes{hint}")
        if low >= 0 and high <= 1:
            return "probs"
        if low < -SUM_TOLERANCE and high > 1 + SUM_TOLERANCE:
            return "logits"
        raise InputFileError(
            f"{given}: numbers from {low:g} to {high:g} could be several things{hint}"
        )
    sums = np.sum(x, axis=1)
    if low >= 0 and high <= 1 + SUM_TOLERANCE and _are_one(sums):
        return "probs"
    if high <= SUM_TOLERANCE and _are_one(np.sum(np.exp(x), axis=1)):
        return "log-probs"
    if low >= -SUM_TOLERANCE:
        raise InputFileError(
            f"{given}: none is negative, but row {int(np.argmax(np.abs(sums - 1)))} sums to "
            f"{sums[np.argmax(np.abs(sums - 1))]:g}, not 1: probabilities or logits?{hint}"
        )
    if high <= SUM_TOLERANCE:
        raise InputFileError(
            f"{given}: none is positive, but their exponentials do not sum to 1 in each row: "
            f"log-probabilities or logits?{hint}"
        )
    return "logits"


def _are_one(sums: np.ndarray) -> bool:
    return bool(np.all(np.abs(sums - 1) <= SUM_TOLERANCE))


def _to_logits(given: str, x: np.ndarray, kind: str) -> Float[np.ndarray, "N V"]:
    """Convert predictions of a kind to logits, having checked them."""
    if kind == "logits":
        _check_rows(given, x == np.inf, x, "is no logit")
        if x.ndim == 1:
            return np.stack([np.zeros_like(x), x], axis=1)
        _check_rows(given, np.all(x == -np.inf, axis=1), x, "every class is impossible")
        return x
    if kind == "probs":
        _check_rows(given, (x < 0) | (x > 1 + SUM_TOLERANCE), x, "is no probability")
        with np.errstate(divide="ignore"):
            if x.ndim == 1:
                x = np.minimum(x, 1)
                return np.stack([np.log1p(-x), np.log(x)], axis=1)
            z, sums = np.log(x), np.sum(x, axis=1)
    else:
        _check_rows(given, x > SUM_TOLERANCE, x, "is no log-probability")
        if x.ndim == 1:
            x = np.minimum(x, 0)
            with np.errstate(divide="ignore"):
                return np.stack([np.log(-np.expm1(x)), x], axis=1)
        z, sums = x, np.sum(np.exp(x), axis=1)
    bad = np.abs(sums - 1) > SUM_TOLERANCE
    if np.any(bad):
        row = int(np.argmax(bad))
        raise InputFileError(f"{given}: row {row}: probabilities sum to {sums[row]:g}, not 1")
    return z


def _read_array(given: str, role: str, rows: int | None = None) -> np.ndarray:
    """Read the array of a file; of a text, its cells as strings."""
    path, _, key = _split_key(given)
    if not path.is_file():
        raise InputFileError(f"{given}: no such file")
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return _read_csv(given, path, rows)
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[_choose_key(given, list(arrays.files), key, role)]
    except InputFileError:
        raise
    # A damaged archive raises what its parser met first.
    except Exception as error:
        raise InputFileError(f"{given}: cannot read it: {error or type(error).__name__}") from error
    raise InputFileError(f"{given}: expected .npy, .npz or .csv")


def _split_key(given: str) -> tuple[Path, str, str]:
    """Split file.npz:key into the file, a short name for it, and the key."""
    base, colon, key = given.rpartition(":")
    if colon and base.lower().endswith(".npz"):
        return Path(base), key, key
    return Path(given), Path(given).stem, ""


def name_files(given: Sequence[str]) -> list[str]:
    """Name each file: its stem or its key where these differ, else all of it."""
    short = [_split_key(one)[1] for one in given]
    return short if len(set(short)) == len(short) else list(given)


def file_path(given: str) -> Path:
    """Return the path of a file, without a key."""
    return _split_key(given)[0]


def _choose_key(given: str, keys: list[str], key: str, role: str) -> str:
    """Return the key given, or the only one that can be meant."""
    if key in keys:
        return key
    likely = [k for k in keys if k.lower() in USUAL_KEYS[role]]
    if not key and len(keys) == 1:
        return keys[0]
    if not key and len(likely) == 1:
        return likely[0]
    here = ", ".join(keys) or "nothing"
    if key:
        raise InputFileError(f"{given}: no such key; the file holds {here}")
    raise InputFileError(f"{given}: which array is meant? Say {given}:KEY; the file holds {here}")


def _read_csv(given: str, path: Path, rows: int | None) -> np.ndarray:
    """Read the cells of a text as strings, [N] of one column, without a header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if rows is None:
        headed = bool(lines) and _is_header(lines[0])
    else:  # names of groups look like a header: it is one line too many, and no group's name
        headed = len(lines) == rows + 1 and lines[0] not in lines[1:]
    if headed and len(lines[0]) > 1 and not lines[0][0]:
        raise InputFileError(
            f"{given}: the first column has no name, as an index has none; leave it out"
        )
    lines = lines[1:] if headed else lines
    if not lines:
        raise InputFileError(f"{given}: no rows")
    for row, line in enumerate(lines):
        if len(line) != len(lines[0]):
            raise InputFileError(
                f"{given}: row {row} has {len(line)} columns, row 0 {len(lines[0])}"
            )
    cells = np.array(lines)
    return cells[:, 0] if cells.shape[1] == 1 else cells


def _is_header(cells: Sequence[str]) -> bool:
    return any(not _is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse_cells(given: str, cells: np.ndarray, number: Any, words: str) -> np.ndarray:
    """Parse cells as numbers; InputFileError at the first that is none."""
    try:
        return np.array([number(cell) for cell in cells.ravel()]).reshape(cells.shape)
    except (ValueError, OverflowError):
        for at, cell in np.ndenumerate(cells):
            try:
                number(cell)
            except (ValueError, OverflowError):
                column = f", column {at[1]}" if cells.ndim == 2 else ""
                message = f"{given}: row {at[0]}{column}: {str(cell)!r} is not {words}"
                raise InputFileError(message) from None
        raise
