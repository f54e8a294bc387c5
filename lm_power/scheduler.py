"""Which row decodes what: many chains on one engine, and idle rows for those with the most work ahead."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from lm_power.chains import Chain, Info, State, Stream
from lm_power.decoding import Decoder
from lm_power.progress import Progress, UnderWay
from lm_power.run import Flight, Run


@dataclasses.dataclass(frozen=True)
class Job:
    """One completion to draw.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        repeat: which completion of this prompt it is; 0, 1, … have streams of their own.
    """

    prompt_ids: tuple[int, ...]
    repeat: int = 0


class Scheduler:
    """Runs the chains of many jobs on the rows of one engine.

    A chain's current completion lies in its home row; a row that falls idle starts the next job at once. When
    no job is waiting, idle rows **prefetch**: after a rejection the state is unchanged and random numbers are
    keyed by stage and step, so the proposals of a chain's next steps are known before the verdict on this one,
    and are decoded beside it; they are judged in their turn, and dropped when one before them is accepted. The
    chain is the same, token for token. With a share ρ of rejections, d proposals side by side do the work of
    `1 + ρ + … + ρ^(d−1)` one after another; each idle row goes to the chain that would by that count finish last.

    An engine may fail at any call. A chain moves on only once the engine has done its part, so what has been settled
    is whole at every moment, and `finished` can be called again with another engine, of as many rows as one likes:
    each chain under way is put on a row of it by its prompt and settled completion, and makes its next moves from
    the same random numbers.

    Args:
        chain: the algorithm.
        jobs: what to draw; started in the order of `starting_order`.
        seed: of all random streams.
        prefetch: whether idle rows work ahead.
        progress: told of every move and completion.
    """

    WORTHWHILE = 0.05  # least probability that what is decoded ahead is used: below it the copying costs more

    def __init__(self, chain: Chain, jobs: Sequence[Job], seed: int, prefetch: bool, progress: Progress) -> None:
        self.chain, self.prefetch, self.progress = chain, prefetch, progress
        streams = [Stream.for_request(seed, job.prompt_ids, job.repeat) for job in jobs]
        self._waiting = deque(Run(i, jobs[i].prompt_ids, streams[i]) for i in starting_order(jobs))
        self._idle: list[int] = []
        self._running: dict[int, Run] = {}  # by job
        self._decoding: dict[int, Run] = {}  # by row
        self._decoded, self._rejected = 2, 1  # as if one of two had been rejected: a share within (0, 1)

    def finished(self, engine: Decoder) -> Iterator[Run]:
        """The jobs' runs, as they finish; those that an earlier call has handed out excepted."""
        self.engine = engine
        self._idle = list(reversed(range(engine.rows)))
        try:
            yield from self._finished()
        finally:
            self._leave_engine()

    def _finished(self) -> Iterator[Run]:
        while self._waiting or self._running:
            if self._waiting and self._idle:
                touched = [self._start(self._waiting.popleft(), self._idle.pop())]
            else:
                touched = self._step()
            for run in touched:
                if self._advance(run):
                    del self._running[run.index]
                    self._idle.append(run.home)
                    self.progress.finished(run.decoded)
                    yield run
            if self.prefetch and touched and not self._waiting:
                # Where no row is idle, a chain may still have one of its own free: its home.
                self._work_ahead(self._running.values() if self._idle else touched)
            self.progress.show(len(self._running), self._under_way)

    def _start(self, run: Run, row: int) -> Run:
        """Put a run on a row, with what it has settled on an earlier engine."""
        run.home = row
        if run.started is None:
            run.started = time.perf_counter()
        self._running[run.index] = run
        self.progress.reading(len(run.prompt_ids) + len(run.state))
        self.engine.load(row, run.prompt_ids, run.state.tokens.tolist())
        return run

    def _step(self) -> list[Run]:
        """Let all busy rows decode; the runs that have a segment by it."""
        touched = {}
        for row, segment in self.engine.step():
            run = self._decoding.pop(row)
            run.flight_on(row).segment = segment
            touched[run.index] = run
        return list(touched.values())

    def _under_way(self) -> list[UnderWay]:
        """What each run has cost, and may still cost: with what its first move in flight has drawn so far."""
        ways = []
        for run in self._running.values():
            row = run.flights[0].row if run.flights else None
            drawn = 0 if row is None else self.engine.drawn(row)
            ways.append(UnderWay(run.decoded + drawn, max(0.0, self.chain.work_left(run.state) - drawn)))
        return ways

    def _leave_engine(self) -> None:
        """Give up what is in flight; the chains under way wait for a row again, the longest first."""
        for run in self._running.values():
            for flight in run.flights:
                if flight.row is not None:
                    run.dropped += self.engine.drawn(flight.row)
            run.flights.clear()
        under_way = sorted(self._running.values(), key=lambda run: self.chain.work_left(run.state))
        self._waiting.extendleft(under_way)  # each before the last: the longest comes first
        self._running.clear()
        self._decoding.clear()
        del self.engine

    def _advance(self, run: Run) -> bool:
        """Settle all moves whose outcome is known, and make the next; True when the chain is done."""
        while not run.state.done:
            if not run.flights:
                self._take_off(run, run.state)
            flight = run.flights[0]
            if flight.row is not None and flight.segment is None:
                return False
            after, info = self.chain.advance(run.state, flight.move, flight.segment)
            if flight.row is not None:  # or nothing changes, whatever the verdict
                self._settle(run, flight, info)
            run.flights.popleft()
            run.land(flight, after, info)
            self.progress.settled(info, 0 if flight.segment is None else len(flight.segment.tokens))
        return True

    def _settle(self, run: Run, flight: Flight, info: Info) -> None:
        """Keep or undo, in the engine, what `flight` has decoded: the first of the run's moves."""
        assert flight.row is not None
        self._decoded += info.proposed
        self._rejected += info.proposed and not info.accepted
        if info.accepted:
            self._drop_ahead(run)
        if info.accepted:
            self.engine.commit(flight.row)
        else:
            self.engine.rollback(flight.row)
        if flight.row != run.home:
            if info.accepted:
                flight.row, run.home = run.home, flight.row
            self._idle.append(flight.row)

    def _take_off(self, run: Run, state: State) -> None:
        """Make the chain's move from `state`: at home, or in an idle row where home is in use."""
        move, row = self.chain.propose(state, run.stream), None
        if move.request is not None:
            row = run.home
            if not run.home_is_free():
                row = self._idle.pop()
                self.engine.copy(run.home, row, move.request.keep)
            self.engine.submit(row, move.request)
            self._decoding[row] = run
        run.flights.append(Flight(state, move, row, ahead=bool(run.flights)))

    def _work_ahead(self, runs: Iterable[Run]) -> None:
        """Give idle rows to those of the chains that would finish last."""
        rejected = self._rejected / self._decoded

        def left(run: Run) -> float:
            return self.chain.work_left(run.state) * (1 - rejected) / (1 - rejected ** run.decoding())

        queue = [(-left(run), run.index, run) for run in runs if run.flights]
        heapq.heapify(queue)
        while queue:
            _, _, run = heapq.heappop(queue)
            last = run.flights[-1]
            state = self.chain.if_rejected(last.state, last.move)
            if state is None or state.done or not (self._idle or run.home_is_free()):
                continue
            if rejected ** run.decoding() < self.WORTHWHILE:
                continue
            self._take_off(run, state)
            heapq.heappush(queue, (-left(run), run.index, run))

    def _drop_ahead(self, run: Run) -> None:
        """Give up what was decoded ahead: all moves in flight but the first."""
        while len(run.flights) > 1:
            row = run.flights[-1].row
            dropped = 0 if row is None else self.engine.rollback(row)
            run.flights.pop()
            run.dropped += dropped
            if row is not None:
                self._decoding.pop(row, None)
                if row != run.home:
                    self._idle.append(row)


def starting_order(jobs: Sequence[Job]) -> list[int]:
    """Indices of the jobs: longest expected work first, so that no long chain is left over at the end.

    The length of a completion is not known before; a longer prompt, which costs more a step and tends to ask for
    more, goes first. Equal prompts are neighbours and share one prefill.
    """
    return sorted(range(len(jobs)), key=lambda i: (-len(jobs[i].prompt_ids), jobs[i].prompt_ids, jobs[i].repeat))
