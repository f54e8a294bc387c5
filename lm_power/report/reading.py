"""Runs from disk: lm-eval's output folders (`--output_path DIR --log_samples`) and stores (`completions=DIR`).

lm-eval writes `DIR/MODEL/results_TIME.json` and, with the same TIME, one `samples_TASK_TIME.jsonl` per task. A
results file and all its samples make the runs of one command: one per task and filter.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_power.errors import UserError
from lm_power.logs.results import Results, read_results, time_of
from lm_power.logs.samples import AGAIN, Document, read_samples
from lm_power.report.naming import default_label, describe_evaluation
from lm_power.report.runs import Dataset, Problem, Run
from lm_power.report.stored import read_stored_runs


def read_runs(sources: Sequence[str]) -> list[Run]:
    """The runs of all sources, in their order.

    Args:
        sources: each an lm-eval output folder (or any folder above some), a results file, or the folder of a store;
            or `LABEL=` and one of these.

    Raises:
        UserError: a source is missing, empty, damaged, still being written, given twice, or holds no completions.
    """
    runs: list[Run] = []
    seen: dict[Path, str] = {}
    for source in sources:
        label, path = _split(source)
        try:
            found = _results_files(path)
            for file in found or [path]:
                if file.resolve() in seen:
                    raise UserError(f"{file}: given twice, by {seen[file.resolve()]} and by {source}; leave one out")
                seen[file.resolve()] = source
            read = [run for file in found for run in _read_evaluation(file)] if found else read_stored_runs(path)
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error}); give files that you may read") from error
        runs += [dataclasses.replace(run, label=label) for run in read] if label is not None else read
    return _without_repeats(runs)


def _split(source: str) -> tuple[str | None, Path]:
    """(label, path) of `LABEL=PATH`; a path that exists as it stands has no label."""
    if "=" not in source or Path(source).exists():
        return None, Path(source)
    # Labels and paths may have an "=" of their own: the first one behind which there is something separates them.
    places = [place for place, character in enumerate(source) if character == "="]
    place = next((place for place in places if Path(source[place + 1 :]).exists()), places[0])
    label, path = source[:place].strip(), source[place + 1 :]
    if not label:
        raise UserError(f"{source!r}: has an empty label; write LABEL=PATH, or the path alone")
    return label, Path(path)


def _results_files(path: Path) -> list[Path]:
    """The results files in a folder and below, oldest first; none if it may be a store."""
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; give an lm-eval --output_path, a results file or a store, as PATH or "
            "LABEL=PATH"
        )
    if path.is_file():
        if time_of("results", path) is None:
            raise UserError(
                f"{path}: is not a results file of lm-eval (results_TIME.json); give one, the folder that it is in, or "
                "the folder of a store"
            )
        return [path]
    results = [file for file in path.rglob("*.json") if time_of("results", file)]
    known = {(file.parent, time_of("results", file)) for file in results}
    for file in sorted(path.rglob("samples_*.jsonl")):
        if (time := time_of("samples", file)) and (file.parent, time) not in known:
            raise UserError(
                f"{file}: has no results file of the same time beside it: the run was interrupted, or the file "
                "was moved alone; move it away, or name the results files that you want"
            )
    if not results and not any(path.glob("*.jsonl")):
        raise UserError(
            f"{path}: holds no results of lm-eval and no completions; give the --output_path of a finished run with "
            "--log_samples, or the folder of a store (completions=)"
        )
    return sorted(results, key=lambda file: (time_of("results", file), file))


def _read_evaluation(file: Path) -> Iterator[Run]:
    """The runs of one lm-eval command: one per task and filter."""
    results = read_results(file)
    configs = results.content["configs"]
    tasks = [task for task, config in configs.items() if config.get("output_type") == "generate_until"]
    if not tasks:
        raise UserError(
            f"{file}: none of its tasks ({', '.join(configs)}) generates text; a report compares completions"
        )
    samples = {task: file.parent / f"samples_{task}_{results.time}.jsonl" for task in tasks}
    missing = [task for task, path in samples.items() if not path.exists()]
    if missing:
        raise UserError(
            f"{file}: no samples of {', '.join(missing)} beside it; the run was made without --log_samples, or is "
            f"still writing them: wait, or {AGAIN}"
        )
    notes = tuple(_left_out(results, task) for task in configs if task not in samples)
    for task, path in samples.items():
        for run in _read_task(results, task, path):
            yield dataclasses.replace(run, notes=(*run.notes, *notes))


def _left_out(results: Results, task: str) -> str:
    """A note that a task of the command generates no text, with lm-eval's numbers for it."""
    found = results.content["results"].get(task, {})
    numbers = [
        f"{key.rpartition(',')[0]} {value:.3f}" + (f" ± {error:.3f}" if isinstance(error, float) else "")
        for key, value in found.items()
        if "," in key and "_stderr," not in key and isinstance(value, (int, float))
        for error in [found.get(key.replace(",", "_stderr,"))]
    ]
    told = f"; lm-eval's results for it: {', '.join(numbers)}" if numbers else ""
    return f"the command also ran {task}, which generates no text and is not shown here{told}"


def _read_task(results: Results, task: str, path: Path) -> Iterator[Run]:
    config = results.content["configs"][task]
    by_filter: dict[str, list[Document]] = {}
    for document in read_samples(path, int(config.get("repeats") or 1)):
        by_filter.setdefault(document.filter, []).append(document)
    expected = results.content.get("n-samples", {}).get(task, {}).get("effective")
    for name, documents in by_filter.items():
        if expected is not None and len(documents) != expected:
            raise UserError(
                f"{path}: has {len(documents)} documents (filter {name}), {results.path.name} says {expected}; the "
                f"file is incomplete or still being written: wait, or {AGAIN}"
            )
    if not by_filter:
        raise UserError(f"{path}: is empty; {AGAIN}")
    for name, documents in by_filter.items():
        yield _make_run(results, task, name, sorted(documents, key=lambda document: document.doc_id), path)


def _make_run(results: Results, task: str, name: str, documents: Sequence[Document], path: Path) -> Run:
    problems = tuple(map(_problem, documents))
    sizes = sorted({len(problem.completions) for problem in problems})
    if len(sizes) > 1:
        raise UserError(f"{path}: documents have {sizes[0]} to {sizes[-1]} completions; all must have the same number")
    described = describe_evaluation(results, documents[0].generation)
    seconds, note = _seconds(results.content, problems)
    version = results.content.get("versions", {}).get(task)
    run = Run(
        label="",
        **vars(described),
        task=task,
        filter=name,
        task_version=None if version is None else str(version),
        n=sizes[0],
        problems=problems,
        folder=results.path.parent,
        dataset=_dataset(results.content, task),
        has_answers=all(document.has_answers for document in documents),
        seconds=seconds,
        metrics=_metrics(results.content["results"].get(task, {}), name),
        notes=tuple(dict.fromkeys([*note, *filter(None, map(_verdict_note, documents))])),
    )
    return dataclasses.replace(run, label=default_label(run))


def _problem(document: Document) -> Problem:
    return Problem(
        doc_id=document.doc_id,
        doc_hash=document.doc_hash,
        prompt_hash=document.prompt_hash,
        prompt=document.prompt,
        target=document.target,
        completions=document.completions,
        verdict=document.verdict if len(document.completions) > 1 else None,
    )


def _verdict_note(document: Document) -> str | None:
    """What readers must know about the verdict of a task that is not ours."""
    n = len(document.completions)
    if document.is_ours:
        return None
    if document.verdict_of is None:
        return f"accuracy: unknown, since none of the task's metrics ({', '.join(document.metrics)}) is a verdict"
    if n > 1:
        return f"accuracy is the task's {document.verdict_of}, which judges the {n} completions of a document together"
    return f"accuracy is the task's {document.verdict_of}"


def _seconds(results: Mapping[str, Any], problems: Sequence[Problem]) -> tuple[float | None, list[str]]:
    """The command's wall-clock time, or None and the reason why it would mislead."""
    total = results.get("total_evaluation_time_seconds")
    if total is None:
        return None, []
    if len(results["configs"]) > 1:
        return None, [f"seconds per problem: unknown, since the command ran {len(results['configs'])} tasks"]
    longest = max((a.seconds for p in problems for a in p.completions if a.seconds is not None), default=0.0)
    if longest > float(total):
        return None, [
            "seconds per problem: unknown, since the run was resumed and some completions come from an earlier command"
        ]
    return float(total), []


def _dataset(results: Mapping[str, Any], task: str) -> Dataset:
    config = results["configs"][task]
    return Dataset(
        path=config.get("dataset_path"),
        config=config.get("dataset_name"),
        split=config.get("test_split") or config.get("validation_split"),
        size=results.get("n-samples", {}).get(task, {}).get("original"),
    )


def _metrics(results: Mapping[str, Any], name: str) -> dict[str, float]:
    """lm-eval's numbers of one filter: `metric,filter` → metric."""
    return {
        key.rpartition(",")[0]: float(value)
        for key, value in results.items()
        if key.rpartition(",")[2] == name and isinstance(value, (int, float)) and "," in key
    }


def _without_repeats(runs: Sequence[Run]) -> list[Run]:
    """The runs without exact repeats, which a resumed command leaves; the last of equal runs stays and gets a note.

    Raises:
        UserError: equal runs carry different labels, so the user wants both.
    """
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(_identity(run), []).append(run)
    kept = []
    for *earlier, run in same.values():
        for other in earlier:
            if other.label != run.label:
                raise UserError(
                    f"{other.label!r} ({other.folder}) and {run.label!r} ({run.folder}): the same completions of "
                    f"{run.task or 'a store'} by the same settings; leave one out"
                )
        note = f"omitted {len(earlier)} earlier run(s) with the same settings and completions"
        kept.append(dataclasses.replace(run, notes=(*run.notes, note)) if earlier else run)
    return kept


def _identity(run: Run) -> str:
    """Equal for runs with the same settings and the same completions."""
    digest = hashlib.sha256()
    for part in (
        run.task,
        run.filter,
        run.task_version,
        sorted((key, repr(value)) for key, value in run.settings.items()),
    ):
        digest.update(repr(part).encode())
    for problem in run.problems:
        digest.update(
            repr((problem.prompt_hash, [hash(completion.text) for completion in problem.completions])).encode()
        )
    return digest.hexdigest()
