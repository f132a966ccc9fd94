"""Lists and arrays of other libraries: taken as NumPy's, or refused by function and argument."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from public_calls import CALLS

import jxent

pytestmark = [pytest.mark.usefixtures("unhooked"), pytest.mark.relaxed]
ORDINARY = ("linear_cross_entropy", "metrics.log_loss", "regression.hl_gauss", "selection.compare")


@dataclass
class Foreign:
    """An array with a dtype that NumPy does not know, like PyTorch's, and one way out."""

    held: np.ndarray

    @property
    def dtype(self) -> str:
        return "foreign.float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.held if dtype is None else self.held.astype(dtype)


def series(x: np.ndarray) -> Any:
    """A pandas column or table; None of what is neither."""
    pandas = pytest.importorskip("pandas")
    return {1: pandas.Series, 2: pandas.DataFrame}.get(x.ndim, lambda x: None)(x)


def tensor(x: np.ndarray) -> Any:
    return pytest.importorskip("torch").asarray(np.array(x))


# The user's own loss is called with these, by `jax.grad`.
OF_THE_LOSS = {("regularization.gradient_penalty", k) for k in ("logits", "labels")}
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda x: x.tolist(),
    "foreign": Foreign,
    "pandas": series,
    "torch": tensor,
}


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if isinstance(a, jax.Array | float):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            assert a == b  # a comparison of models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ORDINARY else pytest.mark.deep) for n in CALLS]
)
def test_every_argument_is_read(name, kind):
    call = CALLS[name]
    arguments = [k for k in call.arrays if (name, k) not in OF_THE_LOSS]
    given = {k: KINDS[kind](np.asarray(call.arrays[k])) for k in arguments}
    assert_same(call(**{k: x for k, x in given.items() if x is not None}), call())


class Unreadable(Foreign):
    """As a tensor on another device, or one that requires a gradient."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise RuntimeError("move it to the host first")


PLAIN = [n for n in CALLS if hasattr(CALLS[n].fn, "__wrapped__") and "." not in n.partition(",")[0]]


@pytest.mark.parametrize("name", PLAIN)
def test_what_cannot_be_read_is_named(name):
    call = CALLS[name]
    for argument, x in call.arrays.items():
        words = rf"^{call.fn.__qualname__}: `{argument}` cannot be read as an array, got Unreadable"
        with pytest.raises(TypeError, match=words):
            call(**{argument: Unreadable(np.asarray(x))})


def test_a_ragged_list_is_named():
    with pytest.raises(ValueError, match=r"^cross_entropy: `logits` cannot be read as an array"):
        jxent.cross_entropy([[0.0, 1.0], [0.0]], [0, 1])


def test_a_list_of_traced_numbers_is_an_array():
    loss_fn = lambda w: jxent.cross_entropy(jnp.eye(2), [0, 0], row_weights=[w, 2 * w])
    np.testing.assert_allclose(jax.jit(loss_fn)(2.0), loss_fn(1.0), rtol=1e-6)


def test_a_variable_of_flax_is_an_array():
    nnx = pytest.importorskip("flax.nnx")
    head = nnx.Param(jnp.ones((3, 5)))
    loss_fn = lambda head: jxent.linear_cross_entropy(jnp.ones((2, 3)), head, [0, 1])
    np.testing.assert_allclose(loss_fn(head), np.log(5), rtol=1e-6)
    assert jax.tree.leaves(nnx.grad(loss_fn)(head))[0].shape == (3, 5)
