"""A short name for a model's exact weights, so that stored completions are never taken for another model's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 64  # numbers read from each tensor


def fingerprint(model: nn.Module) -> str:
    """16 hex digits over every weight's name, shape, dtype and a spread of its values.

    Training, merging, an adapter, another dtype or re-initialised weights change values everywhere, so 64
    numbers a tensor tell them apart at a cost of milliseconds. Weights offloaded to the meta device count by
    name and shape only.

    Args:
        model: on any device or devices.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel() and tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLES)
            digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
