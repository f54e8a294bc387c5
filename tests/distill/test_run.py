"""A run from options to a folder that loads everywhere; nothing is overwritten; rounds."""

from __future__ import annotations

import errno
import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from distill_runs import PROMPTS, losses, options, run, sample_store, save_model
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_power import PowerSampler
from lm_power.config import OptionError
from lm_power.distill.command import main
from lm_power.distill.teacher import TeacherDataError
from lm_power.errors import LMPowerError
from lm_power.store import read_store


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@torch.no_grad()
def logits(model, prompt=((1, 5, 9, 7),)) -> torch.Tensor:
    return model(torch.tensor(prompt)).logits


def test_adapter_loads_in_peft_in_the_sampler_and_merges(tiny: str, finished) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny)
    plain = logits(base)
    adapted = PeftModel.from_pretrained(base, str(finished))
    expected = logits(adapted)
    assert (expected - plain).abs().max() > 0.1, "nothing was learnt"
    sampler = PowerSampler.from_pretrained(tiny, device="cpu", dtype="float32", peft=str(finished))
    torch.testing.assert_close(logits(sampler.host.backend.model), expected)
    assert sampler.generate(["ab"], method="standard", max_new_tokens=4)[0][0].token_ids
    torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_training_raises_the_likelihood_of_the_data(finished) -> None:
    first, *_, last = losses(finished)
    assert last < first - 0.1


def test_folder_has_all_that_was_done(tiny: str, store: str, finished) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "distill.json", "distill.yaml", "loss.png",
        "tokenizer.json", "training_log.json",
    } <= names  # fmt: skip
    record = json.loads((finished / "distill.json").read_text())
    teacher = next(read_store(store))["model"]
    assert record["teacher"]["model"] == teacher
    assert record["teacher"]["start"] == "same"
    assert record["teacher"]["counts"] == {"read": PROMPTS, "kept": PROMPTS}
    assert record["round"] == 1 and record["previous"] == []
    assert record["data"]["learnt_tokens"] == sum(len(line["token_ids"]) for line in read_store(store))
    assert record["results"]["steps"] == 2 * 4
    assert yaml.safe_load((finished / "distill.yaml").read_text())["model"] == tiny
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    tokenizer = AutoTokenizer.from_pretrained(finished)
    assert tokenizer("abc?")["input_ids"] == AutoTokenizer.from_pretrained(tiny)("abc?")["input_ids"]


def test_model_card_has_front_matter_for_the_hub(finished) -> None:
    """Without a base_model: a folder's name is no repository of the hub."""
    card = ModelCard.load(finished / "README.md")
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags and "power-sampling" not in card.data.tags  # the teacher's method is temperature
    assert card.data.base_model is None
    assert "self-distillation" in card.data.tags and "distillation" not in card.data.tags
    for part in ("temperature", "nats per token", "lm_eval --model power-hf", "our choice", "transformers |"):
        assert part in card.text


def test_model_card_has_no_path_of_this_machine(tiny: str, store: str, finished) -> None:
    """It is made to be published; base, data and output were given by absolute paths, which the record keeps."""
    text, record = (finished / "README.md").read_text(), json.loads((finished / "distill.json").read_text())
    for path in (tiny, store, str(finished)):
        assert Path(path).is_absolute() and path in json.dumps(record)
        assert path not in text and str(Path(path).parent) not in text and Path(path).name in text


def test_adapter_alone_finds_its_base(tiny: str, finished) -> None:
    """By PEFT's short way, which reads the base's folder from the adapter's settings."""
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(finished))
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(finished)), logits(adapted))


def test_absolute_paths_become_names_wherever_they_stand() -> None:
    from lm_power.distill.card import _named

    command = "python -m lm_power.distill --model /a/base --data=/a/b/store runs/other --lora_r 8"
    given = {
        "command": command,
        "previous": [{"command": command, "options": {"adapter": "/a/round1"}}],
        "teacher": {"model": "/a/base+peft=/a/round1@0123456789abcdef"},
        "options": {"data": ["/a/b/store", "runs/store"], "model": "USER/NAME", "epochs": 2, "adapter": None},
    }
    short = "python -m lm_power.distill --model base --data=store runs/other --lora_r 8"
    assert _named(given) == {
        "command": short,
        "previous": [{"command": short, "options": {"adapter": "round1"}}],
        "teacher": {"model": "base+peft=round1@0123456789abcdef"},
        "options": {"data": ["store", "runs/store"], "model": "USER/NAME", "epochs": 2, "adapter": None},
    }


def test_resolved_options_repeat_the_run(finished, tmp_path) -> None:
    arguments = ["--config", str(finished / "distill.yaml"), "--output", str(tmp_path / "again")]
    assert main(arguments) == 0
    assert losses(tmp_path / "again") == losses(finished)
    assert "--config" in (tmp_path / "again" / "README.md").read_text()


def test_a_finished_run_is_not_resumed_with_other_options(finished, capsys) -> None:
    """Guards a table of the old student under the name of the new options."""
    before = snapshot(finished)
    assert main(["--resume", "--output", str(finished)]) == 0
    assert main(["--resume", "--output", str(finished), "--learning_rate", "0.5"]) == 2
    assert "learning_rate=0.5: this run was started with" in capsys.readouterr().err
    assert snapshot(finished) == before


def test_another_run_s_folder_is_not_touched(tiny: str, store: str, finished, tmp_path) -> None:
    before = snapshot(finished)
    with pytest.raises(OptionError, match="holds a finished run; nothing is overwritten"):
        run(tiny, store, finished)
    assert snapshot(finished) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="is not empty"):
        run(tiny, store, tmp_path)
    with pytest.raises(OptionError, match="is a file"):
        run(tiny, store, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_behind_by_a_run_that_could_not_start(tiny: str, tmp_path) -> None:
    """Bad data are found before the output folder is made: the corrected command just works."""
    with pytest.raises(TeacherDataError):
        run(tiny, str(tmp_path / "no store"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_says_so(tiny: str, store: str, finished, capsys) -> None:
    before = snapshot(finished)
    run(tiny, store, finished, resume=True)
    assert "is finished" in capsys.readouterr().out
    assert snapshot(finished) == before


def test_resuming_nothing_is_an_error(tiny: str, store: str, tmp_path) -> None:
    with pytest.raises(OptionError, match="holds no run to resume"):
        run(tiny, store, tmp_path / "nothing", resume=True)


def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A run that was killed before it could keep anything but its beginning."""
    folder = tmp_path / "unfinished"
    folder.mkdir()
    record = json.loads((finished / "distill.json").read_text())
    (folder / "distill.json").write_text(json.dumps({**record, "results": None}))
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 3}, "epochs=3.0: this run was started with 2.0"),
        ({"lora_r": 8}, "lora_r=8"),
        ({"max_length": 6}, "max_length=6"),
        ({"trainer": {"max_grad_norm": 2}}, "trainer="),
    ],
)
def test_resuming_with_other_options_is_refused(changes: dict, told: str, tiny, store, finished, tmp_path) -> None:
    with pytest.raises(OptionError, match=told):
        run(tiny, store, unfinished(finished, tmp_path), resume=True, **changes)


def test_resuming_with_other_data_is_refused(tiny: str, finished, tmp_path) -> None:
    grown = sample_store(tmp_path / "store", tiny, prompts=PROMPTS + 1)
    with pytest.raises(OptionError, match="data: are not those"):
        run(tiny, grown, unfinished(finished, tmp_path), resume=True)


def test_a_run_without_a_checkpoint_begins_again(tiny: str, store: str, finished, tmp_path) -> None:
    """And a checkpoint that was being written when the run was killed is passed over."""
    folder = unfinished(finished, tmp_path)
    torn = folder / "checkpoint-4"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    run(tiny, store, folder, resume=True, logging_steps=3)
    assert (folder / "adapter_model.safetensors").read_bytes() == (finished / "adapter_model.safetensors").read_bytes()


def test_rounds_carry_their_provenance_on(tiny: str, store: str, finished, tmp_path) -> None:
    """Sampled from round 1, and going on from it: round 2, whose teacher is recognised as its own start."""
    second = sample_store(tmp_path / "store", tiny, peft=str(finished))
    record = run(tiny, second, tmp_path / "two", lora_r=32, adapter=str(finished), epochs=1)
    assert record["round"] == 2
    assert record["teacher"]["start"] == "same"
    assert [earlier["teacher"]["model"] for earlier in record["previous"]] == [next(read_store(store))["model"]]
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / "two"))
    assert "Earlier rounds" in (tmp_path / "two" / "README.md").read_text()
    # From the base again, on the same samples: still a second round, but the teacher is another model.
    record = run(tiny, second, tmp_path / "fresh", epochs=1)
    assert (record["round"], record["teacher"]["start"]) == (2, "another")


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_padded_model_s_second_round_is_self_distillation(tied: bool, tmp_path, capsys) -> None:
    """With more token embeddings than tokens, as in Qwen2.5, whose padding lm-eval's own loading cuts off.

    Guards the card, the notice, and the commands that are printed: what they evaluate is what was trained.
    """
    from lm_power.harness.power_hf import PowerHF

    padded = save_model(tmp_path / "padded", vocab_size=40, tie_word_embeddings=tied)
    one = tmp_path / "one"
    assert run(padded, sample_store(tmp_path / "first", padded), one)["teacher"]["start"] == "same"
    printed = capsys.readouterr().out
    assert "lm_eval --model power-hf" in printed and "lm_eval --model hf" not in printed
    assert "would take 32 of the 40 token embeddings" in printed

    evaluated = PowerHF(padded, peft=str(one), device="cpu")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(padded), str(one))
    torch.testing.assert_close(logits(evaluated.model), logits(plain), atol=1e-5, rtol=0)
    store = sample_store(tmp_path / "second", padded, peft=str(one))
    assert next(read_store(store))["model"] == evaluated.model_name
    record = run(padded, store, tmp_path / "two", lora_r=32, adapter=str(one))
    assert record["teacher"]["start"] == "same"
    assert "Notice" not in capsys.readouterr().out
    assert "yes: self-distillation" in (tmp_path / "two" / "README.md").read_text()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_the_embeddings_of_an_untied_model_can_be_adapted(target: str, tmp_path) -> None:
    """Padded or not, the adapter is evaluated by the command that is printed, and merges into the same model."""
    from lm_power.harness.power_hf import PowerHF

    for rows in (32, 40):
        base = save_model(tmp_path / f"{rows}", vocab_size=rows, tie_word_embeddings=False)
        out = tmp_path / f"out{rows}"
        run(base, sample_store(tmp_path / f"store{rows}", base), out, target_modules=[target, "q_proj"])
        model = PowerHF(base, peft=str(out), device="cpu").model
        plain = AutoModelForCausalLM.from_pretrained(base)
        assert (logits(model) - logits(plain)).abs().max() > 0.1, "nothing was learnt"
        adapted = PeftModel.from_pretrained(plain, str(out))
        torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(adapted.merge_and_unload()), logits(model), atol=1e-5, rtol=0)


def test_full_fine_tuning_writes_a_model(tiny: str, store: str, tmp_path) -> None:
    """An ordinary folder, whose config is the base's: Trainer would leave the cache switched off."""
    out = tmp_path / "out"
    record = run(tiny, store, out, full=True, lora_r=32, learning_rate=None)
    assert record["learning_rate"] == 1e-5
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny, out))
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert after.config.use_cache and not (out / "adapter_config.json").exists()
    assert ModelCard.load(out / "README.md").data.library_name == "transformers"
    assert PowerSampler.from_pretrained(str(out), device="cpu").generate(["ab"], method="standard", max_new_tokens=4)


def test_early_stopping_keeps_the_best(tiny: str, store: str, tmp_path) -> None:
    """A learning rate that overfits at once: it stops, and what is kept is the best checkpoint."""
    out = tmp_path / "out"
    record = run(tiny, store, out, validation_share=0.3, early_stopping=2, epochs=30, learning_rate=0.05)
    validation = dict(record["results"]["loss"]["validation"][1:])
    kept = record["results"]["kept_step"]
    assert record["results"]["epochs"] < 30
    assert validation[kept] == min(validation.values())
    best = (out / f"checkpoint-{kept}" / "adapter_model.safetensors").read_bytes()
    assert (out / "adapter_model.safetensors").read_bytes() == best


def test_a_loss_that_is_no_number_ends_the_run(tiny: str, store: str, tmp_path) -> None:
    """Trainer would log the mean of earlier losses in its place, and save an adapter of NaN."""
    with pytest.raises(OptionError, match="the loss is nan at step"):
        run(tiny, store, tmp_path / "out", learning_rate=1e30, warmup_ratio=0, trainer={"max_grad_norm": 0})
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer": {"learning_rate": 1}}, "--learning_rate"),
        ({"trainer": {"group_by_lengt": 1}}, "unknown TrainingArgument 'group_by_lengt'"),
        ({"trainer": {"hub_token": "secret"}}, "hf auth login"),
        ({"trainer": {"label_smoothing_factor": 0.1}}, "is fixed here"),
        ({"lr_scheduler": "zigzag"}, "zigzag"),
        ({"lr_scheduler": "warmup_stable_decay"}, "lr_scheduler=warmup_stable_decay: .*num_decay_steps.*--trainer"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "lr_scheduler=cosine_with_min_lr: .*min_lr.*--trainer"),
        ({"trainer": {"lr_scheduler_kwargs": {"slope": 2}}}, "lr_scheduler=linear: .*slope.*--trainer"),
        ({"report_to": ["nowhere"]}, "nowhere"),
        ({"max_length": 3}, "max_length=3: leaves no completion"),
        ({"output": "/proc/no/folder"}, "output=/proc/no/folder: cannot be written"),
    ],
)
def test_what_is_refused_before_anything_is_written(changes: dict, told: str, tiny: str, store: str, tmp_path) -> None:
    with pytest.raises(OptionError, match=told):
        run(tiny, store, **{"output": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_data_beyond_the_model_s_positions_are_refused(tiny: str, store: str, tmp_path) -> None:
    """Left to itself, a model with rotary positions would compute on, unlike anything it was trained for."""
    short = save_model(tmp_path / "short", max_position_embeddings=10)
    with pytest.raises(OptionError, match=r"the model has 10 positions, .* set max_length=10"):
        run(short, store, tmp_path / "out")


def test_what_push_to_hub_uploads_names_no_path_of_this_machine(tiny: str, store: str, tmp_path, monkeypatch) -> None:
    """Adapter, settings, card and tokenizer; the hub's client is a stand-in that keeps what it is given."""
    import transformers.trainer as module

    import lm_power.distill.trainer as ours

    uploaded: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, repo_id, **others):
            return type("Url", (), {"repo_id": repo_id})

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, **others):
            uploaded[f"{repo_id}/{path_in_repo}"] = path_or_fileobj

        def upload_folder(self, *, folder_path, ignore_patterns, repo_id, **others):
            for path in Path(folder_path).rglob("*"):
                name = str(path.relative_to(folder_path))
                if path.is_file() and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                    uploaded[f"{repo_id}/{name}"] = path.read_bytes()

    monkeypatch.setattr(module, "hf_api", Hub)
    monkeypatch.setattr(ours, "HfApi", Hub)
    out = tmp_path / "out"
    run(tiny, store, out, epochs=1, push_to_hub="me/pocket")
    files = {name.removeprefix("me/pocket/"): content for name, content in uploaded.items()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= files.keys()
    assert b"lm-power" in files["README.md"] and b"peft=me/pocket" in files["README.md"]
    for name, content in files.items():
        assert not any(str(Path(path).parent).encode() in content for path in (tiny, store, out)), name
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny
    assert json.loads(files["adapter_config.json"]) == settings | {"base_model_name_or_path": Path(tiny).name}


def test_tensorboard_reports(tiny: str, store: str, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    run(tiny, store, tmp_path / "out", epochs=1, report_to=["tensorboard"])
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


def test_command_prints_settings_and_what_to_do_next(tiny: str, store: str, tmp_path, capsys) -> None:
    given = options(tiny, store, tmp_path / "out", epochs=1)
    arguments = [
        part
        for name, value in given.items()
        for part in (
            f"--{name}",
            json.dumps(value) if name == "trainer" else value[0] if name == "data" else str(value),
        )
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for part in (
        "global batch",
        "q_proj, k_proj",
        "training loss",
        "lm_eval --model hf --model_args",
        f"peft={tmp_path}",
    ):
        assert part in printed
    assert main(arguments) == 2
    refused = capsys.readouterr()
    assert "holds a finished run" in refused.err and "Traceback" not in refused.err


def test_missing_files_are_found_before_the_model_is_loaded(tiny: str, store: str, tmp_path, monkeypatch) -> None:
    import lm_power.distill.run as module

    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module, "load_student", loaded)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.jsonl").write_text("{torn\n")
    for data in (["nosuch"], [store, "nosuch"], [str(tmp_path / "empty")], [str(tmp_path / "torn.jsonl")]):
        with pytest.raises(LMPowerError):
            run(tiny, store, tmp_path / "out", data=tuple(data))
    with pytest.raises(TeacherDataError, match="nosuch"):
        run(tiny, store, tmp_path / "out", exclude_prompts_of=("nosuch",))


@pytest.mark.parametrize("says_why", [True, False])
def test_a_run_whose_disk_was_full_goes_on_when_there_is_room(
    says_why: bool, tiny: str, store: str, finished, tmp_path, monkeypatch
) -> None:
    """torch.save says nothing of the disk; another error of its kind is not taken for a full disk."""
    save, told = (
        torch.save,
        OSError(errno.ENOSPC, "No space left on device") if says_why else RuntimeError("pos 64 vs 0"),
    )

    def fail(*arguments, **options) -> None:
        raise told

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        if not says_why:
            with pytest.raises(RuntimeError, match="pos 64"):
                run(tiny, store, tmp_path / "other")
            patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
        with pytest.raises(OptionError, match=r"output=.*/out: the disk is full; make room, and go on with --resume"):
            run(tiny, store, out)
    assert torch.save is save
    run(tiny, store, out, resume=True)
    assert losses(out) == losses(finished)
