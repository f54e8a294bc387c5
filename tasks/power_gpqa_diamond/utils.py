"""Documents and grading of the power_gpqa_diamond task, and of power_gpqa_train, which is graded alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.data.gpqa import as_documents, extract_letter, load_gpqa
from lm_power.harness.metrics import answer_results

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(gpqa_folder: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions of GPQA-Diamond, from the hub or from a folder on this machine.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `gpqa_folder` is ours.
    """
    return as_documents(load_gpqa("gpqa_diamond", gpqa_folder))


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Compare the letter of each completion's last box, and log what is known of it with the document."""
    return answer_results(doc, results, extract_letter)
