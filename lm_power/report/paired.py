"""Paired tests between the runs of a comparison: is the difference in accuracy more than chance?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from lm_power.report.runs import Comparison, Run
from lm_power.report.summary import accuracies, bon_accuracies
from lm_power.stats.resampling import bootstrap_interval, holm, mcnemar, sign_flips

RESAMPLES = 9999
MCNEMAR = "McNemar's exact test"
PERMUTATION = f"paired permutation test, {RESAMPLES:,} resamples"

MEASURES: dict[str, Callable[[Run], list[float] | None]] = {
    "accuracy, all completions": accuracies,
    "accuracy, best of N": bon_accuracies,
}


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Two runs' accuracies on the same problems.

    Attributes:
        measure: a key of `MEASURES`.
        first: label of a run.
        second: label of another.
        test: the test's name.
        problems: how many.
        first_better: problems on which the first scores higher.
        second_better: problems on which the second does.
        difference: mean score of the second minus that of the first.
        low: lower end of the difference's 95% interval (bootstrap over problems, percentiles).
        high: upper end.
        p_value: two-sided.
        p_holm: the same after Holm's correction for all pairs of the comparison and measure.
    """

    measure: str
    first: str
    second: str
    test: str
    problems: int
    first_better: int
    second_better: int
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


def paired_tests(comparison: Comparison) -> list[PairedTest]:
    """All pairs of runs that know a measure, measure by measure; fewer than two problems test nothing."""
    tests = []
    for measure, scores in MEASURES.items():
        known = [(run.label, np.array(values)) for run in comparison.runs if (values := scores(run)) is not None]
        family = [_test(measure, *pair) for pair in itertools.combinations(known, 2)] if comparison.size > 1 else []
        corrected = holm([test.p_value for test in family])
        tests += [dataclasses.replace(test, p_holm=p) for test, p in zip(family, corrected, strict=True)]
    return tests


def _test(measure: str, first: tuple[str, np.ndarray], second: tuple[str, np.ndarray]) -> PairedTest:
    """The test of one pair, before correction.

    Where every problem's score is 1 or 0 (always so for N = 1), McNemar's exact test: of the problems on which the
    two differ, each is as likely to be better. Else its generalisation, the permutation test that swaps the two runs'
    scores problem by problem. If no problem differs, p is 1.
    """
    difference = second[1] - first[1]
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = bootstrap_interval(difference, RESAMPLES)
    binary = all(np.isin(scores, (0.0, 1.0)).all() for _, scores in (first, second))
    return PairedTest(
        measure=measure,
        first=first[0],
        second=second[0],
        test=MCNEMAR if binary else PERMUTATION,
        problems=len(difference),
        first_better=worse,
        second_better=better,
        difference=float(difference.mean()),
        low=float(low),
        high=float(high),
        p_value=mcnemar(better, worse) if binary else sign_flips(difference, RESAMPLES),
        p_holm=1.0,
    )
