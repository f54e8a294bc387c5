"""A short name for a model's exact weights, so that stored completions are never taken for another model's."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
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
    return _digest(getattr(model, "config", None), model.state_dict(), dtypes or {})  # of a PEFT model: its base's


def _digest(config: Any, weights: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    settings = {} if config is None else config.to_dict()
    shape = {name: value for name, value in settings.items() if name not in _NOT_THE_LAW}
    digest.update(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        dtype = dtypes.get(name, tensor.dtype)
        digest.update(f"{name}{tuple(tensor.shape)}{dtype}".encode())
        if tensor.numel() and tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLES) | 1  # odd: not the same column of every row
            digest.update(flat[::step].to(dtype).to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_fingerprint(
    pretrained: str, revision: str | None, dtype: torch.dtype, adapter: str | None = None
) -> str | None:
    """The `fingerprint` that transformers' model of a checkpoint has, from its files, without loading it.

    For engines that keep the weights to themselves. Of each tensor some pages are read.

    Args:
        pretrained: hub id (of a model in the cache) or folder.
        revision: of the hub id.
        dtype: that floating-point weights are loaded in.
        adapter: folder of a LoRA adapter on top; it is float32, as PEFT has it.

    Returns:
        None where the files do not tell: there are no safetensors; their names are not those of the model's weights,
        as in quantised checkpoints and in layouts that transformers converts; or the adapter is no plain LoRA.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        folder = _folder(pretrained, revision)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        weights = _as_in(model, _stored(folder))
        dtypes = {name: dtype for name, tensor in weights.items() if tensor.is_floating_point()}
        if adapter is not None:
            names, lora = _adapted(weights, _stored(Path(adapter)))
            weights = {names[name]: tensor for name, tensor in weights.items()} | lora
            dtypes = {names[name]: dtype for name in dtypes}
    except (ImportError, KeyError, OSError, ValueError):
        return None
    return _digest(model.config, weights, dtypes)


def _folder(pretrained: str, revision: str | None) -> Path:
    """Where a checkpoint's files are. Raises OSError."""
    if Path(pretrained).is_dir():
        return Path(pretrained)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(pretrained, revision=revision, local_files_only=True))


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors by name; numbers are read as they are looked at."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # is no mapping
    return found


def _as_in(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stored tensors under all the names that a model has for them. Raises KeyError where one is missing."""
    shared: dict[int, list[str]] = defaultdict(list)  # tied weights: one parameter of several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared[id(parameter)].append(name)
    same = {name: names for names in shared.values() for name in names}
    found = {}
    for name, wanted in model.state_dict().items():
        held = next((other for other in (name, *same.get(name, ())) if other in stored), None)
        if held is None or stored[held].shape != wanted.shape:
            raise KeyError(name)
        found[name] = stored[held]
    return found


def _adapted(
    weights: Iterable[str], adapter: Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(base's name → its name below a LoRA adapter, the adapter's tensors), named as PEFT names them in a model."""
    lora, layers = {}, set()
    for name, tensor in adapter.items():
        layer, _, rest = name.partition(".lora_")
        if rest not in ("A.weight", "B.weight"):
            raise KeyError(name)
        layers.add(layer)
        lora[f"{layer}.lora_{rest[0]}.default.weight"] = tensor.to(torch.float32)
    names = {}
    for name in weights:
        layer, _, last = f"base_model.model.{name}".rpartition(".")
        names[name] = f"{layer}.base_layer.{last}" if layer in layers else f"{layer}.{last}"
    return names, lora
