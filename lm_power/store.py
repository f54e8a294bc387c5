"""Completions on disk, one JSON object a line: resume, teacher data and reports read the same files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock

from lm_power.completion import Completion
from lm_power.config import SamplerConfig
from lm_power.identity import Identity

FORMAT = 3  # raise it also when the same options come to draw other tokens: it is part of the key
FIELDS = (
    "format", "key", "model", "prompt", "prompt_ids", "repeat", "seed", "config",
    "text", "token_ids", "log_probs", "sum_log_prob", "self_reward", "finish_reason", "stats", "steps",
)  # fmt: skip
"""Of every line, in this order."""

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class StoreError(RuntimeError):
    """A store cannot be read, belongs to something else, or cannot be written; the message says which."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Everything but prompt and repeat that decides a completion.

    Attributes:
        model: "name@fingerprint" (`lm_power.fingerprint`); the fingerprint alone decides.
        config: how completions are drawn.
        stop: stop strings.
        eos_ids: tokens that end a completion.
        engine: what else decides, of the options of what decodes; empty for our own engine.
    """

    model: str
    config: SamplerConfig
    stop: tuple[str, ...]
    eos_ids: tuple[int, ...]
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The deciding options, as the `config` field of a line records them."""
        ends = {"stop": sorted(set(self.stop)), "eos_ids": sorted(set(self.eos_ids))}
        return {**self.config.deciding(), **ends, **self.engine}

    def key(self, prompt_ids: Sequence[int], repeat: int) -> str:
        """32 hex digits that name one completion: equal keys, equal completions."""
        decides = [FORMAT, Identity.parse(self.model).key, self.options(), list(prompt_ids), repeat]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class CompletionStore:
    """A folder of append-only `*.jsonl` files, one a process; open it with `with`.

    Each line is written as soon as its completion is finished, under a lock of the folder and after a look at
    what other processes have added: no key is ever written twice. Whoever holds the lock knows that nobody is
    in the middle of a line; one that is not whole then is what a killed process left, and is cut off.

    Args:
        folder: made if missing.
        model: "name@fingerprint" of the model whose completions go in.

    Raises:
        StoreError: the folder cannot be written, holds another model's completions, a line is damaged, or a
            newer version wrote it. No file of the store is changed then.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        self.folder, self.model = Path(folder), model
        self._records: dict[str, Record] = {}
        self._read_up_to: dict[Path, int] = {}  # bytes
        self._lines_read: dict[Path, int] = {}
        self._file: BinaryIO | None = None
        self._lock = FileLock(self.folder / ".lock", poll_interval=0.01)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                torn = self._read_new()
                for path, size in torn.items():
                    os.truncate(path, self._read_up_to[path])
                    logger.warning("%s: dropped a torn last line of %d bytes", path, size)
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: cannot be written ({error.strerror}); name a folder that can"
            ) from error

    def __len__(self) -> int:
        """Completions stored, as far as this process has seen."""
        return len(self._records)

    def get(self, key: str) -> Completion | None:
        """The stored completion of that key, if there is one."""
        record = self._records.get(key)
        return None if record is None else Completion.from_record(record)

    def add(
        self, prompt: str, prompt_ids: Sequence[int], repeat: int, source: Provenance, completion: Completion
    ) -> None:
        """Append one completion; a key that is there already, from whichever process, is left as it is.

        Raises:
            StoreError: the line could not be written (a full disk, say); earlier lines are whole.
        """
        record = {
            "format": FORMAT,
            "key": source.key(prompt_ids, repeat),
            "model": source.model,
            "prompt": prompt,
            "prompt_ids": list(prompt_ids),
            "repeat": repeat,
            "seed": source.config.seed,
            "config": source.options(),
            **completion.record(),
        }
        try:
            with self._lock:
                self._read_new()
                if record["key"] not in self._records:
                    self._append(record)
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: writing failed ({error.strerror}); the {len(self)} completions "
                "stored so far are whole: make room and start the same command again"
            ) from error

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> CompletionStore:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _read_new(self) -> dict[Path, int]:
        """Take over what the files have gained since the last look; bytes of the torn last lines, by file."""
        torn = {}
        for path in _files(self.folder):
            if path.stat().st_size == self._read_up_to.get(path, 0):
                continue
            lines = _Lines(path, self._read_up_to.get(path, 0), self._lines_read.get(path, 0))
            for record in lines.records(self._check):
                self._records.setdefault(record["key"], record)
            self._read_up_to[path] = lines.end
            self._lines_read[path] = lines.before + len(lines.lines)
            if lines.torn:
                torn[path] = lines.torn
        return torn

    def _append(self, record: Record) -> None:
        if self._file is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(2).hex()}.jsonl"
            self._file = (self.folder / name).open("xb", buffering=0)
            assert self._file is not None
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        start = self._file.tell()
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except BaseException:  # an interrupt too: where the process lives on, the next line must begin a line
            self._file.truncate(start)
            self._file.seek(start)
            raise
        self._records[record["key"]] = record
        path = Path(self._file.name)
        self._read_up_to[path] = start + len(line)
        self._lines_read[path] = self._lines_read.get(path, 0) + 1

    def _check(self, record: Record, where: str) -> None:
        if Identity.parse(record["model"]).key != Identity.parse(self.model).key:
            raise StoreError(
                f"{where}: holds completions of the model {record['model']}, this run's is {self.model}; give "
                "each model (each adapter, dtype and initialisation) a completions folder of its own"
            )


def read_store(folder: str | Path) -> Iterator[Record]:
    """The lines of a store, file by file, each key once; for reading only, also while a run goes on.

    Args:
        folder: of the store.

    Raises:
        StoreError: a line that is not the torn last one is damaged, or a newer version wrote it.
    """
    seen: set[str] = set()
    for path in _files(Path(folder)):
        for record in read_store_file(path):
            if record["key"] not in seen:
                seen.add(record["key"])
                yield record


def read_store_file(path: str | Path) -> Iterator[Record]:
    """The lines of one file of a store, the k-th that is yielded being line k of the file; as `read_store`."""
    lines = _Lines(Path(path), 0)
    if lines.torn:
        logger.warning("%s: left out a last line that is not whole (%d bytes)", path, lines.torn)
    yield from lines.records()


class _Lines:
    """The whole lines of a file from byte `start`, after `before` lines, to byte `end`; then `torn` bytes follow."""

    def __init__(self, path: Path, start: int, before: int = 0) -> None:
        self.path, self.before = path, before
        with path.open("rb") as file:
            file.seek(start)
            *self.lines, torn = file.read().split(b"\n")
            self.torn = len(torn)
            self.end = file.tell() - self.torn

    def records(self, check: Callable[[Record, str], None] | None = None) -> Iterator[Record]:
        """The lines as records; `check` is called with (record, "file:line") and may refuse one."""
        for number, line in enumerate(self.lines, start=self.before + 1):
            where = f"{self.path}:{number}"
            record = _parse(line, where)
            if check is not None:
                check(record, where)
            yield record


def _parse(line: bytes, where: str) -> Record:
    """A line's record; raises `StoreError` if it is none, or a newer version's."""
    try:
        record = json.loads(line)
        version = int(record["format"])
        missing = [name for name in FIELDS if name not in record] if version <= FORMAT else []
        if missing:
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{where}: is not a completion ({error!r}); remove that line, or name another folder"
        ) from error
    if version > FORMAT:
        raise StoreError(
            f"{where}: written in format {version} by a newer lm-power, this one reads up to {FORMAT}; "
            "upgrade, or name another folder"
        )
    return dict(record)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))
