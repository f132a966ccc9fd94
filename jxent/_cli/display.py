"""Shared by the verbs to show results: terminal, tables, progress bars, verdict, pictures.

rich is optional: it is imported when something is shown, so that every verb can be imported, and
name the packages it needs, without it.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as Console  # the verbs' functions name it too
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text
else:
    Console = Progress = Table = Text = Any

BENCHMARK_WIDTH, COMPARISON_WIDTH = 125, 110


def open_console(at_least: int = 0) -> Console:
    """Open standard output; numbers keep their color, lines their length, tables their columns."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, at_least)
    return console


def make_table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    """Make a table: columns of text flush left, then columns of numbers flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*texts, box=SIMPLE_HEAD, pad_edge=False)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def literal(text: str, style: str = "") -> Text:
    """Return text to print as it is: a [ in it is no markup."""
    from rich.text import Text

    return Text(text, style=style)


def progress_bars(console: Console, *texts: str) -> Progress:
    """Make progress bars with counts, followed by columns of text."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    return Progress(*columns, *map(TextColumn, texts), console=console)


@contextmanager
def show_progress(console: Console, name: str, total: int) -> Iterator[Callable[[], None]]:
    """Show one bar; yields `advance()`."""
    with progress_bars(console) as bars:
        task = bars.add_task(name, total=total)
        yield lambda: bars.advance(task)


def show_setting(console: Console, setting: dict[str, Any]) -> None:
    """Print the versions and the device."""
    console.print(" · ".join(f"{name} {version}" for name, version in setting["versions"].items()))
    console.print(f"device: {setting['device']}")


def show_written(console: Console, paths: Iterable[Path]) -> None:
    """Print the files that were written, one a line."""
    for path in paths:
        console.print(f"wrote {path}", markup=False)


def show_verdict(console: Console, verdict: str) -> None:
    """Print which model wins."""
    console.print(literal(verdict, "bold"))


def make_figure(width: float | int, height: float | int) -> Any:
    """Make an empty picture of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def encode_figure(figure: Any, suffix: str) -> bytes:
    """Encode a picture as a file of the given format."""
    file = io.BytesIO()
    figure.savefig(file, format=suffix)
    return file.getvalue()
