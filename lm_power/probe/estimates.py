"""The covariance probe: test whether power sampling raises just the rewards that co-vary with self-reward.

Two experiments of Tomihari & Sato (2026), on completions that are stored already, and on any model:

* `probe`: "Synthetic random rewards" and Figure 3. A reward made from a hash has nothing to do with the model; mixed
  with self-reward it has any covariance with it that we choose. By Proposition 4 its gain under power sampling should
  rise in proportion to that covariance.
* `slope_and_covariance`: Proposition 4 itself, `d/dα E_π[r] = Cov_π(r, log p)`, for any reward.

**How values are standardised.** Proposition 4 holds for each prompt by itself, so every covariance here is taken
within a prompt and then averaged over the prompts, each counting once: sampling cannot use the fact that some prompts
have higher self-rewards than others. Hash and self-reward are therefore standardised by their standard deviation
within prompts (square root of the mean variance within a prompt), and by one constant for all prompts: a constant per
prompt would be noise where N is small, and does not exist where all completions agree. Their means cancel in
covariances and gains. The constants come from the base completions and are applied to both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import scipy.integrate
import scipy.stats

from lm_power.decoding import FloatArray
from lm_power.stats.means import Estimate

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Draws:
    """N completions of one prompt, drawn in one way; three float64 arrays [N].

    Attributes:
        hash_reward: `hash_reward` of each.
        self_reward: `(1/|x|) Σ_t log p(x_t | x_<t)`, nats per token.
        log_prob: log p(x | prompt), nats.
    """

    hash_reward: FloatArray
    self_reward: FloatArray
    log_prob: FloatArray


@dataclasses.dataclass(frozen=True)
class Point:
    """One mixed reward `r_w = w·z(self-reward) + √(1 − w²)·z(hash)`, with bootstrap standard errors over prompts.

    Attributes:
        weight: w, from −1 to 1; r_w has variance 1 but for the chance covariance of hash and self-reward.
        covariance: `Cov(r_w, z(self-reward))` within base prompts.
        log_prob_covariance: `Cov(r_w, log p)` within base prompts, nats: Proposition 4's slope in alpha.
        gain: mean of r_w over power completions minus that over base completions.
    """

    weight: float
    covariance: Estimate
    log_prob_covariance: Estimate
    gain: Estimate


@dataclasses.dataclass(frozen=True)
class Line:
    """Least squares `gain = intercept + slope · covariance` through the points.

    Attributes:
        slope: gain per unit of covariance, with its bootstrap standard error over prompts.
        intercept: gain at covariance 0, likewise.
        slope_stderr: of the fit (`scipy.stats.linregress`): how far the points are off the line. They share
            their completions, so this does not say how well the slope is known.
        r_squared: share of the gains' variance on the line.
    """

    slope: Estimate
    intercept: Estimate
    slope_stderr: float
    r_squared: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """What `probe` found.

    Attributes:
        points: by rising weight.
        line: fitted to them.
        self_reward_sd: within base prompts, nats per token: the unit of z(self-reward).
        hash_sd: within base prompts; about √(1/12) where completions differ.
        prompts: how many.
    """

    points: tuple[Point, ...]
    line: Line
    self_reward_sd: float
    hash_sd: float
    prompts: int


def hash_reward(prompt: str, completion: str) -> float:
    """A reward that is unrelated to the model: SHA-256 of prompt and completion as a number in [0, 1).

    `⌊h / 2^11⌋ / 2^53` with h the leading 64 bits of the digest; float64 holds 53 of them, and rounding up could
    give 1. A zero byte stands between the two texts (UTF-8, lone surrogates as they are).

    >>> hash_reward("2 + 2 =", " 4") == hash_reward("2 + 2 =", " 4") != hash_reward("2 + 2 =", " 5")
    True
    """
    data = "\0".join((prompt, completion)).encode("utf-8", "surrogatepass")
    leading = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    return (leading >> 11) / 2**53


def probe(
    base: Sequence[Draws], power: Sequence[Draws], weights: int = 21, resamples: int = RESAMPLES, seed: int = 0
) -> Probe:
    """Gain of random rewards under power sampling against their covariance with self-reward.

    Every gain is `w·g_s + √(1 − w²)·g_h` and every covariance `w·v_s + √(1 − w²)·c`, where g_s and g_h are the
    gains of standardised self-reward and hash, v_s = 1 and c their covariance. So if the hash neither gains nor
    co-varies, the points lie on a line through 0. The result is how close they are to it, and its slope, which is
    the gain in self-reward in standard deviations.

    Args:
        base: each prompt's completions from the unsharpened model, two or more.
        power: the same prompts' completions by power sampling, in the same order, one or more each.
        weights: how many w, evenly spaced from −1 to 1.
        resamples: bootstrap resamples of the prompts; the standardising constants stay those of all prompts.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than two prompts, not the same number of each, too few completions, or
            all base completions alike within their prompts.
    """
    if len(base) != len(power) or len(base) < 2:
        raise ValueError(f"{len(base)} and {len(power)} prompts: must be the same, at least two")
    table = np.array([_moments(b, p) for b, p in zip(base, power, strict=True)])
    means = table.mean(axis=0)
    # Where completions agree to the last bits but not beyond, what is left of a variance is rounding.
    if means[0] < 1e-18 or means[1] < 1e-18:
        raise ValueError("all base completions of every prompt are alike: nothing co-varies")
    scale = np.sqrt(means[:2])
    w = np.linspace(-1.0, 1.0, weights)
    values = _curves(means[None], scale, w)[:, 0]
    # How often each prompt is drawn in each resample, as weights that sum to 1.
    drawn = np.random.default_rng(seed).multinomial(len(base), np.full(len(base), 1 / len(base)), size=resamples)
    resampled = _curves(drawn / len(base) @ table, scale, w)
    errors = resampled.std(axis=1, ddof=1)
    points = []
    for i, weight in enumerate(w):
        estimates = [Estimate(float(v[i]), float(e[i]), len(base)) for v, e in zip(values, errors, strict=True)]
        points.append(Point(float(weight), *estimates))
    return Probe(tuple(points), _line(values, resampled, len(base)), float(scale[0]), float(scale[1]), len(base))


def _moments(base: Draws, power: Draws) -> tuple[float, ...]:
    """Of one prompt: Var s, Var h, Cov(h, s), Cov(s, log p), Cov(h, log p) of the base; gains of s and h."""
    if len(base.log_prob) < 2 or not len(power.log_prob):
        raise ValueError(f"{len(base.log_prob)} base and {len(power.log_prob)} power completions: need 2 and 1")
    c = np.cov([base.self_reward, base.hash_reward, base.log_prob])
    self_reward_gain = power.self_reward.mean() - base.self_reward.mean()
    hash_gain = power.hash_reward.mean() - base.hash_reward.mean()
    return c[0, 0], c[1, 1], c[0, 1], c[0, 2], c[1, 2], self_reward_gain, hash_gain


def _curves(means: FloatArray, scale: FloatArray, w: FloatArray) -> FloatArray:
    """Covariance, covariance with log p, and gain of r_w: [3, samples, w] from mean moments [samples, 7]."""
    v = np.sqrt(1 - w**2)
    var_s, _, cov_hs, cov_sl, cov_hl, gain_s, gain_h = means.T[:, :, None]
    s, h = scale
    return np.stack(
        [w * var_s / s**2 + v * cov_hs / (h * s), w * cov_sl / s + v * cov_hl / h, w * gain_s / s + v * gain_h / h]
    )


def _line(values: FloatArray, resampled: FloatArray, prompts: int) -> Line:
    fit = scipy.stats.linregress(values[0], values[2])
    # A resample of prompts whose completions are all alike, but for rounding, has no covariances and no line.
    x, _, y = resampled[:, np.ptp(resampled[0], axis=1) > 1e-9]
    slopes = (_centred(x) * _centred(y)).sum(axis=1) / (_centred(x) ** 2).sum(axis=1)
    intercepts = y.mean(axis=1) - slopes * x.mean(axis=1)
    return Line(
        slope=Estimate(float(fit.slope), float(slopes.std(ddof=1)), prompts),
        intercept=Estimate(float(fit.intercept), float(intercepts.std(ddof=1)), prompts),
        slope_stderr=float(fit.stderr),
        r_squared=float(fit.rvalue**2),
    )


@dataclasses.dataclass(frozen=True)
class SlopeAndCovariance:
    """Both sides of Proposition 4 from samples, with standard errors.

    Attributes:
        slope: `(E_b[r] − E_a[r]) / (b − a)`, averaged over prompts.
        covariance: Cov(r, log p) within prompts, averaged over prompts and over alpha from a to b.
        difference: slope minus covariance; its expectation is 0 but for Simpson's error.
        p_value: of a t-test over prompts that the difference is 0.
    """

    slope: Estimate
    covariance: Estimate
    difference: Estimate
    p_value: float


def slope_and_covariance(
    alphas: Sequence[float], rewards: Sequence[FloatArray], log_probs: Sequence[FloatArray]
) -> SlopeAndCovariance:
    """Measure `d/dα E_π[r] = Cov_π(r, log p)` (Tomihari & Sato 2026, Proposition 4) on samples of π ∝ p^alpha.

    The slope over an interval [a, b] is the mean of the derivative over it: `(E_b[r] − E_a[r]) / (b − a) =
    1/(b − a) ∫ Cov_α(r, log p) dα`, so that it is compared with Simpson's integral of the covariances, whose
    error falls with the fifth power of the step, and not with one covariance in the middle.

    Standard errors are those of the draws, given the prompts: for each prompt both sides estimate the same number.
    Theirs come from the draws' variances; that of the difference, since the same draws enter both, from its scatter
    over prompts.

    Args:
        alphas: an odd number of them, three or more, evenly spaced and rising.
        rewards: for each alpha float64 [prompts, N]; N may differ between alphas.
        log_probs: likewise, log p(x | prompt) of the whole completion, nats (not a token).

    Raises:
        ValueError: the alphas are not as said, shapes differ, or fewer than two prompts or completions.
    """
    steps = np.diff(alphas)
    if len(alphas) < 3 or not len(alphas) % 2 or steps[0] <= 0 or not np.allclose(steps, steps[0]):
        raise ValueError(f"alphas {list(alphas)}: must be an odd number >= 3 of them, rising, evenly spaced")
    shapes = [(r.shape, x.shape) for r, x in zip(rewards, log_probs, strict=True)]
    if len(shapes) != len(alphas) or any(r != x or len(r) != 2 or min(r) < 2 for r, x in shapes):
        raise ValueError(f"shapes {shapes}: must be [prompts, N] twice for each of {len(alphas)} alphas, >= 2 each")
    width = alphas[-1] - alphas[0]
    slopes = (rewards[-1].mean(axis=1) - rewards[0].mean(axis=1)) / width
    products = [_centred(r) * _centred(x) for r, x in zip(rewards, log_probs, strict=True)]
    covariances = np.array([p.sum(axis=1) / (p.shape[1] - 1) for p in products])
    averages = scipy.integrate.simpson(covariances, x=np.asarray(alphas), axis=0) / width
    differences = slopes - averages
    # Simpson's weights, as what the integral makes of one covariance alone.
    weights = scipy.integrate.simpson(np.eye(len(alphas)), x=np.asarray(alphas), axis=1) / width
    slope_error = np.hypot(_error(rewards[0]), _error(rewards[-1])) / width
    covariance_error = np.sqrt(sum((w * _error(p)) ** 2 for w, p in zip(weights, products, strict=True)))
    pairs = (slopes, slope_error), (averages, covariance_error), (differences, scipy.stats.sem(differences))
    slope, covariance, difference = (Estimate(float(x.mean()), float(error), len(x)) for x, error in pairs)
    p_value = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    return SlopeAndCovariance(slope, covariance, difference, p_value)


def _centred(values: FloatArray) -> FloatArray:
    return values - values.mean(axis=1, keepdims=True)


def _error(draws: FloatArray) -> float:
    """Standard error of the mean over prompts of the means of `draws` [prompts, N], given the prompts."""
    prompts, n = draws.shape
    return float(np.sqrt((draws.var(axis=1, ddof=1) / n).sum()) / prompts)
