"""Documents of the pocket_sums_train task; grading is that of pocket_sums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.data.loading import load_local

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEMS = Path(__file__).parent / "problems.jsonl"
COLUMNS = ("prompt", "answer")


def load_documents(**_: Any) -> dict[str, Dataset]:
    """The problems beside this file (lm-eval passes its metadata; none of it is ours)."""
    return {"test": load_local(str(PROBLEMS), COLUMNS, "problems.jsonl")}
