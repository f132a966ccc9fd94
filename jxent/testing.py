"""Checks for your own losses: compare gradients with a reference, find bad labels under jit."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jxent import _check, _compat
from jxent._typing import P, R

__all__ = ["assert_gradients_match", "checked"]

# Central differences in float64 err by h² from the curvature and ε/h from rounding: ε^(1/3).
_STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
_DIFFERENCE_RTOL = 1e-6


@_check.arguments
def assert_gradients_match(
    fn: Callable[..., Any],
    reference: Callable[..., Any],
    *args: Any,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    directions: int = 4,
    seed: int = 0,
) -> None:
    """Assert that the gradient of fn matches a plain reference and finite differences of fn.

        ∇fn(x) ≈ jax.grad(reference)(x)                       in the dtypes of the arguments
        ∇fn(x)·d ≈ (fn(x + h d) − fn(x − h d)) / 2h           in float64, h = ε^(1/3)·scale

    The first line compares a custom derivative rule with JAX's derivative of the textbook formula,
    the second with values of fn: it finds mistakes that the rule and the reference have in common.

    Args:
      fn: a function of arrays, with a custom gradient. Its outputs are summed.
      reference: the same function in plain `jax.numpy`.
      *args: arguments of both; gradients are taken by those that hold only floating-point arrays.
      rtol, atol: tolerances of the first comparison, and of the values. An atol so large that a
        gradient of zero would pass is an AssertionError.
      directions: the number of random directions d of the second comparison.
      seed: the seed of the directions.

    Raises:
      AssertionError: values or gradients differ (`chex.assert_trees_all_close` names the first leaf
        that does), or atol is too large.
      ValueError: there is nothing to differentiate.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> labels = jnp.array([0, 2])
      >>> def reference(logits):
      ...     return -jax.nn.log_softmax(logits)[jnp.arange(2), labels].mean()
      >>> logits = jnp.array([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
      >>> jxent.testing.assert_gradients_match(
      ...     lambda z: jxent.cross_entropy(z, labels), reference, logits)

    References:
      Central differences: Nocedal & Wright, *Numerical Optimization* (2006), §8.1.
    """
    import chex  # where it is used: `import jxent` is quicker without it

    differentiated = [i for i, arg in enumerate(args) if _is_differentiable(arg)]
    if not differentiated:
        raise ValueError(
            "assert_gradients_match: no argument holds floating-point arrays only, so there is "
            "nothing to differentiate"
        )

    def summed(f: Callable[..., Any], at: list[Any]) -> jax.Array:
        full = list(args)
        for i, value in zip(differentiated, at, strict=True):
            full[i] = value
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(f(*full))), start=jnp.zeros(()))

    evaluate = functools.partial(summed, fn)
    at = [jax.tree.map(jnp.asarray, args[i]) for i in differentiated]
    value, gradient = jax.value_and_grad(evaluate)(at)
    expected_value, expected = jax.value_and_grad(functools.partial(summed, reference))(at)
    chex.assert_trees_all_close(value, expected_value, rtol=rtol, atol=atol)
    _assert_atol_tells_from_zero(expected, atol)
    chex.assert_trees_all_equal_dtypes(gradient, at)
    chex.assert_trees_all_close(gradient, expected, rtol=rtol, atol=atol)

    with _compat.enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), at)
        gradient = jax.jit(jax.grad(evaluate))(wide)
        jitted = jax.jit(evaluate)
        rng = np.random.default_rng(seed)
        for _ in range(directions):
            d = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), wide)
            _assert_directional_derivative(jitted, wide, gradient, d)


def _is_differentiable(arg: Any) -> bool:
    leaves = jax.tree.leaves(arg)
    return bool(leaves) and all(
        jnp.issubdtype(np.asarray(x).dtype if np.isscalar(x) else x.dtype, jnp.floating)
        for x in leaves
    )


def _assert_atol_tells_from_zero(gradient: Any, atol: float) -> None:
    largest = max(float(jnp.max(jnp.abs(x), initial=0)) for x in jax.tree.leaves(gradient))
    if 0 < largest <= 10 * atol:
        raise AssertionError(
            f"assert_gradients_match: the largest gradient is {largest:.2e}, so atol={atol:.2e} "
            "could not tell it from zero; lower atol or scale the loss"
        )


def _assert_directional_derivative(
    evaluate: Callable[[Any], jax.Array], at: Any, gradient: Any, d: Any
) -> None:
    import chex

    h = _STEP * max(1.0, *(float(jnp.max(jnp.abs(x), initial=0)) for x in jax.tree.leaves(at)))
    ahead = evaluate(jax.tree.map(lambda x, dx: x + h * dx, at, d))
    behind = evaluate(jax.tree.map(lambda x, dx: x - h * dx, at, d))
    terms = jax.tree.leaves(jax.tree.map(lambda g, dx: g * dx, gradient, d))
    size = sum(float(jnp.sum(jnp.abs(term))) for term in terms)
    rounding = float(jnp.abs(ahead)) * np.finfo(np.float64).eps / h
    chex.assert_trees_all_close(
        sum(jnp.sum(term) for term in terms),
        (ahead - behind) / (2 * h),
        rtol=0,
        atol=_DIFFERENCE_RTOL * size + 10 * rounding,
    )


@_check.arguments
def checked(fn: Callable[P, R]) -> Callable[P, R]:
    """Return fn with checks of traced values, which raise where jit alone can only return NaN.

    A label outside [0, V) that reaches a jxent loss inside fn raises an error with its position. In
    a scan that is differentiated inside fn, checkify loses these checks: there only NaN among the
    results raises, without a position.

    JAX's own flags work too: `jax.debug_nans` finds the first operation that makes NaN, with jit or
    without, and no jxent function makes one of sound data; nor an infinity, to `jax.debug_infs`
    with jit (without it that flag stops at the ∞ in JAX's own `isinf` and `softmax`).

    For debugging: fn is traced separately from its uses elsewhere, and every call waits for its
    result. Differentiate inside fn, not through `checked`.

    Arrays among the arguments are traced, all else is passed as it is: static options, and what is
    no array in Equinox's models. Modules and optimizers of Flax NNX are updated as by `nnx.jit`,
    and not at all where a check fails; they must be arguments of fn.

    Args:
      fn: a function that calls jxent losses, such as a training step, itself jitted or not.

    Returns:
      A function of the same arguments and results.

    Raises:
      ValueError: from the call, at the first bad label, or at NaN among the results.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> step = jax.jit(jax.value_and_grad(jxent.cross_entropy))
      >>> loss, grad = step(jnp.zeros((2, 3)), jnp.array([0, 7]))   # NaN, without a reason
      >>> try:
      ...     jxent.testing.checked(step)(jnp.zeros((2, 3)), jnp.array([0, 7]))
      ... except ValueError as error:
      ...     print(str(error).split(";")[0])
      cross_entropy: `targets`[1] = 7 is outside [0, 3)

    References:
      `jax.experimental.checkify`.
    """

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _check.CHECKING.set(True)
        try:
            with _compat.separate_traces("checked"):
                return _call_checked(fn, args, kwargs)
        finally:
            _check.CHECKING.reset(token)

    return call


def _call_checked(fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call fn and check it; update modules of Flax NNX as `nnx.jit` does, after the checks."""
    nnx = sys.modules.get("flax.nnx")
    is_node = nnx.graph.is_graph_node if nnx is not None else lambda _: False
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=is_node)
    nodes = [x for x in leaves if is_node(x)]
    if not nodes or nnx is None:
        return _run(lambda args, kwargs: fn(*args, **kwargs), args, kwargs)
    definition, state = nnx.split(nodes)

    def pure(state: Any, others: list[Any]) -> Any:
        inner = nnx.merge(definition, state)
        of_nodes, of_others = iter(inner), iter(others)
        given = [next(of_nodes if is_node(x) else of_others) for x in leaves]
        args, kwargs = jax.tree.unflatten(structure, given)
        out = fn(*args, **kwargs)
        given_back = lambda x: next((_Node(i) for i, n in enumerate(inner) if n is x), x)  # noqa: E731
        return jax.tree.map(given_back, out, is_leaf=is_node), nnx.split(inner)[1]

    out, state = _run(pure, state, [x for x in leaves if not is_node(x)])
    nnx.update(nodes, state)
    return jax.tree.map(lambda x: nodes[x.index] if isinstance(x, _Node) else x, out)


@dataclass(frozen=True)
class _Node:
    """Stands for an argument that is returned as it was given."""

    index: int


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _run(f: Callable[..., Any], *args: Any) -> Any:
    """Call f with its arrays traced and all else as given; raise at a failed check or NaN."""
    leaves, structure = jax.tree.flatten(args)
    traced = [x for x in leaves if _is_array(x)]
    out_structure: Any = None
    out_leaves: list[Any] = []

    def of_arrays(arrays: list[Any]) -> list[Any]:
        nonlocal out_structure, out_leaves
        rest = iter(arrays)
        full = [next(rest) if _is_array(x) else x for x in leaves]
        out_leaves, out_structure = jax.tree.flatten(f(*jax.tree.unflatten(structure, full)))
        return [x for x in out_leaves if _is_array(x)]

    error, arrays = checkify.checkify(of_arrays, errors=checkify.user_checks)(traced)
    message = error.get()
    if message is not None:
        raise ValueError(message.removesuffix(" (`check` failed)"))
    rest = iter(arrays)
    out = jax.tree.unflatten(out_structure, [next(rest) if _is_array(x) else x for x in out_leaves])
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        if _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) and jnp.isnan(leaf).any():
            raise ValueError(
                f"checked: result{jax.tree_util.keystr(path)} holds NaN, but no label was seen "
                "outside its range; look at the inputs, or inside a differentiated scan"
            )
    return out
