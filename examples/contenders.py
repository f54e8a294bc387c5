"""What `benchmark.py` compares lm-power with: the released algorithm, lockstep batches, and plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from lm_power.chains import EMPTY_STATE, Move, Stream, make_chain
from lm_power.config import SamplerConfig
from lm_power.records import FinishedBy, Segment


class ReleasedChain:
    """One chain of the algorithm as Karan & Du (2025) released it, over `model.generate`, written plainly.

    From the whole prefix at every step; proposals are capped at the current length, there is no cut ratio, and weights
    are cut to the proposal's length. Its law is not p^alpha.
    """

    def __init__(self, model: PreTrainedModel, config: SamplerConfig, eos_ids: Sequence[int]) -> None:
        self.model, self.config, self.eos_ids = model, config, list(eos_ids)
        self.tokens_decoded = 0

    def sample(self, prompt: torch.Tensor) -> torch.Tensor:
        """A completion of `prompt` ([1, n] token ids): blockwise Metropolis-Hastings."""
        config, start = self.config, prompt.shape[1]
        sequence, log_p, log_q = prompt, torch.empty(0), torch.empty(0)
        for end in range(config.block_size, config.max_new_tokens + config.block_size, config.block_size):
            room = min(end, config.max_new_tokens) - len(log_p)
            sequence, new_p, new_q = self._extend(sequence, room)
            log_p, log_q = torch.cat([log_p, new_p]), torch.cat([log_q, new_q])
            for _ in range(config.mcmc_steps):
                cut = int(torch.randint(len(log_p), ()))
                proposal, new_p, new_q = self._extend(sequence[:, : start + cut], len(log_p) - cut)
                old = slice(cut, cut + len(new_p))
                gain = config.alpha * (new_p.sum() - log_p[old].sum()) - (new_q.sum() - log_q[old].sum())
                if torch.rand(()).log() < gain:
                    sequence = proposal
                    log_p, log_q = torch.cat([log_p[:cut], new_p]), torch.cat([log_q[:cut], new_q])
            if int(sequence[0, -1]) in self.eos_ids:
                break
        return sequence[:, start:]

    def _extend(self, prefix: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, log_p, log_q = draw(self.model, prefix, torch.ones_like(prefix), length, self.config.tau, self.eos_ids)
        end = next((t + 1 for t, token in enumerate(tokens[0].tolist()) if token in self.eos_ids), length)
        self.tokens_decoded += end
        sequence = torch.cat([prefix, tokens[:, :end].to(prefix.device)], dim=1)
        return sequence, log_p[0, :end], log_q[0, :end]


class Lockstep:
    """Batches of exact chains in step, as the better ports run them.

    Every step is one `model.generate` on the kept prefixes, padded on the left and prefilled anew, which takes as
    long as the batch's longest proposal. The chains are lm-power's own, without accelerations.
    """

    def __init__(self, model: PreTrainedModel, config: SamplerConfig, eos_ids: Sequence[int]) -> None:
        self.model, self.eos_ids = model, list(eos_ids)
        self.tau = config.tau
        self.chain = make_chain(config.replace(coupled_resume=False, early_rejection=False))
        self.tokens_decoded = 0

    def sample(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """One completion a prompt, all side by side."""
        streams = [Stream.for_request(0, prompt, 0) for prompt in prompts]
        states = [EMPTY_STATE] * len(prompts)
        while running := [i for i, state in enumerate(states) if not state.done]:
            # A chain that enters its next stage alone waits: extensions and steps are batches of their own.
            behind = min((states[i].stage, states[i].step is not None, states[i].step or 0) for i in running)
            batch = [i for i in running if (states[i].stage, states[i].step is not None, states[i].step or 0) == behind]
            moves = [self.chain.propose(states[i], streams[i]) for i in batch]
            kept = [[*prompts[i], *states[i].tokens[: m.request.keep]] for i, m in zip(batch, moves, strict=True)]
            for i, move, segment in zip(batch, moves, self._decode(kept, moves), strict=True):
                self.tokens_decoded += len(segment.tokens)
                states[i], _ = self.chain.advance(states[i], move, segment)
        return [state.tokens for state in states]

    def _decode(self, kept: list[list[int]], moves: list[Move]) -> list[Segment]:
        longest = max(map(len, kept))
        padded = [[self.eos_ids[0]] * (longest - len(ids)) + ids for ids in kept]
        prefix = torch.tensor(padded, device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in kept], device=self.model.device)
        room = [move.request.horizon - move.request.keep for move in moves]
        drawn = draw(self.model, prefix, mask, max(room), self.tau, self.eos_ids)
        segments = []
        for tokens, log_p, log_q, length in zip(*(part.numpy() for part in drawn), room, strict=True):
            ends = np.flatnonzero(np.isin(tokens[:length], self.eos_ids))
            end, why = (int(ends[0]) + 1, FinishedBy.EOS) if len(ends) else (length, FinishedBy.HORIZON)
            segments.append(Segment(tokens[:end], log_p[:end].astype(float), log_q[:end].astype(float), why))
        return segments


def draw(
    model: PreTrainedModel, prefix: torch.Tensor, mask: torch.Tensor, length: int, tau: float, eos_ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At most `length` new tokens a row by `model.generate`: [rows, ≤ length] tokens, log p and log q, on the CPU."""
    out = model.generate(
        prefix,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=True,
        temperature=tau,
        top_k=0,
        eos_token_id=eos_ids,
        pad_token_id=eos_ids[0],
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    tokens = out.sequences[:, prefix.shape[1] :]
    # Token by token: all logits side by side would be a tensor of rows · length · vocabulary.
    log_p, log_q = (
        torch.stack(
            [logits.float().log_softmax(-1).gather(1, tokens[:, t : t + 1])[:, 0] for t, logits in enumerate(every)],
            dim=1,
        ).cpu()
        for every in (out.logits, out.scores)
    )
    return tokens.cpu(), log_p, log_q


def plain_decoding(model: PreTrainedModel, prompts: list[list[int]], tokens: int, rows: int, eos_ids: list[int]) -> int:
    """Decode about `tokens` tokens in batches of `rows` by one `model.generate` each, EOS ignored; how many."""
    batches = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    each = max(1, round(tokens / len(prompts)))
    for batch in tqdm(batches, desc="E plain"):
        longest = max(map(len, batch))
        padded = [[eos_ids[0]] * (longest - len(ids)) + ids for ids in batch]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch]
        model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            min_new_tokens=each,
            max_new_tokens=each,
            do_sample=True,
            top_k=0,
            eos_token_id=eos_ids,
            pad_token_id=eos_ids[0],
        )
    return each * len(prompts)
