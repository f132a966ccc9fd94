"""The benchmark measures what it says, and would show a contender that is wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jxent._cli import bench_dense as bench
from jxent._cli import main as cli

pytestmark = pytest.mark.relaxed  # optax needs ordinary promotion

SMALL = bench.Case(16, 32, "float32", "confident", gradient=True)


def test_measure_and_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "cases", lambda: iter([SMALL]))
    written = tmp_path / "new" / "bench.json"
    assert cli.main(["bench", "--only", "dense", "--rounds", "2", "--json", str(written)]) == 0
    record = json.loads(written.read_text("utf-8"))
    results = {result["contender"]: result for result in record["dense"]}
    assert set(results) == set(bench.CONTENDERS)
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
    assert all(name in printed for name in bench.CONTENDERS)


def test_errors_see_a_wrong_gradient():
    z, labels = bench.logits_and_labels(SMALL._replace(kind="ordinary"))
    wide = np.asarray(z, np.float64)
    p = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    e_y = np.eye(SMALL.classes)[np.asarray(labels)]
    loss = -np.log(p[e_y == 1]).mean()
    right = (p - e_y) / SMALL.rows

    def errors(loss: float, gradient: np.ndarray) -> tuple[float, float]:
        return bench._errors(SMALL, z, labels, (jnp.asarray(loss), jnp.asarray(gradient)))

    assert max(errors(loss, right)) < 1e-6
    assert errors(loss, 1.01 * right)[1] > 0.009
    assert errors(1.01 * loss, right)[0] > 0.009


def test_unwritable_json_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cli.main(["bench", "--json", str(blocked / "bench.json")]) == cli.BAD_FLAG
    (line,) = capsys.readouterr().err.splitlines()
    assert "--json" in line
