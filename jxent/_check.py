"""Checks of arguments; every error names function, argument, expectation, what came, the way out.

Two primitives: `static_number` takes a Python number in an interval; `first_invalid` finds the
first entry of an array that fails a predicate, which an error then names by its position.  A check
with one caller stands beside it and is built on the same two.

Shapes, dtypes and options are checked when tracing.  Values (a label outside [0, V), a negative
probability) are checked here when they are concrete; under jit they become NaN in their row, and
`jxent.testing.checked` finds them.
"""

import inspect
import numbers
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import islice
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Shaped

from jxent._core.safe_math import nan_unless
from jxent._typing import (
    ArrayLike,
    ClassMask,
    ClassWeights,
    Labels,
    Logits,
    RowMask,
    Scalar,
    SharedClassMask,
    Targets,
)

Predicate = Callable[[Any], Any]  # elementwise: True where an entry is valid

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

# Set by jxent.testing.checked while it traces.
CHECKING: ContextVar[bool] = ContextVar("jxent_checking", default=False)


# What came: its dtype, its shape, its values


def _numpy_dtype(x: Any) -> np.dtype:
    return np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype


def shape_of(x: Any) -> tuple[int, ...]:
    """Return the shape of an array, a list or a number."""
    return tuple(np.shape(x))


def has_dtype(x: Any, *kinds: Any) -> bool:
    """Return whether the dtype of x is of one of these kinds, such as `jnp.floating`."""
    dtype = _numpy_dtype(x)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def is_integer(x: Any) -> bool:
    """Return whether x holds integers (bool is not)."""
    return has_dtype(x, jnp.integer)


def describe(x: Any) -> str:
    """Return dtype and shape as an error shows them: float32[2, 3]."""
    return f"{_numpy_dtype(x).name}{list(shape_of(x))}"


def concrete(x: Any) -> np.ndarray | None:
    """Return x as NumPy if its values can be read now, before JAX narrows them; else None."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return None
        return np.asarray(x)
    return np.asarray(x)


_OWN = (jax.Array, np.ndarray, np.generic, numbers.Number, str, tuple, type(None))


def read_array(fn: str, name: str, x: Any) -> Any:
    """Return a list, or an array of another library, as NumPy or JAX; anything else as it is."""
    if isinstance(x, _OWN) or not (isinstance(x, list) or hasattr(x, "__array__")):
        return x
    try:
        if hasattr(x, "__jax_array__"):
            return x.__jax_array__()
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
        return jnp.asarray(x) if traced else np.asarray(x)
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"{fn}: `{name}` cannot be read as an array, got {type(x).__name__}: {error}; make a "
            "NumPy or JAX array of it first"
        ) from error


# The two primitives


def inside(interval: str) -> Predicate:
    """Return the predicate of an interval, written as in "[0, 1)" or "(0, inf)"; NaN is outside."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    after = operator.gt if interval[0] == "(" else operator.ge
    before = operator.lt if interval[-1] == ")" else operator.le
    return lambda x: after(x, low) & before(x, high)


def static_number(
    fn: str, name: str, x: Any, interval: str | None = None, must: str | None = None
) -> float:
    """Return a static number as a float; raise ValueError if it is outside the interval."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{fn}: `{name}` must be a static Python number, got a traced value; close over it or "
            "mark it static (static_argnames)"
        )
    if isinstance(x, jax.Array | np.ndarray) and x.ndim == 0:
        x = x.item()
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        raise TypeError(f"{fn}: `{name}` must be a static Python number, got {x!r}")
    value = float(x)
    if interval is not None and not inside(interval)(value):
        raise ValueError(f"{fn}: `{name}` {must or f'must be in {interval}'}, got {value}")
    return value


def first_invalid(
    x: ArrayLike, valid: Predicate, kept: ArrayLike | None = None
) -> tuple[list[int], Any] | None:
    """Return position and value of the first kept entry that is not valid.

    None if there is none, or if x or `kept`, which may broadcast, cannot be read now.
    """
    values, keep = concrete(x), True if kept is None else concrete(kept)
    if values is None or keep is None:
        return None
    bad = ~valid(values) & keep
    if not np.any(bad):
        return None
    at = np.unravel_index(int(np.argmax(bad)), bad.shape)
    return list(map(int, at)), np.broadcast_to(values, bad.shape)[at]


def every_entry(
    fn: str, name: str, x: ArrayLike, valid: Predicate, must: str, kept: ArrayLike | None = None
) -> None:
    """Raise ValueError at the first kept entry that is not valid, when concrete."""
    if found := first_invalid(x, valid, kept):
        at, value = found
        raise ValueError(f"{fn}: `{name}`{at} = {value} {must}")


def nonnegative(fn: str, name: str, x: ArrayLike, kept: ArrayLike | None = None) -> None:
    """Raise ValueError at the first kept entry that is negative, when concrete; NaN is not."""
    every_entry(fn, name, x, lambda v: ~(v < 0), "must not be negative", kept)


def finite_nonnegative(fn: str, name: str, x: ArrayLike) -> None:
    """Raise ValueError at the first entry that is negative, infinite or NaN, when concrete."""
    every_entry(fn, name, x, inside("[0, inf)"), "must be finite and not negative")


def between_0_and_1(fn: str, name: str, x: ArrayLike, kept: ArrayLike | None = None) -> None:
    """Raise ValueError at the first kept entry outside [0, 1], when concrete."""
    every_entry(fn, name, x, inside("[0, 1]"), "is outside [0, 1]", kept)


def traced_entries(
    fn: str, name: str, x: Shaped[Array, "..."], valid: Bool[Array, "..."], must: str
) -> None:
    """Report the first traced entry that is not valid, under `jxent.testing.checked`."""
    if not CHECKING.get() or valid.size == 0:
        return
    at = jnp.argmin(valid.ravel())
    position = jnp.unravel_index(at, valid.shape) if valid.ndim else ()
    words = f"{fn}: `{name}`[{', '.join('{}' for _ in position)}] = {{value}} {must}"
    value = jnp.broadcast_to(x, valid.shape).ravel()[at]
    checkify.check(jnp.all(valid), words, *position, value=value)


# Static options


def fraction(fn: str, name: str, x: Any) -> float:
    """Return a static number in [0, 1]."""
    return static_number(fn, name, x, "[0, 1]")


def strictly_between(fn: str, name: str, x: Any) -> float:
    """Return a static number in (0, 1)."""
    return static_number(fn, name, x, "(0, 1)", "must lie between 0 and 1")


def not_negative(fn: str, name: str, x: Any) -> float:
    """Return a static finite number ≥ 0."""
    return static_number(fn, name, x, "[0, inf)", "must be finite and not negative")


def softcap(fn: str, x: Any) -> float | None:
    """Return None, or a static finite number > 0."""
    if x is None:
        return None
    return static_number(fn, "logit_softcap", x, "(0, inf)", "must be finite and positive")


def whole(fn: str, name: str, x: Any, least: int | None, why: str = "") -> int:
    """Return a static integer of at least `least`."""
    if isinstance(x, bool) or not isinstance(x, numbers.Integral):
        raise TypeError(f"{fn}: `{name}` must be a static Python integer, got {x!r}")
    if least is not None and x < least:
        raise ValueError(f"{fn}: `{name}` must be at least {least}{why}, got {x}")
    return int(x)


def chunk_size(fn: str, x: Any) -> int | None:
    """Return None, or a static integer ≥ 1."""
    return None if x is None else whole(fn, "chunk_size", x, 1)


def ignore_index(fn: str, x: Any, *, labelled: bool) -> int | None:
    """Return None, or a static integer, with labels only."""
    if x is None:
        return None
    if not labelled:
        raise ValueError(f"{fn}: `ignore_index` goes with integer labels; drop rows with where=")
    return whole(fn, "ignore_index", x, None)


def one_of(fn: str, name: str, x: Any, choices: tuple[Any, ...]) -> Any:
    """Return x if it is one of the choices."""
    if x not in choices:
        raise ValueError(
            f"{fn}: `{name}` must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got "
            f"{x!r}"
        )
    return x


def axes(fn: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the class axes as distinct non-negative integers; None is all of them."""
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if isinstance(axis, numbers.Integral) else axis
    if not isinstance(given, tuple | list) or not all(
        isinstance(a, numbers.Integral) and not isinstance(a, bool) for a in given
    ):
        raise TypeError(
            f"{fn}: `axis` must be an integer, a tuple of integers or None, got {axis!r}"
        )
    if not given or not all(-ndim <= a < ndim for a in given):
        raise ValueError(f"{fn}: `axis` {axis!r} is out of bounds for {ndim} dimensions")
    out = tuple(int(a) % ndim for a in given)
    if len(set(out)) != len(out):
        raise ValueError(f"{fn}: `axis` names an axis twice, got {axis!r}")
    return out


def sums_dtype(fn: str, dtype: Any) -> np.dtype:
    """Return float32 or float64: two of them hold a sum to its digits."""
    given = np.dtype(dtype)
    if given not in (np.float32, np.float64):
        raise TypeError(f"{fn}: `dtype` must be float32 or float64, got {given.name}")
    return given


@contextmanager
def reverse_only(fn: str, instead: str) -> Iterator[None]:
    """Say what to call `instead` when forward mode meets a custom_vjp in this context."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"{fn}: no forward mode (jvp, linearize, jacfwd) here; use {instead}, or jax.jvp of "
            "jax.grad for Hessian-vector products"
        ) from error


@contextmanager
def needed(fn: str, package: str) -> Iterator[None]:
    """Say how to install a package of the extra when its import fails in this context."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{fn}: needs {package}: pip install 'jxent[demo]'") from error


# Arrays of numbers


def numeric(fn: str, name: str, x: ArrayLike, *others: Any) -> None:
    """Raise TypeError unless x is floating, integer, or of one of the other kinds."""
    if not has_dtype(x, jnp.floating, jnp.integer, *others):
        raise TypeError(f"{fn}: `{name}` must be numbers, got {describe(x)}")


def floats(fn: str, name: str, x: ArrayLike) -> Float[Array, "..."]:
    """Return x as an array; raise TypeError unless it is floating."""
    if not has_dtype(x, jnp.floating):
        raise TypeError(
            f"{fn}: `{name}` must be floating point, got {describe(x)}; cast with "
            ".astype(jnp.float32)"
        )
    return jnp.asarray(x)


def as_floats(x: ArrayLike, dtype: Any = np.float32) -> Float[Array, "..."]:
    """Return x if it is floating; other numbers in this dtype, before JAX narrows them."""
    if has_dtype(x, jnp.floating):
        return jnp.asarray(x)
    return x.astype(dtype) if isinstance(x, jax.Array) else jnp.asarray(np.asarray(x).astype(dtype))


def number(fn: str, name: str, x: ArrayLike, dtype: Any = np.float32) -> Float[Array, "..."]:
    """Return any real numbers as floats; integers in this dtype."""
    numeric(fn, name, x)
    return as_floats(x, dtype)


def weights(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...], dtype: Any = None
) -> Array | None:
    """Return optional numbers of one exact shape as floats.

    Integers are of this dtype; without one float32, a single number as wide as Python's.
    """
    if x is None:
        return None
    numeric(fn, name, x)
    if shape_of(x) != shape:
        raise ValueError(f"{fn}: `{name}` must have shape {list(shape)}, got {describe(x)}")
    if dtype is None:
        dtype = np.float32 if shape else jnp.result_type(float)
    return as_floats(x, dtype)


def scalar(fn: str, name: str, x: ArrayLike) -> Scalar:
    """Return one number, traced or not."""
    out = weights(fn, name, x, ())
    assert out is not None
    return out


def valid_scalar(fn: str, name: str, x: ArrayLike, valid: Predicate, must: str) -> Scalar:
    """Return one number; raise ValueError if it is not valid, NaN in its place when traced."""
    value = scalar(fn, name, x)
    if found := first_invalid(x, valid):
        raise ValueError(f"{fn}: `{name}` must be {must}, got {found[1]}")
    return nan_unless(valid(value), value)


def one_axis(fn: str, name: str, x: ArrayLike) -> tuple[int]:
    """Return the shape of an array; raise ValueError unless it has one axis."""
    shape = shape_of(x)
    if len(shape) != 1:
        raise ValueError(f"{fn}: `{name}` must have one axis, got {describe(x)}")
    return shape


# Rows of logits: labels, distributions, masks


def logits(fn: str, x: ArrayLike, name: str = "logits") -> Logits:
    """Return logits with at least one class in the last axis."""
    z = floats(fn, name, x)
    if z.ndim == 0:
        raise ValueError(f"{fn}: `{name}` needs an axis of classes, got a scalar")
    some_classes(fn, name, z.shape, (-1,))
    return z


def some_classes(fn: str, name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Raise ValueError if the axes to sum over hold nothing."""
    if any(shape[a] == 0 for a in axes):
        raise ValueError(f"{fn}: `{name}` has no classes, got shape {list(shape)}")


def same_classes(fn: str, z: Logits, classes: int) -> None:
    """Raise ValueError unless the logits have this many classes."""
    if z.shape[-1] != classes:
        raise ValueError(
            f"{fn}: `logits` must have {classes} classes in the last axis, as these metrics were "
            f"made for, got {describe(z)}"
        )


def labels(fn: str, x: ArrayLike, rows: tuple[int, ...], name: str = "labels") -> Labels:
    """Return integer labels, one a row; `label_values` checks their values."""
    if has_dtype(x, jnp.bool_):
        raise TypeError(
            f"{fn}: `{name}` must be integers, got {describe(x)}; cast if you mean 0 and 1"
        )
    if not has_dtype(x, jnp.integer):
        raise TypeError(
            f"{fn}: `{name}` must be integers, got {describe(x)}; cast with .astype(int)"
        )
    if shape_of(x) != rows:
        raise ValueError(
            f"{fn}: `{name}` must have one label a row, shape {list(rows)}, got {describe(x)}"
            + ("; squeeze the last axis" if shape_of(x) == (*rows, 1) else "")
        )
    return x if isinstance(x, jax.Array) else jnp.asarray(_fit_int32(x))


def _fit_int32(x: Any) -> np.ndarray:
    """Return labels that JAX can hold: −1 for what int32 cannot, so that 2³²+1 never becomes 1."""
    a = np.asarray(x)
    fits = np.logical_and(a >= np.iinfo(np.int32).min, a <= np.iinfo(np.int32).max)
    return a if a.dtype.itemsize < 4 else np.where(fits, a, -1).astype(np.int32)


def targets(fn: str, x: ArrayLike, shape: tuple[int, ...], name: str = "targets") -> Targets:
    """Return labels, integers of the rows' shape, or distributions, floats of the logits' shape."""
    given, rows = shape_of(x), shape[:-1]
    if has_dtype(x, jnp.floating):
        if given == shape:
            nonnegative(fn, name, x)
            return jnp.asarray(x)
        if given != rows:
            raise ValueError(
                f"{fn}: `{name}` must be integer labels of shape {list(rows)} or distributions of "
                f"the logits' shape {list(shape)}, got {describe(x)}"
            )
    if is_integer(x) and given == shape and shape[-1] > 1:
        raise ValueError(
            f"{fn}: integer `{name}` are labels and need shape {list(rows)}, got "
            f"{describe(x)}; cast one-hot targets to float"
        )
    return labels(fn, x, rows, name)


def label_values(
    fn: str, x: ArrayLike, classes: int | None, kept: RowMask | None, name: str = "labels"
) -> None:
    """Raise ValueError at the first concrete label outside [0, classes) in a kept row."""
    if not is_integer(x):
        return
    in_range = lambda y: (y >= 0) & (True if classes is None else y < classes)  # noqa: E731
    if found := first_invalid(x, in_range, kept):
        at, value = found
        raise ValueError(f"{fn}: `{name}`{at or ''} = {value} {_outside_classes(classes)}")


def traced_labels(
    fn: str,
    x: Labels,
    narrowed: Labels,
    kept: RowMask | None,
    classes: int,
    name: str = "labels",
) -> None:
    """Report the first traced label that was narrowed to −1 in a kept row, under `checked`."""
    if not CHECKING.get():
        return
    valid, must = narrowed >= 0, _outside_classes(classes)
    valid = valid if kept is None else valid | ~kept
    if x.ndim:
        traced_entries(fn, name, x, valid, must)
    else:
        checkify.check(valid, f"{fn}: `{name}` = {{value}} {must}", value=x)


def _outside_classes(classes: int | None) -> str:
    return f"is outside [0, {classes or '∞'}); drop such rows with where= or ignore_index="


def where(
    fn: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[RowMask | None, ClassMask | None]:
    """Return `where` as (rows to keep, classes to keep); a row without any class is not kept."""
    if x is None:
        return None, None
    if not has_dtype(x, jnp.bool_):
        raise TypeError(
            f"{fn}: `where` must be boolean, got {describe(x)}; compare it (mask != 0), or pass "
            "numbers as row_weights"
        )
    if shape_of(x) == shape[:-1]:
        return jnp.asarray(x), None
    if shape_of(x) == shape:
        mask = jnp.asarray(x)
        return jnp.any(mask, axis=-1), mask
    raise ValueError(
        f"{fn}: `where` must have the rows' shape {list(shape[:-1])} or the logits' shape "
        f"{list(shape)}, got {describe(x)}"
    )


def row_mask(fn: str, x: ArrayLike | None, rows: tuple[int, ...]) -> RowMask | None:
    """Return the rows to keep where there are no logits; `where` may keep classes of each row."""
    shape = (*rows, 1) if x is None or shape_of(x) == rows else (*rows, *shape_of(x)[-1:])
    return where(fn, x, shape)[0]


def rows_kept(
    fn: str,
    x: ArrayLike | None,
    rows: tuple[int, ...],
    instead: str = "give them logits of -inf",
) -> RowMask | None:
    """Return the rows to keep; classes are excluded in another way, by `instead`."""
    if x is not None and has_dtype(x, jnp.bool_) and shape_of(x) != rows:
        raise ValueError(
            f"{fn}: `where` must have the rows' shape {list(rows)}, got {describe(x)}; to exclude "
            f"classes, {instead}"
        )
    return row_mask(fn, x, rows)


def rows_and_classes_kept(
    fn: str,
    where: ArrayLike | None,
    class_mask: ArrayLike | None,
    rows: tuple[int, ...],
    classes: int,
) -> tuple[RowMask | None, SharedClassMask | None]:
    """Return (rows to keep, classes to keep in all of them); no row is kept without a class."""
    kept = rows_kept(fn, where, rows, "pass class_mask=, one mask for all rows")
    if class_mask is None:
        return kept, None
    if not has_dtype(class_mask, jnp.bool_):
        raise TypeError(
            f"{fn}: `class_mask` must be boolean, got {describe(class_mask)}; compare it "
            "(mask != 0)"
        )
    if shape_of(class_mask) != (classes,):
        raise ValueError(
            f"{fn}: `class_mask` must have shape {[classes]}, one mask for all rows, got "
            f"{describe(class_mask)}"
        )
    mask, values = jnp.asarray(class_mask), concrete(class_mask)
    if values is not None and np.any(values):
        return kept, mask
    some = jnp.broadcast_to(jnp.any(mask), rows)
    return (some if kept is None else kept & some), mask


# Heads whose logits are never stored


def hidden(fn: str, x: ArrayLike, name: str = "hidden") -> Float[Array, "*n D"]:
    """Return hidden states with their features in the last axis."""
    h = floats(fn, name, x)
    if h.ndim == 0:
        raise ValueError(f"{fn}: `{name}` needs an axis of features, got a scalar")
    return h


def head(
    fn: str,
    x: ArrayLike,
    layout: Any,
    h: Float[Array, "*n D"],
    name: str = "head",
    option: str = "head_layout",
) -> Float[Array, "_ _"]:
    """Return a projection from h's features onto at least one class."""
    if layout not in ("dv", "vd"):
        raise ValueError(
            f'{fn}: `{option}` must be "dv" (a head [D, V]) or "vd" (an embedding [V, D]), got '
            f"{layout!r}"
        )
    w, features = floats(fn, name, x), h.shape[-1]
    own = 0 if layout == "dv" else 1
    if w.ndim != 2 or w.shape[own] != features:
        wanted = f"[{features}, V]" if layout == "dv" else f"[V, {features}]"
        turned = w.ndim == 2 and w.shape[1 - own] == features
        other = "vd" if layout == "dv" else "dv"
        raise ValueError(
            f"{fn}: `{name}` must have shape {wanted} with {option}={layout!r}, got {describe(x)}"
            + (f"; it fits {option}={other!r}" if turned else "")
        )
    some_classes(fn, name, w.shape, (1 - own,))
    return w


def bias(fn: str, x: ArrayLike | None, classes: int, name: str = "bias") -> ClassWeights | None:
    """Return optional floats, one a class."""
    if x is None:
        return None
    b = floats(fn, name, x)
    if b.shape != (classes,):
        raise ValueError(f"{fn}: `{name}` must have shape {[classes]}, got {describe(x)}")
    return b


# One loss for each logit: labels, which count, what they weigh


def binary_labels(
    fn: str, x: ArrayLike, shape: tuple[int, ...], kept: Bool[Array, "..."] | None = None
) -> Shaped[Array, "..."]:
    """Return labels in [0, 1] where kept, one for each logit or one for all."""
    if not has_dtype(x, jnp.bool_, jnp.integer, jnp.floating):
        raise TypeError(f"{fn}: `labels` must be booleans, integers or floats, got {describe(x)}")
    if shape_of(x) not in ((), shape):
        raise ValueError(
            f"{fn}: `labels` must have the logits' shape {list(shape)}, or be one number for all, "
            f"got {describe(x)}; reshape them, or jnp.broadcast_to(labels, logits.shape)"
        )
    between_0_and_1(fn, "labels", x, kept)
    return jnp.asarray(x)


def per_logit(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> Shaped[Array, "..."] | None:
    """Return optional numbers: one for all, or one for each logit or entry of the last axis."""
    if x is None:
        return None
    if shape_of(x) not in ((), shape[-1:], shape):
        raise ValueError(
            f"{fn}: `{name}` must be one number, have the size of the last axis {list(shape[-1:])} "
            f"or the logits' shape {list(shape)}, got {describe(x)}; jnp.broadcast_to(..., "
            "logits.shape) says which logits you mean"
        )
    return weights(fn, name, x, shape_of(x))


def _over_labels(x: Array, shape: tuple[int, ...]) -> Array:
    """Return entries that broadcast to the logits: as they are, or one a row for all its labels."""
    return x if x.ndim == len(shape) else x[..., None]


def entries_kept(fn: str, x: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """Return which logits to keep, by logit or by row; it broadcasts to the logits' shape."""
    rows, entries = where(fn, x, shape)
    kept = rows if entries is None else entries
    return None if kept is None else _over_labels(kept, shape)


def entry_weights(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> Float[Array, "..."] | None:
    """Return optional numbers, one a logit or one a row; they broadcast to the logits' shape."""
    if x is not None and shape_of(x) not in (shape[:-1], shape):
        raise ValueError(
            f"{fn}: `{name}` must have the rows' shape {list(shape[:-1])} or the logits' shape "
            f"{list(shape)}, got {describe(x)}; jnp.broadcast_to(..., logits.shape) says which "
            "logits you mean"
        )
    w = weights(fn, name, x, shape_of(x))
    return None if w is None else _over_labels(w, shape)


# Names of arguments

# Each argument and what other libraries call it: PyTorch, torchmetrics, Keras, scikit-learn, SciPy,
# optax, T5X and MaxText; of a linear layer Flax, Liger, Cut Cross-Entropy and tokamax. Where a word
# has several meanings, the first row that fits the function is meant.
SYNONYMS = {
    "logits": "input inputs preds y_pred",
    "log_predictions": "input inputs preds y_pred predictions",
    "student_logits": "input logits",
    "hidden": "input _input inputs x e embeddings hidden_states",
    "student_hidden": "student_input",
    "teacher_hidden": "teacher_input",
    "mean": "input preds y_pred",
    "q": "y_pred qk",
    "targets": "target label labels y_true",
    "labels": "target targets label y_true y",
    "hard_labels": "target targets label labels true_labels y_true",
    "target": "targets label labels y_true",
    "values": "target targets y_true",
    "log_targets": "target targets labels",
    "p": "y_true pk",
    "head": "weight weights lin_weight linear_weight kernel lm_head w c",
    "student_head": "student_weight",
    "teacher_head": "teacher_weight",
    "where": "mask loss_mask",
    "ignore_index": "ignore_class ignore_label",
    "class_weights": "weight class_weight ce_weight",
    "row_weights": "weight weights sample_weight sample_weights example_weights",
    "weights": "weight sample_weight sample_weights",
    "label_smoothing": "smoothing",
    "z_loss": "lse_square_scale z_loss_multiplier z_loss_weight",
    "logit_softcap": "softcap soft_cap logits_soft_cap",
    "temperature": "T",
    "reduction": "reduce size_average",
    "normalizer": "num_items_in_batch",
    "axis": "dim",
    "counts": "class_counts cls_num_list samples_per_cls",
    "max_margin": "max_m",
    "variance": "var",
    "log_variance": "log_var",
    "classes": "num_classes",
    "bins": "num_bins n_bins",
    "k": "topk top_k",
    "top_k": "topk k",
    "resamples": "n_resamples",
    "confidence": "confidence_level",
    "seed": "random_state rng",
    "loss_fn": "fun",
    "fn": "fun",
}


def arguments(fn: F) -> F:
    """Decorate a public function: read arrays of any kind, and say which keyword is meant."""
    parameters = inspect.signature(fn).parameters
    known = frozenset(parameters)
    arrays = {name for name, p in parameters.items() if _takes_array(str(p.annotation))}
    names = tuple(parameters)

    def read(name: str, x: Any) -> Any:
        return read_array(fn.__qualname__, name, x) if name in arrays else x

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= known:
            given = {*islice(parameters, len(args)), *kwargs}
            _unknown(fn.__qualname__, [word for word in kwargs if word not in known], known, given)
        positional = *map(read, names, args), *args[len(names) :]
        return fn(*positional, **{name: read(name, x) for name, x in kwargs.items()})

    return cast(F, call)


def _takes_array(annotation: str) -> bool:
    """Tell by the annotation, as it is written, whether a parameter is an array."""
    return annotation.startswith(("ArrayLike", "Support"))


def _unknown(fn: str, words: list[str], known: frozenset[str], given: set[str]) -> None:
    """Raise TypeError with the names that are meant; without a synonym leave it to Python."""
    advice = []
    for word in words:
        fits = (name for name, others in SYNONYMS.items() if word in others.split())
        meant = next((name for name in fits if name in known - given), None)
        if meant is not None:
            advice.append(f"`{word}`, use `{meant}`")
            given.add(meant)
        elif word == "from_logits" and "logits" in known:
            advice.append("`from_logits`, leave it out (for probabilities: jxent.information)")
    if advice:
        raise TypeError(f"{fn}: unexpected keyword argument {'; '.join(advice)}")


def made_by(*ways: str) -> Callable[[C], C]:
    """Decorate a class of sums: name the ways to begin when the constructor lacks arguments."""

    def decorate(cls: C) -> C:
        name = "__new__" if issubclass(cls, tuple) else "__init__"
        plain = getattr(cls, name)
        _, *parameters = inspect.signature(plain).parameters.values()
        least = sum(parameter.default is parameter.empty for parameter in parameters)

        @wraps(plain)
        def construct(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) + len(kwargs) < least:
                begin = " or ".join(f"{cls.__name__}.{way}" for way in ways)
                raise TypeError(
                    f"{cls.__name__}: the constructor takes the sums themselves; begin with {begin}"
                )
            return plain(self, *args, **kwargs)

        setattr(cls, name, staticmethod(construct) if name == "__new__" else construct)
        return cls

    return decorate
