"""Estimators over the N completions of one problem; pure functions of verdicts, rewards and answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from lm_power.stats.means import mean


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k completions is correct): `1 - C(n-c, k) / C(n, k)`.

    The share of the k-subsets of the n completions that hold a correct one (Chen et al. 2021, section 2.1),
    in exact integers.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - correct, k)) / subsets


def ks(n: int) -> list[int]:
    """The k of the pass@k that are reported for n completions: 1, 2, 4, … and n itself.

    >>> ks(8), ks(6)
    ([1, 2, 4, 8], [1, 2, 4, 6])
    """
    return [*(1 << power for power in range((n - 1).bit_length())), n]


def best_of_n(rewards: Sequence[float], scores: Sequence[float]) -> float:
    """Score of the completion with the largest reward; if several share it, the mean of their scores.

    This is the expectation under a fair draw among equals, so that nothing depends on the order of the completions.

    >>> best_of_n([-0.5, -0.1, -0.1], [0.0, 1.0, 0.0])
    0.5
    """
    best = max(rewards)
    return mean([score for reward, score in zip(rewards, scores, strict=True) if reward == best])


def best_of_k(rewards: Sequence[float], scores: Sequence[float], k: int) -> float:
    """`best_of_n` of k of the completions, averaged over all k-subsets, exactly.

    A subset's largest reward is at most r if all its rewards are. By symmetry, completions with equal rewards are
    chosen equally often.

    >>> best_of_k([-0.5, -0.1, -0.9], [1.0, 0.0, 0.0], 2) == 1 / 3
    True
    """
    total, below = 0.0, 0
    for reward in sorted(set(rewards)):
        tied = [score for other, score in zip(rewards, scores, strict=True) if other == reward]
        total += (math.comb(below + len(tied), k) - math.comb(below, k)) * mean(tied)
        below += len(tied)
    return total / math.comb(len(rewards), k)


def majority_vote(correct: Sequence[float], answers: Sequence[Any], equal: Callable[[Any, Any], bool]) -> float:
    """Probability that the most frequent answer is the right one; ties are broken by a fair draw.

    Args:
        correct: verdict of each completion, 1.0 or 0.0.
        answers: final answer of each; None, no answer, casts no vote.
        equal: whether two wrong answers are the same; called only if their votes can matter.

    The right answers are one group by their verdicts. A wrong answer joins the first group whose first
    member equals it. With `c` votes for the right answer and `w` for the largest of the wrong ones: 1 if
    c > w, 0 if c < w, else 1 / (number of groups of that size).

    >>> majority_vote([1, 1, 0, 0, 0], ["4", "4.0", "5", "5", "6"], lambda a, b: a == b)
    0.5
    """
    right = sum(1 for verdict, answer in zip(correct, answers, strict=True) if verdict and answer is not None)
    wrong = [answer for verdict, answer in zip(correct, answers, strict=True) if not verdict and answer is not None]
    if right == 0:
        return 0.0
    if right > len(wrong):
        return 1.0
    groups: list[list[Any]] = []
    for answer in wrong:
        for group in groups:
            if equal(answer, group[0]):
                group.append(answer)
                break
        else:
            groups.append([answer])
    sizes = [len(group) for group in groups]
    if max(sizes) != right:
        return float(max(sizes) < right)
    return 1 / (1 + sizes.count(right))


def majority_at_k(right: int, wrong: Sequence[int], n: int) -> list[float]:
    """Majority vote over k of n completions, k = 1 … n: `majority_vote`, averaged over all k-subsets, exactly.

    Args:
        right: completions with the right answer.
        wrong: completions of each wrong answer; those of neither kind cast no vote.
        n: completions in all.

    A subset with c votes for the right answer counts 1/(1 + t) if t wrong answers have c votes too and none has
    more. Subsets are counted by generating functions in x, the votes, and y, the ties: an answer with s completions
    contributes `Σ_{j<c} C(s, j) x^j + C(s, c) x^c y`, and m answers of that size the m-th power, by the binomial
    theorem; answers too small to reach c contribute `(1 + x)^s`, all of them together one such factor.

    >>> majority_at_k(2, [2, 1], 5)[0], majority_at_k(2, [2, 1], 5)[4]
    (0.4, 0.5)
    """
    favourable = [Fraction(0)] * (n + 1)
    silent = n - right - sum(wrong)
    for c in range(1, right + 1):
        rivals = Counter(size for size in wrong if size >= c)
        small = silent + sum(size for size in wrong if size < c)
        # by_ties[t][j]: the number of ways in which wrong answers get j votes in total and t of them get c each.
        by_ties = [[math.comb(small, j) for j in range(small + 1)]]
        for size, many in rivals.items():
            by_ties = _with_rivals(by_ties, size, many, c)
        for t, ways in enumerate(by_ties):
            for j, count in enumerate(ways[: n - c + 1]):
                if count:
                    favourable[c + j] += Fraction(math.comb(right, c) * count, 1 + t)
    return [float(favourable[k] / math.comb(n, k)) for k in range(1, n + 1)]


def _with_rivals(by_ties: Sequence[Sequence[int]], size: int, many: int, c: int) -> list[list[int]]:
    """`by_ties` of `majority_at_k` with so many more wrong answers, of `size` completions each, at c votes or fewer."""
    below = [math.comb(size, j) for j in range(c)]
    powers = [[1]]  # of `below`
    for _ in range(many):
        powers.append(_multiply(powers[-1], below))
    joined: list[list[int]] = [[] for _ in range(len(by_ties) + many)]
    for tied in range(many + 1):
        # The votes of those that tie, in every choice of them, times those of the others.
        weight = math.comb(many, tied) * math.comb(size, c) ** tied
        factor = [*([0] * (c * tied)), *(weight * ways for ways in powers[many - tied])]
        for t, ways in enumerate(by_ties):
            joined[t + tied] = _add(joined[t + tied], _multiply(factor, ways))
    return joined


def _multiply(a: Sequence[int], b: Sequence[int]) -> list[int]:
    product = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        if x:
            for j, y in enumerate(b):
                product[i + j] += x * y
    return product


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in itertools.zip_longest(a, b, fillvalue=0)]
