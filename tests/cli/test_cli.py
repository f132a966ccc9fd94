"""Every verb, every flag, every way to fail: one line, the right exit code, no traceback."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import tempfile

import pytest

import jxent
from jxent._cli import common, demo, gradcheck, train
from jxent._cli import main as cli
from jxent._plot import COLOURS

pytestmark = pytest.mark.relaxed  # optax and x @ W + b need ordinary promotion

QUICK = ("--dataset", "iris", "--epochs", "3")


def refused(capsys, *argv: str) -> tuple[int, str]:
    """The exit code and the only line that was printed."""
    code = cli.main(argv)
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("python -m jxent: ")
    assert "Traceback" not in captured.out
    return code, line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, dict, bytes]:
    """What a weighted and smoothed run printed, its JSON and its PNG."""
    out = tmp_path_factory.mktemp("runs") / "new" / "deeper"
    flags = ("--label-smoothing", "0.1", "--class-weights", "balanced", "--seed", "2")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main([*QUICK, *flags, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {train.CURVES, train.RESULTS, train.HELD_OUT}
    record = json.loads((out / train.RESULTS).read_text("utf-8"))
    return printed.getvalue(), record, (out / train.CURVES).read_bytes()


def test_train_prints_the_story(trained):
    printed, record, _ = trained
    order = ["jax ", "device: ", "Gradient check", "Training on iris", "Held out"]
    order += ["With a temperature", "Compared", "wrote "]
    places = [printed.index(words) for words in order]
    assert places == sorted(places)
    assert printed.rstrip().endswith(record["comparison"]["verdict"])


def test_json_has_every_number(trained):
    printed, record, _ = trained
    assert record["config"] == {
        "dataset": "iris",
        "epochs": 3,
        "seed": 2,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
    }
    assert record["versions"]["jxent"] == jxent.__version__
    for name, version in record["versions"].items():
        assert f"{name} {version}" in printed
    assert f"device: {record['device']}" in printed
    assert record["gradient_check"]["passed"] is True
    assert len(record["gradient_check"]["differences_in_ulp"]) == 6
    for name, figures in record["models"].items():
        assert name in printed
        assert f"{figures['log_loss']:.6f}" in printed
        assert f"{figures['accuracy']:.2%}" in printed
        assert f"{figures['perplexity']:.4f}" in printed
        for which in (figures, figures["cooled"]):
            assert f"{which['expected_calibration_error']:.4f}" in printed
        assert f"{figures['brier_score']:.4f}" in printed
        assert all(f"{T:.3g}" in printed for T in figures["temperatures"])
        assert abs(figures["log_loss"] - figures["sklearn_log_loss"]) <= 1e-6
        assert len(figures["epochs"]) == 3
        last = figures["epochs"][-1]
        assert abs(last["held_out_log_loss"] - figures["log_loss"]) <= 1e-7  # in float64
        assert f"train {last['train_loss']:.4f}  held out {figures['log_loss']:.4f}" in printed
    assert f"{record['class_frequencies_log_loss']:.6f} nats" in printed
    (pair,) = record["comparison"]["pairs"]
    assert f"{pair['mean']:.3g} nats per row" in printed
    assert f"{record['seconds']:.1f} s" in printed


def test_what_is_written_can_be_compared(tmp_path, capsys):
    """The verb `compare` on the predictions of the main job says what that said."""
    assert cli.main([*QUICK, "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out
    held_out = [f"{tmp_path / train.HELD_OUT}:{key}" for key in ("labels", *MODELS)]
    assert cli.main(["compare", *held_out, "--kind", "logits"]) == 0
    again = capsys.readouterr().out
    assert first.rstrip().splitlines()[-1] == again.rstrip().splitlines()[-1]


MODELS = tuple(model.name for model in demo.MODELS)


def test_png_is_a_picture(trained):
    from matplotlib.image import imread

    _, _, png = trained
    pixels = imread(io.BytesIO(png), format="png")
    assert len(set(map(tuple, pixels.reshape(-1, pixels.shape[-1])[::7]))) > len(COLOURS)


def test_train_is_the_verb_without_a_verb(trained, capsys):
    _, record, _ = trained
    flags = ("--label-smoothing", "0.1", "--class-weights", "balanced", "--seed", "2")
    assert cli.main(["train", *QUICK, *flags]) == 0
    assert record["comparison"]["verdict"] in capsys.readouterr().out


def test_no_arguments_train_the_defaults(monkeypatch, capsys):
    seen = []

    def load(name, *, seed):
        seen.append((name, seed))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "load", load)
    assert cli.main([]) == common.INTERRUPTED
    assert seen == [("digits", 0)]


def test_check(capsys):
    assert cli.main(["check"]) == 0
    printed = capsys.readouterr().out
    assert "Gradient check" in printed and "Training" not in printed
    assert f"exactly 0 in {gradcheck.ROWS} of {gradcheck.ROWS}" in printed


@pytest.mark.parametrize("argv", [("check",), QUICK])
def test_a_missed_bound_fails(argv, monkeypatch, capsys):
    missed = gradcheck.check_gradients(loss_rows=gradcheck.plain_rows)
    monkeypatch.setattr(gradcheck, "check_gradients", lambda: missed)
    code, line = refused(capsys, *argv)
    assert code == common.FAILED
    assert "the gradient check missed its bound" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("bogus",), "invalid choice: 'bogus'"),
        (("--bogus",), "unrecognized arguments: --bogus"),
        (("--epo", "3"), "unrecognized arguments: --epo 3"),
        (("train", "stray"), "unrecognized arguments: stray"),
        (("check", "--seed", "1"), "unrecognized arguments: --seed 1"),
        (("--dataset", "mnist"), "argument --dataset: invalid choice: 'mnist'"),
        (("--dataset",), "argument --dataset: expected one argument"),
        (("--epochs", "0"), "argument --epochs: expected a whole number of at least 1, got '0'"),
        (("--epochs", "1.5"), "argument --epochs: expected a whole number of at least 1"),
        (("--epochs", "many"), "argument --epochs: expected a whole number of at least 1"),
        (("--seed", "-1"), "argument --seed: expected a whole number from 0 to 4294967295"),
        (("--seed", "4294967296"), "argument --seed: expected a whole number from 0"),
        (("--label-smoothing", "1.1"), "--label-smoothing: expected a number in [0, 1], got '1.1'"),
        (("--label-smoothing", "-0.1"), "--label-smoothing: expected a number in [0, 1]"),
        (("--label-smoothing", "nan"), "--label-smoothing: expected a number in [0, 1]"),
        (("--label-smoothing", "little"), "--label-smoothing: expected a number in [0, 1]"),
        (("--class-weights", "none"), "argument --class-weights: invalid choice: 'none'"),
    ],
)
def test_bad_flags(argv, words, capsys):
    code, line = refused(capsys, *argv)
    assert code == common.BAD_FLAG
    assert words in line and "--help" in line


def test_out_is_tried_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "load", lambda *a, **k: pytest.fail("started to work"))
    (tmp_path / "file").touch()
    (tmp_path / "taken" / train.RESULTS).mkdir(parents=True)
    for out in ("file", "file/below", "taken"):
        code, line = refused(capsys, *QUICK, "--out", str(tmp_path / out))
        assert code == common.BAD_FLAG
        assert f"--out {tmp_path / out}: cannot write there" in line


def test_out_that_fills_up_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / train.CURVES).write_text("old")

    def full(**options):
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    code, line = refused(capsys, *QUICK, "--out", str(tmp_path))
    assert code == common.FAILED
    assert line.endswith("cannot write there: no space left")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_data_that_cannot_be_read_fails(monkeypatch, capsys):
    def unreadable(name, *, seed):
        raise FileNotFoundError("iris.csv is\ngone")

    monkeypatch.setattr(demo, "load", unreadable)
    code, line = refused(capsys, *QUICK)
    assert code == common.FAILED
    assert line.endswith("--dataset iris: cannot read it: iris.csv is gone")


def test_a_denied_log_loss_fails(monkeypatch, capsys):
    monkeypatch.setattr(demo, "AGREEMENT", -1.0)
    code, line = refused(capsys, *QUICK)
    assert code == common.FAILED
    assert "expected scikit-learn's" in line


def test_an_interrupt_ends_training_after_its_epoch(monkeypatch, capsys):
    epochs = []
    row_log_losses = demo.row_log_losses

    def interrupting(*args):
        epochs.append(len(epochs))
        signal.raise_signal(signal.SIGINT)
        return row_log_losses(*args)

    monkeypatch.setattr(demo, "row_log_losses", interrupting)
    # In a shell's background an interrupt is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, line = refused(capsys, *QUICK)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == common.INTERRUPTED and line.endswith("interrupted")
    assert epochs == [0]


def test_interrupting_is_one_line(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_and_compare", interrupted)
    code, line = refused(capsys, *QUICK)
    assert code == common.INTERRUPTED
    assert line.endswith("interrupted")


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (("check",), "rich"),
        (QUICK, "rich"),
        (QUICK, "sklearn"),
        ((*QUICK, "--out", "unused"), "matplotlib"),
    ],
)
def test_a_missing_extra_is_named(argv, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    code, line = refused(capsys, *argv)
    assert code == common.FAILED
    assert "needs: pip install 'jxent[demo]'" in line and module in line


def test_a_missing_device_is_one_line(monkeypatch, capsys):
    def none():
        raise RuntimeError("unknown backend\nor so")

    monkeypatch.setattr(common.jax, "devices", none)
    code, line = refused(capsys, "check")
    assert code == common.FAILED
    assert line.endswith("JAX finds no device: unknown backend or so")


@pytest.mark.parametrize("verb", [(), ("train",), ("check",)])
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*verb, "--help"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    words = {(): ("train", "check"), ("check",): ("ulp",)}.get(
        verb,
        ("--dataset", "--epochs", "--seed", "--label-smoothing", "--class-weights", "--out"),
    )
    assert all(word in printed for word in words)


def test_verbs_are_imported_without_what_only_some_need():
    """Who lacks an optional package gets help and a line that names it, not an ImportError."""
    absent = ("optax", "chex", "rich", "matplotlib", "sklearn", "torch", "tokamax")
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"  # None: importing it is an error
        "from jxent._cli import main\n"
        "sys.exit(main.main(['check']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == common.FAILED and done.stdout == ""
    assert done.stderr == "python -m jxent: needs: pip install 'jxent[demo]' (missing: rich)\n"


def test_it_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "jxent", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python -m jxent" in done.stdout
    assert done.stderr == ""
