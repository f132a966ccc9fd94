# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A large vocabulary
#
# A language model ends with a matrix product: $N$ hidden states of $D$ features times a head of
# $V$ words give logits $[N, V]$. With a vocabulary of a quarter of a million words these logits
# are the largest array of the whole training step, and all that is wanted of them is one number,
# the loss. `linear_cross_entropy` computes that number and its gradients without storing them.
#
# At the end you will be able to
#
# - swap `cross_entropy(hidden @ head, labels)` for `linear_cross_entropy(hidden, head, labels)` in
#   a training step, and see that nothing but the memory changes;
# - tie the head to the embedding, add z-loss and a soft cap, and say what each of them does;
# - read each word's log-probability, the entropy and the best next word from the same head, and
#   report perplexity and bits per byte.

# %% tags=["install"]
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

# What is missing is installed; what is here keeps its version. jxent is on no package index:
# ".." is its checkout. Where there is none, run `pip wheel --no-deps .` in one, bring the wheel
# here, and write its path in place of "..".
packages = {
    "jxent": "..",
    "matplotlib": "matplotlib",
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
import ast
import math
import os
import pydoc_data.topics
import re
import time
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

# Eight virtual CPU devices for the last section. They are asked for before JAX first looks at its
# devices, and change nothing on a GPU or TPU.
eight = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {eight}"

plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% tags=["check"]
import chex


def assert_close(ours, theirs):
    """Within 1e-4 of each entry, or 1e-5 of the array's largest one."""
    ours, theirs = jax.device_get((ours, theirs))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        chex.assert_trees_all_close(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


# %% [markdown]
# ## Text that is already here
#
# Python carries its own documentation: the language reference, for `help()`, and the docstrings of
# the standard library. The reference repeats whole sections under several topics, so repeated
# paragraphs are dropped: a held-out paragraph must not have been read in training. Every tenth
# paragraph is held out.

# %%
documents = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
for file in sorted(Path(ast.__file__).parent.glob("*.py")):
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            documents.append(ast.get_docstring(node) or "")

# %% tags=["fast"]
documents = documents[: len(pydoc_data.topics.topics)]

# %%
paragraphs = [" ".join(part.split()) for text in documents for part in text.split("\n\n")]
paragraphs = [part for part in dict.fromkeys(paragraphs) if len(part) >= 40]
held_out_text = "\n".join(paragraphs[::10])
train_text = "\n".join(part for i, part in enumerate(paragraphs) if i % 10)

print(f"{len(paragraphs)} paragraphs: {len(train_text)} characters to train on,")
print(f"{len(held_out_text)} held out, for example:\n")
print(min(paragraphs[::10], key=lambda part: abs(len(part) - 150)))

# %% [markdown]
# The vocabulary is every word seen at least twice in the training text, with the space before it,
# and the 256 bytes. A word that is not there is spelt in bytes. So every text has a code, nothing
# is "unknown", and the model pays for every byte: that makes bits per byte a fair measure.

# %%
PIECE = re.compile(r" ?[A-Za-z_]+| ?.", re.DOTALL)
counts = Counter(PIECE.findall(train_text))
words = [word for word, count in counts.most_common() if count >= 2]
words = words[: len(words) // 8 * 8]  # so that eight devices can share them evenly
symbols = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]
word_ids = {word: 256 + i for i, word in enumerate(words)}
V = len(symbols)


def encode(text):
    ids = []
    for piece in PIECE.findall(text):
        ids.extend([word_ids[piece]] if piece in word_ids else piece.encode())
    return np.array(ids, np.int32)


def decode(ids):
    return b"".join(symbols[i] for i in ids).decode(errors="replace")


train_ids, held_out_ids = encode(train_text), encode(held_out_text)
(NEW_PARAGRAPH,) = encode("\n")
print(f"V = {V}; {len(train_ids)} tokens to train on, {len(held_out_ids)} held out")

# %% tags=["check"]
assert decode(held_out_ids) == held_out_text

# %% [markdown]
# ## A small model
#
# The model reads the previous eight tokens: their embeddings go through a small MLP, and out comes
# a hidden state $h$ with $D$ features. The head $W$ turns it into logits, $z = hW$.

# %%
D, CONTEXT = 64, 8


@partial(jax.jit, static_argnames="tied")
def initial(key, *, tied=False):
    keys = jax.random.split(key, 4)
    normal = jax.random.normal
    params = {
        "embedding": 0.02 * normal(keys[0], (V, D)),
        "W1": normal(keys[1], (CONTEXT * D, 4 * D)) / math.sqrt(CONTEXT * D),
        "W2": normal(keys[2], (4 * D, D)) / math.sqrt(4 * D),
    }
    return params if tied else params | {"head": 0.02 * normal(keys[3], (D, V))}


def normalise(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


@jax.jit
def hidden_states(params, context):
    x = normalise(params["embedding"][context])
    x = x.reshape(len(context), CONTEXT * D)
    return normalise(x[:, -D:] + jax.nn.gelu(x @ params["W1"]) @ params["W2"])


def windows(ids):
    """The eight tokens before each token, and the token itself; a text opens a paragraph."""
    padded = np.concatenate([np.full(CONTEXT, NEW_PARAGRAPH), ids])
    return np.lib.stride_tricks.sliding_window_view(padded[:-1], CONTEXT), ids


train_contexts, train_labels = windows(train_ids)
held_out_contexts, held_out_labels = windows(held_out_ids)

# %% [markdown]
# ## The three-line swap
#
# For a row of logits $z$ with label $y$,
#
# $$\mathrm{lse} = \log\sum_v e^{z_v}, \qquad \mathrm{loss} = \mathrm{lse} - z_y, \qquad
#   \frac{\partial\,\mathrm{loss}}{\partial z} = p - e_y, \qquad p = \mathrm{softmax}(z).$$
#
# A sum over $v$ can be taken a block at a time, and so can $\partial h = (p - e_y)W^\top$ and
# $\partial W = h^\top(p - e_y)$. All of $z$ is never needed at once. Before and after:


# %%
def before(hidden, head, labels, **options):
    logits = hidden @ head
    return jxent.cross_entropy(logits, labels, **options)


def after(hidden, head, labels, **options):
    return jxent.linear_cross_entropy(hidden, head, labels, **options)


# %% [markdown]
# The same number and the same gradients, whatever the options:

# %%
params = initial(jax.random.key(0))
hidden = hidden_states(params, held_out_contexts[:512])
labels = jnp.asarray(held_out_labels[:512])
many_options = {
    "label_smoothing": 0.1,
    "class_weights": jnp.linspace(0.5, 1.5, V),
    "ignore_index": int(NEW_PARAGRAPH),
    "z_loss": 1e-2,
    "logit_softcap": 10.0,
}

pairs = []
for options in ({}, many_options):
    with jax.default_matmul_precision("highest"):
        dense, linear = (
            jax.jit(jax.value_and_grad(partial(loss, **options), argnums=(0, 1)))(
                hidden, params["head"], labels
            )
            for loss in (before, after)
        )
    pairs.append((linear, dense))
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(linear[1], dense[1], strict=True))
    print(f"before {dense[0]:.6f}, after {linear[0]:.6f}:", ", ".join(options) or "no options")
    print(f"    gradients at most {apart:.0e} apart")

# %% tags=["check"]
for pair in pairs:
    assert_close(*pair)

# %% [markdown]
# ## Training
#
# A model that knows nothing gives each word the probability $1/V$ and has the loss $\log V$. One
# that knows how frequent each word is has the entropy of these frequencies. The rest is what the
# context is worth. The training step is plain JAX and optax; the head and how it lies in memory
# are picked in one place, so that a tied embedding can take its seat later.

# %%
STEPS, BATCH = 200, 512

# %% tags=["fast"]
STEPS, BATCH = 50, 256

# %%
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
optimizer = optax.adam(schedule)


def head_of(params):
    if "head" in params:
        return {"head": params["head"]}
    return {"head": params["embedding"], "head_layout": "vd"}


def loss_fn(params, context, labels, **options):
    hidden = hidden_states(params, context)
    return jxent.linear_cross_entropy(hidden, labels=labels, **head_of(params), **options)


def train(params, **options):
    @jax.jit
    def step(params, opt_state, context, labels):
        loss = partial(loss_fn, **options)
        loss, grads = jax.value_and_grad(loss)(params, context, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        rows = rng.integers(len(train_labels), size=BATCH)
        params, opt_state, loss = step(params, opt_state, train_contexts[rows], train_labels[rows])
        losses.append(loss)
    return params, np.array(losses)


params, losses = train(initial(jax.random.key(0)))
print(f"first loss {losses[0]:.3f} nats, log V = {math.log(V):.3f}")

# %% tags=["check"]
assert abs(losses[0] - math.log(V)) < 0.2

# %% [markdown]
# Held-out text is evaluated in one call. Its logits would be the largest array of this notebook,
# and they are not stored either. Perplexity is $e^{\mathrm{loss}}$, the size of the vocabulary
# from which one would have to guess blindly to do as badly. It depends on how the text is cut into
# tokens; bits per byte do not:
#
# $$\text{bits per byte} = \frac{\text{nats of the whole text}}{\log 2 \cdot \text{bytes}}.$$

# %%
held_out_bytes = len(held_out_text.encode())


@partial(jax.jit, static_argnames="logit_softcap")
def evaluate(params, contexts, labels, logit_softcap=None):
    return loss_fn(params, contexts, labels, logit_softcap=logit_softcap)


def bits_per_byte(nats_per_token):
    nats = nats_per_token * len(held_out_labels)
    return float(jxent.information.nats_to_bits(nats)) / held_out_bytes


frequencies = np.bincount(train_labels, minlength=V) + 1.0  # a word never seen may still come
frequencies /= frequencies.sum()
known = {
    "nothing": math.log(V),
    "word frequencies": -np.log(frequencies)[held_out_labels].mean(),
    "eight words before": float(evaluate(params, held_out_contexts, held_out_labels)),
}

print(f"logits not stored: {4 * len(held_out_labels) * V / 2**20:.0f} MiB\n")
print(f"{'what is known':20}{'nats/token':>12}{'perplexity':>12}{'bits/byte':>12}")
for name, nats in known.items():
    print(f"{name:20}{nats:12.3f}{math.exp(nats):12.1f}{bits_per_byte(nats):12.3f}")

# %% tags=["check"]
assert known["eight words before"] < known["word frequencies"] < known["nothing"]

# %%
fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
ax.plot(losses, color=BLUE, linewidth=1, label="training batches")
for (name, nats), colour in zip(known.items(), (GREY, GREEN, ORANGE), strict=True):
    ax.axhline(nats, color=colour, linestyle="--")
    ax.text(1.07 * STEPS, nats, f"held out, knowing\n{name}", color=colour, va="center")
ax.set(xlabel="training step", ylabel="loss (nats per token)")
ax.set_title("Training begins at log V and passes the word frequencies")
ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
plt.show()

# %% [markdown]
# ## Head memory as V grows
#
# A compiled JAX program says how much temporary memory it needs: everything beside its arguments
# and its results. Nothing has to be run for it, not even the arrays have to exist. Here is loss and
# both gradients for 16384 tokens.
#
# `linear_cross_entropy` has two ways to do it. By default rows go in chunks, and both gradients are
# computed beside the loss, so that no logit is computed twice. `implementation="vocab"` takes the
# classes in blocks and computes the logits again on the way back: more arithmetic, least memory.


# %%
def temporary_bytes(loss, *arguments):
    """What the compiled loss and gradients need beside arguments and results, or None."""
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments)
    try:
        analysis = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError:  # the compiler sees that this cannot fit the device
        return None
    return None if analysis is None else analysis.temp_size_in_bytes


def optax_loss(hidden, head, labels):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, labels).mean()


ways = {
    "optax, logits stored": optax_loss,
    "jxent.cross_entropy, logits stored": before,
    "linear_cross_entropy": after,
    'linear_cross_entropy, "vocab"': partial(after, implementation="vocab"),
}
N, FEATURES = 16384, 256
vocabularies = [2**10, 2**13, 2**16, 2**18]

# %% tags=["fast"]
vocabularies = [2**12, 2**16]

# %%
labels_shape = jax.ShapeDtypeStruct((N,), jnp.int32)
hidden_shape = jax.ShapeDtypeStruct((N, FEATURES), jnp.float32)
memory = {name: [] for name in ways}
for size in vocabularies:
    head_shape = jax.ShapeDtypeStruct((FEATURES, size), jnp.float32)
    for name, loss in ways.items():
        memory[name].append(temporary_bytes(loss, hidden_shape, head_shape, labels_shape))

print(f"Temporary memory in MiB, N = {N}, D = {FEATURES}, float32, on {jax.default_backend()}")
print(f"{'V':36}" + "".join(f"{size:10}" for size in vocabularies))
for name, cells in memory.items():
    texts = ("?" if cell is None else f"{cell / 2**20:.0f}" for cell in cells)
    print(f"{name:36}" + "".join(f"{text:>10}" for text in texts))

# %% tags=["gallery"]
looks = {
    "optax, logits stored": (ORANGE, "o", "-"),
    "jxent.cross_entropy, logits stored": (GREY, "x", "--"),
    "linear_cross_entropy": (BLUE, "s", "-"),
    'linear_cross_entropy, "vocab"': (GREEN, "^", "-"),
}
fig, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
for name, (colour, marker, line) in looks.items():
    sizes = [math.nan if cell is None else cell / 1e9 for cell in memory[name]]
    ax.loglog(vocabularies, sizes, marker=marker, linestyle=line, color=colour, label=name)
ax.set_xscale("log", base=2)
ax.set_xticks(vocabularies, [f"{size // 1024}k" for size in vocabularies])
ax.set(xlabel="vocabulary V (1k = 1024 words)", ylabel="temporary memory (GB)")
fig.suptitle(f"Most of what the head of {N} tokens needs is stored logits", fontsize=12)
ax.legend(frameon=False, fontsize=10, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# The stored logits, and what is made from them, grow with $V$ from the start. A chunk of rows has a
# budget for the device, and grows with $V$ only when it has the fewest rows that keep the device
# busy. A block of classes does not depend on $V$ at all. For a small vocabulary there is little to
# save, and the stored logits may even need less.

# %% [markdown]
# ## Tied embeddings
#
# The embedding has a row of $D$ numbers for each word, and the head a column of $D$ numbers. They
# may be the same: $W = E^\top$. With `head_layout="vd"` the embedding goes in as it lies in memory,
# without a transposed copy. JAX adds the gradients of its two uses:
#
# $$\frac{\partial\,\mathrm{loss}}{\partial E} =
#   \underbrace{\Big(\frac{\partial h}{\partial E}\Big)^{\!\top}
#   \frac{\partial\,\mathrm{loss}}{\partial h}}_{\text{as the input}} +
#   \underbrace{(p - e_y)^\top h}_{\text{as the head}}$$

# %%
tied = initial(jax.random.key(0), tied=True)
context, labels = held_out_contexts[:256], jnp.asarray(held_out_labels[:256])


def two_uses(as_input, as_head):
    hidden = hidden_states(tied | {"embedding": as_input}, context)
    return jxent.linear_cross_entropy(hidden, as_head, labels, head_layout="vd")


with jax.default_matmul_precision("highest"):
    both = jax.jit(jax.grad(loss_fn))(tied, context, labels)["embedding"]
    of_input, of_head = jax.jit(jax.grad(two_uses, (0, 1)))(tied["embedding"], tied["embedding"])

for name, gradient in {"as the input": of_input, "as the head": of_head, "both": both}.items():
    gradient = np.asarray(gradient)
    touched = np.any(gradient != 0, axis=1).sum()
    print(f"{name:14} norm {np.linalg.norm(gradient):.4f}, {touched} of {V} words")

# %% tags=["check"]
assert_close(both, of_input + of_head)

# %% [markdown]
# As the input only the words that were read have a gradient; as the head every word has one.
#
# ## z-loss and soft cap
#
# The loss does not change when the same number is added to all logits, so nothing holds
# $\mathrm{lse}$ in place, and nothing holds the logits small. Two remedies, both options of
# `cross_entropy` and of `linear_cross_entropy` alike:
#
# - z-loss adds $\zeta\,\mathrm{lse}^2$, whose gradient $2\zeta\,\mathrm{lse}\,p$ pulls
#   $\mathrm{lse}$ to 0, where the logits are the log-probabilities themselves;
# - a soft cap makes of the products $u = hW$ logits $z = \kappa\tanh(u/\kappa)$, which cannot leave
#   $(-\kappa, \kappa)$, and whose gradient is $\partial z/\partial u = 1 - (z/\kappa)^2$.
#
# A soft cap is a part of the model and stays on in evaluation. z-loss is not, and is left out of
# the held-out loss.

# %%
KAPPA, ZETA = 10.0, 1e-2
runs = {
    "plain": (params, {}),
    "tied": (train(initial(jax.random.key(0), tied=True))[0], {}),
    "z-loss": (train(initial(jax.random.key(0)), z_loss=ZETA)[0], {}),
    "soft cap": (
        train(initial(jax.random.key(0)), logit_softcap=KAPPA)[0],
        {"logit_softcap": KAPPA},
    ),
}


@partial(jax.jit, static_argnames="logit_softcap")
def lse_and_largest(params, context, logit_softcap=None):
    """lse of each row and the largest |logit|, from stored logits: a few rows only."""
    head = head_of(params)
    W = head["head"].T if head.get("head_layout") == "vd" else head["head"]
    z = hidden_states(params, context) @ W
    if logit_softcap is not None:
        z = logit_softcap * jnp.tanh(z / logit_softcap)
    return jax.nn.logsumexp(z, axis=-1), jnp.abs(z).max()


print(f"{'':10}{'parameters':>12}{'nats/token':>12}{'perplexity':>12}{'bits/byte':>12}", end="")
print(f"{'mean lse':>10}{'largest |z|':>13}")
row_lse = {}
for name, (trained, options) in runs.items():
    nats = float(evaluate(trained, held_out_contexts, held_out_labels, **options))
    row_lse[name], largest = jax.device_get(
        lse_and_largest(trained, held_out_contexts[:1000], **options)
    )
    size = sum(x.size for x in jax.tree.leaves(trained))
    print(
        f"{name:10}{size:12}{nats:12.3f}{math.exp(nats):12.1f}{bits_per_byte(nats):12.3f}", end=""
    )
    print(f"{row_lse[name].mean():10.2f}{largest:13.2f}")

# %% tags=["check"]
assert np.abs(row_lse["z-loss"]).mean() < np.abs(row_lse["plain"]).mean()

# %%
fig, ax = plt.subplots(figsize=(7, 3.3), layout="constrained")
bins = np.histogram_bin_edges([row_lse["plain"], row_lse["z-loss"]], 60)
for name, colour in {"plain": ORANGE, "z-loss": BLUE}.items():
    ax.hist(row_lse[name], bins, color=colour, alpha=0.7, label=name)
ax.axvline(0, color=GREY, linestyle="--")
ax.set(xlabel="lse of a held-out row (nats)", ylabel="rows")
ax.set_title("z-loss pulls lse towards 0")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Each word's log-probability
#
# Scoring a text, policy gradients and distillation need a number for each token and not their mean.
# `linear_log_probs` gives two: the label's log-probability $\log p_y$, whose negative is the
# surprise, and the entropy $H = -\sum_v p_v\log p_v$, the surprise that the model itself expected.


# %%
@jax.jit
def log_probs(params, context, labels):
    hidden = hidden_states(params, context)
    return jxent.linear_log_probs(hidden, labels=labels, **head_of(params))


out = log_probs(params, held_out_contexts, held_out_labels)
surprise, entropy = -np.asarray(out.log_probs), np.asarray(out.entropy)

ends = np.flatnonzero(held_out_labels == NEW_PARAGRAPH)
chosen = np.argmin(np.abs(np.diff(ends) - 22))  # a paragraph of about 20 words
sentence = slice(ends[chosen] + 1, ends[chosen + 1])
names = [symbols[i].decode(errors="replace").strip() or "␣" for i in held_out_labels[sentence]]

fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.bar(range(len(names)), surprise[sentence], color=BLUE, label="surprise, $-\\log p_y$")
ax.plot(entropy[sentence], "D", color=ORANGE, label="expected, entropy $H$")
ax.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
for tick in ax.get_xticklabels():
    tick.set_parse_math(False)  # a word may be a dollar sign
ax.set(ylabel="nats", ylim=(0, 1.2 * max(surprise[sentence].max(), entropy[sentence].max())))
ax.set_title("What each word cost, and what the model thought it would")
ax.legend(frameon=False, loc="upper center", ncols=2)
plt.show()

# %% tags=["check"]
np.testing.assert_allclose(surprise.mean(), known["eight words before"], rtol=1e-3)

# %% [markdown]
# If the model knew how much it knows, words of entropy $H$ would cost $H$ on average:

# %%
edges = np.quantile(entropy, np.linspace(0, 1, 6))
bin_of = np.clip(np.searchsorted(edges, entropy) - 1, 0, 4)
print(f"{'tokens':>8}{'mean entropy':>14}{'mean surprise':>15}   (nats)")
for b in range(5):
    rows = bin_of == b
    print(f"{rows.sum():8}{entropy[rows].mean():14.3f}{surprise[rows].mean():15.3f}")

# %% [markdown]
# ## The next word
#
# `linear_predictions` gives the most probable word of each row and its log-probability, again
# without the logits. First how often it is right, then texts that it continues greedily, always
# with the most probable word. A bias of $-\infty$ excludes a class: here the 256 bytes, so that it
# writes whole words.


# %%
@jax.jit
def predict(params, context, bias=None):
    hidden = hidden_states(params, context)
    return jxent.linear_predictions(hidden, bias=bias, **head_of(params))


predicted = predict(params, held_out_contexts)
accuracy = np.mean(predicted.labels == held_out_labels)
print(f"{100 * accuracy:.1f} % of held-out tokens are the most probable one\n")

prompts = ("The value of", "If the file", "Return the")
texts = np.stack(
    [np.concatenate([windows(encode(prompt))[0][-1], encode(prompt)[-1:]]) for prompt in prompts]
)
whole_words = jnp.where(jnp.arange(V) < 256, -jnp.inf, 0.0)
for _ in range(16):
    following = predict(params, texts[:, -CONTEXT:], whole_words).labels
    texts = np.column_stack([texts, following])
for text in texts:
    print(decode(text).strip("\n").split("\n")[0])

# %% [markdown]
# ## The head of Gemma 2
#
# The real thing: 8192 tokens, $D = 2304$, $V = 256000$, bfloat16, a tied embedding and a soft cap
# of 30. On a GPU or TPU the next cell runs it. On a CPU it only compiles it and asks for the
# memory, since $6NVD$, the arithmetic of one step, is too much for a few cores; and a CPU's plan
# for bfloat16 is not an accelerator's, as it may keep float32 copies for its products.

# %%
N, FEATURES, VOCABULARY = 8192, 2304, 256_000
on_accelerator = jax.default_backend() in ("gpu", "tpu")


def gemma_linear(hidden, embedding, labels):
    return jxent.linear_cross_entropy(
        hidden, embedding, labels, head_layout="vd", logit_softcap=30.0
    )


def gemma_dense(hidden, embedding, labels):
    return jxent.cross_entropy(hidden @ embedding.T, labels, logit_softcap=30.0)


def gemma_arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (N, FEATURES), jnp.bfloat16)
    embedding = jax.random.normal(keys[1], (VOCABULARY, FEATURES), jnp.bfloat16)
    labels = jax.random.randint(keys[2], (N,), 0, VOCABULARY)
    return hidden, embedding / math.sqrt(FEATURES), labels


arguments = jax.jit(gemma_arrays)() if on_accelerator else jax.eval_shape(gemma_arrays)
print(f"{6 * N * FEATURES * VOCABULARY / 1e12:.1f} TFLOP for the loss and both gradients")
print(f"{4 * N * VOCABULARY / 1e9:.1f} GB would be the logits in float32")
for name, loss in {"linear_cross_entropy": gemma_linear, "logits stored": gemma_dense}.items():
    needed = temporary_bytes(loss, *arguments)
    told = "not available" if needed is None else f"{needed / 1e9:.1f} GB"
    print(f"{name}: temporary memory {told}, as compiled for {jax.default_backend()}")

if on_accelerator:
    step = jax.jit(jax.value_and_grad(gemma_linear, argnums=(0, 1)))
    loss, gradients = jax.block_until_ready(step(*arguments))
    del gradients
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - begin)
    print(f"loss {loss:.3f} nats (log V = {math.log(VOCABULARY):.3f})")
    print(f"{np.median(seconds):.3f} s a step, {N / np.median(seconds):.0f} tokens a second")
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print("peak memory of this process:", "unknown" if peak is None else f"{peak / 1e9:.1f} GB")
else:
    print("not run here: this is a CPU")
del arguments

# %% [markdown]
# ## Many devices
#
# Eight virtual CPU devices stand in for eight real ones. They show that the numbers are right and
# where the arrays lie; they say nothing about speed.
#
# **The vocabulary split over devices.** `cross_entropy` needs no option for it. Under `jax.jit`
# with a head split over its classes, each device makes its own slice of the logits, and a row needs
# only a few numbers from the others: its maximum, its sum of exponentials, its label's logit.

# %%
try:
    devices = jax.devices("cpu")
except RuntimeError:  # only the accelerator is visible to JAX
    devices = jax.devices()
mesh = jax.make_mesh((len(devices),), ("vocab",), devices=devices, axis_types=(AxisType.Auto,))
rows = 1024
hidden = np.asarray(hidden_states(params, held_out_contexts[:rows]))
head, labels = np.asarray(params["head"]), held_out_labels[:rows]

value_and_grads = jax.jit(jax.value_and_grad(before, argnums=(0, 1)))
whole = jax.device_put((hidden, head, labels), devices[0])
everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "vocab"))
shared = jax.device_put((hidden, head, labels), (everywhere, split, everywhere))

with jax.default_matmul_precision("highest"):
    one_device = value_and_grads(*whole)
    eight_devices = value_and_grads(*shared)
    programs = [value_and_grads.lower(*place).compile() for place in (whole, shared)]

print(f"{len(devices)} devices; loss {one_device[0]:.6f} on one, {eight_devices[0]:.6f} on all")
print("gradient of the head:", eight_devices[1][1].sharding.spec)
for name, program in zip(("one device", "each of them"), programs, strict=True):
    analysis = program.memory_analysis()
    if analysis is not None:
        print(f"{name}: {analysis.temp_size_in_bytes / 2**20:.1f} MiB temporary")

# %% tags=["check"]
assert_close(eight_devices, one_device)
assert "all-gather" not in programs[1].as_text()

# %% [markdown]
# What goes from device to device is a few numbers a row and the gradient of the hidden states, and
# no logits.
#
# **The batch split over devices.** Inside `jax.shard_map` each device sees its own rows, and
# `axis_name` sums numerator and denominator of the mean over the devices. Here they hold unequal
# numbers of tokens, as sequences padded with −100 do; the mean is over all tokens, as on one
# device.

# %%
mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
padded = np.where(np.arange(rows) % 128 <= np.arange(rows) // 8, labels, -100)
masked = partial(after, ignore_index=-100)


@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P())
def data_parallel(hidden, head, labels):
    def loss(head):
        return masked(hidden, head, labels, axis_name="data")

    return jax.value_and_grad(loss)(head)


with jax.default_matmul_precision("highest"):
    expected = jax.jit(jax.value_and_grad(lambda head: masked(hidden, head, padded)))(head)
    loss, dhead = data_parallel(
        *jax.device_put(
            (hidden, head, padded),
            tuple(NamedSharding(mesh, spec) for spec in (P("data"), P(), P("data"))),
        )
    )
kept = (padded.reshape(len(devices), -1) != -100).sum(axis=1)
print("tokens on each device:", *kept)
print(f"loss {expected[0]:.6f} on one device, {loss:.6f} on {len(devices)}")

# %% tags=["check"]
assert_close((loss, dhead), expected)

# %% [markdown]
# ## Where next
#
# - [05_choosing_a_model](05_choosing_a_model.ipynb): is one of these models really better than
#   another, or is it the luck of this held-out text? Paired comparisons with intervals.
# - [02_training_with_optax](02_training_with_optax.ipynb): the same losses in Flax and Equinox,
#   with masks and gradient accumulation.
