# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training with optax
#
# A training step needs three things: a model, a loss and an optimiser. Here the optimiser is
# optax's, the loss is `jxent.cross_entropy`, and the model is written four times: in plain JAX, in
# Flax NNX, in Flax Linen and in Equinox. At the end you will be able to
#
# - put `jxent.cross_entropy` into a training step of any of the four;
# - smooth labels, weigh classes, and mask rows that should not count, knowing what each does to the
#   gradient;
# - accumulate gradients over micro-batches, or sum them over devices, and get exactly the full
#   batch's gradient.
#
# For a row of logits $z$ over $V$ classes with label $y$, in nats:
#
# $$
# p = \mathrm{softmax}(z), \qquad \mathrm{lse} = \log \sum_v e^{z_v}, \qquad
# \mathrm{loss} = -\log p_y = \mathrm{lse} - z_y, \qquad
# \frac{\partial\,\mathrm{loss}}{\partial z} = p - e_y .
# $$

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
    "equinox": "equinox",
    "flax": "flax",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# GPUs and TPUs may round float32 operands of a matrix product. Results are compared below, so here
# they do not.
jax.config.update("jax_default_matmul_precision", "highest")

plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

print(f"jax {jax.__version__} on {jax.device_count()} × {jax.devices()[0].device_kind}")

# %% tags=["check"]
import chex

# %% [markdown]
# ## Data and initial weights
#
# scikit-learn's digits: 8 × 8 pixels, ten classes. A quarter is held out. The batches and the
# initial weights are fixed now, once, for all four libraries.

# %%
FEATURES, WIDTH, CLASSES, BATCH = 64, 64, 10, 64
EPOCHS = 15

# %% tags=["fast"]
EPOCHS = 3

# %%
x, y = load_digits(return_X_y=True)
x, held_out_x, y, held_out_y = train_test_split(
    (x / 16).astype(np.float32), y.astype(np.int32), test_size=450, stratify=y, random_state=0
)

rng = np.random.default_rng(0)
steps_per_epoch = len(y) // BATCH
batches = np.concatenate(
    [rng.permutation(len(y))[: steps_per_epoch * BATCH].reshape(-1, BATCH) for _ in range(EPOCHS)]
)


def initialise(seed):
    rng = np.random.default_rng(seed)
    params = {
        "hidden": rng.normal(0, (2 / FEATURES) ** 0.5, (FEATURES, WIDTH)),
        "hidden_bias": np.zeros(WIDTH),
        "head": rng.normal(0, (1 / WIDTH) ** 0.5, (WIDTH, CLASSES)),
        "head_bias": np.zeros(CLASSES),
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


initial = initialise(seed=0)
optimizer = optax.adam(2e-3)
train_losses, held_out_losses = {}, {}
print(f"{len(y)} rows to train on, {len(held_out_y)} held out, {len(batches)} steps of {BATCH}")

# %% [markdown]
# ## Plain JAX
#
# The loss is one call. It returns a scalar, the mean over rows, so `jax.value_and_grad` takes it as
# it is.


# %%
def predict(params, x):
    hidden = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["head"] + params["head_bias"]


def loss_fn(params, x, labels, **options):
    return jxent.cross_entropy(predict(params, x), labels, **options)


def train_step(params, opt_state, x, labels, **options):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, labels, **options)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


step = jax.jit(train_step)
params, opt_state = initial, optimizer.init(initial)
losses = []
for rows in batches:
    params, opt_state, loss = step(params, opt_state, x[rows], y[rows])
    losses.append(loss)

train_losses["plain JAX"] = np.array(losses)
held_out_losses["plain JAX"] = jxent.cross_entropy(predict(params, held_out_x), held_out_y)

# %% [markdown]
# ## Flax NNX
#
# `nnx.value_and_grad` and `nnx.Optimizer` take the model itself. The line with the loss is the
# same. `nnx.eval_shape` makes the model without weights, to be filled with those above.


# %%
class Classifier(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


@nnx.jit
def nnx_step(model, optimizer, x, labels):
    def loss_fn(model):
        return jxent.cross_entropy(model(x), labels)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


model = nnx.eval_shape(lambda: Classifier(rngs=nnx.Rngs(0)))
model.hidden.kernel = nnx.Param(initial["hidden"])
model.hidden.bias = nnx.Param(initial["hidden_bias"])
model.head.kernel = nnx.Param(initial["head"])
model.head.bias = nnx.Param(initial["head_bias"])

nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
losses = [nnx_step(model, nnx_optimizer, x[rows], y[rows]) for rows in batches]

train_losses["Flax NNX"] = np.array(losses)
held_out_losses["Flax NNX"] = jxent.cross_entropy(model(held_out_x), held_out_y)


# %% [markdown]
# ## Flax Linen
#
# A Linen model is applied to its parameters, so the step is that of plain JAX with
# `model.apply(params, x)` in the place of `predict(params, x)`.


# %%
class LinenClassifier(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = linen.relu(linen.Dense(WIDTH, name="hidden")(x))
        return linen.Dense(CLASSES, name="head")(hidden)


model = LinenClassifier()


@jax.jit
def linen_step(params, opt_state, x, labels):
    def loss_fn(params):
        return jxent.cross_entropy(model.apply(params, x), labels)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


layers = {
    "hidden": {"kernel": initial["hidden"], "bias": initial["hidden_bias"]},
    "head": {"kernel": initial["head"], "bias": initial["head_bias"]},
}
params = {"params": layers}  # of the structure that model.init(key, x) gives
opt_state = optimizer.init(params)
losses = []
for rows in batches:
    params, opt_state, loss = linen_step(params, opt_state, x[rows], y[rows])
    losses.append(loss)

train_losses["Flax Linen"] = np.array(losses)
held_out_losses["Flax Linen"] = jxent.cross_entropy(model.apply(params, held_out_x), held_out_y)

# %% tags=["check"]
made = model.init(jax.random.key(0), x[:1])
chex.assert_trees_all_equal_shapes(made, params)


# %% [markdown]
# ## Equinox
#
# An Equinox model takes one example, so the batch is `jax.vmap`'s. The loss sees logits `[N, V]`
# again.


# %%
@eqx.filter_jit
def eqx_step(model, opt_state, x, labels):
    def loss_fn(model):
        return jxent.cross_entropy(jax.vmap(model)(x), labels)

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss


model = eqx.filter_eval_shape(
    eqx.nn.MLP, FEATURES, CLASSES, width_size=WIDTH, depth=1, key=jax.random.key(0)
)
model = eqx.tree_at(
    lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight, m.layers[1].bias),
    model,
    (initial["hidden"].T, initial["hidden_bias"], initial["head"].T, initial["head_bias"]),
)
opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
losses = []
for rows in batches:
    model, opt_state, loss = eqx_step(model, opt_state, x[rows], y[rows])
    losses.append(loss)

train_losses["Equinox"] = np.array(losses)
held_out_losses["Equinox"] = jxent.cross_entropy(jax.vmap(model)(held_out_x), held_out_y)

# %% [markdown]
# ## One loss, four libraries
#
# Same weights, same batches, same loss: the curves lie on each other, up to the order in which
# float32 sums are taken. To see that this is not trivial, the last line of the table is the same
# training with the batches in another order.

# %%
reference = train_losses["plain JAX"]
params, opt_state = initial, optimizer.init(initial)
losses = []
for rows in batches[::-1]:
    params, opt_state, loss = step(params, opt_state, x[rows], y[rows])
    losses.append(loss)
reordered = jxent.cross_entropy(predict(params, held_out_x), held_out_y)

print(f"{'':18}{'last batch':>12}{'held out':>12}{'largest difference of a step':>32}")
for name, curve in train_losses.items():
    difference = np.max(np.abs(curve - reference))
    print(f"{name:18}{curve[-1]:12.5f}{held_out_losses[name]:12.5f}{difference:32.1e}")
difference = np.max(np.abs(np.array(losses) - reference))
print(f"{'other order':18}{losses[-1]:12.5f}{reordered:12.5f}{difference:32.1e}")

# %% tags=["check"]
for name in train_losses:
    chex.assert_trees_all_close(train_losses[name], reference, atol=1e-3)
    chex.assert_trees_all_close(held_out_losses[name], held_out_losses["plain JAX"], atol=1e-3)
assert difference > 1e-2

# %%
fig, ax = plt.subplots(figsize=(7, 3.5))
styles = {
    "plain JAX": (BLUE, "-", 8),
    "Flax NNX": (ORANGE, "-", 5),
    "Flax Linen": (GREEN, "-", 2.5),
    "Equinox": ("black", ":", 1.5),
}
for name, (colour, line, width) in styles.items():
    ax.plot(train_losses[name], line, color=colour, linewidth=width, label=name)
ax.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, None))
ax.set_title("Four libraries, one loss curve", loc="left")
ax.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# ## Label smoothing and class weights
#
# Both change the target row $t$ that the probabilities are pulled towards. With smoothing
# $\varepsilon$ and class weights $c$,
#
# $$
# t = (1-\varepsilon)\, c_y e_y + \frac{\varepsilon}{V}\, c, \qquad
# \mathrm{loss} = \sum_v t_v (\mathrm{lse} - z_v), \qquad
# \frac{\partial\,\mathrm{loss}}{\partial z} = \Big(\sum_v t_v\Big)\, p - t,
# $$
#
# and the mean divides by $\sum_\mathrm{rows} c_y$. The equation in NumPy's float64, next to
# `jax.grad`:

# %%
z = np.array([2.0, 0.5, -1.0])
label, epsilon, c = 0, 0.1, np.array([1.0, 2.0, 4.0])

p = np.exp(z) / np.exp(z).sum()
t = (1 - epsilon) * c[label] * np.eye(3)[label] + epsilon / 3 * c
by_hand = -np.sum(t * np.log(p)), t.sum() * p - t

options = dict(label_smoothing=epsilon, class_weights=c.astype(np.float32), reduction="sum")
logits = jnp.asarray(z[None], jnp.float32)
loss_of_row = partial(jxent.cross_entropy, targets=np.array([label]), **options)
loss, grad = jax.jit(jax.value_and_grad(loss_of_row))(logits)

print(f"t         {np.array2string(t, precision=4)}")
print(f"loss      {loss:.6f} nats")
print(f"gradient  {np.array2string(np.asarray(grad[0]), precision=4)}")
print(f"by hand   {by_hand[0]:.6f} nats, {np.array2string(by_hand[1], precision=4)}")

# %% tags=["check"]
chex.assert_trees_all_close((loss, grad[0]), by_hand, rtol=1e-5)

# %% [markdown]
# A smoothed loss cannot fall below the entropy of its own target row, reached at $p = t$; a model
# that is surer than that pays for it. So training losses with different options are not comparable;
# the plain cross-entropy on held-out rows is.

# %%
V = CLASSES
t = (1 - epsilon) * np.eye(V)[0] + epsilon / V
floor = jxent.information.entropy(t)
confident = 20 * np.eye(V, dtype=np.float32)[:1]
matched = np.log(t)[None].astype(np.float32)
label = np.array([0])

print(f"entropy of t  {floor:.4f} nats\n")
print(f"{'':14}{'smoothed loss':>14}{'plain loss':>14}")
for name, logits in {"p = t": matched, "p_y nearly 1": confident}.items():
    smoothed = jxent.cross_entropy(logits, label, label_smoothing=epsilon)
    print(f"{name:14}{smoothed:14.4f}{jxent.cross_entropy(logits, label):14.4f}")

# %% tags=["check"]
chex.assert_trees_all_close(
    jxent.cross_entropy(matched, label, label_smoothing=epsilon), floor, rtol=1e-5
)

# %% [markdown]
# To give the class weights something to do, the training set loses four of five rows of the digits
# 5 to 9. The held-out rows stay as they are. A weight $c_v = N / (V N_v)$, with $N_v$ the number of
# rows of class $v$, makes every class count the same in the loss.
#
# A whole training run is one `jax.lax.scan` over the steps above. Class weights are arrays and may
# be traced; the smoothing is a Python number, static, so `jax.jit` compiles once for each value.

# %%
kept = (y < 5) | (rng.random(len(y)) < 0.2)
few_x, few_y = jnp.asarray(x[kept]), jnp.asarray(y[kept])
counts = np.bincount(few_y, minlength=CLASSES)
balanced = jxent.imbalance.balanced_class_weights(counts)
equal = np.ones(CLASSES, np.float32)

print("rows of each class  ", " ".join(f"{n:5d}" for n in counts))
print("weight of each class", " ".join(f"{w:5.2f}" for w in balanced))

# %%
FEW_EPOCHS, SEEDS = 80, 5

# %% tags=["fast"]
FEW_EPOCHS, SEEDS = 6, 2

# %%
few_steps = len(few_y) // BATCH
order = np.stack([rng.permutation(len(few_y))[: few_steps * BATCH] for _ in range(FEW_EPOCHS)])
order = order.reshape(FEW_EPOCHS, few_steps, BATCH)


@partial(jax.jit, static_argnames="label_smoothing")
def held_out_curve(params, class_weights, label_smoothing):
    """Held-out cross-entropy after each epoch."""
    options = dict(class_weights=class_weights, label_smoothing=label_smoothing)

    def one_batch(state, rows):
        params, opt_state, _ = train_step(*state, few_x[rows], few_y[rows], **options)
        return (params, opt_state), None

    def one_epoch(state, batches):
        state, _ = jax.lax.scan(one_batch, state, batches)
        return state, loss_fn(state[0], held_out_x, held_out_y)

    return jax.lax.scan(one_epoch, (params, optimizer.init(params)), order)[1]


variants = {
    "plain": (equal, 0.0),
    "smoothing 0.1": (equal, 0.1),
    "class weights": (balanced, 0.0),
    "both": (balanced, 0.1),
}
curves = {
    name: np.stack([held_out_curve(initialise(seed), *options) for seed in range(SEEDS)])
    for name, options in variants.items()
}

print(f"\nheld-out cross-entropy in nats, {SEEDS} seeds")
print(f"{'':16}{'best epoch':>12}{'last epoch':>12}{'range over seeds':>22}")
for name, curve in curves.items():
    mean, last = curve.mean(axis=0), curve[:, -1]
    spread = f"{last.min():.4f} to {last.max():.4f}"
    print(f"{name:16}{mean.min():12.4f}{mean[-1]:12.4f}{spread:>22}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.5))
for (name, curve), colour in zip(curves.items(), (BLUE, GREEN, ORANGE, PINK), strict=True):
    epochs = np.arange(1, FEW_EPOCHS + 1)
    ax.plot(epochs, curve.mean(axis=0), color=colour, linewidth=2, label=name)
    ax.fill_between(
        epochs, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.15, linewidth=0
    )
best = min(curves, key=lambda name: curves[name][:, -1].mean())
ax.set(xlabel="epoch", ylabel="held-out loss (nats)", yscale="log")
ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
ax.minorticks_off()
ax.set_title(f"Lowest after the last epoch: {best}", loc="left")
ax.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# The bands are the range over seeds of the initial weights. Class weights can help here because the
# held-out rows are not thinned: the weights undo the difference between the two sets. Smoothing
# pulls every $p_y$ back from 1, to the first row of the table above; that can pay where a model
# grows too sure, and costs held-out cross-entropy where it does not. The training loss cannot tell
# which; this curve can.

# %% [markdown]
# ## Masks: rows that do not count
#
# The training rows do not fill the last batch of an epoch. A smaller batch would make `jax.jit`
# compile again, so it is padded. Padding must not change anything; a row can be dropped by its
# label (`ignore_index`) or by a boolean (`where`).

# %%
tail = np.arange(steps_per_epoch * BATCH, len(y))
padding = BATCH - len(tail)
padded_x = np.concatenate([x[tail], np.full((padding, FEATURES), 100.0, np.float32)])
padded_y = np.concatenate([y[tail], np.full(padding, -1, np.int32)])
keep = np.arange(BATCH) < len(tail)

value_and_grad = jax.jit(jax.value_and_grad(loss_fn), static_argnames="ignore_index")
unpadded = value_and_grad(initial, x[tail], y[tail])
by_label = value_and_grad(initial, padded_x, padded_y, ignore_index=-1)
by_mask = value_and_grad(initial, padded_x, padded_y, where=keep)

print(f"{len(tail)} rows and {padding} rows of padding")
print(f"{'unpadded':14}{unpadded[0]:.6f} nats")
print(f"{'ignore_index':14}{by_label[0]:.6f} nats")
print(f"{'where':14}{by_mask[0]:.6f} nats")

# %% tags=["check"]
chex.assert_trees_all_close(by_label, unpadded, rtol=1e-5, atol=1e-6)
chex.assert_trees_all_close(by_mask, unpadded, rtol=1e-5, atol=1e-6)

# %% [markdown]
# A dropped row is exactly zero, loss and gradient, whatever its logits hold: it is selected away,
# not multiplied by zero. A mask that multiplies lets a NaN through, in the gradient if not in the
# loss, since $0 \cdot \mathrm{NaN}$ is NaN.

# %%
logits = predict(initial, padded_x)
logits = jnp.where(keep[:, None], logits, jnp.nan)


def multiplied(logits):
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(padded_y, 0))
    return jnp.sum(rows * keep) / jnp.sum(keep)


def selected(logits):
    return jxent.cross_entropy(logits, padded_y, where=keep)


for name, fn in {"multiplied": multiplied, "selected": selected}.items():
    loss, grad = jax.jit(jax.value_and_grad(fn))(logits)
    nans = int(jnp.isnan(grad).any(axis=-1).sum())
    print(f"{name:12} loss {loss:8.4f}   rows with a NaN gradient {nans}")

# %% tags=["check"]
chex.assert_trees_all_close(loss, unpadded[0], rtol=1e-5)
assert not grad[~keep].any() and jnp.isfinite(grad).all()

# %% [markdown]
# The model's own matrix products still see the padded rows, and there a zero gradient times a NaN
# activation is NaN again: pad inputs with finite numbers. A mask of the logits' shape, `[N, V]`,
# keeps classes instead of rows.

# %% [markdown]
# ## Gradient accumulation
#
# A batch too large for the memory is cut into micro-batches, whose gradients are summed. If micro-
# batch $m$ keeps rows of total weight $W_m = \sum_{i \in m} w_i$, then
#
# $$
# \underbrace{\frac{\sum_m \sum_{i \in m} \mathrm{loss}_i}{\sum_m W_m}}_{\text{the full batch}}
# \;\neq\;
# \underbrace{\frac{1}{M} \sum_m \frac{\sum_{i \in m} \mathrm{loss}_i}{W_m}}_{\text{the mean of
# means}}
# $$
#
# as soon as the $W_m$ differ: padded sequences, rows without a label, class weights. The
# denominator needs labels only, not logits, so it is known before the model runs:
# `jxent.label_weights` gives each row's $w_i$, and `normalizer=` puts their sum in the place of the
# micro-batch's own.
#
# Four micro-batches of 64, of which 64, 24, 6 and 2 rows have a label, with the class weights of
# above.

# %%
KEPT = np.array([64, 24, 6, 2])
MICRO = len(KEPT)


def ragged_batch(rows):
    """x [MICRO, BATCH, FEATURES] and labels [MICRO, BATCH], −1 where there is none."""
    rows = rows.reshape(MICRO, BATCH)
    return x[rows], np.where(np.arange(BATCH) < KEPT[:, None], y[rows], -1)


loss_options = dict(ignore_index=-1, class_weights=balanced)


@jax.jit
def full_batch(params, x, labels):
    x, labels = x.reshape(-1, FEATURES), labels.reshape(-1)
    return jax.value_and_grad(loss_fn)(params, x, labels, **loss_options)


@jax.jit
def accumulated(params, x, labels):
    normalizer = jxent.label_weights(labels, **loss_options).sum()

    def add(total, micro_batch):
        part = jax.value_and_grad(loss_fn)(
            params, *micro_batch, normalizer=normalizer, **loss_options
        )
        return jax.tree.map(jnp.add, total, part), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (x, labels))[0]


@jax.jit
def mean_of_means(params, x, labels):
    def add(total, micro_batch):
        part = jax.value_and_grad(loss_fn)(params, *micro_batch, **loss_options)
        return jax.tree.map(lambda a, b: a + b / MICRO, total, part), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (x, labels))[0]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


batch = ragged_batch(rng.permutation(len(y))[: MICRO * BATCH])
loss, grads = full_batch(initial, *batch)
truth = flat(grads)

print(f"{'':22}{'loss (nats)':>12}{'gradient off by':>18}{'cosine':>12}")
for name, fn in {
    "full batch": full_batch,
    "with normalizer": accumulated,
    "mean of means": mean_of_means,
}.items():
    loss, grads = fn(initial, *batch)
    g = flat(grads)
    off = np.linalg.norm(g - truth) / np.linalg.norm(truth)
    cosine = g @ truth / np.linalg.norm(g) / np.linalg.norm(truth)
    print(f"{name:22}{loss:12.6f}{off:18.1e}{cosine:12.6f}")

# %% tags=["check"]
chex.assert_trees_all_close(
    accumulated(initial, *batch), full_batch(initial, *batch), rtol=1e-4, atol=1e-6
)
naive = flat(mean_of_means(initial, *batch)[1])
assert np.linalg.norm(naive - truth) > 0.1 * np.linalg.norm(truth)

# %% [markdown]
# Why it is off: in the mean of means, the two labelled rows of the last micro-batch count as much
# as the 64 of the first. Trained side by side on the same ragged batches, one run stays with the
# full batch's and the other leaves it.

# %%
sgd = optax.sgd(0.1, momentum=0.9)
RAGGED_STEPS = 150

# %% tags=["fast"]
RAGGED_STEPS = 20

# %%
ragged = [ragged_batch(rng.permutation(len(y))[: MICRO * BATCH]) for _ in range(RAGGED_STEPS)]


@jax.jit
def apply(params, opt_state, grads):
    updates, opt_state = sgd.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def trajectory(gradient):
    params, opt_state = initial, sgd.init(initial)
    visited = []
    for batch in ragged:
        _, grads = gradient(params, *batch)
        params, opt_state = apply(params, opt_state, grads)
        visited.append(flat(params))
    return np.array(visited)


whole = trajectory(full_batch)
travelled = np.linalg.norm(whole - flat(initial), axis=-1)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), width_ratios=(2, 3))
place = np.arange(MICRO)
left.bar(place - 0.2, np.full(MICRO, 1 / KEPT.sum()), 0.4, color=BLUE)
left.bar(place + 0.2, 1 / (MICRO * KEPT), 0.4, color=ORANGE)
left.set_xticks(place, [str(n) for n in KEPT])
left.set(xlabel="labelled rows in the micro-batch", ylabel="weight of one row")
left.set_title("What a row counts", loc="left")

for name, gradient, colour in (
    ("mean of means", mean_of_means, ORANGE),
    ("normalizer=", accumulated, BLUE),
):
    distance = np.linalg.norm(trajectory(gradient) - whole, axis=-1) / travelled
    right.plot(np.arange(1, RAGGED_STEPS + 1), distance, color=colour, linewidth=2, label=name)
right.set(xlabel="step", ylabel="distance / way travelled", yscale="log", ylim=(None, 10))
right.set_title("Distance from the full batch's run", loc="left")
right.legend(frameon=False, loc="center right")
fig.tight_layout()

# %% [markdown]
# The left picture leaves the class weights out, so that it can be read in rows; on the right,
# distances are divided by how far the full batch's run has come from the initial weights.
#
# `optax.MultiSteps` does the accumulation inside the optimiser. It takes the mean of the gradients
# it is given; have it take the sum, and pass the normalizer of the whole group:

# %%
every = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=MICRO, use_grad_mean=False)


@jax.jit
def micro_step(params, opt_state, x, labels, normalizer):
    grads = jax.grad(loss_fn)(params, x, labels, normalizer=normalizer, **loss_options)
    updates, opt_state = every.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


normalizer = jxent.label_weights(batch[1], **loss_options).sum()
params, opt_state = initial, every.init(initial)
for micro_x, micro_y in zip(*batch, strict=True):
    params, opt_state = micro_step(params, opt_state, micro_x, micro_y, normalizer)

_, grads = full_batch(initial, *batch)
one_step = jax.tree.map(lambda p, g: p - 0.1 * g, initial, grads)
off = np.abs(flat(params) - flat(one_step)).max()
print(f"MultiSteps over 4 micro-batches, and one step on the full batch: {off:.0e} apart")

# %% tags=["check"]
chex.assert_trees_all_close(params, one_step, rtol=1e-4, atol=1e-6)

# %% [markdown]
# ## Several devices
#
# Under `jax.jit` nothing changes: put the batch on the devices, each its rows, and the mean over a
# sharded array is the mean over all of it. The padded batch of above is the hard case: all its rows
# that count are on the first devices. To try it on a CPU, set
# `XLA_FLAGS=--xla_force_host_platform_device_count=8` before Python starts; on one device it is the
# same step once more.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
sharded = jax.device_put((padded_x, padded_y), NamedSharding(mesh, P("data")))
by_jit = value_and_grad(initial, *sharded, ignore_index=-1)

# %% [markdown]
# Inside `jax.shard_map` each device sees its own rows. `axis_name` sums numerator and denominator
# over the devices:


# %%
@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
def with_axis_name(params, x, labels):
    return jax.value_and_grad(loss_fn)(params, x, labels, ignore_index=-1, axis_name="data")


by_axis_name = with_axis_name(initial, *sharded)

# %% [markdown]
# With `normalizer` the loss stays local, and only what is reported is summed. The parameters are
# the same on every device, so JAX has summed their gradients already. Keep `check_vma=True`, the
# default, for both ways: without it JAX does not.


# %%
@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
def with_normalizer(params, x, labels):
    weights = jxent.label_weights(labels, ignore_index=-1)
    options = dict(ignore_index=-1, normalizer=jax.lax.psum(weights.sum(), "data"))
    loss, grads = jax.value_and_grad(loss_fn)(params, x, labels, **options)
    return jax.lax.psum(loss, "data"), grads


by_normalizer = with_normalizer(initial, *sharded)
print(f"{'one device, no shards':24}{by_label[0]:.6f} nats")
parallel = {"jit": by_jit, "axis_name": by_axis_name, "normalizer": by_normalizer}
for name, (loss, _) in parallel.items():
    print(f"{name:24}{loss:.6f} nats on {jax.device_count()} device(s)")

# %% tags=["check"]
for found in parallel.values():
    chex.assert_trees_all_close(found, by_label, rtol=1e-5, atol=1e-6)

# %% [markdown]
# ## Half precision
#
# A loss that computes in bfloat16 also returns bfloat16, which has two to three digits. jxent
# computes bfloat16 logits in float32 and returns float32; only the gradient is rounded, once, to
# the logits' dtype. What that costs in time: `06_reference`, or `python -m jxent bench`.


# %%
def optax_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


N, V = 4096, 1000
labels = jnp.asarray(rng.integers(V, size=N))
logits = jnp.asarray(rng.normal(size=(N, V)), jnp.bfloat16)
z = np.asarray(logits).astype(np.float64)
lse = np.log(np.sum(np.exp(z), axis=-1))
exact = np.mean(lse - z[np.arange(N), labels])

print(f"{'float64':15}{exact:.7f} nats")
for name, fn in {"optax": optax_loss, "jxent": jxent.cross_entropy}.items():
    loss = jax.jit(fn)(logits, labels)
    error = abs(float(loss) / exact - 1)
    print(f"{name:15}{loss:.7f} nats, {loss.dtype.name:9} relative error {error:.0e}")

# %% tags=["check"]
chex.assert_trees_all_close(jxent.cross_entropy(logits, labels), exact, rtol=1e-5)

# %% [markdown]
# ## Where next
#
# - `03_imbalanced_classes`: which weights, and when something other than weights.
# - `04_large_vocabulary`: when the logits are the largest array of the step,
#   `linear_cross_entropy` takes the hidden states and the head and never stores them.
