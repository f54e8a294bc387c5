"""The questions of GPQA, their choices in an order that is the same everywhere, and the letter in an answer."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.data.loading import load_hub, load_local, normalised
from lm_power.errors import DataError
from lm_power.grading.math_answers import last_box
from lm_power.grading.math_latex import FONTS, TEXTS

if TYPE_CHECKING:
    from datasets import Dataset

GPQA = "Idavidrein/gpqa"
LETTERS = "ABCD"
CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
COLUMNS = ("Question", *CHOICES)
KEPT = ("Record ID", "High-level domain", "Subdomain")
WAY_OUT = (
    f"GPQA is gated: log in at https://huggingface.co/datasets/{GPQA}, accept its conditions, then run "
    "`hf auth login` or set HF_TOKEN. With a copy on this machine (gpqa_diamond.csv, gpqa_main.csv, "
    "gpqa_extended.csv; or .jsonl): --metadata gpqa_folder=PATH"
)

_DRESS = re.compile(
    rf"\\(?:{'|'.join(sorted(FONTS | TEXTS | {'mathcal', 'mathbb', 'mathfrak', 'mathscr'}))})(?![A-Za-z])"
    r"|\\[ ,;:!()\[\]{}]|\\q?quad(?![A-Za-z])|[{}$`'\"‘’“”~]|\*\*"
)
_ANNOUNCEMENT = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|final|best)\s+)?(?:option|choice|answer|letter)(?:\s+is\b|\s*[:=]|(?![a-z]))\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[(\[]?([A-D])[)\]]?[.,:;)]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]?([A-Da-d])(?:[)\]][.:]?|[.:])\s*|([A-D])\s+[-–—]{1,3}\s+)(\S.*)", re.DOTALL)
_ANOTHER_LETTER = re.compile(r"(?:[,;/&]|and\b|or\b)\s*(?:(?:and|or)\s)?\s*[(\[]?[A-D](?![A-Za-z])|[(\[][A-D][)\]]")
"""Where the text behind a letter begins with another one: `(A) or (B)`, `A), B)`."""
_LONE_LETTER = re.compile(r"[A-D]")


def load_gpqa(name: str, gpqa_folder: str | None = None) -> list[dict[str, str]]:
    """The questions of one configuration, ready to be asked: see `arrange`.

    Args:
        name: gpqa_diamond, gpqa_main or gpqa_extended.
        gpqa_folder: folder of GPQA's own CSV files (or .jsonl, .json with the same columns); None: the hub.

    Raises:
        DataError: the folder or a file in it is missing or malformed.
        UnavailableError: the hub cannot be reached, or grants no access.
    """
    if gpqa_folder is None:
        rows = load_hub(GPQA, name, "train", WAY_OUT)
    else:
        rows = load_local(str(_local_file(str(gpqa_folder), name)), COLUMNS, f"gpqa_folder: {name}")
    return [arrange(row) for row in rows]


def load_gpqa_train(gpqa_folder: str | None = None) -> list[dict[str, str]]:
    """The questions of GPQA main and extended, each once, without those of GPQA-Diamond.

    Questions are compared without case and white space.

    Raises:
        DataError, UnavailableError: as `load_gpqa`; also if nothing is left.
    """
    held_out = {normalised(row["question"]) for row in load_gpqa("gpqa_diamond", gpqa_folder)}
    others: dict[str, dict[str, str]] = {}
    for name in ("gpqa_main", "gpqa_extended"):
        for row in load_gpqa(name, gpqa_folder):
            others.setdefault(normalised(row["question"]), row)
    rows = [row for text, row in others.items() if text not in held_out]
    if not rows:
        raise DataError("no question of gpqa_main and gpqa_extended is left after those of gpqa_diamond are removed")
    return rows


def as_documents(rows: list[dict[str, str]]) -> dict[str, Dataset]:
    """The rows as the `test` split that the tasks evaluate."""
    import datasets

    return {"test": datasets.Dataset.from_list(rows)}


def arrange(row: dict[str, Any]) -> dict[str, str]:
    """One question: `question`, the choices `A` to `D`, the right letter as `answer`, and its record's names.

    The choices are sorted by SHA-256 of question and choice: no generator, no state, no order of columns or
    rows, so that every machine and every run asks the same, and each letter is right for about a quarter of
    the questions.

    >>> row = {"Question": "2+2?", "Correct Answer": "4", **{f"Incorrect Answer {i}": f"{i}" for i in (1, 2, 3)}}
    >>> arranged = arrange(row)
    >>> arranged[arranged["answer"]]
    '4'
    """
    question = row["Question"].strip()
    choices = [(row[column] or "").strip() for column in CHOICES]
    order = sorted(range(4), key=lambda i: (hashlib.sha256(f"{question}\n{choices[i]}".encode()).digest(), i))
    return {
        "question": question,
        **{letter: choices[i] for letter, i in zip(LETTERS, order, strict=True)},
        "answer": LETTERS[order.index(0)],
        **{name: str(row[name]) for name in KEPT if row.get(name) is not None},
    }


def extract_letter(completion: object) -> str | None:
    r"""The letter in the completion's last box, or None: nothing outside a box counts.

    The letter may be announced ("Option B", "Answer: B") and followed by the text of its choice, behind a bracket, a
    full stop, a colon or a dash between spaces. A box that names two letters names none.

    >>> extract_letter(r"So \boxed{\text{(B)}}."), extract_letter(r"\boxed{C) 5 m}"), extract_letter("Answer: D")
    ('B', 'C', None)
    >>> extract_letter(r"\boxed{\text{Option B}}"), extract_letter(r"\boxed{(A) and (B)}")
    ('B', None)
    """
    box = last_box(completion)
    if box is None:
        return None
    bare = _DRESS.sub(lambda match: " " if match[0][-1] in " ,;:d~" else "", box).strip()
    while announced := _ANNOUNCEMENT.match(bare):
        bare = bare[announced.end() :]
    if match := _LETTER.fullmatch(bare):
        return match[1].upper()
    match = _LETTER_AND_TEXT.fullmatch(bare)
    if match is None or _ANOTHER_LETTER.match(match[3]) or (match[2] and _LONE_LETTER.fullmatch(match[3])):  # A - B
        return None
    return (match[1] or match[2]).upper()


def _local_file(folder: str, name: str) -> Path:
    where = Path(folder).expanduser()
    if not where.is_dir():
        what = "is a file" if where.is_file() else "does not exist"
        raise DataError(
            f"gpqa_folder={folder}: {what} ({where.absolute()}): must be a folder with {name}.csv or .jsonl"
        )
    for ending in ("csv", "jsonl", "json"):
        if (where / f"{name}.{ending}").is_file():
            return where / f"{name}.{ending}"
    raise DataError(f"gpqa_folder={folder}: has no {name}.csv, .jsonl or .json ({where.absolute()})")
