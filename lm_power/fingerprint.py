"""A short name for a model's exact weights, by which stored completions are never mistaken for another model's."""

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

_SAMPLES = 64  # numbers read from each tensor; of embeddings, at least one from each token's row
# Parts of a configuration that say where a model came from, or are decided and recorded elsewhere.
_NOT_THE_LAW = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def fingerprint(model: nn.Module, dtypes: Mapping[str, torch.dtype] | None = None) -> str:
    """16 hex digits that hash the configuration and the name, shape, dtype and some values of every weight.

    Training, merging, an adapter, another dtype or re-initialised weights change values everywhere, so 64 numbers per
    tensor tell them apart at a cost of milliseconds. Embeddings may be trained for a few tokens alone, so a number of
    every token's row is read. The configuration tells apart what the weights do not, such as rotary scaling and
    attention windows. Of weights offloaded to the meta device only name and shape count.

    Args:
        model: on any device or devices.
        dtypes: for some weights, by name, a dtype: they are hashed as if they were rounded to it.
    """
    return _digest(getattr(model, "config", None), model.state_dict(), dtypes or {})  # of a PEFT model: its base's


def _digest(config: Any, weights: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    settings = {} if config is None else config.to_dict()
    shape = {name: value for name, value in settings.items() if name not in _NOT_THE_LAW}
    vocabulary = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    digest.update(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        dtype = dtypes.get(name, tensor.dtype)
        digest.update(f"{name}{tuple(tensor.shape)}{dtype}".encode())
        if tensor.numel() and tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLES) | 1  # odd: not the same column of every row
            if tensor.dim() == 2 and tensor.shape[0] == vocabulary:
                step = min(step, max(1, tensor.shape[1] - 1) | 1)  # at most a row
            digest.update(flat[::step].to(dtype).to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_fingerprint(
    pretrained: str, revision: str | None, dtype: torch.dtype, adapter: str | None = None
) -> str | None:
    """The `fingerprint` that transformers' model of a checkpoint would have, from its files and without loading it.

    It is for engines that keep the weights to themselves. Only embeddings are read whole, and a few pages of each
    other tensor.

    Args:
        pretrained: hub id (of a model in the cache) or folder.
        revision: of the hub id.
        dtype: dtype in which floating-point weights are loaded.
        adapter: folder of a LoRA adapter on top, loaded as PEFT does: in the same dtype, but at least in float32.

    Returns:
        The fingerprint, or None if the files do not tell: there are no safetensors; their names are not those of the
        model's weights, as in quantised checkpoints and in layouts that transformers converts; or the adapter is not a
        plain LoRA.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        folder = _folder(pretrained, revision)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        weights = _as_in(model, _stored(folder))
        dtypes = {name: dtype for name, tensor in weights.items() if tensor.is_floating_point()}
        if adapter is not None:
            wide = dtype if dtype.itemsize > 2 else torch.float32
            names, lora = _adapted(weights, _stored(Path(adapter)), wide)
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
    """All tensors of a folder's safetensors by name; values are read when they are used. Raises OSError."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # is no mapping
    if not found:
        raise FileNotFoundError(f"{folder}: no safetensors")
    return found


def _as_in(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stored tensors under all the names that a model has for them. Raises KeyError if one is missing."""
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
    weights: Iterable[str], adapter: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(base's name → its name below a LoRA adapter, the adapter's tensors), named as PEFT names them in a model."""
    lora, layers = {}, set()
    for name, tensor in adapter.items():
        layer, _, rest = name.partition(".lora_")
        if rest not in ("A.weight", "B.weight"):
            raise KeyError(name)
        layers.add(layer)
        lora[f"{layer}.lora_{rest[0]}.default.weight"] = tensor.to(dtype)
    names = {}
    for name in weights:
        layer, _, last = f"base_model.model.{name}".rpartition(".")
        names[name] = f"{layer}.base_layer.{last}" if layer in layers else f"{layer}.{last}"
    return names, lora
