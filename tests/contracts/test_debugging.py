"""JAX's debugging flags find what is at fault, and nothing on clean data, even op by op.

`jax.debug_nans` holds for every operation, with jit disabled too.  `jax.debug_infs` holds for what
programs return: op by op JAX's own `isinf` and `softmax` fail it, by an operand of ∞.
"""

import inspect
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import pytest
from cases import ROW_LOSSES, TRAINING_LOSSES, Case, cast, function
from public_calls import CALLS, OTHERS, Call, value_and_gradients

import jxent

CASES = {**ROW_LOSSES, **TRAINING_LOSSES}
ORDINARY = (
    "cross_entropy, plain",
    "linear_cross_entropy",
    "softmax_focal_loss",
    "sigmoid_focal_loss",
    "information.js_divergence",
    "imbalance.ldam",
    "distillation.distillation_loss",
    "regression.two_hot",
    "metrics.ClassificationMetrics.summary",
    "metrics.fit_temperature",
)


def by_family(names, ordinary=ORDINARY):
    """A parameter for each name; deep but for the ordinary ones."""
    marks = lambda name: () if name in ordinary else pytest.mark.deep
    return [pytest.param(name, marks=marks(name)) for name in names]


def debugging(*, nans=False, infs=False, op_by_op=False):
    """A context with these flags."""
    stack = ExitStack()
    stack.enter_context(jax.debug_nans(nans))
    stack.enter_context(jax.debug_infs(infs))
    stack.enter_context(jax.disable_jit(op_by_op))
    return stack


def evaluate(call: Call) -> None:
    """Run a call, and its gradients if it has any."""
    if call.on_host:
        call()
        return
    arrays = jax.tree.map(jnp.asarray, call.arrays)
    call(**arrays)
    if call.differentiated:
        value_and_gradients(call, arrays)


def test_every_public_function_is_called():
    spaces = {"": jxent} | {
        f"{name}.": getattr(jxent, name)
        for name in jxent.__all__
        if inspect.ismodule(getattr(jxent, name))
    }
    public = {
        f"{prefix}{name}"
        for prefix, space in spaces.items()
        for name in space.__all__
        if not inspect.ismodule(getattr(space, name))
    }
    called = {name.partition(",")[0] for name in CALLS}
    methods = {name for name in called if name.rpartition(".")[0] in OTHERS}
    assert (called - methods) | OTHERS == public


# `fit_temperature` calls optax, which relies on the ordinary promotion.
@pytest.mark.relaxed
@pytest.mark.parametrize("name", by_family(CALLS))
def test_no_operation_makes_nan(name):
    with debugging(nans=True, op_by_op=True):
        evaluate(CALLS[name])


@pytest.mark.deep
@pytest.mark.parametrize("name", CASES)
def test_no_operation_of_a_case_makes_nan(name):
    case = CASES[name]
    f, x = function(Case(case.fn, cast(case.arguments, jnp.float32)))
    with debugging(nans=True, op_by_op=True):
        f(x)
        jax.grad(lambda x: jnp.sum(f(x)))(x)


@pytest.mark.relaxed
@pytest.mark.parametrize("name", by_family(CALLS, ("metrics.ClassificationMetrics.summary",)))
def test_no_result_is_nan(name):
    with debugging(nans=True):
        evaluate(CALLS[name])


@pytest.mark.relaxed
@pytest.mark.parametrize("name", by_family(CALLS, ("imbalance.ldam_margins", "cross_entropy")))
def test_no_program_returns_infinity(name):
    call = CALLS[name]
    arrays = jax.tree.map(jnp.asarray, call.arrays)
    with debugging(infs=True):
        if call.on_host:
            call()
            return
        call(**arrays)
        if call.differentiated:
            jax.jit(lambda arrays: value_and_gradients(call, arrays))(arrays)


def test_a_logit_at_fault_is_found():
    with debugging(nans=True), pytest.raises(FloatingPointError):
        jax.jit(jxent.cross_entropy)(jnp.full((2, 3), jnp.inf), jnp.array([0, 1]))


def test_a_label_at_fault_is_found():
    # JAX runs the program again op by op, where jxent's own check names the label.
    with debugging(nans=True), pytest.raises(ValueError, match="`targets`\\[1\\] = 7 is outside"):
        jax.jit(jxent.cross_entropy)(jnp.zeros((2, 3)), jnp.array([0, 7]))


def test_the_curve_of_an_empty_bin_has_an_error():
    call = CALLS["metrics.reliability_curve"]
    with debugging(nans=True):
        curve = call()
        assert jnp.isnan(curve.accuracy).any()
        assert jnp.isfinite(curve.error)
