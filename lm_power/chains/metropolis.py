"""Blockwise Metropolis-Hastings on completions of variable length: `power`, and its limit `power_inf`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from lm_power.chains.base import Info, Move, OneLane, Path, Result, Step, Stream
from lm_power.chains.cuts import Cuts, EntropyCuts, LastBlockCuts, UniformCuts
from lm_power.decoding import Bound, FloatArray, IntArray, Measures, Request, Segment

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig


@dataclasses.dataclass(frozen=True)
class State(Path):
    """A chain's current completion and its place in the schedule.

    Attributes:
        stage: stage k = 1, 2, … of the schedule, with the horizon `L_k = min(k·B, T)`.
        step: Metropolis-Hastings steps done in this stage; None until the stage's extension is done.
        done: the chain has finished; the completion is its result.
    """

    stage: int = 1
    step: int | None = None
    done: bool = False


UNIFORM = UniformCuts()
EMPTY_STATE = State(np.empty(0, np.int64), np.empty(0), np.empty(0))


@dataclasses.dataclass(frozen=True)
class Proposal(Move):
    """A Metropolis-Hastings proposal. Without a request it equals the current completion, or cannot be accepted.

    Attributes:
        cut: the cut i, tokens.
        log_uniform: log u of the acceptance test.
        hopeless: it cannot be accepted, whatever is drawn, because the reverse move is impossible.
    """

    cut: int = 0
    log_uniform: float = 0.0
    hopeless: bool = False


@dataclasses.dataclass(frozen=True)
class BlockwiseMetropolis(OneLane):
    """The schedule of Karan & Du (2025, Algorithm 1) with a step that is exact for variable lengths.

    Stage k = 1, 2, … extends the completion with q to the horizon `L_k = min(k·B, T)`, unless it has already ended by
    EOS or a stop string, and then makes N Metropolis-Hastings steps at that horizon. The schedule ends when a stage
    leaves a completion that has ended by EOS or stop, or at `L_k = T`. Then come M final steps at the horizon T.

    One step, from x of length n: draw a cut i from c(· | x), which is uniform on {0, …, n−1} by default. Keep x_<i and
    draw a new suffix from q until terminal at the horizon, which gives y of length n'. Accept y with probability
    `min(1, exp(r))`, with r as in `log_ratio`.

    **What is exact.** Each step leaves p^alpha *at its horizon* invariant. With one block (B ≥ T) the completion's
    distribution tends to p^alpha as N grows. With several blocks it does not, however large N. Stage k tends to p^alpha
    on sequences cut at L_k, where an unfinished prefix counts with p(prefix)^alpha, which is more than all its
    completions count together. Too few chains finish there, and those that do stop moving. Final steps correct this:
    with M > 0 the distribution tends to p^alpha as M grows. M = 0 is the paper's schedule.

    There are four departures from the paper's released code. Random streams are seeded. The other three are needed for
    a step to leave p^alpha invariant: a proposal may be longer than the current completion, both suffixes are weighed
    in full, and the ratio of the cut probabilities enters.

    **Coupled resume** draws the same y from fewer tokens. At t = i, i+1, … it keeps x_t with probability q(x_t). At the
    first refusal, at j, it draws y_j from q without x_j, and then continues freely. For any x, y is a draw from q:
    `P(y_t = x_t) = q(x_t)`, and `P(y_t = v) = (1 − q(x_t))·q(v)/(1 − q(x_t)) = q(v)` for v ≠ x_t. The ratio r is
    therefore the same, and the tokens before j cancel in it. If nothing is refused, y = x, and nothing is decoded.

    **Early rejection** draws u first and stops decoding once r is certain to end below log u. Every token weight is
    ≤ 0 for 1 ≤ beta ≤ alpha, since `w_t = log Z_beta + (alpha − beta)·log p(y_t)` and `Z_beta = Σ_v p(v)^beta ≤ 1`; and
    c(i | y) can only fall as y grows. The running value of r is thus an upper bound of its final value. A proposal that
    is stopped would have been rejected, so the completions are the same.

    **Exploring steps**, a share of all steps, propose from p itself: q = p, `w_t = (alpha − 1)·log p`. They are for
    decoders whose q cannot produce every token. With such a q alone the chain would sample p^alpha confined to what q
    reaches. Each of the two kernels leaves p^alpha invariant, and together they reach everything. A step from q whose
    current suffix has a token that q cannot produce is rejected at once, because the reverse move is impossible.
    Exploring steps are not coupled: a decoder that knows only the likeliest tokens could draw from p without one of
    them only by trying again and again.

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of the proposal, in [1, alpha].
        block_size: B, tokens.
        mcmc_steps: N.
        max_new_tokens: T, tokens.
        coupled_resume: draw proposals coupled to the current completion.
        early_rejection: let the engine stop proposals that can no longer be accepted.
        final_steps: M.
        cuts: the distribution of cuts.
        explore: share of the steps that propose from p.
        foreign: log q comes from another model than log p, and token weights may be positive. The running value of r is
            then no bound of its final value, and nothing is rejected early.
    """

    alpha: float
    beta: float
    block_size: int
    mcmc_steps: int
    max_new_tokens: int
    coupled_resume: bool = True
    early_rejection: bool = True
    final_steps: int = 0
    cuts: Cuts = UNIFORM
    explore: float = 0.0
    foreign: bool = False

    @classmethod
    def from_config(cls, config: SamplerConfig) -> BlockwiseMetropolis:
        """The chain that some options describe."""
        return cls(
            config.alpha,
            config.beta,
            config.block_size,
            config.mcmc_steps,
            config.max_new_tokens,
            coupled_resume=config.coupled_resume,
            early_rejection=config.early_rejection,
            final_steps=config.final_steps,
            cuts=_cuts(config),
            explore=config.explore or 0.0,
        )

    @property
    def measures(self) -> Measures:  # type: ignore[override]
        """Those of the cuts."""
        return self.cuts.measures

    @property
    def stages(self) -> int:
        """Stages of the schedule, final steps excepted: ⌈T/B⌉."""
        return -(-self.max_new_tokens // self.block_size)

    def horizon(self, stage: int) -> int:
        """`L_k = min(k·B, T)`, tokens; T for the final steps, which are stage ⌈T/B⌉ + 1."""
        return min(stage * self.block_size, self.max_new_tokens)

    def start(self) -> State:
        """Nothing drawn yet."""
        return EMPTY_STATE

    def held(self, state: State) -> tuple[IntArray]:
        """The current completion."""
        return (state.tokens,)

    def result(self, state: State) -> Result | None:
        """The current completion, once the schedule is complete."""
        return Result(state) if state.done else None

    def next_move(self, state: State, stream: Stream) -> Move:
        """The stage's extension, or a Metropolis-Hastings proposal."""
        horizon = self.horizon(state.stage)
        if state.step is None:
            uniforms = stream.at(state.stage, 0).random(horizon - len(state))
            return Move(Request(len(state), horizon, self.beta, uniforms))
        return self.proposal(state, horizon, stream.at(state.stage, state.step + 1))

    def proposal(self, state: State, horizon: int, generator: np.random.Generator, lane: int = 0) -> Proposal:
        """A Metropolis-Hastings proposal at some horizon, with the random numbers of `generator`."""
        cut = self.cuts.draw(state, generator)
        # 1 − random() lies in (0, 1], where the logarithm is finite.
        log_uniform = math.log1p(-generator.random())
        explore = self.explore > 0 and bool(generator.random() < self.explore)
        log_q = state.log_q
        if not explore and np.isneginf(log_q[cut:]).any():
            return Proposal(None, lane, cut=cut, log_uniform=log_uniform, hopeless=True)
        keep, excluded = cut, None
        if self.coupled_resume and not explore:
            refused = generator.random(len(state) - cut) >= np.exp(log_q[cut:])
            first = int(refused.argmax())
            if not refused[first]:
                return Proposal(None, lane, cut=cut, log_uniform=log_uniform)
            keep = cut + first
            excluded = int(state.tokens[keep])
        bounded = self.early_rejection and not self.foreign
        bound = self.bound(state, keep, cut, log_uniform, explore) if bounded else None
        uniforms = generator.random(horizon - keep)
        # Even if p draws, log q is recorded under the chain's q, by which later steps from q weigh the new tokens.
        request = Request(keep, horizon, self.beta, uniforms, excluded, bound, explore)
        return Proposal(request, lane, cut=cut, log_uniform=log_uniform)

    def settle(self, state: State, move: Move, segment: Segment | None) -> tuple[State, Info]:
        """Take over an extension; accept or reject a proposal. Then move on in the schedule."""
        if not isinstance(move, Proposal):
            assert segment is not None and move.request is not None
            return self._scheduled(state.spliced(move.request.keep, segment), step=0), Info(kept=True)
        after, info = self.judge(state, move, segment)
        return self._scheduled(after, (state.step or 0) + 1), info

    def judge(self, state: State, move: Proposal, segment: Segment | None) -> tuple[State, Info]:
        """Accept or reject a proposal, without moving on in the schedule."""
        accepted = changed = False
        log_ratio: float | None = None
        after = state
        if move.request is None or segment is None:  # y = x: accepted, and nothing changes
            accepted, log_ratio = not move.hopeless, -math.inf if move.hopeless else 0.0
        elif segment.finished_by is not None:
            keep = move.request.keep
            log_ratio = self.log_ratio(state, segment, keep, move.cut, move.request.explore)
            same = np.array_equal(segment.tokens, state.tokens[keep:])
            accepted = same or self.accepts(log_ratio, move.log_uniform)
            changed = accepted and not same
            after = state.spliced(keep, segment) if accepted else state
        step = Step(state.stage, move.cut, len(state), accepted, changed)
        return after, Info(accepted, step, log_ratio)

    def after_rejection(self, state: State, move: Move) -> State | None:
        """The same completion, one step on; None for an extension."""
        return self._scheduled(state, (state.step or 0) + 1) if isinstance(move, Proposal) else None

    def work_left(self, state: State) -> float:
        """Half the completion for each step left in this stage; N·(T² − L²)/(4B) for stages after it (Karan & Du).

        A completion that has not ended by EOS or stop is assumed to continue to T. That is the worst case, and the
        worst case decides how long a batch takes. Final steps cost half the completion each.
        """
        if state.stage > self.stages:
            return (self.final_steps - (state.step or 0)) * len(state) / 2
        horizon = self.horizon(state.stage)
        steps = self.mcmc_steps - (state.step or 0)
        if state.ended:
            return (steps + self.final_steps) * len(state) / 2
        later = self.mcmc_steps * (self.max_new_tokens**2 - horizon**2) / (4 * self.block_size)
        final = self.final_steps * self.max_new_tokens / 2
        return steps * horizon / 2 + later + final + self.max_new_tokens - len(state)

    def log_ratio(self, current: State, segment: Segment, keep: int, cut: int, explore: bool = False) -> float:
        """`r = Σ_{t≥i} w_t(y) − Σ_{t≥i} w_t(x) + log c(i | y) − log c(i | x)`, nats, for y = x_<keep and the segment.

        The last two terms are the reverse over the forward probability of the cut: `log n − log n'` for uniform cuts.
        """
        gain = self.log_weight(segment.log_p, segment.log_q, explore)
        gain -= self.log_weight(current.log_p[keep:], current.log_q[keep:], explore)
        proposed = current.spliced(keep, segment)
        return gain + self.cuts.log_probability(proposed, cut) - self.cuts.log_probability(current, cut)

    def log_weight(self, log_p: FloatArray, log_q: FloatArray, explore: bool = False) -> float:
        """`Σ_t w_t` with `w_t = alpha·log p_t − log q_t`, nats, or `(alpha − 1)·log p_t` in an exploring step.

        Unless q is another model's, only rounding can make w_t positive, and a positive w_t counts as 0.
        """
        if explore:
            return (self.alpha - 1) * float(log_p.sum())
        weights = self.alpha * log_p - log_q
        return float((weights if self.foreign else np.minimum(weights, 0)).sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """`log u ≤ r` with u uniform on (0, 1]: probability `min(1, exp(r))`."""
        return log_uniform <= log_ratio

    def bound(self, current: State, keep: int, cut: int, log_uniform: float, explore: bool = False) -> Bound:
        """`r < log u`, as a condition on what the proposal has drawn so far."""
        weight = self.log_weight(current.log_p[keep:], current.log_q[keep:], explore)
        of_length, most = self.cuts.most(current, keep, cut)
        value = _below(log_uniform + weight + self.cuts.log_probability(current, cut) - most)
        return Bound(self.alpha - 1, 0.0, of_length, value) if explore else Bound(self.alpha, -1.0, of_length, value)

    def _scheduled(self, state: State, step: int) -> State:
        last = state.stage > self.stages
        if step < (self.final_steps if last else self.mcmc_steps):
            return dataclasses.replace(state, step=step)
        through = last or state.ended or self.horizon(state.stage) == self.max_new_tokens
        if not through:
            return dataclasses.replace(state, stage=state.stage + 1, step=None)
        if last or self.final_steps == 0:
            return dataclasses.replace(state, step=step, done=True)
        return dataclasses.replace(state, stage=self.stages + 1, step=0)


@dataclasses.dataclass(frozen=True)
class PowerInf(BlockwiseMetropolis):
    """The limit alpha → ∞ (Tomihari & Sato 2026, B.2.2): accept iff `log p(y) > log p(x)`.

    Early rejection relies on log p ≤ 0 alone, so any beta is allowed.
    """

    def log_ratio(self, current: State, segment: Segment, keep: int, cut: int, explore: bool = False) -> float:
        """`log p(y) − log p(x)`, nats: the shared prefix cancels."""
        return float(segment.log_p.sum() - current.log_p[keep:].sum())

    def accepts(self, log_ratio: float, log_uniform: float) -> bool:
        """Whether `r > 0`; the random number plays no part."""
        return log_ratio > 0

    def bound(self, current: State, keep: int, cut: int, log_uniform: float, explore: bool = False) -> Bound:
        """`log p(y) < log p(x)`, as a condition on what the proposal has drawn so far."""
        return Bound(1.0, 0.0, 0.0, _below(float(current.log_p[keep:].sum())))


def _cuts(config: SamplerConfig) -> Cuts:
    if config.cut == "entropy":
        return EntropyCuts(config.cut_share or 0.0, config.cut_power)
    if config.cut == "last_block":
        return LastBlockCuts(config.cut_share or 0.0, config.block_size)
    return UniformCuts()


def _below(value: float) -> float:
    """A little less than `value`, by more than sums of the same float64 numbers in different orders can differ.

    For n terms of one sign that is at most n·2⁻⁵³ of the sum. A sum far below the bound need not be exact.
    """
    return value - 1e-9 * (1 + abs(value))
