"""The real vLLM, on a CPU and on models made here: numbers, laws, adapters, and a server of its own.

`bash tests/run.sh --vllm` runs these in an environment that has vLLM; see CONTRIBUTING.md.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.vllm

VOCABULARY, EOS, POSITIONS, TOP = 31, 0, 128, 4
PROMPT, ALPHA, LONGEST, STEPS, CHAINS = [5, 9, 4], 2.0, 2, 40, 1000
FALSE_ALARM = 1e-5
ENGINE = {
    "dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False, "max_model_len": POSITIONS,
    "max_num_batched_tokens": 1024, "max_num_seqs": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A Llama whose heads have a size that vLLM's CPU attention takes, with the tokenizer of the other tests."""
    from harness.tiny_lm import save_model

    sizes = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.1,  # a good part of p^2 is off the lists
    }
    return save_model(tmp_path_factory.mktemp("tiny"), **sizes, vocab_size=VOCABULARY, head_dim=64)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory) -> str:
    from foreign_adapters import make_adapter

    where = tmp_path_factory.mktemp("adapter")
    make_adapter(folder, where, target_modules=["q_proj", "up_proj"])
    return str(where)


@pytest.fixture(scope="module")
def lm(folder, adapter) -> Iterator[Any]:
    """`power-vllm` with an adapter; the engine serves the base, too."""
    pytest.importorskip("vllm", reason="needs an environment that has vLLM: see CONTRIBUTING.md")
    from lm_power.harness.power_vllm import PowerVLLM

    options = {**ENGINE, "kv_block_size": 32, "mcmc_steps": 2, "block_size": 4, "top_logprobs": TOP}
    yield PowerVLLM(folder, lora_local_path=adapter, batch_size="auto", **options)


@pytest.fixture(scope="module")
def base(lm) -> Any:
    """A sampler for the base without its adapter, on the same engine."""
    from lm_power import PowerSampler
    from lm_power.remote.vllm_engine import serve

    server = serve(lm.model, "base", lm.tokenizer, top_logprobs=TOP)
    return PowerSampler(server, lm.tokenizer, max_rows=64)


@functools.cache
def transformers_model(folder: str, adapter: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    from lm_power.adapter import load_adapter

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return (model if adapter is None else load_adapter(model, adapter)).eval()


def log_probs(folder: str, tokens: list[int], adapter: str | None = None) -> np.ndarray:
    """[tokens − 1, vocabulary] float64 log p of transformers, whose logits are float32."""
    with torch.inference_mode():
        logits = transformers_model(folder, adapter)(torch.tensor([tokens])).logits
    return logits[0, :-1].double().log_softmax(-1).numpy()


def check_log_probs(drawn, prompt: list[int], folder: str, adapter: str | None = None) -> None:
    assert drawn
    for completion in drawn:
        tokens = [*prompt, *completion.token_ids]
        law = log_probs(folder, tokens, adapter)[len(prompt) - 1 :]
        expected = [law[t, token] for t, token in enumerate(completion.token_ids)]
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def exact_laws(folder: str) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
    """All completions of up to two tokens, their p^alpha, and whether each lies on the lists."""
    first = log_probs(folder, [*PROMPT, 0])[-1]
    completions, log_p, listed = [(EOS,)], [first[EOS]], [EOS in np.argsort(-first)[:TOP]]
    for one in range(VOCABULARY):
        if one == EOS:
            continue
        second = log_probs(folder, [*PROMPT, one, 0])[-1]
        on_lists = one in np.argsort(-first)[:TOP], np.argsort(-second)[:TOP]
        for two in range(VOCABULARY):
            completions.append((one, two))
            log_p.append(first[one] + second[two])
            listed.append(on_lists[0] and two in on_lists[1])
    weights = np.exp(ALPHA * np.array(log_p))
    return completions, weights / weights.sum(), np.array(listed)


def check_law(sampler, folder: str) -> None:
    """Chains that explore follow p^alpha, of which a good part is off the lists; false-alarm probability 1e-5."""
    from toy import agreement

    completions, target, listed = exact_laws(folder)
    assert target[~listed].sum() > 0.05
    (drawn,) = sampler.generate(
        [PROMPT], n=CHAINS, alpha=ALPHA, max_new_tokens=LONGEST, block_size=LONGEST, mcmc_steps=STEPS, explore=0.5,
        proposal_temperature=1.0, seed=4,
    )  # fmt: skip
    places = {tokens: place for place, tokens in enumerate(completions)}
    counts = np.bincount([places[tuple(c.token_ids)] for c in drawn], minlength=len(completions)).astype(float)
    p_value = agreement(counts, target)
    confined = np.where(listed, target, 0) / target[listed].sum()
    print(
        f"law: p = {p_value:.3g}; off the lists {target[~listed].sum():.3f}, drawn {counts[~listed].sum() / CHAINS:.3f}"
    )
    assert p_value > FALSE_ALARM
    assert agreement(counts, confined) < 1e-12
    check_log_probs(drawn[:20], PROMPT, folder)


def test_chains_follow_p_alpha_in_process(base, folder) -> None:
    check_law(base, folder)


def test_an_adapter_is_sampled_with(lm, folder, adapter) -> None:
    """Guards `lora_local_path`: log-probs are PEFT's, and not the base's."""
    (drawn,) = lm.sampler.generate(["what now?"], n=6, method="standard", max_new_tokens=8, seed=1)
    prompt = list(lm.sampler.encode("what now?"))
    check_log_probs(drawn, prompt, folder, adapter)
    with pytest.raises(AssertionError):
        check_log_probs(drawn, prompt, folder)
    assert lm.model_args["max_lora_rank"] == 8


def test_log_likelihoods_are_lm_evals(lm, folder, adapter) -> None:
    prompt, answer = lm.tok_encode("who are you?"), lm.tok_encode("a", add_special_tokens=False)
    ((found, _),) = lm._loglikelihood_tokens([(("", ""), prompt, answer)], disable_tqdm=True)
    law = log_probs(folder, [*prompt, *answer], adapter)
    assert found == pytest.approx(law[len(prompt) - 1, answer[0]], abs=1e-4)


def test_the_identity_is_that_of_power_hf(lm, folder, adapter) -> None:
    from lm_power.harness.power_hf import PowerHF

    assert lm.model_name == PowerHF(folder, peft=adapter, dtype="float32", device="cpu").model_name


def test_generate_until(lm) -> None:
    """Guards lm-eval's way in: stop strings, repeats, one completion a request."""
    from lm_eval.api.instance import Instance

    asked = [Instance("generate_until", {}, (text, {"until": ["a"], "max_gen_toks": 12}), 0) for text in ("hi?", "who")]
    answers = lm.generate_until(asked, disable_tqdm=True)
    assert len(answers) == 2 and all("a" not in answer for answer in answers)
    assert all(answer.stats.proposals > 0 for answer in answers)


@contextlib.contextmanager
def serving(folder: str, log: Path, *flags: str) -> Iterator[str]:
    """`vllm serve` of a folder; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder, "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--block-size", "32"]
    command += ["--max-model-len", str(POSITIONS), "--max-num-batched-tokens", "1024", "--max-num-seqs", "64"]
    command += ["--served-model-name", "tiny", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ)
    url = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + 1500
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/models", timeout=10)
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_a_server_of_a_model_and_an_adapter(folder, adapter, tmp_path) -> None:
    """Chains on the base follow p^alpha; the adapter, which the server knows by a name of its own, is PEFT's."""
    from lm_power import PowerSampler

    with serving(folder, tmp_path / "log", "--enable-lora", "--lora-modules", f"student={adapter}") as url:
        sampler = PowerSampler.from_server(url, "tiny", top_logprobs=TOP)
        check_law(sampler, folder)
        sampler.host.close()
        sampler = PowerSampler.from_server(url, "student", top_logprobs=TOP)
        (drawn,) = sampler.generate([PROMPT], n=6, method="standard", max_new_tokens=8, seed=1)
        sampler.host.close()
    assert str(sampler.host.card) == f"student (root {adapter}, on tiny (root {folder}))"
    assert sampler.host.max_positions == POSITIONS
    check_log_probs(drawn, PROMPT, folder, adapter)
    with pytest.raises(AssertionError):
        check_log_probs(drawn, PROMPT, folder)


def test_rows_keep_to_their_replica(folder, tmp_path) -> None:
    """Guards `data_parallel`: the header of vLLM's that pins a row; completions are as they are without replicas."""
    from lm_power import PowerSampler

    options = {"alpha": 2.0, "block_size": 4, "mcmc_steps": 2, "max_new_tokens": 8, "seed": 3}
    with serving(folder, tmp_path / "log", "--data-parallel-size", "2") as url:
        sampler = PowerSampler.from_server(url, top_logprobs=TOP, ranks=2, max_rows=8)
        (drawn,) = sampler.generate([PROMPT], n=8, **options)
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=60) as answer:
            metrics = answer.read().decode()
        sampler.host.close()
    finished = [line for line in metrics.splitlines() if line.startswith("vllm:request_success_total")]
    engines = {line.split('engine="')[1].split('"')[0]: 0.0 for line in finished}
    for line in finished:
        engines[line.split('engine="')[1].split('"')[0]] += float(line.rsplit(" ", 1)[1])
    print(f"requests by replica: {engines}")
    assert set(engines) == {"0", "1"} and min(engines.values()) > 0.3 * max(engines.values())
    check_log_probs(drawn, PROMPT, folder)
