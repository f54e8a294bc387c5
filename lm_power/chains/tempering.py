"""Parallel tempering: chains at several exponents that exchange their completions: `tempering`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_power.chains.base import Info, Move, Path, Result, Stream
from lm_power.chains.evidence import Evidence, mean_of_series
from lm_power.chains.metropolis import EMPTY_STATE, BlockwiseMetropolis, Proposal
from lm_power.chains.metropolis import State as Rung
from lm_power.decoding import IntArray, Measures, Request, Segment

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig


@dataclasses.dataclass(frozen=True)
class State:
    """One completion per rung, and the lane that holds it.

    Attributes:
        rungs: the completions from the lowest exponent to alpha, with `log_q` as weighed at the rung.
        lane: the lane of each rung; swaps exchange lanes, not what they hold.
        step: rounds done; None until every rung has its first completion.
        swaps: number of accepted swaps between rungs k and k + 1.
        log_p_sums: for each rung, Σ of log p(x) over the rounds of the second half, nats.
        log_zs: for each of these rounds, `thermodynamic_log_z` of the completions that the rungs held, nats.
        log_weight_sum: Σ over these rounds of Σ_t w_t at the highest rung, nats.
    """

    rungs: tuple[Rung, ...]
    lane: tuple[int, ...]
    step: int | None = None
    swaps: tuple[int, ...] = ()
    log_p_sums: tuple[float, ...] = ()
    log_zs: tuple[float, ...] = ()
    log_weight_sum: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tempering:
    """Parallel tempering on p^{a_1} … p^{a_K}, `1 ≤ a_1 < … < a_K = alpha` (Theodoropoulos et al. 2026, "PPT").

    Every rung holds one completion, first drawn from the rung's own token-wise proposal `q_k ∝ p^{a_k}`. All rungs have
    the same horizon T. A round is one Metropolis-Hastings step in every rung (see `BlockwiseMetropolis`, with one
    block), and then, for k = 1 … K−1 in this order, a swap of the completions of rungs k and k+1 with log acceptance
    ratio

        (a_{k+1} − a_k)·(log p(x^k) − log p(x^{k+1})),

    where log p is that of the whole completion, EOS included. The rungs share one space of completions, so no length
    enters. If there are several rungs, the one at exponent 1 is drawn afresh from p in every round, which is an exact
    draw from its target. The result is the completion of the highest rung.

    Means over rounds (`mean_log_p_k`, `log_z`, `kl_from_proposal`) are taken over the second half. Every rung starts at
    a draw from its q_k, far from p^{a_k}, and that start would dominate a mean over all rounds. What remains of it in
    the second half is not part of `log_z_error`.

    **What is exact.** A round leaves the product of the p^{a_k} invariant, so the result's distribution tends to
    p^alpha as the rounds grow. With one rung it is `power` with one block, token for token.

    There are two departures from the paper. Cuts are uniform on the completion, with the ratio of the cut
    probabilities, whereas the paper's cuts reach past its end and do nothing there. The ladder is geometric, whereas
    the paper tunes one for each model.

    Attributes:
        ladder: a_1 … a_K.
        steps: rounds N.
        max_new_tokens: T, tokens.
        coupled_resume, early_rejection: as in `BlockwiseMetropolis`.
        explore: as in `BlockwiseMetropolis`.
    """

    ladder: tuple[float, ...]
    steps: int
    max_new_tokens: int
    coupled_resume: bool = True
    early_rejection: bool = True
    explore: float = 0.0
    rewinds = True

    @classmethod
    def from_config(cls, config: SamplerConfig) -> Tempering:
        """The sampler that some options describe."""
        return cls(
            config.ladder(),
            config.mcmc_steps,
            config.max_new_tokens,
            config.coupled_resume,
            config.early_rejection,
            explore=config.explore or 0.0,
        )

    @property
    def lanes(self) -> int:
        """One per rung."""
        return len(self.ladder)

    @property
    def measures(self) -> Measures:
        """Log Z at every exponent, since a completion that is swapped is weighed at its new rung."""
        return Measures(self.ladder) if self.lanes > 1 else Measures()

    def kernel(self, rung: int) -> BlockwiseMetropolis:
        """The Metropolis-Hastings step of a rung."""
        exponent, longest = self.ladder[rung], self.max_new_tokens
        return BlockwiseMetropolis(
            exponent, exponent, longest, self.steps, longest, self.coupled_resume, self.early_rejection,
            explore=self.explore,
        )  # fmt: skip

    def redrawn(self, rung: int) -> bool:
        """Whether the rung is drawn afresh in every round."""
        return self.lanes > 1 and self.ladder[rung] == 1

    def start(self) -> State:
        """No token drawn yet."""
        n = self.lanes
        return State((EMPTY_STATE,) * n, tuple(range(n)), swaps=(0,) * (n - 1), log_p_sums=(0.0,) * n)

    def held(self, state: State) -> Sequence[IntArray]:
        """The completion in each lane."""
        return [state.rungs[state.lane.index(lane)].tokens for lane in range(self.lanes)]

    def propose(self, state: State, stream: Stream) -> Sequence[Move]:
        """In every rung a first completion, then a proposal."""
        return [self._move(state, rung, stream) for rung in range(self.lanes)]

    def _move(self, state: State, rung: int, stream: Stream) -> Move:
        # The highest rung uses the same addresses as a ladder's only rung, and as `power`.
        step, lane = 0 if state.step is None else state.step + 1, self.lanes - 1 - rung
        generator = stream.at(1, step, lane)
        if state.step is None or self.redrawn(rung):
            uniforms = generator.random(self.max_new_tokens)
            explore = self.ladder[rung] == 1
            return Move(Request(0, self.max_new_tokens, self.ladder[rung], uniforms, explore=explore), state.lane[rung])
        return self.kernel(rung).proposal(state.rungs[rung], self.max_new_tokens, generator, state.lane[rung])

    def advance(
        self, state: State, moves: Sequence[Any], segments: Sequence[Segment | None], stream: Stream
    ) -> tuple[State, Sequence[Info]]:
        """Accept or reject in every rung; then swap."""
        rungs, infos = [], []
        for rung, (move, segment) in enumerate(zip(moves, segments, strict=True)):
            if isinstance(move, Proposal):
                after, info = self.kernel(rung).judge(state.rungs[rung], move, segment)
            else:
                assert segment is not None
                after, info = state.rungs[rung].spliced(0, segment), Info(kept=True)
            rungs.append(after)
            infos.append(info)
        first = state.step is None
        state = dataclasses.replace(state, rungs=tuple(rungs), step=0 if state.step is None else state.step + 1)
        return (state if first else self._swapped(state, stream)), infos

    def _swapped(self, state: State, stream: Stream) -> State:
        """The state after a round's swaps."""
        assert state.step is not None
        generator = stream.at(1, state.step, self.lanes)
        rungs, lane, swaps = list(state.rungs), list(state.lane), list(state.swaps)
        for k in range(self.lanes - 1):
            if math.log1p(-generator.random()) <= self.log_swap_ratio(k, rungs[k], rungs[k + 1]):
                rungs[k], rungs[k + 1] = self.weighed(k, rungs[k + 1]), self.weighed(k + 1, rungs[k])
                lane[k], lane[k + 1] = lane[k + 1], lane[k]
                swaps[k] += 1
        state = dataclasses.replace(state, rungs=tuple(rungs), lane=tuple(lane), swaps=tuple(swaps))
        if state.step is None or state.step <= self.steps // 2:
            return state
        log_p = [float(path.log_p.sum()) for path in rungs]
        return dataclasses.replace(
            state,
            log_p_sums=tuple(map(operator.add, state.log_p_sums, log_p)),
            log_zs=(*state.log_zs, thermodynamic_log_z(self.ladder, log_p)),
            log_weight_sum=state.log_weight_sum + self.ladder[-1] * log_p[-1] - float(rungs[-1].log_q.sum()),
        )

    def log_swap_ratio(self, k: int, lower: Path, upper: Path) -> float:
        """`(a_{k+1} − a_k)·(log p(x^k) − log p(x^{k+1}))`, nats."""
        return (self.ladder[k + 1] - self.ladder[k]) * float(lower.log_p.sum() - upper.log_p.sum())

    def weighed(self, rung: int, path: Rung) -> Rung:
        """A completion as weighed at a rung: `log q_k = a_k·log p − log Z_{a_k}` of every token."""
        assert path.log_z is not None
        log_q = self.ladder[rung] * path.log_p - path.log_z[:, rung]
        # A token that another rung's q cannot produce is out of reach here too: all rungs share one support.
        log_q[path.log_q == -math.inf] = -math.inf
        return dataclasses.replace(path, log_q=log_q)

    def if_rejected(self, state: State, moves: Sequence[Move]) -> None:
        """Never known, since swaps follow whatever is accepted or rejected."""

    def work_left(self, state: State) -> float:
        """The first completion, and then half a completion per round, since the rungs are decoded side by side."""
        if state.step is None:
            return self.max_new_tokens * (1 + self.steps / 2)
        return (self.steps - state.step) * max(map(len, state.rungs)) / 2

    def result(self, state: State) -> Result | None:
        """The completion of the highest rung, once all rounds are done."""
        if state.step is None or state.step < self.steps:
            return None
        numbers = {f"swap_rate_{k + 1}": count / max(self.steps, 1) for k, count in enumerate(state.swaps)}
        if self.steps:
            rounds = len(state.log_zs)
            means = [total / rounds for total in state.log_p_sums]
            numbers |= {f"mean_log_p_{k + 1}": mean for k, mean in enumerate(means)}
            if self.ladder[0] == 1:  # the integral begins at Z_1 = 1
                log_z, error = mean_of_series(state.log_zs)
                numbers |= Evidence(log_z, error, state.log_weight_sum / rounds).diagnostics()
        *lower, highest = state.rungs
        return Result(highest, numbers, companions=tuple(lower))


def thermodynamic_log_z(ladder: Sequence[float], mean_log_p: Sequence[float]) -> float:
    """`log Z_alpha = ∫_1^alpha E_{π_a}[log p] da` by the trapezoidal rule in log a, nats.

    Z_1 = 1, since p is normalised. The integral is linear in the means, whose errors it inherits; a ladder of few rungs
    adds an error of its own.

    Args:
        ladder: 1 = a_1 < … < a_K = alpha.
        mean_log_p: estimates of E_{π_a}[log p], nats, at each.
    """
    # The integrand a·E[log p] is smoother in log a than E[log p] is in a, which falls off as 1/a.
    points = [(math.log(a), a * mean) for a, mean in zip(ladder, mean_log_p, strict=True)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
