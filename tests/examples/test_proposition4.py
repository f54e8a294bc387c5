"""Proposition 4 from samples: the estimator against exact laws of finite sets, and the script on the pocket model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.stats
from finite_laws import Law, random_laws

from lm_power import PowerSampler, theory
from lm_power.stats.means import Estimate

POCKET = Path(__file__).parents[2] / "examples" / "pocket"
FALSE_ALARM = 1e-4
ALPHAS = (1.0, 1.25, 1.5)


@pytest.fixture
def proposition4(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(POCKET)
    return importlib.import_module("proposition4")


def sigmas(estimate: Estimate, truth: float) -> float:
    return abs(estimate.value - truth) / estimate.error


def draw_rewards(laws: list[Law], n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """For each alpha correctness, log p and self-reward [prompts, n]."""
    rng = np.random.default_rng(seed)
    columns = []
    for alpha in ALPHAS:
        places = [law.sample(rng, alpha, n) for law in laws]
        pairs = zip(laws, places, strict=True)
        rows = [(law.correct[at], law.log_p[at], law.log_p[at] / law.length[at]) for law, at in pairs]
        columns.append([np.array(column) for column in zip(*rows, strict=True)])
    correct, log_p, self_reward = (list(column) for column in zip(*columns, strict=True))
    return correct, log_p, self_reward


def test_both_sides_of_proposition_4_agree_with_the_exact_slope(proposition4) -> None:
    """Sampled slope, sampled covariance, their difference: each within its error; false alarm below 3e-4.

    The exact mean slope is that of `lm_power.theory`, whose own identity its tests check to 1e-12.
    """
    laws = random_laws(25)
    correct, log_p, _ = draw_rewards(laws, 64, 26)
    found = proposition4.slope_and_covariance(ALPHAS, correct, log_p)
    ends = [[theory.expectation(theory.power_law(law.log_p, a), law.correct) for law in laws] for a in (1.0, 1.5)]
    exact = np.mean(np.diff(ends, axis=0)) / 0.5
    assert sigmas(found.slope, exact) < 4
    assert sigmas(found.covariance, exact) < 4
    assert sigmas(found.difference, 0) < 4
    assert found.p_value > FALSE_ALARM
    assert sigmas(found.slope, 0) > 5  # there is something to agree on


def test_simpson_leaves_next_to_nothing() -> None:
    """With exact expectations in place of draws, Simpson's rule over the three alphas is off by less than 1e-3."""
    for law in random_laws(27):
        covariances = [theory.reward_slope(law.log_p, a, law.correct) for a in ALPHAS]
        a, b = (theory.expectation(theory.power_law(law.log_p, alpha), law.correct) for alpha in (1.0, 1.5))
        assert (covariances[0] + 4 * covariances[1] + covariances[2]) / 6 == pytest.approx((b - a) / 0.5, abs=1e-3)


def test_wrong_covariances_are_noticed(proposition4) -> None:
    """Log p a token in place of log p; covariance over all completions in place of within prompts."""
    laws = random_laws(28)
    correct, log_p, self_reward = draw_rewards(laws, 256, 29)
    assert proposition4.slope_and_covariance(ALPHAS, correct, self_reward).p_value < FALSE_ALARM
    # Half the prompts in a row, as if they were one: their covariance has the differences between prompts in it.
    halves = [[rows.reshape(2, -1) for rows in columns] for columns in (correct, log_p)]
    right = proposition4.slope_and_covariance(ALPHAS, correct, log_p)
    wrong = proposition4.slope_and_covariance(ALPHAS, *halves)
    assert wrong.slope.value == pytest.approx(right.slope.value)
    assert sigmas(right.covariance, wrong.covariance.value) > 5


def test_errors_of_both_sides_are_their_spread(proposition4) -> None:
    """Over 200 repetitions the spread is the stated error within 20%: 4 sigma of a spread's own error (5%), 1e-4."""
    laws = random_laws(30, prompts=20)
    rewards = [draw_rewards(laws, 32, seed)[:2] for seed in range(200)]
    found = [proposition4.slope_and_covariance(ALPHAS, *pair) for pair in rewards]
    for name in ("slope", "covariance", "difference"):
        spread = np.std([getattr(f, name).value for f in found], ddof=1)
        stated = np.sqrt(np.mean([getattr(f, name).error ** 2 for f in found]))
        assert spread == pytest.approx(stated, rel=0.2), name


@pytest.mark.parametrize("alphas", [(1.0, 2.0), (1.0, 1.1, 1.5), (2.0, 1.5, 1.0), (1.0, 1.1, 1.2, 1.3)])
def test_slope_refuses_alphas_that_simpson_cannot_take(proposition4, alphas: tuple[float, ...]) -> None:
    rows = [np.zeros((3, 4))] * len(alphas)
    with pytest.raises(ValueError, match="alphas"):
        proposition4.slope_and_covariance(alphas, rows, rows)


def test_slope_refuses_shapes_that_do_not_match(proposition4) -> None:
    rows = [np.zeros((3, 4))] * 3
    with pytest.raises(ValueError, match="shapes"):
        proposition4.slope_and_covariance(ALPHAS, rows, [np.zeros((3, 5))] * 3)
    with pytest.raises(ValueError, match="shapes"):
        proposition4.slope_and_covariance(ALPHAS, [np.zeros((3, 1))] * 3, [np.zeros((3, 1))] * 3)


def test_the_example_runs(proposition4, monkeypatch, capsys) -> None:
    """Its machinery, on three problems and chains far too short for its numbers to mean anything."""
    monkeypatch.setattr(sys, "argv", ["proposition4.py", "--n", "4", "--mcmc-steps", "2", "--problems", "3"])
    proposition4.main()
    shown = capsys.readouterr().out
    assert "3 problems of 4 terms, n = 4, 2 steps" in shown
    assert all(f"\n| {alpha:g} | " in shown for alpha in proposition4.ALPHAS)
    assert all(f"\n  {name}" in shown for name in ("slope", "covariance", "difference"))


@pytest.mark.slow
def test_accuracy_rises_with_alpha_as_it_covaries_with_log_p(proposition4) -> None:
    """Proposition 4 from samples: finite-difference slope of accuracy = covariance of correctness and log p.

    The chains must have converged for that: their accuracies are those of reweighted plain draws. A t-test over 37
    problems each; false alarm 3e-4 in all. About three minutes of one core.
    """
    problems = [p for p in proposition4.held_out_problems() if len(p.digits) == proposition4.TERMS]
    sampler = PowerSampler.from_pretrained(str(proposition4.MODEL), device="cpu", dtype="float32", max_rows=256)
    plain = proposition4.draw(sampler, problems, 1.0, n=256, mcmc_steps=0, seed=1)
    draws = [proposition4.draw(sampler, problems, a, n=16, mcmc_steps=200, seed=0) for a in proposition4.ALPHAS]
    for alpha, drawn in list(zip(proposition4.ALPHAS, draws, strict=True))[1:]:
        off = drawn.correct.mean(axis=1) - proposition4.reweighted_accuracy(plain, alpha)
        assert scipy.stats.ttest_1samp(off, 0).pvalue > FALSE_ALARM, alpha
    found = proposition4.measure(draws)
    assert found.p_value > FALSE_ALARM
    # There is a slope, and both sides are known well enough for the agreement to say something.
    assert found.slope.value > 8 * found.slope.error
    assert found.covariance.value > 8 * found.covariance.error
    assert found.difference.error < 0.12
