"""Write each notebook from the source beside it.

    python notebooks/build.py              every NN_name.py and its .ipynb
    python notebooks/build.py --check      write nothing; name what differs and exit with 1
    python notebooks/build.py --execute    run the notebooks and store what they print and draw
    python notebooks/build.py --execute 04_large_vocabulary     only that one

A source is in jupytext's percent format. Its header, its badge and its cell tagged `install` are
written here; everything else is the author's. Other tags:

    gallery     the picture is kept in `pictures` as well
    check       what the tests assert; not in the notebook
    fast        smaller sizes for the tests; not in the notebook

`{{name.md}}` stands for the text of `tables/name.md`. Outputs are kept as long as the code is the
same.
"""

import argparse
import ast
import base64
import io
import re
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat
from PIL import Image

# What the badges open and the notebooks install: https://github.com/owner/name.
REPOSITORY = ""

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))
PICTURES = HERE / "pictures"
TABLES = HERE / "tables"
COLOURS = 256  # of a picture
FOR_TESTS = ("check", "fast")
LANGUAGE = {"name": "python"}

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

"""

INSTALL = """\
# %% tags=["install"]
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

# What is missing is installed; what is here keeps its version.{where}
packages = {{
{packages}}}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{{name}}=={{version(name)}}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

"""
NO_INDEX = """ jxent is on no package index:
# ".." is its checkout. Where there is none, run `pip wheel --no-deps .` in one, bring the wheel
# here, and write its path in place of ".."."""

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
WITH_JXENT = {"jxent", "jax", "jaxlib", "numpy", "optax", "chex", "jaxtyping"}
PIP_NAMES = {"sklearn": "scikit-learn"}


def source_text(path: Path) -> str:
    """The source with header, badge and install cell as they should be."""
    header, *cells = re.split(r"(?m)^(?=# %%)", path.read_text())
    if re.search(r"(?m)^(?!#|$)", header):
        raise SystemExit(f"{path.name}: code above the first cell")
    if not cells or not cells[0].startswith("# %% [markdown]\n# # "):
        raise SystemExit(f"{path.name}: the first cell is to be markdown and to start with `# # `")
    cells[0] = with_badge(cells[0], path.stem)
    install = [i for i, cell in enumerate(cells) if cell.startswith(INSTALL.split("\n")[0] + "\n")]
    if len(install) != 1:
        raise SystemExit(f"{path.name}: {len(install)} cells tagged install, one is needed")
    cells[install[0]] = ""
    packages = {"jxent": f"git+{REPOSITORY}" if REPOSITORY else ".."}
    packages |= {name: PIP_NAMES.get(name, name) for name in others_imported("".join(cells))}
    lines = [f'    "{module}": "{package}",\n' for module, package in packages.items()]
    where = "" if REPOSITORY else NO_INDEX
    cells[install[0]] = INSTALL.format(packages="".join(lines), where=where)
    return HEADER + "".join(cells)


def with_badge(cell: str, stem: str) -> str:
    """The title's cell, the badge below the title when there is somewhere to go."""
    mark = "# [![Colab]("
    cell = re.sub(rf"#\n{re.escape(mark)}.*\n", "", cell)
    if not REPOSITORY:
        return cell
    name = REPOSITORY.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    page = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{stem}.ipynb"
    marker, title, rest = cell.split("\n", 2)
    return f"{marker}\n{title}\n#\n{mark}{BADGE})]({page})\n{rest}"


def others_imported(text: str) -> list[str]:
    """The modules that a source imports and that do not come with Python or with jxent."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return sorted(found - WITH_JXENT - set(sys.stdlib_module_names))


def notebook_of(text: str, without: tuple[str, ...] = FOR_TESTS) -> nbformat.NotebookNode:
    """The notebook without outputs, the same for the same source."""
    notebook = jupytext.reads(text, fmt="py:percent")
    kernel = notebook.metadata.kernelspec
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = [cell for cell in notebook.cells if not tags(cell) & set(without)]
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02}"
        if not tags(cell):
            cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\{\{([\w.]+)\}\}", table, cell.source)
    return notebook


def tags(cell: nbformat.NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def table(name: re.Match[str]) -> str:
    """The text of a file of `tables`, without the marks for the programs that write it."""
    text = (TABLES / name[1]).read_text("utf-8")
    return re.sub(r"(?m)^<!-- .* -->\n", "", text).strip()


def written(notebook: nbformat.NotebookNode) -> str:
    """The notebook as text."""
    return nbformat.writes(notebook) + "\n"


def stored(path: Path) -> nbformat.NotebookNode | None:
    """The notebook in a file, if there is one."""
    try:
        return nbformat.read(path, as_version=4)
    except (FileNotFoundError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return None


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_outputs(notebook: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that its file has, if they are those of the same code."""
    old = stored(path)
    cells = [] if old is None else code(old)
    if [cell.source for cell in cells] == [cell.source for cell in code(notebook)]:
        for cell, run in zip(code(notebook), cells, strict=True):
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    return notebook


def built() -> dict[Path, str]:
    """Every file that this writes, and what is to be in it."""
    files = {}
    for path in SOURCES:
        files[path] = text = source_text(path)
        page = path.with_suffix(".ipynb")
        files[page] = written(with_outputs(notebook_of(text), page))
    return files


def different(files: dict[Path, str]) -> list[str]:
    """The names of the files that are not as built, and of notebooks that have no source."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return sorted(path.name for path in [*stale, *set(HERE.glob("*.ipynb")).difference(files)])


def execute(path: Path) -> None:
    """Run a notebook at full size, store it with its outputs, and the picture tagged `gallery`."""
    notebook = notebook_of(source_text(path))
    resolution = 'import matplotlib\nmatplotlib.rcParams["figure.dpi"] = 100'
    notebook.cells.insert(0, nbformat.v4.new_code_cell(resolution))
    where = {"metadata": {"path": str(HERE)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where, record_timing=False).execute()
    del notebook.cells[0]
    notebook.metadata.language_info = LANGUAGE  # not that of one machine's Python
    for cell in code(notebook):
        cell.execution_count -= 1
        cell.outputs = joined([small(output) for output in cell.outputs])
    path.with_suffix(".ipynb").write_text(written(notebook))
    chosen = [cell for cell in notebook.cells if "gallery" in tags(cell)]
    pictures = [
        output.data["image/png"]
        for cell in chosen
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if len(pictures) != len(chosen):
        raise SystemExit(f"{path.name}: {len(pictures)} pictures in cells tagged gallery")
    PICTURES.mkdir(exist_ok=True)
    for png in pictures:
        (PICTURES / f"{path.stem}.png").write_bytes(base64.b64decode(png))


def small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output, its picture in few colours."""
    if "execution_count" in output:
        output.execution_count -= 1
    data = output.get("data", {})
    if "image/png" in data:
        data.pop("text/plain", None)
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        packed = io.BytesIO()
        few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(packed, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(packed.getvalue()).decode()
    return output


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, neighbouring pieces of a stream in one."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        name = output.get("name")
        if name and found and found[-1].get("name") == name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="name what differs, write nothing")
    help = "run the notebooks, or those that are named, and store their outputs"
    choice.add_argument("--execute", nargs="*", metavar="NAME", help=help)
    arguments = parser.parse_args()
    if arguments.check:
        if names := different(built()):
            raise SystemExit("not as `python notebooks/build.py` writes them: " + ", ".join(names))
        return
    for path, text in built().items():
        path.write_text(text)
    if arguments.execute is not None:
        chosen = [path for path in SOURCES if path.stem in (arguments.execute or [path.stem])]
        for path in chosen:
            execute(path)


if __name__ == "__main__":
    main()
