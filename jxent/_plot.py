"""Draw a comparison and a calibration, in matplotlib, which is optional."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

# Okabe and Ito's, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOURS = PALETTE[:2]

_Z = 1.959963984540054  # Φ⁻¹(0.975)
_DISCS_AREA = 2000  # points², of all bins together


def _axes(ax: Any, height: float) -> Any:
    """Return the axes given, or new ones."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(7, height), layout="constrained")[1]


def _legend(ax: Any, columns: int = 1) -> None:
    """Add a legend above the axes, where nothing is drawn."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8)


def differences(pairs: Sequence[Any], *, level: str, xlabel: str, ax: Any = None) -> Any:
    """Draw the `Difference` of every pair, with both intervals."""
    ax = _axes(ax, 1.5 + 0.5 * len(pairs))
    t, bootstrap = COLOURS
    for place, d in enumerate(pairs):
        ax.plot([d.low, d.high], [place - 0.1] * 2, color=t, linewidth=2.5)
        ax.plot([d.bootstrap_low, d.bootstrap_high], [place + 0.1] * 2, color=bootstrap)
        ax.plot(d.mean, place, "o", color="black", fillstyle="full" if d.real else "none")
    ax.plot([], [], color=t, linewidth=2.5, label=f"{level} t interval")
    ax.plot([], [], color=bootstrap, label=f"{level} bootstrap interval")
    ax.plot([], [], "o", color="black", label="difference, real")
    ax.plot([], [], "o", color="black", fillstyle="none", label="difference, not told from 0")
    ax.axvline(0, color="#999999", linewidth=1, zorder=0)
    ax.set_yticks(range(len(pairs)), [d.worse for d in pairs])
    ax.set_ylim(len(pairs) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    _legend(ax, columns=2)
    return ax


def reliability(
    confidence: Float[np.ndarray, " B"],
    accuracy: Float[np.ndarray, " B"],
    *,
    rows: Shaped[np.ndarray, " B"],
    error: float,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the share of right predictions against confidence, by bin, with Wilson intervals."""
    ax = _axes(ax, 5.0)
    some = rows > 0
    n, sure, right = (np.asarray(x[some], np.float64) for x in (rows, confidence, accuracy))
    centre = (right + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * np.sqrt(right * (1 - right) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    below, above = right - (centre - half), centre + half - right
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="calibrated")
    colour = PALETTE[len(ax.containers) % len(PALETTE)]
    words = f"{label}: " if label else ""
    ax.errorbar(
        sure,
        right,
        yerr=np.maximum(0, [below, above]),
        color=colour,
        linestyle="none",
        marker="o",
        markersize=4,
        elinewidth=0.8,
        label=f"{words}calibration error {error:.4f}",
    )
    # The area of a disc is its bin's share of the rows.
    ax.scatter(sure, right, s=_DISCS_AREA * n / np.sum(n), color=colour, alpha=0.2, linewidths=0)
    ax.set(xlabel="confidence", ylabel="share of right predictions", xlim=(0, 1), ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    _legend(ax)
    return ax
