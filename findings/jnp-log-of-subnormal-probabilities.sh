#!/usr/bin/env bash
# A subnormal float32 probability is a number to NumPy and scikit-learn, and 0 to XLA:CPU:
# jnp.log gives -inf, so the log loss of a model that said 1e-39 is infinite. The same value in
# float64 is right, and so is np.log before the array reaches JAX.
#
# jax 0.10.2, numpy 2.1.3, x86-64 CPU. Seen:
#   np.log  float32 1e-39   -89.80082
#   jnp.log float32 1e-39   -inf           eagerly and under jit
#   jnp.log float32 2e-38   -86.80508      the smallest normal number is 1.18e-38
#   jnp.log float64 1e-39   -89.80082
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.1.3
"$work/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

p = np.float32([1e-39, 2e-38])
assert p[0] > 0
host, eager, jitted = np.log(p), jnp.log(p), jax.jit(jnp.log)(p)
with jax.enable_x64(True):
    wide = jnp.log(jnp.asarray(p, jnp.float64))
print(f"np.log  float32 1e-39   {host[0]:.5f}")
print(f"jnp.log float32 1e-39   {eager[0]} eagerly, {jitted[0]} under jit")
print(f"jnp.log float32 2e-38   {eager[1]:.5f}")
print(f"jnp.log float64 1e-39   {wide[0]:.5f}")
assert np.isclose(host[0], -89.80082) and np.isclose(wide[0], -89.80082)
assert eager[0] == jitted[0] == -np.inf
assert np.isclose(eager[1], -86.80511)
PYTHON
