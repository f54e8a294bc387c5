"""Copies between host and device for which neither has to wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of an array on a device; on the CPU, a view of it.

    A copy to a GPU goes through pinned memory, which PyTorch does not reuse before the copy is made. The array may
    therefore change at once, and the host does not wait for work that the device still has to do.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Fetch:
    """A copy of a tensor on its way to the host; the tensor may change once this has been made."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._copy = tensor.to("cpu", copy=True)

    def wait(self) -> NDArray[Any]:
        """Wait for the copy, and return the values."""
        if self._event is not None:
            self._event.synchronize()
        values: NDArray[np.generic] = self._copy.numpy()
        return values
