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
# Several models have been trained; one is to be used. This notebook takes five classifiers on real
# data from their held-out predictions to a decision, and shows how far that decision can be
# trusted. At the end you will be able to
#
# - measure held-out cross-entropy, and say by how much one model is better than another and
#   whether that is more than luck;
# - see whether a model knows how sure it may be, repair it with one number, and explain why the
#   more accurate model can have the worse cross-entropy;
# - say when cross-entropy is the loss to train with, and how it reaches perplexity, bits per byte
#   and continuous targets.

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
import os
import pydoc_data.topics
import re
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jxent.regression import bin_centers, expected_value, gaussian_nll, hl_gauss
from matplotlib import pyplot as plt
from scipy.stats import ttest_1samp
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import ShuffleSplit, StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from threadpoolctl import threadpool_limits

FAST = os.environ.get("JXENT_FAST") == "1"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
print(jax.devices()[0])

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
x, y = x[: 600 if FAST else None] / 16, y[: 600 if FAST else None]
N, V = len(y), 10
FOLDS, TREES = (3, 50) if FAST else (5, 100)
folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)

models = {
    "logistic regression": LogisticRegression(max_iter=1000),
    "random forest": RandomForestClassifier(TREES, random_state=0),
    "gradient boosting": HistGradientBoostingClassifier(
        max_iter=20 if FAST else 40, learning_rate=0.15, max_leaf_nodes=8, random_state=0
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

    params, _ = train(loss_fn, params, optax.adam(1e-2), 60 if FAST else 120)
    return mlp(params, digits)


logits = train_on(init(np.random.default_rng(0), (64, 64, V), FOLDS), ~held_out)
log_p["MLP"] = jax.nn.log_softmax(logits[fold_of, np.arange(N)])

# %% [markdown]
# A row's loss is what the model paid for the label that came true, in nats:
#
# $$\ell_i = -\log p_{y_i} \qquad\qquad H = \frac1N\sum_i \ell_i.$$
#
# `ClassificationMetrics` measures it, and whatever else can be said of a classifier, from a stream
# of batches: it carries sums and divides once, at the end, so batches may differ in size.


# %%
@jax.jit
def update(metrics, logits, labels):
    return metrics.update(logits, labels)


summaries = {}
BATCH = 300 if FAST else 512
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
    chex.assert_trees_all_close(
        (pair.mean, pair.standard_error), (np.mean(b - a), paired), rtol=1e-5
    )
    correlation = np.corrcoef(a, b)[0, 1]
    assert (paired < unpaired[pair.worse]) == (correlation > 0)
    print(
        f"{pair.worse:28}{pair.mean:8.4f}{1.96 * paired:11.4f}"
        f"{1.96 * unpaired[pair.worse]:12.4f}{correlation:13.2f}"
    )

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
    chex.assert_trees_all_close(pair.adjusted_p_value, largest, rtol=1e-9)
    print(
        f"{pair.better + ' < ' + pair.worse:42}{pair.p_value:9.1e}{len(pairs) - k:7}"
        f"{pair.adjusted_p_value:9.1e}  {'yes' if pair.real else 'no'}"
    )

# %% [markdown]
# What it protects from can be simulated: five models that are all equally good, on 200 rows, many
# times over. How often is some pair called different at p ≤ 0.05?

# %%
rng = np.random.default_rng(0)
first, second = np.triu_indices(5, k=1)
raw, corrected = [], []
for _ in range(300 if FAST else 1000):
    equal = rng.gamma(0.5, size=(200, 5)) + rng.gamma(0.5, size=(200, 1))
    smallest = ttest_1samp(equal[:, first] - equal[:, second], 0).pvalue.min()
    raw.append(smallest <= 0.05)
    corrected.append(10 * smallest <= 0.05)
print(f"some pair 'different', though none is: {np.mean(raw):.0%} of the time without correction,")
print(f"{np.mean(corrected):.0%} with Holm's")
assert np.mean(corrected) < 0.1 < np.mean(raw)

# %% [markdown]
# All this speaks of these trained models on new rows like these. It does not say what another
# training run, with another seed or other training rows, would give: for that `compare` takes one
# mean loss for each of J random splits and `test_fraction`, as in the last section. And where rows
# belong together (patients, documents), name them in `groups`.
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
    assert (jnp.argmax(both[0], axis=-1) == jnp.argmax(both[1], axis=-1)).all()

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
# Points below the diagonal are promises not kept; points above it are knowledge not used.
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
chex.assert_trees_all_close(table[3][3], table[2][3], rtol=1e-4)
assert table[3][2] > 10 * table[2][2]

compressed = 8 * (len(lzma.compress(text)) - len(lzma.compress(train_text))) / len(test_text)
print(f"\nlzma, which has packed the training text before: {compressed:.2f} bits per byte")

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
# ### Without held-out rows: AIC and BIC
#
# For a model with few parameters k, fitted by maximum likelihood, theory replaces the held-out
# rows: $\mathrm{AIC} = 2k + 2\sum_i \ell_i$ and $\mathrm{BIC} = k\log N + 2\sum_i \ell_i$, with ℓ
# on the rows fitted. Divided by 2N they are in nats a row, beside the losses that they estimate.

# %%
data = load_breast_cancer()
columns = [list(data.feature_names).index(f"mean {name}") for name in (
    "texture", "smoothness", "symmetry", "fractal dimension"
)] + [list(data.feature_names).index(f"{name} error") for name in (
    "texture", "smoothness", "symmetry", "fractal dimension"
)]  # fmt: skip
features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
M = len(features)

print(
    f"{'features':>8}{'fitted rows':>13}{'AIC/2N':>9}{'BIC/2N':>9}{'held out':>10}   (nats a row)"
)
for count in range(1, len(columns) + 1):
    chosen = features[:, columns[:count]]
    model = LogisticRegression(C=1e6, max_iter=1000)  # as good as no penalty
    with threadpool_limits(1):
        fitted = model.fit(chosen, data.target).predict_log_proba(chosen)
        other = cross_val_predict(model, chosen, data.target, cv=10, method="predict_log_proba")
    fitted, other = (
        jxent.cross_entropy(jnp.asarray(z, jnp.float32), data.target, reduction="none")
        for z in (fitted, other)
    )
    k = count + 1  # and the bias
    aic, bic = jxent.selection.aic(fitted, k), jxent.selection.bic(fitted, k)
    assert bic > aic > 2 * float(fitted.sum())
    print(
        f"{count:8}{fitted.mean():13.4f}{aic / (2 * M):9.4f}{bic / (2 * M):9.4f}"
        f"{other.mean():10.4f}"
    )

# %% [markdown]
# The loss on the fitted rows only goes down. The others can go up again, where a feature costs more
# than it brings. Where held-out rows can be had, use them: they need no theory.
#
# ## Why not train with squared error?
#
# Squared error of probabilities (the Brier score) is a fair way to *measure* a classifier. As a
# training loss it has a fault. With p = σ(z),
#
# $$\ell = -y\log p - (1-y)\log(1-p): \quad \frac{\partial\ell}{\partial z} = p - y,
# \qquad\qquad
# \ell = \tfrac12 (p-y)^2: \quad \frac{\partial\ell}{\partial z} = (p - y)\,p(1-p).$$
#
# The factor p(1 − p) is the slope of the sigmoid. Where the model is sure it is nearly 0, also
# where the model is sure and wrong.


# %%
def cross_entropy(z, y):
    return jxent.sigmoid_binary_cross_entropy(z, y)


def squared_error(z, y):
    return optax.l2_loss(jax.nn.sigmoid(z), y)  # ½ (p − y)²


z = np.linspace(-10, 10, 401, dtype=np.float32)
p = 1 / (1 + np.exp(-z))
value_and_slope = {
    loss: jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None)))(z, 1.0)
    for loss in (cross_entropy, squared_error)
}
chex.assert_trees_all_close(value_and_slope[cross_entropy][1], p - 1, atol=1e-5)
chex.assert_trees_all_close(value_and_slope[squared_error][1], (p - 1) * p * (1 - p), atol=1e-5)

fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
axes[0].plot(z, p, color="#000000", label="σ(z)")
axes[0].plot(z, p * (1 - p), color=ORANGE, label="p(1 − p)")
axes[0].set(xlabel="logit z", title="The sigmoid and its slope")
loss_names = {cross_entropy: "cross-entropy", squared_error: "squared error"}
for (loss, name), colour in zip(loss_names.items(), (BLUE, ORANGE), strict=True):
    value, slope = value_and_slope[loss]
    axes[1].plot(z, value, color=colour, label=name)
    axes[2].plot(z, slope, color=colour, label=name)
axes[1].set(xlabel="logit z, label 1", title="The loss (nats, for cross-entropy)")
axes[2].set(xlabel="logit z, label 1", title="Its gradient ∂ℓ/∂z")
axes[2].annotate(
    "sure, wrong,\nand no gradient", (-8.5, -0.003), (-9.5, -0.55), arrowprops={"arrowstyle": "->"}
)
for ax, place in zip(axes, ("upper left", "upper right"), strict=False):
    ax.legend(frameon=False, fontsize=10, loc=place)
plt.show()

# %% [markdown]
# With V classes it is the same with a matrix: the gradient of ½‖p − e_y‖² is J (p − e_y) with
# J = diag(p) − p pᵀ, the slope of the softmax, and that of the cross-entropy is p − e_y.

# %%
z = jnp.array([6.0, -1.0, 0.5, -3.0])  # sure of class 0; the label is 1
e_y = np.eye(4)[1]
of_cross_entropy = jax.jit(jax.grad(lambda z: jxent.cross_entropy(z, np.array(1))))(z)
of_squared_error = jax.jit(jax.grad(lambda z: 0.5 * jnp.sum((jax.nn.softmax(z) - e_y) ** 2)))(z)

p = np.asarray(jax.nn.softmax(z))
J = np.diag(p) - np.outer(p, p)
chex.assert_trees_all_close(of_cross_entropy, p - e_y, atol=1e-5)
chex.assert_trees_all_close(of_squared_error, J @ (p - e_y), atol=1e-5)
print("of the cross-entropy", [f"{g:.4f}" for g in of_cross_entropy])
print("of the squared error", [f"{g:.4f}" for g in of_squared_error])

# %% [markdown]
# Does it matter? A logistic regression on the breast cancer data, from an ordinary start (all
# zeros) and from a bad one: a bias of −10, which is sure that no row has label 1. Gradient descent
# with three learning rates for each loss, and Adam, which divides the gradient by its own size and
# so hides part of the fault.

# %%
inputs = jnp.asarray(features, jnp.float32)
target = jnp.asarray(data.target, jnp.float32)
STEPS = 300


def linear(params):
    return inputs @ params["w"] + params["b"]


def run(loss, optimizer, bias):
    """Gradient descent; the cross-entropy on the way, and the accuracy at the end."""
    params = {"w": jnp.zeros(inputs.shape[1]), "b": bias}

    def loss_fn(params):
        z = linear(params)
        return jnp.mean(loss(z, target)), jnp.mean(cross_entropy(z, target))

    params, (_, curve) = train(loss_fn, params, optimizer, STEPS, has_aux=True)
    return curve, jnp.mean((linear(params) > 0) == (target == 1))


@partial(jax.jit, static_argnames="loss")
def sgd(loss, biases, rates):
    def one(bias, rate):
        return run(loss, optax.sgd(rate), bias)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(biases, rates)


@partial(jax.jit, static_argnames="loss")
def adam(loss, biases):
    return jax.vmap(lambda bias: run(loss, optax.adam(0.1), bias))(biases)


biases, rates = jnp.array([0.0, -10.0]), jnp.array([0.1, 1.0, 10.0])
descents = {}
print(f"accuracy after {STEPS} steps       sgd, learning rate 0.1, 1, 10       adam")
for loss in (cross_entropy, squared_error):
    descents[loss], accuracy = sgd(loss, biases, rates)
    for bias, of_sgd, of_adam in zip(biases, accuracy, adam(loss, biases)[1], strict=True):
        shares = "".join(f"{share:11.1%}" for share in (*of_sgd, of_adam))
        print(f"{loss_names[loss]:15}  bias {bias:5.1f}{shares}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
for start, (ax, bias) in enumerate(zip(axes, biases, strict=True)):
    for loss, colour in ((cross_entropy, BLUE), (squared_error, ORANGE)):
        for curve, rate, line in zip(descents[loss][start], rates, (":", "--", "-"), strict=True):
            name = f"{loss_names[loss]}, rate {rate:g}"
            ax.plot(curve, color=colour, linestyle=line, label=name, linewidth=2)
    ax.set_yscale("log")
    ax.set(xlabel="step", title=f"Start at bias {bias:g}".replace("-", "−"))
axes[0].set_ylabel("cross-entropy (nats)")
axes[0].legend(frameon=False, fontsize=10)
plt.show()

moving, stalled = (descents[loss][1, 1, STEPS // 3] for loss in (cross_entropy, squared_error))
assert stalled > 5 * moving

# %% [markdown]
# From an ordinary start both losses work. From the bad one, squared error stands still on a plateau
# whose length depends on the learning rate, and the gradient that should lead away from the
# mistake is small *because* the mistake is sure. A larger rate or Adam shortens the wait;
# cross-entropy does not have it. A network meets this whenever it becomes sure of something wrong.
#
# ## Continuous targets are likelihoods too
#
# For a continuous target squared error is right, and it *is* a cross-entropy: that of a Gaussian
# of unit variance,
#
# $$-\log \mathcal N(y;\mu,\sigma^2) =
# \tfrac12\Big(\log\sigma^2 + \frac{(y-\mu)^2}{\sigma^2} + \log 2\pi\Big)
# \;\overset{\sigma = 1}{=}\; \tfrac12 (y-\mu)^2 + \tfrac12\log 2\pi .$$
#
# There is no sigmoid between μ and the loss, so nothing saturates.

# %%
rng = np.random.default_rng(0)
mean, target = rng.normal(size=(2, 100)).astype(np.float32)
constant = 0.5 * math.log(2 * math.pi)
nll = gaussian_nll(mean, target)
slope = jax.jit(jax.grad(lambda mean: jnp.sum(gaussian_nll(mean, target))))(mean)
chex.assert_trees_all_close(nll, 0.5 * (mean - target) ** 2 + constant, rtol=1e-5)
chex.assert_trees_all_close(slope, mean - target, atol=1e-5)
print(f"½ log 2π = {constant:.4f} nats")

# %% [markdown]
# As a likelihood it can do what squared error cannot: let the model say how sure it is, row by
# row. One network predicts μ and one σ for all; another predicts μ and log σ² (heteroscedastic).
# The noise in these data grows to the right.

# %%
rng = np.random.default_rng(0)
u = np.sort(rng.uniform(-3, 3, 600)).astype(np.float32)
noise = 0.05 + 0.5 / (1 + np.exp(-2 * u))
v = (np.sin(u) + noise * rng.standard_normal(600)).astype(np.float32)
seen = rng.random(600) < 0.5


def one_sigma(params, x):
    return mlp(params["mlp"], x)[..., 0], params["log_variance"]


def each_sigma(params, x):
    out = mlp(params["mlp"], x)
    return out[..., 0], out[..., 1]


def gaussian_rows(predict, params, x, y):
    mean, log_variance = predict(params, x)
    return gaussian_nll(mean, y, log_variance=log_variance)


@partial(jax.jit, static_argnames="predict")
def fit_curve(predict, params):
    def loss_fn(params):
        return jnp.mean(gaussian_rows(predict, params, u[:, None], v), where=seen)

    params, _ = train(loss_fn, params, optax.adam(1e-2), 300 if FAST else 600)
    mean, log_variance = predict(params, u[:, None])
    nll = jnp.mean(gaussian_rows(predict, params, u[:, None], v), where=~seen)
    mse = jnp.mean((mean - v) ** 2, where=~seen)
    return mean, jnp.exp(0.5 * log_variance), nll, mse


fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
for ax, predict, outputs in zip(axes, (one_sigma, each_sigma), (1, 2), strict=True):
    layers = init(np.random.default_rng(0), (1, 16, 16, outputs), 1)
    params = {"mlp": jax.tree.map(lambda p: p[0], layers), "log_variance": np.float32(0)}
    mean, sigma, nll, mse = (np.asarray(each) for each in fit_curve(predict, params))
    print(f"{predict.__name__:12} held out: {nll:7.4f} nats, mean squared error {mse:.4f}")
    ax.plot(u[~seen], v[~seen], ".", color=GREY, markersize=4)
    ax.plot(u, mean, color=BLUE)
    ax.fill_between(u, mean - 2 * sigma, mean + 2 * sigma, color=BLUE, alpha=0.2, label="μ ± 2σ")
    words = predict.__name__.replace("_", " ").replace("sigma", "σ")
    ax.set(xlabel="x", title=f"{words}: {nll:.3f} nats, held out".replace("-", "−"))
    ax.legend(frameon=False, fontsize=10, loc="upper left")
axes[0].set_ylabel("y")
plt.show()

# %% [markdown]
# ### A regression made a classification: HL-Gauss
#
# Cut the range into V bins, make each value a distribution t over them (a Gaussian about it, σ of
# 0.75 bins), train `cross_entropy(logits, t)`, and predict the mean of what comes out:

# %%
edges = (-4.0, 4.0, 32)  # low, high, V; targets in standard deviations
t = hl_gauss(jnp.array([-1.0, 0.3]), edges)
decoded = expected_value(t, bin_centers(edges), probabilities=True)
print("decoded:", decoded)
chex.assert_trees_all_close(decoded, jnp.array([-1.0, 0.3]), atol=1e-2)

fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
for each, value, colour in zip(t, (-1.0, 0.3), (BLUE, ORANGE), strict=True):
    ax.bar(bin_centers(edges), each, width=0.23, color=colour, alpha=0.7, label=f"y = {value}")
    ax.axvline(value, color=colour, linewidth=1)
ax.set(xlim=(-2, 1.3), xlabel="target (standard deviations)", ylabel="probability of the bin")
ax.set_title("Two targets as distributions over bins")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Is it better? On scikit-learn's diabetes data, over random splits, all trained at once: a linear
# model and three small MLPs. All four give a density of the target, so all four have a held-out
# loss in the same nats; that of HL-Gauss is its histogram, −log (p_v / width of the bin).

# %%
J, TEST, HIDDEN = (4, 0.25, 16) if FAST else (15, 0.25, 32)
data = load_diabetes()
inputs = ((data.data - data.data.mean(0)) / data.data.std(0)).astype(np.float32)
targets = ((data.target - data.target.mean()) / data.target.std()).astype(np.float32)
assert int(jxent.regression.count_outside(targets, edges)) == 0
bins = hl_gauss(targets, edges)
width = 8.0 / 32
bin_of = np.floor((targets + 4) / width).astype(np.int32)

test_rows = np.zeros((J, len(targets)), bool)
for split, (_, rows) in enumerate(ShuffleSplit(J, test_size=TEST, random_state=0).split(inputs)):
    test_rows[split, rows] = True


def least_squares(test):
    """The linear model; its σ is that of the training rows."""
    X = np.column_stack([inputs, np.ones(len(inputs), np.float32)])
    coefficients, *_ = np.linalg.lstsq(X[~test], targets[~test])
    mean = X @ coefficients
    errors = (mean - targets) ** 2
    nll = np.asarray(gaussian_nll(mean, targets, np.mean(errors[~test])))
    return np.mean(nll[test]), np.mean(errors[test])


def gaussian(predict):
    def loss(params, keep):
        return jnp.mean(gaussian_rows(predict, params, inputs, targets), where=keep)

    def test(params):
        return gaussian_rows(predict, params, inputs, targets), predict(params, inputs)[0]

    return loss, test


def histogram_loss(params, keep):
    return jxent.cross_entropy(mlp(params["mlp"], inputs), bins, where=keep)


def histogram_test(params):
    logits = mlp(params["mlp"], inputs)
    nll = jxent.cross_entropy(logits, bin_of, reduction="none") + math.log(width)
    return nll, expected_value(logits, bin_centers(edges))


@partial(jax.jit, static_argnames=("loss", "test"))
@partial(jax.vmap, in_axes=(0, 0, None, None))
def one_split(params, keep, loss, test):
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    params, _ = train(lambda params: loss(params, keep), params, optimizer, 100)
    nll, mean = test(params)
    return jnp.mean(nll, where=~keep), jnp.mean((mean - targets) ** 2, where=~keep)


regressors = {
    "MLP, one σ": ((10, HIDDEN, 1), *gaussian(one_sigma)),
    "MLP, each its σ": ((10, HIDDEN, 2), *gaussian(each_sigma)),
    "MLP, HL-Gauss": ((10, HIDDEN, 32), histogram_loss, histogram_test),
}
held_out_nll, held_out_mse = np.array([least_squares(test) for test in test_rows]).T
held_out_nll, held_out_mse = {"least squares": held_out_nll}, {"least squares": held_out_mse}
for name, (sizes, loss, test) in regressors.items():
    layers = init(np.random.default_rng(0), sizes, J)
    layers[-1]["W"] *= 0.1  # begin near the mean, or near equal bins
    params = {"mlp": layers, "log_variance": np.zeros(J, np.float32)}
    held_out_nll[name], held_out_mse[name] = one_split(params, ~test_rows, loss, test)

print(f"{'':18}{'nll (nats)':>12}{'mean squared error':>22}    mean ± std over {J} splits")
for name in held_out_nll:
    nll, mse = held_out_nll[name], held_out_mse[name]
    print(f"{name:18}{nll.mean():8.3f} ± {nll.std():.3f}{mse.mean():13.3f} ± {mse.std():.3f}")

# %% [markdown]
# The splits share training rows, so their results are not independent, and an ordinary standard
# error would be too small. `test_fraction` widens it (Nadeau and Bengio, 2003):

# %%
print(jxent.selection.compare(held_out_nll, test_fraction=TEST))

# %% [markdown]
# Read the two columns together. The nll punishes what is sure and wrong: a network that names a σ
# for every row can learn to be too sure of the rows it was trained on, and its squared error
# hardly shows it. HL-Gauss is a classifier, so its confidence can be looked at and tempered like
# any other's. But these are few rows with much noise, and all networks were trained for the same
# number of steps, tuned for none of them: other data may rank them otherwise. Where a difference
# is not called real, take the simpler model.
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
