"""Accuracy under p^alpha from plain completions: self-normalised importance sampling, problem by problem.

Of N completions of one problem, drawn from p, with log-probabilities l_j and verdicts r_j,

    Â(α) = Σ_j w_j r_j / Σ_j w_j,    w_j = exp((α − 1)·l_j),

tends to E[r] under π ∝ p^α as N grows (Owen 2013, chapter 9). What it is worth at a finite N:

* **Effective sample size** `(Σ w)² / Σ w²` (Kong 1992), from 1 to N: by how many draws from π itself it is as good.
* **Bias.** The mean of Â is exactly the accuracy of choosing one of N plain completions with probability ∝ w. That is
  plain sampling for N = 1, and π as N → ∞. The bias is of the order of 1 over the effective sample size. The
  jackknife (Efron 1982) estimates it, and it is shown, not subtracted.
* **Variance**, given the problem, by the same jackknife; at α = 1 it is s²/N. Estimates of different problems are
  independent, so their standard error over problems covers both how problems differ and the noise of the draws.
* **What no draw shows.** A completion that was never drawn has no weight. If the likeliest ones are missing from most
  problems, effective sample sizes look better than they are, and the forecast stays near plain sampling.

**The rule**: an alpha is *resolved* if the effective sample size is at least `MIN_EFFECTIVE` in a share of at least
`MIN_SHARE` of the problems. Where it is not, the forecast is too uncertain to be used, and is marked. Asking every
problem, and not their mean, also finds completions that hold most of π and are drawn rarely: where one was drawn, the
effective sample size of that problem is about 1.

The derivative of Â at α = 1 is the covariance of verdict and log p among the N completions (with 1/N), which is how
Proposition 4 of Tomihari & Sato (2026) looks in a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lm_power.decoding import FloatArray
from lm_power.stats.means import Estimate, covariance, estimate

ALPHAS = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
MIN_EFFECTIVE = 5.0
MIN_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Reweighted:
    """Estimates of one problem; float64 arrays [alphas].

    Attributes:
        mean: Â(α).
        bias: its bias, by the jackknife.
        variance: its variance given the problem, by the jackknife.
        effective: effective sample size, from 1 to N.
    """

    mean: FloatArray
    bias: FloatArray
    variance: FloatArray
    effective: FloatArray


def reweight(rewards: ArrayLike, log_probs: ArrayLike, alphas: ArrayLike) -> Reweighted:
    """Estimate E[r] under p^alpha from draws of p.

    Args:
        rewards: r of each completion, [N], N >= 2.
        log_probs: log p(x | prompt) of each whole completion, [N] nats, finite.
        alphas: [alphas], each > 0.

    Raises:
        ValueError: shapes differ, fewer than two completions, or a log-probability is not finite.

    >>> found = reweight([1, 0, 0], np.log([0.5, 0.25, 0.25]), [1, 2, 3])
    >>> found.mean.round(4).tolist(), found.effective.round(4).tolist()
    ([0.3333, 0.5, 0.6667], [3.0, 2.6667, 2.0])
    """
    r, log_p = np.asarray(rewards, dtype=np.float64), np.asarray(log_probs, dtype=np.float64)
    if r.shape != log_p.shape or r.ndim != 1 or len(r) < 2 or not np.all(np.isfinite(log_p)):
        raise ValueError(f"rewards {r.shape} and log_probs {log_p.shape}: must be [N] and finite, N at least 2")
    n = len(r)
    log_w = (np.asarray(alphas, dtype=np.float64)[:, None] - 1) * log_p
    shares = _shares(log_w)
    mean = shares @ r
    # Â without one draw. For the heaviest, 1 − share would cancel, so the others are weighed anew.
    heaviest = np.arange(n) == shares.argmax(axis=1)[:, None]
    lighter = np.where(heaviest, 0.0, shares)
    without = mean[:, None] + (mean[:, None] - r) * lighter / (1 - lighter)
    without[heaviest] = _shares(np.where(heaviest, -np.inf, log_w)) @ r
    centre = without.mean(axis=1)
    return Reweighted(
        mean=mean,
        bias=(n - 1) * (centre - mean),
        variance=(n - 1) / n * ((without - centre[:, None]) ** 2).sum(axis=1),
        effective=1 / (shares**2).sum(axis=1),
    )


def _shares(log_w: FloatArray) -> FloatArray:
    """Weights over the last axis that sum to 1."""
    w = np.exp(log_w - log_w.max(axis=-1, keepdims=True))
    return w / w.sum(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Point:
    """The forecast at one alpha: means over problems.

    Attributes:
        alpha: exponent of the target p^alpha.
        accuracy: of power sampling, with its standard error over problems.
        gain: over plain sampling, alpha = 1, on the same problems.
        draws_error: the part of the accuracy's standard error that more completions per problem would reduce.
        bias: of the accuracy by self-normalisation, estimated; positive where the accuracy is too high.
        effective: effective sample size of each problem, [problems].
    """

    alpha: float
    accuracy: Estimate
    gain: Estimate
    draws_error: float
    bias: float
    effective: FloatArray

    @property
    def share(self) -> float:
        """Share of the problems whose effective sample size is at least `MIN_EFFECTIVE`."""
        return float(np.mean(self.effective >= MIN_EFFECTIVE))

    @property
    def resolved(self) -> bool:
        """Whether the completions can tell, by the rule of this module; at alpha = 1 nothing is reweighted."""
        return self.alpha == 1 or self.share >= MIN_SHARE


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Accuracy against alpha.

    Attributes:
        points: by rising alpha, the first at alpha = 1.
        values: Â of each problem at each alpha, [problems, alphas].
        slope: d/dα of the accuracy at alpha = 1, per unit of alpha: Cov(r, log p) within problems, without bias.
    """

    points: tuple[Point, ...]
    values: FloatArray
    slope: Estimate

    def column(self, alpha: float) -> FloatArray:
        """Â of each problem at one of the alphas, [problems]."""
        return self.values[:, [point.alpha for point in self.points].index(alpha)]


def forecast(
    rewards: Sequence[Sequence[float]], log_probs: Sequence[Sequence[float]], alphas: Sequence[float] = ALPHAS
) -> Forecast:
    """Forecast the accuracy of power sampling at each alpha, and at alpha = 1.

    Args:
        rewards: for each of two problems or more, the verdicts of its completions, from 0 to 1; two or more each.
        log_probs: likewise log p(x | prompt), nats.
        alphas: any order, each >= 1; 1 is added.

    Raises:
        ValueError: too few problems or completions, shapes that differ, or an alpha below 1.
    """
    grid = sorted({1.0, *map(float, alphas)})
    if len(rewards) < 2 or not 1 <= grid[0] <= grid[-1] < np.inf:
        raise ValueError(f"{len(rewards)} problems, alphas {grid}: must be two or more, and finite alphas >= 1")
    problems = [reweight(r, log_p, grid) for r, log_p in zip(rewards, log_probs, strict=True)]
    # Rounded, since the rounding of weights would else be a gain where all verdicts agree, or make 5 draws 4.9999.
    values, bias, variance, effective = (
        np.array([getattr(problem, name) for problem in problems]).round(12)
        for name in ("mean", "bias", "variance", "effective")
    )
    points = []
    for i, alpha in enumerate(grid):
        points.append(
            Point(
                alpha=alpha,
                accuracy=over_problems(values[:, i]),
                gain=over_problems(values[:, i] - values[:, 0]),
                draws_error=float(np.sqrt(variance[:, i].sum()) / len(problems)),
                bias=float(bias[:, i].mean()),
                effective=effective[:, i],
            )
        )
    slopes = [covariance(r, log_p) for r, log_p in zip(rewards, log_probs, strict=True)]
    return Forecast(tuple(points), values, over_problems(slopes))


def over_problems(values: ArrayLike) -> Estimate:
    """Mean over problems and its standard error.

    Args:
        values: one per problem, [problems], two or more.
    """
    found = estimate([float(value) for value in np.asarray(values)])
    assert found is not None
    return found
