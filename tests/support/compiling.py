"""How XLA makes machine code: as users have it, or in a third of the time for tests.

`QUICK` leaves it unoptimised, in one piece, and (where this can be chosen: before jaxlib 0.11) made
without MLIR, whose set-up costs more than all else.  XLA rounds where it rounds for users.
"""

import functools

import jax
import jaxlib

LEVEL = "xla_backend_optimization_level"
USERS = {LEVEL: 3, "xla_cpu_parallel_codegen_split_count": 32}
QUICK = {LEVEL: 0, "xla_cpu_parallel_codegen_split_count": 1}
if jaxlib.version.__version_info__[:2] < (0, 11):
    USERS["xla_cpu_use_fusion_emitters"] = True
    QUICK["xla_cpu_use_fusion_emitters"] = False

# Machine code as people have it, whatever the test run asks for.
as_users = functools.partial(jax.jit, compiler_options=USERS)

# The other way round: where rules are compared, not digits.
quickly = functools.partial(jax.jit, compiler_options=QUICK)


def flags(options: dict[str, int | bool]) -> str:
    """The options as they are written in XLA_FLAGS."""
    return " ".join(f"--{name}={str(x).lower()}" for name, x in options.items())
