"""The GPQA tasks on invented questions; GPQA's own must never be published."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from lm_power.data.gpqa import CHOICES, COLUMNS, arrange, extract_letter, load_gpqa, load_gpqa_train

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tasks"


def invented(number):
    """A row with the hub's columns (those that matter, and one that does not)."""
    return {
        "Record ID": f"rec{number}",
        "High-level domain": "Arithmetic",
        "Subdomain": "Sums",
        "Pre-Revision Question": "not to be asked",
        "Question": f" What is {number} plus one, {{{{Question}}}} {{% if %}} braces left alone?\n",
        "Correct Answer": f"{number + 1}\n",
        **{f"Incorrect Answer {i}": f"{number + 1 + i}" for i in (1, 2, 3)},
    }


def write_csv(file, numbers, **changes):
    rows = [{**invented(number), **changes} for number in numbers]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """As GPQA's own: diamond is a part of main, main of extended; here with other spaces in a question."""
    write_csv(tmp_path / "gpqa_diamond.csv", range(4))
    write_csv(tmp_path / "gpqa_main.csv", range(10))
    extended = [invented(number) for number in range(12)]
    extended[0]["Question"] = extended[0]["Question"].replace(" ", "  ").upper()
    (tmp_path / "gpqa_extended.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extended))
    return tmp_path


def load(folder, task="power_gpqa_diamond"):
    metadata = {} if folder is None else {"gpqa_folder": str(folder)}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    return manager.load([task])["tasks"][task]


def test_prompt_is_the_papers(folder):
    task = load(folder)
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 0) == (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        "format: '\\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\\boxed{A}'). Think step by "
        "step before answering.\n\nWhat is 0 plus one, {{Question}} {% if %} braces left alone?\n\n"
        f"A) {doc['A']}\nB) {doc['B']}\nC) {doc['C']}\nD) {doc['D']}"
    )
    assert {doc[letter] for letter in "ABCD"} == {"1", "2", "3", "4"}
    assert doc[task.doc_to_target(doc)] == "1"
    assert (len(task.eval_docs), task.VERSION, doc["Record ID"]) == (4, 1.2, "rec0")
    assert "not to be asked" not in json.dumps(doc)


ORDERS = """
import json, sys
from lm_power.data.gpqa import load_gpqa
print(json.dumps(load_gpqa("gpqa_diamond", sys.argv[1])))
"""


def test_order_is_the_same_in_every_process(folder):
    """Guards against hash() and global generators; and the order is that of the first release."""
    runs = []
    for seed in ("0", "1", "random"):
        variables = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", ORDERS, str(folder)]
        runs.append(subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout)
    assert runs[0] == runs[1] == runs[2]
    assert json.loads(runs[0]) == load_gpqa("gpqa_diamond", str(folder))
    assert "".join(arrange(invented(number))["answer"] for number in range(12)) == "BADCBADBDDAA"


def test_order_ignores_columns_and_neighbours():
    row = invented(5)
    other = {**row, **dict(zip(CHOICES, (row[c] for c in (CHOICES[0], *CHOICES[:0:-1])), strict=True))}
    assert other != row and arrange(other) == arrange(row)


def test_letters_are_balanced():
    """1000 questions: each letter is right for 250 ± 62, 4.5 standard deviations of a fair draw.

    So is each taken by the first wrong choice. The order being fixed, this cannot fail by chance.
    """
    rows = [arrange(invented(number)) for number in range(1000)]
    assert all(abs(Counter(row["answer"] for row in rows)[letter] - 250) < 62 for letter in "ABCD")
    places = Counter(letter for number, row in enumerate(rows) for letter in "ABCD" if row[letter] == str(number + 2))
    assert all(abs(places[letter] - 250) < 62 for letter in "ABCD")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"so \boxed{A}", "A"),
        (r"\boxed{{C}}", "C"),
        (r"\boxed{$D$}", "D"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"\boxed{\mathrm{C}.}", "C"),
        (r"\boxed{b}", "B"),
        (r"\boxed{A) 5 m}", "A"),
        (r"\boxed{(D) \frac{1}{2}}", "D"),
        (r"first \boxed{A}, no: \boxed{B}", "B"),
        (r"\boxed{A} and then \boxed{", "A"),
        (r"\boxed{A} as '\boxed{}'", "A"),
        (r"\boxed{$LETTER}", None),
        (r"so $\boxed B$", "B"),
        (r"so \boxed B.", "B"),
        (r"use \boxed a lot", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{AB}", None),
        (r"\boxed{E}", None),
        (r"\boxed{Because}", None),
        (r"\boxed{5}", None),
        ("The answer is A.", None),
        ("A", None),
        ("", None),
        (None, None),
    ],
)
def test_letters_from_boxes(text, letter):
    assert extract_letter(text) == letter


NAMES_B = [
    r"\text{Option B}", r"Option\ B", r"\text{Answer: B}", r"\text{The correct answer is (B)}", r"\boldsymbol{B}",
    r"\textsf{B}", r"\textup{B}", r"\mathcal{B}", "B - 5 m", "B -- 5 m", "b) 5 m", "b. 5 m", "(b) 5 m", "'B'", '"B"',
    "`B`", "“B”", "$LETTER = B$", "LETTER: B", "[B]", "B,", "B;", "{(B)}", r"\textbf{(B)}\ 5", r"\text{(B) }10^{-4}",
    r"\text{Choice B: } 5 \text{ m}", r"B:\quad 5", "B) vitamin C", "B. A and C react", "B) and so on",
]  # fmt: skip
NAMES_NONE = [
    "A - B", "b - 5", "B-5", "B 5 m", "A) or B)", "(A) and (B)", "(A), (B)", "A. / C.", "(A) (B)", "Option A or B",
    "not B", r"\text{Neither}", "option", "Answer", "Options", "B m", "BC", "$LETTER", "Answer: E", "a number",
]  # fmt: skip


def test_spellings_of_a_letter():
    """Plausible boxes were read as no answer, and `(A) and (B)` as A."""
    assert [box for box in NAMES_B if extract_letter(rf"So $\boxed{{{box}}}$.") != "B"] == []
    assert [box for box in NAMES_NONE if extract_letter(rf"So $\boxed{{{box}}}$.") is not None] == []


@pytest.mark.parametrize(
    "start",
    [
        "The last line must be '\\boxed{$LETTER}'.",
        "The answer is determined by the energy.",
        "The answer is 5 eV.",
        "<think>\nPerhaps \\boxed{A}.\n</think>",
    ],
)
def test_a_question_that_is_restated_before_any_box(start):
    assert extract_letter(start + "\n\n**Question:** Which gas?\n\nIt is helium.\n\n\\boxed{B}") == "B"


def test_the_prompt_repeated_is_no_answer(folder):
    task = load(folder)
    prompt = task.doc_to_text(task.eval_docs[0])
    assert r"\boxed{$LETTER}" in prompt and r"\boxed{A}" in prompt
    assert extract_letter(prompt) is None
    assert extract_letter(f"{prompt}\nIt is \\boxed{{B}}.") == "B"
    assert extract_letter(f"It is \\boxed{{B}}.\n\n{prompt}\nIt is \\boxed{{C}}.") == "B"


def test_grading(folder):
    task = load(folder)
    task.set_config("generation_kwargs", {"n": 3}, update=True)
    task.build_all_requests(limit=1)
    doc = task.eval_docs[0]
    right, wrong = doc["answer"], next(letter for letter in "ABCD" if letter != doc["answer"])
    texts = [rf"\boxed{{{right}}}", rf"\boxed{{{wrong}}}", rf"\boxed{{\text{{{right}}}}}"]
    values = task.process_results(doc, [texts])
    assert values["acc"] == pytest.approx(2 / 3) and values["maj_acc"] == 1.0
    assert doc["lm_power"]["answer"] == [right, wrong, right]


def test_train_leaves_diamond_out(folder):
    """Guards against leakage: also where a copy of a question has other spaces and capitals."""
    train = load(folder, "power_gpqa_train")
    assert sorted(doc["Record ID"] for doc in train.eval_docs) == sorted(f"rec{number}" for number in range(4, 12))
    assert train.config.doc_to_text == load(folder).config.doc_to_text
    write_csv(folder / "gpqa_diamond.csv", range(12))
    with pytest.raises(ValueError, match="no question of gpqa_main and gpqa_extended is left"):
        load_gpqa_train(str(folder))


def test_without_access_the_error_says_how_to_get_it(monkeypatch):
    import datasets

    def gated(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError(
            "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.\nYou must be authenticated to access it."
        )

    monkeypatch.setattr(datasets, "load_dataset", gated)
    for task in ("power_gpqa_diamond", "power_gpqa_train"):
        with pytest.raises(RuntimeError) as error:
            load(None, task)
        message = str(error.value)
        assert "must be authenticated" in message and "https://huggingface.co/datasets/Idavidrein/gpqa" in message
        assert "hf auth login" in message and "HF_TOKEN" in message and "--metadata gpqa_folder=PATH" in message


def test_bad_folders_and_files(folder, tmp_path):
    with pytest.raises(ValueError, match=r"gpqa_folder=.*nowhere: does not exist .*must be a folder"):
        load_gpqa("gpqa_diamond", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="is a file"):
        load_gpqa("gpqa_diamond", str(folder / "gpqa_main.csv"))
    (folder / "gpqa_main.csv").unlink()
    with pytest.raises(ValueError, match=r"has no gpqa_main\.csv, \.jsonl or \.json"):
        load_gpqa_train(str(folder))
    file = folder / "gpqa_diamond.csv"
    file.write_text("Question,Answer\nwhy?,so\n")
    with pytest.raises(
        ValueError, match=r"row 1 lacks Correct Answer, .*; it has Question, Answer.*rename its columns"
    ):
        load_gpqa("gpqa_diamond", str(folder))
    file.write_text(",".join(COLUMNS) + "\nwhy?,a,b,c,d,e\n")
    with pytest.raises(ValueError, match="row 1 has more fields than the header"):
        load_gpqa("gpqa_diamond", str(folder))
    file.write_text(",".join(COLUMNS) + "\nwhy?,a,b,c,\n")
    with pytest.raises(ValueError, match="row 1 has Incorrect Answer 3='': must be text"):
        load_gpqa("gpqa_diamond", str(folder))
    file.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        load_gpqa("gpqa_diamond", str(folder))
