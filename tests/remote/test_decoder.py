"""Requests through queries: laws of chains and of single draws where only the K likeliest tokens are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from methods import suited
from remote.confined import (
    ALPHA,
    COMPLETIONS,
    CONFINED,
    FALSE_ALARM,
    LONGEST,
    ON_LISTS,
    STEPS,
    TARGET,
    TOP,
    TOY,
    chain,
    exact,
    q_k,
)  # fmt: skip
from remote.table_client import NO_STOPS, PROMPT, TableClient, counts_of, decoder_of, draw
from tiny_tokenizers import words
from toy import agreement, ancestral_law, own_law, random_toy, total_variation

from lm_power.chains import Stream, make_algorithm
from lm_power.chains.tempering import Tempering
from lm_power.config import SamplerConfig
from lm_power.decoding import FinishedBy, Measures, Request
from lm_power.engine import StopStrings
from lm_power.remote.decoder import TopKDecoder, seed_of
from lm_power.remote.queries import ServerError


def test_single_draws_are_from_q_k() -> None:
    """Guards redraws, of the first token and later ones: 4,000 draws against the product of q_K.

    False-alarm probability 1e-5; the test can tell q_K from q over all tokens.
    """
    client = TableClient(TOY, TOP)
    decoder = decoder_of(client)
    ancestral = make_algorithm(SamplerConfig(method="temperature", alpha=ALPHA, max_new_tokens=LONGEST))
    jobs = draw(decoder, ancestral, 4000)
    counts = counts_of(jobs, ancestral, COMPLETIONS)
    assert agreement(counts, q_k()) > FALSE_ALARM
    assert agreement(counts, ancestral_law(TOY, COMPLETIONS, ALPHA)) < 1e-12
    assert decoder.counters.redrawn > 250
    assert len({query.seed for query in client.asked}) == len(client.asked), "a seed was used twice"
    for job in jobs[:200]:
        path = ancestral.result(job.state).path
        expected = CONFINED.segment(tuple(path.tokens.tolist()), 0, ALPHA, LONGEST)
        np.testing.assert_allclose(path.log_p, expected.log_p, atol=1e-12)
        np.testing.assert_allclose(path.log_q, expected.log_q, atol=1e-12)
        assert path.finished_by is expected.finished_by


@pytest.mark.parametrize("method", ["standard", "temperature"])
def test_without_confinement_draws_are_the_engines_own(method) -> None:
    """Guards `standard` and `temperature`, which need no list: 4,000 draws over all tokens.

    False-alarm probability 1e-5 each.
    """
    config = SamplerConfig(**suited(method, {"alpha": ALPHA, "max_new_tokens": LONGEST}))
    decoder, ancestral = decoder_of(TableClient(TOY, TOP), confined=False), make_algorithm(config)
    counts = counts_of(draw(decoder, ancestral, 4000), ancestral, COMPLETIONS)
    assert agreement(counts, ancestral_law(TOY, COMPLETIONS, config.beta)) > FALSE_ALARM
    assert decoder.counters.redrawn == decoder.counters.confined == 0


def test_the_exact_law_tends_to_p_alpha_where_steps_explore() -> None:
    """Guards what `explore` is for: without it the law tends to p^alpha confined to the lists. No draws."""
    inside = np.where(ON_LISTS, TARGET, 0)
    assert total_variation(exact(20, 0.4), TARGET) < 0.01
    assert total_variation(exact(40, 0.0), inside / inside.sum()) < 0.01
    # What follows can tell the law after a few steps from that of the first draws, and from the end.
    assert total_variation(exact(STEPS, 0.4), q_k()) > 0.1


several = pytest.mark.parametrize(
    ("chains", "steps"), [(500, STEPS), pytest.param(5000, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)


@several
@pytest.mark.parametrize(("coupled", "cut"), [(True, 1), (False, None)], ids=["coupled, cut short", "plain, whole"])
def test_chains_with_exploring_steps_follow_their_law(coupled, cut, chains, steps) -> None:
    """Guards all of it together: chains where half the tokens are on no list, against the exact law.

    False-alarm probability 1e-5 each; the law of chains that never leave the lists is rejected.
    """
    algorithm = chain(steps, explore=0.4, coupled_resume=coupled)
    jobs = draw(decoder_of(TableClient(TOY, TOP, cut=cut, together=3)), algorithm, chains)
    counts = counts_of(jobs, algorithm, COMPLETIONS)
    assert agreement(counts, exact(steps, 0.4)) > FALSE_ALARM
    assert agreement(counts, exact(steps, 0)) < 1e-12
    assert counts[~ON_LISTS].sum() > 20


@several
def test_chains_without_them_are_confined_to_the_lists(chains, steps) -> None:
    """Guards the other way round: without `explore` chains stay on the lists, and reject the law with it."""
    algorithm = chain(steps)
    counts = counts_of(draw(decoder_of(TableClient(TOY, TOP)), algorithm, chains), algorithm, COMPLETIONS)
    assert agreement(counts, exact(steps, 0.4)) < 1e-12
    assert agreement(counts, exact(steps, 0)) > FALSE_ALARM


def test_rungs_with_exploring_steps_follow_p_alpha() -> None:
    """Guards `tempering`: log Z at every rung is that of the lists. 400 chains, false-alarm probability 1e-5."""
    algorithm = Tempering((1.0, 1.2, ALPHA), 12, LONGEST, explore=0.4)
    decoder = decoder_of(TableClient(TOY, TOP), measures=algorithm.measures)
    counts = counts_of(draw(decoder, algorithm, 400), algorithm, COMPLETIONS)
    assert agreement(counts, TARGET) > FALSE_ALARM
    assert counts[~ON_LISTS].sum() > 20


def outcomes(algorithm, decoder, n=40, **options):
    return [
        (algorithm.result(job.state).path.tokens.tolist(), job.steps) for job in draw(decoder, algorithm, n, **options)
    ]


def test_completions_do_not_depend_on_rows_order_or_prefetch() -> None:
    """Guards seeds tied to rows or to the order of answers. Exact."""
    algorithm = chain(8, explore=0.3)
    expected = outcomes(algorithm, decoder_of(TableClient(TOY, TOP), rows=1), prefetch=False)
    for rows, together, prefetch in [(1, 1, True), (7, 1, True), (7, 4, True), (60, 9, False)]:
        client = TableClient(TOY, TOP, together=together)
        assert outcomes(algorithm, decoder_of(client, rows), prefetch=prefetch) == expected
        assert not client.waiting


def test_lanes_that_take_turns_ask_for_the_lists_they_have_lost() -> None:
    """Guards a coupled resume in a row that was loaded with a completion. Exact: the completions are the same."""
    algorithm = Tempering((1.0, 2**0.5, 2.0), 12, LONGEST, explore=0.2)
    found = {}
    for rows in (1, 2, 9):
        client = TableClient(TOY, TOP)
        found[rows] = outcomes(algorithm, decoder_of(client, rows, measures=algorithm.measures), n=40)
    assert found[1] == found[2] == found[9]


def request(keep=0, horizon=6, beta=ALPHA, seed=1, **options) -> Request:
    return Request(keep, horizon, beta, np.random.default_rng(seed).random(horizon - keep), **options)


def finish(decoder: TopKDecoder, row: int, asked: Request):
    decoder.submit(row, asked)
    while not (done := decoder.step()):
        pass
    ((found, segment),) = done
    assert found == row
    return segment


NEVER = dataclasses.replace(TOY, eos_ids=frozenset(), _tables={})


def with_a_completion():
    """A client, a decoder, and the segment that its row 0 holds, without EOS."""
    client = TableClient(NEVER, TOP)
    decoder = decoder_of(client)
    decoder.load(0, PROMPT)
    first = finish(decoder, 0, request())
    decoder.commit(0)
    return client, decoder, first


def test_the_lost_list_is_asked_for_once_and_gives_the_same_token() -> None:
    """Guards the first token of a coupled resume: from a stored list, or one asked for, it is the same."""
    client, decoder, first = with_a_completion()
    kept = first.tokens[:2].tolist()
    asked = request(2, seed=3, excluded_first_token=int(first.tokens[2]))
    before = len(client.asked)
    stored = finish(decoder, 0, asked)
    assert [query.max_tokens for query in client.asked[before:]] == [3], "the first token needs no query"
    decoder.load(1, PROMPT, first.tokens.tolist())
    before = len(client.asked)
    loaded = finish(decoder, 1, asked)
    assert [query.max_tokens for query in client.asked[before:]][:2] == [1, 3]
    assert client.asked[before].tokens == [*PROMPT, *kept]
    assert loaded.tokens[0] == stored.tokens[0] != first.tokens[2]
    assert loaded.log_q[0] == stored.log_q[0]


def test_what_is_copied_knows_the_next_list() -> None:
    """Guards prefetch: a copy that keeps some tokens draws the excluded one's successor from the stored list."""
    client, decoder, first = with_a_completion()
    decoder.copy(0, 1, 2)
    before = len(client.asked)
    finish(decoder, 1, request(2, seed=3, excluded_first_token=int(first.tokens[2])))
    assert [query.max_tokens for query in client.asked[before:]] == [3]


def test_rollback_aborts_and_keeps_what_was_settled() -> None:
    client, decoder, first = with_a_completion()
    decoder.submit(0, request(1, seed=2))
    assert decoder.rollback(0) == 0 and len(client.aborted) == 1 and not client.waiting
    finish(decoder, 0, request(1, seed=4))
    assert decoder.rollback(0) == 5
    decoder.submit(0, request(3, seed=5))
    assert client.asked[-1].tokens == [*PROMPT, *first.tokens[:3].tolist()]
    decoder.close()
    assert not client.waiting and decoder.step() == []


def test_tokens_after_eos_are_dropped() -> None:
    """Guards a server that does not stop at EOS: the segment ends there, and counts only to there."""
    stopping, running = (decoder_of(TableClient(TOY, 6, past_eos=past)) for past in (False, True))
    for seed in range(30):
        segments = []
        for decoder in (stopping, running):
            decoder.load(0, PROMPT)
            segments.append(finish(decoder, 0, request(seed=seed)))
            decoder.rollback(0)
        assert segments[0].tokens.tolist() == segments[1].tokens.tolist()
        assert segments[0].finished_by is segments[1].finished_by
    assert running.counters.decoded > stopping.counters.decoded


def test_stop_strings_are_looked_for_after_the_draw(monkeypatch) -> None:
    """Guards stop strings over the seams of queries: "w1 w2" may begin in one and end in the next."""
    monkeypatch.setattr(TopKDecoder, "STOP_CHUNK", 2)
    stops = StopStrings(words(61), ["w2 w3"], 61)
    toy = dataclasses.replace(random_toy(5, (4,), seed=9, eos_bias=-2), stop=(2, 3))
    client = TableClient(dataclasses.replace(toy, _tables={}), 5)
    decoder = TopKDecoder(client, 1, [4], stops)
    reasons = set()
    for seed in range(200):
        decoder.load(0, PROMPT)
        segment = finish(decoder, 0, request(horizon=7, seed=seed))
        decoder.rollback(0)
        tokens = tuple(segment.tokens.tolist())
        assert segment.finished_by is toy.ended(tokens, 7)
        assert all(toy.ended(tokens[:t], 7) is None for t in range(len(tokens)))
        reasons.add((segment.finished_by, len(tokens) % 2))
    assert {(FinishedBy.STOP, 0), (FinishedBy.STOP, 1)} < reasons
    assert max(query.max_tokens for query in client.asked) == 2


def test_a_bound_stops_a_proposal_between_queries() -> None:
    """Guards early rejection where a query was cut: the same verdicts and completions, for fewer tokens."""
    algorithm = chain(10, explore=0.3)
    spent = {}
    for early in (True, False):
        decoder = decoder_of(TableClient(TOY, TOP, cut=1), rows=3)
        some = dataclasses.replace(algorithm, early_rejection=early)
        spent[early] = outcomes(some, decoder, n=60), decoder.counters.decoded
    assert [tokens for tokens, _ in spent[True][0]] == [tokens for tokens, _ in spent[False][0]]
    assert spent[True][1] < spent[False][1]


def test_measures_are_those_of_the_lists() -> None:
    decoder = decoder_of(TableClient(NEVER, TOP), measures=Measures((1.0, 2.0), entropy=True))
    decoder.load(0, PROMPT)
    segment = finish(decoder, 0, request())
    expected = dataclasses.replace(NEVER, reach=TOP, _tables={}).segment(
        tuple(segment.tokens.tolist()), 0, ALPHA, 6, (1.0, 2.0)
    )
    np.testing.assert_allclose(segment.log_z, expected.log_z, atol=1e-12)
    assert segment.entropy is not None and (segment.entropy > 0).all()


def test_an_answer_without_tokens_is_an_error() -> None:
    """Guards an endless loop of queries that bring nothing."""

    class Mute(TableClient):
        def answer(self, query):
            whole = super().answer(query)
            return dataclasses.replace(whole, tokens=whole.tokens[:0], log_p=whole.log_p[:0], lists=whole.lists[:0])

    decoder = decoder_of(Mute(NEVER, TOP))
    decoder.load(0, PROMPT)
    with pytest.raises(ServerError, match="no token at all"):
        finish(decoder, 0, request())


def test_p_without_a_token_is_refused() -> None:
    decoder = decoder_of(TableClient(NEVER, TOP))
    decoder.load(0, PROMPT, [1, 2])
    with pytest.raises(ValueError, match="known on the list only"):
        decoder.submit(0, request(1, excluded_first_token=2, explore=True))


def test_seeds() -> None:
    """Guards equal noise in two draws: seeds differ by request and by query, and repeat with the same request."""
    asked = request()
    seeds = {seed_of(asked, attempt) for attempt in range(100)} | {seed_of(request(seed=s), 0) for s in range(2, 102)}
    assert len(seeds) == 200 and all(0 <= seed < 2**53 for seed in seeds)
    assert seed_of(asked, 0) == seed_of(request(), 0)


def test_the_toy_is_hard_enough() -> None:
    """Guards against tests on a toy whose lists hold nearly everything."""
    assert 0.05 < TARGET[~ON_LISTS].sum() < 0.5
    assert own_law(TOY, COMPLETIONS) is not None and NO_STOPS.strings == ()
    assert Stream.for_request(0, PROMPT, 0).key != Stream.for_request(0, PROMPT, 1).key
