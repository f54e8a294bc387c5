"""What the figures show: curves over k, splits by correctness, shares by bin; each with its uncertainty over problems.

Shares have the standard error of the ratio estimator. Curves have a 95% band from the bootstrap over problems
(percentiles, 2,000 resamples, seed 0). A run that lacks what is needed gives None or an empty list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lm_power.report.runs import Run
from lm_power.report.summary import Quantity, majority_matrix, pass_matrix
from lm_power.stats.means import Estimate, share
from lm_power.stats.resampling import bootstrap_interval

RESAMPLES = 2000
CUT_BINS = 10
DECILES = 10


@dataclasses.dataclass(frozen=True)
class Curve:
    """An accuracy against k = 1, 2, …, with its band.

    Attributes:
        k: completions.
        value: the estimate at each k.
        low: lower end of the 95% band at each k.
        high: upper end.
    """

    k: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """A quantity of every completion, by correctness; a completion with partial credit counts as wrong.

    Attributes:
        right: of the correct completions, all problems together.
        wrong: of the others.
    """

    right: tuple[float, ...]
    wrong: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Bin:
    """The steps or completions in one bin.

    Attributes:
        low: lower edge: a stage, a relative cut position, or a self-reward in nats per token.
        high: upper edge.
        count: steps or completions in the bin.
        share: accepted steps over steps, or mean correctness of the completions.
    """

    low: float
    high: float
    count: int
    share: Estimate


def pass_at_k_curve(run: Run) -> Curve | None:
    """pass@k, k = 1 … N: the chance that one of k completions is correct (`pass_matrix`), over problems.

    None for N = 1, or if a completion lacks a verdict of 1 or 0.
    """
    return _curve(pass_matrix(run))


def majority_curve(run: Run) -> Curve | None:
    """maj@k, k = 1 … N: the chance that the majority of k completions is right (`majority_matrix`), over problems.

    None where `majority_matrix` is.
    """
    return _curve(majority_matrix(run))


def by_correctness(run: Run, quantity: Quantity) -> Split | None:
    """A quantity of every completion, by correctness; None if some completion lacks it or a verdict."""
    pairs = [
        (completion.correct, quantity(completion)) for problem in run.problems for completion in problem.completions
    ]
    if any(correct is None or value is None for correct, value in pairs):
        return None
    return Split(
        right=tuple(value for correct, value in pairs if correct == 1 and value is not None),
        wrong=tuple(value for correct, value in pairs if correct != 1 and value is not None),
    )


def acceptance_by_stage(run: Run) -> list[Bin]:
    """Accepted steps over steps, stage by stage (block by block); empty for a run without steps."""
    return _acceptance(run, lambda stage, cut, length: (stage, stage, stage))


def acceptance_by_cut(run: Run) -> list[Bin]:
    """Accepted steps over steps by relative cut position cut/length, in ten bins; empty for a run without steps."""

    def place(stage: np.ndarray, cut: np.ndarray, length: np.ndarray) -> _Places:
        bins = cut * CUT_BINS // length
        return bins, bins / CUT_BINS, (bins + 1) / CUT_BINS

    return _acceptance(run, place)


def reliability(run: Run) -> list[Bin]:
    """Accuracy by decile of self-reward over all completions of the run; empty if either is missing.

    Completions with equal self-rewards stay in one bin, so there may be fewer than ten bins.
    """
    if not (run.has_correct and run.has_self_reward):
        return []
    owner = np.repeat(np.arange(len(run.problems)), [len(p.completions) for p in run.problems])
    completions = [completion for p in run.problems for completion in p.completions]
    correct = np.array([completion.correct for completion in completions], dtype=float)
    reward = np.array([completion.self_reward for completion in completions], dtype=float)
    edges = np.quantile(reward, np.arange(1, DECILES) / DECILES, method="inverted_cdf")
    which = np.searchsorted(np.unique(edges), reward)
    return [
        Bin(
            low=float(reward[which == b].min()),
            high=float(reward[which == b].max()),
            count=int((which == b).sum()),
            share=share(correct[which == b], owner[which == b]),
        )
        for b in np.unique(which)
    ]


def _curve(matrix: np.ndarray | None) -> Curve | None:
    if matrix is None or matrix.shape[1] < 2:
        return None
    value = low = high = matrix.mean(axis=0)
    if len(matrix) > 1:
        low, high = bootstrap_interval(matrix, RESAMPLES)
    value, low, high = (tuple(float(x) for x in column) for column in (value, low, high))
    return Curve(tuple(range(1, matrix.shape[1] + 1)), value, low, high)


_Places = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The bin, its lower and its upper edge, of every step."""


def _acceptance(run: Run, place: Callable[[np.ndarray, np.ndarray, np.ndarray], _Places]) -> list[Bin]:
    """Accepted steps over steps in the bins where `place` puts the columns (stage, cut, length)."""
    owners, columns = [], []
    for index, problem in enumerate(run.problems):
        for completion in problem.completions:
            if completion.steps is not None and completion.steps.stage:
                steps = completion.steps
                owners.append(np.full(len(steps.stage), index))
                columns.append(np.array([steps.stage, steps.cut, steps.length, steps.accepted]))
    if not columns:
        return []
    owner = np.concatenate(owners)
    stage, cut, length, accepted = np.concatenate(columns, axis=1)
    which, low, high = place(stage, cut, length)
    bins = []
    for b in np.unique(which):
        inside = which == b
        accepted_share = share(accepted[inside].astype(float), owner[inside])
        bins.append(Bin(float(low[inside][0]), float(high[inside][0]), int(inside.sum()), accepted_share))
    return bins
