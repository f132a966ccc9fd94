"""From stored logits: plain `cross_entropy(hidden @ head + bias)`, in every mode of JAX."""

from functools import partial

from jxent import _dense
from jxent._linear.head import Bias, Head, Hidden, Static, project, selected
from jxent._typing import ClassWeights, Labels, PerRow, RowMask
from jxent._weights import Coefficients, weigh


def losses(
    static: Static,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels,
    c: ClassWeights | None,
    kept: RowMask | None,
    by: Coefficients,
) -> PerRow:
    """Each row's loss."""
    numbers = _dense.remembering(partial(_dense.numbers, static.options))
    return weigh(by, *numbers(project(static, selected(kept, h), w, b), y, c, None, kept))
