"""The KV cache: one row of slots per sequence, each with its own write position, and saved copies for rewinding."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What one layer stores for one position.

    Attributes:
        heads: key/value heads.
        key_dim, value_dim: numbers per head.
        dtype, device: dtype and device of the stored tensors.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_position(self) -> int:
        """Bytes of keys and values of one position of one row."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclasses.dataclass
class _Window:
    """What the next forward pass touches: rows [first, last), the slots that it writes, and how far it sees."""

    first: int
    last: int
    positions: Tensor
    slots: Tensor
    length: int
    _written: dict[tuple[torch.device, int, int], Tensor] = dataclasses.field(default_factory=dict)

    def move(self, first: int, positions: Tensor, slots: Tensor, length: int) -> None:
        """Set the window as `RowCache.look_at` says."""
        self.first, self.last = first, first + positions.shape[0]
        self.positions, self.slots, self.length = positions, slots, length
        self._written = {}

    def written(self, device: torch.device, heads: int, length: int) -> Tensor:
        """[rows · heads · queries] places among all slots of a layer of such a shape; made once, not per layer."""
        key = (device, heads, length)
        if key not in self._written:
            places = torch.arange(self.first * heads, self.last * heads, device=device).view(-1, heads, 1)
            self._written[key] = (places * length + self.slots.to(device)[:, None]).flatten()
        return self._written[key]


class _RowLayer(CacheLayerMixin):
    """One layer's view of the storage; the model calls `update` with the new keys and values."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    # It refers to the window and not to the cache: an object in a reference cycle is freed late, and a cache is large.
    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.window, self.keys, self.values = window, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage is preallocated."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Scatter [rows, heads, queries, dim] at the rows' slots; return what the rows may see."""
        window = self.window
        at = window.written(self.keys.device, *self.keys.shape[1:3])
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored.view(-1, stored.shape[3]).index_copy_(0, at, new.reshape(-1, stored.shape[3]))
        keys, values = self.keys[window.first : window.last], self.values[window.first : window.last]
        return keys[:, :, : window.length], values[:, :, : window.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys returned by `update`, offset of the first)."""
        return self.window.length, 0

    def get_seq_length(self) -> int:
        """Keys in the window; rows differ, see `RowCache.get_query_offset`."""
        return self.window.length

    def get_max_length(self) -> int:
        """Positions that a row can hold."""
        return self.keys.shape[2] - 1


class CacheLayers(Cache):
    """The layers of a cache as a model sees them, one for each of the model's own layers."""

    def __init__(self, window: _Window, layers: Sequence[CacheLayerMixin]) -> None:
        self.window = window
        super().__init__(layers=list(layers))

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:  # type: ignore[override]
        """[rows, queries] positions of the queries; see `lm_power.engine.masks`."""
        return self.window.positions


class RowCache(CacheLayers):
    """Preallocated keys and values of `rows` sequences of up to `length` positions.

    Sliding-window layers store the full length too; otherwise a row could not be rewound exactly. Position t of a row
    is in its slot t. One extra slot, `trash`, takes the writes of idle rows; no mask ever shows it.

    A row keeps its number but not its place in the tensors. Rows can change places, so that the busy ones lie side by
    side and a forward pass can leave out the others.

    Args:
        shapes: one per layer.
        rows: sequences held.
        length: positions that a row can hold.

    Attributes:
        places: [rows] int64, where each row lies in the tensors.
    """

    def __init__(self, shapes: Sequence[LayerShape], rows: int, length: int) -> None:
        self.rows, self.length, self.trash = rows, length, length
        self.places = np.arange(rows)
        window = _Window(0, 0, torch.zeros(0, 1), torch.zeros(0, 1), 0)
        by_shape = defaultdict(list)
        for index, shape in enumerate(shapes):
            by_shape[shape].append(index)
        # Layers of one shape share one tensor, so that saving a row's tail takes one copy and not one per layer.
        self._storage: list[Tensor] = []
        layers: dict[int, _RowLayer] = {}
        for shape, indices in by_shape.items():
            pair = [
                # Zeros, not uninitialised memory: NaN in a hidden slot times its zero attention weight would be NaN.
                torch.zeros((len(indices), rows, shape.heads, length + 1, dim), dtype=shape.dtype, device=shape.device)
                for dim in (shape.key_dim, shape.value_dim)
            ]
            self._storage += pair
            layers |= {index: _RowLayer(window, pair[0][place], pair[1][place]) for place, index in enumerate(indices)}
        # Views of each place, [layers, heads, slots, dim]; slicing them is cheaper than slicing the whole tensors.
        self._views = list(zip(*(tensor.unbind(1) for tensor in self._storage), strict=True))
        self._saved: dict[int, tuple[int, list[Tensor]]] = {}  # by row: the first slot saved, and what it held
        super().__init__(window, [layers[index] for index in range(len(shapes))])

    def look_at(self, first: int, positions: Tensor, slots: Tensor, length: int) -> None:
        """Set what the next forward pass touches.

        Args:
            first: place of the first row of the batch.
            positions: [rows, queries] int64, position of each query (its mask and rotary angle).
            slots: [rows, queries] int64, where its key and value are written.
            length: slots [0, length) are shown to the attention, under the mask.
        """
        self.window.move(first, positions, slots, length)

    def part(self, start: int, stop: int) -> CacheLayers:
        """Layers [start, stop), for a model that shares the rows with another."""
        layers: list[Any] = self.layers[start:stop]  # transformers allows for layers of other kinds in a cache
        return CacheLayers(self.window, layers)

    def swap(self, row: int, other: int, length: int) -> None:
        """Let two rows change places, with their first `length` slots."""
        for here, there in zip(self._of(row), self._of(other), strict=True):
            here, there = here.narrow(2, 0, length), there.narrow(2, 0, length)
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)
        self.places[[row, other]] = self.places[[other, row]]

    def _of(self, row: int) -> tuple[Tensor, ...]:
        return self._views[self.places[row]]

    def save(self, row: int, start: int, stop: int) -> None:
        """Save a copy of slots [start, stop) of a row, in place of an earlier copy.

        The copy is allocated when it is needed, and no longer than necessary; a second cache beside the first would be
        mostly empty.
        """
        self._saved[row] = (start, [slots.narrow(2, start, stop - start).clone() for slots in self._of(row)])

    def restore(self, row: int) -> None:
        """Copy back what `save` kept of a row, and drop the copy."""
        start, saved = self._saved.pop(row)
        for slots, copy in zip(self._of(row), saved, strict=True):
            slots.narrow(2, start, copy.shape[2]).copy_(copy)

    def drop(self, row: int) -> None:
        """Drop what `save` kept of a row, if anything."""
        self._saved.pop(row, None)

    def copy_row(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy slots [start, stop) of row `source` to row `target`."""
        for here, there in zip(self._of(source), self._of(target), strict=True):
            there.narrow(2, start, stop - start).copy_(here.narrow(2, start, stop - start))

    def take(self, other: RowCache, source: int, target: int, stop: int) -> None:
        """Copy slots [0, stop) of another cache's row `source` to row `target`."""
        for there, here in zip(other._of(source), self._of(target), strict=True):
            here.narrow(2, 0, stop).copy_(there.narrow(2, 0, stop))

    def copy_saved(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy slots [start, stop), as `save` kept them of row `source`, to row `target`."""
        first, saved = self._saved[source]
        for copy, there in zip(saved, self._of(target), strict=True):
            there.narrow(2, start, stop - start).copy_(copy.narrow(2, start - first, stop - start))
