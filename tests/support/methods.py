"""Options that suit a method: tests that run several methods by the same options leave out what one has not."""

from __future__ import annotations

from typing import Any

from lm_power.chains import METHODS

FOR_ALL = ("max_new_tokens", "seed", "prefetch")


def suited(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """`method`, and those of `options` that it has."""
    known = {*METHODS[method].options, *FOR_ALL}
    options = {name: value for name, value in options.items() if name in known}
    return {**options, "method": method}
