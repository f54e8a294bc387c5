"""Writes prompts, and completions that are already known, into the rows of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lm_power.engine.kv_cache import LayerShape, RowCache
from lm_power.engine.transfer import send


class Reader(Protocol):
    """Something that reads tokens into a cache: `HFBackend` or `PairedBackend`."""

    shapes: list[LayerShape]
    input_device: torch.device

    def forward(
        self, cache: RowCache, first: int, tokens: Tensor, positions: Tensor, slots: Tensor, length: int
    ) -> object:
        """See `HFBackend.forward`."""
        ...


@torch.inference_mode()
def prefill(reader: Reader, cache: RowCache, row: int, tokens: Sequence[int], chunk: int, start: int = 0) -> None:
    """Write the keys and values of `tokens` to slots `start`, `start` + 1, … of a row, `chunk` tokens at a time.

    It reads one row at a time and in fixed chunks, so that what is stored depends on the tokens alone and not on which
    other prompts start at the same moment.
    """
    for first in range(0, len(tokens), chunk):
        ids = send(np.array([tokens[first : first + chunk]], np.int64), reader.input_device)
        stop = start + first + ids.shape[1]
        slots = torch.arange(start + first, stop, device=reader.input_device)[None]
        reader.forward(cache, int(cache.places[row]), ids, slots, slots, stop)


@torch.inference_mode()
def prefill_together(reader: Reader, cache: RowCache, prompts: Mapping[int, Sequence[int]]) -> None:
    """Write the keys and values of several prompts, by row, from slot 0 on, in one pass padded to the longest.

    Because the pass has another shape, what is stored differs in the last bits from what `prefill` stores.
    """
    lengths = [len(tokens) for tokens in prompts.values()]
    longest = max(lengths)
    if longest == 0:
        return
    padded = np.zeros((len(prompts), longest), np.int64)
    for line, tokens in zip(padded, prompts.values(), strict=True):
        line[: len(tokens)] = tokens
    # They need a separate cache, because a pass writes to rows that lie side by side.
    side = RowCache(reader.shapes, len(prompts), longest)
    positions = np.tile(np.arange(longest), (len(prompts), 1))
    slots = np.where(positions < np.array(lengths)[:, None], positions, side.trash)
    ids, at, where = (send(array, reader.input_device) for array in (padded, positions, slots))
    reader.forward(side, 0, ids, at, where, longest)
    for place, (row, length) in enumerate(zip(prompts, lengths, strict=True)):
        cache.take(side, place, row, length)
