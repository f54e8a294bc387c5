r"""The grammar of LaTeX that answers need: arguments and their braces, lists, fonts, and words in `\text{}`."""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


FONTS = _set(
    "boldsymbol bm pmb mathbf mathit mathsf mathtt mathnormal mathrm mathord mathop mathbin underline "
    "uline ensuremath displaystyle textstyle scriptstyle bf it rm sf tt bfseries itshape rmfamily "
    "normalsize small large Large LARGE huge Huge limits nolimits strut mathstrut nonumber notag hline "
    "hfill centering left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr"
)
"""Commands that say how their argument looks, or nothing; they are dropped, and the argument stays."""
_DELIMITED = _set("left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr")
TEXTS = _set("text textbf textit textrm textsf texttt textnormal textup textsc textmd emph mbox hbox operatorname")
_IGNORED = _set("phantom hphantom vphantom hspace vspace label tag color")
"""Commands that leave nothing on the page; they are dropped together with their argument."""
_COLOURED = frozenset(("textcolor", "colorbox"))
_OPERATORS = _set("sin cos tan cot sec csc ln log exp arcsin arccos arctan gcd lcm det max min lim arg")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?|\\.", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z]{2,}[A-Za-z0-9'’]*(?:[ -]+[A-Za-z]{2,}[A-Za-z0-9'’]*)*|\$")


def without_outer_braces(answer: str) -> str:
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


_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1} | dict.fromkeys(
    ("text", "operatorname", "overline", "underline", "bar", "hat", "vec", "tilde", "widehat", "mathbb", "mathcal"), 1
)
"""How many arguments a command has; those that are not listed have none."""
_TAKES_ARGUMENTS = re.compile(
    r"\\\\|\\(frac|binom|sqrt)(?![A-Za-z])|[\^_](?=\s*\\(?:frac|binom|sqrt|text)(?![A-Za-z]))"
)
_DIGITS = {"frac": re.compile(r"\s*\d\s*\d"), "sqrt": re.compile(r"\s*\d")}
"""Arguments that math-verify reads without braces. It takes all of the digits: `\\frac112` is a twelfth."""
_ROOT_INDEX = re.compile(r"\s*\[[^\[\]]*\]")
_CHARACTER = re.compile(r"\s*[0-9A-Za-z]")
_TOKEN = re.compile(r"\s*(?:(?P<group>\{)|\\(?P<command>[A-Za-z]+)|[0-9A-Za-z])")


def braced_arguments(text: str) -> str:
    r"""With the braces that TeX does not need and math-verify does: an argument may be a single character or command.

    What stands in no argument stays as it is, and so does a command that lacks an argument.

    >>> braced_arguments(r"\frac\pi2"), braced_arguments(r"\frac1{\sqrt\pi}"), braced_arguments(r"2^\frac12")
    ('\\frac{\\pi}{2}', '\\frac{1}{\\sqrt{\\pi}}', '2^{\\frac12}')
    """
    # From right to left: the arguments of a command that is itself an argument, as in `\sqrt\frac32`, are done by then.
    for match in reversed(list(_TAKES_ARGUMENTS.finditer(text))):
        if match.group() == r"\\":  # the end of a row
            continue
        name, done = match[1], match.end()
        if name == "sqrt":
            index = _ROOT_INDEX.match(text, done)
            done = index.end() if index else done
        if name in _DIGITS and _DIGITS[name].match(text, match.end()):
            continue
        pieces = [text[: match.end()], text[match.end() : done]]
        for _ in range(_ARGUMENTS.get(name or "", 1)):
            end = _token_end(text, done)
            if end is None:
                break
            token = text[done:end].strip()
            pieces.append(token if token.startswith("{") else f"{{{token}}}")
            done = end
        else:
            text = "".join([*pieces, text[done:]])
    return text


def _token_end(text: str, start: int) -> int | None:
    """Where the argument ends that begins at `start`: a group, a character, or a command with its own arguments."""
    token = _TOKEN.match(text, start)
    if token is None:
        return None
    if token["group"]:
        group = _argument(text, start)
        return group[1] if group else None
    end = token.end()
    if token["command"] == "sqrt":
        index = _ROOT_INDEX.match(text, end)
        end = index.end() if index else end
    for _ in range(_ARGUMENTS.get(token["command"] or "", 0)):
        argument = _argument(text, end)
        bare = _CHARACTER.match(text, end)  # of a root or a fraction that math-verify reads: \frac1\sqrt2
        end = argument[1] if argument else bare.end() if bare else end
    return end


def split_list(answer: str) -> list[str]:
    r"""The parts of `answer` between commas and semicolons that stand in no bracket and in no environment.

    >>> split_list(r"(1,2), \{3;4\}; 5")
    ['(1,2)', '\\{3;4\\}', '5']
    """
    return [part.strip() for part in split_outside(answer, re.compile("[,;]"))]


_NESTING = re.compile(r"\\\\|\\begin\b|\\end\b|\\[{}]|\\.|[(\[{]|[)\]}]", re.DOTALL)


def split_outside(answer: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of `answer` between matches of `separator` that stand in no bracket and in no environment."""
    nesting, marks = 0, list(separator.finditer(answer))
    if not marks:
        return [answer]
    depths: list[tuple[int, int]] = []  # (position, depth from there on)
    for token in _NESTING.finditer(answer):
        symbol = token.group()
        if symbol in ("(", "[", "{", r"\{", r"\begin"):
            nesting += 1
        elif symbol in (")", "]", "}", r"\}", r"\end"):
            nesting -= 1
        else:
            continue
        depths.append((token.start(), nesting))
    parts, start, place, depth = [], 0, 0, 0
    for mark in marks:
        while place < len(depths) and depths[place][0] < mark.start():
            depth = depths[place][1]
            place += 1
        if depth == 0:
            parts.append(answer[start : mark.start()])
            start = mark.end()
    return [*parts, answer[start:]]


def _argument(text: str, start: int) -> tuple[str, int] | None:
    """What stands in the braces that open at `start` (after spaces), and where they end; None without any."""
    begin = start
    while begin < len(text) and text[begin] == " ":
        begin += 1
    if not text.startswith("{", begin):
        return None
    depth = 0
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[begin + 1 : token.start()], token.end()
    return None


def plain_fonts(text: str) -> str:
    r"""Without fonts, sizes, colours and invisible commands; words in `\text{}`, whichever command they stood in."""
    out: list[str] = []
    done = 0
    for command in _COMMAND.finditer(text):
        name = command.group(1)
        if command.start() < done or name is None or name not in _HANDLED:
            continue
        out.append(text[done : command.start()])
        done = command.end()
        argument = _argument(text, done)
        if name in _COLOURED | _IGNORED:
            done = argument[1] if argument else done
            argument = _argument(text, done) if name in _COLOURED else None
            if argument is None:
                continue
            done = argument[1]
            out.append(plain_fonts(argument[0]))
        elif argument is None or name in _DELIMITED:
            out.append("" if name in FONTS else command.group())
            if name in _DELIMITED and text.startswith(".", done):  # `\right.`
                done += 1
        elif name == "operatorname" and argument[0].strip() in _OPERATORS:
            done = argument[1]
            out.append(f"\\{argument[0].strip()} ")
        else:
            done = argument[1]
            content = plain_fonts(argument[0])
            first = not "".join(out).strip(" -$({")
            out.append(_words(content, first) if name in TEXTS else _font(content, text[done:]))
    out.append(text[done:])
    return "".join(out)


_HANDLED = FONTS | TEXTS | _IGNORED | _COLOURED


def _font(content: str, follows: str) -> str:
    r"""The argument of a command such as `\mathbf`: as it is, words in `\text`."""
    if re.fullmatch(r"\s*[A-Za-z]{2,}(?:[ .,'-]+[A-Za-z]*)*", content):
        return rf"\text{{{content}}}"
    compound = len(content.strip()) > 1 and follows.lstrip().startswith(("^", "_"))
    return f"{{{content}}}" if compound else content


def _words(content: str, first: bool) -> str:
    r"""The argument of `\text` and its like: numbers and signs in it belong to the mathematics around it."""
    if re.search(r"(?<![A-Za-z\d])\d|\\(?!\$)|=", content) and "\\text" not in content:
        pieces, done = [], 0
        for words in _WORDS.finditer(content):
            if content[: words.start()].endswith("\\"):  # a command
                continue
            pieces += [content[done : words.start()], rf"\text{{{words.group()}}}" if words.group() != "$" else ""]
            done = words.end()
        return "".join([*pieces, content[done:]])
    if first and not re.search(r"[A-Za-z]{2,}", content):  # `\text{(B)}`, `\textbf{x}`
        return content.replace("$", "")
    return rf"\text{{{content}}}"
