"""Logits never stored: the ways, cheapest first, one file each, one signature.

    way(static, hidden, head, bias, labels, class_weights, kept, by) → losses

    tokens      Σ_rows loss; gradients computed beside it, a chunk of rows at a time: 6·N·V·D flops
    vocab       each row's loss; logits computed again on the way back, a block of classes at a
                time: 8·N·V·D flops, least memory
    reference   each row's loss, from stored logits: what the others are tested against

A loss alone costs 2·N·V·D in every way.  `projection` is the product and its transposes,
`tiling` how an axis is cut into pieces.
"""
