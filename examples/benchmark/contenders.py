"""What `benchmark.py` compares lm-power with: the released algorithm, lockstep batches, and plain decoding.

Where completions are forced to given lengths (`forced.py`), there is no EOS: pass no EOS ids, and none is drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LogitsProcessor, PreTrainedModel

from lm_power.chains import Move, OneLane, Stream
from lm_power.config import SamplerConfig
from lm_power.decoding import FinishedBy, Segment


class ReleasedChain:
    """One chain of the algorithm as Karan & Du (2025) released it, over `model.generate`, written plainly.

    From the whole prefix at every step; proposals are capped at the current length, there is no cut ratio, and weights
    are cut to the proposal's length. Its law is not p^alpha.

    Args:
        model: decodes.
        config: its alpha, block_size, mcmc_steps and max_new_tokens.
        eos_ids: tokens that end a completion.
        acceptance: probability with which a coin accepts a proposal; None: as the weights decide.
    """

    def __init__(
        self, model: PreTrainedModel, config: SamplerConfig, eos_ids: Sequence[int], acceptance: float | None = None
    ) -> None:
        self.model, self.config, self.eos_ids, self.acceptance = model, config, list(eos_ids), acceptance
        self.tokens_decoded = 0

    def sample(self, prompt: torch.Tensor, longest: int) -> torch.Tensor:
        """A completion of `prompt` ([1, n] token ids) of at most `longest` tokens: blockwise Metropolis-Hastings."""
        config, start = self.config, prompt.shape[1]
        sequence, log_p, log_q = prompt, torch.empty(0), torch.empty(0)
        for end in range(config.block_size, longest + config.block_size, config.block_size):
            room = min(end, longest) - len(log_p)
            sequence, new_p, new_q = self._extend(sequence, room)
            log_p, log_q = torch.cat([log_p, new_p]), torch.cat([log_q, new_q])
            for _ in range(config.mcmc_steps):
                cut = int(torch.randint(len(log_p), ()))
                proposal, new_p, new_q = self._extend(sequence[:, : start + cut], len(log_p) - cut)
                old = slice(cut, cut + len(new_p))
                gain = config.alpha * (new_p.sum() - log_p[old].sum()) - (new_q.sum() - log_q[old].sum())
                if torch.rand(()) < (gain.exp() if self.acceptance is None else self.acceptance):
                    sequence = proposal
                    log_p, log_q = torch.cat([log_p[:cut], new_p]), torch.cat([log_q[:cut], new_q])
            if int(sequence[0, -1]) in self.eos_ids:
                break
        return sequence[:, start:]

    def _extend(self, prefix: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, log_p, log_q = draw(
            self.model, prefix, torch.ones_like(prefix), length, 1 / self.config.beta, self.eos_ids
        )
        end = next((t + 1 for t, token in enumerate(tokens[0].tolist()) if token in self.eos_ids), length)
        self.tokens_decoded += end
        sequence = torch.cat([prefix, tokens[:, :end].to(prefix.device)], dim=1)
        return sequence, log_p[0, :end], log_q[0, :end]


class Lockstep:
    """Batches of chains in step, as the better ports run exact ones.

    Every step is one `model.generate` on the kept prefixes, padded on the left and prefilled anew, which takes as
    long as the batch's longest proposal.

    Args:
        model: decodes.
        chain: lm-power's own, without accelerations.
        tau: temperature of the proposals.
        eos_ids: tokens that end a completion.
    """

    def __init__(self, model: PreTrainedModel, chain: OneLane, tau: float, eos_ids: Sequence[int]) -> None:
        self.model, self.chain, self.tau, self.eos_ids = model, chain, tau, list(eos_ids)
        self.tokens_decoded = 0

    def sample(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """One completion a prompt, all side by side."""
        streams = [Stream.for_request(0, prompt, 0) for prompt in prompts]
        states = [self.chain.start()] * len(prompts)
        while running := [i for i, state in enumerate(states) if not state.done]:
            # A chain that enters its next stage alone waits: extensions and steps are batches of their own.
            behind = min((states[i].stage, states[i].step is not None, states[i].step or 0) for i in running)
            batch = [i for i in running if (states[i].stage, states[i].step is not None, states[i].step or 0) == behind]
            moves = [self.chain.next_move(states[i], streams[i]) for i in batch]
            kept = [[*prompts[i], *states[i].tokens[: m.request.keep]] for i, m in zip(batch, moves, strict=True)]
            for i, move, segment in zip(batch, moves, self._decode(kept, moves), strict=True):
                self.tokens_decoded += len(segment.tokens)
                states[i], _ = self.chain.settle(states[i], move, segment)
        return [state.tokens for state in states]

    def _decode(self, kept: list[list[int]], moves: list[Move]) -> list[Segment]:
        prefix, mask = padded(kept, self.model.device)
        room = [move.request.horizon - move.request.keep for move in moves]
        drawn = draw(self.model, prefix, mask, max(room), self.tau, self.eos_ids)
        segments = []
        for tokens, log_p, log_q, length in zip(*(part.numpy() for part in drawn), room, strict=True):
            ends = np.flatnonzero(np.isin(tokens[:length], self.eos_ids))
            end, why = (int(ends[0]) + 1, FinishedBy.EOS) if len(ends) else (length, FinishedBy.HORIZON)
            segments.append(Segment(tokens[:end], log_p[:end].astype(float), log_q[:end].astype(float), why))
        return segments


class Recorder(LogitsProcessor):
    """Notes log p and log q of the tokens that `generate` draws, one step at a time.

    All logits side by side, which `generate` can return, would be a tensor of rows · length · vocabulary.
    """

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.log_p: list[torch.Tensor] = []
        self.log_q: list[torch.Tensor] = []
        self._logits: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Called with the raw logits of the next token, before `generate` tempers them."""
        self.note(input_ids[:, -1:])
        self._logits = scores.float()
        return scores

    def note(self, tokens: torch.Tensor) -> None:
        """The [rows, 1] tokens that were drawn from the last logits."""
        if self._logits is not None:
            self.log_p.append(self._logits.log_softmax(-1).gather(1, tokens))
            self.log_q.append((self._logits / self.tau).log_softmax(-1).gather(1, tokens))


def draw(
    model: PreTrainedModel, prefix: torch.Tensor, mask: torch.Tensor, length: int, tau: float, eos_ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At most `length` new tokens per row by `model.generate`: [rows, ≤ length] tokens, log p and log q, on the CPU."""
    recorder = Recorder(tau)
    # Without EOS ids of ours `generate` would take the model's own.
    until: dict[str, Any] = {"eos_token_id": eos_ids} if eos_ids else {"min_new_tokens": length}
    sequences = model.generate(
        prefix,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=True,
        temperature=tau,
        top_k=0,
        pad_token_id=PADDING,
        logits_processor=[recorder],
        **until,
    )
    tokens = sequences[:, prefix.shape[1] :]
    recorder.note(tokens[:, -1:])
    return tokens.cpu(), torch.cat(recorder.log_p, dim=1).cpu(), torch.cat(recorder.log_q, dim=1).cpu()


PADDING = 0  # a token that the mask hides


def padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """([rows, longest] token ids padded on the left, their mask)."""
    longest = max(map(len, ids))
    tokens = [[PADDING] * (longest - len(each)) + list(each) for each in ids]
    mask = [[0] * (longest - len(each)) + [1] * len(each) for each in ids]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


@dataclasses.dataclass(frozen=True)
class PlainDecoding:
    """Full batches of completions of one length by `model.generate`, EOS ignored: as much as another contender decoded.

    The prompts, and a first token, are there before the clock runs: a floor should not pay for more prefills than
    what is compared with it, which makes many completions out of one.

    Attributes:
        rows: of a batch.
        batches: how many.
        length: tokens of a completion, the first one not counted.
    """

    rows: int
    batches: int
    length: int

    @classmethod
    def like(cls, tokens: int, context: float, prompts: Sequence[Sequence[int]], rows: int) -> PlainDecoding:
        """About `tokens` tokens that attend to `context` positions on average: a floor for what did the same."""
        rows = min(rows, len(prompts))
        prompt = sum(map(len, prompts)) / len(prompts)
        length = max(1, 2 * (context - prompt))  # t tokens attend to (t − 1)/2 of each other on average
        batches = max(1, round(tokens / (rows * length)))
        return cls(rows, batches, max(1, round(tokens / (rows * batches))))

    @property
    def tokens(self) -> int:
        """Tokens decoded."""
        return self.rows * self.batches * self.length

    @property
    def steps(self) -> int:
        """Forward passes, each over a batch."""
        return self.batches * self.length

    def attended(self, prompts: Sequence[Sequence[int]]) -> int:
        """Positions that are attended to, summed over rows and steps; padding is not counted."""
        each = self.length * (self.length + 1) // 2
        return sum(self.length * len(prompt) + each for batch in self.split(prompts) for prompt in batch)

    def split(self, prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
        """The prompts of each batch, from the first one again where they run out."""
        every = [prompts[i % len(prompts)] for i in range(self.rows * self.batches)]
        return [every[start : start + self.rows] for start in range(0, len(every), self.rows)]

    def run(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        name: str,
        paused: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        """Decode; within `paused()` the clock stands still."""

        def generate(prefix: torch.Tensor, mask: torch.Tensor, length: int, **more: Any) -> Any:
            return model.generate(
                prefix,
                attention_mask=mask,
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=True,
                top_k=0,
                pad_token_id=PADDING,
                **more,
            )

        for batch in tqdm(self.split(prompts), desc=name):
            with paused():
                prefix, mask = padded(batch, model.device)
                begun = generate(prefix, mask, 1, return_dict_in_generate=True)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            generate(begun.sequences, mask, self.length, past_key_values=begun.past_key_values)
