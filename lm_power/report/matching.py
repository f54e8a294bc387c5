"""Which runs can be compared: those with the same task, version, documents, prompts and number of completions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from lm_power.errors import UserError
from lm_power.report.naming import with_unique_labels
from lm_power.report.runs import Comparison, Problem, Run
from lm_power.report.visible import one_line

STORE = "store"
"""The task of a comparison of stores alone."""

_EXAMPLES = 3

_Key = tuple[str, int]
"""A document: its hash, and which of the documents with that hash it is, in the order of their ids."""


def match(
    runs: Sequence[Run], allow_differences: bool = False, same_n: bool = True, same_prompts: bool = False
) -> list[Comparison]:
    """The comparisons that the runs make: one per task and filter, in the order in which they first appear.

    A store knows prompts and no task: it joins every task of which it has prompts, and the other runs' documents are
    looked up in it by their prompts. Stores alone are compared by their prompts; those that share none are different
    tasks.

    Args:
        runs: as `reading.read_runs` made them.
        allow_differences: compare runs that differ, using only the documents that they share.
        same_n: whether a different number of completions per problem is a difference.
        same_prompts: leave out documents whose prompts differ, if differences are allowed.

    Raises:
        UserError: runs of a task differ in documents, prompts, version or N and may not (the message says what
            differs), share no document, or carry one label.
    """
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        if run.task is not None:
            groups.setdefault((run.task, run.filter), []).append(run)
    stores = [run for run in runs if run.task is None]
    if groups:
        _join(stores, groups)
    else:
        groups = _tasks_of(stores)
    return [
        _compare(task, name, group, allow_differences, same_n, same_prompts) for (task, name), group in groups.items()
    ]


def _join(stores: Sequence[Run], groups: Mapping[tuple[str, str | None], list[Run]]) -> None:
    """Add each store to the tasks whose prompts it has."""
    evaluated = [(group, tuple(group)) for group in groups.values()]
    for store in stores:
        firsts = ((group, next((run for run in own if _shares_prompts(run, store)), None)) for group, own in evaluated)
        hosts = [(group, host) for group, host in firsts if host is not None]
        if not hosts:
            raise UserError(
                f"{store.folder}: the store has none of the prompts of {', '.join(task for task, _ in groups)}; give "
                "the stores of those tasks, or make a report of the store alone"
            )
        for group, host in hosts:
            group.append(_as_evaluated(store, host))


def _tasks_of(stores: Sequence[Run]) -> dict[tuple[str, str | None], list[Run]]:
    """The stores' runs, those together that share prompts, directly or through others."""
    found: list[list[int]] = []
    for number, store in enumerate(stores):
        with_it = [group for group in found if any(_shares_prompts(stores[other], store) for other in group)]
        joined = sorted([number, *(other for group in with_it for other in group)])
        found = sorted([joined, *(group for group in found if group not in with_it)])
    groups = [[stores[number] for number in group] for group in found]
    if len(groups) == 1:
        return {(STORE, None): groups[0]}
    return {(f"{STORE}, task {number}", None): group for number, group in enumerate(groups, start=1)}


def _shares_prompts(run: Run, store: Run) -> bool:
    known = {problem.prompt_hash for problem in run.problems}
    return any(problem.prompt_hash in known for problem in store.problems)


def _as_evaluated(store: Run, host: Run) -> Run:
    """The store's run with the documents of `host` whose prompts it has; prompts of other tasks are left out."""
    by_prompt = {problem.prompt_hash: problem for problem in store.problems}
    problems = tuple(
        # The host's verdict is on its own completions.
        dataclasses.replace(problem, completions=by_prompt[problem.prompt_hash].completions, verdict=None)
        for problem in host.problems
        if problem.prompt_hash in by_prompt
    )
    return dataclasses.replace(
        store, task=host.task, filter=host.filter, task_version=host.task_version, problems=problems
    )


def _compare(
    task: str, name: str | None, runs: Sequence[Run], allow_differences: bool, same_n: bool, same_prompts: bool
) -> Comparison:
    runs = with_unique_labels(runs)
    checks = (_versions, *([_ns] if same_n else []), _documents, _prompts)
    differences = [text for find in checks for text in find(runs)]
    if differences and not allow_differences:
        listed = "\n".join(f"  - {text}" for text in differences)
        raise UserError(
            f"{task}: these runs cannot be compared as they are:\n{listed}\n"
            "Give runs of the same documents, prompts, version and N, or compare what they share: --allow-differences."
        )
    shared = _restricted(task, runs, same_prompts)
    notes = [f"Compared despite differences: {text}" for text in differences]
    if differences:
        equal = " with equal prompts" if same_prompts else ""
        notes.append(f"Restricted to the {len(shared[0].problems)} documents{equal} that all runs share.")
    return Comparison(task=task, filter=name, runs=tuple(shared), notes=tuple(notes))


def _restricted(task: str, runs: Sequence[Run], same_prompts: bool) -> list[Run]:
    """The runs on the documents that all of them have, with the same prompt if that is asked, in the first's order."""
    first, *others = keyed = [_keyed(run) for run in runs]
    shared = [
        key
        for key, problem in first.items()
        if all(key in other and (not same_prompts or other[key].prompt_hash == problem.prompt_hash) for other in others)
    ]
    if not shared:
        what = "document with the same prompt" if same_prompts else "document"
        raise UserError(f"{task}: no {what} is shared by {_labels(runs)}; so there is nothing to compare")
    return [_part(run, [problems[key] for key in shared]) for run, problems in zip(runs, keyed, strict=True)]


def _part(run: Run, problems: Sequence[Problem]) -> Run:
    """The run restricted to some of its problems; lm-eval's own numbers are dropped then, since they cover all."""
    if len(problems) == len(run.problems):
        return dataclasses.replace(run, problems=tuple(problems))
    note = f"{len(problems)} of its {len(run.problems)} documents are compared"
    return dataclasses.replace(run, problems=tuple(problems), seconds=None, metrics={}, notes=(*run.notes, note))


def _keyed(run: Run) -> dict[_Key, Problem]:
    seen: Counter[str] = Counter()
    keyed = {}
    for problem in run.problems:
        digest = problem.doc_hash or problem.prompt_hash
        keyed[digest, seen[digest]] = problem
        seen[digest] += 1
    return keyed


def _versions(runs: Sequence[Run]) -> list[str]:
    return _by_value(runs, "task version", lambda run: run.task_version or "not recorded")


def _ns(runs: Sequence[Run]) -> list[str]:
    return _by_value(runs, "completions per problem", lambda run: str(run.n))


def _by_value(runs: Sequence[Run], what: str, value: Callable[[Run], str]) -> list[str]:
    holders: dict[str, list[Run]] = {}
    for run in runs:
        holders.setdefault(value(run), []).append(run)
    if len(holders) == 1:
        return []
    return [f"{what}: " + "; ".join(f"{found} in {_labels(group)}" for found, group in holders.items())]


def _documents(runs: Sequence[Run]) -> list[str]:
    """Which documents each run lacks, or has in addition, compared with the first run."""
    first = _keyed(runs[0])
    found = []
    for run in runs[1:]:
        other = _keyed(run)
        lacks, adds = (
            [first[key] for key in first if key not in other],
            [other[key] for key in other if key not in first],
        )
        if lacks or adds:
            parts = [
                f"{len(first)} in {runs[0].label!r}, {len(other)} in {run.label!r}, {len(first) - len(lacks)} shared"
            ]
            parts += [f"only in {runs[0].label!r}: {_examples(lacks)}"] if lacks else []
            parts += [f"only in {run.label!r}: {_examples(adds)}"] if adds else []
            found.append(f"documents: {'; '.join(parts)}")
    return found


def _prompts(runs: Sequence[Run]) -> list[str]:
    """How many of the documents that a run shares with the first run have another prompt."""
    first = _keyed(runs[0])
    found = []
    for run in runs[1:]:
        pairs = [(first[key], problem) for key, problem in _keyed(run).items() if key in first]
        other = [(mine, theirs) for mine, theirs in pairs if mine.prompt_hash != theirs.prompt_hash]
        if other:
            mine, theirs = other[0]
            at = next(
                (i for i, (a, b) in enumerate(zip(mine.prompt, theirs.prompt, strict=False)) if a != b),
                min(len(mine.prompt), len(theirs.prompt)),
            )
            found.append(
                f"prompts: {len(other)} of {len(pairs)} shared documents differ between {run.label!r} and "
                f"{runs[0].label!r}; document {mine.doc_id} from character {at} on: "
                f"{_from(theirs.prompt, at)} and {_from(mine.prompt, at)}"
            )
    return found


def _from(prompt: str, at: int) -> str:
    return repr(one_line(prompt[at:], 40)) if at < len(prompt) else "its end"


def _examples(problems: Sequence[Problem]) -> str:
    shown = ", ".join(f"{p.doc_id} ({one_line(p.prompt, 40)!r})" for p in problems[:_EXAMPLES])
    more = f" and {len(problems) - _EXAMPLES} more" if len(problems) > _EXAMPLES else ""
    return f"document {shown}{more}"


def _labels(runs: Iterable[Run]) -> str:
    return ", ".join(repr(one_line(run.label, 80)) for run in runs)
