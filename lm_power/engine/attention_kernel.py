"""Decode attention on the GPU, as two Triton kernels: attend to each split of a row's span, then combine.

With one query per row and many keys, most of the work is reading the keys and values. Each is therefore read once for
all query heads that share it, and only inside the row's span. The split of the keys among programs follows Dao, Haziza,
Massa & Sizov (2023), "Flash-Decoding for long-context inference"; the running softmax follows Milakov & Gimelshein
(2018), "Online normalizer calculation for softmax". Splits begin at multiples of `SPLIT` in the row's own slots, so a
row's numbers depend neither on the other rows nor on how many slots are shown.
"""

# The arguments of the kernels are Triton's, which has no types for them and reads annotations as code.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 512  # largest number of keys per program
COMBINED = 16  # splits that the second kernel reads at a time
_TILE_BYTES = 32 << 10  # keys and values that a program has in flight per stage


# `splits` is not specialised: a kernel that is compiled anew for 1, or for multiples of 16, would compile during a run.
@triton.jit(do_not_specialize=["splits"])
def attend_kernel(
    query,  # [rows, heads, 1, KEY_DIM]
    key,  # [rows, kv heads, slots, KEY_DIM]
    value,  # [rows, kv heads, slots, VALUE_DIM]
    spans,  # [rows, 2] int32, contiguous
    partial,  # [rows, heads, splits, VALUE_DIM] float32, contiguous: Σ exp(score − max)·value
    state,  # [rows, heads, splits, 2] float32, contiguous: max in units of log 2, Σ exp(score − max)
    scaling,
    softcap,  # read where SOFTCAP is true
    query_row,  # strides, in numbers; those within a head are 1
    query_head,
    key_row,
    key_head,
    key_slot,
    value_row,
    value_head,
    value_slot,
    splits,
    SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per key/value head
    GROUP_TILE: tl.constexpr,  # the same and the two below, padded to what `tl.dot` and `tl.arange` take
    KEY_DIM: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr,  # keys per tile; divides SPLIT
    SPLIT: tl.constexpr,
) -> None:
    """One split of a row's span, for the query heads of one key/value head; grid (rows, kv heads, splits)."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    begin = tl.maximum(tl.load(spans + 2 * row), split * SPLIT)
    end = tl.minimum(tl.load(spans + 2 * row + 1), (split + 1) * SPLIT)
    if begin >= end:
        return

    # 64-bit: rows × heads × slots × dim passes 2³¹.
    row = row.to(tl.int64)
    member = tl.arange(0, GROUP_TILE)
    heads = kv_head * GROUP + member
    in_key = tl.arange(0, KEY_TILE)
    in_value = tl.arange(0, VALUE_TILE)
    in_tile = tl.arange(0, BLOCK)
    real = (member < GROUP)[:, None]
    q = tl.load(
        query + row * query_row + heads[:, None] * query_head + in_key[None, :],
        mask=real & (in_key < KEY_DIM)[None, :],
        other=0.0,
    )
    keys = key + row * key_row + kv_head.to(tl.int64) * key_head + in_key[:, None]
    values = value + row * value_row + kv_head.to(tl.int64) * value_head + in_value[None, :]

    highest = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_TILE], tl.float32)
    weighted = tl.zeros([GROUP_TILE, VALUE_TILE], tl.float32)
    # From a multiple of BLOCK, for aligned loads; every tile then holds a visible key, so `highest` is finite.
    for start in tl.range(begin - begin % BLOCK, end, BLOCK):
        slots = start + in_tile
        visible = (slots >= begin) & (slots < end)
        at = slots.to(tl.int64)
        # Hidden slots read as 0, so that what they hold, even NaN, has no effect.
        k = tl.load(keys + at[None, :] * key_slot, mask=visible[None, :] & (in_key < KEY_DIM)[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scaling
        if SOFTCAP:
            # tanh, computed with an exponential that cannot overflow.
            shrunk = tl.exp(-2 * tl.abs(scores) / softcap)
            scores = tl.where(scores < 0, -softcap, softcap) * (1 - shrunk) / (1 + shrunk)
        scores = tl.where(visible[None, :], scores * 1.4426950408889634, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - raised[:, None])
        fade = tl.exp2(highest - raised)
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(
            values + at[:, None] * value_slot, mask=visible[:, None] & (in_value < VALUE_DIM)[None, :], other=0.0
        )
        weighted = tl.dot(weights.to(v.dtype), v, weighted * fade[:, None], input_precision="ieee")
        highest = raised

    place = (row * (tl.num_programs(1) * GROUP) + heads) * splits + split
    tl.store(
        partial + place[:, None] * VALUE_DIM + in_value[None, :],
        weighted,
        mask=real & (in_value < VALUE_DIM)[None, :],
    )
    tl.store(state + 2 * place, highest, mask=member < GROUP)
    tl.store(state + 2 * place + 1, total, mask=member < GROUP)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    partial,
    state,
    spans,
    sinks,  # [heads], or anything where SINKS is false
    output,  # [rows, 1, heads, VALUE_DIM], contiguous
    splits,
    SINKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    COMBINED: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """The output of one query head of a row, from its splits; grid (rows, heads)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(spans + 2 * row)
    stop = tl.load(spans + 2 * row + 1)
    begin = first // SPLIT
    end = tl.cdiv(stop, SPLIT)
    place = (row.to(tl.int64) * tl.num_programs(1) + head) * splits
    in_value = tl.arange(0, VALUE_TILE)
    real = in_value < VALUE_DIM

    if SINKS:
        # The sink is one more score in the sum, without a value.
        highest = tl.load(sinks + head + tl.arange(0, 1)).to(tl.float32) * 1.4426950408889634
        total = tl.full([1], 1.0, tl.float32)
    else:
        highest = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
    weighted = tl.zeros([VALUE_TILE], tl.float32)
    for start in tl.range(begin - begin % COMBINED, end, COMBINED):
        index = start + tl.arange(0, COMBINED)
        live = (index >= begin) & (index < end)
        maxima = tl.load(state + 2 * (place + index), mask=live, other=float("-inf"))
        sums = tl.load(state + 2 * (place + index) + 1, mask=live, other=0.0)
        parts = tl.load(
            partial + (place + index)[:, None] * VALUE_DIM + in_value[None, :],
            mask=live[:, None] & real[None, :],
            other=0.0,
        )
        raised = tl.maximum(highest, tl.max(maxima, 0))
        fade = tl.exp2(highest - raised)
        shares = tl.exp2(maxima - raised)
        total = total * fade + tl.sum(sums * shares, 0)
        weighted = weighted * fade + tl.sum(parts * shares[:, None], 0)
        highest = raised
    # An empty span gives NaN, even with sinks.
    result = tl.where(stop > first, weighted / total, float("nan"))
    at = row.to(tl.int64) * tl.num_programs(1) + head
    tl.store(output + at * VALUE_DIM + in_value, result.to(output.dtype.element_ty), mask=real)


def tiling(group: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time sizes of `attend_kernel`, and the warps and stages to compile it with.

    Args:
        group: query heads per key/value head.
        key_dim: numbers per head of a key.
        value_dim: numbers per head of a value.
        dtype: dtype of the keys and values.
    """
    # `tl.dot` takes tiles of at least 16, `tl.arange` powers of two.
    group_tile, key_tile, value_tile = (max(16, triton.next_power_of_2(n)) for n in (group, key_dim, value_dim))
    key_bytes = (key_tile + value_tile) * dtype.itemsize
    block = 64
    while block > 16 and block * key_bytes > _TILE_BYTES:
        block //= 2
    return {
        "GROUP": group,
        "GROUP_TILE": group_tile,
        "KEY_DIM": key_dim,
        "KEY_TILE": key_tile,
        "VALUE_DIM": value_dim,
        "VALUE_TILE": value_tile,
        "BLOCK": block,
        "SPLIT": SPLIT,
        "num_warps": 4 if group_tile < 64 else 8,
        "num_stages": 3 if block * key_bytes <= _TILE_BYTES else 2,
    }


# torch.compile sees this as one operator and does not look inside.
@torch.library.custom_op("lm_power::decode_attention", mutates_args=())
def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scaling · q·k) v over each row's span of keys; see `lm_power.engine.attention.plain_attention`.

    Args:
        query: [rows, heads, 1, key_dim]; float32, bfloat16 or float16, like the keys and values.
        key: [rows, kv_heads, slots, key_dim], with any strides.
        value: [rows, kv_heads, slots, value_dim].
        spans: [rows, 1, 1, 2] int32: first key that the row's query sees, and one past the last.
        scaling: of the scores.
        softcap: c of c·tanh(score / c), or None.
        sinks: [heads], one score per head that takes probability but adds no value; or None.

    Returns:
        [rows, 1, heads, value_dim], contiguous; NaN if the span is empty.
    """
    # The numbers of a head must be contiguous, as they are in the cache.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    spans = spans.to(query.device).contiguous()
    rows, heads, _, key_dim = query.shape
    kv_heads, slots, value_dim = value.shape[1:]
    splits = triton.cdiv(slots, SPLIT)
    partial = torch.empty((rows, heads, splits, value_dim), dtype=torch.float32, device=query.device)
    state = torch.empty((rows, heads, splits, 2), dtype=torch.float32, device=query.device)
    output = torch.empty((rows, 1, heads, value_dim), dtype=query.dtype, device=query.device)
    sizes = tiling(heads // kv_heads, key_dim, value_dim, key.dtype)
    with torch.cuda.device_of(query):
        attend_kernel[rows, kv_heads, splits](
            query, key, value, spans, partial, state, float(scaling), float(softcap or 1),
            query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3], splits,
            SOFTCAP=softcap is not None, **sizes,
        )  # fmt: skip
        combine_kernel[rows, heads](
            partial, state, spans, output if sinks is None else sinks.contiguous(), output, splits,
            SINKS=sinks is not None, VALUE_DIM=value_dim, VALUE_TILE=sizes["VALUE_TILE"],
            COMBINED=COMBINED, SPLIT=SPLIT,
        )  # fmt: skip
    return output


@decode_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((query.shape[0], 1, query.shape[1], value.shape[3]))
