"""Estimates from seeded draws, for the figures that are not exact."""

from __future__ import annotations

import numpy as np
from zipf import ZipfLaw

from lm_power import theory

REPEATS = 200
SIZES = (30, 100, 300, 1000, 3000)


def weight_estimates(
    log_q: np.ndarray, log_weights: np.ndarray, seed: int, sizes: tuple[int, ...] = SIZES
) -> theory.WeightMoments:
    """Moments of the weights of N first tokens drawn from a proposal q; fields are [sizes, REPEATS].

    Args:
        log_q: [candidates] nats.
        log_weights: [candidates] nats.
        seed: of the draws.
        sizes: each N.
    """
    rng = np.random.default_rng(seed)
    proposal = np.exp(log_q)
    rows = []
    for size in sizes:
        drawn = rng.choice(len(proposal), size=(REPEATS, size), p=proposal / proposal.sum())
        rows.append(theory.weight_moments(log_weights[drawn], np.full(size, -np.log(size))))
    return theory.WeightMoments(
        *(np.stack([getattr(row, field) for row in rows]) for field in ("log_mean", "cv", "ess_fraction"))
    )


def power_by_rollouts(
    law: ZipfLaw, alpha: float, rollouts: int, target: np.ndarray, seed: int, candidates: int = 50, repeats: int = 50
) -> np.ndarray:
    """[repeats] total variation to `target` of the power conditional as R rollouts a candidate estimate it.

    `Σ_m p(m | k)^α = E[p(m | k)^(α − 1)]` over suffixes m drawn from the model: the mean over R of them is without
    bias (Ji et al. 2026). Ranks above `candidates` hold next to nothing of the target and keep the exact sum.
    """
    rng = np.random.default_rng([seed, rollouts])
    log_sums = np.tile((1 - alpha) * law.entropies(alpha), (repeats, 1))
    for k in range(candidates):
        suffix_p = np.exp(law.suffix_log_p[k])
        drawn = rng.choice(law.suffixes, size=(repeats, rollouts), p=suffix_p / suffix_p.sum())
        log_sums[:, k] = np.log(np.mean(suffix_p[drawn] ** (alpha - 1), axis=1))
    return np.asarray(theory.total_variation(target, theory.power_next_token(law.log_p, log_sums / (1 - alpha), alpha)))
