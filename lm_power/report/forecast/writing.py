"""The forecast from runs to the answer, the tables, a figure and a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_power.errors import UserError
from lm_power.report.forecast.conclusion import LEVEL, Conclusion, conclude
from lm_power.report.forecast.estimates import MIN_EFFECTIVE, MIN_SHARE, Forecast, forecast
from lm_power.report.forecast.figure import write_figure
from lm_power.report.forecast.runs import Material, read_material
from lm_power.report.forecast.tables import Measured, compare, forecast_table, measured_table
from lm_power.report.formats import to_csv, to_markdown, to_text
from lm_power.report.rendering import unique_slugs
from lm_power.report.tables import Table
from lm_power.stats.means import Estimate


@dataclasses.dataclass(frozen=True)
class Result:
    """All of one task's forecast."""

    material: Material
    forecast: Forecast
    measured: list[Measured]
    conclusion: Conclusion

    @property
    def tables(self) -> list[Table]:
        """The tables for readers."""
        tables = [forecast_table(self.material, self.forecast)]
        return [*tables, measured_table(self.measured)] if self.measured else tables


def make_forecast(
    sources: Sequence[str], alphas: Sequence[float], output: Path | None, allow_differences: bool = False
) -> None:
    """Read everything, then compute, then write; nothing is written if something cannot be read or compared.

    Args:
        sources: lm-eval output folders and stores (`read_material`).
        alphas: where to forecast; those of the measured runs are added.
        output: folder for page, figure and JSON, made if missing; None: print alone.
        allow_differences: use the problems that all runs share, instead of refusing.

    Raises:
        UserError: the runs cannot be read or used, or the folder cannot be written.
    """
    results = [_result(material, alphas) for material in read_material(sources, allow_differences)]
    for result in results:
        print("\n".join(map(to_text, result.tables)))
        print(f"{result.conclusion.sentence}\n")
    if output is None:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output, results)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name a folder that can") from error
    print(output / "forecast.md")


def _result(material: Material, alphas: Sequence[float]) -> Result:
    problems = material.plain.problems
    found = forecast(
        [[completion.correct or 0.0 for completion in problem.completions] for problem in problems],
        [[completion.sum_log_prob or 0.0 for completion in problem.completions] for problem in problems],
        [*alphas, *(float(run.options["alpha"]) for run in material.measured)],
    )
    return Result(material, found, compare(material, found), conclude(found))


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write forecast.md, forecast.json, and for each task its CSV tables and its figure into the existing folder."""
    names = unique_slugs([result.material.name for result in results])
    parts = []
    for result, name in zip(results, names, strict=True):
        figure = write_figure(result.forecast, result.measured, f"forecast-{name}", folder)
        tables = result.tables
        parts += [f"# Forecast: {name}\n", f"{result.conclusion.sentence}\n", figure.markdown, to_markdown(tables)]
        for table in tables:
            (folder / f"{table.key}-{name}.csv").write_text(to_csv(table), encoding="utf-8", newline="")
    (folder / "forecast.md").write_text("\n".join(parts), encoding="utf-8")
    content = {"lm_power_forecast": 1, "forecasts": [_record(result) for result in results]}
    (folder / "forecast.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _record(result: Result) -> dict[str, Any]:
    plain, found = result.material.plain, result.forecast
    return {
        "task": plain.task,
        "filter": plain.filter,
        "model": plain.model,
        "completions_per_problem": plain.n,
        "answer": {**dataclasses.asdict(result.conclusion), "level": LEVEL},
        "rule": {"min_effective": MIN_EFFECTIVE, "min_share": MIN_SHARE},
        "slope_at_1": _estimate(found.slope),
        "points": [
            {
                "alpha": point.alpha,
                "accuracy": _estimate(point.accuracy),
                "gain": _estimate(point.gain),
                "draws_error": point.draws_error,
                "bias": point.bias,
                "effective_share": point.share,
                "resolved": point.resolved,
            }
            for point in found.points
        ],
        "measured": [
            {
                "sampling": row.label,
                "alpha": row.point.alpha,
                "n": row.n,
                "accuracy": _estimate(row.accuracy),
                "difference": _estimate(row.difference),
            }
            for row in result.measured
        ],
        "problems": [
            {
                "doc_id": problem.doc_id,
                "accuracy": found.values[place].tolist(),
                "effective": [float(point.effective[place]) for point in found.points],
            }
            for place, problem in enumerate(plain.problems)
        ],
        "notes": list(result.material.notes),
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "stderr": estimate.error}
