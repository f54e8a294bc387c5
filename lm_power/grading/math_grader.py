r"""Grade mathematical answers by math-verify, behind a process that can be killed.

sympy can hang for ever on a short answer (`9^{9^{9^9}}`), inside C code where no signal handler runs. So the
comparison runs in a worker process (`math_worker.py`): started at the first answer that needs it, killed at
the time limit, started again for the next. A new interpreter is executed (no bare fork, which is unsafe
beside torch's threads; no `multiprocessing`, whose spawn imports the main program again). The worker ends
when its standard input closes, so also when this process is killed.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lm_power.grading.math_answers import bases_differ, extract_answer, integers_equal, literally_equal, tidy

logger = logging.getLogger(__name__)

TIME_LIMIT = 5.0
"""Default wall-clock limit for one answer, seconds."""

START_LIMIT = 120.0
"""Seconds that a worker may take to start: imports take about one, on a machine that does nothing else."""

WORKER = Path(__file__).with_name("math_worker.py")

_MEANING = {
    "timeout": "took longer than the time limit",
    "crash": "ended the grading process",
    "error": "made math-verify fail",
    "gold": "had no gold answer to compare with",
}


def grade_math(completion: object, gold: object, time_limit: float = TIME_LIMIT) -> bool:
    r"""Whether the final answer of `completion` is mathematically equal to `gold`.

    Args:
        completion: the model's text; anything without a well-formed answer, None included, is wrong.
        gold: the right answer in LaTeX, without box or dollars.
        time_limit: wall-clock seconds for the comparison; an answer that takes longer is wrong.

    Source: the answer is the last `\boxed{...}` (see `answers.extract_answer`); equality is math-verify's
    (Kydlíček 2025, https://github.com/huggingface/Math-Verify).

    >>> grade_math(r"Hence $x = \boxed{\frac{1}{2}}$.", "0.5")
    True
    """
    answer = extract_answer(completion)
    return answer is not None and _default_grader().equal(answer, gold, time_limit)


def math_equal(answer: str, gold: str) -> bool:
    r"""Whether two final answers in LaTeX, as `answers.extract_answer` finds them, are mathematically equal.

    >>> math_equal(r"\frac{1}{2}", "0.5")
    True
    """
    return _default_grader().equal(answer, gold)


def require_math_verify() -> None:
    """Raise ImportError if math-verify is missing: call it before a model spends hours on completions."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("grading needs math-verify, which is not installed: pip install 'math-verify[antlr4_13_2]'")


@cache
def _default_grader() -> MathGrader:
    return MathGrader()


class MathGrader:
    """Compares answers in one worker process; safe to call from any thread, one answer at a time.

    Attributes:
        failures: how many answers failed, by kind: "timeout", "crash", "error", "gold".
    """

    def __init__(self, worker: Path = WORKER) -> None:
        """Start nothing yet; `worker` is the script to run."""
        self.failures: Counter[str] = Counter()
        self._worker = worker
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        # Answers that hung or crashed once; a majority vote compares each with many others.
        self._hopeless: set[str] = set()
        # The same wrong answer comes up again among the repeats of a prompt, also the one that hangs.
        self._verdict = lru_cache(maxsize=8192)(self._compare)
        atexit.register(self.close)

    def equal(self, answer: str, gold: object, time_limit: float = TIME_LIMIT) -> bool:
        """Whether two answers in LaTeX, without box, are mathematically equal.

        Raises ValueError for a time limit that is not positive, ImportError if the worker lacks math-verify.
        """
        if not time_limit > 0:
            raise ValueError(f"time_limit={time_limit}: must be a positive number of seconds")
        if not isinstance(gold, str) or not gold.strip():
            self._note("gold", repr(gold))
            return False
        answer, gold = tidy(answer), tidy(gold)
        if not answer:
            return False
        if literally_equal(answer, gold):
            return True
        if (same := integers_equal(answer, gold)) is not None:
            return same
        if bases_differ(answer, gold) or not self._hopeless.isdisjoint((answer, gold)):
            return False
        with self._lock:
            return self._verdict(answer, gold, time_limit)

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
            reply, timed_out = self._ask(request, time_limit)
            if reply is not None and "correct" in reply:
                return bool(reply["correct"])
            if reply is not None:
                self._note("error", answer)
                return False
            if timed_out:
                self._hopeless.add(answer)
                self._note("timeout", answer)
                return False
        self._hopeless.add(answer)
        self._note("crash", answer)
        return False

    def _ask(self, request: dict[str, Any], time_limit: float) -> tuple[dict[str, Any] | None, bool]:
        """Send one request; its reply, or None if the worker ended, and whether the time limit ended it."""
        process = self._running()
        reply, timed_out = _exchange(process, json.dumps(request).encode() + b"\n", time_limit)
        if reply is None or timed_out:
            self.close()
        return reply, timed_out

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
                    raise ImportError(f"math-verify does not work in {sys.executable}: {greeting['error']}")
                raise RuntimeError(f"the grading process did not start: {sys.executable} {self._worker}")
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
