"""Same inputs, device and shapes: the same bits, call after call and process after process."""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OFTEN, ROW_LOSSES, TRAINING_LOSSES, Case, cast, value_and_gradients

import jxent


def large() -> dict[str, Case]:
    """Shapes over which XLA spreads its threads."""
    r = np.random.default_rng(0)
    z, y = r.standard_normal((257, 4001)), r.integers(0, 4001, 257).astype(np.int32)
    h, w = r.standard_normal((257, 32)), r.standard_normal((32, 4001))
    row, linear = jxent.softmax_cross_entropy_with_integer_labels, jxent.linear_cross_entropy
    ways = {
        "tokens": dict(implementation="tokens", chunk_size=100),
        "vocab": dict(implementation="vocab", chunk_size=1000),
    }
    return {
        "rows": Case(row, dict(logits=z, labels=y)),
        "training": Case(jxent.cross_entropy, dict(logits=z, targets=y, z_loss=0.1)),
        **{way: Case(linear, dict(hidden=h, head=w, labels=y, **how)) for way, how in ways.items()},
    }


def digests() -> dict[str, str]:
    """The bits of every loss and its gradients."""
    cases: dict[str, tuple[Case, str]] = {}
    for name, case in {**ROW_LOSSES, **TRAINING_LOSSES}.items():
        if name in OFTEN:
            cases[name] = case, "float32"
    for dtype in ("float32", "bfloat16"):
        cases |= {f"{name}, {dtype}": (case, dtype) for name, case in large().items()}
    return {name: digest(case, dtype) for name, (case, dtype) in cases.items()}


def digest(case: Case, dtype: Any) -> str:
    out = value_and_gradients(case.fn, cast(case.arguments, dtype))
    bits = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(out))
    return hashlib.sha256(bits).hexdigest()


@pytest.mark.deep
def test_same_bits():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    first, again = digests(), digests()
    elsewhere = json.loads(other.communicate(timeout=600)[0])
    assert first == again
    assert first == elsewhere
    assert len(set(first.values())) == len(first)


def test_other_bits_are_seen():
    case = ROW_LOSSES["labels"]
    before = digest(case, jnp.float32)
    nudged = Case(case.fn, {**case.arguments, "logits": case.arguments["logits"] * (1 + 2.0**-20)})
    assert digest(nudged, jnp.float32) != before


if __name__ == "__main__":
    print(json.dumps(digests()))
