"""The lines of lm-eval's `samples_TASK_TIME.jsonl`: one per document and filter."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_power.completion import Steps
from lm_power.errors import UserError
from lm_power.report.runs import Answer, Problem

LOG_KEY = "lm_power"
"""Where our tasks put what they know of the completions (`lm_power.harness.metrics.log_completions`)."""
AGAIN = "run the evaluation again with --log_samples (with completions= nothing is drawn twice)"
"""What to do about files that are not whole."""
VERDICTS = ("acc", "exact_match", "pass@1", "pass_at_1", "math_verify", "prompt_level_strict_acc", "em")
"""Metrics of other tasks that are a document's correctness, the first that is there."""

_STEP_COLUMNS = tuple(field.name for field in dataclasses.fields(Steps))


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line.

    Attributes:
        problem: the document with its completions.
        filter: lm-eval's filter that the verdicts belong to.
        generation: the generation options as they reached the model.
        has_answers: whether the line logs the final answers.
        notes: gaps, to be shown with the run.
    """

    problem: Problem
    filter: str
    generation: Mapping[str, Any]
    has_answers: bool
    notes: tuple[str, ...]


def read_samples(path: Path, repeats: int) -> Iterator[Sample]:
    """The lines of a samples file, one at a time.

    Args:
        path: the file.
        repeats: completions per document; more of them are data-parallel padding, where the line itself does not tell.

    Raises:
        UserError: a line is torn or is not lm-eval's; the message says which.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                yield _sample(json.loads(line), repeats)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise UserError(
                    f"{where}: is not a whole line of lm-eval's samples ({error!r}); if the file is still being "
                    f"written, wait, else {AGAIN}"
                ) from error


def _sample(line: Mapping[str, Any], repeats: int) -> Sample:
    doc, request = line["doc"], line["arguments"]["gen_args_0"]
    log = doc.get(LOG_KEY) if isinstance(doc, Mapping) else None
    texts = [str(text) for text in line["resps"][0]]
    notes: tuple[str, ...] = ()
    if isinstance(log, Mapping):
        answers = _our_answers(texts, log)
    else:
        answers, notes = _other_answers(line, texts[:repeats])
    prompt = request["arg_0"]
    return Sample(
        problem=Problem(
            doc_id=int(line["doc_id"]),
            doc_hash=str(line["doc_hash"]),
            prompt_hash=str(line["prompt_hash"]),
            prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
            target=str(line["target"]),
            answers=answers,
        ),
        filter=str(line["filter"]),
        generation=dict(request["arg_1"]),
        has_answers=isinstance(log, Mapping) and "answer" in log,
        notes=notes,
    )


def _our_answers(texts: Sequence[str], log: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The completions of a task of ours; texts beyond those that it logs are padding of a short rank."""
    n = len(log["finish_reason"])
    if n == 0 or n > len(texts):
        raise ValueError(f"{n} completions are logged for {len(texts)} texts")
    columns = {
        name: log.get(name) or [None] * n for name in ("answer", "self_reward", "finish_reason", "tokens", "cost")
    }
    columns["correct"] = [_verdict(value) for value in log["correct"]] if "correct" in log else [None] * n
    wrong = [name for name, column in columns.items() if len(column) != n]
    if wrong:
        raise ValueError(f"{n} completions, but not as many entries in {', '.join(wrong)}")
    return tuple(
        Answer(
            text=texts[k],
            correct=columns["correct"][k],
            answer=None if columns["answer"][k] is None else str(columns["answer"][k]),
            self_reward=finite(columns["self_reward"][k]),
            sum_log_prob=_sum_log_prob(finite(columns["self_reward"][k]), columns["tokens"][k]),
            finish_reason=columns["finish_reason"][k],
            tokens=columns["tokens"][k],
            **_cost(columns["cost"][k]),
        )
        for k in range(n)
    )


def _other_answers(line: Mapping[str, Any], texts: Sequence[str]) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """The completions of another task, with the document's verdict where it can only be the one completion's."""
    if len(texts) > 1:
        note = f"accuracy: not known, since the task does not log a verdict for each of the {len(texts)} completions"
        return tuple(Answer(text) for text in texts), (note,)
    name = next((name for name in VERDICTS if isinstance(line.get(name), (int, float))), None)
    filtered = line["filtered_resps"][0]
    answer = filtered if isinstance(filtered, str) and filtered != texts[0] else None
    if name is None:
        note = f"accuracy: not known, since none of the task's metrics ({', '.join(line['metrics'])}) is a verdict"
        return (Answer(texts[0], answer=answer),), (note,)
    return (Answer(texts[0], correct=_verdict(line[name]), answer=answer),), (f"accuracy is the task's {name}",)


def _verdict(value: Any) -> float:
    verdict = float(value)
    if not 0 <= verdict <= 1:
        raise ValueError(f"the verdict {value!r} is not between 0 and 1")
    return verdict


def _cost(cost: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an `Answer` that a completion's cost has; what it lacks stays None."""
    if cost is None:
        return {}
    steps = cost.get("steps")
    known = {name: steps[name] for name in _STEP_COLUMNS if name in steps} if isinstance(steps, Mapping) else {}
    return {
        "tokens_decoded": cost.get("tokens_decoded"),
        "seconds": finite(cost.get("seconds")),
        "steps": Steps.from_record(known) if len(known) == len(_STEP_COLUMNS) else None,
        **evidence(cost.get("diagnostics")),
    }


def evidence(diagnostics: Any) -> dict[str, Any]:
    """The fields of an `Answer` that come of its method's own numbers; runs of earlier versions have none."""
    numbers = diagnostics if isinstance(diagnostics, Mapping) else {}
    return {name: finite(numbers.get(name)) for name in ("log_z", "kl_from_proposal")}


def _sum_log_prob(self_reward: float | None, tokens: int | None) -> float | None:
    return None if self_reward is None or tokens is None else self_reward * tokens


def finite(value: Any) -> float | None:
    """The number, None where there is none or it is not finite.

    >>> finite(-0.5), finite(None), finite(float("nan"))
    (-0.5, None, None)
    """
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
