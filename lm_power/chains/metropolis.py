"""Blockwise Metropolis-Hastings on completions of variable length: `power`, and its limit `power_inf`."""

from __future__ import annotations

import dataclasses
import math

from lm_power.chains.base import Info, State, Stream
from lm_power.records import FinishedBy, Request, Segment


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

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of the proposal.
        block_size: B, tokens.
        mcmc_steps: N.
        max_new_tokens: T, tokens.
    """

    alpha: float
    beta: float
    block_size: int
    mcmc_steps: int
    max_new_tokens: int

    def horizon(self, stage: int) -> int:
        """`L_k = min(k·B, T)`, tokens."""
        return min(stage * self.block_size, self.max_new_tokens)

    def propose(self, state: State, stream: Stream) -> Request:
        """The stage's extension, or a Metropolis-Hastings proposal."""
        horizon = self.horizon(state.stage)
        if state.step is None:
            uniforms = stream.at(state.stage, 0).random(horizon - len(state))
            return Request(len(state), horizon, self.beta, uniforms)
        generator = stream.at(state.stage, state.step + 1)
        cut = int(generator.integers(len(state)))
        # 1 − random() lies in (0, 1], where the logarithm is finite.
        log_uniform = math.log1p(-generator.random())
        return Request(cut, horizon, self.beta, generator.random(horizon - cut), log_uniform)

    def advance(self, state: State, request: Request, segment: Segment) -> tuple[State, Info]:
        """Take over an extension; accept or reject a proposal. Then move on in the schedule."""
        proposal = state.spliced(request.keep, segment)
        if request.log_uniform is None:
            return self._scheduled(proposal, step=0), Info(proposed=False, accepted=True)
        log_ratio = self.log_ratio(state, proposal, request.keep)
        accepted = self.accepts(log_ratio, request.log_uniform)
        step = (state.step or 0) + 1
        info = Info(proposed=True, accepted=accepted, log_ratio=log_ratio)
        return self._scheduled(proposal if accepted else state, step), info

    def log_ratio(self, current: State, proposal: State, cut: int) -> float:
        """`r = Σ_{t≥i} w_t(y) − Σ_{t≥i} w_t(x) + log n − log n'` with `w_t = alpha·log p − log q`, nats.

        The last two terms are the reverse over the forward probability of the cut, which is uniform on the
        length of the completion that it cuts.
        """
        gain = self.log_weight(proposal, cut) - self.log_weight(current, cut)
        return gain + math.log(len(current)) - math.log(len(proposal))

    def log_weight(self, state: State, cut: int) -> float:
        """`Σ_{t≥i} (alpha·log p(x_t | x_<t) − log q(x_t | x_<t))`, nats, over the whole suffix."""
        return float((self.alpha * state.log_p[cut:] - state.log_q[cut:]).sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """`log u ≤ r` with u uniform on (0, 1]: probability `min(1, exp(r))`."""
        return log_uniform <= log_ratio

    def _scheduled(self, state: State, step: int) -> State:
        if step < self.mcmc_steps:
            return dataclasses.replace(state, step=step)
        ended = state.finished_by is not FinishedBy.HORIZON
        if ended or self.horizon(state.stage) == self.max_new_tokens:
            return dataclasses.replace(state, step=step, done=True)
        return dataclasses.replace(state, stage=state.stage + 1, step=None)


@dataclasses.dataclass(frozen=True)
class PowerInf(BlockwiseMetropolis):
    """The limit alpha → ∞ (Tomihari & Sato 2026, B.2.2): accept iff `log p(y) > log p(x)`."""

    def log_ratio(self, current: State, proposal: State, cut: int) -> float:
        """`log p(y) − log p(x)`, nats: the shared prefix cancels."""
        return float(proposal.log_p[cut:].sum() - current.log_p[cut:].sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """`r > 0`, whatever the variate."""
        return log_ratio > 0
