"""Words in an answer: units and conjunctions."""

from __future__ import annotations

import re

_TEXT = r"\\text\s*\{[^{}]*\}"
_CONJUNCTION = re.compile(
    r"\\text\s*\{([^{}]*?)(?:\b(?:and|or)\b|[,;])([^{}]*)\}(?=.*[0-9A-Za-z])|,?\s*(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])"
)
_UNIT = rf"(?:\s*(?:/|\*|\\cdot(?![A-Za-z]))?\s*{_TEXT}(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?)"
_UNITS = re.compile(
    rf"(?<=[^\s(\[{{,;=])(?:{_UNIT}+|\s*\\frac\s*\{{\s*{_TEXT}\s*\}}\s*\{{\s*{_TEXT}\s*\}})(?=\s*(?:[,;)\]]|\\\}}|$))"
)


def _is_words(answer: str) -> bool:
    return not re.search(r"[0-9A-Za-z]", re.sub(_TEXT, "", answer))


def listed(answer: str) -> str:
    r"""Parts joined by "and" or "or", in words of any kind, as a list: `5 \text{ apples and } 6`."""
    if _is_words(answer):
        return answer

    def separate(match: re.Match[str]) -> str:
        if match[1] is None:
            return ", "
        before, after = (rf"\text{{{words}}}" if words.strip() else "" for words in match.groups())
        return f"{before}, {after}"

    answer = re.sub(r"\\(?:lor|vee)(?![A-Za-z])", ",", answer) if "=" in answer else answer
    answer = re.sub(r"^\\text\s*\{\s*(?:either|both)\s*\}\s*", "", answer)
    if r"\text" in answer or " and " in answer or " or " in answer:
        answer = re.sub(r"\s*(?:,\s*)?,\s+", ", ", _CONJUNCTION.sub(separate, answer))
    return answer


def without_units(answer: str) -> str:
    """Without the words behind a number, and those behind each number of a list."""
    return answer if _is_words(answer) else _UNITS.sub("", answer)
