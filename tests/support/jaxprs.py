"""What a traced linear loss does: its products, and its largest array."""

from typing import Any

import jax
import numpy as np

BIG = dict(n=96, d=16, v=640)  # rows, features, classes, all different


def equations(jaxpr: Any, times: int = 1) -> list[tuple[Any, int]]:
    """Every equation with how often it runs, inside scans, conditionals and calls."""
    found = []
    for equation in jaxpr.eqns:
        found.append((equation, times))
        inner = times * equation.params.get("length", 1)
        # With `jax_custom_vjp3` the function that has a rule is an attribute of an attribute.
        traced = getattr(equation.params.get("_prim"), "traced", None)
        if traced is not None:
            found += equations(traced.jaxpr.jaxpr, inner)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            below = getattr(value, "jaxpr", value)
            if hasattr(below, "eqns"):
                found += equations(below, inner)
    return found


def products(jaxpr: Any) -> float:
    """Matrix products in units of N·V·D multiply-adds."""
    total = 0
    for equation, times in equations(jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            a, out = equation.invars[0].aval, equation.outvars[0].aval
            total += times * out.size * int(np.prod([a.shape[i] for i in contract]))
    return total / (BIG["n"] * BIG["d"] * BIG["v"])


def largest(jaxpr: Any) -> int:
    """The largest array in which both the rows and the classes vary."""
    sizes = [0]
    for equation, _ in equations(jaxpr.jaxpr):
        for out in equation.outvars:
            shape = getattr(out.aval, "shape", ())
            if len(shape) >= 2 and not {BIG["d"]} & set(shape):
                sizes.append(int(np.prod(shape)))
    return max(sizes)
