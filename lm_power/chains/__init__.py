"""The algorithms, one file each: State in, moves out, segments in, State out. No model, no lm-eval, no I/O."""

from __future__ import annotations

from lm_power.chains.ancestral import Ancestral
from lm_power.chains.base import EMPTY_PATH, Algorithm, Info, Move, OneLane, Path, Result, Step, Stream
from lm_power.chains.metropolis import BlockwiseMetropolis, PowerInf, Proposal
from lm_power.chains.registry import METHODS, Method, make_algorithm
from lm_power.chains.rejection import Rejection, TriesExhausted
from lm_power.chains.smc import SMC
from lm_power.chains.sps import ScalablePowerSampling
from lm_power.chains.tempering import Tempering

__all__ = [
    "EMPTY_PATH",
    "METHODS",
    "SMC",
    "Algorithm",
    "Ancestral",
    "BlockwiseMetropolis",
    "Info",
    "Method",
    "Move",
    "OneLane",
    "Path",
    "PowerInf",
    "Proposal",
    "Rejection",
    "Result",
    "ScalablePowerSampling",
    "Step",
    "Stream",
    "Tempering",
    "TriesExhausted",
    "make_algorithm",
]
