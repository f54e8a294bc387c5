"""The theory room: every proposition as an identity on random finite laws, and broken versions that must be seen.

Each check computes both sides, one by the room and one from a table of probabilities in plain Python, and returns how
far they are apart. Hypothesis generates the laws; the tests are exact, so they have no false alarms.
"""

from __future__ import annotations

import cmath
import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_power import theory
from lm_power.theory import SequenceDistribution

EXACT = 1e-12
each_law = settings(max_examples=60, derandomize=True, deadline=None)


@st.composite
def sequence_laws(draw: st.DrawFn) -> SequenceDistribution:
    """Laws over sequences of one to three tokens out of two to four, ended by token 0 or by their length."""
    vocabulary, longest = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    logits = st.lists(st.floats(-4, 4), min_size=vocabulary, max_size=vocabulary)

    def next_log_p(prefix: tuple[int, ...]) -> np.ndarray:
        return normalised(draw(logits))

    return SequenceDistribution.from_next_token(next_log_p, lambda x: x[-1] == 0 or len(x) == longest)


alphas = st.floats(0.25, 8.0)
seeds = st.integers(0, 10**6)


def normalised(log_weights) -> np.ndarray:
    log_weights = np.asarray(log_weights, dtype=float)
    return log_weights - np.logaddexp.reduce(log_weights)


def some_law(size: int, seed: int) -> np.ndarray:
    return normalised(np.random.default_rng(seed).normal(size=size))


def brute_power(table: dict, alpha: float) -> dict:
    total = math.fsum(p**alpha for p in table.values())
    return {x: p**alpha / total for x, p in table.items()}


def brute_next(table: dict, prefix: tuple = ()) -> dict:
    """Token → probability after `prefix`."""
    through = {x: p for x, p in table.items() if x[: len(prefix)] == prefix and len(x) > len(prefix)}
    total = math.fsum(through.values())
    tokens = dict.fromkeys(x[len(prefix)] for x in through)
    return {v: math.fsum(p for x, p in through.items() if x[len(prefix)] == v) / total for v in tokens}


def apart(ours, theirs) -> float:
    """Largest difference, relative where the values are above 1."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    return float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs)), initial=0.0))


# ---- the identities: each takes a law, an exponent, a seed and the function under test -----------------------------


def odds(p: SequenceDistribution, alpha: float, seed: int, log_odds_ratio: Callable) -> float:
    """Proposition 1, for every pair of next tokens after every prefix."""
    table, sharp, worst = p.table(), brute_power(p.table(), alpha), 0.0
    for prefix in p.prefixes():
        next_p, next_sharp = brute_next(table, prefix), brute_next(sharp, prefix)
        entropies = dict(zip(next_p, p.suffix_entropies(prefix, alpha), strict=True))
        for a, b in itertools.permutations(next_p, 2):
            directly = math.log(next_sharp[a] / next_sharp[b]) - alpha * math.log(next_p[a] / next_p[b])
            worst = max(worst, apart(log_odds_ratio(entropies[a], entropies[b], alpha), directly))
    return worst


def conditional(p: SequenceDistribution, alpha: float, seed: int, power_next_token: Callable) -> float:
    """Proposition 1 as a law: the power distribution's next token from suffix entropies."""
    sharp, worst = brute_power(p.table(), alpha), 0.0
    for prefix in p.prefixes():
        log_q = power_next_token(p.next_token(prefix).log_p, p.suffix_entropies(prefix, alpha), alpha)
        worst = max(worst, apart(np.exp(log_q), list(brute_next(sharp, prefix).values())))
    return worst


def moments(p: SequenceDistribution, alpha: float, seed: int, weigh: Callable) -> float:
    """Proposition 2 for a random proposal: mean, variation and ESS from the definition, and by χ²."""
    table, worst = p.table(), 0.0
    sharp = brute_power(table, alpha)
    for prefix in p.prefixes():
        next_p = brute_next(table, prefix)
        log_q = some_law(len(next_p), seed)
        result = weigh(p.next_token(prefix).log_p, log_q, alpha, p.suffix_entropies(prefix, alpha))
        q, before = np.exp(log_q), math.fsum(x for y, x in table.items() if y[: len(prefix)] == prefix)
        through = [[v for x, v in table.items() if x[: len(prefix) + 1] == (*prefix, token)] for token in next_p]
        w = np.array([math.fsum((v / before) ** alpha for v in values) for values in through]) / q
        mean = math.fsum(q * w)
        cv = math.sqrt(math.fsum(q * (w / mean - 1) ** 2))
        ess = mean**2 / math.fsum(q * w**2)
        target = np.array(list(brute_next(sharp, prefix).values()))
        worst = max(
            worst,
            apart(result.log_mean, math.log(mean)),
            apart(result.cv, cv),
            apart(result.ess_fraction, ess),
            apart(1 + result.cv**2, math.fsum(target**2 / q)),
        )
    return worst


def optimum(p: SequenceDistribution, alpha: float, seed: int, solve: Callable) -> float:
    """Corollary 1: `J(π) = J(π*) − β KL(π ‖ π*)` for any reward and policy, which makes π* the only optimum."""
    reward = np.random.default_rng(seed).normal(size=len(p.log_p))
    best, value = solve(p.log_p, reward, alpha)
    policy = some_law(len(p.log_p), seed + 1)
    pi, star, base = np.exp(policy), np.exp(best), np.exp(p.log_p)
    objective = math.fsum(pi * reward) - alpha * math.fsum(pi * np.log(pi / base))
    return apart(objective, value - alpha * math.fsum(pi * np.log(pi / star)))


def self_reward(p: SequenceDistribution, alpha: float, seed: int, to_alpha: Callable) -> float:
    """Corollary 1 for the model's own reward log p: a power distribution, and minus an entropy as value."""
    best, value = (solve(p.log_p, p.log_p, alpha) for solve in (theory.kl_rl_optimum, theory.kl_rl_value))
    power = to_alpha(alpha)
    sharp = np.array(list(brute_power(p.table(), power).values()))
    entropy = -theory.kl_rl_objective(best, p.log_p, p.log_p, alpha)
    return max(apart(np.exp(best), sharp), apart(value, -theory.renyi_entropy(p.log_p, power)), apart(entropy, -value))


def slope(p: SequenceDistribution, alpha: float, seed: int, reward_slope: Callable) -> float:
    """Proposition 4, the derivative taken with a complex step: exact but for rounding."""
    reward = np.random.default_rng(seed).normal(size=len(p.log_p))
    step = 1e-30
    weights = [cmath.exp(complex(alpha, step) * log_p) for log_p in (p.log_p - p.log_p.max()).tolist()]
    derivative = (sum(w * r for w, r in zip(weights, reward, strict=True)) / sum(weights)).imag / step
    return apart(reward_slope(p, alpha, reward), derivative)


def largest_mass(p: SequenceDistribution, alpha: float, seed: int, mass: Callable) -> float:
    """Proposition 3's quantity, ties included."""
    table = p.table()
    top = max(table.values())
    directly = math.fsum(q for x, q in brute_power(table, alpha).items() if table[x] > top * (1 - 1e-9))
    return apart(mass(p.log_p, alpha), directly)


def mass_bound(p: SequenceDistribution, alpha: float, seed: int, bound: Callable) -> float:
    """The bound holds, and with two outcomes it is attained."""
    alpha = max(alpha, 1.0)
    pair = some_law(2, seed)
    excess = float(bound(p.log_p, alpha) - theory.maximiser_mass(p.log_p, alpha))
    return max(excess, apart(bound(pair, alpha), theory.maximiser_mass(pair, alpha)))


def entropies(p: SequenceDistribution, alpha: float, seed: int, renyi_entropy: Callable) -> float:
    """Rényi entropies from the definition, with the limits at 1 and ∞ and both sides of 1."""
    table = p.table().values()
    shannon = -math.fsum(q * math.log(q) for q in table)
    gaps = [apart(renyi_entropy(p.log_p, 1), shannon), apart(renyi_entropy(p.log_p, math.inf), -math.log(max(table)))]
    if abs(alpha - 1) > 0.1:  # nearer to 1 the definition loses digits
        gaps.append(apart(renyi_entropy(p.log_p, alpha), math.log(math.fsum(q**alpha for q in table)) / (1 - alpha)))
    variance = math.fsum(q * (math.log(q) + shannon) ** 2 for q in table)
    for shift in (1e-9, -1e-9):  # H is smooth at 1, with slope −Var(log p)/2
        gaps.append(apart(renyi_entropy(p.log_p, 1 + shift), shannon - variance / 2 * shift))
    return max(gaps)


def token_wise(p: SequenceDistribution, alpha: float, seed: int, temper: Callable) -> float:
    """Tempering, token by token, from the definition."""
    table, log_q = p.table(), {}
    for prefix in p.prefixes():
        sharp = brute_power(brute_next(table, prefix), alpha)
        log_q.update({(*prefix, v): math.log(q) for v, q in sharp.items()})
    directly = [math.fsum(log_q[x[:t]] for t in range(1, len(x) + 1)) for x in table]
    return apart(temper(p, alpha), directly)


def composition(p: SequenceDistribution, alpha: float, seed: int, compose: Callable) -> float:
    """`(p^α)^β = p^(αβ)`: a student that has learnt p^α, sharpened at decode time."""
    beta = 1 + seed % 5
    return apart(p.power(alpha).power(beta).log_p, p.power(compose(alpha, beta)).log_p)


def divergence(p: SequenceDistribution, alpha: float, seed: int, kl: Callable) -> float:
    """Forward KL and total variation by completion, whatever the order they are listed in."""
    other = SequenceDistribution(p.completions, some_law(len(p.log_p), seed))
    shuffled = np.random.default_rng(seed).permutation(len(p.log_p))
    listed = SequenceDistribution(tuple(p.completions[i] for i in shuffled), other.log_p[shuffled])
    ours, theirs = p.power(alpha).table(), other.table()
    varied = 0.5 * math.fsum(abs(ours[x] - theirs[x]) for x in ours)
    return max(
        apart(kl(p.power(alpha), listed), math.fsum(q * math.log(q / theirs[x]) for x, q in ours.items())),
        apart(p.power(alpha).total_variation(listed), varied),
    )


def weigh(log_p, log_q, alpha, suffix_entropies):
    return theory.weight_moments(theory.incremental_log_weights(log_p, log_q, alpha, suffix_entropies), log_q)


def altered(change: Callable) -> Callable:
    """`weigh` with its result changed."""

    def broken(*arguments):
        moments = weigh(*arguments)
        return dataclasses.replace(moments, **change(moments))

    return broken


def solve(log_p, reward, beta):
    return theory.kl_rl_optimum(log_p, reward, beta), theory.kl_rl_value(log_p, reward, beta)


def flat_bound(log_p, alpha):
    """The bound with alpha where alpha − 1 belongs."""
    return theory.maximiser_mass_bound(log_p, alpha + 1)


# Identity → its check, the room's function, and versions of it that are wrong in the ways one gets it wrong.
IDENTITIES: dict[str, tuple[Callable, Callable, dict[str, Callable]]] = {
    "Proposition 1, odds": (
        odds,
        theory.log_odds_ratio,
        {
            "sign of the gap": lambda a, b, alpha: theory.log_odds_ratio(b, a, alpha),
            "alpha for alpha − 1": lambda a, b, alpha: alpha * (b - a),
            "no difference at all": lambda a, b, alpha: 0.0,
        },
    ),
    "Proposition 1, law": (
        conditional,
        theory.power_next_token,
        {
            "blind to the suffixes": lambda log_p, entropies, alpha: theory.power_law(log_p, alpha),
            "untempered": lambda log_p, entropies, alpha: normalised(log_p + (1 - alpha) * entropies),
        },
    ),
    "Proposition 2": (
        moments,
        weigh,
        {
            "blind to the suffixes": lambda log_p, log_q, alpha, entropies: weigh(log_p, log_q, alpha, None),
            "moments under the model": lambda log_p, log_q, alpha, entropies: theory.weight_moments(
                theory.incremental_log_weights(log_p, log_q, alpha, entropies), log_p
            ),
            "cv squared": altered(lambda moments: {"cv": moments.cv**2}),
            "ESS from cv, not its square": altered(lambda moments: {"ess_fraction": 1 / (1 + moments.cv)}),
        },
    ),
    "Corollary 1, any reward": (
        optimum,
        solve,
        {
            "weight the wrong way up": lambda log_p, r, beta: solve(log_p, r, 1 / beta),
            "value without beta": lambda log_p, r, beta: (solve(log_p, r, beta)[0], solve(log_p, r, beta)[1] / beta),
            "the reference itself": lambda log_p, r, beta: (log_p, solve(log_p, r, beta)[1]),
        },
    ),
    "Corollary 1, self-reward": (
        self_reward,
        theory.self_reward_alpha,
        {"1/beta": lambda beta: 1 / beta, "1 + beta": lambda beta: 1 + beta},
    ),
    "Proposition 3": (
        largest_mass,
        theory.maximiser_mass,
        {
            "one of several": lambda log_p, alpha: np.exp(np.max(theory.power_law(log_p, alpha))),
            "no power": lambda log_p, alpha: theory.maximiser_mass(log_p, 1),
        },
    ),
    "Proposition 3, bound": (mass_bound, theory.maximiser_mass_bound, {"alpha for alpha − 1": flat_bound}),
    "Proposition 4": (
        slope,
        lambda p, alpha, reward: theory.reward_slope(p.log_p, alpha, reward),
        {
            "covariance under p": lambda p, alpha, reward: theory.reward_slope(p.log_p, 1, reward),
            "self-reward a token": lambda p, alpha, reward: theory.covariance(
                p.power(alpha).log_p, reward, p.log_p / p.lengths()
            ),
            "no mean taken off": lambda p, alpha, reward: theory.expectation(p.power(alpha).log_p, reward * p.log_p),
        },
    ),
    "Rényi entropy": (
        entropies,
        theory.renyi_entropy,
        {
            "Shannon throughout": lambda log_p, order: theory.renyi_entropy(log_p, 1),
            "bits": lambda log_p, order: theory.renyi_entropy(log_p, order) / math.log(2),
        },
    ),
    "token-wise tempering": (
        token_wise,
        lambda p, alpha: p.tempered(1 / alpha).log_p,
        {
            "whole sequences": lambda p, alpha: p.power(alpha).log_p,
            "temperature for its inverse": lambda p, alpha: p.tempered(alpha).log_p,
        },
    ),
    "composition": (composition, lambda alpha, beta: alpha * beta, {"exponents added": lambda a, b: a + b}),
    "divergences": (
        divergence,
        SequenceDistribution.kl_divergence,
        {
            "reverse KL": lambda p, q: q.kl_divergence(p),
            "matched by place": lambda p, q: theory.kl_divergence(p.log_p, q.log_p),
        },
    ),
}
BROKEN = [(name, fault) for name, (_, _, faults) in IDENTITIES.items() for fault in faults]


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name: str) -> None:
    """Guards each formula of the room: both sides agree to 1e-12 on random laws, exponents and rewards."""
    check, right, _ = IDENTITIES[name]

    @each_law
    @given(p=sequence_laws(), alpha=alphas, seed=seeds)
    def holds(p: SequenceDistribution, alpha: float, seed: int) -> None:
        assert check(p, alpha, seed, right) <= EXACT

    holds()


@pytest.mark.parametrize(("name", "fault"), BROKEN, ids=[f"{name}: {fault}" for name, fault in BROKEN])
def test_a_broken_version_is_caught(name: str, fault: str) -> None:
    """Guards against identities without teeth: the usual mistakes miss by a thousandth and more."""
    check, _, faults = IDENTITIES[name]
    tied = SequenceDistribution.from_table({(0,): 0.4, (1, 0): 0.2, (1, 1): 0.4})
    free = SequenceDistribution.from_table({(0,): 0.3, (1, 0): 0.4, (1, 1): 0.2, (1, 2): 0.1})
    assert max(check(p, alpha, 3, faults[fault]) for p in (tied, free) for alpha in (1.7, 4.0)) > 1e-3


# ---- what the identities do not say --------------------------------------------------------------------------------


@each_law
@given(p=sequence_laws(), alpha=alphas)
def test_prefixes_next_tokens_and_suffixes_fit_together(p: SequenceDistribution, alpha: float) -> None:
    """Guards marginals and conditionals of the power distribution: the chain rule gives every completion back."""
    sharp = p.power(alpha)
    for x, log_p in zip(sharp.completions, sharp.log_p, strict=True):
        steps = sum(float(sharp.next_token(x[:t]).log_prob([x[t : t + 1]])[0]) for t in range(len(x)))
        assert steps == pytest.approx(log_p, abs=EXACT)
        for t in range(len(x) + 1):
            rest = float(sharp.suffixes(x[:t]).log_prob([x[t:]])[0])
            assert sharp.log_prefix(x[:t]) + rest == pytest.approx(log_p, abs=EXACT)
            assert float(sharp.marginal(t).log_prob([x[:t]])[0]) == sharp.log_prefix(x[:t])
    assert sharp.marginal(9).table() == pytest.approx(sharp.table(), abs=EXACT)
    assert sharp.marginal(0).completions == sharp.suffixes(x).completions == ((),)
    assert set(p.prefixes()) == {y[:t] for y in p.completions for t in range(len(y))}


@each_law
@given(p=sequence_laws(), alpha=st.floats(1.0, 8.0))
def test_the_next_token_proposals_that_need_no_weights(p: SequenceDistribution, alpha: float) -> None:
    """Guards what Proposition 2 is for: which proposal makes the weights constant, with and without suffixes."""
    for prefix in p.prefixes():
        log_p, entropies = p.next_token(prefix).log_p, p.suffix_entropies(prefix, alpha)
        tempered = theory.power_law(log_p, alpha)
        sharp = p.power(alpha).next_token(prefix).log_p
        without = theory.weight_moments(theory.incremental_log_weights(log_p, tempered, alpha), tempered)
        assert without.cv < EXACT
        assert without.log_mean == pytest.approx(theory.log_power_sum(log_p, alpha), abs=EXACT)
        assert weigh(log_p, sharp, alpha, entropies).cv < EXACT
        blind = weigh(log_p, tempered, alpha, entropies)
        suffixes_only = theory.weight_moments((1 - alpha) * entropies, tempered)
        assert apart(blind.cv, suffixes_only.cv) < EXACT


@each_law
@given(p=sequence_laws(), low=alphas, high=alphas)
def test_sharpening_is_monotone_and_tends_to_the_maximisers(p: SequenceDistribution, low: float, high: float) -> None:
    """Guards Proposition 3's limit, and the signs: self-reward and top mass rise with alpha, entropies fall."""
    low, high = sorted((low, high))
    assert theory.maximiser_mass(p.log_p, low) <= theory.maximiser_mass(p.log_p, high) + EXACT
    means = [theory.expectation(p.power(alpha).log_p, p.log_p) for alpha in (low, high)]
    assert means[0] <= means[1] + EXACT
    assert theory.reward_slope(p.log_p, low, p.log_p) >= 0
    assert p.renyi_entropy(low) >= p.renyi_entropy(high) - EXACT
    assert -EXACT <= p.renyi_entropy(math.inf) <= p.renyi_entropy(high) + EXACT
    others = p.log_p[p.log_p < p.log_p.max() - 1e-9]
    if len(others):
        alpha = 1 + 60 / (p.log_p.max() - others.max())
        assert theory.maximiser_mass(p.log_p, alpha) > 1 - EXACT
        assert theory.maximiser_mass_bound(p.log_p, alpha) > 1 - EXACT
    assert p.renyi_entropy(1e9) == pytest.approx(p.renyi_entropy(math.inf), abs=1e-6)


def test_outcomes_of_probability_zero_do_not_count() -> None:
    """Guards 0·log 0, an infinite divergence, and rewards that are not defined where p is 0."""
    p, q = np.log([0.5, 0.5, 1.0])[:2], np.array([0.0, -np.inf])
    assert theory.kl_divergence(q, p) == pytest.approx(math.log(2))
    assert theory.kl_divergence(p, q) == math.inf
    assert theory.total_variation(p, q) == 0.5
    assert theory.expectation(q, [3.0, math.nan]) == theory.expectation(q, [3.0, math.inf]) == 3.0
    assert theory.covariance(q, [3.0, math.inf], [1.0, 2.0]) == 0.0
    assert [float(theory.renyi_entropy(q, order)) for order in (0.5, 0.999, 1, 2, math.inf)] == [0.0] * 5
    assert theory.power_law(q, 3).tolist() == [0.0, -math.inf]
    assert theory.maximiser_mass_bound(q, 2) == theory.maximiser_mass(q, 2) == 1.0
    one = SequenceDistribution.from_table({(0,): 0.5, (1,): 0.5})
    sure = SequenceDistribution.from_table({(0,): 1.0})
    assert one.kl_divergence(sure) == math.inf
    assert sure.kl_divergence(one) == pytest.approx(math.log(2))
    assert one.total_variation(sure) == sure.total_variation(one) == 0.5


def test_completions_tied_but_for_rounding_are_tied() -> None:
    """Guards Proposition 3 on completions of one probability whose logarithms were summed in another order."""
    first = math.log(0.021)
    second = first + 4 * math.ulp(first)
    mass = theory.maximiser_mass(normalised([first, second, math.log(0.01)]), 3)
    assert mass == pytest.approx(2 * 0.021**3 / (2 * 0.021**3 + 0.01**3), abs=EXACT)


def test_laws_of_thousands_of_nats() -> None:
    """Guards log space: completions of 5,000 nats and weights of e^±5000 neither overflow nor vanish."""
    far = np.array([-5000.0, -5001.0, -5003.0])
    p = normalised(np.concatenate([far, [0.0]]))
    assert theory.power_law(p, 8)[:3] == pytest.approx(8 * far)
    heavy = theory.weight_moments(theory.incremental_log_weights(p, np.log([0.25] * 4), 1), np.log([0.25] * 4))
    assert heavy.cv == pytest.approx(math.sqrt(3))
    assert heavy.ess_fraction == pytest.approx(0.25)
    light = theory.weight_moments([0.0, 5000.0], np.array([0.0, -5000.0]))
    assert light.log_mean == pytest.approx(math.log(2))
    assert (light.cv, light.ess_fraction) == (math.inf, 0.0)


def test_leading_axes_are_independent_laws() -> None:
    """Guards the vectorised use: an array of laws gives what each gives alone."""
    log_p, log_q = (np.stack([some_law(5, seed + n) for n in range(3)]) for seed in (0, 10))
    reward = np.arange(5.0)
    functions: list[Callable] = [
        lambda p, q: theory.renyi_entropy(p, 2.5),
        lambda p, q: theory.renyi_entropy(p, 1.001),
        lambda p, q: theory.kl_divergence(p, q),
        lambda p, q: theory.reward_slope(p, 3, reward),
        lambda p, q: theory.kl_rl_value(p, reward, 0.5),
        lambda p, q: theory.maximiser_mass_bound(p, 3),
        lambda p, q: theory.weight_moments(theory.incremental_log_weights(p, q, 3, reward), q).cv,
    ]
    for function in functions:
        together = function(log_p, log_q)
        np.testing.assert_array_equal(together, [function(p, q) for p, q in zip(log_p, log_q, strict=True)])


HALVES = SequenceDistribution.from_table({(0,): 0.5, (1, 0): 0.5})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SequenceDistribution.from_table({(0,): 0.5, (1,): 0.4}), r"log Σ exp\(log_p\)\| = 0.105.*subtract"),
        (lambda: SequenceDistribution.from_table({(0,): 1.0, (1,): 0.0}), r"\(1,\): probability 0.0, must be > 0"),
        (lambda: SequenceDistribution.from_table({(0,): 1.5, (1,): -0.5}), r"\(1,\): probability -0.5"),
        (lambda: SequenceDistribution.from_table({}), "one or more outcomes"),
        (lambda: SequenceDistribution.from_table({(1,): 0.5, (0,): 0.2, (1, 2): 0.3}), r"\(1,\) is the beginning of"),
        (lambda: SequenceDistribution.from_table({(): 0.5, (0,): 0.5}), r"\(\) is the beginning of \(0,\)"),
        (lambda: SequenceDistribution(((0,), (0,)), np.log([0.5, 0.5])), r"\(0,\) occurs twice"),
        (lambda: SequenceDistribution(((0,), (1,)), np.array([0.0, -np.inf])), "probability 0; leave it out"),
        (lambda: SequenceDistribution(((0,), (1,)), np.array([0.0, np.nan])), "must be at most"),
        (lambda: SequenceDistribution(((0,),), np.zeros(2)), "one entry for each of 1 completions"),
        (lambda: SequenceDistribution.from_next_token(lambda x: np.zeros(2), lambda x: True), r"next_log_p\(\(\)\)"),
        (
            lambda: SequenceDistribution.from_next_token(lambda x: np.zeros(1), lambda x: False, max_prefixes=50),
            "max_prefixes=50",
        ),
        (lambda: HALVES.suffixes((2,)), r"prefix=\(2,\): no completion begins"),
        (lambda: HALVES.next_token((0,)), r"prefix=\(0,\): no completion goes on"),
        (lambda: HALVES.marginal(-1), "length=-1: must be >= 0"),
        (lambda: HALVES.power(0), "alpha=0: must be > 0 and finite"),
        (lambda: HALVES.power(math.inf), "alpha=inf: must be > 0 and finite"),
        (lambda: HALVES.tempered(-1.0), "proposal_temperature=-1.0: must be > 0"),
        (lambda: HALVES.renyi_entropy(0), "order=0: must be > 0"),
        (lambda: HALVES.renyi_entropy(math.nan), "order=nan: must be > 0"),
        (lambda: theory.kl_divergence([0.0], [-1.0]), r"log_q: \|log Σ exp\(log_q\)\| = 1"),
        (lambda: theory.kl_divergence(np.log([0.5, 0.5]), [0.0]), "log_q has 1 outcomes, log_p 2"),
        (lambda: theory.total_variation([0.0], np.log([0.5, 0.5])), "log_q has 2 outcomes, log_p 1"),
        (lambda: theory.kl_rl_optimum([0.0], [1.0], 0), "kl_weight=0: must be > 0"),
        (lambda: theory.maximiser_mass_bound([0.0], 0.5), "alpha=0.5: must be >= 1"),
        (lambda: theory.incremental_log_weights(np.log([0.5, 0.5]), [0.0, -np.inf], 2), "log_q: must be finite"),
        (lambda: theory.weight_moments([-np.inf], [0.0]), "mean must be positive"),
    ],
)
def test_bad_input(make: Callable, says: str) -> None:
    """Guards against laws that are none: each is refused, with its name, value and rule."""
    with pytest.raises(ValueError, match=says):
        make()


def test_a_distribution_is_not_changed_from_outside() -> None:
    """Guards frozen records: neither the caller's array nor ours writes into the law."""
    log_p = np.log([0.5, 0.5])
    p = SequenceDistribution(((0,), (1,)), log_p)
    log_p[0] = 0.0
    assert p.table() == {(0,): 0.5, (1,): 0.5}
    with pytest.raises(ValueError, match="read-only"):
        p.log_p[0] = 0.0


def test_tokens_that_cannot_follow_are_left_out() -> None:
    """Guards −inf in a next-token law: no completion of probability 0 appears."""
    law = np.array([0.0, -np.inf])
    p = SequenceDistribution.from_next_token(lambda prefix: law, lambda x: len(x) == 3)
    assert p.table() == {(0, 0, 0): 1.0}


def test_the_room_needs_numpy_alone() -> None:
    """Guards against torch creeping in: reports and examples on theory start at once."""
    code = "import sys, lm_power.theory; print(sorted({'torch', 'scipy', 'transformers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
