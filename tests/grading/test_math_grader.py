"""Answers: found in texts, graded as a person would, never slower than the limit, whatever the text."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grading.math_verdicts import VERDICTS, grade_math

from lm_power.errors import MissingPackageError, UnavailableError
from lm_power.grading.math_answers import extract_answer
from lm_power.grading.math_grader import MathGrader, require_math_verify
from lm_power.grading.math_readings import settled
from lm_power.grading.math_spelling import tidy
from lm_power.grading.math_worker import PATIENCE, float_digits, make_compare

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LM_POWER_DATA", REPOSITORY.parent / "shared" / "data"))
MATH500 = DATA / "math500.jsonl"

CASES = [(gold, answer, True) for gold, right, _ in VERDICTS for answer in right] + [
    (gold, answer, False) for gold, _, wrong in VERDICTS for answer in wrong
]


def test_hand_verdicts():
    """Guards the reading of real answer shapes; all disagreements are shown at once."""
    disagreements = [
        (gold, answer, f"should be {verdict}")
        for gold, answer, verdict in CASES
        if grade_math(rf"So the answer is $\boxed{{{answer}}}$.", gold) is not verdict
    ]
    assert len(CASES) >= 350 and len(VERDICTS) >= 75
    assert disagreements == []


_shared = []


def _compare():
    if not _shared:
        _shared.append(make_compare())
    return _shared[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then at last \boxed{2}.", "2"),
        (r"$\boxed{1}$ and $\boxed{-2}$", "1, -2"),
        (r"$\boxed{5}$, $\boxed{5}$", "5"),
        (r"\boxed{5}. Put your answer within \boxed{{}}.", "5"),
        (r"\boxed{{5}}", "5"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed {\{1,2\}}", r"\{1,2\}"),
        (r"\fbox{8}", "8"),
        (r"\\boxed{9}", "9"),
        (r"$\boxed 5$.", "5"),
        (r"$\boxed\frac{1}{2}$.", r"\frac{1}{2}"),
        (r"\boxed{5} and so on: \boxed{\frac{1}{", "5"),
        (r"\boxed{\frac{1}{", None),
        ("The final answer is $5$. I hope it is correct.", "5"),
        ("**Answer**: 12", "12"),
        ("Thus we get $5$, and", None),
        ("", None),
        (None, None),
        (5, None),
        ("\\boxed{" + "1" * 5000 + "}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_two_boxes_do_not_hedge():
    """Guards against full marks for naming the right value beside a wrong one."""
    assert not grade_math(r"It is \boxed{4} or \boxed{5}.", "5")
    assert grade_math(r"They are \boxed{-2} and \boxed{1}.", "1,-2")


HOSTILE = [
    None,
    "",
    " ",
    "}{",
    r"\boxed",
    r"\boxed{",
    r"\boxed{}",
    r"\boxed{\frac{1}{}",
    r"\boxed{\frac}",
    r"\boxed{\left(}",
    r"\boxed{\begin{pmatrix}1}",
    "\\boxed{\x00}",
    "\\boxed{\ud800}",
    r"\boxed{\frac{1}{0}}",
    r"\boxed{0/0}",
    r"\boxed{x^{10^{10}}}",
    r"\boxed{\\\\}",
    r"\boxed{$$}",
    "\\boxed{__import__('os').abort()}",
    "x" * 3_000_000,
    "\\" * 1_000_000,
    "{" * 1_000_000,
    "\\boxed{" * 300_000,
    "\\boxed{" + "9" * 900 + "}",
    "\\boxed{" + "\\frac{" * 100 + "1" + "}{2}" * 100 + "}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_is_wrong_and_quick(text):
    start = time.monotonic()
    assert grade_math(text, "5", time_limit=2) is False
    assert time.monotonic() - start < 10


def test_a_missing_gold_answer_is_wrong_not_a_crash():
    grader = MathGrader()
    assert [grader.equal("5", gold) for gold in (None, "", " ", 5)] == [False] * 4
    assert grader.failures == {"gold": 4}


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_time_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match=r"time_limit=.*positive"):
        grade_math(r"\boxed{5}", "5", time_limit=limit)


def test_a_hanging_answer_is_cut_off(caplog):
    """Guards against a run that stands still: sympy computes these inside C code, deaf to signals."""
    tower = "9^{9^{9^{9}}}"
    grader = MathGrader()
    assert grader.equal("4/2", "2", 30)  # starts the worker, outside the time below
    start = time.monotonic()
    assert grader.equal(tower, "5", time_limit=1.0) is False
    assert 0.9 < time.monotonic() - start < 6
    assert grader.equal(tower, "5", time_limit=1.0) is False  # known by now
    assert grader.equal("10/2", "5", 30) and not grader.equal("11/2", "5", 30)
    assert grader.equal("20!!!", "5", time_limit=0.5) is False
    assert grader.failures == {"timeout": 2}
    assert len([r for r in caplog.records if "time limit" in r.getMessage()]) == 1
    grader.close()


READY = """import sys, time; print('{"ready": true}', flush=True)
"""
WORKERS = {
    "dies": READY + "sys.stdin.readline()",
    "stays silent": READY + "time.sleep(60)",
    "fails": READY + """for _ in sys.stdin: print('{"error": "E"}', flush=True)""",
}


def test_a_hanging_pair_costs_its_time_once():
    """Guards the repeats of a prompt, among which the same wrong answer comes up again."""
    grader = MathGrader()
    assert not grader.equal("9^{9^{9^{9}}}", "5", time_limit=0.5)
    assert not any(grader.equal("9^{9^{9^{9}}}", "5", time_limit=0.5) for _ in range(20))
    assert grader.failures == {"timeout": 1}
    grader.close()


@pytest.mark.parametrize(("behaviour", "kind"), [("dies", "crash"), ("stays silent", "starved"), ("fails", "error")])
def test_a_bad_worker_means_wrong(tmp_path, behaviour, kind):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKERS[behaviour])
    grader = MathGrader(worker)
    assert [grader.equal(answer, "5", 0.5) for answer in ("1+4", "2+3")] == [False, False]
    assert grader.failures == {kind: 2}
    grader.close()


def test_a_worker_that_cannot_start_says_why(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text('print(\'{"error": "ImportError: no math_verify"}\')')
    with pytest.raises(MissingPackageError, match=r"no math_verify: pip install 'math-verify"):
        MathGrader(worker).equal("1", "1/2")
    worker.write_text("raise SystemExit(1)")
    with pytest.raises(UnavailableError, match="did not start"):
        MathGrader(worker).equal("1", "1/2")


@pytest.fixture
def unchecked():
    require_math_verify.cache_clear()
    yield
    require_math_verify.cache_clear()


def test_a_math_verify_that_is_broken_is_found_before_sampling(tmp_path, monkeypatch, unchecked):
    """It is installed, but a package that it needs cannot be imported; that was found after hours, with a traceback."""
    broken = tmp_path / "antlr4"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('made for\\nanother Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"does not work in .*pip install 'math-verify") as error:
        require_math_verify()
    assert "\n" not in str(error.value)
    monkeypatch.delenv("PYTHONPATH")
    require_math_verify()  # a failure is not remembered


def test_a_math_verify_that_is_missing_is_an_error_of_ours(monkeypatch, unchecked):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"not installed: pip install"):
        require_math_verify()


def test_math_verify_is_tried_once_and_leaves_no_process(monkeypatch, unchecked):
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    require_math_verify()
    require_math_verify()
    assert len(started) == 1 and started[0].poll() is not None


def test_a_worker_killed_between_answers_is_replaced():
    grader = MathGrader()
    assert grader.equal("4/2", "2", 30)
    grader._process.kill()
    assert grader.equal("6/2", "3", 30)
    assert not grader.failures
    grader.close()


PARENT = """
import sys, threading
from lm_power.grading.math_grader import MathGrader
grader = MathGrader()
assert grader.equal("4/2", "2", 60)
print(grader._process.pid, flush=True)
if sys.argv[1] == "hang":
    grader.equal("9^{9^{9^{9}}}", "5", 2.0)
elif sys.argv[1] == "wait":
    sys.stdin.read()
"""


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("end", ["exit", "wait", "hang"])
def test_no_orphan(end):
    """The worker ends with its parent: at exit, and on SIGKILL when idle, and soon in a hanging answer."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    worker = int(parent.stdout.readline())
    if end == "exit":
        assert parent.wait(30) == 0
        assert parent.stderr.read() == ""
    else:
        assert _alive(worker)
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    # A busy machine takes all of the worker's patience over the two seconds of CPU that the answer may use.
    deadline = time.monotonic() + (PATIENCE * 2.0 + 1 + 5 if end == "hang" else 6)
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)
    for pipe in (parent.stdin, parent.stdout, parent.stderr):
        pipe.close()


def _rows():
    if not MATH500.is_file():
        pytest.skip(f"needs {MATH500.name} in ../shared/data or in $LM_POWER_DATA")
    return [json.loads(line) for line in MATH500.read_text().splitlines()]


def test_gold_solutions_agree_with_gold_answers():
    """The 500 reference solutions, graded like completions; also by math-verify alone, not literally."""
    rows = _rows()
    wrong = [row["unique_id"] for row in rows if not grade_math(row["solution"], row["answer"])]
    compare = _compare()
    unread = [
        row["unique_id"] for row in rows if not compare(tidy(extract_answer(row["solution"])), tidy(row["answer"]))
    ]
    print(f"{500 - len(wrong)} of 500 agree, {500 - len(unread)} by math-verify alone; not {wrong + unread}")
    assert len(rows) == 500
    assert len(wrong) <= 1 and len(unread) <= 1


def test_other_problems_answers_are_wrong_and_quick():
    """500 shuffled pairs: right only if it is the same answer; under 20 ms each on average.

    All pairs go through math-verify here, and CPU time is counted, so that a busy machine fails nothing.
    The agreements by chance are listed: a person reads each as equal.
    """
    rows = _rows()
    others = random.Random(0).sample(rows, len(rows))
    compare = _compare()
    pairs = [(tidy(o["answer"]), tidy(r["answer"])) for r, o in zip(rows, others, strict=True)]
    start = time.process_time()
    same = [(answer, gold) for answer, gold in pairs if compare(answer, gold)]
    mean = (time.process_time() - start) / len(pairs)
    print(f"{1000 * mean:.1f} ms an answer; {len(same)} chance agreements")
    assert [(answer, gold) for answer, gold in same if not settled(answer, gold)] == []
    assert mean < 0.020


def test_digits():
    assert [float_digits(x) for x in (12.5, 0.5, 0.05, 0.0000672, 0, -0.02)] == [6, 6, 7, 10, 6, 7]
