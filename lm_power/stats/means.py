"""Means, covariances and shares, with standard errors over problems."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean or ratio over problems.

    Attributes:
        value: the estimate.
        error: its standard error over problems; None for a single problem.
        problems: the number of problems.
    """

    value: float
    error: float | None
    problems: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, with a correctly rounded sum.

    >>> mean([1.0, 0.0])
    0.5
    """
    return math.fsum(values) / len(values)


def covariance(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Unbiased sample covariance `1/(n-1) Σ (x - x̄)(y - ȳ)`, n >= 2.

    >>> covariance([1.0, 0.0], [-0.1, -0.5])
    0.2
    """
    x_mean, y_mean = mean(xs), mean(ys)
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / (len(xs) - 1)


def estimate(values: Sequence[float] | None) -> Estimate | None:
    """The mean over problems and its standard error `s / sqrt(m)`; None for None or no problems.

    >>> estimate([1.0, 0.0, 1.0, 0.0])
    Estimate(value=0.5, error=0.28867513459481287, problems=4)
    """
    if not values:
        return None
    error = math.sqrt(covariance(values, values) / len(values)) if len(values) > 1 else None
    return Estimate(mean(values), error, len(values))


def share(values: np.ndarray, owner: np.ndarray) -> Estimate:
    """`r = Σ values / count`, and the ratio estimator's standard error over problems (Cochran 1977, section 6.3).

    With v_j the sum and c_j the count of problem j of m, it is `sqrt(m / (m-1) Σ_j (v_j - r c_j)²) / Σ_j c_j`. If all
    problems have the same number of values, it is `s / sqrt(m)` of the problems' means.

    Args:
        values: float array [values].
        owner: index of the problem that each belongs to, int array [values].
    """
    _, group = np.unique(owner, return_inverse=True)
    counts = np.bincount(group)
    ratio = float(values.mean())
    m = len(counts)
    residuals = np.bincount(group, weights=values) - ratio * counts
    error = math.sqrt(m / (m - 1) * float(residuals @ residuals)) / len(values) if m > 1 else None
    return Estimate(ratio, error, m)
