"""What a user may import, and what a type checker sees of it. A change of these names is one for the changelog."""

import ast
from importlib import resources
from pathlib import Path

import pytest

import lm_power

NAMES = ["Completion", "OptionError", "PowerSampler", "SamplerConfig", "Stats", "Steps", "UnsupportedModelError"]
PACKAGE = Path(lm_power.__file__).parent


def test_the_names_are_these() -> None:
    assert lm_power.__all__ == [*NAMES, "__version__"]
    assert set(lm_power.__all__) <= set(dir(lm_power))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_documented(name: str) -> None:
    thing = getattr(lm_power, name)
    assert thing.__name__ == name
    assert len(thing.__doc__.split()) > 5
    assert f"`{name}`" in (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_type_checkers_see_the_same_names() -> None:
    """They read the imports under TYPE_CHECKING, Python reads `_HOME`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == lm_power._HOME
    assert sorted(lm_power._HOME) == NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PowerSimpler'"):
        _ = lm_power.PowerSimpler


@pytest.mark.parametrize("package", ["lm_power", "lm_power.distill"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    assert (resources.files(package) / "py.typed").is_file()
