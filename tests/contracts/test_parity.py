"""optax and torch give the same numbers: their formulas, signatures, axes, masks and options."""

import inspect
from collections.abc import Callable
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from assertions import relaxed
from optax import losses
from sampling import only

import jxent

# In float64 two right formulas agree to this.
AGREE = dict(rtol=1e-12, atol=1e-12)
OPTAX: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "labels": (
        jxent.softmax_cross_entropy_with_integer_labels,
        losses.softmax_cross_entropy_with_integer_labels,
    ),
    "soft": (jxent.softmax_cross_entropy, losses.softmax_cross_entropy),
    "poly": (jxent.poly_loss_cross_entropy, losses.poly_loss_cross_entropy),
    "kl": (jxent.kl_divergence, losses.kl_divergence),
    "kl, log targets": (
        jxent.kl_divergence_with_log_targets,
        losses.kl_divergence_with_log_targets,
    ),
    "sigmoid": (jxent.sigmoid_binary_cross_entropy, losses.sigmoid_binary_cross_entropy),
    "sigmoid focal": (jxent.sigmoid_focal_loss, losses.sigmoid_focal_loss),
}


@pytest.mark.parametrize("name", OPTAX)
def test_signatures_are_those_of_optax(name):
    """Every parameter of optax at its place, by its name, with its default; ours come after."""
    ours, theirs = (list(inspect.signature(fn).parameters.values()) for fn in OPTAX[name])
    assert len(ours) >= len(theirs)
    for mine, other in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])


def test_safe_softmax_cross_entropy_is_the_only_one():
    assert jxent.safe_softmax_cross_entropy is jxent.softmax_cross_entropy
    theirs = inspect.signature(losses.safe_softmax_cross_entropy).parameters
    assert list(inspect.signature(jxent.softmax_cross_entropy).parameters)[:2] == list(theirs)


def value_and_gradients(fn: Callable[..., Any], *x: Any) -> Any:
    """Rows, and their gradients for an arbitrary cotangent."""
    rows, pull_back = jax.vjp(fn, *x)
    cotangent = jnp.cos(jnp.arange(rows.size, dtype=rows.dtype)).reshape(rows.shape)
    return rows, *pull_back(cotangent)


def assert_agree(ours: Callable[..., Any], theirs: Callable[..., Any], *x: Any) -> None:
    """The same rows and gradients; ours may be numbers where theirs are not."""

    @jax.jit
    def both(*x: Any) -> Any:
        with relaxed():
            expected = value_and_gradients(theirs, *x)
        return value_and_gradients(ours, *x), expected

    for actual, expected in zip(*jax.tree.map(np.asarray, both(*x)), strict=True):
        told = np.isfinite(expected)
        assert np.max(np.abs(expected[told])) > 0.01, "nothing was compared"
        np.testing.assert_allclose(actual[told], expected[told], **AGREE)
        assert np.all(np.isfinite(actual))


AXES = (-1, (2, 0), None)
# optax takes no axis=None for labels, and expands masks of rows in two losses, over given axes.
AXIS_CASES = [
    (name, axis, where)
    for name in ("labels", "soft", "poly", "kl", "kl, log targets")
    for axis in AXES
    for where in (None, "rows", "classes")
    if (axis is not None or (name != "labels" and where != "rows"))
    and (where != "rows" or name in ("labels", "soft"))
]


@pytest.mark.parametrize(
    ("name", "axis", "where"), only(lambda case: case[0] in ("labels", "soft"), AXIS_CASES)
)
def test_optax_axes_and_masks(name, axis, where, x64):
    ours, theirs = OPTAX[name]
    rng = np.random.default_rng(3)
    shape = (3, 4, 2)
    logits = jnp.asarray(rng.standard_normal(shape))
    classes = rng.random(shape) < 0.8
    kept = oracle.classes_last(classes, axis)
    masks = {
        None: None,
        "rows": jnp.asarray(rng.random(kept.shape[:-1]) < 0.7),
        "classes": jnp.asarray(classes),
    }
    mask = masks[where]
    if name == "labels":
        label = np.where(kept, rng.random(kept.shape), -1).argmax(-1)
        label = jnp.asarray(label)
        assert_agree(
            lambda z: ours(z, label, axis, mask), lambda z: theirs(z, label, axis, mask), logits
        )
        return
    t = jnp.asarray(rng.gamma(1.0, size=shape) * (classes if where == "classes" else 1))
    if name == "kl":
        t = t + 0.01  # at 0 the slope is −∞ here and not a number there
    if name == "kl, log targets":
        t = jnp.log(t + 0.1)
    if name == "poly":  # keywords only
        assert_agree(
            lambda z, t: ours(z, t, epsilon=0.7, axis=axis, where=mask),
            lambda z, t: theirs(z, t, epsilon=0.7, axis=axis, where=mask),
            logits,
            t,
        )
        return
    assert_agree(
        lambda z, t: ours(z, t, axis, mask), lambda z, t: theirs(z, t, axis, mask), logits, t
    )


SOFT_LABELS = {
    "one-hot": np.eye(5)[[0, 1, 2, 0]],
    "integer one-hot": np.eye(5, dtype=np.int32)[[0, 1, 2, 0]],
    "one distribution for all rows": np.full(5, 0.2),
}


@pytest.mark.parametrize("labels", SOFT_LABELS)
def test_optax_soft_labels(labels, x64):
    logits = jnp.asarray(np.random.default_rng(3).standard_normal((4, 5)))
    t = jnp.asarray(SOFT_LABELS[labels])
    assert_agree(
        lambda z: jxent.softmax_cross_entropy(z, t),
        lambda z: losses.softmax_cross_entropy(z, t),
        logits,
    )


def test_optax_safe_softmax_cross_entropy(x64):
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.standard_normal((4, 5))).at[:, 3].set(-jnp.inf)
    t = jnp.asarray(rng.dirichlet(np.ones(5), 4)).at[:, 3].set(0)
    assert_agree(
        lambda z: jxent.safe_softmax_cross_entropy(z, t),
        lambda z: losses.safe_softmax_cross_entropy(z, t),
        logits,
    )


@pytest.mark.parametrize(
    "labels", [np.int32([[1, 0, 1]]), np.bool_([[1, 0, 1]]), np.int32(1), 1, 0.3]
)
@pytest.mark.parametrize("name", ["sigmoid", "sigmoid focal"])
def test_optax_binary_labels(name, labels, x64):
    """Integers, booleans and scalars count as probabilities."""
    ours, theirs = OPTAX[name]
    logits = jnp.asarray(np.random.default_rng(3).standard_normal((1, 3)))
    labels = jnp.asarray(labels)
    assert_agree(lambda z: ours(z, labels), lambda z: theirs(z, labels), logits)


@pytest.mark.parametrize("options", [dict(), dict(gamma=1.5), dict(alpha=0.25), dict(gamma=0.0)])
def test_optax_sigmoid_focal(options, x64):
    rng = np.random.default_rng(3)
    logits, labels = jnp.asarray(rng.standard_normal((3, 4))), jnp.asarray(rng.random((3, 4)))
    assert_agree(
        lambda z, y: jxent.sigmoid_focal_loss(z, y, **options),
        lambda z, y: losses.sigmoid_focal_loss(z, y, **options),
        logits,
        labels,
    )


def torch_loss(logits: np.ndarray, targets: np.ndarray, cotangent: Any, **options: Any) -> Any:
    """torch's loss and its gradient; its classes are the second axis."""
    torch = pytest.importorskip("torch")
    z = torch.tensor(logits, requires_grad=True)
    soft = targets.ndim == logits.ndim
    t = torch.tensor(targets if soft else targets.astype(np.int64))
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    if soft:
        t = torch.movedim(t, -1, 1)
    loss = torch.nn.functional.cross_entropy(torch.movedim(z, -1, 1), t, **options)
    loss.backward(torch.tensor(np.broadcast_to(cotangent, loss.shape).copy()))
    return loss.detach().numpy(), z.grad.numpy()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("targets", ["labels", "ignored labels", "probabilities"])
def test_torch(targets, weighted, eps, reduction, x64):
    rng = np.random.default_rng(3)
    rows, classes = (4, 3), 5
    logits = rng.standard_normal((*rows, classes))
    weight = rng.uniform(0.5, 2, classes)
    y = rng.integers(0, classes, rows)
    options: dict[str, Any] = dict(reduction=reduction, label_smoothing=eps)
    theirs, ours = dict(options), dict(options)
    if targets == "ignored labels":
        y[rng.random(rows) < 0.4] = -100
        theirs["ignore_index"] = ours["ignore_index"] = -100
    t = rng.dirichlet(np.ones(classes), rows) if targets == "probabilities" else y
    if weighted:
        theirs["weight"], ours["class_weights"] = weight, jnp.asarray(weight)
    g = rng.standard_normal(rows) if reduction == "none" else np.float64(0.7)
    value, gradient = torch_loss(logits, t, g, **theirs)
    if weighted and targets == "probabilities" and reduction == "mean":
        # The one difference: torch divides weighted distributions by N, jxent by their weight.
        by = np.prod(rows) / np.sum(t @ weight)
        value, gradient = value * by, gradient * by

    arguments = dict(logits=jnp.asarray(logits), targets=jnp.asarray(t), **ours)
    loss, gradients = cases.value_and_gradients(jxent.cross_entropy, arguments, g)
    np.testing.assert_allclose(loss, value, **AGREE)
    np.testing.assert_allclose(gradients["logits"], gradient, **AGREE)
