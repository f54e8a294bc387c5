"""The tables of a report: Table 1, votes, costs and paired tests, as records that `formats` writes down."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lm_power.report.paired import PairedTest, paired_tests
from lm_power.report.runs import Comparison, Run
from lm_power.report.summary import Summary, summarise
from lm_power.stats.means import Estimate

Cell = str | int | float | Estimate | None
"""One entry; None means that the value is not known, never that it is zero."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in the CSV; an `Estimate`'s standard error gets `key_stderr`.
        title: its heading for readers; None for a column that appears in the CSV alone.
        digits: decimals of its numbers for readers.
    """

    key: str
    title: str | None
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: its file name without extension.
        title: its heading.
        caption: what the numbers are.
        columns: its columns.
        rows: one cell per column.
        notes: what differs between the runs; with the first table also the gaps of each.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> list[str]:
        """The headings for readers."""
        return [column.title for column in self.columns if column.title is not None]

    def texts(self) -> list[list[str]]:
        """The cells for readers, row by row, unescaped: `0.950 ± 0.023`, a dash for a gap."""
        return [
            [cell_text(cell, column.digits) for cell, column in zip(row, self.columns, strict=True) if column.title]
            for row in self.rows
        ]


def cell_text(cell: Cell, digits: int) -> str:
    """A cell for readers.

    >>> cell_text(Estimate(-0.25, 0.01, 50), 2), cell_text(None, 2), cell_text(7, 2), cell_text("power", 2)
    ('−0.25 ± 0.01', '—', '7', 'power')
    """
    if cell is None:
        return "—"
    if isinstance(cell, Estimate):
        error = "" if cell.error is None else f" ± {cell.error:.{digits}f}"
        return f"{cell.value:.{digits}f}{error}".replace("-", "−")
    if isinstance(cell, float):
        return _number_text(cell, digits)
    return str(cell)


def _number_text(number: float, digits: int) -> str:
    """The number to that many decimals; one that would round to 0 is shown as below or above the smallest step.

    >>> _number_text(2e-9, 4), _number_text(-0.25, 1)
    ('<0.0001', '−0.2')
    """
    text = f"{number:.{digits}f}"
    if number and not float(text):
        text = f"{'<' if number > 0 else '>-'}{10**-digits:.{digits}f}"
    return text.replace("-", "−")


def make_tables(comparison: Comparison) -> list[Table]:
    """All tables of a comparison; votes only for several completions per problem, targets only if a method has them."""
    summaries = [summarise(run) for run in comparison.runs]
    results = _results(comparison, summaries)
    gaps = tuple(f"{run.label}: {note}" for run in comparison.runs for note in run.notes)
    tables = [dataclasses.replace(results, notes=(*results.notes, *gaps)), _costs(comparison, summaries)]
    if any(run.n > 1 for run in comparison.runs):
        tables.insert(1, _votes(comparison, summaries))
    if any(summary.log_z is not None for summary in summaries):
        tables.append(_targets(comparison, summaries))
    tests = paired_tests(comparison)
    return [*tables, _tests(comparison, tests)] if tests else tables


_RUN_COLUMNS = (
    Column("task", None),
    Column("filter", None),
    Column("task_version", None),
    Column("problems", None),
    Column("label", None),
    Column("model", "Model"),
    Column("sampling", "Sampling"),
    Column("method", None),
    Column("options", None),
    Column("n", "N"),
)


def _run_cells(run: Run, comparison: Comparison) -> tuple[Cell, ...]:
    options = " ".join(f"{name}={value}" for name, value in run.options.items())
    return (
        comparison.task, comparison.filter, run.task_version, comparison.size,
        run.label, run.model, run.sampling, run.method, options, run.n,
    )  # fmt: skip


def _table(
    comparison: Comparison,
    key: str,
    title: str,
    caption: str,
    columns: Sequence[Column],
    cells: Sequence[Sequence[Cell]],
) -> Table:
    """A table with one row per run."""
    run_columns = list(_RUN_COLUMNS)
    if any(run.label != f"{run.model}, {run.sampling}" for run in comparison.runs):
        run_columns[4] = Column("label", "Run")
    caption = f"{_shared(comparison, run_columns)}{caption}"
    rows = [(*_run_cells(run, comparison), *row) for run, row in zip(comparison.runs, cells, strict=True)]
    return Table(key, title, caption, (*run_columns, *columns), tuple(rows), comparison.notes)


def _shared(comparison: Comparison, columns: list[Column]) -> str:
    """The model and N that several runs share, told once, to spare narrow screens; the CSV keeps the columns."""
    told = []
    for at, column in enumerate(columns):
        if column.key in ("model", "n") and len(comparison.runs) > 1:
            values = {getattr(run, column.key) for run in comparison.runs}
            if len(values) == 1:
                columns[at] = Column(column.key, None)
                told.append(f"{column.title}: {values.pop()}. ")
    return "".join(told)


def _results(comparison: Comparison, summaries: Sequence[Summary]) -> Table:
    seconds = [None if run.seconds is None else run.seconds / comparison.size for run in comparison.runs]
    several = any(run.n > 1 for run in comparison.runs)
    best = "Best of N: the completion with the largest self-reward. " if several else ""
    return _table(
        comparison,
        "results",
        f"{comparison.name}: accuracy and self-reward",
        f"Means over {comparison.size} problems ± standard error; a problem's completions are averaged first. "
        f"Self-reward: log p per token under the run's own model, nats. {best}Tokens: decoded for all completions of a "
        "problem, rejected work included. Seconds per problem: wall-clock time of the whole lm-eval command, start-up "
        "included, divided by its problems; for a resumed command its last part.",
        (
            Column("accuracy", "Accuracy"),
            Column("self_reward", "Self-reward"),
            Column("bon_accuracy", "Accuracy, best of N" if several else None),
            Column("bon_self_reward", "Self-reward, best of N" if several else None),
            Column("problem_tokens_decoded", "Tokens per problem", 0),
            Column("problem_seconds", "Seconds per problem", 2),
        ),
        [
            (s.accuracy, s.self_reward, s.bon_accuracy, s.bon_self_reward, s.problem_tokens_decoded, seconds[i])
            for i, s in enumerate(summaries)
        ],
    )


def _votes(comparison: Comparison, summaries: Sequence[Summary]) -> Table:
    return _table(
        comparison,
        "votes",
        f"{comparison.name}: what N completions are worth",
        f"Means over {comparison.size} problems ± standard error. Majority: the most frequent answer, with "
        "wrong answers grouped by the text that the task logs and ties broken at random. Any correct: pass@N. "
        "Covariance: of correctness and self-reward among the completions of a problem. Where it is positive, "
        "sharpening helps.",
        (
            Column("accuracy", "Accuracy"),
            Column("bon_accuracy", "Best of N"),
            Column("majority", "Majority"),
            Column("any_correct", "Any correct"),
            Column("covariance", "Covariance", 4),
        ),
        [(s.accuracy, s.bon_accuracy, s.majority, s.any_correct, s.covariance) for s in summaries],
    )


def _costs(comparison: Comparison, summaries: Sequence[Summary]) -> Table:
    return _table(
        comparison,
        "costs",
        f"{comparison.name}: one completion, its likelihood and its cost",
        f"Means over {comparison.size} problems ± standard error. Log p: of the whole completion under the run's own "
        "model, nats; power sampling raises it, and a long completion has less of it. Tokens decoded: rejected work "
        "included. Accepted: share of the proposals that were accepted, including those equal to the current "
        "completion. Changed: share that led to another completion. Latency: seconds from the start of a completion to "
        "its end, beside others. Command: wall-clock seconds of the whole lm-eval command.",
        (
            Column("log_p", "Log p", 2),
            Column("tokens", "Length, tokens", 1),
            Column("truncated", "At length limit"),
            Column("tokens_decoded", "Tokens decoded", 1),
            Column("acceptance_rate", "Accepted"),
            Column("change_rate", "Changed"),
            Column("latency", "Latency", 2),
            Column("command_seconds", "Command", 1),
        ),
        [
            (s.log_p, s.tokens, s.truncated, s.tokens_decoded, s.acceptance_rate, s.change_rate, s.seconds, run.seconds)
            for run, s in zip(comparison.runs, summaries, strict=True)
        ],
    )


def _targets(comparison: Comparison, summaries: Sequence[Summary]) -> Table:
    return _table(
        comparison,
        "targets",
        f"{comparison.name}: how far the proposal is from the target",
        f"Means over {comparison.size} problems ± standard error, in nats, for methods that estimate them. "
        "Log Z = log Σ p(x)^α. KL from proposal: KL(p^α ‖ q), the error of sampling token by token from q "
        "(method=temperature at the same proposal temperature).",
        (Column("log_z", "log Z", 2), Column("kl_from_proposal", "KL from proposal", 2)),
        [(s.log_z, s.kl_from_proposal) for s in summaries],
    )


def _tests(comparison: Comparison, tests: Sequence[PairedTest]) -> Table:
    columns = (
        Column("task", None),
        Column("filter", None),
        Column("measure", "Measure"),
        Column("first", "First"),
        Column("second", "Second"),
        Column("problems", "Problems"),
        Column("first_better", "First better"),
        Column("second_better", "Second better"),
        Column("difference", "Difference"),
        Column("low", None),
        Column("high", None),
        Column("interval", "95% interval"),
        Column("test", "Test"),
        Column("p_value", "p", 4),
        Column("p_holm", "p, Holm", 4),
    )
    rows = [
        (
            comparison.task, comparison.filter, t.measure, t.first, t.second,
            t.problems, t.first_better, t.second_better, t.difference,
            t.low, t.high, f"{cell_text(t.low, 3)} to {cell_text(t.high, 3)}", t.test, t.p_value, t.p_holm,
        )
        for t in tests
    ]  # fmt: skip
    return Table(
        "tests",
        f"{comparison.name}: paired tests",
        "Difference: accuracy of the second run minus that of the first, with a 95% bootstrap interval over problems. "
        "Two-sided tests over the same problems: McNemar's exact test where every problem's score is 1 or 0, otherwise "
        "the permutation test that swaps the two runs problem by problem. Holm: corrected for all pairs of a measure.",
        columns,
        tuple(rows),
        comparison.notes,
    )
