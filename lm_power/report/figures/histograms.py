"""Histograms of the completions by correctness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lm_power.logs.samples import LoggedCompletion
from lm_power.report.figure_data import Split, by_correctness
from lm_power.report.figures.style import (
    RIGHT_COLOUR,
    WRONG_COLOUR,
    WRONG_HATCH,
    Drawing,
    Omitted,
    left_out,
    new_panels,
)
from lm_power.report.runs import Comparison

BINS = 24


def self_reward(comparison: Comparison) -> Drawing | Omitted:
    """Self-reward of right and wrong completions."""
    return _histograms(
        comparison,
        lambda completion: completion.self_reward,
        name="self_reward_histogram",
        title="Self-reward of right and wrong completions",
        axis="self-reward, nats per token",
        needs="self-reward",
        whole=False,
    )


def length(comparison: Comparison) -> Drawing | Omitted:
    """Length of right and wrong completions."""
    return _histograms(
        comparison,
        lambda completion: completion.tokens,
        name="length_histogram",
        title="Length of right and wrong completions",
        axis="length, tokens",
        needs="number of tokens",
        whole=True,
    )


def _histograms(
    comparison: Comparison,
    quantity: Callable[[LoggedCompletion], float | None],
    *,
    name: str,
    title: str,
    axis: str,
    needs: str,
    whole: bool,
) -> Drawing | Omitted:
    splits = {i: s for i, s in enumerate(by_correctness(run, quantity) for run in comparison.runs) if s is not None}
    if not splits:
        return Omitted(name, title, f"no run has a verdict and a {needs} for every completion.")
    values = np.array([value for split in splits.values() for value in (*split.right, *split.wrong)])
    edges = _edges(values, whole)
    canvas, panels = new_panels(
        1.9 if len(splits) <= 2 else 1.3 if len(splits) <= 4 else 0.9, [comparison.runs[i].label for i in splits]
    )
    for axes, split in zip(panels, splits.values(), strict=True):
        _mirror(axes, split, edges)
    panels[-1].set_xlabel(axis)
    panels[-1].set_xlim(edges[0], edges[-1])
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    canvas.supylabel("completions")
    canvas.legend(
        handles=[
            Patch(facecolor=RIGHT_COLOUR, edgecolor=RIGHT_COLOUR, label="right, upwards"),
            Patch(facecolor="white", edgecolor=WRONG_COLOUR, hatch=WRONG_HATCH, label="wrong, downwards"),
        ],
        loc="outside lower left", ncols=2, frameon=False,
    )  # fmt: skip
    seen = "; ".join(f"{comparison.runs[i].label}: {_medians(split)}" for i, split in splits.items())
    caption = "Completions of all problems together, in bins of equal width; each run has its own scale of counts."
    if far := int((values < edges[0]).sum()):
        low, lowest = (f"{value:.3g}".replace("-", "−") for value in (edges[0], values.min()))
        caption += f" The first bin also has the {far} below {low}, down to {lowest}."
    return Drawing(name, title, caption + left_out(comparison, splits), f"Histograms. {seen}.", canvas)


def _mirror(axes: Axes, split: Split, edges: np.ndarray) -> None:
    """Right completions upwards, wrong ones downwards: neither hides the other."""
    right, wrong = (np.histogram(np.maximum(values, edges[0]), edges)[0] for values in (split.right, split.wrong))
    axes.stairs(right, edges, fill=True, color=RIGHT_COLOUR)
    axes.stairs(-wrong, edges, fill=True, facecolor="white", edgecolor=WRONG_COLOUR, hatch=WRONG_HATCH, linewidth=0.8)
    axes.axhline(0, color="black", linewidth=0.8)
    highest, lowest = right.max(initial=0), wrong.max(initial=0)
    room = 0.12 * max(highest, lowest, 1)
    axes.set_ylim(-lowest - room, highest + room)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{abs(count):.0f}"))


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Equal bins over the values, but for a long tail of few values on the left.

    Whole numbers get bins of whole widths, so that none is empty by rounding. The last hundredth of other numbers may
    lie below the first edge, if it would take more than a third of the axis: a single hopeless completion of a real
    model has a self-reward far below all others.
    """
    low, high = float(values.min()), float(values.max())
    if whole:
        low, high = (low, high) if high - low >= 5 else (low - 3, high + 3)
        width = int(np.ceil((high - low + 1) / BINS))
        count = int(np.ceil((high - low + 1) / width))
        return low - 0.5 + width * np.arange(count + 1)
    first = float(np.quantile(values, 0.01))
    low = low if first - low <= (high - low) / 3 else first
    room = 0.02 * (high - low) or 0.05 * abs(high) or 0.05
    return np.linspace(low - room, high + room, BINS + 1)


def _medians(split: Split) -> str:
    parts = [("right", split.right), ("wrong", split.wrong)]
    return ", ".join(
        f"{len(values)} {word}" + (f", median {np.median(values):.3g}" if values else "") for word, values in parts
    )
