"""Ancestral sampling: `standard` draws from p, `temperature` token by token from q."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lm_power.chains.base import EMPTY_PATH, Info, Move, OneLane, Path, Result, Stream
from lm_power.decoding import IntArray, Request, Segment

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Ancestral(OneLane):
    """One draw from left to right: `x_t ~ q(· | x_<t)` until terminal at the horizon T.

    With `beta = 1` this is the model's own distribution p (`standard`). With `beta = 1/τ` it is token-wise
    temperature sampling, which is *not* p(x)^(1/τ): it sharpens each token without regard to what follows.

    Attributes:
        beta: inverse temperature 1/τ.
        max_new_tokens: the horizon T, tokens.
    """

    beta: float
    max_new_tokens: int
    rewinds = False

    @classmethod
    def from_config(cls, config: SamplerConfig) -> Ancestral:
        """The draw that some options describe."""
        return cls(config.beta, config.max_new_tokens)

    def start(self) -> Path:
        """Nothing drawn yet."""
        return EMPTY_PATH

    def held(self, state: Path) -> tuple[IntArray]:
        """What has been drawn."""
        return (state.tokens,)

    def result(self, state: Path) -> Result | None:
        """The draw."""
        return None if state.finished_by is None else Result(state)

    def next_move(self, state: Path, stream: Stream) -> Move:
        """The whole completion, in one request."""
        uniforms = stream.at(1, 0).random(self.max_new_tokens)
        # At beta = 1 the draw is from p itself, even on an engine whose q cannot reach every token.
        return Move(Request(0, self.max_new_tokens, self.beta, uniforms, explore=self.beta == 1))

    def settle(self, state: Path, move: Move, segment: Segment | None) -> tuple[Path, Info]:
        """The draw is the result."""
        assert segment is not None
        return state.spliced(0, segment), Info(kept=True)

    def work_left(self, state: Path) -> float:
        """The tokens up to the horizon, since nothing about the length is known before the draw is done."""
        return float(self.max_new_tokens - len(state))
