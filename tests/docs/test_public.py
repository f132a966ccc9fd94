"""The public surface as people meet it: names, tab completion, help."""

import copy
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import _check
from jxent.metrics import Average, ClassificationMetrics, MultiLabelMetrics

NAMESPACES = [jxent, *(x for x in map(vars(jxent).get, jxent.__all__) if inspect.ismodule(x))]
PUBLIC: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in NAMESPACES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
of_namespaces = pytest.mark.parametrize("module", NAMESPACES, ids=lambda m: m.__name__)


def run(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- names ------------------------------------------------------------------------------------


@of_namespaces
def test_tab_completion_shows_public_names_only(module: types.ModuleType):
    more = ["__version__"] if module is jxent else []
    assert dir(module) == sorted([*module.__all__, *more])


@of_namespaces
def test_public_names_can_be_imported(module: types.ModuleType):
    namespace: dict[str, Any] = {}
    exec(f"from {module.__name__} import {', '.join(module.__all__)}", namespace)
    assert namespace.keys() - {"__builtins__"} == set(module.__all__)


@of_namespaces
def test_help_shows_public_names_only(module: types.ModuleType):
    text = pydoc.plain(pydoc.render_doc(module))
    # pydoc lists every file of a package's folder, with or without underscore.
    files = r"^PACKAGE CONTENTS\n(?:    .*\n)+\n"
    described = re.findall(
        r"^    (?:class )?(\w+)(?: = (?!\[)\w+)?\(", re.sub(files, "", text), re.M
    )
    assert set(described) >= {name for name in module.__all__ if callable(getattr(module, name))}
    assert not [name for name in described if name not in dir(module)]


# --- version, what an import costs --------------------------------------------------------------


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jxent.__version__)


def test_import_leaves_optax_and_chex_alone():
    code = "import sys, jxent; print({'optax', 'chex', 'matplotlib', 'rich'} & sys.modules.keys())"
    assert run(code) == "set()\n"


# --- words of other libraries ------------------------------------------------------------------

FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
METHODS = {
    f"{name}.{inner}": getattr(cls, inner)
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for inner in vars(cls)
    if not inner.startswith("_") and callable(getattr(cls, inner))
}
PARAMETERS = {
    name: inspect.signature(fn).parameters.keys() - {"self", "args"}
    for name, fn in (FUNCTIONS | METHODS).items()
}
SPOKEN = [*FUNCTIONS, *(name for name in METHODS if PARAMETERS[name] & _check.SYNONYMS.keys())]

Z, Y, W = np.zeros((2, 3), np.float32), np.array([0, 2]), np.ones((3, 5), np.float32)


@pytest.mark.parametrize("name", SPOKEN)
def test_every_function_knows_the_words(name: str, monkeypatch: pytest.MonkeyPatch):
    fn = (FUNCTIONS | METHODS)[name]
    for parameter in PARAMETERS[name]:
        monkeypatch.setattr(_check, "SYNONYMS", {parameter: "word another"})
        words = rf"^{fn.__qualname__}: unexpected keyword argument `another`, use `{parameter}`$"
        with pytest.raises(TypeError, match=words):
            fn(another=0)


def test_every_row_of_the_words_is_used():
    assert _check.SYNONYMS.keys() <= set[str]().union(*PARAMETERS.values())


WORDS = {
    "PyTorch": (
        "cross_entropy",
        dict(input=Z, target=Y, weight=[1, 1, 1]),
        dict(input="logits", target="targets", weight="class_weights"),
    ),
    "optax": ("cross_entropy", dict(logits=Z, labels=Y), dict(labels="targets")),
    "optax's mask": ("softmax_cross_entropy", dict(mask=Y > 0), dict(mask="where")),
    "Keras": (
        "sigmoid_binary_cross_entropy",
        dict(y_true=Y, y_pred=Z, sample_weight=Y),
        dict(y_true="labels", y_pred="logits", sample_weight="row_weights"),
    ),
    "Liger": (
        "linear_cross_entropy",
        dict(_input=Z, weight=W, target=Y, ce_weight=W[0], softcap=30.0, lse_square_scale=1e-4),
        dict(
            _input="hidden",
            weight="head",
            target="labels",
            ce_weight="class_weights",
            softcap="logit_softcap",
            lse_square_scale="z_loss",
        ),
    ),
    "tokamax": (
        "linear_cross_entropy",
        dict(x=Z, labels=Y, weights=W),
        dict(x="hidden", weights="head"),
    ),
    "tokamax's mask": ("linear_cross_entropy", dict(mask=Y > 0), dict(mask="where")),
    "PyTorch's KL": ("kl_divergence", dict(input=Z, target=Z), dict(input="log_predictions")),
    "SciPy": ("information.kl_divergence", dict(pk=Z, qk=Z), dict(pk="p", qk="q")),
    "SciPy's bootstrap": ("selection.compare", dict(n_resamples=9), dict(n_resamples="resamples")),
    "torchmetrics": (
        "metrics.ClassificationMetrics.empty",
        dict(num_classes=5, n_bins=3),
        dict(num_classes="classes", n_bins="bins"),
    ),
    "Flax": ("metrics.accuracy", dict(logits=Z, labels=Y, mask=Y > 0), dict(mask="where")),
}


@pytest.mark.parametrize(("name", "given", "meant"), WORDS.values(), ids=WORDS)
def test_words_of_other_libraries(name, given, meant):
    with pytest.raises(TypeError) as caught:
        (FUNCTIONS | METHODS)[f"jxent.{name}"](**given)
    said = str(caught.value)
    assert said.startswith(f"{(FUNCTIONS | METHODS)[f'jxent.{name}'].__qualname__}: ")
    for word, ours in meant.items():
        assert f"`{word}`, use `{ours}`" in said


def test_a_word_of_several_meanings_is_what_is_missing():
    with pytest.raises(TypeError, match=r"`weight`, use `class_weights`$"):
        jxent.linear_cross_entropy(Z, W, Y, weight=W[0])
    with pytest.raises(TypeError, match=r"`weight`, use `head`$"):
        jxent.linear_cross_entropy(Z, labels=Y, weight=W)


def test_logits_are_logits():
    with pytest.raises(TypeError, match=r"^cross_entropy: .* `from_logits`, leave it out"):
        jxent.cross_entropy(Z, Y, from_logits=True)


@pytest.mark.parametrize("more", [dict(nonsense=0), dict(target=Y), dict(nonsense=0, target=Y)])
def test_what_has_no_other_name_is_told_by_python(more):
    """`targets` are given already, so that no more is known of `target`."""
    words = f"got an unexpected keyword argument '{next(iter(more))}'"
    with pytest.raises(TypeError, match=words):
        jxent.cross_entropy(Z, Y, **more)


def test_a_decorated_function_is_itself():
    signature = inspect.signature(jxent.cross_entropy)
    assert [*signature.parameters][:2] == ["logits", "targets"]
    assert signature.parameters["where"].kind is inspect.Parameter.KEYWORD_ONLY
    assert pickle.loads(pickle.dumps(jxent.cross_entropy)) is jxent.cross_entropy
    assert pickle.loads(pickle.dumps(jxent.metrics.accuracy)) is jxent.metrics.accuracy
    jitted = jax.jit(jxent.cross_entropy, static_argnames="reduction")
    assert jitted(jnp.asarray(Z), targets=jnp.asarray(Y), reduction="none").shape == (2,)


# --- classes of sums ----------------------------------------------------------------------------

BEGINNINGS = {
    Average: r"Average\.empty\(\) or Average\.of\(values\)$",
    ClassificationMetrics: r"ClassificationMetrics\.empty\(classes\)$",
    MultiLabelMetrics: r"MultiLabelMetrics\.empty\(classes\)$",
}


@pytest.mark.parametrize("cls", BEGINNINGS)
def test_constructors_name_the_way_to_begin(cls):
    for args, kwargs in (((), {}), ((50,), {}), ((), dict(num_classes=50))):
        words = f"^{cls.__name__}: the constructor takes .* begin with {BEGINNINGS[cls]}"
        with pytest.raises(TypeError, match=words):
            cls(*args, **kwargs)


@pytest.mark.parametrize("cls", BEGINNINGS)
def test_sums_can_be_rebuilt(cls):
    begun = cls.empty() if cls is Average else cls.empty(3)
    flat, tree = jax.tree.flatten(begun)
    for again in (
        jax.tree.unflatten(tree, flat),
        jax.jit(lambda x: x)(begun),
        pickle.loads(pickle.dumps(begun)),
        copy.deepcopy(begun),
    ):
        assert type(again) is cls
        assert jax.tree.structure(again) == tree
    assert Average(3.0, 2.0).mean() == 1.5
