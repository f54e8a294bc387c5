"""One process decides, all processes know; and what fails in one ends all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lm_power.errors import LMPowerError

T = TypeVar("T")


class OtherProcessError(LMPowerError):
    """Another process of the run has failed; the message says which, and by what."""


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns, done by the main process alone and handed to all.

    Any exception of it is raised there, and ends the others too, which would wait for it otherwise: errors of the
    user's as they are, others as `OtherProcessError`.
    """
    outcome: list[tuple[Any, Exception | None]] = [(None, None)]
    failed: Exception | None = None
    if PartialState().is_main_process:
        try:
            outcome = [(work(), None)]
        except Exception as error:
            failed = error
            outcome = [(None, _told(error))]
    result, told = broadcast_object_list(outcome)[0]
    if failed is not None:
        raise failed
    if told is not None:
        raise told
    return cast("T", result)


def together(work: Callable[[], T]) -> T:
    """What `work` returns in this process, once it is done in all; an exception in any ends all, as in `on_main`.

    For work in which processes do not wait for one another: one that fails in the midst of a collective leaves the
    others there, and only the launcher can end them.
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
    told = next((error for error in everywhere if error is not None), None)
    if told is not None:
        raise told
    return cast("T", result)


def say(text: str) -> None:
    """Print on the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def _told(error: Exception) -> Exception:
    """The error as the other processes raise it; one that is not ours may not survive the way there."""
    if isinstance(error, LMPowerError):
        return error
    return OtherProcessError(f"process {PartialState().process_index} failed: {type(error).__name__}: {error}")
