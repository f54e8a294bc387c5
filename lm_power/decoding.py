"""The contract between algorithms and engines: what is asked for, what is handed back, and by whom."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class FinishedBy(enum.Enum):
    """Why a sequence is terminal. The values are the `finish_reason`s that users see."""

    EOS = "eos"
    STOP = "stop"
    HORIZON = "length"


@dataclasses.dataclass(frozen=True)
class Bound:
    """When to stop a draw because it has fallen too low to be of use.

    After each new token, when the completion has n tokens and is not yet terminal, the draw stops if

        Σ_t min(0, log_p·log p(y_t) + log_q·log q(y_t)) + log_length·log(n + 1)  <  value,

    where the sum is over the new tokens. Both terms can only fall as the draw goes on.

    Attributes:
        log_p, log_q: factors of the tokens' log p and log q.
        log_length: factor of the logarithm of the length, ≤ 0.
        value: the bound, nats.
    """

    log_p: float
    log_q: float
    log_length: float
    value: float


@dataclasses.dataclass(frozen=True)
class Request:
    """What an algorithm asks to have decoded: keep a prefix, then draw from q until terminal at the horizon.

    Attributes:
        keep: tokens of the current completion that stay.
        horizon: completion length, in tokens, at which the draw ends at the latest.
        beta: inverse temperature 1/τ of the proposal q.
        uniforms: [horizon − keep] float64 in [0, 1): the t-th new token is the inverse CDF at the t-th of them.
        excluded_first_token: a token that the first new token must not be; it is drawn from q without it. None: from q.
        reject_below: when to stop the draw early; None: never.
        explore: draw from p itself instead of q; the segment's log q is still that of q. Only decoders whose q cannot
            reach every token need it.
    """

    keep: int
    horizon: int
    beta: float
    uniforms: FloatArray
    excluded_first_token: int | None = None
    reject_below: Bound | None = None
    explore: bool = False


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was decoded for a `Request`: the new tokens only.

    Attributes:
        tokens: [m] int64, m ≥ 1.
        log_p: [m] float64, raw log p of each token, nats.
        log_q: [m] float64, log of the proposal's probability of each token, nats. For the first token it is that of q
            itself, even if the request excluded a token. It is -inf for a token that q cannot produce.
        finished_by: why the sequence is terminal; None if it is not, and the draw fell below the request's bound.
        log_z: [m, exponents] float64, `log Σ_v p(v | x_<t)^e` for each of `Measures.exponents`, nats; or None.
        entropy: [m] float64, entropy of p(· | x_<t), nats; or None.
    """

    tokens: IntArray
    log_p: FloatArray
    log_q: FloatArray
    finished_by: FinishedBy | None
    log_z: FloatArray | None = None
    entropy: FloatArray | None = None


@dataclasses.dataclass(frozen=True)
class Measures:
    """What an algorithm needs from each next-token distribution, besides the numbers of the token that is drawn.

    Attributes:
        exponents: the exponents of the power sums in `Segment.log_z`; finite and > 0.
        entropy: whether `Segment.entropy` is needed.

    Raises:
        ValueError: an exponent is not finite and > 0. At 0 it would be unclear how tokens of probability 0 count.
    """

    exponents: tuple[float, ...] = ()
    entropy: bool = False

    def __post_init__(self) -> None:
        wrong = [exponent for exponent in self.exponents if not 0 < exponent < math.inf]
        if wrong:
            raise ValueError(f"exponents={self.exponents}: each must be finite and > 0, not {wrong[0]}")


class Decoder(Protocol):
    """What the scheduler needs of an engine; see `lm_power.engine.Engine`.

    A row holds a prompt and a settled completion. It is idle until `submit`, then busy until `step` has handed its
    segment back, and settled again by `commit` or `rollback`. `step` may return nothing while rows are busy, and may
    hand a segment back some calls after the one that drew its last token. A segment that has been rolled back in the
    meantime is never handed back. `tokens_decoded` must answer even after another call has failed.

    Attributes:
        rows: how many there are.
        row_cost: what one more busy row adds to the time of a step, as a share of the time of a step without rows. It
            is a constant, and decides how far idle rows work ahead. 0: rows cost nothing.
    """

    rows: int
    row_cost: float

    def load(self, row: int, prompt: Sequence[int], completion: Sequence[int] = ()) -> None:
        """Make an idle row hold a prompt and a settled completion."""
        ...

    def copy(self, source: int, target: int, keep: int) -> None:
        """Make an idle row hold the first `keep` tokens of another row's settled completion, and its prompt."""
        ...

    def submit(self, row: int, request: Request) -> None:
        """Let a settled row decode a request."""
        ...

    def step(self) -> list[tuple[int, Segment]]:
        """Continue decoding in all busy rows, and return the (row, segment) pairs that have ended."""
        ...

    def commit(self, row: int) -> None:
        """Make a row's segment part of its settled completion."""
        ...

    def rollback(self, row: int) -> int:
        """Drop what a row is decoding or has decoded, so that its settled completion stands; the tokens dropped."""
        ...

    def tokens_decoded(self, row: int) -> int:
        """Tokens decoded so far for a row's request."""
        ...
