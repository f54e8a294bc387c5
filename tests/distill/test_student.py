"""The model to train: which layers, which start, and what is refused."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers as tf
from distill_runs import run, sample_store, save_model
from foreign_adapters import FOREIGN, make_adapter
from huggingface_hub import ModelCard
from models import CONFIGS, NAMED_OTHERWISE, make_model

from lm_power.adapter import load_adapter
from lm_power.config import OptionError
from lm_power.distill.options import DistillConfig
from lm_power.distill.student import PROJECTIONS, _reason, load_student, target_modules
from lm_power.fingerprint import fingerprint


@pytest.mark.parametrize("name", CONFIGS)
def test_target_modules_of_served_architectures(name: str) -> None:
    """The paper's seven projections, where the architecture has not fused them; never the output layer."""
    fused = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert set(target_modules(make_model(name))) == (fused if name.startswith("phi3") else set(PROJECTIONS))


@pytest.mark.parametrize("name", NAMED_OTHERWISE)
def test_target_modules_under_other_names(name: str) -> None:
    config, expected = NAMED_OTHERWISE[name]
    assert set(target_modules(tf.AutoModelForCausalLM.from_config(config))) == expected


def student(model: str, dtype: torch.dtype = torch.float32, **options):
    return load_student(DistillConfig(model=model, data=("unused",), output="unused", **options), dtype)


def test_the_teacher_is_recognised_in_the_dtype_it_sampled_in(tiny: str) -> None:
    """A fingerprint covers the dtype: a bfloat16 teacher of a float32 checkpoint is the same model."""
    ours = student(tiny)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        teacher = fingerprint(tf.AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype))
        assert ours.compare(f"any name@{teacher}") == "same"
    assert ours.compare("tiny@0123456789abcdef") == "another"
    assert ours.compare("tiny") == ours.compare(None) == "untold"


def test_weights_that_were_rounded_cannot_rule_a_teacher_out(tiny: str) -> None:
    """Loaded in bfloat16, a float32 checkpoint may or may not be what a float32 teacher had."""
    rounded = student(tiny, torch.bfloat16)
    for dtype, verdict in ((torch.bfloat16, "same"), (torch.float32, "unknown")):
        teacher = fingerprint(tf.AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype))
        assert rounded.compare(f"name@{teacher}") == verdict


def test_a_checkpoint_in_bfloat16_can_be_compared_in_any_dtype(tmp_path) -> None:
    folder = save_model(tmp_path / "model")
    tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    ours = student(folder, torch.bfloat16)
    teacher = fingerprint(tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert ours.compare(f"name@{teacher}") == "same"
    assert ours.compare("name@0123456789abcdef") == "another"


def test_adapter_weights_are_float32_whatever_the_base(tiny: str) -> None:
    """In bfloat16 small updates would be lost."""
    model = student(tiny, torch.bfloat16).model
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_whole_layers_of_an_adapter_are_float32_too(tiny: str, tmp_path) -> None:
    """Guards `modules_to_save`, which peft copies in the base's dtype."""
    base = tf.AutoModelForCausalLM.from_pretrained(tiny)
    head = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["norm"])
    peft.get_peft_model(base, head).save_pretrained(tmp_path)
    model = student(tiny, torch.bfloat16, adapter=str(tmp_path)).model
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("modules_to_save" in name for name in trained) and set(trained.values()) == {torch.float32}


def test_an_adapter_for_another_base_is_refused(tiny: str, store: str, finished, tmp_path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(OptionError, match="another base"):
        run(other, store, tmp_path / "out", lora_r=32, adapter=str(finished))
    assert not (tmp_path / "out").exists()


def test_the_same_base_elsewhere_is_no_other_base(tiny: str, finished, tmp_path) -> None:
    """It is the weights that count, where a record of them is there."""
    moved = shutil.copytree(tiny, tmp_path / "moved")
    assert student(str(moved), adapter=str(finished)).target_modules


def test_adapters_of_other_programs_are_judged_by_name_and_shape(tiny: str, finished, tmp_path) -> None:
    """Without our record: the base's name, then whether every weight finds its place."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(finished / name, foreign)
    assert student(tiny, adapter=str(foreign)).target_modules

    def rename(base: str) -> None:
        settings = json.loads((foreign / "adapter_config.json").read_text())
        (foreign / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))

    rename("someone/else")
    with pytest.raises(OptionError, match="someone/else"):
        student(tiny, adapter=str(foreign))
    for change in ({"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 40}):
        other = save_model(tmp_path / str(change), **change)
        rename(other)
        with pytest.raises(OptionError, match=r"adapter=.*[^:]$") as refusal:
            student(other, adapter=str(foreign))
        assert ("size mismatch" in str(refusal.value)) == ("intermediate_size" in change)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "no/such/folder"}, "model=no/such/folder: cannot be loaded"),
        ({"adapter": "no/such/folder"}, "holds no PEFT adapter"),
        (
            {"target_modules": ("nothing",)},
            r"target_modules=nothing: .*[a-z]\. This model's linear layers are .*q_proj.*leave target_modules out",
        ),
        (
            {"target_modules": ("q_proj", "v_porj")},
            r"target_modules=q_proj v_porj: v_porj not found in the model\. This model's linear layers are .*v_proj",
        ),
    ],
)
def test_what_cannot_be_loaded(tiny: str, options: dict, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        student(**{"model": tiny, **options})


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_low_rank_updates_of_tied_embeddings_are_refused(tiny: str, store: str, target: str, tmp_path) -> None:
    """Merged, such an adapter is another model than the one that was trained, with peft's `ensure_weight_tying` too."""
    told = "adapts the embeddings, which this model shares with its output layer"
    with pytest.raises(OptionError, match=f"target_modules=q_proj {target}: {told}"):
        run(tiny, store, tmp_path / "out", target_modules=["q_proj", target])
    assert not (tmp_path / "out").exists()
    make_adapter(tiny, tmp_path / "foreign", target_modules=[target])
    with pytest.raises(OptionError, match=f"adapter=.*/foreign: {told}"):
        run(tiny, store, tmp_path / "out", lora_r=32, adapter=str(tmp_path / "foreign"))


@pytest.mark.parametrize("kind", ["saves embed_tokens", "saves lm_head", "saves both", "trains tokens"])
def test_what_other_programs_train_of_tied_embeddings_merges(tiny: str, store: str, kind: str, tmp_path) -> None:
    """Embeddings trained whole, or single tokens of them: a round on top of such an adapter, and the merged model."""
    make_adapter(tiny, tmp_path / "foreign", **FOREIGN[kind])
    run(tiny, store, tmp_path / "out", lora_r=32, adapter=str(tmp_path / "foreign"))
    tokens = torch.tensor([[1, 5, 9, 7, 3]])
    one, two = (
        load_adapter(tf.AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / n)) for n in ("foreign", "out")
    )
    with torch.no_grad():
        before, unmerged = one(tokens).logits, two(tokens).logits
        merged = two.merge_and_unload()
        torch.testing.assert_close(merged(tokens).logits, unmerged, atol=1e-5, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        saved = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(saved(tokens).logits, unmerged, atol=1e-5, rtol=0)
    assert (unmerged - before).abs().max() > 0.1, "nothing was learnt"


def test_a_model_that_is_no_causal_lm(tmp_path) -> None:
    tf.T5Config().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="causal LM"):
        student(str(tmp_path))


def test_another_teacher_is_noticed_and_recorded(tiny: str, tmp_path, capsys) -> None:
    other = save_model(tmp_path / "other", seed=1)
    store = sample_store(tmp_path / "store", other, prompts=3)
    record = run(tiny, store, tmp_path / "out", epochs=1)
    assert record["teacher"]["start"] == "another"
    assert f"Notice: the teacher {other}@" in capsys.readouterr().out
    assert "no: the teacher had other weights" in (tmp_path / "out" / "README.md").read_text()
    tags = ModelCard.load(tmp_path / "out" / "README.md").data.tags
    assert "distillation" in tags and "self-distillation" not in tags


def test_a_reason_does_not_end_in_a_colon() -> None:
    error = RuntimeError(
        "Error(s) in loading state_dict for Peft:\n\tsize mismatch for a: 1 and 2.\n\tsize mismatch for b."
    )
    told = "Error(s) in loading state_dict for Peft: size mismatch for a: 1 and 2 (and 1 more)"
    assert _reason(error) == told
    assert _reason(ValueError("One:\n two.")) == "One: two" and _reason(KeyError()) == "KeyError"
