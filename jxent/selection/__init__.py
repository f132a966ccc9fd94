"""Comparison of models on the same rows: which is better, by how much, and is it more than luck.

On the same N rows, with losses a and b of two models and weights w (Σ w = 1),

    d̄  = Σ_i w_i d_i                   d_i = b_i − a_i
    u_g = Σ_{i∈g} w_i (d_i − d̄)        what group g (or the row itself) contributes to the error
    s²  = G/(G−1) Σ_g u_g²             t interval d̄ ± t_{G−1} s, p = 2 P(t_{G−1} > |d̄|/s)
    d̄* = d̄ + Σ_g c_g u_g / Σ_g c_g w_g        c ~ multinomial(G; 1/G, …)

Without weights and groups, s is the ordinary standard error of a paired mean.  Statistics are
float64 NumPy; the resampling is JAX's.  Differences of no more than rounding count as none.
"""

from jxent.selection.criteria import aic, bic, log_likelihood
from jxent.selection.paired import compare

__all__ = ["compare", "log_likelihood", "aic", "bic"]
