# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is cross-entropy?
#
# Cross-entropy is the loss that most classifiers and language models are trained with. This
# page builds it from products of probabilities, and ends where textbook code stops being right.
#
# At the end you can
#
# - say in one sentence what a cross-entropy in nats means, and compute it by hand;
# - derive the gradient that trains the model, and check it by machine;
# - name the inputs on which the textbook formula is wrong, and see what to use in its place.

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
import itertools
import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jxent import information

plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
np.set_printoptions(precision=4, suppress=True)
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#666666"

print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% tags=["check"]
import chex

# %% [markdown]
# ## Two models, and products that vanish
#
# Four examples, each with its right answer. What matters of a model is the probability that it gave
# to each of those four answers. If the examples are independent, the probability of all four being
# right is the product. The model with the larger product explains the data better.

# %%
right_answers = {
    "A": np.array([0.1, 0.7, 0.6, 0.2]),
    "B": np.array([0.8, 0.6, 0.7, 0.9]),
}

print("model   product   −ln of it   sum of the −ln")
for name, probabilities in right_answers.items():
    product = math.prod(probabilities)
    surprises = -np.log(probabilities)
    print(f"{name:5} {product:9.4f} {-math.log(product):11.2f} {surprises.sum():16.2f}")

# %% tags=["check"]
np.testing.assert_allclose(math.prod(right_answers["A"]), 0.0084)
np.testing.assert_allclose(math.prod(right_answers["B"]), 0.3024)
np.testing.assert_allclose(-math.log(0.0084), 4.78, atol=0.005)
np.testing.assert_allclose(-math.log(0.3024), 1.20, atol=0.005)

# %% [markdown]
# Model B is the better one: 0.3024 against 0.0084. As logarithms: 1.20 against 4.78, where less is
# better. Both orders agree, because the logarithm is increasing, but only one of them survives more
# data. A product of many numbers below 1 leaves the range of floating point; the sum of their
# logarithms grows by a little for each example.

# %%
examples = np.arange(1, 401)
fig, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for (name, probabilities), color in zip(right_answers.items(), (ORANGE, BLUE), strict=True):
    many = np.resize(probabilities, examples.size).astype(np.float32)
    products = np.cumprod(many)
    sums = np.cumsum(-np.log(many))
    lost = products < np.finfo(np.float32).tiny
    axes[0].plot(examples, np.where(lost, np.nan, products), color=color)
    axes[1].plot(examples, sums, color=color, label=f"model {name}")
    if lost.any():
        end = int(np.argmax(lost))
        axes[0].plot(end, products[end - 1], "x", color=color, markersize=9, markeredgewidth=2.5)
        print(f"model {name}: {end + 1} factors are too many for a float32")
    print(f"model {name}: the sum of {len(sums)} surprises is {sums[-1]:.1f} nats")
axes[0].set(yscale="log", xlabel="examples", ylabel="product", title="Products leave float32 (×)")
axes[1].set(xlabel="examples", ylabel="sum of −ln (nats)", title="Sums of logarithms do not")
axes[1].legend(frameon=False)
fig.tight_layout()

# %% tags=["check"]
assert lost.any() and np.isfinite(sums).all()

# %% [markdown]
# Divided by the number of examples, that sum is the **cross-entropy loss**. Its unit, for natural
# logarithms, is the nat: on average model B is as surprised as if each right answer had
# probability $e^{-\text{loss}}$.

# %%
for name, probabilities in right_answers.items():
    loss = -np.log(probabilities).mean()
    typical = math.exp(-loss)
    print(f"model {name}: {loss:.4f} nats per example, as if each had probability {typical:.2f}")

# %% [markdown]
# ## Three doors
#
# Behind each of three doors there may be a prize, independently, with probability 0.8, 0.7 and 0.1.
# There are eight arrangements. The **surprise** of one is $-\ln P$: nothing for what is certain, a
# lot for what is rare.

# %%
doors = np.array([0.8, 0.7, 0.1])
arrangements = np.array(list(itertools.product([1, 0], repeat=3)))
P = np.where(arrangements == 1, doors, 1 - doors).prod(axis=1)
surprise = -np.log(P)

print("door 1  door 2  door 3        P   surprise   P · surprise")
for prizes, probability, nats in zip(arrangements, P, surprise, strict=True):
    words = "".join("prize   " if prize else "  –     " for prize in prizes)
    print(f"{words} {probability:8.3f} {nats:10.3f} {probability * nats:14.3f}")
print(f"{'sum':24} {P.sum():8.3f} {'':10} {P @ surprise:14.3f}")

# %% [markdown]
# The probabilities add up to 1. The last column adds up to the surprise to expect: the **entropy**
# of the eight arrangements,
#
# $$H(p) = -\sum_v p_v \ln p_v.$$
#
# As the doors are independent, it is also the sum of the doors' own entropies.

# %%
entropy = information.entropy(P)
per_door = information.binary_cross_entropy(doors, doors)
print(f"entropy of the arrangements {entropy:.4f} nats; of the doors {per_door}")

order = np.argsort(-P)
fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
labels = ["".join("●" if prize else "○" for prize in arrangements[i]) for i in order]
axes[0].barh(labels, P[order], color=BLUE)
axes[1].barh(labels, surprise[order], color=ORANGE)
axes[1].axvline(entropy, color=GREY, linestyle="--")
axes[1].text(entropy + 0.1, 0, "entropy", color=GREY, va="center")
axes[0].invert_yaxis()
axes[0].set(xlabel="probability", ylabel="prize (●) or none (○)", title="What is likely …")
axes[1].set(xlabel="surprise (nats)", title="… surprises little")
fig.tight_layout()

# %% tags=["check"]
np.testing.assert_allclose(entropy, P @ surprise, rtol=1e-5)
np.testing.assert_allclose(per_door.sum(), entropy, rtol=1e-5)

# %% [markdown]
# ## Entropy, cross-entropy, and what lies between them
#
# Now the model believes $q$ while the truth is $p$. The surprises are the model's, how often they
# come is the truth's:
#
# $$H(p, q) = -\sum_v p_v \ln q_v = H(p) + \mathrm{KL}(p \,\|\, q), \qquad
# \mathrm{KL}(p \,\|\, q) = \sum_v p_v \ln \frac{p_v}{q_v} \ge 0.$$
#
# **A common error** is a minus between the two terms. The sign follows in one line:
# $-\ln q = -\ln p + \ln (p/q)$, times $p$, summed. Being wrong costs extra; it never pays.

# %%
p = np.array([0.7, 0.2, 0.1])
first = np.linspace(0.02, 0.98, 193)
q = np.stack([first, (1 - first) * 2 / 3, (1 - first) / 3], axis=1)  # q = p at 0.7

H = information.entropy(p)
KL = information.kl_divergence(p, q)
H_pq = information.cross_entropy(p, q)
best = first[jnp.argmin(H_pq)]

fig, ax = plt.subplots(figsize=(7, 3.5))
ax.fill_between(first, 0, jnp.full_like(KL, H), color=BLUE, alpha=0.35, linewidth=0)
ax.fill_between(first, H, H_pq, color=ORANGE, alpha=0.5, linewidth=0)
ax.plot(first, H_pq, color="black")
ax.axvline(best, color=GREY, linestyle="--")
ax.text(0.2, H / 2, "H(p): the world's own surprise", va="center")
ax.text(0.17, 1.75, "KL(p‖q): the price of believing q", va="center")
ax.text(best + 0.01, 2.1, "q = p", color=GREY)
ax.set(xlabel="predicted probability of the first class, whose true one is 0.7", ylabel="nats")
ax.set(ylim=(0, 2.4), xlim=(0, 1), title="H(p, q) = H(p) + KL(p‖q), least where the model is right")
fig.tight_layout()

# %% tags=["check"]
chex.assert_trees_all_close(H_pq, H + KL, rtol=1e-5)
assert not jnp.allclose(H_pq, H - KL, rtol=0.01)
assert (KL > -1e-6).all()
np.testing.assert_allclose(best, p[0], atol=1e-6)

# %% [markdown]
# Training can bring down only the orange part. A loss that has stopped at some height may have
# reached the blue one.
#
# ## The snippets that textbooks give
#
# For yes-or-no questions, over two lists: the truth (0 or 1) and the predicted probability of yes.
# Probabilities are clipped, because $\ln 0$ is $-\infty$.


# %%
def binary_cross_entropy(truth, predicted, eps=1e-15):
    total = 0.0
    for y, q in zip(truth, predicted, strict=True):
        q = min(max(q, eps), 1 - eps)
        total -= y * math.log(q) + (1 - y) * math.log(1 - q)
    return total / len(truth)


def categorical_cross_entropy(truth, predicted, eps=1e-15):
    predicted = np.clip(predicted, eps, 1 - eps)
    return -np.sum(truth * np.log(predicted), axis=1).mean()


# %% [markdown]
# `jxent.information` computes the same from the same lists. Without `eps` it does not clip: what
# was held impossible and happens costs $\infty$.

# %%
truth = [1, 0, 1, 1, 0]
predicted = [0.9, 0.2, 0.6, 0.0, 0.1]
textbook = binary_cross_entropy(truth, predicted)
ours = information.binary_cross_entropy(truth, predicted, eps=1e-15).mean()
print(f"binary       textbook {textbook:.6f}   jxent {ours:.6f}")

one_hot = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]])
textbook = categorical_cross_entropy(one_hot, rows)
ours = information.cross_entropy(one_hot, rows, eps=1e-15).mean()
print(f"categorical  textbook {textbook:.6f}   jxent {ours:.6f}")

print("unclipped   ", information.cross_entropy(one_hot, rows))

# %% tags=["check"]
np.testing.assert_allclose(ours, textbook, rtol=1e-5)
both = information.binary_cross_entropy(truth, predicted, eps=1e-15).mean()
np.testing.assert_allclose(both, binary_cross_entropy(truth, predicted), rtol=1e-5)

# %% [markdown]
# ## Why log-softmax
#
# A network gives logits $z$, any real numbers, and $p = \mathrm{softmax}(z)$ is what it believes.
# (From here on $p$ is the model and the truth is the label $y$, or its one-hot row $e_y$.) To
# compute $p$, round it and take its logarithm loses what the logarithm needs. It need not be done:
#
# $$-\ln p_y = -\ln \frac{e^{z_y}}{\sum_v e^{z_v}} = \mathrm{lse}(z) - z_y, \qquad
# \mathrm{lse}(z) = \ln \sum_v e^{z_v} = m + \ln \sum_v e^{z_v - m}, \quad m = \max_v z_v.$$

# %%
z = jnp.array([100.0, 0.0, -5.0])
by_definition = -jnp.log(jnp.exp(z) / jnp.exp(z).sum())
by_log_softmax = -jax.nn.log_softmax(z)
print("−ln(softmax)", by_definition)
print("−log_softmax", by_log_softmax)

# %% tags=["check"]
np.testing.assert_allclose(by_log_softmax, [0, 100, 105], rtol=1e-5, atol=1e-5)

# %% [markdown]
# That cures the overflow. One weakness is left: when the model is confident and right, lse and
# $z_y$ are nearly the same number, and their difference is what rounding leaves. With
# $S = \sum_{v:\, z_v < m} e^{z_v - m}$ (and 1 more for every further class that ties with the
# largest) the difference need not be taken:
#
# $$\mathrm{loss} = (m - z_y) + \mathrm{log1p}(S), \qquad
# p_y - 1 = \mathrm{expm1}(-\mathrm{loss}).$$
#
# Both terms of the loss are at least 0, so nothing cancels. This is what `jxent` computes. The
# exact values below are the textbook formula in decimal arithmetic with 60 digits.


# %%
def textbook(z, target):
    p = jnp.exp(z) / jnp.exp(z).sum()
    return -jnp.log(p[target]) if target.ndim == 0 else -jnp.sum(target * jnp.log(p))


def clipped_textbook(z, target):
    p = jnp.clip(jnp.exp(z) / jnp.exp(z).sum(), 1e-15, 1 - 1e-15)
    return -jnp.log(p[target]) if target.ndim == 0 else -jnp.sum(target * jnp.log(p))


def with_optax(z, target):
    if target.ndim == 0:
        return optax.softmax_cross_entropy_with_integer_labels(z, target)
    return optax.softmax_cross_entropy(z, target)


formulas = {
    "textbook": textbook,
    "clipped": clipped_textbook,
    "optax": with_optax,
    "jxent": jxent.cross_entropy,
}


def exact(z, target):
    """The loss and its gradient by the first logit, with 60 digits."""
    t = np.eye(len(z))[target] if np.ndim(target) == 0 else target
    with localcontext(prec=60):
        exponentials = [Decimal(float(z_v)).exp() for z_v in z]
        p = [e / sum(exponentials) for e in exponentials]
        loss = -sum(Decimal(float(t_v)) * p_v.ln() for t_v, p_v in zip(t, p, strict=True) if t_v)
        return float(loss), float(sum(map(Decimal, map(float, t))) * p[0] - Decimal(float(t[0])))


# %%
gaps = np.arange(0.0, 81.0)
rows = np.zeros((len(gaps), 10), np.float32)  # ten classes, the label's first
rows[:, 0] = gaps
labels = jnp.zeros(len(gaps), int)
row_losses = {
    "optax": lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels),
    "jxent": lambda z: jxent.cross_entropy(z, labels, reduction="none"),
}
right = np.abs([exact(row, 0) for row in rows])
bottom = 1e-40  # where 0 is drawn
smallest = {}

fig, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharey=True)
for (name, losses), color in zip(row_losses.items(), (RED, BLUE), strict=True):
    gradient = jax.grad(lambda z, losses=losses: losses(z).sum())(jnp.array(rows))[:, 0]
    for ax, value in zip(axes, (losses(jnp.array(rows)), gradient), strict=True):
        size = np.abs(np.asarray(value, float))
        ax.plot(gaps, np.maximum(size, bottom), color=color, linewidth=3, label=name)
        if (size == 0).any():
            what = "loss" if ax is axes[0] else "gradient"
            print(f"{name}'s {what} is 0 from a gap of {gaps[np.argmax(size == 0)]:.0f} on")
        smallest[name] = size.min()
ticks = {1: "1", 1e-10: "$10^{-10}$", 1e-20: "$10^{-20}$", 1e-30: "$10^{-30}$", bottom: "0"}
for ax, values in zip(axes, right.T, strict=True):
    ax.plot(gaps, values, color="black", linestyle=":", linewidth=2, label="exact")
    ax.set(yscale="log", xlabel="label's logit above the nine others")
    ax.set_yticks(list(ticks), ticks.values(), minor=False)
    ax.minorticks_off()
axes[0].set(ylabel="size (nats)", title="Loss, float32")
axes[1].set(title="Its gradient, float32")
axes[1].legend(frameon=False, loc="upper right")
fig.tight_layout()

# %% tags=["check"]
assert smallest["jxent"] > 0 == smallest["optax"]

# %% [markdown]
# ## Where code breaks: try it
#
# Edit the list and run the cell again. A case is its logits and its target: a label, or a
# distribution. × marks what is off by more than a thousandth (in bfloat16, by more than its own
# rounding). A label outside the classes has no loss, so the only right answer is NaN; everything
# runs under `jax.jit`, where no exception can be raised. (For 0 · −∞, optax has
# `safe_softmax_cross_entropy`.)

# %%
inf = jnp.inf
cases = {
    "ordinary": ([2.0, 0.5, -1.0], 0),
    "confident, right by 40": ([40.0, 0.0, 0.0], 0),
    "confident, wrong by 60": ([0.0, 60.0, 0.0], 0),
    "shared offset 10⁴": ([10002.0, 10000.0, 9999.0], 0),
    "impossible class": ([1.0, -inf, 0.0], 0),
    "the impossible happened": ([-inf, 1.0, 0.0], 0),
    "label −1": ([2.0, 0.5, -1.0], -1),
    "label 3 of 0, 1, 2": ([2.0, 0.5, -1.0], 3),
    "soft target, 0 · −∞": ([1.0, 0.0, -inf], [0.25, 0.75, 0.0]),
    "bfloat16, right by 10": (jnp.array([10, 0, 0], jnp.bfloat16), 0),
}


compiled = {name: jax.jit(jax.value_and_grad(formula)) for name, formula in formulas.items()}


def table(part):
    """Print losses (part 0) or gradients (part 1); return how often each formula was wrong."""
    mistakes = dict.fromkeys(formulas, 0)
    print(f"{'':23}{'exact':>13}  " + "".join(f"{name:>13}  " for name in formulas).rstrip())
    for name, (z, target) in cases.items():
        z, target = jnp.asarray(z), jnp.asarray(target)
        valid = target.ndim == 1 or 0 <= target < len(z)
        expected = exact(np.asarray(z, float), np.asarray(target))[part] if valid else np.nan
        rtol = max(1e-3, float(jnp.finfo(z.dtype).eps))
        line = f"{name:23}{expected:13.5g}  "
        for formula, value_and_grad in compiled.items():
            loss, gradient = value_and_grad(z, target)
            value = float((loss, gradient[0])[part]) + 0.0  # no −0
            wrong = not np.isclose(value, expected, rtol=rtol, atol=0, equal_nan=True)
            mistakes[formula] += wrong
            line += f"{value:13.5g}" + (" ×" if wrong else "  ")
        print(line.rstrip())
    return mistakes


wrong_losses = table(0)

# %% tags=["check"]
assert wrong_losses["jxent"] == 0

# %% [markdown]
# The same for the gradient by the first logit. It is what the optimiser sees: a 0 that should be
# small is a row that no longer trains, a NaN is a model that no longer exists, and a number where
# there is no loss is a step in a meaningless direction. Clipping caps the loss, and its
# gradient is 0 beyond the cap: just where the model is most wrong.

# %%
wrong_gradients = table(1)

# %% tags=["check"]
assert wrong_gradients["jxent"] == 0

# %% [markdown]
# Outside `jax.jit` a bad label need not travel as NaN. It is named:

# %%
try:
    jxent.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, -1]))
except ValueError as error:
    message = str(error)
    print(message)

# %% tags=["check"]
assert "= -1 is outside [0, 3)" in message

# %% [markdown]
# ## The gradient
#
# The loss is $\mathrm{lse}(z) - z_y$, and
# $\partial\,\mathrm{lse} / \partial z_k = e^{z_k} / \sum_v e^{z_v} = p_k$. So
#
# $$\frac{\partial\,\mathrm{loss}}{\partial z} = p - e_y:$$
#
# what the model believes minus what is so. It is between −1 and 1 in each entry, and sums to 0.

# %%
logits = jax.random.normal(jax.random.key(0), (6, 5))
labels = jnp.array([0, 3, 1, 4, 4, 2])
by_hand = jax.nn.softmax(logits) - jax.nn.one_hot(labels, 5)


def rows_summed(logits):
    return jxent.cross_entropy(logits, labels, reduction="sum")


def plain(logits):
    return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 5))


by_jax = jax.grad(plain)(logits)
ours = jax.grad(rows_summed)(logits)
jxent.testing.assert_gradients_match(rows_summed, plain, logits, rtol=1e-4)
print("p − e_y, first row", by_hand[0])
print("jax.grad          ", ours[0])

# %% tags=["check"]
chex.assert_trees_all_close(by_hand, by_jax, ours, rtol=1e-4, atol=1e-6)
chex.assert_trees_all_close(ours.sum(axis=1), jnp.zeros(6), atol=1e-6)

# %% [markdown]
# `jxent.testing.assert_gradients_match` compares with `jax.grad` of the plain formula and with
# finite differences of the function itself; it takes your own losses too.
#
# ### −p/q, and where a + 1 comes from
#
# Many derivations go through the probabilities. Back in the letters of information theory, truth
# $p$ and model $q$: from $H(p, q) = -\sum_v p_v \ln q_v$ follows
#
# $$\frac{\partial H}{\partial q_v} = -\frac{p_v}{q_v}.$$
#
# **A common error** is to lose the minus: more probability on the truth must lower the loss.
# **Another** is to write $-p_v/q_v + 1$ for it. That is the derivative of something else, the
# generalised divergence for a $q$ that need not sum to 1, $\sum_v p_v \ln (p_v/q_v) - p_v + q_v$;
# or of the Lagrangian $H(p, q) + \lambda (\sum_v q_v - 1)$, whose multiplier is $\lambda = 1$ at
# the optimum $q = p$, where every entry is then 0.


# %%
def generalised_kl(p, q):
    return jnp.sum(p * jnp.log(p / q) - p + q)


truth = jnp.array([0.7, 0.2, 0.1])
model = jnp.array([0.5, 0.3, 0.2])
slope = jax.grad(information.cross_entropy, argnums=1)(truth, model)
slope_generalised = jax.grad(generalised_kl, argnums=1)(truth, model)
print("∂H(p, q)/∂q      ", slope)
print("generalised KL   ", slope_generalised)

# %% tags=["check"]
chex.assert_trees_all_close(slope, -truth / model, rtol=1e-5)
chex.assert_trees_all_close(slope_generalised, -truth / model + 1, rtol=1e-5, atol=1e-6)
chex.assert_trees_all_close(
    jax.grad(generalised_kl, argnums=1)(truth, truth), jnp.zeros(3), atol=1e-6
)

# %% [markdown]
# Why it goes unnoticed: through a softmax,
# $\partial q_v/\partial z_k = q_v(\delta_{vk} - q_k)$, whose sum over $v$ is 0. A constant added
# to all $\partial H/\partial q_v$ disappears, and both ways end in the same $q - p$.


# %%
def through_softmax(slope_by_q, q):
    _, vjp = jax.vjp(jax.nn.softmax, jnp.log(q))
    return vjp(slope_by_q)[0]


print("−p/q       →", through_softmax(slope, model))
print("−p/q + 1   →", through_softmax(slope_generalised, model))
print("q − p       ", model - truth)

# %% tags=["check"]
chex.assert_trees_all_close(
    through_softmax(slope, model),
    through_softmax(slope_generalised, model),
    model - truth,
    rtol=1e-4,
    atol=1e-6,
)

# %% [markdown]
# ## Which class does an unweighted loss favour?
#
# The frequent one. **A common error** says the opposite, as a rare class costs more when it comes.
# It comes rarely. Take the smallest model there is, one logit per class and no features, and 95
# rows of class 0 to 5 of class 1.

# %%
counts = jnp.array([95, 5])
labels = jnp.repeat(jnp.arange(2), counts, total_repeat_length=100)
optimizer = optax.adam(0.1)


@jax.jit
def fit(class_weights):
    def loss_fn(z):
        logits = jnp.broadcast_to(z, (len(labels), 2))
        return jxent.cross_entropy(logits, labels, class_weights=class_weights)

    def step(carry, _):
        z, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(z), opt_state)
        return (optax.apply_updates(z, updates), opt_state), None

    z = jnp.zeros(2)
    (z, _), _ = jax.lax.scan(step, (z, optimizer.init(z)), length=500)
    return jax.nn.softmax(z)


weighings = {
    "unweighted": jnp.ones(2),
    "balanced": counts.sum() / (2 * counts),  # either class weighs half of the whole
}
fitted = {name: fit(weights) for name, weights in weighings.items()}
for name, p in fitted.items():
    print(f"{name:10} class weights {weighings[name]}  predicts {p}")

# %% tags=["check"]
np.testing.assert_allclose(fitted["unweighted"], [0.95, 0.05], atol=0.005)
np.testing.assert_allclose(fitted["balanced"], [0.5, 0.5], atol=0.005)

# %%
frequent = jnp.linspace(0.02, 0.995, 300)
fig, ax = plt.subplots(figsize=(7, 3.5))
for (name, weights), color in zip(weighings.items(), (ORANGE, BLUE), strict=True):
    share = counts * weights / (counts * weights).sum()
    loss = information.cross_entropy(share, jnp.stack([frequent, 1 - frequent], axis=1))
    ax.plot(frequent, loss, color=color, linewidth=2.5, label=name)
    ax.plot(fitted[name][0], information.cross_entropy(share, fitted[name]), "o", color=color)
    ax.axvline(fitted[name][0], color=color, linestyle=":")
ax.set(xlabel="predicted probability of the frequent class", ylabel="mean loss (nats)")
ax.set(ylim=(0, 3), xlim=(0, 1), title="Unweighted, the best constant is the base rate, 0.95")
ax.legend(frameon=False, loc=(0.55, 0.75))
fig.tight_layout()

# %% [markdown]
# The optimum of the unweighted loss is to predict 0.95 for everything. It is calibrated, it is 95 %
# accurate, and at a threshold of one half it finds none of the rare class. Weights move the optimum
# to 0.5, and the price is that the probabilities are no longer those of the data.
#
# ## Where next
#
# - `02_training_with_optax.ipynb` puts the loss into a training step, in plain JAX, Flax and
#   Equinox.
# - `03_imbalanced_classes.ipynb` takes the last question seriously: weights, logit adjustment,
#   focal loss, and how to choose.
