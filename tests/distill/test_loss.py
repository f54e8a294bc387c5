"""The loss that is logged and learnt: the mean −log p of completion tokens, by hand and by the trainer."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from distill_runs import losses, run
from models import CONFIGS, NAMED_OTHERWISE, VOCABULARY, WINDOW, make_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lm_power.distill.loss import compute_loss_by_parts, learnt_tokens
from lm_power.distill.windows import IGNORED, Window, collate
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


ARCHITECTURES = {
    **{name: functools.partial(make_model, name) for name in CONFIGS},
    **{
        name: functools.partial(AutoModelForCausalLM.from_config, config)
        for name, (config, _) in NAMED_OTHERWISE.items()
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_parts_have_the_loss_and_the_gradients_of_the_whole(name: str, head: str) -> None:
    """Of every architecture, some of which scale or cap their logits; each part ends in the midst of a completion.

    Prompt and padding contribute nothing: neither to the sum nor to any gradient, whatever is predicted there.
    """
    model = ARCHITECTURES[name]().eval()
    after = model.get_output_embeddings()
    after.weight = torch.nn.Parameter(after.weight.detach().clone(), requires_grad=head == "trained")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ids = torch.randint(2, 60, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = labels[0, 16:] = IGNORED
    labels[2] = IGNORED

    logits = model(input_ids=ids).logits
    rows, places = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    expected = -torch.log_softmax(2 * logits.double(), -1)[rows, places, ids[rows, places + 1]].sum()
    gradients = torch.autograd.grad(expected, weights, allow_unused=True)
    compute_loss_by_parts(model, positions=7)
    output = model(input_ids=ids, targets=labels, beta=2.0)
    assert output.logits is None and learnt_tokens(labels) == len(rows) == 26
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, whole in zip(torch.autograd.grad(output.loss, weights, allow_unused=True), gradients, strict=True):
        assert (ours is None) == (whole is None)
        if whole is not None:
            largest = whole.abs().max().item()
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6 * largest)
    with torch.no_grad():
        loss = model(input_ids=ids, targets=labels, beta=2.0).loss
        torch.testing.assert_close(model(input_ids=ids).logits, logits)
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_no_logits_of_a_whole_batch_are_kept(trained: bool) -> None:
    """Neither in the forward nor in the backward pass is there a tensor of more than a part of the positions."""
    model = make_model("qwen2")
    model.get_output_embeddings().requires_grad_(trained)
    compute_loss_by_parts(model, positions=40)
    ids = torch.randint(2, 60, (4, 33))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            result = function(*arguments, **(options or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCABULARY,):
                largest = max(largest, result.numel() // VOCABULARY)
            return result

    with Watch():
        model(input_ids=ids, targets=ids).loss.backward()
    assert largest == 40


def test_a_short_completion_beside_a_long_one_leaves_gradients_finite() -> None:
    """Guards sliding attention: where the padding was masked, its last tokens saw nothing, and gradients were NaN."""
    model = make_model("gemma2")
    compute_loss_by_parts(model)
    batch = collate([Window(tuple(range(2, 2 + length)), 2) for length in (WINDOW + 20, 5)])
    model(input_ids=batch["input_ids"], targets=batch["labels"]).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("trained", [True, False])
def test_an_empty_batch_has_loss_zero_and_gradients(trained: bool) -> None:
    """A process without windows must still take part in the backward pass, or the others wait for ever."""
    model = make_model("llama")
    model.get_output_embeddings().requires_grad_(trained)
    compute_loss_by_parts(model)
    batch = collate([])
    loss = model(input_ids=batch["input_ids"], targets=batch["labels"]).loss
    loss.backward()
    assert loss.item() == 0
    assert all(
        weight.grad is not None and not weight.grad.any() for weight in model.parameters() if weight.requires_grad
    )
