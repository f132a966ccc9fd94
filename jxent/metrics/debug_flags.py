"""`jax.debug_nans` and `jax.debug_infs` do not stop at the NaN of what was not counted."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import jax


def without_debug_checks() -> AbstractContextManager[Any]:
    """Enter a context without `jax.debug_nans` and `jax.debug_infs`, for NaN that is meant."""
    stack = ExitStack()
    stack.enter_context(jax.debug_nans(False))
    stack.enter_context(jax.debug_infs(False))
    return stack
