"""Evaluation sets that teacher prompts must not occur in."""

import pytest
from teacher_files import EOS, TOKENIZER, completion, put, sample, write_lines, write_samples

from lm_power.distill.contamination import EvaluationSets
from lm_power.distill.options import Selection
from lm_power.distill.teacher import TeacherDataError, read_teacher
from lm_power.errors import LMPowerError

PROBLEM = "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates."
TEMPLATE = "Can you solve the following math problem? {} Please reason step by step."
HUB_ROW = {"problem": PROBLEM, "solution": "…", "answer": "3", "subject": "Precalculus", "level": 2, "unique_id": "a/1"}


def read(folder, *evaluation):
    return read_teacher([folder], TOKENIZER, Selection(exclude_prompts_of=evaluation), eos_ids=(EOS,))


def hit(folder, *evaluation) -> str:
    with pytest.raises(TeacherDataError, match="occur in the evaluation sets") as caught:
        read(folder, *evaluation)
    return str(caught.value)


def test_every_kind_of_evaluation_set(tmp_path):
    """Guards what is taken as the prompt of each kind of file, at the line where it stands."""
    teacher = put(tmp_path / "teacher", (PROBLEM, 0, completion(" so 3")))
    other = "Find the roots of unity in a finite field of 7 elements."
    (tmp_path / "prompts.txt").write_text(f"{other}\n\n{PROBLEM}\n")
    evaluation = {
        "math500.jsonl:2": write_lines(tmp_path / "math500.jsonl", [{**HUB_ROW, "problem": other}, HUB_ROW]),
        "texts.jsonl:2": write_lines(tmp_path / "texts.jsonl", [f'"{other}"', f'"{PROBLEM}"']),
        "prompts.txt:3": tmp_path / "prompts.txt",
        "gpqa.jsonl:1": write_lines(tmp_path / "gpqa.jsonl", [{"Question": PROBLEM, "prompt": other}]),
        "samples_sums_2026-01-02T03-04-05.678901.jsonl:1": write_samples(
            tmp_path / "run", sample(0, TEMPLATE.format(PROBLEM), [" so 3"], doc={"problem": PROBLEM})
        ),
        ".jsonl:1": put(tmp_path / "store", (PROBLEM, 0, completion(" so 4"))),
    }
    for place, path in evaluation.items():
        message = hit(teacher, path)
        assert place in message and "1 of 1 prompts" in message
    multiple_choice = sample(0, PROBLEM, ["x"])
    multiple_choice["resps"] = [[["-1.5", "True"]], [["-2.5", "False"]]]
    multiple_choice["doc"] = {}
    hit(teacher, write_samples(tmp_path / "choice", multiple_choice))
    assert len(read(teacher, write_lines(tmp_path / "other.jsonl", [{"problem": other}])).samples) == 1


def test_a_problem_inside_another_template(tmp_path):
    """Guards against a template that hides a problem, in a store's prompt or in the samples' documents."""
    evaluation = write_lines(tmp_path / "math500.jsonl", [HUB_ROW])
    store = put(tmp_path / "store", (TEMPLATE.format(PROBLEM.upper()), 0, completion(" so 3")))
    assert "math500.jsonl:1" in hit(store, evaluation)
    # Here the prompt tells nothing; the document does, also to the store's line of the same run.
    asked = sample(0, "Problem 1", [" so 3"], {"finish_reason": ["eos"]}, doc={"problem": PROBLEM})
    logged = write_samples(tmp_path / "run" / "model", asked)
    hit(logged, evaluation)
    put(tmp_path / "run", ("Problem 1", 0, completion(" so 3")))
    hit(tmp_path / "run", evaluation)


def test_short_texts_must_be_equal(tmp_path):
    """Guards against chance: a short evaluation prompt is inside half of all texts."""
    sets = EvaluationSets([write_lines(tmp_path / "e.jsonl", [{"problem": "2+2="}, {"problem": "x" * 16}])])
    assert len(sets) == 2
    assert sets.find("12+2=") is None and sets.find(" 2 + 2 =") is not None
    assert sets.find("a" + "x" * 16 + "b") is not None and sets.find("a" + "x" * 15) is None


def test_long_texts_that_begin_alike(tmp_path):
    """Guards the look-up by beginnings: problems that share one are told apart."""
    rows = [{"problem": f"What is the sum of the digits of {n}?"} for n in (12, 123, 7)]
    sets = EvaluationSets([write_lines(tmp_path / "e.jsonl", rows)])
    assert sets.find("Q: What is the sum of the digits of 123? A:").endswith(":2")
    assert sets.find("Q: What is the sum of the digits of 1234? A:") is None


def test_examples_are_shown_and_counted(tmp_path):
    """Guards the message of a whole contaminated file against running to thousands of lines."""
    rows = [(f"Problem number {n}: what is it?", 0, completion(" so 3")) for n in range(9)]
    evaluation = write_lines(tmp_path / "held_out.jsonl", [{"problem": prompt} for prompt, _, _ in rows])
    message = hit(put(tmp_path / "store", *rows), evaluation)
    assert "9 of 9 prompts" in message and message.count("held_out.jsonl:") == 3 and "…" in message


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("e.jsonl", [], "holds no prompt"),
        ("e.txt", ["", " "], "holds no prompt"),
        (
            "e.jsonl",
            [{"problem": "1+1="}, {"problem": " "}],
            "e.jsonl:2: holds no prompt: must be a text, or an object",
        ),
        ("e.jsonl", [{"answer": 3}], "problem, question, Question, prompt, instruction"),
        ("e.jsonl", ["{}", "{"], "e.jsonl:1"),
        ("e.jsonl", ['"1+1="', "{"], "e.jsonl:2: is not JSON"),
        ("e.json", ['[{"problem": "1+1="}]'], "is a JSON array; a file must have one JSON object on each line"),
        ("e.json", ["[", '{"problem": "1+1="}]'], "is not JSON (Expecting value"),
        ("e.gz", ["\x1f\x08"], "is not JSON (Expecting value"),
    ],
)
def test_an_evaluation_set_without_prompts_is_refused(tmp_path, name, rows, said):
    """Guards against a check that checks nothing."""
    with pytest.raises(LMPowerError) as caught:
        EvaluationSets([write_lines(tmp_path / name, rows)])
    assert said in str(caught.value)


def test_no_evaluation_set():
    """Guards the default: nothing is excluded, and a set that is missing is an error."""
    assert EvaluationSets([]).find("anything at all, however long it is") is None
    with pytest.raises(TeacherDataError, match="does not exist"):
        EvaluationSets(["nowhere.jsonl"])
