"""Every sampler option once: its name, type, default, rule and one-line help."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from lm_power.chains.registry import METHODS
from lm_power.errors import LMPowerError

_LARGEST = 1e6  # of alpha and 1/temperature: above it, products with log p lose all accuracy in float32

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What lm-eval calls the horizon, `max_new_tokens` here."""


class OptionError(LMPowerError, ValueError):
    """A user's option is wrong. The message gives its name, its value, the rule and a way out."""


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How completions are drawn. It is checked when it is made, so that no wrong option reaches an algorithm.

    Options that Karan & Du (2025) have too have their defaults: alpha 4, proposals at temperature 1/alpha, blocks of
    192 tokens, 10 Metropolis-Hastings steps per block, at most 3072 tokens. `lm_power.chains.METHODS` says which
    options a method has; those of other methods must keep their defaults.

    Raises:
        OptionError: an option is of the wrong type, outside its range, or another method's.

    >>> SamplerConfig(alpha=2).beta
    2.0
    """

    method: str = _option("power", f"how completions are drawn: {' | '.join(METHODS)}")
    alpha: float = _option(4.0, "exponent of the target p(x)^alpha; >= 1")
    proposal_temperature: float | None = _option(
        None, "temperature of the proposal q; default 1/alpha (also for method=temperature), with proposal_peft 1"
    )
    block_size: int = _option(192, "tokens by which the horizon grows from stage to stage; >= 1")
    mcmc_steps: int = _option(10, "Metropolis-Hastings steps per stage, or rounds of tempering; >= 0")
    final_steps: int = _option(
        0, "steps at the full length after the last stage; p^alpha is the limit of several blocks only with them; >= 0"
    )
    cut: str = _option("uniform", "where steps cut: uniform | entropy (where entropy rises) | last_block")
    cut_share: float | None = _option(
        None, "share of cuts by entropy (default 0.8) or in the last block (0.7); the others are uniform; in (0, 1)"
    )
    cut_power: float = _option(4.0, "exponent of the rise in entropy, with cut=entropy; >= 0")
    particles: int = _option(16, "particles of smc; >= 1")
    ess_threshold: float = _option(0.5, "smc resamples if the share of effective particles is lower; in [0, 1]")
    resample_every: int = _option(32, "tokens between two checks for resampling; >= 1")
    alpha_ramp: int = _option(0, "tokens over which smc raises its exponent from 1 to alpha; 0: at once")
    sweeps: int = _option(1, "sweeps of smc; each replaces the one before with probability min(1, Z'/Z); >= 1")
    rungs: int | tuple[float, ...] = _option(
        4, "rungs of tempering, geometric from 1 to alpha; or the exponents themselves, rising to alpha: 1/2/4"
    )
    max_tries: int = _option(1000, "tries of rejection per completion before it gives up; >= 1")
    candidates: int = _option(8, "candidate blocks of sps; >= 1")
    rollouts: int = _option(8, "rollouts of sps per candidate; >= 1")
    rollout_length: int | None = _option(None, "longest rollout of sps, tokens; default block_size; >= 1")
    jackknife: bool = _option(True, "remove the bias of sps's ratio of estimates, to first order")
    explore: float | None = _option(
        None, "share of steps that propose from p itself, for engines whose q misses some tokens (power-api: 0.03)"
    )
    max_new_tokens: int = _option(3072, "longest completion, in tokens (max_gen_toks in lm-eval); >= 1")
    seed: int = _option(0, "seed of all random streams; >= 0")
    coupled_resume: bool = _option(
        True, "keep tokens after the cut, each with its proposal probability; same distribution"
    )
    early_rejection: bool = _option(True, "stop decoding a proposal once it cannot be accepted; same completions")
    prefetch: bool = _option(True, "let idle rows decode the next steps' proposals ahead; same completions")

    def __post_init__(self) -> None:
        for name, choices in (("method", tuple(METHODS)), ("cut", ("uniform", "entropy", "last_block"))):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name}={getattr(self, name)!r}: {_choose(name, getattr(self, name), choices)}")
        for name in ("block_size", "max_new_tokens", "particles", "resample_every", "sweeps", "max_tries", "candidates",
                     "rollouts"):  # fmt: skip
            self._set(name, _integer(name, getattr(self, name), at_least=1))
        for name in ("mcmc_steps", "final_steps", "alpha_ramp", "seed"):
            self._set(name, _integer(name, getattr(self, name), at_least=0))
        for name in ("coupled_resume", "early_rejection", "prefetch", "jackknife"):
            _boolean(name, getattr(self, name))
        if self.rollout_length is not None:
            self._set("rollout_length", _integer("rollout_length", self.rollout_length, at_least=1))
        self._set("ess_threshold", _within("ess_threshold", self.ess_threshold, 0, 1))
        self._set("cut_power", _within("cut_power", self.cut_power, 0, 100))
        self._check_exponents()
        self._check_cut_share()
        self._set("rungs", self._checked_rungs())
        self._check_explore()
        self._refuse_options_of_other_methods()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_exponents(self) -> None:
        self._set("alpha", _number("alpha", self.alpha))
        if self.alpha > _LARGEST:
            raise OptionError(f"alpha={self.alpha:g}: must be <= {_LARGEST:g}; for the limit use method=power_inf")
        if self.alpha < 1:
            raise OptionError(
                f"alpha={self.alpha:g}: must be >= 1; for distributions flatter than the model's own use "
                "method=temperature with proposal_temperature > 1"
            )
        if self.proposal_temperature is None:
            return
        tau = _number("proposal_temperature", self.proposal_temperature)
        self._set("proposal_temperature", tau)
        if tau < 1 / _LARGEST:
            raise OptionError(
                f"proposal_temperature={tau:g}: must be >= {1 / _LARGEST:g}; for a nearly greedy draw use 0.01"
            )
        # Below 1/alpha the token weight alpha log p - log q can be positive. The bound of early rejection, and the
        # argument that q covers the target's tails, both need it to be <= 0.
        if self.method in ("power", "rejection") and not (1 / self.alpha) * (1 - 1e-9) <= tau <= 1:
            raise OptionError(
                f"proposal_temperature={tau:g}: must be in [1/alpha, 1] = [{1 / self.alpha:g}, 1] for "
                f"method={self.method}; leave it out for the default 1/alpha"
            )

    def _check_cut_share(self) -> None:
        if self.cut == "uniform":
            if self.cut_share is not None:
                raise OptionError(
                    f"cut_share={self.cut_share!r}: belongs to cut=entropy or cut=last_block; leave it out"
                )
            if self.cut_power != 4:
                raise OptionError(f"cut_power={self.cut_power:g}: belongs to cut=entropy; leave it out")
            return
        share = (
            (0.8 if self.cut == "entropy" else 0.7) if self.cut_share is None else _number("cut_share", self.cut_share)
        )
        if not 0 < share < 1:
            raise OptionError(
                f"cut_share={share:g}: must be in (0, 1), both ends excluded; {self.cut} cuts alone would not sample "
                "p^alpha, and for uniform cuts alone use cut=uniform"
            )
        self._set("cut_share", share)

    def _check_explore(self) -> None:
        if self.explore is None:
            return
        self._set("explore", _within("explore", self.explore, 0, 1))
        method = METHODS[self.method]
        if self.explore > 0 and not method.explores and "explore" in method.options:
            raise OptionError(
                f"explore={self.explore:g}: method={self.method} has no steps that could explore; use method="
                f"{', '.join(other.name for other in METHODS.values() if other.explores)}, or explore=0"
            )

    def _checked_rungs(self) -> int | tuple[float, ...]:
        rungs: Any = self.rungs
        if isinstance(rungs, str) and "/" in rungs:
            rungs = [_parsed(part) for part in rungs.split("/")]
        if not isinstance(rungs, (list, tuple)):
            count = _integer("rungs", rungs, at_least=1)
            if self.method == "tempering" and count > 1 and self.alpha == 1:
                raise OptionError(
                    f"rungs={count}: with alpha=1 there is nothing to climb; use rungs=1 or a larger alpha"
                )
            return count
        ladder = tuple(_number("rungs", rung) for rung in rungs)
        rises = all(a < b for a, b in itertools.pairwise(ladder))
        if not ladder or ladder[0] < 1 or not rises or ladder[-1] != self.alpha:
            shown = "/".join(f"{rung:g}" for rung in ladder)
            raise OptionError(
                f"rungs={shown}: must rise from >= 1 to alpha={self.alpha:g}, such as rungs=1/2/{self.alpha:g}"
            )
        return ladder

    def _refuse_options_of_other_methods(self) -> None:
        own = METHODS[self.method].options
        for field in dataclasses.fields(self):
            methods = [method.name for method in METHODS.values() if field.name in method.options]
            if methods and field.name not in own and getattr(self, field.name) != field.default:
                raise OptionError(
                    f"{field.name}={getattr(self, field.name)}: is an option of method={', '.join(methods)}; "
                    f"method={self.method} has none of that name: leave it out"
                )

    @property
    def beta(self) -> float:
        """Inverse temperature 1/τ of the token-wise proposal: q is the softmax of beta·log p."""
        if self.method == "standard":
            return 1.0
        if self.proposal_temperature is not None:
            return 1 / self.proposal_temperature
        return self.alpha

    def ladder(self) -> tuple[float, ...]:
        """The exponents of tempering's rungs, rising to alpha.

        >>> SamplerConfig(method="tempering", rungs=3).ladder()
        (1.0, 2.0, 4.0)
        """
        if isinstance(self.rungs, tuple):
            return self.rungs
        if self.rungs == 1:
            return (self.alpha,)
        inner = (self.alpha ** (k / (self.rungs - 1)) for k in range(1, self.rungs - 1))
        return (1.0, *inner, self.alpha)

    def replace(self, **options: Any) -> SamplerConfig:
        """A copy with some options changed; unknown names raise `OptionError` and name near matches."""
        check_names(options, option_names())
        if options.get("cut", self.cut) != self.cut and "cut_share" not in options:
            options["cut_share"] = None  # the other cut's default
        return dataclasses.replace(self, **options)

    def with_foreign_proposals(self) -> SamplerConfig:
        """The same options for proposals from another model than the target, by default at temperature 1.

        A student of p^alpha is already sharpened: it was trained to be the proposal.

        Raises:
            OptionError: the method has no such proposals.
        """
        able = [method.name for method in METHODS.values() if method.foreign]
        if self.method not in able:
            raise OptionError(
                f"method={self.method}: has no proposals from another model; use method={' or '.join(able)}, or leave "
                "out proposal_peft"
            )
        return self if self.proposal_temperature is not None else self.replace(proposal_temperature=1.0)

    def _does_something(self, name: str) -> bool:
        """Whether an option has an effect, given the others; one without effect stays out of keys and labels."""
        if name in ("cut", "cut_share"):
            return self.cut != "uniform"
        if name == "cut_power":
            return self.cut == "entropy"
        if name == "explore":
            return bool(self.explore)
        return name != "final_steps" or self.final_steps > 0

    def relevant_options(self) -> dict[str, Any]:
        """The options that decide a completion of this method, `seed` included, for keys and records.

        Coupled resume is one of them, because it keeps the distribution but uses other random numbers. Early rejection
        and prefetch are not, because they change only what is decoded when.
        """
        decided: dict[str, Any] = {"method": self.method}
        for name in METHODS[self.method].relevant_options:
            if name == "proposal_temperature":
                # The default of smc follows its ramp.
                default = None if self.method == "smc" else 1 / self.beta
                decided[name] = default if self.proposal_temperature is None else self.proposal_temperature
            elif name == "rungs":
                decided[name] = list(self.ladder())
            elif name == "rollout_length":
                decided[name] = self.block_size if self.rollout_length is None else self.rollout_length
            elif self._does_something(name):
                decided[name] = getattr(self, name)
        return decided | {"max_new_tokens": self.max_new_tokens, "seed": self.seed}


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


def _within(name: str, value: Any, low: float, high: float) -> float:
    number = _number(name, value)
    if not low <= number <= high:
        raise OptionError(f"{name}={number:g}: must be in [{low:g}, {high:g}]")
    return number


def _parsed(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
