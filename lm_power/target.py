"""The target p^alpha and its token-wise proposal: pure tensor functions."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_BLOCK = 256  # tokens: of a draw's first level
_CACHED = 2**18  # logits that a CPU's cache holds beside what is computed from them


def log_probabilities(logits: Tensor) -> Tensor:
    """`log p(v) = logits_v − logsumexp(logits)`: the model's own law, with no temperature or truncation.

    Args:
        logits: [..., vocabulary], any floating type.

    Returns:
        [..., vocabulary] nats, in float32, or float64 for float64 logits.
    """
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def exclude(log_q: Tensor, tokens: Tensor) -> Tensor:
    """`log q(v | v ≠ token)`, up to a constant a row: its largest entry is 0.

    Being relative to the likeliest token that is left, it is as exact where q(token) is next to 1, and all the
    others would underflow, as anywhere else. Where no other token is possible, q is handed back.

    Args:
        log_q: [rows, vocabulary] nats.
        tokens: [rows] int64, one excluded token a row.

    Returns:
        [rows, vocabulary] nats, not normalised.
    """
    rest = log_q.scatter(-1, tokens[:, None], -torch.inf)
    top = rest.amax(dim=-1, keepdim=True)
    return torch.where(top == -torch.inf, log_q, rest - top)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token a row, drawn from q.

    Attributes:
        tokens: [rows] int64.
        log_p, log_q: [rows] nats, of the tokens.
    """

    tokens: Tensor
    log_p: Tensor
    log_q: Tensor


def draw_next(logits: Tensor, beta: Tensor, uniforms: Tensor, excluding: Tensor, excluded: Tensor) -> Drawn:
    """The next token of each row, from q ∝ p^β, with its log p and log q.

    `log p(v) = z_v − log Σ exp z` and `log q(v) = β·z_v − log Σ exp βz` with `z = logits − max logits`: one pass
    over the vocabulary each, in float32, or float64 for float64 logits.

    Args:
        logits: [rows, vocabulary], any floating type.
        beta: [rows] inverse temperatures 1/τ.
        uniforms: [rows] float64 in [0, 1).
        excluding: [n] int64, rows that draw from q without one token; see `exclude`.
        excluded: [n] int64, that token.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    beta = beta.to(logits.dtype)
    rows, size = logits.shape
    # On a CPU as many rows at once as stay in its cache.
    some = max(1, _CACHED // size) if logits.device.type == "cpu" else rows
    parts = []
    for start in range(0, rows, some):
        part = slice(start, start + some)
        z = logits[part] - logits[part].amax(dim=-1, keepdim=True)
        normalizer = z.exp().sum(dim=-1).log()
        scaled = z * beta[part, None]
        weights = scaled.exp()
        tokens = draw(weights, uniforms[part])
        mine = ((excluding >= start) & (excluding < start + some)).nonzero()[:, 0]
        if len(mine):
            of = excluding[mine] - start
            rest = exclude(scaled[of], excluded[mine]).exp()
            tokens[of] = draw(rest, uniforms[part][of])
        at = tokens[:, None]
        log_p = z.gather(1, at)[:, 0] - normalizer
        log_q = scaled.gather(1, at)[:, 0] - weights.sum(dim=-1).log()
        parts.append((tokens, log_p, log_q))
    return Drawn(*map(torch.cat, zip(*parts, strict=True)))


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulated weight exceeds u times the total.

    One uniform a row keeps random streams keyed to requests, whatever else is in the batch. It runs on two
    levels: the sums of blocks of 256 tokens are cumulated, then the weights of the block that u falls in; both
    in float64, so that a large vocabulary costs no accuracy. Only a block's sum is rounded to the weights' own
    type, by which its share moves as much as by the rounding of the weights themselves. A token without weight
    is never drawn.

    Args:
        weights: [rows, vocabulary] ≥ 0, of any total.
        uniforms: [rows] float64 in [0, 1).

    Returns:
        [rows] int64 tokens.
    """
    size = weights.shape[-1]
    blocks = torch.nn.functional.pad(weights, (0, -size % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    block, level = _bisect(blocks.sum(dim=-1), uniforms[:, None], relative=True)
    inside, _ = _bisect(blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0], level)
    # A row of NaN finds no token: stay inside the vocabulary, so that the caller can see the NaN in its log q.
    return (block * _BLOCK + inside)[:, 0].clamp_(max=size - 1)


def _bisect(weights: Tensor, level: Tensor, relative: bool = False) -> tuple[Tensor, Tensor]:
    """([rows, 1] first place whose cumulated weight exceeds the level, what of the level is left there)."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    # The level can round up to the total: one ulp below it, the draw still lands on a positive weight.
    level = torch.minimum(level * total if relative else level, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulated, level, right=True).clamp_(max=weights.shape[-1] - 1)
    before = cumulated.gather(1, place) - weights.gather(1, place)  # rounding could put it above the level
    return place, (level - before).clamp_(min=0)
