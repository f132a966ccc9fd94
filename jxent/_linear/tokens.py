"""A chunk of rows at a time, each chunk's gradients beside its loss: see `chunked_rows`.

    loss = Σ_chunks Σ_rows loss        dh_chunk = dz·wᵀ        dw = Σ_chunks hᵀ·dz

6·N·V·D flops, and only the products whose gradients are wanted.  Residuals: the gradients.
"""

from jxent._linear.chunked_rows import sum_of_rows as run

__all__ = ["run"]
