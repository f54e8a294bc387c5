"""One process decides, all processes know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lm_power.errors import LMPowerError

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns, done by the main process alone and handed to all; its user errors are raised by all."""
    outcome: list[tuple[Any, Exception | None]] = [(None, None)]
    if PartialState().is_main_process:
        try:
            outcome = [(work(), None)]
        except LMPowerError as error:
            outcome = [(None, error)]
    result, refusal = broadcast_object_list(outcome)[0]
    if refusal is not None:
        raise refusal
    return cast("T", result)


def say(text: str) -> None:
    """Print on the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)
