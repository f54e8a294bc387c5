"""Turns a model's text into a program with tests, and that into a verdict, for the tasks whose answers are code.

A document of these tasks has HumanEval's columns: `prompt` (imports, helpers, signature and docstring), `entry_point`
and `test`. It may also have `setup`, a text that the tests need first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_power.grading.programs import assemble
from lm_power.harness.metrics import completion_metrics, log_completions, real_completions
from lm_power.logs.samples import LOG_KEY
from lm_power.sandbox.runner import TIMEOUT, Program, Verdict, run_programs


def make_program(doc: dict[str, Any], completion: str) -> Program:
    """The program of one completion, as `grading.programs` assembles it, and separately its tests."""
    code = assemble(doc["prompt"], str(completion), doc["entry_point"])
    return Program(code=code, test=doc["test"], entry_point=doc["entry_point"], setup=doc.get("setup") or "")


def grade_code(doc: dict[str, Any], completions: Sequence[str], timeout: float = TIMEOUT) -> list[Verdict]:
    """A verdict for each completion of one document. Programs run side by side on all cores; equal ones run once.

    Args:
        doc: a document with the columns above.
        completions: the model's texts.
        timeout: wall-clock seconds for each.
    """
    programs = [make_program(doc, completion) for completion in completions]
    unique = list(dict.fromkeys(programs))
    verdicts = dict(zip(unique, run_programs(unique, timeout), strict=True))
    return [verdicts[program] for program in programs]


def code_results(doc: dict[str, Any], results: list[Any], timeout: float = TIMEOUT) -> dict[str, float]:
    """`process_results` of a task whose answers are code: the metrics of one document.

    It runs each completion, and logs what is known about it, including its verdict, with the document.
    """
    completions = real_completions(results)
    verdicts = grade_code(doc, completions, timeout)
    correct = [float(verdict.passed) for verdict in verdicts]
    log_completions(doc, correct, completions)
    doc[LOG_KEY]["verdict"] = [f"{v.status}: {v.detail}" if v.detail else v.status for v in verdicts]
    return completion_metrics(correct, completions)
