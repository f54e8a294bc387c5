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
class Request:
    """What a chain asks to have decoded: keep a prefix, draw on from q until terminal at the horizon.

    Attributes:
        keep: tokens of the current completion that stay (the cut i).
        horizon: completion length, in tokens, at which the draw ends at the latest.
        beta: inverse temperature 1/τ of the proposal q.
        uniforms: [horizon − keep] float64 in [0, 1): the t-th new token is the inverse CDF of the t-th.
        log_uniform: log u of the acceptance test, drawn before the proposal is decoded; None where the
            result is taken whatever it is (an extension, or ancestral sampling).
    """

    keep: int
    horizon: int
    beta: float
    uniforms: FloatArray
    log_uniform: float | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was decoded for a `Request`: the new tokens only.

    Attributes:
        tokens: [m] int64, m ≥ 1.
        log_p: [m] float64, raw log p of each token, nats.
        log_q: [m] float64, log of the proposal's probability of each token, nats.
        finished_by: why the draw ended.
    """

    tokens: IntArray
    log_p: FloatArray
    log_q: FloatArray
    finished_by: FinishedBy
