"""Tiny causal LMs with random weights, one of every architecture that the engine serves or refuses.

float32, hidden size 32, 61 tokens, weights wide enough that no distribution is flat. Token 0 is EOS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import transformers as tf
from transformers import PreTrainedModel

from lm_power.adapter import twin

VOCABULARY = 61
EOS = 0
WINDOW = 12  # of sliding attention: well below the lengths that the tests reach
LONGROPE_WINDOW = 96  # positions of the Phi-3.5-like model before its rotary angles change

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def _longrope() -> dict:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 6.0],
        "original_max_position_embeddings": LONGROPE_WINDOW,
    }


CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "qwen2": lambda: tf.Qwen2Config(**_SHAPE),
    "qwen2-sliding": lambda: tf.Qwen2Config(
        **_SHAPE, use_sliding_window=True, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "qwen3": lambda: tf.Qwen3Config(**_SHAPE, head_dim=16),
    "llama": lambda: tf.LlamaConfig(**_SHAPE),
    "mistral": lambda: tf.MistralConfig(**_SHAPE, sliding_window=WINDOW),
    "phi3": lambda: tf.Phi3Config(**_SHAPE),
    "phi3-longrope": lambda: tf.Phi3Config(
        **_SHAPE, rope_parameters=_longrope(), original_max_position_embeddings=LONGROPE_WINDOW
    ),
    "gemma2": lambda: tf.Gemma2Config(
        **_SHAPE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
}

REFUSED: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "mamba": lambda: tf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, eos_token_id=EOS
    ),
    "recurrentgemma": lambda: tf.RecurrentGemmaConfig(
        **{**_SHAPE, "num_key_value_heads": 1}, lru_width=32, attention_window_size=32
    ),
    "lfm2": lambda: tf.Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention", "conv"]),
    "qwen3-next": lambda: tf.Qwen3NextConfig(
        **_SHAPE,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "t5": lambda: tf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, eos_token_id=EOS
    ),
    "dynamic-rope": lambda: tf.LlamaConfig(
        **_SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
}


def make_model(
    name: str, attention: str | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A seeded model of `CONFIGS` or `REFUSED`.

    Args:
        name: its key there.
        attention: "sdpa", "eager", or None for what transformers picks.
        dtype: of the weights, rounded from the same float32 numbers.
        seed: of the weights.
    """
    config = (CONFIGS | REFUSED)[name]()
    auto = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    options = {} if attention is None else {"attn_implementation": attention}
    with seeded(seed):
        model = auto.from_config(config, **options)
    return model.to(dtype).eval()


def with_lora(model: PreTrainedModel, seed: int = 1) -> torch.nn.Module:
    """`model` with a LoRA adapter on all attention and MLP projections, its weights random, none zero."""
    from peft import LoraConfig, get_peft_model

    with seeded(seed):
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return adapted.eval()


def student_of(model: PreTrainedModel, strength: float = 1.0) -> torch.nn.Module:
    """A twin of `model`, in its dtype, with the adapter of `with_lora` so many times as strong; 0: the same law."""
    student = with_lora(twin(model)).to(model.dtype)
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.data *= strength
    return student


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
