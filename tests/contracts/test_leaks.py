"""No tracer outlives its trace.

In a file of its own: JAX looks through all that lives in the process, which takes minutes after
thousands of programs.
"""

import gc

import jax
import jax.numpy as jnp
import pytest
from cases import OFTEN, ROW_LOSSES, TRAINING_LOSSES, Case, cast, function


@pytest.mark.deep
@pytest.mark.parametrize("name", OFTEN)
def test_no_tracer_leaks(name):
    case = {**ROW_LOSSES, **TRAINING_LOSSES}[name]
    f, x = function(Case(case.fn, cast(case.arguments, jnp.float32)))
    twice = jax.tree.map(lambda a: jnp.stack([a, a + 1]), x)
    jax.clear_caches()
    gc.collect()
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x: jnp.sum(f(x))))(x)
        jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(f(x)))))(twice)


@pytest.mark.deep
def test_a_leak_is_seen():
    kept = []

    def leaking(x):
        kept.append(x)
        return x

    with jax.checking_leaks(), pytest.raises(Exception, match=r"[Ll]eaked"):
        jax.jit(leaking)(jnp.ones(3))
