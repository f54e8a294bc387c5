"""The two figures of the covariance probe (Tomihari & Sato 2026, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MultipleLocator

from lm_power.report.figures.style import Drawing, Figure, add_legend, look, new_canvas, save, settings, share_axis
from lm_power.report.probe.estimates import Probe
from lm_power.report.probe.temperatures import TemperatureRow

_PANEL = 3.4  # inches


def write_probe_figure(labels: Sequence[str], probes: Sequence[Probe], folder: Path) -> Figure:
    """Gain against covariance: one series of points and its fitted line for each way of sampling."""
    legend = [
        f"slope {probe.line.slope.value:.2f} ± {probe.line.slope.error:.2f}: {label}"
        for label, probe in zip(labels, probes, strict=True)
    ]
    with settings():
        canvas, wrapped = new_canvas(_PANEL, legend)
        axes = canvas.subplots()
        axes.axhline(0, color="#666666", linewidth=0.8)
        axes.axvline(0, color="#666666", linewidth=0.8)
        for i, probe in enumerate(probes):
            style = look(i)
            x = np.array([point.covariance.value for point in probe.points])
            axes.errorbar(
                x,
                [point.gain.value for point in probe.points],
                yerr=[point.gain.error or 0.0 for point in probe.points],
                color=style.color,
                marker=style.marker,
                markersize=4,
                linestyle="none",
                elinewidth=1,
                capsize=2,
            )
            axes.plot(
                x, probe.line.intercept.value + probe.line.slope.value * x, color=style.color, linestyle=style.linestyle
            )
        axes.xaxis.set_major_locator(MultipleLocator(0.5))
        axes.set_xlabel("covariance of reward and self-reward within\nbase prompts (both standardised)")
        axes.set_ylabel("gain in mean reward over base\n(standard deviations)")
        axes.set_title("Random rewards: gain by covariance")
        add_legend(canvas, range(len(probes)), wrapped)
        steepest = max(probe.line.slope.value for probe in probes)
        drawing = Drawing(
            name="gain_by_covariance",
            title="Gain of random rewards against their covariance with self-reward",
            caption=(
                "Each point is one reward, a mixture of self-reward and a hash of prompt and completion; the middle "
                "one is the hash alone. Bars: one standard error over prompts (bootstrap). Lines: least squares."
            ),
            alt=(
                f"{len(probes)} series of {len(probes[0].points)} points from covariance −1 to 1, with their fitted "
                f"lines; the steepest has slope {steepest:.2f}."
            ),
            canvas=canvas,
        )
        return save(drawing, folder)


def write_temperature_figure(rows: Sequence[TemperatureRow], folder: Path) -> Figure:
    """Accuracy, and self-reward under it, against decoding temperature."""
    style = look(0)
    temperatures = [row.temperature for row in rows]
    with settings():
        canvas, _ = new_canvas(2 * 2.3)
        upper, lower = canvas.subplots(2, 1, sharex=True)
        for axes, estimates in ((upper, [row.accuracy for row in rows]), (lower, [row.self_reward for row in rows])):
            values = [estimate.value for estimate in estimates]
            # One problem has no standard error, and no bar.
            errors = [estimate.error or 0.0 for estimate in estimates]
            axes.errorbar(temperatures, values, yerr=errors, capsize=3, **vars(style))
        share_axis(upper)
        upper.set_ylabel("accuracy")
        lower.set_ylabel("self-reward\n(nats per token)")
        lower.set_xlabel("decoding temperature")
        upper.set_title("Sampling token by token at a temperature")
        best = max(rows, key=lambda row: row.accuracy.value)
        drawing = Drawing(
            name="temperature",
            title="Accuracy and self-reward against decoding temperature",
            caption=f"Means over {rows[0].accuracy.problems} problems; bars: one standard error over problems.",
            alt=(
                f"{len(rows)} temperatures from {temperatures[0]:g} to {temperatures[-1]:g}; accuracy is highest, "
                f"{best.accuracy.value:.1%}, at {best.temperature:g}."
            ),
            canvas=canvas,
        )
        return save(drawing, folder)
