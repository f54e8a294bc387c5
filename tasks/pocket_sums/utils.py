"""Documents and grading of the pocket_sums task."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.data.loading import load_local
from lm_power.harness.metrics import answer_results

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEMS = Path(__file__).parent / "problems.jsonl"
COLUMNS = ("prompt", "answer")
FINAL_WORDS = re.compile(r"\bso ([0-9])\Z")


def load_documents(**_: Any) -> dict[str, Dataset]:
    """The held-out problems beside this file (lm-eval passes its metadata; none of it is ours)."""
    return {"test": load_local(str(PROBLEMS), COLUMNS, "problems.jsonl")}


def parse_answer(text: str) -> str | None:
    """The digit that the completion ends in, after the word `so`; None for a text that ends otherwise.

    >>> parse_answer(" carefully a3 b5=8 c2=0 d4=4 so 4")
    '4'
    >>> parse_answer(" carefully a3 b5=8 c2=0 d4=4") is None
    True
    """
    match = FINAL_WORDS.search(text.strip())
    return match.group(1) if match else None


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Grade each completion of one problem, and log what is known of it with the document."""
    return answer_results(doc, results, parse_answer)
