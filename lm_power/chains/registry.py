"""The methods by name: what each is, how exact it is, which options it has, and how it is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lm_power.chains.ancestral import Ancestral
from lm_power.chains.base import Algorithm
from lm_power.chains.metropolis import BlockwiseMetropolis, PowerInf
from lm_power.chains.rejection import Rejection
from lm_power.chains.smc import SMC
from lm_power.chains.sps import ScalablePowerSampling
from lm_power.chains.tempering import Tempering

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig

# Options that change the cost alone: every completion stays the same, token for token.
COST_ONLY = ("early_rejection",)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to draw completions, as users choose it by name.

    Attributes:
        name: the value of the option `method`.
        summary: what it does: a phrase, for `lm-power report`.
        exact: which distribution it samples, and in which limit: a phrase, for `lm-power report`.
        options: names of the sampler options that it has, besides those that all methods have.
        make: makes the algorithm for a `SamplerConfig`.
        only_default: those of the options that only set the default of another.
        foreign: whether its proposals may come from another model than the target; if so, its algorithm has a field of
            that name.
    """

    name: str
    summary: str
    exact: str
    options: tuple[str, ...]
    make: Callable[[SamplerConfig], Algorithm[Any]]
    only_default: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def relevant_options(self) -> tuple[str, ...]:
        """Those of its options that decide which completion is drawn."""
        return tuple(name for name in self.options if name not in (*COST_ONLY, *self.only_default))

    @property
    def explores(self) -> bool:
        """Whether it makes Metropolis-Hastings steps, a share of which can propose from p itself."""
        return {"mcmc_steps", "explore"} <= set(self.options)


_STEPS = ("mcmc_steps", "coupled_resume", "early_rejection", "explore")
_BLOCKS = ("block_size", "final_steps", *_STEPS)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "power",
            "Metropolis-Hastings on p(x)^alpha, block by block",
            "p^alpha as steps grow, with one block or with final_steps",
            ("alpha", "proposal_temperature", *_BLOCKS, "cut", "cut_share", "cut_power"),
            BlockwiseMetropolis.from_config,
            foreign=True,
        ),
        Method(
            "power_inf",
            "its limit alpha -> infinity: a proposal is accepted if it is more likely",
            "none: it climbs towards the likeliest completion",
            ("alpha", "proposal_temperature", *_BLOCKS),
            PowerInf.from_config,
            only_default=("alpha",),
        ),
        Method(
            "smc",
            "particles drawn side by side, weighed and resampled",
            "p^alpha as particles grow, or as sweeps grow at any number of particles",
            (
                "alpha",
                "proposal_temperature",
                "particles",
                "ess_threshold",
                "resample_every",
                "alpha_ramp",
                "sweeps",
                "explore",
            ),
            SMC.from_config,
            foreign=True,
        ),
        Method(
            "tempering",
            "Metropolis-Hastings chains at several exponents that exchange completions",
            "p^alpha as steps grow",
            ("alpha", "rungs", *_STEPS),
            Tempering.from_config,
        ),
        Method(
            "rejection",
            "independent tries, kept in proportion to their weight",
            "p^alpha, every completion",
            ("alpha", "proposal_temperature", "max_tries", "early_rejection", "explore"),
            Rejection.from_config,
        ),
        Method(
            "sps",
            "candidate blocks weighed by rollouts (Scalable Power Sampling)",
            "approximate: favours unfinished completions, biased at any practical budget",
            (
                "alpha",
                "proposal_temperature",
                "candidates",
                "rollouts",
                "block_size",
                "rollout_length",
                "jackknife",
                "explore",
            ),
            ScalablePowerSampling.from_config,
        ),
        Method(
            "temperature",
            "token by token at proposal_temperature, 1/alpha by default",
            "token-wise temperature, which is not p^alpha",
            ("alpha", "proposal_temperature"),
            Ancestral.from_config,
            only_default=("alpha",),
        ),
        Method(
            "standard",
            "token by token from the model's own distribution p",
            "p, every completion",
            (),
            Ancestral.from_config,
        ),
    )
}


def make_algorithm(config: SamplerConfig, foreign: bool = False) -> Algorithm[Any]:
    """The algorithm for `config.method`; with `foreign`, for proposals from another model than the target."""
    algorithm: Any = METHODS[config.method].make(config)
    return dataclasses.replace(algorithm, foreign=True) if foreign else algorithm
