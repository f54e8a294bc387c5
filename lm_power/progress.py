"""A progress bar that a person can steer by: requests done, tokens a second, acceptance rate, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from lm_power.chains import Info


class Progress:
    """Counts what a run has done and shows it.

    The time left goes by tokens, not by finished requests, which arrive in bursts: the mean cost of the
    finished completions times those to come, less what the running ones have already spent.

    Args:
        total: completions to draw.
        bar: where to show it; None for counting only.
    """

    def __init__(self, total: int, bar: tqdm[None] | None = None) -> None:
        self.total, self.done = total, 0
        self.tokens = self.proposals = self.accepted = self._finished_tokens = 0
        self._bar = bar
        self._started = time.perf_counter()

    def settled(self, info: Info, tokens: int) -> None:
        """A segment of `tokens` tokens has been decoded and settled."""
        self.tokens += tokens
        self.proposals += info.proposed
        self.accepted += info.proposed and info.accepted

    def finished(self, tokens: int) -> None:
        """A completion is finished; `tokens` were decoded for it."""
        self.done += 1
        self._finished_tokens += tokens

    def show(self, running: int) -> None:
        """Refresh the bar (tqdm limits how often it is drawn)."""
        if self._bar is None:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        parts = [f"{running} running", f"{self.tokens / seconds:.0f} tok/s"]
        if self.proposals:
            parts.append(f"accepted {self.accepted / self.proposals:.0%}")
        parts.append(f"left {self._left(seconds)}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(self.done - self._bar.n)

    def _left(self, seconds: float) -> str:
        if not self.done:
            return "?"
        to_come = self.total * self._finished_tokens / self.done - self.tokens
        return str(tqdm.format_interval(max(to_come, 0) * seconds / max(self.tokens, 1)))


@contextlib.contextmanager
def progress_bar(total: int, wanted: bool | Progress) -> Iterator[Progress]:
    """A `Progress` on stderr if wanted, silent counters if not; a `Progress` given is used as it is."""
    if isinstance(wanted, Progress):
        yield wanted
        return
    form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    with tqdm(total=total, desc="Sampling", disable=not wanted, bar_format=form, unit="completion") as bar:
        yield Progress(total, bar if wanted else None)
