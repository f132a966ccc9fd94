"""Every fault of `mutants.py` is noticed by the tests that it names."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import compiling
import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[2]
FAILED = 1  # pytest's exit code when tests failed; others mean that none ran

# All that the tests import but jxent: a process that has it is forked for every mutant.
IMPORTED = [
    "beartype",
    "chex",
    "hypothesis.extra.numpy",
    "jax.numpy",
    "jaxtyping",
    "mpmath",
    "optax",
]

ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "XLA_FLAGS": compiling.flags(compiling.QUICK),  # as in an ordinary run
    "OPENBLAS_NUM_THREADS": "1",  # the threads of NumPy would not outlive the fork
    # Shapes are not checked while jxent runs: it is the tests that must notice.
    "JAXTYPING_DISABLE": "1",
    # What a mutant leaves as it was has been compiled for another one.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def serve() -> None:
    """Answer every list of pytest's arguments, a line each, with its exit code and its output."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            with open("output", "wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            code = pytest.main(json.loads(line))
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Copy:
    """The project, to be broken, and the process whose children run its tests."""

    def __init__(self, root: Path, programs: Path) -> None:
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("jxent", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, root / name)
        self.root = root
        own = {
            "PYTHONPATH": f"{root}:{root / 'tests' / 'support'}",
            "JAX_COMPILATION_CACHE_DIR": str(programs),
        }
        self.server = subprocess.Popen(
            [sys.executable, "tests/mutation/test_mutants.py"],
            cwd=root,
            env={**os.environ, **ENVIRONMENT, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: str, chosen: str) -> tuple[int, str]:
        """pytest's exit code and the end of its output; deep tests run too."""
        plain = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--assert", "plain", "-m", ""]
        print(
            json.dumps([*plain, f"tests/{tests}", "-k", chosen]), file=self.server.stdin, flush=True
        )
        code = self.server.stdout.readline()
        return int(code), (self.root / "output").read_text()[-2000:]

    def close(self) -> None:
        with self.server as server:
            server.stdin.close()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    programs = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        programs = programs.parent  # the workers share it
    made = Copy(tmp_path_factory.mktemp("mutants") / "project", programs / "programs")
    yield made
    made.close()


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
    path = copy.root / "jxent" / mutant.file
    source = path.read_text()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        code, output = copy.run(mutant.tests, mutant.chosen)
    finally:
        path.write_text(source)
    assert code == FAILED, f"survived: {mutant}\n{output}"


@pytest.mark.deep
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS}))
def test_the_copy_itself_passes(tests, copy):
    """Otherwise every mutant would seem to be killed: of each file what its first one is met by."""
    chosen = next(mutant.chosen for mutant in MUTANTS if mutant.tests == tests)
    code, output = copy.run(tests, chosen)
    assert code == 0, output


if __name__ == "__main__":
    serve()
