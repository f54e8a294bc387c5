"""PowerSampler: what users call, what they get, and what they are told when they are wrong."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from methods import suited
from models import EOS, VOCABULARY, make_model, with_lora
from tiny_tokenizers import words

from lm_power import Completion, PowerSampler
from lm_power.config import OptionError

OPTIONS = {"alpha": 2.0, "block_size": 4, "mcmc_steps": 2, "max_new_tokens": 12}
LEAKS = {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0, "do_sample": True}


@pytest.fixture(scope="module")
def sampler() -> PowerSampler:
    """A model that speaks in words w2, w3 … and ends often."""
    return PowerSampler(make_model("qwen2"), words(), max_rows=8, eos_token_ids=[EOS, 40, 50])


@torch.inference_mode()
def log_probs(model: torch.nn.Module, prompt: list[int], tokens: tuple[int, ...]) -> list[float]:
    """Raw log p of each token, by one forward pass."""
    log_p = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return log_p.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def test_completions_come_by_prompt_and_repeat_with_all_their_fields(sampler):
    """Guards: the contract with users (lm_power/README.md); out[i][j] mixed up by rows finishing out of order."""
    prompts = ["w5 w6 w7", "w9", [12, 13, 14, 15]]
    out = sampler.generate(prompts, n=4, **OPTIONS)
    assert [len(completions) for completions in out] == [4, 4, 4]
    reasons = set()
    for ids, completions in zip([[5, 6, 7], [9], [12, 13, 14, 15]], out, strict=True):
        for c in completions:
            assert isinstance(c, str) and c.text == c and type(c.text) is str
            assert 1 <= len(c.token_ids) == len(c.log_probs) <= 12
            assert c.log_probs == pytest.approx(log_probs(sampler.host.backend.model, ids, c.token_ids), abs=1e-4)
            assert c.self_reward == pytest.approx(sum(c.log_probs) / len(c.log_probs))
            assert (c.finish_reason == "eos") == (c.token_ids[-1] in (EOS, 40, 50))
            assert c.finish_reason == "eos" or len(c.token_ids) == 12
            spoken = c.token_ids[:-1] if c.finish_reason == "eos" else c.token_ids
            assert c.text == "".join(f" w{token}" for token in spoken if token > 1)
            stages = 3 if c.finish_reason == "length" else None
            assert c.stats.proposals == 2 * stages if stages else c.stats.proposals in (2, 4, 6)
            assert 0 <= c.stats.accepted <= c.stats.proposals
            assert c.stats.tokens_decoded >= len(c.token_ids)
            assert c.stats.tokens_reused == sum(c.steps.cut) + c.stats.tokens_coupled and c.stats.seconds > 0
            assert 0 <= c.stats.rejected_early <= c.stats.proposals - c.stats.accepted
            assert c.stats.proposals == len(c.steps.cut) and c.stats.accepted == sum(c.steps.accepted)
            assert list(c.steps.stage) == [k for k in range(1, len(c.steps.cut) // 2 + 1) for _ in range(2)]
            assert all(0 <= cut < n <= 12 for cut, n in zip(c.steps.cut, c.steps.length, strict=True))
            reasons.add(c.finish_reason)
    stats = [c.stats for completions in out for c in completions]
    assert sum(s.tokens_coupled for s in stats) > 0 < sum(s.rejected_early for s in stats)
    assert reasons == {"eos", "length"}


def test_a_stop_string_ends_a_completion_and_is_cut_from_the_text(sampler):
    """Guards: a stop that is no list taken letter by letter; its tokens missing from the log-probs."""
    free = sampler.generate(["w5 w6 w7"], n=8, max_new_tokens=12, method="standard")[0]
    word = next(c.text.split()[2] for c in free if len(c.text.split()) > 4)
    out = sampler.generate(["w5 w6 w7"], n=8, max_new_tokens=12, method="standard", stop=word)[0]
    assert out == sampler.generate(["w5 w6 w7"], n=8, max_new_tokens=12, method="standard", stop=[word, "absent"])[0]
    stopped = [c for c in out if c.finish_reason == "stop"]
    assert stopped
    for before, c in zip(free, out, strict=True):
        assert word not in c.text
        if c.finish_reason == "stop":
            assert c.token_ids == before.token_ids[: len(c.token_ids)], "the same draw, ended earlier"
            assert f"w{c.token_ids[-1]}".startswith(word)


def test_methods_without_proposals_say_so(sampler):
    """Guards: a division by zero in the acceptance rate."""
    (c,) = sampler.generate([[5]], method="temperature", proposal_temperature=0.7, max_new_tokens=5)[0]
    assert c.stats.proposals == 0 and c.stats.acceptance_rate is None
    assert c.stats.tokens_decoded == len(c.token_ids)


def test_same_seed_same_completion_whatever_else_is_asked(sampler):
    """Guards: random numbers that depend on the other prompts, on n, or on an earlier call."""
    first = sampler.generate([[5, 6], [7]], n=2, **OPTIONS, seed=1)
    again = sampler.generate([[9], [7], [5, 6]], n=1, **OPTIONS, seed=1)
    assert [again[2][0].token_ids, again[1][0].token_ids] == [first[0][0].token_ids, first[1][0].token_ids]
    other = sampler.generate([[5, 6], [7]], n=2, **OPTIONS, seed=2)
    assert [c.token_ids for cs in other for c in cs] != [c.token_ids for cs in first for c in cs]


def test_no_prompts_no_completions(sampler):
    """Guards: max() of nothing."""
    assert sampler.generate([]) == []


def test_without_a_tokenizer_ids_go_in_and_ids_come_out():
    """Guards: a tokenizer needed where no text is wanted."""
    bare = PowerSampler(make_model("qwen2"), None, max_rows="auto")
    (c,) = bare.generate([[5, 6]], **OPTIONS)[0]
    assert c.text == "" and c.token_ids
    with pytest.raises(OptionError, match="without a tokenizer"):
        bare.generate(["w5"])
    (same,) = bare.generate([np.array([5, 6])], stop=None, **OPTIONS)[0]
    assert same.token_ids == c.token_ids
    for wrong in ([1.9, 7], ["7"], 5.0):
        with pytest.raises(OptionError, match=r"must be a text, or token ids"):
            bare.generate([wrong])


def test_where_a_model_goes_is_said_once(folder):
    """Guards: a device that is dropped without a word."""
    with pytest.raises(OptionError, match="device=cpu and device_map: both"):
        PowerSampler.from_pretrained(folder, device="cpu", device_map="auto")


@pytest.mark.parametrize(
    "option",
    [{"eos_token_ids": [0]}, {"cuda_graphs": True}, {"torch_compile": True}, {"batch_shape": "fixed"}],
    ids=lambda option: next(iter(option)),
)
def test_options_of_a_model_in_this_process_are_refused_for_another(sampler, option):
    """Guards: options that are taken, and do nothing."""
    with pytest.raises(OptionError, match=f"{next(iter(option))}: for a model in this process"):
        PowerSampler(sampler.host, None, **option)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint whose generation config would change every draw if it leaked in.

    Mistral: for Qwen 2 AutoTokenizer makes a Qwen2Tokenizer of whatever tokenizer.json says.
    """
    path = tmp_path_factory.mktemp("checkpoint")
    model = make_model("mistral")
    for name, value in LEAKS.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    words().save_pretrained(path)
    return str(path)


def test_from_pretrained_loads_a_folder_and_no_sampling_defaults(folder):
    """Guards: temperature, top-k or penalties of generation_config.json in the law; EOS ids not found."""
    loaded = PowerSampler.from_pretrained(folder, device="cpu", dtype="float32", max_rows=4)
    assert loaded.host.backend.model.generation_config.top_k == 1, "the checkpoint does try"
    assert loaded.eos_ids == (EOS,)
    plain = PowerSampler(make_model("mistral"), words(), max_rows=4)
    for method in ("standard", "power"):
        options = suited(method, OPTIONS)
        got, expected = (s.generate(["w5 w6"], n=4, **options)[0] for s in (loaded, plain))
        assert got == expected
        assert [c.log_probs for c in got] == [pytest.approx(c.log_probs, abs=1e-5) for c in expected]


def test_from_pretrained_takes_dtype_device_map_and_attention(folder):
    """Guards: options of transformers dropped on the way."""
    loaded = PowerSampler.from_pretrained(folder, dtype="bfloat16", device_map={"": "cpu"}, attn_implementation="eager")
    assert loaded.host.backend.shapes[0].dtype is torch.bfloat16
    assert loaded.host.backend.config._attn_implementation == "eager"
    assert loaded.generate(["w5"], **OPTIONS)[0][0].token_ids


def test_from_pretrained_takes_a_peft_folder(folder, tmp_path):
    """Guards: an adapter loaded but without effect."""
    adapted = with_lora(make_model("mistral"))
    adapted.save_pretrained(tmp_path)
    loaded = PowerSampler.from_pretrained(folder, device="cpu", dtype="float32", peft=str(tmp_path))
    (c,) = loaded.generate([[5, 6]], **OPTIONS)[0]
    assert c.log_probs == pytest.approx(log_probs(adapted, [5, 6], c.token_ids), abs=1e-4)
    assert c.log_probs != pytest.approx(log_probs(make_model("mistral"), [5, 6], c.token_ids), abs=0.05)


BAD_OPTIONS = [
    ({"alpha": 0.5}, "alpha=0.5: must be >= 1; .*temperature"),
    ({"alpha": math.nan}, "alpha=nan: must be a finite number"),
    ({"alpha": math.inf}, "alpha=inf"),
    ({"alpha": "4"}, "alpha='4': must be a finite number"),
    ({"alpha": True}, "alpha=True"),
    ({"block_size": 0}, "block_size=0: must be a whole number >= 1"),
    ({"block_size": 2.5}, "block_size=2.5"),
    ({"mcmc_steps": -1}, "mcmc_steps=-1: must be a whole number >= 0"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: must be a whole number >= 1"),
    ({"seed": -1}, "seed=-1"),
    ({"method": "smc", "mcmc_steps": 5}, "mcmc_steps=5: is an option of method=power, power_inf, tempering"),
    ({"method": "powr"}, "method='powr': did you mean power"),
    ({"method": "beam"}, "method='beam': available: power, "),
    ({"aplha": 2}, "unknown option 'aplha': did you mean alpha"),
    ({"temperature": 0.5}, "unknown option 'temperature': did you mean proposal_temperature"),
    ({"top_k": 5}, "unknown option 'top_k': available: method, alpha"),
    ({"alpha": 4.0, "proposal_temperature": 0.2}, r"proposal_temperature=0.2: must be in \[1/alpha, 1\] = \[0.25, 1\]"),
    ({"proposal_temperature": 1.1}, "proposal_temperature=1.1: must be in"),
    ({"proposal_temperature": 0, "method": "temperature"}, "proposal_temperature=0: must be >= 1e-06"),
    ({"n": 0}, "n=0: must be a whole number >= 1"),
    ({"n": 1.5}, "n=1.5"),
    ({"stop": [""]}, r"stop=\[''\]: every stop string must be a non-empty string"),
    ({"stop": ""}, r"stop=\[''\]"),
    ({"stop": ["a", 3]}, "stop="),
    ({"max_new_tokens": 510}, r"prompt of 3 tokens: .*exceeds the model's 512 positions.*<= 509"),
]
BAD_PROMPTS = [
    ("w5 w6", r"prompts: must be a list of prompts; for one prompt write \[prompt\]"),
    ([[]], "empty prompt"),
    ([""], "empty prompt"),
    ([[5, VOCABULARY]], f"id {VOCABULARY} lies outside the vocabulary of {VOCABULARY}"),
    ([[5], [5, -1]], "id -1 lies outside the vocabulary"),
]


@pytest.fixture
def no_decoding(sampler, monkeypatch):
    """Any forward pass fails the test."""
    monkeypatch.setattr(sampler.host.backend, "forward", lambda *_: pytest.fail("something was decoded"))


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
@pytest.mark.usefixtures("no_decoding")
def test_a_wrong_option_is_named_with_its_rule_before_decoding(sampler, options, message):
    """Guards: a wrong law, or hours of decoding before the error."""
    with pytest.raises(OptionError, match=message):
        sampler.generate([[5, 6, 7]], **options)


@pytest.mark.parametrize(("prompts", "message"), BAD_PROMPTS)
@pytest.mark.usefixtures("no_decoding")
def test_a_wrong_prompt_is_told_before_decoding(sampler, prompts, message):
    """Guards: a device-side assert by an id outside the embedding, or a string read letter by letter."""
    with pytest.raises(OptionError, match=message):
        sampler.generate(prompts, max_new_tokens=20)


@pytest.mark.parametrize("rows", [0, -1, 2.0, True, "all"])
def test_a_wrong_number_of_rows_is_told(rows):
    """Guards: an engine without rows, which would wait for ever."""
    with pytest.raises(OptionError, match=r"max_rows=.*must be a whole number >= 1, or 'auto'"):
        PowerSampler(make_model("qwen2"), None, max_rows=rows)


def test_a_model_without_eos_is_told():
    """Guards: completions that never end."""
    model = make_model("qwen2")
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(OptionError, match=r"EOS token: none is known.*eos_token_ids"):
        PowerSampler(model, None)
    with pytest.raises(OptionError, match=r"ids \[99\] lie outside the vocabulary"):
        PowerSampler(model, None, eos_token_ids=[99])
    assert PowerSampler(model, None, eos_token_ids=[3, 3, 2]).eos_ids == (2, 3)
    assert PowerSampler(model, words()).eos_ids == (EOS,), "the tokenizer knows one"


def test_a_completion_keeps_its_record_through_pickle_copy_and_json(sampler):
    """Guards: a str subclass that loses its attributes in lm-eval's gathers, or breaks its JSON logs."""
    (c,) = sampler.generate(["w5 w6"], **OPTIONS)[0]
    twins = [pickle.loads(pickle.dumps(c)), copy.copy(c), copy.deepcopy(c)]
    twins.append(Completion.from_record(json.loads(json.dumps(c.record()))))
    for twin in twins:
        assert isinstance(twin, Completion) and twin == c
        assert vars(twin) == vars(c)
        assert twin.record() == c.record()
    assert json.loads(json.dumps([c])) == [c.text]
