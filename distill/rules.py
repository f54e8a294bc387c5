"""How an option is declared, read from the command line, YAML or Python, and checked."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from lm_power.config import OptionError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        text: completes "must be …".
        holds: whether a value of the right type is allowed.
    """

    text: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Rule:
    """A whole number from `least` on."""
    return Rule(f"a whole number >= {least}", lambda value: value >= least)


POSITIVE = Rule("a finite number > 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Rule("a finite number >= 0", lambda value: 0 <= value < math.inf)
SHARE = Rule("a number >= 0 and < 1", lambda value: 0 <= value < 1)
NAMED = Rule("one name or more", lambda value: len(value) > 0)
ANY = Rule("a value", lambda value: True)


def option(group: str, default: Any, help: str, rule: Rule = ANY) -> Any:
    """A field of a class derived from `Options`.

    Args:
        group: its heading in the help.
        default: its default; None only if the type allows it or the option must be given.
        help: one line.
        rule: what else a value of the right type must fulfil; a `Literal` type is its own rule.
    """
    metadata = {"group": group, "help": help, "rule": rule}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """A record of fields made by `option`, which are converted to their types and checked when the record is made.

    Numbers may be given as text, since YAML reads 1e-4 as text, and a single name stands for a list of one.

    Raises:
        OptionError: a value is of the wrong type or breaks its rule.
    """

    def __post_init__(self) -> None:
        hints = kinds(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, _checked(field, hints[field.name], value))


def kinds(options: type[Options]) -> dict[str, Any]:
    """Option → the type of its values other than None: str, int, float, bool, tuple, Mapping or a `Literal`."""
    found = {}
    for name, hint in typing.get_type_hints(options).items():
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        origin = typing.get_origin(hint)
        found[name] = hint if origin in (None, Literal) else origin
    return found


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    rule = field.metadata["rule"]
    if typing.get_origin(kind) is Literal:
        *others, last = typing.get_args(kind)
        rule = Rule(f"{', '.join(others)} or {last}", lambda value: value in (*others, last))
        kind = str
    must = {bool: "true or false", str: "text", tuple: "a list of names", Mapping: "a mapping"}.get(kind, rule.text)
    try:
        converted = _READERS[kind](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{field.name}={value!r}: must be {must}") from error
    if not rule.holds(converted):
        raise OptionError(f"{field.name}={converted}: must be {rule.text}")
    return converted


def _whole(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError
    return int(float(value)) if not isinstance(value, int) else value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError
    return str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _names(value: Any) -> tuple[str, ...]:
    return (_text(value),) if isinstance(value, str | Path) else tuple(_text(item) for item in value)


def _mapping(value: Any) -> dict[str, Any]:
    mapping = json.loads(value) if isinstance(value, str) else value
    if not isinstance(mapping, dict):
        raise TypeError
    return dict(mapping)


_READERS: dict[Any, Callable[[Any], Any]] = {
    int: _whole, float: _number, str: _text, bool: _switch, tuple: _names, Mapping: _mapping,
}  # fmt: skip
