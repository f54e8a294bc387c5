"""Documents of the power_alpaca_eval task, which `alpaca_eval` judges, not we."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.data.alpaca import load_alpaca_eval
from lm_power.harness.metrics import ungraded_results

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(alpaca_eval_file: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The 805 instructions, from the hub or from a file on this machine.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `alpaca_eval_file` is ours.
    """
    return {"test": load_alpaca_eval(alpaca_eval_file)}


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Log what is known of each completion with the document; there is no right and wrong here."""
    return ungraded_results(doc, results)
