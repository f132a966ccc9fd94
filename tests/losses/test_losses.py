"""The losses: value and every gradient against the oracle, and the laws they obey."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from assertions import assert_close, enable_x64, f64
from cases import LINEAR, OFTEN, ROW_LOSSES, TRAINING_LOSSES, Case, cast, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import only

import jxent

# The promise for everything that is not a plain row: this share of the sum of its absolute terms.
PROMISE = {"float32": 1e-5, "bfloat16": 1e-5, "float16": 1e-5, "float64": 1e-13}


def check(fn: Any, arguments: Any, cotangent: Any = 1.0, *, cancels: bool = False) -> None:
    """Value, gradients and their dtypes, against the oracle."""
    names = ("logits", "log_predictions", "hidden", "student_logits", "student_hidden")
    said = next(name for name in names if name in arguments)
    first = arguments[said].dtype
    expected = Case(fn, arguments).expected(cotangent=cotangent)
    value, gradients = value_and_gradients(fn, arguments, np.float32(cotangent))
    rtol = PROMISE[first.name]
    averaged = arguments.get("class_weights") is not None and arguments.get("reduction") == "mean"
    assert value.dtype == np.promote_types(first, np.float32)
    scale = expected.scale["value"]
    assert_close(value, expected.value, rtol=rtol, scale=scale, cancels=cancels, err_msg="value")
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        wanted = expected.gradient[name]
        beyond = np.abs(wanted) > float(jnp.finfo(gradient.dtype).max)  # in float16, soon
        wanted = np.where(beyond, np.copysign(np.inf, wanted), wanted)
        # A target's infinite slope may be told as some very large number.
        large = np.isinf(wanted) & (np.abs(f64(gradient)) > 1e30)
        # Rounded once; a weighted target's two slopes, through the sum and through what a mean is
        # divided by, each and then together.
        roundings = 3 if averaged and name == "targets" else 1
        assert_close(
            np.where(large, wanted, f64(gradient)),
            wanted,
            rtol=rtol,
            ulps=0.5 * roundings if gradient.dtype.itemsize < value.dtype.itemsize else 0,
            scale=expected.scale.get(name),
            dtype=gradient.dtype,
            cancels=cancels,
            err_msg=name,
        )


SHAPES = [(4, 7), (2, 3, 6), (5,), (0, 3), (3, 1), (5, 65)]
# Each with a soft cap that bends its logits and does not flatten them.
SOFT_CAPS = {
    "normal": 5.0,
    "ties": 5.0,
    "minus infinity": 5.0,
    "wide": 20.0,
    "confident": 20.0,
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
        arguments["normalizer"] = jnp.asarray(pick(3.5, 0.25), weights)
    none = arguments["reduction"] == "none"
    return arguments, np.float32(rng.standard_normal(rows) if none else 0.7)


UP_TO_FLOAT32 = ("float32", "bfloat16", "float16")


@given(calls(UP_TO_FLOAT32))
def test_cross_entropy(call):
    check(jxent.cross_entropy, *call, cancels=True)


@pytest.mark.deep
@settings(settings.get_profile("deep"))
@given(calls(UP_TO_FLOAT32))
def test_cross_entropy_deep(call):
    check(jxent.cross_entropy, *call, cancels=True)


@settings(max_examples=5)
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


@pytest.mark.parametrize(
    ("name", "dtype"),
    only(
        lambda call: call[1] != "float16",
        [(name, "float32") for name in ROW_LOSSES]
        + [
            (name, half) for name in OFTEN for half in ("bfloat16", "float16") if name in ROW_LOSSES
        ],
    ),
)
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


@settings(max_examples=20)
@given(row_calls())
def test_axes(call):
    check(*call, cancels=True)


@pytest.mark.deep
@settings(settings.get_profile("deep"))
@given(row_calls())
def test_axes_deep(call):
    check(*call, cancels=True)


# Laws.

LAW = np.random.default_rng(7)
Z = jnp.asarray(LAW.standard_normal((6, 5)), jnp.float32)
Y = jnp.asarray(LAW.integers(0, 5, 6), jnp.int32)
T = jnp.asarray(LAW.gamma(1.0, size=(6, 5)), jnp.float32)
KEPT = jnp.asarray([True, False, True, True, False, True])
CLASS_WEIGHTS = jnp.asarray(LAW.uniform(0.5, 2, 5), jnp.float32)
ROW_WEIGHTS = jnp.asarray(LAW.uniform(0.5, 2, 6), jnp.float32)
# Two float32 orders of the same few sums.
SAME = dict(rtol=4e-7, atol=4e-7)
EVERY_OPTION = dict(
    class_weights=CLASS_WEIGHTS,
    row_weights=ROW_WEIGHTS,
    label_smoothing=0.1,
    z_loss=0.01,
    logit_softcap=5.0,
)


def loss_and_gradient(logits: Any, targets: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    arguments = dict(logits=logits, targets=targets, **options)
    loss, gradients = value_and_gradients(jxent.cross_entropy, arguments)
    return np.asarray(loss), np.asarray(gradients["logits"])


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **SAME), a, b)


@pytest.mark.parametrize("targets", [Y, T], ids=["labels", "distributions"])
@pytest.mark.parametrize("shift", [64.0])
def test_shift_invariance(shift, targets):
    """Exactly representable shifts change nothing but lse."""
    options = {k: v for k, v in EVERY_OPTION.items() if k not in ("z_loss", "logit_softcap")}
    z = jnp.round(Z * 256) / 256
    shifted = loss_and_gradient(z + shift, targets, **options)
    jax.tree.map(np.testing.assert_array_equal, shifted, loss_and_gradient(z, targets, **options))


@pytest.mark.parametrize("where", [None, KEPT, T > 0.5], ids=["all", "rows", "classes"])
@pytest.mark.parametrize("targets", ["labels", "distributions"])
def test_gradient_rows_sum_to_zero(targets, where):
    t = Y if targets == "labels" else T
    if where is not None and where.ndim == 2:
        where = where.at[jnp.arange(6), Y].set(True)
        t = t if targets == "labels" else jnp.where(where, t, 0)
    options = dict(class_weights=CLASS_WEIGHTS, row_weights=ROW_WEIGHTS, label_smoothing=0.1)
    _, gradient = loss_and_gradient(Z, t, where=where, **options)
    assert np.max(np.abs(gradient)) > 0.1
    size = np.abs(gradient).sum(-1)
    assert np.all(np.abs(gradient.sum(-1)) <= 4 * np.finfo(np.float32).eps * size)


@pytest.mark.parametrize("targets", [Y, T], ids=["labels", "distributions"])
def test_permutation_equivariance(targets):
    order = jnp.asarray(LAW.permutation(5))
    place = jnp.argsort(order).astype(jnp.int32)
    permuted = place[targets] if targets.ndim == 1 else targets[:, order]
    options = {**EVERY_OPTION, "class_weights": CLASS_WEIGHTS[order]}
    loss, gradient = loss_and_gradient(Z[:, order], permuted, **options)
    expected, wanted = loss_and_gradient(Z, targets, **EVERY_OPTION)
    assert_same((loss, gradient), (expected, wanted[:, order]))
    rows = jnp.asarray(LAW.permutation(6))
    options = {**EVERY_OPTION, "row_weights": ROW_WEIGHTS[rows]}
    loss, gradient = loss_and_gradient(Z[rows], targets[rows], **options)
    assert_same((loss, gradient), (expected, wanted[rows]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("targets", [Y, T], ids=["labels", "distributions"])
def test_weights_of_one_are_none(targets, reduction):
    options = dict(label_smoothing=0.1, z_loss=0.01, reduction=reduction)
    ones = dict(class_weights=jnp.ones(5), row_weights=jnp.ones(6), where=jnp.ones(6, bool))
    masked = {**ones, "where": jnp.ones((6, 5), bool)}
    assert_same(
        loss_and_gradient(Z, targets, **options, **ones), loss_and_gradient(Z, targets, **options)
    )
    assert_same(
        loss_and_gradient(Z, targets, **options, **masked), loss_and_gradient(Z, targets, **options)
    )


@pytest.mark.parametrize(
    ("options", "reduction"),
    [({}, "none"), ({}, "mean"), (EVERY_OPTION, "mean")],
    ids=["plain rows", "plain", "everything"],
)
def test_one_hot_distributions_are_labels(options, reduction):
    options = {**options, "reduction": reduction}
    assert_same(loss_and_gradient(Z, jnp.eye(5)[Y], **options), loss_and_gradient(Z, Y, **options))


@pytest.mark.parametrize(
    ("options", "reduction"), [({}, "sum"), (EVERY_OPTION, "mean")], ids=["plain", "everything"]
)
def test_ways_to_drop_rows(options, reduction):
    """where ≡ ignore_index ≡ a class mask without classes ≡ leaving the rows out."""
    options = {**options, "reduction": reduction}
    rows = np.flatnonzero(KEPT)
    without = {**options}
    if "row_weights" in options:
        without["row_weights"] = options["row_weights"][rows]
    loss, gradient = loss_and_gradient(Z[rows], Y[rows], **without)
    wanted = np.zeros(Z.shape, np.float32)
    wanted[rows] = gradient
    ignored = jnp.where(KEPT, Y, -100)
    mask = jnp.broadcast_to(KEPT[:, None], Z.shape)
    for dropped in (
        loss_and_gradient(Z, Y, where=KEPT, **options),
        loss_and_gradient(Z, ignored, ignore_index=-100, **options),
        loss_and_gradient(Z, Y, where=mask, **options),
        loss_and_gradient(Z, ignored, where=KEPT, **options),
    ):
        assert_same(dropped, (loss, wanted))


def test_excluded_classes_are_not_there():
    """A class mask ≡ leaving the columns out, for every option."""
    left = jnp.asarray([0, 2, 3])
    y = jnp.asarray([0, 1, 2, 2, 1, 0], jnp.int32)
    mask = jnp.zeros(Z.shape, bool).at[:, left].set(True)
    without = {**EVERY_OPTION, "class_weights": CLASS_WEIGHTS[left]}
    for t, t_left in ((left[y].astype(jnp.int32), y), (jnp.where(mask, T, 0), T[:, left])):
        loss, gradient = loss_and_gradient(Z[:, left], t_left, **without)
        wanted = np.zeros(Z.shape, np.float32)
        wanted[:, left] = gradient
        junk = jnp.where(mask, Z, jnp.nan)
        assert_same(loss_and_gradient(junk, t, where=mask, **EVERY_OPTION), (loss, wanted))


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_zero_logits_give_log_V(classes):
    z, y = jnp.zeros((3, classes)), jnp.asarray([0, classes - 1, classes // 2])
    rows = jxent.softmax_cross_entropy_with_integer_labels(z, y)
    np.testing.assert_allclose(rows, np.log(classes), rtol=2e-7)
    uniform = jnp.full((3, classes), 1 / classes)
    np.testing.assert_allclose(jxent.cross_entropy(z, uniform), np.log(classes), rtol=1e-6)


def test_label_smoothing_mixes():
    """(1−ε)·labels + ε·uniform, each by itself."""
    plain = loss_and_gradient(Z, Y)
    uniform = loss_and_gradient(Z, jnp.full(Z.shape, 0.2))
    mixed = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, plain, uniform)
    assert_same(loss_and_gradient(Z, Y, label_smoothing=0.3), mixed)


# label_weights.


@pytest.mark.parametrize("weights", ["none", "class", "row", "both"])
@pytest.mark.parametrize("ignore_index", [None, 1])
@pytest.mark.parametrize(
    "where", [None, KEPT, KEPT[:, None] & (T > 0)], ids=["all", "rows", "classes"]
)
def test_label_weights(where, ignore_index, weights):
    options: dict[str, Any] = dict(where=where, ignore_index=ignore_index)
    if weights in ("class", "both"):
        options["class_weights"] = CLASS_WEIGHTS
    if weights in ("row", "both"):
        options["row_weights"] = ROW_WEIGHTS
    given = jxent.label_weights(Y, **options)
    assert given.dtype == jnp.float32
    assert_close(given, oracle.label_weights(Y, **options), rtol=2e-7)
    if weights == "both":
        mean, total = (loss_and_gradient(Z, Y, reduction=r, **options)[0] for r in ("mean", "sum"))
        assert_close(mean * jnp.sum(given), total, rtol=4e-7)


def test_label_weights_gradient():
    fn = lambda c, w: jnp.sum(jxent.label_weights(Y, class_weights=c, row_weights=w, where=KEPT))
    by_class, by_row = jax.grad(fn, (0, 1))(CLASS_WEIGHTS, ROW_WEIGHTS)
    assert_close(by_row, np.where(KEPT, CLASS_WEIGHTS[Y], 0), rtol=2e-7)
    assert_close(by_class, np.bincount(Y, np.where(KEPT, ROW_WEIGHTS, 0), 5), rtol=4e-7)


def test_gradient_accumulation():
    """Uneven micro-batches with one normalizer sum to the whole batch, loss and gradient."""
    y = jnp.where(KEPT, Y, -100)
    options = {k: v for k, v in EVERY_OPTION.items() if k != "row_weights"}
    whole = loss_and_gradient(Z, y, ignore_index=-100, row_weights=ROW_WEIGHTS, **options)
    normalizer = jnp.sum(
        jxent.label_weights(
            y, ignore_index=-100, class_weights=CLASS_WEIGHTS, row_weights=ROW_WEIGHTS
        )
    )
    at = np.split(np.arange(6), [2])
    losses, gradients = zip(
        *(
            loss_and_gradient(
                Z[i],
                y[i],
                ignore_index=-100,
                row_weights=ROW_WEIGHTS[i],
                normalizer=normalizer,
                **options,
            )
            for i in at
        ),
        strict=True,
    )
    assert_same((sum(losses), np.concatenate(gradients)), whole)
    naive = np.mean([loss_and_gradient(Z[i], y[i], ignore_index=-100, **options)[0] for i in at])
    assert abs(naive - whole[0]) > 1e-3, "a mean of means would have passed as well"


@pytest.mark.relaxed
def test_multi_steps_of_optax_sum_the_micro_batches():
    """With one normalizer the gradients add up, so their mean would be one k-th of the batch's."""
    y = jnp.where(KEPT, Y, -100)
    normalizer = jnp.sum(jxent.label_weights(y, ignore_index=-100))
    whole = -loss_and_gradient(Z, y, ignore_index=-100)[1]
    for use_grad_mean in (False, True):
        optimizer = optax.MultiSteps(optax.sgd(1.0), 2, use_grad_mean=use_grad_mean)
        updates, state = jnp.zeros_like(Z), optimizer.init(Z)
        for rows in (slice(0, 3), slice(3, 6)):
            loss_fn = lambda z, rows=rows: jxent.cross_entropy(
                z[rows], y[rows], ignore_index=-100, normalizer=normalizer
            )
            updates, state = optimizer.update(jax.grad(loss_fn)(Z), state, Z)
        assert_close(updates, whole / 2 if use_grad_mean else whole, rtol=1e-6)


def test_examples_under_vmap():
    """A mean over means counts an ignored example as 0; the sum over `label_weights` does not."""
    y = jnp.where(KEPT, Y, -100)
    whole = jxent.cross_entropy(Z, y, ignore_index=-100)
    means = jax.vmap(lambda z, y: jxent.cross_entropy(z, y, ignore_index=-100))(Z, y)
    assert_close(means.mean(), whole * np.mean(KEPT), rtol=1e-6)
    rows = jax.vmap(lambda z, y: jxent.cross_entropy(z, y, ignore_index=-100, reduction="none"))
    kept = jnp.sum(jxent.label_weights(y, ignore_index=-100))
    assert_close(jnp.sum(rows(Z, y)) / kept, whole, rtol=1e-6)


def test_smoothing_weighed_by_class_pulls_frequent_rows_to_a_rare_class():
    """A row's best p is its target over its sum; 90, 7 and 3 % of the rows are in the classes."""
    c = jxent.imbalance.balanced_class_weights(np.array([90, 7, 3]))
    labels = jnp.arange(3)

    def best(**options: Any) -> Any:
        gradient = jax.grad(jxent.cross_entropy)(
            jnp.zeros((3, 3)), labels, label_smoothing=0.1, reduction="sum", **options
        )
        return np.argmin(gradient, axis=-1)  # Σt/3 − t

    np.testing.assert_array_equal(best(class_weights=c), [2, 1, 2])
    np.testing.assert_array_equal(best(row_weights=c[labels]), [0, 1, 2])


def test_logit_layouts():
    """Lists, NumPy arrays and JAX arrays are the same thing."""
    expected = jxent.cross_entropy(Z, Y)
    assert jxent.cross_entropy(np.asarray(Z), np.asarray(Y)) == expected
    lists = jxent.cross_entropy(np.asarray(Z).tolist(), np.asarray(Y).tolist())  # float64 in x64
    np.testing.assert_allclose(lists, expected, rtol=2e-7)
    scalar = jxent.cross_entropy(Z[0], int(Y[0]))
    assert scalar.shape == ()
    np.testing.assert_allclose(scalar, jxent.cross_entropy(Z[:1], Y[:1]), rtol=2e-7)


@pytest.mark.parametrize("gap", [3.0, 9.0, 14.0])
def test_focal_of_wrong_predictions_by_gamma(gap):
    """∂/∂γ = (1 − p)^γ nll log(1 − p) where p is small: log(1 − p) ≈ −p, 1 − p is rounded."""
    logits, labels = np.float32([[gap, 0.0]]), np.array([1])
    given = dict(logits=logits, labels=labels, gamma=np.float32(1.5))
    expected = oracle.softmax_focal_loss(logits, labels, gamma=1.5, cotangent=np.ones(1))
    _, gradients = value_and_gradients(jxent.softmax_focal_loss, given)
    assert_close(gradients["gamma"], expected.gradient["gamma"], rtol=2e-6)


SATURATED = np.array([[25.0, 35.0, -40.0], [-35.0, 60.0, 0.5], [40.0, -np.inf, 200.0]])


@pytest.mark.parametrize("fn", [jxent.cross_entropy, *LINEAR.values()], ids=["dense", *LINEAR])
def test_the_slope_of_a_saturated_soft_cap(fn):
    """sech² keeps its digits where 1 − tanh² has none left, from |u|/κ = 5 to 40."""
    for row in SATURATED:
        arguments = dict(targets=np.array([0], np.int32), logit_softcap=5.0)
        given = jnp.asarray(row[None], jnp.float32)
        if fn is jxent.cross_entropy:
            arguments["logits"] = given
        else:
            given = jnp.where(jnp.isinf(given), 0, given)
            arguments = dict(hidden=jnp.ones((1, 1)), head=given, labels=arguments.pop("targets"))
            arguments |= dict(bias=jnp.zeros(3), logit_softcap=5.0)
        check(fn, arguments)


@pytest.mark.parametrize("fn", [jxent.linear_log_probs, jxent.linear_predictions])
def test_the_slope_of_a_saturated_soft_cap_without_a_loss(fn):
    """log p of the class of 40 beside one of 35: ∂/∂u = (1 − p) sech²(u/κ) and −p sech²(u/κ)."""
    head, labels = jnp.array([[40.0, 35.0]]), {"labels": jnp.array([0])}
    given = labels if fn is jxent.linear_log_probs else {}
    value = lambda w: fn(jnp.ones((1, 1)), w, **given, logit_softcap=5.0).log_probs[0]
    z = 5 * np.tanh(np.array([8.0, 7.0]))
    p = np.exp(z) / np.exp(z).sum()
    wanted = (np.array([1.0, 0.0]) - p) / np.cosh([8.0, 7.0]) ** 2
    np.testing.assert_allclose(jax.grad(value)(head)[0], wanted, rtol=1e-5)


def test_a_soft_cap_to_third_order():
    """In float32, by forward and reverse mode, as plain arithmetic has it in float64."""
    row = lambda x: jnp.stack([x, 0.5 * x])
    loss = lambda x: jxent.softmax_cross_entropy_with_integer_labels(
        row(x), jnp.array(1), logit_softcap=2.0
    )
    plain = lambda x: -jax.nn.log_softmax(2 * jnp.tanh(row(x) / 2))[1]
    derivatives = lambda f: (jax.grad(jax.grad(f)), jax.jacfwd(jax.jacfwd(jax.grad(f))))
    for x in (0.0, 0.3, -8.0, 12.0, 18.0):
        with enable_x64():
            wanted = [f(jnp.float64(x)) for f in derivatives(plain)]
        found = [f(jnp.float32(x)) for f in derivatives(loss)]
        np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=1e-7 * (x == 0))


def test_the_z_loss_of_huge_logits():
    """ζ lse² = 1e36 at lse = 1e20, whose square no float32 holds; its derivatives too."""
    logits, labels = jnp.array([[1e20, 0.0]]), jnp.array([0])
    loss = lambda z, w: jxent.cross_entropy(z, labels, z_loss=1e-4, row_weights=w, normalizer=1)
    value, (dz, dw) = jax.value_and_grad(loss, (0, 1))(logits, jnp.ones(1))
    np.testing.assert_allclose(value, 1e36, rtol=1e-6)
    np.testing.assert_allclose(dz, [[2e16, 0]], rtol=1e-6)
    np.testing.assert_allclose(dw, [1e36], rtol=1e-6)
    rows = jxent.softmax_cross_entropy_with_integer_labels(logits, labels, z_loss=1e-4)
    np.testing.assert_allclose(rows, [1e36], rtol=1e-6)


@pytest.mark.parametrize("fn", LINEAR.values(), ids=LINEAR)
def test_the_z_loss_of_huge_logits_never_stored(fn):
    loss = lambda h, w: fn(h, jnp.array([[1e10, 0.0]]), jnp.array([0]), z_loss=1e-4, row_weights=w)
    value, (dh, dw) = jax.value_and_grad(loss, (0, 1))(jnp.full((1, 1), 1e10), jnp.ones(1))
    np.testing.assert_allclose(value, 1e36, rtol=1e-6)
    np.testing.assert_allclose(dh, [[2e26]], rtol=1e-6)
    np.testing.assert_allclose(dw, [0], atol=1e30)  # a mean of one row does not depend on w


AS_OPTAX = (jxent.softmax_cross_entropy, jxent.poly_loss_cross_entropy)
EXCLUDING = np.array([[True, True, False], [False, True, True], [True, True, True]])


@pytest.mark.parametrize("fn", AS_OPTAX)
def test_mass_on_an_excluded_class_is_dropped_as_in_optax(fn):
    """Whatever it is; the others' losses, and every gradient, are those of targets without it."""
    z = jnp.asarray(np.random.default_rng(5).standard_normal((3, 3)), jnp.float32)
    t = jnp.float32([[0.5, 0.2, 0.3], [jnp.inf, 0.5, 0.25], [0.1, 0.2, 0.7]])
    loss = lambda z, t: jnp.sum(fn(z, t, where=EXCLUDING) * jnp.float32([1, -2, 3]))
    without = jnp.where(EXCLUDING, t, 0)
    found, wanted = (jax.value_and_grad(loss, (0, 1))(z, x) for x in (t, without))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    rows, slope = jax.jvp(lambda t: fn(z, t, where=EXCLUDING), (t,), (jnp.ones_like(t),))
    assert np.isfinite(rows).all() and np.isfinite(slope).all()


@pytest.mark.parametrize(
    "fn",
    [
        lambda *a, **kw: jxent.cross_entropy(*a, **kw, reduction="none"),
        jxent.softmax_focal_loss,
        jxent.robust.generalized_cross_entropy,
        jxent.robust.symmetric_cross_entropy,
    ],
)
def test_mass_on_an_excluded_class_is_nan_elsewhere(fn):
    t = jnp.array([[0.5, 0.2, 0.3], [0.0, 0.5, 0.5], [0.1, 0.2, 0.7]])
    rows = fn(jnp.zeros((3, 3)), t, where=EXCLUDING)
    np.testing.assert_array_equal(np.isnan(rows), [True, False, False])


@pytest.mark.parametrize("fn", AS_OPTAX)
def test_negative_targets_as_in_optax(fn):
    """The loss is linear in t; in `cross_entropy` they raise."""
    z, t = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[1.5, -0.25, -0.5]])
    each = jax.vmap(lambda e: fn(z[0], e))(jnp.eye(3))
    np.testing.assert_allclose(fn(z, t), t @ each, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda t: fn(z, t)[0])(t)[0], each, rtol=1e-5)
    with pytest.raises(ValueError, match=r"`targets`\[0, 1\] = -0.25 must not be negative"):
        jxent.cross_entropy(z, t)
