r"""Words in an answer: units, which may be left out, words that change a number's value, and lists in words.

The rule for words behind a number: those that scale it are multiplied (`5 \text{ million}`), those that make another
number of it stay, so that they have to be the same in both answers (`5 \text{ squared}`), and all others are units.
"""

from __future__ import annotations

import re
import string
from fractions import Fraction
from math import prod

_TEXT = r"\\text\s*\{[^{}]*\}"
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)"
_UNIT = rf"(?:\s*(?:/|\*|\\cdot(?![A-Za-z]))?\s*{_TEXT}{_POWER}?)"
_END = r"\s*(?:[,;)\]]|\\\}|$)"
_UNITS = re.compile(rf"(?<=[^\s(\[{{,;=])(?:{_UNIT}+|\s*\\frac\s*\{{\s*{_TEXT}\s*\}}\s*\{{\s*{_TEXT}\s*\}})(?={_END})")
_CONJUNCTION = re.compile(
    r"\\text\s*\{([^{}]*?)(?:\b(?:and|or)\b|[,;])([^{}]*)\}(?=.*[0-9A-Za-z])"
    rf"|(?P<words>{_TEXT})|,?\s*(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])"
)

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALE = rf"(?:{'|'.join(_SCALES)})s?(?![A-Za-z])"
_SCALED = re.compile(
    r"(?<![\w.,/^}])(?P<number>\d{1,3}(?:,\d{3})+|\d*\.?\d+)?"
    r"(?:\s*\\frac\s*\{?(?P<over>\d+?)\}?\s*\{?(?P<under>[1-9]\d*)\}?)?"
    rf"\s*\\text\s*\{{\s*(?P<scales>{_SCALE}(?:\s+{_SCALE})*)(?P<rest>[^{{}}]*)\}}(?={_UNIT}*{_END})",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"^\s*(?:squared|cubed|pi|half(?!-)|halves|thirds|fourths|(?:fif|six|seven|eigh|nin|ten|hundred|thousand|million)ths)\b"
    rf"|{_SCALE}"
    r"|\b(?:and|or)\s+(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty|half|"
    r"more|less|fewer|greater|larger|smaller|higher|lower|above|below|over|under|up|so)\b"
    r"|\b(?:factorial|repeating|recurring|than|not|mod|modulo|below zero|to the|power of|[ap]m)\b",
    re.IGNORECASE,
)
"""What words behind a number say if they are no unit: another number, a range, or half of the day."""

# Shorter words without `\text{}` may be products of variables: `5 ab`.
_SHORT_UNIT = (
    r"(?:[cdkmn]m|m(?=/s)|ft|in|yd|mi|[km]g|lbs?|oz|hrs?|mins?|secs?|ms|m[lL]|mph|kph|rpm|deg|rad|men|days?|tons?|"
    r"USD|[ap]\.?m\b\.?|[AP]\.?M\b\.?)(?![A-Za-z])"
)
_PLAIN_WORDS = re.compile(
    rf"(?:(?<=[0-9)}}])\s*|(?<=\\pi)\s+)(?P<words>(?:{_SHORT_UNIT}|[A-Za-z]{{4,}})(?:(?:\s+|\s*/\s*)[A-Za-z]+){{0,4}})"
    rf"(?={_POWER}?(?:{_END}|\s+\d))"
)
_SYMBOLS = re.compile("alpha|beta|gamma|delta|epsilon|zeta|theta|kappa|lambda|sigma|omega|infty|infinity|sqrt")
_LETTER = re.compile(r"\\text\s*\{\s*([abcefijknopqruvwxyz])\s*\}")  # a variable; other single letters are units
_ORDINAL_ENDING = r"(?:\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![A-Za-z]))"
_ORDINAL = re.compile(rf"(?<=\d)(?:\s*\^\s*(?:\{{\s*{_ORDINAL_ENDING}\s*\}}|{_ORDINAL_ENDING})|{_ORDINAL_ENDING})")
_HALF_DAY = re.compile(r"(?::00)?\s*\\text\s*\{\s*([ap])\.?\s?m\.?\s*\}", re.IGNORECASE)


def listed(answer: str) -> str:
    r"""Parts joined by "and" or "or", in words of any kind, as a list.

    >>> listed(r"5 \text{ apples and } 6"), listed(r"\text{black and white}")
    ('5 \\text{ apples }, 6', '\\text{black and white}')
    """
    if _is_words(answer):
        return answer

    def separate(match: re.Match[str]) -> str:
        if match[1] is None:
            return match["words"] or ", "
        before, after = (rf"\text{{{words}}}" if words.strip() else "" for words in match.group(1, 2))
        return f"{before}, {after}"

    answer = re.sub(r"\\(?:lor|vee)(?![A-Za-z])", ",", answer) if "=" in answer else answer
    answer = re.sub(r"^\\text\s*\{\s*(?:either|both)\s*\}\s*", "", answer)
    if r"\text" in answer or " and " in answer or " or " in answer:
        answer = re.sub(r"\s*(?:,\s*)?,\s+", ", ", _CONJUNCTION.sub(separate, answer))
    return answer


def without_units(answer: str) -> str:
    r"""Without the units behind a number, and those behind each number of a list; words that scale it, multiplied.

    >>> without_units(r"5 \text{ cm}^2, 60 miles per hour"), without_units("5^{th}"), without_units("1.25 million cars")
    ('5, 60', '5', '1250000')
    >>> without_units(r"5 \text{ squared}"), without_units("7:00 P.M.")
    ('5 \\text{ squared}', '7 \\text{pm}')
    """
    if _is_words(answer):
        return answer
    answer = _ORDINAL.sub("", _LETTER.sub(r"\1", answer))
    answer = _HALF_DAY.sub(lambda match: rf" \text{{{match[1].lower()}m}}", _PLAIN_WORDS.sub(_in_text, answer))
    answer = _SCALED.sub(_multiplied, answer)
    return _UNITS.sub(lambda match: match[0] if _names_another_number(match[0]) else "", answer)


def _is_words(answer: str) -> bool:
    return not re.search(r"[0-9A-Za-z]", re.sub(_TEXT, "", answer))


def _in_text(match: re.Match[str]) -> str:
    words = re.split(r"\W+", match["words"].lower())
    alphabetical = any(len(word) > 3 and word in string.ascii_lowercase for word in words)  # 5 abcd
    if alphabetical or _SYMBOLS.fullmatch(words[0]):
        return match[0]
    return rf" \text{{{match['words']}}}"


def _multiplied(match: re.Match[str]) -> str:
    r"""`2\frac{1}{2} \text{ million dollars}` as `2500000 \text{ dollars}`."""
    if not match["number"] and not match["over"]:
        return match[0]
    value = Fraction((match["number"] or "0").replace(",", ""))
    value += Fraction(int(match["over"] or 0), int(match["under"] or 1))
    value *= prod(_SCALES[scale.lower().removesuffix("s")] for scale in match["scales"].split())
    latex = str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return rf"{latex} \text{{{match['rest']}}}" if match["rest"].strip() else latex


def _names_another_number(unit: str) -> bool:
    return any(_OTHER_NUMBER.search(words) for words in re.findall(r"\\text\s*\{([^{}]*)\}", unit))
