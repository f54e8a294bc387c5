"""A run that learns by heart says so, and one that learns its teacher's distribution does not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from distill_runs import losses, run, sample_store
from transformers import AutoModelForCausalLM

from lm_power.distill.rote import Losses, unseen_loss, warning
from lm_power.store import read_store

MANY = 20  # prompts that differ; each with many completions
HONEST = {
    "select": "all", "deduplicate": False, "epochs": 3, "learning_rate": 0.003, "batch_size": 8, "lora_r": 8,
}  # fmt: skip
BY_HEART = {"epochs": 60, "learning_rate": 0.003, "lora_r": 32}


@pytest.fixture(scope="module")
def few(tiny: str, tmp_path_factory) -> str:
    """A store of 13 completions."""
    return sample_store(tmp_path_factory.mktemp("few"), tiny, temperature=0.4)


@pytest.fixture(scope="module")
def plenty(tiny: str, tmp_path_factory) -> str:
    """A store of 800 completions, too many for the tiny adapter to know them by heart."""
    return sample_store(tmp_path_factory.mktemp("plenty"), tiny, prompts=MANY, repeats=40, temperature=0.4)


@pytest.mark.parametrize("share", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_learning_by_heart_is_warned_of(share: float, tiny: str, few: str, tmp_path, capsys) -> None:
    """Thirteen completions, sixty epochs; with held-out prompts and without."""
    out = tmp_path / "out"
    results = run(tiny, few, out, validation_share=share, **BY_HEART)["results"]
    told = "the validation loss has risen" if share else "lies far below the teacher's own"
    assert told in results["warning"] and "by heart" in results["warning"]
    assert f"Warning: {results['warning']}." in capsys.readouterr().out
    assert results["warning"] in (out / "README.md").read_text()
    assert json.loads((out / "distill.json").read_text())["results"]["warning"] == results["warning"]


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_honest_learning_is_not(share: float, tiny: str, plenty: str, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    results = run(tiny, plenty, out, validation_share=share, **HONEST)["results"]
    assert results["known_data"]["student"] < losses(out)[0] - 0.1, "nothing was learnt"
    assert results["warning"] is None
    assert "Warning" not in capsys.readouterr().out
    told = "| no sign of it |" if share else "no sign of it in the training loss; nothing was held out"
    assert told in (out / "README.md").read_text()


def test_the_kept_weights_are_judged(tiny: str, few: str, tmp_path) -> None:
    """Early stopping goes back to the best validation, so that what was learnt by heart after it is gone."""
    options = {"validation_share": 0.3, "epochs": 30, "learning_rate": 0.003, "full": True, "lora_r": 32}
    assert "has risen" in run(tiny, few, tmp_path / "all", **options)["results"]["warning"]
    results = run(tiny, few, tmp_path / "best", early_stopping=1, **options)["results"]
    assert results["steps"] > results["kept_step"] > 0
    assert results["warning"] is None


@torch.no_grad()
def test_the_teacher_s_own_loss(tiny: str, store: str, finished) -> None:
    """−log q at the temperature of the store, by hand; the student's on the same tokens, and not that of dropout."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    nats = []
    for record in read_store(store):
        ids = [*record["prompt_ids"], *record["token_ids"]]
        log_q = torch.log_softmax(model(torch.tensor([ids])).logits[0] / 0.7, -1)
        nats += [-log_q[place - 1, ids[place]].item() for place in range(len(record["prompt_ids"]), len(ids))]
    record = json.loads((finished / "distill.json").read_text())
    assert record["teacher"]["loss"] == pytest.approx(math.fsum(nats) / len(nats), abs=1e-6)
    assert record["results"]["known_data"]["teacher"] == record["teacher"]["loss"]
    assert record["results"]["known_data"]["student"] < losses(finished)[-1]


def test_another_model_s_samples_have_no_teacher_s_loss(tiny: str, tmp_path) -> None:
    """What the student would have said of them is no measure."""
    from harness.tiny_lm import save_model

    other = save_model(tmp_path / "other", seed=1)
    record = run(tiny, sample_store(tmp_path / "store", other), tmp_path / "out")
    assert record["teacher"]["loss"] is None and record["results"]["warning"] is None


def test_when_data_were_new() -> None:
    """The second half of the first epoch; nothing after one epoch, in which nothing is met twice."""
    log = [{"epoch": epoch, "loss": loss} for epoch, loss in ((0.25, 9.0), (0.75, 2.0), (1.0, 1.0), (1.5, 0.1))]
    assert unseen_loss([*log, {"epoch": 1.0, "eval_loss": 7.0}], 2.0) == 1.5
    assert unseen_loss(log[:3], 1.0) is None


def test_what_counts_as_learning_by_heart() -> None:
    """Power sampling's π may lie far below q: the pocket model's loss goes from 0.047 to 0.017, on new prompts too."""
    assert warning(Losses(0.047, 0.020, 0.017), [], 300) is None
    assert warning(Losses(0.047, 0.020, 0.017), [(100, 0.0140), (300, 0.0138)], 300) is None
    assert "0.0009" in str(warning(Losses(0.047, 0.020, 0.0009), [], 300))
    assert "0.0200" in str(warning(Losses(0.047, 0.020, 0.0009), [(300, 0.0200)], 300))
    assert "has risen from 0.0138 to 0.0206" in str(warning(Losses(None, 0.020, 0.0089), [(1, 0.0138), (9, 0.0206)], 9))
    assert warning(Losses(None, 0.020, 0.0009), [], 300) is None
