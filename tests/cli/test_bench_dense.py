"""The benchmark measures what it says, and would show a contender that is wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jxent._cli import bench_dense, bench_timing, common
from jxent._cli import main as cli

pytestmark = pytest.mark.relaxed  # optax needs ordinary promotion

SMALL = bench_dense.DenseCase(16, 32, "float32", "confident", gradient=True)


def test_measure_and_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_dense, "dense_cases", lambda: iter([SMALL]))
    written = tmp_path / "new" / "bench.json"
    assert cli.main(["bench", "--only", "dense", "--rounds", "2", "--json", str(written)]) == 0
    record = json.loads(written.read_text("utf-8"))
    results = {result["contender"]: result for result in record["dense"]}
    assert set(results) == set(bench_dense.CONTENDERS)
    assert results["optax"]["ratio"] == 1
    for result in results.values():
        assert result["case"] == SMALL._asdict()
        assert 0 < result["ratio_low"] <= result["ratio"] <= result["ratio_high"]
    # optax's loss and gradient are exactly 0 here: an error of 1, and it is shown as one.
    assert results["optax"]["loss_error"] == results["optax"]["gradient_error"] == 1
    assert results["copy"]["loss_error"] is None
    assert results["jxent"]["loss_error"] < 1e-5
    assert results["jxent"]["gradient_error"] < 1e-5
    printed = capsys.readouterr().out
    assert all(name in printed for name in bench_dense.CONTENDERS)


def test_errors_see_a_wrong_gradient():
    z, labels = bench_dense.dense_inputs(SMALL._replace(kind="ordinary"))
    wide = np.asarray(z, np.float64)
    p = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    e_y = np.eye(SMALL.classes)[np.asarray(labels)]
    loss = -np.log(p[e_y == 1]).mean()
    right = (p - e_y) / SMALL.rows

    def errors(loss: float, gradient: np.ndarray) -> tuple[float, float]:
        return bench_dense.dense_errors(
            SMALL, z, labels, (jnp.asarray(loss), jnp.asarray(gradient))
        )

    assert max(errors(loss, right)) < 1e-6
    assert errors(loss, 1.01 * right)[1] > 0.009
    assert errors(1.01 * loss, right)[0] > 0.009


def test_rounds_are_interleaved_and_rotate():
    order, rounds = [], []
    clock = map(float, range(1, 100))
    timers = {name: lambda name=name: order.append(name) or next(clock) for name in "abc"}
    seconds = bench_timing.time_rounds(timers, 4, lambda: rounds.append(len(order)))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert rounds == [3, 6, 9, 12]
    assert seconds == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_ratios_are_of_the_same_round():
    # The machine gets slower and slower; the contender takes 2, 3 and 4 times as long.
    reference, own = [1.0, 10.0, 100.0], [2.0, 30.0, 400.0]
    assert bench_timing.ratio_quartiles(own, reference) == (3, 2.5, 3.5)
    assert bench_timing.milliseconds(own) == 30_000


def test_unwritable_json_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cli.main(["bench", "--json", str(blocked / "bench.json")]) == common.BAD_FLAG
    (line,) = capsys.readouterr().err.splitlines()
    assert "--json" in line
