r"""The process that compares two answers by math-verify; `grading.MathGrader` starts it and kills it.

It runs as a script that imports no other code of ours and no torch, so that it starts in about a second and
can be killed at any moment. It reads one JSON object per line, `{"answer", "gold", "limit"}` (LaTeX, LaTeX,
seconds), and writes one per line: first `{"ready": true}` or `{"error": ...}`, then `{"correct": bool}` or
`{"error": ...}` for each.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 4 << 30
"""Address space, bytes: a power tower ends in MemoryError here and does not starve the evaluation."""

PATIENCE = 4
"""Wall-clock time that a comparison may take, in time limits: other programs may use the CPU too."""

Compare = Callable[[str, str], bool]


def make_compare() -> Compare:
    """Import math-verify and build the comparison of an answer with a gold answer. Raises ImportError."""
    from math_verify import LatexExtractionConfig, parse, verify

    box_first = [LatexExtractionConfig(boxed_match_priority=0)]

    @lru_cache(maxsize=1024)
    def read(latex: str) -> list[Any]:
        # math-verify's own timeout is off: its signal handler cannot interrupt C code. The parent's kill can.
        parsed: list[Any] = parse(f"\\boxed{{{latex}}}", extraction_config=box_first, parsing_timeout=None)
        return parsed

    def compare(answer: str, gold: str) -> bool:
        expected = read(gold)
        digits = float_digits(expected[0]) if expected and getattr(expected[0], "is_Number", False) else 6
        return bool(
            verify(
                expected,
                read(answer),
                float_rounding=digits,
                allow_set_relation_comp=True,  # "3 < x \le 4" is the interval (3, 4]
                timeout_seconds=None,
            )
        )

    return compare


def float_digits(gold: Any) -> int:
    """Decimals to compare a float to: six significant digits of a small gold number, else six decimals.

    math-verify's six decimals make 0.0000674 equal to 0.0000672.
    """
    size = abs(float(gold))
    return 5 + max(1, math.ceil(-math.log10(size))) if 0 < size < 1 else 6


def main() -> None:
    """Answer requests until standard input ends."""
    # The script's folder holds modules of common names; nothing is to be imported from it.
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library's print must not look like a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    logging.disable(logging.CRITICAL)
    limit_memory()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        compare = make_compare()
        compare("1", r"\frac{1}{1}")  # builds the parser's tables, outside the first answer's time limit
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({"ready": True})

    for line in sys.stdin.buffer:
        job = json.loads(line)
        arm_alarms(job["limit"], PATIENCE * job["limit"] + 1)  # the parent, if it lives, gives up before
        try:
            message: dict[str, Any] = {"correct": compare(job["answer"], job["gold"])}
        except Exception as error:  # sympy raises everything, RecursionError and MemoryError included
            message = {"error": type(error).__name__}
        arm_alarms(0, 0)
        reply(message)


def arm_alarms(cpu_seconds: float, seconds: float) -> None:
    """Have the kernel end this process after so much CPU or wall-clock time, even in C code or without the parent.

    Args:
        cpu_seconds: ended by SIGPROF, which tells the parent that the comparison itself took too long; 0: never.
        seconds: ended by SIGALRM; 0: never.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_memory() -> None:
    """Cap this process's address space where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main()
