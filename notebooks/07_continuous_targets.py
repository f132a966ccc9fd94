# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Squared error and continuous targets
#
# When is cross-entropy the loss to train with, and when squared error? Both are negative
# log-likelihoods. At the end you will be able to
#
# - say why squared error is a poor loss for classes and the right one for a Gaussian;
# - let a model say how sure it is of a number, row by row, or predict a whole histogram;
# - compare models on their fitted rows, where no held-out rows can be had.

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
    "sklearn": "scikit-learn",
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jxent.regression import bin_centers, expected_value, gaussian_nll, hl_gauss
from matplotlib import pyplot as plt
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, cross_val_predict

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% tags=["check"]
import chex

# %% [markdown]
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
    "sure, wrong,\nno gradient", (-8.5, -0.003), (-9.5, -0.55), arrowprops={"arrowstyle": "->"}
)
for ax, place in zip(axes, ("upper left", "upper right"), strict=False):
    ax.legend(frameon=False, fontsize=10, loc=place)
plt.show()

# %% tags=["check"]
chex.assert_trees_all_close(value_and_slope[cross_entropy][1], p - 1, atol=1e-5)
chex.assert_trees_all_close(value_and_slope[squared_error][1], (p - 1) * p * (1 - p), atol=1e-5)

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
print("of the cross-entropy", [f"{g:.4f}" for g in of_cross_entropy])
print("of the squared error", [f"{g:.4f}" for g in of_squared_error])

# %% tags=["check"]
chex.assert_trees_all_close(of_cross_entropy, p - e_y, atol=1e-5)
chex.assert_trees_all_close(of_squared_error, J @ (p - e_y), atol=1e-5)

# %% [markdown]
# Does it matter? A logistic regression on the breast cancer data, from an ordinary start (all
# zeros) and from a bad one: a bias of −10, which is sure that no row has label 1. Gradient descent
# with three learning rates for each loss, and Adam, which divides the gradient by its own size and
# so hides part of the fault.

# %%
data = load_breast_cancer()
features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
inputs = jnp.asarray(features, jnp.float32)
target = jnp.asarray(data.target, jnp.float32)
STEPS = 300


def train(loss_fn, params, optimizer, steps, **options):
    def step(carry, _):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn, **options)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, losses


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

# %% tags=["check"]
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
print(f"½ log 2π = {constant:.4f} nats")
print(f"nll − ½ (y − μ)² = {(nll - 0.5 * (mean - target) ** 2).mean():.4f} nats")

# %% tags=["check"]
chex.assert_trees_all_close(nll, 0.5 * (mean - target) ** 2 + constant, rtol=1e-5)
chex.assert_trees_all_close(slope, mean - target, atol=1e-5)

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
STEPS = 600

# %% tags=["fast"]
STEPS = 300


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

    params, _ = train(loss_fn, params, optax.adam(1e-2), STEPS)
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

fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
for each, value, colour in zip(t, (-1.0, 0.3), (BLUE, ORANGE), strict=True):
    ax.bar(bin_centers(edges), each, width=0.23, color=colour, alpha=0.7, label=f"y = {value}")
    ax.axvline(value, color=colour, linewidth=1)
ax.set(xlim=(-2, 1.3), xlabel="target (standard deviations)", ylabel="probability of the bin")
ax.set_title("Two targets as distributions over bins")
ax.legend(frameon=False)
plt.show()

# %% tags=["check"]
chex.assert_trees_all_close(decoded, jnp.array([-1.0, 0.3]), atol=1e-2)

# %% [markdown]
# Is it better? On scikit-learn's diabetes data, over random splits, all trained at once: a linear
# model and three small MLPs. All four give a density of the target, so all four have a held-out
# loss in the same nats; that of HL-Gauss is its histogram, −log (p_v / width of the bin).

# %%
J, TEST, HIDDEN = 15, 0.25, 32

# %% tags=["fast"]
J, HIDDEN = 4, 16

# %%
data = load_diabetes()
inputs = ((data.data - data.data.mean(0)) / data.data.std(0)).astype(np.float32)
targets = ((data.target - data.target.mean()) / data.target.std()).astype(np.float32)
print(int(jxent.regression.count_outside(targets, edges)), "targets outside the bins")
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
# %% [markdown]
# ## Without held-out rows: AIC and BIC
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
    fitted = model.fit(chosen, data.target).predict_log_proba(chosen)
    other = cross_val_predict(model, chosen, data.target, cv=10, method="predict_log_proba")
    fitted, other = (
        jxent.cross_entropy(jnp.asarray(z, jnp.float32), data.target, reduction="none")
        for z in (fitted, other)
    )
    k = count + 1  # and the bias
    aic, bic = jxent.selection.aic(fitted, k), jxent.selection.bic(fitted, k)
    print(
        f"{count:8}{fitted.mean():13.4f}{aic / (2 * M):9.4f}{bic / (2 * M):9.4f}"
        f"{other.mean():10.4f}"
    )

# %% tags=["check"]
assert bic > aic > 2 * float(fitted.sum())

# %% [markdown]
# The loss on the fitted rows only goes down. The others can go up again, where a feature costs more
# than it brings. Where held-out rows can be had, use them: they need no theory.
#
# ## Where next
#
# - `05_choosing_a_model.ipynb`: five classifiers, compared on held-out rows.
# - `06_reference.ipynb`: what `gaussian_nll`, `hl_gauss` and `two_hot` gain, over 20 seeds.
