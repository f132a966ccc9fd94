"""The verb `compare`: every form a file may have, every way it may be wrong, what comes out."""

import io
import json
import sys
import tempfile

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from test_cli import refused

from jxent import selection
from jxent._cli import common
from jxent._cli import main as cli
from jxent._plot import COLOURS

pytestmark = pytest.mark.relaxed

ROWS, CLASSES = 60, 4


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    """Labels, and the logits of three models: the first is the best, the third like the second."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, ROWS)
    signal = 2.0 * np.eye(CLASSES)[y]
    noise = rng.normal(size=(2, ROWS, CLASSES))
    b = 0.3 * signal + noise[1]
    return {
        "labels": y,
        "good": signal + noise[0],
        "bad": b,
        "alike": b + 0.05 * rng.normal(size=b.shape),
    }


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    """A folder that holds the data as .npy, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    for name, array in data.items():
        np.save(f"{name}.npy", array)
    return tmp_path


def ran(capsys, *argv: str) -> str:
    """What was printed."""
    assert cli.main(["compare", *argv]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def recorded(capsys, *argv: str) -> dict:
    """What --json holds."""
    ran(capsys, *argv, "--json", "record.json")
    with open("record.json", encoding="utf-8") as file:
        return json.load(file, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def row_losses(data, name: str) -> np.ndarray:
    z = data[name]
    return scipy.special.logsumexp(z, axis=1) - z[np.arange(ROWS), data["labels"]]


# --- what comes out


def test_figures_are_sklearn_s(data, here, capsys):
    record = recorded(capsys, "labels.npy", "good.npy", "bad.npy")
    for name in ("good", "bad"):
        p, figures = scipy.special.softmax(data[name], axis=1), record["models"][name]
        loss = sklearn.metrics.log_loss(data["labels"], p)
        expected = {
            "log_loss": loss,
            "perplexity": np.exp(loss),
            "accuracy": sklearn.metrics.accuracy_score(data["labels"], p.argmax(1)),
            "brier_score": np.mean(np.sum((p - np.eye(CLASSES)[data["labels"]]) ** 2, axis=1)),
        }
        for key, value in expected.items():
            np.testing.assert_allclose(figures[key], value, rtol=1e-12, err_msg=key)
        assert 0 < figures["expected_calibration_error"] < 1
        assert figures["impossible_rows"] == [] and figures["kind"] == "logits"


def test_the_comparison_is_the_library_s(data, here, capsys):
    rng = np.random.default_rng(1)
    np.save("w.npy", rng.uniform(0.5, 2, ROWS))
    np.save("g.npy", np.arange(ROWS) // 3)
    options = ("--groups", "g.npy", "--weights", "w.npy", "--seed", "3", "--confidence", "0.9")
    files = ("labels.npy", "good.npy", "bad.npy", "alike.npy")
    record = recorded(capsys, *files, *options, "--resamples", "500")
    expected = selection.compare(
        {name: row_losses(data, name) for name in ("good", "bad", "alike")},
        weights=np.load("w.npy"),
        groups=np.load("g.npy"),
        confidence=0.9,
        resamples=500,
        seed=3,
    )
    ours, theirs = record["comparison"], json.loads(json.dumps(expected.to_dict()))
    assert ours["verdict"] == theirs["verdict"] == record["verdict"]
    for one, other in zip(ours["pairs"], theirs["pairs"], strict=True):
        assert one.keys() == other.keys()
        assert (one["better"], one["worse"]) == (other["better"], other["worse"])
        figures = [[d[key] for key in d if key not in ("better", "worse")] for d in (one, other)]
        np.testing.assert_allclose(*figures, rtol=1e-9)
    assert {k: ours[k] for k in ("groups", "weighted", "rows")} == {
        "groups": 20,
        "weighted": True,
        "rows": ROWS,
    }
    losses, w = row_losses(data, "good"), np.load("w.npy")
    weighted = np.average(losses, weights=w)
    assert record["models"]["good"]["log_loss"] == pytest.approx(weighted, rel=1e-12)


def test_it_is_said_who_wins(here, capsys):
    printed = ran(capsys, "labels.npy", "bad.npy", "good.npy")
    assert "bad: bad.npy, logits, by their values" in printed
    assert printed.rstrip().splitlines()[-1].startswith("good is better than bad, by ")
    order = ["log loss", "mean loss", "above good", "good is better"]
    assert [printed.index(words) for words in order] == sorted(map(printed.index, order))
    assert printed.count("good is better than") == 1
    named = ran(capsys, "labels.npy", "bad.npy", "alike.npy", "--names", "[b],two words")
    assert "cannot be told from it: no clear winner" in named and "[b]" in named


def test_the_same_file_twice_is_no_difference(here, capsys):
    same = ran(capsys, "labels.npy", "good.npy", "good.npy", "--names", "A,B")
    assert "no difference between A and B: the same losses" in same


def test_one_model_is_not_compared(here, capsys):
    record = recorded(capsys, "labels.npy", "good.npy")
    assert record["comparison"] is None and record["verdict"] is None
    printed = ran(capsys, "labels.npy", "good.npy")
    assert "good" in printed and "better" not in printed and "resamples" not in printed


def test_an_impossible_row_ranks_last(data, here, capsys):
    p = scipy.special.softmax(data["good"], axis=1)
    p[[7, 9], data["labels"][[7, 9]]] = 0
    np.save("sure.npy", p / p.sum(1, keepdims=True))
    files = ("labels.npy", "sure.npy", "bad.npy", "alike.npy")
    printed = ran(capsys, *files)
    assert "sure gives probability 0 to the label of row 7 and 1 more" in printed
    assert "; with an infinite log loss sure cannot win" in printed
    record = recorded(capsys, *files)
    assert record["models"]["sure"]["log_loss"] is None
    assert record["models"]["sure"]["impossible_rows"] == [7, 9]
    assert {m["name"] for m in record["comparison"]["models"]} == {"bad", "alike"}
    alone = ran(capsys, "labels.npy", "sure.npy", "bad.npy", "--plot", "p.png")
    assert "bad alone has a finite log loss; with an infinite log loss sure cannot win" in alone
    none = ran(capsys, "labels.npy", "sure.npy", "sure.npy", "--names", "A,B")
    assert "no winner: every log loss is infinite" in none
    np.save("w.npy", np.where(np.isin(np.arange(ROWS), [7, 9]), 0.0, 1.0))
    assert "infinite" not in ran(capsys, *files, "--weights", "w.npy")


@pytest.mark.parametrize("files", [("good.npy",), ("good.npy", "bad.npy", "alike.npy")])
def test_the_plot_is_a_picture(files, here, capsys):
    from matplotlib.image import imread

    printed = ran(capsys, "labels.npy", *files, "--plot", "new/out.PNG", "--json", "new/out.json")
    assert "wrote new/out.json\nwrote new/out.PNG" in printed
    pixels = imread(here / "new" / "out.PNG", format="png")
    assert len(set(map(tuple, pixels.reshape(-1, pixels.shape[-1])[::7]))) > len(COLOURS)
    assert {path.name for path in (here / "new").iterdir()} == {"out.json", "out.PNG"}


# --- what goes in


def as_probs(z):
    return scipy.special.softmax(z, axis=1)


def as_log_probs(z):
    return scipy.special.log_softmax(z, axis=1)


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize(
    ("kind", "form", "words"),
    [
        ("logits", lambda z: z, "logits"),
        ("logits", lambda z: z.astype(np.float32), "logits"),
        ("log-probs", as_log_probs, "log-probabilities"),
        ("probs", as_probs, "probabilities"),
        ("probs", lambda z: as_probs(z).astype(np.float16), "probabilities"),
        ("probs", lambda z: as_probs(z).astype(np.float32), "probabilities"),
    ],
)
def test_every_kind(kind, form, words, guessed, data, here, capsys):
    saved = form(data["good"])
    np.save("p.npy", saved)
    given = () if guessed else ("--kind", kind)
    record = recorded(capsys, "labels.npy", "p.npy", *given)
    figures = record["models"]["p"]
    assert figures["kind"] == kind
    rtol = {2: 2e-3, 4: 1e-6, 8: 1e-12}[saved.dtype.itemsize]
    np.testing.assert_allclose(figures["log_loss"], np.mean(row_losses(data, "good")), rtol=rtol)
    printed = ran(capsys, "labels.npy", "p.npy", *given)
    assert f"p: p.npy, {words}{', by their values' if guessed else ''}\n" in printed


@pytest.mark.parametrize(
    ("kind", "form", "words"),
    [
        ("probs", scipy.special.expit, "probabilities of class 1"),
        ("logits", lambda z: z, "log-odds of class 1"),
        ("log-probs", scipy.special.log_expit, "log-probabilities of class 1"),
    ],
)
def test_one_number_a_row_is_of_class_1(kind, form, words, here, capsys):
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=ROWS) * 2, rng.integers(0, 2, ROWS)
    np.save("y.npy", y)
    np.save("p.npy", form(z))
    given = ("--kind", kind) if kind == "log-probs" else ()
    loss = sklearn.metrics.log_loss(y, scipy.special.expit(z))
    record = recorded(capsys, "y.npy", "p.npy", *given)
    np.testing.assert_allclose(record["models"]["p"]["log_loss"], loss, rtol=1e-12)
    assert f"p: p.npy, {words}" in ran(capsys, "y.npy", "p.npy", *given)


def test_float64_is_kept(here, capsys):
    np.save("y.npy", np.zeros(2, int))
    np.save("p.npy", np.array([[1 - 1e-12, 1e-12], [0.5, 0.5]]))
    record = recorded(capsys, "y.npy", "p.npy")
    loss = (-np.log1p(-1e-12) + np.log(2)) / 2
    np.testing.assert_allclose(record["models"]["p"]["log_loss"], loss, rtol=1e-14)


@pytest.mark.parametrize("header", ["", "zero,one,two,three\n", "# zero,1,2,3\n"])
def test_csv(header, data, here, capsys):
    rows = "\n".join(",".join(map(repr, row)) for row in data["good"].tolist())
    (here / "p.csv").write_text("\ufeff" + header + rows + "\n\n", "utf-8")
    labels = "label\n" if header else ""
    (here / "y.csv").write_text(labels + "\r\n".join(map(str, data["labels"].tolist())), "utf-8")
    groups = "who\n" if header else ""
    names = [f"patient {i // 3}" for i in range(ROWS)]
    (here / "g.csv").write_text(groups + "\n".join(names), "utf-8")
    (here / "w.csv").write_text("\n".join(["1.5"] * ROWS), "utf-8")
    options = ("--groups", "g.csv", "--weights", "w.csv")
    record = recorded(capsys, "y.csv", "p.csv", "bad.npy", *options)
    expected = np.mean(row_losses(data, "good"))
    np.testing.assert_allclose(record["models"]["p"]["log_loss"], expected, rtol=1e-12)
    assert record["comparison"]["groups"] == 20


def test_npz(data, here, capsys):
    np.savez("all.npz", labels=data["labels"], a=data["good"], b=data["bad"])
    np.savez("only.npz", whatever=data["good"])
    np.savez("likely.npz", probs=as_probs(data["good"]), rest=np.zeros(3))
    files = ("all.npz:a", "all.npz:b", "only.npz", "likely.npz")
    record = recorded(capsys, "all.npz", *files)
    assert list(record["models"]) == ["a", "b", "only", "likely"]
    loss = {name: m["log_loss"] for name, m in record["models"].items()}
    assert loss["a"] == loss["only"] == pytest.approx(loss["likely"], rel=1e-12)
    assert loss["b"] > loss["a"]


def test_files_of_one_stem_have_whole_names(data, here, capsys):
    for folder in ("x", "y"):
        (here / folder).mkdir()
        np.save(here / folder / "p.npy", data["good"])
    record = recorded(capsys, "labels.npy", "x/p.npy", "y/p.npy")
    assert list(record["models"]) == ["x/p.npy", "y/p.npy"]


def changed(array, at, value):
    array = np.array(array, np.float64)
    array[at] = value
    return array


LABELS = {
    "missing.npy": (None, "missing.npy: no such file"),
    "y.txt": ("1\n", "y.txt: expected .npy, .npz or .csv"),
    "y.npy": (lambda d: d["labels"].astype(float), "y.npy: labels must be integers, got float64"),
    "bool.npy": (lambda d: d["labels"] > 1, "labels must be integers, got bool"),
    "column.npy": (lambda d: d["labels"][:, None], "labels must be [N], one a row, got [60, 1]"),
    "empty.npy": (lambda d: d["labels"][:0], "empty.npy: no rows"),
    "short.npy": (lambda d: d["labels"][:-1], "good.npy: 60 rows, but there are 59 labels"),
    "high.npy": (
        lambda d: changed(d["labels"], 3, CLASSES).astype(int),
        "high.npy: row 3: 4 is outside [0, 4), the classes of the predictions",
    ),
    "low.npy": (lambda d: changed(d["labels"], 5, -1).astype(int), "low.npy: row 5: -1 is outside"),
    "half.csv": ("label\n1\n2\n1.5\n", "half.csv: row 2: '1.5' is not a whole number"),
    "huge.csv": ("1\n" + str(2**70) + "\n", "huge.csv: labels must be integers, got object"),
    "header.csv": ("label\n", "header.csv: no rows"),
    "none.csv": ("", "none.csv: no rows"),
    "object.npy": (lambda d: np.array([{}, 1], object), "object.npy: cannot read it: "),
    "damaged.npz": ("not a zip", "damaged.npz: cannot read it: "),
    "cut.npy": (b"\x93NUMPY\x01\x00", "cut.npy: cannot read it: "),
}

PREDICTIONS = {
    "missing.npy": (None, "missing.npy: no such file"),
    "nan.npy": (
        lambda d: changed(d["good"], (7, 2), np.nan),
        "nan.npy: row 7, column 2: nan is not",
    ),
    "inf.npy": (
        lambda d: changed(d["good"], (8, 1), np.inf),
        "inf.npy: row 8, column 1: inf is no",
    ),
    "never.npy": (lambda d: changed(d["good"], 9, -np.inf), "row 9: every class is impossible"),
    "long.npy": (
        lambda d: np.vstack([d["good"], d["good"][:1]]),
        "long.npy: 61 rows, but there are 60 labels",
    ),
    "cube.npy": (lambda d: d["good"][None], "predictions must be [N, V], or [N], got [1, 60, 4]"),
    "column.npy": (lambda d: d["good"][:, :1], "predictions have one class, [60, 1]"),
    "none.npy": (lambda d: d["good"][:, :0], "predictions must be [N, V], or [N], got [60, 0]"),
    "bool.npy": (lambda d: d["good"] > 0, "predictions must be numbers, got bool"),
    "complex.npy": (lambda d: d["good"] + 0j, "predictions must be numbers, got complex128"),
    "classes.npy": (
        lambda d: d["labels"].astype(np.float32),
        "classes.npy: whole numbers [N], as of predicted classes; say which with --kind",
    ),
    "fewer.npy": (lambda d: d["good"][:, :3], "fewer.npy: 3 classes, but good.npy has 4"),
    "off.npy": (
        lambda d: changed(as_probs(d["good"]), (4, 0), 0.99),
        "off.npy: none is negative, but row 4 sums to",
    ),
    "percent.npy": (lambda d: 100 * as_probs(d["good"]), "sums to 100, not 1: probabilities or"),
    "nearly.npy": (lambda d: changed(as_probs(d["good"]), (0, 0), -1e-9), "none is negative, but"),
    "shifted.npy": (
        lambda d: d["good"] - d["good"].max() - 1,
        "log-probabilities or logits?; say which with --kind",
    ),
    "positive.npy": (lambda d: np.abs(d["good"][:, 0]) + 0.5, "could be several things"),
    "ragged.csv": ("0.5,0.5\n0.5\n", "ragged.csv: row 1 has 1 columns, row 0 2"),
    "text.csv": ("a,b\n0.5,0.5\n0.5,half\n", "text.csv: row 1, column 1: 'half' is not a number"),
    "gap.csv": ("a,b\n0.5,0.5\n,0.5\n", "gap.csv: row 1, column 0: '' is not a number"),
    "index.csv": (",0,1\n0,0.5,0.5\n", "index.csv: the first column has no name, as an index"),
    "several.npz": (
        lambda d: {"a": d["good"], "b": d["bad"]},
        "Say several.npz:KEY; the file holds a, b",
    ),
    "key.npz:c": (lambda d: {"a": d["good"]}, "key.npz:c: no such key; the file holds a"),
}


def save(given: str, content, data) -> None:
    path = given.split(":")[0]
    if isinstance(content, str | bytes):
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    elif content is not None and path.endswith(".npz"):
        np.savez(path, **content(data))
    elif content is not None:
        np.save(path, content(data), allow_pickle=True)


def untouched(here, capsys, *argv: str, code: int = common.FAILED) -> str:
    """The line of a refusal that wrote nothing."""
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    outputs = ("--json", "made/out.json", "--plot", "made/out.png")
    got, line = refused(capsys, "compare", *argv, *outputs)
    assert got == code
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    return line


@pytest.mark.parametrize("given", LABELS)
def test_bad_labels(given, data, here, capsys):
    content, words = LABELS[given]
    save(given, content, data)
    assert words in untouched(here, capsys, given, "good.npy")


@pytest.mark.parametrize("given", PREDICTIONS)
def test_bad_predictions(given, data, here, capsys):
    content, words = PREDICTIONS[given]
    save(given, content, data)
    line = untouched(here, capsys, "labels.npy", "good.npy", given)
    assert words in line and line.startswith(f"python -m jxent: {given}: ")


@pytest.mark.parametrize(
    ("kind", "form", "words"),
    [
        ("probs", lambda d: d["good"], "is no probability"),
        ("probs", lambda d: changed(as_probs(d["good"]), (4, 0), 0.99), "row 4: probabilities sum"),
        ("log-probs", lambda d: d["good"], "is no log-probability"),
        (
            "log-probs",
            lambda d: as_log_probs(d["good"]) - 1,
            "row 0: probabilities sum to 0.367879",
        ),
        (
            "logits",
            lambda d: changed(d["good"], (8, 1), np.inf),
            "row 8, column 1: inf is no logit",
        ),
    ],
)
def test_a_kind_that_is_not_so(kind, form, words, data, here, capsys):
    np.save("p.npy", form(data))
    line = untouched(here, capsys, "labels.npy", "p.npy", "--kind", kind)
    assert words in line and "p.npy: row " in line


@pytest.mark.parametrize(
    ("flag", "array", "words"),
    [
        ("--weights", changed(np.ones(ROWS), 2, -1), "row 2: -1.0 must be finite and not negative"),
        ("--weights", changed(np.ones(ROWS), 2, np.nan), "row 2: nan must be finite"),
        ("--weights", np.zeros(ROWS), "all weights are 0"),
        ("--weights", np.ones((ROWS, 1)), "weights must be numbers [N], got float64[60, 1]"),
        ("--weights", np.ones(3), "3 rows, but there are 60 labels"),
        ("--groups", np.ones(ROWS), "groups must be integers or strings [N]"),
        ("--groups", np.arange(3), "3 rows, but there are 60 labels"),
    ],
)
def test_bad_weights_and_groups(flag, array, words, here, capsys):
    np.save("x.npy", array)
    line = untouched(here, capsys, "labels.npy", "good.npy", "bad.npy", flag, "x.npy")
    assert f"x.npy: {words}" in line


def test_a_group_too_many_is_no_header(here, capsys):
    (here / "g.csv").write_text("\n".join(f"g{i % 7}" for i in range(ROWS + 1)))
    line = untouched(here, capsys, "labels.npy", "good.npy", "bad.npy", "--groups", "g.csv")
    assert "g.csv: 61 rows, but there are 60 labels" in line


def test_one_group_has_no_standard_error(here, capsys):
    np.save("g.npy", np.zeros(ROWS, int))
    code, line = refused(
        capsys,
        "compare",
        "labels.npy",
        "good.npy",
        "bad.npy",
        "--groups",
        "g.npy",
        "--json",
        "o.json",
    )
    assert code == common.FAILED and "at least 2 groups" in line and not (here / "o.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--names", "A"),
            "argument --names: expected 2 different names, one for each PRED, got 'A'",
        ),
        (("--names", "A,A"), "expected 2 different names"),
        (("--names", "A,"), "expected 2 different names"),
        (("--kind", "odds"), "argument --kind: invalid choice: 'odds'"),
        (
            ("--confidence", "1"),
            "argument --confidence: expected a number between 0 and 1, got '1'",
        ),
        (("--confidence", "nan"), "argument --confidence: expected a number"),
        (("--resamples", "39"), "argument --resamples: expected at least 40 at confidence 0.95"),
        (("--resamples", "0"), "argument --resamples: expected a whole number of at least 1"),
        (("--seed", "-1"), "argument --seed: expected a whole number from 0"),
        (("--plot", "out.doc"), "--plot out.doc: expected one of "),
        (("--plot", "out"), "--plot out: expected one of "),
        (("--json", "labels.npy"), "--json labels.npy: it is read, and would be lost"),
        (("--json", "labels.npy/x"), "--json labels.npy/x: cannot write there"),
    ],
)
def test_bad_flags(flags, words, here, capsys):
    before = {path: path.read_bytes() for path in here.iterdir()}
    code, line = refused(capsys, "compare", "labels.npy", "good.npy", "bad.npy", *flags)
    assert code == common.BAD_FLAG and words in line
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_the_same_file_twice_needs_names(here, capsys):
    code, line = refused(capsys, "compare", "labels.npy", "good.npy", "good.npy")
    assert code == common.BAD_FLAG and "argument --names: expected 2 different names" in line


def test_what_cannot_be_written_is_not_begun(here, capsys, monkeypatch):
    """A file that does not fit leaves the others as they were."""
    (here / "old.json").write_text("old")
    real, calls = tempfile.NamedTemporaryFile, []

    def full(**options):
        calls.append(options)
        if len(calls) == 2:
            raise OSError("no space left")
        return real(**options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    files = ("labels.npy", "good.npy", "bad.npy")
    code, line = refused(capsys, "compare", *files, "--plot", "a.png", "--json", "old.json")
    assert code == common.FAILED and "a.png: cannot write there: no space left" in line
    assert (here / "old.json").read_text() == "old"
    names = {"labels.npy", "good.npy", "bad.npy", "alike.npy", "old.json"}
    assert {path.name for path in here.iterdir()} == names


@pytest.mark.parametrize(
    ("flags", "module"), [((), "rich"), ((), "scipy"), (("--plot", "a.png"), "matplotlib")]
)
def test_a_missing_extra_is_named(flags, module, here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    code, line = refused(capsys, "compare", "labels.npy", "good.npy", *flags)
    assert code == common.FAILED
    assert "needs: pip install 'jxent[demo]'" in line and module in line


def test_it_needs_neither_optax_nor_chex(here, monkeypatch, capsys):
    for module in ("optax", "chex"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is an error
    assert "good is better than bad" in ran(capsys, "labels.npy", "good.npy", "bad.npy")


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["compare", "--help"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    flags = ("--kind", "--groups", "--weights", "--names", "--confidence", "--resamples", "--seed")
    assert all(word in printed for word in ("LABELS", "PRED", *flags, "--plot", "--json"))


def test_the_terminal_may_know_only_ascii(here, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["compare", "labels.npy", "good.npy", "bad.npy"]) == 0
    out.flush()
    assert b"good is better than bad" in out.buffer.getvalue()
