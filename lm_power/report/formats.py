"""Write tables as text, Markdown, CSV and LaTeX. Cells are escaped, so that their contents appear as plain text."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from lm_power.report.tables import Cell, Column, Table
from lm_power.report.visible import one_line, visible
from lm_power.stats.means import Estimate

_LONGEST = 500
"""Characters of a cell or note for readers; the CSV has all of it."""
_CAPTION_WIDTH = 100
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "—": "---", "…": r"\ldots{}", "`": r"\textasciigrave{}",
}  # fmt: skip


def to_markdown(tables: Sequence[Table]) -> str:
    """The tables one below the other, in GitHub's Markdown, each with its caption and notes."""
    return "\n".join(_markdown(table) for table in tables)


def to_text(table: Table, *, caption: bool = False) -> str:
    """The table for a terminal: its title, its caption if wanted, the rows in aligned columns, its notes."""
    rows = [[_line(cell, _LONGEST) for cell in row] for row in [table.header, *table.texts()]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [_is_text(table, column) for column in table.columns if column.title]
    lines = [
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]
    told = [*textwrap.wrap(_line(table.caption, None), _CAPTION_WIDTH), ""] if caption else []
    return "\n".join(
        [_line(table.title, None), "", *told, *lines, *(f"note: {_line(n, None)}" for n in table.notes), ""]
    )


def to_csv(table: Table) -> str:
    """The table as CSV (RFC 4180) with raw numbers in full precision; a gap is an empty field.

    An estimate takes two fields, `key` and `key_stderr`. A text that a spreadsheet would take for a formula (it begins
    with =, +, -, @, tab or carriage return) gets an apostrophe in front; numbers stay as they are.
    """
    estimates = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    header: list[str] = []
    for column, is_estimate in zip(table.columns, estimates, strict=True):
        header += [column.key, f"{column.key}_stderr"] if is_estimate else [column.key]
    writer.writerow(header)
    for row in table.rows:
        fields: list[str] = []
        for cell, is_estimate in zip(row, estimates, strict=True):
            fields += _csv_fields(cell, is_estimate)
        writer.writerow(fields)
    return file.getvalue()


def to_latex(table: Table) -> str:
    r"""The table for LaTeX with `\usepackage{booktabs}`; signs beyond Latin need LuaLaTeX or XeLaTeX."""
    shown = [(i, column) for i, column in enumerate(table.columns) if column.title is not None]
    alignment = "".join("l" if any(isinstance(row[i], str) for row in table.rows) else "r" for i, _ in shown)
    rows = [table.header, *table.texts()]
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    caption = " ".join([f"{table.title}.", table.caption, *(f"{note.rstrip('.')}." for note in table.notes)])
    head = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption, longest=None)}}}"]
    body = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*head, *body, r"\end{tabular}", r"\end{table}", ""])


def _markdown(table: Table) -> str:
    rows = [table.header, ["---" if _is_text(table, column) else "---:" for column in table.columns if column.title]]
    lines = [f"## {_escaped(table.title)}", "", _escaped(table.caption, longest=None), ""]
    lines += [f"| {' | '.join(map(_escaped, rows[0]))} |", f"|{'|'.join(rows[1])}|"]
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in table.texts()]
    lines += ["", *(f"* {_escaped(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([*lines, ""])


def _is_text(table: Table, column: Column) -> bool:
    place = table.columns.index(column)
    return any(isinstance(row[place], str) for row in table.rows)


def _line(text: str, longest: int | None) -> str:
    return one_line(text, max(len(text) * 10, 100) if longest is None else longest)


def _escaped(text: str, longest: int | None = _LONGEST) -> str:
    """The text on one line, with what Markdown or the HTML in it would take as markup made plain."""
    plain = _line(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", plain)


def _latex(text: str, longest: int | None = _LONGEST) -> str:
    return "".join(_LATEX.get(character, character) for character in _line(text, longest))


def _csv_fields(cell: Cell, is_estimate: bool) -> list[str]:
    if isinstance(cell, Estimate):
        return [repr(cell.value), "" if cell.error is None else repr(cell.error)]
    if cell is None:
        text = ""
    elif isinstance(cell, str):
        text = visible(cell)
        text = f"'{text}" if text.startswith(_FORMULA) else text
    else:
        text = repr(cell)
    return [text, ""] if is_estimate else [text]
