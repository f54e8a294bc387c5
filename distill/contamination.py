"""Finds teacher prompts that occur in an evaluation set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_power.data.loading import normalised
from lm_power.distill.sources import TeacherDataError, find_files, kind_of, read_store_lines
from lm_power.logs.samples import PROBLEM_FIELDS, problem_of, prompts_of, read_lines

SHORTEST_INSIDE = 16
"""Length, in characters without white space, from which a text is also searched for inside longer ones; a shorter text
would be found by chance. The shortest problem of MATH500 has 19."""


class EvaluationSets:
    """The prompts of evaluation sets, in which other texts can be looked up, ignoring case and white space.

    The prompts in a file are

    * in a store (file or folder): each line's `prompt`;
    * in samples of lm-eval: each line's prompt, and the problem in its document, which has no template around it;
    * in any other `.jsonl`: on each line, the first of problem, question, Question, prompt, instruction that holds a
      text (the hub's MATH-500 has `problem`), or the line itself if it is a text;
    * in a `.txt`: each line that is not blank.

    Args:
        paths: files and folders; a folder stands for all `.jsonl` files in it and below.

    Raises:
        TeacherDataError: a path does not exist, or a line holds no prompt.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._where: dict[str, str] = {}
        self._by_start: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            prompts = [prompt for file in find_files([path]) for prompt in _prompts(file)]
            if not prompts:
                raise TeacherDataError(f"{path}: holds no prompt; is it the evaluation set?")
            for where, text in prompts:
                self._add(normalised(text), where)

    def __len__(self) -> int:
        """Number of different texts."""
        return len(self._where)

    def find(self, text: str) -> str | None:
        """The evaluation prompt, as "file:line", that `text` equals or contains in a template; None if there is none.

        >>> import json, tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps({"problem": "What is $1 + 1$ times 21?"}))
        ...     file.flush()
        ...     sets = EvaluationSets([file.name])
        >>> sets.find("Solve: what is $1+1$  times 21? Think first.").endswith(":1")
        True
        >>> sets.find("What is $2+1$ times 21?") is None
        True
        """
        short = normalised(text)
        if short in self._where:
            return self._where[short]
        for at in range(len(short) - SHORTEST_INSIDE + 1):
            for known in self._by_start.get(short[at : at + SHORTEST_INSIDE], ()):
                if short.startswith(known, at):
                    return self._where[known]
        return None

    def _add(self, text: str, where: str) -> None:
        if text and text not in self._where:
            self._where[text] = where
            if len(text) >= SHORTEST_INSIDE:
                self._by_start[text[:SHORTEST_INSIDE]].append(text)


def _prompts(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", prompt) of an evaluation set's file."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TeacherDataError(f"{path}: cannot be read ({error})") from error
        yield from ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())
        return
    kind = kind_of(path)
    if kind == "store":
        yield from ((drawn.where, drawn.prompt) for drawn in read_store_lines(path))
    elif kind is not None:
        for where, row in read_lines(path):
            texts = _texts(row)
            if not texts:
                raise TeacherDataError(
                    f"{where}: holds no prompt: must be a text, or an object with one of {', '.join(PROBLEM_FIELDS)}"
                )
            yield from ((where, text) for text in texts)


def _texts(row: Any) -> list[str]:
    """The prompts of one line of a file that is not a store."""
    if isinstance(row, dict) and {"doc", "arguments"} <= set(row):
        texts = [*prompts_of(row), problem_of(row["doc"])]
    else:
        texts = [row if isinstance(row, str) else problem_of(row)]
    return [text for text in texts if text and text.strip()]
