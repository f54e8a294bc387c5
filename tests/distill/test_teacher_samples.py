"""Teacher data from lm-eval's samples files, of any model, and their verdicts on a store's completions."""

import json

import pytest
from teacher_files import (
    CONFIG,
    EOS,
    MODEL,
    TOKENIZER,
    completion,
    ids,
    put,
    sample,
    store_lines,
    write_lines,
    write_samples,
)

from lm_power.distill.options import Selection
from lm_power.distill.teacher import read_teacher
from lm_power.errors import LMPowerError
from lm_power.logs.samples import VERDICTS

OURS = {
    "correct": [0.0, 1.0],
    "self_reward": [-0.5, -0.75],
    "finish_reason": ["length", "eos"],
    "cost": [{"tokens_decoded": 7}, {"tokens_decoded": 9}],
}
STORED = {**CONFIG.relevant_options(), "stop": [], "eos_ids": [EOS]}
RESULTS = {
    "config": {"model": "power-hf", "power_sampler": {"method": "power", "alpha": 4.0, "model": MODEL}},
    "model_name": "some/model",
}


def read(*paths, tokenizer=TOKENIZER, eos_ids=(EOS,), **options):
    return read_teacher(paths, tokenizer, Selection(**options), eos_ids=eos_ids)


def refused(*paths, **options) -> str:
    with pytest.raises(LMPowerError) as caught:
        read(*paths, **options)
    return str(caught.value)


def test_our_samples_tell_what_a_store_tells(tmp_path):
    """Guards the columns of doc["lm_power"]: how each ended, its self-reward, cost and verdict, in order."""
    path = write_samples(tmp_path, sample(0, "2+2=", [" so 5", " so 4"], OURS), **RESULTS)
    data = read(path, select="all")
    cut, whole = data.samples
    assert (cut.prompt, cut.prompt_ids, cut.token_ids) == ("2+2=", ids("2+2="), ids(" so 5"))
    assert (cut.finish_reason, cut.self_reward, cut.repeat, cut.tokens_decoded) == ("length", -0.5, 0, 7)
    assert (whole.token_ids, whole.finish_reason, whole.repeat) == ((*ids(" so 4"), EOS), "eos", 1)
    assert whole.where == f"{path}:1"
    assert data.model == MODEL
    assert data.config == {name: value for name, value in STORED.items() if name != "eos_ids"}
    assert [s.token_ids for s in read(path, correct_only=True).samples] == [whole.token_ids]
    assert [s.token_ids for s in read(path, finished_only=True).samples] == [whole.token_ids]
    assert [s.token_ids for s in read(path, select="best").samples] == [cut.token_ids]


def test_another_model_tells_its_texts_alone(tmp_path):
    """Guards against an EOS learnt by guess: the default learns none, and the summary says so."""
    path = write_samples(tmp_path, sample(0, "2+2=", [" so 4"], acc=1.0))
    data = read(path)
    (one,) = data.samples
    assert (one.token_ids, one.finish_reason, one.self_reward, one.tokens_decoded) == (ids(" so 4"), None, None, None)
    assert data.model is None and data.config == {"until": [], "max_gen_toks": 200}
    summary = data.summary()
    assert "100.0% not told; EOS is learnt only where it is known" in summary
    assert "teacher: not told by the files" in summary and "cost not told" in summary
    (assumed,) = read(path, assume_eos=True).samples
    assert (assumed.token_ids, assumed.finish_reason) == ((*ids(" so 4"), EOS), "eos")
    assert "leave finished_only out" in refused(path, finished_only=True).lower()
    assert "no self-reward" in refused(path, select="best")


def test_which_eos_is_appended(tmp_path):
    """Guards models with several EOS tokens: the tokenizer's own, else the first of the model's."""
    path = write_samples(tmp_path, sample(0, "2+2=", [" so 4"], {"finish_reason": ["eos"]}))
    assert read(path, eos_ids=(7, EOS)).samples[0].token_ids[-1] == EOS
    assert read(path, eos_ids=(7, 8)).samples[0].token_ids[-1] == 7


def test_padding_and_empty_completions_are_dropped(tmp_path):
    """Guards against learning what lm-eval added to even out its processes, and empty texts."""
    path = write_samples(
        tmp_path,
        sample(0, "2+2=", ["", " so 4", "", " so 9"], {"finish_reason": [None, "eos"]}),
        sample(1, "3+3=", [""]),
    )
    data = read(path, select="all")
    assert [s.token_ids for s in data.samples] == [(*ids(" so 4"), EOS)]
    assert data.counts == {"read": 5, "data-parallel padding": 2, "without a token": 2, "kept": 1}


def test_an_end_at_once_is_learnt_where_it_is_known(tmp_path):
    """Guards the law of short completions: a model that answers with EOS alone said something."""
    path = write_samples(tmp_path, sample(0, "2+2=", [""], {"finish_reason": ["eos"]}))
    assert [s.token_ids for s in read(path).samples] == [(EOS,)]


def test_documents_come_in_the_order_of_the_data_set(tmp_path):
    """Guards the order of training against the number of processes, which log their documents one by one."""
    rows = [sample(n, f"{n}+0=", [f" so {n}"]) for n in range(4)]
    one = read(write_samples(tmp_path / "one", *rows))
    two = read(write_samples(tmp_path / "two", rows[0], rows[2], rows[1], rows[3]))
    assert [s.prompt for s in two.samples] == [s.prompt for s in one.samples] == ["0+0=", "1+0=", "2+0=", "3+0="]


def test_a_task_with_two_filters_is_read_once(tmp_path):
    """Guards against completions doubled by lm-eval's line a filter; one filter's verdict is enough."""
    rows = [sample(n, f"{n}+0=", [f" so {n}"], exact_match=0.0) for n in range(2)]
    again = [{**row, "filter": "flexible", "exact_match": float(n == 1)} for n, row in enumerate(rows)]
    path = write_samples(tmp_path, *rows, *again)
    assert read(path).counts == {"read": 2, "kept": 2}
    assert [s.prompt for s in read(path, correct_only=True).samples] == ["1+0="]


def test_the_same_run_logged_twice_counts_once(tmp_path):
    """Guards against a resumed evaluation, which logs all its completions again under another time."""
    row = sample(0, "2+2=", [" so 5", " so 4"], OURS)
    write_samples(tmp_path, row, **RESULTS)
    write_samples(tmp_path, row, time="2026-01-02T09-00-00.000001", **RESULTS)
    data = read(tmp_path, select="all", deduplicate=False)
    assert data.counts == {"read": 4, "read before (copies of one draw)": 2, "kept": 2}


def test_verdicts_that_are_not_there(tmp_path):
    """Guards against a metric of one completion, or of another kind, taken for a verdict on each."""
    several = write_samples(tmp_path / "a", sample(0, "2+2=", [" so 4", " so 5"], exact_match=1.0))
    assert "doc.lm_power.correct" in refused(several, correct_only=True) and len(read(several).samples) == 1
    ungraded = write_samples(tmp_path / "b", sample(0, "2+2=", [" so 4"], bleu=31.0))
    assert f"{ungraded}:1" in refused(ungraded, correct_only=True)


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_is_one_under_every_name(tmp_path, name):
    """Guards readers that disagree: distill knew two of the names that the report takes for verdicts."""
    path = write_samples(tmp_path, *(sample(n, f"{n}+0=", [f" so {n}"], **{name: float(n)}) for n in range(2)))
    assert [s.prompt for s in read(path, correct_only=True).samples] == ["1+0="]


def test_a_task_that_is_judged_elsewhere_teaches_too(tmp_path):
    """Guards a run of power_alpaca_eval, which logs no verdicts, taken for damaged lines."""
    row = sample(0, "2+2=", [" so 5", " so 4"], OURS)
    del row["doc"]["lm_power"]["correct"]
    path = write_samples(tmp_path, row, **RESULTS)
    assert [s.finish_reason for s in read(path, select="all").samples] == ["length", "eos"]
    assert "doc.lm_power.correct" in refused(path, correct_only=True)


def test_store_and_samples_of_one_run(tmp_path):
    """Guards the join: tokens from the store, verdicts from the samples; lines never graded are dropped."""
    run = tmp_path / "run"
    rows = [("2+2=", 0, completion(" so 5")), ("2+2=", 1, completion(" so 4")), ("9+9=", 0, completion(" so 8"))]
    put(run, *rows)
    write_samples(run / "some__model", sample(0, "2+2=", [" so 5", " so 4"], OURS), **RESULTS)
    data = read(run, correct_only=True)
    (one,) = data.samples
    (line,) = [line for line in store_lines(run) if line["repeat"] == 1]
    assert list(one.token_ids) == line["token_ids"] and one.where.startswith(str(next(run.glob("*.jsonl"))))
    assert data.counts == {"read": 3, "without a verdict in the samples files": 1, "graded wrong": 1, "kept": 1}
    assert data.config == line["config"] and len(data.files) == 2
    assert len(read(run, select="all").samples) == 3


@pytest.mark.parametrize("told_as_drawn", [True, False])
def test_thinking_that_was_taken_off_before_grading(tmp_path, told_as_drawn):
    """Guards `think_end_token`: the log's texts are not the store's, and each completion entered twice or was refused.

    A log of an earlier version does not have the texts as they were drawn.
    """
    thoughts = completion("<so 4> so 4", self_reward=-0.25), completion("<so 5> so 5", self_reward=-0.125)
    run = put(tmp_path, *(("2+2=", repeat, drawn) for repeat, drawn in enumerate(thoughts)))
    told = {
        "correct": [1.0, 0.0],
        "self_reward": [drawn.self_reward for drawn in thoughts],
        "finish_reason": ["eos", "eos"],
        "cost": [{"tokens_decoded": drawn.stats.tokens_decoded} for drawn in thoughts],
        **({"drawn": list(thoughts)} if told_as_drawn else {}),
    }
    logged = write_samples(run / "some__model", sample(0, "2+2=", [" so 4", " so 5"], told), **RESULTS)
    right = read(run, correct_only=True, select="all")
    assert [s.token_ids for s in right.samples] == [thoughts[0].token_ids]
    assert read(run, select="all").counts == {"read": 2, "kept": 2}
    alone = read(logged, select="all").samples
    assert [s.token_ids for s in alone] == [
        d.token_ids if told_as_drawn else (*ids(t), EOS) for d, t in zip(thoughts, (" so 4", " so 5"), strict=True)
    ]


def test_samples_of_another_run_are_not_joined(tmp_path):
    """Guards against verdicts on completions that share a run's prompts by chance."""
    store = put(tmp_path / "store", ("2+2=", 0, completion(" so 4")))
    half = write_samples(tmp_path / "half", sample(0, "2+2=", [" so 4", " so 5"], OURS), **RESULTS)
    message = refused(store, half)
    assert f"{half}:1" in message and "completion 1 is in none of the stores" in message and "1 of the 2" in message
    other = write_samples(tmp_path / "other", sample(0, "3+3=", [" so 6"], {"finish_reason": ["eos"]}), **RESULTS)
    assert "drawn in two ways" in refused(store, other)
    both = read(store, other, mixed_settings=True)
    assert (
        [s.prompt for s in both.samples] == ["2+2=", "3+3="]
        and both.config["alpha"] == 4.0
        and "eos_ids" not in both.config
    )
    stranger = {**RESULTS, "config": {"power_sampler": {"model": "some/model@ffffffffffffffff"}}}
    foreign = write_samples(tmp_path / "foreign", sample(0, "2+2=", [" so 4"], {"finish_reason": ["eos"]}), **stranger)
    assert "two models" in refused(store, foreign, mixed_settings=True)


def test_models_are_told_by_the_results_file(tmp_path):
    """Guards against two models in one folder; an adapter is another model."""
    plain = {"config": {"model": "hf", "model_args": {"pretrained": "some/model"}}, "model_name": "some/model"}
    tuned = {**plain, "config": {"model": "hf", "model_args": {"pretrained": "some/model", "peft": "runs/lora"}}}
    a = write_samples(tmp_path / "a", sample(0, "2+2=", [" so 4"]), **plain)
    b = write_samples(tmp_path / "b", sample(0, "3+3=", [" so 6"]), **tuned)
    assert read(a).model == "some/model"
    message = refused(a, b)
    assert "some/model (" in message and "some/model+peft=runs/lora" in message
    # power-hf knows the fingerprint of the same model.
    ours = write_samples(tmp_path / "c", sample(0, "3+3=", [" so 6"]), **RESULTS)
    assert read(a, ours, mixed_settings=True).model == MODEL
    write_lines(tmp_path / "d" / "results_now.json", ["{"])
    assert "results_now.json" in refused(write_samples(tmp_path / "d", sample(0, "3+3=", [" so 6"]), time="now"))


def test_chat_messages_are_rendered_by_the_students_template(tmp_path):
    """Guards chat APIs, whose prompts are logged as messages: the student sees its own template."""
    import copy

    messages = [{"role": "user", "content": "2+2="}]
    path = write_samples(tmp_path, sample(0, [json.dumps(messages)], [" so 4"]))
    assert "no chat template" in refused(path)
    chatty = copy.deepcopy(TOKENIZER)
    chatty.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (one,) = read(path, tokenizer=chatty).samples
    assert one.prompt == "[user]2+2=[assistant]" and one.prompt_ids == ids(one.prompt)


def test_a_text_that_the_tokenizer_does_not_give_back(tmp_path):
    """Guards against EOS learnt in the middle, where a model spelt the special token out."""
    path = write_samples(tmp_path, sample(0, "2+2=", [f" so {TOKENIZER.eos_token} 4"]), sample(1, "3+3=", [" so 6"]))
    data = read(path)
    assert data.counts == {"read": 2, "whose text the tokenizer does not give back": 1, "kept": 1}
    assert all(EOS not in s.token_ids for s in data.samples)


def test_a_bos_token_is_not_doubled(tmp_path):
    """Guards prompts of templates that write BOS themselves."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", 1)])
    with_bos = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|pad|>", eos_token=TOKENIZER.eos_token)
    path = write_samples(tmp_path, sample(0, "2+2=", [" so 4"]), sample(1, "<|pad|>3+3=", [" so 6"]))
    assert [s.prompt_ids for s in read(path, tokenizer=with_bos).samples] == [(1, *ids("2+2=")), (1, *ids("3+3="))]
    assert all(1 not in s.token_ids for s in read(path, tokenizer=with_bos).samples)


GOOD = sample(0, "2+2=", [" so 5", " so 4"], OURS)


def broken(**changes):
    return {**GOOD, "doc": {**GOOD["doc"], "lm_power": {**GOOD["doc"]["lm_power"], **changes}}}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"doc_id": 1, "doc": {', "is not JSON"),
        ({"doc_id": 1, "doc": {}}, "is not a line of lm_eval --log_samples"),
        (5, "is not a line of lm_eval --log_samples"),
        ({**GOOD, "doc_id": None}, "doc_id=None"),
        ({**GOOD, "resps": [[["-1.5", "True"]], [["-2.5", "False"]]]}, "log-likelihoods"),
        ({**GOOD, "resps": [[5]]}, "holds answers of another kind of task"),
        ({**GOOD, "arguments": {}}, "holds answers of another kind of task"),
        (sample(1, ["not messages"], ["x"]), "must be a prompt, or a chat API's messages"),
        (sample(1, None, ["x"]), "arg_0=None"),
        (broken(correct=[1.0]), "one entry per completion"),
        (broken(correct=[1.0, "yes"]), "doc.lm_power"),
        (broken(finish_reason=["eos", "done"]), "doc.lm_power"),
        (broken(self_reward=None), "doc.lm_power"),
        (broken(cost=[{}, {}]), "doc.lm_power"),
        ({**GOOD, "resps": [["only one"]]}, "doc.lm_power"),
        (sample(1, "", ["x"]), "the prompt has no token"),
    ],
)
def test_damaged_lines_are_refused_with_their_place(tmp_path, row, said):
    """Guards against a line that is skipped, or read as something else."""
    path = write_samples(tmp_path, GOOD, row)
    message = refused(path)
    assert said in message and f"{path}:2" in message


def test_settings_of_the_command_line_are_the_runs(tmp_path):
    """Guards the recorded settings: generation options overrule the model's, and a store's place is none of them."""
    sampler = {"method": "power", "alpha": 4.0, "max_new_tokens": 3072, "seed": 0, "model": MODEL}
    options = {"until": ["\n\n"], "max_gen_toks": 40, "alpha": 2.0, "completions": "runs/x", "do_sample": True}
    row = sample(0, "2+2=", [" so 4"], {"finish_reason": ["eos"]}, options=options)
    data = read(write_samples(tmp_path, row, config={"power_sampler": sampler}))
    assert data.config == {**CONFIG.replace(alpha=2.0, max_new_tokens=40).relevant_options(), "stop": ["\n\n"]}
    assert "alpha=2.0" in data.summary()
    unknown = write_samples(tmp_path / "b", row, config={"power_sampler": {**sampler, "particles": 64}})
    assert "particles" in refused(unknown)
    silent = sample(0, "2+2=", [" so 4"], options={"until": "\n\n"})
    silent = read(write_samples(tmp_path / "c", silent, config={"power_sampler": {**sampler, "method": "standard"}}))
    assert silent.config == {"method": "standard", "seed": 0, "stop": ["\n\n"]}


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A folder with store and samples, written by lm-eval: pocket_sums, 6 problems, 3 completions of each."""
    from pathlib import Path

    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    folder = tmp_path_factory.mktemp("run")
    pocket = Path(__file__).parents[2] / "examples/pocket/model"
    tracker = EvaluationTracker(output_path=str(folder))
    results = lm_eval.simple_evaluate(
        model="power-hf",
        model_args={"pretrained": str(pocket), "dtype": "float32", "method": "standard", "completions": str(folder)},
        tasks=["pocket_sums"],
        device="cpu",
        batch_size=18,
        limit=6,
        gen_kwargs={"n": 3},
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="pocket_sums", samples=samples["pocket_sums"])
    return folder


def test_what_lm_eval_writes_is_understood(real_run):
    """Guards the whole against lm-eval's files as they are: both kinds alone agree, and together give verdicts."""
    stores = sorted(real_run.glob("*.jsonl"))
    (logged,) = real_run.rglob("samples_*.jsonl")
    options = {"select": "all", "deduplicate": False}
    stored, texts, joined = read(*stores, **options), read(logged, **options), read(real_run, **options)
    assert len(stored.samples) == 18 and joined.samples == stored.samples

    def told(data):
        return sorted((s.prompt_ids, s.repeat, s.token_ids, s.finish_reason, s.tokens_decoded) for s in data.samples)

    assert told(texts) == told(stored)
    assert texts.model == stored.model and {**texts.config, "eos_ids": [EOS]} == stored.config
    verdicts = [verdict for line in logged.open() for verdict in json.loads(line)["doc"]["lm_power"]["correct"]]
    right = read(real_run, correct_only=True, **options)
    assert len(right.samples) == sum(verdicts) and right.counts["graded wrong"] == 18 - sum(verdicts)
    assert 0 < sum(verdicts) < 18
