"""What the tables of this folder say: means over problems of what finished runs hold, seeds averaged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from commands import Run, results

from lm_power.logs.samples import LoggedCompletion
from lm_power.report import runs as report
from lm_power.report.reading import read_runs
from lm_power.report.tables import cell_text
from lm_power.stats.best_of_n import best_of_n
from lm_power.stats.means import Estimate, estimate, mean

Score = Callable[[Sequence[LoggedCompletion]], float]
"""A number of a problem, from its completions."""


def finished(args: argparse.Namespace, run: Run) -> list[report.Run]:
    """The results of a run, one per seed, with every completion and its verdict."""
    return [read_runs([str(results(args, run, seed))])[-1] for seed in args.seeds]


def over_problems(runs: Sequence[report.Run], score: Score) -> Estimate:
    """Mean over problems of a number of its completions, averaged over seeds, and its standard error over problems.

    Completions of one problem are no independent trials, whatever their seeds: the error knows problems alone.
    """
    per_seed = [[score(problem.completions) for problem in run.problems] for run in runs]
    found = estimate([mean(values) for values in zip(*per_seed, strict=True)])
    assert found is not None
    return found


def accuracy(completions: Sequence[LoggedCompletion]) -> float:
    """Share of a problem's completions that are right."""
    return mean([completion.correct for completion in completions])


def self_reward(completions: Sequence[LoggedCompletion]) -> float:
    """Their mean log p per token, nats."""
    return mean([completion.self_reward for completion in completions])


def log_p(completions: Sequence[LoggedCompletion]) -> float:
    """Their mean log p as a whole, nats."""
    return mean([completion.sum_log_prob for completion in completions])


def best(score: str) -> Score:
    """`correct` or `self_reward` of the completion with the largest self-reward."""
    return lambda completions: best_of_n([a.self_reward for a in completions], [getattr(a, score) for a in completions])


def tokens(completions: Sequence[LoggedCompletion]) -> float:
    """Tokens decoded for one completion, rejected work included."""
    return mean([completion.tokens_decoded for completion in completions])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """Accuracy, self-reward, best of N, log p of a completion and cost of runs, one a row."""
    n, rows = args.n, []
    several = len(args.seeds) > 1
    for run in runs:
        done = finished(args, run)
        row = [run.title, cell_text(over_problems(done, accuracy), 3)]
        if several:
            row.append(", ".join(f"{over_problems([one], accuracy).value:.3f}" for one in done))
        row.append(cell_text(over_problems(done, self_reward), 3))
        if n > 1:
            one = done[0].n == 1
            row += ["—" if one else cell_text(over_problems(done, best(s)), 3) for s in ("correct", "self_reward")]
        rows.append([*row, cell_text(over_problems(done, log_p), 1), cell_text(over_problems(done, tokens), 0)])
    best_columns = [f"best of {n}: accuracy", f"best of {n}: self-reward"] if n > 1 else []
    header = ["", "accuracy", *(["of each seed"] if several else []), "self-reward", *best_columns]
    return table([*header, "log p", "tokens decoded"], rows)


def write(args: argparse.Namespace, name: str, text: str) -> None:
    """Print a table and keep it in OUT."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / name).write_text(text, encoding="utf-8")
    print(f"\n{text}\nWritten: {args.out / name}")
