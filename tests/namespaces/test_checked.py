"""`jxent.testing.checked` around training steps of Flax NNX, Equinox and Flax Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from assertions import assert_close

import jxent
from jxent.testing import checked

pytestmark = pytest.mark.relaxed  # none of these libraries is written for strict promotion
X = jax.random.normal(jax.random.key(0), (6, 4))
LABELS, BAD = jnp.array([0, 1, 2, 0, 1, 2]), jnp.array([0, 1, 2, 7, 1, 2])
AT_FAULT = r"^cross_entropy: `targets`\[3\] = 7 is outside"


def same(a, b):
    """Assert that two pytrees hold the same numbers."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if not isinstance(x, jax.Array):
            assert x is y
        elif not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_flax_nnx(jit):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(self.norm(nnx.relu(self.hidden(x)))))

    def make():
        model = Model(nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    def step(model, optimizer, x, labels):
        loss, grads = nnx.value_and_grad(lambda m: jxent.cross_entropy(m(x), labels))(model)
        optimizer.update(model, grads)
        return model, loss

    step = nnx.jit(step) if jit else step
    model, optimizer = make()
    expected = make()
    for _ in range(2):
        given_back, loss = checked(step)(model, optimizer, X, labels=LABELS)
        assert given_back is model
        assert_close(loss, step(*expected, X, LABELS)[1], rtol=1e-5)
    same(nnx.state(model), nnx.state(expected[0]))
    same(nnx.state(optimizer), nnx.state(expected[1]))

    with pytest.raises(ValueError, match=AT_FAULT):
        checked(step)(model, optimizer, X, BAD)
    with pytest.raises(ValueError, match="holds NaN"):
        checked(step)(model, optimizer, X * jnp.nan, LABELS)
    same(nnx.state(model), nnx.state(expected[0]))  # as before, and it goes on
    step(model, optimizer, X, LABELS)


def test_equinox():
    eqx = pytest.importorskip("equinox")
    optimizer = optax.adam(0.1)

    @eqx.filter_jit
    def step(model, opt_state, x, labels):
        loss_fn = lambda model: jxent.cross_entropy(jax.vmap(model)(x), labels)
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
        updates, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, loss

    model = eqx.nn.MLP(4, 3, width_size=8, depth=1, key=jax.random.key(0))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    found = checked(step)(model, opt_state, X, LABELS)
    same(found, step(model, opt_state, X, LABELS))
    same(checked(step)(*found[:2], X, LABELS), step(*found[:2], X, LABELS))
    with pytest.raises(ValueError, match=AT_FAULT):
        checked(step)(model, opt_state, X, BAD)


def test_flax_linen():
    linen = pytest.importorskip("flax.linen")
    model, optimizer = linen.Dense(3), optax.adam(0.1)

    @jax.jit
    def step(params, opt_state, x, labels):
        loss_fn = lambda params: jxent.cross_entropy(model.apply(params, x), labels)
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = model.init(jax.random.key(1), X)
    state = params, optimizer.init(params)
    same(checked(step)(*state, X, LABELS), step(*state, X, LABELS))
    with pytest.raises(ValueError, match=AT_FAULT):
        checked(step)(*state, X, BAD)


def test_static_options_and_keys():
    """What is no array is passed as it is; keys are results like others."""

    def losses(logits, labels, epsilon, key):
        return jxent.cross_entropy(logits, labels, label_smoothing=epsilon), jax.random.split(key)

    loss, keys = checked(losses)(X[:, :3], LABELS, 0.1, key=jax.random.key(0))
    assert_close(loss, jxent.cross_entropy(X[:, :3], LABELS, label_smoothing=0.1), rtol=1e-6)
    assert keys.shape == (2,)
