"""One page per problem, all runs' completions side by side, and their index with filters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lm_power.logs.samples import LoggedCompletion
from lm_power.report.rendering import number, policy, template_text, write_html
from lm_power.report.runs import Comparison, Problem, Run
from lm_power.report.visible import one_line, short_labels

HEAD, TAIL = 7_000, 3_000
"""Characters that a page keeps of a longer text: its start, and its end, where the answer is."""
OPEN = 800
"""A text of at most so many characters is unfolded from the start."""
COLUMNS = 120
"""Of a text of several lines, none longer than this, no line is broken, as in a program: narrow pages scroll them."""
OUTCOMES = {"all": "all right", "half": "at least half right", "under": "under half right", "none": "none right"}
"""What the index can filter by, for each run."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A text as a page shows it.

    Attributes:
        head: its start; the whole text if it is short enough.
        tail: its end; empty if `head` is the whole.
        characters: its full length.
        where: where the whole of it is.
    """

    head: str
    tail: str
    characters: int
    where: str

    @property
    def left_out(self) -> int:
        """Characters between head and tail."""
        return self.characters - len(self.head) - len(self.tail)

    @property
    def keeps_lines(self) -> bool:
        r"""Whether breaking a line would spoil the text's layout, such as a program's indentation.

        >>> excerpt("if x:\n    return y", "log").keeps_lines, excerpt("One long sentence. " * 20, "log").keeps_lines
        (True, False)
        """
        lines = (self.head + self.tail).splitlines()
        return len(lines) > 1 and max(map(len, lines)) <= COLUMNS


def excerpt(text: str, where: str) -> Excerpt:
    """The text, or the two ends of a long one.

    >>> excerpt("a" * 10_001, "log").left_out
    1
    """
    if len(text) <= HEAD + TAIL:
        return Excerpt(text, "", len(text), where)
    return Excerpt(text[:HEAD], text[-TAIL:], len(text), where)


def write_problems(comparison: Comparison, folder: Path, name: str) -> str:
    """Write a page for each problem and their index into `folder`/problems/`name`; the index's path from `folder`."""
    home = folder / "problems" / name
    home.mkdir(parents=True, exist_ok=True)
    labels = short_labels([run.label for run in comparison.runs], 110)
    pages = [f"{position:04d}.html" for position in range(1, comparison.size + 1)]
    for j, page in enumerate(pages):
        problems = [run.problems[j] for run in comparison.runs]
        write_html(
            home / page,
            "problem.html",
            policy=policy(),
            name=comparison.name,
            position=j + 1,
            doc_id=problems[0].doc_id,
            previous=pages[j - 1] if j else None,
            next=pages[j + 1] if j + 1 < len(pages) else None,
            prompts=_variants(comparison.runs, problems, labels, "prompt"),
            targets=_variants(comparison.runs, problems, labels, "target"),
            sides=[
                _side(run, problem, label)
                for run, problem, label in zip(comparison.runs, problems, labels, strict=True)
            ],
        )
    _write_index(comparison, home, pages)
    return (home / "index.html").relative_to(folder).as_posix()


def share_right(problem: Problem) -> float | None:
    """The verdict on the problem's completions together, or their mean verdict; None if neither is there."""
    if problem.verdict is not None:
        return problem.verdict
    verdicts = [completion.correct for completion in problem.completions]
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known and len(known) == len(verdicts) else None


def _write_index(comparison: Comparison, home: Path, pages: Sequence[str]) -> None:
    rows = []
    for j, page in enumerate(pages):
        problems = [run.problems[j] for run in comparison.runs]
        shares = [share_right(problem) for problem in problems]
        known = [share for share in shares if share is not None]
        rows.append(
            {
                "page": page,
                "position": j + 1,
                "prompt": problems[0].prompt,
                "cells": [
                    {"text": _right_of(problem), "share": share, "outcomes": _outcomes(share)}
                    for problem, share in zip(problems, shares, strict=True)
                ],
                "spread": max(known) - min(known) if len(known) > 1 else None,
            }
        )
    script = template_text("problems.js")
    write_html(
        home / "index.html",
        "problems.html",
        policy=policy(script),
        script="problems.js",
        name=comparison.name,
        labels=short_labels([run.label for run in comparison.runs], 60),
        graded=[i for i, run in enumerate(comparison.runs) if run.has_correct],
        outcomes=OUTCOMES,
        rows=rows,
    )


def _outcomes(share: float | None) -> str:
    if share is None:
        return ""
    is_so = {"all": share == 1, "half": share >= 0.5, "under": share < 0.5, "none": share == 0}
    return " ".join(name for name, value in is_so.items() if value)


def _right_of(problem: Problem) -> str:
    share = share_right(problem)
    if share is None:
        return "–"
    right = share * len(problem.completions)
    return f"{right:.4g}/{len(problem.completions)}"


def _variants(
    runs: Sequence[Run], problems: Sequence[Problem], labels: Sequence[str], field: str
) -> list[dict[str, object]]:
    """The field's distinct texts among the runs, each with the labels of those that have it."""
    variants: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for run, problem, label in zip(runs, problems, labels, strict=True):
        text = getattr(problem, field)
        if text is not None:
            variants.setdefault(text, []).append(label)
            where.setdefault(text, f"{run.folder}, document {problem.doc_id}")
    return [{"text": excerpt(text, where[text]), "labels": having} for text, having in variants.items()]


def _side(run: Run, problem: Problem, label: str) -> dict[str, object]:
    rewards = [completion.self_reward for completion in problem.completions if completion.self_reward is not None]
    best = max(rewards) if len(rewards) > 1 and min(rewards) < max(rewards) else None
    first_with: dict[str, int] = {}
    rows = []
    for position, completion in enumerate(problem.completions, start=1):
        first = first_with.setdefault(completion.text, position)
        rows.append(
            {
                "verdict": _verdict(completion),
                "verdict_class": {None: "soft", 1.0: "right", 0.0: "wrong"}.get(completion.correct, ""),
                "facts": _facts(completion, best),
                "open": len(completion.text) <= OPEN,
                "same_as": first if first < position else None,
                "text": excerpt(completion.text, f"{run.folder}, document {problem.doc_id}, completion {position}"),
            }
        )
    share = share_right(problem)
    outcome = "not graded" if share is None else f"{_right_of(problem)} right"
    return {"label": label, "outcome": outcome, "rows": rows}


def _verdict(completion: LoggedCompletion) -> str:
    if completion.correct is None:
        return "not graded"
    return {1.0: "✓ right", 0.0: "✗ wrong"}.get(completion.correct, f"score {completion.correct:.3g}")


def _facts(completion: LoggedCompletion, best: float | None) -> list[str]:
    facts = []
    if completion.answer is not None:
        facts.append(f"answer {one_line(completion.answer, 40)}")
    if completion.self_reward is not None:
        star = " ★ best" if completion.self_reward == best else ""
        facts.append(f"self-reward {number(completion.self_reward, 3)}{star}")
    if completion.tokens is not None:
        facts.append(f"{completion.tokens:,} tokens")
    if completion.tokens_decoded is not None:
        facts.append(f"{completion.tokens_decoded:,} decoded")
    if completion.finish_reason == "length":
        facts.append("cut off at the length limit")
    return facts
