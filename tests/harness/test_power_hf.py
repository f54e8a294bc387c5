"""power-hf inside lm-eval: what a stock `hf` user relies on, and what only this model does."""

from __future__ import annotations

import errno
import json
import logging
import os
import warnings

import pytest
import torch
from harness.tiny_lm import CHOICES, POSITIONS, PROMPTS, make_model, make_tokenizer
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import handle_non_serializable

from lm_power import PowerSampler
from lm_power.completion import Completion
from lm_power.fingerprint import fingerprint
from lm_power.harness.power_hf import PowerHF, randomize
from lm_power.store import CompletionStore, StoreError

FLOAT64 = {"dtype": "float64"}  # in which completions do not depend on the batch shape


def reference(tiny, prompts=PROMPTS, n=1, **options):
    options = {"mcmc_steps": 2, "block_size": 4, "max_new_tokens": 8, **options}
    sampler = PowerSampler.from_pretrained(tiny, device="cpu", dtype="float64", max_rows=3)
    return sampler.generate(list(prompts), n=n, **options)


def test_completions_are_those_of_the_python_api(evaluate, tiny):
    """Guards against two code paths: other prompt ids (BOS), seeds or options than PowerSampler's."""
    run = evaluate(options={"alpha": 3, "seed": 5, **FLOAT64})
    expected = reference(tiny, alpha=3, seed=5)
    assert run.completions == expected
    got, wanted = run.completions[0][0], expected[0][0]
    assert got.token_ids == wanted.token_ids
    assert got.log_probs == pytest.approx(wanted.log_probs, abs=1e-9)
    mean = sum(c[0].self_reward for c in expected) / len(expected)
    assert run.results["results"]["tiny_task"]["self_reward,none"] == pytest.approx(mean)


def test_repeats_are_different_completions_in_order(evaluate, tiny):
    """Guards against N copies of one completion, or completions handed to the wrong repeat."""
    run = evaluate(task={"repeats": 3}, options=FLOAT64)
    assert run.completions == reference(tiny, n=3)
    assert all(len(set(texts)) > 1 for texts in run.completions)


def test_gen_kwargs_override_model_args(evaluate, tiny):
    """Guards the precedence CLI gen_kwargs > YAML > model_args."""
    run = evaluate(options={"alpha": 2, "seed": 1, **FLOAT64}, gen_kwargs="alpha=8,seed=3,mcmc_steps=1,max_gen_toks=6")
    assert run.completions == reference(tiny, alpha=8, seed=3, mcmc_steps=1, max_new_tokens=6)


def test_until_cuts_the_text_and_max_gen_toks_bounds_the_tokens(evaluate):
    """Guards against texts that run past a stop string, and a length limit that is ignored."""
    run = evaluate(task={"generation_kwargs": {"until": ["a", "e"], "max_gen_toks": 6}, "repeats": 4})
    flat = [c for texts in run.completions for c in texts]
    assert not any("a" in c or "e" in c for c in flat)
    assert {"stop"} < {c.finish_reason for c in flat}
    assert max(len(c.token_ids) for c in flat) == 6


def test_a_tasks_decoding_options_give_one_notice_and_change_nothing(evaluate, caplog):
    """Guards against greedy tasks switching power sampling off, and against a notice a request."""
    caplog.set_level(logging.INFO)
    plain = evaluate()
    caplog.clear()
    task = {"generation_kwargs": {"do_sample": True, "temperature": 0.0, "top_p": 0.9}}
    assert evaluate(task=task).completions == plain.completions
    notices = [r.message for r in caplog.records if "has no effect" in r.message]
    assert len(notices) == 1
    assert "method=power" in notices[0] and "temperature=0.0" in notices[0]


def test_log_likelihood_tasks_are_stock(evaluate):
    """Guards against an `__init__` or override of ours that moves log-likelihoods."""
    ours, stock = evaluate(task=CHOICES), evaluate(task=CHOICES, model=HFLM)
    assert [s["resps"] for s in ours.samples] == [s["resps"] for s in stock.samples]
    assert ours.results["results"] == stock.results["results"]


def test_chat_template_is_applied_with_one_bos(evaluate, monkeypatch):
    """Guards against raw prompts under --apply_chat_template, and a second BOS before the template's own."""
    seen = {}

    def spy(self, jobs, *arguments, **named):
        seen["jobs"] = jobs
        return original(self, jobs, *arguments, **named)

    original = PowerSampler.sample
    monkeypatch.setattr(PowerSampler, "sample", spy)
    run = evaluate(apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="be brief", prompts=["hi?"])
    text = "<s>system: be brief\nuser: hi?\nassistant: "
    assert run.samples[0]["arguments"][0][0] == text
    assert seen["jobs"][0].prompt_ids == tuple(make_tokenizer().encode(text, add_special_tokens=False))


@pytest.mark.parametrize("add_bos_token", [True, False, None])
def test_prompt_ids_are_stock(evaluate, monkeypatch, add_bos_token):
    """Guards add_bos_token: the ids sampled from are those that `hf` would generate from."""
    run = evaluate(prompts=["hi?"], options={"add_bos_token": add_bos_token, "completions": None})
    ours = run.model.tok_encode("hi?")
    stock = run.model.tok_batch_encode(["hi?"])[0][0].tolist()
    assert ours == stock
    assert (ours[0] == 1) is (add_bos_token is not False)


def test_long_prompts_lose_their_left_end_with_one_warning(evaluate, tiny, caplog):
    """Guards against a crash, or a silent cut, where prompt and max_gen_toks exceed the positions."""
    long = "x" * POSITIONS + "end"
    run = evaluate(prompts=[long, long + "?", "short"], options=FLOAT64)
    warnings = [r.message for r in caplog.records if "cut on the left" in r.message]
    assert warnings == [
        f"2 of 3 prompts are cut on the left: with max_gen_toks=8 they exceed the model's {POSITIONS} positions"
    ]
    kept = make_tokenizer().encode(long)[-(POSITIONS - 8) :]
    assert run.completions[0] == reference(tiny, [kept])[0]


@pytest.mark.parametrize(
    ("options", "generation", "told"),
    [
        ({}, {}, ["draws at temperature 0.25 = 1/alpha, alpha=4;"]),
        ({}, {"alpha": 2}, ["draws at temperature 0.5 = 1/alpha, alpha=2;"]),
        ({"proposal_temperature": 1}, {}, []),
        ({"method": "standard"}, {}, []),
    ],
)
def test_temperature_says_its_default(evaluate, caplog, options, generation, told):
    """Guards against 0.25 taken for 1, the default elsewhere: said once, with what `--gen_kwargs` made of it."""
    caplog.set_level(logging.INFO, logger="lm_eval")
    plain = {"method": "temperature", "mcmc_steps": 10, "block_size": 192}
    evaluate(options={**plain, **options}, task={"generation_kwargs": {"until": [], **generation}})
    said = [record.message for record in caplog.records if "draws at temperature" in record.message]
    assert len(said) == len(told) and all(text in line for text, line in zip(told, said, strict=True))


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Of the batch of each run that begins from now on."""
    given = []
    original = PowerSampler.sample

    def spy(self, *arguments, **named):
        given.append(named["rows"])
        return original(self, *arguments, **named)

    monkeypatch.setattr(PowerSampler, "sample", spy)
    return given


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": "auto"},
        {"batch_size": "auto:2", "max_batch_size": 2},
        {"batch_size": "auto", "max_batch_size": 2, "method": "tempering", "rungs": 3, "block_size": 192},
    ],
)
def test_batch_size_auto(evaluate, rows, options):
    """Guards `auto`: HFLM's own search would be run on the wrong kind of batch; max_batch_size bounds it.

    Also where a completion is drawn by several lanes.
    """
    evaluate(options=options)
    assert rows == [options.get("max_batch_size", len(PROMPTS))]


@pytest.mark.parametrize(("shape", "expected"), [("shrinking", 1), ("fixed", len(PROMPTS))])
def test_a_resumed_run_has_the_rows_of_what_is_missing(evaluate, rows, tmp_path, shape, expected):
    """Guards: one missing completion decoded at the price of all; and a fixed shape that is not kept over a resume."""
    options = {"batch_size": "auto", "batch_shape": shape, "completions": str(tmp_path / "store")}
    evaluate(prompts=PROMPTS[:-1], options=options)
    rows.clear()
    evaluate(options=options)
    assert rows == [expected]


@pytest.mark.parametrize("stop", [[], ["z"]])
@pytest.mark.parametrize("marker", ["e", make_tokenizer().convert_tokens_to_ids("e")])
def test_think_end_token_cuts_the_text_only(evaluate, marker, stop):
    """Guards against thinking left in, a stop string brought back by re-decoding, or lost log-probs."""
    task = {"generation_kwargs": {"until": stop, "max_gen_toks": 20}, "repeats": 4}
    plain = evaluate(task=task, prompts=["hm"])
    cut = evaluate(task=task, prompts=["hm"], options={"think_end_token": marker})
    pairs = list(zip(plain.completions[0], cut.completions[0], strict=True))
    assert any("e" in a for a, _ in pairs)
    for whole, part in pairs:
        assert part == (whole.rsplit("e", 1)[1].lstrip() if "e" in whole else whole)
        assert part.token_ids == whole.token_ids and part.log_probs == whole.log_probs
    # The log has both, so that store and samples of one run can be told to be that.
    assert cut.samples[0]["doc"]["lm_power"]["drawn"] == [whole.text for whole, _ in pairs]
    assert "drawn" not in plain.samples[0]["doc"]["lm_power"]


def test_randomize_weights(tiny):
    """Guards RandW: other weights, seeded, tied embeddings still tied, and a name of its own."""
    as_is, first, again, other = (
        PowerHF(tiny, device="cpu", **options)
        for options in (
            {},
            {"randomize_weights": True, "seed": 7},
            {"randomize_weights": True, "seed": 7},
            {"randomize_weights": True, "seed": 8},
        )
    )
    assert len({fingerprint(lm.model) for lm in (as_is, first, other)}) == 3
    assert first.model_name == again.model_name
    assert "RandW" in first.model_name
    weights = first.model
    assert weights.lm_head.weight.data_ptr() == weights.model.embed_tokens.weight.data_ptr()


def test_randomize_weights_leaves_the_global_generator_alone():
    """Guards lm-eval's own seeds (few-shot order) against a re-seeding by RandW."""
    model = make_model()
    before = torch.get_rng_state()
    randomize(model, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_peft_adapter(evaluate, tiny, tmp_path):
    """Guards peft=FOLDER: the adapter must be in the weights that sample, and in the model's name."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(make_model(), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        run = evaluate(options={"peft": str(tmp_path / "adapter"), **FLOAT64})
    sampler = PowerSampler.from_pretrained(
        tiny, device="cpu", dtype="float64", max_rows=3, peft=str(tmp_path / "adapter")
    )
    expected = sampler.generate(list(PROMPTS), mcmc_steps=2, block_size=4, max_new_tokens=8)
    assert run.completions == expected != reference(tiny)
    assert "peft=" in run.model.model_name
    json.dumps(run.results["config"], default=handle_non_serializable)


def test_a_loaded_model_can_be_passed(evaluate):
    """Guards the Python route `simple_evaluate(model=PowerHF(pretrained=model, tokenizer=tokenizer))`."""
    passed = evaluate(options={"pretrained": make_model(), "tokenizer": make_tokenizer()})
    loaded = evaluate()
    assert passed.completions == loaded.completions
    assert passed.model.model_name.split("@")[1] == loaded.model.model_name.split("@")[1]


def test_padding_requests_get_an_empty_marked_completion(evaluate):
    """Guards best-of-N: lm-eval's data-parallel clones of a request must not give a document more answers."""
    run = evaluate(task={"repeats": 2})
    from lm_eval.api.instance import Instance

    def request(text):
        return Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8}), 0, metadata=("t", 0, 2))

    first, last = request("hi"), request("ho")
    out = run.model.generate_until([first, first, last, last, last, last])
    assert [c.is_padding for c in out] == [False] * 4 + [True] * 2
    assert out[4] == "" and out[4].stats.tokens_decoded == 0


def test_equal_prompts_are_drawn_once(evaluate, tmp_path):
    """Guards against paying twice for two documents with one prompt, and storing one key twice."""
    run = evaluate(prompts=["hi?", "ho?", "hi?"], task={"repeats": 2}, options={"completions": str(tmp_path / "s")})
    assert run.completions[0] == run.completions[2] != run.completions[1]
    lines = [line for f in (tmp_path / "s").glob("*.jsonl") for line in f.read_text().splitlines()]
    assert len(lines) == 4


def test_two_tasks_share_one_store_file(evaluate, tmp_path):
    """Guards the contract "one file a process": two lengths are two plans, but one store."""
    folder = tmp_path / "store"
    run = evaluate(options={"completions": str(folder)})
    from lm_eval.api.instance import Instance

    requests = [
        Instance("generate_until", {}, ("hm", {"until": [], "max_gen_toks": n}), 0, metadata=("t", 0, 1))
        for n in (5, 6)
    ]
    before = set(folder.glob("*.jsonl"))
    short, long = run.model.generate_until(requests)
    assert (len(short.token_ids), len(long.token_ids)) <= (5, 6)
    assert len(set(folder.glob("*.jsonl")) - before) == 1


def test_stored_completions_come_back_without_decoding(evaluate, tmp_path, monkeypatch):
    """Guards resume in one process: the second run decodes nothing and returns the same completions."""
    options = {"completions": str(tmp_path / "store")}
    first = evaluate(options=options)
    before = {p: p.read_bytes() for p in (tmp_path / "store").glob("*.jsonl")}

    def refuse(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr("lm_power.engine.Engine.submit", refuse)
    second = evaluate(options=options)
    assert second.completions == first.completions
    assert [c[0].log_probs for c in second.completions] == [c[0].log_probs for c in first.completions]
    assert {p: p.read_bytes() for p in (tmp_path / "store").glob("*.jsonl")} == before


def test_full_disk_while_running(evaluate, tmp_path, monkeypatch):
    """Guards a run that fills the disk: lm-eval ends with our error, and the next run draws the rest only."""
    options = {"completions": str(tmp_path / "store"), **FLOAT64}
    append = CompletionStore._append

    def append_while_there_is_room(self, record):
        if len(self._places) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionStore, "_append", append_while_there_is_room)
        with pytest.raises(
            StoreError, match=r"No space left on device\); the 3 completions stored so far are complete"
        ):
            evaluate(options=options)
    (kept,) = (tmp_path / "store").glob("*.jsonl")
    assert kept.read_bytes().count(b"\n") == 3
    assert evaluate(options=options).completions == evaluate(options=FLOAT64).completions
    (rest,) = set((tmp_path / "store").glob("*.jsonl")) - {kept}
    assert rest.read_bytes().count(b"\n") == len(PROMPTS) - 3


def test_use_cache_warns_and_still_works(evaluate, tmp_path, caplog):
    """Guards lm-eval's SQLite cache: completions must survive pickling, and the user must be told of its limits.

    He must be told above all when everything is in the cache, and the model is not asked at all.
    """
    run = evaluate(use_cache=str(tmp_path / "cache"))
    assert sum("--use_cache ignores" in r.message for r in caplog.records) == 1
    again = evaluate(use_cache=str(tmp_path / "cache"))
    assert sum("--use_cache ignores" in r.message for r in caplog.records) == 2
    assert again.completions == run.completions
    assert isinstance(again.completions[0][0], Completion)
    assert again.completions[0][0].log_probs == run.completions[0][0].log_probs


def test_predict_only(evaluate):
    """Guards --predict_only, which replaces the task's metrics by `bypass`."""
    run = evaluate(predict_only=True)
    assert all(isinstance(texts[0], str) for texts in run.completions)


def test_samples_and_results_are_written_as_json(evaluate, tmp_path):
    """Guards --log_samples --output_path: Completion objects and our model facts must be plain JSON."""
    from lm_eval.loggers import EvaluationTracker

    run = evaluate(task={"repeats": 2})
    config = json.loads(json.dumps(run.results["config"], default=handle_non_serializable))
    assert config["power_sampler"]["method"] == "power"
    assert config["power_sampler"]["model"].endswith(fingerprint(run.model.model))
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    samples = run.results.pop("samples")
    tracker.save_results_aggregated(results=run.results, samples=samples)
    tracker.save_results_samples(task_name="tiny_task", samples=samples["tiny_task"])
    (path,) = (tmp_path / "out").rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["resps"] for line in lines] == [[list(texts)] for texts in run_texts(samples)]
    assert len(lines[0]["doc"]["lm_power"]["self_reward"]) == 2


def run_texts(samples):
    return [[str(text) for texts in s["resps"] for text in texts] for s in samples["tiny_task"]]
