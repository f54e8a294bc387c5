"""Answers: found in texts, graded as a person would, never slower than the limit, whatever the text."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_power.harness.answers import bases_differ, extract_answer, integers_equal, literally_equal, tidy
from lm_power.harness.grading import MathGrader, grade_math
from lm_power.harness.math_worker import float_digits, make_compare

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LM_POWER_DATA", REPOSITORY.parent / "shared" / "data"))
MATH500 = DATA / "math500.jsonl"

# Gold answer (all are MATH500's), answers that a person calls right, answers that a person calls wrong.
VERDICTS = [
    (r"\left( 3, \frac{\pi}{2} \right)", [r"(3,\pi/2)", r"(r,\theta) = \left( 3, \frac{\pi}{2} \right)"],
     [r"(\frac{\pi}{2},3)", r"(3,\frac{\pi}{3})"]),
    ("p - q", ["p-q", "-q+p"], ["q-p"]),
    (r"\frac{14}{3}", [r"\dfrac{14}{3}", "14/3", r"4\frac{2}{3}", "4.666667", r"\frac{14}{3}\text{ units}"],
     ["4.67", r"\frac{3}{14}", "14"]),
    (r"\text{Evelyn}", ["Evelyn", r"\text{evelyn}", r"\textbf{Evelyn}", r"\text{Evelyn.}"],
     [r"\text{Angela}", "E"]),
    (r"90^\circ", ["90", r"90^{\circ}", r"90\text{ degrees}", "90°", r"90\degree", r"\angle A=90^\circ"],
     ["45", r"\frac{\pi}{2}"]),
    (r"3\sqrt{13}", [r"\sqrt{117}", r"3 \cdot \sqrt{13}"], [r"13\sqrt{3}", "10.8167"]),
    ("6 - 5i", ["6-5i", "-5i+6"], ["6+5i", "5i-6"]),
    ("x=5", ["5", "x = 5"], ["y=5", "x=-5"]),
    ("5", ["x=5", "5.0", "5.", r"5\,", "{5}", "$5$", r"\text{5}", r"\$5", r"5\text{ inches}", "4+1=5"],
     ["-5", "50", "1,5", "5!", "five hundred", "", "5, 6"]),
    ("1,-2", ["-2,1", r"1 \text{ and } -2", r"x = 1 \text{ or } x = -2", r"\{1,-2\}"],
     ["1", "1,2", "1,-2,3"]),
    ("52_8", ["52_{8}", "52", r"52_{\text{8}}"], ["53_8", "52_{10}", "42"]),
    (r"11\sqrt2", [r"11\sqrt{2}", r"\sqrt{242}"], [r"2\sqrt{11}"]),
    ("3, 5, 7", ["7,5,3", r"3, 5, \text{ and } 7"], ["3,5", "3,5,8", "357"]),
    ("1.25", [r"\frac{5}{4}", "1.250", r"1\frac14"], ["125", "1.26"]),
    (r"x^5 - x^4 + x^3 - x^2 + x - 1", ["(x-1)(x^4+x^2+1)", "x^5-x^4+x^3-x^2+x-1"], ["x^5-x^4+x^3-x^2+x+1"]),
    (r"-\frac{\pi}{6}", [r"\frac{-\pi}{6}", r"-\pi/6"], [r"\frac{\pi}{6}"]),
    ("(6,31,-1)", ["(6, 31, -1)", "(a,b,c)=(6,31,-1)"], ["(31,6,-1)", "(6,31,1)"]),
    (r"\cot x", [r"\frac{\cos x}{\sin x}", r"\cot(x)"], [r"\tan x"]),
    ("(-2,1)", ["-2<x<1", r"x \in (-2,1)"], ["(1,-2)", "[-2,1]"]),
    (r"1 \pm \sqrt{19}", [r"1+\sqrt{19}, 1-\sqrt{19}", r"x = 1 \pm \sqrt{19}"],
     [r"1+\sqrt{19}", r"-1\pm\sqrt{19}"]),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
     [r"\begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \\ \frac{5}{3} \end{pmatrix}",
      r"\begin{bmatrix} -1/3 \\ 2/3 \\ 5/3 \end{bmatrix}"],
     [r"\begin{pmatrix} -1/3 \\ 2/3 \\ 4/3 \end{pmatrix}"]),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", [r"\begin{bmatrix}-1&0\\0&-1\end{bmatrix}"],
     [r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}"]),
    ("(3,4]", [r"\left(3,4\right]", r"3 < x \leq 4", r"x\in(3,4]"], ["[3,4)", "(3,4)", "[3,4]"]),
    (r"(2,\infty)", [r"(2, +\infty)", "x>2"], [r"[2,\infty)", r"(-\infty,2)"]),
    (r"\text{(C)}", ["C", "(C)", r"\textbf{(C)}"], ["B", r"\text{(B)}"]),
    (r"\text{even}", ["even", r"\text{Even}"], ["odd", r"\text{neither}"]),
    (r"\$32,\!348", ["32348", "32,348", r"\$32348.00", r"32{,}348", r"32348\text{ dollars}"],
     ["32,349", "32.348"]),
    (r"10,\!080", ["10080", "10,080", r"10\,080"], ["1080", "10.08"]),
    (r"11,\! 111,\! 111,\! 100", ["11111111100", "11,111,111,100"], ["11111111101"]),
    (r"864 \mbox{ inches}^2", ["864", r"864 \text{ in}^2", r"864\text{ square inches}"], ["865"]),
    (r"15\mbox{ cm}^2", ["15", r"15\,\text{cm}^2", "15 cm^2"], ["225"]),
    (r"137 \frac{1}{2}", ["137.5", r"\frac{275}{2}"], ["137", r"\frac{137}{2}"]),
    (r"\frac{270}7\text{ degrees}", [r"\frac{270}{7}", r"38\frac{4}{7}^\circ"], ["38.57"]),
    ("5x - 7y + 11z + 4 = 0", ["-5x+7y-11z-4=0", "5x-7y+11z=-4"], ["5x-7y+11z-4=0"]),
    ("y = 2x + 3", ["2x+3", "2x-y+3=0"], ["y=3x+2"]),
    (".0000672", ["0.0000672", r"6.72 \times 10^{-5}"], ["0.0000674", ".000672"]),
    (r"5.4 \text{ cents}", ["5.4", "5.4 cents"], ["5.5"]),
    (r"(0,9) \cup (9,36)", [r"(9,36)\cup(0,9)"], ["(0,36)"]),
    (r"x \in [-2,7]", ["[-2,7]", r"-2\le x\le 7"], ["(-2,7)"]),
    (r"\{1\pm\sqrt{5},-2\}", [r"1+\sqrt5, 1-\sqrt5, -2", r"-2, 1\pm\sqrt{5}"], [r"1\pm\sqrt5"]),
    (r"\$18.90", ["18.9", r"18.90\text{ dollars}"], ["1890", "18.91"]),
    ("50", [r"50\%", r"50 \text{ percent}"], ["0.5"]),
    (r"\frac{11+9a}{20}", [r"\frac{11}{20}+\frac{9a}{20}", "(11+9a)/20"], [r"\frac{11+9b}{20}"]),
    (r"\frac{2}{1005}", ["2/1005"], ["0.00199", "0.002"]),
]  # fmt: skip
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
    assert len(CASES) >= 60
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


@pytest.mark.parametrize(("behaviour", "kind"), [("dies", "crash"), ("stays silent", "timeout"), ("fails", "error")])
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
    with pytest.raises(ImportError, match="no math_verify"):
        MathGrader(worker).equal("1", "1/2")
    worker.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="did not start"):
        MathGrader(worker).equal("1", "1/2")


def test_a_worker_killed_between_answers_is_replaced():
    grader = MathGrader()
    assert grader.equal("4/2", "2", 30)
    grader._process.kill()
    assert grader.equal("6/2", "3", 30)
    assert not grader.failures
    grader.close()


PARENT = """
import sys, threading
from lm_power.harness.grading import MathGrader
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
    """The worker ends with its parent: at exit, and on SIGKILL when idle or in a hanging answer."""
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
    deadline = time.monotonic() + 6
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
    """Answers to other problems are right only if they are the same answer; under 20 ms each on average.

    All pairs go through math-verify here, and CPU time is counted, so that a busy machine fails nothing.
    """
    rows = _rows()[:250]
    compare = _compare()
    pairs = [(tidy(o["answer"]), tidy(r["answer"])) for r, o in zip(rows, rows[7:] + rows[:7], strict=True)]
    start = time.process_time()
    same = [(answer, gold) for answer, gold in pairs if compare(answer, gold)]
    mean = (time.process_time() - start) / len(pairs)
    print(f"{1000 * mean:.1f} ms an answer; {len(same)} chance agreements")
    assert all(literally_equal(answer, gold) for answer, gold in same)
    assert mean < 0.020


def test_bases_and_digits():
    assert bases_differ("52_8", "52_{10}") and not bases_differ("52_8", "52_{8}") and not bases_differ("52", "52_8")
    assert literally_equal("x + 1", "x+1") and not literally_equal("3 5", "35")
    assert integers_equal("05", "5") and integers_equal("5", "50") is False and integers_equal("5.0", "5") is None
    assert [float_digits(x) for x in (12.5, 0.5, 0.05, 0.0000672, 0, -0.02)] == [6, 6, 7, 10, 6, 7]
