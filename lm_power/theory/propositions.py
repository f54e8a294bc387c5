"""The propositions: power against tempering, one-step proposals, KL-regularised RL, and what sharpening gains.

Distributions are arrays as in `lm_power.theory.laws`. Propositions have the numbers of Tomihari & Sato 2026.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_power.theory.laws import (
    FloatArray,
    Numbers,
    as_law,
    covariance,
    expectation,
    kl_divergence,
    log_sum_exp,
    positive,
    power_law,
    two_laws,
)

TIED_WITHIN = 1e-9  # nats: equal probabilities whose logarithms were summed in different orders


def power_next_token(log_p: ArrayLike, suffix_entropies: ArrayLike, alpha: float) -> FloatArray:
    """`log π_α(v | prefix) = α log p(v | prefix) + (1 − α) H_α(S_v) + const`.

    S_v is the distribution of what follows v. The sum of p^α over all completions through v is
    `p(prefix)^α p(v)^α Σ_s S_v(s)^α`, and the last factor is
    `exp((1 − α) H_α(S_v))` (Tomihari & Sato 2026, Prop. 1). Token-wise tempering lacks that factor.

    Args:
        log_p: [..., tokens] nats, log p(v | prefix).
        suffix_entropies: [..., tokens] nats, H_α(S_v) of the same order α; 0 where v ends the completion.
        alpha: > 0.

    Returns:
        [..., tokens] nats.
    """
    entropies = np.asarray(suffix_entropies, dtype=np.float64)
    scaled = positive("alpha", alpha) * as_law("log_p", log_p) + (1 - alpha) * entropies
    return scaled - np.asarray(log_sum_exp(scaled))[..., None]


def log_odds_ratio(entropy_a: ArrayLike, entropy_b: ArrayLike, alpha: float) -> Numbers:
    """`log [odds_power(a:b) / odds_temperature(a:b)] = (α − 1)(H_α(S_b) − H_α(S_a))`.

    odds(a:b) is the ratio of the probabilities of the next tokens a and b, under the power distribution and under
    token-wise tempering at temperature 1/α (Tomihari & Sato 2026, Prop. 1). Both have the
    same odds for two tokens after which the model is equally uncertain.

    Args:
        entropy_a: [...] nats, H_α of what follows a.
        entropy_b: [...] nats, H_α of what follows b.
        alpha: > 0.

    Returns:
        [...] nats.
    """
    gap = np.asarray(entropy_b, dtype=np.float64) - np.asarray(entropy_a, dtype=np.float64)
    return (positive("alpha", alpha) - 1) * gap


def incremental_log_weights(
    log_p: ArrayLike, log_q: ArrayLike, alpha: float, suffix_entropies: ArrayLike | None = None
) -> FloatArray:
    """`log w(v) = α log p(v) − log q(v) + (1 − α) H_α(S_v)` of a next token v drawn from a one-step proposal q.

    With the suffix entropies, w is the importance weight for the power distribution's own next token. Without them
    it is the weight that a sampler can compute as it goes (Azizi et al. 2026), for the prefix target
    `p(x_≤t)^α`; at `q ∝ p^α` it does not depend on v, and only the suffixes are missing
    (Tomihari & Sato 2026, Prop. 2).

    Args:
        log_p: [..., tokens] nats.
        log_q: [..., tokens] nats; q must be positive wherever p is.
        alpha: > 0.
        suffix_entropies: [..., tokens] nats, H_α(S_v); None for the weight without them.

    Returns:
        [..., tokens] nats; −inf where p is 0.
    """
    p, q = two_laws(log_p, log_q)
    drawn = np.isfinite(q)
    if np.any(~drawn & np.isfinite(p)):
        raise ValueError("log_q: must be finite wherever log_p is; a token that q never draws cannot be reweighted")
    log_w = positive("alpha", alpha) * p - np.where(drawn, q, 0.0)
    return log_w if suffix_entropies is None else log_w + (1 - alpha) * np.asarray(suffix_entropies, dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class WeightMoments:
    """How good a proposal is, by its importance weights.

    Attributes:
        log_mean: `log E_q[w]`, [...] nats: the log of the target's normaliser.
        cv: coefficient of variation `sd_q(w) / E_q[w]`, [...].
        ess_fraction: `(E_q w)² / E_q[w²] = 1 / (1 + cv²)`, [...] in (0, 1]: effective sample size per draw (Kong 1992).
    """

    log_mean: Numbers
    cv: Numbers
    ess_fraction: Numbers


def weight_moments(log_weights: ArrayLike, log_q: ArrayLike) -> WeightMoments:
    """Mean, coefficient of variation and ESS fraction of weights under the proposal q.

    `cv² = E_q[(w/E_q w − 1)²] = χ²(target ‖ q)`. For one-step proposals (Tomihari & Sato 2026, Prop. 2), with the
    suffix entropies in the weights: `E_q w = Σ_v p(v)^α exp((1 − α) H_α(S_v))` for every q; cv = 0 iff q is the
    power distribution's conditional; and at `q ∝ p^α` cv is that of `exp((1 − α) H_α(S_v))`, so it vanishes
    iff all suffixes are equally uncertain, which cannot be seen from a prefix.

    For the sample moments of N drawn weights, pass equal shares, `log_q = −log N`.

    Args:
        log_weights: [..., outcomes] nats.
        log_q: [..., outcomes] nats.
    """
    q = as_law("log_q", log_q)
    log_w = np.broadcast_to(np.asarray(log_weights, dtype=np.float64), np.broadcast(log_weights, q).shape)
    log_mean = log_sum_exp(q + log_w)
    if not np.all(np.isfinite(log_mean)):
        raise ValueError("log_weights: their mean must be positive and finite")
    excess = log_w - np.asarray(log_mean)[..., None]
    with np.errstate(divide="ignore"):  # log|e^d − 1|, in log space because w may be of any size
        log_deviation = np.maximum(excess, 0.0) + np.log(-np.expm1(-np.abs(excess)))
    log_cv_squared = log_sum_exp(q + 2 * log_deviation)
    with np.errstate(over="ignore"):  # a cv above 1e308 is infinite
        cv = np.exp(log_cv_squared / 2)
    return WeightMoments(log_mean, cv, np.exp(-np.logaddexp(0.0, log_cv_squared)))


def kl_rl_objective(log_pi: ArrayLike, log_p: ArrayLike, reward: ArrayLike, kl_weight: float) -> Numbers:
    """`J(π) = E_π[r] − β KL(π ‖ p)`: KL-regularised reinforcement learning with reference p.

    Args:
        log_pi: [..., outcomes] nats, the policy.
        log_p: [..., outcomes] nats, the reference.
        reward: r, [..., outcomes].
        kl_weight: β > 0, rewards per nat.
    """
    return expectation(log_pi, reward) - positive("kl_weight", kl_weight) * kl_divergence(log_pi, log_p)


def kl_rl_optimum(log_p: ArrayLike, reward: ArrayLike, kl_weight: float) -> FloatArray:
    """`log π* = log p + r/β − log E_p[exp(r/β)]`: the policy that maximises `kl_rl_objective`.

    For every π, `J(π) = J(π*) − β KL(π ‖ π*)`. With the model's own `r = log p` it is the power distribution with
    `α = 1 + 1/β` (Tomihari & Sato 2026, Corollary 1).

    Args:
        log_p: [..., outcomes] nats.
        reward: r, [..., outcomes].
        kl_weight: β > 0.

    Returns:
        [..., outcomes] nats.
    """
    tilted = as_law("log_p", log_p) + np.asarray(reward, dtype=np.float64) / positive("kl_weight", kl_weight)
    return tilted - np.asarray(log_sum_exp(tilted))[..., None]


def kl_rl_value(log_p: ArrayLike, reward: ArrayLike, kl_weight: float) -> Numbers:
    """`max_π J(π) = β log E_p[exp(r/β)]`; with `r = log p` it is `−H_α(p)`, `α = 1 + 1/β` (Corollary 1).

    Arguments as for `kl_rl_optimum`.
    """
    tilt = np.asarray(reward, dtype=np.float64) / positive("kl_weight", kl_weight)
    return kl_weight * log_sum_exp(as_law("log_p", log_p) + tilt)


def self_reward_alpha(kl_weight: float) -> float:
    """`α = 1 + 1/β`: the exponent that KL-regularised RL with reward log p and KL weight β ends at (Corollary 1)."""
    return 1 + 1 / positive("kl_weight", kl_weight)


def maximiser_mass(log_p: ArrayLike, alpha: float) -> Numbers:
    """`π_α({x : p(x) = max p})`: the mass of the likeliest outcomes, which rises to 1 as α → ∞.

    The limit in Tomihari & Sato 2026, Prop. 3. Outcomes within `TIED_WITHIN` nats of the largest count as tied.

    Args:
        log_p: [..., outcomes] nats.
        alpha: > 0.

    >>> [round(float(maximiser_mass(np.log([0.4, 0.4, 0.2]), alpha)), 4) for alpha in (1, 4, 16)]
    [0.8, 0.9697, 1.0]
    """
    law = as_law("log_p", log_p)
    return np.sum(np.where(_maximal(law), np.exp(power_law(law, alpha)), 0.0), axis=-1)


def maximiser_mass_bound(log_p: ArrayLike, alpha: float) -> Numbers:
    """`1 / (1 + ((1 − m)/m) exp(−(α − 1) Δ))`: a lower bound of `maximiser_mass`.

    m is the mass of the maximisers at α = 1, and Δ the gap in log p to the next likeliest outcome. Over the maximisers
    `Σ p^α = m p₁^(α−1)`, and over all others `Σ p^α ≤ (1 − m) p₂^(α−1)`. The bound is ours.

    Args:
        log_p: [..., outcomes] nats.
        alpha: >= 1.
    """
    if not alpha >= 1:
        raise ValueError(f"alpha={alpha!r}: must be >= 1 for this bound; maximiser_mass takes any alpha > 0")
    law = as_law("log_p", log_p)
    top = _maximal(law)
    on, off = (log_sum_exp(np.where(which, law, -np.inf)) for which in (top, ~top))
    gap = np.max(law, axis=-1) - np.max(np.where(top, -np.inf, law), axis=-1)
    gap = np.where(np.isfinite(gap), gap, 0.0)  # where all are tied, off is −inf and the gap does not matter
    return np.exp(-np.logaddexp(0.0, off - on - (positive("alpha", alpha) - 1) * gap))


def reward_slope(log_p: ArrayLike, alpha: float, reward: ArrayLike) -> Numbers:
    """`d/dα E_{π_α}[r*] = Cov_{π_α}(r*, log p)`: what sharpening does for a true reward r*.

    `d/dα log π_α(x) = log p(x) − E_{π_α}[log p]` (Tomihari & Sato 2026, Prop. 4). With `r* = log p` the slope is a
    variance: sharpening always raises the self-reward.

    Args:
        log_p: [..., outcomes] nats, of whole completions.
        alpha: > 0.
        reward: r*, [..., outcomes].
    """
    return covariance(power_law(log_p, alpha), reward, log_p)


def _maximal(law: FloatArray) -> NDArray[np.bool_]:
    return law >= np.max(law, axis=-1, keepdims=True) - TIED_WITHIN
