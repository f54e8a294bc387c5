"""vLLM in this process, by a stand-in for its engine: laws, names of requests, what is refused, what is handed on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from remote import fake_vllm
from remote.confined import ALPHA, COMPLETIONS, FALSE_ALARM, LONGEST, ON_LISTS, STEPS, TOP, TOY, chain, exact
from remote.fake_vllm import LLM, Engine
from remote.table_client import NO_STOPS, PROMPT, counts_of, draw
from toy import agreement

from lm_power import OptionError, PowerSampler
from lm_power.decoding import Request
from lm_power.remote.decoder import TopKDecoder
from lm_power.remote.queries import Query, ServerError
from lm_power.remote.server import Server
from lm_power.remote.vllm_client import EngineClient
from lm_power.remote.vllm_engine import engine_options, serve

VOCABULARY, EOS = 6, [4, 5]


@pytest.fixture(autouse=True)
def vllm():
    with fake_vllm.installed():
        yield


def next_log_p(context: tuple[int, ...]) -> np.ndarray:
    return TOY.next_log_p(context[len(PROMPT) :] if context[: len(PROMPT)] == PROMPT else context)


def table(**options) -> LLM:
    return LLM.over(next_log_p, VOCABULARY, EOS, **options)


def decoder_of(llm: LLM, rows: int = 8) -> TopKDecoder:
    client = EngineClient(llm, TOP)
    client.eos_ids = EOS
    return TopKDecoder(client, rows, EOS, NO_STOPS)


def request(keep=0, horizon=6, seed=1) -> Request:
    return Request(keep, horizon, ALPHA, np.random.default_rng(seed).random(horizon - keep))


def test_chains_with_exploring_steps_follow_their_law() -> None:
    """Guards lists, own log-probs, EOS and seeds as the engine has them: 500 chains, false-alarm probability 1e-5."""
    algorithm, llm = chain(STEPS, explore=0.4), table()
    counts = counts_of(draw(decoder_of(llm), algorithm, 500), algorithm, COMPLETIONS)
    assert agreement(counts, exact(STEPS, 0.4)) > FALSE_ALARM
    assert counts[~ON_LISTS].sum() > 20
    assert not llm.llm_engine.running


def test_chains_without_them_are_confined_to_the_lists() -> None:
    """Guards against lists that grow by the token that was drawn: the law stays inside of them."""
    algorithm = chain(STEPS)
    counts = counts_of(draw(decoder_of(table()), algorithm, 500), algorithm, COMPLETIONS)
    assert agreement(counts, exact(STEPS, 0.4)) < 1e-12
    assert agreement(counts, exact(STEPS, 0)) > FALSE_ALARM


def test_completions_do_not_depend_on_rows_or_prefetch() -> None:
    algorithm, found = chain(8, explore=0.3), []
    for rows, prefetch in [(1, False), (1, True), (7, True), (60, False)]:
        jobs = draw(decoder_of(table(max_num_seqs=5), rows), algorithm, 40, prefetch=prefetch)
        found.append([algorithm.result(job.state).path.tokens.tolist() for job in jobs])
    assert all(each == found[0] for each in found[1:])


def test_answers_are_the_engines_numbers() -> None:
    """Guards the flat layout: each token's own entry first, then K of the list, by falling log p and then id."""
    client = EngineClient(table(), TOP)
    client.eos_ids = EOS
    for seed in range(40):
        client.add(seed, Query(0, PROMPT, LONGEST, 1.0, seed))
    answers = {}
    while len(answers) < 40:
        answers |= dict(client.poll(range(40)))
    for answer in answers.values():
        for t, token in enumerate(answer.tokens.tolist()):
            log_p = next_log_p((*PROMPT, *answer.tokens[:t].tolist()))
            assert answer.log_p[t] == log_p[token]
            assert answer.lists.ids[t].tolist() == np.argsort(-log_p)[:TOP].tolist()
            np.testing.assert_array_equal(answer.lists.log_p[t], np.sort(log_p)[::-1][:TOP])
        assert len(answer.tokens) == LONGEST or answer.tokens[-1] in EOS
    assert any(not answer.lists.hold(answer.tokens).all() for answer in answers.values())


def test_what_is_asked_for() -> None:
    """Guards options of the checkpoint's generation config, and work that nobody reads."""
    llm = table()
    draw(decoder_of(llm), chain(3, explore=0.3), 5)
    for one in llm.llm_engine.added.values():
        params = one.params
        neutral = params.top_p, params.min_p, params.repetition_penalty, params.presence_penalty
        assert neutral == (1.0, 0.0, 1.0, 0.0) and params.top_k in (0, -1)
        assert params.stop_token_ids == EOS and params.ignore_eos and params.logprobs == TOP
        assert params.flat_logprobs and not params.detokenize
        assert params.output_kind is fake_vllm.RequestOutputKind.FINAL_ONLY and one.lora is None
    temperatures = {one.params.temperature for one in llm.llm_engine.added.values()}
    assert temperatures == {1.0, 1 / ALPHA}


def test_giving_a_row_up_aborts_its_request_alone() -> None:
    """Guards requests that decode on for nobody, and answers to them that are taken for their successors'."""
    llm = table()
    decoder = decoder_of(llm, 2)
    for row in (0, 1):
        decoder.load(row, PROMPT)
        decoder.submit(row, request(horizon=40, seed=row))
    llm.llm_engine.step()
    assert len(llm.llm_engine.running) == 2
    decoder.rollback(0)
    assert len(llm.llm_engine.running) == 1
    decoder.submit(0, request(horizon=40, seed=9))
    decoder.close()
    assert not llm.llm_engine.running and decoder.step() == []
    again = decoder_of(llm, 1)  # on the same engine: no name is used twice, which the stand-in checks
    again.client = decoder.client
    again.load(0, PROMPT)
    again.submit(0, request(horizon=2))
    assert [row for row, _ in again.step()] == [0]


def test_two_decoders_on_one_engine_get_their_own_answers() -> None:
    """Guards an answer that goes to whoever polls first, and a decoder that waits for it for ever."""
    one, two = decoder_of(table(), 1), decoder_of(table(), 1)
    two.client = one.client
    for decoder, horizon in ((one, 1), (two, 6)):
        decoder.load(0, PROMPT)
        decoder.submit(0, request(horizon=horizon, seed=horizon))
    ((_, longer),) = settled(two)
    ((_, shorter),) = settled(one)
    assert len(shorter.tokens) == 1 <= len(longer.tokens)


def settled(decoder) -> list:
    """What `step` returns as soon as it returns anything."""
    while not (segments := decoder.step()):
        pass
    return segments


def test_an_interrupt_leaves_no_request_running(monkeypatch) -> None:
    llm = table()
    sampler = PowerSampler(serve(llm, "table", None, top_logprobs=TOP), None, max_rows=8)

    def interrupt(engine: Engine) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sampler.generate([PROMPT], n=8, max_new_tokens=20)
    assert not llm.llm_engine.running


def test_python(tmp_path) -> None:
    """Guards `generate` on an engine: completions with raw log-probs, the same whatever the rows."""
    options = {"alpha": 2.0, "block_size": 6, "mcmc_steps": 4, "max_new_tokens": 12, "seed": 3, "explore": 0.2}
    found = []
    for rows in (1, 8):
        sampler = PowerSampler(serve(table(), "table", None, top_logprobs=TOP), None, max_rows=rows)
        assert sampler.eos_ids == (4, 5) and sampler.engine_options == {"top_logprobs": TOP}
        found.append(sampler.generate([PROMPT], n=6, **options)[0])
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in found[1]]
    for completion in found[0]:
        tokens = completion.token_ids
        raw = [next_log_p((*PROMPT, *tokens[:t]))[token] for t, token in enumerate(tokens)]
        assert completion.log_probs == pytest.approx(raw, abs=1e-12)


@pytest.mark.parametrize(
    ("reason", "message"), [("abort", "given a query up .*'abort'"), ("error", "given a query up .*'error'")]
)
def test_an_engine_that_gives_up(reason, message) -> None:
    llm = table()
    decoder = decoder_of(llm)
    decoder.load(0, PROMPT)
    decoder.submit(0, request())
    llm.llm_engine.reason = reason
    with pytest.raises(ServerError, match=message):
        decoder.step()


def test_an_engine_that_loses_a_request() -> None:
    """Guards an endless wait."""
    llm = table()
    decoder = decoder_of(llm)
    decoder.load(0, PROMPT)
    decoder.submit(0, request())
    llm.llm_engine.running.clear()
    with pytest.raises(ServerError, match="has lost requests"):
        decoder.step()


class EngineDeadError(Exception):
    """As vLLM's, which is no RuntimeError."""


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (EngineDeadError("EngineCore encountered an issue"), "vLLM's engine has failed .*EngineCore .*same command"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "^CUDA out of memory"),  # the sampler handles it
    ],
)
def test_an_engine_that_dies(monkeypatch, error, seen) -> None:
    decoder = decoder_of(table())
    decoder.load(0, PROMPT)
    decoder.submit(0, request())

    def step(engine: Engine) -> None:
        raise error

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(Exception, match=seen) as caught:
        decoder.step()
    assert isinstance(caught.value, ServerError) == isinstance(error, EngineDeadError)


def test_an_engine_that_refuses_a_request(monkeypatch) -> None:
    """Guards a bare error of vLLM's, and a request that the client waits for although nobody has it."""
    decoder = decoder_of(table(), 1)
    decoder.load(0, PROMPT)

    def refuse(engine: Engine, *arguments: object, **options: object) -> None:
        raise ValueError("the prompt is longer than max_model_len")

    with monkeypatch.context() as patch, pytest.raises(ServerError, match="longer than max_model_len"):
        patch.setattr(Engine, "add_request", refuse)
        decoder.submit(0, request(horizon=2))
    decoder.rollback(0)
    decoder.submit(0, request(horizon=2))
    assert [row for row, _ in settled(decoder)] == [0]


def test_an_interrupted_trial_leaves_nothing_behind(monkeypatch) -> None:
    """Guards the answer to one trial's query, which the next would take for that to its own."""
    llm = table()

    def interrupt(engine: Engine) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "step", interrupt)
        serve(llm, "table", None, top_logprobs=TOP)
    assert not llm.llm_engine.running


def test_log_probs_that_are_not_finite() -> None:
    llm = LLM.over(lambda context: np.array([0.0, *[-np.inf] * 5]), VOCABULARY, EOS)
    with pytest.raises(OptionError, match=r"model=table in vLLM: .*not finite.*bfloat16"):
        serve(llm, "table", None, top_logprobs=TOP)


def test_processed_log_probs_are_found_out() -> None:
    """Guards a plug-in that changes what the engine tells, though its options are right."""
    llm = table()
    llm.llm_engine.raw = False
    with pytest.raises(OptionError, match=r"model=table in vLLM: .*processed_logprobs"):
        serve(llm, "table", None, top_logprobs=TOP)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"logprobs_mode": "processed_logprobs"}, ("logprobs_mode=processed_logprobs", "raw_logprobs")),
        ({"max_logprobs": 2}, ("max_logprobs=2", ">= top_logprobs=3")),
        ({"speculative_config": {"model": "x"}}, ("speculative_config", "untouched")),
        (
            {"data_parallel_size": 2},
            ("vllm serve table --data-parallel-size 2", "--model power-api", "data_parallel=2"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_engines_that_do_not_fit(options, parts) -> None:
    """Guards draws from another law; by the option before an engine is made, and by its configuration after."""
    for attempt in (
        lambda: engine_options("table", options, TOP),
        lambda: serve(table(**options), "table", None, top_logprobs=TOP),
    ):
        with pytest.raises(OptionError) as caught:
            attempt()
        assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_more_tokens_than_there_are_cannot_be_listed() -> None:
    with pytest.raises(OptionError, match="top_logprobs=20: must be <= 6"):
        serve(table(), "table", None)
    with pytest.raises(OptionError, match="top_logprobs=1: must be a whole number >= 2"):
        serve(table(), "table", None, top_logprobs=1)


def test_options_that_are_filled_in() -> None:
    filled = engine_options("m", {"tensor_parallel_size": 2}, 64)
    assert filled == {"tensor_parallel_size": 2, "logprobs_mode": "raw_logprobs", "max_logprobs": 64}
    assert engine_options("m", {}, 5)["max_logprobs"] == 20, "log-likelihoods may want more than we do"
    assert engine_options("m", {"max_logprobs": -1}, 64)["max_logprobs"] == -1


def test_what_changes_the_numbers_decides() -> None:
    """Guards keys: completions of a quantised model are not taken for those of the checkpoint as it is."""
    llm = table(quantization="fp8", kv_cache_dtype="fp8_e5m2", hf_overrides={"rope_theta": 5})
    server: Server = serve(llm, "table", None, top_logprobs=TOP)
    assert server.relevant_options == {
        "top_logprobs": TOP, "quantization": "fp8", "kv_cache_dtype": "fp8_e5m2", "hf_overrides": "{'rope_theta': 5}",
    }  # fmt: skip


def test_eos_must_be_known() -> None:
    llm = LLM.over(next_log_p, VOCABULARY, [])
    with pytest.raises(OptionError, match=r"EOS tokens, .*eos_token_ids"):
        serve(llm, "table", None, top_logprobs=TOP)
    assert serve(llm, "table", None, top_logprobs=TOP, eos_token_ids=[3]).eos_ids == (3,)
    with pytest.raises(OptionError, match=r"EOS tokens, \[6\]: must be some of its 6"):
        serve(llm, "table", None, top_logprobs=TOP, eos_token_ids=[6])


def test_without_vllm(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'lm-power\[vllm\]'"):
        PowerSampler.from_vllm("m")
    with pytest.raises(OptionError, match="max_rows='auto': vLLM's memory is not known"):
        PowerSampler.from_vllm("m", max_rows="auto")


@pytest.mark.vllm
def test_importing_lm_power_imports_no_vllm() -> None:
    """Guards start-up: vLLM takes seconds to import, and sets up processes and logging of its own."""
    modules = "lm_power, lm_power.plugin, lm_power.sampler, lm_power.remote.vllm_engine, lm_power.harness.power_api"
    code = f"import sys, {modules}; print([name for name in sys.modules if name.split('.')[0] == 'vllm'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
