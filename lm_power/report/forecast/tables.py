"""The forecast's two tables: accuracy against alpha, and what runs with power sampling measured."""

from __future__ import annotations

import dataclasses

import numpy as np

from lm_power.report.forecast.estimates import MIN_EFFECTIVE, MIN_SHARE, Forecast, Point, over_problems
from lm_power.report.forecast.runs import Material
from lm_power.report.summary import accuracies
from lm_power.report.tables import Column, Table
from lm_power.stats.means import Estimate


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run that sampled p^alpha, beside the forecast at its alpha.

    Attributes:
        label: the run's.
        n: completions per problem.
        accuracy: as measured.
        point: the forecast.
        difference: measured minus forecast, on the same problems.
    """

    label: str
    n: int
    accuracy: Estimate
    point: Point
    difference: Estimate


def compare(material: Material, forecast: Forecast) -> list[Measured]:
    """The measured runs beside the forecast, by rising alpha; the forecast must have their alphas."""
    points = {point.alpha: point for point in forecast.points}
    rows = []
    for run in material.measured:
        scores, alpha = accuracies(run), float(run.options["alpha"])
        assert scores is not None  # `read_material` has refused runs without verdicts
        difference = over_problems(np.array(scores) - forecast.column(alpha))
        rows.append(Measured(run.label, run.n, over_problems(scores), points[alpha], difference))
    return sorted(rows, key=lambda row: row.point.alpha)


def forecast_table(material: Material, forecast: Forecast) -> Table:
    """One row per alpha."""
    plain = material.plain
    return Table(
        key="forecast",
        title=f"{material.name}: accuracy of power sampling, forecast from plain completions",
        caption=(
            f"{plain.model}, {len(plain.problems)} problems, {plain.n} completions each by method=standard. Each "
            "completion of a problem is weighed by w = p^(α − 1). Means over problems ± standard error over problems. "
            "Error from draws: the part of that error that more completions per problem would reduce. Bias: of the "
            "weighing itself, estimated by the jackknife and not subtracted. ESS: effective sample size of a problem, "
            f"(Σw)²/Σw². An alpha is resolved if the ESS is at least {MIN_EFFECTIVE:g} in {MIN_SHARE:.0%} of the "
            "problems; a forecast that is not resolved should not be used. What was never drawn has no weight, so even "
            "a resolved forecast can be too near to plain sampling."
        ),
        columns=(
            Column("alpha", "Alpha", 2),
            Column("accuracy", "Accuracy"),
            Column("gain", "Gain"),
            Column("draws_error", "Error from draws"),
            Column("bias", "Bias"),
            Column("effective_median", "ESS, median", 1),
            Column("effective_tenth", "ESS, lowest tenth", 1),
            Column("effective_share", f"ESS ≥ {MIN_EFFECTIVE:g}", 2),
            Column("resolved", "Resolved"),
        ),
        rows=tuple(
            (
                point.alpha, point.accuracy, point.gain, point.draws_error, point.bias,
                float(np.median(point.effective)), float(np.quantile(point.effective, 0.1)), point.share,
                "yes" if point.resolved else "no",
            )
            for point in forecast.points
        ),
        notes=material.notes,
    )  # fmt: skip


def measured_table(rows: list[Measured]) -> Table:
    """One row per run with power sampling."""
    return Table(
        key="measured",
        title="Beside it: what was measured",
        caption=(
            "Difference: measured minus forecast on the same problems, ± standard error over problems. The forecast is "
            "of p^α itself; a method that only comes near p^α differs from it for that reason too."
        ),
        columns=(
            Column("sampling", "Sampling"),
            Column("alpha", None, 2),
            Column("n", "N"),
            Column("accuracy", "Measured"),
            Column("forecast", "Forecast"),
            Column("difference", "Difference"),
            Column("resolved", "Resolved"),
        ),
        rows=tuple(
            (
                row.label, row.point.alpha, row.n, row.accuracy, row.point.accuracy, row.difference,
                "yes" if row.point.resolved else "no",
            )
            for row in rows
        ),
    )  # fmt: skip
