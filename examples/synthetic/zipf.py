"""A law of two steps on which all that Tomihari & Sato (2026) say of next tokens can be computed exactly.

A first token, Zipf-like over many candidates, then a suffix out of equally many for each: a power law again, whose
exponent depends on the candidate's rank by a sinusoid plus a trend. A large exponent means that what follows is
nearly certain. The suffix counts as one step, so that only the first token tells tempering from power.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from lm_power import theory


@dataclasses.dataclass(frozen=True)
class ZipfLaw:
    """`p(k) ∝ k^−s` for ranks k = 1 … K, then `p(m | k) ∝ m^−γ(k)` for m = 1 … M.

    `γ(k) = exponent + amplitude · sin(2π · periods · u) + trend · u` with `u = log k / log K`.

    Attributes:
        candidates: K >= 2, first tokens.
        suffixes: M >= 2, suffixes of each; all have positive probability.
        zipf: s, exponent of the first token's law.
        exponent: γ of rank 1.
        amplitude: of the sinusoid.
        periods: of the sinusoid, from rank 1 to rank K.
        trend: by how much γ has changed at rank K.
    """

    candidates: int = 500
    suffixes: int = 500
    zipf: float = 1.0
    exponent: float = 0.75
    amplitude: float = 0.2
    periods: float = 2.5
    trend: float = 0.3
    _entropies: dict[float, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """[candidates] 1 … K."""
        return np.arange(1, self.candidates + 1)

    @functools.cached_property
    def log_p(self) -> np.ndarray:
        """[candidates] nats: the next-token law."""
        return _power_of(self.ranks, np.array(self.zipf))

    @functools.cached_property
    def suffix_exponents(self) -> np.ndarray:
        """[candidates] γ."""
        u = np.log(self.ranks) / np.log(self.candidates)
        return self.exponent + self.amplitude * np.sin(2 * np.pi * self.periods * u) + self.trend * u

    @functools.cached_property
    def suffix_log_p(self) -> np.ndarray:
        """[candidates, suffixes] nats: log p(m | k)."""
        return _power_of(np.arange(1, self.suffixes + 1), self.suffix_exponents[:, None])

    def entropies(self, order: float) -> np.ndarray:
        """[candidates] nats: Rényi entropy of what follows each."""
        if order not in self._entropies:
            self._entropies[order] = np.asarray(theory.renyi_entropy(self.suffix_log_p, order))
        return self._entropies[order]

    def tempered(self, proposal_temperature: float) -> np.ndarray:
        """[candidates] nats: the next token under token-wise tempering, `∝ p(k)^(1/τ)`."""
        return theory.power_law(self.log_p, 1 / proposal_temperature)

    def power(self, alpha: float) -> np.ndarray:
        """[candidates] nats: the next token under the power distribution of whole sequences."""
        return theory.power_next_token(self.log_p, self.entropies(alpha), alpha)

    def log_weights(self, alpha: float, proposal_temperature: float, suffixes: bool = True) -> np.ndarray:
        """[candidates] nats: incremental weights of proposals at a temperature, with or without the suffixes."""
        entropies = self.entropies(alpha) if suffixes else None
        return theory.incremental_log_weights(self.log_p, self.tempered(proposal_temperature), alpha, entropies)

    def moments(self, alpha: float, proposal_temperature: float, suffixes: bool = True) -> theory.WeightMoments:
        """Mean, coefficient of variation and ESS fraction of these weights."""
        log_weights = self.log_weights(alpha, proposal_temperature, suffixes)
        return theory.weight_moments(log_weights, self.tempered(proposal_temperature))

    def power_by_sequences(self, alpha: float) -> np.ndarray:
        """[candidates] nats: `power` without any entropy, by summing p(sequence)^α over the suffixes of each token."""
        sharp = theory.power_law(self.joint, alpha).reshape(self.candidates, self.suffixes)
        return np.logaddexp.reduce(sharp, axis=1)

    def proposals(self, alpha: float) -> dict[str, np.ndarray]:
        """Four one-step proposals for the first token, [candidates] nats each; the last is optimal (Prop. 2)."""
        return {
            "base p": self.log_p,
            "token-wise, τ = 1/α": self.tempered(1 / alpha),
            "uniform": np.full(self.candidates, -np.log(self.candidates)),
            "optimal": self.power(alpha),
        }

    def proposal_weights(self, alpha: float) -> dict[str, np.ndarray]:
        """[candidates] nats: log incremental weights of `proposals`, with what follows each token in them."""
        return {
            name: theory.incremental_log_weights(self.log_p, log_q, alpha, self.entropies(alpha))
            for name, log_q in self.proposals(alpha).items()
        }

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of every unordered pair of tokens, the likelier one first: two arrays [K (K − 1) / 2]."""
        return np.triu_indices(self.candidates, 1)

    @functools.cached_property
    def joint(self) -> np.ndarray:
        """[candidates · suffixes] nats: log p of every sequence, candidate by candidate."""
        return (self.log_p[:, None] + self.suffix_log_p).ravel()

    def log_tempered_maximum(self, alpha: float) -> float:
        """Nats: log q of the likeliest sequence of the model under token-wise tempering at 1/alpha."""
        first, second = np.divmod(np.argmax(self.joint), self.suffixes)
        return float(self.tempered(1 / alpha)[first] + theory.power_law(self.suffix_log_p[first], alpha)[second])

    def sequences(self) -> theory.SequenceDistribution:
        """Every sequence (k, m) one by one: for small laws."""
        pairs = itertools.product(range(self.candidates), range(self.suffixes))
        return theory.SequenceDistribution(tuple(pairs), self.joint)


def _power_of(values: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    log_weights = -exponents * np.log(values)
    largest = log_weights.max(axis=-1, keepdims=True)
    return log_weights - largest - np.log(np.exp(log_weights - largest).sum(axis=-1, keepdims=True))
