"""What passes between the decoder and an engine: queries, answers, and the client that carries them."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Protocol

from lm_power.decoding import FloatArray, IntArray
from lm_power.errors import LMPowerError
from lm_power.remote.topk import TopLists


class ServerError(LMPowerError):
    """A server cannot be used, or has stopped answering. The message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Query:
    """What an engine is asked for: go on with some tokens.

    Attributes:
        row: the decoder's row: queries of one row share most of their tokens, and should meet the same prefix cache.
        tokens: prompt and what is kept of the completion, token ids.
        max_tokens: to draw, at most, ≥ 1.
        temperature: of the draws; no other option may change the distribution.
        seed: in [0, 2^53): no two queries of different draws have the same.
    """

    row: int
    tokens: Sequence[int]
    max_tokens: int
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an engine has drawn: at least one token, and all of them up to where it stopped, for whatever reason.

    Attributes:
        tokens: [m ≥ 1] int64.
        log_p: [m] float64, raw log p of each, nats: that of the model, whatever the temperature.
        lists: of the m positions, [m, K]; they must not depend on which tokens were drawn.
    """

    tokens: IntArray
    log_p: FloatArray
    lists: TopLists


class Client(Protocol):
    """An engine as the decoder sees it: queries go in, answers come out in any order.

    Attributes:
        top: K, tokens on a list.
        eos_ids: tokens at which an answer may stop, set before the first query. An engine may go on, for nothing.
    """

    top: int
    eos_ids: list[int]

    def add(self, number: int, query: Query) -> None:
        """Begin to answer a query, which is called `number` from now on, as no other was or will be."""
        ...

    def poll(self, wanted: Container[int]) -> Sequence[tuple[int, Answer]]:
        """Wait until one of the wanted queries has been answered; their (number, answer) pairs.

        Answers to other queries are kept: several decoders may use a client side by side. Raises `ServerError` if a
        wanted query has failed.
        """
        ...

    def abort(self, numbers: Sequence[int]) -> None:
        """Give queries up; an answer that is there already may still come, and is ignored."""
        ...

    def close(self) -> None:
        """Give up everything, and let go of the engine. Twice does no harm."""
        ...
