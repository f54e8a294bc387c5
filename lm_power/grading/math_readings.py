r"""Decide which parts of an answer must equal the gold answer, whatever its names, percent signs, bases and labels.

math-verify compares two expressions. Before that, this module decides which part of an answer is its value: `x = 5`
means 5, `\textbf{(B)}\ 12` means B or 12, `12.5\%` means 12.5 or 0.125. It also decides what is not a value: `3x+2 = 5`
is not 5, and `5 \text{ feet } 6 \text{ inches}` is not 5.
"""

from __future__ import annotations

import re

from lm_power.grading.math_latex import split_list, split_outside

Pair = tuple[str, str]
"""Two expressions that have to be equal."""


def readings(answer: str, gold: str) -> list[list[Pair]]:
    r"""The readings of `answer`, each a list of pairs: it is right if all pairs of one reading are equal.

    Args:
        answer: a final answer, tidied.
        gold: the right one, tidied.

    >>> readings("x=5", "5"), readings("5", "x=5")
    ([[('5', '5')]], [[('5', 'x=5')]])
    >>> readings("4+1=5", "5"), readings(r"12.5\%", "0.125")
    ([[('5', '5'), ('4+1', '5')]], [[('12.5', '0.125')], [('\\frac{12.5}{100}', '0.125')]])
    """
    answer, gold = _half_day(_without_label(answer, gold), gold)
    needed: list[Pair] = []
    if not _has_equation(gold):
        answer, needed = _value(answer)
    pieces = _pieces(answer, gold)
    if pieces is None:
        return []
    ways = [pieces] if len(pieces) > 1 else _percent(*pieces[0])
    parts = split_list(answer)
    if len(parts) > 1 and len(split_list(gold)) == 1:  # one value in several spellings: 1/2, 0.5
        ways.append([pair for part in parts for pair in _percent(part, gold)[0]])
    return [[*way, *needed] for way in ways]


_LETTER = re.compile(r"(?:\\text\s*\{\s*)?\(?([A-Z])\)?\s*\}?")
_CHOICE = re.compile(
    r"(?:\\text\s*\{\s*(?:option|choice|answer)\s*\}?\s*)?"
    r"(?P<label>\([A-F]\)|\[[A-F]\]|[A-F][).:](?=\s|\}|\\text))\s*\}?(?P<rest>\s*[:.]?\s*(?![-+^_/*=<>]\s)(?![\^_*=<>]).*)",
    re.IGNORECASE | re.DOTALL,
)
_CHOICE_BEHIND = re.compile(r"(?P<rest>.*\S)\s*\\text\s*\{\s*(?P<label>\([A-F]\))\s*\}", re.DOTALL)


def _without_label(answer: str, gold: str) -> str:
    r"""`(B) 12` as B if gold is a letter, as 12 if it is anything else."""
    match = _CHOICE.fullmatch(answer) or _CHOICE_BEHIND.fullmatch(answer)
    if match is None or not match["label"].strip("()[].:").isupper():
        return answer
    letter = match["label"].strip("()[].:")
    if _LETTER.fullmatch(gold):
        return letter
    return match["rest"].lstrip(" :.") if match["rest"].strip(" :.") and letter not in gold else answer


_HALF_DAY = re.compile(r"\s*\\text\{[ap]m\}")


def _half_day(answer: str, gold: str) -> tuple[str, str]:
    """Both times without "am" and "pm", if one of them has neither: it may be left out, but a wrong one is wrong."""
    if _HALF_DAY.search(answer) and _HALF_DAY.search(gold):
        return answer, gold
    return _HALF_DAY.sub("", answer), _HALF_DAY.sub("", gold)


_WORD_NAMES = (
    "area|perimeter|volume|surface|length|width|height|radius|diameter|distance|slope|sum|difference|product|quotient|"
    "remainder|ratio|total|answer|result|value|probability|average|mean|median|mode|range|speed|time|cost|price|"
    "number|maximum|minimum|max|min|age|degree|distance|sides?|angle|circumference|discriminant|determinant"
)
_INDEX = r"(?:'|\^\s*(?:\\prime|\{\s*(?:\\prime\s*)+\}|\*|\{\s*\*\s*\})|_\s*(?:[0-9A-Za-z]|\{[^{}]*\}|\\[A-Za-z]+))"
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|"
    r"tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell|hbar)(?![A-Za-z])"
)
_SYMBOL = (
    rf"(?:(?:[A-Za-z]|{_GREEK}|\\(?:vec|hat|bar|tilde|dot|ddot|widehat|overrightarrow|mathcal|mathbb|mathfrak)\s*"
    rf"(?:\{{[^{{}}]*\}}|[A-Za-z]))(?:\s*{_INDEX})*)"
)
_FUNCTION = (
    rf"(?:(?:[d-hpqrsuvA-Z]|{_GREEK}|[axyzbcn](?=\s*\(\s*[nt]\s*\))|\\text\s*\{{[^{{}}]*\}}|\\(?:gcd|lcm|deg|det|dim|max|min|"
    rf"arg|Pr|operatorname\s*\{{[^{{}}]*\}})(?![A-Za-z]))(?:\s*{_INDEX}|\s*\^\s*\{{\s*(?:-\s*1|\(\d+\))\s*\}})*\s*"
    r"(?:\\circ\s*[a-z]\s*)?\([^=]*\))"
)
_NAMED_FUNCTION = (
    r"(?:\\(?:sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|det|deg|dim|arg|Re|Im|gcd|max|min)(?![A-Za-z])\s*"
    rf"(?:\([^=()]*\)|(?:\d*\s*{_SYMBOL}|\\angle\s*[A-Z]+|[A-Z]+|\\frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}})))"
)
_FIGURE = (
    r"(?:(?:m\s*)?\\(?:angle|measuredangle|triangle)\s*[A-Z]*[A-Za-z]|\\(?:overline|widehat|overrightarrow)\s*\{[A-Z]+\}|"
    r"[A-Z]{2,6}|\[\s*[A-Z]{3,8}\s*\]|\|\s*(?:[A-Z]{2}|[zw]|\\(?:vec|overline)\s*\{[^{}]*\})\s*\||"
    r"\\\|\s*[^=|]*\\\||\\frac\s*\{\s*d\s*[a-z]?\s*\}\s*\{\s*d\s*[a-z]\s*\})"
)
_WORDS = rf"(?:\\text\s*\{{[^{{}}]*\}}(?:\s*{_INDEX})?(?:\s*[A-Z]+)?|[A-Z][a-z]{{2,}}|(?:{_WORD_NAMES})(?![A-Za-z]))"
_SINGLE = rf"(?:{_FUNCTION}|{_NAMED_FUNCTION}|{_FIGURE}|{_WORDS}|{_SYMBOL})"
_MATRIX = (
    rf"\\begin\s*\{{(?:\w?matrix|array)\}}(?:\s*\{{[lcr]+\}})?\s*{_SYMBOL}"
    rf"(?:\s*(?:&|\\\\)\s*{_SYMBOL})+\s*\\end\s*\{{(?:\w?matrix|array)\}}"
)
NAME = (
    rf"\s*(?:{_SINGLE}|(?:\(|\\\{{)\s*{_SINGLE}(?:\s*,\s*{_SINGLE})+\s*(?:\)|\\\}})|{_SINGLE}(?:\s*[:,]\s*{_SINGLE})+|"
    rf"\(\s*{_MATRIX}\s*\)|{_MATRIX})\s*:?\s*"
)
"""What may stand before "=" for the rest to be an answer: x, x_1, f(x), AB, (x,y), area, …"""

_NAME = re.compile(NAME)
_EQUALS = re.compile(r"(?<![<>!\\:])&?=(?!=)|:=")
_ARROW = re.compile(r"\\(?:Rightarrow|implies|Longrightarrow|iff|Leftrightarrow|therefore)(?![A-Za-z])")


def _has_equation(gold: str) -> bool:
    return len(split_outside(gold, _EQUALS)) > 1


def _value(answer: str) -> tuple[str, list[Pair]]:
    """The value that an equation states if gold is not an equation, and the pairs that must be equal for it to hold.

    What may be dropped is a name (`x =`, `f(x) =`, `(x,y) =`, `AB =`), alone or before the steps of a computation,
    and a side that is equal to the other (`4+1 = 5`). An equation that has to be solved has no value.
    """
    if "=" not in answer:
        return answer, []
    answer = split_outside(answer, _ARROW)[-1].strip(" ,.")
    sides = split_outside(answer, _EQUALS)
    if len(sides) > 1 and _NAME.fullmatch(sides[0]) and len(split_list(sides[0])) > 1:  # x, y = 1, 2
        return sides[-1].strip(), []
    values, needed = [], []
    for part in split_list(answer):
        *others, last = (side.strip() for side in split_outside(part, _EQUALS))
        if others and _NAME.fullmatch(last) and not _NAME.fullmatch(others[0]):  # 5 = x
            others, last = [last], others[0]
        if others and not _NAME.fullmatch(others[0]):
            needed += [(other, last) for other in others]
        values.append(last)
    return (", ".join(values) if len(split_outside(answer, _EQUALS)) > 1 else answer), needed


def _pieces(answer: str, gold: str) -> list[Pair] | None:
    r"""`5 \text{ feet } 6` piece by piece: words within an answer have to be the same in both. None if not."""
    mine, theirs = _around_words(answer), _around_words(gold)
    if len(mine) == len(theirs) == 1:
        return [(answer, gold)]
    if len(mine) != len(theirs) or any(_plain(m) != _plain(t) for m, t in zip(mine[1::2], theirs[1::2], strict=True)):
        return None
    pairs = [(m.strip(), t.strip()) for m, t in zip(mine[::2], theirs[::2], strict=True)]
    return [pair for pair in pairs if any(pair)]  # nothing stands behind the words in `5 \text{ squared}`


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def _around_words(answer: str) -> list[str]:
    """Mathematics, words, mathematics, …; one entry if there are words only, or none."""
    pieces = _TEXT.split(answer)
    has_mathematics = any(re.search(r"[0-9A-Za-z]", piece) for piece in pieces[::2])
    return pieces if has_mathematics else [answer]


def _plain(words: str) -> str:
    return " ".join(words.lower().split())


_PERCENT = re.compile(r"\s*\\%")


def _percent(answer: str, gold: str) -> list[list[Pair]]:
    r"""A percent sign in both is dropped; in one of them it may be a unit (12.5 is 12.5 %), or mean a hundredth."""
    bare_answer, bare_gold = _PERCENT.sub("", answer), _PERCENT.sub("", gold)
    ways = [[(bare_answer, bare_gold)]]
    if (bare_answer == answer) != (bare_gold == gold):
        ways.append([(_hundredth(answer), _hundredth(gold))])
    return ways


def _hundredth(value: str) -> str:
    if value.count("%") == 1 and value.endswith(r"\%") and len(split_list(value)) == 1:
        return rf"\frac{{{value[:-2].strip()}}}{{100}}"
    return value


_INTEGER = re.compile(r"-?[0-9]{1,100}")
_NUMBER_IN_BASE = re.compile(r"(-?)0*([0-9A-Z.]+)_\{(\d+)\}")
_INVISIBLE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])|\$")


def settled(answer: str, gold: str) -> bool | None:
    r"""Whether two tidied answers are equal, if their characters alone can tell; else None.

    They can for equal texts (spaces aside), for two plain integers (most of MATH's answers), and for a number
    with its base: the base may be left out, but a wrong one is wrong. (math-verify ignores bases.)

    >>> settled(r"( 3, 4 )", "(3,4)"), settled("05", "5"), settled("5", "50"), settled("1/2", "0.5")
    (True, True, False, None)
    >>> settled("52_{8}", "52"), settled("52_{8}", "52_{10}"), settled("42", "52_{8}")
    (True, False, False)
    """
    if _INVISIBLE.sub("", answer) == _INVISIBLE.sub("", gold):
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    mine, theirs = _NUMBER_IN_BASE.fullmatch(answer), _NUMBER_IN_BASE.fullmatch(gold)
    if mine and theirs:
        return mine.groups() == theirs.groups()
    number, other = mine or theirs, gold if mine else answer
    if number is None or "_" in other:
        return None
    return re.sub(r"[\s,]|^0+(?=\w)", "", other).upper() == number[1] + number[2]
