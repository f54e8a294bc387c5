"""A progress bar that a person can steer by: requests done, tokens a second, acceptance rate, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from lm_power.chains import Info


class Progress:
    """Counts what a run has done and shows it.

    The time left counts a running completion as half done: those that finish first are the short ones, so
    their mean cost would promise too much.

    Args:
        total: completions wanted.
        done: completions there already, from an earlier run.
        bar: where to show it; None for counting only.
    """

    def __init__(self, total: int, done: int = 0, bar: tqdm[None] | None = None) -> None:
        self.total, self.done, self._fresh = total, done, 0
        self.tokens = self.proposals = self.accepted = 0
        self._bar = bar
        self._started = time.perf_counter()

    def settled(self, info: Info, tokens: int) -> None:
        """A segment of `tokens` tokens has been decoded and settled."""
        self.tokens += tokens
        if info.step is not None:
            self.proposals += 1
            self.accepted += info.step.accepted

    def finished(self) -> None:
        """A completion is finished."""
        self.done += 1
        self._fresh += 1

    def show(self, running: int) -> None:
        """Refresh the bar (tqdm limits how often it is drawn)."""
        if self._bar is None:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        parts = [f"{running} running", f"{self.tokens / seconds:.0f} tok/s"]
        if self.proposals:
            parts.append(f"accepted {self.accepted / self.proposals:.0%}")
        parts.append(f"left {self._left(seconds, running)}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(self.done - self._bar.n)

    def _left(self, seconds: float, running: int) -> str:
        if not self._fresh:
            return "?"
        to_come = self.total - self.done - running / 2
        return str(tqdm.format_interval(seconds * to_come / (self._fresh + running / 2)))


@contextlib.contextmanager
def progress_bar(total: int, wanted: bool | Progress, done: int = 0) -> Iterator[Progress]:
    """A `Progress` on stderr if wanted, silent counters if not; a `Progress` given is used as it is."""
    if isinstance(wanted, Progress):
        yield wanted
        return
    form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    with tqdm(total=total, initial=done, desc="Sampling", disable=not wanted, bar_format=form) as bar:
        yield Progress(total, done, bar if wanted else None)
