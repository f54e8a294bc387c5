"""How many rows fit: `batch_size=auto` from the model's shape and the free memory."""

from __future__ import annotations

from collections import defaultdict

import torch

from lm_power.engine.backend import HFBackend

# Somewhere there a step begins to take longer in proportion, and more rows gain nothing: a choice, not yet a
# measurement.
_MOST_ROWS = {"cpu": 64}
_MOST_ROWS_ACCELERATOR = 512
_USABLE = 0.85  # of the free memory: the rest is for activations, masks and fragmentation


def rows_that_fit(backend: HFBackend, positions: int, rewinds: bool) -> int:
    """Rows whose caches, shadows and sampling workspace fit into the free memory.

    Args:
        backend: the model, already in memory.
        positions: longest prompt plus longest completion, tokens.
        rewinds: whether rows need a shadow (the cache twice).

    Raises:
        MemoryError: not even one row fits.
    """
    need: dict[torch.device, int] = defaultdict(int)
    copies = 2 if rewinds else 1
    widest: dict[torch.device, int] = defaultdict(int)
    for shape in backend.shapes:
        need[shape.device] += copies * shape.bytes_per_position * (positions + 1)
        widest[shape.device] = max(widest[shape.device], shape.bytes_per_position)
    for device, one_layer in widest.items():
        # Attention that repeats key/value heads makes one layer's copy a query head at a time.
        need[device] += one_layer * backend.query_groups * positions
    # Logits, what is computed from them for a draw, and a block-wise copy of the weights: float32 each.
    need[backend.input_device] += backend.vocabulary * 7 * 4
    rows = min(int(_USABLE * free_memory(device) / bytes_) for device, bytes_ in need.items())
    if rows < 1:
        each = max(need.values()) / 2**30
        raise MemoryError(
            f"one row of {positions} positions needs {each:.2f} GiB and does not fit beside the model; lower "
            "max_gen_toks (max_new_tokens) or max_length, use a smaller dtype, or spread the model by "
            "parallelize=True"
        )
    return min(rows, _MOST_ROWS.get(backend.input_device.type, _MOST_ROWS_ACCELERATOR))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil  # type: ignore[import-untyped]  # a dependency of accelerate; not needed where a GPU answers

    return int(psutil.virtual_memory().available)
