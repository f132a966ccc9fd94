"""`assert_close`: a comparison that refuses a tolerance nothing could fail."""

from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# An oracle's own rounding: below this share of its terms a float64 result is zero.
_NOTHING = 1e-13

# A product may be flushed to 0 on its way, a little before the result would be.
_FLUSHED = 4


@contextmanager
def relaxed():
    """JAX's ordinary promotion, for code that is not jxent's: optax fails under the strict one."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


def enable_x64():
    """A context in which float64 exists."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64 as experimental

    return experimental()


def f64(x: Any) -> np.ndarray:
    """x as float64 NumPy, from any float dtype."""
    return np.asarray(x).astype(np.float64)


def ulp(x: Any, dtype: Any = np.float32) -> np.ndarray:
    """The distance between neighbouring numbers of `dtype` at x."""
    info = jnp.finfo(dtype)
    x = np.abs(f64(x))
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.where(np.isfinite(x), x, 1)))
    return 2.0 ** (np.maximum(exponent, info.minexp) - info.nmant)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float = 0.0,
    ulps: Any = 0.0,
    scale: Any = None,
    dtype: Any = None,
    cancels: bool = False,
    err_msg: str = "",
) -> None:
    """|actual − expected| ≤ rtol·scale + ulps·ulp, with NaN and ±∞ exactly where expected.

    `scale` is |expected| unless given (the sum of absolute terms, where they cancel).  What
    underflows in the computation's dtype is allowed as well.  Where that would let pass zeros, the
    opposite sign, or ten times the tolerance too much, the comparison itself is at fault and fails
    (`cancels`: every entry may be much smaller than its scale; the last of these is not asked, and
    none where all are smaller than the tolerance).
    """
    dtype = jnp.asarray(actual).dtype if dtype is None else jnp.dtype(dtype)
    actual, expected = f64(actual), f64(expected)
    assert actual.shape == expected.shape, f"{err_msg}: {actual.shape} is not {expected.shape}"
    scale = np.abs(expected) if scale is None else np.broadcast_to(f64(scale), expected.shape)
    unit = ulp(expected, dtype)
    tiny = float(jnp.finfo(np.promote_types(dtype, np.float32)).tiny)
    smallest = max(_FLUSHED * tiny, float(jnp.finfo(dtype).smallest_subnormal))
    allowed = rtol * scale + ulps * unit + _FLUSHED * tiny

    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg)
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(actual[infinite], expected[infinite], err_msg)
    if not finite.any():
        return
    a, e, tol = actual[finite], expected[finite], np.broadcast_to(allowed, expected.shape)[finite]
    size = scale[finite]

    something = np.abs(e) > np.maximum(_NOTHING * size, smallest)
    if something.any() and not (cancels and np.all(np.abs(e) <= tol)):
        e_, tol_ = e[something], tol[something]
        wrongs = {"zeros": 0 * e_, "the opposite sign": -e_}
        # Told apart where the tolerance is more than what may be flushed to 0.
        told = (tol_ - _FLUSHED * tiny) / size[something]
        if not cancels and np.any(10 * told * np.abs(e_) > _FLUSHED * tiny):
            wrongs["ten times the tolerance"] = e_ * (1 + 10 * told)
        for name, wrong in wrongs.items():
            if np.all(np.abs(wrong - e_) <= tol_):
                raise AssertionError(f"{err_msg}: the tolerance would accept {name} for {e}")
    worst = np.argmax(np.abs(a - e) / tol)
    if not np.all(np.abs(a - e) <= tol):
        at = tuple(int(i[worst]) for i in np.nonzero(finite)) if expected.ndim else ()
        raise AssertionError(
            f"{err_msg}: at {list(at)} {a.flat[worst]!r} is not {e.flat[worst]!r}: off by "
            f"{abs(a.flat[worst] - e.flat[worst]):.3g}, allowed {tol.flat[worst]:.3g}"
        )
