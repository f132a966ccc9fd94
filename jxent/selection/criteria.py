"""Information criteria of a fitted model: AIC and BIC from its log-likelihood."""

from __future__ import annotations

import numpy as np

from jxent import _check
from jxent._typing import ArrayLike
from jxent.selection.checks import check_row_losses


@_check.arguments
def log_likelihood(row_losses: ArrayLike) -> float:
    """Sum log-probabilities: log L = −Σ ℓ_i, the log-likelihood of all labels together.

    Args:
      row_losses: ℓ `[N]` = −log p_y, in nats, unweighted and unsmoothed.

    Returns:
      A float, in nats; −∞ if a row had probability 0.

    Raises:
      ValueError: without rows, for NaN.
      TypeError: for losses that are not numbers, or traced.

    Example:
      >>> import jxent
      >>> print(f"{jxent.selection.log_likelihood([0.5, 0.25, 1.0]):.2f}")
      -1.75

    References:
      Fisher, *On the Mathematical Foundations of Theoretical Statistics*, 1922.
    """
    return -float(np.sum(check_row_losses("log_likelihood", row_losses)))


@_check.arguments
def aic(row_losses: ArrayLike, parameters: int) -> float:
    """Compute Akaike's criterion, AIC = 2k − 2 log L = 2k + 2 Σ ℓ_i: less is better.

    For models fitted by maximum likelihood to these same rows, whose number k of parameters is
    small beside N. Halved it is in nats, an estimate of N times the loss on new rows; held-out
    losses need no such correction: `compare` them.

    Args:
      row_losses: ℓ `[N]` of the rows fitted, in nats.
      parameters: k, how many were fitted.

    Returns:
      A float, in half nats.

    Raises:
      ValueError: without rows, for NaN, for k < 0.
      TypeError: for losses that are not numbers, or traced; for k that is not an integer.

    Example:
      >>> import jxent
      >>> print(jxent.selection.aic([0.5, 0.25, 1.0], parameters=2))
      7.5

    References:
      Akaike, *A New Look at the Statistical Model Identification*, 1974.
    """
    k = _check.whole("aic", "parameters", parameters, 0)
    return 2 * k + 2 * float(np.sum(check_row_losses("aic", row_losses)))


@_check.arguments
def bic(row_losses: ArrayLike, parameters: int) -> float:
    """Compute Schwarz's criterion, BIC = k log N − 2 log L = k log N + 2 Σ ℓ_i: less is better.

    As `aic`, with a price for each parameter that grows with N.

    Args:
      row_losses: ℓ `[N]` of the rows fitted, in nats.
      parameters: k, how many were fitted.

    Returns:
      A float, in half nats.

    Raises:
      ValueError: without rows, for NaN, for k < 0.
      TypeError: for losses that are not numbers, or traced; for k that is not an integer.

    Example:
      >>> import jxent
      >>> print(f"{jxent.selection.bic([0.5, 0.25, 1.0], parameters=2):.4f}")
      5.6972

    References:
      Schwarz, *Estimating the Dimension of a Model*, 1978.
    """
    k = _check.whole("bic", "parameters", parameters, 0)
    rows = check_row_losses("bic", row_losses)
    return k * float(np.log(len(rows))) + 2 * float(np.sum(rows))
