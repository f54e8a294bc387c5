"""What every chain has: its state, its keyed random numbers, its protocol."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lm_power.decoding import FinishedBy, FloatArray, IntArray, Request, Segment


@dataclasses.dataclass(frozen=True)
class State:
    """A chain's current completion and its place in the schedule.

    Attributes:
        tokens, log_p, log_q: [n], as in `Segment`, for the whole completion.
        finished_by: why the completion is terminal at its horizon; None before the first draw.
        stage: stage k = 1, 2, … of the schedule (SPEC: horizon L_k = min(k·B, T)).
        step: Metropolis-Hastings steps done in this stage; None until the stage's extension is done.
        done: the chain has finished; the completion is its result.
    """

    tokens: IntArray
    log_p: FloatArray
    log_q: FloatArray
    finished_by: FinishedBy | None = None
    stage: int = 1
    step: int | None = None
    done: bool = False

    def __len__(self) -> int:
        """Completion length in tokens."""
        return len(self.tokens)

    def spliced(self, keep: int, segment: Segment) -> State:
        """This state with everything from token `keep` on replaced by `segment`."""
        return dataclasses.replace(
            self,
            tokens=np.concatenate([self.tokens[:keep], segment.tokens]),
            log_p=np.concatenate([self.log_p[:keep], segment.log_p]),
            log_q=np.concatenate([self.log_q[:keep], segment.log_q]),
            finished_by=segment.finished_by,
        )


EMPTY_STATE = State(np.empty(0, np.int64), np.empty(0), np.empty(0))


@dataclasses.dataclass(frozen=True)
class Move:
    """What a chain does next; all its random choices but the tokens to be decoded are made.

    Attributes:
        request: what has to be decoded; None where the proposal is the current completion itself.
        cut: the cut i of a Metropolis-Hastings proposal, tokens; None for an extension.
        log_uniform: log u of the acceptance test; None for an extension, which is taken as it comes.
    """

    request: Request | None
    cut: int | None = None
    log_uniform: float | None = None


@dataclasses.dataclass(frozen=True)
class Info:
    """What happened in one `advance`: diagnostics only.

    Attributes:
        proposed: the move was a Metropolis-Hastings proposal (not an extension).
        accepted: the segment is part of the new state; if not, the old state stands.
        log_ratio: log acceptance ratio r, nats; None for an extension, and for a proposal rejected before it
            was terminal.
    """

    proposed: bool
    accepted: bool
    log_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Stream:
    """Random numbers keyed by (seed, prompt, repeat) and addressed by (stage, step).

    A generator of its own for each step, keyed by a hash (Philox, Salmon et al. 2011): what a chain draws at a
    stage and step depends on nothing else, so completions do not depend on batch size, order, other requests
    or process count.
    """

    key: bytes

    @classmethod
    def for_request(cls, seed: int, prompt_ids: Sequence[int], repeat: int) -> Stream:
        """The stream of the `repeat`-th completion of a prompt."""
        return cls(_digest(f"{seed}|{repeat}|{','.join(map(str, prompt_ids))}".encode()))

    def at(self, stage: int, step: int) -> np.random.Generator:
        """The generator for one step; two calls with the same arguments give the same numbers."""
        words = np.frombuffer(_digest(b"%b%d|%d" % (self.key, stage, step)), np.uint64)
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


class Chain(Protocol):
    """An algorithm: State in, Move out, Segment in, State out. It knows no model and does no I/O."""

    def propose(self, state: State, stream: Stream) -> Move:
        """What to do next. `state.done` must be false."""
        ...

    def advance(self, state: State, move: Move, segment: Segment | None) -> tuple[State, Info]:
        """The next state, given what was decoded for `move.request` (None where there is no request)."""
        ...

    def if_rejected(self, state: State, move: Move) -> State | None:
        """The next state if the move's proposal is rejected; None where it cannot be."""
        ...

    def work_left(self, state: State) -> float:
        """Tokens that may still have to be decoded until the chain is done: a guess, to compare chains by."""
        ...
