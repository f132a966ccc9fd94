"""Every bad input is right, an exception, or NaN in exactly the rows at fault.

Hostile cases are rows of one array, between clean ones: each loss and mode is compiled once, and
the clean rows must be bit-identical to what they are when the bad ones are replaced.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_close, enable_x64, f64
from edge_cases import (
    INF,
    LABEL,
    LOSSES,
    NAN,
    Loss,
    V,
    between,
    binary_rows,
    label_rows,
    per_row,
    soft_rows,
)
from sampling import first

import jxent

DTYPES = ["float32", "bfloat16", "float16", "float64"]


def _rows(**options: Any) -> Callable[..., Any]:
    return lambda z, t, **kw: jxent.cross_entropy(z, t, reduction="none", **options, **kw)


def pulled_back(fn: Any, x: Any, t: Any) -> tuple[Any, Any]:
    loss, pull_back = jax.vjp(lambda x: fn(x, t), x)
    return loss, pull_back(jnp.ones_like(loss))[0]


def by_row(fn: Any, x: Any, t: Any) -> tuple[Any, Any]:
    """One row at a time under vmap."""
    one = lambda x, t: jnp.sum(fn(x[None], t[None]))
    return jax.vmap(jax.value_and_grad(one))(x, t)


def of_the_sum(derive: Any, fn: Any, x: Any, t: Any) -> Any:
    return derive(lambda x: jnp.sum(fn(x, t)))(x)


# (fn, x, t) → (loss, or None; ∂/∂x of its sum), compiled once for each loss and dtype.
MODES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "eager": pulled_back,
    "jit": jax.jit(pulled_back, static_argnums=0),
    "vmap": jax.jit(by_row, static_argnums=0),
    "grad": jax.jit(lambda *a: (None, of_the_sum(jax.grad, *a)), static_argnums=0),
    "value_and_grad": jax.jit(partial(of_the_sum, jax.value_and_grad), static_argnums=0),
}
OFTEN = [("float32", "value_and_grad")]
CALLS = [
    pytest.param(*call, marks=() if call in OFTEN else pytest.mark.deep)
    for call in product(DTYPES, MODES)
]


@pytest.mark.parametrize(("dtype", "mode"), CALLS)
@pytest.mark.parametrize("name", LOSSES)
def test_rows_at_fault(name, dtype, mode):
    """Hostile rows between clean ones: each is right or NaN, and its neighbours are untouched."""
    with enable_x64() if dtype == "float64" else nullcontext():
        check_rows(LOSSES[name], dtype, mode)


BAD = re.compile("label|target")


def check_rows(loss: Loss, dtype: str, mode: str) -> None:
    hostile = loss.rows(dtype)
    if mode == "eager":  # where a bad label or target is an error
        hostile = {k: row for k, row in hostile.items() if not (row.fault and BAD.search(k))}
    given = between(hostile)
    wide = np.promote_types("float32" if dtype == "bfloat16" else dtype, "float32")
    as_given = lambda t: jnp.asarray(t if loss.labelled else t.astype(wide))
    x, t, fault = given.x, given.t, given.fault
    x, clean_x = jnp.asarray(x, dtype), jnp.asarray(given.clean_x, dtype)
    run = MODES[mode]
    value, gradient = run(loss.fn, x, as_given(t))
    clean_value, clean_gradient = run(loss.fn, clean_x, as_given(given.clean_t))
    if value is not None and value.ndim == 0:
        assert np.isnan(value), "the sum hides a fault"
        value = clean_value = None

    with np.errstate(all="ignore"):
        expected = loss.oracle(
            np.where(per_row(fault, x), f64(clean_x), f64(x)),
            np.where(per_row(fault, t), given.clean_t, t),
        )
    beyond = np.abs(expected.value) > np.finfo(wide).max
    wanted = np.where(beyond, np.copysign(np.inf, expected.value), expected.value)
    slope, scale = expected.gradient[loss.by], expected.scale[loss.by]
    for i, (name, row) in enumerate(hostile.items()):
        at = 2 * i + 1
        message = f"{name}: {row} → {None if value is None else value[at]}, {gradient[at]}"
        if fault[at]:
            assert value is None or np.isnan(value[at]), message
            assert np.all(np.isnan(gradient[at])), message
            continue
        close = dict(rtol=1e-5, cancels=True, err_msg=message)
        if value is not None:
            assert_close(value[at], wanted[at], scale=expected.scale["value"][at], **close)
        assert_close(gradient[at], slope[at], scale=scale[at], ulps=0.5, dtype=dtype, **close)
    for ours, theirs in ((value, clean_value), (gradient, clean_gradient)):
        if ours is not None:
            kept = ~given.hostile
            np.testing.assert_array_equal(f64(ours)[kept], f64(theirs)[kept])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "distributions"])
def test_rows_at_fault_in_a_sum(soft, reduction):
    """The scalar is NaN; the gradient is NaN in the faulty rows, and clean beside them."""
    given = between((soft_rows if soft else label_rows)("float32"))
    z, t = jnp.asarray(given.x, jnp.float32), given.t
    fn = jax.jit(
        jax.value_and_grad(lambda z, t: jxent.cross_entropy(z, t, reduction=reduction)),
    )
    loss, gradient = fn(z, jnp.asarray(t))
    assert np.isnan(loss)
    rows, rowwise = MODES["jit"](_rows(), z, jnp.asarray(t))
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), np.isnan(rows))
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), np.isnan(rows))
    divisor = len(z) if reduction == "mean" else 1
    right = ~np.isnan(rows)
    np.testing.assert_allclose(
        gradient[right], rowwise[right] / divisor, rtol=1e-6, atol=2e-7 / divisor
    )
    _, other = fn(jnp.asarray(given.clean_x, jnp.float32), jnp.asarray(given.clean_t))
    np.testing.assert_array_equal(gradient[~given.hostile], other[~given.hostile])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("way", ["where", "ignore_index", "class mask", "row_weights"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "distributions"])
def test_dropped_rows_may_hold_anything(soft, way, reduction):
    """Exactly 0, loss and every gradient; the others bit-identical to clean company."""
    if soft and way == "ignore_index":
        return
    given = between((soft_rows if soft else label_rows)("float32"))
    z, t, bad = given.x, given.t, given.hostile
    t = np.where(bad[:, None], t * 0 + NAN, t) if soft and way != "row_weights" else t
    if way == "row_weights" and not soft:
        t = np.where(bad, LABEL, t)
    c = jnp.linspace(0.5, 2, V)
    w = np.linspace(0.5, 2, len(z)).astype(np.float32)
    options: dict[str, Any] = dict(label_smoothing=0.1, z_loss=0.01)

    @jax.jit
    def run(z: Any, t: Any, c: Any, w: Any, where: Any) -> Any:
        def loss(z: Any, c: Any, w: Any) -> Any:
            ignore = -100 if way == "ignore_index" else None
            return jxent.cross_entropy(
                z,
                t,
                where=where,
                ignore_index=ignore,
                class_weights=c,
                row_weights=w,
                reduction=reduction,
                **options,
            )

        value, pull_back = jax.vjp(loss, z, c, w)
        return value, *pull_back(jnp.ones_like(value))

    where = None
    if way == "where":
        where = jnp.asarray(~bad)
        w = np.where(bad, NAN, w)
    elif way == "class mask":
        where = jnp.asarray(np.broadcast_to(~bad[:, None], z.shape))
    elif way == "ignore_index":
        t = np.where(bad, -100, t)
    else:
        w = np.where(bad, 0, w)
    w = jnp.asarray(w, jnp.float32)
    z = jnp.asarray(z, jnp.float32)
    value, dz, dc, dw = run(z, jnp.asarray(t), c, w, where)
    clean = run(
        jnp.where(bad[:, None], jnp.ones((), z.dtype), z),
        jnp.asarray(np.where(bad[:, None] if soft else bad, 1, t).astype(t.dtype))
        if way != "ignore_index"
        else jnp.asarray(t),
        c,
        jnp.where(jnp.isnan(w), jnp.ones((), w.dtype), w),
        where,
    )
    if reduction == "none":
        assert np.all(np.asarray(value)[bad] == 0)
    np.testing.assert_array_equal(value, clean[0])
    assert np.all(np.asarray(dz)[bad] == 0)
    np.testing.assert_array_equal(dz, clean[1])
    if way != "row_weights":  # a weight of 0 has a slope, which is the row's loss
        assert np.all(np.asarray(dw)[bad] == 0)
        np.testing.assert_array_equal(dw, clean[3])
        np.testing.assert_array_equal(dc, clean[2])
    assert np.all(np.isfinite(np.asarray(dc)))


def test_zero_weights():
    """Nothing is contributed, even against inf; the slope of a zero weight is the real one."""
    z = jnp.asarray([[0.0, 1.0, -INF], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
    y = jnp.asarray([2, 0, 1])
    run = jax.jit(
        jax.value_and_grad(
            lambda z, c, w: jxent.cross_entropy(
                z, y, class_weights=c, row_weights=w, reduction="sum"
            ),
            (0, 1, 2),
        )
    )
    ones, c, w = jnp.ones(3), jnp.asarray([1.0, 1.0, 0.0]), jnp.asarray([0.0, 1.0, 1.0])
    plain = jxent.cross_entropy(z, y, reduction="none")
    assert plain[0] == INF
    for class_weights, row_weights in ((c, ones), (ones, w)):
        loss, (dz, dc, dw) = run(z, class_weights, row_weights)
        np.testing.assert_allclose(loss, plain[1] + plain[2], rtol=1e-6)
        assert np.all(np.asarray(dz)[0] == 0)
        assert np.all(np.isfinite(dz))
        np.testing.assert_allclose(dw[1:], plain[1:], rtol=1e-6)
    assert dw[0] > 1e30, "∂loss/∂w = w-less loss"
    _, (_, dc, _) = run(z, c, ones)
    assert dc[2] > 1e30


@pytest.mark.parametrize("targets", ["labels", "distributions"])
@pytest.mark.parametrize("how", ["where", "row_weights", "class_weights", "normalizer", "no rows"])
def test_means_over_nothing(how, targets):
    """0 with gradient 0, for every argument."""
    n = 0 if how == "no rows" else 3
    z = jnp.asarray(np.random.default_rng(0).standard_normal((n, 4)), jnp.float32)
    t = jnp.zeros(n, jnp.int32) if targets == "labels" else jnp.full((n, 4), 0.25)
    zero = lambda name, *shape: jnp.zeros(shape) if how == name else jnp.ones(shape)
    given = dict(
        class_weights=zero("class_weights", 4),
        row_weights=zero("row_weights", n),
    )
    if how == "normalizer":
        given["normalizer"] = jnp.zeros(())
    where = jnp.zeros(n, bool) if how in ("where", "normalizer") else None

    def loss(z: Any, given: Any) -> Any:
        return jxent.cross_entropy(z, t, where=where, label_smoothing=0.1, z_loss=0.1, **given)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(z, given)
    assert value == 0
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.asarray(gradient) == 0)


_z = jnp.asarray(np.random.default_rng(3).standard_normal((4, 5)), jnp.float32)
_y = jnp.array([0, 4, 2, 1])
_of_linear = lambda way: (
    lambda z, **kw: jxent.linear_cross_entropy(
        z, jnp.eye(5), _y, implementation=way, chunk_size=3, **kw
    )
)
_binary = lambda fn: lambda z, **kw: fn(z, jnp.ones((4, 5)), reduction="mean", **kw)
MEANS: dict[str, Callable[..., Any]] = {
    "cross_entropy": lambda z, **kw: jxent.cross_entropy(z, _y, **kw),
    "cross_entropy, distributions": lambda z, **kw: jxent.cross_entropy(
        z, jnp.full((4, 5), 0.2), **kw
    ),
    **{way: _of_linear(way) for way in ("tokens", "vocab", "reference")},
    "distillation_loss": lambda z, **kw: jxent.distillation.distillation_loss(z, _z[::-1], **kw),
    "linear_distillation_loss": lambda z, **kw: jxent.distillation.linear_distillation_loss(
        z, jnp.eye(5), _z[::-1], jnp.eye(5), chunk_size=3, **kw
    ),
    "sigmoid_binary_cross_entropy": _binary(jxent.sigmoid_binary_cross_entropy),
    "sigmoid_focal_loss": _binary(jxent.sigmoid_focal_loss),
    "asymmetric_loss": _binary(jxent.robust.asymmetric_loss),
}
of_means = pytest.mark.parametrize("fn", MEANS.values(), ids=MEANS)


@of_means
def test_means_by_negative_row_weights(fn):
    """An error when it can be read, else NaN; but for dropped rows, and with a normalizer."""
    w, keep = jnp.array([1.0, 2.0, -1.5, 0.5]), jnp.array([True, True, False, True])
    with pytest.raises(ValueError, match=r"`row_weights`\[2\] = -1.5 is negative.*normalizer="):
        fn(_z, row_weights=w)
    jitted = jax.jit(jax.value_and_grad(lambda z, w, **kw: fn(z, row_weights=w, **kw)))
    value, slope = jitted(_z, w)
    assert np.isnan(value) and np.isnan(slope).all()
    # A dropped row's weight is nothing.
    value, slope = jitted(_z, w, where=keep)
    again, slope_again = jitted(_z, jnp.abs(w), where=keep)
    assert value == again == fn(_z, row_weights=w, where=keep) and np.isfinite(value)
    np.testing.assert_array_equal(slope, slope_again)
    # With a normalizer they are numbers like others: the loss is linear in them.
    part = lambda w: jax.value_and_grad(lambda z: fn(z, row_weights=w, normalizer=4.0))(_z)
    plus, minus = jnp.maximum(w, 0), jnp.maximum(-w, 0)
    both = jax.tree.map(jnp.subtract, part(plus), part(minus))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), part(w), both)


def test_means_by_advantages():
    """Those of a batch add up to about 0: what a mean by them would be is arbitrary."""
    w = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    w = (w - w.mean()) / w.std()
    z, y = jnp.zeros((4096, 3)), np.zeros(4096, np.int32)
    with pytest.raises(ValueError, match="or reduction="):
        jxent.cross_entropy(z, y, row_weights=w)
    with pytest.raises(ValueError, match=r"`row_weights`\[0, 1\] = -1.0 is negative"):
        jxent.sigmoid_binary_cross_entropy(
            z[:1, :2], 1, row_weights=[[1.0, -1.0]], reduction="mean"
        )
    found = jxent.cross_entropy(z, y, row_weights=w, normalizer=4096)
    np.testing.assert_allclose(found, np.float64(w).mean() * np.log(3), atol=1e-7)
    each = jxent.cross_entropy(z, y, row_weights=w, reduction="none")
    np.testing.assert_allclose(jnp.sum(each) / 4096, found, atol=1e-7)


@of_means
@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_normalizer_of_0(fn, jit):
    """Σ losses / 0 is ∞, its gradient not finite, but in dropped rows; 0/0 is 0, gradient 0."""
    run = jit(
        jax.value_and_grad(lambda z, keep, by, w: fn(z, where=keep, normalizer=by, row_weights=w))
    )
    keep, w, by = jnp.array([True, True, False, True]), jnp.array([1.0, 2.0, 1.0, 0.5]), 0.0
    value, slope = run(_z, keep, by, w)
    assert value == np.inf and not np.isfinite(slope[keep]).any()
    np.testing.assert_array_equal(slope[2], 0)
    assert run(_z, keep, by, -w)[0] == -np.inf
    for nothing in ((~keep & keep, by, w), (keep, by, 0 * w)):
        value, slope = run(_z, *nothing)
        assert value == 0 and not slope.any()


LABELLED = {name: loss for name, loss in LOSSES.items() if loss.labelled}
of_labels = pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED)


@of_labels
@pytest.mark.parametrize("dtype", first(1, [np.int8, np.uint8, np.int16, np.uint32, np.int32]))
def test_narrow_labels_do_not_wrap(dtype, loss):
    """Compared in int32: int8 labels with V = 300, uint32 labels that are no int32."""
    z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 300)), jnp.float32)
    top = int(np.iinfo(dtype).max)
    y = np.asarray([0, 44, min(top, 299)], dtype)
    run = MODES["jit"]
    for ours, theirs in zip(run(loss.fn, z, y), run(loss.fn, z, y.astype(np.int32)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    bad = np.asarray([0, 44, top], dtype)
    _, gradient = run(loss.fn, z, jnp.asarray(bad))
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), [False, False, top > 299])
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, False, top > 299])


@pytest.mark.parametrize("ignore", [-1, 300])
def test_ignore_index_outside_the_dtype(ignore):
    """uint8 labels hold no −1, and no 300: nothing is ignored."""
    z = jnp.zeros((2, 256))
    y = jnp.asarray([255, 44], jnp.uint8)
    np.testing.assert_array_equal(_rows(ignore_index=ignore)(z, y), _rows()(z, y))


@of_labels
def test_wide_labels_are_not_narrowed_first(loss, x64):
    """Traced int64 labels: 2³²+1 is NaN, and not class 1."""
    z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)))
    y = jnp.asarray([1, 2**32 + 1, -(2**32) + 1])
    assert y.dtype == jnp.int64
    value, gradient = MODES["jit"](loss.fn, z, y)
    np.testing.assert_array_equal(np.isnan(value), np.array([False, True, True]) | loss.summed)
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), [False, True, True])
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, True, True])
    words = rf"`{loss.argument}`\[1\] = 4294967297 is outside \[0, 4\)"
    with pytest.raises(ValueError, match=words):
        loss.fn(z, np.asarray(y))


@of_labels
@pytest.mark.parametrize("label", [-1, -100, 4, 2**32 + 1])
@pytest.mark.parametrize("make", [np.asarray, list, jnp.asarray], ids=["numpy", "list", "jax"])
def test_concrete_bad_labels_raise(loss, make, label):
    if make is jnp.asarray and label > 2**31:
        return
    z, y = jnp.zeros((3, 4)), make([0, label, 2])
    words = re.escape(
        f"`{loss.argument}`[1] = {label} is outside [0, 4); drop such rows with where= or"
    )
    with pytest.raises(ValueError, match=words):
        loss.fn(z, y)
    with pytest.raises(ValueError, match=words):
        jax.jit(lambda z: loss.fn(z, y))(z)
    kept = jnp.asarray([True, False, True])
    assert np.all(np.isfinite(loss.fn(z, y, where=kept)))


WRONG_LABELS = {
    "floats": (np.zeros(4, np.float32), TypeError, r"must be integers, got float32\[4\]"),
    "booleans": (np.zeros(4, bool), TypeError, r"must be integers, got bool\[4\]"),
    "[N, 1]": (np.zeros((4, 1), int), ValueError, r"shape \[4\], got int64\[4, 1\]; squeeze"),
    "[1]": (np.zeros(1, int), ValueError, r"shape \[4\], got int64\[1\]"),
    "a scalar": (0, ValueError, r"shape \[4\], got int64\[\]"),
}


@of_labels
@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_wrong_labels_raise(loss, wrong, unhooked):
    labels, error, words = WRONG_LABELS[wrong]
    if loss.soft_too:
        error, words = (TypeError, ValueError), "must (have the logits' shape|be integers)"
    with pytest.raises(error, match=rf"`{loss.argument}` .*{words}"):
        loss.fn(jnp.zeros((4, 5)), labels)


@pytest.mark.parametrize(("rows", "classes"), first(1, [(3, 1), (0, 5), (1, 1)]))
@pytest.mark.parametrize("name", LOSSES)
def test_one_class_and_no_rows(name, rows, classes):
    loss = LOSSES[name]
    r = np.random.default_rng(0)
    shape = (rows,) if loss.rows is binary_rows else (rows, classes)
    x = jnp.asarray(r.standard_normal(shape), jnp.float32)
    t = r.random(shape).astype(np.float32)
    t = r.integers(0, classes, rows).astype(np.int32) if loss.labelled else t
    expected = loss.oracle(f64(x), t)
    value, gradient = MODES["jit"](loss.fn, x, jnp.asarray(t))
    wanted, scale = expected.value, expected.scale["value"]
    if loss.summed:
        wanted, scale = wanted.sum(), scale.sum()
    assert_close(value, wanted, rtol=1e-5, scale=scale)
    slope = expected.gradient[loss.by]
    assert_close(gradient, slope, rtol=1e-5, scale=expected.scale[loss.by], cancels=True)


def test_concrete_bad_labels_of_label_weights_raise():
    with pytest.raises(ValueError, match=r"label_weights: `labels`\[1\] = -1 is outside"):
        jxent.label_weights(np.asarray([0, -1]))
    with pytest.raises(ValueError, match=r"label_weights: `labels`\[0\] = 3 is outside \[0, 3\)"):
        jxent.label_weights(np.asarray([3, 0]), class_weights=jnp.ones(3))
    traced = jax.jit(lambda y: jxent.label_weights(y, class_weights=jnp.ones(3)))
    np.testing.assert_array_equal(np.isnan(traced(jnp.asarray([3, -1, 0]))), [True, True, False])


def test_class_masks_at_fault():
    """The label, or soft mass, on an excluded class: NaN in that row only."""
    z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)
    mask = jnp.asarray([[True] * 4, [True, False, True, True], [True] * 4])
    y = jnp.asarray([1, 1, 1])
    for t in (y, jnp.eye(4)[y]):
        loss, gradient = MODES["jit"](lambda z, t: _rows(where=mask)(z, t), z, t)
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
        np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, True, False])


def test_smoothing_against_impossible_classes():
    """Mass on an impossible class costs +inf; not if the class is excluded, or weighs nothing."""
    z = jnp.asarray([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]])
    y = jnp.asarray([0, 1])
    smoothed = _rows(label_smoothing=0.1)
    loss, gradient = MODES["jit"](smoothed, z, y)
    assert loss[0] == INF
    assert np.all(np.isfinite(gradient))
    for options in (
        dict(where=jnp.asarray([[True, True, False], [True] * 3])),
        dict(class_weights=jnp.asarray([1.0, 1.0, 0.0])),
    ):
        loss, gradient = MODES["jit"](lambda z, y, o=options: smoothed(z, y, **o), z, y)
        assert np.all(np.isfinite(loss))
        assert np.all(np.isfinite(gradient))


DIRECTION = jnp.asarray([[1.0, -2.0, 3.0, 0.5]])
AD_MODES = {
    "grad": lambda f: jax.jacrev(f),
    "forward": lambda f: jax.jacfwd(f),
    "linearize": lambda f: lambda z: jax.linearize(f, z)[1](DIRECTION),
    "jvp": lambda f: lambda z: jax.jvp(f, (z,), (DIRECTION,))[1],
    "hessian": lambda f: jax.hessian(f),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
}


@pytest.mark.parametrize("targets", ["constant", "functions of the logits"])
@pytest.mark.parametrize("mode", AD_MODES)
@pytest.mark.parametrize("fn", [jxent.softmax_cross_entropy, jxent.poly_loss_cross_entropy])
def test_zero_times_infinity(fn, mode, targets):
    """Impossible classes without mass leave every derivative finite."""
    z = jnp.asarray([[0.5, 1.0, -INF, 0.2]])
    t = jnp.asarray([[0.3, 0.7, 0.0, 0.0]])
    moved = (lambda z: t * jnp.cos(z[..., :1])) if targets != "constant" else (lambda z: t)
    derivative = jax.jit(AD_MODES[mode](lambda z: fn(z, moved(z))))(z)
    assert np.all(np.isfinite(derivative))
    assert np.any(np.asarray(derivative) != 0)


# Exceptions: (what is called, the exception, the message, by pattern).
Z, Y, T = np.zeros((4, 5), np.float32), np.zeros(4, np.int32), np.full((4, 5), 0.2, np.float32)
SQUARE = np.zeros((5, 5), np.float32)
_ce, _label, _soft = (
    "cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
)
ERRORS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "no classes": (_ce, (Z[:, :0], Y), {}, ValueError, r"`logits` has no classes, got .*\[4, 0\]"),
    "scalar logits": (
        _ce,
        (np.zeros(()), Y[0]),
        {},
        ValueError,
        r"`logits` needs an axis of classes",
    ),
    "integer logits": (
        _ce,
        (Y[:, None], Y),
        {},
        TypeError,
        r"`logits` must be floating point, got",
    ),
    "float labels": (_ce, (Z, T[:, 0]), {}, TypeError, r"`targets` must be integers, got float32"),
    "bool labels": (_ce, (Z, Y == 0), {}, TypeError, r"`targets` must be integers, got bool"),
    "[N, 1] labels": (
        _ce,
        (Z, Y[:, None]),
        {},
        ValueError,
        r"shape \[4\], got .*\[4, 1\]; squeeze",
    ),
    "[1] labels": (_ce, (Z, Y[:1]), {}, ValueError, r"shape \[4\], got int32\[1\]"),
    "integer one-hot": (_ce, (Z, np.eye(5, dtype=int)[Y]), {}, ValueError, r"cast one-hot"),
    "targets of another shape": (_ce, (Z, T[:, :4]), {}, ValueError, r"`targets` must be integer"),
    "targets for all rows": (_ce, (Z, T[0]), {}, ValueError, r"`targets` must be integer labels"),
    "negative targets": (_ce, (Z, T - 0.3), {}, ValueError, r"`targets`\[0, 0\] = .* negative"),
    "[N, 1] where": (
        _ce,
        (Z, Y),
        dict(where=Y[:, None] == 0),
        ValueError,
        r"`where` must have the",
    ),
    "float where": (_ce, (Z, Y), dict(where=T[:, 0]), TypeError, r"`where` must be boolean, got"),
    "integer where": (_ce, (Z, Y), dict(where=Y), TypeError, r"`where` must be boolean, got int32"),
    "class weights": (_ce, (Z, Y), dict(class_weights=T[0, :4]), ValueError, r"shape \[5\], got"),
    "[1] class weights": (_ce, (Z, Y), dict(class_weights=T[0, :1]), ValueError, r"shape \[5\]"),
    "bool class weights": (_ce, (Z, Y), dict(class_weights=Z[0] == 0), TypeError, r"be numbers"),
    "[N, 1] row weights": (
        _ce,
        (Z, Y),
        dict(row_weights=T[:, :1]),
        ValueError,
        r"shape \[4\], got",
    ),
    "[1] normalizer": (
        _ce,
        (Z, Y),
        dict(normalizer=T[0, :1]),
        ValueError,
        r"`normalizer` must have",
    ),
    "normalizer and sum": (
        _ce,
        (Z, Y),
        dict(normalizer=np.float32(2), reduction="sum"),
        ValueError,
        r"`normalizer` replaces the denominator of \"mean\"",
    ),
    "normalizer and none": (
        _ce,
        (Z, Y),
        dict(normalizer=np.float32(2), reduction="none"),
        ValueError,
        r"`normalizer` replaces the denominator of \"mean\"",
    ),
    "axis_name and none": (
        _ce,
        (Z, Y),
        dict(axis_name="data", reduction="none"),
        ValueError,
        r"`axis_name` .*reduction=\"none\"",
    ),
    "ignored distributions": (
        _ce,
        (Z, T),
        dict(ignore_index=0),
        ValueError,
        r"`ignore_index` goes with integer labels",
    ),
    "float ignore_index": (
        _ce,
        (Z, Y),
        dict(ignore_index=0.5),
        TypeError,
        r"`ignore_index` must be",
    ),
    "reduction": (
        _ce,
        (Z, Y),
        dict(reduction="avg"),
        ValueError,
        r"`reduction` must be .*got 'avg'",
    ),
    "smoothing > 1": (_ce, (Z, Y), dict(label_smoothing=1.5), ValueError, r"in \[0, 1\], got 1.5"),
    "smoothing < 0": (
        _ce,
        (Z, Y),
        dict(label_smoothing=-0.1),
        ValueError,
        r"`label_smoothing` must",
    ),
    "smoothing NaN": (
        _ce,
        (Z, Y),
        dict(label_smoothing=NAN),
        ValueError,
        r"`label_smoothing` must",
    ),
    "z-loss": (_ce, (Z, Y), dict(z_loss=-1e-4), ValueError, r"`z_loss` must be .*got -0.0001"),
    "soft cap 0": (_ce, (Z, Y), dict(logit_softcap=0.0), ValueError, r"`logit_softcap` must be"),
    "soft cap < 0": (_ce, (Z, Y), dict(logit_softcap=-3), ValueError, r"`logit_softcap` must be"),
    "weights: float labels": (
        "label_weights",
        (T[:, 0],),
        {},
        TypeError,
        r"`labels` must be integers, got float32",
    ),
    "weights: class weights": (
        "label_weights",
        (Y,),
        dict(class_weights=T),
        ValueError,
        r"`class_weights` must have one axis",
    ),
    "weights: row weights": (
        "label_weights",
        (Y,),
        dict(row_weights=T),
        ValueError,
        r"`row_weights` must have shape \[4\]",
    ),
    "weights: where": (
        "label_weights",
        (Y,),
        dict(where=Y[:1] == 0),
        ValueError,
        r"`where` must have the rows' shape",
    ),
    "rows: [N, 1] labels": (_label, (Z, Y[:, None]), {}, ValueError, r"got int32\[4, 1\]; squeeze"),
    "rows: float labels": (_label, (Z, T[:, 0]), {}, TypeError, r"`labels` must be integers"),
    "rows: axis": (_label, (Z, Y, 2), {}, ValueError, r"`axis` 2 is out of bounds"),
    "rows: axis twice": (_label, (Z, 0, (1, -1)), {}, ValueError, r"`axis` names an axis twice"),
    "rows: float axis": (_label, (Z, Y, 1.0), {}, TypeError, r"`axis` must be an integer"),
    "rows: axis of another shape": (
        _label,
        (Z, Y, 0),
        {},
        ValueError,
        r"shape \[5\], got int32\[4\]",
    ),
    "soft: labels": (
        _soft,
        (Z, Y),
        {},
        ValueError,
        r"for integer labels use softmax_cross_entropy_w",
    ),
    "soft: labels where N = V": (
        _soft,
        (SQUARE, np.arange(5)),
        {},
        ValueError,
        r"for integer labels",
    ),
    "soft: [N, 1] labels": (_soft, (Z, T[:, :1]), {}, ValueError, r"must have the logits' shape"),
    "soft: class weights": (
        _soft,
        (Z, T),
        dict(class_weights=T),
        ValueError,
        r"`class_weights` must have shape \[5\]",
    ),
    "focal: gamma": (
        "softmax_focal_loss",
        (Z, Y),
        dict(gamma=-1.0),
        ValueError,
        r"`gamma`.* must be finite and not negative",
    ),
    "poly: epsilon": (
        "poly_loss_cross_entropy",
        (Z, T),
        dict(epsilon=T),
        ValueError,
        r"`epsilon` must have shape",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, unhooked):
    """Function, argument, what was expected, what came: eagerly, and when tracing."""
    fn_name, args, options, exception, pattern = ERRORS[name]
    fn = getattr(jxent, fn_name)
    with pytest.raises(exception, match=rf"^{fn_name}: .*{pattern}"):
        fn(*args, **options)
    if "negative" in name or name == "focal: gamma":  # values, not shapes
        return
    traced = [x for x in args if isinstance(x, np.ndarray)]
    rest = [x for x in args if not isinstance(x, np.ndarray)]
    with pytest.raises(exception, match=rf"^{fn_name}: .*{pattern}"):
        jax.eval_shape(lambda *x: fn(*x, *rest, **options), *traced)


STATIC = ["label_smoothing", "z_loss", "logit_softcap", "ignore_index"]


@pytest.mark.parametrize("fn", [_ce, _label])
@pytest.mark.parametrize("option", STATIC)
def test_traced_static_options_raise(option, fn, unhooked):
    if option == "ignore_index" and fn != _ce:
        return
    value = 1 if option == "ignore_index" else 0.5
    with pytest.raises(TypeError, match=rf"^{fn}: `{option}` must be a static Python"):
        jax.jit(lambda x: getattr(jxent, fn)(Z, Y, **{option: x}))(value)
