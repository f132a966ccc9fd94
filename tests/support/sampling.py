"""Which of a test's parameters run every time; the others are left to the exhaustive run."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def first(count: int, parameters: Iterable[Any]) -> list[Any]:
    """The first so many every time."""
    return [_marked(x, i < count) for i, x in enumerate(parameters)]


def only(often: Callable[[Any], bool], parameters: Iterable[Any]) -> list[Any]:
    """Those of which `often` is true every time."""
    return [_marked(x, often(x)) for x in parameters]


def chosen(parameters: Iterable[Any], *often: Any) -> list[Any]:
    """Those that are named every time."""
    return only(lambda x: x in often, parameters)


def _marked(x: Any, often: bool) -> Any:
    several = x if type(x) is tuple else (x,)
    return pytest.param(*several, marks=() if often else pytest.mark.deep)
