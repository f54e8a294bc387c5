"""Where a Metropolis-Hastings step cuts a completion: distributions c(i | x) on its positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np

from lm_power.chains.base import Path
from lm_power.decoding import FloatArray, Measures


class Cuts(Protocol):
    """A distribution c(i | x) on the positions 0 … n−1 of a completion x, positive everywhere.

    Attributes:
        measures: what it needs from each next-token distribution.
    """

    @property
    def measures(self) -> Measures: ...  # noqa: D102

    def draw(self, path: Path, generator: np.random.Generator) -> int:
        """A cut, distributed as c(· | path)."""
        ...

    def log_probability(self, path: Path, cut: int) -> float:
        """`log c(cut | path)`, nats."""
        ...

    def most(self, path: Path, keep: int, cut: int) -> tuple[float, float]:
        """(a, b) with `log c(cut | y) ≤ a·log n' + b` for all y of length n' > keep that begin as `path[:keep]`."""
        ...


@dataclasses.dataclass(frozen=True)
class UniformCuts:
    """`c(i | x) = 1/n` (Karan & Du 2025)."""

    measures = Measures()

    def draw(self, path: Path, generator: np.random.Generator) -> int:
        """Uniform on 0 … n−1."""
        return int(generator.integers(len(path)))

    def log_probability(self, path: Path, cut: int) -> float:
        """`−log n`."""
        return -math.log(len(path))

    def most(self, path: Path, keep: int, cut: int) -> tuple[float, float]:
        """`−log n'`, which is exact."""
        return -1.0, 0.0


class ListedCuts:
    """Cuts whose probabilities are one array, each of which can only fall as the completion grows.

    A subclass has `probabilities`.
    """

    def probabilities(self, path: Path, length: int) -> FloatArray:
        """[length] `c(· | y)` for a completion y of `length` ≤ n + 1 tokens that begins like `path`."""
        raise NotImplementedError

    def draw(self, path: Path, generator: np.random.Generator) -> int:
        """By inverse CDF, from one uniform."""
        cumulated = np.cumsum(self.probabilities(path, len(path)))
        return int(np.searchsorted(cumulated[:-1], generator.random() * cumulated[-1], side="right"))

    def log_probability(self, path: Path, cut: int) -> float:
        """`log c(cut | path)`, nats."""
        return math.log(self.probabilities(path, len(path))[cut])

    def most(self, path: Path, keep: int, cut: int) -> tuple[float, float]:
        """The value for the shortest possible y, since it can only fall as y grows."""
        return 0.0, math.log(self.probabilities(path, keep + 1)[cut])


@dataclasses.dataclass(frozen=True)
class EntropyCuts(ListedCuts):
    """Cuts where the model becomes less certain, mixed with uniform ones.

    `c(i | x) = (1 − s)/n + s·g_i/G(x)`, with `g_i = max(H_i − H_{i−1}, 0)^power`, `H_i` the entropy of p(· | x_<i) in
    nats, `H_{−1} = 0`, and `G(x) = Σ_{i<n} g_i`; uniform if all g are 0. The scores are those of Zhou et al. (2026,
    "Entropy-Cut Metropolis-Hastings"). The mixture is ours: without it `c(i | y)` can be 0 although `c(i | x)` is not.
    `g_i` depends on x_<i alone and G can only grow, so `c(i | y)` can only fall as y grows.

    Attributes:
        share: s, in (0, 1).
        power: exponent of the rise in entropy, ≥ 0.
    """

    share: float = 0.8
    power: float = 4.0
    measures = Measures(entropy=True)

    def probabilities(self, path: Path, length: int) -> FloatArray:
        """[length] `(1 − s)/n + s·g_i/G(x)`; while no score is positive, `1/n`, which a later score can only lower."""
        assert path.entropy is not None
        rise = np.diff(path.entropy[:length], prepend=0.0)
        # A rise below the rounding of a float32 sum does not count: where entropy is constant, cuts would follow noise.
        scores: FloatArray = np.where(rise > 1e-5, rise, 0.0) ** self.power
        total = scores.sum()
        scored = scores / total if total > 0 else np.full(length, 1 / length)
        return (1 - self.share) / length + self.share * scored


@dataclasses.dataclass(frozen=True)
class LastBlockCuts(ListedCuts):
    """Cuts in the last block of a completion, mixed with uniform ones: `(1 − s)/n + s·1[i ≥ n − B]/min(n, B)`.

    With s = 1 everything before the last block would be frozen, and block-wise temperature would be sampled instead of
    p^alpha. Therefore s is always below 1.

    Attributes:
        share: s, in (0, 1).
        block_size: B, tokens.
    """

    share: float
    block_size: int
    measures = Measures()

    def probabilities(self, path: Path, length: int) -> FloatArray:
        """[length] `(1 − s)/n + s·1[i ≥ n − B]/min(n, B)`."""
        last = (np.arange(length) >= length - self.block_size) / min(length, self.block_size)
        law: FloatArray = (1 - self.share) / length + self.share * last
        return law
