"""What passes between a chain and the engine that decodes for it."""

from __future__ import annotations

import dataclasses
import enum

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
    """Stops a draw that has fallen too low to be of use.

    After each new token, of a completion that then has n tokens and is not yet terminal, the draw stops if

        Σ_t min(0, log_p·log p(y_t) + log_q·log q(y_t)) + log_length·log(n + 1)  <  value,

    with the sum over the new tokens. Both terms can only fall as the draw goes on.

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
    """What a chain asks to have decoded: keep a prefix, draw on from q until terminal at the horizon.

    Attributes:
        keep: tokens of the current completion that stay.
        horizon: completion length, in tokens, at which the draw ends at the latest.
        beta: inverse temperature 1/τ of the proposal q.
        uniforms: [horizon − keep] float64 in [0, 1): the t-th new token is the inverse CDF of the t-th.
        excluded_first_token: the first new token is drawn from q without this one; None: from q.
        reject_below: when the draw is not worth going on with; None: never.
    """

    keep: int
    horizon: int
    beta: float
    uniforms: FloatArray
    excluded_first_token: int | None = None
    reject_below: Bound | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was decoded for a `Request`: the new tokens only.

    Attributes:
        tokens: [m] int64, m ≥ 1.
        log_p: [m] float64, raw log p of each token, nats.
        log_q: [m] float64, log of the proposal's probability of each token, nats; of the first one under q
            itself, whatever token the request excluded.
        finished_by: why the sequence is terminal; None if it is not, but fell below the request's bound.
    """

    tokens: IntArray
    log_p: FloatArray
    log_q: FloatArray
    finished_by: FinishedBy | None
