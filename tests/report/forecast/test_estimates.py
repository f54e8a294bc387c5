"""The forecast's numbers against exact finite laws, and its rule for what the completions cannot tell.

Seeds are fixed; the false-alarm probability stated with a test is that of an honest change of the random numbers.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from finite_laws import Law, random_laws

from lm_power import theory
from lm_power.report.forecast.conclusion import conclude, interval
from lm_power.report.forecast.estimates import ALPHAS, MIN_EFFECTIVE, MIN_SHARE, Forecast, forecast, reweight
from lm_power.report.probe.estimates import Draws, probe

EXACT = {"abs": 1e-12, "rel": 0}
GRID = np.array([1.0, 1.25, 2.0, 4.0])


def exact_accuracy(law: Law, alpha: float) -> float:
    return float(theory.expectation(theory.power_law(law.log_p, alpha), law.correct))


def draw(laws: list[Law], n: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Verdicts and log p of n plain completions of each prompt."""
    places = [law.sample(rng, 1.0, n) for law in laws]
    pairs = list(zip(laws, places, strict=True))
    return [law.correct[at] for law, at in pairs], [law.log_p[at] for law, at in pairs]


def test_draws_in_exact_proportion_give_exact_values() -> None:
    """Guards the weights p^(α−1) and the effective sample size: draws as p has them, against `lm_power.theory`."""
    counts = np.array([8, 4, 2, 1, 1])
    log_p, correct = np.log(counts / 16), np.array([0.0, 1.0, 0.0, 1.0, 0.5])
    found = reweight(np.repeat(correct, counts), np.repeat(log_p, counts), GRID)
    for i, alpha in enumerate(GRID):
        assert found.mean[i] == pytest.approx(theory.expectation(theory.power_law(log_p, alpha), correct), **EXACT)
        fraction = theory.weight_moments((alpha - 1) * log_p, log_p).ess_fraction
        assert found.effective[i] == pytest.approx(16 * fraction, **EXACT)


def test_forecast_tends_to_the_accuracy_under_the_power_law() -> None:
    """20,000 draws of each of 20 laws, within 4.5 of its own standard errors; false alarm below 6e-4 over 80 values."""
    laws, rng = random_laws(40, prompts=20), np.random.default_rng(41)
    correct, log_p = draw(laws, 20_000, rng)
    for law, r, lp in zip(laws, correct, log_p, strict=True):
        found = reweight(r, lp, GRID)
        off = found.mean - [exact_accuracy(law, alpha) for alpha in GRID]
        assert np.all(np.abs(off) < 4.5 * np.sqrt(found.variance) + 1e-12)
        assert np.all(np.sqrt(found.variance) < 0.05)  # close enough to say something


def test_weights_of_another_power_are_noticed() -> None:
    """p^alpha in place of p^(alpha − 1), the likely mistake, is far off on the same draws."""
    laws = random_laws(40, prompts=20)
    correct, log_p = draw(laws, 20_000, np.random.default_rng(41))
    found = forecast(correct, log_p, [3.0])
    exact = np.mean([exact_accuracy(law, 2.0) for law in laws])
    assert abs(found.points[1].accuracy.value - exact) > 10 * found.points[1].draws_error


def test_derivative_at_one_is_the_probes_covariance() -> None:
    """Proposition 4 in a sample: dÂ/dα at 1 = (N − 1)/N · Cov(r, log p), the covariance of `lm_power.report.probe`."""
    laws, rng = random_laws(42, prompts=30), np.random.default_rng(43)
    n, step = 16, 1e-4
    draws = [law.draws(law.sample(rng, 1.0, n)) for law in laws]
    found = probe(draws, [Draws(*(column[:1] for column in vars(d).values())) for d in draws], weights=3, resamples=2)
    reward = [d.self_reward / found.self_reward_sd for d in draws]  # the probe's reward at w = 1, but for a constant
    slope = forecast(reward, [d.log_prob for d in draws]).slope.value
    assert slope == pytest.approx(found.points[-1].log_prob_covariance.value, **EXACT)
    sides = [
        [reweight(r, d.log_prob, [a]).mean[0] for a in (1 - step, 1 + step)] for r, d in zip(reward, draws, strict=True)
    ]
    derivative = np.mean(np.diff(sides, axis=1)) / (2 * step)
    assert derivative == pytest.approx((n - 1) / n * slope, rel=1e-5)


def leave_one_out(r: np.ndarray, log_p: np.ndarray, alpha: float) -> np.ndarray:
    without = []
    for j in range(len(r)):
        kept = np.arange(len(r)) != j
        log_w = (alpha - 1) * log_p[kept]
        w = np.exp(log_w - log_w.max())
        without.append((w * r[kept]).sum() / w.sum())
    return np.array(without)


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_bias_and_variance_are_the_jackknifes(scale: float) -> None:
    """Also where one completion outweighs all others by thousands of nats, as long completions do."""
    rng = np.random.default_rng(44)
    r, log_p = rng.integers(0, 2, 12).astype(float), -scale * rng.random(12)
    found = reweight(r, log_p, GRID)
    for i, alpha in enumerate(GRID):
        without = leave_one_out(r, log_p, alpha)
        assert found.bias[i] == pytest.approx(11 * (without.mean() - found.mean[i]), **EXACT)
        assert found.variance[i] == pytest.approx(11 / 12 * ((without - without.mean()) ** 2).sum(), **EXACT)
    assert found.bias[0] == pytest.approx(0, **EXACT)
    assert found.variance[0] == pytest.approx(r.var(ddof=1) / 12, **EXACT)


def test_bias_is_that_of_choosing_one_of_n() -> None:
    """All 4^5 samples of five draws: E[Â] by enumeration; the jackknife's bias, subtracted, leaves less than half."""
    log_p, correct, alpha, n = np.log([0.4, 0.3, 0.2, 0.1]), np.array([1.0, 0.0, 0.0, 1.0]), 2.0, 5
    mean = corrected = 0.0
    for sample in itertools.product(range(4), repeat=n):
        at = list(sample)
        found = reweight(correct[at], log_p[at], [alpha])
        probability = math.exp(log_p[at].sum())
        mean += probability * found.mean[0]
        corrected += probability * (found.mean[0] - found.bias[0])
    truth = float(theory.expectation(theory.power_law(log_p, alpha), correct))
    plain = float(theory.expectation(log_p, correct))
    assert plain < mean < truth or truth < mean < plain
    assert abs(corrected - truth) < 0.5 * abs(mean - truth)


def test_errors_are_the_spread() -> None:
    """Over 200 repetitions on the same prompts the spread is `draws_error` within 20%: 4 sigma of its error, 1e-4."""
    laws, rng = random_laws(45, prompts=8), np.random.default_rng(46)
    found = [forecast(*draw(laws, 64, rng), [1.5]) for _ in range(200)]
    for i in (0, 1):
        spread = np.std([f.points[i].accuracy.value for f in found], ddof=1)
        assert spread == pytest.approx(np.mean([f.points[i].draws_error for f in found]), rel=0.2)


def of_effective(sizes: list[int]) -> Forecast:
    """Problems in which so many of 20 completions share all the weight at alpha = 2, and the others have none."""
    log_p = [[0.0] * size + [-1e4] * (20 - size) for size in sizes]
    return forecast([[1.0] * 20] * len(sizes), log_p, [2.0])


def test_the_rule_for_too_small_samples() -> None:
    """Resolved from 90% of the problems with an effective sample size of 5 on; alpha = 1 always is."""
    assert (MIN_EFFECTIVE, MIN_SHARE) == (5.0, 0.9)
    for sizes, share, resolved in (([5] * 9 + [4], 0.9, True), ([20] * 8 + [4, 4], 0.8, False), ([4] * 10, 0.0, False)):
        first, second = of_effective(sizes).points
        assert second.effective.tolist() == pytest.approx(sizes)
        assert (second.share, second.resolved) == (pytest.approx(share), resolved)
        assert first.resolved


def test_a_mode_that_is_rarely_drawn_is_noticed() -> None:
    """A completion of probability .02 holds all of π at alpha 4; most problems never drew it, and look well sampled."""
    log_p = np.log(np.array([0.02, *[0.98 / 5000] * 5000]))
    rng = np.random.default_rng(47)
    places = rng.choice(5001, size=(100, 16), p=np.exp(log_p))
    found = forecast([(row == 0).astype(float) for row in places], [log_p[row] for row in places], [4.0])
    assert np.median(found.points[1].effective) == pytest.approx(16)
    assert not found.points[1].resolved
    assert conclude(found).outcome == "too small to tell"


def test_the_answer_where_sharpening_helps() -> None:
    """The smallest alpha about as good as the best, and an interval that holds for all alphas at once."""
    laws = [law for law in random_laws(48, prompts=200) if exact_accuracy(law, 2.0) > exact_accuracy(law, 1.0)]
    found = forecast(*draw(laws, 64, np.random.default_rng(49)), [1.1, 1.5, 2.0])
    said = conclude(found)
    assert said.outcome == "helps"
    best = max(found.points, key=lambda point: point.gain.value)
    chosen = next(point for point in found.points if point.alpha == said.alpha)
    assert chosen.gain.value >= best.gain.value - best.gain.error
    assert all(p.gain.value < best.gain.value - best.gain.error for p in found.points if p.alpha < said.alpha)
    narrow, wide = interval(chosen.gain), interval(chosen.gain, 3)
    assert (said.low, said.high) == pytest.approx(wide)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert f"Sharpening should help: at alpha = {said.alpha:g}" in said.sentence
    assert f"interval +{said.low:.3f} to +{said.high:.3f}" in said.sentence


def test_the_answer_where_sharpening_hurts_or_does_nothing() -> None:
    laws, rng = random_laws(50), np.random.default_rng(51)
    correct, log_p = draw(laws, 64, rng)
    hurts = conclude(forecast([1 - r for r in correct], log_p, [1.5, 2.0]))
    assert (hurts.outcome, hurts.alpha) == ("hurts", 1.5)
    assert "a gain of −0." in hurts.sentence
    nothing = conclude(forecast([rng.integers(0, 2, 64) for _ in laws], log_p, [1.5]))
    assert nothing.outcome == "no clear effect" and nothing.low < 0 < nothing.high
    same = conclude(forecast([np.ones(64)] * len(laws), log_p, [1.5]))
    assert (same.outcome, same.low, same.high) == ("no clear effect", 0.0, 0.0)


def test_the_answer_where_draws_are_too_few() -> None:
    """Long completions: the smallest alpha is out of reach, and the slope at 1 is what is left to say."""
    rng = np.random.default_rng(52)
    log_p = [-100 + 40 * rng.standard_normal(16) for _ in range(100)]
    found = forecast([(lp > -100).astype(float) for lp in log_p], log_p)
    said = conclude(found)
    assert (said.outcome, said.alpha) == ("too small to tell", None)
    assert "at alpha = 1.1 already" in said.sentence
    assert (
        f"Sharpening by very little raises accuracy: the slope at alpha = 1 is +{found.slope.value:.3f}"
        in said.sentence
    )


def test_alphas_that_are_not_resolved_are_named_in_the_answer() -> None:
    laws, rng = random_laws(53), np.random.default_rng(54)
    correct, log_p = draw(laws, 16, rng)
    said = conclude(forecast(correct, log_p, [1.1, 30.0, 40.0]))
    assert said.alpha == 1.1
    assert said.sentence.endswith("The effective sample size is too small to tell what alpha = 30, 40 would do.")


def test_bad_input_is_refused() -> None:
    pair = [[0.0, 1.0]] * 2, [[-1.0, -2.0]] * 2
    assert [point.alpha for point in forecast(*pair).points] == [1.0, *ALPHAS]
    for alphas in ([0.5], [math.inf], [math.nan]):
        with pytest.raises(ValueError, match="alphas"):
            forecast(*pair, alphas)
    with pytest.raises(ValueError, match="1 problems"):
        forecast([[0.0, 1.0]], [[-1.0, -2.0]])
    for r, log_p in (([1.0], [-1.0]), ([0.0, 1.0], [-1.0]), ([0.0, 1.0], [-1.0, -math.inf])):
        with pytest.raises(ValueError, match="log_probs"):
            reweight(r, log_p, [2.0])
