# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choosing a model
#
# Several models have been trained; one is to be used. This page takes five classifiers on real
# data from their held-out predictions to a decision, and shows how far that decision can be
# trusted. At the end you will be able to
#
# - measure held-out cross-entropy, and say by how much one model is better than another and
#   whether that is more than luck;
# - see whether a model knows how sure it may be, repair it with one number, and explain why the
#   more accurate model can have the worse cross-entropy;
# - say what perplexity and bits per byte have to do with it.

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
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
import lzma
import math
import pydoc_data.topics
import re
import tempfile
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from scipy.stats import ttest_1samp
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from threadpoolctl import threadpool_limits

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% tags=["check"]
import chex

# %% [markdown]
# ## Five models, judged on rows they did not see
#
# The data are scikit-learn's handwritten digits, V = 10 classes. Every row is predicted by a model
# that was trained without it: the rows are cut into folds, and each fold is predicted by a model
# trained on the others. scikit-learn's `cross_val_predict` does that for its own models.
#
# What is kept are log-probabilities. They are logits too, with lse = 0, so they go into every
# function of jxent as they are.

# %%
x, y = load_digits(return_X_y=True)
x = x / 16
FOLDS, TREES, ITERATIONS, STEPS, BATCH = 5, 100, 40, 120, 512

# %% tags=["fast"]
x, y = x[:600], y[:600]
FOLDS, TREES, ITERATIONS, STEPS, BATCH = 3, 50, 20, 60, 300

# %%
N, V = len(y), 10
folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)

models = {
    "logistic regression": LogisticRegression(max_iter=1000),
    "random forest": RandomForestClassifier(TREES, random_state=0),
    "gradient boosting": HistGradientBoostingClassifier(
        max_iter=ITERATIONS, learning_rate=0.15, max_leaf_nodes=8, random_state=0
    ),
    "naive Bayes": GaussianNB(var_smoothing=0.1),
}
log_p = {}
with threadpool_limits(1):  # on data this small, more threads only get in each other's way
    for name, model in models.items():
        exact = name == "naive Bayes"  # its probabilities underflow, their logarithms do not
        method = "predict_log_proba" if exact else "predict_proba"
        p = cross_val_predict(model, x, y, cv=folds, method=method)
        if name == "random forest":
            # A class without a single vote would be impossible, and cost ∞ the day it comes true:
            # one vote more, shared by all classes.
            p = (TREES * p + 1 / V) / (TREES + 1)
        log_p[name] = jnp.asarray(p if exact else np.log(p), jnp.float32)

# %% [markdown]
# The fifth is a small MLP, trained with jxent and optax. `where` keeps the rows of the training
# folds, so all folds have one shape, and `jax.vmap` trains all of them at once.


# %%
def init(rng, sizes, copies):
    """The parameters of an MLP, several copies at once."""
    return [
        {
            "W": rng.normal(0, m**-0.5, (copies, m, n)).astype(np.float32),
            "b": np.zeros((copies, n), np.float32),
        }
        for m, n in pairwise(sizes)
    ]


def mlp(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["W"] + layer["b"])
    return x @ last["W"] + last["b"]


def train(loss_fn, params, optimizer, steps, **options):
    def step(carry, _):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn, **options)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, losses


held_out = np.zeros((FOLDS, N), bool)
for fold, (_, rows) in enumerate(folds.split(x, y)):
    held_out[fold, rows] = True
fold_of = held_out.argmax(axis=0)
digits = jnp.asarray(x, jnp.float32)


@jax.jit
@jax.vmap
def train_on(params, keep):
    def loss_fn(params):
        return jxent.cross_entropy(mlp(params, digits), y, where=keep)

    params, _ = train(loss_fn, params, optax.adam(1e-2), STEPS)
    return mlp(params, digits)


logits = train_on(init(np.random.default_rng(0), (64, 64, V), FOLDS), ~held_out)
log_p["MLP"] = jax.nn.log_softmax(logits[fold_of, np.arange(N)])

# %% [markdown]
# A row's loss is what the model paid for the label that came true, in nats:
#
# $$\ell_i = -\log p_{y_i} \qquad\qquad H = \frac1N\sum_i \ell_i.$$
#
# `ClassificationMetrics` measures it, and whatever else can be said of a classifier, from a stream
# of batches: it carries sums, each in two floats, and divides once, at the end, so batches may
# differ in size, and a float32 mean of ten million rows is right to its last digit. It is a pytree
# of fixed size: the carry of a `lax.scan`, and `metrics.psum("data")` inside `shard_map`.


# %%
@jax.jit
def update(metrics, logits, labels):
    return metrics.update(logits, labels)


summaries = {}
for name in log_p:
    metrics = jxent.metrics.ClassificationMetrics.empty(classes=V)
    for start in range(0, N, BATCH):
        metrics = update(metrics, log_p[name][start : start + BATCH], y[start : start + BATCH])
    summaries[name] = metrics.summary()

print(f"{'':20}{'log loss':>10}{'perplexity':>12}{'accuracy':>10}{'Brier':>8}{'calibration':>13}")
print(f"{'':20}{'(nats)':>10}{'':>12}{'':>10}{'score':>8}{'error':>13}")
for name, s in sorted(summaries.items(), key=lambda item: item[1].log_loss):
    print(
        f"{name:20}{s.log_loss:10.4f}{s.perplexity:12.3f}{s.accuracy:10.2%}"
        f"{s.brier_score:8.4f}{s.expected_calibration_error:13.4f}"
    )
share = np.bincount(y) / N
print(f"{'class shares only':20}{jxent.information.entropy(share):10.4f}")

# %% tags=["check"]
for name, s in summaries.items():
    by_hand = -np.mean(np.asarray(log_p[name], np.float64)[np.arange(N), y])
    chex.assert_trees_all_close(float(s.log_loss), by_hand, rtol=1e-4)

# %% [markdown]
# The last line is what a model pays that knows only how frequent each class is: the entropy of the
# shares. Anything above it is worse than knowing nothing of the picture.
#
# A word of warning about a number that looks the same. scikit-learn's `log_loss` takes
# probabilities, and clips them at the rounding error of their dtype: a row costs at most
# about 36 nats in float64, and 16 in float32. A model that is wrong and very sure may be let off.

# %%
print(f"{'':12}{'true':>8}{'sklearn, float64':>18}{'float32':>10}{'worst row':>11}   (nats)")
for name in ("MLP", "naive Bayes"):
    q = np.asarray(jax.nn.softmax(log_p[name]), np.float64)
    q /= q.sum(axis=1, keepdims=True)
    worst = -np.asarray(log_p[name])[np.arange(N), y].min()
    print(
        f"{name:12}{summaries[name].log_loss:8.4f}{log_loss(y, q):18.4f}"
        f"{log_loss(y, q.astype(np.float32)):10.4f}{worst:11.1f}"
    )

# %% [markdown]
# A mean of row losses hides how they are spread. Sorted, they show it: most rows cost little, and
# the mean is made by a few rows at the right end, where the model was wrong and sure of it, or,
# for a model that is never sure, by all rows together.

# %%
row_losses = {name: jxent.cross_entropy(each, y, reduction="none") for name, each in log_p.items()}
colours = dict(zip(row_losses, (BLUE, ORANGE, GREEN, "#CC79A7", "#000000"), strict=True))

fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for name, losses in row_losses.items():
    percent = 100 * (np.arange(N) + 0.5) / N
    ax.plot(percent, np.sort(losses), color=colours[name], label=name, linewidth=2)
ax.set_yscale("log")
ax.set_ylim(1e-6, 100)
ax.set(xlabel="held-out rows, sorted (%)", ylabel="loss of the row (nats)")
ax.axhline(math.log(V), color=GREY, linestyle="--", linewidth=1)
ax.text(1, 1.25 * math.log(V), "a guess: log 10", color=GREY, fontsize=10)
ax.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1))
ax.set_title("What each row cost, from the easiest to the hardest")
plt.show()

# %% [markdown]
# ## Which is better, and is that luck?
#
# The models saw the same rows, so their losses come in pairs. With row losses a and b,
#
# $$d_i = b_i - a_i, \qquad \bar d = \frac1N\sum_i d_i, \qquad
# s^2 = \frac{1}{N(N-1)}\sum_i (d_i - \bar d)^2 .$$
#
# A row that is hard for one model is mostly hard for the others; in the difference that drops out:
#
# $$\operatorname{Var}(b - a) =
# \operatorname{Var} a + \operatorname{Var} b - 2\operatorname{Cov}(a, b).$$
#
# Comparing two means each with its own standard error leaves the last term out.

# %%
comparison = jxent.selection.compare(row_losses)
print(comparison)

# %% [markdown]
# By hand, in float64, with the interval that one gets without pairing beside it:

# %%
a = np.asarray(row_losses[comparison.best], np.float64)
unpaired = {}
print(f"above {comparison.best:22}{'nats':>8}{'paired ±':>11}{'unpaired ±':>12}{'correlation':>13}")
for pair in comparison.with_best:
    b = np.asarray(row_losses[pair.worse], np.float64)
    paired = np.std(b - a, ddof=1) / math.sqrt(N)
    unpaired[pair.worse] = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / N)
    correlation = np.corrcoef(a, b)[0, 1]
    print(
        f"{pair.worse:28}{pair.mean:8.4f}{1.96 * paired:11.4f}"
        f"{1.96 * unpaired[pair.worse]:12.4f}{correlation:13.2f}"
    )

# %% tags=["check"]
for pair in comparison.with_best:
    b = np.asarray(row_losses[pair.worse], np.float64)
    paired = np.std(b - a, ddof=1) / math.sqrt(N)
    chex.assert_trees_all_close(
        (pair.mean, pair.standard_error), (np.mean(b - a), paired), rtol=1e-5
    )
    assert (paired < unpaired[pair.worse]) == (np.corrcoef(a, b)[0, 1] > 0)

# %% [markdown]
# `plot` draws both intervals of the paired difference: Student's t and the bootstrap's, which
# follows skewed differences. The grey bars below are the unpaired ones. Where a grey bar crosses 0
# and a blue one does not, pairing has made the decision.

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
fig.suptitle("How far above the best model, and how sure that is")
comparison.plot(ax)
for place, pair in enumerate(comparison.with_best):
    reach = 1.96 * unpaired[pair.worse]
    ends = [pair.mean - reach, pair.mean + reach]
    ax.plot(ends, [place + 0.3] * 2, color=GREY, linewidth=2.5, label="95% unpaired interval")
handles, labels = ax.get_legend_handles_labels()
once = dict(zip(labels, handles, strict=True))
ax.legend(
    once.values(),
    once.keys(),
    ncols=2,
    frameon=False,
    fontsize=10,
    loc="lower left",
    bbox_to_anchor=(0, 1),
)
plt.show()

# %% [markdown]
# ### Many pairs: Holm's correction
#
# Five models make ten pairs, and one of ten tests is "significant" by luck more easily than one.
# Holm's method multiplies the smallest p value by the number of pairs, the next by one less, and
# so on. `compare` gives both, and calls a difference *real* by the corrected one.

# %%
pairs = sorted(comparison.pairs, key=lambda pair: pair.p_value)
print(f"{'':42}{'p':>9}{'times':>7}{'Holm':>9}  real")
largest = 0.0
for k, pair in enumerate(pairs):
    largest = max(largest, min(1.0, (len(pairs) - k) * pair.p_value))
    print(
        f"{pair.better + ' < ' + pair.worse:42}{pair.p_value:9.1e}{len(pairs) - k:7}"
        f"{largest:9.1e}  {'yes' if pair.real else 'no'}"
    )

# %% tags=["check"]
largest = 0.0
for k, pair in enumerate(pairs):
    largest = max(largest, min(1.0, (len(pairs) - k) * pair.p_value))
    chex.assert_trees_all_close(pair.adjusted_p_value, largest, rtol=1e-9)

# %% [markdown]
# What it protects from can be simulated: five models that are all equally good, on 200 rows, many
# times over. How often is some pair called different at p ≤ 0.05?

# %%
rng = np.random.default_rng(0)
TRIALS = 1000

# %% tags=["fast"]
TRIALS = 300

# %%
first, second = np.triu_indices(5, k=1)
raw, corrected = [], []
for _ in range(TRIALS):
    equal = rng.gamma(0.5, size=(200, 5)) + rng.gamma(0.5, size=(200, 1))
    smallest = ttest_1samp(equal[:, first] - equal[:, second], 0).pvalue.min()
    raw.append(smallest <= 0.05)
    corrected.append(10 * smallest <= 0.05)
print(f"some pair 'different', though none is: {np.mean(raw):.0%} of the time without correction,")
print(f"{np.mean(corrected):.0%} with Holm's")

# %% tags=["check"]
assert np.mean(corrected) < 0.1 < np.mean(raw)

# %% [markdown]
# All this speaks of these trained models on new rows like these. It does not say what another
# training run, with another seed or other training rows, would give: for that `compare` takes one
# mean loss for each of J random splits and `test_fraction` (`07_continuous_targets` does so). Where
# rows belong together (patients, documents), name them in `groups=`; where they count unequally,
# give `weights=`. `.to_dict()` has every number.
#
# ## Does it know how sure it may be?
#
# Of all predictions made with a probability of 0.8, eight of ten should be right. A reliability
# diagram shows whether they are. One number T repairs the commonest fault:
#
# $$p = \operatorname{softmax}(z / T), \qquad T = \arg\min_T \sum_i \ell_i(z_i / T).$$
#
# T > 1 cools a model that is too sure, T < 1 encourages one that is too shy, and no prediction
# changes. T is fitted on one half of the rows here, and judged on the other.

# %%
shuffled = np.random.default_rng(0).permutation(N)
fit, rest = shuffled[: N // 2], shuffled[N // 2 :]

T = {name: float(jxent.metrics.fit_temperature(z[fit], y[fit])) for name, z in log_p.items()}

print(f"{'':20}{'T':>6}{'before':>9}{'after':>9}{'gain (nats, 95 %)':>20}{'calibration error':>24}")
curves = {}
for name, z in log_p.items():
    both = z[rest], z[rest] / T[name]
    before, after = (
        np.asarray(jxent.cross_entropy(each, y[rest], reduction="none")) for each in both
    )
    curves[name] = [jxent.metrics.reliability_curve(each, y[rest], bins=10) for each in both]
    gain = before - after
    reach = 1.96 * np.std(gain, ddof=1) / math.sqrt(len(rest))
    print(
        f"{name:20}{T[name]:6.2f}{before.mean():9.4f}{after.mean():9.4f}"
        f"{gain.mean():11.4f} ± {reach:.4f}"
        f"{curves[name][0].error:15.4f} → {curves[name][1].error:.4f}"
    )

# %% tags=["check"]
for name, z in log_p.items():
    assert (jnp.argmax(z, axis=-1) == jnp.argmax(z / T[name], axis=-1)).all()

# %% [markdown]
# Where the interval of the gain holds 0, the temperature has not been shown to help: the model
# was calibrated already, or the half it was fitted on is too small to say. Two models at opposite
# ends, one too sure and one too shy:

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained", sharey=True)
fig.suptitle("Before and after a temperature, on rows it was not fitted to")
for ax, name in zip(axes, ("naive Bayes", "random forest"), strict=True):
    for curve, label in zip(curves[name], ("before", f"after, T = {T[name]:.2f}"), strict=True):
        curve.plot(ax, label=label)
    ax.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), title=name)
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# A dot is one of ten bins of predictions, with the 95 % interval of its share as a bar; the area of
# the pale disc around it is the bin's share of all rows. Dots below the diagonal are promises not
# kept; dots above it are knowledge not used.
# Temperature is part of the model, so the choice can change once each model has its own. On the
# half that no temperature has seen:

# %%
calibrated = {
    name: jxent.cross_entropy(z[rest] / T[name], y[rest], reduction="none")
    for name, z in log_p.items()
}
print(jxent.selection.compare(calibrated))

# %% [markdown]
# ## When accuracy and cross-entropy disagree
#
# Accuracy asks whether the label came first. Cross-entropy asks how much was staked on it. Among
# the models above, as they were trained, there are two of which one is right more often and the
# other has the lower cross-entropy. Both are true, and the rows say how.

# %%
disagree = [
    (one, other)
    for one in summaries
    for other in summaries
    if summaries[one].accuracy > summaries[other].accuracy
    and summaries[one].log_loss > summaries[other].log_loss
]
A, B = max(disagree, key=lambda ab: summaries[ab[0]].log_loss - summaries[ab[1]].log_loss)
a, b = (np.asarray(row_losses[name]) for name in (A, B))
right_a, right_b = (np.asarray(log_p[name]).argmax(axis=-1) == y for name in (A, B))
print(f"A = {A}: accuracy {right_a.mean():.2%}, {a.mean():.4f} nats")
print(f"B = {B}: accuracy {right_b.mean():.2%}, {b.mean():.4f} nats\n")

groups = {
    "both right": right_a & right_b,
    "only A right": right_a & ~right_b,
    "only B right": ~right_a & right_b,
    "both wrong": ~right_a & ~right_b,
}
print(f"{'':14}{'rows':>6}{'A pays':>9}{'B pays':>9}{'Σ (a − b) / N':>16}")
for name, rows in groups.items():
    paid = [loss[rows].mean() if rows.any() else 0.0 for loss in (a, b)]
    print(f"{name:14}{rows.sum():6}{paid[0]:9.3f}{paid[1]:9.3f}{(a - b)[rows].sum() / N:16.4f}")
print(f"{'all':14}{N:6}{a.mean():9.3f}{b.mean():9.3f}{(a - b).sum() / N:16.4f}")

# %% tags=["check"]
chex.assert_trees_all_close(
    sum((a - b)[rows].sum() for rows in groups.values()), (a - b).sum(), rtol=1e-3
)

# %% [markdown]
# The last column adds up to the difference of the two means. Accuracy sees only the two rows in
# the middle of the table. A model that hesitates pays a little on every row it gets right, and
# there are many of those; a model that commits itself pays much on the few it gets wrong.
#
# The pictures are the rows that decide most in either direction, with the probability each model
# gave to the label.

# %%
by_difference = np.argsort(a - b)
deciding = {
    f"most in favour of {B}": by_difference[::-1][:5],
    f"most in favour of {A}": by_difference[:5],
}
fig = plt.figure(figsize=(10, 4.8), layout="constrained")
fig.suptitle("The rows that decide between A and B")
grid = fig.add_gridspec(2, 9)
ax = fig.add_subplot(grid[:, :4])
least = 1e-4
for name, colour in zip(groups, (BLUE, GREEN, ORANGE, "#000000"), strict=True):
    paid = (np.maximum(loss[groups[name]], least) for loss in (a, b))
    ax.loglog(*paid, "o", color=colour, markersize=3.5, alpha=0.6, label=name)
ax.plot([least, 50], [least, 50], color=GREY, linestyle="--", linewidth=1, zorder=0)
ax.set(xlabel=f"A, {A}: loss (nats, from {least:g})", ylabel=f"B, {B}: loss (nats)")
ax.legend(
    frameon=False, fontsize=10, markerscale=2, ncols=2, loc="lower left", bbox_to_anchor=(0, 1)
)
for row, (title, rows) in enumerate(deciding.items()):
    for column, i in enumerate(rows):
        tile = fig.add_subplot(grid[row, 4 + column])
        tile.imshow(x[i].reshape(8, 8), cmap="gray_r")
        tile.set(xticks=[], yticks=[])
        tile.set_xlabel(f"label {y[i]}\nA {math.exp(-a[i]):.2g}\nB {math.exp(-b[i]):.2g}")
        if column == 2:
            tile.set_title(title, fontsize=11)
plt.show()

# %% [markdown]
# Which one to choose depends on the use. If somebody only reads off the first class, accuracy is
# the measure. If the probabilities go on (into a threshold, a cost, another model), it is
# cross-entropy. And if the fault is one of confidence only, a temperature gives both: look at
# where A and B stand in the table of calibrated models above.

# %% [markdown]
# ## The same number under other names: perplexity, bits per byte
#
# $$\text{perplexity} = e^{H} \text{ per token}, \qquad
# \text{bits per byte} = \frac{\sum_i \ell_i}{\log 2 \cdot \text{number of bytes}}.$$
#
# Perplexity is how many equally likely tokens would be as hard to guess: it depends on what a
# token is. Bits per byte does not. The text is the one behind Python's `help()`; the models are
# counts of bytes: uniform, unigram, and bigram (a byte given the one before).

# %%
text = "\n".join(pydoc_data.topics.topics.values()).encode()
cut = len(text) - 20_000
train_text, test_text = text[:cut], text[cut:]
train_bytes, test_bytes = (np.frombuffer(t, np.uint8).astype(int) for t in (train_text, test_text))

unigram = (np.bincount(train_bytes, minlength=256) + 0.5) / (cut + 128)
counts = np.zeros((256, 256))
np.add.at(counts, (train_bytes[:-1], train_bytes[1:]), 1)
bigram = (counts + 5 * unigram) / (counts.sum(axis=1, keepdims=True) + 5)

before = np.concatenate([train_bytes[-1:], test_bytes[:-1]])
shape = (len(test_bytes), 256)
byte_logits = {
    "uniform": np.zeros(shape),
    "unigram": np.broadcast_to(np.log(unigram), shape),
    "bigram": np.log(bigram)[before],
}
table = []
for name, z in byte_logits.items():
    metrics = jxent.metrics.ClassificationMetrics.empty(classes=256, confusion=False)
    metrics = metrics.update(
        jnp.asarray(z, jnp.float32), test_bytes, byte_counts=np.ones(len(test_bytes))
    )
    summary = metrics.summary()
    table.append((name, "byte", float(summary.perplexity), float(summary.bits_per_byte)))

# %% tags=["check"]
chex.assert_trees_all_close(table[0][2:], (256.0, 8.0), rtol=1e-4)

# %% [markdown]
# Now the *same* bigram model, read word by word: a word's probability is the product of its
# bytes', its loss their sum. And another model with a tokenisation of its own, the unigram of
# pairs of bytes. `Average` is the same streaming mean for any number.

# %%
byte_nats = np.asarray(
    jxent.cross_entropy(
        jnp.asarray(byte_logits["bigram"], jnp.float32), test_bytes, reduction="none"
    )
)
words = [match.start() for match in re.finditer(rb"\s*\S+|\s+$", test_text)]
word_nats = np.add.reduceat(byte_nats, words)
word_bytes = np.diff([*words, len(test_text)])

codes = train_bytes[0 : cut - cut % 2 : 2] * 256 + train_bytes[1::2]
pair_p = np.bincount(codes, minlength=256**2) + 100 * np.outer(unigram, unigram).ravel()
pair_p = pair_p / pair_p.sum()
pair_nats = -np.log(pair_p[test_bytes[0::2] * 256 + test_bytes[1::2]])

readings = (
    ("bigram", "word", word_nats, word_bytes),
    ("unigram", "pair", pair_nats, np.full(len(pair_nats), 2)),
)
for name, token, nats, sizes in readings:
    per_byte = jxent.metrics.Average.of((nats / sizes).astype(np.float32), sizes.astype(np.float32))
    bits = float(jxent.information.nats_to_bits(per_byte.mean()))
    table.append((name, token, math.exp(np.mean(nats)), bits))

print(f"{'model':10}{'token':8}{'perplexity per token':>22}{'bits per byte':>16}")
for name, token, perplexity, bits in table:
    print(f"{name:10}{token:8}{perplexity:22,.1f}{bits:16.4f}")

compressed = 8 * (len(lzma.compress(text)) - len(lzma.compress(train_text))) / len(test_text)
print(f"\nlzma, which has packed the training text before: {compressed:.2f} bits per byte")

# %% tags=["check"]
chex.assert_trees_all_close(table[3][3], table[2][3], rtol=1e-4)
assert table[3][2] > 10 * table[2][2]

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
names = [f"{name}, by the {token}" for name, token, *_ in table]
bar_colours = [GREY, GREY, BLUE, BLUE, ORANGE]
axes[0].barh(names, [row[2] for row in table], color=bar_colours, log=True)
axes[0].set(xlabel="perplexity per token", title="Depends on the token")
axes[1].barh(names, [row[3] for row in table], color=bar_colours)
axes[1].set(xlabel="bits per byte", title="Does not")
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# The two blue bars are one model. Its perplexity differs by orders of magnitude, its bits per byte
# not at all. Only the right-hand panel may be used to compare models whose tokenisers differ, and
# it is also the rate at which the model, with an arithmetic coder, would compress the text. `lzma`
# is such a model: where it is far ahead, that is because it remembers whole passages, and these
# models one byte.
#
# ## Outside a notebook
#
# Saved predictions of any models, made in any framework, need no Python. Labels and predictions
# (probabilities, log-probabilities or logits) go into `.npy`, `.npz` or `.csv` files:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "held_out.npz"
    np.savez(file, labels=y, **{name.replace(" ", "_"): np.asarray(z) for name, z in log_p.items()})
    with np.load(file) as saved:
        print({name: saved[name].shape for name in saved.files})

# %% [markdown]
# ```text
# python -m jxent compare held_out.npz:labels held_out.npz:MLP held_out.npz:random_forest \
#     held_out.npz:gradient_boosting --plot differences.png --json differences.json
# ```
#
# prints the table of figures and the paired comparison of this notebook and writes the picture and
# every number. `--groups` names what rows share; `python -m jxent compare --help` has the rest.
#
# ## Where next
#
# - `01_what_is_cross_entropy.ipynb`: where the number comes from, and why it is computed from
#   logits.
# - `03_imbalanced_classes.ipynb`: choosing when some classes are rare.
# - `07_continuous_targets.ipynb`: why not squared error, continuous targets, AIC and BIC.
