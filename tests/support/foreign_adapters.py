"""Adapters as other programs make them with peft, for tests of what loads them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import transformers as tf
from models import seeded

# LoRA on the embeddings, embeddings trained whole, single tokens trained.
FOREIGN = {
    "projections": {"target_modules": ["q_proj", "up_proj"]},
    "embed_tokens": {"target_modules": ["embed_tokens"]},
    "lm_head": {"target_modules": ["lm_head"]},
    "saves embed_tokens": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saves lm_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saves both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "trains tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]},
}


def make_adapter(base: str, folder: Path, rows: int | None = None, save_embeddings="auto", **settings):
    """Save an adapter with random weights, made by peft alone on `rows` token embeddings; the model with it."""
    from peft import LoraConfig, get_peft_model

    model = tf.AutoModelForCausalLM.from_pretrained(base)
    with seeded(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows is not None:
            model.resize_token_embeddings(rows)
        options = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "init_lora_weights": False, **settings}
        adapted = get_peft_model(model, LoraConfig(r=4, **options))
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and ("modules_to_save" in name or "trainable_tokens" in name):
                weight.data += 0.1 * torch.randn(weight.shape)
        adapted.save_pretrained(folder, save_embedding_layers=save_embeddings)
    return adapted.eval()
