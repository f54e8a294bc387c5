"""A client over a table: answers a query from a toy's exact laws, as an engine with top-K lists would."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from toy import Toy

from lm_power.chains import Algorithm
from lm_power.engine import StopStrings
from lm_power.jobs import Job
from lm_power.progress import Progress
from lm_power.remote.decoder import TopKDecoder
from lm_power.remote.queries import Answer, Query
from lm_power.remote.topk import TopLists
from lm_power.scheduler import Scheduler

PROMPT = (7, 7, 7)
NO_STOPS = StopStrings(None, [], 64)


class TableClient:
    """Draws from p^(1/temperature) over all tokens, with a generator seeded by the query.

    Args:
        toy: the next-token law; completions of `PROMPT`.
        top: K.
        cut: an answer has at most so many tokens; None: as many as asked for.
        past_eos: go on after an EOS token, as a server that knows no `stop_token_ids` does.
        together: queries that must be under way before one is answered, where there are so many; the last first.
    """

    def __init__(self, toy: Toy, top: int, cut: int | None = None, past_eos: bool = False, together: int = 1) -> None:
        self.toy, self.top, self.cut, self.past_eos, self.together = toy, top, cut, past_eos, together
        self.waiting: dict[int, Query] = {}
        self.asked: list[Query] = []
        self.aborted: list[int] = []
        self.next_log_p = functools.cache(toy.next_log_p)

    def add(self, number: int, query: Query) -> None:
        assert tuple(query.tokens[: len(PROMPT)]) == PROMPT and query.max_tokens >= 1
        self.waiting[number] = query
        self.asked.append(query)

    def poll(self, wanted) -> list[tuple[int, Answer]]:
        numbers = [number for number in self.waiting if number in wanted][::-1][: self.together]
        return [(number, self.answer(self.waiting.pop(number))) for number in numbers]

    def abort(self, numbers) -> None:
        for number in numbers:
            del self.waiting[number]
            self.aborted.append(number)

    def answer(self, query: Query) -> Answer:
        generator = np.random.default_rng(query.seed)
        prefix, tokens, log_ps, lists = tuple(query.tokens[len(PROMPT) :]), [], [], []
        for _ in range(min(query.max_tokens, self.cut or query.max_tokens)):
            log_p = self.next_log_p((*prefix, *tokens))
            weights = np.exp(log_p / query.temperature)
            token = int(np.searchsorted(np.cumsum(weights)[:-1], generator.random() * weights.sum(), side="right"))
            lists.append({int(v): float(log_p[v]) for v in np.argsort(-log_p)[: self.top]})
            tokens.append(token)
            log_ps.append(float(log_p[token]))
            if token in self.toy.eos_ids and not self.past_eos:
                break
        return Answer(np.array(tokens), np.array(log_ps), listed(lists, self.top))


def listed(lists: Sequence[Mapping[int, float]], top: int) -> TopLists:
    """`TopLists` from a mapping of token id to log p for each position."""
    entries = [(place, token, log_p) for place, one in enumerate(lists) for token, log_p in one.items()]
    positions, ids, log_p = (np.array(column) for column in zip(*entries, strict=True))
    return TopLists.of(positions, ids, log_p, (len(lists), top))


def decoder_of(client: TableClient, rows: int = 8, **options) -> TopKDecoder:
    return TopKDecoder(client, rows, sorted(client.toy.eos_ids), NO_STOPS, **options)


def draw(decoder: TopKDecoder, algorithm: Algorithm, n: int, seed: int = 0, prefetch: bool = True) -> list:
    """The finished jobs of n completions of `PROMPT`, in order."""
    jobs = [Job(PROMPT, repeat) for repeat in range(n)]
    scheduler = Scheduler(algorithm, jobs, seed, prefetch, Progress(n))
    return sorted(scheduler.finished(decoder), key=lambda job: job.index)


def counts_of(jobs, algorithm: Algorithm, completions) -> np.ndarray:
    """[completions] how often each was drawn; one that is not there is a KeyError."""
    found = collections.Counter(tuple(algorithm.result(job.state).path.tokens.tolist()) for job in jobs)
    assert found.keys() <= set(completions)
    return np.array([float(found[tokens]) for tokens in completions])
