"""A progress bar of rich for work that takes longer than a second, where a terminal shows it."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

PATIENCE = 1.0  # seconds without a bar


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield the items; show a bar after `PATIENCE` seconds, if rich and a terminal are there."""
    start, progress = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - start > PATIENCE:
                progress = _progress()
                if progress is not None:
                    progress.add_task(description, total=len(items))
                    progress.start()
            if progress is not None:
                progress.update(progress.task_ids[0], completed=done)
            yield item
    finally:
        if progress is not None:
            progress.stop()


def _progress() -> "Progress | None":
    """Make a bar on standard error; None without rich, or where that is no terminal."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    return Progress(console=console, transient=True) if shown else None
