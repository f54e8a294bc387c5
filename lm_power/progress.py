"""A progress bar worth watching: requests done, tokens per second, acceptance rate, time left."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import heapq
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from tqdm import tqdm as plain_tqdm
from tqdm.auto import tqdm

from lm_power.chains import Info

RATE_WINDOW = 10.0  # seconds over which tokens per second are counted
SPEED_WINDOW = 30.0  # seconds over which the speed of a completion is measured, for the time left
LIVE_EVERY, LINE_EVERY = 1.0, 30.0  # seconds between redraws of a bar, at most; between lines in a log file
_SIMULATED = 4000  # waiting completions that are scheduled one by one; any others count by their mean
_GOLDEN = 0.618034  # its multiples, modulo 1, cover [0, 1) evenly, however many there are


class TokenCounts(Protocol):
    """What an engine has done so far, such as `lm_power.engine.Counters`.

    Attributes:
        decoded: tokens drawn.
        prefilled: tokens of prompts read.
        loading: what the engine does with new prompts, as a participle: "reading".
    """

    decoded: int
    prefilled: int
    loading: ClassVar[str]


class Bar(Protocol):
    """What displays a run: a bar of tqdm, or `Lines`."""

    n: int

    def set_postfix_str(self, text: str, /, refresh: bool = True) -> None:
        """Show `n` and a text."""
        ...


@dataclasses.dataclass(frozen=True)
class UnderWay:
    """A completion that rows are working on.

    Attributes:
        spent: tokens decoded for it so far, including those in flight.
        most: tokens that it may still cost, according to its algorithm's `work_left`.
    """

    spent: float
    most: float


class Progress:
    """Counts what a run has done, and shows it.

    A thread redraws the bar, so that it moves while a long forward pass or a long prompt keeps the run itself busy.

    Args:
        total: number of completions.
        done: completions that an earlier run has already made.
        bar: where to show it; None for counting only.
        every: least number of seconds between two redraws.
        clock: the time in seconds; tests pass a clock of their own.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        bar: Bar | None = None,
        every: float = LIVE_EVERY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total, self.done = total, done
        self.tokens = self.proposals = self.accepted = self.changed = 0
        self._bar, self._every, self._clock = bar, every, clock
        self._counts: TokenCounts | None = None
        self._reading = ""  # which prompts are being read
        self._running = 0
        self._costs: list[int] = []  # what each finished completion has cost, tokens, in rising order
        self._spent_on_finished = 0
        self._rates: deque[tuple[float, int, int]] = deque()  # time, tokens decoded, tokens of prompts read
        self._speeds: deque[tuple[float, float, int]] = deque()  # time, tokens for completions, completions running
        self._outlook: tuple[float, float, bool] | None = None  # when it was made, the seconds left then, upper bound?
        self._shown_at = self._looked_at = -float("inf")
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._ticker: threading.Thread | None = None
        self._note_rates()

    def follow(self, counts: TokenCounts) -> None:
        """Count tokens as soon as the engine that keeps `counts` draws or reads them, before they are settled."""
        with self._lock:
            self._counts = counts
            self._rates.clear()
            self._note_rates()

    def reading(self, tokens: int, prompts: int = 1) -> None:
        """Prompts of so many tokens in total are being read, until the next `show`."""
        self._reading = f"{'a prompt' if prompts == 1 else f'{prompts} prompts'} of {tokens} tokens"

    def settled(self, info: Info, tokens: int) -> None:
        """A segment of `tokens` tokens has been decoded and settled."""
        self.tokens += tokens
        if info.step is not None:
            self.proposals += 1
            self.accepted += info.step.accepted
            self.changed += info.step.changed

    def finished(self, cost: int | None = None) -> None:
        """A completion is finished; `cost` is the number of tokens that have been decoded for it."""
        with self._lock:
            self.done += 1
            if cost is not None:
                bisect.insort(self._costs, cost)
                self._spent_on_finished += cost

    def show(self, running: int, under_way: Callable[[], Sequence[UnderWay]] | None = None) -> None:
        """Redraw the bar, if the last redraw was long enough ago.

        Args:
            running: number of completions under way.
            under_way: what they have cost and may still cost; called at most twice a second.
        """
        self._running, self._reading = running, ""
        if self._bar is None:
            return
        with self._lock:
            now = self._clock()
            if now - self._looked_at < LIVE_EVERY / 2:
                return
            self._looked_at = now
            if under_way is not None:
                self._look_ahead(now, under_way())
            if now - self._shown_at >= self._every / 2:
                self._draw(now)

    def start(self) -> None:
        """Redraw from a separate thread, until `close`."""
        self._ticker = threading.Thread(target=self._tick, name="lm_power progress", daemon=True)
        self._ticker.start()

    def close(self) -> None:
        """Stop redrawing, and draw the last state."""
        self._closed.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
        if self._bar is not None:
            with self._lock:
                self._draw(self._clock())

    def tick(self) -> None:
        """Redraw if nobody else has for a while. The thread calls this."""
        with self._lock:
            now = self._clock()
            if now - self._shown_at >= self._every:
                self._draw(now)

    def text(self) -> str:
        """The text after the bar."""
        with self._lock:
            now = self._clock()
            self._note_rates()
            since, decoded, read = self._rates[0]
            seconds = max(now - since, 1e-9)
            reads = (self._rates[-1][2] - read) / seconds
            draws = (self._rates[-1][1] - decoded) / seconds
            parts = [f"{self._running} running", f"{draws:.0f} tok/s"]
            if self._reading:
                loading = "reading" if self._counts is None else self._counts.loading
                parts.append(f"{loading} {self._reading}")
            elif reads > draws / 10:  # less does not hold a run up
                parts.append(f"reading prompts, {reads:.0f} tok/s")
            if self.proposals:
                parts.append(f"accepted {self.accepted / self.proposals:.0%}")
                parts.append(f"changed {self.changed / self.proposals:.0%}")
            return ", ".join([*parts, f"left {self._left(now)}"])

    def seconds_left(self) -> float | None:
        """Time left, seconds, at least one while there is work; None if nothing is known yet."""
        with self._lock:
            if self._outlook is None:
                return None
            made, left, _ = self._outlook
            return max(1.0, left - (self._clock() - made)) if self.done < self.total else 0.0

    def _left(self, now: float) -> str:
        seconds = self.seconds_left()
        if seconds is None:
            return "?" if self.done < self.total else "00:00"
        at_most = "at most " if self._outlook is not None and self._outlook[2] and seconds else ""
        return at_most + str(plain_tqdm.format_interval(seconds))

    def _note_rates(self) -> None:
        counts = self._counts
        decoded, read = (self.tokens, 0) if counts is None else (counts.decoded, counts.prefilled)
        _append(self._rates, (self._clock(), decoded, read), RATE_WINDOW)

    def _look_ahead(self, now: float, runs: Sequence[UnderWay]) -> None:
        """Estimate the time left from what each completion may still cost, and the speed of one completion."""
        spent = self._spent_on_finished + sum(run.spent for run in runs)
        _append(self._speeds, (now, spent, len(runs)), SPEED_WINDOW)
        samples = list(self._speeds)
        worked = sum(max(n, m) * (after - before) for (before, _, n), (after, _, m) in itertools.pairwise(samples))
        decoded = samples[-1][1] - samples[0][1]
        if runs and worked > 0 and decoded > 0:
            waiting = max(0, self.total - self.done - len(runs))
            left = longest_left(runs, waiting, self._costs) * worked / decoded
            self._outlook = (now, left, not self._costs)

    def _draw(self, now: float) -> None:
        if self._bar is None:
            return
        self._shown_at = now
        self._bar.n = self.done
        self._bar.set_postfix_str(self.text(), refresh=True)

    def _tick(self) -> None:
        while not self._closed.wait(min(self._every, LIVE_EVERY) / 2):
            self.tick()


def longest_left(runs: Sequence[UnderWay], waiting: int, costs: Sequence[int]) -> float:
    """Tokens that one row will decode until all completions are finished, estimated from what others have cost.

    A completion under way that has cost s is expected to end like one of the finished completions that cost more than
    s. Each takes a different one of these, spread evenly over their quantiles, because the longest decides. If none has
    cost more, it is expected to cost as much again. It never costs more than its algorithm's `work_left`. Completions
    that wait cost what the finished ones have cost and what those under way are expected to cost: the finished ones
    alone are the short ones, as long as few have finished. They start on the first row that is free. As long as nothing
    has finished, all cost the most that they can.

    Args:
        runs: completions under way, at least one.
        waiting: number of completions that have not been started.
        costs: what each finished completion has cost, tokens, in rising order.
    """
    rows: list[float] = []
    expected: list[float] = list(costs)
    for place, run in enumerate(sorted(runs, key=lambda run: -run.spent)):
        first = bisect.bisect_right(costs, run.spent)
        if first < len(costs):
            guess = costs[first + _spread(place, len(costs) - first)] - run.spent
        else:
            guess = run.spent if costs else run.most
        rows.append(min(guess, run.most))
        expected.append(run.spent + rows[-1])
    expected.sort()
    heapq.heapify(rows)
    for place in range(min(waiting, _SIMULATED)):
        heapq.heapreplace(rows, rows[0] + expected[_spread(place, len(expected))])
    return max(rows) + max(0, waiting - _SIMULATED) * sum(expected) / len(expected) / len(rows)


def _spread(place: int, size: int) -> int:
    """Index into a list of `size`: the middle for place 0; later places are spread evenly over the list."""
    return int((0.5 + place * _GOLDEN) % 1 * size)


def _append(samples: deque[Any], sample: tuple[Any, ...], window: float) -> None:
    """Append a sample that begins with its time; drop those that are too old, except the newest of them."""
    samples.append(sample)
    while len(samples) > 2 and samples[1][0] <= sample[0] - window:
        samples.popleft()


@contextlib.contextmanager
def progress_bar(total: int, wanted: bool | Progress, done: int = 0, title: str = "Sampling") -> Iterator[Progress]:
    """A `Progress` that shows a bar on stderr, or only counts; a given `Progress` is used as it is.

    A terminal and a notebook get a bar that is redrawn every second; a file gets a line every half minute.

    Args:
        total: number of completions.
        wanted: whether to show a bar, or the `Progress` to report to.
        done: completions that are already made.
        title: the text before the bar.
    """
    if isinstance(wanted, Progress):
        yield wanted
        return
    if not wanted:
        yield Progress(total, done)
        return
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty() or "ipykernel" in sys.modules:
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            bar = stack.enter_context(tqdm(total=total, initial=done, desc=title, bar_format=form))
            progress = Progress(total, done, bar, LIVE_EVERY)
        else:
            progress = Progress(total, done, Lines(total, done, title), LINE_EVERY)
        progress.start()
        stack.callback(progress.close)
        yield progress


class Lines:
    """A bar for files: each update is a line, `Sampling: 12% 20/164 [02:13, 64 running, …]`.

    Args:
        total: number of completions.
        done: completions that are already made.
        title: the text before each line.
    """

    def __init__(self, total: int, done: int, title: str) -> None:
        self.n, self._total, self._title = done, total, title
        self._started = time.perf_counter()

    def set_postfix_str(self, text: str, /, refresh: bool = True) -> None:
        """Write a line that ends with `text`."""
        elapsed = plain_tqdm.format_interval(time.perf_counter() - self._started)
        share = self.n / self._total if self._total else 1.0
        print(f"{self._title}: {share:.0%} {self.n}/{self._total} [{elapsed}, {text}]", file=sys.stderr, flush=True)
