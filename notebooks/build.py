"""Write each notebook from the source beside it.

    python notebooks/build.py             every NN_name.py and its .ipynb
    python notebooks/build.py --check     write nothing; name what differs and exit with 1
    python notebooks/build.py --gallery   run the notebooks; keep the picture that each one shows

A source is in jupytext's percent format. Its header, its badge and its cell tagged `install` are
written here; everything else is the author's. A cell tagged `gallery` draws the picture.
"""

import argparse
import ast
import base64
import re
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat

# What the badges open and the notebooks install: https://github.com/owner/name.
REPOSITORY = ""

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))
PICTURES = HERE / "pictures"
LARGEST_PICTURE = 60_000  # bytes

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
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

packages = {{  # module: what pip installs
{packages}}}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    # What is here stays as it is: an accelerator's plugin fits one version of JAX only.
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{{name}}=={{version(name)}}" for name in here if find_spec(name)]
    constraints = Path(tempfile.mkdtemp(), "constraints.txt")
    constraints.write_text("\\n".join(pins))
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints)]
    subprocess.run([*pip, *missing], check=True)

import jxent

"""

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
    cells[install[0]] = INSTALL.format(packages="".join(lines))
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


def notebook_of(text: str) -> nbformat.NotebookNode:
    """The notebook without outputs, the same for the same source."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02}"
        if not cell.metadata.get("tags"):
            cell.metadata = nbformat.from_dict({})
    return notebook


def built() -> dict[Path, str]:
    """Every file that this writes, and what is to be in it."""
    files = {}
    for path in SOURCES:
        files[path] = text = source_text(path)
        files[path.with_suffix(".ipynb")] = nbformat.writes(notebook_of(text)) + "\n"
    return files


def different(files: dict[Path, str]) -> list[str]:
    """The names of the files that are not as built, and of notebooks that have no source."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return sorted(path.name for path in [*stale, *set(HERE.glob("*.ipynb")).difference(files)])


def draw(path: Path) -> None:
    """Run a notebook at full size and keep the picture of its cell tagged `gallery`."""
    notebook = notebook_of(source_text(path))
    chosen = [c for c in notebook.cells if "gallery" in c.metadata.get("tags", [])]
    if not chosen:
        return
    resolution = nbformat.v4.new_code_cell(
        'import matplotlib\nmatplotlib.rcParams["figure.dpi"] = 110'
    )
    notebook.cells.insert(0, resolution)
    where = {"metadata": {"path": str(HERE)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    data = [output.get("data", {}) for cell in chosen for output in cell.outputs]
    pictures = [of["image/png"] for of in data if "image/png" in of]
    if len(pictures) != 1:
        raise SystemExit(f"{path.name}: {len(pictures)} pictures in cells tagged gallery")
    png = base64.b64decode(pictures[0])
    if len(png) > LARGEST_PICTURE:
        raise SystemExit(f"{path.name}: a picture of {len(png)} bytes, {LARGEST_PICTURE} at most")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"{path.stem}.png").write_bytes(png)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="name what differs, write nothing")
    choice.add_argument("--gallery", action="store_true", help="draw the pictures")
    arguments = parser.parse_args()
    if arguments.gallery:
        for path in SOURCES:
            draw(path)
    elif arguments.check:
        if names := different(built()):
            raise SystemExit("not as `python notebooks/build.py` writes them: " + ", ".join(names))
    else:
        for path, text in built().items():
            path.write_text(text)


if __name__ == "__main__":
    main()
