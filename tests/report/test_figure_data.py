"""What the figures show: bins and curves by hand, their bands by simulation."""

import dataclasses
import itertools

import numpy as np
import pytest
from report_runs import make_run

from lm_power.completion import Steps
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.figure_data import (
    acceptance_by_cut,
    acceptance_by_stage,
    by_correctness,
    majority_curve,
    pass_at_k_curve,
    reliability,
)
from lm_power.report.summary import summarise


def with_answers(*rows):
    """A run whose problem i has the answers `rows[i]`."""
    run = make_run(problems=len(rows), n=len(rows[0]))
    problems = tuple(dataclasses.replace(p, completions=tuple(row)) for p, row in zip(run.problems, rows, strict=True))
    return dataclasses.replace(run, problems=problems)


def stepped(stage, cut, length, accepted):
    return LoggedCompletion("", steps=Steps(stage, cut, length, accepted))


def test_acceptance_by_stage_and_cut_by_hand():
    run = with_answers(
        [stepped((1, 1, 2), (0, 3, 9), (10, 10, 20), (0, 1, 1))],
        [stepped((1, 1, 1), (3, 9, 0), (10, 10, 1), (0, 1, 1))],
    )
    stages = acceptance_by_stage(run)
    assert [(b.low, b.count, b.share.value, b.share.problems) for b in stages] == [(1, 5, 0.6, 2), (2, 1, 1.0, 1)]
    cuts = acceptance_by_cut(run)
    assert [(b.low, b.high, b.count) for b in cuts] == [(0.0, 0.1, 2), (0.3, 0.4, 2), (0.4, 0.5, 1), (0.9, 1.0, 1)]
    assert [b.share.value for b in cuts] == [0.5, 0.5, 1.0, 1.0]


def test_every_step_is_in_one_bin():
    run = make_run(problems=10, n=3)
    steps = sum(len(a.steps.stage) for p in run.problems for a in p.completions)
    assert sum(b.count for b in acceptance_by_stage(run)) == steps
    assert sum(b.count for b in acceptance_by_cut(run)) == steps
    assert acceptance_by_stage(make_run(method="standard")) == acceptance_by_cut(make_run(method="standard")) == []


def test_reliability_has_ten_equal_bins_in_order():
    run = make_run(problems=25, n=8)
    bins = reliability(run)
    assert [b.count for b in bins] == [20] * 10
    assert all(a.high < b.low for a, b in itertools.pairwise(bins))
    accuracy = summarise(run).accuracy.value
    assert sum(b.share.value * b.count for b in bins) / 200 == pytest.approx(accuracy)


def test_reliability_keeps_equal_self_rewards_together():
    """Many completions of one text: which of them fall into which decile would be chance."""
    row = [LoggedCompletion("", correct=float(k % 2), self_reward=-0.1) for k in range(6)]
    other = [LoggedCompletion("", correct=1.0, self_reward=-0.2) for _ in range(6)]
    bins = reliability(with_answers(row, other))
    assert [(b.low, b.high, b.count, b.share.value) for b in bins] == [(-0.2, -0.2, 6, 1.0), (-0.1, -0.1, 6, 0.5)]
    assert reliability(with_answers([LoggedCompletion("", correct=1.0)])) == []


def test_by_correctness_splits_every_completion():
    run = make_run(problems=10, n=4)
    split = by_correctness(run, lambda completion: completion.tokens)
    assert len(split.right) + len(split.wrong) == 40
    assert len(split.right) == sum(a.correct for p in run.problems for a in p.completions)
    assert (
        by_correctness(with_answers([LoggedCompletion("", correct=1.0)]), lambda completion: completion.tokens) is None
    )


@pytest.fixture(scope="module")
def samples():
    """60 runs of 60 problems, each problem drawn anew."""
    whole = make_run(problems=3600, n=4, skill=0.5, method="standard")
    return [dataclasses.replace(whole, problems=whole.problems[start::60]) for start in range(60)]


@pytest.mark.parametrize("curve", [pass_at_k_curve, majority_curve])
def test_bands_are_as_wide_as_the_scatter_of_curves(curve, samples):
    """Half a 95% band is 1.96 times the standard deviation of 60 curves, whose own error is 9%: within 35% here."""
    curves = [curve(run) for run in samples]
    for k in (0, 2):
        half = np.mean([(c.high[k] - c.low[k]) / 2 for c in curves])
        assert half == pytest.approx(1.96 * np.std([c.value[k] for c in curves]), rel=0.35)
        assert all(c.low[k] <= c.value[k] <= c.high[k] for c in curves)


def test_curves_need_several_completions_and_counts():
    assert pass_at_k_curve(make_run(n=1)) is None
    assert majority_curve(make_run(n=1)) is None
    assert majority_curve(make_run(has_answers=False)) is None
    assert pass_at_k_curve(with_answers([LoggedCompletion("", correct=0.5)] * 2)) is None
