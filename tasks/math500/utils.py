"""Documents and grading of the math500 task, and of power_math_train, which is graded alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.data.math_problems import load_math500
from lm_power.grading.math_answers import extract_answer
from lm_power.grading.math_grader import math_equal, require_math_verify
from lm_power.harness.metrics import answer_results

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(math500_file: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The 500 problems from the hub, or those of a local file of the same columns.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `math500_file` is ours.
    """
    require_math_verify()
    return {"test": load_math500(math500_file)}


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Grade each completion of one problem, and log what is known of it with the document."""
    return answer_results(doc, results, extract_answer, math_equal)
