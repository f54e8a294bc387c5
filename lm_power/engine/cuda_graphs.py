"""Records what a function does on a GPU, and replays it: thousands of launches at the cost of one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraphs:
    """Runs a function of integers. From its second run with the same integers on, it replays a CUDA graph.

    The function must be the same each time and work on tensors that stay at the same addresses: a replay repeats the
    recorded kernels on those addresses, and runs no Python. The first run with some values is an ordinary one, which
    loads kernels and sets up libraries. The second is recorded, which computes nothing, and then replayed.

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
            RuntimeError: at the second run, if the function does something that cannot be recorded (asks the device for
                a value, allocates by other means …) or memory runs out; the message says what to do.
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
        # Graphs never run side by side, so they can share their memory for intermediate results.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                function(*values)
        except RuntimeError as error:
            # If the recording fails, ending it fails too, and the first error is the context of the second.
            raise RuntimeError(
                f"this model's decode step cannot be recorded as a CUDA graph ({error.__context__ or error}); set "
                "cuda_graphs=False"
            ) from error
        return graph
