"""Every sampler option once: its name, type, default, rule and one-line help."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

_LARGEST = 1e6  # of alpha and 1/tau: beyond, products with log p lose all accuracy in float32

METHODS = ("power", "power_inf", "temperature", "standard")
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What lm-eval calls the horizon, `max_new_tokens` here."""


class OptionError(ValueError):
    """A user's option is wrong. The message says the name, the value, the rule and a way out."""


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How completions are drawn; checked when made, so that nothing wrong reaches a chain.

    Defaults are those of Karan & Du (2025): alpha 4, proposals at temperature 1/alpha, blocks of 192 tokens,
    10 Metropolis-Hastings steps a block, at most 3072 tokens.

    Raises:
        OptionError: an option is of the wrong type or outside its range.

    >>> SamplerConfig(alpha=2).tau
    0.5
    """

    method: str = _option("power", f"how completions are drawn: {' | '.join(METHODS)}")
    alpha: float = _option(4.0, "exponent of the target p(x)^alpha; >= 1")
    proposal_temperature: float | None = _option(None, "temperature of the proposal q; default 1/alpha")
    block_size: int = _option(192, "tokens by which the horizon grows from stage to stage; >= 1")
    mcmc_steps: int = _option(10, "Metropolis-Hastings steps a stage; >= 1")
    max_new_tokens: int = _option(3072, "longest completion, in tokens (max_gen_toks in lm-eval); >= 1")
    seed: int = _option(0, "seed of all random streams; >= 0")
    coupled_resume: bool = _option(True, "keep each token of the old end with its proposal probability; same law")
    early_rejection: bool = _option(True, "stop decoding a proposal once it cannot be accepted; same completions")
    prefetch: bool = _option(True, "let idle rows decode the next steps' proposals ahead; same completions")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"method={self.method!r}: {_choose('method', self.method, METHODS)}")
        for name in ("block_size", "mcmc_steps", "max_new_tokens"):
            object.__setattr__(self, name, _integer(name, getattr(self, name), at_least=1))
        object.__setattr__(self, "seed", _integer("seed", self.seed, at_least=0))
        for name in ("coupled_resume", "early_rejection", "prefetch"):
            _boolean(name, getattr(self, name))
        object.__setattr__(self, "alpha", _number("alpha", self.alpha))
        if self.alpha > _LARGEST:
            raise OptionError(f"alpha={self.alpha:g}: must be <= {_LARGEST:g}; for the limit use method=power_inf")
        if self.alpha < 1:
            raise OptionError(
                f"alpha={self.alpha:g}: must be >= 1; for distributions flatter than the model's own use "
                "method=temperature with proposal_temperature > 1"
            )
        if self.proposal_temperature is not None:
            tau = _number("proposal_temperature", self.proposal_temperature)
            object.__setattr__(self, "proposal_temperature", tau)
            if tau < 1 / _LARGEST:
                raise OptionError(
                    f"proposal_temperature={tau:g}: must be >= {1 / _LARGEST:g}; for a nearly greedy draw use 0.01"
                )
            # Below 1/alpha the token weight alpha log p - log q can be positive: bounds on a proposal's
            # fate, and the argument that its tails are covered, both need the weight to be <= 0.
            if self.method == "power" and not (1 / self.alpha) * (1 - 1e-9) <= tau <= 1:
                raise OptionError(
                    f"proposal_temperature={tau:g}: must be in [1/alpha, 1] = [{1 / self.alpha:g}, 1] for "
                    "method=power; leave it out for the default 1/alpha"
                )

    @property
    def tau(self) -> float:
        """Temperature of the token-wise proposal q: `proposal_temperature`, by default 1/alpha."""
        return 1 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def token_alpha(self) -> float:
        """Inverse temperature 1/tau of the token-wise proposal: q is the softmax of (1/tau) log p."""
        return 1.0 if self.method == "standard" else 1 / self.tau

    def replace(self, **options: Any) -> SamplerConfig:
        """A copy with some options changed; unknown names raise `OptionError` and name near matches."""
        check_names(options, option_names())
        return dataclasses.replace(self, **options)

    def deciding(self) -> dict[str, Any]:
        """The options that decide a completion of this method, for keys and records; `seed` among them.

        Coupled resume is one: it leaves the law as it is, but lets other random numbers decide. Early rejection
        and prefetch are none: they change what is decoded when, not what comes of it.
        """
        of_steps = ("block_size", "mcmc_steps", "coupled_resume")
        used = {
            "standard": ("method", "max_new_tokens", "seed"),
            "temperature": ("method", "tau", "max_new_tokens", "seed"),
            "power": ("method", "alpha", "tau", *of_steps, "max_new_tokens", "seed"),
            "power_inf": ("method", "tau", *of_steps, "max_new_tokens", "seed"),
        }[self.method]
        return {("proposal_temperature" if n == "tau" else n): getattr(self, n) for n in used}


def option_names() -> tuple[str, ...]:
    """Names of all sampler options, in the order of `SamplerConfig`.

    >>> option_names()[:2]
    ('method', 'alpha')
    """
    return tuple(f.name for f in dataclasses.fields(SamplerConfig))


def check_names(options: Mapping[str, Any], known: Iterable[str], what: str = "option") -> None:
    """Raise `OptionError` for the first name in `options` that is not known, naming near matches."""
    known = tuple(known)
    for name in options:
        if name not in known:
            raise OptionError(f"unknown {what} {name!r}: {_choose(what, name, known)}")


def near_matches(name: object, known: Iterable[str]) -> list[str]:
    """Known names that `name` may be a misspelling of, best first."""
    return difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.65)


def _choose(what: str, name: object, known: Iterable[str]) -> str:
    near = near_matches(name, known)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}available: {', '.join(known)}"


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: must be True or False")


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OptionError(f"{name}={value!r}: must be a finite number, such as {name}=0.5 or {name}=4")
    return number


def _integer(name: str, value: Any, at_least: int) -> int:
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < at_least:
        raise OptionError(f"{name}={value!r}: must be a whole number >= {at_least}")
    return int(value)
