"""Documents of the power_math_train task; prompt and grading are those of math500."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.data.math_problems import load_math_train
from lm_power.grading.math_grader import require_math_verify

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(
    math_file: str | None = None, math500_file: str | None = None, math_train_seed: int = 0, **_: Any
) -> dict[str, Dataset]:
    """500 problems of MATH without MATH500, from the hub or from two local files.

    lm-eval calls this with everything of `--metadata` and `--model_args`; the three named are ours.
    """
    require_math_verify()
    return {"test": load_math_train(math_file, math500_file, math_train_seed)}
