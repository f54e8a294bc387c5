"""Attention masks for rows at different positions.

transformers lets a model build its own mask for each layer type (full, sliding window) from one query offset for the
whole batch. Here every row has its own positions: `RowCache.get_query_offset` returns them as a [rows, queries] tensor,
and the mask functions of `sdpa` and `eager` are wrapped so that they broadcast it. Any other offset goes to the
original function, so nothing changes for models outside the engine.

`lm_power` (see `lm_power.engine.attention`) needs less than a mask: one query per row sees a span of keys, which two
numbers describe.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask

MASKED_ATTENTION = ("sdpa", "eager")
SPANS_ATTENTION = "lm_power"
SUPPORTED_ATTENTION = (*MASKED_ATTENTION, SPANS_ATTENTION)


def accept_row_positions() -> None:
    """Make transformers' mask functions accept [rows, queries] query offsets. Calling it again changes nothing."""
    for name in MASKED_ATTENTION:
        original = ALL_MASK_ATTENTION_FUNCTIONS[name]
        if not hasattr(original, "accepts_row_positions"):
            ALL_MASK_ATTENTION_FUNCTIONS[name] = _broadcasting(original)


def spans_or_mask(*, q_offset: Any = 0, **kwargs: Any) -> Tensor | None:
    """The mask function of `lm_power`: spans for one query per row at the rows' own positions, else sdpa's mask.

    Returns:
        [rows, 1, 1, 2] int32: the first key that the row's query sees, and one past the last. If the visible keys have
        a gap, the two are equal, so that the attention is NaN and the engine stops. No mask in transformers has a gap
        for a single query, and the check must not wait for the GPU.
    """
    if not (isinstance(q_offset, Tensor) and q_offset.ndim == 2):
        return sdpa_mask(q_offset=q_offset, **kwargs)
    visible = _row_mask(q_offset, additive=False, **kwargs)
    if visible.shape[2] != 1:
        return visible
    length = visible.shape[3]
    keys = torch.arange(length, dtype=torch.int32, device=visible.device)
    first = keys.masked_fill(~visible, length).amin(-1)
    stop = keys.masked_fill(~visible, -1).amax(-1) + 1
    whole = visible.sum(-1, dtype=torch.int32) == stop - first
    return torch.stack([first, stop.where(whole, first)], -1)


def are_spans(mask: Tensor | None) -> bool:
    """Whether a mask that reached an attention function is what `spans_or_mask` calls spans."""
    return mask is not None and mask.dtype == torch.int32 and mask.shape[1:] == (1, 1, 2)


def visible_keys(spans: Tensor, length: int) -> Tensor:
    """[rows, 1, 1, length] boolean mask that is equivalent to the spans."""
    keys = torch.arange(length, dtype=torch.int32, device=spans.device)
    return (keys >= spans[..., :1]) & (keys < spans[..., 1:])


def _broadcasting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def mask(*args: Any, q_offset: int | Tensor = 0, **kwargs: Any) -> Tensor | None:
        if not (isinstance(q_offset, Tensor) and q_offset.ndim == 2):
            return original(*args, q_offset=q_offset, **kwargs)
        return _row_mask(q_offset, additive=True, **kwargs)  # sdpa would add a boolean one too, made anew in each layer

    mask.accepts_row_positions = True  # type: ignore[attr-defined]
    return mask


def _row_mask(
    positions: Tensor,
    additive: bool,
    *,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **_: Any,
) -> Tensor:
    """[rows, 1, queries, kv_length]: True (or 0) where the query at its row's position sees the key.

    `mask_function` only compares indices (causal, sliding window …), so tensors of positions broadcast through it. The
    engine never pads with a 2D mask, and a model that makes one itself is not supported.
    """
    if attention_mask is not None:
        raise NotImplementedError("a padding mask together with per-row positions")
    rows = torch.arange(positions.shape[0], device=positions.device)[:, None, None, None]
    head = torch.zeros(1, dtype=torch.long, device=positions.device)[None, :, None, None]
    keys = torch.arange(kv_length, device=positions.device)[None, None, None, :] + kv_offset
    visible = mask_function(rows, head, positions[:, None, :, None], keys)
    visible = visible.expand(positions.shape[0], -1, positions.shape[1], kv_length)
    if not additive:
        return visible
    hidden = torch.finfo(dtype).min
    return torch.where(visible, torch.zeros((), dtype=dtype, device=visible.device), hidden)
