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
# Stub.

# %% tags=["install"]
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

packages = {  # module: what pip installs
    "jxent": "..",
    "matplotlib": "matplotlib",
}
missing = [package for module, package in packages.items() if find_spec(module) is None]
if missing:
    # What is here stays as it is: an accelerator's plugin fits one version of JAX only.
    here = ["jax", "jaxlib", "numpy", "optax", "flax"]
    pins = [f"{name}=={version(name)}" for name in here if find_spec(name)]
    constraints = Path(tempfile.mkdtemp(), "constraints.txt")
    constraints.write_text("\n".join(pins))
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints)]
    subprocess.run([*pip, *missing], check=True)

import jxent

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

print(jax.devices()[0], jax.__version__)

# %% tags=["gallery"]
fig, ax = plt.subplots(figsize=(7, 3.5))
ax.plot(np.arange(3))
print(jxent.__version__ if hasattr(jxent, "__version__") else 0)
