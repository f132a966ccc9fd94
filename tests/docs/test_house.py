"""The house in order: imports point down, every public name is documented and shown working."""

import ast
import doctest
import importlib
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jaxtyping
import pytest

import jxent

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jxent"
README = (ROOT / "README.md").read_text()

# DESIGN's map: what a file may import is in its own layer or below. A new file joins here.
LAYERS = [
    ["_core", "_core.safe_math"],  # zeros, infinities and NaN, which checks need too
    ["_typing", "_compat", "_check", "_plot"],  # words, what differs between versions, pictures
    ["_core.targets", "_core.compensated", "_core.needs_grad"],
    ["_core.sum_without_max"],
    ["_core.log_softmax"],  # one row's mathematics
    ["_core.row_terms"],  # that attached to JAX
    ["_core.weighting", "_core.logit_divergence"],
    ["_core.row_losses", "_core.elementwise"],  # engines: of rows of logits, of single ones
    ["_linear", "_linear.tiling", "_linear.projection"],
    ["_linear.row_loss"],
    ["_linear.chunked_rows", "_linear.reference", "_linear.vocab"],
    ["_linear.implementations"],
    ["_losses", "_losses.cross_entropy", "_losses.softmax", "_losses.sigmoid"],  # what people call
    ["_losses.divergence", "_linear.api", "testing"],
    ["imbalance", "robust", "information", "distillation", "regression"],
    ["regularization"],
    ["metrics.average", "metrics.debug_flags"],  # what is measured
    ["metrics.base", "metrics.calibration", "metrics.temperature"],
    ["metrics.classification", "metrics.multilabel"],
    ["metrics.functions"],
    ["selection.checks", "selection.progress"],
    ["selection.bootstrap", "selection.comparison", "selection.criteria"],
    ["selection.paired"],
    ["metrics", "selection"],
    ["_cli", "_cli.common", "_cli.display", "_cli.bench_timing"],  # programs
    ["_cli.gradcheck", "_cli.predictions", "_cli.scores"],
    ["_cli.bench_dense", "_cli.bench_linear", "_cli.demo"],
    ["_cli.check", "_cli.bench", "_cli.compare"],  # verbs
    ["_cli.train"],
    ["_cli.main"],
    ["__main__"],
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    named = {name.removeprefix("jxent.") for name in found if name.startswith("jxent.")}
    modules = {name if name in MODULES else name.rpartition(".")[0] for name in named}
    return modules & set(MODULES)


IMPORTS = {name: imported(path) for name, path in MODULES.items() if name != "__init__"}


def test_every_file_has_a_layer():
    assert set(IMPORTS) == set(LAYER)


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_point_down(name):
    up = {other for other in IMPORTS[name] if LAYER[other] > LAYER[name]}
    assert not up, f"{name} imports {sorted(up)} from a layer above"


def test_children_without_underscore_are_the_public_namespaces():
    children = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    shown = {name for name in children if not name.startswith("_")}
    namespaces = {n for n in jxent.__all__ if isinstance(getattr(jxent, n), types.ModuleType)}
    assert shown == namespaces


def test_imports_have_no_cycles():
    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        for other in IMPORTS[name]:
            walk(other, (*above, name))

    for name in IMPORTS:
        walk(name, ())


def test_the_oracle_is_independent():
    tree = ast.parse((ROOT / "tests" / "support" / "oracle.py").read_text())
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not {name for name in names if name.split(".")[0] in ("jax", "jxent", "optax", "tests")}


def re_exported() -> list[str]:
    """The names that jxent/__init__.py imports, each as itself."""
    names = []
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name} is not imported as itself"
                names.append(alias.name)
    return names


def test_public_names():
    """`__all__` is what __init__ imports, no more and no less."""
    assert sorted(jxent.__all__) == sorted(re_exported())
    assert len(set(jxent.__all__)) == len(jxent.__all__)


def public_functions() -> dict[str, Callable[..., Any]]:
    """Every public function by its path, those of the public namespaces as well."""
    found: dict[str, Callable[..., Any]] = {}
    for name in jxent.__all__:
        value = getattr(jxent, name)
        if not isinstance(value, types.ModuleType):
            found[f"jxent.{name}"] = value
            continue
        for inner in value.__all__:
            found[f"jxent.{name}.{inner}"] = getattr(value, inner)
    return found


PUBLIC = public_functions()


def test_there_is_something_public():
    assert len(PUBLIC) >= 13


def test_shapes_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        jxent.imbalance._ldam(jnp.zeros(3), jnp.zeros(4, int), jnp.zeros(2))


def test_names_in_the_readme_exist():
    for path in set(re.findall(r"\bjxent((?:\.[A-Za-z]\w*)+)", README)):
        value: Any = jxent
        for name in path.split(".")[1:]:
            assert hasattr(value, name), f"README: jxent{path}"
            value = getattr(value, name)


@pytest.mark.parametrize("name", PUBLIC)
def test_names_are_in_the_package_docstring(name):
    assert re.search(rf"\b{name.split('.')[-1]}\b", jxent.__doc__ or "")


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_have_every_section(name):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    returns = inspect.signature(PUBLIC[name]).return_annotation not in (None, "None")
    wanted = ["Args:", "Raises:", "Example:", "References:"]
    if inspect.isclass(PUBLIC[name]):  # what a class raises and returns, its methods say
        wanted, returns = ["Args:", "Example:", "References:"], False
    for section in wanted + ["Returns:"] * returns:
        assert re.search(rf"^{section}", doc, re.MULTILINE), f"{name} has no {section}"
    arguments = doc[doc.index("Args:") :]
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        assert re.search(rf"\b{parameter}\b", arguments), f"{name} does not say what {parameter} is"


# What is called for its value, or ends a computation, says nothing of a backward pass.
NOT_DIFFERENTIATED = {
    "jxent.label_weights",
    "jxent.imbalance.balanced_class_weights",
    "jxent.imbalance.effective_number_weights",
    "jxent.imbalance.ldam_margins",
    "jxent.information.bits_to_nats",
    "jxent.information.nats_to_bits",
    *(f"jxent.regression.{name}" for name in jxent.regression.__all__ if name != "gaussian_nll"),
    *(f"jxent.metrics.{name}" for name in jxent.metrics.__all__),
    *(f"jxent.selection.{name}" for name in jxent.selection.__all__),
    *(f"jxent.testing.{name}" for name in jxent.testing.__all__),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_differentiated_functions_say_what_they_save(name):
    says = re.search(r"^Residuals:\n  \S", inspect.getdoc(PUBLIC[name]) or "", re.MULTILINE)
    assert bool(says) == (name not in NOT_DIFFERENTIATED)


PUBLIC_METHODS = {
    f"{name}.{inner}": getattr(cls, inner)
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for inner, member in inspect.getmembers(cls)  # inherited ones too
    if not inner.startswith("_") and isinstance(member, types.FunctionType | types.MethodType)
}


@pytest.mark.parametrize("name", [*PUBLIC, *PUBLIC_METHODS])
def test_signatures_can_be_read(name):
    """`help()` shows the types by their names, not what they stand for."""
    signature = str(inspect.signature((PUBLIC | PUBLIC_METHODS)[name]))
    assert "jaxlib" not in signature and "Union[" not in signature and "ndarray" not in signature


@pytest.mark.parametrize("name", PUBLIC_METHODS)
def test_methods_say_what_they_do(name):
    doc = inspect.getdoc(PUBLIC_METHODS[name]) or ""
    assert doc, f"{name} has no docstring"
    if "Args:" in doc:
        for parameter in set(inspect.signature(PUBLIC_METHODS[name]).parameters) - {"self"}:
            assert re.search(rf"\b{parameter}:", doc), f"{name} does not say what {parameter} is"


def run_doctests(name: str, value: Any, globs: dict[str, Any]) -> int:
    """Run what a docstring shows; the number of its examples."""
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    count = 0
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs=globs):
        runner.run(test, out=said.append)
        count += len(test.examples)
    assert not runner.failures, "".join(said)
    return count


@pytest.mark.relaxed
@pytest.mark.parametrize("name", PUBLIC)
def test_doctests(name):
    assert run_doctests(name, PUBLIC[name], {}) > 0, f"{name} has no doctest"


@pytest.mark.relaxed
@pytest.mark.parametrize("name", [name for name in MODULES if name != "__main__"])
def test_module_docstrings(name):
    module = importlib.import_module("jxent" if name == "__init__" else f"jxent.{name}")
    assert module.__doc__
    run_doctests(module.__name__, module, {})


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_paths_that_contributors_read_exist(name):
    """A file that moves is renamed there too."""
    paths = re.findall(
        r"`((?:jxent|tests|\.github)/[\w./]*)`", (ROOT / ".github" / name).read_text()
    )
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_changelog_has_this_version():
    changelog = (ROOT / ".github" / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(jxent.__version__)}\]", changelog, re.MULTILINE)
