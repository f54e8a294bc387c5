"""Rejection sampling from p^alpha: exact and independent draws, for short completions: `rejection`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from lm_power.chains.base import EMPTY_PATH, Info, Move, OneLane, Path, Result, Stream
from lm_power.chains.evidence import of_tries
from lm_power.decoding import Bound, IntArray, Request, Segment
from lm_power.errors import LMPowerError

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig


class TriesExhausted(LMPowerError):
    """No try was kept: the target is too far from the proposal for rejection sampling."""


@dataclasses.dataclass(frozen=True)
class State:
    """How many tries were made, and the completion, once one was kept.

    Attributes:
        tries: so far.
        path: the completion that was kept; empty before that.
        log_weight_sum: log of the sum of e^{Σw} over the tries; a try that was stopped enters with an upper bound.
    """

    tries: int = 0
    path: Path = EMPTY_PATH
    log_weight_sum: float = -math.inf


@dataclasses.dataclass(frozen=True)
class Try(Move):
    """A draw from q, and log u for its test."""

    log_uniform: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rejection(OneLane):
    """Draw y from q, and keep it with probability `exp Σ_t w_t ≤ 1`, `w_t = alpha·log p − log q`; else draw again.

    **What is exact.** The completion that is kept is an exact, independent draw from p^alpha, for any τ in [1/alpha,
    1]. Whatever τ, a try is kept with probability Z_alpha = Σ_x p(x)^alpha, so the expected number of tries is
    1/Z_alpha. Where -log Z_alpha exceeds about 7 nats (1,000 tries), another method is the better choice. Log u is
    drawn first, so that a try stops as soon as its weight has fallen below u. Further tries are decoded ahead in idle
    rows.

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of the proposal, in [1, alpha].
        max_new_tokens: T, tokens.
        max_tries: after so many tries without a completion, `TriesExhausted` is raised.
        early_rejection: let the engine stop a try that can no longer be kept.
    """

    alpha: float
    beta: float
    max_new_tokens: int
    max_tries: int = 1000
    early_rejection: bool = True
    rewinds = False

    @classmethod
    def from_config(cls, config: SamplerConfig) -> Rejection:
        """The sampler that some options describe."""
        return cls(config.alpha, config.beta, config.max_new_tokens, config.max_tries, config.early_rejection)

    def start(self) -> State:
        """No try made yet."""
        return State()

    def held(self, state: State) -> tuple[IntArray]:
        """The completion that was kept."""
        return (state.path.tokens,)

    def next_move(self, state: State, stream: Stream) -> Try:
        """A draw from q."""
        if state.tries >= self.max_tries:
            raise TriesExhausted(
                f"method=rejection: none of max_tries={self.max_tries} tries was kept; log Z_alpha is about "
                f"{self.log_z(state):.1f} nats or less, so about one try in "
                f"{math.exp(min(-self.log_z(state), 700)):.2g} is kept; use method=smc or method=power, a smaller "
                "alpha, or a larger max_tries"
            )
        generator = stream.at(1, state.tries + 1)
        log_uniform = math.log1p(-generator.random())
        bound = Bound(self.alpha, -1.0, 0.0, log_uniform - 1e-9) if self.early_rejection else None
        uniforms = generator.random(self.max_new_tokens)
        request = Request(0, self.max_new_tokens, self.beta, uniforms, reject_below=bound)
        return Try(request, log_uniform=log_uniform)

    def settle(self, state: State, move: Try, segment: Segment | None) -> tuple[State, Info]:
        """Keep the draw, or count it."""
        assert segment is not None
        log_weight = float(np.minimum(self.alpha * segment.log_p - segment.log_q, 0).sum())
        kept = segment.finished_by is not None and move.log_uniform <= log_weight
        after = State(
            state.tries + 1,
            state.path.spliced(0, segment) if kept else state.path,
            float(np.logaddexp(state.log_weight_sum, log_weight)),
        )
        return after, Info(kept, log_ratio=log_weight)

    def after_rejection(self, state: State, move: Try) -> State | None:
        """One try more; None after the last."""
        tries = state.tries + 1
        return dataclasses.replace(state, tries=tries) if tries < self.max_tries else None

    def log_z(self, state: State) -> float:
        """Estimate of log Z_alpha from the tries so far, nats; an upper bound of it if tries were stopped early."""
        return state.log_weight_sum - math.log(state.tries)

    def work_left(self, state: State) -> float:
        """One completion, since nobody knows how many more tries there will be."""
        return 0.0 if self.result(state) else float(self.max_new_tokens)

    def result(self, state: State) -> Result | None:
        """The draw that was kept."""
        if state.path.finished_by is None:
            return None
        log_weight = float((self.alpha * state.path.log_p - state.path.log_q).sum())
        return Result(state.path, {"tries": float(state.tries)} | of_tries(state.tries, log_weight).diagnostics())
