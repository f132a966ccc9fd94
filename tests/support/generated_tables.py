"""Tables of `notebooks/tables` that programs write, between `<!-- name -->` and `<!-- end -->`."""

import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import jax

TABLES = Path(__file__).parents[2] / "notebooks" / "tables"


def written(text: str, found: dict[str, str]) -> str:
    """The text, with what stands between each name's marks replaced."""
    for name, table in found.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        assert len(block.findall(text)) == 1, f"no marks for {name}"
        text = block.sub(lambda m, table=table: m[1] + table + m[2], text)
    return text


def table(file: str, name: str) -> list[list[str]]:
    """The cells that stand between a name's marks, the head first."""
    text = (TABLES / file).read_text("utf-8")
    (block,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    return [line.strip("| ").split(" | ") for line in block.splitlines()]


def versions(*packages: str) -> str:
    """What of them is installed, and the kind of device."""
    found = [f"Python {platform.python_version()}"]
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found) + f", on a {jax.devices()[0].platform.upper()}."


def main(tables: Callable[[], dict[str, str]], file: str) -> None:
    """Print the tables, or with --write put them into the file."""
    found = tables()
    if "--write" in sys.argv[1:]:
        path = TABLES / file
        path.write_text(written(path.read_text("utf-8"), found), "utf-8")
    else:
        print("\n\n".join(found.values()))
