"""How every test runs: shapes checked at run time, strict promotion, eight CPU devices."""

import gc
import os

# Read when JAX first looks for devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Each worker has one core: the threads of scikit-learn's libraries would only wait for each other.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import jaxtyping

if not jaxtyping.config.jaxtyping_disable:
    jaxtyping.install_import_hook("jxent", "beartype.beartype")

import compiling
import jax
import pytest
from assertions import enable_x64
from hypothesis import settings

settings.register_profile(
    "ordinary", derandomize=True, deadline=None, database=None, max_examples=8
)
settings.register_profile("deep", settings.get_profile("ordinary"), max_examples=50)
settings.load_profile("ordinary")


def pytest_configure(config: pytest.Config) -> None:
    # Most programs run once, and compiling takes the time: but for the exhaustive run, and for who
    # asks otherwise in XLA_FLAGS, they are compiled in less.
    if "not deep" in config.option.markexpr and compiling.LEVEL not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += f" {compiling.flags(compiling.QUICK)}"
    config.addinivalue_line(
        "markers", "relaxed: JAX's ordinary promotion throughout, not the strict one"
    )


def pytest_collection_finish() -> None:
    # Tracing makes garbage by the million, and what was imported is none: look there less often.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest):
    """No implicit promotion of dtypes or ranks (`assertions.relaxed` for code that needs it)."""
    if request.node.get_closest_marker("relaxed"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def forgetful():
    """Programs are forgotten after each file: thousands of them fill memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """float64 exists."""
    with enable_x64():
        yield


@pytest.fixture
def unhooked():
    """Shapes and types unchecked at run time, as people have it: the errors are jxent's own."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
