"""Paired tests: by hand, by brute force, and their false alarms."""

import dataclasses
import itertools

import numpy as np
import pytest
from report_runs import make_comparison, make_run

from lm_power.logs.samples import LoggedCompletion
from lm_power.report.paired import MCNEMAR, PERMUTATION, paired_tests
from lm_power.report.runs import Comparison
from lm_power.stats.resampling import holm


def compare(*scores):
    """A comparison of runs; `scores[run][problem]` is a tuple of verdicts."""
    runs = []
    for number, rows in enumerate(scores):
        run = make_run(f"run {number}", problems=len(rows), n=len(rows[0]))
        problems = tuple(
            dataclasses.replace(p, completions=tuple(LoggedCompletion("", correct=float(v)) for v in row))
            for p, row in zip(run.problems, rows, strict=True)
        )
        runs.append(dataclasses.replace(run, problems=problems))
    return Comparison("task", "none", tuple(runs))


def test_one_completion_per_problem_is_mcnemars():
    """9 problems won, 1 lost, 5 equal: the two-sided binomial of 1 in 10 is 2 (1 + 10) / 1024."""
    first = [(0,)] * 9 + [(1,)] + [(1,)] * 5
    second = [(1,)] * 9 + [(0,)] + [(1,)] * 5
    (test,) = paired_tests(compare(first, second))
    assert test.test == MCNEMAR
    assert (test.problems, test.first_better, test.second_better) == (15, 1, 9)
    assert test.difference == pytest.approx(8 / 15)
    assert test.p_value == test.p_holm == pytest.approx(22 / 1024)
    assert test.low <= test.difference <= test.high


def test_several_completions_are_a_permutation_test():
    """Eight problems: all 256 exchanges by brute force."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (8, 3)), rng.integers(0, 2, (8, 3))
    (test,) = paired_tests(compare(first.tolist(), second.tolist()))
    assert test.test == PERMUTATION
    difference = second.mean(axis=1) - first.mean(axis=1)
    means = np.array([np.dot(signs, difference) / 8 for signs in itertools.product((-1, 1), repeat=8)])
    tail = min((means >= difference.mean() - 1e-12).mean(), (means <= difference.mean() + 1e-12).mean())
    assert test.p_value == pytest.approx(min(1.0, 2 * tail))


def test_equal_runs_do_not_differ():
    (test,) = paired_tests(compare([(1, 0)] * 4, [(0, 1)] * 4))
    assert (test.difference, test.low, test.high, test.p_value) == (0, 0, 0, 1)


def test_every_pair_of_every_measure_that_is_known():
    tests = paired_tests(make_comparison())
    assert [(t.measure, t.first, t.second) for t in tests] == [
        (measure, *pair)
        for measure in ("accuracy, all completions", "accuracy, best of N")
        for pair in itertools.combinations([run.label for run in make_comparison().runs], 2)
    ]
    # without self-reward there is no best of N; one problem alone tests nothing
    assert {t.measure for t in paired_tests(compare([(1, 0)] * 3, [(0, 0)] * 3))} == {"accuracy, all completions"}
    assert paired_tests(compare([(1, 0)], [(0, 0)])) == []


def test_the_corrected_p_is_of_the_family_of_one_measure():
    tests = [t for t in paired_tests(make_comparison()) if t.measure.endswith("best of N")]
    assert [t.p_holm for t in tests] == holm([t.p_value for t in tests])


@pytest.mark.parametrize("n", [1, 3])
def test_false_alarms_are_as_rare_as_promised(n):
    """60 pairs of equal samplers: p < 0.05 in at most 5% of them; in 11 or more with probability 2e-4."""
    rng = np.random.default_rng(n)
    alarms = 0
    for _ in range(60):
        chances = rng.random((25, 1))
        first, second = (rng.random((25, n)) < chances).tolist(), (rng.random((25, n)) < chances).tolist()
        (test,) = paired_tests(compare(first, second))
        alarms += test.p_value < 0.05
    assert alarms <= 10
