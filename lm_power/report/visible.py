"""Text of models and users made safe to display: control characters are shown as signs, so nothing obeys them.

Escaping for a format (HTML, LaTeX …) is another matter and comes after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

ZERO_WIDTH_AND_BIDI = "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
"""Invisible or direction-changing characters. The joiners U+200C and U+200D are not among them: scripts need them."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f" + ZERO_WIDTH_AND_BIDI + "\ud800-\udfff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]+"
)
_C0 = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_GAP = " […] "


def visible(text: str) -> str:
    r"""The text with every control, bidi, zero-width and unpaired surrogate character as a visible sign.

    C0 controls get their names, ⟨ESC⟩, all others ⟨U+code⟩; few fonts have Unicode's control pictures. Tabs and line
    feeds stay. The result can be encoded as UTF-8 and XML.

    >>> visible("\x1b[31mred\r\n"), visible("abc\u202edcba"), visible("\ud800")
    ('⟨ESC⟩[31mred⟨CR⟩\n', 'abc⟨U+202E⟩dcba', '⟨U+D800⟩')
    """
    return _HIDDEN.sub(lambda match: "".join(map(_sign, match[0])), text)


def parts(text: str) -> Iterator[tuple[str, bool]]:
    r"""The pieces of `visible(text)` in order, each with whether it stands for hidden characters.

    >>> list(parts("a\x1b\x00b"))
    [('a', False), ('⟨ESC⟩⟨NUL⟩', True), ('b', False)]
    """
    end = 0
    for match in _HIDDEN.finditer(text):
        if match.start() > end:
            yield text[end : match.start()], False
        yield "".join(map(_sign, match[0])), True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def one_line(text: str, limit: int) -> str:
    r"""The text, visible, on one line of at most `limit` characters; a longer one loses its middle, in whole words.

    A word is cut only where leaving it out whole would cost more than half of the room on its side.

    Raises:
        ValueError: if the limit leaves no room for both ends.

    >>> one_line("a\n  b", 20), one_line("0123456789abcdef", 13)
    ('a b', '0123 […] cdef')
    >>> one_line("Convert the point (0,3) in rectangular coordinates to polar coordinates.", 45)
    'Convert the point […] polar coordinates.'
    """
    if limit < len(_GAP) + 2:
        raise ValueError(f"limit={limit}: must be at least {len(_GAP) + 2}, a character either side of the gap")
    line = " ".join(visible(text).split())
    if len(line) <= limit:
        return line
    head = (limit - len(_GAP) + 1) // 2
    tail = limit - len(_GAP) - head
    return f"{_first_words(line, head)}{_GAP}{_first_words(line[::-1], tail)[::-1]}"


def short_labels(labels: Sequence[str], limit: int) -> list[str]:
    """The labels by `one_line`, told apart by their numbers where that alone would make two of them the same.

    >>> short_labels(["model 1 of a series", "model 2 of a series"], 16)
    ['1: mode […] ries', '2: mode […] ries']
    """
    short = [one_line(label, limit) for label in labels]
    if len(set(short)) == len(short):
        return short
    return [f"{i}: {one_line(label, limit - len(f'{i}: '))}" for i, label in enumerate(labels, start=1)]


def _first_words(line: str, room: int) -> str:
    """The whole words at the beginning of the line, or its first characters if those words fill less than half."""
    end = line.rfind(" ", 0, room + 1)
    return line[:end] if end >= room / 2 else line[:room]


def _sign(character: str) -> str:
    code = ord(character)
    return f"⟨{_C0[code]}⟩" if code < len(_C0) else f"⟨U+{code:04X}⟩"
