"""Shares what one process has decided with all of them, and ends all of them if one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lm_power.errors import LMPowerError

T = TypeVar("T")


class OtherProcessError(LMPowerError):
    """Another process of the run has failed; the message says which one, and why."""


def on_main(work: Callable[[], T]) -> T:
    """Do `work` in the main process alone, and return its result in all processes.

    An exception is raised in the main process and ends the others too, which would otherwise wait for it. There, a
    user's error is raised as it is, and any other as `OtherProcessError`.
    """
    outcome: list[tuple[Any, Exception | None]] = [(None, None)]
    failed: Exception | None = None
    if PartialState().is_main_process:
        try:
            outcome = [(work(), None)]
        except Exception as error:
            failed = error
            outcome = [(None, _told(error))]
    result, elsewhere = broadcast_object_list(outcome)[0]
    if failed is not None:
        raise failed
    if elsewhere is not None:
        raise elsewhere
    return cast("T", result)


def together(work: Callable[[], T]) -> T:
    """Do `work` in every process, and return once all have done it; an exception in any ends all, as in `on_main`.

    It is for work in which processes do not wait for one another. If one of them fails during a collective operation,
    the others stay in it, and only the launcher can end them.
    """
    failed: Exception | None = None
    result = None
    try:
        result = work()
    except Exception as error:
        failed = error
    everywhere = gather_object([None if failed is None else _told(failed)])
    if failed is not None:
        raise failed
    elsewhere = next((error for error in everywhere if error is not None), None)
    if elsewhere is not None:
        raise elsewhere
    return cast("T", result)


def say(text: str) -> None:
    """Print on the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def _told(error: Exception) -> Exception:
    """The error as the other processes raise it. An error that is not ours may not survive being sent there."""
    if isinstance(error, LMPowerError):
        return error
    return OtherProcessError(f"process {PartialState().process_index} failed: {type(error).__name__}: {error}")
