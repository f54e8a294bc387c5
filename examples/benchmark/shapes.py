"""Models with random weights in the shapes of real ones, for machines without checkpoints."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from lm_power.engine.memory import free_memory

SHAPES = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "50m": {
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen2.5-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def random_model(
    shape: str, layers: int | None, device: torch.device, dtype: torch.dtype, attention: str | None, positions: int
) -> PreTrainedModel:
    """A model of a shape, or of its first layers only; seeded.

    Args:
        shape: a key of `SHAPES`.
        layers: how many; None for all.
        device: where to make it.
        dtype: of its weights.
        attention: `attn_implementation`; None: what transformers picks.
        positions: that the rows of a batch will hold together, for the check of the memory.

    Raises:
        MemoryError: weights and keys and values do not fit into the device's free memory.
    """
    options = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = Qwen2Config(**options, eos_token_id=1, bos_token_id=0, initializer_range=0.05)
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config, dtype=dtype).num_parameters() * dtype.itemsize
    width = config.hidden_size // config.num_attention_heads
    cache = 2 * positions * config.num_hidden_layers * config.num_key_value_heads * width * dtype.itemsize
    if weights + cache > (free := free_memory(device)):
        raise MemoryError(
            f"shape {shape} with {config.num_hidden_layers} layers in {dtype}: {weights / 2**30:.1f} GiB of weights "
            f"and {cache / 2**30:.1f} GiB of keys and values do not fit into {free / 2**30:.1f} GiB free on {device}; "
            "choose fewer --layers or --rows, a shorter --max-new-tokens, or --dtype bfloat16"
        )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)
