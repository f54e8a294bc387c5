"""What is dropped from teacher data, counted by reason."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from lm_power.distill.encoding import Sample
from lm_power.distill.sources import Drawn, TeacherDataError

_T = TypeVar("_T", Drawn, Sample)


class Tally:
    """Counts what is dropped, by reason, and remembers where each reason first occurred."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        self.counts = {"read": len(drawn)}
        self.first: dict[str, str] = {}

    def drop(self, reason: str, items: Sequence[_T], drops: Callable[[_T], bool]) -> list[_T]:
        """The items that are not dropped."""
        kept = []
        for item in items:
            if drops(item):
                self.counts[reason] = self.counts.get(reason, 0) + 1
                self.first.setdefault(reason, item.where)
            else:
                kept.append(item)
        return kept

    def finished(self, kept: int) -> dict[str, int]:
        """All counts; raises `TeacherDataError` if nothing is kept."""
        if not kept:
            read, *dropped = self.counts.items()
            reasons = "; ".join(f"{count} {reason}, first {self.first[reason]}" for reason, count in dropped)
            raise TeacherDataError(
                f"no completion is left to learn from: {read[1]} read; {reasons}. Ask for less, or draw more"
            )
        return {**self.counts, "kept": kept}


def repetition() -> Callable[[Hashable], bool]:
    """A function that says whether it has been called with the same thing before."""
    met: set[Hashable] = set()

    def repeated(thing: Hashable) -> bool:
        before = thing in met
        met.add(thing)
        return before

    return repeated
