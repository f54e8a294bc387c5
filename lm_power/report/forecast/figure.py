"""The forecast's figure: accuracy against alpha, and under it how much the completions can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lm_power.report.figures.style import Drawing, Figure, add_legend, look, new_canvas, save, settings, share_axis
from lm_power.report.forecast.estimates import MIN_EFFECTIVE, MIN_SHARE, Forecast
from lm_power.report.forecast.tables import Measured

_GREY = "#8a8a8a"


def write_figure(forecast: Forecast, measured: Sequence[Measured], name: str, folder: Path) -> Figure:
    """Draw it into the folder as `name`.svg and .png."""
    labels = ["forecast from plain completions, resolved", *(row.label for row in measured)]
    unresolved = Line2D([], [], color=_GREY, marker="x", linestyle=":", label="forecast, not resolved: too few draws")
    extra = [] if all(point.resolved for point in forecast.points) else [unresolved]
    with settings():
        canvas, wrapped = new_canvas(2 * 2.5, labels, extra_lines=len(extra))
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_accuracy(upper, forecast, measured)
        _draw_effective(lower, forecast)
        for axes in (upper, lower):
            _alpha_axis(axes, forecast)
        lower.set_xlabel("alpha")
        points = [Line2D([], [], label=label, **_marker(i)) for i, label in enumerate(wrapped[1:])]
        add_legend(canvas, [0], wrapped[:1], [*extra, *points])
        resolved = [point for point in forecast.points if point.resolved]
        first, last = resolved[0], resolved[-1]
        drawing = Drawing(
            name=name,
            title="Accuracy of power sampling against alpha, forecast from plain completions",
            caption=(
                "Above: accuracy; bars: one standard error over problems. Below: effective sample size per problem, "
                f"median and the range from the lowest to the highest tenth; the line is at {MIN_EFFECTIVE:g}, which "
                f"{MIN_SHARE:.0%} of the problems must reach for an alpha to be resolved."
            ),
            alt=(
                f"Accuracy goes from {first.accuracy.value:.1%} at alpha 1 to {last.accuracy.value:.1%} at alpha "
                f"{last.alpha:g}, the largest that is resolved."
            ),
            canvas=canvas,
        )
        return save(drawing, folder)


def _draw_accuracy(axes: Axes, forecast: Forecast, measured: Sequence[Measured]) -> None:
    style = look(0)
    resolved = [point for point in forecast.points if point.resolved]
    others = [point for point in forecast.points if not point.resolved]
    if others:
        alphas, values = ([point.alpha for point in forecast.points], [p.accuracy.value for p in forecast.points])
        axes.plot(alphas, values, color=_GREY, linestyle=":", linewidth=1.2)
        axes.plot([p.alpha for p in others], [p.accuracy.value for p in others], color=_GREY, marker="x", linestyle="")
    axes.errorbar(
        [point.alpha for point in resolved],
        [point.accuracy.value for point in resolved],
        yerr=[point.accuracy.error or 0.0 for point in resolved],
        capsize=3,
        **vars(style),
    )
    for i, row in enumerate(measured):
        # Beside the forecast's point and each other, so that all bars can be seen.
        place = sum(earlier.point.alpha == row.point.alpha for earlier in measured[:i])
        axes.errorbar(
            row.point.alpha * 1.035 ** (1 + place),
            row.accuracy.value,
            yerr=row.accuracy.error,
            capsize=3,
            **_marker(i),
        )
    share_axis(axes)
    axes.set_ylabel("accuracy")
    axes.set_title("Forecast from plain completions")


def _marker(place: int) -> dict[str, Any]:
    """The look of a measured run: a marker alone."""
    return {**vars(look(place + 1)), "linestyle": "none"}


def _draw_effective(axes: Axes, forecast: Forecast) -> None:
    style = look(0)
    alphas = [point.alpha for point in forecast.points]
    low, middle, high = (
        np.array([np.quantile(point.effective, q) for point in forecast.points]) for q in (0.1, 0.5, 0.9)
    )
    axes.fill_between(alphas, low, high, color=style.color, alpha=0.2, linewidth=0)
    axes.plot(alphas, middle, **vars(style))
    axes.axhline(MIN_EFFECTIVE, color="#000000", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.9)
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= max(high.max(), MIN_EFFECTIVE) * 1.1]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([str(n) for n in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("effective\nsample size")


def _alpha_axis(axes: Axes, forecast: Forecast) -> None:
    """A logarithmic axis with the alphas at its ticks, but for those too close to their neighbour to be read."""
    shown: list[float] = []
    for point in forecast.points:
        if not shown or np.log(point.alpha / shown[-1]) > 0.11 * np.log(forecast.points[-1].alpha):
            shown.append(point.alpha)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{alpha:g}" for alpha in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
