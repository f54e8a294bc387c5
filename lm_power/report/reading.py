"""Runs from disk: lm-eval's output folders (`--output_path DIR --log_samples`) and stores (`completions=DIR`).

lm-eval writes `DIR/MODEL/results_TIME.json` and, with the same TIME, one `samples_TASK_TIME.jsonl` per task. A
results file and all its samples make the runs of one command: one per task and filter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_power.cli import UserError
from lm_power.report.naming import default_label, describe_evaluation
from lm_power.report.runs import Dataset, Problem, Run
from lm_power.report.samples import AGAIN, Sample, read_samples
from lm_power.report.stored import read_stored_runs

_TIME = r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)"
_RESULTS = re.compile(rf".+{_TIME}\.json")
_SAMPLES = re.compile(rf"samples_.+{_TIME}\.jsonl")


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
    label, equals, path = source.partition("=")
    if not equals or Path(source).exists():
        return None, Path(source)
    if not label.strip():
        raise UserError(f"{source!r}: has an empty label; write LABEL=PATH, or the path alone")
    return label.strip(), Path(path)


def _results_files(path: Path) -> list[Path]:
    """The results files in a folder and below, oldest first; none if it may be a store."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give an lm-eval --output_path, a results file or a store")
    if path.is_file():
        if not _RESULTS.fullmatch(path.name):
            raise UserError(
                f"{path}: is not a results file of lm-eval (results_TIME.json); give one, the folder that it is in, or "
                "the folder of a store"
            )
        return [path]
    results = [file for file in path.rglob("*.json") if _RESULTS.fullmatch(file.name)]
    known = {(file.parent, _time(_RESULTS, file)) for file in results}
    samples = [file for file in path.rglob("samples_*.jsonl") if _SAMPLES.fullmatch(file.name)]
    for file in sorted(samples):
        if (file.parent, _time(_SAMPLES, file)) not in known:
            raise UserError(
                f"{file}: has no results file of the same time beside it: the run was cut off, or the file moved "
                "alone; move the samples away, or name the results files that you want"
            )
    if not results and not any(path.glob("*.jsonl")):
        raise UserError(
            f"{path}: holds no results of lm-eval and no completions; give the --output_path of a finished run with "
            "--log_samples, or the folder of a store (completions=)"
        )
    return sorted(results, key=lambda file: (_time(_RESULTS, file), file))


def _time(pattern: re.Pattern[str], file: Path) -> str:
    match = pattern.fullmatch(file.name)
    return match[1] if match else ""


def _read_evaluation(file: Path) -> Iterator[Run]:
    """The runs of one lm-eval command: one per task and filter."""
    results = _read_json(file)
    tasks = [task for task, config in results["configs"].items() if config.get("output_type") == "generate_until"]
    if not tasks:
        raise UserError(
            f"{file}: none of its tasks ({', '.join(results['configs'])}) generates text; a report compares completions"
        )
    time = _time(_RESULTS, file)
    samples = {task: file.parent / f"samples_{task}_{time}.jsonl" for task in tasks}
    missing = [task for task, path in samples.items() if not path.exists()]
    if missing:
        raise UserError(
            f"{file}: no samples of {', '.join(missing)} beside it; the run was made without --log_samples, or is "
            f"still writing them: wait, or {AGAIN}"
        )
    for task, path in samples.items():
        yield from _read_task(file, results, task, path)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        parts = [results["results"], results["config"], results["configs"], *results["configs"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: is not a whole results file of lm-eval ({error!r}); if it is still being written, wait, else "
            f"{AGAIN}"
        ) from error
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{file}: is not a results file of lm-eval: results, config and configs must be objects")
    return dict(results)


def _read_task(file: Path, results: Mapping[str, Any], task: str, path: Path) -> Iterator[Run]:
    config = results["configs"][task]
    by_filter: dict[str, list[Sample]] = {}
    for sample in read_samples(path, int(config.get("repeats") or 1)):
        by_filter.setdefault(sample.filter, []).append(sample)
    expected = results.get("n-samples", {}).get(task, {}).get("effective")
    for name, samples in by_filter.items():
        if expected is not None and len(samples) != expected:
            raise UserError(
                f"{path}: has {len(samples)} documents (filter {name}), {file.name} says {expected}; the file is still "
                f"being written or was cut: wait, or {AGAIN}"
            )
    if not by_filter:
        raise UserError(f"{path}: is empty; {AGAIN}")
    for name, samples in by_filter.items():
        yield _make_run(file, results, task, name, sorted(samples, key=lambda sample: sample.problem.doc_id), path)


def _make_run(
    file: Path, results: Mapping[str, Any], task: str, name: str, samples: Sequence[Sample], path: Path
) -> Run:
    problems = tuple(sample.problem for sample in samples)
    sizes = sorted({len(problem.answers) for problem in problems})
    if len(sizes) > 1:
        raise UserError(f"{path}: documents have {sizes[0]} to {sizes[-1]} completions; every one must have as many")
    described = describe_evaluation(results["config"], str(results.get("model_name")), samples[0].generation)
    seconds, note = _seconds(results, problems)
    version = results.get("versions", {}).get(task)
    run = Run(
        label="",
        **vars(described),
        task=task,
        filter=name,
        task_version=None if version is None else str(version),
        n=sizes[0],
        problems=problems,
        folder=file.parent,
        dataset=_dataset(results, task),
        has_answers=all(sample.has_answers for sample in samples),
        seconds=seconds,
        metrics=_metrics(results["results"].get(task, {}), name),
        notes=tuple(dict.fromkeys([*note, *(text for sample in samples for text in sample.notes)])),
    )
    return dataclasses.replace(run, label=default_label(run))


def _seconds(results: Mapping[str, Any], problems: Sequence[Problem]) -> tuple[float | None, list[str]]:
    """The command's wall-clock, and why there is none where it would mislead."""
    total = results.get("total_evaluation_time_seconds")
    if total is None:
        return None, []
    if len(results["configs"]) > 1:
        return None, [f"seconds per problem: not known, since the command ran {len(results['configs'])} tasks"]
    longest = max((a.seconds for p in problems for a in p.answers if a.seconds is not None), default=0.0)
    if longest > float(total):
        return None, [
            "seconds per problem: not known, since the run was resumed; completions come from an earlier command"
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
    """The runs without those that a later one repeats word for word, as a resumed command does; it gets a note.

    Raises:
        UserError: the two carry different labels, so that both are wanted.
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
        note = f"left out {len(earlier)} earlier run(s) with the same settings and the same completions"
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
        digest.update(repr((problem.prompt_hash, [hash(answer.text) for answer in problem.answers])).encode())
    return digest.hexdigest()
