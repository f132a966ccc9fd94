"""Derivatives of every order against central differences of the one before, in float64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from assertions import enable_x64
from compiling import quickly

# Central differences of a function of size 1 err by about ε^(2/3) with this step.
_STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
_RTOL = 1e-7


def assert_derivatives(
    f: Callable[[jax.Array], jax.Array], points: np.ndarray, inside: np.ndarray | None = None
) -> None:
    """f: [n] → scalar at each of the points [P, n], along the coordinates where it is `inside`.

    The gradient is taken backward, the Hessian forward over that, and it must be symmetric.  The
    third derivative is taken along one random direction at each point, three times backward.
    """
    inside = np.ones(points.shape, bool) if inside is None else inside
    direction = np.random.default_rng(0).standard_normal(points.shape) * inside
    with enable_x64():
        x, w = jnp.asarray(points, jnp.float64), jnp.asarray(direction, jnp.float64)
        gradient, hessian = jax.jacrev(f), jax.jacfwd(jax.jacrev(f))
        value_at, gradient_at, hessian_at = (quickly(jax.vmap(g)) for g in (f, gradient, hessian))
        for below, at in ((value_at, gradient_at), (gradient_at, hessian_at)):
            exact = np.asarray(at(x))
            for i in range(points.shape[1]):
                h = jnp.zeros_like(x).at[:, i].set(_STEP)
                difference = (below(x + h) - below(x - h)) / (2 * _STEP)
                _assert_close(exact[..., i], difference, np.abs(exact), inside[:, i], i)
        np.testing.assert_allclose(exact, exact.swapaxes(1, 2), rtol=1e-10, atol=1e-13)

        along = lambda t, x, w: f(x + t * w)
        third = quickly(jax.vmap(jax.grad(jax.grad(jax.grad(along))), in_axes=(None, 0, 0)))
        bent = lambda x: jnp.einsum("pij,pi,pj->p", hessian_at(x), w, w)
        difference = (bent(x + _STEP * w) - bent(x - _STEP * w)) / (2 * _STEP)
        exact = np.asarray(third(0.0, x, w))
        _assert_close(exact, difference, np.abs(exact), np.ones(len(points), bool), "third")


def _assert_close(exact, difference, size, where, what) -> None:
    over = lambda a: np.asarray(a).reshape(len(a), -1).max(axis=-1)
    error, size = over(np.abs(exact - np.asarray(difference))), np.maximum(1, over(size))
    bad = ~(error <= _RTOL * size) & where
    assert not bad.any(), (what, np.flatnonzero(bad), error[bad])
