"""The algorithms: State in, Move out, Segment in, State out. No model, no lm-eval, no I/O."""

from __future__ import annotations

from lm_power.chains.ancestral import Ancestral
from lm_power.chains.base import EMPTY_STATE, Chain, Info, Move, State, Stream
from lm_power.chains.metropolis import BlockwiseMetropolis, PowerInf
from lm_power.config import SamplerConfig

__all__ = [
    "EMPTY_STATE",
    "Ancestral",
    "BlockwiseMetropolis",
    "Chain",
    "Info",
    "Move",
    "PowerInf",
    "State",
    "Stream",
    "make_chain",
]


def make_chain(config: SamplerConfig) -> Chain:
    """The chain for `config.method`."""
    beta, limit = config.token_alpha, config.max_new_tokens
    if config.method in ("standard", "temperature"):
        return Ancestral(beta, limit)
    kind = PowerInf if config.method == "power_inf" else BlockwiseMetropolis
    return kind(
        config.alpha,
        beta,
        config.block_size,
        config.mcmc_steps,
        limit,
        coupled_resume=config.coupled_resume,
        early_rejection=config.early_rejection,
    )
