"""Which lane of which job decodes where: many jobs on one engine, and idle rows for those with the most work ahead."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lm_power.chains import Algorithm, Info, Stream
from lm_power.decoding import Decoder
from lm_power.jobs import ActiveJob, Job, Round
from lm_power.progress import Progress, UnderWay


class Scheduler:
    """Runs the lanes of many jobs on the rows of one engine.

    A lane's settled completion lies in a row of its own while the job needs it: a lane that has no part in a round
    gives its row up, and a lane that has lost its row is prefilled again when its turn comes. A row that falls idle
    goes to the moves that wait for one, then to the next job. A job of more lanes than there are rows takes turns:
    where every row is held by a lane that waits for others, one is cleared.

    When nothing is waiting, idle rows **prefetch** for jobs of one lane: after a rejection the state is unchanged and
    random numbers are keyed by stage and step, so the proposals of the next steps are known before the verdict on this
    one, and are decoded beside it; they are judged in their turn, and dropped when one before them is accepted. The
    completion is the same, token for token. With a share ρ of rejections, d proposals side by side do the work of
    `1 + ρ + … + ρ^(d−1)` one after another; each idle row goes to the job that would by that count finish last.

    An engine may fail at any call. A job moves on only once the engine has done its part, so what has been settled
    is whole at every moment, and `finished` can be called again with another engine, of as many rows as one likes:
    each job under way is put on rows of it by its prompt and settled completions, and makes its next moves from
    the same random numbers.

    Args:
        algorithm: draws a completion.
        jobs: what to draw; started in the order of `starting_order`.
        seed: of all random streams.
        prefetch: whether idle rows work ahead.
        progress: told of every round and completion.
    """

    WORTHWHILE = 0.05  # least probability that what is decoded ahead is used: below it the copying costs more

    def __init__(
        self, algorithm: Algorithm[Any], jobs: Sequence[Job], seed: int, prefetch: bool, progress: Progress
    ) -> None:
        self.algorithm, self.progress = algorithm, progress
        self.prefetch = prefetch and algorithm.lanes == 1
        streams = [Stream.for_request(seed, job.prompt_ids, job.repeat) for job in jobs]
        self._waiting = deque(
            ActiveJob(i, jobs[i].prompt_ids, streams[i], algorithm.start()) for i in starting_order(jobs)
        )
        self._idle: list[int] = []
        self._running: dict[int, ActiveJob] = {}  # by job
        self._decoding: dict[int, tuple[ActiveJob, Round, int]] = {}  # by row: whose move of which round it decodes
        self._queue: deque[tuple[ActiveJob, Round, int]] = deque()  # moves that wait for a row
        self._loaded: list[int] = []  # tokens of each prompt handed to the engine since its last step
        self._decoded, self._rejected = 2, 1  # as if one of two had been rejected: a share within (0, 1)

    def finished(self, engine: Decoder) -> Iterator[ActiveJob]:
        """The jobs, as they finish; those that an earlier call has handed out excepted."""
        self.engine = engine
        self._idle = list(reversed(range(engine.rows)))
        try:
            yield from self._finished()
        finally:
            self._leave_engine()

    def _finished(self) -> Iterator[ActiveJob]:
        while self._waiting or self._running:
            starts = self._waiting and self._has_room()
            touched = [self._start(self._waiting.popleft())] if starts else self._step()
            for job in touched:
                if self._advance(job):
                    del self._running[job.index]
                    self._idle.extend(job.rows.values())
                    job.rows.clear()
                    self.progress.finished(job.decoded // self.algorithm.lanes)
                    yield job
            if self.prefetch and touched and not self._waiting and not self._queue:
                # Where no row is idle, a job may still have one of its own free: its home.
                self._work_ahead(self._running.values() if self._idle else touched)
            self.progress.show(len(self._running), self._under_way)

    def _has_room(self) -> bool:
        """Whether a job can start: on as many idle rows as it has lanes, unless it has to take turns anyway."""
        if self._queue:
            return False
        return len(self._idle) >= min(self.algorithm.lanes, self.engine.rows) or not self._running

    def _start(self, job: ActiveJob) -> ActiveJob:
        if job.started is None:
            job.started = time.perf_counter()
        self._running[job.index] = job
        return job

    def _step(self) -> list[ActiveJob]:
        """Give waiting moves a row, and let all busy rows decode; the jobs that have a segment by it."""
        while self._queue:
            if not self._idle:
                if self._decoding:
                    break  # one of these rows will be free
                self._clear_a_row()
            self._place(*self._queue.popleft())
        if self._loaded:  # an engine may read them now, many at a time
            self.progress.reading(sum(self._loaded), len(self._loaded))
            self._loaded = []
        touched = {}
        for row, segment in self.engine.step():
            job, flight, place = self._decoding.pop(row)
            flight.take(place, segment)
            touched[job.index] = job
        return list(touched.values())

    def _under_way(self) -> list[UnderWay]:
        """What each job has cost per lane, and may still cost: with what its first round in flight has drawn so far."""
        ways, lanes = [], self.algorithm.lanes
        for job in self._running.values():
            rows = job.rounds[0].rows if job.rounds else []
            drawn = sum(self.engine.drawn(row) for row in rows if row is not None)
            left = self.algorithm.work_left(job.state) - drawn / lanes
            ways.append(UnderWay((job.decoded + drawn) // lanes, max(0.0, left)))
        return ways

    def _leave_engine(self) -> None:
        """Give up what is in flight; the jobs under way wait for rows again, the longest first."""
        for job in self._running.values():
            for flight in job.rounds:
                job.dropped += sum(self.engine.drawn(row) for row in flight.rows if row is not None)
            job.rounds.clear()
            job.rows.clear()
        under_way = sorted(self._running.values(), key=lambda job: self.algorithm.work_left(job.state))
        self._waiting.extendleft(under_way)  # each before the last: the longest comes first
        self._running.clear()
        self._decoding.clear()
        self._queue.clear()
        del self.engine

    def _advance(self, job: ActiveJob) -> bool:
        """Settle all rounds whose outcome is known, and make the next; True when the job is done."""
        while self.algorithm.result(job.state) is None:
            if not job.rounds:
                self._begin(job)
            flight = job.rounds[0]
            if not flight.decoded():
                return False
            after, infos = self.algorithm.advance(job.state, flight.moves, flight.segments, job.stream)
            for place, info in enumerate(infos):
                self._settle(job, flight, place, info)
            job.rounds.popleft()
            job.record(flight, after, infos)
            for info, segment in zip(infos, flight.segments, strict=True):
                self.progress.settled(info, 0 if segment is None else len(segment.tokens))
        return True

    def _settle(self, job: ActiveJob, flight: Round, place: int, info: Info) -> None:
        """Keep or undo, in the engine, what a move of the job's first round has decoded."""
        move, row = flight.moves[place], flight.rows[place]
        if move.request is None:
            return  # nothing changes, whatever the verdict
        if self.prefetch:
            self._decoded += 1
            self._rejected += not info.kept
            if info.kept:
                self._drop_ahead(job)
        if row is None:
            return  # its row has been given up; what the lane holds is in the state
        if info.kept:
            self.engine.commit(row)
        else:
            self.engine.rollback(row)
        home = job.rows[move.lane]
        if row != home:  # decoded ahead
            if info.kept:
                job.rows[move.lane], row = row, home
            self._idle.append(row)

    def _begin(self, job: ActiveJob) -> None:
        """Make the round that the job's settled state asks for, each move in its lane's row."""
        flight = Round(job.state, self.algorithm.propose(job.state, job.stream), ahead=False)
        job.rounds.append(flight)
        if self.algorithm.lanes > 1:  # the only lane has part in every round
            taking_part = {move.lane for move in flight.moves} | {move.source for move in flight.moves}
            for lane in [lane for lane in job.rows if lane not in taking_part]:
                self._idle.append(job.rows.pop(lane))
        for place, move in enumerate(flight.moves):
            if move.request is None:
                continue
            if self._idle or move.lane in job.rows:
                self._place(job, flight, place)
            else:
                self._queue.append((job, flight, place))

    def _place(self, job: ActiveJob, flight: Round, place: int) -> None:
        """Let a move decode, in its lane's row or an idle one that then is its lane's."""
        move = flight.moves[place]
        assert move.request is not None
        row = job.rows.get(move.lane)
        source = None if move.source is None else job.rows.get(move.source)
        fresh = row is None
        if row is None:
            row = job.rows[move.lane] = self._idle.pop()
        if source is not None:
            self.engine.copy(source, row, move.request.keep)
        elif fresh or move.source is not None:
            self._loaded.append(len(job.prompt_ids))
            self.engine.load(row, job.prompt_ids, self.algorithm.held(flight.state)[move.lane].tolist())
        self._submit(job, flight, place, row)

    def _submit(self, job: ActiveJob, flight: Round, place: int, row: int) -> None:
        request = flight.moves[place].request
        assert request is not None
        self.engine.submit(row, request)
        flight.rows[place] = row
        self._decoding[row] = job, flight, place

    def _clear_a_row(self) -> None:
        """Take a row from a lane that waits for others: what it holds is in its job's state, or in its round."""
        job = next(job for job in self._running.values() if job.rows)
        lane, row = next(iter(job.rows.items()))
        del job.rows[lane]
        for flight in job.rounds:
            for place, taken in enumerate(flight.rows):
                if taken == row:
                    self.engine.rollback(row)
                    flight.rows[place] = None
        self._idle.append(row)

    def _work_ahead(self, jobs: Iterable[ActiveJob]) -> None:
        """Give idle rows to those of the jobs that would finish last."""
        rejected, cost = self._rejected / self._decoded, self.engine.row_cost
        # Steps settled in the time of a proposal, of all jobs; and the rows that are busy with them.
        settled = sum((1 - rejected ** job.decoding()) / (1 - rejected) for job in self._running.values())
        busy = len(self._decoding)

        def left(job: ActiveJob) -> float:
            return self.algorithm.work_left(job.state) * (1 - rejected) / (1 - rejected ** job.decoding())

        queue = [(-left(job), job.index, job) for job in jobs if job.decoding()]
        heapq.heapify(queue)
        while queue:
            _, _, job = heapq.heappop(queue)
            gain = rejected ** job.decoding()  # the probability that what is decoded ahead is used
            if not (self._idle or job.home_is_free()) or gain < self.WORTHWHILE:
                continue
            if gain * (1 + cost * busy) <= cost * settled:
                continue  # the row would slow the others down by more than it adds
            last = job.rounds[-1]
            state = self.algorithm.if_rejected(last.state, last.moves)
            if state is None or self.algorithm.result(state) is not None:
                continue
            self._begin_ahead(job, state)
            settled += gain
            busy += 1
            heapq.heappush(queue, (-left(job), job.index, job))

    def _begin_ahead(self, job: ActiveJob, state: Any) -> None:
        """Make the move that a rejection would lead to: at home, or in an idle row where home is in use."""
        flight = Round(state, self.algorithm.propose(state, job.stream), ahead=True)
        job.rounds.append(flight)
        (move,) = flight.moves
        if move.request is None:
            return
        row = job.rows[move.lane]
        if not job.home_is_free():
            row = self._idle.pop()
            self.engine.copy(job.rows[move.lane], row, move.request.keep)
        self._submit(job, flight, 0, row)

    def _drop_ahead(self, job: ActiveJob) -> None:
        """Give up what was decoded ahead: all rounds in flight but the first."""
        while len(job.rounds) > 1:
            (row,) = job.rounds[-1].rows
            dropped = 0 if row is None else self.engine.rollback(row)
            job.rounds.pop()
            job.dropped += dropped
            if row is not None:
                self._decoding.pop(row, None)
                if row != job.rows[0]:
                    self._idle.append(row)


def starting_order(jobs: Sequence[Job]) -> list[int]:
    """Indices of the jobs: longest expected work first, so that no long job is left over at the end.

    The length of a completion is not known before; a longer prompt, which costs more per step and tends to ask for
    more, goes first. Equal prompts are neighbours and share one prefill.
    """
    return sorted(range(len(jobs)), key=lambda i: (-len(jobs[i].prompt_ids), jobs[i].prompt_ids, jobs[i].repeat))
