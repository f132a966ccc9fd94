"""The notebooks are as their sources say, hold what a run gives, and run as a reader runs them."""

import ast
import base64
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import compiling
import nbformat
import pytest
from sampling import only

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
BY_NAME = [pytest.param(path, id=path.stem) for path in SOURCES]
# Those whose programs are the reader's recipes run every time.
OFTEN = ("02_training_with_optax",)
LARGEST = 2_000_000  # bytes of all notebooks together

# An address on somebody's machine: /home/…, /tmp/…, C:\…, ~/…
ABSOLUTE = re.compile(r"""(?<![\w.:/])(?:/(?:\w[\w.-]*/)+\w|~/\w|[A-Z]:[\\/])""")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's but the path: this tree's jxent, this Python's kernel, the CPU."""
    unwanted = ("JAX_", "XLA_", "PYTEST_", "PYTHON", "JUPYTER_", "MPLBACKEND")
    inherited = {name: x for name, x in os.environ.items() if not name.startswith(unwanted)}
    own = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    return inherited | own | more


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(folder / "build.py"), *arguments]
    where = environment(folder)
    return subprocess.run(command, env=where, capture_output=True, text=True, timeout=120)


def script() -> ModuleType:
    """notebooks/build.py."""
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = script()


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook that a source makes, without outputs."""
    return BUILD.notebook_of(BUILD.source_text(source))


def kept(source: Path) -> nbformat.NotebookNode:
    """The notebook beside a source."""
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def copy_of(folder: Path) -> Path:
    ours = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    return Path(shutil.copytree(FOLDER, folder / "notebooks", ignore=ours))


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def contents(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]


def test_there_are_notebooks():
    assert SOURCES


def test_the_readme_links_and_shows_them():
    readme = (ROOT / "README.md").read_text()
    linked = re.findall(r"(?m)^\| \[[^]]*\]\(notebooks/([\w.]+)\.ipynb\)", readme)
    assert linked == [source.stem for source in SOURCES]
    (shown,) = re.findall(r"!\[[^]]+\]\(notebooks/pictures/([\w.]+)\.png\)", readme)
    assert [path.stem for path in (FOLDER / "pictures").iterdir()] == [shown]
    assert [s.stem for s in SOURCES if tagged(read(s), "gallery")] == [shown]


def test_nothing_is_stale():
    done = build(FOLDER, "--check")
    assert done.returncode == 0, done.stderr


def test_a_change_is_named(tmp_path):
    folder = copy_of(tmp_path)
    with (folder / SOURCES[0].name).open("a") as source:
        source.write("\n# %%\n1 + 1\n")
    (folder / "99_without_a_source.ipynb").write_text("{}")
    before = {path.name: path.read_bytes() for path in folder.glob("[0-9]*")}
    done = build(folder, "--check")
    assert done.returncode == 1
    assert f"{SOURCES[0].stem}.ipynb" in done.stderr
    assert "99_without_a_source.ipynb" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("[0-9]*")} == before


def test_built_again_is_the_same(tmp_path):
    folder = copy_of(tmp_path)
    assert build(folder).returncode == 0
    for path in FOLDER.glob("[0-9]*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_outputs_go_with_their_code(tmp_path):
    """They stay where words change, and go where code does."""
    folder = copy_of(tmp_path)
    source = folder / SOURCES[0].name
    text, there = source.read_text(), kept(source)
    source.write_text(text + "\n# %% [markdown]\n# A word more.\n")
    assert build(folder).returncode == 0
    assert [c.outputs for c in BUILD.code(kept(source))] == [c.outputs for c in BUILD.code(there)]
    source.write_text(text + "\n# %%\n1 + 1\n")
    assert build(folder).returncode == 0
    assert not any(cell.outputs for cell in BUILD.code(kept(source)))


def test_the_tests_cells_are_not_the_reader_s():
    text = "\n".join(f'# %% tags=["{tag}"]\n{tag} = 1\n' for tag in ("check", "fast", "gallery"))
    header = BUILD.HEADER
    assert [c.source for c in BUILD.notebook_of(header + text).cells] == ["gallery = 1"]
    at_full_size = BUILD.notebook_of(header + text, without=("fast",))
    assert [c.source for c in at_full_size.cells] == ["check = 1", "gallery = 1"]
    for source in SOURCES:
        assert not tagged(kept(source), "check") and not tagged(kept(source), "fast")


def test_the_repository_is_in_badges_and_install_cells(tmp_path):
    """One value, and back again without a trace."""
    folder = copy_of(tmp_path)
    text = (folder / "build.py").read_text()
    unset = 'REPOSITORY = ""'
    assert unset in text
    url = "https://github.com/someone/jxent"
    (folder / "build.py").write_text(text.replace(unset, f'REPOSITORY = "{url}"'))
    assert build(folder).returncode == 0
    for path in SOURCES:
        notebook = kept(folder / path.name)
        page = f"/github/someone/jxent/blob/main/notebooks/{path.stem}.ipynb"
        assert f"https://colab.research.google.com{page}" in notebook.cells[0].source
        (cell,) = tagged(notebook, "install")
        assert f'"jxent": "git+{url}"' in cell.source
        assert "no package index" not in cell.source
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    (folder / "build.py").write_text(text)
    assert build(folder).returncode == 0
    for path in SOURCES:
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_execute_stores_what_it_prints_and_draws(tmp_path):
    shutil.copy(FOLDER / "build.py", tmp_path)
    cells = [
        "[markdown]\n# # A line",
        'tags=["install"]\nimport jxent',
        "\nimport matplotlib.pyplot as plt\n\nplt.figure(figsize=(1, 1))",
        'tags=["check"]\nraise AssertionError("for the tests alone")',
        'tags=["gallery"]\nfig, ax = plt.subplots(figsize=(3, 2))\nfor i in (1, 2):\n    print(i)',
        "[markdown]\n# {{one.md}}",
    ]
    (tmp_path / "00_line.py").write_text("\n\n".join(f"# %% {cell}" for cell in cells) + "\n")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "one.md").write_text("<!-- a -->\n| 1 |\n<!-- end -->\n")
    done = build(tmp_path, "--execute")
    assert done.returncode == 0, done.stderr
    notebook = kept(tmp_path / "00_line.py")
    assert [cell.execution_count for cell in BUILD.code(notebook)] == [1, 2, 3]
    assert notebook.cells[-1].source == "| 1 |"
    printed, drawn = tagged(notebook, "gallery")[0].outputs
    assert printed.text == "1\n2\n"
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "00_line.png"
    png = picture.read_bytes()
    assert png == base64.b64decode(drawn.data["image/png"])
    assert png.startswith(b"\x89PNG")
    wide, high = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert wide > 150  # of the two pictures, the tagged one
    assert high > 100
    assert build(tmp_path, "--check").returncode == 0


@pytest.mark.parametrize("source", BY_NAME)
def test_source_and_notebook_agree(source):
    notebook = kept(source)
    nbformat.validate(notebook)
    assert contents(notebook) == contents(read(source))
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("source", BY_NAME)
def test_it_is_stored_as_it_ran(source):
    assert_it_ran(kept(source))
    for cell in kept(source).cells:
        assert set(cell.metadata) <= {"tags"}


def test_the_notebooks_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.ipynb")) < LARGEST


@pytest.mark.parametrize("source", BY_NAME)
def test_nothing_of_the_tests_is_left(source):
    """A reader's notebook has neither their sizes nor their assertions."""
    for cell in BUILD.code(kept(source)):
        assert "JXENT_" not in cell.source
        assert not re.search(r"(?m)^\s*assert |\bchex\b", cell.source)


@pytest.mark.parametrize("source", BY_NAME)
def test_one_cell_installs(source):
    notebook = read(source)
    (cell,) = tagged(notebook, "install")
    code = BUILD.code(notebook)
    assert code[0] is cell
    assert cell.source.endswith("\nimport jxent")
    assert "pip wheel" in cell.source  # where there is no checkout
    assert all(not re.search(r"\bpip\b", other.source) for other in code[1:])
    packages = ast.literal_eval(re.search(r"packages = (\{[^}]*\})", cell.source)[1])
    assert packages["jxent"] == ".."
    for module in ("matplotlib", "sklearn", "flax", "equinox"):
        imported = re.search(rf"(?m)^\s*(import|from) {module}\b", source.read_text())
        assert (module in packages) == bool(imported)


@pytest.mark.parametrize("source", BY_NAME)
def test_no_place_on_a_machine(source):
    texts = [source.read_text()]
    for cell in kept(source).cells:
        texts.append(cell.source)
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    for text in texts:
        assert not ABSOLUTE.findall(re.sub(r"https?://\S+", "", text)), source


def run(source: Path, folder: Path, *without: str, **more: str) -> nbformat.NotebookNode:
    """With the tests' cells, by nbmake in a process of its own, on the CPU; read back as it ran."""
    copy = folder / f"{source.stem}.ipynb"
    nbformat.write(BUILD.notebook_of(BUILD.source_text(source), without), copy)
    (folder / "pytest.ini").write_text("[pytest]\n")
    settings = "-c pytest.ini -o addopts= -p no:xdist -p no:cacheprovider"
    nbmake = "--nbmake --nbmake-timeout=300 --overwrite"
    command = [sys.executable, "-m", "pytest", *settings.split(), *nbmake.split(), copy.name]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return nbformat.read(copy, as_version=4)


def assert_it_ran(notebook: nbformat.NotebookNode) -> None:
    code = BUILD.code(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in said, said
    for cell in tagged(notebook, "gallery"):
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize(
    "source", only(lambda source: source.stem in OFTEN, SOURCES), ids=lambda source: source.stem
)
def test_it_runs(source, tmp_path):
    # Its programs are small, and the time goes into compiling them.
    assert_it_ran(run(source, tmp_path, XLA_FLAGS=compiling.flags(compiling.QUICK)))


@pytest.mark.deep
@pytest.mark.parametrize("source", BY_NAME)
def test_it_runs_at_full_size(source, tmp_path):
    assert_it_ran(run(source, tmp_path, "fast"))
