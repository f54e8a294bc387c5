"""Load a task's documents from the hub or from a file on this machine, with errors that say what is wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.errors import DataError, UnavailableError, one_line

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub(path: str, name: str | None, split: str, way_out: str) -> Dataset:
    """One split of a data set of the Hugging Face hub.

    Args:
        path: its hub id.
        name: its configuration; None if it has one only.
        split: the split.
        way_out: what the error message suggests to a user who cannot load it.

    Raises:
        UnavailableError: no network, no such data set, or no access to it.
    """
    import datasets

    try:
        return datasets.load_dataset(path, name, split=split)
    except Exception as error:  # the hub's client raises many kinds
        raise UnavailableError(
            f"could not load {path} from the Hugging Face hub ({type(error).__name__}: {one_line(error)}). {way_out}"
        ) from error


def normalised(text: str) -> str:
    r"""`text` without case and white space: how copies of one problem are recognised.

    >>> normalised(" What is $1 + 1$?\n") == normalised("what is $1+1$?")
    True
    """
    return re.sub(r"\s+", "", text).casefold()


def load_local(path: str, columns: Sequence[str], option: str) -> Dataset:
    """The rows of a JSON Lines file, of a JSON file that holds a list of objects, or of a `.csv` file.

    Args:
        path: the file; `~` is the home folder, a relative path starts at the current folder.
        columns: text columns that every row must have; others are kept.
        option: the option that named the file, for the messages.

    Raises:
        DataError: naming the file, what was found and what to do, if it is missing, not JSON, empty, or
            lacks columns.
    """
    file = Path(path).expanduser()
    wanted = f"{option} must name a JSON Lines or CSV file with the columns {', '.join(columns)}"
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{option}={path}: {what} ({file.absolute()}). {wanted}.")
    rows = _read_rows(file, option, wanted)
    if not rows:
        raise DataError(f"{option}={path}: has no rows. {wanted}.")
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise DataError(
                f"{option}={path}: row {number} lacks {', '.join(missing)}; "
                f"it has {', '.join(row) or 'no columns'}. {wanted}: rename its columns."
            )
        for column in columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise DataError(f"{option}={path}: row {number} has {column}={row[column]!r}: must be text.")
    return _as_dataset(rows, path, option)


def _read_rows(file: Path, option: str, wanted: str) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # editors on Windows put a byte-order mark at the start
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option}={file}: cannot be read: {error}. {wanted}.") from error
    if file.suffix.lower() == ".csv":
        return _read_csv(text, file, option, wanted)
    # A JSON list is one value that starts on line 1; in JSON Lines every line is a value.
    is_list = text.lstrip().startswith("[")
    values = [(1, text)] if is_list else list(enumerate(text.split("\n"), start=1))
    rows: list[Any] = []
    for first_line, value in values:
        if value.strip():
            try:
                rows.append(json.loads(value))
            except json.JSONDecodeError as error:
                line = first_line + error.lineno - 1
                raise DataError(f"{option}={file}: line {line} is not JSON: {error.msg}. {wanted}.") from error
    if is_list:
        rows = rows[0]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{option}={file}: row {number} is not an object but {row!r:.60}. {wanted}.")
    return rows


def _read_csv(text: str, file: Path, option: str, wanted: str) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{option}={file}: is not CSV: {error}. {wanted}.") from error
    for number, row in enumerate(rows, start=1):
        if None in row:  # where DictReader puts the surplus
            raise DataError(f"{option}={file}: row {number} has more fields than the header. {wanted}.")
    return rows


def _as_dataset(rows: list[dict[str, Any]], path: str, option: str) -> Dataset:
    import datasets

    try:
        return datasets.Dataset.from_list(rows)
    except (ValueError, TypeError, NotImplementedError) as error:  # a further column of mixed types
        raise DataError(f"{option}={path}: a column has values of several types: {error}") from error
