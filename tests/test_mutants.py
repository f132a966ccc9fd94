"""Every fault of `mutants.py` is noticed by the tests that it names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1]
FAILED = 1  # pytest's exit code when tests failed; others mean that none ran


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project, to be broken."""
    root = tmp_path_factory.mktemp("mutants") / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("jxent", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    return root


def run(root: Path, tests: str, chosen: str, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # as in an ordinary run
    return subprocess.run(
        [*command, f"tests/{tests}", "-k", chosen, *more],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_passages_occur_once():
    """So that a change of the code cannot leave a mutant behind that mutates nothing."""
    for mutant in MUTANTS:
        found = (ROOT / "jxent" / mutant.file).read_text().count(mutant.old)
        assert found == 1, f"{mutant}: found {found} times"
        assert mutant.old != mutant.new
        assert (ROOT / "tests" / mutant.tests).exists()
    assert len(MUTANTS) >= 25


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_killed(mutant, copy):
    path = copy / "jxent" / mutant.file
    source = path.read_text()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        result = run(copy, mutant.tests, mutant.chosen, "-m", "")  # the deep ones too
    finally:
        path.write_text(source)
    assert result.returncode == FAILED, f"survived: {mutant}\n{result.stdout[-2000:]}"


@pytest.mark.deep
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS}))
def test_the_copy_itself_passes(tests, copy):
    """Otherwise every mutant would seem to be killed: of each file what its first one is met by."""
    chosen = next(mutant.chosen for mutant in MUTANTS if mutant.tests == tests)
    result = run(copy, tests, chosen, "-m", "")
    assert result.returncode == 0, result.stdout[-2000:]
