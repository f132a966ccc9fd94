"""The public surface as people meet it: names, tab completion, help."""

import inspect
import pydoc
import re
import subprocess
import sys
import types
from typing import Any

import pytest

import jxent

NAMESPACES = [jxent, *(x for x in map(vars(jxent).get, jxent.__all__) if inspect.ismodule(x))]
PUBLIC: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in NAMESPACES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
of_namespaces = pytest.mark.parametrize("module", NAMESPACES, ids=lambda m: m.__name__)


def run(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- names ------------------------------------------------------------------------------------


@of_namespaces
def test_tab_completion_shows_public_names_only(module: types.ModuleType):
    more = ["__version__"] if module is jxent else []
    assert dir(module) == sorted([*module.__all__, *more])


@of_namespaces
def test_public_names_can_be_imported(module: types.ModuleType):
    namespace: dict[str, Any] = {}
    exec(f"from {module.__name__} import {', '.join(module.__all__)}", namespace)
    assert namespace.keys() - {"__builtins__"} == set(module.__all__)


@of_namespaces
def test_help_shows_public_names_only(module: types.ModuleType):
    text = pydoc.plain(pydoc.render_doc(module))
    # pydoc lists every file of a package's folder, with or without underscore.
    files = r"^PACKAGE CONTENTS\n(?:    .*\n)+\n"
    described = re.findall(
        r"^    (?:class )?(\w+)(?: = (?!\[)\w+)?\(", re.sub(files, "", text), re.M
    )
    assert set(described) >= {name for name in module.__all__ if callable(getattr(module, name))}
    assert not [name for name in described if name not in dir(module)]


# --- version, what an import costs --------------------------------------------------------------


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jxent.__version__)


def test_import_leaves_optax_and_chex_alone():
    code = "import sys, jxent; print({'optax', 'chex', 'matplotlib', 'rich'} & sys.modules.keys())"
    assert run(code) == "set()\n"

