"""The training side of MATH: 500 problems, drawn the same everywhere, none of them in MATH500."""

import json
import os
import random
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from lm_power.data.loading import normalised
from lm_power.data.math_problems import SUBJECTS, draw_others, load_math_train

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tasks"
DATA = Path(os.environ.get("LM_POWER_DATA", REPOSITORY.parent / "shared" / "data"))


def invented(number):
    return {
        "problem": f"What is ${number} + 1$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": rf"It is $\boxed{{{number + 1}}}$.",
    }


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def files(tmp_path):
    """900 problems; the first 100 are held out, half of them in another writing."""
    held_out = [{"problem": invented(n)["problem"], "answer": "?"} for n in range(100)]
    for row in held_out[::2]:
        row["problem"] = row["problem"].upper().replace(" ", "\n  ")
    return {
        "math_file": str(write(tmp_path / "math.jsonl", [invented(n) for n in range(900)])),
        "math500_file": str(write(tmp_path / "math500.jsonl", held_out)),
    }


def load(**metadata):
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    return manager.load(["power_math_train"])["tasks"]["power_math_train"]


def test_500_problems_without_those_held_out(files):
    task = load(**files)
    problems = {doc["problem"] for doc in task.eval_docs}
    assert len(task.eval_docs) == len(problems) == 500
    assert not problems & {invented(n)["problem"] for n in range(100)}
    doc = task.eval_docs[0]
    assert task.doc_to_target(doc) == doc["answer"] == str(int(doc["problem"].split()[2].strip("$")) + 1)


def test_prompt_and_grading_are_those_of_math500(files):
    task = load(**files)
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 0) == (
        f"Can you solve the following math problem? {doc['problem']} Please reason step by step, "
        "and put your final answer within \\boxed{{}}."
    )
    assert task.process_results(doc, [[rf"\boxed{{{doc['answer']}.0}}"]]) == {"acc": 1.0}
    assert (task.VERSION, task.config.dataset_path) == (1.2, "EleutherAI/hendrycks_math")


def test_the_draw_depends_on_the_seed_only(files):
    rows = [invented(n) for n in range(900)]
    first = draw_others(rows, [], 0)
    assert draw_others(random.Random(1).sample(rows * 2, 1800), [], 0) == first
    other = draw_others(rows, [], 1)
    shared = {row["problem"] for row in first} & {row["problem"] for row in other}
    assert 200 < len(shared) < 356  # 278 expected, standard deviation 7.4
    assert [row["problem"] for row in load(**files, math_train_seed=1).eval_docs] != [
        row["problem"] for row in load(**files).eval_docs
    ]


def test_a_warning_if_math500_is_not_a_part(files, caplog):
    """Guards against leakage through a copy that is not recognised."""
    load(**files)
    assert not [r for r in caplog.records if "MATH500" in r.getMessage()]
    draw_others(map(invented, range(5)), ["What is one plus one?", invented(1)["problem"]], 0)
    assert "1 of the 2 problems of MATH500 is not found in MATH" in caplog.text


def test_problems_without_an_answer_are_not_drawn():
    rows = [invented(1), {**invented(2), "solution": "Nobody knows."}]
    assert [row["answer"] for row in draw_others(rows, [], 0)] == ["2"]


def test_against_the_real_math500(tmp_path):
    """All 500 are recognised among others, and each draw has none of them."""
    file = DATA / "math500.jsonl"
    if not file.is_file():
        pytest.skip("needs math500.jsonl in ../shared/data or in $LM_POWER_DATA")
    held_out = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [*held_out, *map(invented, range(600))]
    everything = write(tmp_path / "math.jsonl", [{name: row[name] for name in ("problem", "solution")} for row in rows])
    for seed in (0, 1):
        drawn = load_math_train(str(everything), str(file), seed)
        assert len(drawn) == 500
        assert not {normalised(p) for p in drawn["problem"]} & {normalised(row["problem"]) for row in held_out}


def test_the_hub_is_asked_for_every_subject(monkeypatch):
    import datasets

    asked = []

    def hub(path, name, split):
        asked.append((path, name, split))
        rows = [invented(len(asked))] if name else [{"problem": "other", "answer": "1"}]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(load_math_train(None, None, 0)) == 14
    assert asked[0] == ("HuggingFaceH4/MATH-500", None, "test")
    assert set(asked[1:]) == {("EleutherAI/hendrycks_math", name, s) for name in SUBJECTS for s in ("train", "test")}


def test_bad_input(files, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(ValueError, match="math_train_seed='x': must be a whole number"):
        load(**files, math_train_seed="x")
    wrong = write(tmp_path / "wrong.jsonl", [{"question": "1?", "solution": "1"}])
    with pytest.raises(ValueError, match=r"math_file=.*row 1 lacks problem; it has question, solution"):
        load(**{**files, "math_file": str(wrong)})
    with pytest.raises(ValueError, match=r"math500_file=.*does not exist"):
        load(**{**files, "math500_file": "nowhere.jsonl"})
    same = write(tmp_path / "same.jsonl", [{**invented(1), "answer": "2"}])
    with pytest.raises(ValueError, match="no problem of MATH is left"):
        load(math_file=str(same), math500_file=str(same))

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RuntimeError, match=r"hendrycks_math.*no network.*--metadata math_file=PATH"):
        load(math500_file=files["math500_file"])
