"""What the student learns from: windows of prompt and completion tokens, and their batches."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from lm_power.config import OptionError
from lm_power.distill.teacher import Sample

IGNORED = -100
"""Label of a token that is not learnt, as in torch's cross-entropy."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens to train on.

    Attributes:
        input_ids: a prompt, and the beginning or all of its completion.
        prompt_length: number of tokens of the prompt, ≥ 1, which are read but not learnt.
    """

    input_ids: tuple[int, ...]
    prompt_length: int

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def learnt(self) -> int:
        """Number of tokens of the completion."""
        return len(self) - self.prompt_length


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Windows to learn from, and what became of the samples.

    Attributes:
        train: windows to learn from.
        validation: windows of other prompts, on which only the loss is computed.
        truncated: number of samples whose completion was cut at the end of the window.
        crowded_out: number of samples that were dropped because the prompt alone fills the window.
        samples: number of samples.
    """

    train: tuple[Window, ...]
    validation: tuple[Window, ...]
    truncated: int
    crowded_out: int
    samples: int

    def digest(self) -> str:
        """16 hex digits over every window, in order."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (self.train, self.validation):
            digest.update(f"{len(part)};".encode())
            for window in part:
                digest.update(f"{window.prompt_length}:{window.input_ids};".encode())
        return digest.hexdigest()


def window_of(sample: Sample, max_length: int) -> Window | None:
    """The first `max_length` tokens of prompt and completion; None if no completion token is among them.

    A completion that is cut loses its end and with it the EOS, so that the student does not learn to stop there.
    """
    if not sample.prompt_ids or not sample.token_ids or len(sample.prompt_ids) >= max_length:
        return None
    ids = (*sample.prompt_ids, *sample.token_ids)[:max_length]
    return Window(ids, len(sample.prompt_ids))


def training_data(samples: Sequence[Sample], max_length: int, validation_share: float, seed: int) -> TrainingData:
    """Windows of the samples; a share of the *prompts*, drawn by `seed`, is held out with all their completions.

    Raises:
        OptionError: nothing is left to learn from.
    """
    windows = [(sample, window_of(sample, max_length)) for sample in samples]
    kept = [(sample.prompt_ids, window) for sample, window in windows if window is not None]
    if not kept:
        shortest = min((len(sample.prompt_ids) for sample in samples), default=0)
        raise OptionError(
            f"max_length={max_length}: leaves no completion to learn from: the shortest of {len(samples)} prompts "
            f"has {shortest} tokens; raise max_length"
        )
    held_out = _held_out([prompt for prompt, _ in kept], validation_share, seed)
    return TrainingData(
        train=tuple(window for prompt, window in kept if prompt not in held_out),
        validation=tuple(window for prompt, window in kept if prompt in held_out),
        truncated=sum(
            window is not None and len(window) < len(sample.prompt_ids) + len(sample.token_ids)
            for sample, window in windows
        ),
        crowded_out=len(windows) - len(kept),
        samples=len(samples),
    )


def _held_out(prompts: Sequence[tuple[int, ...]], share: float, seed: int) -> set[tuple[int, ...]]:
    distinct = sorted(set(prompts))
    if not share:
        return set()
    if len(distinct) < 2:
        raise OptionError(f"validation_share={share:g}: needs two prompts at least, the data have {len(distinct)}")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    return set(random.Random(seed).sample(distinct, count))


def collate(windows: Sequence[Window]) -> dict[str, torch.Tensor]:
    """Windows side by side, padded on the right: input_ids and labels, int64 [rows, tokens].

    Labels are the token ids, and `IGNORED` at prompt and padding. There is no attention mask, because no token of a
    causal model sees the padding on its right. With a mask, a padding token whose sliding window holds nothing but
    padding would see nothing at all, and every gradient would be NaN. An empty list of windows gives one row from which
    nothing is learnt; a process computes it while others work on the last windows of an epoch.
    """
    width = max((len(window) for window in windows), default=2)
    rows = max(len(windows), 1)
    batch = {
        "input_ids": torch.zeros(rows, width, dtype=torch.long),
        "labels": torch.full((rows, width), IGNORED),
    }
    for row, window in enumerate(windows):
        batch["input_ids"][row, : len(window)] = torch.tensor(window.input_ids)
        batch["labels"][row, window.prompt_length : len(window)] = batch["input_ids"][
            row, window.prompt_length : len(window)
        ]
    return batch


class Batches(Sampler[list[int]]):
    """The batches of one process, as places of windows in the data: its share of one global batch after another.

    A global batch has `batch_size · accumulation · processes` windows; one optimiser step learns from it. The order of
    an epoch depends on (seed, epoch) alone, so that any number of processes with global batches of the same size take
    the same steps. Within a global batch windows are sorted by length, which does not change its loss and saves
    padding. If the last global batch has too few windows for every process, some batches are empty.

    Args:
        lengths: lengths of the windows, tokens.
        batch_size: windows that a process computes at once.
        accumulation: batches of a process in one global batch.
        processes: number of processes.
        rank: this process's number, from 0.
        order: is called at the beginning of each epoch, and returns the places of all windows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        processes: int,
        rank: int,
        order: Callable[[], Sequence[int]],
    ) -> None:
        self.lengths, self.batch_size, self.accumulation = lengths, batch_size, accumulation
        self.processes, self.rank, self.order = processes, rank, order

    def __len__(self) -> int:
        """Batches of this process in an epoch; the same for all processes."""
        return math.ceil(len(self.lengths) / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of an epoch."""
        order = self.order()
        at_once = self.batch_size * self.processes
        size = at_once * self.accumulation
        for start in range(0, len(order), size):
            chunk = sorted(order[start : start + size], key=lambda place: (-self.lengths[place], place))
            for first in range(0, len(chunk), at_once):
                mine = first + self.rank * self.batch_size
                yield list(chunk[mine : mine + self.batch_size])


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """0 … count−1 in an order that depends on (seed, epoch) alone."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def padded_tokens(lengths: Sequence[int], batch_size: int, accumulation: int, processes: int, seed: int) -> int:
    """Tokens that all processes compute in the first epoch, padding included."""
    order = shuffled(len(lengths), seed, 0)
    ranks = (Batches(lengths, batch_size, accumulation, processes, rank, lambda: order) for rank in range(processes))
    batches = (batch for rank in ranks for batch in rank if batch)
    return sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
