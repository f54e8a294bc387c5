"""What a server lacks is found before anything is drawn, and the message names the cure."""

from __future__ import annotations

import os

import numpy as np
import pytest
from remote.fake_server import FakeServer, draw_token
from tiny_tokenizers import words

from lm_power import OptionError, PowerSampler
from lm_power.remote.answers import Transient
from lm_power.remote.server import Server
from lm_power.remote.trials import PROBE

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a tokenizer that is not there is not looked for on the hub

TOP, VOCABULARY = 4, 16


def next_log_p(context: tuple[int, ...]) -> np.ndarray:
    logits = 2 * np.random.default_rng([len(context), *context]).normal(size=VOCABULARY)
    return logits - np.logaddexp.reduce(logits)


@pytest.fixture
def served():
    server = FakeServer(next_log_p, lambda tokens: words(VOCABULARY).decode(tokens))
    with server.running() as url:
        server.url = url
        yield server


def connect(server: FakeServer, base_url=None, **options) -> Server:
    options = {"tokenizer": words(VOCABULARY), "top_logprobs": TOP, "eos_token_ids": [0], **options}
    return Server.connect(base_url or server.url, **options)


def refused(server: FakeServer, *parts: str, **options) -> None:
    with pytest.raises(OptionError) as caught:
        connect(server, **options)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_suitable_server(served) -> None:
    server = connect(served)
    assert (str(server.card), server.max_positions, server.vocabulary) == (
        "tiny (root /nowhere/tiny)",
        512,
        VOCABULARY,
    )
    assert server.eos_ids == (0,)
    assert 3 <= len(served.bodies) <= 5 and max(body["max_tokens"] for body in served.bodies) <= 12
    server.close()
    served.ways.card = {"id": "tiny"}
    server = connect(served, model="tiny")
    assert (str(server.card), server.max_positions) == ("tiny (weights not known)", None)
    server.close()


def test_a_whole_vocabulary_on_the_list(served) -> None:
    """Guards small models: fewer tokens than were asked for, but all that there are."""
    connect(served, top_logprobs=64).close()


def steep(before: int) -> np.ndarray:
    """Weights of which 3 tokens have three quarters, and next to all when raised to the fourth power.

    Args:
        before: how many of the 3 come before all other tokens.
    """
    low = [0.07] * (VOCABULARY - 3)
    return np.array([*[1.0] * before, *low, *[1.0] * (3 - before)])


def probe() -> list[int]:
    return words(VOCABULARY).encode(PROBE)


def test_a_flat_law_is_no_fault(served) -> None:
    """Guards models that are not sure, on short lists: a draw off the list is then nothing unusual."""
    flat = np.full(VOCABULARY, -np.log(VOCABULARY)) + 1e-3 * np.arange(VOCABULARY)
    served.next_log_p = lambda context: flat
    assert draw_token(np.exp(4 * flat), 20, len(probe())) not in np.argsort(-flat)[:TOP], "it tests nothing"
    connect(served).close()


LACKS = {
    "processed log-probs": ({"raw": False}, ("--logprobs-mode raw_logprobs", "SGLANG_RETURN_ORIGINAL_LOGPROB=1")),
    "fewer lists allowed": ({"most": 2}, ("top_logprobs=4", "--max-logprobs 4")),
    "fewer lists, silently": ({"lists": 2}, ("lists 2 tokens of the 4", "top_logprobs=2")),
    "tokens as texts": ({"ids": False}, ("token ids", "examples/servers/README.md")),
    "no prompts of ids": ({"takes_ids": False}, ("refuses a prompt of token ids",)),
    "chats only": ({"completions": False}, ("serves no /completions", "chats alone")),
    "fewer replicas": ({"replicas": 1}, ("fewer replicas than data_parallel=2", "set data_parallel=")),
    "EOS left out": ({"keeps_stop": False}, ("leaves out the token at which it stops", "EOS")),
    "another temperature": ({"obeys_temperature": False}, ("at temperature 0.25", "not among the 4 likeliest")),
    "a key": ({"key": "sk-secret"}, ("wants a key", "OPENAI_API_KEY")),
    "other answers": ({"answers_as": "gpt"}, ("model=gpt has answered",)),
}


@pytest.mark.parametrize(("ways", "parts"), LACKS.values(), ids=LACKS.keys())
def test_what_a_server_lacks(served, ways, parts) -> None:
    for name, value in ways.items():
        setattr(served.ways, name, value)
    if "obeys_temperature" in ways:  # seen by a draw off the list, where that is next to impossible at 0.25
        served.next_log_p = lambda context: law
        weights = next(w for w in map(steep, range(4)) if w[draw_token(w, 20, len(probe()))] < w.max())
        law = np.log(weights / weights.sum())
    options = {"ranks": 2} if "replicas" in ways else {}
    refused(served, "base_url=http://127.0.0.1", *parts, **options)


def test_a_short_list_that_the_drawn_token_lengthens(served) -> None:
    """Guards lists that depend on what was drawn: 3 tokens, and a fourth only where it was drawn off them."""
    served.ways.lists = 3
    law = next(law for law in map(uneven, range(100)) if law[draw_token(law, 20, len(probe()))] < law.max())
    served.next_log_p = lambda context: np.log(law)
    refused(served, "lists 3 tokens of the 4", "set top_logprobs=3")


def uneven(seed: int) -> np.ndarray:
    """[vocabulary] probabilities, of which a third is off the 3 likeliest tokens."""
    weights = np.random.default_rng(seed).permutation([*[8.0] * 3, *[1.0] * (VOCABULARY - 3)])
    return weights / weights.sum()


@pytest.mark.parametrize("odd", [{"meta": ["x"]}, {"meta": "gguf"}, {"max_model_len": "8k"}, {"max_model_len": True}])
def test_what_a_card_says_in_its_own_way_is_left_out(served, odd) -> None:
    """Guards a traceback for entries that no standard describes."""
    served.ways.card = {"id": "tiny", **odd}
    server = connect(served, model="tiny")
    assert server.max_positions is None
    server.close()


@pytest.mark.parametrize("malformed", [{"choices": ["x"]}, {"choices": {}}, [], "ok", {"choices": [None]}])
def test_answers_that_are_no_completions(served, malformed) -> None:
    """Guards a traceback for JSON of another form."""
    served.ways.malformed = malformed
    refused(served, "gave up while it was tried out", "no completion")


def test_the_wrong_url(served, monkeypatch) -> None:
    refused(served, "is it running", "http://HOST:PORT/v1/completions", base_url="http://127.0.0.1:9/v1")
    refused(served, "has no /models (status 404)", base_url=served.url.replace("/v1/", "/api/v1/"))
    refused(served, "must be the URL of a server", base_url="localhost:8000")

    async def page(self, place, path):
        return {"hello": "world"}

    monkeypatch.setattr("lm_power.remote.client.HTTPClient.get", page)
    refused(served, "lists no models", "no OpenAI-compatible server")


def test_the_wrong_model(served) -> None:
    refused(served, "does not serve model=tinny", "did you mean tiny", model="tinny")


def test_servers_of_different_models(served) -> None:
    other = FakeServer(served.next_log_p, served.spell)
    other.ways.card = {**served.ways.card, "root": "/nowhere/else"}
    with other.running() as url:
        refused(served, "all servers of a run must serve the same", "/nowhere/else", base_url=[served.url, url])


def test_the_wrong_tokenizer(served) -> None:
    served.spell = lambda tokens: " ".join("abcdefghijklmnop"[token] for token in tokens)
    refused(served, "spells the tokens it drew", "set tokenizer=")
    refused(served, "tokenizer=/nowhere/tiny: cannot be loaded", "set tokenizer=", tokenizer=None)


def test_a_server_that_fails_while_it_is_tried(served) -> None:
    served.ways.faults = {1: 500}
    refused(served, "gave up while it was tried out", "status 500")
    assert not issubclass(Transient, OptionError)


@pytest.mark.parametrize("top", [0, 1, 2.5, "20", True])
def test_a_wrong_number_of_tokens_on_a_list(served, top) -> None:
    refused(served, f"top_logprobs={top!r}: must be a whole number >= 2", top_logprobs=top)


def test_no_eos(served) -> None:
    refused(served, "EOS", "none is known", eos_token_ids=[])


def test_without_aiohttp(served, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(served, "pip install 'lm-power[api]'")


def test_from_python(served) -> None:
    """Guards `PowerSampler.from_server`: texts in, texts out, cut at stop strings; no sense refused."""
    options = {"tokenizer": words(VOCABULARY), "top_logprobs": TOP, "eos_token_ids": [0]}
    sampler = PowerSampler.from_server(served.url, max_rows=4, **options)
    draw = {"mcmc_steps": 2, "block_size": 8, "max_new_tokens": 16, "seed": 1}
    (drawn,) = sampler.generate(["w2 w3"], n=6, stop=["w7"], **draw)
    assert all("w7" not in completion.text for completion in drawn)
    assert {"stop"} < {completion.finish_reason for completion in drawn}
    assert sampler.counters.decoded > 50
    with pytest.raises(OptionError, match="method=smc: its draws cannot leave the 4 likeliest"):
        sampler.generate(["w2"], method="smc")
    assert sampler.generate(["w2"], method="smc", explore=0, max_new_tokens=4)[0][0].token_ids
    with pytest.raises(OptionError, match=r"proposal temperature of 0.005: servers draw at 0\.01"):
        sampler.generate(["w2"], alpha=200)
    with pytest.raises(OptionError, match="exceeds the model's 512 positions"):
        sampler.generate(["w2"], max_new_tokens=512)
    with pytest.raises(OptionError, match="a server's memory is not known"):
        PowerSampler.from_server(served.url, max_rows="auto", **options)
    sampler.host.close()
    sampler.host.close()


def test_standard_and_temperature_need_no_exploring(served) -> None:
    """Guards methods whose draws are the server's own: no explore in their options, and draws off the lists kept."""
    server = connect(served)
    sampler = PowerSampler(server, server.tokenizer)
    from lm_power.config import SamplerConfig

    assert sampler.resolved(SamplerConfig(method="standard")).explore is None
    assert sampler.resolved(SamplerConfig()).explore == 0.03
    assert sampler.resolved(SamplerConfig(explore=0)).explore == 0
    sampler.generate([[5, 6]], n=20, method="standard", max_new_tokens=8)
    assert {body["temperature"] for body in served.bodies[-20:]} == {1.0}
    assert sampler.counters.redrawn == 0
    server.close()
