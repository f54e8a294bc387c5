"""Accuracy and self-reward against decoding temperature, from lm-eval's output folders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from lm_power.errors import UserError
from lm_power.report.reading import read_runs
from lm_power.report.runs import Run
from lm_power.report.summary import summarise
from lm_power.stats.means import Estimate


@dataclasses.dataclass(frozen=True)
class TemperatureRow:
    """One run of token-wise sampling.

    Attributes:
        temperature: τ; 1 for method=standard.
        label: the run's.
        n: completions per problem.
        accuracy: over all completions.
        self_reward: over all completions, nats per token, under the model at temperature 1.
    """

    temperature: float
    label: str
    n: int
    accuracy: Estimate
    self_reward: Estimate


def read_temperatures(sources: Sequence[str]) -> list[TemperatureRow]:
    """One row per run, by rising temperature.

    Args:
        sources: lm-eval output folders, as `reading.read_runs` takes them.

    Raises:
        UserError: a run cannot be read, has no decoding temperature, verdicts or self-rewards, is of another model,
            task or problems than the others, or has the temperature of another; or there is only one run.
    """
    runs = read_runs(sources)
    rows = sorted(map(_row, runs), key=lambda row: row.temperature)
    if len(rows) < 2:
        raise UserError(
            f"--temperatures {' '.join(sources)}: names one run; a figure against temperature needs two or more"
        )
    for run in runs[1:]:
        _check_same(runs[0], run)
    for row, after in itertools.pairwise(rows):
        if row.temperature == after.temperature:
            raise UserError(
                f"--temperatures: {row.label} and {after.label} are both at temperature {row.temperature:g}; leave one "
                "out (for more completions per problem, raise --gen_kwargs n=)"
            )
    return rows


def _row(run: Run) -> TemperatureRow:
    if run.method not in ("standard", "temperature"):
        raise UserError(
            f"--temperatures {run.folder}: method={run.method} has no decoding temperature; give runs of --model "
            "power-hf with method=temperature or standard"
        )
    summary = summarise(run)
    if summary.accuracy is None or summary.self_reward is None:
        raise UserError(
            f"--temperatures {run.folder}: lacks the correctness or self-reward of some completions; evaluate one of "
            "our tasks with --log_samples and give its --output_path"
        )
    temperature = 1.0 if run.method == "standard" else float(run.options["proposal_temperature"])
    return TemperatureRow(temperature, run.label, run.n, summary.accuracy, summary.self_reward)


def _check_same(first: Run, run: Run) -> None:
    what = {
        "model": (first.model, run.model),
        "task": (first.task, run.task),
        "filter": (first.filter, run.filter),
        "task version": (first.task_version, run.task_version),
    }
    for name, (one, other) in what.items():
        if one != other:
            raise UserError(f"--temperatures {first.folder} and {run.folder}: {name} differs ({one}, {other})")
    if [p.prompt_hash for p in first.problems] != [p.prompt_hash for p in run.problems]:
        raise UserError(
            f"--temperatures {first.folder} and {run.folder}: their problems differ ({len(first.problems)} and "
            f"{len(run.problems)}); evaluate all with the same --limit, template and few-shot examples"
        )
