"""A `Decoder` over somebody else's engine, which takes a prompt and hands back tokens with their top-K lists."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lm_power.decoding import FinishedBy, FloatArray, IntArray, Measures, Request, Segment
from lm_power.engine import Counters, StopStrings
from lm_power.remote.queries import Answer, Client, Query, ServerError
from lm_power.remote.topk import TopLists

NO_MEASURES = Measures()
_LOOK = 2**32 - 1  # in place of the number of an attempt: a query for a list alone
_NUMBERS = itertools.count(1)  # of queries: used once, so that no answer is taken for that of another decoder's query


@dataclasses.dataclass
class Traffic(Counters):
    """What has been asked for and drawn.

    Attributes:
        queries: made.
        confined: tokens drawn where only those on the list are kept.
        redrawn: of these, not on their list.
    """

    loading: ClassVar[str] = "waiting for answers to"  # an engine does not tell what it has read and drawn by then

    queries: int = 0
    confined: int = 0
    redrawn: int = 0


@dataclasses.dataclass
class _Pending:
    """A request under way: what of it has been drawn, and the number of the query that goes on with it."""

    request: Request
    tokens: IntArray
    log_p: FloatArray
    lists: TopLists
    number: int | None = None
    attempts: int = 0  # queries made for draws
    looking: bool = False  # the query is for the list of the first position alone
    finished_by: FinishedBy | None = None


@dataclasses.dataclass
class _Row:
    """A prompt, the settled completion with its lists, and what is under way."""

    prompt: tuple[int, ...]
    tokens: IntArray
    lists: TopLists
    pending: _Pending | None = None


class TopKDecoder:
    """Decodes requests by queries to an engine, with proposals confined to the lists that come back: see `topk`.

    A row is bookkeeping only: its keys and values are found by the engine's own prefix cache. A request is one query,
    for all the tokens up to its horizon, and one more each time that

    * a token was not on its list: it is thrown away with all that follows, and drawn again with a fresh seed;
    * the engine stopped before it had to: what it has drawn is kept;
    * stop strings are watched for: they are looked for here, after the draw, so that nothing depends on the engine's
      own ways with them. Queries are then for `STOP_CHUNK` tokens, as what follows a stop string is drawn for nothing.

    The excluded first token of a coupled resume is drawn here from the list of its position, without a query. Seeds
    are hashes of a request's uniforms: the same request leads to the same queries, in whatever row. `reject_below` is
    looked at between queries only, since single tokens are not seen before.

    Args:
        client: the engine.
        rows: queries under way, at most.
        eos_ids: token ids that end a completion.
        stops: stop strings.
        confined: keep draws on the list only, unless a request explores. Otherwise all are kept, and the law of a draw
            is that of the engine's temperature over all tokens; log q is -inf off the list all the same.
        counters: what to count in; default: counters of its own.
        measures: what else is to be known of each next-token distribution: sums over the list, and an entropy that
            takes all that is off the list for one token.
    """

    row_cost = 1 / 256  # as of a GPU's step: servers are for many queries at a time
    STOP_CHUNK = 64  # tokens: half of it is drawn for nothing on average, and a query costs about 14 tokens

    def __init__(
        self,
        client: Client,
        rows: int,
        eos_ids: Sequence[int],
        stops: StopStrings,
        confined: bool = True,
        counters: Traffic | None = None,
        measures: Measures = NO_MEASURES,
    ) -> None:
        self.client, self.rows, self.stops, self.confined = client, rows, stops, confined
        self.counters = counters or Traffic()
        self._eos = np.array(sorted(set(eos_ids)), np.int64)
        self._measures = measures
        self._row = [self._empty(()) for _ in range(rows)]
        self._asked: dict[int, int] = {}  # number of a query → row
        self._ready: list[int] = []  # rows whose segments have ended

    def load(self, row: int, prompt: Sequence[int], completion: Sequence[int] = ()) -> None:
        """Make an idle row hold a prompt and a settled completion, whose lists are asked for when they are needed."""
        self._row[row] = self._empty(tuple(prompt), completion)

    def copy(self, source: int, target: int, keep: int) -> None:
        """Make an idle row hold the first `keep` tokens of another's settled completion, and what is known of the next.

        The list of position `keep` depends on the tokens before it alone.
        """
        held = self._row[source]
        self._row[target] = _Row(held.prompt, held.tokens[:keep], held.lists[: keep + 1])

    def submit(self, row: int, request: Request) -> None:
        """Let a settled row decode a request."""
        held, none = self._row[row], np.empty(0)
        pending = _Pending(request, none.astype(np.int64), none, TopLists.unknown(0, self.client.top))
        held.pending = pending
        if request.excluded_first_token is None:
            self._go_on(row, held, pending)
        elif request.explore:
            raise ValueError("a draw from p without some token: p is known on the list only")
        elif held.lists.known(request.keep):
            self._draw_first(row, held, pending, held.lists[request.keep : request.keep + 1])
        else:
            pending.looking = True
            self._ask(row, held, pending, 1)

    def step(self) -> list[tuple[int, Segment]]:
        """Wait for answers, if no segment has ended yet; the (row, segment) pairs that have."""
        if not self._ready and self._asked:
            for number, answer in self.client.poll(self._asked):
                self._take(self._asked.pop(number), answer)
        ready, self._ready = self._ready, []
        return [(row, self._segment(self._pending(row))) for row in ready]

    def commit(self, row: int) -> None:
        """Make a row's segment part of its settled completion."""
        held, pending = self._row[row], self._pending(row)
        keep = pending.request.keep
        held.tokens = np.concatenate([held.tokens[:keep], pending.tokens])
        held.lists = TopLists.joined([held.lists[:keep], pending.lists])
        held.pending = None

    def rollback(self, row: int) -> int:
        """Give up what a row is decoding or has decoded; the tokens given up, as far as they have come."""
        given_up, pending = self.tokens_decoded(row), self._row[row].pending
        if pending is not None and pending.number is not None:
            del self._asked[pending.number]
            self.client.abort([pending.number])
        if row in self._ready:
            self._ready.remove(row)
        self._row[row].pending = None
        return given_up

    def tokens_decoded(self, row: int) -> int:
        """Tokens that have come for a row's request."""
        pending = self._row[row].pending
        return 0 if pending is None else len(pending.tokens)

    def close(self) -> None:
        """Give up every query under way."""
        self.client.abort(list(self._asked))
        self._asked.clear()

    def _empty(self, prompt: tuple[int, ...], completion: Sequence[int] = ()) -> _Row:
        lists = TopLists.unknown(len(completion), self.client.top)
        return _Row(prompt, np.array(completion, np.int64), lists)

    def _pending(self, row: int) -> _Pending:
        pending = self._row[row].pending
        assert pending is not None
        return pending

    def _ask(self, row: int, held: _Row, pending: _Pending, max_tokens: int) -> None:
        request = pending.request
        pending.number = next(_NUMBERS)
        self._asked[pending.number] = row
        temperature = 1.0 if request.explore else 1 / request.beta
        tokens = [*held.prompt, *_so_far(held, pending).tolist()]
        # A look does not count: whether there has to be one depends on what else the decoder has to do.
        seed = seed_of(request, _LOOK if pending.looking else pending.attempts)
        query = Query(row, tokens, max_tokens, temperature, seed)
        pending.attempts += not pending.looking
        self.counters.queries += 1
        self.client.add(pending.number, query)

    def _go_on(self, row: int, held: _Row, pending: _Pending) -> None:
        """Ask for what is missing of a segment; if nothing is, or it is not worth it, the row is ready."""
        left = pending.request.horizon - pending.request.keep - len(pending.tokens)
        if pending.finished_by is None and left == 0:
            pending.finished_by = FinishedBy.HORIZON
        if pending.finished_by is not None or self._below(pending):
            self._ready.append(row)
            return
        self._ask(row, held, pending, min(left, self.STOP_CHUNK) if self.stops.strings else left)

    def _draw_first(self, row: int, held: _Row, pending: _Pending, listed: TopLists) -> None:
        """Draw the first token, which is not the excluded one, from the list of its position."""
        request = pending.request
        assert request.excluded_first_token is not None
        token, log_p = listed.draw_without(request.excluded_first_token, request.beta, float(request.uniforms[0]))
        self._append(held, pending, Answer(np.array([token]), np.array([log_p]), listed))
        self._go_on(row, held, pending)

    def _take(self, row: int, answer: Answer) -> None:
        """Take in an answer, and go on from what of it is kept."""
        held, pending = self._row[row], self._pending(row)
        pending.number = None
        if not len(answer.tokens):
            raise ServerError("the server has answered with no token at all: nothing can be kept or drawn again")
        self.counters.decoded += len(answer.tokens)
        if pending.looking:
            pending.looking = False
            self._draw_first(row, held, pending, answer.lists[:1])
            return
        kept = len(answer.tokens)
        if self.confined and not pending.request.explore:
            on_list = answer.lists.hold(answer.tokens)
            if not on_list.all():
                kept = int(on_list.argmin())
        ended = self._append(held, pending, answer, kept)
        if self.confined and not pending.request.explore:
            redraw = not ended and kept < len(answer.tokens)
            self.counters.confined += kept + redraw
            self.counters.redrawn += redraw
        self._go_on(row, held, pending)

    def _append(self, held: _Row, pending: _Pending, answer: Answer, kept: int | None = None) -> bool:
        """Add the first `kept` tokens of an answer, up to the one that ends the completion; whether one does."""
        tokens = answer.tokens[:kept]
        is_eos = (tokens[:, None] == self._eos).any(1)
        for place in np.flatnonzero(is_eos | self._may_stop(tokens)).tolist():
            if is_eos[place]:
                pending.finished_by = FinishedBy.EOS
            elif self.stops.completed(np.concatenate([_so_far(held, pending), tokens[: place + 1]])):
                pending.finished_by = FinishedBy.STOP
            else:
                continue
            tokens = tokens[: place + 1]
            break
        pending.tokens = np.concatenate([pending.tokens, tokens])
        pending.log_p = np.concatenate([pending.log_p, answer.log_p[: len(tokens)]])
        pending.lists = TopLists.joined([pending.lists, answer.lists[: len(tokens)]])
        return pending.finished_by is not None

    def _may_stop(self, tokens: IntArray) -> np.ndarray:
        found = np.zeros(len(tokens), dtype=bool)
        if self.stops.strings:
            known = tokens < len(self.stops.candidates)  # a model may have more tokens than its tokenizer knows
            found[known] = self.stops.candidates[tokens[known]]
        return found

    def _below(self, pending: _Pending) -> bool:
        """Whether what has been drawn has fallen below the request's bound."""
        bound = pending.request.reject_below
        if bound is None or not len(pending.tokens):
            return False
        gains = bound.log_p * pending.log_p
        if bound.log_q:
            gains = gains + bound.log_q * pending.lists.log_q(pending.tokens, pending.log_p, pending.request.beta)
        length = pending.request.keep + len(pending.tokens)
        return bool(np.minimum(gains, 0).sum() + bound.log_length * math.log(length + 1) < bound.value)

    def _segment(self, pending: _Pending) -> Segment:
        lists, exponents = pending.lists, self._measures.exponents
        return Segment(
            tokens=pending.tokens,
            log_p=pending.log_p,
            log_q=lists.log_q(pending.tokens, pending.log_p, pending.request.beta),
            finished_by=pending.finished_by,
            log_z=np.stack([lists.log_z(e) for e in exponents], axis=1) if exponents else None,
            entropy=lists.entropy() if self._measures.entropy else None,
        )


def _so_far(held: _Row, pending: _Pending) -> IntArray:
    """The completion as far as it has come: what is kept of it, and what has been drawn."""
    return np.concatenate([held.tokens[: pending.request.keep], pending.tokens])


def seed_of(request: Request, attempt: int) -> int:
    """The seed of a request's query 0, 1, …: a hash of the request's uniforms and of that number, below 2^53."""
    digest = hashlib.blake2b(request.uniforms.tobytes(), digest_size=8, salt=attempt.to_bytes(4, "little"))
    return int.from_bytes(digest.digest(), "little") >> 11
