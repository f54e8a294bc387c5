"""Progress that can be believed: the time left of simulated and real runs, and a bar that always moves."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

import pytest
from models import EOS, make_model
from test_scheduler import LONGEST, FakeChain, FakeEngine, final_length

import lm_power.host
import lm_power.progress
from lm_power import PowerSampler
from lm_power.chains import Info, Step, Stream
from lm_power.config import SamplerConfig
from lm_power.jobs import Job
from lm_power.progress import LIVE_EVERY, Progress, UnderWay, longest_left, progress_bar
from lm_power.remote.decoder import Traffic
from lm_power.scheduler import Scheduler


class Clock:
    """Seconds that pass only when told so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A bar that remembers what it showed, and when."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.n, self.clock = 0, clock or time.perf_counter
        self.shown: list[tuple[float, int, str]] = []

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.shown.append((self.clock(), self.n, text))


@dataclasses.dataclass
class Counts:
    loading: ClassVar[str] = "reading"

    decoded: int = 0
    prefilled: int = 0


class SlowEngine(FakeEngine):
    """Takes a hundredth of a second on the clock for a token, and hands over after eight tokens at most."""

    def __init__(self, rows: int, clock: Clock, counts: Counts) -> None:
        super().__init__(rows)
        self.clock, self.counts = clock, counts

    def step(self):
        passes = min(8, *self._left.values())
        self.counts.decoded += passes * len(self._left)
        self.clock.now += 0.01 * passes
        self._left = {row: left - passes for row, left in self._left.items()}
        done = [row for row, left in self._left.items() if not left]
        for row in done:
            del self._left[row]
        return [(row, self._segment(self._asked[row])) for row in done]


@dataclasses.dataclass(frozen=True)
class FakeAncestral(FakeChain):
    """One draw of the length that the stream decides."""

    def _scheduled(self, state, step):
        return dataclasses.replace(super()._scheduled(state, step), done=True)

    def work_left(self, state):
        return float(self.max_new_tokens - len(state))


def estimates(chain, jobs: list[Job], rows: int, shares: Sequence[float] = (0.5, 0.9)) -> dict[float, float]:
    """Time left by the bar over time left in truth, at some shares of a simulated run's time."""
    clock, counts = Clock(), Counts()
    progress = Progress(len(jobs), bar=Screen(clock), clock=clock)
    progress.follow(counts)
    engine = SlowEngine(rows, clock, counts)
    made: list[tuple[float, float]] = []
    step = engine.step

    def watched():
        left = progress.seconds_left()
        if left is not None:
            made.append((clock.now, left))
        return step()

    engine.step = watched
    began = clock.now
    list(Scheduler(chain, jobs, 0, True, progress).finished(engine))
    seconds = clock.now - began
    found = {}
    for share in shares:
        at, left = next(m for m in made if m[0] >= began + share * seconds)
        found[share] = left / (clock.now - at)
    return found


@pytest.mark.parametrize(("jobs", "rows"), [(400, 16), (100, 16), (60, 64)])
def test_the_time_left_is_right_within_a_factor_of_two(jobs, rows):
    """Guards: the short completions that finish first taken for all of them. Deterministic."""
    chain = FakeAncestral(4.0, 4.0, LONGEST, 1, LONGEST)
    for share, ratio in estimates(chain, [Job((i,)) for i in range(jobs)], rows).items():
        assert 0.5 < ratio < 2, (share, ratio)


def test_the_time_left_is_right_from_early_on():
    """Guards: completions that wait taken for as short as the first that finish, at a tenth of the run."""
    chain = FakeAncestral(4.0, 4.0, LONGEST, 1, LONGEST)
    for share, ratio in estimates(chain, [Job((i,)) for i in range(420)], 64, (0.1, 0.2)).items():
        assert 0.5 < ratio < 2, (share, ratio)


def test_the_time_left_of_power_sampling_is_right_within_a_factor_of_two():
    """Guards: as above, where the cost of a completion grows with the square of its length."""
    chain = FakeChain(4.0, 4.0, 192, 4, 768, accepted=0.3)
    for share, ratio in estimates(chain, [Job((i,)) for i in range(60)], 16).items():
        assert 0.5 < ratio < 2, (share, ratio)


def test_one_long_tail_is_seen_coming():
    """Guards: "left 00:00" while the one completion that runs to its limit takes longer than all the others."""
    ranked = sorted(range(400), key=lambda i: final_length(Stream.for_request(0, (i,), 0)))
    jobs = [Job((i,)) for i in [*ranked[:63], ranked[-1]]]
    chain = FakeAncestral(4.0, 4.0, LONGEST, 1, LONGEST)
    for share, ratio in estimates(chain, jobs, 64).items():
        assert 0.5 < ratio < 2, (share, ratio)


@pytest.mark.parametrize("method", ["standard", "power"])
def test_the_time_left_of_a_real_run(monkeypatch, method):
    """Guards: counts that the engine keeps otherwise than the simulation; coupled and early-rejected proposals.

    A model's own run, on a clock that counts its steps: a factor of three, where `work_left` takes a proposal
    for half a completion and coupling makes it less.
    """
    clock = Clock()
    made: list[tuple[float, float]] = []

    class Timed(lm_power.host.Engine):
        def step(self):
            clock.now += 0.01
            left = progress.seconds_left()
            if left is not None:
                made.append((clock.now, left))
            return super().step()

    monkeypatch.setattr(lm_power.host, "Engine", Timed)
    monkeypatch.setattr(lm_power.progress, "LIVE_EVERY", 0.2)
    sampler = PowerSampler(make_model("qwen2"), None, max_rows=4, eos_token_ids=(EOS,))
    jobs = [Job((5, 7, index)) for index in range(24)]
    options = {"alpha": 2.0, "block_size": 24, "mcmc_steps": 3} if method == "power" else {}
    config = SamplerConfig(method=method, max_new_tokens=72, **options)
    progress = Progress(len(jobs), bar=Screen(clock), every=0.2, clock=clock)
    began = clock.now
    assert len(list(sampler.sample(jobs, config, progress=progress))) == progress.done == 24
    for share in (0.5, 0.9):
        at, left = next(m for m in made if m[0] >= began + share * (clock.now - began))
        true = max(1.0, clock.now - at)  # the bar never says less than a second
        assert 1 / 3 < left / true < 3, (share, left, true)


def test_the_most_that_can_come_is_called_so():
    """Guards: a bound shown as an estimate while nothing has finished; 00:00 while rows run."""
    clock = Clock()
    screen = Screen(clock)
    progress = Progress(2, bar=screen, clock=clock)
    for spent in (0, 50, 100):
        clock.now += 1
        progress.show(2, lambda spent=spent: [UnderWay(spent, 1000 - spent)] * 2)
    assert screen.shown[0][2].endswith("left ?")
    assert screen.shown[-1][2].endswith("left at most 00:18")
    progress.finished(100)
    clock.now += 1
    progress.show(1, lambda: [UnderWay(150, 850)])
    assert "most" not in screen.shown[-1][2]
    clock.now += 1e4
    progress.tick()
    assert screen.shown[-1][2].endswith("left 00:01")
    progress.finished(1000)
    progress.close()
    assert screen.shown[-1][2].endswith("left 00:00")


def test_tokens_count_when_they_are_drawn_and_prompts_when_they_are_read():
    """Guards: 0 tok/s until the first segment has been settled, or while prompts are read; a mean of the whole run."""
    clock, counts = Clock(), Counts()
    progress = Progress(4, clock=clock)
    progress.follow(counts)
    progress.reading(800)
    clock.now += 4
    assert "0 tok/s, reading a prompt of 800 tokens" in progress.text()
    progress.reading(9000, prompts=64)
    assert "0 tok/s, reading 64 prompts of 9000 tokens" in progress.text()
    counts.prefilled = 800
    progress.show(1)
    assert "0 tok/s, reading prompts, 200 tok/s" in progress.text()
    for _ in range(100):
        clock.now += 0.5
        counts.decoded += 20
        text = progress.text()
    assert "40 tok/s" in text and "reading" not in text
    for _ in range(100):
        clock.now += 0.5
        counts.decoded += 5
        text = progress.text()
    assert "10 tok/s" in text


def test_an_engine_elsewhere_is_waited_for():
    """Guards: minutes of "reading prompts" while a server has long begun to draw what it will send."""
    progress = Progress(20)
    progress.follow(Traffic())
    progress.reading(1915, prompts=20)
    assert "0 tok/s, waiting for answers to 20 prompts of 1915 tokens" in progress.text()


def test_acceptance_and_changes():
    """Guards: an extension counted as a proposal; a proposal that equals the completion counted as a change."""
    progress = Progress(1)
    progress.settled(Info(kept=True), 7)
    for accepted, changed in ((True, True), (True, False), (True, False), (False, False)):
        progress.settled(Info(accepted, Step(1, 0, 5, accepted, changed)), 5)
    assert progress.tokens == 27 and "accepted 75%, changed 25%, left" in progress.text()


def test_the_bar_moves_while_the_run_is_busy(monkeypatch):
    """Guards: a bar that stands still during a long forward pass, and a thread that outlives its run."""
    screen = Screen()
    progress = Progress(3, bar=screen, every=0.02)
    progress.start()
    progress.follow(counts := Counts())
    deadline = time.monotonic() + 60
    while len(screen.shown) < 3 and time.monotonic() < deadline:
        counts.decoded += 1
        time.sleep(0.01)
    progress.close()
    shown = len(screen.shown)
    assert shown >= 3 and LIVE_EVERY <= 2
    assert not any(thread.name == "lm_power progress" for thread in threading.enumerate())


def test_a_run_that_fails_leaves_no_thread():
    """Guards: a ticker that goes on writing after an exception."""
    with pytest.raises(KeyError), progress_bar(3, True):
        raise KeyError
    assert not any(thread.name == "lm_power progress" for thread in threading.enumerate())


def test_a_log_file_gets_few_lines(capsys):
    """Guards: thousands of lines, or carriage returns, where stderr is a file; and none at all."""
    with progress_bar(1000, True, done=10, title="Sampling, process 1 of 2") as progress:
        for _ in range(500):
            progress.finished(3)
            progress.show(5, lambda: [UnderWay(3, 5)] * 5)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3 and "\r" not in "".join(lines)
    assert lines[-1].startswith("Sampling, process 1 of 2: 51% 510/1000 [00:0")


def test_nothing_is_shown_where_nothing_is_wanted(capsys):
    """Guards: a thread and a bar for counters alone."""
    with progress_bar(3, False) as progress:
        progress.finished(1)
        progress.show(2)
        assert progress.done == 1
        with progress_bar(99, progress) as same:
            assert same is progress
    assert capsys.readouterr().err == ""


def test_what_is_left_by_hand():
    """Guards: quantiles of all completions for those that have already outlived the short ones."""
    costs = [10, 20, 30, 40]
    assert longest_left([UnderWay(25, 1000)], 0, costs) == 40 - 25  # the middle of [30, 40]
    assert longest_left([UnderWay(35, 2)], 0, costs) == 2  # never more than its chain says
    assert longest_left([UnderWay(60, 1000)], 0, costs) == 60  # as much again
    assert longest_left([UnderWay(60, 1000)], 0, []) == 1000
    assert longest_left([UnderWay(25, 1000)], 1, costs) == 15 + 30  # the middle of [10, 20, 30, 40, 40]
    assert longest_left([UnderWay(60, 1000)] * 3, 1, [10, 20]) == 60 + 120  # of [10, 20, 120, 120, 120]
    many = longest_left([UnderWay(0, 1000)] * 17, 10_000, costs)
    assert many == pytest.approx(10_000 * 25 / 17, rel=0.02)
