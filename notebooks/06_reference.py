# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reference
#
# Not to be read from top to bottom. Here are every known difference from optax and PyTorch, what
# every input gets, the promised accuracy, and all measured tables:
#
# 1. [Every known difference](#Every-known-difference)
# 2. [What every input gets](#What-every-input-gets)
# 3. [Forward mode and Hessians](#Forward-mode-and-Hessians)
# 4. [Any number of labels a row](#Any-number-of-labels-a-row)
# 5. [Check your own losses](#Check-your-own-losses)
# 6. [Accuracy](#Accuracy)
# 7. [Speed and memory](#Speed-and-memory)
# 8. [Rare classes and continuous values, measured](#Rare-classes-and-continuous-values,-measured)

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
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *pins], check=True)

import jxent

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax


def show(case, name, z, targets, jit=False, **options):
    """The loss of each row, and the gradient of the first, in optax and in jxent."""
    print(case + (", under jit" if jit else ""))
    for library in (optax.losses, jxent):
        loss = partial(getattr(library, name), **options)
        loss = jax.jit(loss) if jit else loss
        try:
            value, vjp = jax.vjp(lambda z: loss(z, targets), z)  # noqa: B023
            (gradient,) = vjp(jnp.ones_like(value))
            found = f"loss {short(value)}   gradient {short(gradient[:1].ravel())}"
        except (TypeError, ValueError) as error:
            words = str(error).splitlines()[0].removeprefix(f"{name}: ")
            found = f"{type(error).__name__}: {words[:80]}{'…' * (len(words) > 80)}"
        print(f"    {library.__name__[:5]}  {found}")


def short(x):
    return " ".join(np.array2string(np.asarray(x, np.float64), precision=3).split())


INTEGER_LABELS = "softmax_cross_entropy_with_integer_labels"
z = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
labels = jnp.array([0, 1])
soft = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])

# %% [markdown]
# ## Every known difference
#
# Apart from the last digits, and from the options that jxent has and optax has not. A dash: the
# question does not arise. PyTorch's errors are those on a CPU. The tests hold every cell of these
# tables; below each table are some of its rows, run.
#
# ### Labels and logits
#
# | case | optax 0.2.8 | PyTorch | jxent |
# |---|---|---|---|
# | dtype of the loss | the logits', or wider if soft targets are | the logits', or wider if soft targets are | float32, for float64 logits float64; the gradient has the logits' dtype |
# | the label leads by far (40 in float32) | loss 0, gradient 0 at the label | loss 0, gradient 0 at the label | both right, neither 0 (integer labels; for a one-hot distribution the loss) |
# | label −1 | the last class | `IndexError` | `ValueError`; under `jit` NaN in loss and gradient of its row |
# | other labels outside [0, V) | loss NaN, but a finite gradient p | `IndexError` | as −1 |
# | NumPy label 2³² + 1 | class 1 | `IndexError` | `ValueError`; class 1 if `jit` narrowed it first |
# | no classes (V = 0) | −∞ | `IndexError` | `ValueError` |
# | axis of the classes | the last, or `axis=` | the second | the last, or `axis=` in the row losses |
# | `ignore_index` by default | — | −100 | none: −100 is then a bad label |
# | Python lists as logits or labels | `TypeError` | `TypeError` | accepted |

# %%
confident = jnp.array([[40.0, 0.0, 0.0]])
show("the label leads by 40", INTEGER_LABELS, confident, jnp.array([0]))
show("label −1", INTEGER_LABELS, z, jnp.array([-1, 1]))
show("label −1", INTEGER_LABELS, z, jnp.array([-1, 1]), jit=True)
show("label 3 of 0, 1, 2", INTEGER_LABELS, z, jnp.array([3, 1]), jit=True)
show("NumPy label 2³² + 1", INTEGER_LABELS, z, np.array([2**32 + 1, 1]))
show("no classes", INTEGER_LABELS, jnp.zeros((2, 0)), labels)
show("a list of labels", INTEGER_LABELS, z, [0, 1])
show("bfloat16 logits", INTEGER_LABELS, z.astype(jnp.bfloat16), labels)

# %% [markdown]
# A confident row loses its loss and its gradient where lse − z_y is computed as a difference:
#
# | float32 row | exact loss | jxent | optax |
# |---|---|---|---|
# | V = 1000, loss | 4.244106e-15 | 4.244106e-15 | 0 |
# | V = 1000, gradient of the label's logit | −4.244106e-15 | −4.244106e-15 | 0 |
# | V = 32768, loss | 1.392058e-13 | 1.392058e-13 | 0 |
# | V = 32768, gradient of the label's logit | −1.392058e-13 | −1.392058e-13 | 0 |
#
# ### Distributions
#
# | case | optax 0.2.8 | PyTorch | jxent |
# |---|---|---|---|
# | soft target 0 on a logit of −∞ | NaN; 0 in `safe_softmax_cross_entropy` | NaN | 0 |
# | `safe_softmax_cross_entropy` | a function of its own, without `axis` and `where` | — | `softmax_cross_entropy`, which is safe |
# | negative soft target | accepted | accepted | accepted in the softmax losses that optax has; else `ValueError`, under `jit` accepted, NaN in `kl_divergence` |
# | soft labels `[N, 1]`, `[1, V]` or a scalar | broadcast | an error | `ValueError`; floats `[V]` for all rows are accepted |
# | soft labels `[V]` of integers | broadcast | an error | `ValueError`: they may be labels of other rows |
# | weighted mean over distributions | — | Σ loss / N | Σ loss / Σ_rows (Σ_v c_v t_v / Σ_v t_v), so that labels and their one-hot rows agree; `normalizer=N` gives PyTorch's |

# %%
show("soft target 0 on −∞", "softmax_cross_entropy", z.at[0, 2].set(-jnp.inf), soft)
show("a negative soft target", "softmax_cross_entropy", z, soft.at[0, 0].set(-0.5))
show("soft labels [N, 1]", "softmax_cross_entropy", z, soft[:, :1])
show("soft labels [V] of integers", "softmax_cross_entropy", z, jnp.array([0, 1, 0]))

# %% [markdown]
# ### Masks and means
#
# | case | optax 0.2.8 | PyTorch | jxent |
# |---|---|---|---|
# | `where` of shape `[N, 1]` | broadcast | — | `ValueError`; `[N]` keeps rows, `[N, V]` keeps classes |
# | `where` excludes the label's class | a finite number, possibly negative | — | NaN in its row |
# | `where` excludes a class with soft mass, in a softmax loss | the mass is dropped | — | dropped in those that optax has; NaN in its row in the others |
# | `where` of shape `[N]` in `kl_divergence`, `poly_loss_cross_entropy` | an error, or a wrong number when N = V | — | keeps rows |
# | dropped row that holds NaN or ∞ | 0, loss and gradient | loss 0, gradient NaN | 0, loss and gradient |
# | mean when every row is ignored, or there is none | — | NaN | 0, gradient 0 |

# %%
keep = jnp.array([True, False])
show("where [N, 1]", INTEGER_LABELS, z, labels, where=keep[:, None])
classes = jnp.ones(z.shape, bool).at[0, 0].set(False)
show("where excludes the label's class", INTEGER_LABELS, z, labels, where=classes)
show("a dropped row that holds NaN", INTEGER_LABELS, z.at[0].set(jnp.nan), labels, where=~keep)
loss, gradient = jax.value_and_grad(jxent.cross_entropy)(z, labels, where=jnp.array([False, False]))
print(f"the mean of no rows: loss {loss}, gradient 0: {not gradient.any()}")

# %% [markdown]
# ### Yes or no
#
# | case | optax 0.2.8 | PyTorch | jxent |
# |---|---|---|---|
# | binary labels `[N]` against logits `[N, 1]`, or `[V]` against `[N, V]` | broadcast, to `[N, N]` in the first case | `ValueError` | `ValueError`; a scalar for all is accepted |
# | binary label outside [0, 1] | accepted | accepted | `ValueError`; under `jit` NaN |
# | `sigmoid_focal_loss` with α outside [0, 1] or γ < 0 | accepted | — | `ValueError`; under `jit` NaN |
# | binary logit of ±∞, and right | NaN | NaN | 0 |

# %%
show("labels [N] against logits [N, 1]", "sigmoid_binary_cross_entropy", z[:, :1], soft[:, 0])
outside = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
show("a label of 2", "sigmoid_binary_cross_entropy", z, outside)
show("a label of 2", "sigmoid_binary_cross_entropy", z, outside, jit=True)
infinite = jnp.array([[jnp.inf, -jnp.inf]])
show("logits of ±∞, right", "sigmoid_binary_cross_entropy", infinite, jnp.array([[1.0, 0.0]]))

# %% [markdown]
# ### Divergences
#
# | case | optax 0.2.8 | PyTorch | jxent |
# |---|---|---|---|
# | KL targets `[N, 1]` or `[1, V]` | broadcast | broadcast | `ValueError`; `[V]` for all rows is accepted |
# | KL with a target of 0 where the prediction is 0 (log −∞) | NaN | NaN | 0 |
# | KL with a log-target of −∞ | NaN | NaN | that class counts 0 |
# | KL with a log-prediction of +∞ | −∞ | −∞ | NaN |
# | slope of ±∞ by a target (a target or prediction of 0) | ±∞ or NaN | ±∞ or NaN | a huge finite number, so that 0·∞ is 0 after it |

# %%
halves = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
sure = jnp.array([[0.0, -jnp.inf]])
show("targets [N, 1]", "kl_divergence", halves, jnp.array([[0.5], [0.5]]))
show("target 0 where the prediction is 0", "kl_divergence", sure, jnp.exp(sure))
show("a log-target of −∞", "kl_divergence_with_log_targets", halves[:1], sure)
show("a log-prediction of +∞", "kl_divergence", halves.at[0, 0].set(jnp.inf), jnp.exp(halves))

# %% [markdown]
# ### PyTorch's arguments
#
# Beside what the README's table says:
#
# - `input` of shape (N, C, d₁, …) is `jnp.moveaxis(logits, 1, -1)` here: classes are last.
# - `F.nll_loss(log_probs, target)` is `cross_entropy(log_probs, labels)`, since log-probabilities
#   are logits with lse = 0.
# - `F.binary_cross_entropy_with_logits(weight=)` is `row_weights=`, one for each logit or each row.
#   With `reduction="mean"` it needs `normalizer=logits.size` as well, since PyTorch divides by the
#   number of logits and jxent by what they weigh.
# - `F.kl_div(reduction="sum")` is `kl_divergence(log_predictions, targets).sum()`.
# - `size_average=` and `reduce=`, deprecated there, are absent.

# %% [markdown]
# ## What every input gets
#
# Shapes, dtypes and options are checked when tracing; the error names the function, the argument,
# what was expected and what came. Values can only be read outside `jit`, and reading labels that are
# on a device waits for them. Under `jit` an invalid value becomes NaN, in its own row only.
#
# | input | result |
# |---|---|
# | label outside [0, V), not ignored | `ValueError` with its position when it can be read; else NaN in that row, loss and gradient |
# | int8 or uint8 labels with V > 127 | right; they are compared in int32 |
# | float or bool labels where integers belong | `TypeError` |
# | labels `[N, 1]` for rows `[N]`, or any other shape | `ValueError` |
# | logit of −∞ off the label | that class has p = 0 |
# | logit of −∞ at the label | loss +∞, gradient finite |
# | logit of +∞ or NaN, or a row of only −∞ | NaN in that row |
# | soft target 0 on a logit of −∞ | 0 |
# | label smoothing with a logit of −∞ | +∞, unless `where` or `class_mask` excludes that class |
# | dropped row | exactly 0, loss and gradient, whatever it holds |
# | row weight or class weight of 0 | contributes 0, even against +∞ |
# | weights that sum to 0, or no rows | mean 0, gradient 0 |
# | soft targets that do not sum to 1 | accepted; gradient (Σt) p − t |
# | negative soft target | used as it is in the softmax losses that optax has; elsewhere `ValueError` when it can be read |
# | negative row weight | an ordinary number; in a mean without `normalizer=` `ValueError` when it can be read, else NaN |
# | probability outside [0, 1] in `jxent.information` | `ValueError` when it can be read; else NaN in that row, value and gradient |
# | an invalid row in `jxent.metrics` | every number NaN; +∞ for a label held impossible is valid |
# | distributions in `linear_cross_entropy` | as in `cross_entropy`, never a second array of their size |
# | an invalid row in `linear_cross_entropy` | NaN in its own loss and ∂/∂hidden, and in what sums over rows: a mean, ∂/∂head, ∂/∂bias |
# | a bias of −∞ in the linear losses | as a logit of −∞ |
# | a class excluded by `class_mask` in the linear losses | as by `where` of the logits' shape; gradient of its head and bias exactly 0 |
# | an option out of range, an unknown reduction | `ValueError` |
# | `label_smoothing`, `z_loss` or `logit_softcap` traced | `TypeError`: they are static |

# %%
rows = jax.jit(jxent.softmax_cross_entropy_with_integer_labels)(z, jnp.array([-1, 2]))
print("label −1 under jit:", rows)
try:
    jxent.cross_entropy(z, jnp.array([-1, 2]))
except ValueError as error:
    print("outside:", error)

# %% tags=["check"]
assert jnp.isnan(rows[0]) and jnp.isfinite(rows[1])

# %% [markdown]
# ## Forward mode and Hessians
#
# `cross_entropy` and the linear losses have reverse mode, to any order, and `jax.jvp` of `jax.grad`.
# Forward mode of them is a `TypeError`, but for `linear_cross_entropy` with
# `implementation="reference"`. The row losses have every mode: `jvp`, `linearize`, `jacfwd`,
# `hessian`.

# %%
row = jnp.array([2.0, 0.5, -1.0])
hessian = jax.hessian(jxent.softmax_cross_entropy_with_integer_labels)(row, jnp.array(0))
p = jax.nn.softmax(row)
print(hessian)
print("equals diag(p) − p pᵀ:", jnp.allclose(hessian, jnp.diag(p) - jnp.outer(p, p), atol=1e-6))

hidden, head = jnp.ones((2, 4)), jnp.eye(4, 3)


def linear(hidden, implementation):
    return jxent.linear_cross_entropy(hidden, head, labels, implementation=implementation)


for implementation in ("tokens", "vocab", "reference"):
    try:
        jax.jvp(lambda h: linear(h, implementation), (hidden,), (hidden,))  # noqa: B023
        print(f"forward mode of {implementation!r}: yes")
    except TypeError:
        print(f"forward mode of {implementation!r}: TypeError")

# %% tags=["check"]
assert jnp.allclose(hessian, jnp.diag(p) - jnp.outer(p, p), atol=1e-6)
for implementation in ("tokens", "vocab"):
    try:
        jax.jvp(lambda h: linear(h, implementation), (hidden,), (hidden,))  # noqa: B023
    except TypeError as error:
        assert "no forward mode" in str(error)
    else:
        raise AssertionError(f"{implementation} has forward mode")

# %% [markdown]
# ## Any number of labels a row
#
# Where each row has any number of V labels, some of them unknown, train and measure on what is
# known. `MultiLabelMetrics` adds up over batches, scans and devices, as `ClassificationMetrics` does
# for one label a row (`05_choosing_a_model`).

# %%
many = 2 * jax.random.normal(jax.random.key(2), (1000, 8))
yes = jax.random.bernoulli(jax.random.key(3), jax.nn.sigmoid(many)).astype(int)
yes = yes.at[::10, 0].set(-1)  # unknown
known = yes >= 0

loss = jxent.sigmoid_binary_cross_entropy(many, yes, where=known, reduction="mean")
summary = jxent.metrics.MultiLabelMetrics.empty(8).update(many, yes, where=known).summary()
print(summary)

# %% tags=["check"]
assert jnp.allclose(summary.log_loss, loss) and summary.label_f1.shape == (8,)
assert summary.micro_f1 == jxent.metrics.f1_score(many, yes, average="micro", where=known)

# %% [markdown]
# ## Check your own losses
#
# `jxent.testing.assert_gradients_match` compares a custom gradient with `jax.grad` of a plain
# reference, and with central differences in float64:


# %%
@jax.custom_vjp
def my_loss(logits, labels):
    return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)


def forward(logits, labels):
    return my_loss(logits, labels), (logits, labels)


def backward(residuals, cotangent):
    logits, labels = residuals
    return cotangent * (jax.nn.sigmoid(logits) - labels) / logits.size, None


my_loss.defvjp(forward, backward)


def reference(logits, labels):
    p = jax.nn.sigmoid(logits)
    return -jnp.mean(jnp.log(jnp.where(labels == 1, p, 1 - p)))


jxent.testing.assert_gradients_match(
    my_loss, reference, jnp.array([0.5, -1.0, 2.0]), jnp.array([1, 0, 0])
)
print("the gradients match")

# %% [markdown]
# `jxent.testing.checked` finds the bad label behind a NaN under `jit`:

# %%
step = jax.jit(jax.value_and_grad(jxent.cross_entropy))
bad = jnp.array([0, 7])
loss, gradient = step(z, bad)
print("loss under jit:", loss)
try:
    jxent.testing.checked(step)(z, bad)
except ValueError as error:
    message = str(error)
    print("checked:", message.splitlines()[0])

# %% tags=["check"]
assert jnp.isnan(loss)
assert message.startswith("cross_entropy: `targets`[1] = 7 is outside [0, 3)")

# %% [markdown]
# ## Accuracy
#
# {{accuracy.md}}

# %% [markdown]
# ## Speed and memory
#
# {{speed.md}}

# %% [markdown]
# ## Rare classes and continuous values, measured
#
# {{imbalance.md}}
