"""Documents of the power_gpqa_train task; prompt and grading are those of power_gpqa_diamond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_power.data.gpqa import as_documents, load_gpqa_train

if TYPE_CHECKING:
    from datasets import Dataset


def load_documents(gpqa_folder: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions of GPQA that are not in GPQA-Diamond, from the hub or from a folder on this machine.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `gpqa_folder` is ours.
    """
    return as_documents(load_gpqa_train(gpqa_folder))
