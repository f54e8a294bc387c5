"""The KV cache: one slot row a sequence, each with a write position of its own, and a shadow for rewinding."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What one layer stores for one position.

    Attributes:
        heads: key/value heads.
        key_dim, value_dim: numbers a head.
        dtype, device: of the stored tensors.
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
    """What the next forward pass touches: rows [first, last), where it writes, and how far it sees."""

    first: int
    last: int
    positions: Tensor
    slots: Tensor
    length: int


class _RowLayer(CacheLayerMixin):
    """One layer's view of the storage; the model calls `update` with the new keys and values."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: RowCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.cache, self.keys, self.values = cache, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage is preallocated."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Scatter [rows, heads, queries, dim] at the rows' slots; return what the rows may see."""
        window = self.cache.window
        keys, values = self.keys[window.first : window.last], self.values[window.first : window.last]
        slots = window.slots.to(keys.device)
        rows = torch.arange(slots.shape[0], device=keys.device)[:, None]
        keys.transpose(1, 2)[rows, slots] = key_states.transpose(1, 2)
        values.transpose(1, 2)[rows, slots] = value_states.transpose(1, 2)
        return keys[:, :, : window.length], values[:, :, : window.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys returned by `update`, offset of the first)."""
        return self.cache.window.length, 0

    def get_seq_length(self) -> int:
        """Keys in the window; rows differ, see `RowCache.get_query_offset`."""
        return self.cache.window.length

    def get_max_length(self) -> int:
        """Slots of a row."""
        return self.cache.length


class RowCache(Cache):
    """Preallocated keys and values of `rows` sequences of up to `length` positions.

    A sliding-window layer stores the full length as well: only so can a row be rewound exactly.
    Position t of a row lies in its slot t. One more slot, `trash`, takes the writes of idle rows; no mask
    ever shows it.

    Args:
        shapes: one a layer.
        rows: sequences held.
        length: positions a row can hold.
        shadow: also allocate what `save` and `restore` need (doubles the memory).
    """

    def __init__(self, shapes: Sequence[LayerShape], rows: int, length: int, shadow: bool) -> None:
        self.rows, self.length, self.trash = rows, length, length
        self.window = _Window(0, 0, torch.zeros(0, 1), torch.zeros(0, 1), 0)
        by_shape = defaultdict(list)
        for index, shape in enumerate(shapes):
            by_shape[shape].append(index)
        # Layers of a shape share one tensor, so that saving a row's tail is one copy, not one a layer.
        self._storage: list[Tensor] = []
        self._shadow: list[Tensor] = []
        layers: dict[int, _RowLayer] = {}
        for shape, indices in by_shape.items():
            pair = [
                # Zeros, not empty: a hidden slot's NaN times its zero attention weight would be NaN.
                torch.zeros((len(indices), rows, shape.heads, length + 1, dim), dtype=shape.dtype, device=shape.device)
                for dim in (shape.key_dim, shape.value_dim)
            ]
            self._storage += pair
            if shadow:
                self._shadow += [torch.empty_like(tensor) for tensor in pair]
            layers |= {index: _RowLayer(self, pair[0][place], pair[1][place]) for place, index in enumerate(indices)}
        # Views of each row, [layers, heads, slots, dim]: cheaper to cut than the whole at every request.
        self._rows = list(zip(*(tensor.unbind(1) for tensor in self._storage), strict=True))
        self._shadow_rows = list(zip(*(tensor.unbind(1) for tensor in self._shadow), strict=True))
        super().__init__(layers=[layers[index] for index in range(len(shapes))])

    def look_at(self, first: int, positions: Tensor, slots: Tensor, length: int) -> None:
        """Set what the next forward pass touches.

        Args:
            first: first row of the batch.
            positions: [rows, queries] int64, position of each query (its mask and rotary angle).
            slots: [rows, queries] int64, where its key and value are written.
            length: slots [0, length) are shown to the attention, under the mask.
        """
        self.window = _Window(first, first + positions.shape[0], positions, slots, length)

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:  # type: ignore[override]
        """[rows, queries] positions of the queries; see `lm_power.engine.masks`."""
        return self.window.positions

    def save(self, row: int, start: int, stop: int) -> None:
        """Copy slots [start, stop) of a row to its shadow."""
        _copy(self._rows[row], self._shadow_rows[row], start, stop)

    def restore(self, row: int, start: int, stop: int) -> None:
        """Copy slots [start, stop) of a row's shadow back."""
        _copy(self._shadow_rows[row], self._rows[row], start, stop)

    def copy_row(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy slots [start, stop) of row `source` to row `target`."""
        _copy(self._rows[source], self._rows[target], start, stop)

    def copy_shadow(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy slots [start, stop) of the shadow of row `source` to row `target`."""
        _copy(self._shadow_rows[source], self._rows[target], start, stop)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor], start: int, stop: int) -> None:
    for here, there in zip(source, target, strict=True):
        there.narrow(2, start, stop - start).copy_(here.narrow(2, start, stop - start))
