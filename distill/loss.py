"""The loss: cross-entropy of completion tokens, computed in parts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm_power.distill.windows import IGNORED

POSITIONS = 256
"""Number of positions whose logits are in memory together; 156 MB in float32 for 152k tokens."""


def compute_loss_by_parts(model: PreTrainedModel, positions: int = POSITIONS) -> None:
    """Make a causal LM's `forward` compute `−Σ log q(x_t | x_<t)` over `targets`, with q ∝ p^beta token by token.

    The output's `loss` is that sum, in nats, a float32 scalar. There are no `logits`, since those of a long batch would
    be by far the largest tensor of a training step. What follows the model's decoder, namely the output layer and
    whatever the model does to logits, runs on a part of the positions at a time.

    Args:
        model: is changed. Which of its weights are trained must already be decided. In addition to `targets`, int64
            [rows, tokens] like the input and `IGNORED` where nothing is learnt, `forward` takes `beta`, the inverse
            temperature, 1 by default. Without `targets`, it works as before.
        positions: number of positions in a part.
    """
    plain = model.forward
    by_part = _recomputed if _is_trained_after_decoder(model) or is_deepspeed_zero3_enabled() else _differentiated

    @functools.wraps(plain)
    def forward(*inputs: Any, targets: torch.Tensor | None = None, beta: float = 1.0, **options: Any) -> Any:
        if targets is None:
            return plain(*inputs, **options)
        output = _decoded(model, functools.partial(plain, *inputs, **options))

        def part_loss(hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            answer = type(output)(last_hidden_state=hidden[None])
            with _answering(model, lambda *_, **__: answer):
                logits = plain(input_ids=targets[:1, :1], use_cache=False).logits[0].float()
            return functional.cross_entropy(logits if beta == 1 else beta * logits, tokens, reduction="sum")

        tokens = targets[:, 1:]
        learnt = tokens != IGNORED
        parts = zip(
            output.last_hidden_state[:, :-1][learnt].split(positions), tokens[learnt].split(positions), strict=True
        )
        losses = [by_part(part_loss, *part) if torch.is_grad_enabled() else part_loss(*part) for part in parts]
        return CausalLMOutputWithPast(loss=torch.stack(losses).sum())

    model.forward = forward


_PartLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _recomputed(part_loss: _PartLoss, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A part's loss, which is computed again in the backward pass, for an output layer that is trained too."""
    loss: torch.Tensor = checkpoint(part_loss, hidden, tokens, use_reentrant=False)
    return loss


def _differentiated(part_loss: _PartLoss, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A part's loss, differentiated with respect to `hidden` at once, so that nothing is computed twice."""
    loss: torch.Tensor = _Differentiated.apply(hidden, tokens, part_loss)  # type: ignore[no-untyped-call]
    return loss


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, tokens: torch.Tensor, part_loss: _PartLoss) -> torch.Tensor:
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            loss = part_loss(hidden, tokens)
        ctx.save_for_backward(*torch.autograd.grad(loss, hidden))
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return gradient * of_hidden, None, None


def _is_trained_after_decoder(model: PreTrainedModel) -> bool:
    before = set(model.get_decoder().modules())
    after = (module for module in model.modules() if module not in before)
    return any(weight.requires_grad for module in after for weight in module.parameters(recurse=False))


def _decoded(model: PreTrainedModel, run: Callable[[], Any]) -> Any:
    """What the decoder passes to the layers after it when the model runs; these layers then get no positions."""
    decode = model.get_decoder().forward
    outputs = []

    def forward(*inputs: Any, **options: Any) -> Any:
        output = decode(*inputs, **options)
        outputs.append(output)
        return type(output)(last_hidden_state=output.last_hidden_state[:, :0])

    with _answering(model, forward):
        run()
    (output,) = outputs
    return output


@contextlib.contextmanager
def _answering(model: PreTrainedModel, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` in place of the decoder."""
    decoder = model.get_decoder()
    own = vars(decoder).get("forward")
    decoder.forward = forward
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own


def learnt_tokens(labels: torch.Tensor) -> int:
    """The number of tokens over which the loss is summed."""
    return int((labels[:, 1:] != IGNORED).sum())
