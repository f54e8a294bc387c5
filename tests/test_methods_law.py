"""The methods beyond Metropolis-Hastings through the whole stack: laws, independence of rows and order, lost memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.test_out_of_memory import Failures, failing
from models import make_model
from test_law import EOS_IDS, FALSE_ALARM, FLAT_SEED, LONGEST, completions_of, enumerable, p_value, tiny_model
from toy import ancestral_law, law_of_schedule, power_law

import lm_power.host
from lm_power import PowerSampler
from lm_power.chains import make_algorithm
from lm_power.config import SamplerConfig

ALPHA = 2.0
EXACT = {
    "rejection": {"method": "rejection", "max_tries": 100_000},
    "smc with sweeps": {"method": "smc", "particles": 3, "resample_every": 2, "sweeps": 12, "ess_threshold": 0.9},
    "smc with a ramp": {"method": "smc", "particles": 12, "resample_every": 1, "alpha_ramp": 3, "sweeps": 5},
    "tempering": {"method": "tempering", "rungs": 3, "mcmc_steps": 12},
    "cuts by entropy": {"cut": "entropy", "mcmc_steps": 25, "block_size": LONGEST},
    "cuts in the last block": {
        "cut": "last_block",
        "cut_share": 0.3,
        "mcmc_steps": 4,
        "block_size": 2,
        "final_steps": 70,
    },
    "blocks and final steps": {"mcmc_steps": 2, "block_size": 2, "final_steps": 60},
}


EVERY_DAY = ("rejection", "smc with sweeps", "tempering", "cuts by entropy", "cuts in the last block")


@pytest.mark.parametrize("name", ["cuts by entropy", "cuts in the last block", "blocks and final steps"])
def test_the_chains_have_converged(name) -> None:
    """Guards against comparing a chain with a law that is not yet p^alpha: what bias is left after its steps?

    Exact: by how much the bias raises the chi-square statistic of 20,000 chains, whose standard deviation is about 10.
    A third of the final steps leaves a bias that the test would take for a fault.
    """
    toy = enumerable(tiny_model(5, FLAT_SEED), EOS_IDS)
    chain = make_algorithm(SamplerConfig(max_new_tokens=LONGEST, alpha=ALPHA, **EXACT[name]))
    completions, law = law_of_schedule(toy, chain)
    target = power_law(toy, completions, ALPHA)
    assert 20_000 * ((law - target) ** 2 / target).sum() < 2
    if chain.final_steps:
        _, early = law_of_schedule(toy, dataclasses.replace(chain, final_steps=chain.final_steps // 3))
        assert 20_000 * ((early - target) ** 2 / target).sum() > 60


@pytest.mark.parametrize(
    ("options", "chains"),
    [
        *(pytest.param(EXACT[name], 20_000, id=f"{name}, 20,000", marks=pytest.mark.slow) for name in EXACT),
        *(pytest.param(EXACT[name], 300, id=name) for name in EVERY_DAY),
    ],
)
def test_the_law_through_the_whole_stack(options, chains) -> None:
    """Guards lanes, copies, measures and schedules as they run: chi-square against p^alpha.

    False-alarm probability 1e-4; the same test tells the law from token-wise temperature, where 20,000 are drawn.
    """
    model = tiny_model(5, FLAT_SEED)
    toy = enumerable(model, EOS_IDS)
    completions = list(toy.completions(LONGEST))
    drawn = completions_of(model, EOS_IDS, chains, alpha=ALPHA, **options)
    assert p_value(drawn, completions, power_law(toy, completions, ALPHA)) > FALSE_ALARM
    if chains == 20_000:
        assert p_value(drawn, completions, ancestral_law(toy, completions, ALPHA)) < 1e-6


@pytest.mark.slow
def test_the_papers_blocks_alone_are_another_law() -> None:
    """Guards what the README says of blocks: without final steps many steps do not help. By chi-square."""
    model = tiny_model(5, FLAT_SEED)
    toy = enumerable(model, EOS_IDS)
    completions = list(toy.completions(LONGEST))
    drawn = completions_of(model, EOS_IDS, 2500, alpha=1.5, mcmc_steps=15, block_size=1)
    assert p_value(drawn, completions, power_law(toy, completions, 1.5)) < 1e-9


PROMPTS = [[5, 6, 7], [9, 8], [4] * 9]
METHODS = {
    "smc": {"method": "smc", "particles": 4, "resample_every": 3, "ess_threshold": 0.9, "sweeps": 2},
    "tempering": {"method": "tempering", "rungs": 3, "mcmc_steps": 3},
    "rejection": {"method": "rejection", "max_tries": 100_000, "alpha": 1.05},
    "sps": {"method": "sps", "candidates": 3, "rollouts": 2, "block_size": 4, "rollout_length": 3},
    "power": {"cut": "entropy", "block_size": 5, "mcmc_steps": 3, "final_steps": 2},
}
each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())


@pytest.fixture(scope="module")
def sampler() -> PowerSampler:
    """In float64, where another batch shape changes no draw."""
    return PowerSampler(make_model("qwen2", dtype=torch.float64), None, eos_token_ids=range(12))


def outcome(sampler: PowerSampler, prompts=PROMPTS, **options):
    out = sampler.generate(prompts, n=3, max_new_tokens=15, seed=2, **options)
    return [[(c.token_ids, c.finish_reason, c.steps, c.stats.diagnostics) for c in cs] for cs in out]


@each_method
def test_completions_do_not_depend_on_rows_or_order(sampler, options) -> None:
    """Guards lanes that take turns, rows given up and loaded again, and random numbers tied to rows. Exact.

    With fewer rows than lanes a job takes turns; the completions are the same.
    """
    sampler.max_rows = 64
    expected = outcome(sampler, **options)
    for rows, prompts in [(1, PROMPTS), (2, PROMPTS), (7, PROMPTS[::-1])]:
        sampler.max_rows = rows
        got = outcome(sampler, prompts, **options)
        for these, those in zip(got if prompts is PROMPTS else got[::-1], expected, strict=True):
            for ours, theirs in zip(these, those, strict=True):
                assert ours[:3] == theirs[:3]
                assert ours[3] == pytest.approx(theirs[3], abs=1e-6)


@each_method
def test_the_same_completions_when_memory_runs_out(sampler, options, monkeypatch) -> None:
    """Guards a job of several lanes that is resumed from anything but what it had settled. Exact."""
    sampler.max_rows, sampler._fitted = 8, None
    expected = outcome(sampler, **options)
    monkeypatch.setattr(lm_power.host, "Engine", failing(Failures({"step": {4, 40}, "submit": {9}})))
    got = outcome(sampler, **options)
    sampler._fitted = None
    assert [[c[:3] for c in cs] for cs in got] == [[c[:3] for c in cs] for cs in expected]


def test_particles_report_z_and_the_ladder_agrees() -> None:
    """Guards `log_z`: by particles and by the ladder's means it is the enumerated log Z_alpha, within errors.

    Five standard errors over 200 completions for the particles; the ladder of eight rungs to 3 %.
    """
    model = tiny_model(5, FLAT_SEED)
    toy = enumerable(model, EOS_IDS)
    completions = list(toy.completions(LONGEST))
    log_p = torch.tensor([sum(toy.log_probs(x[:t], 1.0)[0][x[t]] for t in range(len(x))) for x in completions])
    z = float((ALPHA * log_p).exp().sum())
    drawn = completions_of(model, EOS_IDS, 200, alpha=ALPHA, method="smc", particles=4, resample_every=2)
    estimates = torch.tensor([c.stats.diagnostics["log_z"] for c in drawn], dtype=torch.float64).exp()
    assert abs(float(estimates.mean()) - z) < 5 * float(estimates.std()) / len(drawn) ** 0.5
    ladder = completions_of(model, EOS_IDS, 60, alpha=ALPHA, method="tempering", rungs=8, mcmc_steps=30)
    means = torch.tensor([c.stats.diagnostics["log_z"] for c in ladder], dtype=torch.float64)
    assert float(means.mean()) == pytest.approx(torch.tensor(z).log().item(), rel=0.03)
    assert all(len(c.companions) == 7 for c in ladder)


def test_one_particle_equals_temperature_and_one_rung_power() -> None:
    """Guards the streams through the stack: token for token, in float64."""
    sampler = PowerSampler(make_model("qwen2", dtype=torch.float64), None, eos_token_ids=range(12))
    plain = outcome(sampler, method="temperature", alpha=2)
    single = outcome(sampler, method="smc", alpha=2, particles=1, resample_every=4)
    assert [[c[0] for c in cs] for cs in single] == [[c[0] for c in cs] for cs in plain]
    chain = outcome(sampler, method="power", alpha=2, mcmc_steps=4, block_size=15)
    rung = outcome(sampler, method="tempering", alpha=2, mcmc_steps=4, rungs=1)
    assert [[c[0] for c in cs] for cs in rung] == [[c[0] for c in cs] for cs in chain]
