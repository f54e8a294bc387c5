r"""Final answers in texts: the last `\boxed{...}`, or what the text announces. Linear in the text's length."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from itertools import islice

from lm_power.grading.math_latex import without_outer_braces
from lm_power.grading.math_readings import NAME

SEARCHED_CHARS = 200_000
"""Only this much of a text's end is searched, in characters: 3072 tokens are about 12,000."""

LONGEST_ANSWER = 1_000
"""An answer of more characters than this is malformed; the longest of MATH has under 200."""

_BOX_TOKENS = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])\s*|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"-?\d[\d.,]*(?:/\d+)?|-?\\[A-Za-z]+[^$\s]*|[A-Za-z](?=\s*(?:[$.,;]|\\[)\]]|\n|$))")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&()]|\\[\[\](),;: ]|\\q?quad(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])|"
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|"
    r"\b(?:and|or|also|as well as|possibly|perhaps|maybe|alternatively|either|else)\b|"
    rf"(?:{NAME})(?:&?=|\bis\b))*",
    re.IGNORECASE,
)
_ANNOUNCEMENT = re.compile(
    r"\banswers?\b(?:\s+(?:to|of|for|in)\b[^.:\n]{1,80}?)?[*_}\s]*?"
    r"(?:\b(?:is|are|(?:should|must|would|will) be|equals)\b"
    r"(?:[\s,]*\b(?:then|therefore|thus|hence|simply|just|also|indeed|clearly|now|given by|equal to)\b,?)*"
    r"[*_\s]*?:?|:|=)[*_}]*"
    r"|^[ \t#>*_]{0,12}(?:the[ \t]+)?(?:final[ \t]+)?answer[*_ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_MARKUP = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$|\*\*|`|^[#>}]+|^\*|\*$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|,?\s+(?:since|because|which)\b")
_NO_ANSWER = re.compile(
    r"(?:not |in|un)?(?:correct|right|wrong|reasonable|valid|clear|unique|known|obvious|easy|simple|straightforward|"
    r"trivial|immediate|surprising|given|required|as follows|below|above)\W*",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*)?[{\s$]*(?:LETTER|(?:the |your )?(?:final )?answer|\.\.\.|…|\\[lc]?dots)[}\s$.]*", re.IGNORECASE
)
_EXAMPLE = re.compile(r"\b(?:ex|e\.g)\.,?\s*['\"`$]*$")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_NEXT_PROBLEM = re.compile(
    r"Can you solve the following math problem\?|Answer the following multiple choice question\.|"
    r"<\|(?:im_start|endoftext|user|eot_id|start_header_id|end)\|>|\[INST\]|"
    r"^[ \t#>*_]{0,12}(?:(?:(?:new|next|another|math)\s+)?"
    r"(?:problem|question|exercise|task)(?:\s+(?:no\.?\s*)?\d+\b|[*_]*\s*[:.])|"
    r"q(?:\s*\d+)?\s*[:.]|(?:human|user|instruction)[*_]*\s*:)",
    re.IGNORECASE | re.MULTILINE,
)


def extract_answer(text: object) -> str | None:
    r"""The final answer that `text` states, as LaTeX without its box, or None.

    The last complete `\boxed{...}` (or `\fbox{...}`) that holds an answer: the prompt's own `\boxed{{}}`, repeated by a
    base model, does not, nor do `\boxed{answer}` and a box behind "e.g.". Boxes joined only by commas, "and", "or" and
    names (`x =`) are one answer of several parts, so that naming two values when one is right is wrong. Without any
    box: what follows the last "answer is" or "answer:" up to the end of its sentence (a departure from the paper, which
    counts boxes only). A text that opens a box and never closes one has no answer.

    What a model thinks is not read: `<think>` to `</think>`, all before a `</think>` whose beginning is in the prompt,
    and all after a `<think>` that is never closed. A base model does not stop at its answer and may pose itself another
    problem. Only the text before such a problem is read (`before_next_problem`).

    >>> extract_answer(r"so $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> extract_answer(r"$\boxed{1}$ and $\boxed{-2}$"), extract_answer("The answer is $5$. I hope so.")
    ('1, -2', '5')
    >>> extract_answer(r"\boxed{\frac{1}{2") is None
    True
    """
    if not isinstance(text, str):
        return None
    text = before_next_problem(_without_thoughts(text[-SEARCHED_CHARS:]))
    boxes, box_opened = _boxes(text)
    if boxes:
        answer: str | None = _last_group(text, boxes)
    elif box_opened:
        return None
    else:
        answer = _announced(text)
    return answer if answer and len(answer) <= LONGEST_ANSWER else None


def last_box(text: object) -> str | None:
    r"""The content of the last complete box that holds an answer, as in `extract_answer`; None without one.

    Nothing outside boxes counts, also where another problem is posed.

    >>> last_box(r"\boxed{A} or \boxed{B}, so \boxed{{C}}"), last_box("The answer is D.")
    ('C', None)
    """
    if not isinstance(text, str):
        return None
    boxes, _ = _boxes(before_next_problem(_without_thoughts(text[-SEARCHED_CHARS:]), only_boxes=True))
    return boxes[-1][2] if boxes and len(boxes[-1][2]) <= LONGEST_ANSWER else None


def before_next_problem(text: str, only_boxes: bool = False) -> str:
    r"""`text` up to where another problem begins, if an answer stands before that; else all of it.

    Another problem begins with the prompt of one of our tasks, with a chat's next turn, or with a line that begins
    with "Problem:", "Question 2" and the like. One that begins without any such sign is not recognised. An answer is a
    box or, unless `only_boxes`, a sentence that announces a value; "the answer is easy to check" announces none, and a
    model may well restate its own problem after it.

    >>> before_next_problem("So \\boxed{4}.\n\nQuestion: What is 3+4? \\boxed{7}")
    'So \\boxed{4}.\n\n'
    >>> restated = "The answer is easy to check.\n\nQuestion: What is 3+4? \\boxed{7}"
    >>> before_next_problem(restated) == restated
    True
    """
    if not _NEXT_PROBLEM.search(text):
        return text
    boxes, _ = _boxes(text)
    answered = [boxes[0][1]] if boxes else []
    announcement = None if only_boxes else next(_announced_values(text), None)
    answered += [announcement] if announcement is not None else []
    following = _NEXT_PROBLEM.search(text, min(answered)) if answered else None
    return text[: following.start()] if following else text


def _without_thoughts(text: str) -> str:
    said = _THOUGHT.sub("", text)
    return said[max((end.end() for end in _THOUGHT_END.finditer(said)), default=0) :]


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
            if bare:  # `\boxed 5`, `\boxed B.`, but no prose: `\boxed a number`
                found.append((token.start(), bare.end(), bare.group().strip()))
    return [box for box in found if _holds_an_answer(text, box)], opened


def _holds_an_answer(text: str, box: tuple[int, int, str]) -> bool:
    """Not so a box that is empty, or tells where to put the answer: the prompts' own, for example."""
    start, _, content = box
    return (
        bool(content) and not _PLACEHOLDER.fullmatch(content) and not _EXAMPLE.search(text[max(start - 12, 0) : start])
    )


def _last_group(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The contents of the last run of boxes with only separators between them, joined by commas."""
    group = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if start - end > 60 or not _BETWEEN_BOXES.fullmatch(text, end, start) or "\n\n" in text[end:start]:
            break
        group.append(content)
    return ", ".join(dict.fromkeys(reversed(group)))


def _announced_values(text: str) -> Iterator[int]:
    """Where an answer ends that "answer is" or the like announces, for each in turn that is a value."""
    for match in _ANNOUNCEMENT.finditer(text):
        if (answer := _announced_at(text, match.end())) and _is_value(answer):
            yield match.end()


def _is_value(answer: str) -> bool:
    """Whether an announced answer is a number or formula, with a unit of at most three words, or a single word."""
    words = [word for word in _WORDS.findall(answer) if word.lower() not in ("a", "an", "the")]
    return len(words) <= (3 if re.search(r"[0-9\\]", answer) else 1)


def _announced(text: str) -> str | None:
    """What the last sentence that announces an answer announces, or None."""
    ends: dict[int, int] = {}  # the first announcement of each sentence; later ones are within its answer
    borders = [border.end() for border in _BORDER.finditer(text)]
    for match in _ANNOUNCEMENT.finditer(text):
        ends.setdefault(bisect.bisect(borders, match.end() - 1), match.end())
    return next((answer for end in reversed(ends.values()) if (answer := _announced_at(text, end))), None)


def _announced_at(text: str, start: int) -> str | None:
    """The answer that stands at `start`, or on the next line with text: the rest of its sentence.

    "Final Answer: The final answer is 4" announces twice; the inner answer counts.
    """
    for line in islice(_LINE.finditer(text, start), 4):
        content = _MARKUP.sub("", line.group().strip()).strip()
        if not content:
            continue
        content = _SENTENCE_END.split(content, maxsplit=1)[0].strip()
        while inner := _ANNOUNCEMENT.search(content):
            content = content[inner.end() :].strip()
        if content:
            return None if _NO_ANSWER.fullmatch(content) else content
    return None


_LINE = re.compile(r"[^\n]+")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_BORDER = re.compile(r"\n|[.!?](?=\s|$)")
