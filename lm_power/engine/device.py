"""The device for a model if the user names none."""

from __future__ import annotations

import torch


def default_device() -> str:
    """The NVIDIA GPU ("cuda") if there is one, else "cpu".

    Never "mps": the engine keeps random numbers and log-probabilities in float64, which Apple's GPUs do not have.
    """
    return "cuda" if torch.cuda.is_available() else "cpu"
