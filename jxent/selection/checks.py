"""Checks of the arguments of `selection`, which are read on the host and never traced."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from jxent import _check


def check_row_losses(fn: str, x: Any) -> Float[np.ndarray, " N"]:
    """Check losses of one row or more; NaN raises, ∞ is a loss."""
    values = _float_column(fn, "row_losses", x)
    if values.size == 0:
        raise ValueError(f"{fn}: `row_losses` is empty; give it one loss a row")
    if np.any(bad := np.isnan(values) | (values == -np.inf)):
        at = int(np.argmax(bad))
        raise ValueError(f"{fn}: `row_losses`[{at}] is {values[at]}")
    return values


def check_paired_losses(fn: str, x: Any) -> tuple[list[str], Float[np.ndarray, "N M"]]:
    """Check at least two models' losses of the same rows; return names, and one column a model."""
    if not hasattr(x, "items"):
        raise TypeError(
            f"{fn}: `losses` must be a dictionary of names and row losses, got {type(x).__name__}"
        )
    for name in x:
        if not isinstance(name, str):
            raise TypeError(f"{fn}: `losses` has the name {name!r}; names are strings")
    if len(x) < 2:
        raise ValueError(
            f"{fn}: `losses` has {len(x)} model{'s' * (len(x) != 1)}; it takes two to compare"
        )
    columns = {name: _float_column(fn, f"losses[{name!r}]", rows) for name, rows in x.items()}
    first, *others = columns
    for name in others:
        if columns[name].size != columns[first].size:
            raise ValueError(
                f"{fn}: `losses` must be of the same rows in the same order, got "
                f"{columns[first].size} of {first!r} and {columns[name].size} of {name!r}"
            )
    return list(columns), np.stack(list(columns.values()), axis=1)


def check_finite_losses(
    fn: str, names: Sequence[str], losses: Float[np.ndarray, "N M"], kept: Bool[np.ndarray, " N"]
) -> None:
    """Raise at the first loss that is not finite in a row of positive weight."""
    bad = ~np.isfinite(losses) & kept[:, None]
    if np.any(bad):
        row, model = np.argwhere(bad)[0]
        value = losses[row, model]
        why = (
            "the model gives probability 0 to what happened, and no mean of its losses is finite; "
            "compare the others"
            if value == np.inf
            else "drop the row from every model, or find out where it went wrong"
        )
        raise ValueError(f"{fn}: `losses`[{names[model]!r}][{row}] is {value}: {why}")


def check_weights(fn: str, x: Any, rows: int) -> Float[np.ndarray, " N"]:
    """Check that weights are finite, ≥ 0 and not all 0; without any, return ones."""
    if x is None:
        return np.ones(rows)
    values = _float_column(fn, "weights", x, rows)
    _check.finite_nonnegative(fn, "weights", values)
    if not np.any(values):
        raise ValueError(f"{fn}: `weights` are all 0: no row counts")
    return values


def check_groups(fn: str, x: Any, rows: int) -> Integer[np.ndarray, " N"] | None:
    """Check groups and number them 0, 1, …; None if every row stands for itself."""
    if x is None:
        return None
    values = _on_host(fn, "groups", x)
    if values.dtype.kind not in "biufSU":
        raise TypeError(
            f"{fn}: `groups` must be integers or strings, got {_check.describe(values)}; "
            "np.unique(groups, return_inverse=True)[1] makes integers of most things"
        )
    if values.shape != (rows,):
        raise ValueError(
            f"{fn}: `groups` must have one name a row, {[rows]}, got {_check.describe(values)}"
        )
    if values.dtype.kind == "f" and np.any(bad := np.isnan(values)):
        raise ValueError(f"{fn}: `groups`[{int(np.argmax(bad))}] is nan: a row without a group")
    return np.unique(values, return_inverse=True)[1]


def check_at_least_two(fn: str, what: str, count: int) -> None:
    """Raise unless two rows, or groups, have positive weight: one has no spread."""
    if count < 2:
        raise ValueError(
            f"{fn}: a standard error needs at least 2 {what} of positive weight, got {count}"
        )


def check_test_fraction(fn: str, test_fraction: Any, weights: Any, groups: Any) -> float:
    """Check the share of the rows held out; return n_test / n_train, 0 without splits."""
    if test_fraction is None:
        return 0.0
    if weights is not None or groups is not None:
        raise ValueError(
            f"{fn}: `test_fraction` is for one mean loss a split, without `weights` or `groups`"
        )
    fraction = _check.strictly_between(fn, "test_fraction", test_fraction)
    return fraction / (1 - fraction)


def _on_host(fn: str, name: str, x: Any) -> np.ndarray:
    """Return x as NumPy; a traced or distributed array cannot be read."""
    try:
        values = _check.concrete(x)
    except ValueError:
        raise ValueError(f"{fn}: `{name}` is ragged; give it one number a row") from None
    if values is None:
        raise TypeError(
            f"{fn}: `{name}` must be readable here, got a traced or distributed array; call {fn} "
            "outside jit, on jax.device_get(...)"
        )
    return values


def _float_column(fn: str, name: str, x: Any, rows: int | None = None) -> Float[np.ndarray, " N"]:
    """Return numbers, on one axis and as many as `rows`, in float64."""
    values = _on_host(fn, name, x)
    _check.numeric(fn, name, values, jnp.bool_)
    _check.one_axis(fn, name, values)
    if rows is not None and values.size != rows:
        raise ValueError(f"{fn}: `{name}` must have one number a row, {rows}, got {values.size}")
    return values.astype(np.float64)
