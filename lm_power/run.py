"""A job under way: its chain's state, its moves in flight, and what it has cost."""

from __future__ import annotations

import dataclasses
import time
from collections import deque

from lm_power.chains import EMPTY_STATE, Info, Move, State, Stream
from lm_power.completion import Stats, Steps
from lm_power.decoding import Segment


@dataclasses.dataclass
class Flight:
    """A move that has been made and not yet settled.

    Attributes:
        state: from which it was made.
        move: what was asked for.
        row: which decodes it; None where there is nothing to decode.
        ahead: it was made before the one before it was settled.
        segment: what was decoded, once it is there.
    """

    state: State
    move: Move
    row: int | None
    ahead: bool
    segment: Segment | None = None


@dataclasses.dataclass
class Run:
    """A job: its chain's state, its moves in flight, and what it has cost.

    Attributes:
        index: of the job.
        prompt_ids: of the job.
        stream: its random numbers.
        home: the row that holds the current completion, while the job is on an engine.
        state: what has been settled.
        flights: moves made from it and not yet settled, in the order of the chain.
        started: when a row first took it up, seconds on `time.perf_counter`'s clock; None before.
        steps: of the columns of `Steps`, a tuple a step.
    """

    index: int
    prompt_ids: tuple[int, ...]
    stream: Stream
    home: int = dataclasses.field(init=False)
    state: State = EMPTY_STATE
    flights: deque[Flight] = dataclasses.field(default_factory=deque)
    proposals: int = 0
    accepted: int = 0
    rejected_early: int = 0
    decoded: int = 0
    reused: int = 0
    coupled: int = 0
    prefetched: int = 0
    dropped: int = 0
    steps: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)
    started: float | None = None

    def home_is_free(self) -> bool:
        """Whether the home row holds the current completion and nothing else."""
        return all(flight.row != self.home for flight in self.flights)

    def decoding(self) -> int:
        """Moves in flight for which something is, or was, to be decoded."""
        return sum(flight.row is not None for flight in self.flights)

    def flight_on(self, row: int) -> Flight:
        """The move that `row` decodes."""
        return next(flight for flight in self.flights if flight.row == row)

    def land(self, flight: Flight, after: State, info: Info) -> None:
        """The move has been settled, and has led to the state `after`."""
        before, move, segment = self.state, flight.move, flight.segment
        self.state = after
        if segment is not None:
            self.decoded += len(segment.tokens)
            self.prefetched += len(segment.tokens) if flight.ahead else 0
        if move.cut is not None:
            kept = len(before) if move.request is None else move.request.keep
            self.proposals += 1
            self.accepted += info.accepted
            self.rejected_early += segment is not None and segment.finished_by is None
            self.reused += kept
            self.coupled += kept - move.cut
            self.steps.append((before.stage, move.cut, len(before), int(info.accepted)))

    def stats(self) -> Stats:
        """What it has cost so far."""
        assert self.started is not None
        return Stats(
            proposals=self.proposals,
            accepted=self.accepted,
            tokens_decoded=self.decoded,
            tokens_reused=self.reused,
            seconds=time.perf_counter() - self.started,
            rejected_early=self.rejected_early,
            tokens_coupled=self.coupled,
            tokens_prefetched=self.prefetched,
            tokens_dropped=self.dropped,
        )

    def all_steps(self) -> Steps:
        """The Metropolis-Hastings steps made."""
        return Steps(*zip(*self.steps, strict=True)) if self.steps else Steps()
