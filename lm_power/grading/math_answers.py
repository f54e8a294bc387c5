r"""Final answers in texts: find the `\boxed{...}`, tidy its LaTeX. Linear in the text's length."""

from __future__ import annotations

import re

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
                found.append((box[0], token.end(), _without_outer_braces(text[box[1] : token.start()].strip())))
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


_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("−"), "-"),
    (re.compile(r"\s*(?:\^?\s*°|\\degree(?![A-Za-z])|\^\s*\{?\s*\\degree\s*\}?)"), r"^\\circ"),
    # Thousands: 10,\!080, 10\,080, 10{,}080. A bare comma stays: "1,234" may be a list, math-verify decides.
    (re.compile(r"(?<=\d)(?:(?:,\\!|\\[!,;: ]|~)\s*|\{,\})(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"^(\\text(?:bf|it)?\s*\{\s*)?(?:an?|the)\s+(?=[a-z]{3})"), r"\1"),  # "an ellipse"
    # "x \in [1, 2]" names the interval that it equals; math-verify reads an equation of a symbol and a set.
    (re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*"), ""),
    (re.compile(r"_\s*\{?\s*\\text\s*\{\s*(\d+)\s*\}\s*\}?"), r"_{\1}"),
    (re.compile(r"(?<=[\d}\s])\s*(?:cm|mm|km|ft)\s*\^\s*\{?[23]\}?\s*$"), ""),
    (re.compile(r"(?:\\[ ,;:!]|\\q?quad(?![A-Za-z])|[.,;:~\s])+(\}?)$"), r"\1"),
)
_HALF_LINE = r"\s*(?P<{0}name>[A-Za-z])\s*(?P<{0}sign><|>|[≤≥]|\\[lg]eq?(?![A-Za-z]))(?P<{0}end>[^<>=≤≥,]+?)\s*"
_HALF_LINES = re.compile(
    _HALF_LINE.format("first") + r",?\s*(?:\\text\s*\{\s*or\s*\}|\\lor(?![A-Za-z])|\bor\b)" + _HALF_LINE.format("last")
)
_BASE = re.compile(r"-?[0-9A-Za-z]+_\{?(?P<base>\d+)\}?")
_INTEGER = re.compile(r"-?[0-9]{1,100}")
_INVISIBLE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[,;:! ]|~|\$")


def tidy(answer: str) -> str:
    r"""`answer` in spellings that math-verify reads as a person would; applied to gold answers too.

    >>> tidy(r"{10,\!080.}"), tidy("90°"), tidy(r"x \in [-2,7]")
    ('10080', '90^\\circ', '[-2,7]')
    >>> tidy(r"x<2 \text{ or } x \ge 3"), tidy(r"\text{an ellipse}")
    ('(-\\infty,2) \\cup [3,\\infty)', '\\text{ellipse}')
    """
    answer = _without_outer_braces(answer.strip())
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return _union_of_half_lines(answer)


def _union_of_half_lines(answer: str) -> str:
    r"""`x < 2 \text{ or } x > 3` as the set that it describes, which math-verify does not read from it."""
    match = _HALF_LINES.fullmatch(answer)
    if match is None or match["firstname"] != match["lastname"]:
        return answer
    lines = []
    for sign, end in ((match["firstsign"], match["firstend"]), (match["lastsign"], match["lastend"])):
        closed = sign not in "<>"
        if sign in ("<", "≤") or sign.startswith(r"\l"):
            lines.append(rf"(-\infty,{end.strip()}{']' if closed else ')'}")
        else:
            lines.append(rf"{'[' if closed else '('}{end.strip()},\infty)")
    return r" \cup ".join(lines)


def _without_outer_braces(answer: str) -> str:
    r"""Drop braces that only group: the prompt's `\boxed{{}}` teaches models to double them."""
    while answer.startswith("{") and answer.endswith("}"):
        depth = 0
        for token in re.finditer(r"\\.|[{}]", answer, re.DOTALL):
            depth += {"{": 1, "}": -1}.get(token.group(), 0)
            if depth == 0 and token.end() < len(answer):
                return answer
        if depth != 0:
            return answer
        answer = answer[1:-1].strip()
    return answer


def literally_equal(answer: str, gold: str) -> bool:
    r"""Whether two tidied answers are the same characters but for spaces, `\left` and `\right`.

    >>> literally_equal(r"\left( 3, 4 \right)", "(3,4)")
    True
    """
    return _INVISIBLE.sub("", answer) == _INVISIBLE.sub("", gold)


def integers_equal(answer: str, gold: str) -> bool | None:
    """Whether two plain integers (most of MATH's answers) are equal; None if either is anything else."""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    return None


def bases_differ(answer: str, gold: str) -> bool:
    """Whether both name a number base, and not the same: `52_8`, `52_{10}`. math-verify ignores bases."""
    mine, theirs = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    return mine is not None and theirs is not None and mine["base"] != theirs["base"]
