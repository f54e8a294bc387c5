"""Estimators over N completions: values by hand, and by enumerating all subsets and draws."""

import itertools
import operator

import pytest

from lm_power.stats.best_of_n import best_of_k, best_of_n, ks, majority_at_k, majority_vote, pass_at_k
from lm_power.stats.means import covariance, mean


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(n):
    """Every c and k: brute force over the k-subsets of n completions of which c are correct."""
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_at_its_ends_and_for_many():
    assert [pass_at_k(10, c, 1) for c in (0, 3, 10)] == [0.0, 0.3, 1.0]
    assert [pass_at_k(10, c, 10) for c in (0, 1, 10)] == [0.0, 1.0, 1.0]
    assert pass_at_k(1000, 1, 500) == 0.5  # where floating-point binomials overflow


def test_ks():
    assert {n: ks(n) for n in (1, 2, 3, 16, 17)} == {
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        16: [1, 2, 4, 8, 16],
        17: [1, 2, 4, 8, 16, 17],
    }


def test_best_of_n_takes_the_largest_reward_and_averages_equals():
    assert best_of_n([-3.0, -1.0, -2.0], [1.0, 0.0, 1.0]) == 0.0
    assert best_of_n([-1.0, -1.0, -1.0, -9.0], [1.0, 0.0, 0.0, 1.0]) == pytest.approx(1 / 3)
    assert best_of_n([-1.0], [1.0]) == 1.0


@pytest.mark.parametrize("k", range(1, 6))
def test_best_of_k_is_the_mean_over_all_subsets(k):
    rewards, scores = [-3.0, -1.0, -1.0, -2.0, -1.0], [1.0, 0.0, 1.0, 0.0, 1.0]
    subsets = list(itertools.combinations(range(5), k))
    expected = sum(best_of_n([rewards[i] for i in s], [scores[i] for i in s]) for s in subsets) / len(subsets)
    assert best_of_k(rewards, scores, k) == pytest.approx(expected, abs=1e-12)


def test_covariance_by_hand():
    # means 1/2 and -2; products 1/2·1, 1/2·1, -1/2·0, -1/2·(-2) over n - 1 = 3
    assert covariance([1, 1, 0, 0], [-1, -1, -2, -4]) == pytest.approx(2 / 3)
    assert covariance([1, 1, 1], [-1, -2, -3]) == 0.0
    assert covariance([1, 0], [-2, -1]) == pytest.approx(-0.5)
    assert mean([0.1] * 10) == 0.1


@pytest.mark.parametrize(
    ("answers", "correct", "value"),
    [
        ("4453", "1100", 1.0),  # 2 : 1 : 1
        ("4455", "1100", 1 / 2),
        ("4567", "1000", 1 / 4),
        ("445566", "110000", 1 / 3),
        ("4555", "1000", 0.0),
        ("5555", "0000", 0.0),
        ("44", "11", 1.0),
        ("4--5", "1000", 1 / 2),  # "-": no answer, no vote
        ("4---", "1000", 1.0),
        ("----", "0000", 0.0),
        ("455667", "100000", 0.0),
    ],
)
def test_majority_by_hand(answers, correct, value):
    votes = [None if letter == "-" else letter for letter in answers]
    for order in itertools.permutations(range(len(votes))):
        shuffled = majority_vote([float(correct[i]) for i in order], [votes[i] for i in order], operator.eq)
        assert shuffled == pytest.approx(value)


def test_majority_uses_the_given_equality_and_not_more_than_it_must():
    asked = []

    def equal(a, b):
        asked.append((a, b))
        return float(a) == float(b)

    # 0.5 and .50 are one wrong answer, as large as the right one, which has two spellings too.
    assert majority_vote([1, 1, 0, 0], ["2", "2.0", "0.5", ".50"], equal) == 0.5
    assert asked == [(".50", "0.5")]
    asked.clear()
    assert majority_vote([1, 1, 0], ["2", "2.0", "3"], equal) == 1.0
    assert majority_vote([0, 0, 0], ["2", "2.0", "3"], equal) == 0.0
    assert asked == []


@pytest.mark.parametrize("answers", ["R", "a", "Rab", "RRaab", "RRaabb-", "RRRaaab", "RaaRbbcc", "-----", "aabbR-R"])
def test_majority_of_k_is_the_mean_over_all_subsets(answers):
    """Every k: brute force over the k-subsets; R is right, "-" no answer, other letters are wrong answers."""
    right, wrong = answers.count("R"), [answers.count(letter) for letter in "abc" if letter in answers]
    found = majority_at_k(right, wrong, len(answers))
    for k in range(1, len(answers) + 1):
        votes = [
            majority_vote([float(a == "R") for a in subset], [None if a == "-" else a for a in subset], operator.eq)
            for subset in itertools.combinations(answers, k)
        ]
        assert found[k - 1] == pytest.approx(mean(votes), abs=1e-12)


def test_majority_of_k_in_closed_form_for_many():
    """Right and one wrong answer, 50 each: a fair coin at every k."""
    assert majority_at_k(50, [50], 100) == pytest.approx([0.5] * 100, abs=1e-12)


@pytest.mark.parametrize("sizes", [{4: 64}, {85: 1, 1: 85, 2: 28}, {9: 1, 7: 2, 4: 3, 3: 9, 1: 30}])
def test_one_answer_or_another_has_the_majority(sizes):
    """Each answer taken for the right one in its turn, the shares add up to 1 at every k.

    Guards many completions too: multiplied one by one, the rivals of the second case take half a minute.
    """
    n = sum(size * many for size, many in sizes.items())
    total = [0.0] * n
    for size, many in sizes.items():
        others = list(itertools.chain.from_iterable([s] * (m - (s == size)) for s, m in sizes.items()))
        shares = majority_at_k(size, others, n)
        total = [so_far + many * share for so_far, share in zip(total, shares, strict=True)]
    assert total == pytest.approx([1.0] * n, abs=1e-9)
