"""The linear benchmark measures what it says, sees what is wrong, refuses what cannot fit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jxent._cli import bench_linear, common
from jxent._cli import main as cli
from jxent._linear.implementations import IMPLEMENTATIONS

pytestmark = pytest.mark.relaxed  # optax needs ordinary promotion

SMALL = bench_linear.LinearCase(70, 8, 65)


def test_measure_report_and_files(tmp_path, capsys):
    written, drawn = tmp_path / "new" / "bench.json", tmp_path / "new" / "bench.png"
    flags = ["--only", "linear", "--shape", "70", "8", "65", "--rounds", "2"]
    assert cli.main(["bench", *flags, "--json", str(written), "--plot", str(drawn)]) == 0
    results = {r["contender"]: r for r in json.loads(written.read_text("utf-8"))["linear"]}
    assert set(results) == set(bench_linear.contenders())
    assert drawn.stat().st_size > 10_000
    ours = [f"jxent {name}" for name in IMPLEMENTATIONS]
    for name in ["optax", "optax again", "optax, checkpointed loop", *ours]:
        r = results[name]
        assert r["case"] == SMALL._asdict()
        assert 0 < r["ratio_low"] <= r["ratio"] <= r["ratio_high"]
        assert r["milliseconds"] > 0 and r["of_ceiling"] > 0 and r["compile_seconds"] > 0
        assert r["loss_error"] < 1e-6 and r["gradient_error"] < 1e-5, name
    assert results["optax"]["ratio"] == 1 and results["three products"]["of_ceiling"] == 1
    assert results["three products"]["loss_error"] is None
    printed = capsys.readouterr().out
    assert all(name in printed for name in results)


def test_errors_see_a_wrong_gradient():
    exact = bench_linear.exact_gradients(SMALL)
    h, w, y = map(np.asarray, bench_linear.operands(SMALL))
    z = h.astype(np.float64) @ w.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    dz = (p - np.eye(SMALL.classes)[y]) / SMALL.rows
    loss, dh, dw = -np.log(p[np.arange(len(y)), y]).mean(), dz @ w.T, h.T @ dz
    assert max(bench_linear.linear_errors((loss, (dh, dw)), exact)) < 1e-12
    assert bench_linear.linear_errors((loss, (dh, 1.01 * dw)), exact)[1] > 0.009
    assert bench_linear.linear_errors((loss, (dh, 0 * dw)), exact)[1] == 1
    assert bench_linear.linear_errors((1.01 * loss, (dh, dw)), exact)[0] > 0.009
    wrong = bench_linear.LinearResult(SMALL, "it", loss_error=1e-7, gradient_error=0.1)
    assert wrong.wrong and not wrong._replace(gradient_error=1e-6).wrong
    assert wrong._replace(gradient_error=float("nan")).wrong


def test_a_wrong_jxent_fails_the_run(monkeypatch, capsys):
    only_loss = lambda h, w, y: jnp.mean(h @ w) + 0 * jnp.sum(y)
    monkeypatch.setattr(
        bench_linear, "contenders", lambda: {"jxent tokens": bench_linear._in_jax(only_loss)}
    )
    shape = ["--shape", "70", "8", "65"]
    assert cli.main(["bench", "--only", "linear", *shape, "--rounds", "1"]) != 0
    out = capsys.readouterr()
    assert "WRONG" in out.out and "jxent tokens: not what float64 gives" in out.err


def test_what_cannot_fit_is_not_started(monkeypatch):
    monkeypatch.setattr(bench_linear, "available_bytes", lambda: 50_000)
    results = {r.contender: r for r in bench_linear.measure_linear(SMALL, 1, lambda: None)}
    assert results["optax"].note.startswith("does not fit: needs 0.0 GB")
    assert results["optax"].milliseconds is None and results["optax"].temporary_bytes


@pytest.mark.deep
def test_growth_exponents(monkeypatch):
    only = ("jxent vocab", "optax")
    all_of_them = bench_linear.contenders()
    monkeypatch.setattr(bench_linear, "contenders", lambda: {n: all_of_them[n] for n in only})
    case = bench_linear.LinearCase(600, 4, 16000)
    rows = {r.contender: r for r in bench_linear.measure_growth(case, 1, lambda: None)}
    assert 0.8 < rows["optax"].memory_rows < 1.2 and 0.8 < rows["optax"].memory_classes < 1.2
    assert rows["jxent vocab"].memory_classes < 0.5


def test_presets_and_bad_flags(tmp_path, capsys):
    assert bench_linear.preset_cases(None) == bench_linear.PRESETS["cpu"]
    assert {case.classes for case in bench_linear.preset_cases("gpu")} == {50257, 128256, 256000}
    for flags in (["--preset", "phone"], ["--shape", "1", "2"], ["--shape", "0", "2", "3"]):
        assert cli.main(["bench", *flags]) == common.BAD_FLAG
        assert len(capsys.readouterr().err.splitlines()) == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cli.main(["bench", "--plot", str(blocked / "x.png")]) == common.BAD_FLAG
    assert "--plot" in capsys.readouterr().err
