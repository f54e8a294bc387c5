"""Which room imports which, read from the source: the arrows of lm_power/README.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """The modules that statements import when they run: those under `if TYPE_CHECKING` excepted."""
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield str(statement.module)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from imported(statement.orelse)
        else:
            for _, field in ast.iter_fields(statement):
                inner = field if isinstance(field, list) else []
                yield from imported([each for each in inner if isinstance(each, ast.stmt)])
                for handler in (each for each in inner if isinstance(each, ast.ExceptHandler)):
                    yield from imported(handler.body)


def arrows() -> dict[str, set[str]]:
    """Room (file or folder of lm_power/, or distill) → rooms and other packages that it imports."""
    found: dict[str, set[str]] = {}
    for folder in ("lm_power", "distill"):
        for file in (ROOT / folder).rglob("*.py"):
            inside = file.relative_to(ROOT / folder)
            room = "distill" if folder == "distill" else inside.parts[0].removesuffix(".py")
            for module in imported(ast.parse(file.read_text(encoding="utf-8")).body):
                first, _, rest = module.partition(".")
                target = rest.partition(".")[0] if first == "lm_power" and rest else first
                if target != room and target != "lm_power":
                    found.setdefault(room, set()).add(target)
    return found


ARROWS = arrows()
OURS = {path.name.removesuffix(".py") for path in (ROOT / "lm_power").iterdir()}


def test_imports_point_one_way() -> None:
    """No room imports one that, through others, imports it: `static_order` raises CycleError."""
    order = list(TopologicalSorter(ARROWS).static_order())
    assert order.index("decoding") < order.index("chains") < order.index("scheduler") < order.index("sampler")


def test_only_the_rooms_that_speak_to_lm_eval_import_it() -> None:
    assert {room for room, targets in ARROWS.items() if "lm_eval" in targets} == {"harness", "plugin"}


def test_nothing_in_lm_power_imports_the_trainer() -> None:
    assert "distill" not in set().union(*ARROWS.values())


def test_the_trainer_and_the_data_sets_know_nothing_of_lm_eval() -> None:
    assert "harness" not in ARROWS["distill"] | ARROWS["data"]


def test_algorithms_know_no_model_and_engines_no_algorithm() -> None:
    assert ARROWS["chains"].isdisjoint({"torch", "transformers", "engine", "scheduler", "sampler", "harness", "store"})
    assert ARROWS["engine"].isdisjoint({"chains", "scheduler", "sampler", "harness", "store"})
    assert ARROWS["scheduler"].isdisjoint({"torch", "transformers", "engine"})


def test_the_oracle_stands_alone() -> None:
    """`theory` computes what the samplers should: nothing of theirs may enter."""
    assert ARROWS["theory"].isdisjoint({*OURS, "torch", "transformers"})


def test_estimators_know_plain_numbers_only() -> None:
    assert ARROWS["stats"].isdisjoint({*OURS, "torch", "transformers"})


def test_only_commands_import_the_command_line() -> None:
    """What a low room raises must not live above it: nothing but `python -m lm_power` needs `lm_power.cli`."""
    assert {room for room, targets in ARROWS.items() if "cli" in targets} == {"__main__"}


def test_every_error_of_ours_has_the_one_base_class() -> None:
    """Guards the command lines, which catch `LMPowerError` alone: another exception is shown with its traceback."""
    ours, bases = {"LMPowerError"}, {}
    for folder in ("lm_power", "distill"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and any("Error" in ast.unparse(base) for base in node.bases):
                    bases[node.name] = {ast.unparse(base) for base in node.bases}
    while more := {name for name, those in bases.items() if those & ours} - ours:
        ours |= more
    assert {"StoreError", "TeacherDataError", "UnsupportedModelError", "DisagreementError", "UserError"} <= ours
    assert set(bases) - ours == set()
