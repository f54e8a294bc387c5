"""What `benchmark.py` measures of a contender, its line in the table, and what a run on 500 problems would take."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from bandwidth import Traffic, synchronise
from transformers import PreTrainedModel

from lm_power.engine import Counters
from lm_power.progress import Progress

HEADINGS = (
    "completions",
    "wall, s",
    "CPU, s",
    "wall ratio to C",
    "CPU ratio to C",
    "tokens decoded",
    "tokens/s",
    "a completion",
    "forward",
    "of bandwidth bound",
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a contender did.

    Attributes:
        completions: completions finished; 0 where it finishes none of p^alpha.
        tokens: tokens decoded.
        steps: forward passes over the rows; None where that is not known.
        attended: positions whose keys and values they had to read; None where that is not known.
    """

    completions: int
    tokens: int
    steps: int | None = None
    attended: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a contender did, and took.

    Attributes:
        work: what it did.
        wall, cpu: seconds of wall-clock and of CPU.
        forward: seconds of wall-clock in the model's forward passes; None where they cannot be seen.
    """

    work: Work
    wall: float
    cpu: float
    forward: float | None


class Stopwatch:
    """Measures a contender, and how much of its time the model's forward passes take.

    Args:
        model: whose forward passes.
        sees_forward: whether they can be timed: on a GPU one returns before it has been computed, and one that is
            captured or compiled does not run as a module.
    """

    def __init__(self, model: PreTrainedModel, sees_forward: bool = True) -> None:
        self._device, self._sees_forward = model.device, sees_forward
        self._inside = self._wall = self._cpu = 0.0
        if sees_forward:
            model.register_forward_pre_hook(lambda *_: self._add(-1))
            model.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        self._inside += sign * time.perf_counter()

    def start(self) -> None:
        """From here."""
        synchronise(self._device)
        self._inside, self._wall, self._cpu = 0.0, time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within is not counted."""
        synchronise(self._device)
        inside, wall, cpu = self._inside, time.perf_counter(), time.process_time()
        yield
        synchronise(self._device)
        self._inside = inside
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu

    def stop(self, work: Work) -> Result:
        """To here, for `work`."""
        synchronise(self._device)
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Result(work, wall, cpu, self._inside if self._sees_forward else None)


class Pace(Progress):
    """Progress that notes how far the run was when the last job started: until then, all rows were busy.

    Args:
        jobs: of the run.
        rows: of its batch.
        counters: of its engine.
        bar: where to show it.
    """

    def __init__(
        self, jobs: int, rows: int, counters: Counters, bar: object, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(jobs, bar=bar, clock=clock)
        self._last_start = jobs - rows
        self._counters, self._decoded, self._begun = counters, counters.decoded, clock()
        self.rate: float | None = None  # tokens per second while all rows were busy

    def finished(self, cost: int | None = None) -> None:
        """A completion is finished; where jobs wait, its row starts the next."""
        super().finished(cost)
        if self.done == self._last_start:
            self.rate = (self._counters.decoded - self._decoded) / (self._clock() - self._begun)


def medians(results: Sequence[Result]) -> Result:
    """Seconds are medians; the work is that of the last, to which the others' differ little or not at all."""
    wall, cpu = (statistics.median(getattr(r, name) for r in results) for name in ("wall", "cpu"))
    inside = [r.forward for r in results if r.forward is not None]
    return Result(results[-1].work, wall, cpu, statistics.median(inside) if inside else None)


def line(name: str, result: Result, reference: Result | None, traffic: Traffic) -> str:
    """A contender's line; ratios are a completion's where both finish some, and else the whole run's."""
    work, ratios = result.work, ["", ""]
    if reference is not None and name[0] != "F":
        share = reference.work.completions / work.completions if work.completions else 1.0
        ratios = [f"{share * result.wall / reference.wall:.2f}", f"{share * result.cpu / reference.cpu:.2f}"]
    bound = ""
    if work.steps is not None and work.attended is not None:
        bound = f"{traffic.seconds(work.steps, work.attended) / result.wall:.1%}"
    cells = [
        f"{work.completions}" if work.completions else "",
        f"{result.wall:.1f}",
        f"{result.cpu:.1f}",
        *ratios,
        f"{work.tokens}",
        f"{work.tokens / result.wall:.0f}",
        f"{work.tokens / work.completions:.0f}" if work.completions else "",
        "–" if result.forward is None else f"{result.forward / result.wall:.0%}",
        bound,
    ]
    return f"| {name} | {' | '.join(cells)} |"


def print_table(results: dict[str, Result], traffic: Traffic) -> None:
    """In Markdown, contenders in alphabetical order."""
    print("| |", " | ".join(HEADINGS), "|")
    print(f"|---|{'---:|' * len(HEADINGS)}")
    reference = next((result for name, result in results.items() if name[0] == "C"), None)
    for name in sorted(results):
        print(line(name, results[name], reference, traffic))


def time_of(problems: int, run: Result, needed: float, rows: int, rate: float | None) -> str:
    """Minutes for so many completions, measured or projected from fewer or more of them, and how.

    Args:
        problems: completions wanted.
        run: a run on some of them.
        needed: tokens decoded for one completion, those dropped not counted: none are while jobs wait.
        rows: of its batch.
        rate: tokens per second while all rows were busy; None if they never were.
    """
    completions = run.work.completions
    if completions == problems:
        return f"{run.wall / 60:.2f} min, measured"
    if rate is None:
        return (
            f"{run.wall / 60 * problems / completions:.2f} min, projected in proportion to this run, in which no job "
            f"waited for one of the {rows} rows: more jobs keep the rows busier"
        )
    more = problems - completions
    return (
        f"{(run.wall + more * needed / rate) / 60:.2f} min, projected: this run's wall time, its tail included, and "
        f"{more} × {needed:.0f} tokens at the {rate:.0f} tokens/s of the time in which all {rows} rows were busy"
    )
