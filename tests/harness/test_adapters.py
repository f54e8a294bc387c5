"""Adapters on models whose embedding has more rows than the tokenizer has tokens, tied or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_lm import CHARACTERS, PROMPTS, SPECIAL, save_model
from transformers import AutoModelForCausalLM

from lm_power import PowerSampler
from lm_power.config import OptionError
from lm_power.distill.options import DistillConfig
from lm_power.distill.student import load_student
from lm_power.harness.power_hf import PowerHF

TOKENS = len(SPECIAL) + len(CHARACTERS)
KINDS = {
    "projections": {"target_modules": ["q_proj", "down_proj"]},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
}


@pytest.fixture(params=[0, 24], ids=["unpadded", "padded"])
def padding(request) -> int:
    """Rows of the embedding beyond the tokenizer's tokens: 271 of Qwen2.5's are."""
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, padding, tmp_path) -> str:
    return save_model(tmp_path / "base", vocab_size=TOKENS + padding, tie_word_embeddings=request.param)


def adapter(base: str, folder: Path, rows: int | None = None, **settings) -> str:
    """An adapter of plain peft with weights at random, on the base with so many rows."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn_like(weight), alpha=0.1)
        adapted.save_pretrained(folder)
    return str(folder)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(1, 12)[None] % TOKENS).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning", "ignore:.*save_embedding_layers.*:UserWarning")
def test_the_model_that_was_trained_is_the_one_evaluated(base, padding, kind, tmp_path):
    """Guards: an embedding cut down to the tokenizer's tokens, and layers tied again that the adapter has parted.

    The same logits as plain peft's, of as many tokens, in lm-eval and from Python.
    """
    folder = adapter(base, tmp_path / "adapter", **KINDS[kind])
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval())
    assert expected.shape[-1] == TOKENS + padding
    lm = PowerHF(base, peft=folder, device="cpu", dtype="float32")
    ours = PowerSampler.from_pretrained(base, peft=folder, device="cpu", dtype="float32")
    for model in (lm.model, ours.backend.model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert lm.sampler.backend.vocabulary == TOKENS + padding


def test_a_model_grows_for_an_adapter_with_more_tokens(base, padding, tmp_path):
    """As with tokens that were added before the adapter was trained; the base itself has no rows for them."""
    more = TOKENS + padding + 3
    folder = adapter(base, tmp_path / "adapter", rows=more, **KINDS["saved whole"])
    model = PowerHF(base, peft=folder, device="cpu", dtype="float32").model
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(more)
    torch.testing.assert_close(logits(model), logits(PeftModel.from_pretrained(grown, folder).eval()))
    assert logits(model).shape[-1] == more


def test_an_adapter_of_a_model_cut_down_is_refused(tmp_path):
    """Guards: a size mismatch in peft's words, or a model that is neither the adapter's nor the base's."""
    base = save_model(tmp_path / "base", vocab_size=TOKENS + 24)
    folder = adapter(base, tmp_path / "adapter", rows=TOKENS, **KINDS["saved whole"])
    with pytest.raises(
        OptionError, match=rf"peft=.*of {TOKENS} token embeddings.* has {TOKENS + 24}.*none may be dropped"
    ):
        PowerHF(base, peft=folder, device="cpu")


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"]])
def test_a_fresh_adapter_merges_into_what_it_was_or_is_refused(base, targets, tmp_path):
    """An adapter on one of two tied layers is merged into both by peft, and with `ensure_weight_tying` twice."""
    options = {"model": base, "data": ("unused",), "output": "unused", "target_modules": tuple(targets)}
    model = AutoModelForCausalLM.from_pretrained(base)
    if model.config.tie_word_embeddings:
        with pytest.raises(OptionError, match=r"target_modules=.*shares with its output layer"):
            load_student(DistillConfig(**options), torch.float32)
        return
    student = load_student(DistillConfig(**options), torch.float32).model.eval()
    for name, weight in student.named_parameters():
        if "lora" in name:
            weight.data.normal_(std=0.1)
    expected = logits(student)
    torch.testing.assert_close(logits(student.merge_and_unload()), expected, atol=1e-5, rtol=0)


def test_a_second_round_on_a_padded_model_is_self_distillation(base, evaluate, tmp_path):
    """Guards: the README's second round told to be distillation from another model.

    The teacher is named by what `power-hf,peft=…` stores, the student starts from the same adapter.
    """
    folder = adapter(base, tmp_path / "adapter", **KINDS["projections"])
    lm = PowerHF(base, peft=folder, device="cpu", dtype="float32")
    options = {"model": base, "data": ("unused",), "output": "unused", "adapter": folder}
    assert load_student(DistillConfig(**options), torch.float32).compare(lm.model_name) == "same"
    drawn = evaluate(options={"pretrained": base, "peft": folder, "dtype": "float32"}, prompts=PROMPTS[:2])
    assert drawn.model.model_name == lm.model_name
