"""What is learnt, and in what order."""

from __future__ import annotations

import itertools

import pytest
import torch

from lm_power.config import OptionError
from lm_power.distill.teacher import Sample
from lm_power.distill.windows import (
    IGNORED,
    Batches,
    Window,
    collate,
    padded_tokens,
    shuffled,
    training_data,
    window_of,
)

EOS = 0


def sample(prompt: int, completion: int, first: int = 2, repeat: int = 0) -> Sample:
    """A sample of so many tokens, whose completion ends by EOS."""
    ids = tuple(range(first, first + prompt))
    return Sample("", ids, (*range(20, 19 + completion), EOS), "eos", -1.0, repeat, "file:1")


@pytest.mark.parametrize(
    ("max_length", "kept"),
    [(100, (2, 3, 4, 20, 21, 22, EOS)), (7, (2, 3, 4, 20, 21, 22, EOS)), (6, (2, 3, 4, 20, 21, 22))],
)
def test_a_cut_completion_loses_its_eos(max_length: int, kept: tuple[int, ...]) -> None:
    """Learnt at the cut, EOS would teach the student to stop in the middle of a sentence."""
    window = window_of(sample(3, 4), max_length)
    assert window is not None
    assert window.input_ids == kept
    assert window.prompt_length == 3


def test_prompts_that_fill_the_window_are_left_out_and_counted() -> None:
    data = training_data([sample(3, 4), sample(6, 1), sample(7, 1)], max_length=6, validation_share=0, seed=0)
    assert (len(data.train), data.truncated, data.crowded_out, data.samples) == (1, 1, 2, 3)


def test_nothing_left_to_learn_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"max_length=5: .* has 5 tokens"):
        training_data([sample(5, 4), sample(9, 4)], max_length=5, validation_share=0, seed=0)


def test_prompts_are_held_out_with_all_their_completions() -> None:
    """Else a prompt is learnt by one completion and judged by the next."""
    samples = [sample(3, 4 + repeat, first, repeat) for first in range(2, 12) for repeat in range(3)]
    data = training_data(samples, max_length=50, validation_share=0.2, seed=0)
    prompts = [{window.input_ids[:3] for window in part} for part in (data.train, data.validation)]
    assert (len(prompts[0]), len(prompts[1])) == (8, 2)
    assert not prompts[0] & prompts[1]
    assert len(data.validation) == 6
    assert data.digest() == training_data(samples, max_length=50, validation_share=0.2, seed=0).digest()
    assert data.digest() != training_data(samples, max_length=50, validation_share=0.2, seed=1).digest()


def test_holding_out_needs_two_prompts() -> None:
    with pytest.raises(OptionError, match="validation_share"):
        training_data([sample(3, 4)], max_length=50, validation_share=0.5, seed=0)


def test_collate_labels_completions_only() -> None:
    batch = collate([Window((5, 6, 7, 8), 2), Window((5, 6, 7), 1)])
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED, 6, 7, IGNORED]]
    assert set(batch) == {"input_ids", "labels"}
    nothing = collate([])
    assert (nothing["labels"] == IGNORED).all()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("count", [1, 12, 13, 23])
def test_any_number_of_processes_takes_the_same_steps(processes: int, batch_size: int, count: int) -> None:
    """Global batches of 12: each holds the same windows however they are shared out, and each window comes once.

    accelerate's own loaders would repeat windows at the end of an epoch, as many as fill the last batches.
    """
    accumulation = 12 // (processes * batch_size)
    ranks = [
        Batches(
            [1 + i % 5 for i in range(count)], batch_size, accumulation, processes, rank, lambda: shuffled(count, 0, 3)
        )
        for rank in range(processes)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(rank) for rank in batches} == {len(rank) for rank in ranks} == {-(-count // (processes * batch_size))}
    assert all(len(batch) <= batch_size for rank in batches for batch in rank)
    steps = [
        sorted(itertools.chain(*(batch for rank in batches for batch in rank[start : start + accumulation])))
        for start in range(0, len(ranks[0]), accumulation)
    ]
    order = shuffled(count, 0, 3)
    assert steps == [sorted(order[start : start + 12]) for start in range(0, count, 12)]


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(shuffled(50, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 10), (10, 0)]}
    assert len(orders) == 6
    assert shuffled(50, 3, 4) == shuffled(50, 3, 4)
    assert torch.tensor(shuffled(50, 0, 0)).unique().numel() == 50


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_padded_tokens_are_those_of_the_batches(processes: int, batch_size: int) -> None:
    """Guards the figure by which a user chooses batch_size: batches of one have no padding."""
    windows = [Window(tuple(range(2 + 3 * i)), 1) for i in range(13)]
    lengths, accumulation = [len(window) for window in windows], 12 // (processes * batch_size)
    ranks = [
        Batches(lengths, batch_size, accumulation, processes, rank, lambda: shuffled(13, 5, 0))
        for rank in range(processes)
    ]
    batches = [batch for rank in ranks for batch in rank if batch]
    computed = [collate([windows[place] for place in batch])["input_ids"].numel() for batch in batches]
    found = padded_tokens(lengths, batch_size, accumulation, processes, seed=5)
    assert found == sum(computed) and (found == sum(lengths)) == (batch_size == 1)
