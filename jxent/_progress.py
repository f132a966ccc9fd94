"""A progress bar for a loop that turns out to be long: on standard error, where someone looks."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 1.0  # seconds without a bar


def watched(items: Sequence[T], what: str) -> Iterator[T]:
    """The items; beyond `PATIENCE` seconds a bar of rich, if rich and a terminal are there."""
    start, bars = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if bars is None and time.monotonic() - start > PATIENCE:
                bars = _bars()
                if bars is not None:
                    bars.add_task(what, total=len(items))
                    bars.start()
            if bars is not None:
                bars.update(bars.task_ids[0], completed=done)
            yield item
    finally:
        if bars is not None:
            bars.stop()


def _bars():
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter
    return Progress(console=console, transient=True) if seen else None
