"""Every option's rule: what is refused, in which words, and what decides a completion."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lm_power.config import METHODS, OptionError, SamplerConfig, check_names, near_matches, option_names

WHOLE = ("block_size", "max_new_tokens", "particles", "resample_every", "sweeps", "max_tries", "candidates", "rollouts")
NOT_WHOLE = [0, -1, 1.5, math.nan, math.inf, "8", None, True, [8]]
NOT_NUMBERS = [math.nan, math.inf, -math.inf, "4", True, [4]]

SWITCHES = ("coupled_resume", "early_rejection", "prefetch")

WRONG = [
    *((name, value, "must be a whole number >= 1") for name in WHOLE for value in NOT_WHOLE),
    *(
        (name, value, "must be a whole number >= 0")
        for name in ("seed", "mcmc_steps", "final_steps", "alpha_ramp")
        for value in [-1, 0.5, "0", None, True]
    ),
    *((name, value, "must be in [0, 1]") for name in ("ess_threshold", "explore") for value in [-0.1, 1.5]),
    ("cut", "surprisal", "available: uniform, entropy, last_block"),
    *(("alpha", value, "must be a finite number") for value in [*NOT_NUMBERS, None]),
    *(("alpha", value, "must be >= 1") for value in [0.5, 0, -4, 1 - 1e-9]),
    *(("proposal_temperature", value, "must be a finite number") for value in NOT_NUMBERS),
    *(("proposal_temperature", value, "must be >= 1e-06") for value in [0, -0.5]),
    *((name, value, "must be True or False") for name in SWITCHES for value in [None, 1, 0.0, "False", "off"]),
    *(("method", value, "available: power, power_inf, smc") for value in ["", None, 4, "top_k"]),
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
    for method in ("power_inf", "smc", "sps", "temperature"):  # which need no bound
        assert SamplerConfig(method=method, **wrong).beta == 1 / wrong["proposal_temperature"]


@pytest.mark.parametrize("alpha", [1, 3, 7, 49, 1.1])
def test_the_bounds_themselves_are_allowed(alpha: float) -> None:
    """Guards against 1/alpha refused because it is rounded (3 · (1/3), 49 · (1/49)), and against 1 refused."""
    for tau in (1 / alpha, 1, round(1 / alpha, 12)):
        assert SamplerConfig(alpha=alpha, proposal_temperature=tau).beta == 1 / tau


def test_defaults_are_the_papers() -> None:
    """Guards the defaults of Karan & Du (2025), which the README's results rest on."""
    config = SamplerConfig()
    papers = {"method": "power", "alpha": 4.0, "block_size": 192, "mcmc_steps": 10, "final_steps": 0, "cut": "uniform",
              "max_new_tokens": 3072}  # fmt: skip
    assert {name: getattr(config, name) for name in papers} == papers
    assert config.beta == 4.0


def test_the_documents_state_the_defaults() -> None:
    """Guards the tables of options against a default that was changed in the code alone."""
    docs = Path(__file__).parents[1] / "docs"
    text = "\n".join((docs / name).read_text(encoding="utf-8") for name in ("options.md", "methods.md"))
    stated = dict(re.findall(r"`(\w+)` (\d[\d.]*)(?=[, |])", text))  # `particles` 16, `ess_threshold` 0.5
    for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", text, re.MULTILINE):
        stated |= dict(zip(re.findall(r"\w+", names), values.split(", "), strict=False))
    numbers = {f.name: f.default for f in dataclasses.fields(SamplerConfig) if type(f.default) in (int, float)}
    compared = {name: float(stated[name]) for name in numbers if name in stated}
    assert compared == {name: numbers[name] for name in compared}
    assert {"alpha", "block_size", "mcmc_steps", "final_steps", "seed", "particles", "rungs", "max_tries"} <= set(
        compared
    )


def test_whole_floats_become_integers() -> None:
    """Guards against range(10.0) where a command line or YAML says 10.0 or 1e3."""
    config = SamplerConfig(block_size=10.0, max_new_tokens=1e3, mcmc_steps=2, seed=7.0, alpha=2)
    assert [type(v) for v in (config.block_size, config.max_new_tokens, config.seed)] == [int] * 3
    assert type(config.alpha) is float


@pytest.mark.parametrize("method", ["power", "power_inf", "temperature"])
def test_beta_is_the_proposals(method: str) -> None:
    """Guards the inverse temperature of the draws: alpha's by default, that of a temperature that is given."""
    assert SamplerConfig(method=method, alpha=2).beta == 2
    assert SamplerConfig(method=method, alpha=4, proposal_temperature=0.5).beta == 2
    assert SamplerConfig(method="standard").beta == 1


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


# For each option two values that must, or must not, give different keys, and what else has to be set for them.
CHANGES = {
    "alpha": (2, 3),
    "proposal_temperature": (0.5, 0.6),
    "block_size": (8, 16),
    "mcmc_steps": (2, 4),
    "final_steps": (0, 2),
    "cut": ("uniform", "entropy"),
    "cut_share": (0.5, 0.6),
    "cut_power": (1, 2),
    "particles": (2, 4),
    "ess_threshold": (0.5, 0.6),
    "resample_every": (8, 16),
    "alpha_ramp": (0, 50),
    "sweeps": (1, 2),
    "rungs": (2, 3),
    "max_tries": (10, 20),
    "candidates": (2, 4),
    "rollouts": (2, 4),
    "rollout_length": (8, 16),
    "jackknife": (True, False),
    "explore": (0, 0.1),
    "max_new_tokens": (32, 64),
    "seed": (0, 1),
    "coupled_resume": (True, False),
    "early_rejection": (True, False),
    "prefetch": (True, False),
}
NEEDED = {"cut_share": {"cut": "entropy"}, "cut_power": {"cut": "entropy"}}
COST_ONLY = {"early_rejection", "prefetch"}
STEPS = {"mcmc_steps", "coupled_resume", "early_rejection", "explore"}
OWN = {
    "power": {"alpha", "proposal_temperature", "block_size", "final_steps", "cut", "cut_share", "cut_power", *STEPS},
    "power_inf": {"proposal_temperature", "block_size", "final_steps", *STEPS},
    "smc": {"alpha", "proposal_temperature", "particles", "ess_threshold", "resample_every", "alpha_ramp", "sweeps"},
    "tempering": {"alpha", "rungs", *STEPS},
    "rejection": {"alpha", "proposal_temperature", "max_tries", "early_rejection"},
    "sps": {"alpha", "proposal_temperature", "candidates", "rollouts", "block_size", "rollout_length", "jackknife"},
    "temperature": {"proposal_temperature"},
    "standard": set(),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHANGES)
def test_deciding_options_and_no_others_are_in_the_key(method: str, name: str) -> None:
    """Guards the store's keys: an option missing reuses wrong completions, one too many recomputes right ones.

    What another method has is refused by name, with the methods that have it.
    """
    base = SamplerConfig(method=method)
    if "proposal_temperature" in OWN[method] and name != "proposal_temperature":
        base = base.replace(proposal_temperature=0.5)
    everywhere = {"max_new_tokens", "seed", "prefetch"}
    if name not in OWN[method] | everywhere:
        if name == "alpha" and method in ("power_inf", "temperature"):  # sets the default of another option alone
            assert base.replace(alpha=2).relevant_options() == base.relevant_options()
            return
        other = [value for value in CHANGES[name] if value != getattr(base, name)][-1]
        with pytest.raises(
            OptionError,
            match=rf"(is an option of method=.*method={method} has no|belongs to cut|{method} has no steps)",
        ):
            base.replace(**{name: other}, **NEEDED.get(name, {}))
        return
    one, other = (base.replace(**{name: value}, **NEEDED.get(name, {})).relevant_options() for value in CHANGES[name])
    assert (one != other) is (name not in COST_ONLY)
    assert one["method"] == method
    idle = {"final_steps", "cut", "cut_share", "cut_power", "explore"}  # left out where they do nothing
    assert set(one) - idle == (OWN[method] - COST_ONLY - idle) | {"method", "max_new_tokens", "seed"}
    assert set(other) >= {name} - COST_ONLY


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"rungs": "2/1/4"}, "must rise from >= 1 to alpha=4"),
        ({"rungs": "1/2"}, "must rise from >= 1 to alpha=4"),
        ({"rungs": [0.5, 4]}, "must rise from >= 1"),
        ({"rungs": "1//4"}, "must be a finite number"),
        ({"rungs": 0}, "must be a whole number >= 1"),
        ({"rungs": 3, "alpha": 1}, "nothing to climb"),
        ({"rungs": []}, "must rise"),
        ({"rungs": 4, "sweeps": 2}, "sweeps=2: is an option of method=smc"),
    ],
)
def test_ladders(options: dict[str, object], rule: str) -> None:
    """Guards ladders that do not rise to alpha, in every way of writing one."""
    with pytest.raises(OptionError, match=rule):
        SamplerConfig(method="tempering", **options)


def test_ladders_are_geometric_or_given() -> None:
    """Guards the default ladder, and the same ladder written out in three ways."""
    assert SamplerConfig(method="tempering", rungs=1).ladder() == (4.0,)
    np.testing.assert_allclose(SamplerConfig(method="tempering", alpha=8).ladder(), [1, 2, 4, 8])
    for rungs in ("1/2/4", [1, 2, 4], (1.0, 2.0, 4.0)):
        assert SamplerConfig(method="tempering", rungs=rungs).ladder() == (1, 2, 4)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
@pytest.mark.parametrize("cut", ["entropy", "last_block"])
def test_shares_of_cuts(cut: str, share: float) -> None:
    """Guards against frozen beginnings sold as power sampling: cuts in the last block alone are another law."""
    with pytest.raises(OptionError, match=rf"cut_share={share}: must be in \(0, 1\)"):
        SamplerConfig(cut=cut, cut_share=share)


def test_a_default_and_its_explicit_value_share_a_key() -> None:
    """Guards against completions computed again because 1/alpha was written out."""
    for method in ("power", "power_inf", "rejection", "sps", "temperature"):
        explicit = SamplerConfig(method=method, alpha=4, proposal_temperature=0.25)
        assert explicit.relevant_options() == SamplerConfig(method=method).relevant_options()


def test_every_option_has_a_help_line_and_a_place_here() -> None:
    """Guards against an option added without documentation or without a decision on the store's key."""
    assert {*CHANGES, "method"} == set(option_names())
    assert all(field.metadata["help"] for field in dataclasses.fields(SamplerConfig))
