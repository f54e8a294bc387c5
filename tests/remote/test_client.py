"""Queries over HTTP on loopback: the same completions whatever fails, and a clear end where nothing helps."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time

import numpy as np
import pytest
from remote.fake_server import FakeServer
from remote.table_client import NO_STOPS, PROMPT
from toy import random_toy

from lm_power import PowerSampler, SamplerConfig
from lm_power.decoding import Request
from lm_power.jobs import Job
from lm_power.remote import client as client_module
from lm_power.remote.answers import Transient, answer_of
from lm_power.remote.client import HTTPClient, Refused
from lm_power.remote.decoder import TopKDecoder
from lm_power.remote.places import Card, places
from lm_power.remote.queries import Query, ServerError
from lm_power.remote.server import Server

TOP, EOS, VOCABULARY = 3, (4, 5), 6
TOY = random_toy(VOCABULARY, EOS, seed=5, eos_bias=-2.0)
PROMPTS = [(*PROMPT, token) for token in range(4)]
OPTIONS = {"alpha": 2.0, "block_size": 6, "mcmc_steps": 4, "max_new_tokens": 12, "seed": 3, "explore": 0.2}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)


def fake() -> FakeServer:
    return FakeServer(lambda context: TOY.next_log_p(context[len(PROMPT) :]), lambda tokens: " ".join(map(str, tokens)))


@pytest.fixture
def served():
    """A fake server, and how to make a sampler on it."""
    server, samplers = fake(), []
    with server.running() as url:

        def sampler(rows=8, base_url=url, **options) -> PowerSampler:
            client = HTTPClient(base_url, "tiny", TOP, **options)
            for place in client.places:
                place.card = Card.of(server.ways.card)
            samplers.append(PowerSampler(Server(client, client.places[0].card, None, EOS), None, max_rows=rows))
            return samplers[-1]

        server.url = url
        yield server, sampler
        for each in samplers:
            each.host.close()


def outcome(sampler: PowerSampler, n=3, **options):
    drawn = sampler.generate(PROMPTS, n=n, **{**OPTIONS, **options})
    return [[(c.token_ids, c.log_probs, c.finish_reason, c.steps) for c in cs] for cs in drawn]


def test_completions_depend_on_no_row_order_or_server(served) -> None:
    """Guards seeds, rows and pinning: token for token. The server's numbers are exact, so log-probs are equal too."""
    server, sampler = served
    expected = outcome(sampler(1))
    second = fake()
    with second.running() as url:
        assert outcome(sampler(64)) == outcome(sampler(7), prefetch=False) == expected
        assert outcome(sampler(5, [server.url, url])) == expected
        assert len(second.bodies) > 10
    for cs, prompt in zip(expected, PROMPTS, strict=True):
        for tokens, log_probs, _, _ in cs:
            context = [(*prompt[len(PROMPT) :], *tokens[:t]) for t in range(len(tokens))]
            raw = [TOY.next_log_p(prefix)[token] for prefix, token in zip(context, tokens, strict=True)]
            assert log_probs == pytest.approx(raw, abs=1e-12)


def test_nothing_of_a_run_that_was_left_early_reaches_the_next(served) -> None:
    """Guards answers to the old prompt that are taken for those to the new one."""
    server, sampler = served
    config = SamplerConfig(method="temperature", alpha=2.0, max_new_tokens=12)
    left, fresh = sampler(rows=16), sampler(rows=16)
    for _ in left.sample([Job(PROMPTS[0], repeat) for repeat in range(16)], config):
        while len(server.bodies) < 16 or server.under_way:
            time.sleep(0.01)
        time.sleep(0.1)  # the answers are on their way
        break
    options = {"n": 16, "method": "temperature", "alpha": 2.0, "max_new_tokens": 12}
    after, wanted = left.generate(PROMPTS[1:2], **options), fresh.generate(PROMPTS[1:2], **options)
    assert [c.log_probs for c in after[0]] == [c.log_probs for c in wanted[0]]


def test_nothing_of_a_run_that_failed_reaches_the_next(served) -> None:
    """Guards a server that is back, and goes on failing with the errors of its outage."""
    server, sampler = served
    failing = sampler(rows=16, patience=0.05)
    server.ways.faults = dict.fromkeys(range(10_000), 503)
    with pytest.raises(ServerError, match="no answer"):
        outcome(failing)
    time.sleep(0.2)  # the other queries fail, too
    server.ways.faults = {}
    assert outcome(failing) == outcome(sampler(rows=16))


def test_two_runs_may_go_on_in_turn_on_one_sampler(served) -> None:
    """Guards answers that one run takes away from the other, which then waits for ever."""
    _, sampler = served
    both, alone = sampler(rows=4), sampler(rows=4)
    config = SamplerConfig(**OPTIONS)
    jobs = [[Job(prompt, repeat) for repeat in range(6)] for prompt in PROMPTS[:2]]
    drawn = list(zip(*(both.sample(each, config) for each in jobs), strict=True))
    for which, each in enumerate(jobs):
        wanted = {index: completion.log_probs for index, completion in alone.sample(each, config)}
        assert {index: completion.log_probs for index, completion in (pair[which] for pair in drawn)} == wanted


def test_rows_keep_to_their_server_and_replica(served) -> None:
    """Guards prefix caches: rows 0, 3, … are at the first of three servers' URLs, and there take turns of two."""
    server, _ = served
    others = [fake(), fake()]
    with others[0].running() as one, others[1].running() as two:
        client = HTTPClient(f"{server.url}+{one}+{two}", "tiny", TOP, ranks=2)
        for row in range(9):
            client.add(row, Query(row, [*PROMPT, row], 1, 1.0, row))
        answers = []
        while len(answers) < 9:
            answers += client.poll(range(9))
        client.close()
    assert [sorted(body["prompt"][-1] for body in each.bodies) for each in (server, *others)] == [
        [0, 3, 6], [1, 4, 7], [2, 5, 8]
    ]  # fmt: skip
    ranks = {
        body["prompt"][-1]: h["X-data-parallel-rank"] for body, h in zip(server.bodies, server.headers, strict=True)
    }
    assert ranks == {0: "0", 3: "1", 6: "0"}


def test_what_is_asked_for(served) -> None:
    """Guards sampling options of the checkpoint, which a server takes where nothing is said, and tokens as texts."""
    server, sampler = served
    outcome(sampler(), n=1)
    for body in server.bodies:
        assert body["temperature"] in (0.5, 1.0) and body["logprobs"] == TOP
        neutral = [body[name] for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty")]
        assert neutral == [1.0, 0.0, 1.0, 0.0] and body["top_k"] == -1
        assert body["stop_token_ids"] == list(EOS) and body["ignore_eos"] and body["return_tokens_as_token_ids"]
        assert not body["add_special_tokens"] and not body["skip_special_tokens"]
    assert {body["temperature"] for body in server.bodies} == {0.5, 1.0}


FAULTS = {
    "reset": {3: "reset", 10: "reset", 11: "reset", 12: "reset"},
    "half an answer": {2: "half", 9: "half"},
    "status": {0: 500, 1: 500, 5: 429, 8: 503, 9: 503, 10: 502},
    "slow": {4: "slow", 13: "slow"},
    "all": {0: 429, 3: "reset", 7: "half", 8: 500, 9: "reset", 20: "slow", 21: 503, 30: "half"},
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_faults_change_no_completion(served, faults, caplog) -> None:
    """Guards retries: with every kind of fault the completions are the same, token for token."""
    server, sampler = served
    expected = outcome(sampler())
    server.bodies.clear()
    server.headers.clear()
    server.ways.faults = dict(faults)
    assert outcome(sampler(timeout=0.5)) == expected
    assert len(server.bodies) >= max(faults), "a fault that was not met tests nothing"
    assert any("trying again" in record.message for record in caplog.records)


def test_answers_that_are_cut_short_are_gone_on_with(served) -> None:
    """Guards a server with a limit of its own on the tokens of an answer."""
    server, sampler = served
    server.ways.cut = 2
    drawn = sampler().generate(PROMPTS, n=2, **OPTIONS)
    assert max(len(c.token_ids) for cs in drawn for c in cs) > 4
    assert {c.finish_reason for cs in drawn for c in cs} <= {"eos", "length"}


def test_a_server_that_stays_away(served) -> None:
    """Guards an endless wait: after `patience` the run ends with what happened and what to do."""
    server, sampler = served
    server.ways.faults = dict.fromkeys(range(10**4), 503)
    with pytest.raises(ServerError, match=r"no answer in 0.3 s of trying \(status 503: .*injected.*same command again"):
        outcome(sampler(patience=0.3))
    with pytest.raises(ServerError, match=r"no answer in 0.3 s of trying \(.*refused|Connect"):
        outcome(sampler(base_url="http://127.0.0.1:9/v1", patience=0.3))


def test_every_run_is_told_of_an_outage(served, caplog) -> None:
    """Guards a second run on the same sampler, which waits for minutes without a word."""
    server, sampler = served
    server.ways.faults = dict.fromkeys(range(10**4), 503)
    made = sampler(1, patience=0.3)
    for run in (1, 2):
        with pytest.raises(ServerError, match="no answer in"):
            outcome(made)
        assert sum("trying again for up to 0.3 s" in record.message for record in caplog.records) == run


def test_a_server_that_asks_for_more_patience_than_there_is(served) -> None:
    """Guards a run that ends at the first try, and says that it tried for minutes."""
    server, sampler = served
    server.ways.faults, server.ways.retry_after = {0: 429}, 600
    with pytest.raises(ServerError, match=r"asks to wait for 600 s, and patience=300 \(status 429: .*injected"):
        sampler().generate(PROMPTS[:1], **OPTIONS)


def test_a_place_that_takes_no_connection(served, monkeypatch) -> None:
    """Guards a firewall or a wrong host that is reported as a slow answer."""
    monkeypatch.setattr(client_module, "_CONNECT", 0.2)
    _, sampler = served
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # what the queue of the socket holds, and more
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.connect(full.getsockname())
        url = "http://{}:{}/v1".format(*full.getsockname())
        with pytest.raises(ServerError, match=r"no connection within 0.2 s"):
            sampler(base_url=url, patience=0.1).generate(PROMPTS[:1], **OPTIONS)


def test_a_closed_sampler_says_so(served) -> None:
    _, sampler = served
    closed = sampler()
    closed.host.close()
    with pytest.raises(ServerError, match="have been closed"):
        closed.generate(PROMPTS[:1], **OPTIONS)


def test_a_refusal_is_not_tried_again(served) -> None:
    server, sampler = served
    server.ways.most = 2
    with pytest.raises(Refused, match="status 400: Requested sample logprobs of 3, greater than max allowed: 2"):
        outcome(sampler(rows=1))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("fault", [503, "reset", "hang up"])
def test_a_server_that_comes_back_with_another_model(served, fault) -> None:
    """Guards completions of two models in one run, also where it hangs up after an answer, so that no query fails."""
    server, sampler = served
    server.ways.faults, server.ways.restarts = {6: fault}, {6: {"root": "/nowhere/else"}}
    one = sampler(rows=1)
    with pytest.raises(
        ServerError, match=r"serves tiny \(root /nowhere/else\), and served tiny \(root /nowhere/tiny\)"
    ):
        outcome(one)
    assert len(server.bodies) == (8 if fault == "hang up" else 7)


def test_answers_of_another_model(served) -> None:
    server, sampler = served
    server.ways.answers_as = "other"
    with pytest.raises(ServerError, match="model=tiny was asked for, and model=other has answered"):
        outcome(sampler())


def eventually(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_giving_a_row_up_closes_its_connection(served) -> None:
    """Guards requests that decode on for nobody."""
    server, sampler = served
    server.ways.pause = 30
    decoder = TopKDecoder(sampler().host.client, 2, EOS, NO_STOPS)
    decoder.load(0, PROMPT)
    decoder.submit(0, Request(0, 5, 2.0, np.random.default_rng(0).random(5)))
    eventually(lambda: server.under_way == 1)
    decoder.rollback(0)
    eventually(lambda: server.abandoned == 1 and server.under_way == 0)
    assert decoder.client.places[0].failed is False


def test_an_interrupt_leaves_no_request_running(served) -> None:
    """Guards Ctrl-C while the run waits for answers: it is heard at once, and every connection is closed."""
    server, sampler = served
    server.ways.pause = 30
    one = sampler()

    ended = threading.Event()
    # A process that was started in the background may have inherited that interrupts are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        try:
            eventually(lambda: server.under_way == 8)
        finally:  # once more where it came in a callback that swallows it, and never not at all: the run would go on
            while not ended.is_set():
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                ended.wait(10)

    thread = threading.Thread(target=press)
    thread.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        try:
            outcome(one)
        finally:
            ended.set()
            signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 40
    thread.join()
    eventually(lambda: server.under_way == 0)
    assert server.abandoned == 8


def test_the_key_is_sent_and_never_shown(served, monkeypatch, caplog) -> None:
    """Guards secrets: in no message, though the server's own repeats it."""
    server, sampler = served
    caplog.set_level(logging.DEBUG)
    server.ways.key = "sk-right"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    assert outcome(sampler(), n=1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(Refused, match=r"status 401: Incorrect API key: Bearer \*\*\*") as caught:
        outcome(sampler())
    assert "sk-" not in str(caught.value) and "sk-" not in caplog.text


@pytest.mark.parametrize(
    ("base_url", "bases"),
    [
        ("http://a:8000/v1/completions", ["http://a:8000/v1"]),
        ("http://a:8000/", ["http://a:8000/v1"]),
        ("https://a/serve/v1/chat/completions/", ["https://a/serve/v1"]),
        ("http://a:1/v1+http://b:2/v1", ["http://a:1/v1", "http://b:2/v1"]),
        (["http://a:1", "http://b:2"], ["http://a:1/v1", "http://b:2/v1"]),
    ],
)
def test_urls(base_url, bases) -> None:
    assert [place.base for place in places(base_url)] == bases


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "", "http:///v1"])
def test_what_is_no_url(url) -> None:
    with pytest.raises(ValueError, match="must be the URL of a server"):
        places(url)


def test_a_password_in_the_url_is_not_shown() -> None:
    (place,) = places("http://me:secret@a:8000/v1")
    assert place.base == "http://me:secret@a:8000/v1" and place.shown == "http://a:8000/v1"


def response(tokens=(1,), own=(-1.0,), tops=({"token_id:2": -0.5, "token_id:1": -1.0},), **choice):
    named = [f"token_id:{token}" for token in tokens]
    logprobs = {"tokens": named, "token_logprobs": list(own), "top_logprobs": list(tops)}
    return {"choices": [{"finish_reason": "length", "logprobs": logprobs, **choice}]}


def test_a_list_does_not_depend_on_what_was_drawn() -> None:
    """Guards ties: a token that comes beside a whole list is not on it, however likely it is."""
    tops = [{"token_id:9": -1.0, "token_id:2": -0.5, "token_id:1": -1.0}]
    answer = answer_of(response((9,), (-1.0,), tops), 2, "m")
    assert answer.lists.ids.tolist() == [[2, 1]] and not answer.lists.hold(answer.tokens)[0]
    assert answer_of(response(), 2, "m").lists.hold(np.array([1]))[0]


@pytest.mark.parametrize(
    ("answer", "error", "what"),
    [
        ({"choices": []}, Transient, "no completion"),
        ([], Transient, "no completion"),
        (response(finish_reason="abort"), Transient, "gave a completion up"),
        (response(logprobs=None), ServerError, "has no log-probs"),
        (response(own=(-1.0, -2.0)), ServerError, "returns 1 tokens with 2 log-probs"),
        (response(tops=({"the": -1.0},)), ServerError, "as texts"),
        (response(own=(None,)), ServerError, "in another form than vLLM"),
        (response(tops=([-1.0],)), ServerError, "in another form than vLLM"),
        (response(tops=({},)), ServerError, "lists no token at all"),  # each draw of which would be made again
        (response(own=(float("nan"),)), ServerError, "not finite"),
        (response(tops=({"token_id:1": float("-inf")},)), ServerError, "not finite"),
    ],
)
def test_answers_that_lack_something(answer, error, what) -> None:
    with pytest.raises(error, match=what):
        answer_of(answer, 2, "m")
