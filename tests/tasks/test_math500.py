"""The math500 task: its prompt, its documents, and lm-eval running it from a local file."""

import json
import logging
import os
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.loggers import EvaluationTracker  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import handle_non_serializable, hash_string, make_table  # noqa: E402

from lm_power.data.math_problems import MATH500  # noqa: E402
from lm_power.harness import metrics  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tasks"
DATA = Path(os.environ.get("LM_POWER_DATA", REPOSITORY.parent / "shared" / "data"))

ROWS = [
    {"problem": "What is $1+1$? {{x}} {% if %}", "answer": "2", "level": 1},
    {"problem": "Halve one.", "answer": r"\frac{1}{2}", "level": 2},
    {"problem": "Which way?", "answer": r"\text{east}", "level": 3},
]


class Told(str):
    """A completion with a record."""

    is_padding = False
    finish_reason = "eos"
    token_ids = (1, 2)

    def __new__(cls, text, self_reward):
        told = super().__new__(cls, text)
        told.self_reward = self_reward
        return told


class Script(LM):
    """Answers each prompt from a list, one entry a repeat; remembers what it was asked."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers
        self.asked = []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked = [request.args for request in requests]
        left = {key: list(answers) for key, answers in self.answers.items()}
        return [next(left[key].pop(0) for key in left if key in request.args[0]) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture
def rows_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(autouse=True)
def fresh_notice():
    metrics._notice_no_self_reward.cache_clear()
    yield
    metrics._notice_no_self_reward.cache_clear()


def manager(file, include_path=TASKS):
    return TaskManager(include_path=str(include_path), include_defaults=False, metadata={"math500_file": str(file)})


def evaluate(model, file, tasks=("math500",), include_path=TASKS, **options):
    return lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager(file, include_path), bootstrap_iters=0, **options
    )


PLAIN = {
    "1+1": [r"It is $\boxed{2}$."],
    "Halve": [r"So \boxed{0.5}"],
    "way": [r"\boxed{\text{west}}"],
}


def test_prompt_is_the_papers_to_the_letter(rows_file):
    """The doubled braces are in the paper's prompt; a problem's own must not be taken for a template's."""
    task = manager(rows_file).load(["math500"])["tasks"]["math500"]
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 0) == (
        "Can you solve the following math problem? What is $1+1$? {{x}} {% if %} Please reason step by step, "
        "and put your final answer within \\boxed{{}}."
    )
    assert task.doc_to_target(doc) == "2"


def test_configuration(rows_file):
    task = manager(rows_file).load(["math500"])["tasks"]["math500"]
    assert task.config.generation_kwargs == {"until": [], "max_gen_toks": 3072, "do_sample": False}
    assert (task.VERSION, task.config.num_fewshot, task.config.repeats) == (1.3, 0, 1)
    assert task.config.dataset_path == MATH500 == "HuggingFaceH4/MATH-500"


def test_plain_completions(rows_file, caplog):
    """A model without log-probabilities: no self_reward row, one notice, a clean table."""
    with caplog.at_level(logging.WARNING, logger="lm_power"):
        out = evaluate(Script(PLAIN), rows_file)
    result = out["results"]["math500"]
    assert result["acc,none"] == pytest.approx(2 / 3)
    assert not [key for key in result if "self_reward" in key]
    assert len([r for r in caplog.records if "self_reward" in r.getMessage()]) == 1
    table = make_table(out)
    assert "acc" in table and "self_reward" not in table


def test_completions_with_log_probs(rows_file, caplog):
    told = {key: [Told(texts[0], reward)] for (key, texts), reward in zip(PLAIN.items(), (-1, -2, -6), strict=True)}
    out = evaluate(Script(told), rows_file)
    assert out["results"]["math500"]["self_reward,none"] == pytest.approx(-3.0)
    assert "self_reward" in make_table(out)
    assert not [r for r in caplog.records if "aggregation" in r.getMessage()]


def test_every_repeat_counts(rows_file, tmp_path):
    """Guards against lm-eval's default filter, which keeps a document's first completion only."""
    own = tmp_path / "own" / "repeated.yaml"
    own.parent.mkdir()
    own.write_text(f"include: {TASKS / 'math500' / 'math500.yaml'}\ntask: math500_3\nrepeats: 3\n")
    padding = Told("", float("nan"))
    padding.is_padding = True
    model = Script(
        {
            "1+1": [Told(r"\boxed{2}", -1.0), Told(r"\boxed{3}", -2.0), Told(r"\boxed{4}", -3.0)],
            "Halve": [Told(r"\boxed{1/2}", -1.0), Told("", -1.0), padding],
            "way": [Told(r"\boxed{east}", -1.0)] * 3,
        }
    )
    out = evaluate(model, rows_file, ["math500_3"], own.parent)
    assert len(model.asked) == 9
    results = out["results"]["math500_3"]
    # Of problem 2 two completions count: the third is marked as padding.
    assert results["pass@2,none"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert results["maj_acc,none"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert results["bon_acc,none"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert results["acc,none"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert results["self_reward,none"] == pytest.approx((-2 - 1 - 1) / 3)
    assert out["samples"]["math500_3"][1]["doc"]["lm_power"]["correct"] == [1.0, 0.0]


def test_sample_log(rows_file, tmp_path):
    """The log stays JSON, and the hash of a document is that of the row as it was read."""
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    model = Script({key: [Told(texts[0], -1.0)] for key, texts in PLAIN.items()})
    out = evaluate(model, rows_file, evaluation_tracker=tracker)
    for sample, row in zip(out["samples"]["math500"], ROWS, strict=True):
        assert sample["doc"]["lm_power"]["tokens"] == [2]
        assert sample["doc_hash"] == hash_string(
            json.dumps(row, indent=2, default=handle_non_serializable, ensure_ascii=False)
        )
    tracker.save_results_aggregated(results=out, samples=out["samples"])
    tracker.save_results_samples("math500", out["samples"]["math500"])
    (log,) = (tmp_path / "out").rglob("samples_math500_*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["doc"]["lm_power"]["correct"] for line in lines] == [[1.0], [1.0], [0.0]]
    assert lines[0]["resps"] == [[PLAIN["1+1"][0]]]


def test_predict_only_and_limit(rows_file):
    out = evaluate(Script(PLAIN), rows_file, predict_only=True, limit=2)
    assert len(out["samples"]["math500"]) == 2


def test_the_500_problems(monkeypatch):
    file = DATA / "math500.jsonl"
    if not file.is_file():
        pytest.skip("needs math500.jsonl in ../shared/data or in $LM_POWER_DATA")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    model = Script({row["problem"]: [row["solution"]] for row in rows[:20]})
    out = evaluate(model, file, limit=20)
    assert out["results"]["math500"]["acc,none"] == 1.0
    assert out["n-samples"]["math500"] == {"original": 500, "effective": 20}


@pytest.mark.parametrize("name", ["marked.jsonl", "marked.json", "marked.csv"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    """Guards: files from editors that begin UTF-8 with a mark."""
    row = '{"problem": "1+1?", "answer": "2"}'
    text = {"marked.jsonl": row, "marked.json": f"[{row}]", "marked.csv": "problem,answer\n1+1?,2\n"}[name]
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (doc,) = manager(tmp_path / name).load(["math500"])["tasks"]["math500"].eval_docs
    assert (doc["problem"], doc["answer"]) == ("1+1?", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "has no rows"),
        ('{"question": "a", "answer": "b"}', "row 1 lacks problem; it has question, answer"),
        ('{"problem": "a", "answer": "b"}\n{"problem": "a"}', "row 2 lacks answer; it has problem"),
        ('{"problem": "a", "answer": 5}', "row 1 has answer=5: must be text"),
        ('{"problem": "a", "answer": "b"}\n{"problem": ', "line 2 is not JSON"),
        ("[1, 2]", "row 1 is not an object"),
        (b"\xff\xfe", "cannot be read"),
        (
            '{"problem": "a", "answer": "b", "z": 1}\n{"problem": "a", "answer": "b", "z": [1]}',
            "values of several types",
        ),
    ],
)
def test_a_bad_file_is_refused_before_any_decoding(tmp_path, content, message):
    file = tmp_path / "bad.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"math500_file=.*bad\.jsonl") as error:
        manager(file).load(["math500"])
    assert message in str(error.value)


def test_json_lists_and_folders(tmp_path):
    file = tmp_path / "list.json"
    file.write_text(json.dumps(ROWS, indent=1))
    assert len(manager(file).load(["math500"])["tasks"]["math500"].eval_docs) == 3
    with pytest.raises(ValueError, match="is a folder"):
        manager(tmp_path).load(["math500"])


def test_without_the_hub_the_error_names_the_way_out(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RuntimeError, match=r"no network.*--metadata math500_file=PATH"):
        TaskManager(include_path=str(TASKS), include_defaults=False).load(["math500"])
