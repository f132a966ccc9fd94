"""Losses of a projection whose logits are never stored.

api               what people call: checks, records, one call
implementations   the table of implementations, and `run`, which all of them share
row_loss          what a loss of projected rows is
chunked_rows      "tokens": chunks of rows; each_row and sum_of_rows of any loss
vocab             "vocab": blocks of classes, online
reference         "reference": stored logits
projection        the product and its transposes
tiling            how an axis is split into tiles
"""
