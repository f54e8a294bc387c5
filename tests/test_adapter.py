"""Adapters are evaluated on the model that they were trained on: as many token embeddings, tied or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from foreign_adapters import FOREIGN, make_adapter
from harness.tiny_lm import save_model

from lm_power import PowerSampler
from lm_power.adapter import load_adapter, merged, tied_embeddings
from lm_power.config import OptionError
from lm_power.fingerprint import fingerprint
from lm_power.identity import Identity

PADDED = 40  # rows of the embedding; the tokenizer has 32 tokens
EXACT = 32
GROWN = 44


@pytest.fixture(scope="module", params=[(rows, tied) for rows in (EXACT, PADDED) for tied in (True, False)], ids=str)
def base(request, tmp_path_factory) -> str:
    """Folder of a model with a padded embedding or an exact one, tied or not."""
    rows, tied = request.param
    return save_model(tmp_path_factory.mktemp("base"), vocab_size=rows, tie_word_embeddings=tied)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.tensor([[1, 5, 9, 30, 3, 7]])).logits


def power_hf(base: str, adapter: Path | str, **options):
    from lm_power.harness.power_hf import PowerHF

    return PowerHF(base, peft=str(adapter), device="cpu", **options)


@pytest.mark.parametrize("kind", FOREIGN)
def test_evaluated_is_what_was_trained(base: str, kind: str, tmp_path) -> None:
    """lm-eval's own loading cuts padding off, cannot load what adapts the embeddings, and ties what was parted."""
    trained = make_adapter(base, tmp_path, **FOREIGN[kind])
    expected = logits(trained)
    evaluated = power_hf(base, tmp_path)
    torch.testing.assert_close(logits(evaluated.model), expected, atol=1e-5, rtol=0)
    sampler = PowerSampler.from_pretrained(base, device="cpu", dtype="float32", peft=str(tmp_path))
    torch.testing.assert_close(logits(sampler.host.backend.model), expected, atol=1e-5, rtol=0)
    assert evaluated.model_name == f"{base}+peft={tmp_path}@{fingerprint(trained)}"
    assert not evaluated.model.training
    assert evaluated.get_model_info()["power_sampler"]["model"] == evaluated.model_name


@pytest.mark.parametrize("kind", FOREIGN)
def test_rows_are_added_where_the_adapter_brings_them(base: str, kind: str, tmp_path) -> None:
    """Trained after new tokens were added. What it does not hold cannot be guessed, and is not."""
    trained = make_adapter(base, tmp_path, rows=GROWN, **FOREIGN[kind])
    if not tied_embeddings(trained) and kind in ("embed_tokens", "lm_head"):  # peft saves this side alone
        with pytest.raises(OptionError, match=f"on a model of {GROWN} token embeddings, .* does not hold the others"):
            power_hf(base, tmp_path)
        return
    model = power_hf(base, tmp_path).model
    assert logits(model).shape[-1] == GROWN
    torch.testing.assert_close(logits(model), logits(trained), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lm_head", "trains tokens"])
def test_rows_that_nobody_saved_are_not_invented(base: str, kind: str, tmp_path) -> None:
    settings = FOREIGN[kind] | ({"trainable_token_indices": [3, GROWN - 1]} if kind == "trains tokens" else {})
    make_adapter(base, tmp_path, rows=GROWN, save_embeddings=False, **settings)
    with pytest.raises(OptionError, match=r"peft=.* the adapter does not hold the others; save the base"):
        power_hf(base, tmp_path)


def test_a_copy_of_a_tied_side_is_not_the_base_s(tmp_path) -> None:
    """The trained output embedding says nothing about new rows of the input embedding."""
    base = save_model(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", rows=GROWN, save_embeddings=False, **FOREIGN["saves lm_head"])
    with pytest.raises(OptionError, match="does not hold the others"):
        power_hf(base, tmp_path / "adapter")


def test_rows_are_never_dropped(base: str, tmp_path) -> None:
    """An adapter of a model that was cut is refused, with what to do; and what it says works."""
    trained = make_adapter(base, tmp_path / "adapter", rows=30, **FOREIGN["saves both"])
    with pytest.raises(OptionError, match=r"on a model of 30 token embeddings, .* none may be dropped"):
        power_hf(base, tmp_path / "adapter")
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(30)
    model.save_pretrained(tmp_path / "cut")
    tf.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "cut")
    cut = load_adapter(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "cut"), str(tmp_path / "adapter"))
    x = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(cut(x).logits, trained(x).logits, atol=1e-5, rtol=0)


def test_adapters_that_do_not_fit_are_refused(tmp_path) -> None:
    """PEFT passes over weights that find no place, and only warns of those that are missing."""
    base = save_model(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", **FOREIGN["projections"])
    for layers, told in ((1, "4 of its weights have no place there"), (3, "Found missing adapter keys")):
        other = save_model(tmp_path / str(layers), num_hidden_layers=layers)
        with pytest.raises(OptionError, match=told):
            power_hf(other, tmp_path / "adapter")
    with pytest.raises(OptionError, match="peft=no/such/adapter: cannot be loaded"):
        power_hf(base, "no/such/adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings | {"r": 8}))
    with pytest.raises(OptionError, match="size mismatch"):
        power_hf(base, tmp_path / "adapter")


def test_peft_goes_with_a_checkpoint_alone(tmp_path) -> None:
    """lm-eval drops peft= silently where a loaded model is passed, and names the run after it all the same."""
    from lm_power.harness.power_hf import PowerHF

    base = save_model(tmp_path / "base")
    with pytest.raises(OptionError, match="pass that model with the adapter on it"):
        PowerHF(tf.AutoModelForCausalLM.from_pretrained(base), peft="anything")
    with pytest.raises(OptionError, match="name one of them"):
        PowerHF(base, peft="one", delta="other")


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_merged_adapter_is_the_model_that_was_trained(base: str, kind: str, tmp_path) -> None:
    """In float32 to rounding, by both ways in; the identity says so, and what would differ is refused."""
    expected = logits(make_adapter(base, tmp_path, **FOREIGN[kind]))
    options = {"device": "cpu", "dtype": "float32", "peft": str(tmp_path), "merge_adapter": True}
    if kind in ("embed_tokens", "lm_head") and tf.AutoConfig.from_pretrained(base).tie_word_embeddings:
        with pytest.raises(OptionError, match=r"merge_adapter=True, peft=.*leave merge_adapter out"):
            PowerSampler.from_pretrained(base, **options)
        return
    sampler = PowerSampler.from_pretrained(base, **options)
    assert not any("lora" in name for name, _ in sampler.host.backend.model.named_parameters())
    torch.testing.assert_close(logits(sampler.host.backend.model), expected, atol=1e-5, rtol=0)
    evaluated = power_hf(base, tmp_path, merge_adapter=True, dtype="float32")
    torch.testing.assert_close(logits(evaluated.model), expected, atol=1e-5, rtol=0)
    weights = Identity.parse(evaluated.model_name)
    assert (weights.name, weights.merged) == (f"{base}+peft={tmp_path}+merged", True)
    assert weights.fingerprint != Identity.parse(power_hf(base, tmp_path).model_name).fingerprint
    assert evaluated.get_model_info()["power_sampler"]["model"] == evaluated.model_name


def test_merging_rounds_once_from_float32(base: str, tmp_path) -> None:
    """Guards sums of updates in bfloat16: each weight is the exact sum, rounded; buffers keep their dtype."""
    make_adapter(base, tmp_path, target_modules=["q_proj", "up_proj"])
    exact = load_adapter(tf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).float(), str(tmp_path))
    expected = exact.merge_and_unload().state_dict()
    plain = tf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    buffers = {name: buffer.dtype for name, buffer in plain.named_buffers()}
    model = merged(load_adapter(plain, str(tmp_path)))
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == buffers
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, expected[name].to(torch.bfloat16)), name


def test_what_cannot_be_merged_says_why(base: str, tmp_path, monkeypatch) -> None:
    from peft import PromptTuningConfig, get_peft_model

    for option in ({}, {"peft": None}):
        with pytest.raises(OptionError, match="merge_adapter=True: there is no adapter to merge"):
            PowerSampler.from_pretrained(base, device="cpu", merge_adapter=True, **option)
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    prompts = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(OptionError, match="of kind PromptTuning changes no weights"):
        merged(prompts)
    make_adapter(base, tmp_path, target_modules=["q_proj"])
    adapted = load_adapter(tf.AutoModelForCausalLM.from_pretrained(base), str(tmp_path))
    adapted.get_base_model().is_quantized = True
    with pytest.raises(OptionError, match="the base is quantised"):
        merged(adapted)


def test_merge_adapter_without_peft_is_refused_by_power_hf(base: str) -> None:
    from lm_power.harness.power_hf import PowerHF

    with pytest.raises(OptionError, match="there is no adapter to merge"):
        PowerHF(base, device="cpu", merge_adapter=True)
