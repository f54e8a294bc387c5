"""Paired tests between the runs of a comparison: is the difference in accuracy more than chance?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from lm_power.report.runs import Comparison, Run
from lm_power.report.statistics import LEVEL
from lm_power.report.summary import accuracies, bon_accuracies

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
    """Tests of all pairs of runs that have a measure, measure by measure; none for fewer than two problems."""
    tests = []
    for measure, scores in MEASURES.items():
        known = [(run.label, np.array(values)) for run in comparison.runs if (values := scores(run)) is not None]
        family = [_test(measure, *pair) for pair in itertools.combinations(known, 2)] if comparison.size > 1 else []
        corrected = holm([test.p_value for test in family])
        tests += [dataclasses.replace(test, p_holm=p) for test, p in zip(family, corrected, strict=True)]
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: `p_(i) → max_{j≤i} min(1, (m-j+1) p_(j))`, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _test(measure: str, first: tuple[str, np.ndarray], second: tuple[str, np.ndarray]) -> PairedTest:
    """The test of one pair, before correction.

    Where every problem's score is 1 or 0 (always so for N = 1), McNemar's exact test, whose null hypothesis is that
    either run is equally likely to be the better one on a problem where they differ. Otherwise its generalisation, the
    permutation test that swaps the two runs' scores problem by problem. If no problem differs, p is 1.
    """
    difference = second[1] - first[1]
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
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
        **_interval(difference),
        p_value=_p_value(difference, better, worse, binary),
        p_holm=1.0,
    )


def _p_value(difference: np.ndarray, better: int, worse: int, binary: bool) -> float:
    if better + worse == 0:
        return 1.0
    if binary:
        return float(scipy.stats.binomtest(better, better + worse, 0.5).pvalue)
    result = scipy.stats.permutation_test(
        (difference, np.zeros_like(difference)), lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def _interval(difference: np.ndarray) -> dict[str, float]:
    interval = scipy.stats.bootstrap(
        (difference,), np.mean, axis=0, n_resamples=RESAMPLES, batch=1000, confidence_level=LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return {"low": float(interval.low), "high": float(interval.high)}
