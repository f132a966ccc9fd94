"""The dense losses: value and every gradient against the oracle, optax and torch; their laws."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import jxent
import numpy as np
import optax
import oracle
import pytest
from cases import ROW_LOSSES, TRAINING_LOSSES, Case, cast, value_and_gradients
from compare import assert_close, enable_x64, f64, relaxed
from hypothesis import given, settings
from hypothesis import strategies as st

# The promise for everything that is not a plain row: this share of the sum of its absolute terms.
PROMISE = {"float32": 1e-5, "bfloat16": 1e-5, "float16": 1e-5, "float64": 1e-13}


def check(fn: Any, arguments: Any, cotangent: Any = 1.0, *, cancels: bool = False) -> None:
    """Value, gradients and their dtypes, against the oracle."""
    first = arguments["logits" if "logits" in arguments else "log_predictions"].dtype
    expected = Case(fn, arguments).expected(cotangent=cotangent)
    value, gradients = value_and_gradients(fn, arguments, np.float32(cotangent))
    rtol = PROMISE[first.name]
    assert value.dtype == np.promote_types(first, np.float32)
    scale = expected.scale["value"]
    assert_close(value, expected.value, rtol=rtol, scale=scale, cancels=cancels, err_msg="value")
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        wanted = expected.gradient[name]
        # A target's infinite slope may be told as some very large number.
        large = np.isinf(wanted) & (np.abs(f64(gradient)) > 1e30)
        assert_close(
            np.where(large, wanted, f64(gradient)),
            wanted,
            rtol=rtol,
            scale=expected.scale.get(name),
            dtype=arguments[name].dtype,
            cancels=cancels,
            err_msg=name,
        )


SHAPES = [(4, 7), (2, 3, 6), (5,), (0, 3), (3, 1), (5, 65)]
# Each with a soft cap that bends its logits and does not flatten them.
SOFT_CAPS = {
    "normal": 5.0,
    "ties": 5.0,
    "minus infinity": 5.0,
    "wide": 50.0,
    "confident": 50.0,
    "shifted": None,
}


def logits_of(regime: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    z = rng.standard_normal(shape)
    if regime == "wide":
        z = 20 * z
    elif regime == "shifted":
        z = z + 1e4
    elif regime == "ties":
        z = np.round(z)
    elif regime == "confident":
        np.put_along_axis(z, rng.integers(0, shape[-1], (*shape[:-1], 1)), 30.0, axis=-1)
    elif regime == "minus infinity":
        z = np.where(rng.random(shape) < 0.2, -np.inf, z)
        z[..., 0] = np.where(np.isneginf(z[..., 0]), 1.0, z[..., 0])
    return z


@st.composite
def calls(draw: st.DrawFn, dtypes: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """Arguments of cross_entropy with every option, and a cotangent."""
    pick = lambda *values: draw(st.sampled_from(values))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape, regime, dtype = pick(*SHAPES), pick(*SOFT_CAPS), pick(*dtypes)
    rows, classes = shape[:-1], shape[-1]
    arguments: dict[str, Any] = dict(
        logits=jnp.asarray(logits_of(regime, shape, rng), dtype),
        label_smoothing=pick(0.0, 0.1, 1.0),
        z_loss=pick(0.0, 0.01),
        logit_softcap=pick(None, None, SOFT_CAPS[regime]),
        reduction=pick("mean", "sum", "none"),
    )
    mask = np.ones(shape, bool)
    if regime == "minus infinity":
        mask = ~np.isneginf(np.asarray(arguments["logits"], np.float64))
        if arguments["label_smoothing"]:  # mass on an impossible class, unless it is excluded
            arguments["where"] = mask
    where = pick(None, "rows", "classes")
    if where == "classes":
        mask = mask & (rng.random(shape) < 0.8)
        mask[..., 0] = True
        mask[: len(mask) // 3] &= len(rows) == 0  # rows without any class are dropped
        arguments["where"] = mask
    elif where == "rows" and "where" not in arguments:
        arguments["where"] = np.asarray(rng.random(rows) < 0.7)

    weights = draw(st.sampled_from(["float32", dtype]))
    if pick("labels", "distributions") == "labels":
        at = np.where(mask, rng.random(shape), -1).argmax(-1) if rows or classes else 0
        labels = np.asarray(at, pick(np.int32, np.int8, np.uint8))
        if pick(False, True):
            arguments["ignore_index"] = pick(100, 1)
            labels = np.where(rng.random(rows) < 0.2, labels.dtype.type(100), labels)
            labels = np.asarray(labels)
            if arguments["ignore_index"] == 1:
                labels[labels == 100] = 1
        arguments["targets"] = labels
    else:
        t = rng.gamma(1.0, size=shape) * mask * pick(0.3, 1.0)
        t[..., -1] = 0 if classes > 1 else t[..., -1]
        arguments["targets"] = jnp.asarray(t, weights)
    if pick(False, True):
        c = rng.uniform(0.5, 2, classes)
        c[0] = 0 if classes > 1 and pick(False, True) else c[0]
        arguments["class_weights"] = jnp.asarray(c, weights)
    if pick(False, True):
        w = np.asarray(rng.uniform(0.5, 2, rows) * (rng.random(rows) < pick(0.7, 0.0)))
        arguments["row_weights"] = jnp.asarray(w, weights)
    if arguments["reduction"] == "mean" and pick(False, True):
        arguments["normalizer"] = jnp.asarray(pick(3.5, 0.0), weights)
    none = arguments["reduction"] == "none"
    return arguments, np.float32(rng.standard_normal(rows) if none else 0.7)


UP_TO_FLOAT32 = ("float32", "bfloat16", "float16")


@settings(max_examples=120)
@given(calls(UP_TO_FLOAT32))
def test_cross_entropy(call):
    check(jxent.cross_entropy, *call, cancels=True)


@pytest.mark.deep
@settings(settings.get_profile("deep"))
@given(calls(UP_TO_FLOAT32))
def test_cross_entropy_deep(call):
    check(jxent.cross_entropy, *call, cancels=True)


@settings(max_examples=20)
@given(data=st.data())
def test_cross_entropy_float64(data):
    with enable_x64():
        check(jxent.cross_entropy, *data.draw(calls(("float64",))), cancels=True)


@pytest.mark.parametrize("name", TRAINING_LOSSES)
def test_training_losses(name):
    """Each option by itself, at a tolerance that nothing but the truth passes."""
    case = TRAINING_LOSSES[name]
    check(case.fn, cast(case.arguments, jnp.float32), G if case.shape else np.float32(0.7))


G = np.random.default_rng(1).standard_normal(4).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ROW_LOSSES)
def test_row_losses(name, dtype):
    case = ROW_LOSSES[name]
    g = np.random.default_rng(1).standard_normal(case.shape).astype(np.float32)
    check(case.fn, cast(case.arguments, dtype), g)


SOFT_LOSSES = (
    jxent.softmax_cross_entropy,
    jxent.poly_loss_cross_entropy,
    jxent.softmax_focal_loss,
    jxent.kl_divergence,
    jxent.kl_divergence_with_log_targets,
)
AXES = (-1, 1, 0, -3, (0, 2), (2, 0), (-1, -3), None)


@st.composite
def row_calls(draw: st.DrawFn) -> tuple[Any, dict[str, Any], Any]:
    """A row loss over any class axes, with masks of rows or classes, and a cotangent."""
    pick = lambda *values: draw(st.sampled_from(values))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape, axis = (3, 4, 2), pick(*AXES)
    logits = rng.standard_normal(shape)
    rows = np.asarray(oracle.classes_last(logits, axis)[..., 0]).shape
    fn = pick(jxent.softmax_cross_entropy_with_integer_labels, *SOFT_LOSSES)
    mask = np.ones(shape, bool)
    where = pick(None, "rows", "classes")
    arguments: dict[str, Any] = dict(axis=axis)
    if where == "rows":
        arguments["where"] = np.asarray(rng.random(rows) < 0.7)
    elif where == "classes":
        mask = rng.random(shape) < 0.8
        arguments["where"] = mask
    kept = oracle.classes_last(mask, axis)
    labels = np.where(kept, rng.random(kept.shape), -1).argmax(-1).astype(np.int32)
    soft = jnp.asarray(rng.gamma(1.0, size=shape) * mask, jnp.float32)
    if fn in (jxent.kl_divergence, jxent.kl_divergence_with_log_targets):
        arguments["log_predictions"] = jnp.asarray(logits - 3, jnp.float32)
        name = "targets" if fn is jxent.kl_divergence else "log_targets"
        arguments[name] = soft + 0.01 if name == "targets" else jnp.asarray(logits, jnp.float32)
    else:
        arguments["logits"] = jnp.asarray(logits, pick("float32", "bfloat16"))
        arguments["labels"] = soft
        hard = pick(False, True) and fn is jxent.softmax_focal_loss
        if hard or fn is jxent.softmax_cross_entropy_with_integer_labels:
            arguments["labels"] = np.asarray(labels)
    if fn not in SOFT_LOSSES[1:]:
        arguments["label_smoothing"] = pick(0.0, 0.1)
        arguments["z_loss"] = pick(0.0, 0.01)
        arguments["logit_softcap"] = pick(None, 5.0)
    if fn not in (*SOFT_LOSSES[3:], jxent.poly_loss_cross_entropy) and pick(False, True):
        c = rng.uniform(0.5, 2, kept.shape[-1])
        arguments["class_weights"] = jnp.asarray(c, jnp.float32)
    return fn, arguments, np.asarray(rng.standard_normal(rows), np.float32)


@settings(max_examples=60)
@given(row_calls())
def test_axes(call):
    check(*call, cancels=True)


@pytest.mark.deep
@settings(settings.get_profile("deep"))
@given(row_calls())
def test_axes_deep(call):
    check(*call, cancels=True)
