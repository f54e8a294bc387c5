"""The loss that is logged and learnt: the mean −log p of completion tokens, by hand and by the trainer."""

from __future__ import annotations

import math

import pytest
import torch
from distill_runs import losses, run
from transformers import AutoModelForCausalLM

from lm_power.distill.loss import learnt_tokens, negative_log_likelihood
from lm_power.distill.windows import IGNORED, collate
from lm_power.store import read_store


@torch.no_grad()
def by_hand(folder: str, records: list[dict], max_length: int, dtype: torch.dtype = torch.float64) -> float:
    """Mean over all completion tokens within the window, one softmax at a time in float64, of logits in `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    nats = []
    for record in records:
        ids = [*record["prompt_ids"], *record["token_ids"]][:max_length]
        logits = model(torch.tensor([ids])).logits[0].double()
        for place in range(len(record["prompt_ids"]), len(ids)):
            nats.append(math.log(logits[place - 1].exp().sum().item()) - logits[place - 1, ids[place]].item())
    return math.fsum(nats) / len(nats)


@pytest.mark.parametrize(
    ("max_length", "precision", "dtype", "tolerance"),
    [(1024, "fp32", torch.float64, 1e-6), (8, "fp32", torch.float64, 1e-6), (1024, "bf16", torch.bfloat16, 1e-3)],
)
def test_loss_is_the_completions_cross_entropy(
    max_length: int, precision: str, dtype: torch.dtype, tolerance: float, tiny: str, store: str, tmp_path
) -> None:
    """Whole or cut at 8 tokens: the first step, one global batch of all data, before anything is learnt.

    The learning rate is 0 in the first step of a warm-up, and the validation before it has the same loss.
    """
    records = list(read_store(store))
    run(
        tiny, store, tmp_path / "out", max_length=max_length, gradient_accumulation=len(records), epochs=1,
        batch_size=1 if max_length == 1024 else 2, warmup_ratio=0.5, precision=precision,
    )  # fmt: skip
    first, *_ = losses(tmp_path / "out")
    assert first == pytest.approx(by_hand(tiny, records, max_length, dtype), abs=tolerance)


def test_validation_loss_is_a_mean_over_tokens(tiny: str, store: str, tmp_path) -> None:
    """Not over completions: transformers' own loop averages means of batches."""
    run(tiny, store, tmp_path / "out", validation_share=0.4, epochs=1, batch_size=3)
    first = losses(tmp_path / "out")[0]
    from transformers import AutoTokenizer

    from lm_power.distill.options import DistillConfig  # the same split
    from lm_power.distill.teacher import read_teacher
    from lm_power.distill.windows import training_data

    config = DistillConfig(model=tiny, data=(store,), output="unused")
    teacher = read_teacher(config.data, AutoTokenizer.from_pretrained(tiny), eos_ids=[0])
    held_out = training_data(teacher.samples, 1024, 0.4, 0).validation
    records = [
        {"prompt_ids": w.input_ids[: w.prompt_length], "token_ids": w.input_ids[w.prompt_length :]} for w in held_out
    ]
    assert first == pytest.approx(by_hand(tiny, records, 1024), abs=1e-6)


def test_prompt_and_padding_contribute_nothing() -> None:
    """Neither to the sum nor to any gradient, whatever is predicted there."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 11, generator=generator, requires_grad=True)
    labels = torch.tensor([[IGNORED, IGNORED, 4, 5, 6, IGNORED], [IGNORED, 3, 2, IGNORED, IGNORED, IGNORED]])
    loss = negative_log_likelihood(logits, labels)
    loss.backward()
    rows, places = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    expected = -torch.log_softmax(logits.double(), -1)[rows, places, labels[rows, places + 1]].sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert learnt_tokens(labels) == 5
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, True, False, False], [True, True, False, False, False, False]]


def test_an_empty_batch_has_loss_zero_and_gradients() -> None:
    """A process without windows must still take part in the backward pass, or the others wait for ever."""
    labels = collate([])["labels"]
    logits = torch.randn(1, labels.shape[1], 11, requires_grad=True)
    loss = negative_log_likelihood(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
