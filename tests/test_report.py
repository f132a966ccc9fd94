"""The verdict says no more than the interval allows."""

import numpy as np
import pytest

from jxent import demo, report


def result_of(mean: float, low: float, high: float) -> demo.Result:
    evaluation = demo.Evaluation(np.ones(38), 1.0, 1.0, 0, 0.5, np.e)
    return demo.Result(
        histories={},
        evaluations={"A": evaluation, "B": evaluation},
        better="A",
        worse="B",
        difference=demo.Paired(mean, 0.0123, low, high),
        guess=1.0,
    )


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((0.25, 0.125, 0.375), "A wins by cross-entropy: 0.25 nats per example below B"),
        ((0.25, -0.125, 0.625), "not distinguishable from zero: no clear winner"),
        ((0.25, 0.0, 0.5), "not distinguishable from zero: no clear winner"),
        ((0.0, 0.0, 0.0), "A and B have the same cross-entropy: no winner"),
    ],
)
def test_verdict(figures, words):
    verdict = report.verdict(result_of(*figures))
    assert words in verdict
    assert "standard error 0.0123" in verdict and "38 held-out examples" in verdict
    assert ("wins" in verdict) == (figures[1] > 0)
