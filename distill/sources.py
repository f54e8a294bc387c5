"""The files of teacher data, and what they say about a completion; `samples` reads those of lm-eval."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lm_power.errors import LMPowerError
from lm_power.logs.samples import FINISH_REASONS
from lm_power.store import read_store_file

_JSON_LINES = "a file must have one JSON object on each line: write arrays, tables and packed files out that way"


class TeacherDataError(LMPowerError, ValueError):
    """Teacher data cannot be used as it is; the message says where, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One completion as its file describes it; None for what the file does not say.

    Attributes:
        key: identifies the draw; equal keys mean copies of one draw.
        where: "file:line".
        prompt: the prompt as the model got it; for a chat API, the contents of the messages, one per line.
        messages: the chat messages that a chat API got.
        text: the text without EOS, cut before the stop string.
        prompt_ids: token ids of the prompt (stores).
        token_ids: token ids of the completion (stores).
        finish_reason: "eos", "stop" or "length".
        self_reward: nats per token.
        repeat: which completion of its prompt it is.
        tokens_decoded: tokens decoded for it, rejected work included.
        correct: whether the task graded it as correct.
        problem: the document's problem, without any template.
        is_padding: whether it is a copy beyond the document's repeats, by which lm-eval evens out its processes.
        model: "name@fingerprint" (stores, `power-hf`) or a name.
        config: how it was drawn.
    """

    key: str
    where: str
    prompt: str
    text: str
    repeat: int
    config: dict[str, Any]
    model: str | None = None
    messages: list[dict[str, str]] | None = None
    prompt_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    self_reward: float | None = None
    tokens_decoded: int | None = None
    correct: bool | None = None
    problem: str | None = None
    is_padding: bool = False


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name, each once and in order; a folder stands for all `.jsonl` in and below it, by name.

    Raises:
        TeacherDataError: a path does not exist, or a folder holds no such file.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(path.rglob("*.jsonl"))
            if not files:
                raise TeacherDataError(f"{path}: holds no .jsonl file; name a store, or a folder of lm-eval samples")
        elif path.is_file():
            files = [path]
        else:
            raise TeacherDataError(f"{path}: does not exist ({path.absolute()})")
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise TeacherDataError("no teacher file is given: name a store, or files of lm_eval --log_samples")
    return list(found.values())


def kind_of(path: Path) -> Literal["store", "samples", "other"] | None:
    """What a file holds, judged by its first line and not by its name; None if it has no complete line.

    Raises:
        TeacherDataError: the file cannot be read, or the line is not JSON or an array.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise TeacherDataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        row = json.loads(line)
    except ValueError as error:
        # Torn: a store's process may still be writing it, or was killed meanwhile.
        if not line.endswith(b"\n") and line.lstrip()[:1] in (b"", b"{"):
            return None
        raise TeacherDataError(f"{path}:1: is not JSON ({error}); {_JSON_LINES}") from error
    if isinstance(row, list):
        raise TeacherDataError(f"{path}:1: is a JSON array; {_JSON_LINES}")
    if isinstance(row, dict) and {"key", "prompt_ids", "token_ids"} <= set(row):
        return "store"
    return "samples" if isinstance(row, dict) and {"doc", "resps", "arguments"} <= set(row) else "other"


def read_store_lines(path: Path) -> list[Drawn]:
    """The completion on each complete line of a store's file.

    Raises:
        StoreError, TeacherDataError: a line is damaged.
    """
    return [_from_record(record, f"{path}:{line}") for line, record in enumerate(read_store_file(path), start=1)]


def _from_record(record: dict[str, Any], where: str) -> Drawn:
    require(where, "key", isinstance(record["key"], str), record["key"], "a text")
    require(where, "prompt", isinstance(record["prompt"], str), record["prompt"], "a text")
    require(where, "text", isinstance(record["text"], str), record["text"], "a text")
    for name in ("prompt_ids", "token_ids"):
        require(where, name, _are_ids(record[name]), record[name], "a list of token ids")
    require(where, "prompt_ids", bool(record["prompt_ids"]), record["prompt_ids"], "at least one token id")
    reasons = " or ".join(FINISH_REASONS)
    require(where, "finish_reason", record["finish_reason"] in FINISH_REASONS, record["finish_reason"], reasons)
    require(where, "repeat", is_int(record["repeat"]), record["repeat"], "a whole number")
    reward = record["self_reward"]
    require(where, "self_reward", isinstance(reward, int | float), reward, "a number")
    config, stats = record["config"], record["stats"]
    require(where, "config", isinstance(config, dict) and isinstance(config.get("stop"), list), config, "options")
    decoded = stats.get("tokens_decoded") if isinstance(stats, dict) else None
    require(where, "stats", is_int(decoded), stats, "a completion's costs, tokens_decoded among them")
    require(where, "model", isinstance(record["model"], str), record["model"], "name@fingerprint")
    return Drawn(
        key=record["key"],
        where=where,
        prompt=record["prompt"],
        text=record["text"],
        repeat=record["repeat"],
        config=config,
        model=record["model"],
        prompt_ids=tuple(record["prompt_ids"]),
        token_ids=tuple(record["token_ids"]),
        finish_reason=record["finish_reason"],
        self_reward=float(reward),
        tokens_decoded=decoded,
    )


def require(where: str, name: str, holds: bool, value: Any, rule: str) -> None:
    """Raise `TeacherDataError` about the field of that name and value unless `holds`."""
    if not holds:
        raise TeacherDataError(f"{where}: {name}={value!r:.80}: must be {rule}; the line is damaged")


def is_int(value: Any) -> bool:
    """Whether a JSON value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(is_int(token) and token >= 0 for token in value)
