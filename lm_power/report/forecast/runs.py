"""What a forecast is made from: plain completions with verdicts and log-probabilities, and runs to set beside them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from lm_power.chains.registry import METHODS
from lm_power.errors import UserError
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.matching import match
from lm_power.report.reading import read_runs
from lm_power.report.runs import Comparison, Problem, Run

PLAIN = "standard"


@dataclasses.dataclass(frozen=True)
class Material:
    """The runs of one task, on the same problems in the same order.

    Attributes:
        name: the task, and its filter if it has several.
        plain: completions by method=standard; all have a verdict and a log-probability.
        measured: runs of the same model that sample p^alpha or something near it; all have verdicts.
        notes: what the reader should know.
    """

    name: str
    plain: Run
    measured: tuple[Run, ...]
    notes: tuple[str, ...]


def read_material(sources: Sequence[str], allow_differences: bool = False) -> list[Material]:
    """Read the runs, one `Material` per task and filter.

    Runs that differ in nothing but their seed are pooled. A store has no verdicts; it gives log-probabilities to
    samples that lack them, which are those of other tasks than ours.

    Args:
        sources: as `lm_power.report.reading.read_runs` takes them.
        allow_differences: use the problems that all runs share, instead of refusing.

    Raises:
        UserError: something cannot be read, is missing, or was drawn in a way that a forecast cannot use.
    """
    runs = read_runs(sources)
    stores = [run for run in runs if run.task is None]
    logged = [run for run in runs if run.task is not None]
    if not logged:
        raise UserError(
            f"{stores[0].folder}: a store holds completions without verdicts; give the --output_path folder of the "
            "same run, made with --log_samples"
        )
    for run in logged:
        _check_method(run)
    pooled = pool([_with_log_probs(run, stores) for run in logged])
    return [_material(comparison) for comparison in match(pooled, allow_differences, same_n=False, same_prompts=True)]


def pool(runs: Sequence[Run]) -> list[Run]:
    """The runs, with those joined that were drawn in the same way with other seeds.

    Raises:
        UserError: two of them have the same seed, or other problems.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        options = {name: value for name, value in run.options.items() if name != "seed"}
        drawn = (run.task, run.filter, run.task_version, run.model, _weights(run), run.method, sorted(options.items()))
        groups.setdefault(repr(drawn), []).append(run)
    return [_pooled(group) for group in groups.values()]


def _pooled(runs: Sequence[Run]) -> Run:
    first = runs[0]
    if len(runs) == 1:
        return first
    seed, count = Counter(str(run.options.get("seed")) for run in runs).most_common(1)[0]
    folders = " and ".join(str(run.folder) for run in runs)
    if count > 1:
        raise UserError(
            f"{folders}: {count} runs of {first.label} with seed={seed}, which share completions; leave all but one "
            "out, or evaluate with another seed"
        )
    if len({tuple(problem.prompt_hash for problem in run.problems) for run in runs}) > 1:
        raise UserError(
            f"{folders}: seeds of {first.label} on different problems; evaluate all with the same --limit, template "
            "and few-shot examples"
        )
    problems = tuple(
        dataclasses.replace(
            same[0], completions=tuple(completion for problem in same for completion in problem.completions)
        )
        for same in zip(*(run.problems for run in runs), strict=True)
    )
    return dataclasses.replace(
        first,
        n=sum(run.n for run in runs),
        problems=problems,
        options={**first.options, "seed": ", ".join(str(run.options.get("seed")) for run in runs)},
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
    )


def _check_method(run: Run) -> None:
    if run.method != PLAIN and not samples_power(run):
        raise UserError(
            f"{run.folder}: {run.label} is sampled neither from the model itself nor from p^alpha; a forecast reweighs "
            "completions of method=standard, and sets runs of power and other methods for p^alpha beside them"
        )


def samples_power(run: Run) -> bool:
    """Whether its method has p^alpha for its target."""
    return run.method in METHODS and "alpha" in METHODS[run.method].relevant_options


def _with_log_probs(run: Run, stores: Sequence[Run]) -> Run:
    """The run with log-probabilities from the store of the same command, where its samples have none."""
    if all(completion.sum_log_prob is not None for problem in run.problems for completion in problem.completions):
        return run
    for store in stores:
        same = store.method == run.method and store.options.get("seed") == run.options.get("seed")
        if same and _weights(store) == _weights(run):
            known = {problem.prompt_hash: problem.completions for problem in store.problems}
            problems = tuple(_filled(problem, known.get(problem.prompt_hash, ())) for problem in run.problems)
            run = dataclasses.replace(run, problems=problems)
    return run


def _filled(problem: Problem, stored: Sequence[LoggedCompletion]) -> Problem:
    """The problem, with log p from the stored completion of the same repeat if the text is of that one."""
    completions = list(problem.completions)
    for place, (completion, drawn) in enumerate(zip(completions, stored, strict=False)):
        if completion.sum_log_prob is None and _is_of(completion.text, drawn.text):
            completions[place] = dataclasses.replace(completion, sum_log_prob=drawn.sum_log_prob)
    return dataclasses.replace(problem, completions=tuple(completions))


def _is_of(graded: str, drawn: str) -> bool:
    """Whether a task that graded the one text may have been given the other, less a thinking section at its start."""
    return graded == drawn or (graded != "" and drawn.endswith(graded))


def _material(comparison: Comparison) -> Material:
    plain = [run for run in comparison.runs if run.method == PLAIN]
    measured = tuple(run for run in comparison.runs if run.method != PLAIN)
    if len(plain) != 1:
        folders = ", ".join(str(run.folder) for run in plain or measured)
        raise UserError(
            f"{comparison.name}: {len(plain)} runs of method=standard ({folders}), must be one: a forecast reweighs "
            "plain completions of one model, drawn in one way"
            + ("; evaluate with method=standard and --gen_kwargs n=16" if not plain else "; leave the others out")
        )
    for run in comparison.runs:
        _check(plain[0], run)
    truncated = [
        completion for p in plain[0].problems for completion in p.completions if completion.finish_reason == "length"
    ]
    total = sum(len(problem.completions) for problem in plain[0].problems)
    notes = [f"{run.label}: {note}" for run in comparison.runs for note in run.notes]
    if 10 * len(truncated) > total:
        notes.append(
            f"{len(truncated)} of {total} plain completions ended at the length limit, and count as they are, "
            "as they do in power sampling with the same limit"
        )
    return Material(comparison.name, plain[0], measured, (*comparison.notes, *notes))


def _check(plain: Run, run: Run) -> None:
    """That a run can be used beside the plain completions, or is them."""
    both = f"{plain.folder} and {run.folder}"
    if (plain.model, _weights(plain)) != (run.model, _weights(run)):
        raise UserError(f"{both}: runs of different models ({plain.model}, {run.model}); a forecast is for one")
    limits = [one.options.get("max_new_tokens") for one in (plain, run)]
    if limits[0] != limits[1]:
        raise UserError(
            f"{both}: max_new_tokens differs ({limits[0]}, {limits[1]}), so that completions end by different rules; "
            "evaluate both with the same"
        )
    if not run.has_correct:
        raise UserError(
            f"{run.folder}: has no verdict on every completion; evaluate one of our tasks with --log_samples, or "
            "another task with one completion per problem and several seeds"
        )
    if run is not plain:
        return
    if len(plain.problems) < 2:
        raise UserError(f"{plain.folder}: has one problem; standard errors over problems need two, better dozens")
    if plain.n < 2:
        raise UserError(
            f"{plain.folder}: has one completion per problem, and a forecast weighs several against each other; "
            "evaluate with --gen_kwargs n=16, or give runs with other seeds too"
        )
    missing = sum(completion.sum_log_prob is None for problem in plain.problems for completion in problem.completions)
    if missing:
        raise UserError(
            f"{plain.folder}: {missing} of {plain.n * len(plain.problems)} completions have no finite log-probability; "
            "evaluate with --model power-hf on one of our tasks, or give the run's store (completions=) too"
        )


def _weights(run: Run) -> str:
    return str(run.settings.get("weights") or "")
