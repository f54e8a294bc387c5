"""The target p^alpha and its token-wise proposal: pure tensor functions."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lm_power.decoding import Measures

_BLOCK = 256  # tokens in a block of a draw's first level
_CACHED = 2**18  # logits that fit in a CPU's cache together with what is computed from them


def log_probabilities(logits: Tensor) -> Tensor:
    """`log p(v) = logits_v − logsumexp(logits)`: the model's own distribution, with no temperature or truncation.

    Args:
        logits: [..., vocabulary], any floating type.

    Returns:
        [..., vocabulary] nats, in float32, or float64 for float64 logits.
    """
    return torch.log_softmax(_wide(logits), dim=-1)


def log_probability_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """`log p` of one token per row, as in `log_probabilities`: [rows] nats for [rows] int64 tokens."""
    chosen = _wide(logits.gather(1, tokens.to(logits.device)[:, None]))[:, 0]
    return chosen - torch.logsumexp(_wide(logits), dim=-1)


def exclude(log_q: Tensor, tokens: Tensor) -> Tensor:
    """`log q(v | v ≠ token)`, up to a constant per row: the largest entry is 0.

    Since it is relative to the likeliest remaining token, it stays accurate even if q(token) is close to 1 and all
    other probabilities would underflow. If no other token is possible, q is returned.

    Args:
        log_q: [rows, vocabulary] nats.
        tokens: [rows] int64, one excluded token per row.

    Returns:
        [rows, vocabulary] nats, not normalised.
    """
    rest = log_q.scatter(-1, tokens[:, None], -torch.inf)
    top = rest.amax(dim=-1, keepdim=True)
    return torch.where(top == -torch.inf, log_q, rest - top)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token per row, drawn from q.

    Attributes:
        tokens: [rows] int64.
        log_p, log_q: [rows] nats, of the tokens.
    """

    tokens: Tensor
    log_p: Tensor
    log_q: Tensor


def measure_next(logits: Tensor, measures: Measures) -> Tensor:
    """What an algorithm needs from each row's next-token distribution, besides the token that is drawn.

    Args:
        logits: [rows, vocabulary], any floating type.
        measures: which exponents e, and whether the entropy is needed.

    Returns:
        [exponents (+ 1), rows]: `log Σ_v p(v)^e` for each exponent, then, if needed, the entropy
        `−Σ_v p(v)·log p(v)`; nats, in float32, or float64 for float64 logits.
    """
    log_p = log_probabilities(logits)
    rows = [torch.logsumexp(exponent * log_p, dim=-1) for exponent in measures.exponents]
    if measures.entropy:
        rows.append(torch.special.entr(log_p.exp()).sum(dim=-1))
    return torch.stack(rows)


def draw_next(logits: Tensor, beta: Tensor, uniforms: Tensor, excluded: Tensor) -> Drawn:
    """The next token of each row, from q ∝ p^β, with its log p and log q.

    `log p(v) = z_v − log Σ exp z` and `log q(v) = β·z_v − log Σ exp βz` with `z = logits − max logits`, in float32, or
    float64 for float64 logits. A CPU computes as many rows at once as fit in its cache, and skips what a row does not
    need. Every other device, and a compiler, runs one program for all values.

    Args:
        logits: [rows, vocabulary], any floating type.
        beta: [rows] inverse temperatures 1/τ.
        uniforms: [rows] float64 in [0, 1).
        excluded: [rows] int64, a token that the row must not draw (see `exclude`); −1: none. The log q that is returned
            is always that under q itself.
    """
    eager = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    return (draw_next_in_cache if eager else draw_next_at_once)(logits, beta, uniforms, excluded)


def draw_next_in_cache(logits: Tensor, beta: Tensor, uniforms: Tensor, excluded: Tensor) -> Drawn:
    """`draw_next` on as many rows at once as fit in a CPU's cache; only rows that exclude a token need two passes."""
    logits = _wide(logits)
    beta = beta.to(logits.dtype)
    rows, size = logits.shape
    some = max(1, _CACHED // size)
    parts = []
    for start in range(0, rows, some):
        part = slice(start, start + some)
        z = logits[part] - logits[part].amax(dim=-1, keepdim=True)
        normalizer_p = z.exp().sum(dim=-1).log()
        scaled = z * beta[part, None]
        weights = scaled.exp()
        normalizer_q = weights.sum(dim=-1).log()
        of = (excluded[part] >= 0).nonzero()[:, 0]
        if len(of):
            weights[of] = exclude(scaled[of], excluded[part][of]).exp()
        tokens = draw(weights, uniforms[part])
        at = tokens[:, None]
        log_p = z.gather(1, at)[:, 0] - normalizer_p
        log_q = scaled.gather(1, at)[:, 0] - normalizer_q
        parts.append((tokens, log_p, log_q))
    return Drawn(*map(torch.cat, zip(*parts, strict=True)))


def draw_next_at_once(logits: Tensor, beta: Tensor, uniforms: Tensor, excluded: Tensor) -> Drawn:
    """`draw_next` with shapes that do not depend on values, so that it can be compiled or captured in a CUDA graph.

    When compiled, it reads the logits twice, in their own type: for the maxima, and for the sums of blocks of 256
    tokens. It writes no array of the vocabulary's size. The weights of the chosen block are computed again.
    """
    blocks = _in_blocks(logits, -torch.inf)
    places = torch.arange(blocks.shape[1] * _BLOCK, device=logits.device).view(-1, _BLOCK)
    every = _wide(blocks)
    beta, without = beta.to(every.dtype).view(-1, 1, 1), excluded.view(-1, 1, 1)
    rest_top = every.masked_fill(places == without, -torch.inf).amax(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    own = _wide(logits.gather(1, excluded.clamp(min=0).unsqueeze(1))).unsqueeze(2)
    top = own.where(without >= 0, -torch.inf).maximum(rest_top)
    # If no other token is possible, none is excluded.
    without, origin = without.where(rest_top > -torch.inf, -1), rest_top.where(rest_top > -torch.inf, top)

    def weigh(logits: Tensor, places: Tensor) -> Tensor:
        """What `exclude` leaves of p^β at some places of each row, up to a constant per row."""
        return ((_wide(logits) - origin) * beta).exp().masked_fill(places == without, 0)

    z = every - top
    normalizer_p = z.exp().sum(dim=-1).sum(dim=-1, keepdim=True).log()
    normalizer_q = (z * beta).exp().sum(dim=-1).sum(dim=-1, keepdim=True).log()
    block, level = _bisect(weigh(blocks, places).sum(dim=-1), uniforms.unsqueeze(1), relative=True)
    places = block.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    inside, _ = _bisect(weigh(blocks.flatten(1).gather(1, places.squeeze(1)).unsqueeze(1), places).squeeze(1), level)
    tokens = (block * _BLOCK + inside).clamp(max=logits.shape[-1] - 1)
    at = _wide(logits.gather(1, tokens)) - top.squeeze(2)
    log_p, log_q = at - normalizer_p, at * beta.squeeze(2) - normalizer_q
    return Drawn(tokens.squeeze(1), log_p.squeeze(1), log_q.squeeze(1))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulative weight exceeds u times the total.

    One uniform per row keeps random streams keyed to requests, whatever else is in the batch. The draw has two levels:
    first the sums of blocks of 256 tokens are accumulated, then the weights within the block that u falls into. Both
    accumulate in float64, so that a large vocabulary costs no accuracy. Only a block's sum is rounded to the weights'
    own type, which moves its share no more than the rounding of the weights themselves. A token of weight 0 is never
    drawn.

    Args:
        weights: [rows, vocabulary] ≥ 0, with any total.
        uniforms: [rows] float64 in [0, 1).

    Returns:
        [rows] int64 tokens.
    """
    blocks = _in_blocks(weights, 0)
    block, level = _bisect(blocks.sum(dim=-1), uniforms[:, None], relative=True)
    inside, _ = _bisect(blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0], level)
    # A row of NaN finds no token. The index stays inside the vocabulary, so that the caller sees the NaN in log q.
    return (block * _BLOCK + inside)[:, 0].clamp_(max=weights.shape[-1] - 1)


def _in_blocks(values: Tensor, fill: float) -> Tensor:
    """[rows, blocks, 256], with the last block filled up."""
    missing = -values.shape[-1] % _BLOCK
    whole = torch.nn.functional.pad(values, (0, missing), value=fill) if missing else values
    return whole.unflatten(-1, (-1, _BLOCK))


def _bisect(weights: Tensor, level: Tensor, relative: bool = False) -> tuple[Tensor, Tensor]:
    """([rows, 1] first place whose cumulative weight exceeds the level, the part of the level that is left there)."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    if weights.device.type != "cpu":
        cumulated = rising(cumulated, weights)
    total = cumulated.narrow(-1, -1, 1)
    # The level can round up to the total; one ulp below the total, the draw still lands on a positive weight.
    level = torch.minimum(level * total if relative else level, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulated, level, right=True).clamp_(max=weights.shape[-1] - 1)
    before = cumulated.gather(1, place) - weights.gather(1, place)  # rounding could put it above the level
    return place, (level - before).clamp_(min=0)


def rising(cumulated: Tensor, weights: Tensor) -> Tensor:
    """Cumulative sums that never fall, and rise only at positive weights.

    Sums that are computed in parallel, each in its own order, have these properties only up to rounding.
    """
    return cumulated.masked_fill(weights == 0, 0).cummax(dim=-1).values
