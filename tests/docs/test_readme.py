"""The README: its blocks run, its names and links exist, what it claims of memory is so.

Blocks under one heading run in order in one namespace; each heading starts afresh.  They run as a
user would run them, under JAX's ordinary promotion.
"""

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import jxent

pytestmark = pytest.mark.relaxed

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
LINES = TEXT.splitlines()


class Block(NamedTuple):
    """A fenced block: the heading it is under, its language, its first line's number, its text."""

    heading: str
    language: str
    line: int
    code: str


def _blocks() -> list[Block]:
    found, heading, start, language = [], "", None, ""
    for number, line in enumerate(LINES, start=1):
        if start is None and line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif start is None and line.startswith("```"):
            start, language = number + 1, line.removeprefix("```")
        elif start is not None and line == "```":
            found.append(Block(heading, language, start, "\n".join(LINES[start - 1 : number - 1])))
            start = None
    assert start is None, f"the block at line {start} is not closed"
    return found


BLOCKS = _blocks()
HEADINGS = [line.lstrip("#").strip() for line in LINES if re.match(r"#{1,3} ", line)]


def _table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    after = LINES[LINES.index(f"## {heading}") + 1 :]
    rows: list[list[str]] = []
    for line in after:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows or line.startswith("## "):
            break
    assert len({len(row) for row in rows}) == 1, f"a row of '{heading}' has too many or few cells"
    return rows[2:]


# --- the page


def test_the_parser_sees_every_fence():
    assert sum(line.startswith("```") for line in LINES) == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "bash", "text"}


@pytest.mark.parametrize(
    "heading", dict.fromkeys(b.heading for b in BLOCKS if b.language == "python")
)
def test_python_blocks_run(heading):
    blocks = [b for b in BLOCKS if b.language == "python" and b.heading == heading]
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        # The README's own line numbers in a traceback.
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, str(README), "exec"), namespace)


@pytest.mark.parametrize(
    ("name", "ends_with"), [("run", ".venv/bin/python -m jxent"), ("test", ".venv/bin/pytest")]
)
def test_the_two_commands_are_there_for_ci(name, ends_with):
    assert LINES.count(f"<!-- {name} -->") == 1
    at = LINES.index(f"<!-- {name} -->")
    assert LINES[at + 1] == "```bash"
    assert LINES[at + 3] == "```"
    assert LINES[at + 2].startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[")
    assert LINES[at + 2].endswith(f" && {ends_with}")


def test_nothing_is_left_to_be_measured():
    assert "TBD" not in TEXT


def test_every_name_the_page_mentions_exists():
    for path in re.findall(r"\b(?:jxent|optax|jax)(?:\.[a-zA-Z_]\w*)+", TEXT):
        x: Any = {"jxent": jxent, "optax": optax, "jax": jax}
        x = x[path.split(".")[0]]
        for name in path.split(".")[1:]:
            x = getattr(x, name)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link
    anchors = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in HEADINGS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_the_map_is_of_this_tree():
    (tree,) = [b.code.splitlines() for b in BLOCKS if b.heading == "Map of the code" and b.code]
    public = {name for name in jxent.__all__ if inspect.ismodule(getattr(jxent, name))}
    (listed,) = [line for line in tree if re.match(r"  [^_ ]", line)]
    assert tree[0] == "jxent/" and set(listed.replace("/", "").split()) == public
    for entry in re.findall(r"(?m)^  (_\S+)", "\n".join(tree)):
        assert (ROOT / "jxent" / entry).exists(), entry
    for folder in re.findall(r"(?m)^(\S+)", "\n".join(tree)):
        assert (ROOT / folder).exists(), folder


def test_it_is_read_in_one_sitting():
    assert len(TEXT.encode()) < 15_000


# --- what it claims


def _temporary_megabytes(loss) -> float:
    """Of loss and both gradients, N 8192, D 512, V 32768, float32."""
    shapes = [(8192, 512), (512, 32768)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((8192,), jnp.int32)
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments, labels)
    return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


def test_the_head_in_a_sixteenth_of_the_memory():
    def stored(hidden, head, labels):
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, labels).mean()

    theirs, ours = _temporary_megabytes(stored), _temporary_megabytes(jxent.linear_cross_entropy)
    said = re.search(r"need (\d+) MB of temporary memory instead of (\d+) MB", TEXT)
    if jax.__version_info__ < (0, 10):  # more was kept then: 205 MB
        assert ours < theirs / 10
    else:
        assert (round(ours), round(theirs)) == (int(said[1]), int(said[2]))
        assert round(theirs / ours) == 16


# --- coming from optax: names

DROP_INS = {
    row[0].strip("`"): row[1].strip("`")
    for row in _table("Coming from optax")
    if row[0].startswith("`optax.") and row[1].startswith("`jxent.")
}


def test_every_name_shared_with_optax_is_in_the_table():
    shared = {name for name in jxent.__all__ if hasattr(optax.losses, name)}
    assert {path.rsplit(".", 1)[1] for path in DROP_INS} == shared


@pytest.mark.parametrize("path", DROP_INS)
def test_arguments_are_optax_s(path):
    assert DROP_INS[path] == "jxent." + path.rsplit(".", 1)[1]
    name = path.rsplit(".", 1)[1]
    theirs = inspect.signature(getattr(optax.losses, name)).parameters
    ours = inspect.signature(getattr(jxent, name)).parameters
    keep = [(p.name, p.kind, p.default) for p in theirs.values()]
    assert [(p.name, p.kind, p.default) for p in ours.values() if p.name in theirs] == keep
    added = [p for p in ours.values() if p.name not in theirs]
    if name != "safe_softmax_cross_entropy":  # it also has softmax_cross_entropy's axis and where
        assert all(p.kind is p.KEYWORD_ONLY for p in added)
