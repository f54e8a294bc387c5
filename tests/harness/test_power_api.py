"""power-api inside lm-eval, on a fake server over the tiny model: what `power-hf` users rely on, and what differs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from harness.tiny_lm import PROMPTS, Evaluation, assert_log_likelihoods_of, make_tokenizer, write_task
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from remote.fake_server import FakeServer, Ways, of_model

from lm_power import OptionError, PowerSampler
from lm_power.harness.power_api import PowerAPI
from lm_power.remote.queries import ServerError
from lm_power.store import read_store

OPTIONS = {"mcmc_steps": 2, "block_size": 4, "num_concurrent": 4, "top_logprobs": 6, "explore": 0.1}


@pytest.fixture(scope="module")
def running(tiny) -> FakeServer:
    server = of_model(tiny)
    with server.running() as url:
        server.url, server.card = url, server.ways.card
        yield server


@pytest.fixture
def served(running, monkeypatch) -> FakeServer:
    monkeypatch.setattr("lm_power.remote.client._FIRST_PAUSE", 0.01)
    running.ways = Ways(card=dict(running.card))
    running.bodies.clear()
    running.headers.clear()
    return running


@pytest.fixture
def evaluate(served, tiny, tmp_path_factory):
    """Run `simple_evaluate` on a task written for the occasion, with power-api on the fake server."""

    def run(task=(), prompts=PROMPTS, options=(), model=None, **arguments) -> Evaluation:
        folder = write_task(tmp_path_factory.mktemp("task"), prompts, **dict(task))
        lm = model or PowerAPI(served.url, tokenizer=tiny, **{**OPTIONS, **dict(options)})
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        arguments = {"bootstrap_iters": 0, "tasks": ["tiny_task"], **arguments}
        return Evaluation(simple_evaluate(model=lm, task_manager=manager, **arguments), lm)

    return run


def facts(run: Evaluation) -> list:
    return [[(c.token_ids, c.log_probs, c.steps) for c in completions] for completions in run.completions]


def test_completions_are_those_of_the_python_api(evaluate, served, tiny) -> None:
    """Guards two code paths: other prompt ids (BOS), seeds or options than `PowerSampler.from_server`'s."""
    run = evaluate(task={"repeats": 2}, options={"alpha": 3, "seed": 5})
    sampler = PowerSampler.from_server(served.url, tokenizer=tiny, max_rows=3, top_logprobs=6)
    options = {"mcmc_steps": 2, "block_size": 4, "max_new_tokens": 8, "alpha": 3, "seed": 5, "explore": 0.1}
    expected = sampler.generate(list(PROMPTS), n=2, **options)
    assert run.completions == expected
    assert [c.log_probs for cs in run.completions for c in cs] == [c.log_probs for cs in expected for c in cs]
    assert served.bodies[-1]["prompt"][0] == 1, "BOS"


def test_log_probs_are_those_of_the_model(evaluate, tiny) -> None:
    """Guards log-probs at the proposal's temperature: the completions' agree with power-hf's own model."""
    run = evaluate()
    stock = HFLM(tiny, device="cpu", dtype="float64", batch_size=1)
    for prompt, (completion,) in zip(PROMPTS, run.completions, strict=True):
        ids = make_tokenizer().encode(prompt)
        ((log_p, _),) = stock._loglikelihood_tokens([(("", ""), ids, list(completion.token_ids))], disable_tqdm=True)
        assert sum(completion.log_probs) == pytest.approx(log_p, abs=1e-5)


def test_log_likelihood_tasks_are_lm_evals(evaluate, tiny) -> None:
    stock = HFLM(tiny, device="cpu", dtype="float64", batch_size=1, add_bos_token=False)
    assert_log_likelihoods_of(stock, evaluate)


def test_chat_template_is_applied_with_one_bos(evaluate, served) -> None:
    run = evaluate(apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="be brief", prompts=["hi?"])
    text = "<s>system: be brief\nuser: hi?\nassistant: "
    assert run.samples[0]["arguments"][0][0] == text
    ids = make_tokenizer().encode(text, add_special_tokens=False)
    drawing = [body["prompt"] for body in served.bodies if body["prompt"][: len(ids)] == ids]
    assert len(drawing) > 1


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_add_bos_token(evaluate, served, add_bos_token) -> None:
    run = evaluate(prompts=["hi?"], options={"add_bos_token": add_bos_token})
    assert (run.model.prompt_ids("hi?")[0] == 1) is add_bos_token
    assert (served.bodies[-1]["prompt"][0] == 1) is add_bos_token


def test_long_prompts_lose_their_left_end(evaluate, served, caplog) -> None:
    """Guards prompts longer than the server's window, and `max_length` below it."""
    evaluate(prompts=["x" * 200, "short"])
    evaluate(prompts=["x" * 200, "short"], options={"max_length": 40})
    assert [r.message for r in caplog.records if "cut on the left" in r.message] == [
        f"1 of 2 prompts are cut on the left: with max_gen_toks=8 they exceed the model's {n} positions"
        for n in (96, 40)
    ]
    assert max(len(body["prompt"]) + body["max_tokens"] for body in served.bodies) == 96


def test_a_server_that_tells_no_window(evaluate, served, caplog) -> None:
    served.ways.card = {"id": "tiny"}
    run = evaluate(prompts=["x" * 60])
    assert run.model.model_name == "tiny (weights not known)" and "cut on the left" not in caplog.text


def test_think_end_token_cuts_the_text(evaluate) -> None:
    task = {"generation_kwargs": {"max_gen_toks": 20}, "repeats": 4}
    plain = evaluate(task=task, prompts=["hm"])
    for marker in ("e", str(make_tokenizer().convert_tokens_to_ids("e"))):
        cut = evaluate(task=task, prompts=["hm"], options={"think_end_token": marker})
        pairs = list(zip(plain.completions[0], cut.completions[0], strict=True))
        assert any("e" in whole for whole, _ in pairs)
        assert all(part == (whole.rsplit("e", 1)[1].lstrip() if "e" in whole else whole) for whole, part in pairs)


def test_the_store_says_what_decided(evaluate, served, tmp_path) -> None:
    """Guards keys: explore and top_logprobs are in them here, and a second run draws nothing."""
    folder = tmp_path / "store"
    first = evaluate(options={"completions": str(folder)})
    records = list(read_store(folder))
    for record in records:
        assert record["config"]["explore"] == 0.1 and record["config"]["top_logprobs"] == 6
        assert record["model"].startswith("tiny (root ") and record["config"]["eos_ids"] == [0]
    served.bodies.clear()
    assert facts(evaluate(options={"completions": str(folder)})) == facts(first)
    assert all(body["max_tokens"] <= 12 and len(body["prompt"]) > 0 for body in served.bodies)
    tried_out = len(served.bodies)
    assert tried_out <= 5, "only the server is tried out again"
    for other in ({"explore": 0.2}, {"top_logprobs": 7}, {"explore": 0}):
        evaluate(options={"completions": str(folder), **other})
    assert len(list(read_store(folder))) == 4 * len(records)
    evaluate(
        options={"completions": str(folder), "method": "standard", "explore": None, "mcmc_steps": 10, "block_size": 192}
    )
    plain = [record["config"] for record in read_store(folder) if record["config"]["method"] == "standard"]
    assert len(plain) == len(records) and not any("explore" in config for config in plain)


def test_faults_lose_and_double_nothing(evaluate, served, tmp_path) -> None:
    """Guards the store: with faults of every kind it has the same completions, each once."""
    quiet = evaluate(task={"repeats": 3}, options={"completions": str(tmp_path / "quiet")})
    served.bodies.clear()
    served.headers.clear()
    served.ways.faults = {7: "reset", 9: 500, 12: "half", 15: 429, 20: "slow", 30: "reset", 31: "half", 50: 503}
    hit = evaluate(task={"repeats": 3}, options={"completions": str(tmp_path / "hit"), "timeout": 1})
    assert len(served.bodies) > 50
    assert facts(hit) == facts(quiet)
    stored = {name: [(r["key"], r["token_ids"]) for r in read_store(tmp_path / name)] for name in ("quiet", "hit")}
    assert len(stored["hit"]) == 3 * len(PROMPTS) and sorted(stored["hit"]) == sorted(stored["quiet"])


def test_killed_and_started_again(evaluate, served, tiny, tmp_path) -> None:
    """Guards resume through the command line: SIGKILL half way costs nothing but what was not finished."""
    task = {"repeats": 3, "generation_kwargs": {"max_gen_toks": 24}}
    quiet = evaluate(task=task)
    served.ways.pause = 0.02
    store = tmp_path / "store"
    options = {**OPTIONS, "base_url": served.url, "tokenizer": tiny, "completions": store}
    model_args = ",".join(f"{name}={value}" for name, value in options.items())
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "power-api", "--model_args", model_args]
    command += ["--tasks", "tiny_task", "--include_path", str(write_task(tmp_path / "task", **task))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in store.glob("*.jsonl"))

    while process.poll() is None and lines() < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()
    kept = lines()
    assert 4 <= kept < 15, "killed too late to show anything"
    deadline = time.monotonic() + 20
    while served.under_way:  # the server has noticed
        assert time.monotonic() < deadline
        time.sleep(0.01)
    served.ways.pause = 0.0
    again = evaluate(task=task, options={"completions": str(store)})
    assert facts(again) == facts(quiet)
    assert len(list(read_store(store))) == 15 and lines() == 15


WRONG = [
    ({"peft": "x"}, ("peft=x", "option of power-hf", "where the server is started")),
    ({"randomize_weights": True}, ("randomize_weights=True", "option of power-hf")),
    ({"dtype": "bfloat16"}, ("dtype=bfloat16", "option of power-hf")),
    ({"parallelize": True}, ("parallelize=True", "option of power-hf")),
    ({"attn_implementation": "sdpa"}, ("attn_implementation=sdpa", "option of power-hf")),
    ({"alhpa": 3}, ("'alhpa'", "did you mean alpha")),
    ({"top_logprob": 3}, ("'top_logprob'", "did you mean top_logprobs")),
    ({"max_gen_toks": 3}, ("--gen_kwargs max_gen_toks=3",)),
    ({"alpha": 0.5}, ("alpha=0.5", ">= 1")),
    ({"explore": 1.5}, ("explore=1.5", "[0, 1]")),
    ({"num_concurrent": 0}, ("num_concurrent=0", ">= 1")),
    ({"data_parallel": "2"}, ("data_parallel='2'", ">= 1")),
    ({"timeout": 0}, ("timeout=0", "> 0")),
    ({"top_logprobs": 1}, ("top_logprobs=1", ">= 2")),
    ({"add_bos_token": "yes"}, ("add_bos_token='yes'", "true or false")),
    ({"eos_token_ids": "a"}, ("eos_token_ids='a'", "2/107")),
    ({"completions": ""}, ("completions=''", "name a folder")),
    ({"header": "a"}, ("header='a'", "OPENAI_API_KEY")),
    ({"ca_cert_path": "/nowhere.pem"}, ("ca_cert_path=/nowhere.pem", "no file of certificates")),
    ({"eos_token_ids": 999}, ("eos_token_ids=999", "must be among the 32 tokens")),
    (
        {"method": "smc", "particles": 4, "mcmc_steps": 10, "block_size": 192, "explore": 0.1},
        ("explore=0.1", "method=smc"),
    ),
]


@pytest.mark.parametrize(("options", "parts"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_wrong_options(served, tiny, options, parts) -> None:
    """Guards options that are dropped: refused by name before the server is asked for anything."""
    with pytest.raises(OptionError) as caught:
        PowerAPI(served.url, tokenizer=tiny, **{**OPTIONS, **options})
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not served.bodies


def test_methods_that_cannot_explore(evaluate, served) -> None:
    plain = {"explore": None, "mcmc_steps": 10, "block_size": 192}
    for method in ("smc", "rejection", "sps"):
        with pytest.raises(OptionError, match=f"method={method}: its draws cannot leave the 6 likeliest.*explore=0"):
            evaluate(options={**plain, "method": method})
    assert all(body["max_tokens"] <= 12 for body in served.bodies)
    run = evaluate(options={**plain, "method": "smc", "particles": 3, "explore": 0}, prompts=["hi"])
    assert len(run.completions[0][0].token_ids) > 0


def test_a_refusal_of_a_server_ends_the_run(evaluate, served) -> None:
    served.ways.raw = False
    with pytest.raises(ServerError, match="--logprobs-mode raw_logprobs"):
        evaluate()


def test_several_processes_are_refused(served, tiny, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=r"each would draw every completion.*num_concurrent"):
        PowerAPI(served.url, tokenizer=tiny)


def test_base_url_must_be_given(tiny) -> None:
    with pytest.raises(OptionError, match="base_url: must be given"):
        PowerAPI(tokenizer=tiny)


def test_results_and_notices(evaluate, caplog) -> None:
    """Guards what is written down: options and the model's name in the results, and one notice of greedy tasks."""
    caplog.set_level(logging.INFO)
    run = evaluate(task={"generation_kwargs": {"do_sample": True, "temperature": 0.0}}, options={"num_concurrent": 1})
    config = json.loads(json.dumps(run.results["config"], default=handle_non_serializable))
    assert config["power_sampler"]["top_logprobs"] == 6 and config["power_sampler"]["model"].startswith("tiny (root")
    assert sum("has no effect" in r.message for r in caplog.records) == 1
    assert sum("num_concurrent=1 decodes one completion at a time" in r.message for r in caplog.records) == 1
