"""From stored logits: plain `cross_entropy(hidden @ head + bias)`, in every mode of JAX."""

from functools import partial

from jxent._core import row_terms
from jxent._core.weighting import Coefficients, weigh
from jxent._linear.projection import Bias, Head, Hidden, Static, project, selected
from jxent._typing import ClassWeights, Labels, PerRow, RowMask


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
    numbers = row_terms.remembering(partial(row_terms.numbers, static.options))
    return weigh(by, *numbers(project(static, selected(kept, h), w, b), y, c, None, kept))
