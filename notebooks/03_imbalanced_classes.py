# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rare classes
#
# Some classes have twenty times as many rows as others. Trained on them as they are, a model
# misses the rare ones. There are many remedies: class weights, adjusted logits, the focal loss.
# At the end you will be able to
#
# - say what each of them does to the model, with one equation for the first two;
# - measure what it gains and what it costs: recall, cross-entropy by class, calibration;
# - choose, and know when to leave the loss alone.

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
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import precision_recall_curve

SEEDS, STEPS = 10, 1000

plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
COLOURS = {
    "plain": "black",
    "balanced weights": "#0072B2",
    "effective numbers": "#56B4E9",
    "adjusted logits": "#D55E00",
    "focal": "#009E73",
    "adjusted afterwards": "#E69F00",
}
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% tags=["fast"]
SEEDS, STEPS = 3, 200

# %% [markdown]
# ## Data with rare classes
#
# The digits of scikit-learn, 8 × 8 pixels. Of the even digits we train on 120 rows each, of the
# odd ones on 6: a share $\pi_y$ of the rows each, the *prior*. Held out are 50 rows of every digit,
# so that there are enough rare ones to measure anything. One split for each seed.

# %%
CLASSES = 10
labels_of_all = np.arange(CLASSES)
rare = labels_of_all % 2 == 1
counts = np.where(rare, 6, 120)
prior = counts / counts.sum()


def split(seed):
    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(digits == y)) for y in range(CLASSES)]
    held_out = np.concatenate([rows[:50] for rows in order])
    rows = np.concatenate([rows[50 : 50 + n] for rows, n in zip(order, counts, strict=True)])
    batches = np.stack([rng.choice(len(rows), 64, replace=False) for _ in range(STEPS)])
    return pixels[rows], digits[rows], pixels[held_out], digits[held_out], batches


x, y, held_out_x, held_out_y, batches = (
    np.stack(each) for each in zip(*map(split, range(SEEDS)), strict=True)
)
print("training  ", np.bincount(y[0]))
print("prior, %  ", (100 * prior).round(2))
print("held out  ", np.bincount(held_out_y[0]))

# %% [markdown]
# ## Which class does an unweighted loss favour?
#
# The frequent one. To see it without any data, take a model that looks at nothing: one logit $z_v$
# for each class. Its mean loss and the gradient are
#
# $$\sum_y \pi_y\,(\mathrm{lse} - z_y), \qquad \frac{\partial}{\partial z} = p - \pi .$$
#
# It is best where $p = \pi$: the model says how frequent each class is, and always predicts a
# frequent one. Two changes move this:
#
# | | gradient of a row of class $y$ | best $p$ of a model that looks at nothing |
# |---|---|---|
# | as it is | $p - e_y$ | $p_v \propto \pi_v$ |
# | weights $c_y$ | $c_y\,(p - e_y)$ | $p_v \propto c_v\,\pi_v$ |
# | adjusted, $z + \log \pi$ in training only | $\mathrm{softmax}(z + \log\pi) - e_y$ | all alike |
#
# So **both change the prior that the model is fitted to**: weights to one in proportion to
# $c_v \pi_v$, adjustment to equal classes. By Bayes' rule that is all they should change, since
# $p(y \mid x) \propto p(x \mid y)\,\pi_y$.

# %%
balanced = jxent.imbalance.balanced_class_weights(counts)
effective = jxent.imbalance.effective_number_weights(counts, beta=0.99)


def mean_loss(z, class_weights=None):
    rows = jnp.broadcast_to(z, (CLASSES, CLASSES))  # one row of each class, as often as it occurs
    loss = jxent.cross_entropy
    return loss(rows, labels_of_all, row_weights=jnp.asarray(counts), class_weights=class_weights)


def adjusted_loss(z):
    return mean_loss(jxent.imbalance.logit_adjustment(z, counts))


fitted = {  # where each of the losses is least
    "plain": (mean_loss, jnp.log(prior)),
    "balanced weights": (lambda z: mean_loss(z, balanced), jnp.log(balanced * prior)),
    "effective numbers": (lambda z: mean_loss(z, effective), jnp.log(effective * prior)),
    "adjusted logits": (adjusted_loss, jnp.zeros(CLASSES)),
}
print("                   p of an even digit   of an odd one")
for name, (_, z) in fitted.items():
    p = jax.nn.softmax(z)
    print(f"{name:<18} {p[0]:18.4f} {p[1]:15.4f}")

# %% tags=["check"]
for loss_fn, z in fitted.values():
    here, elsewhere = jax.vmap(jax.grad(loss_fn))(jnp.stack([z, z + rare]))
    assert jnp.abs(here).max() < 1e-6 and jnp.abs(elsewhere).max() > 1e-3  # the least, and not

# %% [markdown]
# Balanced weights are $c_v = N/(V N_v)$. Effective numbers count a row less the more there are of
# its class, $c_v \propto (1 - \beta)/(1 - \beta^{N_v})$, and so lie between no weights and balanced
# ones. How far between is up to $\beta$, and to the counts:

# %%
betas = 1 - np.logspace(-4, 0, 60)
shares = []
for beta in betas:
    c = np.asarray(jxent.imbalance.effective_number_weights(counts, float(beta)), np.float64)
    shares.append((c * prior)[rare].sum() / (c * prior).sum())

fig, ax = plt.subplots(figsize=(7, 3.5))
ax.plot(1 - betas, 100 * np.array(shares), color=COLOURS["effective numbers"], linewidth=2.5)
for name, level in (("balanced weights", 50), ("plain", 100 * prior[rare].sum())):
    ax.axhline(level, color=COLOURS[name], linestyle=":")
    ax.text(1e-4, level + 1, name, color=COLOURS[name], ha="right")
ax.set(xscale="log", xlim=(1, 1e-4), ylim=(0, 56))
ax.set(xlabel="1 − β", ylabel="fitted share of odd digits (%)")
ax.set_title("Effective numbers move the prior part of the way")
plt.show()

# %% [markdown]
# The **focal loss** does not know the prior. It multiplies each row's loss by $(1 - p_y)^\gamma$,
# so that rows the model is sure of count less. Rare rows are often hard, but not only they.
#
# ## Train with each
#
# A small network in plain JAX. `vmap` trains one for each seed at once: the same splits, first
# models and batches for every loss, so that we may compare in pairs.

# %%
losses = {
    "plain": lambda logits, y: jxent.cross_entropy(logits, y),
    "balanced weights": lambda logits, y: jxent.cross_entropy(logits, y, class_weights=balanced),
    "effective numbers": lambda logits, y: jxent.cross_entropy(logits, y, class_weights=effective),
    "adjusted logits": lambda logits, y: jxent.cross_entropy(
        jxent.imbalance.logit_adjustment(logits, counts), y
    ),
    "focal": lambda logits, y: jxent.softmax_focal_loss(logits, y, gamma=2.0).mean(),
}
optimizer = optax.adamw(1e-3, weight_decay=1e-2)


def init(key):
    first, second = jax.random.split(key)
    return {
        "W1": jax.nn.initializers.he_normal()(first, (64, 128)),
        "b1": jnp.zeros(128),
        "W2": jax.nn.initializers.lecun_normal()(second, (128, CLASSES)),
        "b2": jnp.zeros(CLASSES),
    }


def model(params, x):
    return jax.nn.relu(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]


def held_out_logits(loss):
    def train(params, x, y, held_out_x, batches):
        def step(state, rows):
            params, opt_state = state
            grads = jax.grad(lambda params: loss(model(params, x[rows]), y[rows]))(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return model(params, held_out_x)

    return jax.jit(jax.vmap(train))(first_models, x, y, held_out_x, batches)


first_models = jax.vmap(init)(jax.random.split(jax.random.key(0), SEEDS))
logits = {name: held_out_logits(loss) for name, loss in losses.items()}  # [seeds, rows, classes]

# %% [markdown]
# One more that needs no training: take the plain model and divide its $p_v$ by $\pi_v$ afterwards.
# It is `tau=-1` of the same function. Anything that is trained has to be compared with this.

# %%
logits["adjusted afterwards"] = jxent.imbalance.logit_adjustment(logits["plain"], counts, tau=-1.0)

# %% [markdown]
# ## By class
#
# `ClassificationMetrics` has the cross-entropy of each class and the confusion, whose diagonal is
# the recall.


# %%
@jax.jit
@jax.vmap
def by_class(logits, labels):
    metrics = jxent.metrics.ClassificationMetrics.empty(classes=CLASSES)
    summary = metrics.update(logits, labels).summary()
    recall = jnp.diagonal(summary.confusion) / summary.confusion.sum(axis=1)
    return summary.class_cross_entropy, recall


class_nats, recall = {}, {}
print("                        recall, %       cross-entropy, nats")
print("                       even    odd          even    odd")
for name, z in logits.items():
    class_nats[name], recall[name] = (np.asarray(each) for each in by_class(z, held_out_y))
    r, h = 100 * recall[name], class_nats[name]
    print(
        f"{name:<20} {r[:, ~rare].mean():6.1f} {r[:, rare].mean():6.1f}"
        f"      {h[:, ~rare].mean():8.3f} {h[:, rare].mean():6.3f}"
    )

# %% tags=["check"]
assert all(np.all((r >= 0) & (r <= 1)) for r in recall.values())

# %%
fig, ax = plt.subplots(figsize=(7, 3.5))
order = np.argsort(rare, kind="stable")  # even digits, then odd
places = np.arange(CLASSES) + (np.arange(CLASSES) >= 5) * 0.6
shown = ("plain", "focal", "balanced weights", "adjusted logits", "adjusted afterwards")
for i, name in enumerate(shown):
    across = places + 0.13 * (i - 2)
    nats = class_nats[name].mean(axis=0)[order]
    ax.plot(across, nats, "o", color=COLOURS[name], markersize=6, label=name)
    ax.vlines(across, 0, nats, color=COLOURS[name], alpha=0.35)
ax.set_xticks(places, order)
ax.set(ylim=(0, None), xlabel="120 rows of each          digit          6 rows of each")
ax.set_ylabel("held-out loss (nats)")
ax.set_title("What the rare classes gain, the frequent ones pay")
ax.legend(frameon=False, fontsize=10, loc="upper left")
plt.show()

# %% [markdown]
# ## Precision and recall
#
# A decision is a threshold on a probability. The curve shows all thresholds at once, for the five
# odd digits taken together, each against the rest; the dot is where the most probable class puts
# it. Precision depends on how many frequent rows there are to be mistaken, so the rows are weighed
# by the training prior. A remedy that only moves the prior moves the dot along its curve. One that
# learns more about the rare digits lifts the curve.

# %%
weights = CLASSES * prior[held_out_y]  # row weights: the held-out rows at the training prior


def one_against_the_rest(name):
    """Of each row and each odd digit: is it, how probable, is it predicted, what it counts."""
    p = np.asarray(jax.nn.softmax(logits[name]))
    truth = held_out_y[..., None] == labels_of_all
    predicted = p.argmax(axis=-1)[..., None] == labels_of_all
    w = np.broadcast_to(weights[..., None], p.shape)
    return (each[..., rare].ravel() for each in (truth, p, predicted, w))


fig, ax = plt.subplots(figsize=(7, 3.5))
for name in shown:
    truth, p, predicted, w = one_against_the_rest(name)
    precisions, recalls, _ = precision_recall_curve(truth, p, sample_weight=w)
    style = "--" if name == "adjusted afterwards" else "-"
    ax.plot(recalls, precisions, style, color=COLOURS[name], label=name)
    hits = w[truth & predicted].sum()
    ax.plot(hits / w[truth].sum(), hits / w[predicted].sum(), "o", color=COLOURS[name], ms=9)
ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall of odd digits", ylabel="precision")
ax.set_title("The curves are close; the dots are not")
ax.legend(frameon=False, fontsize=10, loc="lower left")
plt.show()

# %% [markdown]
# ## Two priors, two cross-entropies
#
# Probabilities are right for one prior only. If the model will meet classes as frequent as in
# training, score it with the rows weighed by that prior; if it will meet them equally often, score
# the rows as they are. And since the remedies move the prior, we can move it on: subtract
# $\log \pi$ from the plain model's logits, add it to those of the model trained with adjustment,
# subtract $\log c$ where weights $c$ were used.


# %%
@jax.jit
@jax.vmap
def log_loss(logits, labels, weights):
    return jxent.metrics.log_loss(logits, labels, row_weights=weights)


def two_priors(z):
    """Nats at the training prior, and with all classes alike; one of each for each seed."""
    alike = np.ones_like(weights)
    return np.asarray(log_loss(z, held_out_y, weights)), np.asarray(log_loss(z, held_out_y, alike))


adjust = jxent.imbalance.logit_adjustment
moved = {  # to the training prior
    "plain": logits["plain"],
    "balanced weights": adjust(logits["balanced weights"], balanced, tau=-1.0),
    "effective numbers": adjust(logits["effective numbers"], effective, tau=-1.0),
    "adjusted logits": adjust(logits["adjusted logits"], counts),
}
print("                     as trained                   moved to the training prior")
print("nats                 training prior  alike        training prior")
for name, z in moved.items():
    training, alike = two_priors(logits[name])
    back, _ = two_priors(z)
    print(f"{name:<20} {training.mean():14.3f} {alike.mean():6.3f} {back.mean():21.3f}")
training, alike = two_priors(logits["adjusted afterwards"])
print(f"{'adjusted afterwards':<20} {training.mean():14.3f} {alike.mean():6.3f}")

# %% tags=["check"]
assert np.allclose(weights.mean(), 1)
# The cross-entropies by class say the same.
assert np.allclose(training, class_nats["adjusted afterwards"] @ prior, rtol=1e-4)

# %% [markdown]
# If a remedy changed the prior and nothing else, the last column would be the plain model's number
# in every row. Compare the two kinds. Adjustment stays in the logits however well the model fits.
# A weight multiplies a gradient, $c_y (p - e_y)$, and a network that fits every training row
# brings that to 0 whatever $c_y$ is: what is left of the weights depends on how long one trains,
# and $\log c$ is then too much to subtract.
#
# ## Calibration
#
# Of the predictions made with 80 %, are 80 % right? Again at the training prior. A temperature,
# fitted on half of the held-out rows and used on the other half, corrects a model that is too sure
# or not sure enough. A prior that was moved is another fault, with another cure: move it back.

# %%
fit = np.arange(held_out_y.shape[1]) % 2 == 0  # half of each class


@jax.jit
@jax.vmap
def temperature(logits, labels, weights):
    return jxent.metrics.fit_temperature(logits, labels, row_weights=weights)


@jax.jit
@jax.vmap
def expected_calibration_error(logits, labels, weights):
    return jxent.metrics.expected_calibration_error(logits, labels, row_weights=weights)


def calibration_error(z):
    """In per cent, on the half that no temperature is fitted to."""
    rows = (each[:, ~fit] for each in (z, held_out_y, weights))
    return 100 * np.asarray(expected_calibration_error(*rows))


T = {
    name: np.asarray(temperature(z[:, fit], held_out_y[:, fit], weights[:, fit]))
    for name, z in logits.items()
}
cooled = {name: z / T[name][:, None, None] for name, z in logits.items()}


print("calibration error, %     as trained  temperature   T    prior moved back")
for name, z in logits.items():
    before, after = calibration_error(z).mean(), calibration_error(cooled[name]).mean()
    back = f"{calibration_error(moved[name]).mean():16.1f}" if name in moved else ""
    print(f"{name:<24} {before:10.1f} {after:12.1f}  {T[name].mean():5.2f} {back}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 3.7), sharey=True)
for ax, given, title in zip(
    axes, (logits, cooled), ("as trained", "with a temperature"), strict=True
):
    ax.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    for name in ("plain", "balanced weights", "adjusted logits", "focal"):
        curve = jxent.metrics.reliability_curve(
            given[name][:, ~fit].reshape(-1, CLASSES),
            held_out_y[:, ~fit].ravel(),
            row_weights=weights[:, ~fit].ravel(),
            bins=5,
        )
        share = np.asarray(curve.weight / curve.weight.sum())
        some = share > 0.003  # fewer rows say nothing
        said, right = np.asarray(curve.confidence)[some], np.asarray(curve.accuracy)[some]
        ax.plot(said, right, color=COLOURS[name], linewidth=1, label=name)
        ax.scatter(said, right, 20 + 150 * share[some], color=COLOURS[name], alpha=0.75)
    ax.set(xlim=(0.2, 1.02), ylim=(0, 1.03), xlabel="said probability", title=title)
axes[0].set_ylabel("share that is right")
axes[0].legend(frameon=False, fontsize=10, loc="lower right", borderaxespad=0.1)
fig.suptitle(
    "Above the line: not sure enough. Below: too sure. Areas: shares of the rows", fontsize=11
)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Which one?
#
# The differences from the plain model, seed by seed, with their 95 % intervals. A star marks where
# 0 lies outside.


# %%
def difference(values, base):
    d = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    return f"{d.mean():+8.3f} ± {half:.3f}{'*' if abs(d.mean()) > half else ' '}"


def scores(name):
    odd = recall[name][:, rare].mean(axis=1)
    return odd, *two_priors(logits[name]), calibration_error(logits[name]) / 100


columns = ("recall of odd digits", "nats, training prior", "nats, alike", "calibration error")
print(f"{'':<20}" + "".join(f"{column:>22}" for column in columns))
plain = scores("plain")
print(f"{'plain':<20}" + "".join(f"{value.mean():22.3f}" for value in plain))
for name in list(logits)[1:]:
    cells = [difference(*pair) for pair in zip(scores(name), plain, strict=True)]
    print(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))

# %% [markdown]
# Ask first which prior the model will meet, and what a mistake costs.
#
# | you need | do |
# |---|---|
# | probabilities where classes are as frequent as in training | plain cross-entropy |
# | every class to count the same | plain, adjusted afterwards; then try adjusted training |
# | another prior, known later | adjust by the ratio of the priors when you predict |
# | mistakes that cost differently | plain, and the decision of the least expected cost |
# | a model too small to fit all rows | class weights say which to fit |
# | a stop to millions of easy rows | the focal loss, and a temperature after it |
#
# All of them are worth one more training run and an interval: on other data the table above may
# look different, and a remedy whose interval holds 0 has not been shown to do anything.
#
# ## Where next
#
# - `05_choosing_a_model.ipynb`: paired comparison, calibration and temperature, in detail.
# - `04_large_vocabulary.ipynb`: words are imbalanced classes too. There the adjustment goes into
#   `linear_cross_entropy(hidden, head, labels, bias=logit_adjustment(bias, counts))`, and the
#   logits are never stored.
