"""The lines of lm-eval's `samples_TASK_TIME.jsonl`: one per document and filter."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_power.completion import Steps
from lm_power.errors import UserError

LOG_KEY = "lm_power"
"""Where our tasks put what they know of the completions: the one key that `log_completions` adds to a document."""
VERDICTS = ("acc", "exact_match", "pass@1", "pass_at_1", "math_verify", "prompt_level_strict_acc", "em")
"""Metrics of other tasks that are a document's correctness, the first that is there."""
PROBLEM_FIELDS = ("problem", "question", "Question", "prompt", "instruction")
"""Where a document keeps its problem, before any template: the first of these that holds a text."""
FINISH_REASONS = ("eos", "stop", "length")
AGAIN = "run the evaluation again with --log_samples (with completions= nothing is drawn twice)"
"""What to do about files that are not whole."""

_STEP_COLUMNS = tuple(field.name for field in dataclasses.fields(Steps))
_COLUMNS = ("correct", "answer", "drawn", "self_reward", "finish_reason", "tokens", "cost")


class LogError(UserError):
    """A file of lm-eval's logs cannot be used; the message says which line, why, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedCompletion:
    """One completion of one problem, as a log or a store has it; None for what neither tells.

    Attributes:
        text: the completion, as the task graded it.
        correct: the task's verdict, 1.0 or 0.0; for tasks with partial credit anything between.
        answer: final answer as the task extracted it, as a string; None also where there was none to extract.
        self_reward: `(1/|x|) Σ_t log p(x_t | x_<t)`, nats per token.
        sum_log_prob: log p(x | prompt), nats.
        finish_reason: "eos", "stop" or "length".
        tokens: its length, EOS included.
        tokens_decoded: tokens decoded for it, rejected work included.
        seconds: wall-clock from its start on the engine to its end, shared with the rows beside it.
        steps: its Metropolis-Hastings steps; empty columns where the method makes none.
        log_z, kl_from_proposal: what its method tells of Z_alpha and its proposal, nats (`lm_power.chains.evidence`).
        drawn_text: its text as it was drawn, where a thinking section was cut off before grading; else None.
    """

    text: str
    correct: float | None = None
    answer: str | None = None
    self_reward: float | None = None
    sum_log_prob: float | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    tokens_decoded: int | None = None
    seconds: float | None = None
    steps: Steps | None = None
    log_z: float | None = None
    kl_from_proposal: float | None = None
    drawn_text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One line.

    Attributes:
        where: "file:line".
        doc_id: the document's place in the task's data.
        doc: the document.
        doc_hash: lm-eval's; None if not logged.
        prompt_hash: SHA-256 of the prompt, hex.
        target: the reference answer as the task prints it.
        prompt: what the model was asked; of a chat API the contents of the messages, a line each.
        messages: of a chat API.
        request: the line's `arguments`.
        generation: the generation options as they reached the model.
        filter: lm-eval's filter that the verdicts belong to.
        completions: in the order of their repeats.
        padding: texts beyond them, by which lm-eval evens out its processes.
        is_ours: a task of ours logged it, and tells of each completion.
        has_answers: the line logs the final answers.
        verdict_of: the metric of another task's line that is a verdict on the document; None if there is none.
        verdict: its value.
        metrics: names of the task's metrics.
    """

    where: str
    doc_id: int
    doc: Any
    doc_hash: str | None
    prompt_hash: str
    target: str
    prompt: str
    messages: list[dict[str, str]] | None
    request: Any
    generation: dict[str, Any]
    filter: str
    completions: tuple[LoggedCompletion, ...]
    padding: tuple[str, ...]
    is_ours: bool
    has_answers: bool
    verdict_of: str | None
    verdict: float | None
    metrics: tuple[str, ...]


def read_samples(path: Path, repeats: int | None = None) -> Iterator[Document]:
    """The lines of a samples file of a task that generates text, one at a time.

    Args:
        path: the file.
        repeats: completions per document, where the line itself does not tell them from padding; None: all.

    Raises:
        LogError: a line is torn, not lm-eval's, or of another kind of task.
    """
    for where, line in read_lines(path):
        try:
            yield _document(line, where, repeats)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise LogError(
                f"{where}: is not a line of lm_eval --log_samples for a text ({error!r}); {AGAIN}"
            ) from error


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """("file:line", value) of each line of a JSON Lines file that is not blank; raises `LogError`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", parse(line, f"{path}:{number}")
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror})") from error


def parse(text: bytes, where: str) -> Any:
    """The JSON value of a line, or of a whole file; raises `LogError` if it is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise LogError(
            f"{where}: is not JSON ({error}); wait if it is still being written; otherwise write it again"
        ) from error


def problem_of(doc: Any) -> str | None:
    """The problem that a document holds, before any template (`PROBLEM_FIELDS`)."""
    texts = [doc.get(name) for name in PROBLEM_FIELDS] if isinstance(doc, dict) else []
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def prompts_of(row: Mapping[str, Any]) -> list[str]:
    """What the model was asked by a line of any kind of task, each request's prompt once."""
    requests = row["arguments"].values() if isinstance(row["arguments"], dict) else []
    prompts = [_prompt(request.get("arg_0"))[0] for request in requests if isinstance(request, dict)]
    return list(dict.fromkeys(filter(None, prompts)))


def finite(value: Any) -> float | None:
    """The number, None where there is none or it is not finite.

    >>> finite(-0.5), finite(None), finite(float("nan"))
    (-0.5, None, None)
    """
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def evidence(diagnostics: Any) -> dict[str, Any]:
    """Of a method's own numbers, those that have a field of a completion; runs of earlier versions have none."""
    numbers = diagnostics if isinstance(diagnostics, Mapping) else {}
    return {name: finite(numbers.get(name)) for name in ("log_z", "kl_from_proposal")}


def _document(line: Mapping[str, Any], where: str, repeats: int | None) -> Document:
    doc, requests, resps = line["doc"], list(line["arguments"].values()), line["resps"]
    lists = len(requests) == len(resps) == 1 and isinstance(resps[0], list)
    if not lists or not all(isinstance(text, str) for text in resps[0]):
        raise ValueError("holds answers of another kind of task, such as log-likelihoods, not texts")
    request, texts = requests[0], resps[0]
    if isinstance(line["doc_id"], bool) or not isinstance(line["doc_id"], int):
        raise ValueError(f"doc_id={line['doc_id']!r}: must be a whole number")
    prompt, messages = _prompt(request["arg_0"])
    if prompt is None:
        raise ValueError(f"arg_0={request['arg_0']!r:.80}: must be a prompt, or a chat API's messages")
    log = doc.get(LOG_KEY) if isinstance(doc, Mapping) else None
    name = None if log is not None else next((n for n in VERDICTS if isinstance(line.get(n), (int, float))), None)
    verdict = None if name is None else _verdict(line[name])
    if log is not None:
        completions = _ours(texts, log)
    else:
        own = texts[:repeats]
        # Of several completions it cannot be told whose verdict it is.
        facts: dict[str, Any] = {"correct": verdict, "answer": _filtered(line, own[0])} if len(own) == 1 else {}
        completions = tuple(LoggedCompletion(text, **facts) for text in own)
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(
        where=where,
        doc_id=line["doc_id"],
        doc=doc,
        doc_hash=line.get("doc_hash"),
        prompt_hash=str(line.get("prompt_hash", digest)),
        target=str(line.get("target")),
        prompt=prompt,
        messages=messages,
        request=line["arguments"],
        generation=dict(request["arg_1"]),
        filter=str(line.get("filter", "none")),
        completions=completions,
        padding=tuple(texts[len(completions) :]),
        is_ours=log is not None,
        has_answers=log is not None and "answer" in log,
        verdict_of=name,
        verdict=verdict,
        metrics=tuple(line.get("metrics", ())),
    )


def _ours(texts: Sequence[str], log: Mapping[str, Any]) -> tuple[LoggedCompletion, ...]:
    """The completions of a task of ours; texts beyond those that it logs are padding of a short rank."""
    n = len(log["finish_reason"])
    if n == 0 or n > len(texts):
        raise ValueError(f"doc.lm_power: {n} completions are logged for {len(texts)} texts")
    columns = {name: log[name] if name in log else [None] * n for name in _COLUMNS}
    wrong = [name for name, column in columns.items() if not isinstance(column, list) or len(column) != n]
    if wrong:
        raise ValueError(f"doc.lm_power: must have one entry per completion, {n}, in {', '.join(wrong)}")
    rows = [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]
    return tuple(_one_of_ours(text, "correct" in log, **row) for text, row in zip(texts, rows, strict=False))


def _one_of_ours(
    text: str,
    graded: bool,
    correct: Any,
    answer: Any,
    drawn: str | None,
    self_reward: Any,
    finish_reason: Any,
    tokens: Any,
    cost: Any,
) -> LoggedCompletion:
    if finish_reason is not None and finish_reason not in FINISH_REASONS:
        raise ValueError(f"doc.lm_power: finish_reason={finish_reason!r}: must be {' or '.join(FINISH_REASONS)}")
    if cost is not None and not isinstance(cost.get("tokens_decoded"), int):
        raise ValueError(f"doc.lm_power: cost={cost!r:.80}: must have tokens_decoded")
    steps = None if cost is None else cost.get("steps")
    known = {name: steps[name] for name in _STEP_COLUMNS if name in steps} if isinstance(steps, Mapping) else {}
    reward = finite(self_reward)
    return LoggedCompletion(
        text=text,
        correct=_verdict(correct) if graded else None,
        answer=None if answer is None else str(answer),
        self_reward=reward,
        sum_log_prob=None if reward is None or tokens is None else reward * tokens,
        finish_reason=finish_reason,
        tokens=tokens,
        tokens_decoded=None if cost is None else cost["tokens_decoded"],
        seconds=None if cost is None else finite(cost.get("seconds")),
        steps=Steps.from_record(known) if len(known) == len(_STEP_COLUMNS) else None,
        **evidence(None if cost is None else cost.get("diagnostics")),
        drawn_text=drawn,
    )


def _filtered(line: Mapping[str, Any], text: str) -> str | None:
    """What another task's filter made of the one completion, where it made anything of it."""
    filtered = line["filtered_resps"][0]
    return filtered if isinstance(filtered, str) and filtered != text else None


def _verdict(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"doc.lm_power: the verdict {value!r} is not between 0 and 1")
    return float(value)


def _prompt(argument: Any) -> tuple[str | None, list[dict[str, str]] | None]:
    """(text, chat messages or None) of a request's first argument.

    lm-eval logs a chat API's messages as a list that holds one JSON text.
    """
    if isinstance(argument, str):
        return argument, None
    if isinstance(argument, list) and len(argument) == 1 and isinstance(argument[0], str):
        try:
            messages = json.loads(argument[0])
            return "\n".join(message["content"] for message in messages), messages
        except (ValueError, TypeError, KeyError):
            return None, None
    return None, None
