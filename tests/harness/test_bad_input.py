"""What a user can get wrong on lm-eval's command line: a clear error, nothing decoded, nothing written."""

from __future__ import annotations

import json
import os

import pytest
from harness.tiny_lm import CHARACTERS, POSITIONS, SPECIAL, make_model, make_tokenizer

from lm_power.config import OptionError
from lm_power.engine import Engine
from lm_power.engine.backend import UnsupportedModelError
from lm_power.store import StoreError

STORE = "store"


@pytest.fixture
def refused(evaluate, tmp_path, monkeypatch):
    """Run an evaluation with a store; it must raise `error`, decode nothing, and write nothing."""

    def run(error, *parts, options=(), gen_kwargs="", **arguments):
        def decoded(*_, **__):
            raise AssertionError("decoding began")

        monkeypatch.setattr(Engine, "step", decoded)
        monkeypatch.setattr(Engine, "load", decoded)
        folder = tmp_path / STORE
        before = contents(folder)
        options = {"completions": str(folder), **dict(options)}
        with pytest.raises(error) as caught:
            evaluate(options=options, gen_kwargs=gen_kwargs or None, **arguments)
        for part in parts:
            assert part in str(caught.value)
        assert contents(folder) == before

    return run


def contents(folder):
    """Name and bytes of every file in a folder; a lock says nothing and does not count."""
    return {p.name: p.read_bytes() for p in folder.glob("*") if p.name != ".lock"} if folder.exists() else None


WRONG_OPTIONS = [
    ("alpha", 0.5, ("alpha=0.5", ">= 1", "temperature")),
    ("alpha", "nan", ("alpha=", "nan", "finite number")),
    ("alpha", "four", ("alpha='four'", "number")),
    ("block_size", 0, ("block_size=0", ">= 1")),
    ("block_size", 1.5, ("block_size=1.5", "whole number")),
    ("mcmc_steps", 1.5, ("mcmc_steps=1.5", ">= 0")),
    ("mcmc_steps", -3, ("mcmc_steps=-3", ">= 0")),
    ("seed", -1, ("seed=-1", ">= 0")),
    ("method", "powr", ("method='powr'", "did you mean power", "standard")),
    (
        "method",
        "beam",
        ("method='beam'", "available: power, power_inf, smc, tempering, rejection, sps"),
    ),
    ("proposal_temperature", 0.2, ("proposal_temperature=0.2", "[1/alpha, 1]", "[0.25, 1]")),
    ("proposal_temperature", 1.5, ("proposal_temperature=1.5", "[0.25, 1]")),
    ("proposal_temperature", 0, ("proposal_temperature=0", "nearly greedy")),
    ("mcmc_step", 3, ("unknown option", "'mcmc_step'", "did you mean mcmc_steps")),
    ("alhpa", 3, ("unknown option", "'alhpa'", "did you mean alpha")),
    ("explore", 0.1, ("explore=0.1", "models on a server", "leave it out")),
    ("completions", "", ("completions=''", "name a folder")),
    ("completions", True, ("completions=True", "name a folder")),
]


@pytest.mark.parametrize(("name", "value", "parts"), WRONG_OPTIONS)
def test_model_args(refused, name, value, parts):
    """Guards against options that are clamped, ignored or found out after hours of sampling."""
    refused(OptionError, *parts, options={"mcmc_steps": 2, name: value})


@pytest.mark.parametrize(("name", "value", "parts"), WRONG_OPTIONS)
def test_gen_kwargs(refused, name, value, parts):
    """The same rules and messages for --gen_kwargs."""
    refused(OptionError, *parts, gen_kwargs={name: value})


def test_unknown_generation_option_lists_what_there_is(refused):
    """Guards against an option of another model that is silently dropped."""
    refused(OptionError, "unknown option", "'best_of'", "mcmc_steps", gen_kwargs="best_of=2")


def test_a_penalty_is_refused_with_the_reason(refused):
    """Guards against a law other than the model's own to the power alpha, and an error that does not say why."""
    refused(
        OptionError, "repetition_penalty=1.2", "the model's own", "leave it out", gen_kwargs="repetition_penalty=1.2"
    )


def test_lengths_belong_into_gen_kwargs(refused):
    """Guards against max_gen_toks in model_args, which would go to transformers."""
    refused(OptionError, "--gen_kwargs max_gen_toks=9", options={"max_gen_toks": 9})


def test_weights_belong_into_model_args(refused):
    """Guards against randomize_weights in gen_kwargs, after the weights were loaded."""
    refused(OptionError, "randomize_weights", "--model_args", gen_kwargs="randomize_weights=True")


def test_mixed_precision(refused):
    """Guards an option of HFLM's own decoding that sampling would drop in silence."""
    refused(OptionError, "mixed_precision_dtype", "dtype=bfloat16", options={"mixed_precision_dtype": "bfloat16"})


def test_text_for_a_switch(refused):
    """Guards against randomize_weights=no counting as true."""
    refused(OptionError, "randomize_weights='no'", "true or false", options={"randomize_weights": "no"})


@pytest.mark.parametrize("length", [0, -1, "many"])
def test_no_tokens_to_generate(refused, length):
    """Guards against max_gen_toks=0 meaning "no limit" or an empty completion."""
    refused(OptionError, "max_gen_toks=", ">= 1", gen_kwargs={"max_gen_toks": length})


def test_one_length_under_two_names(refused):
    """Guards --gen_kwargs max_new_tokens, which would lose against the task's max_gen_toks in silence."""
    refused(OptionError, "max_gen_toks=8", "max_new_tokens=4", gen_kwargs="max_new_tokens=4")


@pytest.mark.parametrize("until", [[""], ["a", ""], [3], {"a": 1}])
def test_stop_list_with_an_empty_string(refused, until):
    """Guards against an empty stop string, which every text contains."""
    refused(OptionError, "until=", "non-empty", task={"generation_kwargs": {"until": until}})


def test_empty_prompt(refused):
    """Guards against a prompt without a token: there is nothing to condition the first token on."""
    refused(OptionError, "empty prompt", "BOS", prompts=["hi", ""], options={"add_bos_token": False})


def test_prompt_that_leaves_no_room(refused):
    """Guards against a completion length that takes all the model's positions."""
    refused(OptionError, f"max_gen_toks={POSITIONS}", f"{POSITIONS} positions", gen_kwargs=f"max_gen_toks={POSITIONS}")


def test_prompt_ids_outside_the_vocabulary(refused):
    """Guards a tokenizer of another model: an index error on the device, or another token's embedding."""
    small = make_model(vocab_size=len(SPECIAL) + 5)
    options = {"pretrained": small, "tokenizer": make_tokenizer()}
    refused(OptionError, "lies outside the vocabulary of 7", options=options)


def test_model_without_eos(refused):
    """Guards against completions that can only end by length."""
    model = make_model(eos_token_id=None)
    model.generation_config.eos_token_id = None
    tokenizer = make_tokenizer(eos=False)
    refused(OptionError, "EOS", "none is known", options={"pretrained": model, "tokenizer": tokenizer})


def test_encoder_decoder_model(refused, tmp_path):
    """Guards T5 and BART, which HFLM loads happily and whose cache has another meaning."""
    from transformers import T5Config, T5ForConditionalGeneration

    size = len(SPECIAL) + len(CHARACTERS)
    config = T5Config(vocab_size=size, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, eos_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    make_tokenizer().save_pretrained(tmp_path / "t5")
    refused(UnsupportedModelError, "encoder-decoder", "decoder-only", options={"pretrained": str(tmp_path / "t5")})


def test_randomised_weights_under_an_adapter(refused):
    """Guards a control that is none: a trained adapter on random weights."""
    options = {"randomize_weights": True, "peft": "folder"}
    refused(OptionError, "randomize_weights", "peft", options=options)


def test_store_of_another_model(evaluate, refused, tmp_path):
    """Guards against completions of one model reported as another's."""
    first = evaluate(options={"completions": str(tmp_path / STORE)}).model.model_name
    refused(StoreError, first, "folder of its own", ".jsonl:1", options={"randomize_weights": True, "seed": 7})


def test_store_of_a_newer_version(refused, tmp_path):
    """Guards against misreading lines of a format that is not known yet."""
    (tmp_path / STORE).mkdir()
    (tmp_path / STORE / "a.jsonl").write_text(json.dumps({"format": 99, "key": "k"}) + "\n")
    refused(StoreError, "a.jsonl:1", "format 99", "upgrade")


def test_damaged_store(refused, tmp_path):
    """Guards against skipping a damaged line, whose completion would be drawn and counted again."""
    (tmp_path / STORE).mkdir()
    (tmp_path / STORE / "a.jsonl").write_text("not json\n")
    refused(StoreError, "a.jsonl:1", "not a completion")


def test_store_that_cannot_be_made(refused, tmp_path):
    """Guards against finding out after the first completion that the folder cannot be written."""
    (tmp_path / "file").write_text("")
    refused(StoreError, "cannot be written", "file/store", options={"completions": str(tmp_path / "file" / "store")})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_store_without_permission(refused, tmp_path):
    """The same for a folder that is there and read-only."""
    (tmp_path / STORE).mkdir(mode=0o500)
    refused(StoreError, "cannot be written", "Permission denied")


def test_second_of_two_folders_is_checked_first_too(refused, evaluate, tmp_path):
    """Guards against hours on the first task before the second one's bad store string or stop list shows."""
    run = evaluate()
    from lm_eval.api.instance import Instance

    good, bad = (
        Instance("generate_until", {}, ("hi", {"until": [], "max_gen_toks": 8, "completions": str(c)}), 0)
        for c in (tmp_path / "good", tmp_path / "file" / "bad")
    )
    (tmp_path / "file").write_text("")
    for request in (good, bad):
        request.repeats = 1
    with pytest.raises(StoreError, match="cannot be written"):
        run.model.generate_until([good, bad])
    assert not contents(tmp_path / "good")
