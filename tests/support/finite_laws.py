"""Prompts whose completions are a finite set, so that all that a sample estimates is also known exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats

from lm_power import theory
from lm_power.report.probe.estimates import Draws


@dataclasses.dataclass(frozen=True)
class Law:
    """A prompt's completions, all of them: arrays [completions]."""

    log_p: np.ndarray
    length: np.ndarray
    hash_reward: np.ndarray
    correct: np.ndarray

    def sample(self, rng: np.random.Generator, alpha: float, n: int) -> np.ndarray:
        """Places of n completions drawn from p^alpha."""
        return rng.choice(len(self.log_p), size=n, p=np.exp(theory.power_law(self.log_p, alpha)))

    def draws(self, places: np.ndarray) -> Draws:
        return Draws(self.hash_reward[places], (self.log_p / self.length)[places], self.log_p[places])


def random_laws(seed: int, prompts: int = 60) -> list[Law]:
    """Prompts of unequal difficulty; correctness goes with log p, more in some than in others."""
    rng = np.random.default_rng(seed)
    laws = []
    for _ in range(prompts):
        size = int(rng.integers(5, 40))
        log_p = rng.normal(scale=1.5, size=size)
        log_p -= np.logaddexp.reduce(log_p)
        length = rng.integers(2, 30, size=size)
        above = log_p - theory.expectation(log_p, log_p)
        correct = rng.random(size) < scipy.stats.norm.cdf(rng.normal() + rng.uniform(0.0, 2.0) * above)
        laws.append(Law(log_p, length, rng.random(size), correct.astype(float)))
    return laws
