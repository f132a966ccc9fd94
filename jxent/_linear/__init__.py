"""Losses of a projection whose logits are never stored.

    run(loss, static, operands, labels, kept) → losses

    tokens      Σ_rows loss; gradients computed beside it, a chunk of rows at a time: 6·N·V·D flops
    vocab       each row's loss; logits computed again in the backward pass, a block of classes at a
                time: 8·N·V·D flops, least memory
    reference   each row's loss, from stored logits: what the others are tested against

A loss alone costs 2·N·V·D in each.  One file an implementation, listed in `implementations`, whose
`run` does what all of them share.  `projection` is the product and its transposes, `tiling` how an
axis is split into tiles, `row_loss` what a loss of projected rows is.
"""
