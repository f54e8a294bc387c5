"""Documents and grading of the power_mbpp_train task: MBPP problems in HumanEval's form."""

from __future__ import annotations

import ast
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

from lm_power.data.loading import load_local
from lm_power.errors import DataError, UnavailableError
from lm_power.harness.code_answers import code_results
from lm_power.sandbox.runner import require_sandbox

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PATH = "google-research-datasets/mbpp"
HUB_CONFIG = "sanitized"
SPLITS = ("train", "validation", "test")  # not "prompt", which MBPP keeps for few-shot examples
LAST_PROMPT_ID = 10
"""The prompt split's problems have the task ids up to this one; a local file may hold all."""

TIMEOUT = 10.0
"""Seconds: one reference solution (problem 123) takes about 3."""


def load_documents(mbpp_file: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Sanitized MBPP without its prompt split, posed as HumanEval does: from the hub or a local file.

    lm-eval calls this with everything of `--metadata` and `--model_args`; only `mbpp_file` is ours.

    Raises ValueError for a file with other columns, RuntimeError without the hub, or where programs cannot be run.
    """
    import datasets

    require_sandbox()
    if mbpp_file is not None:
        rows = load_local(str(mbpp_file), ("prompt", "code"), "mbpp_file")
        origin = f"mbpp_file={mbpp_file}"
    else:
        origin = HUB_PATH
        try:
            splits = datasets.load_dataset(HUB_PATH, HUB_CONFIG)
            rows = datasets.concatenate_datasets([splits[name] for name in SPLITS])
        except Exception as error:  # the hub's client raises many kinds when there is no network
            raise UnavailableError(
                f"could not load {HUB_PATH} from the Hugging Face hub ({type(error).__name__}: {error}). "
                "With a copy on this machine: --metadata mbpp_file=PATH.json"
            ) from error
    posed = [pose(row, f"{origin}: row {number}") for number, row in enumerate(rows, start=1)]
    posed = sorted((doc for doc in posed if doc["task_id"] > LAST_PROMPT_ID), key=lambda doc: doc["task_id"])
    if not posed:
        raise DataError(f"{origin}: all its problems are of the prompt split (task_id up to {LAST_PROMPT_ID})")
    return {"test": datasets.Dataset.from_list(posed)}


def pose(row: dict[str, Any], where: str) -> dict[str, Any]:
    """One MBPP problem in HumanEval's columns: a signature and a docstring to go on from.

    `prompt` is the reference solution's `def` line over the problem's text as docstring; no test is shown.
    `canonical_solution` is the reference's body, then the rest of its module. `setup` is what the tests
    import, and what the reference imports, because one test uses that.

    Args:
        row: MBPP's columns.
        where: the row's place, for messages.

    Raises:
        ValueError: if the row lacks a column, does not parse, or its tests call none, or several, of its functions.
    """
    if not isinstance(row.get("task_id"), int) or not isinstance(row.get("test_list"), list) or not row["test_list"]:
        raise DataError(f"{where}: must have task_id, a number, and test_list, a list of texts, as sanitized MBPP has")
    test_lines = [str(line) for line in row["test_list"]]
    try:
        with warnings.catch_warnings():  # of escape sequences in the reference solutions
            warnings.simplefilter("ignore")
            module, tests = ast.parse(row["code"]), ast.parse("\n".join(test_lines))
    except SyntaxError as error:
        raise DataError(f"{where}: does not parse as Python: {error}") from error
    used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    tested = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name in used]
    if len({node.name for node in tested}) != 1:
        names = ", ".join(node.name for node in tested) or "none"
        raise DataError(f"{where}: its tests must call one function of its code; they call {names}")
    function = tested[-1]
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    text = row["prompt"].strip().replace("\\", "\\\\").replace('"""', "'''")
    rest = [node for node in module.body if node is not function]
    imports = [node for node in rest if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        "task_id": row["task_id"],
        "prompt": f'def {function.name}({ast.unparse(function.args)}){returns}:\n    """{text}\n    """\n',
        "entry_point": function.name,
        "canonical_solution": _source(function.body, "    ") + ("\n" + _source(rest) if rest else ""),
        "test": "\n".join(test_lines) + "\n",
        "setup": "\n".join([*(row.get("test_imports") or []), *map(ast.unparse, imports)]),
    }


def _source(statements: list[ast.stmt], indent: str = "") -> str:
    return "".join(textwrap.indent(ast.unparse(statement), indent) + "\n" for statement in statements)


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Run each completion of one problem, and log what is known of it with the document."""
    return code_results(doc, results, TIMEOUT)
