"""Logits never stored: every way against the oracle, against JAX, and counted.

Operands are small multiples of 1/8, so that float32 and half-precision logits are exact and what
is compared is the loss and its gradients, not the rounding of a product.
"""

from functools import partial
from itertools import product
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from assertions import assert_close, f64, relaxed
from cases import value_and_gradients
from compiling import quickly
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from jaxprs import BIG, equations, largest, products
from sampling import chosen, first

import jxent
from jxent._linear import projection, tiling
from jxent._linear.projection import alignment_padding
from jxent._linear.tiling import split_axis

linear = jxent.linear_cross_entropy
SUMMED, EACH = ("tokens", "vocab", "reference"), ("vocab", "reference")
# The default way every time, the others in the exhaustive run.
SELDOM = ["tokens", *(pytest.param(way, marks=pytest.mark.deep) for way in EACH)]
RTOL = 1e-5
# dz is rounded to the operands' dtype before the products on the way back: half a unit each term.
ROUNDED = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 0.0}

N, D, V = 11, 6, 23
rng = np.random.default_rng(7)


def eighths(*shape: int, top: int = 12) -> np.ndarray:
    """Multiples of 1/8: their products over a few features are exact in float32."""
    return rng.integers(-top, top + 1, shape) / 8


HIDDEN, HEAD, BIAS = eighths(N, D), eighths(D, V), eighths(V)
LABELS = rng.integers(0, V, N).astype(np.int32)
LABELS[:3] = 0, V - 1, V // 2
KEPT = np.arange(N) % 4 != 1
C = rng.uniform(0.5, 2, V)
C[3] = 0
W = rng.uniform(0.5, 2, N)
W[4] = 0
IGNORED = np.where(np.arange(N) % 3 == 2, -100, LABELS).astype(np.int32)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": dict(bias=BIAS),
    "rows kept": dict(where=KEPT, row_weights=W),
    "ignored": dict(labels=IGNORED, ignore_index=-100, class_weights=C),
    "smoothing": dict(label_smoothing=0.1, class_weights=C),
    "z-loss": dict(z_loss=0.1, row_weights=W),
    "soft cap": dict(logit_softcap=3.0, bias=BIAS),
    "everything": dict(
        labels=IGNORED,
        bias=BIAS,
        where=KEPT,
        ignore_index=-100,
        class_weights=C,
        row_weights=W,
        label_smoothing=0.1,
        z_loss=0.1,
        logit_softcap=3.0,
    ),
}


def arguments_of(
    options: dict[str, Any], dtype: Any = "float32", head: Any = None, layout: str = "dv"
) -> dict[str, Any]:
    """Arguments with the operands in their dtypes, and weights in float32."""
    wide = "float64" if "float64" in (dtype, head) else "float32"
    out = {"hidden": HIDDEN, "head": HEAD if layout == "dv" else HEAD.T, "labels": LABELS}
    out |= options | {"head_layout": layout}
    for name, x in out.items():
        if hasattr(x, "dtype") and x.dtype == np.float64:
            given = {"hidden": dtype, "head": head or dtype, "bias": head or dtype}.get(name, wide)
            out[name] = jnp.asarray(x, given)
    return out


def check(arguments: dict[str, Any], way: str | None, size: int | None, g: Any = 0.7) -> None:
    """Value, every gradient and their dtypes against the oracle."""
    expected = oracle.linear_cross_entropy(**arguments, cotangent=f64(g))
    fn = partial(linear, implementation=way, chunk_size=size)
    value, gradients = value_and_gradients(fn_cache(fn), arguments, g)
    dtypes = {arguments[name].dtype.name for name in ("hidden", "head")}
    double = "float64" in dtypes
    rounded = dict.fromkeys(("hidden", "head"), ROUNDED[dtypes.pop()] if len(dtypes) == 1 else 0.0)
    if "labels" in gradients:  # by the losses, and by the denominator: two terms
        rounded["labels"] = ROUNDED[gradients["labels"].dtype.name]
    rtol = 1e-13 if double else RTOL
    assert value.dtype == (np.float64 if double else np.float32)
    assert_close(value, expected.value, rtol=rtol, scale=expected.scale["value"], cancels=True)
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        assert_close(
            gradient,
            expected.gradient[name],
            rtol=rtol + rounded.get(name, 0.0),
            ulps=0.5 if gradient.dtype.itemsize < value.dtype.itemsize else 0,
            scale=expected.scale[name],
            dtype=gradient.dtype,
            cancels=True,
            err_msg=f"{way}, {size}: {name}",
        )


_functions: dict[Any, Any] = {}


def fn_cache(fn: Any) -> Any:
    """One function object for each set of keywords, so that jit's cache finds it."""
    return _functions.setdefault(tuple(sorted(fn.keywords.items(), key=str)), fn)


def cotangent(reduction: str) -> Any:
    g = np.random.default_rng(3).standard_normal(N)
    return np.float32(g if reduction == "none" else 0.7)


OTHER_LAYOUT = [
    pytest.param(options, "vd", marks=() if options == "everything" else pytest.mark.deep)
    for options in OPTIONS
]


@pytest.mark.parametrize(("options", "layout"), [*product(OPTIONS, ["dv"]), *OTHER_LAYOUT])
@pytest.mark.parametrize(
    ("reduction", "way"),
    first(3, [("mean", "tokens"), ("mean", "vocab"), ("none", "vocab")])
    + first(0, [("mean", "reference"), ("none", "reference")]),
)
def test_every_option(reduction, way, options, layout):
    """A chunk that divides nothing, so that pieces overlap."""
    arguments = arguments_of(OPTIONS[options], layout=layout) | {"reduction": reduction}
    check(arguments, way, 5, cotangent(reduction))


def soft(options: str, dtype: Any = "float32", head: Any = None, layout: str = "dv") -> Any:
    """Arguments with distributions in the place of labels; some classes are excluded."""
    more = {k: x for k, x in OPTIONS[options].items() if k not in ("labels", "ignore_index")}
    t = SOFT
    if options in ("rows kept", "everything"):
        more["class_mask"], t = SOME, np.where(SOME, SOFT, 0)
    return arguments_of(more | dict(labels=t), dtype, head, layout)


SOFT = np.random.default_rng(8).gamma(1.0, size=(N, V))
SOFT[1, 3] = SOFT[2, 0] = 0
SOFT[5] = 0
SOME = np.arange(V) % 6 != 4
SOFT_CALLS = [
    ("mean", "tokens"),
    ("none", "vocab"),
    ("none", "reference"),
    ("mean", "vocab"),
    ("mean", "reference"),
]


@pytest.mark.parametrize("layout", first(1, ["dv", "vd"]))
@pytest.mark.parametrize(
    ("call", "options"),
    chosen(
        product(SOFT_CALLS, [o for o in OPTIONS if o != "ignored"]),
        *((call, "everything") for call in SOFT_CALLS[:3]),
        (SOFT_CALLS[0], "plain"),
        (SOFT_CALLS[1], "plain"),
        (SOFT_CALLS[1], "rows kept"),
        (SOFT_CALLS[1], "smoothing"),
    ),
)
def test_every_option_with_distributions(call, options, layout):
    reduction, way = call
    check(soft(options, layout=layout) | dict(reduction=reduction), way, 5, cotangent(reduction))


@pytest.mark.parametrize("size", first(1, [4, 1, 11, 12, 22, 23, 24, None]))
@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_every_size_with_distributions(way, size):
    check(soft("everything"), way, size)


@pytest.mark.parametrize("dtype", first(1, ["bfloat16", "float16"]))
@pytest.mark.parametrize("way", SELDOM)
def test_dtypes_with_distributions(way, dtype):
    """Half-precision distributions too: their gradient is rounded once."""
    a = soft("everything", dtype)
    check(a, way, 5)
    a["labels"] = a["labels"].astype(dtype)
    check(a, way, 5)


@pytest.mark.parametrize("head", ["float64", "float32"])
@pytest.mark.parametrize("way", first(0, SUMMED))
def test_float64_with_distributions(x64, way, head):
    check(soft("everything", "float64", head), way, 5)


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_distributions_where_classes_would_be_spared(on_a_gpu, way):
    """No classes are added: the distributions would have to be copied."""
    check(soft("everything"), way, 64)


@pytest.mark.parametrize("way", [None, *SUMMED])
def test_distributions_of_ones(way):
    h, w, t = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.full((2, 4), 0.25)
    assert_close(linear(h, w, t, implementation=way, chunk_size=3), np.log(4), ulps=2)


@pytest.mark.parametrize("way", SELDOM)
def test_one_hot_rows_are_labels(way):
    """By every argument that both have, with weights, smoothing, and rows in two axes."""
    a = {k: x for k, x in arguments_of(OPTIONS["everything"]).items() if k != "ignore_index"}
    rows = lambda x: x[: N - 1].reshape(2, (N - 1) // 2, *x.shape[1:])
    a |= {k: rows(jnp.asarray(a[k])) for k in ("hidden", "where", "row_weights")}
    hot = a | dict(labels=rows(jnp.eye(V)[LABELS]))
    a["labels"] = rows(LABELS)
    run = partial(value_and_gradients, fn_cache(partial(linear, implementation=way, chunk_size=3)))
    (value, g), (hot_value, hot_g) = run(a), run(hot)
    assert_close(hot_value, f64(value), rtol=1e-6)
    del hot_g["labels"]
    chex.assert_trees_all_close(hot_g, g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", chosen([1, 2, 5, 11, 12, 22, 23, 24, None], 1, 5, 12, None))
@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_every_size(way, size):
    """One row or class a piece, exactly all, one more, one less, twice less one."""
    check(arguments_of(OPTIONS["everything"]), way, size)


@pytest.mark.parametrize(
    ("dtype", "head"),
    [
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
    ],
)
@pytest.mark.parametrize("way", SELDOM)
def test_dtypes(way, dtype, head):
    check(arguments_of(OPTIONS["everything"], dtype, head), way, 5)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As is chosen where JAX runs on a GPU, with more classes to spare."""
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(projection, "alignment_padding", lambda classes: -classes % 128)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("layout", first(1, ["dv", "vd"]))
@pytest.mark.parametrize("options", ["plain", "smoothing", "everything"])
@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_spare_classes(on_a_gpu, way, options, layout):
    """Where 23 classes become 128, so that rows of logits are aligned, nobody can tell."""
    check(arguments_of(OPTIONS[options], layout=layout), way, 64)


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_spare_classes_are_made(on_a_gpu, way):
    text = jax.jit(partial(linear, implementation=way)).lower(HIDDEN, HEAD, LABELS).as_text()
    assert "x128xf32>" in text and "x23xf32>" not in text.replace("6x23xf32>", "")


@pytest.mark.parametrize("size", [24, 64, None])
def test_spare_classes_to_second_order(on_a_gpu, size):
    """A block of nothing but impossible classes has slopes of 0, and so have those."""
    h, w = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    every = jnp.arange(N)

    def stored(h, w):
        log_p = jax.nn.log_softmax(jnp.dot(h, w, precision="highest"))
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return jnp.sum(entropy**2) - jnp.sum(log_p[every, LABELS] ** 2)

    def ours(h, w):
        out = jxent.linear_log_probs(h, w, LABELS, chunk_size=size)
        nll = linear(h, w, LABELS, reduction="none", chunk_size=size)
        return jnp.sum(out.entropy**2) - jnp.sum(out.log_probs * -nll)

    def bent(f):
        squares = lambda h, w: 100 * sum(jnp.sum(g**2) for g in jax.grad(f, (0, 1))(h, w))
        return jax.jit(jax.grad(squares, (0, 1)))(h, w)

    with relaxed():
        expected = bent(stored)
    for found, wanted in zip(bent(ours), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.max(np.abs(wanted)))


def test_spare_classes_of_rows(on_a_gpu):
    """Entropies, best classes and a teacher's and a student's logits as they are without."""
    a = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    log_p = log_softmax({})
    out = jxent.linear_log_probs(*a, LABELS)
    assert_close(out.log_probs, log_p[np.arange(N), LABELS], rtol=RTOL)
    assert_close(out.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=RTOL)
    np.testing.assert_array_equal(jxent.linear_predictions(*a).labels, log_p.argmax(-1))
    student, teacher = (a[0] / 2, a[1]), a
    distill = jxent.distillation.linear_distillation_loss
    given = dict(temperature=2.0, hard_labels=LABELS)
    ours = jax.value_and_grad(lambda s: distill(*s, *teacher, **given))(student)
    stored = jxent.distillation.distillation_loss
    product = lambda h, w: jnp.dot(h, w, precision="highest")
    theirs = jax.value_and_grad(lambda s: stored(product(*s), product(*teacher), **given))(student)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_which_classes_are_spared(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert alignment_padding(50257) == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [alignment_padding(v) for v in (50257, 50304, 50264, 10, 23)] == [47, 0, 0, 6, 1]


@pytest.mark.parametrize("head", ["float64", "float32"])
@pytest.mark.parametrize("way", SUMMED)
def test_float64(x64, way, head):
    check(arguments_of(OPTIONS["everything"], "float64", head), way, 5)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_the_way_chosen_and_normalizer(reduction):
    arguments = arguments_of(OPTIONS["everything"]) | {"reduction": reduction}
    if reduction == "mean":
        arguments["normalizer"] = jnp.float32(3.5)
    check(arguments, None, None, cotangent(reduction))


SHAPES = [((), 1, 1), ((1,), 3, 1), ((2, 3), 4, 7), ((0,), 3, 5), ((5,), 1, 65), ((3, 1, 2), 2, 16)]


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], str, int, Any]:
    pick = lambda *values: draw(st.sampled_from(values))
    r = np.random.default_rng(draw(st.integers(0, 99)))
    rows, features, classes = pick(*SHAPES)
    dtype, layout = pick("float32", "bfloat16", "float16"), pick("dv", "vd")
    part = lambda *shape: jnp.asarray(r.integers(-12, 13, shape) / 8, dtype)
    head = (features, classes) if layout == "dv" else (classes, features)
    arguments: dict[str, Any] = dict(
        hidden=part(*rows, features),
        head=part(*head),
        labels=np.asarray(r.integers(0, classes, rows), pick(np.int32, np.uint8)),
        head_layout=layout,
        label_smoothing=pick(0.0, 0.1, 1.0),
        z_loss=pick(0.0, 0.01),
        logit_softcap=pick(None, 3.0),
        reduction=pick("mean", "sum", "none"),
    )
    if pick(False, True):
        arguments["bias"] = part(classes)
    if pick(False, True):
        arguments["where"] = np.asarray(r.random(rows) < 0.6)
    if pick(False, True):
        arguments["class_weights"] = jnp.asarray(r.uniform(0, 2, classes), jnp.float32)
    if pick(False, True):
        w = r.uniform(0.5, 2, rows) * (r.random(rows) < pick(0.7, 0.0))
        arguments["row_weights"] = jnp.asarray(w, jnp.float32)
    if arguments["reduction"] == "mean" and pick(False, True):
        arguments["normalizer"] = jnp.float32(pick(3.5, 0.25))
    mask, labels = np.ones(classes, bool), arguments["labels"]
    if pick(False, True):
        mask = (np.arange(classes) == 0) | (r.random(classes) < 0.6)
        arguments["class_mask"], arguments["labels"] = mask, np.where(mask[labels], labels, 0)
        arguments["labels"] = arguments["labels"].astype(labels.dtype)
    if pick(False, True):
        t = r.gamma(1.0, size=(*rows, classes)) * mask
        arguments["labels"] = jnp.asarray(t, pick("float32", "bfloat16"))
    none = arguments["reduction"] == "none"
    way, size = pick(*(EACH if none else SUMMED)), pick(1, 3, 4, 100)
    return arguments, way, size, np.float32(r.standard_normal(rows) if none else 0.7)


@given(calls())
def test_calls(call):
    check(*call)


@pytest.mark.deep
@settings(settings.get_profile("deep"))
@given(calls())
def test_calls_deep(call):
    check(*call)


# Laws


@pytest.mark.parametrize("way", SUMMED)
@pytest.mark.parametrize("classes", first(2, [1, 129, 2, 127, 128, 255, 257]))
def test_zero_logits_give_log_v(way, classes):
    """Where a padded class would be loudest: at the last label of a ragged block."""
    labels = np.full(4, classes - 1, np.int32)
    h, w = jnp.zeros((4, 3)), jnp.zeros((3, classes))
    loss, dw = jax.value_and_grad(
        lambda w: linear(h + 1, w, labels, implementation=way, chunk_size=128, reduction="sum")
    )(w)
    assert_close(loss, 4 * np.log(classes), ulps=8)
    slope = np.full((3, classes), 4 / classes)
    slope[:, -1] -= 4
    assert_close(dw, slope, rtol=1e-5, scale=np.full_like(slope, 4.0), cancels=classes == 1)


@pytest.mark.parametrize("way", ["tokens", "vocab"])
@pytest.mark.parametrize("size", [4, 5, 8, 9])
def test_every_label_in_every_block(way, size):
    """A label is found once, wherever blocks begin and overlap."""
    h, w = jnp.asarray(eighths(V, D), jnp.float32), jnp.asarray(HEAD, jnp.float32)
    check(dict(hidden=h, head=w, labels=np.arange(V, dtype=np.int32)), way, size)


@pytest.mark.parametrize("way", SUMMED)
def test_confident_rows_are_not_zero(way):
    """The label 40 above the rest: never 0, never negative, bias or no bias."""
    h, w = jnp.eye(4), 40 * jnp.eye(4, 300)
    for bias in (None, jnp.zeros(300), jnp.full(300, 1e4)):
        loss, dh = jax.value_and_grad(linear)(
            h, w, np.arange(4), bias=bias, implementation=way, chunk_size=3
        )
        shifted = bias is not None and bias[0] > 0
        S = 299 * np.exp(-40.0)
        assert_close(loss, np.log1p(S), rtol=2e-3 if shifted else 2e-5)
        assert_close(jnp.diag(dh[:, :4]), np.full(4, -40 * S / (1 + S) / 4), rtol=2e-3)


@pytest.mark.parametrize("way", SELDOM)
def test_micro_batches_add_up(way):
    """`normalizer` from `label_weights`: the sum over uneven micro-batches is the full batch."""
    a = arguments_of(OPTIONS["everything"])
    weights = jxent.label_weights(
        a["labels"],
        where=KEPT,
        ignore_index=-100,
        class_weights=a["class_weights"],
        row_weights=a["row_weights"],
    )
    by_row = ("hidden", "labels", "where", "row_weights")

    def loss(head, rows=slice(None), **more):
        part = {k: x[rows] if k in by_row else x for k, x in a.items() if k != "head"}
        return linear(head=head, implementation=way, chunk_size=2, **part, **more)

    whole = jax.value_and_grad(loss)(a["head"])
    parts = [
        jax.value_and_grad(partial(loss, rows=rows, normalizer=weights.sum()))(a["head"])
        for rows in (slice(0, 2), slice(2, 9), slice(9, None))
    ]
    total = jax.tree.map(lambda *x: sum(x[1:], start=x[0]), *parts)
    for ours, theirs in zip(total, whole, strict=True):
        assert_close(ours, f64(theirs), rtol=RTOL, scale=np.maximum(1e-2, np.abs(f64(theirs))))


@pytest.mark.parametrize("way", SUMMED)
def test_nothing_counts(way):
    """All rows dropped, or weights summing to 0: 0, and gradient 0."""
    for dropped in (dict(where=np.zeros(N, bool)), dict(row_weights=jnp.zeros(N))):
        a = arguments_of({**OPTIONS["everything"], **dropped})
        value, gradients = value_and_gradients(partial(linear, implementation=way), a)
        assert value == 0
        for name in ("hidden", "head", "bias"):
            np.testing.assert_array_equal(gradients[name], 0, name)


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_half_precision_adds_up_in_float32(way):
    """dhead over 64 chunks, and slopes of a mean of 4096 rows, as accurate as one rounding."""
    rows, classes = 4096, 40
    r = np.random.default_rng(0)
    h, w = r.integers(-8, 9, (rows, 8)) / 8, r.integers(-8, 9, (8, classes)) / 8
    labels = r.integers(0, classes, rows)
    for dtype in ("float16", "bfloat16"):
        a = dict(hidden=jnp.asarray(h, dtype), head=jnp.asarray(w, dtype), labels=labels)
        expected = oracle.linear_cross_entropy(**a)
        fn = partial(linear, implementation=way, chunk_size=64 if way == "tokens" else 16)
        value, gradients = value_and_gradients(fn, a)
        assert_close(value, expected.value, rtol=1e-6)
        for name in ("hidden", "head"):
            assert_close(
                gradients[name],
                expected.gradient[name],
                rtol=ROUNDED[dtype] / 8 if name == "head" else ROUNDED[dtype],
                ulps=0.5,
                scale=expected.scale[name],
                dtype=dtype,
                cancels=True,
                err_msg=name,
            )


# Faults


@pytest.mark.parametrize("way", SUMMED)
@pytest.mark.parametrize("bad", first(3, [-1, V, "NaN", 127, "inf"]))
def test_a_row_at_fault(way, bad):
    """Its own loss and dhidden NaN, and what sums over rows; other rows' dhidden clean."""
    a = arguments_of(OPTIONS["bias"])
    clean = dict(a)
    if isinstance(bad, int):
        a["labels"] = jnp.asarray(np.where(np.arange(N) == 3, bad, LABELS).astype(np.int8))
        clean["labels"] = jnp.asarray(LABELS.astype(np.int8))
    else:
        a["hidden"] = a["hidden"].at[3, 0].set(float(bad))
    del a["head_layout"], clean["head_layout"]
    a["labels"], clean["labels"] = jnp.asarray(a["labels"]), jnp.asarray(clean["labels"])

    @jax.jit
    def run(a):
        return value_and_gradients(fn_cache(partial(linear, implementation=way, chunk_size=4)), a)

    (value, g), (_, clean_g) = run(a), run(clean)
    assert np.isnan(value)
    other = np.arange(N) != 3
    assert np.all(np.isnan(g["hidden"][3]))
    np.testing.assert_array_equal(g["hidden"][other], clean_g["hidden"][other])
    assert np.all(np.isnan(g["head"])) and np.all(np.isnan(g["bias"]))
    if way != "tokens":
        rows = jax.jit(partial(linear, reduction="none", implementation=way, chunk_size=4))
        np.testing.assert_array_equal(np.isnan(rows(**a)), ~other)
        np.testing.assert_array_equal(rows(**a)[other], rows(**clean)[other])


@pytest.mark.parametrize("way", SUMMED)
@pytest.mark.parametrize("dropped", ["where", "row_weights"])
def test_a_row_that_does_not_count(way, dropped):
    """Exactly 0 whatever it holds, to second order too."""
    a = arguments_of(OPTIONS["everything"])
    a |= {"where": np.arange(N) != 3} if dropped == "where" else {"row_weights": W_WITHOUT_3}
    a["labels"] = jnp.asarray(np.where(np.arange(N) == 3, 10**6, LABELS).astype(np.int32))
    clean, a["hidden"] = a["hidden"], a["hidden"].at[3].set(jnp.inf)
    if dropped == "row_weights":
        a["labels"] = jnp.asarray(LABELS)
    del a["head_layout"]
    head, bias = a.pop("head"), a.pop("bias")
    a.pop("hidden"), a.pop("ignore_index")

    @jax.jit
    def run(hidden):
        f = lambda *x: linear(*x[:2], bias=x[2], implementation=way, chunk_size=4, **a)
        return jax.value_and_grad(f, (0, 1, 2))(hidden, head, bias)

    for ours, theirs in zip(
        jax.tree.leaves(run(clean.at[3].set(jnp.inf))), jax.tree.leaves(run(clean)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


W_WITHOUT_3 = jnp.asarray(np.where(np.arange(N) == 3, 0, W), jnp.float32)


@pytest.mark.parametrize("way", SUMMED)
@pytest.mark.parametrize("which", ["every fifth", "the first nine", "the last nine"])
def test_impossible_classes(way, which):
    """A bias of −inf: p = 0 and gradient 0 there; on a label, loss +inf and the rest finite."""
    v = np.arange(V)
    out = {"every fifth": v % 5 == 0, "the first nine": v < 9, "the last nine": v >= V - 9}[which]
    labels = np.flatnonzero(~out)[LABELS % np.sum(~out)].astype(np.int32)
    a = arguments_of(dict(bias=np.where(out, -np.inf, BIAS), labels=labels))
    check(a, way, 4)
    a["labels"] = np.where(np.arange(N) == 2, np.flatnonzero(out)[-1], labels)
    value, g = value_and_gradients(fn_cache(partial(linear, implementation=way, chunk_size=4)), a)
    assert value == np.inf
    assert all(np.all(np.isfinite(x)) for x in g.values())


# Classes that a mask excludes


EXCLUDED = {
    "every fifth": np.arange(V) % 5 == 0,
    "the first nine": np.arange(V) < 9,
    "the last nine": np.arange(V) >= V - 9,
}
WAYS_AND_EXCLUDED = chosen(
    product(SUMMED, EXCLUDED),
    *zip(SUMMED, EXCLUDED, strict=True),
    ("vocab", "the first nine"),
    ("vocab", "the last nine"),
)


def excluding(which: str, options: dict[str, Any], layout: str = "dv") -> dict[str, Any]:
    """Arguments with NaN and ∞ in the head and the bias of the excluded classes."""
    out = EXCLUDED[which]
    inside = np.flatnonzero(~out)[LABELS % np.sum(~out)].astype(np.int32)
    kept_labels = np.where(np.arange(N) % 3 == 2, -100, inside).astype(np.int32)
    own = dict(labels=kept_labels if "ignore_index" in options else inside, class_mask=~out)
    a = arguments_of(options | own, layout=layout)
    holes = np.where(np.arange(D)[:, None] == 2, np.inf, np.nan)
    head = np.where(out, holes, HEAD)
    a["head"] = jnp.asarray(head if layout == "dv" else head.T, jnp.float32)
    if "bias" in a:
        a["bias"] = jnp.asarray(np.where(out, np.nan, BIAS), jnp.float32)
    return a


@pytest.mark.parametrize("options", ["everything", pytest.param("plain", marks=pytest.mark.deep)])
@pytest.mark.parametrize(("way", "which"), WAYS_AND_EXCLUDED)
def test_excluded_classes(way, which, options):
    """As a class mask of the dense loss, whatever the head holds there: its gradient is 0."""
    a = excluding(which, OPTIONS[options], "vd" if which == "the last nine" else "dv")
    check(a, way, 4)
    if way != "tokens":
        check(a | dict(reduction="none"), way, 4, cotangent("none"))


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_excluded_and_spare_classes(on_a_gpu, way):
    check(excluding("every fifth", OPTIONS["everything"]), way, 64)


@pytest.mark.parametrize("way", SUMMED)
def test_excluded_classes_are_as_if_there_were_none(way):
    """Smoothing over three real classes; a bias of −inf in its place costs ∞."""
    h, w = jnp.array([[1.0, 2.0]]), jnp.array([[0.1, 0.2, 0.3, 0.0], [0.0, 0.1, -0.1, 0.0]])
    f = partial(linear, h, w, [1], label_smoothing=0.1, implementation=way, chunk_size=3)
    assert f(bias=jnp.array([0.0, 0.0, 0.0, -jnp.inf])) == np.inf
    for mask in ([True, True, True, False], jnp.array([True, True, True, False])):
        assert_close(f(class_mask=mask), 0.9289182, rtol=1e-6)


@pytest.mark.parametrize("way", SUMMED)
def test_a_label_on_an_excluded_class(way):
    """NaN in that row's loss and ∂/∂hidden; the other rows are untouched."""
    a = excluding("every fifth", OPTIONS["bias"])
    del a["head_layout"]
    bad = a | {"labels": np.where(np.arange(N) == 3, 5, a["labels"]).astype(np.int32)}
    run = fn_cache(partial(linear, implementation=way, chunk_size=4))
    (value, g), (_, clean) = (value_and_gradients(run, x) for x in (bad, a))
    other = np.arange(N) != 3
    assert np.isnan(value) and np.all(np.isnan(g["hidden"][3]))
    np.testing.assert_array_equal(g["hidden"][other], clean["hidden"][other])
    np.testing.assert_array_equal(g["head"][:, EXCLUDED["every fifth"]], 0)
    if way != "tokens":
        rows = linear(**bad, implementation=way, chunk_size=4, reduction="none")
        np.testing.assert_array_equal(np.isnan(rows), ~other)


@pytest.mark.parametrize("way", SUMMED)
def test_no_class_is_kept(way):
    """As rows without any class in the dense loss: 0, and gradient 0."""
    a = arguments_of(OPTIONS["everything"] | dict(class_mask=np.zeros(V, bool)))
    value, gradients = value_and_gradients(partial(linear, implementation=way, chunk_size=4), a)
    assert value == 0
    for name in ("hidden", "head", "bias", "class_weights", "row_weights"):
        np.testing.assert_array_equal(gradients[name], 0, name)
    del a["head_layout"]
    assert linear(**a, implementation=way) == 0


@pytest.mark.parametrize("way", SELDOM)
def test_a_mask_for_each_call(way):
    """vmap over masks."""
    h, w = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    labels, masks = jnp.full(N, 11), jnp.asarray(~np.stack(list(EXCLUDED.values())))
    f = lambda h, mask: linear(h, w, labels, class_mask=mask, implementation=way, chunk_size=4)
    mapped = jax.jit(jax.vmap(jax.grad(f), (None, 0)))(h, masks)
    for ours, mask in zip(mapped, masks, strict=True):
        np.testing.assert_allclose(ours, jax.grad(f)(h, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", SUMMED)
def test_distributions_at_fault(way):
    """Mass on an excluded class, NaN: NaN in that row; in a dropped row 0, whatever it holds."""
    a = {k: x for k, x in soft("everything").items() if k not in ("head_layout", "class_weights")}
    clean, a["labels"] = a, a["labels"].at[0, 4].set(0.5).at[jnp.array([1, 2, 4]), 7].set(jnp.nan)
    assert not KEPT[1] and a["row_weights"][4] == 0
    run = fn_cache(partial(linear, implementation=way, chunk_size=4))
    (value, g), (_, clean_g) = (value_and_gradients(run, x) for x in (a, clean))
    bad = np.isin(np.arange(N), [0, 2])
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(g["hidden"]).all(-1), bad)
    np.testing.assert_array_equal(g["hidden"][~bad], clean_g["hidden"][~bad])
    np.testing.assert_array_equal(g["labels"][:, ~SOME][~bad], 0)
    if way != "tokens":
        rows = linear(**a, implementation=way, chunk_size=4, reduction="none")
        np.testing.assert_array_equal(np.isnan(rows), bad)
        np.testing.assert_array_equal(rows == 0, ~KEPT | (np.arange(N) == 4))


@pytest.mark.parametrize(
    ("targets", "way"),
    chosen(
        product(["labels", "distributions"], SUMMED),
        ("distributions", "tokens"),
        ("labels", "reference"),
        ("distributions", "reference"),
    ),
)
def test_a_fault_that_weighs_nothing(targets, way):
    """An invalid target in a row of weight 0: 0 in loss and gradient."""
    a = arguments_of(OPTIONS["rows kept"]) if targets == "labels" else soft("rows kept")
    del a["head_layout"]
    t = jnp.asarray(a["labels"])
    bad = a | {"labels": t.at[4].set(V) if targets == "labels" else t.at[4, 2].set(jnp.nan)}
    run = fn_cache(partial(linear, implementation=way, chunk_size=4))
    (value, g), (clean_value, clean_g) = (value_and_gradients(run, x) for x in (bad, a))
    np.testing.assert_array_equal(value, clean_value)
    for name in ("hidden", "head"):
        np.testing.assert_array_equal(g[name], clean_g[name], name)


def test_rows_of_kept_classes():
    """Log-probabilities, entropies and predictions are those of the classes that are left."""
    out = EXCLUDED["every fifth"]
    a = excluding("every fifth", OPTIONS["soft cap"])
    kept = np.flatnonzero(~out)
    labels = a.pop("labels")
    few = arguments_of(OPTIONS["soft cap"]) | dict(head=a["head"][:, kept], bias=a["bias"][kept])
    del few["labels"]
    renumbered = np.searchsorted(kept, labels)
    rows = jxent.linear_log_probs
    both = lambda fn, y, a: jax.value_and_grad(
        lambda h: sum(x.sum() for x in fn(**{**a, "hidden": h}, labels=y, chunk_size=4))
    )(a["hidden"])
    chex.assert_trees_all_close(both(rows, labels, a), both(rows, renumbered, few), rtol=1e-5)
    ours, theirs = (jxent.linear_predictions(**x, chunk_size=4) for x in (a, few))
    np.testing.assert_array_equal(ours.labels, kept[theirs.labels])
    assert_close(ours.log_probs, f64(theirs.log_probs), rtol=1e-6)

    bad = jnp.asarray(labels).at[2].set(5)
    for number in jax.jit(lambda y: rows(**a, labels=y, chunk_size=4))(bad):
        np.testing.assert_array_equal(np.isnan(number), np.arange(N) == 2)
    a["class_mask"] = np.zeros(V, bool)
    assert all(np.all(number == 0) for number in rows(**a, labels=labels))
    none = jxent.linear_predictions(**a)
    assert np.all(none.labels == -1) and np.all(np.isnan(none.log_probs))


NEGATIVE = np.full((4, 5), 0.25, np.float32)
NEGATIVE[1, 2] = -0.5


def test_errors(unhooked):
    h, w, y = jnp.ones((4, 3)), jnp.ones((3, 5)), np.zeros(4, np.int32)
    wrong: list[tuple[Any, str, dict[str, Any]]] = [
        (ValueError, r"`head` must have shape \[3, V\].*head_layout='vd'", dict(head=w.T)),
        (ValueError, r"`head` must have shape \[V, 3\]", dict(head_layout="vd")),
        (ValueError, "`head_layout`", dict(head_layout="vocab")),
        (ValueError, "no classes", dict(head=jnp.ones((3, 0)))),
        (ValueError, "`hidden` needs an axis", dict(hidden=jnp.float32(1))),
        (TypeError, "`hidden` must be floating", dict(hidden=np.ones((4, 3), int))),
        (ValueError, "`bias` must have shape", dict(bias=jnp.ones(4))),
        (ValueError, "one label a row", dict(labels=np.zeros((4, 1), np.int32))),
        (TypeError, "must be integers", dict(labels=np.zeros(4))),
        (ValueError, r"labels`\[2\] = 5 is outside", dict(labels=np.array([0, 1, 5, 7]))),
        (ValueError, "4294967297 is outside", dict(labels=np.array([0, 1, 2, 2**32 + 1]))),
        (TypeError, r"must be integers, got float32\[4\]", dict(labels=jnp.zeros(4))),
        (ValueError, "must be integer labels of shape", dict(labels=jnp.zeros((4, 4)))),
        (ValueError, "cast one-hot targets to float", dict(labels=np.eye(5, dtype=int)[y])),
        (ValueError, r"`labels`\[1, 2\] = -0.5 must not be negative", dict(labels=NEGATIVE)),
        (ValueError, "`ignore_index` goes with", dict(labels=abs(NEGATIVE), ignore_index=0)),
        (ValueError, "exclude classes, pass class_mask=", dict(where=np.ones((4, 5), bool))),
        (TypeError, "`class_mask` must be boolean, got", dict(class_mask=np.ones(5))),
        (ValueError, r"`class_mask` must have shape \[5\]", dict(class_mask=np.ones((4, 5), bool))),
        (ValueError, "`chunk_size` must be at least 1", dict(chunk_size=0)),
        (TypeError, "`chunk_size` must be a static", dict(chunk_size=2.0)),
        (ValueError, "`implementation` must be", dict(implementation="fast")),
        (ValueError, "gives a sum of rows", dict(implementation="tokens", reduction="none")),
        (ValueError, "`normalizer` replaces", dict(normalizer=2.0, reduction="sum")),
    ]
    for error, message, more in wrong:
        with pytest.raises(error, match=message):
            linear(**{"hidden": h, "head": w, "labels": y, **more})


@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_forward_mode_says_what_to_do(way):
    f = lambda h: linear(h, jnp.ones((3, 5)), np.zeros(4, np.int32), implementation=way)
    with pytest.raises(TypeError, match="use implementation='reference'"):
        jax.jvp(f, (jnp.ones((4, 3)),), (jnp.ones((4, 3)),))


def test_forward_mode_of_the_reference():
    h, w = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    f = lambda h: linear(h, w, LABELS, implementation="reference")
    forward = jax.jacfwd(f)(h)
    assert_close(forward, f64(jax.grad(lambda h: linear(h, w, LABELS))(h)), rtol=1e-4, scale=0.1)


# Transforms, to third order


def plain(hidden, head, labels, *, bias=None, class_weights=None, row_weights=None, kept, g):
    """The same formula in plain jnp: smoothing 0.1, z-loss 0.1, soft cap 3."""
    z = 3 * jnp.tanh((hidden @ head + bias[None, :]) / 3)
    lse = jax.nn.logsumexp(z, axis=-1)
    nll = lse - jnp.take_along_axis(z, labels[:, None], -1)[:, 0]
    c = class_weights
    spread = jnp.sum(c[None, :] * (lse[:, None] - z), axis=-1)
    rows = 0.9 * c[labels] * nll + 0.1 / V * spread + 0.1 * lse**2
    return jnp.sum(g * jnp.where(kept, row_weights * rows, 0))


@pytest.mark.deep
@pytest.mark.parametrize("inside", ["scan", "jit", "remat"])
@pytest.mark.parametrize("way", SUMMED)
def test_derivatives_to_third_order(x64, way, inside):
    """By all arguments at once; a row with tied logits, a dropped one, one of weight 0."""
    x = dict(hidden=HIDDEN, head=HEAD, bias=BIAS, class_weights=C, row_weights=W)
    x["hidden"] = np.where(np.arange(N)[:, None] == 5, 0, x["hidden"])
    x["bias"] = np.where(np.arange(V) < 3, BIAS.max(), BIAS)
    x = {name: jnp.asarray(a, jnp.float64) for name, a in x.items()}
    g = jnp.asarray(np.random.default_rng(3).standard_normal(N))
    reduction = "sum" if way == "tokens" else "none"

    def ours(x):
        x = dict(x, row_weights=x["row_weights"] * g) if way == "tokens" else x
        f = partial(
            linear,
            labels=LABELS,
            where=KEPT,
            label_smoothing=0.1,
            z_loss=0.1,
            logit_softcap=3.0,
            reduction=reduction,
            implementation=way,
            chunk_size=5,
        )
        if inside == "remat":
            return jnp.sum(jax.checkpoint(lambda x: f(**x))(x) * (1 if way == "tokens" else g))
        if inside == "jit":
            return jnp.sum(f(**x) * (1 if way == "tokens" else g))

        def step(total, scale):
            y = dict(x, hidden=x["hidden"] * scale)
            return total + jnp.sum(f(**y) * (1 if way == "tokens" else g)), None

        return jax.lax.scan(step, 0.0, jnp.array([1.0, 0.5]))[0]

    def theirs(x):
        with relaxed():
            f = lambda x: plain(labels=LABELS, kept=KEPT, g=g, **x)
            if inside != "scan":
                return f(x)
            return f(x) + f(dict(x, hidden=0.5 * x["hidden"]))

    flat, unravel = ravel_pytree(x)
    directions = [jnp.asarray(np.random.default_rng(i).standard_normal(flat.size)) for i in (1, 2)]

    def derivatives(f):
        first = jax.grad(lambda v: f(unravel(v)))
        second = jax.grad(lambda v: jnp.vdot(first(v), directions[0]))
        third = jax.grad(lambda v: jnp.vdot(second(v), directions[1]))
        return quickly(lambda v: (first(v), second(v), third(v)))(flat)

    for order, (a, b) in enumerate(zip(derivatives(ours), derivatives(theirs), strict=True), 1):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max(), err_msg=str(order))
        assert np.abs(b).max() > 1e-3


@pytest.mark.parametrize("way", SELDOM)
def test_other_transforms(way):
    """vmap, a Hessian-vector product forward over reverse, the pull-back called twice, donation."""
    a = arguments_of(OPTIONS["everything"])
    head, fixed = a.pop("head"), {k: x for k, x in a.items() if k != "hidden"}
    f = partial(linear, **fixed, implementation=way, chunk_size=5)
    many = jnp.stack([a["hidden"], 0.5 * a["hidden"]])
    g = jax.jit(jax.grad(f, (0, 1)))
    mapped = jax.jit(jax.vmap(jax.grad(f, (0, 1)), (0, None)))(many, head)
    for i in range(2):
        for ours, theirs in zip(mapped, g(many[i], head), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-5, atol=1e-6)
    one = lambda h: jax.grad(f)(h, head)
    hvp = jax.jvp(one, (a["hidden"],), (many[1],))[1]
    back = jax.grad(lambda h: jnp.vdot(one(h), many[1]))(a["hidden"])
    np.testing.assert_allclose(hvp, back, rtol=1e-4, atol=1e-6)
    _, pull = jax.vjp(f, a["hidden"], head)
    first, twice = pull(jnp.float32(1)), pull(jnp.float32(2))
    again = pull(jnp.float32(1))
    for x, y, z in zip(first, twice, again, strict=True):
        np.testing.assert_array_equal(x, z)
        np.testing.assert_allclose(2 * x, y, rtol=1e-6)
    kept = np.asarray(g(a["hidden"], head)[1])
    donated = jax.jit(jax.grad(f, 1), donate_argnums=1)
    np.testing.assert_allclose(donated(a["hidden"], jnp.array(head)), kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", SUMMED)
@pytest.mark.parametrize("check_vma", first(1, [True, False]), ids=["checked", "unchecked"])
@pytest.mark.parametrize("inside", [False, True], ids=["grad outside", "grad inside"])
def test_shard_map(inside, check_vma, way):
    """`axis_name`: every device has the mean of the whole batch, and its gradients."""
    shards, rows = 4, P("data")
    mesh = jax.make_mesh((shards,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    h, labels = jnp.asarray(eighths(16, D), jnp.float32), rng.integers(0, V, 16).astype(np.int32)
    kept, head = np.arange(16) % 5 != 0, jnp.asarray(HEAD, jnp.float32)

    def loss(h, head, labels, kept):
        return linear(
            h, head, labels, where=kept, axis_name="data", implementation=way, chunk_size=3
        )

    def both(*arguments):
        value, (dh, dw) = jax.value_and_grad(loss, (0, 1))(*arguments)
        if not check_vma:
            # Here psum is its own transpose: plain jnp code counts every device as well.
            dh, dw = dh / shards, jax.lax.psum(dw, "data") / shards
        return value, (dh, dw)

    sharded = partial(
        jax.shard_map, mesh=mesh, in_specs=(rows, P(), rows, rows), check_vma=check_vma
    )
    if inside:
        run = sharded(both, out_specs=(P(), (rows, P())))
    else:
        run = jax.value_and_grad(sharded(loss, out_specs=P()), (0, 1))
    ours = jax.jit(run)(h, head, labels, kept)
    theirs = jax.value_and_grad(partial(linear, where=kept), (0, 1))(h, head, labels)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


# What is computed and what is held


PIECE = 32


def traced(
    way: str,
    wrt: tuple[int, ...],
    layout: str = "dv",
    order: int = 1,
    dtype: Any = jnp.float32,
    **more: Any,
) -> Any:
    shape = (BIG["d"], BIG["v"]) if layout == "dv" else (BIG["v"], BIG["d"])
    shapes = (BIG["n"], BIG["d"]), shape, (BIG["v"],)
    arguments = tuple(jnp.ones(shape, dtype) for shape in shapes)
    labels = jnp.zeros(BIG["n"], jnp.int32)

    def f(h, w, b):
        options = dict(implementation=way, head_layout=layout, chunk_size=PIECE) | more
        return linear(h, w, labels, bias=b, **options)

    for _ in range(order - 1):
        f = lambda h, w, b, f=f: jnp.vdot(jax.grad(f, 1)(h, w, b), w + 1)
    return jax.make_jaxpr(jax.grad(f, wrt) if wrt else f)(*arguments)


@pytest.mark.parametrize("layout", ["dv", "vd"])
@pytest.mark.parametrize(
    ("wrt", "needed"), [((), 0), ((0,), 1), ((1,), 1), ((2,), 0), ((0, 1, 2), 2)]
)
def test_products_that_nobody_asks_for(layout, wrt, needed):
    """Frozen head, frozen hidden, loss alone; the vocabulary way computes logits twice."""
    everything = dict(label_smoothing=0.1, z_loss=0.1, logit_softcap=5.0)
    assert products(traced("tokens", wrt, layout, **everything)) == 1 + needed
    assert products(traced("vocab", wrt, layout, **everything)) == 1 + bool(wrt) + needed


@pytest.mark.parametrize("way", SUMMED)
def test_precision_reaches_every_product(way):
    jaxpr = traced(way, (0, 1), precision="highest")
    dots = [e for e, _ in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(dots) >= 3 and all(e.params["precision"] == highest for e in dots)


@pytest.mark.parametrize("dtype", first(1, [jnp.bfloat16, jnp.float32, jnp.float16]))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("options", ["plain", "everything"])
@pytest.mark.parametrize("way", ["tokens", "vocab"])
def test_no_array_of_all_logits(way, options, order, dtype):
    """Of operands and arrays of any dtype, in the loss, its gradient, and the gradient of that."""
    more = dict(label_smoothing=0.1, z_loss=0.1, logit_softcap=5.0) if options != "plain" else {}
    more["dtype"] = dtype
    held = {"tokens": PIECE * BIG["v"], "vocab": PIECE * BIG["n"]}[way]
    assert largest(traced(way, (0, 1), order=order, **more)) <= held
    whole = largest(traced("reference", (0, 1), order=order, **more))
    assert whole >= BIG["n"] * BIG["v"] > 2 * held, "nothing was counted"


def temporary(fn: Any, n: int, d: int, v: int, dtype: str = "float32", wrt: Any = (0, 1)) -> int:
    h, w = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((d, v), dtype)
    y = jax.ShapeDtypeStruct((n,), jnp.int32)
    run = jax.value_and_grad(fn, wrt) if wrt else fn
    return jax.jit(run).lower(h, w, y).compile().memory_analysis().temp_size_in_bytes


EVERY_OPTION = dict(label_smoothing=0.1, z_loss=1e-4, logit_softcap=30.0, ignore_index=-100)


@pytest.mark.parametrize(("way", "share"), [(None, 15), ("vocab", 40)])
def test_temporary_memory(way, share):
    """Beside dense at a shape of its own; with every option no more than a few per cent."""
    shape = (8192, 512, 32768)
    dense = temporary(lambda h, w, y: jxent.cross_entropy(h @ w, y), *shape)
    ours = temporary(partial(linear, implementation=way), *shape)
    assert ours * share <= dense
    # The slope of a soft cap is that of the logits before it: one chunk of them more.
    chunk = 4 * 512 * 32768
    uncapped = EVERY_OPTION | dict(logit_softcap=None)
    for options, more in ((uncapped, 0), (EVERY_OPTION, chunk)):
        every = temporary(partial(linear, implementation=way, **options), *shape)
        assert every <= 1.05 * ours + more
    assert dense >= 4 * 8192 * 32768, "nothing was counted"


def test_temporary_memory_does_not_grow_with_rows():
    """Beyond one chunk; and a loss alone holds no copy of the head, in either layout."""
    small, large = (temporary(linear, n, 64, 32768) for n in (1024, 8192))
    assert large - small <= 8 * 4 * 64 * 8192
    for layout in ("dv", "vd"):
        shape = (512, 40001) if layout == "dv" else (40001, 512)
        h, w = (
            jax.ShapeDtypeStruct((64, 512), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
        y = jax.ShapeDtypeStruct((64,), jnp.int32)
        for way in ("tokens", "vocab"):
            fn = partial(linear, head_layout=layout, implementation=way)
            held = jax.jit(fn).lower(h, w, y).compile().memory_analysis().temp_size_in_bytes
            assert held < 4 * 512 * 40001 / 2, (layout, way)


@pytest.mark.parametrize("dtype", first(1, ["float32", "float16"]))
@pytest.mark.parametrize(("way", "size"), [("tokens", 128), ("vocab", 256)])
def test_no_array_beside_the_distributions(way, size, dtype):
    """With every option; the gradient by them is an array of their size, where it is wanted."""
    n, d, v = 8192, 32, 16384
    shapes = (n, d), (d, v), (n, v), (v,), (n,)
    dtypes = "float32", "float32", dtype, "float32", "float32"
    arguments = [*map(jax.ShapeDtypeStruct, shapes, dtypes)]
    options = EVERY_OPTION | dict(class_mask=np.arange(v) % 7 != 0, where=np.arange(n) % 7 != 0)
    del options["ignore_index"]

    def loss(h, w, t, c, rows):
        more = dict(class_weights=c, row_weights=rows, implementation=way, chunk_size=size)
        return linear(h, w, t, **options, **more)

    def held(run):
        return jax.jit(run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    for run in (loss, jax.grad(loss, (0, 1, 3, 4))):
        assert held(run) < 4 * n * v / 2
    assert held(jax.grad(loss, 2)) >= n * v, "nothing was counted"


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_pieces(monkeypatch, backend):
    """Each entry is owned once, in order, and the last piece ends where the axis does."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for length, size in [*product(range(1, 30), range(1, 32)), (1000, 300), (50304, 8192)]:
        pieces = split_axis(length, size)
        assert pieces.size <= size and pieces.number == -(-length // size)
        starts = [int(pieces.start(jnp.int32(i))) for i in range(pieces.number)]
        owned = [int(pieces.owned(jnp.int32(i))) for i in range(pieces.number)]
        assert starts[0] == 0 and starts[-1] + pieces.size == length
        assert [a + n for a, n in zip(starts, owned, strict=True)][:-1] == starts[1:]
    assert split_axis(0, 5) == (0, 1, 0)
    assert split_axis(50304, 8192) == (50304, 7, 7187 if backend == "cpu" else 7296)
    assert split_axis(1000, 520) == (1000, 2, 500)


def test_budgets(monkeypatch):
    """More rows a chunk for few classes, on an accelerator more; never less than keeps it busy."""
    assert tiling.default_tile_size("rows", 32768) == 512 == tiling.default_tile_size("rows", 10**6)
    assert tiling.default_tile_size("rows", 1000) > 10000
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert tiling.default_tile_size("rows", 256000) == 2048


# Log-probabilities, entropies, predictions


def log_softmax(options: dict[str, Any]) -> np.ndarray:
    z = HIDDEN @ HEAD + (BIAS if "bias" in options else 0)
    if "logit_softcap" in options:
        z = 3 * np.tanh(z / 3)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("size", [1, 5, 23, None])
@pytest.mark.parametrize("options", ["plain", "soft cap"])
def test_log_probs(options, size):
    """Both numbers, and their gradients through one call."""
    options = OPTIONS[options]
    a = arguments_of(options)
    logp = log_softmax(options)
    p, H = np.exp(logp), -(np.exp(logp) * logp).sum(-1)
    u, v = np.random.default_rng(0).standard_normal((2, N))

    def both(h, w):
        given = {**a, "hidden": h, "head": w}
        out = jxent.linear_log_probs(**given, chunk_size=size)
        total = jnp.vdot(jnp.float32(u), out.log_probs) + jnp.vdot(jnp.float32(v), out.entropy)
        return total, out

    (_, out), (dh, dw) = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(
        a["hidden"], a["head"]
    )
    assert_close(out.log_probs, logp[np.arange(N), LABELS], rtol=1e-6)
    assert_close(out.entropy, H, rtol=1e-6)
    dz = u[:, None] * (np.eye(V)[LABELS] - p) - v[:, None] * p * (logp + H[:, None])
    if "logit_softcap" in options:
        z = HIDDEN @ HEAD + BIAS
        dz = dz * (1 - np.tanh(z / 3) ** 2)
    assert_close(dh, dz @ HEAD.T, rtol=RTOL, scale=np.abs(dz) @ np.abs(HEAD.T), cancels=True)
    assert_close(dw, HIDDEN.T @ dz, rtol=RTOL, scale=np.abs(HIDDEN.T) @ np.abs(dz), cancels=True)


def test_entropy_where_it_is_small_and_where_it_is_whole():
    """Confident rows keep their digits; equal logits give log V; −inf classes add nothing."""
    h, w = jnp.eye(2), jnp.zeros((2, 300)).at[0, 7].set(40.0)
    bias = jnp.zeros(300).at[5].set(-jnp.inf)
    for b, classes in ((None, 300), (bias, 299)):
        out = jxent.linear_log_probs(h, w, np.array([7, 3]), bias=b, chunk_size=7)
        S = (classes - 1) * np.exp(-40.0)
        assert_close(out.entropy, [np.log1p(S) + 40 * S / (1 + S), np.log(classes)], rtol=2e-6)
        assert_close(out.log_probs, [-np.log1p(S), -np.log(classes)], rtol=2e-6)
        g = jax.grad(lambda h, b: jxent.linear_log_probs(h, w, [7, 3], bias=b).entropy.sum())(h, b)
        assert np.all(np.isfinite(g))


def test_dropped_and_faulty_log_probs():
    a = arguments_of({})
    labels = np.where(np.arange(N) == 2, V, LABELS)
    run = jax.jit(lambda labels: jxent.linear_log_probs(**{**a, "labels": labels}, where=KEPT))
    for number in run(jnp.asarray(labels)):
        assert np.all(np.isnan(number) == (np.arange(N) == 2))
        assert np.all((number == 0) == ~KEPT)


@pytest.mark.parametrize("size", [1, 4, 5, None])
def test_predictions(size):
    a = {k: x for k, x in arguments_of(OPTIONS["bias"]).items() if k != "labels"}
    a["hidden"] = a["hidden"].at[2].set(jnp.nan)
    out = jxent.linear_predictions(**a, chunk_size=size)
    logp = log_softmax(OPTIONS["bias"])
    good = np.arange(N) != 2
    np.testing.assert_array_equal(out.labels[good], logp.argmax(-1)[good])
    assert_close(out.log_probs[good], logp.max(-1)[good], rtol=1e-6)
    assert out.labels[2] == -1 and np.isnan(out.log_probs[2])
    tied = jxent.linear_predictions(jnp.ones((3, 2)), jnp.zeros((2, 9)), chunk_size=size)
    np.testing.assert_array_equal(tied.labels, 0)
    impossible = jnp.full(9, -jnp.inf)
    none = jxent.linear_predictions(
        jnp.ones((3, 2)), jnp.zeros((2, 9)), bias=impossible, chunk_size=size
    )
    assert np.all(none.labels == -1) and np.all(np.isnan(none.log_probs))


def test_a_prediction_is_differentiable_at_its_class():
    h, w = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    labels = jxent.linear_predictions(h, w).labels
    ours = jax.grad(lambda h: jxent.linear_predictions(h, w, chunk_size=5).log_probs.sum())(h)
    theirs = jax.grad(lambda h: jxent.linear_log_probs(h, w, labels).log_probs.sum())(h)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
