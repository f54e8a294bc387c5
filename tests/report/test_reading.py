"""From files to runs: lm-eval's folders and stores, whole and broken."""

import dataclasses
import hashlib
import json

import pytest
from report_files import TIME, fill_store, write_evaluation
from report_runs import make_run

from lm_power.errors import UserError
from lm_power.report.reading import read_runs
from lm_power.report.summary import summarise

POWER = {"seconds": 100.0}
"""Longer than any completion of the synthetic runs took."""

HOSTILE = (
    "<script>alert(1)</script>",
    "\\end{document} $ % # _ & ~ ^ {}",
    "\x1b[31mred\x1b[0m \x00 \u202eright to left",
    "| a | b |\n\n# heading\r\n",
    "=cmd|' /C calc'!A0",
    "x" * 1_000_000,
    "",
)


def read(*sources):
    return read_runs([str(source) for source in sources])


def damaged_lines(path, change):
    """The lines of the file at `path`, changed in place."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def samples_of(folder, task="pocket_sums", time=TIME):
    return folder / f"samples_{task}_{time}.jsonl"


def results_of(folder):
    return folder / f"results_{TIME}.json"


def test_a_folder_gives_back_the_run_that_was_written(tmp_path):
    """Every field of every answer; what the log has not (log p of the whole text) follows from what it has."""
    run = make_run(problems=5, n=3, **POWER)
    write_evaluation(tmp_path / "out" / "model", run)
    (back,) = read(tmp_path)
    assert [p.doc_hash for p in back.problems] == [p.doc_hash for p in run.problems]
    for mine, theirs in zip(back.problems, run.problems, strict=True):
        for completion, wanted in zip(mine.completions, theirs.completions, strict=True):
            assert completion.sum_log_prob == pytest.approx(wanted.sum_log_prob)
            assert dataclasses.replace(completion, sum_log_prob=wanted.sum_log_prob) == wanted
        assert dataclasses.replace(mine, completions=theirs.completions) == theirs
    assert (back.label, back.model, back.method) == ("pocket/model, power, alpha=4", "pocket/model", "power")
    assert (back.task, back.filter, back.task_version, back.n) == ("pocket_sums", "none", "1.0", 3)
    assert (back.seconds, back.has_answers, back.has_correct, back.has_self_reward) == (100.0, True, True, True)
    assert back.options["mcmc_steps"] == 5
    assert back.options["max_new_tokens"] == 40  # what the task asked for, not the sampler's default
    assert back.notes == ()


def test_hostile_texts_come_back_as_they_were(tmp_path):
    """Hash-equal: reading neither cleans nor cuts; that is for those who show them."""
    run = make_run(problems=7, n=2, **POWER)
    problems = [
        dataclasses.replace(
            p, completions=tuple(dataclasses.replace(a, text=HOSTILE[i], answer=HOSTILE[i]) for a in p.completions)
        )
        for i, p in enumerate(run.problems)
    ]
    write_evaluation(tmp_path, dataclasses.replace(run, problems=tuple(problems)))
    (back,) = read(tmp_path)
    got = [hashlib.sha256(p.completions[1].text.encode()).hexdigest() for p in back.problems]
    assert got == [hashlib.sha256(text.encode()).hexdigest() for text in HOSTILE]
    assert [p.completions[0].answer for p in back.problems] == list(HOSTILE)


def test_results_and_samples_are_paired_by_their_time(tmp_path):
    """Two commands into one folder: each gets its own samples, oldest first, whatever the order on disk."""
    first, second = make_run("a", problems=3, seed=1, **POWER), make_run("b", problems=4, seed=2, **POWER)
    write_evaluation(tmp_path, second, time="2026-01-02T00-00-00.000000")
    write_evaluation(tmp_path, first, time="2026-01-01T00-00-00")
    runs = read(tmp_path)
    assert [len(run.problems) for run in runs] == [3, 4]
    assert [run.problems[0].completions[0].text for run in runs] == [
        r.problems[0].completions[0].text for r in (first, second)
    ]
    only = read(tmp_path / "results_2026-01-02T00-00-00.000000.json")
    assert [len(run.problems) for run in only] == [4]


def test_one_command_with_several_tasks_and_filters(tmp_path):
    """A run for each task and filter; the command's time, which covers all tasks, is given to none."""
    runs = [
        make_run("a", problems=3, task="one", **POWER),
        make_run("b", problems=3, task="two", filter="strict", **POWER),
        make_run("c", problems=3, task="two", filter="flexible", **POWER),
    ]
    write_evaluation(tmp_path, *runs)
    back = read(tmp_path)
    assert [(run.task, run.filter) for run in back] == [("one", "none"), ("two", "strict"), ("two", "flexible")]
    assert all(run.seconds is None and "2 tasks" in run.notes[0] for run in back)
    assert [run.problems for run in back] != [back[0].problems] * 3


def test_padding_of_a_short_rank_is_left_out(tmp_path):
    """Under several processes the last document of a short rank gets too many texts; they come after its own."""
    write_evaluation(tmp_path, make_run(problems=3, n=2, **POWER))
    damaged_lines(samples_of(tmp_path), lambda lines: (lines[2]["resps"][0].extend(["", ""]), lines.reverse()))
    (back,) = read(tmp_path)
    assert [p.doc_id for p in back.problems] == [0, 1, 2]
    assert [len(p.completions) for p in back.problems] == [2, 2, 2]


def test_another_model_has_gaps_and_no_zeros(tmp_path):
    run = make_run(problems=3, n=2, method="standard")
    write_evaluation(tmp_path, run, power=False)
    (back,) = read(tmp_path)
    completion = back.problems[0].completions[0]
    assert (completion.self_reward, completion.sum_log_prob, completion.tokens, completion.tokens_decoded) == (
        None,
    ) * 4
    assert (completion.seconds, completion.steps, completion.finish_reason) == (None,) * 3
    assert completion.correct is not None
    assert (back.method, back.has_self_reward, back.has_correct) == ("greedy", False, True)


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        ({}, "greedy"),
        ({"do_sample": False, "temperature": 0.7}, "greedy"),
        ({"temperature": 0.7}, "sampled, temperature=0.7"),
        ({"do_sample": True}, "sampled"),
    ],
)
def test_how_another_model_sampled(tmp_path, generation, sampling):
    write_evaluation(tmp_path, make_run(problems=1, n=1), power=False)

    def change(lines):
        lines[0]["arguments"]["gen_args_0"]["arg_1"] = {"until": [], **generation}

    damaged_lines(samples_of(tmp_path), change)
    assert read(tmp_path)[0].sampling == sampling


def test_gen_kwargs_override_the_models_options(tmp_path):
    """--gen_kwargs alpha=2: the results file has it in the requests only."""
    write_evaluation(tmp_path, make_run(problems=1, n=1, **POWER))
    damaged_lines(samples_of(tmp_path), lambda lines: lines[0]["arguments"]["gen_args_0"]["arg_1"].update(alpha=2))
    assert read(tmp_path)[0].sampling == "power, alpha=2"


def test_logs_of_other_versions_of_lm_power_and_lm_eval(tmp_path):
    """Sampler options that this version does not know are shown; `model_args` may be the command line's text."""
    run = make_run(problems=1, n=1, options={"alpha": 4.0, "particles": 8}, **POWER)
    write_evaluation(tmp_path, run, model_args="pretrained=me/tuned,peft=me/lora,dtype=float32")
    (back,) = read(tmp_path)
    assert (back.options["particles"], back.options["alpha"]) == (8, 4.0)
    assert back.model == "tuned + lora"


def test_random_weights_are_another_model(tmp_path):
    write_evaluation(
        tmp_path, make_run(problems=1, n=1, **POWER), model_args={"pretrained": "Q/base", "randomize_weights": True}
    )
    assert read(tmp_path)[0].label == "base (RandW), power, alpha=4"


def test_a_merged_adapter_is_named_apart_from_the_unmerged_one(tmp_path):
    """Guards a comparison of the two, in logs or in stores, against rows that name one model twice."""
    arguments = {"pretrained": "Q/base", "peft": "me/lora"}
    write_evaluation(tmp_path / "logs", make_run(problems=1, n=1, **POWER), model_args=arguments)
    write_evaluation(
        tmp_path / "merged", make_run(problems=1, n=1, seed=1, **POWER), model_args={**arguments, "merge_adapter": True}
    )
    fill_store(tmp_path / "store", {"a": 1}, model="Q/base+peft=me/lora@0123456789abcdef")
    fill_store(tmp_path / "merged store", {"a": 1}, model="Q/base+peft=me/lora+merged@fedcba9876543210")
    runs = read(*(tmp_path / name for name in ("logs", "merged", "store", "merged store")))
    assert [run.model for run in runs] == ["base + lora", "base + lora (merged)"] * 2


@pytest.mark.parametrize(
    ("metrics", "correct", "note"),
    [
        ({"exact_match": 1.0}, 1.0, "exact_match"),
        ({"acc": False, "exact_match": 1.0}, 0.0, "acc"),
        ({"bleu": 17.0}, None, "bleu"),
    ],
)
def test_a_task_that_is_not_ours(tmp_path, metrics, correct, note):
    """The document's verdict is the one completion's; which metric it is, or that there is none, is told."""
    write_evaluation(tmp_path, make_run(problems=1, n=1))

    def change(lines):
        del lines[0]["doc"]["lm_power"], lines[0]["acc"]
        lines[0].update(metrics, metrics=list(metrics), filtered_resps=["42"])

    damaged_lines(samples_of(tmp_path), change)
    (back,) = read(tmp_path)
    assert back.problems[0].completions[0].correct == correct
    assert back.problems[0].completions[0].answer == "42"
    assert any(note in text for text in back.notes)
    assert not back.has_answers


@pytest.mark.parametrize("graded", [True, False])
def test_several_completions_of_a_task_that_is_not_ours(tmp_path, graded):
    """Guards stock majority votes: one verdict per document is its accuracy, and none of a single completion.

    Padding goes by `repeats`.
    """
    write_evaluation(tmp_path, make_run(problems=2, n=3))

    def change(lines):
        for line in lines:
            del line["doc"]["lm_power"]
            line["filtered_resps"] = [line["resps"][0][0]]
            del line["acc"]
            line.update({"exact_match": float(line["doc_id"])} if graded else {"bleu": 17.0})
        lines[1]["resps"][0].append("padding")

    damaged_lines(samples_of(tmp_path), change)
    (back,) = read(tmp_path)
    assert [len(p.completions) for p in back.problems] == [3, 3]
    assert not back.has_correct
    assert [p.verdict for p in back.problems] == ([0.0, 1.0] if graded else [None, None])
    summary = summarise(back)
    if graded:
        assert summary.accuracy.value == 0.5
        assert "exact_match, which judges the 3 completions of a document together" in back.notes[0]
    else:
        assert summary.accuracy is None and "unknown" in back.notes[0]
    assert summary.any_correct is None and summary.majority is None


def test_a_task_that_generates_no_text_is_said_to_be_left_out(tmp_path):
    """Guards a command with a multiple-choice task beside ours: the report dropped it without a word."""
    write_evaluation(tmp_path, make_run(problems=2, n=1))
    results = json.loads(results_of(tmp_path).read_text())
    results["configs"]["arc"] = {"task": "arc", "output_type": "multiple_choice"}
    results["results"]["arc"] = {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.125}
    results_of(tmp_path).write_text(json.dumps(results))
    (run,) = read(tmp_path)
    (note,) = (note for note in run.notes if "arc" in note)
    assert "arc, which generates no text and is not shown here; lm-eval's results for it: acc 0.250 ± 0.125" in note


def test_a_log_without_some_columns_has_gaps(tmp_path):
    """Older logs have no cost; code tasks no answers."""
    write_evaluation(tmp_path, make_run(problems=2, n=2, **POWER))

    def change(lines):
        for line in lines:
            del line["doc"]["lm_power"]["cost"], line["doc"]["lm_power"]["answer"]

    damaged_lines(samples_of(tmp_path), change)
    (back,) = read(tmp_path)
    assert back.problems[0].completions[0].tokens_decoded is None
    assert back.problems[0].completions[0].self_reward is not None
    assert not back.has_answers


def test_a_resumed_run_has_no_seconds(tmp_path):
    """Its last command took less time than a completion of it: the wall-clock is another command's."""
    write_evaluation(tmp_path, make_run(problems=3, n=2, seconds=0.01))
    (back,) = read(tmp_path)
    assert back.seconds is None
    assert "resumed" in back.notes[0]


def test_a_repeated_command_counts_once(tmp_path):
    """The same command again, its completions from the store: one run, and the report says so."""
    run = make_run(problems=3, n=2, **POWER)
    write_evaluation(tmp_path, run)
    write_evaluation(tmp_path, run, time="2026-01-02T00-00-00.000000")
    (back,) = read(tmp_path)
    assert "1 earlier run" in back.notes[0]


def test_labels(tmp_path):
    write_evaluation(tmp_path / "a=b", make_run(problems=1, n=1, **POWER))
    assert read(f"mine={tmp_path}/a=b")[0].label == "mine"
    assert read(tmp_path / "a=b")[0].label == "pocket/model, power, alpha=4"
    assert read(f"power, alpha=4={tmp_path}/a=b")[0].label == "power, alpha=4"


def test_a_served_model_has_the_name_that_the_server_tells(tmp_path):
    """Guards runs of one server taken for runs of two models: lm-eval makes up a name for each command."""
    for place, name in (("one", "brave-otter"), ("two", "quiet-heron")):
        sampler = {"method": "power", "alpha": 4, "seed": 0, "model": f"Qwen/Q-7B (root /{place}/q)"}
        config = {"model": "power-api", "model_args": {"base_url": "http://x/v1/completions"}, "power_sampler": sampler}
        write_evaluation(tmp_path / place, make_run(problems=1, n=1, **POWER), model_name=name, config=config)
    runs = [read(tmp_path / place)[0] for place in ("one", "two")]
    assert [run.label for run in runs] == ["Q-7B, power, alpha=4"] * 2
    assert runs[0].settings["weights"] != runs[1].settings["weights"], "another checkpoint under one name"


def cut_bytes(path):
    path.write_bytes(path.read_bytes()[:-40])


def lines_changed(change):
    """A way to break a folder: change the lines of its samples."""
    return lambda folder: damaged_lines(samples_of(folder), change)


def log(lines):
    return lines[0]["doc"]["lm_power"]


def no_text_generation(folder):
    results = json.loads(results_of(folder).read_text())
    results["configs"]["pocket_sums"]["output_type"] = "multiple_choice"
    results_of(folder).write_text(json.dumps(results))


BREAKS = {
    "truncated results": (lambda d: results_of(d).write_text('{"results": {'), "is not JSON"),
    "results that are none": (lambda d: results_of(d).write_text("[1]"), "not a complete results file"),
    "results of something else": (
        lambda d: results_of(d).write_text('{"results": {}, "config": {}, "configs": {"a": 1}}'), "must be objects",
    ),
    "no samples": (lambda d: samples_of(d).unlink(), "no samples of pocket_sums"),
    "samples without results": (lambda d: results_of(d).unlink(), "no results file of the same time"),
    "a torn last line": (lambda d: cut_bytes(samples_of(d)), r"jsonl:3: is not JSON .*still being written"),
    "a missing line": (lines_changed(lambda lines: lines.pop()), "has 2 documents .* says 3"),
    "an empty file": (lambda d: samples_of(d).write_text(""), "is empty"),
    "no prompt": (lines_changed(lambda lines: lines[1].pop("arguments")), r"jsonl:2: .*arguments"),
    "fewer rewards": (lines_changed(lambda lines: log(lines)["self_reward"].pop()), r"jsonl:1: .*self_reward"),
    "fewer texts": (lines_changed(lambda lines: lines[0]["resps"][0].pop()), r"jsonl:1: .*are logged for 1"),
    "no verdict": (lines_changed(lambda lines: log(lines).update(correct=[None, 1.0])), r"jsonl:1: "),
    "a verdict of 7": (lines_changed(lambda lines: log(lines).update(correct=[7, 1])), "not between 0 and 1"),
    "uneven documents": (lines_changed(lambda lines: [c.pop() for c in log(lines).values()]), "1 to 2 completions"),
    "no text generation": (no_text_generation, "none of its tasks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_broken_files_are_refused_by_name(tmp_path, name):
    """Cut off, still being written, or damaged: an error that names file (and line) and a way out, never a row."""
    break_it, message = BREAKS[name]
    write_evaluation(tmp_path, make_run(problems=3, n=2, **POWER))
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_sources_that_are_nothing(tmp_path):
    write_evaluation(tmp_path / "run", make_run(problems=1, n=1, **POWER))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.jsonl").write_text('{"text": "no completion"}\n')
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "a.jsonl").write_text("")
    for source, message in {
        "nowhere": "no such file",
        "empty": "holds no results",
        "other": "is not a completion",
        "void": "no completions yet",
        "other/data.jsonl": "is not a results file",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / source)
    with pytest.raises(UserError, match="given twice"):
        read(tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match="empty label"):
        read(f"={tmp_path}/run")


def test_the_same_completions_under_two_labels_are_refused(tmp_path):
    """They would be tested against themselves."""
    run = make_run(problems=2, n=1, **POWER)
    write_evaluation(tmp_path / "a", run)
    write_evaluation(tmp_path / "b", run)
    with pytest.raises(UserError, match="the same completions"):
        read(f"one={tmp_path}/a", f"two={tmp_path}/b")


# Stores


def test_a_store_gives_a_run_without_verdicts(tmp_path):
    fill_store(tmp_path, {"what?": 2, "why": 2}, alpha=2)
    (run,) = read(tmp_path)
    assert (run.label, run.task, run.n, run.has_correct) == ("pocket/model (RandW), power, alpha=2", None, 2, False)
    completion = run.problems[0].completions[1]
    assert (completion.text, completion.self_reward, completion.sum_log_prob, completion.tokens) == (
        "what? 1",
        -0.5,
        -1.5,
        3,
    )
    assert (completion.tokens_decoded, completion.seconds, completion.steps.cut) == (9, 1.5, (0, 1))
    assert run.problems[0].prompt_hash == hashlib.sha256(b"what?").hexdigest()
    assert "verdicts" in run.notes[0]


def test_a_store_of_a_served_model_has_its_name(tmp_path):
    """Guards a label made of the end of the server's path, and a folder's brackets taken for a server's."""
    for place, model, shown in (("a", "Qwen/Q-7B (root /models/q)", "Q-7B"), ("b", "models/q (copy)", "q (copy)")):
        fill_store(tmp_path / place, {"a": 1}, model=model)
        assert read(tmp_path / place)[0].model == shown


def test_a_store_whose_model_is_spelt_in_two_ways_is_one_run(tmp_path):
    """Guards a resumed run that was started from another folder."""
    fill_store(tmp_path, {"a": 2, "bb": 2})
    file = next(tmp_path.glob("*.jsonl"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for place, line in enumerate(lines):
        line["model"] = f"{'./' * (place == 0)}models/m@0123456789abcdef"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read(tmp_path)
    assert (run.n, len(run.problems)) == (2, 2)


def test_a_store_of_several_seeds_and_of_a_run_still_going_on(tmp_path):
    """A run for each way of sampling; prompts without all their completions are left out, and counted."""
    fill_store(tmp_path, {"a": 3, "bb": 3, "ccc": 1})
    fill_store(tmp_path, {"a": 1}, seed=1)
    file = sorted(tmp_path.glob("*.jsonl"))[-1]
    file.write_bytes(file.read_bytes() + b'{"format": 2, "key"')
    one, other = sorted(read(tmp_path), key=lambda run: -run.n)
    assert ([p.prompt for p in one.problems], one.n) == (["a", "bb"], 3)
    assert any("1 of 3 prompts" in note for note in one.notes)
    assert ([p.prompt for p in other.problems], other.n) == (["a"], 1)


def test_a_task_that_is_judged_elsewhere_has_no_verdicts(tmp_path):
    """Guards a run of power_alpaca_eval, which logs no `correct`, taken for a damaged file or for all wrong."""
    write_evaluation(tmp_path, make_run(problems=2, n=2, **POWER))

    def without_verdicts(lines):
        for line in lines:
            del line["doc"]["lm_power"]["correct"], line["doc"]["lm_power"]["answer"]

    damaged_lines(samples_of(tmp_path), without_verdicts)
    (run,) = read(tmp_path)
    assert not run.has_correct and run.has_self_reward and not run.has_answers
    assert all(completion.correct is None for problem in run.problems for completion in problem.completions)
