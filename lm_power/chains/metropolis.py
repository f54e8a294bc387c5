"""Blockwise Metropolis-Hastings on completions of variable length: `power`, and its limit `power_inf`."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lm_power.chains.base import Info, Move, State, Stream
from lm_power.decoding import Bound, FinishedBy, FloatArray, Request, Segment


@dataclasses.dataclass(frozen=True)
class BlockwiseMetropolis:
    """The schedule of Karan & Du (2025, Algorithm 1) with a step that is exact for variable lengths.

    Stage k = 1, 2, …: unless the completion has ended by EOS or stop, extend it with q to the horizon
    `L_k = min(k·B, T)`; then N Metropolis-Hastings steps at that horizon. The chain is finished when a stage
    ends with a completion ended by EOS or stop, or at `L_k = T`.

    One step, from x of length n: cut i uniform on {0, …, n−1}; keep x_<i and draw a new suffix from q until
    terminal at the horizon, which gives y of length n'; accept with probability `min(1, exp(r))`.

    Departures from the paper's released code, each needed for the law to be p^alpha: a proposal may be
    longer than the current completion; both suffixes are weighed in full; the ratio of cut probabilities
    n/n' enters; random streams are seeded.

    **Coupled resume** draws the same y from fewer tokens. At t = i, i+1, … keep x_t with probability q(x_t);
    at the first refusal, at j, draw y_j from q without x_j, and go on freely. For any x, y is a draw from q:
    `P(y_t = x_t) = q(x_t)`, and `P(y_t = v) = (1 − q(x_t))·q(v)/(1 − q(x_t)) = q(v)` for v ≠ x_t. So the ratio r
    is what it was, and the tokens before j cancel in it. If nothing is refused, y = x, and nothing is decoded.

    **Early rejection** draws u first and stops decoding once r must end below log u. Every token weight is
    ≤ 0 for 1 ≤ beta ≤ alpha: `w_t = log Z_beta + (alpha − beta)·log p(y_t)`, and `Z_beta = Σ_v p(v)^beta ≤ 1`.
    And n' can only grow. So what r has come to is an upper bound of what it ends at, and a proposal that is
    stopped would have been rejected: the completions are the same.

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of the proposal, in [1, alpha].
        block_size: B, tokens.
        mcmc_steps: N.
        max_new_tokens: T, tokens.
        coupled_resume: draw proposals coupled to the current completion.
        early_rejection: let the engine stop proposals that cannot be accepted any more.
    """

    alpha: float
    beta: float
    block_size: int
    mcmc_steps: int
    max_new_tokens: int
    coupled_resume: bool = True
    early_rejection: bool = True

    def horizon(self, stage: int) -> int:
        """`L_k = min(k·B, T)`, tokens."""
        return min(stage * self.block_size, self.max_new_tokens)

    def propose(self, state: State, stream: Stream) -> Move:
        """The stage's extension, or a Metropolis-Hastings proposal."""
        horizon = self.horizon(state.stage)
        if state.step is None:
            uniforms = stream.at(state.stage, 0).random(horizon - len(state))
            return Move(Request(len(state), horizon, self.beta, uniforms))
        generator = stream.at(state.stage, state.step + 1)
        cut = int(generator.integers(len(state)))
        # 1 − random() lies in (0, 1], where the logarithm is finite.
        log_uniform = math.log1p(-generator.random())
        keep, excluded = cut, None
        if self.coupled_resume:
            refused = generator.random(len(state) - cut) >= np.exp(state.log_q[cut:])
            first = int(refused.argmax())
            if not refused[first]:
                return Move(None, cut, log_uniform)
            keep = cut + first
            excluded = int(state.tokens[keep])
        bound = self.bound(state, keep, log_uniform) if self.early_rejection else None
        uniforms = generator.random(horizon - keep)
        return Move(Request(keep, horizon, self.beta, uniforms, excluded, bound), cut, log_uniform)

    def advance(self, state: State, move: Move, segment: Segment | None) -> tuple[State, Info]:
        """Take over an extension; accept or reject a proposal. Then move on in the schedule."""
        if move.log_uniform is None:
            assert segment is not None and move.request is not None
            return self._scheduled(state.spliced(move.request.keep, segment), step=0), Info(False, accepted=True)
        step = (state.step or 0) + 1
        if segment is None or move.request is None:  # y = x
            info = Info(True, self.accepts(0.0, move.log_uniform), log_ratio=0.0)
            return self._scheduled(state, step), info
        if segment.finished_by is None:
            return self._scheduled(state, step), Info(True, accepted=False)
        keep = move.request.keep
        log_ratio = self.log_ratio(state, segment, keep)
        accepted = self.accepts(log_ratio, move.log_uniform)
        info = Info(True, accepted, log_ratio)
        return self._scheduled(state.spliced(keep, segment) if accepted else state, step), info

    def if_rejected(self, state: State, move: Move) -> State | None:
        """The same completion, one step on; None for an extension."""
        return None if move.log_uniform is None else self._scheduled(state, (state.step or 0) + 1)

    def work_left(self, state: State) -> float:
        """Half the completion for each step left in this stage; N·(T² − L²)/(4B) for stages after it (Karan & Du).

        Unless it has ended by EOS or stop, a completion is taken to go on to T: the worst that can happen, and
        what decides how long a batch takes.
        """
        horizon = self.horizon(state.stage)
        steps = self.mcmc_steps - (state.step or 0)
        if state.finished_by not in (None, FinishedBy.HORIZON):
            return steps * len(state) / 2
        later = self.mcmc_steps * (self.max_new_tokens**2 - horizon**2) / (4 * self.block_size)
        return steps * horizon / 2 + later + self.max_new_tokens - len(state)

    def log_ratio(self, current: State, segment: Segment, keep: int) -> float:
        """`r = Σ_{t≥i} w_t(y) − Σ_{t≥i} w_t(x) + log n − log n'`, nats, for y = x_<keep and the segment.

        The last two terms are the reverse over the forward probability of the cut, which is uniform on the
        length of the completion that it cuts.
        """
        gain = self.log_weight(segment.log_p, segment.log_q)
        gain -= self.log_weight(current.log_p[keep:], current.log_q[keep:])
        return gain + math.log(len(current)) - math.log(keep + len(segment.tokens))

    def log_weight(self, log_p: FloatArray, log_q: FloatArray) -> float:
        """`Σ_t w_t` with `w_t = alpha·log p_t − log q_t`, nats; a w_t > 0, which only rounding makes, counts as 0."""
        return float(np.minimum(self.alpha * log_p - log_q, 0).sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """`log u ≤ r` with u uniform on (0, 1]: probability `min(1, exp(r))`."""
        return log_uniform <= log_ratio

    def bound(self, current: State, keep: int, log_uniform: float) -> Bound:
        """`r < log u`, as a condition on what the proposal has drawn so far."""
        weight = self.log_weight(current.log_p[keep:], current.log_q[keep:])
        return Bound(self.alpha, -1.0, -1.0, _below(log_uniform + weight - math.log(len(current))))

    def _scheduled(self, state: State, step: int) -> State:
        if step < self.mcmc_steps:
            return dataclasses.replace(state, step=step)
        ended = state.finished_by is not FinishedBy.HORIZON
        if ended or self.horizon(state.stage) == self.max_new_tokens:
            return dataclasses.replace(state, step=step, done=True)
        return dataclasses.replace(state, stage=state.stage + 1, step=None)


@dataclasses.dataclass(frozen=True)
class PowerInf(BlockwiseMetropolis):
    """The limit alpha → ∞ (Tomihari & Sato 2026, B.2.2): accept iff `log p(y) > log p(x)`.

    Early rejection rests on log p ≤ 0 alone, so beta may be any.
    """

    def log_ratio(self, current: State, segment: Segment, keep: int) -> float:
        """`log p(y) − log p(x)`, nats: the shared prefix cancels."""
        return float(segment.log_p.sum() - current.log_p[keep:].sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """`r > 0`, whatever the variate."""
        return log_ratio > 0

    def bound(self, current: State, keep: int, log_uniform: float) -> Bound:
        """`log p(y) < log p(x)`, as a condition on what the proposal has drawn so far."""
        return Bound(1.0, 0.0, 0.0, _below(float(current.log_p[keep:].sum())))


def _below(value: float) -> float:
    """A little less than `value`: more than sums of the same float64 numbers in another order can differ by.

    Over n terms of one sign that is at most n·2⁻⁵³ of the sum, and a sum that is far below the bound anyway
    need not be exact.
    """
    return value - 1e-9 * (1 + abs(value))
