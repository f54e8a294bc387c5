"""Load a task's documents from a file on this machine, saying plainly what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def load_local(path: str, columns: Sequence[str], option: str) -> Dataset:
    """The rows of a JSON Lines file (`.jsonl`) or of a JSON file that holds a list of objects.

    Args:
        path: the file; `~` is the home folder, a relative path starts at the current folder.
        columns: text columns that every row must have; others are kept.
        option: what the user set to name the file, for the messages.

    Raises:
        ValueError: naming the file, what was found and what to do, if it is missing, not JSON, empty, or
            lacks columns.
    """
    file = Path(path).expanduser()
    wanted = f"{option} must name a JSON Lines file with the columns {', '.join(columns)}"
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ValueError(f"{option}={path}: {what} ({file.absolute()}). {wanted}.")
    rows = _read_rows(file, option, wanted)
    if not rows:
        raise ValueError(f"{option}={path}: has no rows. {wanted}.")
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(
                f"{option}={path}: row {number} lacks {', '.join(missing)}; "
                f"it has {', '.join(row) or 'no columns'}. {wanted}: rename its columns."
            )
        for column in columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{option}={path}: row {number} has {column}={row[column]!r}: must be a text.")
    return _as_dataset(rows, path, option)


def _read_rows(file: Path, option: str, wanted: str) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}={file}: cannot be read: {error}. {wanted}.") from error
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
                raise ValueError(f"{option}={file}: line {line} is not JSON: {error.msg}. {wanted}.") from error
    if is_list:
        rows = rows[0]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{option}={file}: row {number} is not an object but {row!r:.60}. {wanted}.")
    return rows


def _as_dataset(rows: list[dict[str, Any]], path: str, option: str) -> Dataset:
    import datasets

    try:
        return datasets.Dataset.from_list(rows)
    except (ValueError, TypeError, NotImplementedError) as error:  # a further column of mixed types
        raise ValueError(f"{option}={path}: its columns do not have one type each: {error}") from error
