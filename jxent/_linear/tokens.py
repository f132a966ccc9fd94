"""A chunk of rows at a time, each chunk's gradients beside its loss: see `chunks`.

    loss = Σ_chunks Σ_rows loss        dh_chunk = dz·wᵀ        dw = Σ_chunks hᵀ·dz

6·N·V·D flops, and only the products that are asked for.  Kept between the passes: the gradients.
"""

from typing import NamedTuple

from jxent._core import row_terms
from jxent._core.weighting import Coefficients, combine_terms
from jxent._linear.chunked_rows import Operands, Projection, Zs, sum_of_rows
from jxent._linear.projection import Bias, Head, Hidden, LinearOptions
from jxent._typing import ClassWeights, Labels, PerRow, RowMask, Scalar


class _CrossEntropy(NamedTuple):
    """The losses of a chunk's rows."""

    options: row_terms.TermOptions

    def __call__(
        self,
        zs: Zs,
        c: ClassWeights | None,
        by: Coefficients,
        y: Labels,
        kept: RowMask | None,
    ) -> PerRow:
        (z,) = zs
        return combine_terms(by, *row_terms.training_row_terms(self.options, z, y, c, None, kept))


def run(
    static: LinearOptions,
    h: Hidden,
    w: Head,
    b: Bias | None,
    y: Labels,
    c: ClassWeights | None,
    kept: RowMask | None,
    by: Coefficients,
) -> Scalar:
    """The sum of the rows' losses."""
    operands = Operands((Projection(h, w, b),), c, by)
    return sum_of_rows(_CrossEntropy(static.options), (static,), operands, y, kept)
