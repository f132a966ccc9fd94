"""One row's mathematics, and its attachment to JAX.

sum_without_max     S, the sum of a row's exponentials without the maximum's, on each platform
log_softmax         statistics (m, S) of a row, their merge, THE derivative formula
row_terms           that formula as custom_jvp, custom_vjp and checkpoint
targets             labels and masks
weighting           masks, class and row weights, smoothing: coefficients, denominator, reduction
row_losses          engine of the softmax row losses
elementwise         engine of the losses of single logits
logit_divergence    engine of the divergences between two rows of logits
safe_math           0·∞ = 0
needs_grad          which gradients are wanted
compensated         sums in two floats
"""
