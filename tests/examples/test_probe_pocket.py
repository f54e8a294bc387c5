"""Proposition 4, the covariance probe and the forecast on the pocket model, by the commands of examples/pocket."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import scipy.stats

from lm_power import PowerSampler

POCKET = Path(__file__).parents[2] / "examples" / "pocket"
FALSE_ALARM = 1e-4


@pytest.fixture
def proposition4(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(POCKET)
    return importlib.import_module("proposition4")


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


@pytest.mark.slow
def test_the_script_forecasts_the_pocket_model(tmp_path) -> None:
    """Five evaluations and the forecast by stock commands; exact samples of p^2 agree with it (4 sigma, 1e-4)."""
    subprocess.run(["bash", POCKET / "forecast.sh", tmp_path / "runs", "--limit", "30"], check=True, timeout=1200)
    (found,) = json.loads((tmp_path / "runs/forecast/forecast.json").read_text(encoding="utf-8"))["forecasts"]
    assert found["answer"]["outcome"] == "helps"
    (exact,) = [row for row in found["measured"] if "rejection, alpha=2" in row["sampling"]]
    (point,) = [point for point in found["points"] if point["alpha"] == 2]
    # Where all 120 completions are right the standard error is 0, but they cannot tell half a completion from none.
    error = exact["difference"]["stderr"] + 0.5 / 120
    assert point["resolved"] and abs(exact["difference"]["value"]) < 4 * error


@pytest.mark.slow
def test_the_script_probes_the_pocket_model(tmp_path) -> None:
    """Seven evaluations and the probe by stock commands: power raises self-reward, a high temperature lowers it."""
    subprocess.run(["bash", POCKET / "probe.sh", tmp_path / "runs", "--limit", "12"], check=True, timeout=1200)
    with (tmp_path / "runs" / "probe" / "lines.csv").open(newline="") as file:
        lines = {line["sampling"].partition(",")[0]: line for line in csv.DictReader(file)}
    assert float(lines["power"]["slope"]) > 4 * float(lines["power"]["slope_stderr"])
    with (tmp_path / "runs" / "probe" / "temperature.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["temperature"]) for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert float(rows[-1]["self_reward"]) < float(rows[3]["self_reward"]) < float(rows[0]["self_reward"])
