"""Documents and grading of the math500 task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.harness.grading import grade_math, require_math_verify
from lm_power.harness.local_data import load_local
from lm_power.harness.metrics import completion_metrics, log_completions, real_completions

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PATH = "HuggingFaceH4/MATH-500"
COLUMNS = ("problem", "answer")


def load_documents(math500_file: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The 500 problems from the hub, or those of a local file of the same columns.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `math500_file` is ours.
    """
    require_math_verify()
    if math500_file is not None:
        return {"test": load_local(str(math500_file), COLUMNS, "math500_file")}
    import datasets

    try:
        return {"test": datasets.load_dataset(HUB_PATH, split="test")}
    except Exception as error:  # the hub's client raises many kinds when there is no network
        raise RuntimeError(
            f"could not load {HUB_PATH} from the Hugging Face hub ({type(error).__name__}: {error}). "
            "With a copy on this machine: --metadata math500_file=PATH.jsonl"
        ) from error


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Grade each completion of one problem, and log what is known of it with the document."""
    completions = real_completions(results)
    correct = [float(grade_math(completion, doc["answer"])) for completion in completions]
    log_completions(doc, correct, completions)
    return completion_metrics(correct, completions)
