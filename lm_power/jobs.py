"""Jobs: what is to be drawn, a job under way with its rounds in flight, and what it has cost."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lm_power.chains import Info, Move, Stream
from lm_power.completion import Stats, Steps
from lm_power.decoding import Segment


@dataclasses.dataclass(frozen=True)
class Job:
    """One completion to draw.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        repeat: which completion of this prompt it is: 0, 1, …; each has its own random stream.
    """

    prompt_ids: tuple[int, ...]
    repeat: int = 0


@dataclasses.dataclass
class Round:
    """Moves that were made together and are not yet settled.

    Attributes:
        state: the state from which they were made.
        moves: the moves, one per lane that takes part.
        ahead: whether they were made before the previous round was settled.
        rows: the row that decodes each move; None if there is nothing to decode, if the move waits for a row, or if its
            row was given up after it was decoded.
        segments: what was decoded; None for what is not there yet.
    """

    state: Any
    moves: Sequence[Move]
    ahead: bool
    rows: list[int | None] = dataclasses.field(init=False)
    segments: list[Segment | None] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.rows = [None] * len(self.moves)
        self.segments = [None] * len(self.moves)

    def decoded(self) -> bool:
        """Whether everything that has to be decoded is there."""
        pairs = zip(self.moves, self.segments, strict=True)
        return all(move.request is None or segment is not None for move, segment in pairs)

    def to_decode(self) -> bool:
        """Whether anything has to be decoded."""
        return any(move.request is not None for move in self.moves)


@dataclasses.dataclass
class ActiveJob:
    """A job under way: its algorithm's state, its rounds in flight, and what it has cost.

    Attributes:
        index: the job's index.
        prompt_ids: token ids of its prompt.
        stream: its random numbers.
        state: the algorithm's settled state.
        rows: the row that holds each lane's settled completion, for lanes that have a row.
        rounds: rounds that are not yet settled, in order.
        started: when it made its first move, seconds on `time.perf_counter`'s clock; None before that.
        steps: one tuple per step, with the columns of `Steps`.
    """

    index: int
    prompt_ids: tuple[int, ...]
    stream: Stream
    state: Any
    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    rounds: deque[Round] = dataclasses.field(default_factory=deque)
    proposals: int = 0
    accepted: int = 0
    changed: int = 0
    rejected_early: int = 0
    decoded: int = 0
    reused: int = 0
    coupled: int = 0
    prefetched: int = 0
    dropped: int = 0
    steps: list[tuple[int, int, int, int, int]] = dataclasses.field(default_factory=list)
    started: float | None = None

    def home_is_free(self) -> bool:
        """For a job of one lane: whether the lane's row holds the settled completion and nothing else."""
        home = self.rows.get(0)
        return home is not None and all(home not in flight.rows for flight in self.rounds)

    def decoding(self) -> int:
        """Number of rounds in flight that have, or had, something to decode."""
        return sum(flight.to_decode() for flight in self.rounds)

    def record(self, flight: Round, after: Any, infos: Sequence[Info]) -> None:
        """Note that the first round has been settled and has led to the state `after`."""
        self.state = after
        for move, segment, info in zip(flight.moves, flight.segments, infos, strict=True):
            if segment is not None:
                self.decoded += len(segment.tokens)
                self.prefetched += len(segment.tokens) if flight.ahead else 0
                self.rejected_early += segment.finished_by is None
            step = info.step
            if step is not None:
                kept = step.length if move.request is None else move.request.keep
                self.proposals += 1
                self.accepted += step.accepted
                self.changed += step.changed
                self.reused += kept
                self.coupled += kept - step.cut
                self.steps.append((step.stage, step.cut, step.length, int(step.accepted), int(step.changed)))

    def stats(self, diagnostics: dict[str, float]) -> Stats:
        """What it has cost so far, with the method's own numbers."""
        assert self.started is not None
        return Stats(
            proposals=self.proposals,
            accepted=self.accepted,
            changed=self.changed,
            tokens_decoded=self.decoded,
            tokens_reused=self.reused,
            seconds=time.perf_counter() - self.started,
            rejected_early=self.rejected_early,
            tokens_coupled=self.coupled,
            tokens_prefetched=self.prefetched,
            tokens_dropped=self.dropped,
            diagnostics=diagnostics,
        )

    def all_steps(self) -> Steps:
        """The Metropolis-Hastings steps made."""
        return Steps(*zip(*self.steps, strict=True)) if self.steps else Steps()
