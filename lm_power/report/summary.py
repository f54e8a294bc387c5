"""Means over problems: the rows of Table 1, and the scores that paired tests compare.

The unit is the problem: the completions of a problem are averaged first, since they are not independent trials (as in
`lm_power.harness.metrics`, which computes the same numbers). A quantity that a run does not record is None.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lm_power.completion import Steps
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.runs import Run
from lm_power.stats.best_of_n import best_of_n, majority_at_k, pass_at_k
from lm_power.stats.means import Estimate, covariance, estimate, mean

Quantity = Callable[[LoggedCompletion], float | None]
"""A number that belongs to a completion, such as `lambda completion: completion.tokens`; None where it is not known."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run as means over problems; None for what the run does not record.

    Attributes:
        accuracy: over all completions; of a task with one verdict per document, of those verdicts.
        self_reward: over all completions, nats per token.
        bon_accuracy: of the completion with the largest self-reward (`best_of_n`); None for N = 1.
        bon_self_reward: of the same completion, nats per token.
        majority: `majority_vote` over all completions, wrong answers grouped as strings (`majority_matrix`).
        any_correct: pass@N; None for N = 1.
        covariance: of correctness and self-reward among a problem's completions; None for N = 1.
        log_p: log p of a whole completion, nats: what power sampling raises.
        tokens: length of a completion.
        truncated: share of completions that ended at the length limit.
        tokens_decoded: decoded for one completion, rejected work included.
        problem_tokens_decoded: decoded for all completions of a problem.
        seconds: from a completion's start on the engine to its end, shared with the rows beside it.
        acceptance_rate: share of a problem's proposals that were accepted; None without proposals.
        change_rate: share of a problem's proposals that led to another completion; None without proposals.
        log_z: log Z_alpha, nats; None where the method does not estimate it.
        kl_from_proposal: KL(p^alpha ‖ q), nats; None where the method does not estimate it.
    """

    accuracy: Estimate | None
    self_reward: Estimate | None
    bon_accuracy: Estimate | None
    bon_self_reward: Estimate | None
    majority: Estimate | None
    any_correct: Estimate | None
    covariance: Estimate | None
    log_p: Estimate | None
    tokens: Estimate | None
    truncated: Estimate | None
    tokens_decoded: Estimate | None
    problem_tokens_decoded: Estimate | None
    seconds: Estimate | None
    acceptance_rate: Estimate | None
    change_rate: Estimate | None
    log_z: Estimate | None
    kl_from_proposal: Estimate | None


def summarise(run: Run) -> Summary:
    """The run in means over its problems."""
    several = run.n > 1
    decoded = _columns(run, lambda completion: completion.tokens_decoded)
    return Summary(
        accuracy=estimate(accuracies(run)),
        self_reward=estimate(means(run, lambda completion: completion.self_reward)),
        bon_accuracy=estimate(bon_accuracies(run)),
        bon_self_reward=estimate(_best(run, lambda completion: completion.self_reward)),
        majority=estimate(_last_column(majority_matrix(run))),
        any_correct=estimate(_last_column(pass_matrix(run))) if several else None,
        covariance=estimate(_covariances(run)),
        log_p=estimate(means(run, lambda completion: completion.sum_log_prob)),
        tokens=estimate(means(run, lambda completion: completion.tokens)),
        truncated=estimate(means(run, _is_truncated)),
        tokens_decoded=estimate(None if decoded is None else [mean(values) for values in decoded]),
        problem_tokens_decoded=estimate(None if decoded is None else [math.fsum(values) for values in decoded]),
        seconds=estimate(means(run, lambda completion: completion.seconds)),
        acceptance_rate=estimate(_step_rates(run, lambda steps: steps.accepted)),
        change_rate=estimate(_step_rates(run, lambda steps: steps.changed)),
        log_z=estimate(means(run, lambda completion: completion.log_z)),
        kl_from_proposal=estimate(means(run, lambda completion: completion.kl_from_proposal)),
    )


def means(run: Run, quantity: Quantity) -> list[float] | None:
    """Each problem's mean over its completions; None if the quantity is missing for any of them."""
    columns = _columns(run, quantity)
    return None if columns is None else [mean(values) for values in columns]


def accuracies(run: Run) -> list[float] | None:
    """Each problem's mean correctness, or the task's one verdict on its completions; None if one is missing."""
    verdicts = [problem.verdict for problem in run.problems if problem.verdict is not None]
    if len(verdicts) == len(run.problems):
        return verdicts
    return means(run, lambda completion: completion.correct)


def bon_accuracies(run: Run) -> list[float] | None:
    """Each problem's correctness of the completion with the largest self-reward; None for N = 1 or missing values."""
    return _best(run, lambda completion: completion.correct)


def pass_matrix(run: Run) -> np.ndarray | None:
    """pass@k of each problem (row) at k = 1 … N (column); None unless every completion has a verdict of 1 or 0."""
    if not _binary(run):
        return None
    ks = range(1, run.n + 1)
    return np.array(
        [[_pass_at_k(run.n, sum(a.correct == 1 for a in p.completions), k) for k in ks] for p in run.problems]
    )


def majority_matrix(run: Run) -> np.ndarray | None:
    """maj@k of each problem (row) at k = 1 … N (column), exact (`majority_at_k`).

    All right answers form one group. Wrong answers are grouped by the strings that the task logs, so two spellings of
    one wrong answer count as two. At k = N the result can therefore exceed lm-eval's `maj_acc`, for which the task
    compares the answers. None for N = 1, if the task logs no answers, or if a completion lacks a verdict of 1 or 0.
    """
    if run.n == 1 or not run.has_answers or not _binary(run):
        return None
    rows = []
    for problem in run.problems:
        right = sum(1 for a in problem.completions if a.correct and a.answer is not None)
        wrong = Counter(a.answer for a in problem.completions if not a.correct and a.answer is not None)
        rows.append(_majority_at_k(right, tuple(sorted(wrong.values())), run.n))
    return np.array(rows)


_pass_at_k = functools.cache(pass_at_k)


@functools.cache
def _majority_at_k(right: int, wrong: tuple[int, ...], n: int) -> tuple[float, ...]:
    return tuple(majority_at_k(right, wrong, n))


def _binary(run: Run) -> bool:
    return all(completion.correct in (0, 1) for problem in run.problems for completion in problem.completions)


def _columns(run: Run, quantity: Quantity) -> list[list[float]] | None:
    columns = []
    for problem in run.problems:
        values = [value for value in map(quantity, problem.completions) if value is not None]
        if len(values) < len(problem.completions):
            return None
        columns.append(values)
    return columns


def _best(run: Run, quantity: Quantity) -> list[float] | None:
    """`quantity` of the completion with the largest self-reward."""
    rewards, values = _columns(run, lambda completion: completion.self_reward), _columns(run, quantity)
    if run.n == 1 or rewards is None or values is None:
        return None
    return [best_of_n(*pair) for pair in zip(rewards, values, strict=True)]


def _covariances(run: Run) -> list[float] | None:
    rewards = _columns(run, lambda completion: completion.self_reward)
    correct = _columns(run, lambda completion: completion.correct)
    if run.n == 1 or rewards is None or correct is None:
        return None
    return [covariance(*pair) for pair in zip(correct, rewards, strict=True)]


def _step_rates(run: Run, column: Callable[[Steps], Sequence[int]]) -> list[float] | None:
    """Each problem's share of steps with a 1 in the column; None if steps are not logged or a problem has none."""
    rates = []
    for problem in run.problems:
        steps = [completion.steps for completion in problem.completions if completion.steps is not None]
        made, marks = sum(len(s.accepted) for s in steps), [mark for s in steps for mark in column(s)]
        if len(steps) < len(problem.completions) or made == 0 or len(marks) != made:
            return None
        rates.append(sum(marks) / made)
    return rates


def _is_truncated(completion: LoggedCompletion) -> float | None:
    return None if completion.finish_reason is None else float(completion.finish_reason == "length")


def _last_column(matrix: np.ndarray | None) -> list[float] | None:
    return None if matrix is None else [float(value) for value in matrix[:, -1]]
