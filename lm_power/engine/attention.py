"""`attn_implementation="lm_power"`: decode attention that reads each visible key and value once, and no hidden ones.

Importing this module registers the name with transformers, so that its own options accept it:
`from_pretrained(…, attn_implementation="lm_power")`, `model.set_attn_implementation("lm_power")`. On a GPU,
`lm_power.engine.attention_kernel` computes the attention of one query per row over a `RowCache`, from the spans that
`lm_power.engine.masks` passes in place of a mask. Every other call (prefill, log-likelihoods, `model.generate`) goes to
transformers' sdpa, or to `plain_attention` if the model caps its scores or has sinks, which sdpa cannot compute.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lm_power.engine.masks import SPANS_ATTENTION, are_spans, spans_or_mask, visible_keys
from lm_power.errors import MissingPackageError

_WITHOUT_EFFECT = {"position_ids", "cache_position"}  # tensors that masks and rotations have already used
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it.

    Args:
        module: the layer.
        query: [rows, heads, queries, key_dim].
        key: [rows, kv_heads, keys, key_dim].
        value: [rows, kv_heads, keys, value_dim].
        attention_mask: spans ([rows, 1, 1, 2] int32), a boolean mask, or None if causality is the only mask.
        dropout: probability; 0 with spans.
        scaling: of the scores; default 1/√key_dim.
        softcap: c of c·tanh(score / c) (Gemma 2).
        s_aux: [heads], one score per head that takes probability but adds no value (GPT-OSS's sinks).
        others: whatever else the model passes to attention functions.

    Returns:
        [rows, queries, heads, value_dim], and None for the weights.

    Raises:
        NotImplementedError: spans together with an argument that changes what attention computes.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    spans = attention_mask if are_spans(attention_mask) else None
    if spans is None and softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    # Tensors take part in the computation (a bias, chosen keys); flags only say what a model is to return.
    unknown = [name for name, given in others.items() if isinstance(given, Tensor) and name not in _WITHOUT_EFFECT]
    if dropout:
        unknown.append("dropout")
    if unknown:
        raise NotImplementedError(
            f"attn_implementation={SPANS_ATTENTION!r} does not know {', '.join(unknown)} of {type(module).__name__}; "
            "load the model with attn_implementation='sdpa', or with 'eager' if it has no sdpa"
        )
    if spans is None:
        mask = _causal(query, key) if attention_mask is None else attention_mask
        return plain_attention(query, key, value, mask, scaling, softcap, s_aux), None
    if _kernel_takes(query, key, value):
        from lm_power.engine.attention_kernel import decode_attention  # Triton is there on GPUs only

        return decode_attention(query, key, value, spans, scaling, softcap, s_aux), None
    output = plain_attention(query, key, value, visible_keys(spans, key.shape[2]), scaling, softcap, s_aux)
    return output.masked_fill(spans[..., :1] >= spans[..., 1:], torch.nan), None


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scaling · q·k) v over the keys that the mask shows, without repeating keys and values for their groups.

    Args:
        query: [rows, heads, queries, key_dim], of any float dtype.
        key: [rows, kv_heads, keys, key_dim].
        value: [rows, kv_heads, keys, value_dim].
        mask: [rows or 1, 1, queries, keys], boolean (True: seen) or added to the scores.
        scaling: of the scores.
        softcap: c of c·tanh(score / c), or None.
        sinks: [heads], one score per head that takes probability but adds no value; or None.

    Returns:
        [rows, queries, heads, value_dim]; some finite value for a query that sees nothing (padding).
    """
    grouped = query.unflatten(1, (key.shape[1], -1))  # [rows, kv_heads, group, queries, key_dim]
    scores = grouped @ key[:, :, None].transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask[:, :, None]
    if sinks is not None:
        column = sinks.to(scores).view(1, key.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    output = (weights @ value[:, :, None]).flatten(1, 2).transpose(1, 2)
    return output.contiguous()


def _kernel_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return query.is_cuda and query.dtype == key.dtype == value.dtype and query.dtype in _KERNEL_DTYPES


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """[1, 1, queries, keys]: what a missing mask means in transformers: one query sees all keys, several are causal."""
    shape = query.shape[2], key.shape[2]
    seen = torch.ones(shape, dtype=torch.bool, device=query.device)
    return (seen if shape[0] == 1 else seen.tril())[None, None]


def check_kernel(devices: Iterable[torch.device]) -> None:
    """Raise `MissingPackageError` if a device is a GPU and Triton, which the kernel needs, is not installed."""
    if any(device.type == "cuda" for device in devices) and importlib.util.find_spec("triton") is None:
        raise MissingPackageError(
            f"attn_implementation={SPANS_ATTENTION!r} needs Triton on a GPU, and it is not installed: install the "
            "triton package that matches this torch, or load the model with attn_implementation='sdpa'"
        )


def prefer_spans(model: nn.Module) -> None:
    """Switch a freshly loaded model, for which nobody chose an attention, to `"lm_power"` if that works and is faster.

    The conditions are that all of it is on NVIDIA GPUs of compute capability ≥ 8.0, that Triton is installed, and that
    the decoder's class accepts other attention functions. Any other model keeps what transformers chose.

    Args:
        model: transformers causal LM, or a PEFT model around one.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder or not base.is_backend_compatible():
        return
    if _run_the_kernel({parameter.device for parameter in base.parameters()}):
        before = base.config._attn_implementation
        base.set_attn_implementation(SPANS_ATTENTION)
        base.lm_power_chose_attention_over = before


def chosen_instead_of(model: nn.Module) -> str | None:
    """The attention that a model had before `prefer_spans` chose another; None if it did not."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    before: str | None = getattr(base, "lm_power_chose_attention_over", None)
    return before if getattr(base.config, "_attn_implementation", None) == SPANS_ATTENTION else None


def _run_the_kernel(devices: Iterable[torch.device]) -> bool:
    return (
        all(device.type == "cuda" for device in devices)
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and all(torch.cuda.get_device_capability(device) >= (8, 0) for device in devices)
    )


AttentionInterface.register(SPANS_ATTENTION, attention)
AttentionMaskInterface.register(SPANS_ATTENTION, spans_or_mask)
