"""Every JAX transform gives the gradients of the oracle, to second order and (deep) third."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from assertions import assert_close, f64
from cases import (
    LABELS,
    LOGITS,
    OFTEN,
    ROW_LOSSES,
    TRAINING_LOSSES,
    C,
    Case,
    N,
    V,
    cast,
    function,
    split,
    value_and_gradients,
)
from compiling import quickly
from jax import export
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from sampling import first

import jxent

PROMISE = 1e-5


def named(cases: dict[str, Case], often: tuple[str, ...] = OFTEN) -> list[Any]:
    marks = lambda name: () if name in often else (pytest.mark.deep,)
    return [pytest.param(case, id=name, marks=marks(name)) for name, case in cases.items()]


def cotangent(case: Case) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(case.shape), jnp.float32)


# Gradients are rounded to the inputs' dtype, each term of a sum by itself; a scan adds up three.
ROUNDED = {"float32": 0.0, "bfloat16": 4 * 2.0**-8}


def assert_gradients(case: Case, gradients: dict[str, Any], g: Any) -> None:
    expected = case.expected(cotangent=f64(g))
    for name, gradient in gradients.items():
        dtype = case.arguments[name].dtype.name
        assert_close(
            gradient,
            expected.gradient[name],
            rtol=PROMISE + ROUNDED[dtype],
            scale=expected.scale.get(name),
            dtype=dtype,
            cancels=name == "class_weights" or dtype == "bfloat16",
            err_msg=name,
        )


# Each gives the gradients Jᵀg of f at x, by way of one transform. `case` tells what is per row.
Transform = Callable[[Case, Callable[[Any], jax.Array], Any, jax.Array], Any]


def by_grad(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return jax.grad(lambda x: jnp.sum(g * f(x)))(x)


def by_jacfwd(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return jax.tree.map(lambda J: jnp.tensordot(g, J, g.ndim), jax.jacfwd(f)(x))


def by_jacrev(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    rows = lambda J: jnp.tensordot(g, J.astype(g.dtype), g.ndim)
    return jax.tree.map(rows, jax.jacrev(f)(x))


def by_directions(jvp: Callable[[Any], jax.Array], x: Any, g: jax.Array) -> Any:
    """Jᵀg entry by entry: g·J e for each unit vector e."""
    flat, unravel = ravel_pytree(x)
    directions = jnp.eye(flat.size, dtype=flat.dtype)
    return unravel(jax.lax.map(lambda e: jnp.sum(g * jvp(unravel(e))), directions))


def by_jvp(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return by_directions(lambda e: jax.jvp(f, (x,), (e,))[1], x, g)


def by_linearize(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return by_directions(jax.linearize(f, x)[1], x, g)


def by_transposed_linearize(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return jax.linear_transpose(jax.linearize(f, x)[1], x)(g)[0]


def by_remat(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    return by_grad(case, jax.checkpoint(f), x, g)


def by_cond(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    chosen = lambda x: jax.lax.cond(jnp.sum(g) < jnp.inf, f, lambda x: jnp.zeros_like(g), x)
    return by_grad(case, chosen, x, g)


def per_row(case: Case) -> tuple[Any, Any, Any]:
    """One row's loss as a function of (its share of x and of the rest, what rows share)."""
    _, arrays, static = split(case.arguments)
    own = lambda tree: {k: x for k, x in tree.items() if np.shape(x)[:1] == (N,) and k != "alpha"}
    shared = lambda tree: {k: x for k, x in tree.items() if k not in own(tree)}
    fn = lambda own, rest, common: case.fn(**own, **rest, **common, **dict(static))
    return fn, own, (own(arrays), shared)


def by_vmap(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    fn, own, (rest, shared) = per_row(case)
    rows = lambda x: jax.vmap(fn, (0, 0, None))(own(x), rest, shared(x))
    return by_grad(case, rows, x, g)


def by_scan(case: Case, f: Any, x: Any, g: jax.Array) -> Any:
    fn, own, (rest, shared) = per_row(case)

    def rows(x: Any) -> jax.Array:
        step = lambda total, row: (total + 1, fn(*row, shared(x)))
        return jax.lax.scan(step, jnp.zeros(()), (own(x), rest))[1]

    return by_grad(case, rows, x, g)


def devices(n: int) -> Any:
    return jax.make_mesh(
        (n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:n]
    )


def by_shard_map(case: Case, f: Any, x: Any, g: jax.Array, check_vma: bool = True) -> Any:
    fn, own, (rest, shared) = per_row(case)
    rows = jax.shard_map(
        fn,
        mesh=devices(N),
        in_specs=(P("data"), P("data"), P()),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    return by_grad(case, lambda x: rows(own(x), rest, shared(x)), x, g)


def by_gradient_in_shard_map(case: Case, f: Any, x: Any, g: jax.Array, check_vma: bool = True):
    """∂/∂x of a device's own rows, taken inside: what rows share is summed over the mesh."""
    fn, own, (rest, shared) = per_row(case)

    def inside(x: Any, rest: Any, common: Any, g: jax.Array) -> Any:
        of_x, of_common = jax.grad(lambda x, c: jnp.sum(g * fn(x, rest, c)), (0, 1))(x, common)
        if not check_vma:  # with it on, JAX has summed them
            of_common = jax.lax.psum(of_common, "data")
        return of_x, of_common

    of_x, of_common = jax.shard_map(
        inside,
        mesh=devices(N),
        in_specs=(P("data"), P("data"), P(), P("data")),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )(own(x), rest, shared(x), g)
    return {**of_x, **of_common}


ROW_TRANSFORMS: dict[str, Transform] = {
    "grad": by_grad,
    "jacrev": by_jacrev,
    "jacfwd": by_jacfwd,
    "jvp": by_jvp,
    "linearize": by_linearize,
    "transposed linearize": by_transposed_linearize,
    "vmap": by_vmap,
    "scan": by_scan,
    "cond": by_cond,
    "remat": by_remat,
    "shard_map": by_shard_map,
    "shard_map, unchecked": functools.partial(by_shard_map, check_vma=False),
    "grad in shard_map": by_gradient_in_shard_map,
    "grad in shard_map, unchecked": functools.partial(by_gradient_in_shard_map, check_vma=False),
}


# What a loss's own rule may get wrong by itself; the others are left to the first two losses.
ESSENTIAL = ("jacrev", "jacfwd", "vmap", "shard_map")
ROW_CASES = [
    pytest.param(
        *case.values,
        transform,
        id=f"{case.id}, {transform}",
        marks=case.marks
        if "classes kept" in case.id or transform in ESSENTIAL
        else pytest.mark.deep,
    )
    for case in named(ROW_LOSSES)
    for transform in ROW_TRANSFORMS
]


# In half precision the rules are the same, by fewer transforms; higher orders are in float64.
HALF = ("jacrev", "vmap", "grad", "scan")


def compiled(transform: str) -> Any:
    """`jax.jit`: the other transforms of a loss are compiled in less, only their rules differ."""
    return jax.jit if transform == "grad" else quickly


def in_each_dtype(cases: list[Any]) -> list[Any]:
    """The cases in float32, and those of some transforms in bfloat16 in the exhaustive run."""
    half = [
        pytest.param(*case.values, "bfloat16", id=f"{case.id}, bfloat16", marks=pytest.mark.deep)
        for case in cases
        if case.values[1] in HALF
    ]
    wide = [pytest.param(*c.values, "float32", id=c.id, marks=c.marks) for c in cases]
    return wide + half


@pytest.mark.parametrize(("case", "transform", "dtype"), in_each_dtype(ROW_CASES))
def test_row_losses(case, transform, dtype):
    case = Case(case.fn, cast(case.arguments, dtype))
    f, x = function(case)
    g = cotangent(case)
    run = compiled(transform)(lambda x, g: (f(x), ROW_TRANSFORMS[transform](case, f, x, g)))
    value, gradients = run(x, g)
    expected = case.expected()
    assert_close(value, expected.value, rtol=PROMISE, scale=expected.scale["value"])
    assert_gradients(case, gradients, g)


TRAINING_TRANSFORMS: dict[str, Transform] = {
    "grad": by_grad,
    "jacrev": by_jacrev,
    "cond": by_cond,
    "remat": by_remat,
    "vmap": lambda case, f, x, g: jax.tree.map(
        lambda both: both[1], jax.vmap(lambda x: by_grad(case, f, x, g))(twice(x))
    ),
    "scan": lambda case, f, x, g: jax.grad(
        lambda x: jnp.sum(g * jax.lax.scan(lambda s, _: (s + f(x), None), 0 * g, None, 3)[0]) / 3
    )(x),
}


def twice(x: Any) -> Any:
    """Two examples, the second of which is x."""
    return jax.tree.map(lambda a: jnp.stack([a + 1, a]), x)


TRAINING_CASES = [
    pytest.param(*case.values, transform, id=f"{case.id}, {transform}", marks=case.marks)
    for case in named(TRAINING_LOSSES)
    for transform in TRAINING_TRANSFORMS
]


@pytest.mark.parametrize(("case", "transform", "dtype"), in_each_dtype(TRAINING_CASES))
def test_training_losses(case, transform, dtype):
    case = Case(case.fn, cast(case.arguments, dtype))
    f, x = function(case)
    g = cotangent(case)
    run = compiled(transform)(lambda x, g: TRAINING_TRANSFORMS[transform](case, f, x, g))
    gradients = run(x, g)
    assert_gradients(case, gradients, g)


# JAX's own alarms.


@pytest.mark.parametrize("name", OFTEN)
def test_no_nan_on_the_way(name):
    """`jax_debug_nans` finds none on clean inputs."""
    case = {**ROW_LOSSES, **TRAINING_LOSSES}[name]
    with jax.debug_nans(True):
        value_and_gradients(case.fn, cast(case.arguments, jnp.float32))


# Export: one program for every platform, read back and called where we are.

PLATFORMS = ("cpu", "cuda", "tpu")


EXPORTED = ("labels, classes kept", "kl", "labels, everything, mean", "tokens, mean")


@pytest.mark.parametrize("case", named({**ROW_LOSSES, **TRAINING_LOSSES}, often=EXPORTED))
def test_export(case, unhooked):
    """Loss and gradients come back from a file, and its own derivative does too."""
    case = Case(case.fn, cast(case.arguments, jnp.float32))
    f, x = function(case)
    g = cotangent(case)

    def both(x: Any, g: jax.Array) -> Any:
        value, pull_back = jax.vjp(f, x)
        return value, pull_back(g)[0]

    exported = export.export(jax.jit(both), platforms=PLATFORMS)(x, g)
    assert exported.platforms == PLATFORMS
    read = export.deserialize(exported.serialize())
    for ours, direct in zip(
        jax.tree.leaves(jax.jit(read.call)(x, g)), jax.tree.leaves(jax.jit(both)(x, g)), strict=True
    ):
        np.testing.assert_allclose(ours, direct, rtol=1e-6, atol=1e-7)
    once_more = export.deserialize(export.export(jax.jit(f))(x).serialize(vjp_order=1))
    assert_gradients(case, jax.vjp(once_more.call, x)[1](g)[0], g)


# Higher order, in float64 and by all arguments at once, against differences of the oracle.

# h² of curvature and ε/h of rounding, h = 1e-5.
STEP, DIFFERENCE = 1e-5, 2e-8
SECOND: dict[str, Callable[..., Any]] = {
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


def differentiated(case: Case) -> list[str]:
    """The arguments that may move: not targets of excluded classes, where mass is a fault."""
    floats = split(case.arguments)[0]
    masked = np.ndim(case.arguments.get("where")) == 2 or "class_mask" in case.arguments
    return [k for k in floats if not (masked and k in ("labels", "targets"))]


def flat_function(case: Case, g: np.ndarray) -> tuple[Any, Any, Any]:
    """(Σ g·loss of a flat vector of all that moves, its gradient by the oracle, the vector)."""
    moving = {k: np.asarray(case.arguments[k]) for k in differentiated(case)}
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, moving))
    f, x = function(Case(case.fn, cast(case.arguments, jnp.float64)))
    loss = lambda v: jnp.sum(g * f({**x, **unravel(v)}))

    def gradient(v: np.ndarray) -> np.ndarray:
        given = {**case.arguments, **jax.tree.map(np.asarray, unravel(jnp.asarray(v)))}
        by_name = case.expected(given, cotangent=g).gradient
        return np.concatenate([np.ravel(by_name[k]) for k in sorted(moving)])

    return loss, gradient, np.asarray(flat)


def central(fn: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    steps = STEP * np.eye(at.size)
    return np.stack([(fn(at + e) - fn(at - e)) / (2 * STEP) for e in steps], axis=-1)


def assert_near(actual: Any, expected: np.ndarray) -> None:
    size = 1 + np.max(np.abs(expected))
    assert np.max(np.abs(expected)) > 1e3 * DIFFERENCE * size, "nothing was compared"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=DIFFERENCE * size)


SECOND_CASES = [
    pytest.param(
        *case.values,
        order,
        id=f"{case.id}, {order}",
        marks=case.marks if order == "reverse over reverse" else pytest.mark.deep,
    )
    for cases, orders in ((ROW_LOSSES, list(SECOND)), (TRAINING_LOSSES, list(SECOND)[:2]))
    for case in named(cases)
    for order in (orders if case.id in OFTEN else orders[:2])
]


@pytest.mark.parametrize(("case", "order"), SECOND_CASES)
def test_second_derivatives(case, order, x64):
    g = f64(cotangent(case))
    loss, gradient, at = flat_function(case, g)
    assert_near(quickly(SECOND[order](loss))(at), central(gradient, at))


@pytest.mark.deep
@pytest.mark.parametrize("name", [*OFTEN, "linear distillation, none"])
def test_third_derivatives(name, x64):
    """Against differences of the second ones, which are the oracle's."""
    case = {**ROW_LOSSES, **TRAINING_LOSSES}[name]
    # Differences step below a weight of 0, and a mean by a negative weight is NaN.
    positive = {
        key: np.maximum(x, 0.25) for key, x in case.arguments.items() if key.endswith("_weights")
    }
    case = Case(case.fn, {**case.arguments, **positive})
    loss, _, at = flat_function(case, f64(cotangent(case)))
    second = quickly(jax.jacrev(jax.jacrev(loss)))
    third = quickly(jax.jacrev(jax.jacrev(jax.jacrev(loss))))
    assert_near(third(at), central(lambda v: np.asarray(second(v)), at))


@pytest.mark.parametrize("name", ["labels, everything, mean", "distributions, everything, none"])
@pytest.mark.parametrize("order", first(1, [2, 3]))
def test_derivatives_inside_a_scan(name, order, x64):
    """JAX may drop custom rules from the known part of a scan: what is left must be right too."""
    case = TRAINING_LOSSES[name]
    loss, _, at = flat_function(case, f64(cotangent(case)))
    along = np.random.default_rng(2).standard_normal(at.size)

    def scanned(v: jax.Array) -> jax.Array:
        step = lambda total, scale: (total + loss(scale * v), None)
        return jax.lax.scan(step, 0.0, jnp.array([1.0, 0.75]))[0]

    def derivative(f: Callable[..., jax.Array]) -> Any:
        for _ in range(order - 1):
            f = lambda v, f=f: jnp.vdot(jax.grad(f)(v), along)
        return quickly(jax.grad(f))(at)

    ours, once = derivative(scanned), derivative(lambda v: loss(v) + loss(0.75 * v))
    np.testing.assert_allclose(ours, once, rtol=1e-9, atol=1e-9 * np.abs(once).max())


@pytest.mark.parametrize(
    ("fault", "inside"),
    first(2, [("label", "scan"), ("NaN", "here"), ("label", "here"), ("inf", "here")]),
)
def test_a_dropped_row_to_second_order(fault, inside, x64):
    """Whatever a dropped row holds, the second derivatives are those without it."""
    options = dict(label_smoothing=0.1, z_loss=0.1, logit_softcap=4.0)
    z = jnp.asarray(LOGITS)
    labels = jnp.asarray(LABELS).at[2].set(-100 if fault == "label" else 1)
    bad = z if fault == "label" else z.at[2, 1].set(float(fault))
    kept = np.arange(N) != 2

    def loss(z: Any, c: Any, w: Any, labels: Any, where: Any) -> Any:
        f = lambda z: jxent.cross_entropy(
            z, labels, where=where, class_weights=c, row_weights=w, **options
        )
        if inside == "here":
            return f(z)
        return jax.lax.scan(lambda t, s: (t + f(s * z), None), 0.0, jnp.ones(1))[0]

    def twice(z: Any, labels: Any, where: Any, w: Any) -> Any:
        def squares(z: Any, c: Any, w: Any) -> Any:
            gradients = jax.grad(loss, (0, 1, 2))(z, c, w, labels, where)
            return sum(jnp.sum(jnp.sin(g)) for g in gradients)

        return jax.jit(jax.grad(squares, (0, 1, 2)))(z, jnp.asarray(C), w)

    w = jnp.asarray([0.5, 1.5, 2.0, 0.7])
    ours = twice(bad, labels, kept, w)
    theirs = twice(z[kept], labels[kept], None, w[kept])
    np.testing.assert_array_equal(ours[0][2], 0)
    for x, y in zip((ours[0][kept], ours[1], ours[2][kept]), theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


# cross_entropy over the devices of a mesh.

SHARDS, ROWS = 4, 8
SHARDED = np.random.default_rng(9)
Z = SHARDED.standard_normal((ROWS, V))
Y = SHARDED.integers(0, V, ROWS).astype(np.int32)
Y[:2] = -100  # nothing is left on the first device
Y[5] = -100
WEIGHTS = SHARDED.uniform(0.5, 2, ROWS)


@pytest.mark.parametrize("loss", [jxent.cross_entropy, jxent.sigmoid_binary_cross_entropy])
@pytest.mark.usefixtures("unhooked")
def test_axis_names_may_be_a_list(loss):
    """As JAX takes them, though the annotation says a tuple."""
    targets = jnp.asarray(Y) if loss is jxent.cross_entropy else jnp.ones((ROWS, V))
    options = dict(ignore_index=-100) if loss is jxent.cross_entropy else {}

    def mean(axis_name: Any) -> jax.Array:
        local = functools.partial(loss, axis_name=axis_name, reduction="mean", **options)
        specs = (P("data"), P("data"))
        run = jax.shard_map(local, mesh=devices(SHARDS), in_specs=specs, out_specs=P())
        return jax.jit(run)(jnp.asarray(Z, jnp.float32), targets)

    assert mean(["data"]) == mean("data")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("inside", [False, True], ids=["grad outside", "grad inside"])
def test_axis_name(inside, check_vma, reduction):
    """The loss of the whole batch on every device, and its gradients by everything."""
    options = dict(ignore_index=-100, label_smoothing=0.1, z_loss=0.1, reduction=reduction)
    expected = oracle.cross_entropy(Z, Y, class_weights=C, row_weights=WEIGHTS, **options)

    def loss(z: Any, w: Any, c: Any, y: Any) -> Any:
        return jxent.cross_entropy(
            z, y, class_weights=c, row_weights=w, axis_name="data", **options
        )

    def whole(z: Any, w: Any, c: Any, y: Any) -> Any:
        value, (dz, dw, dc) = jax.value_and_grad(loss, (0, 1, 2))(z, w, c, y)
        if not check_vma:
            # Here psum is its own transpose: plain jnp code counts every device as well.
            dz, dw, dc = dz / SHARDS, dw / SHARDS, jax.lax.psum(dc, "data") / SHARDS
        return value, (dz, dw, dc)

    specs = (P("data"), P("data"), P(), P("data"))
    mesh = functools.partial(jax.shard_map, mesh=devices(SHARDS), check_vma=check_vma)
    if inside:
        run = mesh(whole, in_specs=specs, out_specs=(P(), (P("data"), P("data"), P())))
    else:
        run = jax.value_and_grad(mesh(loss, in_specs=specs, out_specs=P()), (0, 1, 2))
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    value, gradients = jax.jit(run)(f32(Z), f32(WEIGHTS), f32(C), jnp.asarray(Y))
    assert_close(value, expected.value, rtol=PROMISE)
    for name, gradient in zip(("logits", "row_weights", "class_weights"), gradients, strict=True):
        assert_close(
            gradient,
            expected.gradient[name],
            rtol=PROMISE,
            scale=expected.scale[name],
            err_msg=name,
        )


H, HEAD = SHARDED.standard_normal((ROWS, 3)), SHARDED.standard_normal((3, V))
KEPT = Y >= 0
OVER_DEVICES: dict[str, Callable[..., jax.Array]] = {
    "plain": lambda h, w, y, k: (
        jax.lax.psum(jnp.sum(-jax.nn.log_softmax(h @ w)[:, 0], where=k), "data")
        / jax.lax.psum(jnp.sum(k.astype(jnp.float32)), "data")
    ),
    "dense": lambda h, w, y, k: jxent.cross_entropy(h @ w, y, where=k, axis_name="data"),
    **{
        way: functools.partial(
            lambda h, w, y, k, way: jxent.linear_cross_entropy(
                h, w, y, where=k, axis_name="data", implementation=way
            ),
            way=way,
        )
        for way in ("tokens", "vocab")
    },
    "distillation": lambda h, w, y, k: jxent.distillation.linear_distillation_loss(
        h, w, h[:, ::-1], w, where=k, axis_name="data"
    ),
    "sigmoid": lambda h, w, y, k: jxent.sigmoid_binary_cross_entropy(
        h @ w, 1, where=k, reduction="mean", axis_name="data"
    ),
}


@pytest.mark.parametrize("mapped", first(1, ["pmap", "shard_map", "vmap"]))
@pytest.mark.parametrize("loss", OVER_DEVICES.values(), ids=OVER_DEVICES)
def test_axis_name_where_what_varies_is_not_tracked(loss, mapped):
    """`pmean` of what the devices have is the whole batch's gradient, as of plain jnp code."""

    def mean(w: Any, h: Any, y: Any, k: Any) -> Any:
        value, (dw, dh) = jax.value_and_grad(lambda w, h: loss(h, w, y, k), (0, 1))(w, h)
        return value, jax.lax.pmean(dw, "data"), dh

    f32 = lambda x: jnp.asarray(x, jnp.float32)
    given = (f32(HEAD), f32(H), jnp.asarray(np.maximum(Y, 0)), jnp.asarray(KEPT))
    wanted = jax.vmap(mean, (None, 0, 0, 0), axis_name="data")(
        given[0], *(x[None] for x in given[1:])
    )
    parts = (given[0], *(x.reshape(SHARDS, -1, *x.shape[1:]) for x in given[1:]))
    if mapped == "shard_map":
        inside = lambda w, *args: jax.tree.map(lambda x: x[None], mean(w, *(x[0] for x in args)))
        specs = (P(), P("data"), P("data"), P("data"))
        run = jax.jit(
            jax.shard_map(
                inside, mesh=devices(SHARDS), in_specs=specs, out_specs=P("data"), check_vma=False
            )
        )
    else:
        run = {"pmap": jax.pmap, "vmap": jax.vmap}[mapped](
            mean, axis_name="data", in_axes=(None, 0, 0, 0)
        )
    value, dw, dh = run(*parts)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for device in range(SHARDS):
        close(value[device], wanted[0][0])
        close(dw[device], wanted[1][0])
    close(dh.reshape(H.shape) / SHARDS, wanted[2][0])


def test_axis_name_over_nothing():
    """A mean over devices that hold no weight is 0."""
    loss = jax.shard_map(
        lambda z, y: jxent.cross_entropy(z, y, ignore_index=-100, axis_name="data"),
        mesh=devices(SHARDS),
        in_specs=(P("data"), P("data")),
        out_specs=P(),
    )
    z, y = jnp.asarray(Z, jnp.float32), jnp.full(ROWS, -100)
    value, gradient = jax.jit(jax.value_and_grad(loss))(z, y)
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


def test_normalizer_over_devices():
    """normalizer = psum of label_weights, and a sum of what the devices have, is the whole mean."""

    def loss(z: Any, y: Any, w: Any) -> Any:
        mine = jxent.label_weights(y, ignore_index=-100, row_weights=w)
        total = jax.lax.psum(jnp.sum(mine), "data")
        part = jxent.cross_entropy(z, y, ignore_index=-100, row_weights=w, normalizer=total)
        return jax.lax.psum(part, "data")

    run = jax.shard_map(
        loss, mesh=devices(SHARDS), in_specs=(P("data"), P("data"), P("data")), out_specs=P()
    )
    z, w = jnp.asarray(Z, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(run))(z, jnp.asarray(Y), w)
    expected = oracle.cross_entropy(Z, Y, ignore_index=-100, row_weights=WEIGHTS)
    assert_close(value, expected.value, rtol=PROMISE)
    assert_close(
        gradient, expected.gradient["logits"], rtol=PROMISE, scale=expected.scale["logits"]
    )
