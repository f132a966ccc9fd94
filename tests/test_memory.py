"""What is kept between the passes: the arguments as given and a few numbers per row, counted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import split

import jxent

ROWS, CLASSES = 64, 512
# Float32 numbers besides the arguments: a quarter of the bytes of one more mask [N, V].
PER_ROW, PER_CLASS = 16, 2

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, ROWS).astype(np.int32)
SOFT = RNG.dirichlet(np.ones(CLASSES), ROWS)
CLASS_MASK = RNG.random((ROWS, CLASSES)) < 0.9
CLASS_MASK[np.arange(ROWS), LABELS] = True

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows kept": dict(where=LABELS > 100),
    "classes kept": dict(where=CLASS_MASK),
    "class weights": dict(class_weights=RNG.random(CLASSES)),
    "smoothing": dict(label_smoothing=0.1),
    "z-loss": dict(z_loss=0.1),
    "soft cap": dict(logit_softcap=5.0),
    "everything": dict(
        where=CLASS_MASK,
        class_weights=RNG.random(CLASSES),
        label_smoothing=0.1,
        z_loss=0.1,
        logit_softcap=5.0,
    ),
}
NO_TERMS = ("plain", "rows kept", "classes kept", "class weights")
# (loss, name of its targets, integer labels?, which options). A new loss joins here.
LOSSES: dict[str, tuple[Any, str, bool, tuple[str, ...]]] = {
    "cross_entropy, labels": (jxent.cross_entropy, "targets", True, tuple(OPTIONS)),
    "cross_entropy, distributions": (jxent.cross_entropy, "targets", False, tuple(OPTIONS)),
    "labels": (jxent.softmax_cross_entropy_with_integer_labels, "labels", True, tuple(OPTIONS)),
    "distributions": (jxent.softmax_cross_entropy, "labels", False, tuple(OPTIONS)),
    "focal, labels": (jxent.softmax_focal_loss, "labels", True, NO_TERMS),
    "focal, distributions": (jxent.softmax_focal_loss, "labels", False, NO_TERMS),
    "poly": (jxent.poly_loss_cross_entropy, "labels", False, NO_TERMS[:3]),
}
SAVING = [(loss, options) for loss, (*_, which) in LOSSES.items() for options in which]


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def arguments_of(loss: str, chosen: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    fn, target_name, hard, _ = LOSSES[loss]
    options = dict(OPTIONS[chosen])
    if fn is jxent.cross_entropy:
        options["row_weights"] = RNG.random(ROWS)
    logits = RNG.standard_normal((ROWS, CLASSES))
    t = LABELS if hard else np.where(options.get("where") is CLASS_MASK, CLASS_MASK * SOFT, SOFT)
    given = {k: jnp.asarray(x, jnp.float32) if is_float64(x) else x for k, x in options.items()}
    given["logits"] = jnp.asarray(logits, dtype)
    given[target_name] = jnp.asarray(t) if hard else jnp.asarray(t, dtype)
    return fn, given


def is_float64(x: Any) -> bool:
    return hasattr(x, "dtype") and x.dtype == np.float64


@pytest.mark.parametrize("wrt", ["logits", "everything"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("loss", "options"), SAVING)
def test_what_is_saved(loss, options, dtype, wrt):
    fn, arguments = arguments_of(loss, options, dtype)
    floats, arrays, static = split(arguments)
    moved = {"logits": floats["logits"]} if wrt == "logits" else floats

    def pull_back(floats: Any, arrays: Any) -> Any:
        x = {k: floats[k] for k in moved}
        return jax.vjp(lambda x: fn(**{**floats, **x}, **arrays, **dict(static)), x)[1]

    saved = jax.eval_shape(pull_back, floats, arrays)
    given, kept = nbytes((floats, arrays)), nbytes(saved)
    assert kept >= nbytes(floats["logits"]), "nothing was counted"
    assert kept <= given + 4 * (PER_ROW * ROWS + PER_CLASS * CLASSES), (
        f"{kept - given} bytes besides the arguments: {[str(x) for x in jax.tree.leaves(saved)]}"
    )


@pytest.mark.parametrize("loss", ["cross_entropy, labels", "labels"])
def test_counting_finds_one_array_more(loss):
    """The bound is far below one more array, and counting sees it."""
    assert 4 * (PER_ROW * ROWS + PER_CLASS * CLASSES) <= ROWS * CLASSES // 4
    fn, arguments = arguments_of(loss, "everything", "float32")
    logits = arguments.pop("logits")
    more = jax.eval_shape(
        lambda z: jax.vjp(lambda z: jnp.sum(fn(logits=jnp.sin(z), **arguments)), z)[1], logits
    )
    alone = jax.eval_shape(
        lambda z: jax.vjp(lambda z: jnp.sum(fn(logits=z, **arguments)), z)[1], logits
    )
    assert nbytes(more) >= nbytes(alone) + nbytes(logits)
