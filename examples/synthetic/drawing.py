"""What the pictures share: one look, panels side by side, curves with markers, error bars."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's colours, dark to light, so that they also differ in grey; line styles and markers differ as well.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#56B4E9")
LINES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = ("o", "s", "^", "D")
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "lm-power",  # the same picture gives the same file
}
ALPHA = 4.0
ALPHAS = (2.0, 4.0, 8.0)


def panels(count: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(3.7 * count, 3.2))
    return figure, list(np.ravel(figure.subplots(1, count)))


def line(axes: Axes, at: int, x, y, label: str | None = None, every: int | None = None) -> None:
    """Curve number `at`, with a marker at every so many points."""
    every = every or max(1, len(x) // 8)
    style = {"color": COLOURS[at], "linestyle": LINES[at], "marker": MARKERS[at]}
    axes.plot(x, y, label=label, markevery=(at * every // 4, every), **style)


def bars(estimates: np.ndarray) -> np.ndarray:
    """[2, sizes] lengths of error bars below and above the mean: the middle 95% of [sizes, repeats]."""
    mean = estimates.mean(axis=1)
    low, high = np.quantile(estimates, [0.025, 0.975], axis=1)
    return np.maximum([mean - low, high - mean], 0)  # in a skewed sample the mean may lie outside
