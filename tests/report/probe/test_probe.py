"""The covariance probe's numbers: against exact laws of finite sets, and against what must not change them.

Seeds are fixed; the false-alarm probability stated with a test is that of an honest change of the random numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import scipy.stats
from finite_laws import Law, random_laws

from lm_power import theory
from lm_power.report.probe.estimates import Draws, hash_reward, probe
from lm_power.stats.means import Estimate

PROMPTS = 60
FALSE_ALARM = 1e-4


def samples(laws: list[Law], alpha: float, n: int, seed: int) -> list[Draws]:
    rng = np.random.default_rng(seed)
    return [law.draws(law.sample(rng, alpha, n)) for law in laws]


def as_rows(result) -> np.ndarray:
    """[points, 7]: weight, then covariance, covariance with log p, and gain, each with error."""
    columns = ("covariance", "log_prob_covariance", "gain")
    pairs = [[(getattr(p, name).value, getattr(p, name).error) for name in columns] for p in result.points]
    return np.column_stack([[p.weight for p in result.points], np.array(pairs).reshape(len(pairs), 6)])


def sigmas(estimate: Estimate, truth: float) -> float:
    return abs(estimate.value - truth) / estimate.error


def test_hash_reward_is_the_leading_64_bits() -> None:
    """A hash of a part of the digest, of the wrong end, or that can reach 1."""
    digest = hashlib.sha256(b"prompt\0completion").hexdigest()
    assert hash_reward("prompt", "completion") == pytest.approx(int(digest[:16], 16) / 2**64, abs=2**-53)
    values = [hash_reward("p", str(i)) for i in range(2000)]
    assert min(values) >= 0 and max(values) < 1
    assert scipy.stats.kstest(values, "uniform").pvalue > FALSE_ALARM


def test_hash_reward_tells_where_the_prompt_ends_and_takes_any_text() -> None:
    assert hash_reward("a", "bc") != hash_reward("ab", "c")
    assert 0 <= hash_reward("\ud800 \u202e", "\x00\x1b") < 1


def test_probe_agrees_with_the_exact_law() -> None:
    """At every w within 4.5 standard errors of the exact gain and covariance: false alarm below 1e-3 in all.

    Exact: expectations over the enumerated completions, standardised by the exact standard deviations.
    """
    laws = random_laws(1)
    alpha, n = 2.0, 200
    found = probe(samples(laws, 1.0, n, 2), samples(laws, alpha, n, 3), weights=9)
    hashes = [law.hash_reward for law in laws]
    rewards = [law.log_p / law.length for law in laws]
    scale = []
    for values in (rewards, hashes):
        variances = [theory.covariance(law.log_p, x, x) for law, x in zip(laws, values, strict=True)]
        scale.append(np.sqrt(np.mean(variances)))
    assert found.self_reward_sd == pytest.approx(scale[0], rel=0.1)
    assert found.hash_sd == pytest.approx(scale[1], rel=0.1)
    for point in found.points:
        w, v = point.weight, np.sqrt(1 - point.weight**2)
        covariances, slopes, gains = [], [], []
        for law, s, h in zip(laws, rewards, hashes, strict=True):
            mixed = w * s / scale[0] + v * h / scale[1]
            covariances.append(theory.covariance(law.log_p, mixed, s / scale[0]))
            slopes.append(theory.covariance(law.log_p, mixed, law.log_p))
            sharpened = theory.power_law(law.log_p, alpha)
            gains.append(theory.expectation(sharpened, mixed) - theory.expectation(law.log_p, mixed))
        assert sigmas(point.gain, np.mean(gains)) < 4.5
        assert sigmas(point.covariance, np.mean(covariances)) < 4.5
        assert sigmas(point.log_prob_covariance, np.mean(slopes)) < 4.5
    # And the errors are small enough to see a gain that is not there.
    assert sigmas(found.points[-1].gain, 0) > 10


def test_points_are_those_of_the_mixed_reward() -> None:
    """Every number again, from the mixed reward of each completion: unbiased covariances, a reward of variance 1."""
    base, power = samples(random_laws(34), 1.0, 5, 35), samples(random_laws(34), 2.0, 3, 36)
    found = probe(base, power, weights=5)
    rewards = [d.self_reward for d in base], [d.hash_reward for d in base]
    sds = [np.sqrt(np.mean([x.var(ddof=1) for x in xs])) for xs in rewards]

    def mixed(draws: Draws, w: float) -> np.ndarray:
        return w * draws.self_reward / sds[0] + np.sqrt(1 - w**2) * draws.hash_reward / sds[1]

    for point in found.points:
        w = point.weight
        gain = np.mean([mixed(p, w).mean() - mixed(b, w).mean() for b, p in zip(base, power, strict=True)])
        covariance = np.mean([np.cov(mixed(b, w), b.self_reward / sds[0])[0, 1] for b in base])
        log_prob_covariance = np.mean([np.cov(mixed(b, w), b.log_prob)[0, 1] for b in base])
        expected = (gain, covariance, log_prob_covariance)
        assert (point.gain.value, point.covariance.value, point.log_prob_covariance.value) == pytest.approx(expected)


def test_ends_of_the_sweep_are_self_reward_and_its_opposite() -> None:
    found = probe(samples(random_laws(4), 1.0, 6, 5), samples(random_laws(4), 3.0, 6, 6))
    first, *_, last = found.points
    assert (first.weight, last.weight) == (-1.0, 1.0)
    assert (first.covariance.value, last.covariance.value) == pytest.approx((-1.0, 1.0), abs=1e-12)
    assert first.gain.value == pytest.approx(-last.gain.value, abs=1e-12)
    assert all(b.covariance.value > a.covariance.value for a, b in zip(found.points, found.points[1:], strict=False))


def test_differences_between_prompts_count_for_nothing() -> None:
    """Pooling all completions: a prompt that is easier for the model shifts all its self-rewards alike.

    Hashes and self-rewards may also be in any unit; log p is in nats, but its level does not matter either.
    """
    base, power = samples(random_laws(7), 1.0, 8, 8), samples(random_laws(7), 2.0, 8, 9)
    rng = np.random.default_rng(10)
    shifts = rng.normal(scale=100, size=(len(base), 3))

    def moved(all_draws: list[Draws]) -> list[Draws]:
        return [
            Draws(3 * d.hash_reward + a, 0.1 * d.self_reward + b, d.log_prob + c)
            for d, (a, b, c) in zip(all_draws, shifts, strict=True)
        ]

    np.testing.assert_allclose(
        as_rows(probe(moved(base), moved(power))), as_rows(probe(base, power)), rtol=0, atol=1e-9
    )


def test_constants_come_from_the_base_alone() -> None:
    """Standardising over both samples, or each by its own: covariances would move with the power completions."""
    laws = random_laws(11)
    base = samples(laws, 1.0, 8, 12)
    one, other = probe(base, samples(laws, 2.0, 8, 13)), probe(base, samples(laws, 50.0, 3, 14))
    assert (as_rows(one)[:, :5] == as_rows(other)[:, :5]).all()
    assert (one.self_reward_sd, one.hash_sd) == (other.self_reward_sd, other.hash_sd)
    assert probe(base, base).line.slope.value == 0


def test_each_prompt_counts_once() -> None:
    """Completions pooled by their number: a prompt with many would count more than one with few."""
    base, power = samples(random_laws(15), 1.0, 4, 16), samples(random_laws(15), 3.0, 4, 17)
    twice = [Draws(*np.tile(dataclasses.astuple(d), 2)) if i % 2 else d for i, d in enumerate(power)]
    np.testing.assert_allclose(as_rows(probe(base, twice)), as_rows(probe(base, power)), atol=1e-12)


def test_standard_errors_are_those_over_prompts() -> None:
    """The bootstrap's spread of a mean is `s / sqrt(prompts)`; of 2,000 resamples within 7% (4.4 sigma, 1e-5)."""
    laws = random_laws(18)
    base, power = samples(laws, 1.0, 8, 19), samples(laws, 2.0, 8, 20)
    gains = [p.self_reward.mean() - b.self_reward.mean() for b, p in zip(base, power, strict=True)]
    found = probe(base, power)
    m = len(gains)
    expected = scipy.stats.sem(gains) * np.sqrt((m - 1) / m) / found.self_reward_sd
    assert found.points[-1].gain.error == pytest.approx(expected, rel=0.07)


def test_slope_error_covers_the_truth() -> None:
    """Over 100 repetitions, 2 standard errors hold the large-sample slope in at least 85: false alarm below 1e-4.

    The error of the fit alone, which the points on a line make tiny, would hold it in a few.
    """
    laws = random_laws(21, prompts=40)
    truth = probe(samples(laws, 1.0, 20_000, 22), samples(laws, 2.0, 20_000, 23), resamples=2).line.slope.value
    held, held_by_fit = 0, 0
    for seed in range(100):
        # Prompts are drawn anew as well: the error is over prompts.
        some = [laws[i] for i in np.random.default_rng(seed).integers(len(laws), size=40)]
        line = probe(samples(some, 1.0, 10, 1000 + seed), samples(some, 2.0, 10, 2000 + seed), resamples=200).line
        held += sigmas(line.slope, truth) < 2
        held_by_fit += abs(line.slope.value - truth) < 2 * line.slope_stderr
    assert held >= 85
    assert held_by_fit < 60


@pytest.mark.parametrize(
    ("base_n", "power_n", "prompts", "message"),
    [(1, 1, 3, "need 2 and 1"), (2, 0, 3, "need 2"), (2, 2, 1, "at least two")],
)
def test_probe_refuses_too_little(base_n: int, power_n: int, prompts: int, message: str) -> None:
    laws = random_laws(24, prompts)
    with pytest.raises(ValueError, match=message):
        probe(samples(laws, 1.0, base_n, 0), samples(laws, 2.0, power_n, 0))


def test_probe_refuses_completions_that_are_all_alike() -> None:
    """A division by zero, or by what rounding leaves of it."""
    same = [Draws(np.full(4, 0.3), np.full(4, -0.1 * i), np.full(4, -3.0)) for i in range(5)]
    with pytest.raises(ValueError, match="alike"):
        probe(same, same)


def test_a_few_prompts_that_vary_are_enough() -> None:
    """Resamples without any of them have no line; dividing by what rounding leaves would make the error enormous."""
    laws = random_laws(31, prompts=20)
    base, power = samples(laws, 1.0, 8, 32), samples(laws, 2.0, 8, 33)
    alike = Draws(np.full(8, 0.3), -0.1 * (1 + 1e-15 * np.arange(8)), np.full(8, -3.0))
    found = probe([alike] * 17 + base[17:], power)
    assert 0 < found.line.slope.error < 10
