"""Distributions over token sequences of any lengths: prefixes, next tokens, suffixes, powers, tempering."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lm_power.theory import laws
from lm_power.theory.laws import FloatArray

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceDistribution:
    """A finite distribution over terminal token sequences.

    The next token after a prefix and the suffix after it have distributions of this kind too, so every method also
    applies to them.

    Attributes:
        completions: every sequence of positive probability; prefix-free.
        log_p: [completions] float64 nats, finite.

    Raises:
        ValueError: a completion occurs twice or begins with another one, the probabilities do not sum to 1, or a
            probability is 0.

    >>> p = SequenceDistribution.from_table({(0, 0): 0.4, (1, 0): 0.3, (1, 1): 0.3})
    >>> {x: round(q, 3) for x, q in p.next_token().table().items()}
    {(0,): 0.4, (1,): 0.6}

    Sharpened as a whole, it prefers 0, after which there is only one sequence; tempered token by token, it prefers 1:

    >>> {x: round(q, 3) for x, q in p.power(4).next_token().table().items()}
    {(0,): 0.612, (1,): 0.388}
    >>> {x: round(q, 3) for x, q in p.tempered(1 / 4).next_token().table().items()}
    {(0,): 0.165, (1,): 0.835}
    """

    completions: tuple[Tokens, ...]
    log_p: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "completions", tuple(tuple(int(token) for token in x) for x in self.completions))
        log_p = np.array(self.log_p, dtype=np.float64)  # a copy: nobody else may change it
        if log_p.shape != (len(self.completions),):
            raise ValueError(
                f"log_p of shape {log_p.shape}: must have one entry for each of {len(self.completions)} completions"
            )
        log_p = laws.as_law("log_p", log_p)
        log_p.flags.writeable = False
        object.__setattr__(self, "log_p", log_p)
        for x, value in zip(self.completions, log_p, strict=True):
            if value == -np.inf:
                raise ValueError(f"completion {x}: probability 0; leave it out")
        # In sorted order, a sequence that begins with x comes right after x.
        for x, y in itertools.pairwise(sorted(self.completions)):
            if y[: len(x)] == x:
                what = "occurs twice" if x == y else f"is the beginning of {y}: one of them is not terminal"
                raise ValueError(f"completion {x} {what}")

    @classmethod
    def from_table(cls, table: Mapping[Tokens, float]) -> SequenceDistribution:
        """From completion → probability, each > 0."""
        if not all(p > 0 for p in table.values()):
            x, p = next((x, p) for x, p in table.items() if not p > 0)
            raise ValueError(f"completion {x}: probability {p}, must be > 0; leave out what cannot occur")
        return cls(tuple(table), np.log(np.fromiter(table.values(), dtype=np.float64)))

    @classmethod
    def from_next_token(
        cls,
        next_log_p: Callable[[Tokens], ArrayLike],
        terminal: Callable[[Tokens], bool],
        max_prefixes: int = 1_000_000,
    ) -> SequenceDistribution:
        """Every completion of a next-token distribution, by the order of tokens: `log p(x) = Σ_t log p(x_t | x_<t)`.

        Args:
            next_log_p: prefix → [vocabulary] nats, normalised; −inf for a token that cannot follow.
            terminal: whether a sequence is a completion; asked for every sequence but the empty one.
            max_prefixes: give up after so many prefixes.

        Raises:
            ValueError: a next-token distribution does not sum to 1, or there are more than `max_prefixes` prefixes.
        """
        completions: list[Tokens] = []
        log_p: list[float] = []
        waiting: list[tuple[Tokens, float]] = [((), 0.0)]
        visited = 0
        while waiting:
            tokens, log_prob = waiting.pop()
            if tokens and terminal(tokens):
                completions.append(tokens)
                log_p.append(log_prob)
                continue
            visited += 1
            if visited > max_prefixes:
                raise ValueError(
                    f"more than max_prefixes={max_prefixes} prefixes, this one of {len(tokens)} tokens: "
                    "make sure that `terminal` ends every sequence, or enumerate a smaller distribution"
                )
            following = laws.as_law(f"next_log_p({tokens})", next_log_p(tokens))
            waiting.extend(
                ((*tokens, token), log_prob + float(following[token]))
                for token in reversed(range(len(following)))
                if following[token] > -np.inf
            )
        return cls(tuple(completions), np.array(log_p))

    def table(self) -> dict[Tokens, float]:
        """Completion → probability."""
        return dict(zip(self.completions, np.exp(self.log_p).tolist(), strict=True))

    def lengths(self) -> FloatArray:
        """[completions] tokens."""
        return np.array([float(len(x)) for x in self.completions])

    def log_prob(self, sequences: Iterable[Sequence[int]]) -> FloatArray:
        """[sequences] nats: log p of whole completions; −inf for any other sequence."""
        index = dict(zip(self.completions, self.log_p.tolist(), strict=True))
        return np.array([index.get(tuple(x), -np.inf) for x in sequences])

    def log_prefix(self, prefix: Sequence[int]) -> float:
        """`log p(prefix) = log Σ p(x)` over the completions x that begin with it, nats; −inf if none does."""
        return self._log_prefix.get(tuple(prefix), -np.inf)

    def prefixes(self) -> tuple[Tokens, ...]:
        """The proper prefixes of the completions, the empty one first."""
        return tuple(self._following)

    def marginal(self, length: int) -> SequenceDistribution:
        """The distribution of the first `length` tokens; a shorter completion counts whole.

        Raises:
            ValueError: `length` is negative.
        """
        if length < 0:
            raise ValueError(f"length={length}: must be >= 0")
        heads = tuple(dict.fromkeys(x[:length] for x in self.completions))
        return SequenceDistribution(heads, np.array([self._log_prefix[head] for head in heads]))

    def suffixes(self, prefix: Sequence[int] = ()) -> SequenceDistribution:
        """The distribution of what follows `prefix`, `p(x_≥t | prefix)`; after a whole completion, the empty sequence.

        Raises:
            ValueError: no completion begins with `prefix`.
        """
        prefix = tuple(prefix)
        if prefix not in self._log_prefix:
            raise ValueError(f"prefix={prefix}: no completion begins with it")
        at = [place for place, x in enumerate(self.completions) if x[: len(prefix)] == prefix]
        tails = tuple(self.completions[place][len(prefix) :] for place in at)
        return SequenceDistribution(tails, self.log_p[at] - self._log_prefix[prefix])

    def next_token(self, prefix: Sequence[int] = ()) -> SequenceDistribution:
        """The distribution of the token after `prefix`, as sequences of one token.

        Raises:
            ValueError: no completion begins with `prefix`, or it is one.
        """
        tokens = self._following.get(tuple(prefix))
        if tokens is None:
            raise ValueError(f"prefix={tuple(prefix)}: no completion continues it")
        log_p = [self.log_prefix((*prefix, token)) for token in tokens]
        return SequenceDistribution(tuple((token,) for token in tokens), np.array(log_p) - self.log_prefix(prefix))

    def renyi_entropy(self, order: float) -> float:
        """`H_order`, nats; see `laws.renyi_entropy`."""
        return float(laws.renyi_entropy(self.log_p, order))

    def suffix_entropies(self, prefix: Sequence[int], order: float) -> FloatArray:
        """[tokens] nats: `H_order` of what follows each token of `next_token(prefix)`, in its order."""
        following = self.next_token(prefix).completions
        return np.array([self.suffixes((*prefix, *token)).renyi_entropy(order) for token in following])

    def power(self, alpha: float) -> SequenceDistribution:
        """`π_α ∝ p^α` of whole completions (Karan & Du 2025).

        Its `marginal` and `next_token` are the power distribution's prefix marginals and conditionals.

        Args:
            alpha: > 0.
        """
        return SequenceDistribution(self.completions, laws.power_law(self.log_p, alpha))

    def tempered(self, proposal_temperature: float) -> SequenceDistribution:
        """The distribution of token-by-token draws from `q(v | prefix) ∝ p(v | prefix)^(1/τ)`.

        Args:
            proposal_temperature: τ > 0; 1 is p itself.

        Raises:
            ValueError: τ is not positive and finite.
        """
        if not 0 < proposal_temperature < np.inf:
            raise ValueError(f"proposal_temperature={proposal_temperature!r}: must be > 0 and finite")
        log_q = {
            (*prefix, token): value
            for prefix, tokens in self._following.items()
            for token, value in zip(
                tokens, laws.power_law(self.next_token(prefix).log_p, 1 / proposal_temperature), strict=True
            )
        }
        sums = [sum(log_q[x[:t]] for t in range(1, len(x) + 1)) for x in self.completions]
        return SequenceDistribution(self.completions, np.array(sums, dtype=np.float64))

    def kl_divergence(self, other: SequenceDistribution) -> float:
        """`KL(self ‖ other)`, nats, completion by completion; infinite where `other` lacks one of ours."""
        ours, theirs = self._matched(other)
        return float(laws.kl_divergence(ours, theirs))

    def total_variation(self, other: SequenceDistribution) -> float:
        """`½ Σ |self − other|`, completion by completion."""
        ours, theirs = self._matched(other)
        return float(laws.total_variation(ours, theirs))

    def _matched(self, other: SequenceDistribution) -> tuple[FloatArray, FloatArray]:
        union = tuple(dict.fromkeys((*self.completions, *other.completions)))
        return self.log_prob(union), other.log_prob(union)

    @functools.cached_property
    def _log_prefix(self) -> dict[Tokens, float]:
        """Every prefix of every completion, whole ones included → log p(prefix)."""
        through: dict[Tokens, list[int]] = {}
        for place, x in enumerate(self.completions):
            for t in range(len(x) + 1):
                through.setdefault(x[:t], []).append(place)
        return {prefix: float(laws.log_sum_exp(self.log_p[places])) for prefix, places in through.items()}

    @functools.cached_property
    def _following(self) -> dict[Tokens, list[int]]:
        """Every proper prefix → the tokens that follow it, the shortest prefixes first."""
        following: dict[Tokens, list[int]] = {}
        for prefix in sorted(self._log_prefix, key=len):
            if prefix:
                following.setdefault(prefix[:-1], []).append(prefix[-1])
        return following
