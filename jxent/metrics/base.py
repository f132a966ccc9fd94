"""Metric classes as records of `Average`s: merged, summed over devices and printed in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jxent._typing import AxisNames, Scalar
from jxent.metrics.average import Average

M = TypeVar("M", bound="MetricSums")


class MetricSums:
    """Base of the metric classes: registered dataclasses whose arrays are `Average`s."""

    def merge(self: M, other: M) -> M:
        """Add the sums of `other`, which must have been made with the same options.

        Raises:
          ValueError: it was made with others.
        """
        ours, theirs = self._options(), other._options()
        if ours != theirs:
            raise ValueError(
                f"{type(self).__name__}.merge: `other` was made with other options: {theirs} where "
                f"these have {ours}"
            )
        return _map_averages(Average.merge, self, other)

    def psum(self: M, axis_name: AxisNames) -> M:
        """Add up the sums of all devices along these mesh axes, inside `jax.shard_map`.

        Call it once, at the end, on what each device has measured. There `empty` is the same on
        every device: before it can be the carry of a `lax.scan`, update it once.
        """
        return _map_averages(lambda average: average.psum(axis_name), self)

    def _options(self) -> dict[str, Any]:
        """Return what `empty` was given, which `merge` compares and reports."""
        raise NotImplementedError


def add_batch(metrics: M, batch: M, nan_if_invalid: Scalar) -> M:
    """Add the sums of a batch; NaN from an invalid row goes into every one of them, 0 into none."""
    return metrics.merge(_map_averages(lambda average: average.poisoned(nan_if_invalid), batch))


def _map_averages(fn: Callable[..., Average], *metrics: M) -> M:
    """Call fn on every `Average`, together with its counterparts in the other metrics."""
    return jax.tree.map(fn, *metrics, is_leaf=lambda x: isinstance(x, Average))


def text_table(*lines: tuple[str, Any, str, str]) -> str:
    """Print a line for each (name, number, format, unit)."""
    return "\n".join(
        f"{name:<20}{format(float(number), spec):>13}  {unit}".rstrip()
        for name, number, spec, unit in lines
    )
