"""The loss: cross-entropy of completion tokens."""

from __future__ import annotations

import torch
from torch.nn import functional

from lm_power.distill.windows import IGNORED


def negative_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`−Σ log p(x_t | x_<t)` over the labelled tokens, nats, float32 scalar.

    Args:
        logits: [rows, tokens, vocabulary], of any floating type; those at t−1 predict token t.
        labels: int64 [rows, tokens]; `IGNORED` where nothing is learnt.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    return functional.cross_entropy(logits[:, :-1][learnt].float(), targets[learnt], reduction="sum")


def learnt_tokens(labels: torch.Tensor) -> int:
    """How many tokens `negative_log_likelihood` sums over."""
    return int((labels[:, 1:] != IGNORED).sum())
