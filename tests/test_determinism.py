"""Same inputs, device and shapes: the same bits, call after call, program after program, process
after process.
"""

import hashlib
import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import OFTEN, ROW_LOSSES, TRAINING_LOSSES, Case, cast, value_and_gradients


def large(dtype: str) -> dict[str, Case]:
    """Shapes over which XLA spreads its threads."""
    r = np.random.default_rng(0)
    z, y = r.standard_normal((257, 4001)), r.integers(0, 4001, 257).astype(np.int32)
    h, w = r.standard_normal((257, 32)), r.standard_normal((32, 4001))
    cases = {**ROW_LOSSES, **TRAINING_LOSSES}
    row, training = cases["labels"].fn, cases["labels, plain, mean"].fn
    return {
        f"rows, {dtype}": Case(row, dict(logits=z, labels=y)),
        f"training, {dtype}": Case(training, dict(logits=z, targets=y, z_loss=0.1)),
        f"tokens, {dtype}": Case(cases["tokens, mean"].fn, dict(hidden=h, head=w, labels=y)),
        f"vocab, {dtype}": Case(cases["vocab, none"].fn, dict(hidden=h, head=w, labels=y)),
    }


def digests() -> dict[str, str]:
    """The bits of every loss and its gradients."""
    cases: dict[str, tuple[Case, str]] = {}
    for name, case in {**ROW_LOSSES, **TRAINING_LOSSES}.items():
        if name in OFTEN:
            cases[name] = case, "float32"
    for dtype in ("float32", "bfloat16"):
        cases |= {name: (case, dtype) for name, case in large(dtype).items()}
    return {name: digest(case, dtype) for name, (case, dtype) in cases.items()}


def digest(case: Case, dtype: Any) -> str:
    out = value_and_gradients(case.fn, cast(case.arguments, dtype))
    bits = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(out))
    return hashlib.sha256(bits).hexdigest()


def test_same_bits():
    first, again = digests(), digests()
    jax.clear_caches()
    compiled_again = digests()
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    elsewhere = json.loads(run.stdout)
    assert first == again
    assert first == compiled_again
    assert first == elsewhere
    assert len(set(first.values())) == len(first)


def test_other_bits_are_seen():
    case = ROW_LOSSES["labels"]
    before = digest(case, jnp.float32)
    nudged = Case(case.fn, {**case.arguments, "logits": case.arguments["logits"] * (1 + 2.0**-20)})
    assert digest(nudged, jnp.float32) != before


if __name__ == "__main__":
    print(json.dumps(digests()))
