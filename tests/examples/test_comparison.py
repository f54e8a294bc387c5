"""examples/comparison, run as a user runs it, on a few problems; and what it computes, on made-up completions."""

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lm_power.chains.tempering import thermodynamic_log_z
from lm_power.completion import Completion, Stats

FOLDER = Path(__file__).parents[2] / "examples" / "comparison"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_comparison_resumes_from_its_stores(monkeypatch, tmp_path, capsys):
    """Guards a table of every setting with its figure, and a second start that draws nothing and says the same."""
    compare = load("compare", monkeypatch)
    monkeypatch.setattr(compare, "LINES", {"smc": {"2 particles": {**compare.SMC, "particles": 2}}})
    arguments = ["compare.py", "--output", str(tmp_path), "--problems", "3", "--repeats", "2", "--draws", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    compare.main()
    table = (tmp_path / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| one draw from p", "| one draw from temperature 1/4",
        *["| majority vote of p"] * 2, *["| majority vote of temperature 1/4"] * 2,
        *["| best of p"] * 2, *["| best of temperature 1/4"] * 2, "| smc",
    ]  # fmt: skip
    assert (tmp_path / "figure.svg").stat().st_size > 1000 and (tmp_path / "figure.png").exists()
    lines = sum(1 for file in tmp_path.glob("stores/*/*.jsonl") for _ in file.open())
    assert lines == 3 * (2 + 4 + 4)

    def nothing(*arguments):
        raise AssertionError("drawn again")

    monkeypatch.setattr(compare.CompletionStore, "add", nothing)
    compare.main()
    assert (tmp_path / "table.md").read_text() == table


def test_votes_and_best_of_n_are_over_disjoint_groups(monkeypatch):
    """Guards equal cost: N completions make one answer, and what they cost is N times one. By hand."""
    compare = load("compare", monkeypatch)

    def completion(answer, reward):
        stats = Stats(tokens_decoded=9, tokens_dropped=1)
        return Completion(f" so {answer}", token_ids=[1], log_probs=[reward], stats=stats)

    rows = [
        [completion(a, r) for a, r in [("4", -1.0), ("5", -0.1), ("4", -0.2), ("4", -0.3)]],
        [completion(a, r) for a, r in [("5", -1.0), ("5", -0.5), ("6", -0.2), ("4", -0.1)]],
    ]

    @dataclasses.dataclass
    class Drawn:
        problems = ({"answer": "4"}, {"answer": "4"})

        def draw(self, options, draws):
            return rows, np.array([8.0, 4.0])

    points = {(p.line, p.setting): p for p in compare.group_points(Drawn(), "p", {}, 4)}
    one, two, four = (points[key] for key in [
        ("one draw from p", ""), ("majority vote of p", "2 votes"), ("majority vote of p", "4 votes"),
    ])  # fmt: skip
    assert one.accuracy == pytest.approx((0.5, 0.25)) and one.tokens == 10 and one.seconds.tolist() == [2, 1]
    assert two.accuracy[0] == pytest.approx(((0.5 + 1) / 2 + (0 + 0.5) / 2) / 2) and two.tokens == 20
    assert four.accuracy[0] == 0.5 and four.seconds.tolist() == [8, 4] and four.self_reward is None
    best = points["best of p", "2, by self-reward"]
    assert best.accuracy[0] == pytest.approx(((0 + 1) / 2 + (0 + 1) / 2) / 2)
    assert best.self_reward[0] == pytest.approx(((-0.1 - 0.2) / 2 + (-0.5 - 0.1) / 2) / 2)


def test_the_estimates_of_log_z_and_of_the_slope(monkeypatch):
    """Guards the formulas, on completions whose log p follows a known law: E_{π_a}[log p] = −c/a has log Z = −c·log 4.

    Covariances are per rung and problem, integrated in log a.
    """
    module = load("log_z", monkeypatch)
    c = 2.0
    log_p = np.tile(-c / module.EXPONENTS, (3, 2, 1))
    assert module.integrals(log_p) == pytest.approx(np.full((3, 2), -c * math.log(4)))
    assert module.integrals(log_p, every=2) == pytest.approx(np.full((3, 2), -c * math.log(4)))
    correct = np.zeros((1, 2, 9))
    correct[:, 0] = 1
    apart = np.stack([1 / module.EXPONENTS, -1 / module.EXPONENTS])[None]
    rise, area = module.slopes(correct, apart)  # each covariance is 1/a: its integral is log 4
    assert (rise.item(), area.item()) == (0, pytest.approx(math.log(4)))
    sweeps = [[Completion("", stats=Stats(diagnostics={"log_z": math.log(z)})) for z in (1.0, 3.0)]]
    assert module.smc_log_z(sweeps) == pytest.approx([math.log(2)])
    assert thermodynamic_log_z(tuple(module.EXPONENTS), list(log_p[0, 0])) == pytest.approx(-c * math.log(4))


@pytest.mark.slow
def test_log_z_three_ways_from_end_to_end(monkeypatch, tmp_path, capsys):
    """Guards the script: a small run prints every estimate; particles and rejection agree to a nat and a half."""
    module = load("log_z", monkeypatch)
    ladder = {"method": "tempering", "rungs": 9, "mcmc_steps": 4}
    monkeypatch.setattr(module, "LADDER", ladder)
    arguments = ["log_z.py", "--output", str(tmp_path), "--problems", "3", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    printed = capsys.readouterr().out
    found = {words[2]: words[3] for line in printed.splitlines() if len(words := line.split()) > 3}
    particles, rejection = float(found["particles"]), float(found["rejection"])
    assert abs(particles - rejection) < 1.5
    assert "integral of the covariance" in printed and (tmp_path / "log_z.svg").exists()
