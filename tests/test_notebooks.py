"""The notebooks are as their sources say, hold no outputs, and run as a reader runs them."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
BY_NAME = [pytest.param(path, id=path.stem) for path in SOURCES]
FAST = [BY_NAME[0], pytest.param(SOURCES[3], id=SOURCES[3].stem, marks=pytest.mark.deep)]

# An address on somebody's machine: /home/…, /tmp/…, C:\…, ~/…
ABSOLUTE = re.compile(r"""(?<![\w.:/])(?:/(?:\w[\w.-]*/)+\w|~/\w|[A-Z]:[\\/])""")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's but the path: this tree's jxent, this Python's kernel, the CPU."""
    unwanted = ("JXENT_", "JAX_", "XLA_", "PYTEST_", "PYTHON", "JUPYTER_", "MPLBACKEND")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(unwanted)}
    own = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    return kept | own | more


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(folder / "build.py"), *arguments]
    where = environment(folder)
    return subprocess.run(command, env=where, capture_output=True, text=True, timeout=120)


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
    linked = re.findall(r"[^!]\[[^]]*\]\(notebooks/([\w.]+)\.ipynb\)", readme)
    assert linked == [source.stem for source in SOURCES]
    shown = re.findall(r"!\[[^]]+\]\(notebooks/pictures/([\w.]+)\.png\)", readme)
    assert len(shown) == 2
    assert sorted(shown) == sorted(path.stem for path in (FOLDER / "pictures").iterdir())
    drawn = [s.stem for s in SOURCES if tagged(jupytext.read(s), "gallery")]
    assert shown == drawn


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


def test_the_repository_is_in_badges_and_install_cells(tmp_path):
    """One value, and back again without a trace."""
    folder = copy_of(tmp_path)
    script = (folder / "build.py").read_text()
    unset = 'REPOSITORY = ""'
    assert unset in script
    url = "https://github.com/someone/jxent"
    (folder / "build.py").write_text(script.replace(unset, f'REPOSITORY = "{url}"'))
    assert build(folder).returncode == 0
    for path in SOURCES:
        notebook = nbformat.read(folder / f"{path.stem}.ipynb", as_version=4)
        page = f"/github/someone/jxent/blob/main/notebooks/{path.stem}.ipynb"
        assert f"https://colab.research.google.com{page}" in notebook.cells[0].source
        (cell,) = tagged(notebook, "install")
        assert f'"jxent": "git+{url}"' in cell.source
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    (folder / "build.py").write_text(script)
    assert build(folder).returncode == 0
    for path in SOURCES:
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_the_gallery_keeps_the_tagged_picture(tmp_path):
    shutil.copy(FOLDER / "build.py", tmp_path)
    cells = [
        "[markdown]\n# # A line",
        'tags=["install"]\nimport jxent',
        "\nimport matplotlib.pyplot as plt\n\nplt.figure(figsize=(1, 1))",
        'tags=["gallery"]\nfig, ax = plt.subplots(figsize=(3, 2))',
    ]
    (tmp_path / "00_line.py").write_text("\n\n".join(f"# %% {cell}" for cell in cells) + "\n")
    done = build(tmp_path, "--gallery")
    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "00_line.png"
    png = picture.read_bytes()
    assert png.startswith(b"\x89PNG")
    wide, high = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert wide > 150  # of the two pictures, the tagged one
    assert high > 100


@pytest.mark.parametrize("source", BY_NAME)
def test_source_and_notebook_agree(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert contents(notebook) == contents(jupytext.read(source))
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("source", BY_NAME)
def test_nothing_is_left_of_a_run(source):
    for cell in nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("source", BY_NAME)
def test_one_cell_installs(source):
    notebook = jupytext.read(source)
    (cell,) = tagged(notebook, "install")
    code = [other for other in notebook.cells if other.cell_type == "code"]
    assert code[0] is cell
    assert cell.source.endswith("\nimport jxent")
    assert all(not re.search(r"\bpip\b", other.source) for other in code[1:])
    packages = ast.literal_eval(re.search(r"packages = (\{[^}]*\})", cell.source)[1])
    assert packages["jxent"] == ".."
    for module in ("matplotlib", "sklearn", "flax", "equinox"):
        imported = re.search(rf"(?m)^\s*(import|from) {module}\b", source.read_text())
        assert (module in packages) == bool(imported)


@pytest.mark.parametrize("source", BY_NAME)
def test_no_place_on_a_machine(source):
    for path in (source, source.with_suffix(".ipynb")):
        text = re.sub(r"https?://\S+", "", path.read_text())
        assert not ABSOLUTE.findall(text), path


def run(notebook: Path, folder: Path, **more: str) -> nbformat.NotebookNode:
    """A copy run by nbmake in a process of its own, on the CPU, and read back with its outputs."""
    copy = Path(shutil.copy(notebook, folder))
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
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in said, said
    for cell in tagged(notebook, "gallery"):
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("source", FAST)
def test_it_runs(source, tmp_path):
    assert_it_ran(run(source.with_suffix(".ipynb"), tmp_path, JXENT_FAST="1"))


@pytest.mark.deep
@pytest.mark.parametrize("source", BY_NAME)
def test_it_runs_at_full_size(source, tmp_path):
    assert_it_ran(run(source.with_suffix(".ipynb"), tmp_path))
