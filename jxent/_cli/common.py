"""Shared by the verbs: the error that ends a command, argument types, files, versions, device."""

import argparse
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jxent import __version__

PROGRAM = "python -m jxent"
FAILED, BAD_FLAG, INTERRUPTED = 1, 2, 130
LARGEST_SEED = 2**32 - 1  # NumPy's
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")


class CommandError(Exception):
    """Why the command stops, in one line, and its exit code."""

    def __init__(self, reason: str, code: int = FAILED) -> None:
        super().__init__(" ".join(reason.split()))
        self.code = code


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], words: str, more: str = ""
) -> argparse.ArgumentParser:
    """Add the parser of one verb; `run` takes the parsed options and returns the exit code."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=words, description=f"{words.capitalize()}.{more}", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def add_output_flags(parser: argparse.ArgumentParser, *, plot: str) -> None:
    """Add the flags that name files to write: --json, and --plot with its help."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)


def outputs_by_flag(options: argparse.Namespace) -> dict[str, Path]:
    """Return the files that `add_output_flags` was given, by flag."""
    given = {"--json": options.json, "--plot": options.plot}
    return {flag: path for flag, path in given.items() if path is not None}


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make an argument type: a whole number from `least`, to `most` if there is a most."""
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


def unit_interval(text: str) -> float:
    """Parse an argument in [0, 1]; NaN is not."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text!r}")
    return value


def open_unit_interval(text: str) -> float:
    """Parse an argument in (0, 1)."""
    value = unit_interval(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def need_packages(*modules: str) -> None:
    """Raise CommandError before any work if an optional package is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"needs: pip install 'jxent[demo]' (missing: {', '.join(missing)})")


def picture_format(path: Path | None) -> str:
    """Return the format that a picture's file name asks for, "" for no picture."""
    if path is None:
        return ""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = path.suffix[1:].lower()
    if suffix not in known:
        expected = ", .".join(sorted(known))
        raise CommandError(f"--plot {path}: expected one of .{expected}", BAD_FLAG)
    return suffix


def to_json(record: dict[str, Any]) -> bytes:
    """Write a record as JSON, which has no infinite number and no NaN: null in their place."""
    finite = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return json.dumps(finite, indent=2).encode() + b"\n"


def make_writable(flag: str, given: Path, *files: Path) -> None:
    """Make the directories of files, and find out before any work whether they can be written."""
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
            if path.exists():
                path.open("ab").close()
    except OSError as error:
        raise CommandError(f"{flag} {given}: cannot write there: {error}", BAD_FLAG) from error


def write_files(contents: dict[Path, bytes]) -> None:
    """Write all files, or none: beside their places first, then moved there."""
    beside: dict[Path, Path] = {}
    try:
        try:
            for path, content in contents.items():
                with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                    beside[path] = Path(file.name)
                    file.write(content)
            for path, temporary in beside.items():
                # A temporary file is its owner's alone; a file written by name is not.
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
        finally:
            for temporary in beside.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"{path}: cannot write there: {error}") from error


def _umask() -> int:
    # Reading the mask sets it: put it back.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, the packages in use, and the others that are installed."""
    found = {"Python": platform.python_version(), "jxent": __version__}
    for name in (*PACKAGES, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                found[name] = "not installed"
    return found


def device_name() -> str:
    """Name JAX's first device and count the others."""
    try:
        device, *others = jax.devices()
    except RuntimeError as error:
        raise CommandError(f"JAX finds no device: {error}") from error
    kind = device.device_kind
    name = device.platform if kind == device.platform else f"{device.platform} ({kind})"
    return f"{name} and {len(others)} more" if others else name


def describe_setting(others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the versions and the device of this run, as every record begins."""
    return {"versions": versions(others), "device": device_name()}
