"""Completions of given lengths, accepted at a given rate: for models with random weights, which know neither.

What is forced is forced on all contenders of `benchmark.py` alike. Nothing drawn so is a sample of p^alpha.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np

import lm_power.sampler
from lm_power import PowerSampler
from lm_power.chains import BlockwiseMetropolis, Info, Move, OneLane, Proposal, Result, Stream, make_algorithm
from lm_power.chains.metropolis import State
from lm_power.config import SamplerConfig
from lm_power.decoding import FinishedBy, Segment

SIGMA = 0.8  # of the logarithm of a length: as in tests/test_scheduler.py, about one in a hundred runs into 3072


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lognormal lengths of completions, in tokens, keyed by the request's stream; a prompt keeps its own.

    Attributes:
        mean: before clipping.
        longest: clipped to [1, longest].
    """

    mean: float
    longest: int

    def of(self, stream: Stream) -> int:
        """The length of the stream's completion."""
        generator = Stream(b"length|" + stream.key).at(0, 0)
        drawn = math.exp(generator.normal(math.log(self.mean) - SIGMA**2 / 2, SIGMA))
        return int(np.clip(round(drawn), 1, self.longest))


@dataclasses.dataclass(frozen=True)
class ForcedMove(Move):
    """A move, as the inner chain made it, and the length that is taken for its EOS.

    Attributes:
        inner: with the request as it is here, and with its verdict fixed.
        ends_at: completion length, tokens; None: the model decides.
    """

    inner: Move | None = None
    ends_at: int | None = None


@dataclasses.dataclass(frozen=True)
class ForcedChain(OneLane):
    """A chain whose completions end at given lengths, and whose proposals are accepted by a coin.

    No request goes beyond the stream's length, and a draw that reaches it counts as ended by EOS. The coin is keyed
    by stage and step and takes the place of the acceptance test; since it says nothing about when a proposal that
    it rejects would have fallen below its bound, such proposals are decoded to their ends, early rejection or not.

    Attributes:
        inner: the chain that is forced.
        lengths: of the completions; None: as the model ends them.
        acceptance: probability that a proposal is accepted; None: as log r decides.
    """

    inner: BlockwiseMetropolis
    lengths: Lengths | None = None
    acceptance: float | None = None

    def start(self) -> State:
        """As the inner chain."""
        return self.inner.start()

    def held(self, state: State) -> Sequence[np.ndarray]:
        """As the inner chain."""
        return self.inner.held(state)

    def result(self, state: State) -> Result | None:
        """As the inner chain."""
        return self.inner.result(state)

    def next_move(self, state: State, stream: Stream) -> ForcedMove:
        """The inner chain's move, cut to the length, with its verdict fixed."""
        move = self.inner.next_move(state, stream)
        request = move.request
        if self.acceptance is not None and isinstance(move, Proposal):
            heads = Stream(b"coin|" + stream.key).at(state.stage, state.step or 0).random() < self.acceptance
            lost = request is None and not heads  # the coin decides on the completion itself, too
            move = dataclasses.replace(move, log_uniform=-math.inf if heads else math.inf, hopeless=lost)
            request = request and dataclasses.replace(request, reject_below=None)
        ends_at = None if self.lengths is None else self.lengths.of(stream)
        if request is not None and ends_at is not None and ends_at <= request.horizon:
            uniforms = request.uniforms[: ends_at - request.keep]
            request = dataclasses.replace(request, horizon=ends_at, uniforms=uniforms)
        return ForcedMove(request, inner=dataclasses.replace(move, request=request), ends_at=ends_at)

    def settle(self, state: State, move: ForcedMove, segment: Segment | None) -> tuple[State, Info]:
        """As the inner chain, with an EOS where the length is reached."""
        if segment is not None and segment.finished_by is FinishedBy.HORIZON and move.request is not None:
            ended = move.request.keep + len(segment.tokens) == move.ends_at
            segment = dataclasses.replace(segment, finished_by=FinishedBy.EOS if ended else FinishedBy.HORIZON)
        assert move.inner is not None
        return self.inner.settle(state, move.inner, segment)

    def after_rejection(self, state: State, move: ForcedMove) -> State | None:
        """As the inner chain."""
        assert move.inner is not None
        return self.inner.after_rejection(state, move.inner)

    def work_left(self, state: State) -> float:
        """As the inner chain, which does not know the length any more than it would know the EOS."""
        return self.inner.work_left(state)


@contextlib.contextmanager
def without_eos(sampler: PowerSampler) -> Iterator[None]:
    """Within: no EOS that the model draws by chance ends a completion of `sampler`."""
    with mock.patch.object(sampler, "eos_ids", ()):
        yield


@contextlib.contextmanager
def forced(sampler: PowerSampler, lengths: Lengths | None, acceptance: float | None) -> Iterator[None]:
    """Within: `sampler` draws by forced chains; by `lengths`, if given, and not by the model's EOS.

    The sampler makes its chains itself, by `make_algorithm`, and has no other place to put one of one's own.
    """
    if lengths is None and acceptance is None:
        yield
        return

    def chain(config: SamplerConfig, foreign: bool = False) -> ForcedChain:
        return ForcedChain(make_algorithm(config, foreign), lengths, acceptance)

    with (
        without_eos(sampler) if lengths else contextlib.nullcontext(),
        mock.patch.object(lm_power.sampler, "make_algorithm", chain),
    ):
        yield
