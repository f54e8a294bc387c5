"""The loss: cross-entropy of completion tokens."""

from __future__ import annotations

import torch
from torch.nn import functional

from lm_power.distill.windows import IGNORED


def negative_log_likelihood(logits: torch.Tensor, labels: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """`−Σ log q(x_t | x_<t)` over the labelled tokens, q ∝ p^beta token by token; nats, float32 scalar.

    Args:
        logits: [rows, tokens, vocabulary], of any floating type; those at t−1 predict token t.
        labels: int64 [rows, tokens]; `IGNORED` where nothing is learnt.
        beta: inverse temperature; 1 for the model's own p.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    return functional.cross_entropy(beta * logits[:, :-1][learnt].float(), targets[learnt], reduction="sum")


def learnt_tokens(labels: torch.Tensor) -> int:
    """How many tokens `negative_log_likelihood` sums over."""
    return int((labels[:, 1:] != IGNORED).sum())
