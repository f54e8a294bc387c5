r"""Final answers in texts: the last `\boxed{...}`, or what the text announces. Linear in the text's length."""

from __future__ import annotations

import re

from lm_power.grading.math_spelling import without_outer_braces

SEARCHED_CHARS = 200_000
"""Only this much of a text's end is searched, in characters: 3072 tokens are about 12,000."""

LONGEST_ANSWER = 1_000
"""An answer of more characters than this is malformed; the longest of MATH has under 200."""

_BOX_TOKENS = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])\s*|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"-?\d[\d.,]*(?:/\d+)?|-?\\[A-Za-z]+[^$\s]*")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|\\[\[\]()]|\\quad|\\qquad|\\text\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b)*")
_ANNOUNCED = re.compile(r"\banswer\**\s*(?:is\s*:?|:)[ \t]*(?P<answer>[^\n]+)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def extract_answer(text: object) -> str | None:
    r"""The final answer that `text` states, as LaTeX without its box, or None.

    The last complete `\boxed{...}` (or `\fbox{...}`) that is not empty: the prompt's own `\boxed{{}}`,
    repeated by a base model, is no answer. Boxes joined by nothing but commas, "and" or "or" are one answer
    of several parts, so that naming two values when one is right is wrong. Without any box: what follows
    the last "answer is" or "answer:" up to the end of its sentence (a departure from the paper, which
    counts boxes only). A text that opens a box and never closes one has no answer.

    >>> extract_answer(r"so $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> extract_answer(r"$\boxed{1}$ and $\boxed{-2}$"), extract_answer("The answer is $5$. I hope so.")
    ('1, -2', '5')
    >>> extract_answer(r"\boxed{\frac{1}{2") is None
    True
    """
    if not isinstance(text, str):
        return None
    text = text[-SEARCHED_CHARS:]
    boxes, box_opened = _boxes(text)
    if boxes:
        answer: str | None = _last_group(text, boxes)
    elif box_opened:
        return None
    else:
        answer = _announced(text)
    return answer if answer and len(answer) <= LONGEST_ANSWER else None


def last_box(text: object) -> str | None:
    r"""The content of the last complete box that is not empty, and nothing else; None without one.

    >>> last_box(r"\boxed{A} or \boxed{B}, so \boxed{{C}}"), last_box("The answer is D.")
    ('C', None)
    """
    boxes, _ = _boxes(text[-SEARCHED_CHARS:]) if isinstance(text, str) else ([], False)
    return boxes[-1][2] if boxes and len(boxes[-1][2]) <= LONGEST_ANSWER else None


def _boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """The complete outermost boxes as (start, end, content), and whether any box was begun at all."""
    found: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int] | None] = []  # (start of the command, start of the content) for a box's brace
    opened = False
    pending: tuple[int, int] | None = None
    for token in _BOX_TOKENS.finditer(text):
        symbol = token.group()
        if symbol == "{":
            is_box = pending is not None and pending[1] == token.start()
            open_braces.append((pending[0], token.end()) if is_box and pending else None)
        elif symbol == "}":
            box = open_braces.pop() if open_braces else None
            if box is not None:
                while found and found[-1][0] > box[0]:  # boxes inside this box
                    found.pop()
                found.append((box[0], token.end(), without_outer_braces(text[box[1] : token.start()].strip())))
        elif len(symbol) > 2:  # a box command; every other escape has two characters
            pending = (token.start(), token.end())
            opened = opened or text.startswith("{", token.end())
            bare = _BARE_BOX.match(text, token.end())
            if bare:  # `\boxed 5`
                found.append((token.start(), bare.end(), bare.group().strip()))
    return [box for box in found if box[2]], opened


def _last_group(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The contents of the last run of boxes with only separators between them, joined by commas."""
    group = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if start - end > 60 or not _BETWEEN_BOXES.fullmatch(text, end, start) or "\n\n" in text[end:start]:
            break
        group.append(content)
    return ", ".join(dict.fromkeys(reversed(group)))


def _announced(text: str) -> str | None:
    """What follows the last "answer is" or "answer:" on its line, to the end of the sentence."""
    lines = _ANNOUNCED.findall(text)
    if not lines:
        return None
    answer = _SENTENCE_END.split(lines[-1], maxsplit=1)[0]
    return re.sub(r"\\[()\[\]]|\$|\*\*", "", answer).strip() or None
