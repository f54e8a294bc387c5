"""The instructions of AlpacaEval 2.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_power.data.loading import load_local
from lm_power.errors import UnavailableError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

ALPACA_EVAL = "tatsu-lab/alpaca_eval"
FILE = "alpaca_eval.json"
COLUMNS = ("instruction", "dataset")


def load_alpaca_eval(alpaca_eval_file: str | None = None) -> Dataset:
    """The 805 instructions (Dubois et al. 2024) from the hub, or from a file with the same columns.

    The hub's repository is a loading script, which `datasets` no longer runs, beside plain JSON files: the
    file is read directly.

    Returns:
        `instruction` and `dataset`, the collection that it comes from. The file's `output` and `generator`
        are another model's answers, and left out.

    Raises:
        DataError: the file is missing or malformed.
        UnavailableError: the hub cannot be reached.
    """
    file = _download() if alpaca_eval_file is None else str(alpaca_eval_file)
    return load_local(file, COLUMNS, "alpaca_eval_file").select_columns(list(COLUMNS))


def _download() -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(ALPACA_EVAL, FILE, repo_type="dataset")
    except OSError as error:  # of which all its errors of network and access are
        raise UnavailableError(
            f"could not load {FILE} of {ALPACA_EVAL} from the Hugging Face hub "
            f"({type(error).__name__}: {one_line(error)}). With a copy on this machine: "
            f"--metadata alpaca_eval_file=PATH/{FILE}"
        ) from error
