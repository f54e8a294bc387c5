"""What a report is made of: completions, problems, runs, and comparisons of runs on the same problems.

`reading.read_runs` makes `Run`s of lm-eval's output folders and of stores, `matching.match` makes one `Comparison` per
task of them, `summary` and `figure_data` compute from them, `tables` writes their numbers down. The command then calls,
for every comparison,

    figures.write_figures(comparison, folder) -> list[Figure]     # SVG and PNG into the existing folder

and once, with a `page.Section(comparison, tables, figures)` for every comparison,

    page.write_page(sections, folder) -> Path                     # folder/index.html

All texts here (prompts, completions, labels, notes) are as the model or the user gave them. Code that writes them into
a format must escape them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_power.logs.samples import LoggedCompletion


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One document of a task with a run's completions of it.

    Attributes:
        doc_id: its place in the task's data; in a store, its place among the store's prompts.
        doc_hash: lm-eval's hash of the document; None in a store.
        prompt_hash: SHA-256 of the prompt, hex, as lm-eval has it.
        prompt: what the model was given (of a chat model, with the template applied).
        target: the reference answer as the task prints it; None in a store.
        completions: in the order of their repeats.
        verdict: on all completions together, from 0 to 1, where the task does not grade each one (majority votes).
    """

    doc_id: int
    doc_hash: str | None
    prompt_hash: str
    prompt: str
    target: str | None
    completions: tuple[LoggedCompletion, ...]
    verdict: float | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Where a task's documents come from; None for what lm-eval's log does not tell.

    Attributes:
        path: `dataset_path` of the task: an id on the Hugging Face Hub, as a rule.
        config: `dataset_name`, the data set's configuration.
        split: the split evaluated.
        size: number of documents in the split, before any `--limit`.
    """

    path: str | None = None
    config: str | None = None
    split: str | None = None
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One model, sampled in one way, on one task.

    Attributes:
        label: short, unique among the runs of a task; the user's, or "model, sampling".
        model: the model's short name, adapter and random weights included.
        method: "power", "standard" …; for models other than `power-hf` "greedy" or "sampled".
        options: how completions were drawn: alpha, mcmc_steps … (for other models their generation options).
        settings: everything that distinguishes this run from others: `options` and the model's arguments, as logged.
        task: lm-eval's name of it; None for a store, which knows only prompts.
        filter: lm-eval's filter that the verdicts belong to ("none" for our tasks); None for a store.
        task_version: as a string; None if not recorded.
        n: completions per problem.
        problems: by doc_id.
        folder: where it was read from.
        dataset: where the documents come from; None for a store.
        has_answers: whether the task logs the final answers that majority votes need. An answer of None then means that
            the completion has none. Code tasks log no answers.
        seconds: wall-clock of the whole lm-eval command, start-up included; None where it ran other tasks too, and for
            a store.
        metrics: lm-eval's own numbers of this task and filter: {"acc": …, "acc_stderr": …}; empty for a store.
        notes: gaps and warnings, to be shown with the run.
    """

    label: str
    model: str
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    task: str | None
    filter: str | None
    task_version: str | None
    n: int
    problems: tuple[Problem, ...]
    folder: Path
    dataset: Dataset | None = None
    has_answers: bool = False
    seconds: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sampling(self) -> str:
        """The method with the option that matters most: "power, alpha=4", "temperature=0.25"."""
        name = {"temperature": "proposal_temperature", "sampled": "temperature"}.get(self.method, "alpha")
        value = self.options.get(name)
        if value is None:
            return self.method
        shown = f"{value:g}" if isinstance(value, (int, float)) else str(value)
        return f"temperature={shown}" if self.method == "temperature" else f"{self.method}, {name}={shown}"

    @property
    def has_correct(self) -> bool:
        """Whether every completion has a verdict."""
        return all(c.correct is not None for problem in self.problems for c in problem.completions)

    @property
    def has_self_reward(self) -> bool:
        """Whether every completion has a self-reward."""
        return all(c.self_reward is not None for problem in self.problems for c in problem.completions)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs on the same problems.

    Attributes:
        task: lm-eval's name; "store" if all runs are stores.
        filter: lm-eval's filter; None if all runs are stores.
        runs: each with the same documents in the same order: `runs[i].problems[j]` is problem j for every i. N may
            differ if the user allowed it; a run's `n` says its own.
        notes: differences between the runs that the user allowed; shown with every number.
    """

    task: str
    filter: str | None
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Problems that all runs share."""
        return len(self.runs[0].problems)

    @property
    def name(self) -> str:
        """Task, and filter where it is not lm-eval's "none": what the report calls this comparison."""
        return self.task if self.filter in (None, "none") else f"{self.task}, {self.filter}"
