"""Every function is exported once for all batch sizes, and agrees with the direct call.

Dimensions that `jax.export` does not know, a batch and a sequence, are expressions while tracing:
no Python code may compare them.
"""

from typing import Any

import jax
import numpy as np
import pytest
from jax import export
from public_calls import CALLS, Call, value_and_gradients

import jxent

TRACED = [name for name, call in CALLS.items() if call.rows and not call.on_host]
ORDINARY = ("linear_cross_entropy", "linear_log_probs", "metrics.ClassificationMetrics.update")
pytestmark = pytest.mark.usefixtures("unhooked")  # jaxtyping compares dimensions


def sized(call: Call, rows: tuple[int, ...]) -> dict[str, Any]:
    """The call's arrays, those of rows repeated to fill this shape."""
    resized = {k: np.resize(x, (*rows, *np.shape(x)[1:])) for k, x in call.rows.items()}
    return {**resized, **call.others}


def check(call: Call, symbols: str, *sizes: tuple[int, ...]) -> None:
    """Export value and gradients with symbolic rows, and compare for these sizes."""

    def evaluate(arrays: Any) -> Any:
        return value_and_gradients(call, arrays) if call.differentiated else call(**arrays)

    rows = export.symbolic_shape(symbols)
    shape = lambda k, x: (*rows, *np.shape(x)[1:]) if k in call.rows else np.shape(x)
    like = {k: jax.ShapeDtypeStruct(shape(k, x), x.dtype) for k, x in call.arrays.items()}
    exported = export.export(jax.jit(evaluate))(like)
    for size in sizes:
        arrays = sized(call, size)
        found, expected = exported.call(arrays), jax.jit(evaluate)(arrays)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.relaxed
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ORDINARY else pytest.mark.deep) for n in TRACED],
)
def test_any_batch(name):
    check(CALLS[name], "b", (5,))


@pytest.mark.deep
@pytest.mark.relaxed
@pytest.mark.parametrize("name", TRACED)
def test_any_batch_and_sequence(name):
    check(CALLS[name], "b, s", (1, 1), (2, 3))


@pytest.mark.parametrize("implementation", ["tokens", "vocab"])
def test_tiles_of_any_batch(implementation):
    call = CALLS["linear_cross_entropy"]
    options = dict(implementation=implementation, chunk_size=2, reduction="sum")
    check(Call(call.fn, call.rows, call.others, options), "b", (1,), (2,), (5,))


def test_tiles_of_any_batch_hold_no_more_than_one():
    """Of thousands of rows no array has the size of all logits."""
    hidden = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 4), np.float32)
    labels = jax.ShapeDtypeStruct(hidden.shape[:1], np.int32)
    head = np.ones((4, 4096), np.float32)
    exported = export.export(jax.jit(jax.grad(jxent.linear_cross_entropy)))(hidden, head, labels)
    n = 65536
    given = jax.ShapeDtypeStruct((n, 4), np.float32), head, jax.ShapeDtypeStruct((n,), np.int32)
    memory = jax.jit(exported.call).lower(*given).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * 4096 * 4 / 4
