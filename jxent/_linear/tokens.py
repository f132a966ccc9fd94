"""A chunk of rows at a time, each chunk's gradients beside its loss: see `chunks`.

    loss = Σ_chunks Σ_rows loss        dh_chunk = dz·wᵀ        dw = Σ_chunks hᵀ·dz

6·N·V·D flops, and only the products that are asked for.  Kept between the passes: the gradients.
"""

from typing import NamedTuple

from jxent._core import row_terms
from jxent._core.weighting import Coefficients, weigh
from jxent._linear.chunked_rows import Operands, Projection, Zs, total
from jxent._linear.projection import Bias, Head, Hidden, Static
from jxent._typing import ClassWeights, Labels, PerRow, RowMask, Scalar


class _CrossEntropy(NamedTuple):
    """The losses of a chunk's rows."""

    options: row_terms.Options

    def __call__(
        self,
        zs: Zs,
        c: ClassWeights | None,
        by: Coefficients,
        y: Labels,
        kept: RowMask | None,
    ) -> PerRow:
        (z,) = zs
        return weigh(by, *row_terms.training_rows(self.options, z, y, c, None, kept))


def losses(
    static: Static,
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
    return total(_CrossEntropy(static.options), (static,), operands, y, kept)
