"""What every algorithm has: paths, moves, keyed random numbers, and the protocol between it and the scheduler."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from typing_extensions import Self

from lm_power.decoding import FinishedBy, FloatArray, IntArray, Measures, Request, Segment


@dataclasses.dataclass(frozen=True)
class Path:
    """A completion, finished or not, with the numbers that it was drawn with.

    Attributes:
        tokens, log_p, log_q, log_z, entropy: as in `Segment`, for the whole completion.
        finished_by: why the completion is terminal at its horizon; None before the first draw.
    """

    tokens: IntArray
    log_p: FloatArray
    log_q: FloatArray
    finished_by: FinishedBy | None = None
    log_z: FloatArray | None = None
    entropy: FloatArray | None = None

    def __len__(self) -> int:
        """Completion length in tokens."""
        return len(self.tokens)

    @property
    def ended(self) -> bool:
        """Whether it ended by EOS or a stop string, so that no later horizon can make it longer."""
        return self.finished_by in (FinishedBy.EOS, FinishedBy.STOP)

    def spliced(self, keep: int, segment: Segment) -> Self:
        """This path with everything from token `keep` on replaced by `segment`."""
        return dataclasses.replace(
            self,
            tokens=np.concatenate([self.tokens[:keep], segment.tokens]),
            log_p=np.concatenate([self.log_p[:keep], segment.log_p]),
            log_q=np.concatenate([self.log_q[:keep], segment.log_q]),
            log_z=_joined(self.log_z, keep, segment.log_z),
            entropy=_joined(self.entropy, keep, segment.entropy),
            finished_by=segment.finished_by,
        )


def _joined(before: FloatArray | None, keep: int, after: FloatArray | None) -> FloatArray | None:
    return after if before is None or after is None else np.concatenate([before[:keep], after])


EMPTY_PATH = Path(np.empty(0, np.int64), np.empty(0), np.empty(0))


@dataclasses.dataclass(frozen=True)
class Move:
    """What an algorithm wants to have decoded next in one lane. Every random choice except the tokens is already made.

    Attributes:
        request: what has to be decoded; None if the outcome is known without decoding anything.
        lane: the lane that decodes it.
        source: the lane whose settled completion this lane first copies; None: it continues from its own. A lane that
            others copy from cannot copy from another in the same round.
    """

    request: Request | None
    lane: int = 0
    source: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A Metropolis-Hastings step, for the record.

    Attributes:
        stage: stage k = 1, 2, … of the schedule.
        cut: the cut i: how many tokens of the current completion were kept.
        length: the completion's length n before the step, tokens.
        accepted: whether the proposal was accepted.
        changed: whether the proposal was accepted and differed from the current completion.
    """

    stage: int
    cut: int
    length: int
    accepted: bool
    changed: bool


@dataclasses.dataclass(frozen=True)
class Info:
    """What became of one move.

    Attributes:
        kept: whether what was decoded becomes part of the lane's completion; if not, the old completion stands.
        step: the Metropolis-Hastings step, if the move was one; otherwise None.
        log_ratio: log acceptance ratio r of the step, nats; None for a proposal rejected before it was terminal.
    """

    kept: bool
    step: Step | None = None
    log_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What an algorithm returns when it is done.

    Attributes:
        path: the completion.
        diagnostics: the method's own numbers by name, such as `log_z` (nats) or `ess`.
        companions: other meaningful completions that were drawn along the way, such as those of the lower rungs of a
            ladder, in order.
    """

    path: Path
    diagnostics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    companions: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stream:
    """Random numbers keyed by (seed, prompt, repeat) and addressed by (stage, step, lane).

    Each address has its own generator, keyed by a hash (Philox, Salmon et al. 2011). What an algorithm draws at an
    address depends on nothing else, so completions do not depend on the batch size, the order, other requests or the
    number of processes.
    """

    key: bytes

    @classmethod
    def for_request(cls, seed: int, prompt_ids: Sequence[int], repeat: int) -> Stream:
        """The stream of the `repeat`-th completion of a prompt."""
        return cls(_digest(f"{seed}|{repeat}|{','.join(map(str, prompt_ids))}".encode()))

    def at(self, stage: int, step: int, lane: int = 0) -> np.random.Generator:
        """The generator for one step of a lane; two calls with the same arguments give the same numbers."""
        address = b"%b%d|%d" % (self.key, stage, step) + (b"|%d" % lane if lane else b"")
        words = np.frombuffer(_digest(address), np.uint64)
        return np.random.Generator(np.random.Philox(_Key(words)))  # type: ignore[arg-type]


class _Key(np.random.bit_generator.ISeedSequence):
    """Hands Philox its key. `Philox(key=…)` would first ask the system for a random seed, at twice the time."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        """The key, whatever is asked for: Philox asks for two 64-bit words."""
        return self.words


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


S = TypeVar("S")
M = TypeVar("M", bound=Move)


class Algorithm(Protocol[S]):
    """A way to draw one completion: State in, moves out, segments in, State out. It knows no model and does no I/O.

    A job has one or more **lanes**, each of which holds a completion. The algorithm works in **rounds**. `propose`
    makes the moves of a round, at most one per lane. The scheduler has them decoded side by side, wherever there is
    room. Once all have come back, `advance` settles them. A lane that takes no part in a round may lose its place in
    the engine; its completion is then prefilled again when it is needed.

    States are immutable, and everything that is drawn is a function of the state and the stream alone. A job can
    therefore be resumed from its state at any time, and the completion does not depend on what else is decoded.

    Attributes:
        lanes: the largest number of completions that a job holds at the same time.
        rewinds: whether a proposal overwrites a completion that may have to be restored (this needs memory).
        measures: what has to be computed from each next-token distribution.
    """

    @property
    def lanes(self) -> int: ...  # noqa: D102

    @property
    def rewinds(self) -> bool: ...  # noqa: D102

    @property
    def measures(self) -> Measures: ...  # noqa: D102

    def start(self) -> S:
        """The state before anything is decoded: every lane holds an empty completion."""
        ...

    def propose(self, state: S, stream: Stream) -> Sequence[Move]:
        """The moves of the next round, at least one. `result(state)` must be None."""
        ...

    def advance(
        self, state: S, moves: Sequence[Any], segments: Sequence[Segment | None], stream: Stream
    ) -> tuple[S, Sequence[Info]]:
        """The next state, and what became of each move, given what was decoded (None where there was no request)."""
        ...

    def if_rejected(self, state: S, moves: Sequence[Any]) -> S | None:
        """The next state if the round's only move is rejected; None if it cannot be, or if there are several lanes.

        The moves from that state can be decoded ahead.
        """
        ...

    def held(self, state: S) -> Sequence[IntArray]:
        """The settled completion of each lane, as token ids."""
        ...

    def work_left(self, state: S) -> float:
        """Tokens that may still have to be decoded one after another: an estimate by which jobs are compared."""
        ...

    def result(self, state: S) -> Result | None:
        """The completion, once it is drawn; None before."""
        ...


class OneLane:
    """What algorithms with a single lane share: a round is one move.

    A subclass has `next_move`, `settle` and, if something can be decoded ahead, `after_rejection`.
    """

    lanes = 1
    rewinds = True
    measures = Measures()

    def propose(self, state: Any, stream: Stream) -> Sequence[Move]:
        """The next move alone."""
        return (self.next_move(state, stream),)

    def advance(
        self, state: Any, moves: Sequence[Any], segments: Sequence[Segment | None], stream: Stream
    ) -> tuple[Any, Sequence[Info]]:
        """Settle the one move."""
        (move,), (segment,) = moves, segments
        state, info = self.settle(state, move, segment)
        return state, (info,)

    def if_rejected(self, state: Any, moves: Sequence[Any]) -> Any:
        """As `after_rejection`."""
        (move,) = moves
        return self.after_rejection(state, move)

    def next_move(self, state: Any, stream: Stream) -> Move:
        """What to do next."""
        raise NotImplementedError

    def settle(self, state: Any, move: Any, segment: Segment | None) -> tuple[Any, Info]:
        """The next state, given what was decoded for the move's request."""
        raise NotImplementedError

    def after_rejection(self, state: Any, move: Any) -> Any:
        """The next state if the move is rejected; None where it cannot be."""
        return None
