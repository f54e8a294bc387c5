"""Ancestral sampling: `standard` draws from p, `temperature` token by token from q."""

from __future__ import annotations

import dataclasses

from lm_power.chains.base import Info, Move, State, Stream
from lm_power.decoding import Request, Segment


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """One draw from left to right: `x_t ~ q(· | x_<t)` until terminal at the horizon T.

    With `beta = 1` this is the model's own law p (`standard`). With `beta = 1/τ` it is token-wise
    temperature sampling, which is *not* p(x)^(1/τ): it sharpens each token without regard to what follows.

    Attributes:
        beta: inverse temperature 1/τ.
        max_new_tokens: the horizon T, tokens.
    """

    beta: float
    max_new_tokens: int

    def propose(self, state: State, stream: Stream) -> Move:
        """The whole completion, in one request."""
        uniforms = stream.at(1, 0).random(self.max_new_tokens)
        return Move(Request(0, self.max_new_tokens, self.beta, uniforms))

    def advance(self, state: State, move: Move, segment: Segment | None) -> tuple[State, Info]:
        """The draw is the result."""
        assert segment is not None
        state = dataclasses.replace(state.spliced(0, segment), step=0, done=True)
        return state, Info(proposed=False, accepted=True)

    def if_rejected(self, state: State, move: Move) -> None:
        """It never is."""

    def work_left(self, state: State) -> float:
        """What the horizon leaves room for; nothing is known before the draw is done."""
        return float(self.max_new_tokens - len(state))
