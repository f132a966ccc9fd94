"""From stored logits: plain `cross_entropy(hidden @ head + bias)`, in every mode of JAX."""

from functools import partial

from jxent._core import row_terms
from jxent._core.weighting import Coefficients, combine_terms
from jxent._linear.projection import Bias, Head, Hidden, LinearOptions, project, selected
from jxent._typing import ClassWeights, Labels, PerRow, RowMask


def run(
    static: LinearOptions,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels,
    c: ClassWeights | None,
    kept: RowMask | None,
    by: Coefficients,
) -> PerRow:
    """Each row's loss."""
    numbers = row_terms.rematerialized(partial(row_terms.row_terms, static.options))
    return combine_terms(by, *numbers(project(static, selected(kept, h), w, b), y, c, None, kept))
