"""The result of a comparison of models: numbers, a verdict in words, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jxent import _check, _plot


@dataclass(frozen=True)
class Model:
    """A model's mean loss in nats, its standard error and its t interval."""

    name: str
    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean loss of `worse` minus that of `better`, in nats, with intervals and tests.

    `low` and `high` are Student's t, `bootstrap_low` and `bootstrap_high` BCa, each for this pair
    alone.
    `probability` is the share of resamples in which `better` is better; `adjusted_p_value` is
    Holm's, for all pairs, and decides whether the difference is `real`.
    """

    better: str
    worse: str
    mean: float
    standard_error: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    probability: float
    p_value: float
    adjusted_p_value: float
    real: bool


@dataclass(frozen=True)
class Comparison:
    """Models from best to worst by mean loss, and every pair of them, the best's first."""

    models: tuple[Model, ...]
    pairs: tuple[Difference, ...]
    rows: int
    groups: int | None
    weighted: bool
    test_fraction: float | None
    confidence: float
    resamples: int
    seed: int

    @property
    def best(self) -> str:
        """The model with the lowest mean loss."""
        return self.models[0].name

    @property
    def with_best(self) -> tuple[Difference, ...]:
        """Every other model beside the best."""
        return self.pairs[: len(self.models) - 1]

    @property
    def real(self) -> bool:
        """Whether the best is better than every other by more than luck."""
        return all(pair.real for pair in self.with_best)

    @property
    def verdict(self) -> str:
        """Which model wins, and whether that is real, in one line."""
        nearest, *_ = self.with_best
        alike = [pair.worse for pair in self.with_best if not pair.real]
        same = [p.worse for p in self.with_best if p.mean == 0 and p.standard_error == 0]
        by = f"{nearest.mean:.3g} nats per {self.per}"
        if not alike and len(self.models) == 2:
            return (
                f"{self.best} is better than {nearest.worse}, by {by}, and the difference is real"
            )
        if not alike:
            return f"{self.best} is better than every other, by {by} or more, and that is real"
        if alike == same:
            return f"no difference between {_listed([self.best, *same])}: the same losses"
        return (
            f"{self.best} has the lowest mean loss, but {_listed(alike)} cannot be told from it: "
            f"no clear winner (the next is {by} higher)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, for JSON."""
        return {**asdict(self), "best": self.best, "real": self.real, "verdict": self.verdict}

    def plot(self, ax: Any = None) -> Any:
        """Draw the best beside every other, with both intervals; returns the matplotlib axes."""
        with _check.needed("Comparison.plot", "matplotlib"):
            return _plot.differences(
                self.with_best,
                level=f"{100 * self.confidence:g}%",
                xlabel=f"mean loss above {self.best} (nats per {self.per})",
                ax=ax,
            )

    def __str__(self) -> str:
        """Print two tables, the models and every other beside the best, and the verdict."""
        data = f"{self.rows} {self.per}s"
        if self.groups is not None:
            data += f" in {self.groups} groups"
        if self.weighted:
            data += ", weighted"
        interval = f"{100 * self.confidence:g}% t interval"
        models = _table(
            ("model", "mean loss", "std. error", interval),
            [
                (
                    m.name,
                    *_to_digits_of(m.standard_error, m.mean, m.standard_error, (m.low, m.high)),
                )
                for m in self.models
            ],
        )
        head = (f"above {self.best}", "nats", "std. error")
        others = _table(
            (*head, interval, "bootstrap interval", "P(above)", "p", "real"),
            [
                (
                    d.worse,
                    *_to_digits_of(
                        d.standard_error,
                        d.mean,
                        d.standard_error,
                        (d.low, d.high),
                        (d.bootstrap_low, d.bootstrap_high),
                    ),
                    self._probability(d),
                    _p_value(d.adjusted_p_value),
                    "yes" if d.real else "no",
                )
                for d in self.with_best
            ],
        )
        level = f"real: p ≤ {1 - self.confidence:.4g}"
        if len(self.pairs) > 1:
            level += f"; p is Holm's for all {len(self.pairs)} pairs, intervals are each for itself"
        first = f"{data}; losses in nats; {self.resamples} resamples, seed {self.seed}"
        return f"{first}\n\n{models}\n\n{others}\n\n{level}\n{self.verdict}"

    @property
    def per(self) -> str:
        """Whether there is one loss a row or a split."""
        return "row" if self.test_fraction is None else "split"

    def _probability(self, d: Difference) -> str:
        most = 1 - 1 / self.resamples
        if d.probability > most and d.standard_error > 0:
            return f">{most:.4f}"  # no resample said otherwise, which is not certainty
        return f"{d.probability:.4f}"


def _to_digits_of(s: float, *figures: float | tuple[float, float]) -> list[str]:
    """Format figures and intervals to three digits of their standard error s."""
    places = 4 if s == 0 else min(12, max(0, 2 - math.floor(math.log10(s))))
    return [
        " to ".join(f"{x:.{places}f}" for x in (f if isinstance(f, tuple) else (f,)))
        for f in figures
    ]


def _p_value(p: float) -> str:
    return "<1e-15" if p < 1e-15 else f"{p:.2g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns of text, the first flush left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "   ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _listed(names: Sequence[str]) -> str:
    """Write names as "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
