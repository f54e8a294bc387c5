"""How many rows fit: `batch_size=auto` from the model's shape and the free memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from transformers.integrations import sdpa_attention

from lm_power.engine.backend import HFBackend
from lm_power.engine.kv_cache import LayerShape
from lm_power.engine.paired import AnyBackend

# Around this number a step begins to take proportionally longer, and more rows gain nothing. It is a choice, not yet a
# measurement.
_MOST_ROWS = {"cpu": 64}
_MOST_ROWS_ACCELERATOR = 512
# Share of a device's memory, whoever uses it. Near the limit an allocator has to return memory and ask for it again at
# every other call, and a neighbour that grows a little would end the run.
_PEAK = 0.92
# Bytes on an accelerator besides the tensors: libraries' workspaces, recorded graphs, kernels. The number is a choice.
_BESIDES = 2**29
_PREFILLED_AT_ONCE = 512  # tokens
_WIDE = 4  # bytes of a float32, in which norms, softmax and draws are computed


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that an engine takes on one device.

    Attributes:
        fixed: bytes that do not depend on the number of rows.
        row: bytes per row.
        saved: bytes of the copy of a whole completion, which a row keeps while a proposal overwrites it.
    """

    fixed: int
    row: int
    saved: int

    def of(self, rows: int) -> int:
        """Bytes for so many rows."""
        return self.fixed + rows * self.row + math.ceil(rows * self.saved * saved_share(rows))


def saved_share(rows: int) -> float:
    """Upper bound of the share of their completions that so many rows have saved, exceeded one moment in 30,000.

    A proposal saves what comes after its cut, a share s that is uniform in (0, 1), and takes a time proportional to s.
    At a given moment, s therefore has the density 2s, with mean 2/3 and variance 1/18. Four standard deviations above
    the mean is

        2/3 + 4/√(18·rows).

    Early rejection shortens long proposals, and coupled resume moves cuts towards the end, so both save less.
    """
    return min(1.0, 2 / 3 + 4 / math.sqrt(18 * rows))


def rows_that_fit(backend: AnyBackend, positions: int, rewound: int) -> int:
    """The number of rows with which every device stays within 92% of its memory, including weights and other users.

    Args:
        backend: the model, already in memory.
        positions: longest prompt plus longest completion, tokens.
        rewound: longest completion that a proposal may overwrite, tokens; 0 if nothing is ever overwritten.

    Raises:
        MemoryError: not even one row fits.
    """
    needs = {device: needed(backend, device, positions, rewound) for device in devices_of(backend)}
    usable = {device: usable_memory(device) for device in needs}
    most = _MOST_ROWS.get(backend.input_device.type, _MOST_ROWS_ACCELERATOR)
    for rows in range(most, 0, -1):
        if all(need.of(rows) <= usable[device] for device, need in needs.items()):
            return rows
    device = max(needs, key=lambda device: needs[device].of(1) - usable[device])
    raise MemoryError(
        f"one row of {positions} positions needs {needs[device].of(1) / 2**30:.2f} GiB and does not fit beside the "
        f"model: {max(0, usable[device]) / 2**30:.2f} GiB are free within {_PEAK:.0%} of {device}; lower max_gen_toks "
        "(max_new_tokens) or max_length, use a smaller dtype, or spread the model by parallelize=True"
    )


def devices_of(backend: AnyBackend) -> set[torch.device]:
    """Devices that hold a layer's cache, take in tokens, or return logits."""
    return {backend.input_device, *(shape.device for shape in backend.shapes)}


def needed(backend: AnyBackend, device: torch.device, positions: int, rewound: int) -> Need:
    """What an engine takes on one device; arguments as in `rows_that_fit`.

    These are the layers' caches, with a slot for idle rows; copies of what proposals overwrite; and the most that a
    decode step and a piece of a prefill take in addition, counted together, because a recorded step keeps its memory. A
    second model reuses the memory of the first one's intermediate results, but the logits of both exist at once.
    """
    position = sum(shape.bytes_per_position for shape in backend.shapes if shape.device == device)
    chunk = min(_PREFILLED_AT_ONCE, positions)
    passes = [_forward_pass(model, device, positions, chunk) for model in backend.models]
    row = position * (positions + 1) + max(one.row for one in passes)
    # Prompts that are read together are first written to a separate cache.
    fixed = chunk * position + max(one.fixed for one in passes)
    if device in (backend.input_device, backend.shapes[-1].device):
        row += sum(_logits_and_draw(model) for model in backend.models)
        # A model that cannot be asked for the last query's logits alone computes those of all queries.
        fixed += sum(_logits_and_draw(m) * (1 if "logits_to_keep" in m._options else chunk) for m in backend.models)
    if device == backend.input_device:
        row += _row_state(positions)
    if device.type != "cpu":
        fixed += _BESIDES
    return Need(fixed, row, position * rewound)


def _forward_pass(model: HFBackend, device: torch.device, positions: int, chunk: int) -> Need:
    """What one model's forward pass takes besides caches and logits: per row of a decode step, and for a prefill."""
    shapes = [shape for shape in model.shapes if shape.device == device]
    token = _token_activations(model)
    if not shapes:
        return Need(chunk * token, token, 0)
    reading = chunk * token + _attention(model, shapes, positions, queries=chunk)
    return Need(reading, token + _attention(model, shapes, positions, queries=1), 0)


def _token_activations(backend: HFBackend) -> int:
    """Bytes that one token takes in a layer: hidden states, projections, the gated MLP's products."""
    config: Any = backend.config
    hidden = config.hidden_size
    heads = _query_heads(backend) * max(max(shape.key_dim, shape.value_dim) for shape in backend.shapes)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    experts = getattr(config, "num_experts_per_tok", None)
    if experts:
        inner = max(inner, experts * getattr(config, "moe_intermediate_size", inner))
    return (8 * hidden + 4 * heads + 4 * inner) * _itemsize(backend)


def _attention(backend: HFBackend, shapes: list[LayerShape], positions: int, queries: int) -> int:
    """Bytes that one row's attention takes besides the cache, for one layer at a time.

    These are masks; a copy of the layer's keys and values if they are repeated for their query heads; and with `eager`
    the scores and their softmax in float32.
    """
    if backend.reads_spans and queries == 1:
        return 0
    eager = backend.config._attn_implementation == "eager"
    # An additive mask for each layer type, and the boolean one that it is made from.
    types = len(set(getattr(backend.config, "layer_types", None) or ("full_attention",)))
    masks = queries * positions * (1 + types * _itemsize(backend))
    repeats = backend.query_groups > 1 and (queries > 1 or not _packs_single_queries(backend))
    copied = max(shape.bytes_per_position for shape in shapes) * backend.query_groups * positions if repeats else 0
    scores = queries * positions * _query_heads(backend) * (2 * _itemsize(backend) + _WIDE) if eager else 0
    return masks + copied + scores


def _packs_single_queries(backend: HFBackend) -> bool:
    """Whether a single query's heads share keys and values without a copy: in transformers' sdpa, uncompiled."""
    packs = backend.config._attn_implementation == "sdpa" and hasattr(sdpa_attention, "pack_gqa")
    return packs and not backend.compiled


def _logits_and_draw(backend: HFBackend) -> int:
    """Bytes of one row's logits, and of what `target.draw_next` computes from them if nothing fuses it."""
    copies = 6  # in float32; `draw_next_at_once` was measured at 4.3, and some models cap or widen their logits
    return backend.vocabulary * (_itemsize(backend) + copies * max(_WIDE, _itemsize(backend)))


def _row_state(positions: int) -> int:
    """Bytes of one row's tokens, their log p and log q, uniforms, and saved copies: 8 each per position."""
    return 8 * 6 * positions


def _query_heads(backend: HFBackend) -> int:
    return backend.query_groups * backend.shapes[0].heads


def _itemsize(backend: HFBackend) -> int:
    return max(shape.dtype.itemsize for shape in backend.shapes)


def usable_memory(device: torch.device) -> int:
    """Bytes that can be allocated until 92% of a device is in use, by anyone; negative if more is in use."""
    return free_memory(device) - math.ceil((1 - _PEAK) * total_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_machine().available)


def total_memory(device: torch.device) -> int:
    """Bytes that a device has."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else int(_machine().total)


def _machine() -> Any:
    import psutil  # type: ignore[import-untyped]  # a dependency of accelerate; not needed where a GPU answers

    return psutil.virtual_memory()
