"""A toy of which half the tokens are on no list, and the exact laws of chains on it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from toy import power_law, random_toy, transition_matrix

from lm_power.chains import BlockwiseMetropolis

ALPHA, LONGEST, TOP = 1.5, 3, 3
FALSE_ALARM = 1e-5
STEPS = 6
"""Of sampled chains, which are compared with their exact law after so many: that it tends to p^alpha needs no draws."""
TOY = random_toy(6, (4, 5), seed=5, eos_bias=-0.5)
CONFINED = dataclasses.replace(TOY, reach=TOP, _tables={})
COMPLETIONS = list(TOY.completions(LONGEST))
TARGET = power_law(TOY, COMPLETIONS, ALPHA)
ON_LISTS = np.array([np.isfinite(CONFINED.segment(x, 0, ALPHA, LONGEST).log_q).all() for x in COMPLETIONS])


def chain(steps: int, **options) -> BlockwiseMetropolis:
    return BlockwiseMetropolis(ALPHA, ALPHA, LONGEST, steps, LONGEST, **options)


def q_k() -> np.ndarray:
    """[completions] probabilities of token-by-token draws from q_K."""
    return np.array([np.exp(CONFINED.segment(x, 0, ALPHA, LONGEST).log_q.sum()) for x in COMPLETIONS])


@functools.cache
def kernel(explore: float) -> np.ndarray:
    """Transition matrix of a step that proposes from q_K (explore 0), or from both alike (explore 0.5)."""
    states, matrix = transition_matrix(CONFINED, chain(1, explore=explore))
    assert states == COMPLETIONS
    return matrix


def exact(steps: int, explore: float) -> np.ndarray:
    """[completions] law of a chain of one block after some steps."""
    return q_k() @ np.linalg.matrix_power((1 - explore) * kernel(0.0) + explore * kernel(0.5), steps)
