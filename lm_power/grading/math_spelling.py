r"""One spelling for the many ways in which an answer can be written: Unicode, fonts, spaces, units, bases, percent.

`tidy` works on one answer, whatever it is compared with; `math_readings` compares two. Every pattern is linear in
the answer's length, which `math_answers` bounds.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from lm_power.grading.math_latex import braced_arguments, plain_fonts, without_outer_braces
from lm_power.grading.math_words import listed, without_units

_CHARACTERS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ",
    "÷": "/", "∗": "*", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\neq ", "≈": r"\approx ", "∞": r"\infty ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∠": r"\angle ", "△": r"\triangle ", "⟨": r"\langle ", "⟩": r"\rangle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "⇒": r"\Rightarrow ", "∨": r"\lor ", "∧": r"\land ",
    "′": "'", "‘": "'", "’": "'", "…": r"\ldots ", "€": "", "£": "", "％": "%", "，": ", ", "：": ":", "；": ";",
    "（": "(", "）": ")", "＝": "=", "＋": "+", "－": "-", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
    "δ": r"\delta ", "Δ": r"\Delta ", "ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "π": r"\pi ",
    "ρ": r"\rho ", "σ": r"\sigma ", "φ": r"\phi ", "ϕ": r"\phi ", "ω": r"\omega ", "Ω": r"\Omega ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " ", "\u200b": "", "\ufeff": "", "\u2062": "",
}  # fmt: skip
_CHARACTERS |= {chr(ord("０") + digit): str(digit) for digit in range(10)}
_TABLE = str.maketrans(_CHARACTERS)
_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_RAISED = str.maketrans(dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx", strict=True)))
_LOWERED = str.maketrans(dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx", strict=True)))


def tidy(answer: str) -> str:
    r"""`answer` in a spelling that math-verify reads as a person would; applied to gold answers too.

    >>> tidy(r"{10,\!080.}"), tidy("90°"), tidy(r"x \in [-2,7]"), tidy("2√3"), tidy(r"2\ 1/2")
    ('10080', '90^\\circ', '[-2,7]', '2\\sqrt{3}', '2\\frac{1}{2}')
    >>> tidy(r"x<2 \text{ or } x \ge 3"), tidy(r"\text{an ellipse}"), tidy(r"\textbf{12} \mbox{ cm}^2")
    ('(-\\infty,2) \\cup [3,\\infty)', '\\text{ellipse}', '12')
    >>> tidy(r"52 \text{ base eight}"), tidy(r"12.5 \text{ percent}"), tidy(r"5 \text{ apples and } 6 \text{ pears}")
    ('52_{8}', '12.5\\%', '5, 6')
    """
    answer = without_outer_braces(_ascii(answer).strip())
    for pattern, replacement in _BEFORE_FONTS:
        answer = pattern.sub(replacement, answer)
    answer = braced_arguments(without_outer_braces(plain_fonts(answer).strip()))
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = _in_base(_union_of_half_lines(without_outer_braces(answer)))
    return without_units(listed(answer)).strip()


def _ascii(answer: str) -> str:
    """Mathematical Unicode as LaTeX."""
    if answer.isascii():
        return answer
    for mark, (over, under) in _VULGAR.items():
        answer = answer.replace(mark, rf"\frac{{{over}}}{{{under}}}")
    for marks, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        runs = re.split(f"([{''.join(map(chr, marks))}]+)", answer)
        runs[1::2] = [f"{sign}{{{run}}}" for run in runs[1::2]]
        answer = "".join(runs).translate(marks)
    for root, command in (("√", r"\sqrt"), ("∛", r"\sqrt[3]"), ("∜", r"\sqrt[4]")):
        command = command.replace("\\", r"\\")
        answer = re.sub(rf"{root}\s*\(([^()]*)\)", rf"{command}{{\1}}", answer)
        answer = re.sub(rf"{root}\s*(\d+(?:\.\d+)?|[A-Za-zπ])", rf"{command}{{\1}}", answer)
        answer = re.sub(rf"{root}\s*(?=\{{)", command, answer)
    return answer.translate(_TABLE)


_NUMERALS = dict(
    zip(
        str.split(
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
            "sixteen binary ternary octal decimal hexadecimal"
        ),
        [*range(2, 17), 2, 3, 8, 10, 16],
        strict=True,
    )
)
_PERCENT_WORD = r"per\s?cent(?:age)?|pct"
_LENGTH = r"\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in|mu|bp|pc|px)\s*"

Rewrite = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_BEFORE_FONTS: tuple[Rewrite, ...] = (
    # The end of a row, with the distance to the next: `\\[4pt]`, `\\*`, `\cr`.
    (re.compile(rf"\\\\\*?\s*\[{_LENGTH}\]|\\\\\*|\\(?:cr|newline|tabularnewline)(?![A-Za-z])"), r"\\\\ "),
    (re.compile(r"(\\(?:begin|end)\s*\{[pbvBV]?)(?:small)?matrix\*?\s*\}(?:\s*\[[lcr]\])?"), r"\1matrix}"),
    (
        re.compile(r"\\begin\s*\{array\}\s*(?:\[[tcb]\])?\s*\{([^{}]*)\}"),
        lambda match: rf"\begin{{array}}{{{re.sub('[^lcr]', '', match[1])}}}",
    ),
    (re.compile(r"\\(?:[dtc]frac|nicefrac|sfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"{\\frac{\1}{\2}}"),
    (re.compile(r"^([^{}]*)\\over(?![A-Za-z])([^{}]*)$"), r"\\frac{\1}{\2}"),
)
_REWRITES: tuple[Rewrite, ...] = (
    (re.compile(r"\s*(?:\^?\s*°|\\degree(?![A-Za-z])|\^\s*\{?\s*\\degree\s*\}?)"), r"^\\circ"),
    # Thousands: 10,\!080, 10\,080, 10{,}080. A bare comma stays: "1,234" may be a list, math-verify decides.
    (re.compile(r"(?<=\d)(?:(?:,\\!|\\[!,;: ]|~)\s*|\{,\})(?=\d{3}(?!\d))"), ""),
    # Spaces, and the marks of mathematics in a text; not in `\\ `, the end of a row.
    (
        re.compile(r"\\\\|\\[ ,;:]|~|\\q?quad(?![A-Za-z])|\\[!()\[\]]"),
        lambda match: match[0] if match[0] == r"\\" else "" if match[0][-1] in "!()[]" else " ",
    ),
    (re.compile(r"^\*\*(.*)\*\*$"), r"\1"),
    (re.compile(rf"\s*(?:\\text\s*\{{\s*(?:{_PERCENT_WORD})\s*\}}|\b(?:{_PERCENT_WORD})\b|\\?%)"), r"\\%"),
    (re.compile(r"^(\\text\s*\{\s*)?(?:an?|the)\s+(?=[a-z]{3})"), r"\1"),  # "an ellipse"
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])|^\\\{\s*\\\}$|^\\text\s*\{\s*empty set\s*\}$"), r"\\emptyset "),
    (re.compile(r"\\([lg]e)q?(?:slant|q)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\^\s*-\s*(\d+|[A-Za-z])"), r"^{-\1}"),  # 10^-5, in which TeX raises only the sign
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    # "x \in [1, 2]" names the interval that it equals; math-verify reads an equation of a symbol and a set.
    (re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*"), ""),
    # A mixed number, 2 1/2; math-verify reads its `2 \frac{1}{2}` as one too.
    (re.compile(r"(?<![\d.}/^_A-Za-z])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.^!])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<=\d)\s+(?=\\frac)"), ""),
    (re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))"), lambda match: _repeating(*match.groups(""))),
    # "the answer is: 5", but not the label of a choice, "Option B:"
    (re.compile(r"^\\text\s*\{(?![^{}]*\b[A-F]\)?[.:]?\s*\})[^{}]*(?:\bis|\bare|:)\s*\}\s*:?\s*(?=\S)"), ""),
    (re.compile(r"(?<=[\d}\s])\s*(?:cm|mm|km|ft)\s*\^\s*\{?[23]\}?\s*$"), ""),
    (re.compile(r"[.,;:\s]+(\}?)$"), r"\1"),
)


def _repeating(whole: str, once: str, again: str, digit: str) -> str:
    r"""The fraction of `0.1\overline{6}`."""
    again = again or digit
    over = int(whole + once + again) - int(whole + once or "0")
    return rf"\frac{{{over}}}{{{'9' * len(again)}{'0' * len(once)}}}"


_HALF_LINE = r"\s*(?P<{0}name>[A-Za-z])\s*(?P<{0}sign><|>|[≤≥]|\\[lg]eq?(?![A-Za-z]))(?P<{0}end>[^<>=≤≥,]+?)\s*"
_HALF_LINES = re.compile(
    _HALF_LINE.format("first")
    + r",?\s*(?:\\text\s*\{\s*or\s*\}|\\(?:lor|vee)(?![A-Za-z])|\bor\b)"
    + _HALF_LINE.format("last")
)


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


_WRAPPERS = re.compile(r"\\(?:text|overline|operatorname)(?![A-Za-z])|[{}()\s$]")
_BASE = rf"(?P<base>\d{{1,2}}|{'|'.join(_NUMERALS)})"
_IN_BASE = (
    re.compile(rf"(?P<digits>-?[0-9A-Za-z.]+)(?:_(?:base-?)?|,?(?:in|to)?base-?){_BASE}", re.IGNORECASE),
    re.compile(rf"(?:in)?base-?{_BASE}[,:]+(?P<digits>-?[0-9A-Za-z.]+)", re.IGNORECASE),
)


def _in_base(answer: str) -> str:
    r"""A number with its base, in words or as an index, as `52_{8}`; everything else as it is."""
    if "_" not in answer and "text" not in answer and "base" not in answer:
        return answer
    bare = _WRAPPERS.sub("", answer)
    for pattern in _IN_BASE:
        match = pattern.fullmatch(bare)
        if match:
            base = _NUMERALS.get(match["base"].lower()) or int(match["base"])
            digits = match["digits"].lstrip("-")
            known = (string.digits + string.ascii_uppercase)[:base] + "."
            if base > 1 and digits and all(digit in known for digit in digits.upper()):
                return f"{match['digits'].upper()}_{{{base}}}"
    return answer
