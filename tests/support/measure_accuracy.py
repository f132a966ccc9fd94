"""What jxent promises, measured, and what each peer gives for the same inputs: two tables.

    python tests/support/measure_accuracy.py            prints them
    python tests/support/measure_accuracy.py --write    puts them into notebooks/tables/accuracy.md

Peers that are not installed are left out: `pip install torch tokamax` for all of them.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import generated_tables
import jax
import jax.numpy as jnp
import numpy as np
import optax
from accuracy import LOSSES, REGIMES, Regime, Truth, batches, measure
from edge_cases import linear

import jxent

INF, NAN = np.inf, np.nan

FILE = "accuracy.md"

# Accuracy.

SEEDS = range(1)


def optax_error(regime: Regime) -> float:
    """The largest relative error of optax's loss where the truth is promised."""
    worst = 0.0
    for z, y in batches(regime, SEEDS):
        truth = Truth(z, y)
        loss = optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(y))
        error = np.abs(np.asarray(loss, np.float64) - truth.loss) / truth.loss
        worst = max(worst, float(error[truth.promised].max()))
    return worst


def bounds() -> list[str]:
    lines = [
        "| rows | number | loss | label's gradient | other gradients | loss of optax |",
        "|---|---|---|---|---|---|",
    ]
    for name, regime in REGIMES.items():
        worst = measure(regime, LOSSES["rows"], SEEDS)
        ulps = [
            f"{worst[k].error:.1f} ulp, {worst[k].share:.2f}" for k in ("loss", "label gradient")
        ]
        others = worst["other gradients"]
        lines.append(
            f"| {name}, V = {regime.classes} | {regime.rows} | {' | '.join(ulps)} "
            f"| {others.error:.0e}, {others.share:.2f} | {optax_error(regime):.0e} |"
        )
    return lines


# Peers.

WRONG = " ✗"
Given = Mapping[str, Any]
Result = tuple[Any, Any] | None  # loss, gradient; None of what the peer does not offer


class Input(NamedTuple):
    """An input, in words, what is right, and what each peer is to be called with."""

    name: str
    right: str
    z: Any
    t: Any
    options: Given = MappingProxyType({})
    dtype: str = "float32"
    jitted: bool = True


CONFIDENT = [40.0, 0.0, 0.0]
ROW = [0.0, 1.0, 2.0]
# z: rows of logits [N, 3]; t: labels or distributions.  The loss is the mean.
INPUTS = [
    Input("the label leads by 40", "8.497e-18; -8.497e-18", [CONFIDENT], [0]),
    Input("a shared offset of 1e8", "0.6931; -0.5", [[1e8, 1e8, 1e8 - 800]], [0]),
    Input("label −1, under jit", "NaN; NaN", [ROW], [-1]),
    Input("label −1", "an error", [ROW], [-1], jitted=False),
    Input("label 3 of 3 classes, under jit", "NaN; NaN", [ROW], [3]),
    Input("label 3 of 3 classes", "an error", [ROW], [3], jitted=False),
    Input("NumPy label 2³²+1", "an error", [ROW], [2**32 + 1], jitted=False),
    Input("labels `[N, 1]`", "an error", [ROW, ROW], [[0], [1]], jitted=False),
    Input("labels that are floats", "an error", [ROW], np.float32([0.5]), jitted=False),
    Input("−inf off the label", "0.3133; 0", [[-INF, 0.0, 1.0]], [2]),
    Input("−inf on the label", "inf; -1", [[-INF, 0.0, 1.0]], [0]),
    Input("+inf on the label", "NaN; NaN", [[INF, 0.0, 1.0]], [0]),
    Input("distribution, 0 on −inf", "0.3133; 0", [[-INF, 0.0, 1.0]], [[0.0, 0.0, 1.0]]),
    Input("smoothing 0.1, −inf", "inf; -0.03333", [[-INF, 0.0, 1.0]], [2], dict(eps=0.1)),
    Input("a NaN row, ignored", "2.408; 0", [[NAN] * 3, ROW], [-100, 0], dict(ignore=True)),
    Input("every row ignored", "0; 0", [ROW], [-100], dict(ignore=True)),
    Input("every weight 0", "0; 0", [ROW], [0], dict(weights=[0.0, 1.0, 1.0])),
    Input("no rows", "0; none", np.zeros((0, 3)), np.zeros(0, int)),
    Input("bfloat16 logits", "2.408; -0.9102", [ROW], [0], dtype="bfloat16"),
]


def is_distribution(x: Input) -> bool:
    return np.shape(x.t) == np.shape(x.z)


def by_jax(fn: Callable[..., Any], x: Input) -> Result:
    z, t = jnp.asarray(x.z, x.dtype), np.asarray(x.t)
    t = t.astype(np.float32) if t.dtype == np.float64 else t
    if x.jitted:
        return jax.jit(jax.value_and_grad(fn))(z, jnp.asarray(t))
    return jax.value_and_grad(fn)(z, t)


def in_jxent(x: Input, fn: Callable[..., Any] = jxent.cross_entropy) -> Result:
    weights = x.options.get("weights")
    options = dict(
        ignore_index=-100 if "ignore" in x.options else None,
        label_smoothing=x.options.get("eps", 0.0),
        class_weights=None if weights is None else jnp.asarray(weights),
    )
    return by_jax(lambda z, t: fn(z, t, **options), x)


def finite_labelled(x: Input) -> bool:
    """Behind a head an infinite feature is no infinite logit."""
    return not is_distribution(x) and not np.any(np.isinf(x.z))


def in_jxent_linear(x: Input) -> Result:
    return in_jxent(x, linear(jxent.linear_cross_entropy)) if finite_labelled(x) else None


def in_optax(x: Input) -> Result:
    """With a mask, a weight and `smooth_labels` written by hand, as its users do."""
    weights = x.options.get("weights")

    def loss(z: jax.Array, t: jax.Array) -> jax.Array:
        if np.shape(t) == z.shape:
            return optax.softmax_cross_entropy(z, t).mean()
        if "eps" in x.options:
            soft = optax.smooth_labels(jax.nn.one_hot(t, z.shape[-1]), x.options["eps"])
            return optax.softmax_cross_entropy(z, soft).mean()
        rows = optax.softmax_cross_entropy_with_integer_labels(z, t)
        if "ignore" in x.options:
            keep = t != -100
            rows = optax.softmax_cross_entropy_with_integer_labels(z, jnp.where(keep, t, 0))
            return jnp.sum(rows * keep) / jnp.sum(keep)
        if weights is not None:
            w = jnp.asarray(weights)[t]
            return jnp.sum(w * rows) / jnp.sum(w)
        return rows.mean()

    return by_jax(loss, x)


def in_torch(x: Input) -> Result:
    import torch

    z = torch.tensor(np.asarray(x.z), dtype=getattr(torch, x.dtype), requires_grad=True)
    t = np.asarray(x.t)
    weights = x.options.get("weights")
    loss = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(t.astype(np.float32) if t.dtype == np.float64 else t),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=x.options.get("eps", 0.0),
    )
    loss.backward()
    assert z.grad is not None
    return loss.detach().float().numpy(), z.grad.float().numpy()


def in_tokamax(x: Input) -> Result:
    import tokamax
    from absl import flags

    if x.options or not finite_labelled(x):
        return None  # it has no options
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # or tokamax would read this program's own flags
    loss = tokamax.linear_softmax_cross_entropy_loss
    return by_jax(lambda z, t: loss(z, t, jnp.eye(3, dtype=z.dtype), reduction="mean"), x)


PEERS: dict[str, tuple[str | None, Callable[[Input], Result]]] = {
    "jxent": (None, in_jxent),
    "jxent, linear": (None, in_jxent_linear),
    "optax": ("optax", in_optax),
    "PyTorch": ("torch", in_torch),
    "tokamax, linear": ("tokamax", in_tokamax),
}


def number(x: Any) -> str:
    x = float(x)
    if np.isnan(x):
        return "NaN"
    return "0" if x == 0 else f"{x:.4g}"


def cell(peer: Callable[[Input], Result], x: Input) -> str:
    """The loss and the first entry of the gradient, marked where wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = peer(x)
    except Exception as error:
        expected = x.right in ("an error", "NaN; NaN")
        return f"`{type(error).__name__}`{'' if expected else WRONG}"
    if result is None:
        return "—"
    loss, gradient = result
    first = np.asarray(gradient, np.float64).ravel()
    found = f"{number(loss)}; {number(first[0]) if len(first) else 'none'}"
    return found if found == x.right else found + WRONG


def installed() -> dict[str, Callable[[Input], Result]]:
    return {
        name: run
        for name, (module, run) in PEERS.items()
        if module is None or importlib.util.find_spec(module)
    }


def peers(of: dict[str, Callable[[Input], Result]]) -> list[str]:
    lines = [f"| input | right | {' | '.join(of)} |", "|---" * (2 + len(of)) + "|"]
    for x in INPUTS:
        cells = [cell(run, x) for run in of.values()]
        lines.append(f"| {' | '.join([x.name, x.right, *cells])} |")
    return lines


def tables() -> dict[str, str]:
    """Each table by the name of its marks."""
    return {
        "measured bounds": "\n".join(bounds()),
        "peers": "\n".join(peers(installed())),
        "versions": generated_tables.versions("jax", "optax", "torch", "tokamax"),
    }


if __name__ == "__main__":
    generated_tables.main(tables, FILE)
