"""The theory of power distributions, computed exactly on finite sets: NumPy, float64, log space, and no model.

`laws` has powers, entropies and divergences; `propositions` has what follows from them. Both take arrays of
log-probabilities. `sequences` has distributions over token sequences of any lengths, with their prefixes, next tokens
and suffixes. The tests use this package as their oracle.

Sources: Karan & Du 2025 (arXiv 2510.14901), Tomihari & Sato 2026 (arXiv 2605.04542), Azizi et al. 2026 (arXiv
2602.10273). Propositions have the numbers of Tomihari & Sato. We worked from a summary of them, so their wording and
the derivations in the docstrings are ours.
"""

from __future__ import annotations

from lm_power.theory.laws import (
    covariance,
    expectation,
    kl_divergence,
    log_power_sum,
    power_law,
    renyi_entropy,
    total_variation,
)
from lm_power.theory.propositions import (
    WeightMoments,
    incremental_log_weights,
    kl_rl_objective,
    kl_rl_optimum,
    kl_rl_value,
    log_odds_ratio,
    maximiser_mass,
    maximiser_mass_bound,
    power_next_token,
    reward_slope,
    self_reward_alpha,
    weight_moments,
)
from lm_power.theory.sequences import SequenceDistribution

__all__ = [
    "SequenceDistribution",
    "WeightMoments",
    "covariance",
    "expectation",
    "incremental_log_weights",
    "kl_divergence",
    "kl_rl_objective",
    "kl_rl_optimum",
    "kl_rl_value",
    "log_odds_ratio",
    "log_power_sum",
    "maximiser_mass",
    "maximiser_mass_bound",
    "power_law",
    "power_next_token",
    "renyi_entropy",
    "reward_slope",
    "self_reward_alpha",
    "total_variation",
    "weight_moments",
]
