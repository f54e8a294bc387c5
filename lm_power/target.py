"""The target p^alpha and its token-wise proposal: pure tensor functions, all in log space."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """`log p(v) = logits_v − logsumexp(logits)`: the model's own law, with no temperature or truncation.

    Args:
        logits: [..., vocabulary], any floating type.

    Returns:
        [..., vocabulary] nats, in float32, or float64 for float64 logits.
    """
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def log_normalizer(log_p: Tensor, beta: float | Tensor) -> Tensor:
    """`log Z_β = log Σ_v p(v)^β`; at `β = alpha` the token weight of the proposal with τ = 1/alpha.

    Args:
        log_p: [..., vocabulary] nats.
        beta: inverse temperature 1/τ, a number or [...].

    Returns:
        [...] nats.
    """
    return torch.logsumexp(_scaled(log_p, beta), dim=-1)


def log_proposal(log_p: Tensor, beta: float | Tensor) -> Tensor:
    """`log q(v) = β log p(v) − log Z_β`: token-wise tempering at temperature τ = 1/β.

    Args:
        log_p: [..., vocabulary] nats.
        beta: inverse temperature 1/τ, a number or [...].

    Returns:
        [..., vocabulary] nats, of the type of `log_p`.
    """
    return torch.log_softmax(_scaled(log_p, beta), dim=-1)


def exclude(log_q: Tensor, tokens: Tensor) -> Tensor:
    """`log q(v | v ≠ token)`, up to a constant a row: its largest entry is 0.

    Being relative to the likeliest token that is left, it is as exact where q(token) is next to 1, and all the
    others would underflow, as anywhere else. Where no other token is possible, q is handed back.

    Args:
        log_q: [rows, vocabulary] nats.
        tokens: [rows] int64, one excluded token a row.

    Returns:
        [rows, vocabulary] nats, not normalised; `draw` takes it so.
    """
    rest = log_q.scatter(-1, tokens[:, None], -torch.inf)
    top = rest.amax(dim=-1, keepdim=True)
    return torch.where(top == -torch.inf, log_q, rest - top)


def draw(log_q: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulated q exceeds u.

    One uniform a row keeps random streams keyed to requests, whatever else is in the batch. The cumulated
    sum runs in float64, so that a large vocabulary costs no accuracy; dividing by its own total makes an
    unnormalised or partly excluded row (log q = −inf) right as well.

    Args:
        log_q: [rows, vocabulary] nats.
        uniforms: [rows] float64 in [0, 1).

    Returns:
        [rows] int64 tokens.
    """
    cumulated = log_q.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    # u·total can round up to total: one ulp below it, the draw still lands on a token of positive q.
    level = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # A row of NaN finds no token: stay inside the vocabulary, so that the caller can see the NaN in its log q.
    return torch.searchsorted(cumulated, level, right=True).squeeze(-1).clamp_(max=log_q.shape[-1] - 1)


def _scaled(log_p: Tensor, beta: float | Tensor) -> Tensor:
    if isinstance(beta, Tensor):
        return log_p * beta.to(log_p.dtype)[..., None]
    return log_p * beta
