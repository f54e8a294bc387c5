"""Records what a function does on a GPU, and replays it: thousands of launches for the price of one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraphs:
    """Runs a function of integers; from its second run with the same ones on, as the replay of a CUDA graph.

    The function must be the same each time, and work on tensors that stay where they are, whatever else it is called
    with: a replay repeats the kernels that were recorded, on the same addresses, and no Python. The first run with
    some values is an ordinary one, which loads kernels and sets up libraries; the second is recorded, which computes
    nothing, and replayed.

    Args:
        device: the GPU that the function works on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seen: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}

    def run(self, function: Callable[..., None], *values: int) -> None:
        """Run `function(*values)`, or replay it.

        Raises:
            RuntimeError: at the second run, if the function does what cannot be recorded (asks the device for a
                value, allocates by other means …), or memory runs out; with the way out.
        """
        with torch.cuda.device(self.device):
            if values not in self._seen:
                self._seen.add(values)
                function(*values)
                return
            if values not in self._graphs:
                self._graphs[values] = self._recorded(function, *values)
            self._graphs[values].replay()

    def _recorded(self, function: Callable[..., None], *values: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Graphs never run side by side: they can share what they need for intermediate results.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                function(*values)
        except RuntimeError as error:
            # Where the recording fails, ending it fails too; what went wrong first is the second one's context.
            raise RuntimeError(
                f"this model's decode step cannot be recorded as a CUDA graph ({error.__context__ or error}); set "
                "cuda_graphs=False"
            ) from error
        return graph
