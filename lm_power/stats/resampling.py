"""Intervals and paired tests over problems, by resampling with a fixed seed; and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats

LEVEL = 0.95


def bootstrap_interval(values: np.ndarray, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95% bootstrap interval (percentiles) of the mean over problems.

    Args:
        values: float array [problems, ...], two problems or more.
        resamples: number of resamples.

    Returns:
        The lower and the upper end, each in the shape of `values[0]`.
    """
    interval = scipy.stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=resamples, batch=100, confidence_level=LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return interval.low, interval.high


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the problems on which the two of a pair differ.

    >>> mcnemar(5, 0), mcnemar(0, 0)
    (0.0625, 1.0)
    """
    return float(scipy.stats.binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0


def sign_flips(difference: np.ndarray, resamples: int) -> float:
    """Two-sided p-value of the paired permutation test, which swaps the two of a pair problem by problem.

    Args:
        difference: difference between the two scores, float array [problems]. If all are 0, p is 1.
        resamples: number of random swaps; if there are no more ways to swap than that, all of them are used.
    """
    if not difference.any():
        return 1.0
    result = scipy.stats.permutation_test(
        (difference, np.zeros_like(difference)), lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=resamples, batch=1000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


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
