"""A short name for a model's exact weights, so that stored completions are never taken for another model's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 64  # numbers read from each tensor
# Of a configuration: what says where a model came from, or is decided and recorded elsewhere.
_NOT_THE_LAW = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def fingerprint(model: nn.Module, dtypes: Mapping[str, torch.dtype] | None = None) -> str:
    """16 hex digits over the configuration and every weight's name, shape, dtype and a spread of its values.

    Training, merging, an adapter, another dtype or re-initialised weights change values everywhere, so 64
    numbers per tensor tell them apart at a cost of milliseconds. The configuration tells apart what the weights
    do not: rotary scaling, attention windows. Weights offloaded to the meta device count by name and shape
    only.

    Args:
        model: on any device or devices.
        dtypes: weights, by name, to take as if they were rounded to another dtype.
    """
    digest = hashlib.blake2b(digest_size=8)
    config: Any = getattr(model, "config", None)  # of a PEFT model: its base's
    settings = {} if config is None else config.to_dict()
    shape = {name: value for name, value in settings.items() if name not in _NOT_THE_LAW}
    digest.update(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        dtype = (dtypes or {}).get(name, tensor.dtype)
        digest.update(f"{name}{tuple(tensor.shape)}{dtype}".encode())
        if tensor.numel() and tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLES) | 1  # odd: not the same column of every row
            digest.update(flat[::step].to(dtype).to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
