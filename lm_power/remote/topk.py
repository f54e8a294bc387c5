"""Proposals confined to the K likeliest tokens that a server lists with each token it draws.

At inverse temperature beta the server draws from `p^beta / Σ_v p(v)^beta` over all tokens, whose normaliser it does not
tell. A draw that is not on its list is thrown away and made again; what is kept is then exactly a draw from

    q_K(v) = p(v)^beta · 1[v on the list] / Σ_{u on the list} p(u)^beta,

whose normaliser is a sum of numbers that were returned. The list must not depend on what was drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from lm_power.decoding import FloatArray, IntArray


@dataclasses.dataclass(frozen=True)
class TopLists:
    """For each of m positions the K likeliest tokens, by falling probability, then by id.

    Attributes:
        ids: [m, K] int64 token ids; -1 where a list is shorter.
        log_p: [m, K] float64 raw log p, nats; -inf where a list is shorter, or where it is not known.
    """

    ids: IntArray
    log_p: FloatArray

    @classmethod
    def of(cls, positions: IntArray, ids: IntArray, log_p: FloatArray, shape: tuple[int, int]) -> TopLists:
        """From entries in whatever order; where a position has more than K, its K likeliest.

        Args:
            positions: [entries] which of the m positions each belongs to.
            ids: [entries] token id of each.
            log_p: [entries] its log p, nats.
            shape: m, K.
        """
        order = np.lexsort((ids, -log_p, positions))
        positions, ids, log_p = positions[order], ids[order], log_p[order]
        rank = np.arange(len(positions)) - np.searchsorted(positions, positions)
        listed, made = rank < shape[1], cls.unknown(*shape)
        made.ids[positions[listed], rank[listed]] = ids[listed]
        made.log_p[positions[listed], rank[listed]] = log_p[listed]
        return made

    @classmethod
    def ordered(cls, ids: IntArray, log_p: FloatArray) -> TopLists:
        """From [m, K] token ids and their log p, in whatever order."""
        order = np.lexsort((ids, -log_p), axis=-1)
        return cls(np.take_along_axis(ids, order, axis=-1), np.take_along_axis(log_p, order, axis=-1))

    @classmethod
    def unknown(cls, length: int, width: int) -> TopLists:
        """Lists of which nothing is known."""
        return cls(np.full((length, width), -1, np.int64), np.full((length, width), -np.inf))

    @classmethod
    def joined(cls, parts: Iterable[TopLists]) -> TopLists:
        """One after the other."""
        parts = list(parts)
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.log_p for part in parts]))

    def __len__(self) -> int:
        """Positions."""
        return len(self.ids)

    def __getitem__(self, positions: slice) -> TopLists:
        """Those of some positions."""
        return TopLists(self.ids[positions], self.log_p[positions])

    def known(self, position: int) -> bool:
        """Whether there is a list for a position."""
        return position < len(self) and bool(self.ids[position, 0] >= 0)

    def hold(self, tokens: IntArray) -> np.ndarray:
        """[m] bool: whether each position's token is on its list."""
        return np.asarray((self.ids == tokens[:, None]).any(1))

    def log_z(self, exponent: float) -> FloatArray:
        """[m] float64 `log Σ_{v on the list} p(v)^exponent`, nats."""
        scaled = exponent * self.log_p
        most = scaled.max(axis=1, keepdims=True)
        return most[:, 0] + np.log(np.exp(scaled - most).sum(axis=1))

    def log_q(self, tokens: IntArray, log_p: FloatArray, beta: float) -> FloatArray:
        """[m] float64 log q_K of each position's token, whose log p is `log_p`; -inf off the list."""
        on_list = np.minimum(beta * log_p - self.log_z(beta), 0.0)
        return np.where(self.hold(tokens), on_list, -np.inf)

    def entropy(self) -> FloatArray:
        """[m] float64 entropy of p, nats, as if all that is not on the list were one token."""
        p = np.exp(self.log_p)
        rest = np.clip(1 - p.sum(axis=1), 0, 1)
        terms = np.where(p > 0, p * np.where(p > 0, self.log_p, 0), 0)
        return -terms.sum(axis=1) - np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1)), 0)

    def draw_without(self, excluded: int, beta: float, uniform: float) -> tuple[int, float]:
        """A token of the first position's list, drawn from q_K without `excluded` by inverse CDF, and its log p.

        Args:
            excluded: token id; need not be on the list.
            beta: of q_K.
            uniform: in [0, 1).

        Raises:
            ValueError: the list has no other token. Nobody refuses a token that q_K draws with certainty.
        """
        ids, log_p = self.ids[0], self.log_p[0]
        scaled = np.where((ids < 0) | (ids == excluded), -np.inf, beta * log_p)
        if np.isneginf(scaled).all():
            raise ValueError(f"no token but {excluded} is on the list")
        reached = np.cumsum(np.exp(scaled - scaled.max()))
        # Below the sum whatever the rounding, so that no token of weight zero is taken at the end.
        place = int(np.searchsorted(reached, min(uniform * reached[-1], np.nextafter(reached[-1], 0)), side="right"))
        return int(ids[place]), float(log_p[place])
