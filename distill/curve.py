"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_losses(losses: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Losses against optimiser steps, saved in the format of the file's suffix.

    Args:
        losses: curve → (step, nats per completion token) pairs; an empty curve is left out.
        path: file of the picture.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in losses.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per completion token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
