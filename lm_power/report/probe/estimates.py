"""The covariance probe: does power sampling raise exactly those rewards that co-vary with self-reward?

This is the experiment "Synthetic random rewards" of Tomihari & Sato (2026), Figure 3, for any model and for completions
that are stored already. A reward made from a hash has nothing to do with the model. Mixed with self-reward, it has
whatever covariance with it we choose. By Proposition 4, `d/dα E_π[r] = Cov_π(r, log p)`, its gain under power sampling
should rise in proportion to that covariance.

**How values are standardised.** Proposition 4 holds for each prompt by itself. So every covariance here is taken within
a prompt and then averaged over prompts with equal weights: sampling cannot make use of differences in self-reward
between prompts. Hash and self-reward are divided by their standard deviation within prompts (square root of the mean
variance within a prompt), one constant for all prompts. A constant per prompt would be noisy where N is small, and does
not exist where all completions agree. Means need not be subtracted, because they cancel in covariances and gains. The
constants come from the base completions and are applied to both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import scipy.stats

from lm_power.decoding import FloatArray
from lm_power.stats.means import Estimate

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Draws:
    """N completions of one prompt, all sampled in the same way; three float64 arrays [N].

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
        weight: w, from −1 to 1; r_w has variance 1, up to the chance covariance of hash and self-reward.
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
        slope_stderr: of the fit (`scipy.stats.linregress`), from the scatter of the points about the line. The points
            share their completions, so this does not tell how well the slope is known.
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

    `⌊h / 2^11⌋ / 2^53`, where h is the leading 64 bits of the digest. float64 holds 53 of them, and rounding up could
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
    gains of standardised self-reward and hash, v_s = 1, and c is their covariance. So if the hash neither gains nor
    co-varies, the points lie on a line through 0. The result tells how close they are to one, and its slope, which is
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
    # A variance this small is rounding: the completions agree but for their last bits.
    if means[0] < 1e-18 or means[1] < 1e-18:
        raise ValueError("all base completions of every prompt are alike: nothing co-varies")
    scale = np.sqrt(means[:2])
    w = np.linspace(-1.0, 1.0, weights)
    values = _curves(means[None], scale, w)[:, 0]
    # How often each resample contains each prompt.
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
    # If all completions of a resample's prompts are alike up to rounding, it has no covariances and no line.
    x, _, y = resampled[:, np.ptp(resampled[0], axis=1) > 1e-9]
    slopes = (_centred(x) * _centred(y)).sum(axis=1) / (_centred(x) ** 2).sum(axis=1)
    intercepts = y.mean(axis=1) - slopes * x.mean(axis=1)
    return Line(
        slope=Estimate(float(fit.slope), float(slopes.std(ddof=1)), prompts),
        intercept=Estimate(float(fit.intercept), float(intercepts.std(ddof=1)), prompts),
        slope_stderr=float(fit.stderr),
        r_squared=float(fit.rvalue**2),
    )


def _centred(values: FloatArray) -> FloatArray:
    return values - values.mean(axis=1, keepdims=True)
