"""Two models over the same rows: one defines the target, and the other proposes."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from lm_power.engine.backend import HFBackend, NextLogits, UnsupportedModelError
from lm_power.engine.kv_cache import CacheLayers, RowCache


class PairedBackend:
    """Feeds every token to two models: p and its measures come from the target model, q from the proposer.

    One cache holds the layers of both, so that a row of both models is rewound, restored, copied or moved in one
    operation. A decode step takes two forward passes, one after the other, and a row takes the memory of two.

    Args:
        target: the model p of the target p^alpha.
        proposer: the model that proposals are drawn from, with the same vocabulary and input device. It may share its
            weights with the target (`lm_power.adapter.twin`).

    Attributes:
        models: the target and the proposer.
        shapes: what the layers of both cache, the target's first.

    Raises:
        UnsupportedModelError: the two do not have the same tokens, or take them on different devices.
    """

    foreign = True

    def __init__(self, target: HFBackend, proposer: HFBackend) -> None:
        for what, mine, theirs in (
            ("vocabulary", target.vocabulary, proposer.vocabulary),
            ("input device", target.input_device, proposer.input_device),
        ):
            if mine != theirs:
                raise UnsupportedModelError(
                    f"the {what} of the model that proposes is {theirs}, that of the target {mine}; proposals must "
                    "come from a model of the same tokens, such as another adapter of the same base"
                )
        self.target, self.proposer = target, proposer
        self.models = (target, proposer)
        self.shapes = [*target.shapes, *proposer.shapes]
        self.vocabulary, self.input_device = target.vocabulary, target.input_device
        self.max_positions = min(filter(None, (model.max_positions for model in self.models)), default=None)
        self.reads_spans = all(model.reads_spans for model in self.models)
        self.replays = all(model.replays for model in self.models)
        self.compiles_draw = True
        self.cache_dtype = target.cache_dtype

    @torch.inference_mode()
    def forward(
        self, cache: RowCache, first: int, tokens: Tensor, positions: Tensor, slots: Tensor, length: int
    ) -> NextLogits:
        """As `HFBackend.forward`, by both models."""
        cache.look_at(first, positions, slots, length)
        mine, theirs = self._parts(cache)
        return NextLogits(self.target.logits(mine, tokens, positions), self.proposer.logits(theirs, tokens, positions))

    def decode(self, cache: RowCache, tokens: Tensor, positions: Tensor, slots: Tensor, length: int) -> NextLogits:
        """`forward` for one token in each of the first rows."""
        return self.forward(cache, 0, tokens, positions, slots, length)

    def _parts(self, cache: RowCache) -> tuple[CacheLayers, CacheLayers]:
        split = len(self.target.shapes)
        return cache.part(0, split), cache.part(split, len(self.shapes))


AnyBackend: TypeAlias = HFBackend | PairedBackend
