r"""Grade mathematical answers by math-verify, behind a process that can be killed.

sympy can run forever on a short answer (`9^{9^{9^9}}`), inside C code where no signal handler runs. So the
comparison runs in a worker process (`math_worker.py`): started at the first answer that needs it, killed at the time
limit, started again for the next. The limit is on the worker's CPU time, so that an overloaded machine does not make
an answer wrong; a worker that gets no CPU at all is given up after `PATIENCE` times the limit. A new interpreter is
executed (no bare fork, which is unsafe beside torch's threads; no `multiprocessing`, whose spawn imports the main
program again). The worker ends when its standard input closes, so also when this process is killed.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lm_power.errors import MissingPackageError, UnavailableError
from lm_power.grading.math_readings import Pair, readings, settled
from lm_power.grading.math_spelling import tidy
from lm_power.grading.math_worker import PATIENCE

logger = logging.getLogger(__name__)

TIME_LIMIT = 5.0
"""Default limit for one comparison, seconds of CPU time."""

START_LIMIT = 120.0
"""Seconds that a worker may take to start: imports take about one, on a machine that does nothing else."""

WORKER = Path(__file__).with_name("math_worker.py")

CPU_LIMIT_SIGNAL = getattr(signal, "SIGPROF", 0)
"""What ends a worker whose CPU time is used up; `math_worker.arm_alarms` sets the clock."""

_REMEDY = "pip install 'math-verify[antlr4_13_2]'"

_MEANING = {
    "timeout": "took longer than the time limit",
    "starved": "got too little CPU time to be compared on this machine",
    "crash": "ended the grading process",
    "error": "made math-verify fail",
    "gold": "had no gold answer to compare with",
}


def math_equal(answer: str, gold: str, time_limit: float = TIME_LIMIT) -> bool:
    r"""Whether two final answers in LaTeX, as `math_answers.extract_answer` finds them, are mathematically equal.

    Args:
        answer: the model's answer.
        gold: the right answer, without box or dollars.
        time_limit: CPU seconds; an answer that takes longer to compare is wrong.

    Source: `math_readings` decides which part of an answer is compared, and equality is math-verify's (Kydlíček 2025,
    https://github.com/huggingface/Math-Verify).

    >>> math_equal(r"\frac{1}{2}", "0.5")
    True
    """
    return _default_grader().equal(answer, gold, time_limit)


@cache
def require_math_verify() -> None:
    """Have a worker compare two numbers, once per process: call it before a model spends hours on completions.

    Raises MissingPackageError if math-verify or a package that it needs is missing or broken, UnavailableError if
    the worker does not start.
    """
    if importlib.util.find_spec("math_verify") is None:  # known in no time
        raise MissingPackageError(f"grading needs math-verify, which is not installed: {_REMEDY}")
    grader = MathGrader()
    try:
        grader.start()
    finally:
        grader.close()  # grading may be hours away


@cache
def _default_grader() -> MathGrader:
    return MathGrader()


class _NotKept(Exception):
    """A comparison did not finish for a reason that may be temporary, so its outcome is not remembered."""


class MathGrader:
    """Compares answers in one worker process; safe to call from any thread, one comparison at a time.

    Each pair of expressions is compared once, even if that takes too long; the verdict on a pair never depends on
    what was compared before.

    Attributes:
        failures: how many comparisons failed, by kind: "timeout", "starved", "crash", "error", "gold".
    """

    def __init__(self, worker: Path = WORKER) -> None:
        """Start nothing yet; `worker` is the script to run."""
        self.failures: Counter[str] = Counter()
        self._worker = worker
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        # The same wrong answer is repeated among the completions of a prompt, including one that hangs.
        self._verdict = lru_cache(maxsize=8192)(self._compare)
        atexit.register(self.close)

    def equal(self, answer: str, gold: object, time_limit: float = TIME_LIMIT) -> bool:
        """Whether two answers in LaTeX, without box, are mathematically equal.

        Raises ValueError for a time limit that is not positive; else as `start`.
        """
        if not time_limit > 0:
            raise ValueError(f"time_limit={time_limit}: must be a positive number of seconds")
        if not isinstance(gold, str) or not gold.strip():
            self._note("gold", repr(gold))
            return False
        answer, gold = tidy(answer), tidy(gold)
        if not answer:
            return False
        if (verdict := settled(answer, gold)) is not None:
            return verdict
        return any(all(self._pair_equal(pair, time_limit) for pair in way) for way in readings(answer, gold))

    def _pair_equal(self, pair: Pair, time_limit: float) -> bool:
        if not all(pair):
            return False
        if (verdict := settled(*pair)) is not None:
            return verdict
        with self._lock:
            try:
                return self._verdict(*pair, time_limit)
            except _NotKept:
                return False

    def start(self) -> None:
        """Start the worker, which makes a first comparison, unless it runs.

        Raises MissingPackageError if math-verify does not work in it, UnavailableError if it does not start.
        """
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the worker; the next answer starts another."""
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # unsent bytes of a request
                pass
        process.wait()

    def _compare(self, answer: str, gold: str, time_limit: float) -> bool:
        request = {"answer": answer, "gold": gold, "limit": time_limit}
        # A second try with a new worker, in case something else ended the first between two answers.
        for _ in range(2):
            process = self._running()
            reply, given_up = _exchange(process, json.dumps(request).encode() + b"\n", PATIENCE * time_limit)
            if reply is None or given_up:
                self.close()
            if reply is not None and "correct" in reply:
                return bool(reply["correct"])
            if reply is not None:
                self._note("error", answer)
                return False
            if process.returncode == -CPU_LIMIT_SIGNAL:
                self._note("timeout", answer)
                return False
            if given_up:
                self._note("starved", answer)
                raise _NotKept
        self._note("crash", answer)
        raise _NotKept

    def _running(self) -> subprocess.Popen[bytes]:
        if os.getpid() != self._owner:  # after a fork the worker and its pipes are the parent's
            self._process, self._owner = None, os.getpid()
        if self._process is None:
            process = subprocess.Popen(
                [sys.executable, str(self._worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # parsers print there about every malformed answer
            )
            self._process = process
            greeting, _ = _exchange(process, b"", START_LIMIT)
            if greeting is None or "error" in greeting:
                self.close()
                if greeting is not None:
                    why = f"math-verify does not work in {sys.executable}: {' '.join(greeting['error'].split())}"
                    raise MissingPackageError(f"{why}: {_REMEDY}")
                raise UnavailableError(f"the grading process did not start: {sys.executable} {self._worker}")
        return self._process

    def _note(self, kind: str, answer: str) -> None:
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            logger.warning(
                "an answer %s and counts as wrong: %.80s (further ones are counted, not reported)",
                _MEANING[kind],
                answer,
            )


def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[dict[str, Any] | None, bool]:
    """Write a line, read a line, kill the process after `seconds`: (reply or None, whether it was killed)."""
    assert process.stdin is not None and process.stdout is not None
    expired = threading.Event()

    def end() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(request)
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = b""
    finally:
        timer.cancel()
    # A timer that fires after the reply still kills the process: the caller then starts another.
    return (json.loads(line) if line.endswith(b"\n") else None), expired.is_set()
