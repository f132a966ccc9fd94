"""Float8 and float4, with an infinity or without: what holds is what float32 gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ROW_LOSSES, TRAINING_LOSSES, cast, value_and_gradients
from sampling import chosen

import jxent

# jaxtyping does not know them all.
pytestmark = pytest.mark.usefixtures("unhooked")

# Those that have a 0 and a sign, of this version of JAX.
NARROW = [
    name
    for name in (
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e4m3b11fnuz",
        "float8_e3m4",
        "float8_e4m3",
        "float4_e2m1fn",
    )
    if hasattr(jnp, name)
]
CASES = ROW_LOSSES | TRAINING_LOSSES
MASKED = (
    "labels, classes kept",
    "distributions, classes kept",
    "generalized, distributions",
    "distillation, jsd",
    "labels, everything, mean",
    "tokens, mean",
    "vocab, none",
)
ORDINARY = [(name, "float8_e4m3fn") for name in MASKED] + [(MASKED[0], "float4_e2m1fn")]
# XLA's CPU backend has no product of float4, not even a plain one.
IMPOSSIBLE = [
    (name, "float4_e2m1fn")
    for name, case in CASES.items()
    if {"hidden", "student_hidden"} & case.arguments.keys()
]
# Without an infinity, with one, and with no NaN either.
KINDS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
EVERY = [
    call
    for call in itertools.product(CASES, KINDS)
    if call not in IMPOSSIBLE and hasattr(jnp, call[1])
]


@pytest.mark.parametrize(("name", "dtype"), chosen(EVERY, *ORDINARY))
def test_narrow_arguments_are_their_float32_values(name, dtype):
    """The same loss, and the same gradients rounded to the dtype of what they are for."""
    case = CASES[name]
    given = cast(cast(case.arguments, jnp.float32), dtype)
    value, gradients = value_and_gradients(case.fn, given)
    wide, wide_gradients = value_and_gradients(case.fn, cast(given, jnp.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wide, rtol=2e-6)
    limits = jnp.finfo(dtype)
    for key, gradient in gradients.items():
        assert gradient.dtype == jnp.dtype(dtype), key
        wanted = np.asarray(wide_gradients[key].astype(dtype), np.float32)
        # Class weights and targets also weigh in a mean's denominator: two gradients, each rounded,
        # which may cancel.
        several = key in ("targets", "class_weights", "row_weights")
        largest = float(np.max(np.abs(wanted))) if several else 0.0
        roundings = 3 if several else 1
        np.testing.assert_allclose(
            np.asarray(gradient, np.float32),
            wanted,
            rtol=roundings * float(limits.eps),
            atol=float(limits.eps) * largest + roundings * float(limits.smallest_subnormal),
            err_msg=key,
        )


@pytest.mark.parametrize("dtype", NARROW)
def test_a_class_that_is_masked_in_narrow_logits(dtype):
    """log(1 + e) and log(1 + e²): not NaN where the dtype has no infinity, nor −6 for it."""
    fn = jxent.softmax_cross_entropy_with_integer_labels
    kept = np.array([True, True, False])
    z, y = jnp.asarray(np.array([[1.0, 2.0, 0.0]]), dtype), np.array([0])
    np.testing.assert_allclose(fn(z, y, where=kept[None]), np.log1p(np.e), rtol=1e-6)
    z = jnp.asarray(np.array([-6.0, -4.0, 0.0]), dtype)
    value, slope = jax.value_and_grad(fn)(z, 0, where=kept)
    np.testing.assert_allclose(value, 2.1269280, rtol=1e-7)
    assert slope.dtype == z.dtype and slope[2] == 0


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_small_gradients_of_narrow_heads(way):
    """dz = 1/2048 is not rounded to eight bits before the product, which would make 0 of it."""
    h, w = jnp.ones((512, 1), "float8_e4m3fn"), jnp.zeros((1, 2048), "float8_e4m3fn")
    loss = lambda w: jxent.linear_cross_entropy(
        h, w, np.zeros(512, np.int32), implementation=way, reduction="sum"
    )
    slope = jax.grad(loss)(w)
    assert slope.dtype == w.dtype
    np.testing.assert_array_equal(slope[0, 1:].astype(jnp.float32), 512 / 2048)
