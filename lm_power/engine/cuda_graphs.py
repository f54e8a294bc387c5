"""Records what a function does on a GPU, and replays it: thousands of launches for the price of one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A function of one integer, recorded as a CUDA graph for each value, from that value's second call on.

    The function must work on tensors that stay where they are, whatever else it is called with: a replay repeats
    the kernels that were recorded, on the same addresses, and no Python. The first call with a value runs as it is,
    which loads kernels and sets up libraries; the second is recorded, which runs nothing, and replayed.

    Args:
        function: what to record.
        device: the GPU it works on.

    Raises:
        RuntimeError: at the second call, if the function does what cannot be recorded (asks the device for a value,
            allocates by other means …); with the way out.
        torch.OutOfMemoryError: at any call.
    """

    def __init__(self, function: Callable[[int], None], device: torch.device) -> None:
        self.function, self.device = function, device
        self._seen: set[int] = set()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, value: int) -> None:
        """Run the function, or replay it."""
        with torch.cuda.device(self.device):
            self._call(value)

    def _call(self, value: int) -> None:
        if value not in self._seen:
            self._seen.add(value)
            self.function(value)
            return
        if value not in self._graphs:
            self._graphs[value] = self._record(value)
        self._graphs[value].replay()

    def _record(self, value: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Graphs never run side by side: they can share what they need for intermediate results.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.function(value)
        except RuntimeError as error:
            # Where the recording fails, ending it fails too; what went wrong first is the second one's context.
            first = error.__context__ or error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise RuntimeError(
                f"this model's decode step cannot be recorded as a CUDA graph ({first}); set cuda_graphs=False"
            ) from error
        return graph
