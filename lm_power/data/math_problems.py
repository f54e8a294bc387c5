"""The problems of MATH: the 500 for evaluation, and 500 others for training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lm_power.config import OptionError
from lm_power.data.loading import load_hub, load_local, normalised
from lm_power.errors import DataError
from lm_power.grading.math_answers import extract_answer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

MATH500 = "HuggingFaceH4/MATH-500"
MATH = "EleutherAI/hendrycks_math"
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
TRAINING_PROBLEMS = 500


def load_math500(math500_file: str | None = None) -> Dataset:
    """The 500 problems (Lightman et al. 2023) from the hub, or from a file with the same columns.

    Raises:
        DataError: the file is missing or malformed.
        UnavailableError: the hub cannot be reached.
    """
    if math500_file is not None:
        return load_local(str(math500_file), ("problem", "answer"), "math500_file")
    return load_hub(MATH500, None, "test", "With a copy on this machine: --metadata math500_file=PATH.jsonl")


def load_math_train(math_file: str | None, math500_file: str | None, seed: int) -> Dataset:
    """500 problems of MATH that are not in MATH500, drawn by `seed`.

    Args:
        math_file: all of MATH, with `problem` and `solution`; None: the hub's, train and test splits.
        math500_file: as in `load_math500`.
        seed: whole number; other seeds draw other problems.

    Returns:
        The rows as they are, with the column `answer` taken from the solution's box.

    Raises:
        OptionError: a wrong option.
        DataError: a wrong file.
        UnavailableError: the hub cannot be reached.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"math_train_seed={seed!r}: must be a whole number, such as math_train_seed=0")
    held_out = load_math500(math500_file)["problem"]
    if math_file is not None:
        rows = list(load_local(str(math_file), ("problem", "solution"), "math_file"))
    else:
        way_out = "With a copy on this machine: --metadata math_file=PATH.jsonl,math500_file=PATH.jsonl"
        rows = [row for name in SUBJECTS for split in ("train", "test") for row in load_hub(MATH, name, split, way_out)]
    import datasets

    return datasets.Dataset.from_list(draw_others(rows, held_out, seed))


def draw_others(rows: Iterable[dict[str, Any]], held_out: Iterable[str], seed: int) -> list[dict[str, Any]]:
    """Up to 500 rows whose problem is none of `held_out`, each problem once, each with an answer.

    Problems are compared without case and white space. They are ranked by a hash of seed and text: the draw
    is the same for any order of the rows, in any process and version of Python.

    Raises:
        DataError: no row is left.
    """
    avoided = {normalised(problem) for problem in held_out}
    met: set[str] = set()
    others: dict[str, dict[str, Any]] = {}
    for row in rows:
        text = normalised(row["problem"])
        met.add(text)
        answer = extract_answer(row["solution"])
        if text not in avoided and answer is not None:
            others.setdefault(text, {**row, "answer": answer})
    if not avoided <= met:  # MATH500 is a part of MATH: a copy in other words would not be recognised
        logger.warning(
            "the text of %d of the %d problems of MATH500 is not found in MATH; a copy in other words could be drawn",
            len(avoided - met), len(avoided),
        )  # fmt: skip
    if not others:
        raise DataError("no problem of MATH is left when those of MATH500 are out: does math_file hold all of MATH?")
    ranked = sorted(others, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())
    return [others[text] for text in ranked[:TRAINING_PROBLEMS]]
