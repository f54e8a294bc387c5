"""Every option's rule: what is refused, in which words, and what decides a completion."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lm_power.config import METHODS, OptionError, SamplerConfig, check_names, near_matches, option_names

WHOLE = ("block_size", "mcmc_steps", "max_new_tokens")
NOT_WHOLE = [0, -1, 1.5, math.nan, math.inf, "8", None, True, [8]]
NOT_NUMBERS = [math.nan, math.inf, -math.inf, "4", True, [4]]

SWITCHES = ("coupled_resume", "early_rejection", "prefetch")

WRONG = [
    *((name, value, "must be a whole number >= 1") for name in WHOLE for value in NOT_WHOLE),
    *(("seed", value, "must be a whole number >= 0") for value in [-1, 0.5, "0", None, True]),
    *(("alpha", value, "must be a finite number") for value in [*NOT_NUMBERS, None]),
    *(("alpha", value, "must be >= 1") for value in [0.5, 0, -4, 1 - 1e-9]),
    *(("proposal_temperature", value, "must be a finite number") for value in NOT_NUMBERS),
    *(("proposal_temperature", value, "must be >= 1e-06") for value in [0, -0.5]),
    *((name, value, "must be True or False") for name in SWITCHES for value in [None, 1, 0.0, "False", "off"]),
    *(("method", value, "available: power, power_inf, temperature, standard") for value in ["", None, 4, "top_k"]),
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_a_wrong_value_is_refused(name: str, value: object, rule: str) -> None:
    """Guards against an option that is silently accepted or rounded; the error says name, value and rule."""
    with pytest.raises(OptionError) as caught:
        SamplerConfig(**{name: value})
    message = str(caught.value)
    shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else repr(value)
    assert message.startswith((f"{name}={shown}: ", f"{name}={value!r}: "))
    assert rule in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 4, "proposal_temperature": 0.2},
        {"alpha": 2, "proposal_temperature": 0.49},
        {"alpha": 2, "proposal_temperature": 1.01},
    ],
)
def test_power_bounds_the_proposal_temperature(wrong: dict[str, float]) -> None:
    """Guards the sign of the token weights: outside [1/alpha, 1] they can be positive."""
    with pytest.raises(OptionError, match=r"must be in \[1/alpha, 1\] = \[0\.\d+, 1\]") as caught:
        SamplerConfig(method="power", **wrong)
    assert f"proposal_temperature={wrong['proposal_temperature']:g}" in str(caught.value)
    for method in set(METHODS) - {"power"}:  # which need no bound
        assert SamplerConfig(method=method, **wrong).tau == wrong["proposal_temperature"]


@pytest.mark.parametrize("alpha", [1, 3, 7, 49, 1.1])
def test_the_bounds_themselves_are_allowed(alpha: float) -> None:
    """Guards against 1/alpha refused because it is rounded (3 · (1/3), 49 · (1/49)), and against 1 refused."""
    for tau in (1 / alpha, 1, round(1 / alpha, 12)):
        assert SamplerConfig(alpha=alpha, proposal_temperature=tau).tau == tau


def test_defaults_are_the_papers() -> None:
    """Guards the defaults of Karan & Du (2025), which the README's results rest on."""
    config = SamplerConfig()
    assert dataclasses.astuple(config) == ("power", 4.0, None, 192, 10, 3072, 0, True, True, True)
    assert (config.tau, config.token_alpha) == (0.25, 4.0)


def test_whole_floats_become_integers() -> None:
    """Guards against range(10.0) where a command line or YAML says 10.0 or 1e3."""
    config = SamplerConfig(block_size=10.0, max_new_tokens=1e3, mcmc_steps=2, seed=7.0, alpha=2)
    assert [type(v) for v in (config.block_size, config.max_new_tokens, config.seed)] == [int] * 3
    assert type(config.alpha) is float


@pytest.mark.parametrize(
    ("method", "beta"), [("power", 2.0), ("power_inf", 2.0), ("temperature", 2.0), ("standard", 1.0)]
)
def test_token_alpha_is_the_proposals(method: str, beta: float) -> None:
    """Guards against `standard` sampling that is tempered by a left-over alpha or temperature."""
    assert SamplerConfig(method=method, alpha=2).token_alpha == beta
    assert SamplerConfig(method=method, alpha=4, proposal_temperature=0.5).token_alpha == beta


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mcmc_step", "mcmc_steps"),
        ("blocksize", "block_size"),
        ("proposal_temp", "proposal_temperature"),
        ("Alpha", "alpha"),
        ("max_tokens", "max_new_tokens"),
    ],
)
def test_unknown_options_name_near_matches(typed: str, meant: str) -> None:
    """Guards against a misspelt option that is dropped: the run would use the default without a word."""
    with pytest.raises(OptionError, match=rf"unknown option '{typed}': did you mean .*\b{meant}\b") as caught:
        SamplerConfig().replace(**{typed: 3})
    assert all(name in str(caught.value) for name in option_names())


def test_unknown_methods_name_near_matches() -> None:
    """Guards the message for a misspelt method; and no guess is made where nothing is near."""
    with pytest.raises(OptionError, match=r"method='power-inf': did you mean power_inf"):
        SamplerConfig(method="power-inf")
    with pytest.raises(OptionError, match="zzz") as caught:
        check_names({"zzz": 1}, option_names())
    assert "did you mean" not in str(caught.value)
    assert near_matches("temprature", METHODS) == ["temperature"]


def test_replace_checks_like_the_constructor() -> None:
    """Guards against a way around the rules: `--gen_kwargs` arrive by `replace`."""
    config = SamplerConfig(alpha=2)
    assert config.replace(alpha=3, seed=5) == SamplerConfig(alpha=3, seed=5)
    assert config == SamplerConfig(alpha=2)
    with pytest.raises(OptionError, match=r"alpha=0\.5"):
        config.replace(alpha=0.5)


# For each method: an option and two values that must, or must not, give different keys.
CHANGES = {
    "method": None,
    "alpha": (2, 4),
    "proposal_temperature": (0.5, 0.6),
    "block_size": (8, 16),
    "mcmc_steps": (2, 4),
    "max_new_tokens": (32, 64),
    "seed": (0, 1),
    "coupled_resume": (True, False),
    "early_rejection": (True, False),
    "prefetch": (True, False),
}
USED = {
    "power": {"alpha", "proposal_temperature", "block_size", "mcmc_steps", "max_new_tokens", "seed", "coupled_resume"},
    "power_inf": {"proposal_temperature", "block_size", "mcmc_steps", "max_new_tokens", "seed", "coupled_resume"},
    "temperature": {"proposal_temperature", "max_new_tokens", "seed"},
    "standard": {"max_new_tokens", "seed"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in option_names() if name != "method"])
def test_deciding_options_and_no_others_are_in_the_key(method: str, name: str) -> None:
    """Guards the store's keys: an option missing reuses wrong completions, one too many recomputes right ones."""
    base = SamplerConfig(method=method, alpha=4, proposal_temperature=0.5)
    one, other = (base.replace(**{name: value}).deciding() for value in CHANGES[name])
    assert (one != other) is (name in USED[method])
    assert one["method"] == method and set(one) - {"method"} == USED[method]


def test_a_default_and_its_explicit_value_share_a_key() -> None:
    """Guards against completions computed again because 1/alpha was written out."""
    for method in METHODS:
        explicit = SamplerConfig(method=method, alpha=4, proposal_temperature=0.25)
        assert explicit.deciding() == SamplerConfig(method=method).deciding()


def test_every_option_has_a_help_line_and_a_place_here() -> None:
    """Guards against an option added without documentation or without a decision on the store's key."""
    assert set(CHANGES) == set(option_names())
    assert all(field.metadata["help"] for field in dataclasses.fields(SamplerConfig))
