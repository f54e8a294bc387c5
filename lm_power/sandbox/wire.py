"""Values as JSON: how arguments and results cross between the judge and the judged process.

Only plain data crosses, so that nothing of the judged program's own making (an `__eq__` that is always true,
a pickle) ever runs where the tests run. Types are kept exactly: a tuple does not become a list.
"""

from __future__ import annotations

import builtins
import datetime
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any

LONGEST_ITERATOR = 100_000
"""Items taken from a generator or other iterator, which may have no end."""

_SEQUENCES: dict[str, type[tuple[Any, ...]] | type[set[Any]] | type[frozenset[Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}

LARGEST_EXPONENT = 10_000
"""Of a `Decimal`, which can be short and yet take all memory as an integer."""

_CALENDAR: dict[str, type[datetime.datetime] | type[datetime.date] | type[datetime.time]] = {
    "datetime": datetime.datetime,  # before date, its base
    "date": datetime.date,
    "time": datetime.time,
}


class Opaque:
    """Stands for a result of a type that does not cross: equal to nothing but itself; its truth value is kept."""

    def __init__(self, type_name: str, truth: bool) -> None:
        self._type_name, self._truth = type_name, truth

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<a {self._type_name}, which the tests cannot look into>"


def encode(value: Any) -> Any:
    """`value` as an object that `json.dumps` takes; instances of subclasses as their plain base.

    A numpy scalar becomes the Python number it equals; an iterator or view, an iterator over its first
    `LONGEST_ITERATOR` items; anything else, an `Opaque`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):  # in hexadecimal: Python limits, and pays squared time for, decimal digits
        small = int(value)
        return small if abs(small) < 1 << 53 else {"type": "int", "of": hex(small)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {"type": name, "of": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"type": "dict", "of": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"type": "complex", "of": [value.real, value.imag]}
    if isinstance(value, Fraction):
        return {"type": "fraction", "of": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, Decimal) and _is_moderate(value):
        return {"type": "decimal", "of": Decimal.__str__(value)}
    for name, moment in _CALENDAR.items():
        if isinstance(value, moment):
            return {"type": name, "of": moment.isoformat(value)}  # type: ignore[arg-type]
    if isinstance(value, datetime.timedelta):
        return {"type": "timedelta", "of": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, (bytes, bytearray)):
        return {"type": type(value).__name__, "of": value.hex()}
    if isinstance(value, range):
        return {"type": "range", "of": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
        return {"type": "iterator", "of": [encode(item) for item in islice(iter(value), LONGEST_ITERATOR)]}
    if isinstance(value, Mapping):
        return encode(dict(value))
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item())
    return {"type": "opaque", "of": [type(value).__name__[:80], bool(value)]}


def decode(message: Any) -> Any:
    """The value that `encode` was given. Raises ValueError, TypeError or KeyError for any other message."""
    if isinstance(message, list):
        return [decode(item) for item in message]
    if not isinstance(message, dict):
        return message
    kind, of = message["type"], message["of"]
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([decode(item) for item in of])
    if kind == "int":
        return int(of, 16)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in of}
    if kind == "complex":
        return complex(*of)
    if kind == "fraction":
        return _fraction(*[int(decode(part)) for part in of])
    if kind == "decimal":
        return _decimal(str(of))
    if kind in _CALENDAR:
        return _CALENDAR[kind].fromisoformat(of)
    if kind == "timedelta":
        return datetime.timedelta(*of)
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(of) if kind == "bytes" else bytearray.fromhex(of)
    if kind == "range":
        return range(*[decode(part) for part in of])
    if kind == "iterator":
        return iter([decode(item) for item in of])
    if kind == "opaque":
        return Opaque(str(of[0]), bool(of[1]))
    raise ValueError(f"no such type: {kind!r:.80}")


def _is_moderate(value: Decimal) -> bool:
    return not value.is_finite() or abs(value.adjusted()) <= LARGEST_EXPONENT


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal: {text!r:.80}") from None
    if not _is_moderate(value):
        raise ValueError(f"a decimal's exponent: {text!r:.80}")
    return value


def _fraction(numerator: int, denominator: int) -> Fraction:
    if denominator < 1:
        raise ValueError(f"a fraction's denominator: {denominator}")
    return Fraction(numerator, denominator)


def encode_error(error: BaseException) -> list[str]:
    """An exception as the name of its nearest built-in class and its message."""
    named = next(kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    try:
        message = str(error)[:300]
    except Exception:  # a program's own exception class
        message = ""
    return [named, message if named == type(error).__name__ else f"{type(error).__name__}: {message}"]


def decode_error(message: list[str]) -> Exception:
    """The exception to raise in the tests: SystemExit and its like become RuntimeError."""
    name, text = str(message[0]), str(message[1])[:300]
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError wants five arguments
            pass
    return RuntimeError(f"{name}: {text}")
