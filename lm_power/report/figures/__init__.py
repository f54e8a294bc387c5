"""The report's figures: one function each, from a comparison to a drawing, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lm_power.report.figures import acceptance, accuracy, histograms
from lm_power.report.figures.style import Drawing, Figure, Omitted, save, settings
from lm_power.report.runs import Comparison

__all__ = ["Figure", "Omitted", "write_figures"]

DRAWERS: tuple[Callable[[Comparison], Drawing | Omitted], ...] = (
    accuracy.cost,
    accuracy.pass_at_k,
    accuracy.majority_at_k,
    accuracy.reliability_by_decile,
    histograms.self_reward,
    histograms.length,
    acceptance.by_block,
    acceptance.by_cut,
)


def write_figures(comparison: Comparison, folder: Path) -> list[Figure | Omitted]:
    """Draw the comparison's figures, each as SVG and PNG, into an existing folder.

    Args:
        comparison: at least one run of at least one problem.
        folder: where the files go; those of the same names are replaced.

    Returns:
        For every figure, in the order of the page, what was written or why it was left out.
    """
    with settings():
        drawings = [draw(comparison) for draw in DRAWERS]
        return [d if isinstance(d, Omitted) else save(d, folder) for d in drawings]
