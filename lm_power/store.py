"""Completions on disk, one JSON object a line: resume, teacher data and reports read the same files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lm_power.completion import Completion
from lm_power.config import SamplerConfig

FORMAT = 1

logger = logging.getLogger(__name__)


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
    """

    model: str
    config: SamplerConfig
    stop: tuple[str, ...]
    eos_ids: tuple[int, ...]

    def options(self) -> dict[str, Any]:
        """The deciding options, as the `config` field of a line records them."""
        return {**self.config.deciding(), "stop": sorted(self.stop), "eos_ids": sorted(self.eos_ids)}

    def key(self, prompt_ids: Sequence[int], repeat: int) -> str:
        """32 hex digits that name one completion: equal keys, equal completions."""
        decides = [FORMAT, _fingerprint(self.model), self.options(), list(prompt_ids), repeat]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class CompletionStore:
    """A folder of append-only `*.jsonl` files, one a process; open it with `with`.

    A line is written whole or not at all, as soon as its completion is finished. A killed process can leave a
    torn last line: it is dropped with a warning, and cut off if no live process writes that file. Several
    processes may write side by side, each to a file of its own.

    Args:
        folder: made if missing.
        model: "name@fingerprint" of the model whose completions go in.

    Raises:
        StoreError: the folder cannot be written, holds another model's completions, a line is damaged, or a
            newer version wrote it. Nothing is changed then.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        self.folder, self.model = Path(folder), model
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass  # fails here, before any decoding, rather than at the first line
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: cannot be written ({error.strerror}); name a folder that can"
            ) from error
        self._records = {record["key"]: record for record in read_store(self.folder, self._check)}

    def __len__(self) -> int:
        """Completions stored."""
        return len(self._records)

    def get(self, key: str) -> Completion | None:
        """The stored completion of that key, if there is one."""
        record = self._records.get(key)
        return None if record is None else Completion.from_record(record)

    def add(
        self, prompt: str, prompt_ids: Sequence[int], repeat: int, source: Provenance, completion: Completion
    ) -> None:
        """Append one completion; a key that is there already is left as it is.

        Raises:
            StoreError: the line could not be written (a full disk, say); earlier lines are whole.
        """
        key = source.key(prompt_ids, repeat)
        if key in self._records:
            return
        record = {
            "format": FORMAT,
            "key": key,
            "model": source.model,
            "prompt": prompt,
            "prompt_ids": list(prompt_ids),
            "repeat": repeat,
            "seed": source.config.seed,
            "config": source.options(),
            **completion.record(),
        }
        self._append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._records[key] = record

    def close(self) -> None:
        """Close this process's file."""
        self._stack.close()
        self._file = None

    def __enter__(self) -> CompletionStore:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _append(self, line: bytes) -> None:
        try:
            file = self._file or self._open()
            start = file.tell()
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
            except OSError:
                file.truncate(start)
                raise
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: writing failed ({error.strerror}); the {len(self)} completions "
                "stored so far are whole: make room and start the same command again"
            ) from error

    def _open(self) -> BinaryIO:
        path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(2).hex()}.jsonl"
        self._stack.callback(_lock_path(path).unlink, missing_ok=True)
        self._stack.enter_context(FileLock(_lock_path(path)))
        self._file = self._stack.enter_context(path.open("xb", buffering=0))  # type: ignore[assignment]
        assert self._file is not None
        return self._file

    def _check(self, record: dict[str, Any], where: str) -> None:
        if _fingerprint(record["model"]) != _fingerprint(self.model):
            raise StoreError(
                f"{where}: holds completions of the model {record['model']}, this run's is {self.model}; give "
                "each model (each adapter, dtype and initialisation) a completions folder of its own"
            )


def read_store(folder: str | Path, check: Any = None) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """The lines of a store, file by file, each key once.

    Args:
        folder: of the store.
        check: called with (record, "file:line") for each line; raises to refuse it.

    Raises:
        StoreError: a line that is not the torn last one is damaged, or a newer version wrote it.
    """
    seen: set[str] = set()
    for path in sorted(Path(folder).glob("*.jsonl")):
        for number, line in enumerate(_whole_lines(path), start=1):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
                version, key = record["format"], record["key"]
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{where}: is not a completion ({error!r}); remove that line, or name another folder"
                ) from error
            if version > FORMAT:
                raise StoreError(
                    f"{where}: written in format {version} by a newer lm-power, this one reads up to {FORMAT}; "
                    "upgrade, or name another folder"
                )
            if check is not None:
                check(record, where)
            if key not in seen:
                seen.add(key)
                yield record


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines; a torn last one is left out, and cut off unless its writer lives."""
    data = path.read_bytes()
    *lines, torn = data.split(b"\n")
    if torn:
        try:
            with FileLock(_lock_path(path), timeout=0):
                data = path.read_bytes()  # again: a writer that has just closed may have finished the line
                *lines, torn = data.split(b"\n")
                os.truncate(path, len(data) - len(torn))
            _lock_path(path).unlink(missing_ok=True)
            logger.warning("%s: dropped a torn last line of %d bytes", path, len(torn))
        except Timeout:
            logger.info("%s: is being written by another process; its last line is not whole yet", path)
    return lines


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _fingerprint(model: str) -> str:
    return model.rpartition("@")[2]
