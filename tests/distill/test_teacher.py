"""Teacher data from stores: what is kept, in which order, what is refused, and how that is said."""

import json
import logging
import random
import shutil

import pytest
from teacher_files import CONFIG, EOS, MODEL, TOKENIZER, completion, ids, put, store_lines, write_lines
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lm_power.completion import Completion
from lm_power.distill.options import Selection
from lm_power.distill.teacher import read_teacher
from lm_power.errors import LMPowerError

DRAWS = [
    ("2+2=", 0, completion(" so 4", self_reward=-0.5)),
    ("2+2=", 1, completion(" so 4", self_reward=-0.5)),
    ("2+2=", 2, completion(" so 5", self_reward=-0.1)),
    ("2+2=", 3, completion(" so 44444", "length", self_reward=-0.2)),
    ("3+3=", 0, completion(" so 6", self_reward=-0.3)),
    ("3+3=", 1, completion("", self_reward=-0.9)),
]


def read(*paths, tokenizer=TOKENIZER, eos_ids=(EOS,), vocabulary=None, **options):
    return read_teacher(paths, tokenizer, Selection(**options), eos_ids=eos_ids, vocabulary=vocabulary)


def texts(data):
    """(prompt, text, whether EOS is learnt) of each sample, in a set's order."""
    return sorted(
        (s.prompt, TOKENIZER.decode(s.token_ids, skip_special_tokens=True), s.token_ids[-1] == EOS)
        for s in data.samples
    )


def refused(*paths, **options) -> str:
    with pytest.raises(LMPowerError) as caught:
        read(*paths, **options)
    return str(caught.value)


def test_a_sample_is_the_store_line(tmp_path):
    """Guards against re-tokenising, a lost EOS, and a place that does not lead back to the line."""
    folder = put(tmp_path / "store", ("2+2=", 3, completion(" so 4")))
    data = read(folder)
    (line,) = store_lines(folder)
    (sample,) = data.samples
    assert (sample.prompt, list(sample.prompt_ids), list(sample.token_ids)) == (
        line["prompt"], line["prompt_ids"], line["token_ids"],
    )  # fmt: skip
    assert (sample.finish_reason, sample.self_reward, sample.repeat) == ("eos", line["self_reward"], 3)
    assert sample.tokens_decoded == line["stats"]["tokens_decoded"]
    assert sample.where == f"{next(folder.glob('*.jsonl'))}:1"
    assert data.model == MODEL and data.config == line["config"] and data.files == (sample.where[:-2],)


def test_stored_ids_are_never_made_anew(tmp_path):
    """Guards against re-tokenising: the same text by other tokens stays by those tokens."""
    spelt = tuple(token for character in " so 4" for token in ids(character))
    assert spelt != ids(" so 4")
    folder = put(tmp_path, ("2+2=", 0, Completion(" so 4", (*spelt, EOS), [-1.0] * (len(spelt) + 1), "eos")))
    assert read(folder).samples[0].token_ids == (*spelt, EOS)


def test_one_completion_a_prompt_is_the_first_repeat(tmp_path):
    """Guards the default against a draw of the prompt's rarer completions, which dropping equal ones first would be."""
    data = read(put(tmp_path, *reversed(DRAWS)))
    assert texts(data) == [("2+2=", " so 4", True), ("3+3=", " so 6", True)]
    assert [sample.repeat for sample in data.samples] == [0, 0]
    assert data.counts["read"] == 6 and data.counts["kept"] == 2


def test_one_a_prompt_keeps_the_law_of_the_draws(tmp_path):
    """Guards against a bias of select=one: whatever equals what, the first repeat of each prompt is kept."""
    generator = random.Random(0)
    rows = [
        (f"{problem}+0=", repeat, completion(" so 4" if generator.random() < 0.8 else " so 5"))
        for problem in range(40)
        for repeat in range(4)
    ]
    first = sorted((prompt, drawn.text, True) for prompt, repeat, drawn in rows if repeat == 0)
    assert texts(read(put(tmp_path, *rows))) == first


def test_all_and_caps(tmp_path):
    """Guards select=all, per_prompt, and that equal completions count once unless told otherwise."""
    folder = put(tmp_path, *DRAWS)
    everything = [
        ("2+2=", " so 4", True), ("2+2=", " so 44444", False), ("2+2=", " so 5", True),
        ("3+3=", "", True), ("3+3=", " so 6", True),
    ]  # fmt: skip
    data = read(folder, select="all")
    assert texts(data) == everything
    assert data.counts == {"read": 6, "equal to an earlier completion of the prompt": 1, "kept": 5}
    assert texts(read(folder, select="all", deduplicate=False)) == sorted([*everything, ("2+2=", " so 4", True)])
    assert texts(read(folder, select="all", per_prompt=1)) == texts(read(folder))
    two = read(folder, select="all", per_prompt=2, deduplicate=False)
    assert [text for _, text, _ in texts(two)] == [" so 4", " so 4", "", " so 6"]


def test_the_best_by_self_reward(tmp_path):
    """Guards select=best, its cap, and that it ranks what passed the other checks."""
    folder = put(tmp_path, *DRAWS)
    assert texts(read(folder, select="best")) == [("2+2=", " so 5", True), ("3+3=", " so 6", True)]
    assert [text for _, text, _ in texts(read(folder, select="best", per_prompt=2))] == [
        " so 44444", " so 5", "", " so 6",
    ]  # fmt: skip
    finished = read(folder, select="best", per_prompt=2, finished_only=True)
    assert [text for _, text, _ in texts(finished)] == [" so 4", " so 5", "", " so 6"]


def test_finished_only(tmp_path):
    """Guards against dropping completions that a stop string ended, or keeping those that the limit cut."""
    rows = [
        ("a=", 0, completion(" so 1", "length")),
        ("a=", 1, completion(" so 2", "stop", end=ids("\n\n"))),
        ("b=", 0, completion(" so 3", "length")),
    ]
    data = read(put(tmp_path, *rows, stop=["\n\n"]), finished_only=True)
    assert texts(data) == [("a=", " so 2\n\n", False)]
    assert data.counts == {"read": 3, "unfinished (cut by the length limit)": 2, "kept": 1}


def test_min_tokens_counts_eos(tmp_path):
    """Guards the shortest length, and the next repeat standing in for one that is too short."""
    rows = [("a=", 0, completion("1")), ("a=", 1, completion("12")), ("b=", 0, completion("12", "length"))]
    assert texts(read(put(tmp_path, *rows), min_tokens=3)) == [("a=", "12", True)]
    message = refused(tmp_path, min_tokens=9)
    assert "no completion is left" in message and "3 read" in message and "3 shorter than 9 tokens" in message
    assert ".jsonl:" in message


def test_every_dropped_completion_is_counted_with_a_place(tmp_path):
    """Guards the bookkeeping: read = dropped + kept, and each reason leads to a line that has it."""
    folder = put(tmp_path, *DRAWS)
    data = read(folder, finished_only=True, min_tokens=2)
    read_, *dropped, kept = data.counts.values()
    assert read_ == sum(dropped) + kept and kept == len(data.samples)
    assert set(data.first_dropped) == set(data.counts) - {"read", "kept"}
    lines = store_lines(folder)
    place = data.first_dropped["unfinished (cut by the length limit)"]
    assert lines[int(place.rpartition(":")[2]) - 1]["finish_reason"] == "length"
    summary = data.summary()
    for said in (
        MODEL, "alpha=4.0", "2 completions of 2 prompts", "100.0% by EOS", place, "      6 read",
        f"{sum(s.tokens_decoded for s in data.samples)} tokens decoded",
    ):  # fmt: skip
        assert said in summary


def test_order_does_not_depend_on_who_finished_first(tmp_path):
    """Guards the order of training: one process or two, in whichever order they wrote, copied or not."""
    one = put(tmp_path / "one", *DRAWS)
    two = tmp_path / "two"
    put(two, *DRAWS[4:])
    put(two, *reversed(DRAWS[:4]))
    assert len(list(two.glob("*.jsonl"))) == 2
    options = {"select": "all", "deduplicate": False}
    seen = [(s.prompt, s.token_ids, s.repeat) for s in read(one, **options).samples]
    assert [(s.prompt, s.token_ids, s.repeat) for s in read(two, **options).samples] == seen
    assert [(s.prompt, s.token_ids, s.repeat) for s in read(*sorted(two.glob("*.jsonl")), **options).samples] == seen
    shutil.copytree(one, tmp_path / "copy")
    both = read(one, tmp_path / "copy", one, **options)
    assert [(s.prompt, s.token_ids, s.repeat) for s in both.samples] == seen
    assert both.counts["read before (copies of one draw)"] == len(DRAWS)


def test_a_store_that_is_being_written_is_read(tmp_path, caplog):
    """Guards against refusing, or mending, the torn last line of a run that goes on."""
    folder = put(tmp_path, *DRAWS[:2], DRAWS[4])
    (path,) = folder.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    (folder / "other.jsonl").write_bytes(b"")
    (folder / "third.jsonl").write_bytes(b'{"format": 2, "key": "0')
    with caplog.at_level(logging.WARNING):
        data = read(folder)
    assert texts(data) == [("2+2=", " so 4", True)]
    assert "an incomplete last line" in caplog.text and "third.jsonl: holds no whole line" in caplog.text
    assert path.read_bytes() == whole[:-20]


def test_settings_may_differ_in_the_seed_alone(tmp_path):
    """Guards against two ways of drawing taken for one, and against refusing more draws of the same way."""
    put(tmp_path / "a", DRAWS[0])
    put(tmp_path / "b", ("2+2=", 0, completion(" so 5")), config=CONFIG.replace(seed=1))
    put(tmp_path / "c", ("4+4=", 0, completion(" so 8")), config=CONFIG.replace(alpha=2.0))
    data = read(tmp_path / "a", tmp_path / "b", select="all")
    assert len(data.samples) == 2 and "seed" not in data.config and data.config["alpha"] == 4.0
    message = refused(tmp_path / "a", tmp_path / "c")
    assert "alpha=4.0" in message and "alpha=2.0" in message and message.count(".jsonl:1") == 2
    assert "block_size" not in message and "mixed_settings" in message
    mixed = read(tmp_path / "a", tmp_path / "c", mixed_settings=True)
    assert len(mixed.samples) == 2 and "alpha" not in mixed.config and mixed.config["block_size"] == 192


def test_two_models_are_refused(tmp_path):
    """Guards against two teachers taken for one; the fingerprint decides, not the name."""
    put(tmp_path / "a", DRAWS[0])
    put(tmp_path / "b", DRAWS[4], model="some/model@fedcba9876543210")
    put(tmp_path / "c", DRAWS[4], model="moved/elsewhere@0123456789abcdef")
    message = refused(tmp_path / "a", tmp_path / "b", mixed_settings=True)
    assert MODEL in message and "some/model@fedcba9876543210" in message and message.count(".jsonl:1") == 2
    assert len(read(tmp_path / "a", tmp_path / "c").samples) == 2


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_ids", [3, "4"], "token_ids=[3, '4']"),
        ("token_ids", [3, -4], "must be a list of token ids"),
        ("prompt_ids", [], "at least one token id"),
        ("prompt", None, "prompt=None"),
        ("text", 5, "text=5"),
        ("finish_reason", "done", "finish_reason='done'"),
        ("repeat", True, "repeat=True"),
        ("self_reward", "high", "self_reward='high'"),
        ("config", {}, "config={}"),
        ("stats", {}, "tokens_decoded"),
        ("model", None, "model=None"),
        ("key", 7, "key=7"),
    ],
)
def test_a_damaged_field_is_refused_with_its_place(tmp_path, field, value, said):
    """Guards against a wrong value that passes on into training."""
    lines = store_lines(put(tmp_path / "store", *DRAWS[:2]))
    lines[1][field] = value
    message = refused(write_lines(tmp_path / "bad.jsonl", lines))
    assert said in message and "bad.jsonl:2" in message


def test_damaged_files_are_refused(tmp_path):
    """Guards against a damaged line taken for a torn one, and against files of another kind."""
    good = [json.dumps(line) for line in store_lines(put(tmp_path / "store", *DRAWS[:2]))]
    assert "mid.jsonl:2" in refused(write_lines(tmp_path / "mid.jsonl", [good[0], good[1][:-9], good[1]]))
    assert "first.jsonl:1" in refused(write_lines(tmp_path / "first.jsonl", [good[0][:-9], good[1]]))
    newer = json.dumps({**json.loads(good[0]), "format": 99})
    assert "newer" in refused(write_lines(tmp_path / "newer.jsonl", [newer]))
    other = refused(write_lines(tmp_path / "log.jsonl", [{"loss": 1.0}]))
    assert "log.jsonl" in other and "--log_samples" in other
    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    assert "holds no .jsonl" in refused(tmp_path / "bare")
    assert "empty" in refused(write_lines(tmp_path / "empty.jsonl", []))
    assert "no teacher file" in refused()


def test_a_completion_without_tokens_is_dropped(tmp_path):
    """Guards the loss against a sample that has nothing to learn."""
    data = read(put(tmp_path, ("a=", 0, Completion("", (), (), "length")), DRAWS[0]))
    assert data.counts["without a token"] == 1 and texts(data) == [("2+2=", " so 4", True)]
    assert "no completion is left" in refused(put(tmp_path / "b", ("a=", 0, Completion("", (), (), "length"))))


def swapped(one: str, other: str) -> PreTrainedTokenizerFast:
    """The tokenizer with the ids of two one-token texts exchanged."""
    whole = json.loads(TOKENIZER.backend_tokenizer.to_str())
    (first,), (second,) = ids(one), ids(other)
    spelt = {token: piece for piece, token in whole["model"]["vocab"].items()}
    whole["model"]["vocab"] |= {spelt[first]: second, spelt[second]: first}
    inner = Tokenizer.from_str(json.dumps(whole))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=TOKENIZER.eos_token)


def test_another_tokenizer_is_refused(tmp_path):
    """Guards against learning another tokenizer's ids: shown are the place and both texts."""
    folder = put(tmp_path, ("2+2=", 0, completion(" 2 so 4")))
    message = refused(folder, tokenizer=swapped("7", " so"))
    assert ".jsonl:1" in message and "from character 2 on" in message
    assert "it makes '7 4' of the tokens" in message and "says ' so 4'" in message
    largest = max(ids(" 2 so 4"))
    assert f"token {largest} lies outside its vocabulary of {largest}" in refused(folder, vocabulary=largest)
    assert "ended by token 0, the student's EOS is 1" in refused(folder, eos_ids=(1,))
    assert "EOS" in refused(folder, eos_ids=())


def test_every_line_is_checked_against_the_tokenizer(tmp_path):
    """Guards against a check of the first lines only, or of the chosen ones only."""
    last = ("2+2=", 9, Completion(" so 5", (*ids(" so 4"), EOS), [-1.0] * 4, "eos"))
    assert ".jsonl:3" in refused(put(tmp_path, DRAWS[0], DRAWS[4], last))


def test_the_check_knows_how_texts_are_made(tmp_path):
    """Guards against false alarms: special tokens, cut characters, text after a stop string within its token."""
    cut = Completion("\ufffd", [*ids("é")[:1]], [-1.0], "length")
    rows = [
        ("a=", 0, completion("4 4", "stop", end=ids("\n\n"))),
        ("b=", 0, completion("1", "stop", end=ids(" so 2"))),
        ("c=", 0, Completion("12", [*ids("1"), 1, *ids("2"), EOS], [-1.0] * 4, "eos")),
        ("d=", 0, cut),
        ("e=", 0, completion("so\u2028 5 – 五")),
    ]
    assert len(read(put(tmp_path, *rows, stop=[" s", "\n\n"])).samples) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": "some"}, "select=some: must be one, all or best"),
        ({"per_prompt": 0, "select": "all"}, "per_prompt=0: must be a whole number >= 1"),
        ({"per_prompt": 2}, "select=all"),
        ({"min_tokens": 1.5}, "min_tokens=1.5"),
        ({"correct_only": True}, "--log_samples"),
    ],
)
def test_wrong_options(tmp_path, options, said):
    """Guards the messages: the option, its value, the rule."""
    assert said in refused(put(tmp_path, *DRAWS), **options)


def test_prompts_of_an_evaluation_set_are_refused(tmp_path):
    """Guards against a student judged by what it was taught; case and white space hide nothing."""
    folder = put(tmp_path / "store", *DRAWS)
    evaluation = write_lines(tmp_path / "eval.jsonl", [{"problem": "1+1="}, {"problem": " 3 + 3 =\n"}])
    message = refused(folder, exclude_prompts_of=[evaluation])
    assert "1 of 2 prompts" in message and "'3+3='" in message and f"{evaluation}:2" in message
    assert len(read(folder, exclude_prompts_of=[write_lines(tmp_path / "e.jsonl", [{"problem": "1+1="}])]).samples) == 2
