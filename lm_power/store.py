"""Completions on disk, one JSON object per line. Resumed runs, distillation and reports read the same files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock

from lm_power.completion import Completion
from lm_power.config import SamplerConfig
from lm_power.errors import LMPowerError
from lm_power.identity import Identity

FORMAT = 3  # part of the key: raise it, too, when the same options draw other tokens than before
FIELDS = (
    "format", "key", "model", "prompt", "prompt_ids", "repeat", "seed", "config",
    "text", "token_ids", "log_probs", "sum_log_prob", "self_reward", "finish_reason", "stats", "steps",
)  # fmt: skip
"""Of every line, in this order."""

_MOST_WAITING = 1000  # completions that may wait to be written; if there are more, sampling waits for the disk

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class StoreError(LMPowerError, RuntimeError):
    """A store cannot be read, belongs to something else, or cannot be written; the message says which."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Everything that decides a completion besides prompt and repeat, and therefore belongs in its key.

    **A key contains** what changes the distribution, or shifts log-probabilities by more than the rounding of one
    precision: weights, their dtype and the model's configuration, quantisation included (all of these by the
    fingerprint); the options of the method; stop strings and EOS tokens; and the dtype of cached keys and values if it
    is not that of the weights, as under autocast.

    **A key does not contain** what changes last bits only: the attention implementation, `torch_compile`,
    `cuda_graphs`, the number of rows, GPUs and processes, the device, and the versions of libraries. A run that is
    resumed after such a change draws its remaining completions from the same distribution, up to rounding. They may
    differ from those that the first setting would have drawn, as always when the last bits differ.

    Attributes:
        model: "name@fingerprint" (`lm_power.fingerprint`); only the fingerprint counts.
        config: how completions are drawn.
        stop: stop strings.
        eos_ids: tokens that end a completion.
        engine: the decoder's options that decide a completion. For our own engine these are `cache_dtype`, the dtype of
            keys and values (`HFBackend.cache_dtype`) if it is not that of the weights, and `proposal_weights`, the
            fingerprint of another model that proposes.
    """

    model: str
    config: SamplerConfig
    stop: tuple[str, ...]
    eos_ids: tuple[int, ...]
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The options that decide a completion, as the `config` field of a line records them."""
        ends = {"stop": sorted(set(self.stop)), "eos_ids": sorted(set(self.eos_ids))}
        return {**self.config.relevant_options(), **ends, **self.engine}

    def key(self, prompt_ids: Sequence[int], repeat: int) -> str:
        """32 hex digits that name one completion; equal keys mean equal completions."""
        decides = [FORMAT, Identity.parse(self.model).key, self.options(), list(prompt_ids), repeat]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class CompletionStore:
    """A folder of append-only `*.jsonl` files, one per process; open it with `with`.

    A separate thread writes each completion as a line as soon as it is finished, so that decoding does not wait for the
    disk. A process that is killed loses at most the completions that were not yet written. The thread holds a lock on
    the folder while it writes, and first looks at what other processes have added, so that no key is ever written
    twice. While it holds the lock, nobody else is in the middle of a line; an incomplete line was therefore left by a
    killed process, and is cut off. Only the keys are kept in memory, with the places where their lines begin.

    Args:
        folder: is made if it is missing.
        model: "name@fingerprint" of the model whose completions are stored.

    Raises:
        StoreError: the folder cannot be written, holds another model's completions, a line is damaged, or a newer
            version wrote it. It is raised before any file of the store is changed.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        self.folder, self.model = Path(folder), model
        self._places: dict[str, _Place] = {}
        self._read_up_to: dict[Path, _Place] = {}
        self._file: BinaryIO | None = None
        self._lock = FileLock(self.folder / ".lock", poll_interval=0.01)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")  # its thread begins with `add`
        self._writes: deque[Future[None]] = deque()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                torn = self._read_new()
                for path, size in torn.items():
                    os.truncate(path, self._read_up_to[path].start)
                    logger.warning("%s: removed an incomplete last line of %d bytes", path, size)
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: cannot be written ({error.strerror}); name a folder that can be"
            ) from error

    def __len__(self) -> int:
        """Completions stored, as far as this process has seen."""
        self.flush()
        return len(self._places)

    def get(self, key: str) -> Completion | None:
        """The stored completion of that key, read from its file; None if there is none.

        Raises:
            StoreError: the line is gone or has changed since it was first seen, or an earlier write failed.
        """
        self.flush()
        place = self._places.get(key)
        if place is None:
            return None
        where = f"{place.path}:{place.line}"
        try:
            with place.path.open("rb") as file:
                file.seek(place.start)
                record = _parse(file.readline(), where)
        except OSError as error:
            raise StoreError(f"{where}: can no longer be read ({error.strerror})") from error
        if record["key"] != key:
            raise StoreError(f"{where}: was changed while this run was using it; start the same command again")
        return Completion.from_record(record)

    def add(
        self, prompt: str, prompt_ids: Sequence[int], repeat: int, source: Provenance, completion: Completion
    ) -> None:
        """Queue one completion to be appended; a key that any process has already stored is left as it is.

        This returns before the completion is written. The next `add`, `get`, `flush` or `close` reports a failed write.

        Raises:
            StoreError: an earlier line could not be written, for example because the disk is full; the lines before it
                are complete.
        """
        while self._writes and (self._writes[0].done() or len(self._writes) >= _MOST_WAITING):
            self._writes.popleft().result()
        ids = tuple(prompt_ids)
        self._writes.append(self._writer.submit(self._write, prompt, ids, repeat, source, completion))

    def flush(self) -> None:
        """Wait until everything that was added is written.

        Raises:
            StoreError: as `add`.
        """
        while self._writes:
            self._writes.popleft().result()

    def close(self) -> None:
        """Write what is still queued, and close this process's file.

        Raises:
            StoreError: as `add`.
        """
        self._writer.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None
        self.flush()

    def __enter__(self) -> CompletionStore:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close. If an error is already under way, failed writes are logged and do not replace it."""
        try:
            self.close()
        except StoreError as failure:
            if error is None:
                raise
            unwritten = 1 + sum(write.exception() is not None for write in self._writes)
            logger.error("%s; %d completions were not written", failure, unwritten)

    def _write(
        self, prompt: str, prompt_ids: tuple[int, ...], repeat: int, source: Provenance, completion: Completion
    ) -> None:
        """`add`, on the writer's thread."""
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
                if record["key"] not in self._places:
                    self._append(record)
        except OSError as error:
            raise StoreError(
                f"completions={self.folder}: writing failed ({error.strerror}); the {len(self._places)} completions "
                "stored so far are complete: free some space and start the same command again"
            ) from error

    def _read_new(self) -> dict[Path, int]:
        """Index what the files have gained since the last look, and return the bytes of torn last lines, by file."""
        torn = {}
        for path in _files(self.folder):
            begin = self._read_up_to.get(path, _Place(path, 0, 1))
            if path.stat().st_size == begin.start:
                continue
            lines = _Lines(begin)
            for place, record in lines:
                self._check(record, f"{path}:{place.line}")
                self._places.setdefault(record["key"], place)
            self._read_up_to[path] = lines.end
            if lines.torn:
                torn[path] = lines.torn
        return torn

    def _append(self, record: Record) -> None:
        if self._file is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(2).hex()}.jsonl"
            self._file = (self.folder / name).open("xb", buffering=0)
            assert self._file is not None
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        path = Path(self._file.name)
        place = self._read_up_to.get(path, _Place(path, 0, 1))
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except BaseException:  # if the process lives on, its next record must begin a new line
            self._file.truncate(place.start)
            self._file.seek(place.start)
            raise
        self._places[record["key"]] = place
        self._read_up_to[path] = _Place(path, place.start + len(line), place.line + 1)

    def _check(self, record: Record, where: str) -> None:
        if Identity.parse(record["model"]).key != Identity.parse(self.model).key:
            raise StoreError(
                f"{where}: holds completions of the model {record['model']}, this run's is {self.model}; give "
                "each model (each adapter, dtype and initialisation) a completions folder of its own"
            )


def read_store(folder: str | Path) -> Iterator[Record]:
    """The lines of a store, file by file, each key once; read-only, and allowed while a run is writing.

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
    """The lines of one file of a store, as `read_store`; the k-th that is yielded is line k of the file."""
    lines = _Lines(_Place(Path(path), 0, 1))
    for _, record in lines:
        yield record
    if lines.torn:
        logger.warning("%s: left out an incomplete last line (%d bytes)", path, lines.torn)


class _Place(NamedTuple):
    """Where a line begins: at byte `start` of a file, as its line number `line`, counted from 1."""

    path: Path
    start: int
    line: int


class _Lines:
    """The complete lines of a file from a place on, one in memory at a time.

    Attributes:
        end: the place after the last complete line read so far.
        torn: bytes after that place in the file; known once all lines are read.
    """

    def __init__(self, begin: _Place) -> None:
        self.end, self.torn = begin, 0

    def __iter__(self) -> Iterator[tuple[_Place, Record]]:
        """Each line's place and record."""
        with self.end.path.open("rb") as file:
            file.seek(self.end.start)
            for line in file:
                if not line.endswith(b"\n"):
                    self.torn = len(line)
                    return
                place = self.end
                record = _parse(line, f"{place.path}:{place.line}")
                self.end = place._replace(start=place.start + len(line), line=place.line + 1)
                yield place, record


def _parse(line: bytes, where: str) -> Record:
    """A line's record; raises `StoreError` if it is not a record, or a newer version's."""
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
