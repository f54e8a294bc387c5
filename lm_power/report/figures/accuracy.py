"""Accuracy: against cost, against the number of completions, and against self-reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from lm_power.report.figure_data import (
    Curve,
    majority_curve,
    pass_at_k_curve,
    reliability,
)
from lm_power.report.figures.style import (
    Drawing,
    Omitted,
    add_legend,
    left_out,
    look,
    new_canvas,
    new_panels,
    share_axis,
)
from lm_power.report.runs import Comparison, Run
from lm_power.report.summary import Summary, summarise

OPEN: dict[str, Any] = {"markerfacecolor": "white"}


def cost(comparison: Comparison) -> Drawing | Omitted:
    """Accuracy against decoded tokens: the mean of all completions, and self-reward best of N at N times the cost."""
    name, title = "accuracy_by_cost", "Accuracy against cost"
    summaries = [summarise(run) for run in comparison.runs]
    shown = [i for i, s in enumerate(summaries) if s.accuracy is not None and s.tokens_decoded is not None]
    if not shown:
        return Omitted(name, title, "no run has both verdicts and numbers of tokens decoded.")
    kinds = [("filled: mean of all completions", {}), ("open: best of N by self-reward, at the cost of N", OPEN)]
    extra = [
        Line2D([], [], color="#555555", marker="o", linestyle="none", label=label, **style)
        for label, style in kinds
        if any(summaries[i].bon_accuracy is not None for i in shown)
    ]
    canvas, labels = new_canvas(3.1, [comparison.runs[i].label for i in shown], extra_lines=len(extra))
    axes = canvas.add_subplot()
    ends = []
    for i in shown:
        ends += _cost_points(axes, i, summaries[i])
    axes.set_xlabel("tokens decoded, rejected work included")
    axes.set_ylabel("accuracy")
    share_axis(axes)
    _cost_axis(axes, ends)
    add_legend(canvas, shown, labels, extra, line=False)
    seen = "; ".join(
        f"{run.label}: {s.accuracy.value:.1%} at {s.tokens_decoded.value:.0f} tokens"
        for run, s in zip(comparison.runs, summaries, strict=True)
        if s.accuracy is not None and s.tokens_decoded is not None
    )
    caption = (
        "Filled: mean correctness of all completions, against the mean number of tokens decoded per completion. Open: "
        "correctness of the completion with the largest self-reward of N, against the number decoded for all N. Bars: "
        "one standard error over problems."
    )
    return Drawing(name, title, caption + left_out(comparison, shown), f"Points. {seen}.", canvas)


def pass_at_k(comparison: Comparison) -> Drawing | Omitted:
    """pass@k against k."""
    return _curves(
        comparison,
        pass_at_k_curve,
        name="pass_at_k",
        title="pass@k",
        axis="one of k is right",
        reason="no run has two or more completions per problem with verdicts of right or wrong.",
        caption="Chance that at least one of k completions is right: 1 − C(N−c, k)/C(N, k) where c of N are right, "
        "averaged over problems. Bands: 95%, bootstrap over problems.",
    )


def majority_at_k(comparison: Comparison) -> Drawing | Omitted:
    """maj@k against k."""
    return _curves(
        comparison,
        majority_curve,
        name="maj_at_k",
        title="maj@k",
        axis="majority of k is right",
        reason="no run has two or more completions per problem with verdicts and logged answers.",
        caption="Chance that the most frequent answer of k completions is right, over all choices of k from a "
        "problem's N, with ties broken at random; averaged over problems. Bands: 95%, bootstrap over problems.",
    )


def reliability_by_decile(comparison: Comparison) -> Drawing | Omitted:
    """Accuracy by decile of self-reward."""
    name, title = "reliability", "Is self-reward reliable?"
    bins = [reliability(run) for run in comparison.runs]
    shown = [i for i, b in enumerate(bins) if len(b) > 1]
    if not shown:
        return Omitted(name, title, "no run has verdicts and self-rewards that differ.")
    canvas, panels, dodges = _one_or_many(comparison, shown)
    for axes, dodge, i in zip(panels, dodges, shown, strict=True):
        shares = [b.share for b in bins[i]]
        # Ranks, not nats, so that runs of far apart self-rewards share an axis; side by side, so that their bars do not
        # overlap.
        step = 10 / len(shares)
        ranks = [step * (j + 0.5) + 0.5 + dodge for j in range(len(shares))]
        axes.errorbar(ranks, [s.value for s in shares], [s.error or 0.0 for s in shares], capsize=2, elinewidth=0.9,
                      **vars(look(i)))  # fmt: skip
        share_axis(axes)
    panels[-1].set_xlim(0.4, 10.6)
    panels[-1].xaxis.set_major_locator(FixedLocator(range(1, 11)))
    panels[-1].set_xlabel("self-reward decile, lowest to highest")
    canvas.supylabel("accuracy")
    seen = "; ".join(
        f"{comparison.runs[i].label}: {bins[i][0].share.value:.0%} in the lowest bin, "
        f"{bins[i][-1].share.value:.0%} in the highest"
        for i in shown
    )
    caption = (
        "Mean correctness of the completions in each tenth of the run's self-rewards; equal self-rewards stay "
        "together, so there may be fewer bins. Where a line rises, more confident completions are more often correct. "
        "Bars: one standard error over problems."
    )
    return Drawing(name, title, caption + left_out(comparison, shown), f"Lines. {seen}.", canvas)


def _cost_points(axes: Axes, i: int, summary: Summary) -> list[float]:
    """Draw a run's points, joined; the two ends of each point's bar on the x axis."""
    points = [
        (cost, accuracy, style)
        for cost, accuracy, style in (
            (summary.tokens_decoded, summary.accuracy, {}),
            (summary.problem_tokens_decoded, summary.bon_accuracy, OPEN),
        )
        if cost is not None and accuracy is not None
    ]
    places = [cost.value for cost, _, _ in points]
    axes.plot(places, [accuracy.value for _, accuracy, _ in points], color=look(i).color, linewidth=0.7, linestyle=":")
    run_style = {**vars(look(i)), "linestyle": "none", "capsize": 2, "elinewidth": 0.9}
    for cost, accuracy, style in points:
        axes.errorbar(cost.value, accuracy.value, accuracy.error, cost.error, **run_style, **style)
    return [cost.value + sign * (cost.error or 0.0) for cost, _, _ in points for sign in (-1, 1)]


def _cost_axis(axes: Axes, ends: Sequence[float]) -> None:
    """Logarithmic where the costs are far apart; there is room beyond the bars at both ends."""
    low, high = min(ends), max(ends)
    if low > 0 and high > 4 * low:
        axes.set_xscale("log")
        margin = (high / low) ** 0.08
        axes.set_xlim(low / margin, high * margin)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for leading in ((1, 2, 5), (1, 3), (1,)):
            ticks = [m * 10.0**e for e in decades for m in leading if low / margin <= m * 10.0**e <= high * margin]
            if len(ticks) <= 6:
                break
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, high * 1.15 or 1.0)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _curves(
    comparison: Comparison,
    curve: Callable[[Run], Curve | None],
    *,
    name: str,
    title: str,
    axis: str,
    reason: str,
    caption: str,
) -> Drawing | Omitted:
    curves = {i: c for i, c in enumerate(map(curve, comparison.runs)) if c is not None}
    if not curves:
        return Omitted(name, title, reason)
    canvas, labels = new_canvas(3.1, [comparison.runs[i].label for i in curves])
    axes = canvas.add_subplot()
    for i, c in curves.items():
        axes.fill_between(c.k, c.low, c.high, color=look(i).color, alpha=0.15, linewidth=0)
        axes.plot(c.k, c.value, markevery=_powers_of_two(len(c.k)), **vars(look(i)))
    largest = max(len(c.k) for c in curves.values())
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.92, largest * 1.08)
    ticks = [k + 1 for k in _powers_of_two(largest)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("k, completions")
    axes.set_ylabel(axis)
    share_axis(axes)
    add_legend(canvas, list(curves), labels)
    seen = "; ".join(
        f"{comparison.runs[i].label}: {c.value[0]:.0%} at k = 1, {c.value[-1]:.0%} at k = {c.k[-1]}"
        for i, c in curves.items()
    )
    return Drawing(name, title, caption + left_out(comparison, curves), f"Curves. {seen}.", canvas)


def _powers_of_two(n: int) -> list[int]:
    """Indices of k = 1, 2, 4, … and n among k = 1 … n; a power next to n gives way to it."""
    powers = [2**e for e in range(n.bit_length()) if 2**e <= n]
    return [k - 1 for k in powers if k == n or k * 1.25 < n] + ([n - 1] if powers[-1] != n else [])


def _one_or_many(comparison: Comparison, shown: Sequence[int]) -> tuple[Canvas, list[Axes], list[float]]:
    """One panel for up to four runs, side by side by some shift of x, else a panel each; canvas, panels and shifts."""
    labels = [comparison.runs[i].label for i in shown]
    if len(shown) > 4:
        canvas, panels = new_panels(1.0, labels)
        return canvas, panels, [0.0] * len(shown)
    canvas, wrapped = new_canvas(3.1, labels)
    add_legend(canvas, shown, wrapped)
    return canvas, [canvas.add_subplot()] * len(shown), [0.12 * (j - (len(shown) - 1) / 2) for j in range(len(shown))]
