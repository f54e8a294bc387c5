"""Scalable Power Sampling: block by block, candidates weighed by rollouts; approximate: `sps`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm_power.chains.base import EMPTY_PATH, Info, Move, Path, Result, Stream
from lm_power.chains.smc import log_mean
from lm_power.decoding import FloatArray, IntArray, Measures, Request, Segment

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig


@dataclasses.dataclass(frozen=True)
class State:
    """What has been chosen so far, and the candidates for the next block.

    Attributes:
        path: the blocks chosen so far.
        lane: the lane that holds `path`.
        block: blocks chosen.
        candidates: one path per lane 0 … L−1, each of them `path` and one block more; empty before they are drawn.
    """

    path: Path = EMPTY_PATH
    lane: int = 0
    block: int = 0
    candidates: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class ScalablePowerSampling:
    """Autoregressive sampling of blocks, weighed by what may follow them (Ji et al. 2026).

    The exact identity is `π(block | prefix) ∝ p(block | prefix)^alpha·ζ(prefix, block)`, where ζ is the sum of
    p(future)^alpha over all futures, or 1 if the block ends the completion. Here L candidate blocks of B tokens are
    drawn from q. For each unfinished one, M rollouts of at most H tokens, from q as well, estimate `log ζ̂ = log mean
    exp Σ(alpha·log p − log q)`. One candidate is drawn in proportion to `(p^alpha/q)·ζ̂`, and the next block begins.

    **It is approximate** at any practical budget, for three reasons. (a) Choosing one of L candidates in proportion to
    its weight is importance resampling, which is biased towards q for finite L. (b) Rollouts that are cut at H tokens
    overestimate ζ, since every further factor Σ_v p(v)^alpha is ≤ 1. Unfinished candidates are favoured over finished
    ones, and completions come out too long. (c) The ratio of estimates ζ̂ is biased for finite M. The jackknife removes
    that bias to first order, but is not better in every case. The exact method of equal parallelism is `smc` with
    sweeps.

    There are two departures from the paper. Candidates are weighed by p^alpha/q·ζ̂ and not by p^alpha·ζ̂, which would
    count the proposal's own sharpening twice (for candidates from p its limit is p^{alpha+1}·ζ). All candidates are
    kept, whereas the paper keeps the likeliest of a larger number, which truncates.

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of q.
        max_new_tokens: T, tokens.
        candidates: L.
        rollouts: M.
        block_size: B, tokens.
        rollout_length: H, tokens.
        jackknife: correct the candidates' probabilities for the bias of a ratio.
    """

    alpha: float
    beta: float
    max_new_tokens: int
    candidates: int = 8
    rollouts: int = 8
    block_size: int = 192
    rollout_length: int = 192
    jackknife: bool = True
    rewinds = False  # a rollout continues from the end of what its lane holds, and is then dropped
    measures = Measures()

    @classmethod
    def from_config(cls, config: SamplerConfig) -> ScalablePowerSampling:
        """The sampler that some options describe."""
        length = config.block_size if config.rollout_length is None else config.rollout_length
        return cls(
            config.alpha,
            config.beta,
            config.max_new_tokens,
            config.candidates,
            config.rollouts,
            config.block_size,
            length,
            config.jackknife,
        )

    @property
    def lanes(self) -> int:
        """One per rollout of every candidate."""
        return self.candidates * self.rollouts

    def start(self) -> State:
        """No block chosen yet."""
        return State()

    def held(self, state: State) -> Sequence[IntArray]:
        """The candidates in the lanes that drew them; before they are drawn, the chosen blocks, in all lanes."""
        if not state.candidates:
            return [state.path.tokens] * self.lanes
        return [state.candidates[lane % self.candidates].tokens for lane in range(self.lanes)]

    def propose(self, state: State, stream: Stream) -> Sequence[Move]:
        """Candidates for the next block, or rollouts from the candidates."""
        if not state.candidates:
            start, stop = len(state.path), self._stop(len(state.path), self.block_size)
            source = None if state.block == 0 else state.lane
            return [
                Move(
                    Request(start, stop, self.beta, stream.at(2 * state.block + 1, 0, lane).random(stop - start)),
                    lane,
                    None if lane == source else source,
                )
                for lane in range(self.candidates)
            ]
        moves = []
        for lane in range(self.lanes):
            candidate = state.candidates[lane % self.candidates]
            if self._finished(candidate):
                continue
            start, stop = len(candidate), self._stop(len(candidate), self.rollout_length)
            uniforms = stream.at(2 * state.block + 2, 0, lane).random(stop - start)
            source = None if lane < self.candidates else lane % self.candidates
            moves.append(Move(Request(start, stop, self.beta, uniforms), lane, source))
        return moves

    def advance(
        self, state: State, moves: Sequence[Move], segments: Sequence[Segment | None], stream: Stream
    ) -> tuple[State, Sequence[Info]]:
        """Record the candidates; or weigh them by their rollouts, and choose one."""
        if not state.candidates:
            drawn = tuple(state.path.spliced(len(state.path), segment) for segment in segments if segment is not None)
            state = dataclasses.replace(state, candidates=drawn)
            if all(map(self._finished, drawn)):
                state = self._chosen(state, np.zeros((len(drawn), self.rollouts)), stream)
            return state, (Info(kept=True),) * len(moves)
        futures = np.zeros((self.candidates, self.rollouts))  # log weights; those of a finished candidate are 0
        for move, segment in zip(moves, segments, strict=True):
            assert segment is not None
            rollout, candidate = divmod(move.lane, self.candidates)
            futures[candidate, rollout] = self.log_weight(segment)
        return self._chosen(state, futures, stream), (Info(kept=False),) * len(moves)

    def _chosen(self, state: State, futures: FloatArray, stream: Stream) -> State:
        start = len(state.path)
        log_weights = np.array(
            [
                float((self.alpha * path.log_p[start:] - path.log_q[start:]).sum())  # of the block alone
                for path in state.candidates
            ]
        )
        law = self.candidate_law(log_weights, futures)
        uniform = float(stream.at(2 * state.block + 1, 1).random())
        lane = int(np.searchsorted(np.cumsum(law)[:-1], uniform, side="right"))
        return State(state.candidates[lane], lane, state.block + 1)

    def log_weight(self, segment: Segment) -> float:
        """`Σ_t alpha·log p − log q`, nats."""
        return float((self.alpha * segment.log_p - segment.log_q).sum())

    def candidate_law(self, log_weights: FloatArray, futures: FloatArray) -> FloatArray:
        """Probabilities of the candidates.

        With the jackknife, `f* = M·f − (M−1)·mean_s f_{−s}`, where `f_{−s}` leaves out the s-th rollout of every
        candidate. Negative values become 0, and the rest is normalised again. It needs at least two rollouts.

        Args:
            log_weights: [L] log (p^alpha/q) of each block, nats.
            futures: [L, M] log weights of the rollouts, nats.
        """

        def law(kept: FloatArray) -> FloatArray:
            total = log_weights + np.array([log_mean(row) for row in kept])
            probabilities: FloatArray = np.exp(total - np.logaddexp.reduce(total))
            return probabilities

        every, m = law(futures), futures.shape[1]
        if not self.jackknife or m < 2:
            return every
        without = np.mean([law(np.delete(futures, s, axis=1)) for s in range(m)], axis=0)
        corrected = np.maximum(m * every - (m - 1) * without, 0)
        normalised: FloatArray = corrected / corrected.sum()
        return normalised

    def if_rejected(self, state: State, moves: Sequence[Move]) -> None:
        """Nothing is rejected."""

    def work_left(self, state: State) -> float:
        """The tokens up to the horizon, with a rollout for each block."""
        left = self.max_new_tokens - len(state.path)
        return left * (1 + self.rollout_length / self.block_size)

    def result(self, state: State) -> Result | None:
        """The blocks chosen, once the last of them ends the completion."""
        if not self._finished(state.path):
            return None
        return Result(state.path, {"blocks": float(state.block), "approximate": 1.0})

    def _finished(self, path: Path) -> bool:
        return path.ended or len(path) >= self.max_new_tokens

    def _stop(self, start: int, tokens: int) -> int:
        return min(start + tokens, self.max_new_tokens)
