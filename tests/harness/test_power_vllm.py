"""`power-vllm` through `simple_evaluate`, on a stand-in for vLLM: what is ours, lm-eval's and the engine's."""

from __future__ import annotations

import json

import pytest
import torch
from foreign_adapters import make_adapter
from harness.tiny_lm import PROMPTS, Evaluation, assert_log_likelihoods_of, make_tokenizer, write_task
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from remote import fake_vllm
from remote.fake_server import of_model

from lm_power import OptionError, PowerSampler
from lm_power.fingerprint import checkpoint_fingerprint
from lm_power.harness.power_api import PowerAPI
from lm_power.harness.power_hf import PowerHF
from lm_power.identity import Identity
from lm_power.store import read_store

OPTIONS = {"mcmc_steps": 2, "block_size": 4, "batch_size": 4, "top_logprobs": 6, "explore": 0.1}


@pytest.fixture(scope="module")
def power_vllm():
    """The model's class, made anew on the stand-in."""
    with fake_vllm.installed():
        from lm_power.harness.power_vllm import PowerVLLM

        yield PowerVLLM


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(tiny, folder, target_modules=["q_proj", "up_proj"])
    return str(folder)


@pytest.fixture
def evaluate(power_vllm, tiny, tmp_path_factory):
    """Run `simple_evaluate` on a task written for the occasion, with power-vllm on the stand-in."""

    def run(task=(), prompts=PROMPTS, options=(), model=None, **arguments) -> Evaluation:
        folder = write_task(tmp_path_factory.mktemp("task"), prompts, **dict(task))
        lm = model or power_vllm(tiny, **{**OPTIONS, **dict(options)})
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        arguments = {"bootstrap_iters": 0, "tasks": ["tiny_task"], **arguments}
        return Evaluation(simple_evaluate(model=lm, task_manager=manager, **arguments), lm)

    return run


def facts(run: Evaluation) -> list:
    return [[(c.token_ids, c.log_probs, c.steps, str(c)) for c in completions] for completions in run.completions]


def test_completions_are_those_of_a_server(evaluate, tiny) -> None:
    """Guards prompts, EOS, stop strings and seeds: with equal noise, token for token what power-api draws."""
    task = {"repeats": 2, "generation_kwargs": {"until": ["e", "ab"], "max_gen_toks": 12}}
    ours = evaluate(task=task, options={"alpha": 3, "seed": 5})
    with of_model(tiny).running() as url:
        options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
        api = PowerAPI(url, tokenizer=tiny, num_concurrent=3, alpha=3, seed=5, **options)
        theirs = evaluate(task=task, model=api)
        api.sampler.host.close()
    assert facts(ours) == facts(theirs)
    assert {c.finish_reason for cs in ours.completions for c in cs} >= {"stop"}
    assert all("e" not in c for cs in ours.completions for c in cs)
    sampler = PowerSampler.from_vllm(tiny, max_rows=3, top_logprobs=6)
    sampling = {"mcmc_steps": 2, "block_size": 4, "max_new_tokens": 12, "alpha": 3, "seed": 5, "explore": 0.1}
    assert sampler.generate(list(PROMPTS), n=2, stop=["e", "ab"], **sampling) == ours.completions


def test_log_likelihood_tasks_are_lm_evals(evaluate, tiny) -> None:
    stock = HFLM(tiny, device="cpu", dtype="float64", batch_size=1)
    assert_log_likelihoods_of(stock, evaluate)


def test_an_adapter_reaches_every_request(evaluate, tiny, adapter) -> None:
    """Guards `lora_local_path`: the log-probs are PEFT's, not the base's; the identity is power-hf's."""
    run = evaluate(options={"lora_local_path": adapter})
    engine = run.model.model.llm_engine
    assert {one.lora.lora_path for one in engine.added.values()} == {adapter}
    assert engine.args.max_lora_rank == 8 and engine.args.enable_lora
    with_adapter = PowerHF(tiny, peft=adapter, device="cpu", dtype="float64", batch_size=1)
    base = HFLM(tiny, device="cpu", dtype="float64", batch_size=1)
    differ = False
    for prompt, (completion,) in zip(PROMPTS, run.completions, strict=True):
        asked = [(("", ""), make_tokenizer().encode(prompt), list(completion.token_ids))]
        ((log_p, _),) = with_adapter._loglikelihood_tokens(asked, disable_tqdm=True)
        assert sum(completion.log_probs) == pytest.approx(log_p, abs=1e-5)
        ((without, _),) = base._loglikelihood_tokens(asked, disable_tqdm=True)
        differ |= abs(log_p - without) > 0.01
    assert differ
    assert run.model.model_name == with_adapter.model_name
    (drawn,) = PowerSampler.from_vllm(tiny, lora_local_path=adapter, top_logprobs=6, max_rows=2).generate(
        [PROMPTS[0]], mcmc_steps=2, block_size=4, max_new_tokens=8, explore=0.1
    )
    assert drawn == run.completions[0]


def test_the_store_says_what_decided(evaluate, tiny, tmp_path) -> None:
    """Guards keys and identity: the weights are power-hf's by fingerprint, and a second run draws nothing."""
    folder = tmp_path / "store"
    first = evaluate(options={"completions": str(folder)})
    same = PowerHF(tiny, device="cpu", dtype="float64").model_name
    for record in read_store(folder):
        assert record["model"] == same
        assert record["config"]["explore"] == 0.1 and record["config"]["top_logprobs"] == 6
    second = evaluate(options={"completions": str(folder)})
    assert facts(second) == facts(first)
    assert max(one.params.max_tokens for one in second.model.model.llm_engine.added.values()) <= 3, "a trial alone"
    other = evaluate(options={"completions": str(tmp_path / "other"), "quantization": "fp8"})
    assert all(record["config"]["quantization"] == "fp8" for record in read_store(tmp_path / "other"))
    quantised = Identity.parse(other.model.model_name)
    assert quantised.fingerprint is None, "the checkpoint does not tell these weights"
    assert quantised.pretrained.endswith(" (quantised, fp8)")
    assert other.results["config"]["power_sampler"]["model"] == other.model.model_name


def test_options_reach_whom_they_are_for(power_vllm, tiny) -> None:
    """Guards names that the sampler and vLLM both have: `block_size` and `seed` are the sampler's."""
    options = {"kv_block_size": 32, "seed": 7, "max_length": 60, "tensor_parallel_size": 2, "batch_size": "auto"}
    lm = power_vllm(tiny, **{**OPTIONS, **options}, gpu_memory_utilization=0.5, max_num_seqs=9, device=None)
    args = lm.model.llm_engine.args
    assert (args.block_size, lm.sampler_config.block_size) == (32, 4)
    assert (args.seed, lm.sampler_config.seed) == (1234, 7)
    assert (args.tensor_parallel_size, args.gpu_memory_utilization, args.max_model_len) == (2, 0.5, 60)
    assert (args.max_logprobs, args.logprobs_mode) == (20, "raw_logprobs")
    assert lm.sampler.max_rows == 9 and lm.positions() == 60
    assert power_vllm(tiny, **OPTIONS).sampler.max_rows == 4


WRONG = [
    ({"data_parallel_size": 2}, ("vllm serve", "--data-parallel-size 2", "--model power-api", "data_parallel=2")),
    ({"peft": "x"}, ("peft", "option of power-hf", "lora_local_path")),
    ({"parallelize": True}, ("parallelize", "tensor_parallel_size")),
    ({"proposal_peft": "student"}, ("proposal_peft", "power-hf", "leave it out")),
    ({"alhpa": 3}, ("'alhpa'", "did you mean alpha")),
    ({"max_num_seq": 3}, ("'max_num_seq'", "did you mean max_num_seqs")),
    ({"zzzz": 3}, ("'zzzz'", "vLLM has none of this name")),
    ({"alpha": 0.5}, ("alpha=0.5", ">= 1")),
    ({"top_logprobs": 1}, ("top_logprobs=1", ">= 2")),
    ({"logprobs_mode": "processed_logits"}, ("logprobs_mode=processed_logits", "raw_logprobs")),
    ({"max_logprobs": 5}, ("max_logprobs=5", ">= top_logprobs=6")),
    ({"speculative_config": {"model": "x"}}, ("speculative_config", "untouched")),
    ({"truncation_side": "right"}, ("truncation_side=right", "on the left")),
    ({"eos_token_ids": "a"}, ("eos_token_ids='a'", "2/107")),
    ({"lora_local_path": "/no/adapter"}, ("lora_local_path=/no/adapter", "folder of a LoRA adapter")),
    ({"completions": ""}, ("completions=''", "name a folder")),
]


@pytest.mark.parametrize(("options", "parts"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_wrong_options(power_vllm, tiny, options, parts, monkeypatch) -> None:
    """Guards options that are dropped: refused by name before anything is loaded."""
    monkeypatch.setattr(fake_vllm.LLM, "__init__", lambda self, **options: pytest.fail("loaded"))
    with pytest.raises(OptionError) as caught:
        power_vllm(tiny, **{**OPTIONS, **options})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_several_processes_are_refused(power_vllm, tiny, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=r"power-vllm under several processes.*tensor_parallel_size"):
        power_vllm(tiny)


def test_thinking_and_long_prompts(evaluate, caplog) -> None:
    run = evaluate(prompts=["x" * 200, "hm"], task={"repeats": 3}, options={"think_end_token": "e", "max_length": 40})
    assert "3 of 6 prompts are cut on the left: with max_gen_toks=8 they exceed the model's 40 positions" in caplog.text
    plain = evaluate(prompts=["x" * 200, "hm"], task={"repeats": 3}, options={"max_length": 40})
    for cut, whole in zip(run.completions[1], plain.completions[1], strict=True):
        assert cut == (whole.rsplit("e", 1)[1].lstrip() if "e" in whole else whole)


def test_results_say_what_drew(evaluate, tiny) -> None:
    run = evaluate(options={"batch_size": 1}, prompts=["hi"])
    config = json.loads(json.dumps(run.results["config"], default=handle_non_serializable))
    assert config["power_sampler"]["top_logprobs"] == 6
    fingerprint = checkpoint_fingerprint(tiny, None, torch.float64)
    assert config["power_sampler"]["model"] == f"{tiny}@{fingerprint}"


def test_checkpoints_that_do_not_tell(tiny, adapter, tmp_path) -> None:
    """Guards an identity that is guessed: without files of known names there is none."""
    assert checkpoint_fingerprint("no/such-model", None, torch.float32) is None
    assert checkpoint_fingerprint(str(tmp_path), None, torch.float32) is None
    assert checkpoint_fingerprint(tiny, None, torch.float32, str(tmp_path / "none")) is None
    assert checkpoint_fingerprint(tiny, None, torch.float32, adapter) is not None
    make_adapter(tiny, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert checkpoint_fingerprint(tiny, None, torch.float32, str(tmp_path)) is None
