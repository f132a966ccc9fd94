#!/usr/bin/env bash
# Under jit, XLA:CPU contracts the product of `logits * scale` into the subtraction of the maximum:
# a*s - max(a*s) is rounded once and is not 0 at the maximum, so the cross-entropy of a confident
# row is negative. Eagerly it is exactly 0. An optimization_barrier on the scaled logits does not
# stop it; a comparison (a minimum that changes nothing) does.
#
# jax 0.10.2, optax 0.2.8, Python 3.11, x86-64 CPU with FMA. Seen:
#   eager                 0 of 64 rows negative, least loss 0
#   jit                  64 of 64 rows negative, least loss -3.18e-07
#   jit, barrier         64 of 64 rows negative, least loss -3.18e-07
#   jit, minimum          0 of 64 rows negative, least loss 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$work/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax
from jax import lax

rows, classes, scale = 64, 128, jnp.float32(0.7)
a = jax.random.normal(jax.random.key(0), (rows, classes), jnp.float32)
labels = jnp.argmax(a, axis=-1)
a = a.at[jnp.arange(rows), labels].set(37.3)  # the label leads by more than 20


def loss(change):
    return lambda a, s: optax.softmax_cross_entropy_with_integer_labels(change(a * s), labels)


def compared(z):
    return jnp.minimum(z, 2 * jnp.max(jnp.abs(z)) + 1)


plain = loss(lambda z: z)
ways = {
    "eager": plain,
    "jit": jax.jit(plain),
    "jit, barrier": jax.jit(loss(lax.optimization_barrier)),
    "jit, minimum": jax.jit(loss(compared)),
}
negative = {}
for name, way in ways.items():
    rows_lost = way(a, scale)
    negative[name] = int(jnp.sum(rows_lost < 0))
    print(f"{name:20} {negative[name]:2} of {rows} rows negative, least loss {rows_lost.min():.3g}")
assert negative == {"eager": 0, "jit": 64, "jit, barrier": 64, "jit, minimum": 0}, negative
PYTHON
