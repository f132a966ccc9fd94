"""Every check of an argument, and the only words an error is told in.

Shapes, dtypes and options are checked when tracing.  Values (a label outside [0, V), a negative
probability) are checked here when they are concrete; under jit they become NaN in their row, and
`jxent.testing.checked` finds them.
"""

import inspect
import math
import numbers
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
from jaxtyping import Array, Bool, Float, Integer, Shaped

from jxent._typing import ArrayLike, ReductionKind

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

# Set by jxent.testing.checked while it traces.
CHECKING: ContextVar[bool] = ContextVar("jxent_checking", default=False)


def _dtype(x: Any) -> np.dtype:
    return np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an array, a list or a number."""
    return tuple(np.shape(x))


def _is(x: Any, kind: Any) -> bool:
    return bool(jnp.issubdtype(_dtype(x), kind))


def is_integer(x: Any) -> bool:
    """Whether x holds integers (bool is not)."""
    return _is(x, jnp.integer)


def _came(x: Any) -> str:
    return f"{_dtype(x).name}{list(shape_of(x))}"


def concrete(x: Any) -> np.ndarray | None:
    """x as NumPy if its values can be read now, before JAX narrows them; else None."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return None
        return np.asarray(x)
    return np.asarray(x)


def floats(fn: str, name: str, x: ArrayLike) -> Float[Array, "..."]:
    """x as an array of floats."""
    if not _is(x, jnp.floating):
        raise TypeError(
            f"{fn}: `{name}` must be floating point, got {_came(x)}; cast with .astype(jnp.float32)"
        )
    return jnp.asarray(x)


def _as_floats(x: ArrayLike, dtype: Any = np.float32) -> Float[Array, "..."]:
    """x if it is floating; other numbers in this dtype, before JAX narrows them."""
    if _is(x, jnp.floating):
        return jnp.asarray(x)
    return x.astype(dtype) if isinstance(x, jax.Array) else jnp.asarray(np.asarray(x).astype(dtype))


def logits(fn: str, x: ArrayLike, name: str = "logits") -> Float[Array, "*n V"]:
    """Logits with at least one class in the last axis."""
    z = floats(fn, name, x)
    if z.ndim == 0:
        raise ValueError(f"{fn}: `{name}` needs an axis of classes, got a scalar")
    if z.shape[-1] == 0:
        raise ValueError(f"{fn}: `{name}` has no classes, got shape {list(z.shape)}")
    return z


def labels(
    fn: str, x: ArrayLike, rows: tuple[int, ...], name: str = "labels"
) -> Integer[Array, "*n"]:
    """Integer labels, one for each row; their values are for `label_values`."""
    if _is(x, jnp.bool_):
        raise TypeError(
            f"{fn}: `{name}` must be integers, got {_came(x)}; cast if you mean 0 and 1"
        )
    if not _is(x, jnp.integer):
        raise TypeError(f"{fn}: `{name}` must be integers, got {_came(x)}; cast with .astype(int)")
    if shape_of(x) != rows:
        raise ValueError(
            f"{fn}: `{name}` must have one label a row, shape {list(rows)}, got {_came(x)}"
            + ("; squeeze the last axis" if shape_of(x) == (*rows, 1) else "")
        )
    return x if isinstance(x, jax.Array) else jnp.asarray(_fitting(x))


def _fitting(x: Any) -> np.ndarray:
    """NumPy labels for JAX: what int32 cannot hold becomes −1, so that 2³²+1 never becomes 1."""
    a = np.asarray(x)
    fits = np.logical_and(a >= np.iinfo(np.int32).min, a <= np.iinfo(np.int32).max)
    return a if a.dtype.itemsize < 4 else np.where(fits, a, -1).astype(np.int32)


def label_values(
    fn: str,
    x: ArrayLike,
    classes: int | None,
    kept: Bool[Array, "*n"] | None,
    name: str = "labels",
) -> None:
    """ValueError at the first concrete label outside [0, classes) in a kept row."""
    values, keep = concrete(x), True if kept is None else concrete(kept)
    if values is None or keep is None or not is_integer(x):
        return
    bad = (values < 0) | (False if classes is None else values >= classes)
    bad = bad & keep
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), values.shape)
        raise ValueError(_bad_label(fn, at, values[at], classes, name))


def _bad_label(fn: str, at: Sequence[Any], value: Any, classes: int | None, name: str) -> str:
    position = f"[{', '.join(str(i) for i in at)}]" if at else ""
    return (
        f"{fn}: `{name}`{position} = {value} is outside [0, {classes or '∞'}); drop such rows "
        "with where= or ignore_index="
    )


def traced_labels(
    fn: str,
    x: Integer[Array, "*n"],
    valid: Integer[Array, "*n"],
    kept: Bool[Array, "*n"] | None,
    classes: int,
    name: str = "labels",
) -> None:
    """The same for traced labels, under `jxent.testing.checked`; `valid` has −1 for the bad."""
    if not CHECKING.get() or x.size == 0:
        return
    bad = valid < 0 if kept is None else (valid < 0) & kept
    at = jnp.argmax(bad.ravel())
    position = jnp.unravel_index(at, x.shape) if x.ndim else ()
    words = _bad_label(fn, ["{}" for _ in position], "{value}", classes, name)
    checkify.check(~jnp.any(bad), words, *position, value=x.ravel()[at])


def distribution(
    fn: str, x: ArrayLike, shape: tuple[int, ...], name: str = "targets"
) -> Float[Array, "*n V"]:
    """A distribution for each row; negative entries raise when concrete."""
    if shape_of(x) != shape:
        raise ValueError(
            f"{fn}: `{name}` must have the logits' shape {list(shape)}, got {_came(x)}"
        )
    nonnegative(fn, name, x)
    return jnp.asarray(x)


def soft_labels(
    fn: str, x: ArrayLike, z: Float[Array, "*n V"], one_row: bool
) -> Float[Array, "*n V"]:
    """Distributions or one-hot integers of the logits' shape; as `one_row` also floats [V] for all.

    Integers [V] are more likely labels of another batch.
    """
    rows, one_for_all = z.shape[:-1], z.shape[-1:]
    if is_integer(x) and shape_of(x) == rows and z.ndim > 1:
        raise ValueError(
            f"{fn}: `labels` must be distributions of the logits' shape {list(z.shape)}, got "
            f"{_came(x)}; for integer labels use softmax_cross_entropy_with_integer_labels"
        )
    for_all = one_row and _is(x, jnp.floating) and shape_of(x) == one_for_all
    if shape_of(x) != z.shape and not for_all:
        other = (
            f"be floats {list(one_for_all)} for all rows"
            if one_row
            else (f"be integers, one a row, shape {list(rows)}")
        )
        raise ValueError(
            f"{fn}: `labels` must have the logits' shape {list(z.shape)} (classes last), or "
            f"{other}, got {_came(x)}"
        )
    nonnegative(fn, "labels", x)
    t = jnp.asarray(x)
    if not _is(t, jnp.floating):
        t = t.astype(jnp.float32)
    return jnp.broadcast_to(t, z.shape)


def nonnegative(fn: str, name: str, x: ArrayLike) -> None:
    """ValueError at the first negative entry, when concrete."""
    values = concrete(x)
    if values is not None and np.any(values < 0):
        at = np.unravel_index(int(np.argmax(values < 0)), values.shape)
        raise ValueError(f"{fn}: `{name}`{list(map(int, at))} = {values[at]} must not be negative")


def finite_nonnegative(fn: str, name: str, x: ArrayLike) -> None:
    """ValueError at the first entry that is negative, infinite or NaN, when concrete."""
    values = concrete(x)
    if values is not None and np.any(bad := ~((values >= 0) & (values < np.inf))):
        at = np.unravel_index(int(np.argmax(bad)), values.shape)
        raise ValueError(
            f"{fn}: `{name}`{list(map(int, at))} = {values[at]} must be finite and not negative"
        )


def within_unit(fn: str, name: str, x: ArrayLike) -> None:
    """ValueError at the first entry outside [0, 1], when concrete."""
    values = concrete(x)
    if values is None:
        return
    bad = ~((values >= 0) & (values <= 1))
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), values.shape)
        raise ValueError(f"{fn}: `{name}`{list(map(int, at))} = {values[at]} is outside [0, 1]")


def targets(
    fn: str, x: ArrayLike, z: Float[Array, "*n V"]
) -> Integer[Array, "*n"] | Float[Array, "*n V"]:
    """Labels if integers of the rows' shape, distributions if floats of the logits' shape."""
    if _is(x, jnp.floating) and shape_of(x) == z.shape:
        return distribution(fn, x, z.shape)
    if _is(x, jnp.floating) and shape_of(x) != z.shape[:-1]:
        raise ValueError(
            f"{fn}: `targets` must be integer labels of shape {list(z.shape[:-1])} or "
            f"distributions of the logits' shape {list(z.shape)}, got {_came(x)}"
        )
    if _is(x, jnp.integer) and shape_of(x) == z.shape and z.shape[-1] > 1:
        raise ValueError(
            f"{fn}: integer `targets` are labels and need shape {list(z.shape[:-1])}, got "
            f"{_came(x)}; cast one-hot targets to float"
        )
    return labels(fn, x, z.shape[:-1], "targets")


def where(
    fn: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[Bool[Array, "*n"] | None, Bool[Array, "*n V"] | None]:
    """`where` as (rows to keep, classes to keep); a row without any class is not kept."""
    if x is None:
        return None, None
    if not _is(x, jnp.bool_):
        raise TypeError(
            f"{fn}: `where` must be boolean, got {_came(x)}; compare it (mask != 0), or pass "
            "numbers as row_weights"
        )
    if shape_of(x) == shape[:-1]:
        return jnp.asarray(x), None
    if shape_of(x) == shape:
        mask = jnp.asarray(x)
        return jnp.any(mask, axis=-1), mask
    raise ValueError(
        f"{fn}: `where` must have the rows' shape {list(shape[:-1])} or the logits' shape "
        f"{list(shape)}, got {_came(x)}"
    )


def row_mask(fn: str, x: ArrayLike | None, rows: tuple[int, ...]) -> Bool[Array, "*n"] | None:
    """`where` where there are no logits: rows to keep, or classes to keep in each row."""
    shape = (*rows, 1) if x is None or shape_of(x) == rows else (*rows, *shape_of(x)[-1:])
    return where(fn, x, shape)[0]


def one_axis(fn: str, name: str, x: ArrayLike) -> tuple[int]:
    """The shape of an array that must have one axis."""
    shape = shape_of(x)
    if len(shape) != 1:
        raise ValueError(f"{fn}: `{name}` must have one axis, got {_came(x)}")
    return shape


def weights(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...], dtype: Any = None
) -> Array | None:
    """Optional numbers of one exact shape, as floats.

    Integers are of this dtype; without one float32, a single number as wide as Python's.
    """
    if x is None:
        return None
    if not (_is(x, jnp.floating) or _is(x, jnp.integer)):
        raise TypeError(f"{fn}: `{name}` must be numbers, got {_came(x)}")
    if shape_of(x) != shape:
        raise ValueError(f"{fn}: `{name}` must have shape {list(shape)}, got {_came(x)}")
    if dtype is None:
        dtype = np.float32 if shape else jnp.result_type(float)
    return _as_floats(x, dtype)


def hidden(fn: str, x: ArrayLike, name: str = "hidden") -> Float[Array, "*n D"]:
    """Hidden states with their features in the last axis."""
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
    """A projection from h's features onto at least one class."""
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
            f"{fn}: `{name}` must have shape {wanted} with {option}={layout!r}, got {_came(x)}"
            + (f"; it fits {option}={other!r}" if turned else "")
        )
    if w.shape[1 - own] == 0:
        raise ValueError(f"{fn}: `{name}` has no classes, got shape {list(w.shape)}")
    return w


def bias(
    fn: str, x: ArrayLike | None, classes: int, name: str = "bias"
) -> Float[Array, "V"] | None:
    """Optional floats, one a class."""
    if x is None:
        return None
    b = floats(fn, name, x)
    if b.shape != (classes,):
        raise ValueError(f"{fn}: `{name}` must have shape {[classes]}, got {_came(x)}")
    return b


def rows_kept(
    fn: str, x: ArrayLike | None, rows: tuple[int, ...], classes_by: str
) -> Bool[Array, "*n"] | None:
    """`where` of the rows' shape; what excludes classes is `classes_by` of −∞."""
    if x is not None and _is(x, jnp.bool_) and shape_of(x) != rows:
        raise ValueError(
            f"{fn}: `where` must have the rows' shape {list(rows)}, got {_came(x)}; to exclude "
            f"classes, give them {classes_by} of -inf"
        )
    return row_mask(fn, x, rows)


def chunk_size(fn: str, x: Any) -> int | None:
    """None, or a static integer ≥ 1."""
    if x is None:
        return None
    return whole(fn, "chunk_size", x, 1)


def whole(fn: str, name: str, x: Any, least: int, why: str = "") -> int:
    """A static integer of at least `least`."""
    if isinstance(x, bool) or not isinstance(x, numbers.Integral):
        raise TypeError(f"{fn}: `{name}` must be a static Python integer, got {x!r}")
    if x < least:
        raise ValueError(f"{fn}: `{name}` must be at least {least}{why}, got {x}")
    return int(x)


def implementation(fn: str, x: Any, reduction: ReductionKind) -> str:
    """The way to go: as told, or the cheapest that can."""
    ways = ("tokens", "vocab", "reference")
    if x is None:
        return "vocab" if reduction == "none" else "tokens"
    if x not in ways:
        raise ValueError(
            f"{fn}: `implementation` must be {', '.join(map(repr, ways))} or None, got {x!r}"
        )
    if x == "tokens" and reduction == "none":
        raise ValueError(
            f"{fn}: implementation='tokens' gives a sum of rows; with reduction='none' use 'vocab'"
        )
    return x


@contextmanager
def reverse_only(fn: str, instead: str) -> Iterator[None]:
    """Around what carries a custom_vjp: says what to call in its place in forward mode."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"{fn}: no forward mode (jvp, linearize, jacfwd) here; use {instead}, or jax.jvp of "
            "jax.grad for Hessian-vector products"
        ) from error


def _static(fn: str, name: str, x: Any) -> float:
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{fn}: `{name}` must be a static Python number, got a traced value; close over it or "
            "mark it static (static_argnames)"
        )
    if isinstance(x, jax.Array | np.ndarray) and x.ndim == 0:
        x = x.item()
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        raise TypeError(f"{fn}: `{name}` must be a static Python number, got {x!r}")
    return float(x)


def fraction(fn: str, name: str, x: Any) -> float:
    """A static number in [0, 1]."""
    value = _static(fn, name, x)
    if not 0 <= value <= 1:
        raise ValueError(f"{fn}: `{name}` must be in [0, 1], got {value}")
    return value


def not_negative(fn: str, name: str, x: Any) -> float:
    """A static finite number ≥ 0."""
    value = _static(fn, name, x)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{fn}: `{name}` must be finite and not negative, got {value}")
    return value


def softcap(fn: str, x: Any) -> float | None:
    """None, or a static finite number > 0."""
    if x is None:
        return None
    value = _static(fn, "logit_softcap", x)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{fn}: `logit_softcap` must be finite and positive, got {value}")
    return value


def ignore_index(fn: str, x: Any, *, labelled: bool) -> int | None:
    """None, or a static integer, with labels only."""
    if x is None:
        return None
    if not labelled:
        raise ValueError(f"{fn}: `ignore_index` goes with integer labels; drop rows with where=")
    if not isinstance(x, numbers.Integral) or isinstance(x, bool):
        raise TypeError(f"{fn}: `ignore_index` must be a static Python integer, got {x!r}")
    return int(x)


def reduction(fn: str, x: Any, *, normalizer: Any, axis_name: Any) -> ReductionKind:
    """One of "mean", "sum", "none", together with what goes with it."""
    if x not in ("mean", "sum", "none"):
        raise ValueError(f'{fn}: `reduction` must be "mean", "sum" or "none", got {x!r}')
    if normalizer is not None and x != "mean":
        raise ValueError(
            f'{fn}: `normalizer` replaces the denominator of "mean"; with reduction={x!r} divide '
            "the result yourself"
        )
    if axis_name is not None and x == "none":
        raise ValueError(f'{fn}: `axis_name` sums over devices; it cannot go with reduction="none"')
    return x


def axes(fn: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The class axes as distinct non-negative integers; None is all of them."""
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


def binary_labels(
    fn: str, x: ArrayLike, shape: tuple[int, ...], kept: Bool[Array, "..."] | None = None
) -> Shaped[Array, "..."]:
    """Labels in [0, 1] where kept, one for each logit or one for all."""
    if not (_is(x, jnp.bool_) or _is(x, jnp.integer) or _is(x, jnp.floating)):
        raise TypeError(f"{fn}: `labels` must be booleans, integers or floats, got {_came(x)}")
    if shape_of(x) not in ((), shape):
        raise ValueError(
            f"{fn}: `labels` must have the logits' shape {list(shape)}, or be one number for all, "
            f"got {_came(x)}; reshape them, or jnp.broadcast_to(labels, logits.shape)"
        )
    within_unit_where(fn, "labels", x, kept)
    return jnp.asarray(x)


def per_logit(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> Shaped[Array, "..."] | None:
    """Optional numbers: one for all, one for each entry of the last axis, or one for each logit."""
    if x is None:
        return None
    if shape_of(x) not in ((), shape[-1:], shape):
        raise ValueError(
            f"{fn}: `{name}` must be one number, have the size of the last axis {list(shape[-1:])} "
            f"or the logits' shape {list(shape)}, got {_came(x)}; jnp.broadcast_to(..., "
            "logits.shape) says which logits you mean"
        )
    return weights(fn, name, x, shape_of(x))


def same_or_one_row(
    fn: str, name: str, x: ArrayLike, other: str, shape: tuple[int, ...], one_row: bool
) -> Float[Array, "..."]:
    """Floats of the other argument's shape, or one row [V] for all rows where that is `one_row`."""
    array = floats(fn, name, x)
    if array.shape != shape and not (one_row and array.shape == shape[-1:]):
        alternative = f", or {list(shape[-1:])} for all rows" if one_row else ""
        raise ValueError(
            f"{fn}: `{name}` must have the shape of `{other}` {list(shape)}{alternative}, got "
            f"{_came(x)}; jnp.broadcast_to(..., {other}.shape) says which rows you mean"
        )
    return array


def counted(
    fn: str, x: ArrayLike | None, other: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> Bool[Array, "..."] | None:
    """`where` against all axes of the other argument: what a sum over `axes` counts."""
    if x is None:
        return None
    if not _is(x, jnp.bool_):
        raise TypeError(f"{fn}: `where` must be boolean, got {_came(x)}; compare it (mask != 0)")
    rows = tuple(size for a, size in enumerate(shape) if a not in axes)
    if shape_of(x) == shape:
        return jnp.asarray(x)
    if shape_of(x) == rows:
        return jnp.expand_dims(jnp.asarray(x), axes)
    raise ValueError(
        f"{fn}: `where` must have the rows' shape {list(rows)} or the shape of `{other}` "
        f"{list(shape)}, got {_came(x)}"
    )


def some_classes(fn: str, name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """ValueError when the axes to sum over hold nothing."""
    if any(shape[a] == 0 for a in axes):
        raise ValueError(f"{fn}: `{name}` has no classes, got shape {list(shape)}")


def nonnegative_where(fn: str, name: str, x: ArrayLike, counts: Bool[Array, "..."] | None) -> None:
    """`nonnegative` for the entries that count, when they are concrete."""
    values, count = concrete(x), True if counts is None else concrete(counts)
    if values is None or count is None:
        return
    values, count = np.broadcast_arrays(values, count)
    nonnegative(fn, name, np.where(count, values, 0))


def traced_entries(
    fn: str, name: str, x: Shaped[Array, "..."], valid: Bool[Array, "..."], must: str
) -> None:
    """Under `jxent.testing.checked`, reports the first traced entry that is not valid."""
    if not CHECKING.get() or valid.size == 0:
        return
    at = jnp.argmin(valid.ravel())
    position = jnp.unravel_index(at, valid.shape) if valid.ndim else ()
    words = f"{fn}: `{name}`[{', '.join('{}' for _ in position)}] = {{value}} {must}"
    value = jnp.broadcast_to(x, valid.shape).ravel()[at]
    checkify.check(jnp.all(valid), words, *position, value=value)


def probabilities(fn: str, name: str, x: ArrayLike, *, rows: bool = True) -> Float[Array, "..."]:
    """Numbers in [0, 1] as floats; as `rows` they have at least one class in the last axis."""
    if not (_is(x, jnp.bool_) or _is(x, jnp.integer) or _is(x, jnp.floating)):
        raise TypeError(f"{fn}: `{name}` must be numbers, got {_came(x)}")
    if rows and not shape_of(x):
        raise ValueError(
            f"{fn}: `{name}` needs an axis of classes, got a scalar; the probability of a yes is "
            "[1 - p, p]"
        )
    if rows:
        some_classes(fn, name, shape_of(x), (len(shape_of(x)) - 1,))
    within_unit(fn, name, x)
    return _as_floats(x)


def same_shape_or_one(fn: str, p: Array, q: Array, one: int) -> tuple[int, ...]:
    """The shape of `p` and `q` together: the same, or one of them given once for all the other's.

    `one` is how many axes such an argument keeps: 1 for a row, 0 for a number.
    """
    for small, large in ((p.shape, q.shape), (q.shape, p.shape)):
        if small in (large, large[len(large) - one :]):
            return large
    raise ValueError(
        f"{fn}: `p` and `q` must have the same shape, or one of them be a single "
        f"{'row' if one else 'number'} for all of the other, got {_came(p)} and {_came(q)}; "
        "jnp.broadcast_to says which belong together"
    )


def clip_fraction(fn: str, x: Any) -> float:
    """A static number in [0, 1/2): what predictions are kept away from 0 and 1 by."""
    value = _static(fn, "eps", x)
    if not 0 <= value < 0.5:
        raise ValueError(f"{fn}: `eps` must be in [0, 0.5), got {value}")
    return value


def number(fn: str, name: str, x: ArrayLike, dtype: Any = np.float32) -> Float[Array, "..."]:
    """Any real numbers as floats; integers are of this dtype."""
    if not (_is(x, jnp.floating) or _is(x, jnp.integer)):
        raise TypeError(f"{fn}: `{name}` must be numbers, got {_came(x)}")
    return _as_floats(x, dtype)


def same_classes(fn: str, z: Float[Array, "*n V"], classes: int) -> None:
    """ValueError unless the logits have this many classes."""
    if z.shape[-1] != classes:
        raise ValueError(
            f"{fn}: `logits` must have {classes} classes in the last axis, as these metrics were "
            f"made for, got {_came(z)}"
        )


def class_index(fn: str, name: str, x: Any, classes: int) -> int | None:
    """None, or a static class in [0, classes)."""
    if x is None:
        return None
    if (v := whole(fn, name, x, 0)) >= classes:
        raise ValueError(f"{fn}: `{name}` {x} is outside [0, {classes})")
    return v


def same_made(fn: str, ours: Any, theirs: Any) -> None:
    """ValueError unless two metrics were made with the same options."""
    if ours != theirs:
        raise ValueError(
            f"{fn}: `other` was made with other options: {theirs} where these have {ours}"
        )


def entries(fn: str, name: str, x: ArrayLike) -> Float[Array, "..."]:
    """Numbers or booleans as floats."""
    return _as_floats(x) if _is(x, jnp.bool_) else number(fn, name, x)


def _first(bad: np.ndarray) -> int:
    return int(np.argmax(bad))


def strictly_between(fn: str, name: str, x: Any) -> float:
    """A number in (0, 1)."""
    value = _static(fn, name, x)
    if not 0 < value < 1:
        raise ValueError(f"{fn}: `{name}` must lie between 0 and 1, got {value}")
    return value


@contextmanager
def needed(fn: str, package: str) -> Iterator[None]:
    """Around an import of what only the extra brings."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{fn}: needs {package}: pip install 'jxent[demo]'") from error


# Imbalance, robustness, regularisation.


def _class_numbers(
    fn: str, name: str, x: ArrayLike, bad: Callable[[np.ndarray], np.ndarray], must: str
) -> Float[Array, "V"]:
    """One number for each of at least one class; ValueError at the first concrete bad one."""
    out = number(fn, name, x)
    if one_axis(fn, name, x) == (0,):
        raise ValueError(f"{fn}: `{name}` has no classes, got shape [0]")
    values = concrete(x)
    if values is not None and np.any(wrong := bad(values)):
        at = int(np.argmax(wrong))
        raise ValueError(f"{fn}: `{name}`[{at}] = {values[at]} {must}")
    return out


def class_counts(fn: str, x: ArrayLike) -> Float[Array, "V"]:
    """How often each class occurs: finite, and not 0."""
    return _class_numbers(
        fn,
        "counts",
        x,
        lambda n: ~((n > 0) & (n < np.inf)),
        "must be finite and positive: nothing is known of a class that does not occur; "
        "np.maximum(counts, 1) counts it as seen once",
    )


def class_prior(fn: str, x: ArrayLike, classes: int) -> Float[Array, "V"]:
    """Counts or probabilities, one a class, finite, not negative and not all 0."""
    out = _class_numbers(
        fn, "prior", x, lambda n: ~((n >= 0) & (n < np.inf)), "must be finite and not negative"
    )
    if out.shape != (classes,):
        raise ValueError(
            f"{fn}: `prior` must have one number a class, shape {[classes]}, got {_came(x)}"
        )
    values = concrete(x)
    if values is not None and not np.any(values):
        raise ValueError(f"{fn}: `prior` is 0 for every class")
    return out


def possible_prior(fn: str, prior: ArrayLike, tau: ArrayLike) -> None:
    """ValueError when a class of prior 0 would become certain."""
    p, t = concrete(prior), concrete(tau)
    if p is not None and t is not None and t < 0 and np.any(p == 0):
        at = int(np.argmax(p == 0))
        raise ValueError(
            f"{fn}: `prior`[{at}] = 0 with tau = {t} would make that class certain; "
            "np.maximum(counts, 1) counts it as seen once"
        )


def scalar(fn: str, name: str, x: ArrayLike) -> Float[Array, ""]:
    """One number, traced or not."""
    out = weights(fn, name, x, ())
    assert out is not None
    return out


def row_losses(fn: str, x: ArrayLike) -> Float[Array, "*n"]:
    """−log p of each row: floats, not negative when concrete."""
    nonnegative(fn, "row_losses", x)
    return floats(fn, "row_losses", x)


def below_one(fn: str, name: str, x: Any) -> float:
    """A static number in [0, 1)."""
    value = _static(fn, name, x)
    if not 0 <= value < 1:
        raise ValueError(f"{fn}: `{name}` must be in [0, 1), got {value}")
    return value


def log_of_zero(fn: str, x: Any) -> float:
    """A static finite number ≤ 0: what stands for log 0."""
    value = _static(fn, "log_zero", x)
    if not (value <= 0 and math.isfinite(value)):
        raise ValueError(f"{fn}: `log_zero` stands for log 0: finite, not positive, got {value}")
    return value


# Distillation: a teacher's rows beside a student's


def like_rows(
    fn: str, name: str, x: ArrayLike, other: str, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Floats of exactly the other argument's shape."""
    array = floats(fn, name, x)
    if array.shape != shape:
        raise ValueError(
            f"{fn}: `{name}` must have the shape of `{other}` {list(shape)}, got {_came(x)}"
        )
    return array


def same_rows(fn: str, name: str, x: Array, other: str, rows: tuple[int, ...]) -> None:
    """ValueError unless hidden states have these rows; their features may differ."""
    if x.shape[:-1] != rows:
        raise ValueError(
            f"{fn}: `{name}` must have the rows of `{other}`, shape {[*rows, x.shape[-1]]}, got "
            f"{_came(x)}"
        )


def same_vocabulary(fn: str, name: str, classes: int, other: str, expected: int) -> None:
    """ValueError unless two heads have the same classes."""
    if classes != expected:
        raise ValueError(
            f"{fn}: `{name}` has {classes} classes and `{other}` {expected}; cut or pad one of "
            "them, with a bias of -inf for what is padded"
        )


def one_of(fn: str, name: str, x: Any, choices: tuple[str, ...]) -> Any:
    """One of some words."""
    if x not in choices:
        raise ValueError(
            f"{fn}: `{name}` must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got "
            f"{x!r}"
        )
    return x


def scalar_within(fn: str, name: str, x: ArrayLike, must: str) -> Float[Array, ""]:
    """A number that is what `must` says; NaN in its place when traced."""
    value, given = weights(fn, name, x, ()), concrete(x)
    assert value is not None
    right = {
        "positive": lambda v: (v > 0) & (v < np.inf),
        "positive and at most 1e18": lambda v: (v > 0) & (v < np.inf) & (v <= 1e18),
        "in [0, 1]": lambda v: (v >= 0) & (v <= 1),
    }
    if given is not None and not right[must](given):
        raise ValueError(f"{fn}: `{name}` must be {must}, got {given}")
    return jnp.where(right[must](value), value, jnp.nan)


def hard_share(fn: str, alpha: ArrayLike | None, hard_labels: Any, default: float) -> ArrayLike:
    """α, which weighs soft against hard and means nothing without hard labels."""
    if alpha is None:
        return default
    if hard_labels is None:
        raise ValueError(
            f"{fn}: `alpha` weighs the soft term against `hard_labels`, which are not given; scale "
            "the result yourself"
        )
    return alpha


def labels_ignored(fn: str, x: Any, hard_labels: Any) -> int | None:
    """`ignore_index` goes with hard labels."""
    if x is not None and hard_labels is None:
        raise ValueError(f"{fn}: `ignore_index` goes with `hard_labels`; drop rows with where=")
    return ignore_index(fn, x, labelled=True)


# Regression: values, and the classes they are cut into


def either(fn: str, one: str, x: Any, other: str, y: Any) -> None:
    """ValueError when both of two ways to say the same are given."""
    if x is not None and y is not None:
        raise ValueError(f"{fn}: `{one}` and `{other}` say the same; give one of them")


def one_or_each(
    fn: str, name: str, x: ArrayLike, *, shape: tuple[int, ...], other: str, dtype: Any
) -> Float[Array, "..."]:
    """Numbers: one for all, or one for each entry of the other argument; integers of this dtype."""
    if shape_of(x) not in ((), shape):
        raise ValueError(
            f"{fn}: `{name}` must be one number or have the shape of `{other}` {list(shape)}, got "
            f"{_came(x)}; jnp.broadcast_to(..., {other}.shape) says which belong together"
        )
    return number(fn, name, x, dtype)


def all_positive(fn: str, name: str, x: ArrayLike) -> None:
    """ValueError at the first entry that is not positive, when concrete; NaN is no entry."""
    values = concrete(x)
    if values is not None and np.any(values <= 0):
        at = np.unravel_index(int(np.argmax(values <= 0)), values.shape)
        where_at = list(map(int, at)) if at else ""
        raise ValueError(f"{fn}: `{name}`{where_at} = {values[at]} must be positive")


def within_range(fn: str, name: str, x: ArrayLike, dtype: Any) -> None:
    """ValueError at the first positive entry that this dtype makes 0 or ∞ of, when concrete."""
    values = concrete(x)
    if values is None:
        return
    info, wide = jnp.finfo(dtype), values.astype(np.float64)
    tiny, largest = float(info.tiny), float(info.max)
    if np.any(bad := (wide < tiny) | ((wide > largest) & (wide < np.inf))):
        at = np.unravel_index(int(np.argmax(bad)), values.shape)
        raise ValueError(
            f"{fn}: `{name}`{list(map(int, at)) if at else ''} = {values[at]} is outside "
            f"{np.dtype(dtype).name}'s normal numbers, {tiny:.2g} to {largest:.2g}; use another "
            "unit"
        )


def spacing(fn: str, name: str, x: tuple[Any, ...], least: int) -> tuple[float, float, int]:
    """(low, high, how many classes)."""
    if len(x) != 3:
        raise TypeError(
            f"{fn}: `{name}` must be an array or a tuple (low, high, classes), got a tuple of "
            f"{len(x)}; np.array(...) makes an array of it"
        )
    low, high = (_static(fn, f"{name}[{i}]", x[i]) for i in (0, 1))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{fn}: `{name}` must have a finite low < high, got {low} and {high}")
    return low, high, whole(fn, f"{name}[2]", x[2], least, " classes")


def points(fn: str, name: str, x: ArrayLike, least: int, dtype: Any | None) -> Float[Array, "K"]:
    """At least `least` numbers on one axis, finite and increasing when concrete.

    So they are in this dtype, too: by default their own.
    """
    with np.errstate(over="ignore"):  # `distinct` says it
        given = number(fn, name, x, np.float32 if dtype is None else dtype)
        given = given.astype(np.promote_types(given.dtype, np.float32) if dtype is None else dtype)
    one_axis(fn, name, x)
    if given.size < least:
        raise ValueError(f"{fn}: `{name}` must have at least {least} entries, got {_came(x)}")
    values = concrete(x)
    if values is not None:
        values = values.astype(np.float64)
        bad = ~np.isfinite(values)
        bad[1:] |= ~(values[1:] > values[:-1])
        if np.any(bad):
            raise ValueError(
                f"{fn}: `{name}` must be finite and increasing, got {values[_first(bad)]} at "
                f"[{_first(bad)}]; np.sort(np.unique(...)) makes them so"
            )
        with np.errstate(over="ignore"):
            distinct(fn, f"`{name}`", name, values.astype(given.dtype))
    return given


def distinct(fn: str, what: str, name: str, x: Shaped[Any, "K"]) -> None:
    """ValueError at the first of concrete increasing numbers that rounding made ∞ or the same."""
    values = concrete(x)
    if values is None:
        return
    infinite, same = ~np.isfinite(values), np.append(False, ~(values[1:] > values[:-1]))
    if np.any(bad := infinite | same):
        at = _first(bad)
        fault, way = ("finite", "divide {} by a scale")
        if not infinite[at]:
            fault, way = "distinct", "subtract an offset from {}"
        raise ValueError(
            f"{fn}: {what}[{at}] = {values[at]} is not {fault} in {values.dtype.name}; "
            f"{way.format(f'values and {name}')}"
        )


def as_many_bins(fn: str, z: Float[Array, "*n V"], bins: int) -> None:
    """ValueError unless there is one bin a class."""
    if z.shape[-1] != bins:
        raise ValueError(
            f"{fn}: `bins` must have one value for each of {z.shape[-1]} classes, got {bins}; "
            "edges of bins become values by bin_centers(edges)"
        )


def values_within(
    fn: str, x: ArrayLike, bad: Bool[Array, "..."], support: Float[Array, "K"]
) -> None:
    """ValueError at the first concrete value outside a concrete support."""
    values, outside, ends = concrete(x), concrete(bad), concrete(support)
    if values is None or outside is None or ends is None or not np.any(outside):
        return
    at = np.unravel_index(int(np.argmax(outside)), outside.shape)
    position = list(map(int, at)) if at else ""
    raise ValueError(
        f"{fn}: `values`{position} = {values[at]} is outside [{ends[0]}, {ends[-1]}], one of "
        f"{int(np.sum(outside))}; widen the support, or outside='clip'"
    )


# One loss for each logit: which count, what they weigh


def _over_labels(x: Array, shape: tuple[int, ...]) -> Array:
    """One entry a logit as it is, one a row for all of its labels."""
    return x if x.ndim == len(shape) else x[..., None]


def entries_kept(fn: str, x: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """`where` of each logit or of each row; it broadcasts to the logits' shape."""
    rows, entries = where(fn, x, shape)
    kept = rows if entries is None else entries
    return None if kept is None else _over_labels(kept, shape)


def entry_weights(
    fn: str, name: str, x: ArrayLike | None, shape: tuple[int, ...]
) -> Float[Array, "..."] | None:
    """Optional numbers, one a logit or one a row; they broadcast to the logits' shape."""
    if x is not None and shape_of(x) not in (shape[:-1], shape):
        raise ValueError(
            f"{fn}: `{name}` must have the rows' shape {list(shape[:-1])} or the logits' shape "
            f"{list(shape)}, got {_came(x)}; jnp.broadcast_to(..., logits.shape) says which logits "
            "you mean"
        )
    w = weights(fn, name, x, shape_of(x))
    return None if w is None else _over_labels(w, shape)


def within_unit_where(fn: str, name: str, x: ArrayLike, kept: Bool[Array, "..."] | None) -> None:
    """`within_unit` for the entries that are kept, when they are concrete."""
    values, keep = concrete(x), True if kept is None else concrete(kept)
    if values is None or keep is None:
        return
    if keep is not True:
        values = np.where(keep, values, 0)
    within_unit(fn, name, values)


# Sums that are kept


def sums_dtype(fn: str, dtype: Any) -> np.dtype:
    """float32 or float64: two of them hold a sum to its digits."""
    given = np.dtype(dtype)
    if given not in (np.float32, np.float64):
        raise TypeError(f"{fn}: `dtype` must be float32 or float64, got {given.name}")
    return given


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


def keywords(fn: F) -> F:
    """Decorate a public function: an unknown keyword is told by the name that it has here."""
    parameters = inspect.signature(fn).parameters
    known = frozenset(parameters)

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= known:
            given = {*islice(parameters, len(args)), *kwargs}
            _unknown(fn.__qualname__, [word for word in kwargs if word not in known], known, given)
        return fn(*args, **kwargs)

    return cast(F, call)


def _unknown(fn: str, words: list[str], known: frozenset[str], given: set[str]) -> None:
    """TypeError with the names that are meant; what has no synonym is left to Python."""
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
    """Decorate a class of sums: a constructor without all of them is told the ways to begin."""

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
