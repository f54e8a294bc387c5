"""The memory-bandwidth bound of decoding: the bytes that must move, over what the device copies in a second."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
from transformers import PreTrainedModel

from lm_power.engine import HFBackend


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a step of decoding has to read at least.

    Attributes:
        weights: bytes of the parameters that every step reads.
        position: bytes of the keys and values of one position of one row, over all layers.
        bandwidth: bytes per second that the device copies, those read and those written.
    """

    weights: int
    position: int
    bandwidth: float

    @classmethod
    def of(cls, backend: HFBackend, bandwidth: float) -> Traffic:
        """The traffic of a model."""
        return cls(weight_bytes(backend.model), sum(shape.bytes_per_position for shape in backend.shapes), bandwidth)

    def seconds(self, steps: float, attended: float) -> float:
        """The bound on `steps` forward passes that attend to `attended` positions, summed over rows and steps."""
        return (steps * self.weights + attended * self.position) / self.bandwidth


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the parameters that a step reads: all, but for an input embedding that is only looked up.

    A tied embedding is read whole, as the output layer. Of a mixture of experts a step may read less.
    """
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    every = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return every if embedding is output else every - embedding.numel() * embedding.element_size()


def copy_bandwidth(device: torch.device, megabytes: int, rounds: int = 11) -> float:
    """Bytes read plus bytes written a second by a copy of so many megabytes on the device: median of `rounds`."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # written once: fresh memory would be paid for in the first round
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / statistics.median(seconds)


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given to do: only then do clocks tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
