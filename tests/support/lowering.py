"""Hash the lowered program of every case: a change of names alone must not change one hash.

A hash is of the StableHLO of the value and of all gradients, without symbol names and locations,
so it is the same for the same program however the code that makes it is laid out.  Hashes change
with JAX: they are compared within one version and never stored.

    PYTHONPATH=tests/support python tests/support/lowering.py > before
    PYTHONPATH=tests/support python tests/support/lowering.py | diff before -
"""

import hashlib
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from cases import ROW_LOSSES, TRAINING_LOSSES, Case, cast, split

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def canonical(text: str) -> str:
    """StableHLO with symbols numbered as they appear, and without the names of results."""
    text = re.sub(r'jax\.result_info = "[^"]*"', "", text)
    numbers: dict[str, int] = {}
    return re.sub(
        r"@[\w.$-]+", lambda symbol: f"@{numbers.setdefault(symbol[0], len(numbers))}", text
    )


def lowered(case: Case, dtype: jnp.dtype, platform: str) -> str:
    """The program that computes the loss and its gradients by all floating-point arguments."""
    floats, arrays, static = split(cast(case.arguments, dtype))

    def value_and_gradients(floats, arrays):
        value, pull_back = jax.vjp(lambda x: case.fn(**x, **arrays, **dict(static)), floats)
        return value, pull_back(jnp.ones_like(value))

    traced = jax.jit(value_and_gradients).trace(floats, arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def hashes(cases: dict[str, Case]) -> Iterator[tuple[str, str]]:
    """(name, hash) of each case in every dtype, for every platform."""
    for name, case in cases.items():
        for dtype in DTYPES:
            for platform in PLATFORMS:
                text = canonical(lowered(case, dtype, platform))
                key = f"{name} | {jnp.dtype(dtype).name} | {platform}"
                yield key, hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    for key, value in hashes({**ROW_LOSSES, **TRAINING_LOSSES}):
        print(key, value)
