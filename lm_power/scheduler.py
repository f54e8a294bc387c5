"""Decides which lane of which job decodes in which row; idle rows help the jobs with the most work ahead."""

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

    Each lane keeps its settled completion in a row while the job needs it. A lane that takes no part in a round gives
    up its row, and a lane without a row is prefilled again when its turn comes. A row that becomes idle goes to the
    moves that wait for one, then to the next job. The lanes of a job with more lanes than there are rows take turns: if
    every row is held by a lane that waits for others, one of them is cleared.

    When nothing is waiting, idle rows **prefetch** for jobs with one lane. After a rejection the state is unchanged,
    and random numbers are keyed by stage and step, so the proposals of the next steps are known before the verdict on
    this one and can be decoded beside it. They are judged in order, and dropped once an earlier one is accepted. The
    completion is the same, token for token. If a share ρ of proposals is rejected, d proposals side by side do the work
    of `1 + ρ + … + ρ^(d−1)` in sequence; each idle row goes to the job that would finish last by that count.

    An engine may fail at any call. A job moves on only after the engine has done its part, so that its settled state is
    consistent at every moment. `finished` can therefore be called again with another engine, with any number of rows.
    Each job under way is loaded into it from its prompt and settled completions, and makes its next moves from the same
    random numbers.

    Args:
        algorithm: draws a completion.
        jobs: what to draw; they are started in the order of `starting_order`.
        seed: the seed of all random streams.
        prefetch: whether idle rows work ahead.
        progress: is told of every round and completion.
    """

    WORTHWHILE = 0.05  # least probability that a prefetched proposal is used; below it, copying the row costs more

    ROUNDS_AHEAD = 64  # at most; steps that keep the completion need no row, and would pile up without end

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
        self._decoding: dict[int, tuple[ActiveJob, Round, int]] = {}  # by row: the job, round and move that it decodes
        self._queue: deque[tuple[ActiveJob, Round, int]] = deque()  # moves that wait for a row
        self._loaded: list[int] = []  # tokens of each prompt handed to the engine since its last step
        self._decoded, self._rejected = 2, 1  # starts as if one of two had been rejected, to keep the share in (0, 1)

    def finished(self, engine: Decoder) -> Iterator[ActiveJob]:
        """The jobs as they finish, except those that an earlier call has already handed out."""
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
                # Even if no row is idle, a job's own row, its home, may be free.
                self._work_ahead(self._running.values() if self._idle else touched)
            self.progress.show(len(self._running), self._under_way)

    def _has_room(self) -> bool:
        """Whether a job can start: there is an idle row per lane, or it has more lanes than rows and takes turns."""
        if self._queue:
            return False
        return len(self._idle) >= min(self.algorithm.lanes, self.engine.rows) or not self._running

    def _start(self, job: ActiveJob) -> ActiveJob:
        if job.started is None:
            job.started = time.perf_counter()
        self._running[job.index] = job
        return job

    def _step(self) -> list[ActiveJob]:
        """Give waiting moves a row, let all busy rows decode, and return the jobs that got a segment."""
        while self._queue:
            if not self._idle:
                if self._decoding:
                    break  # one of these rows will be free
                self._clear_a_row()
            self._place(*self._queue.popleft())
        if self._loaded:  # the engine may read them in this step, many at a time
            self.progress.reading(sum(self._loaded), len(self._loaded))
            self._loaded = []
        touched = {}
        for row, segment in self.engine.step():
            job, flight, place = self._decoding.pop(row)
            flight.segments[place] = segment
            touched[job.index] = job
        return list(touched.values())

    def _under_way(self) -> list[UnderWay]:
        """What each job has cost per lane, including its first round in flight, and may still cost."""
        ways, lanes = [], self.algorithm.lanes
        for job in self._running.values():
            rows = job.rounds[0].rows if job.rounds else []
            decoded = sum(self.engine.tokens_decoded(row) for row in rows if row is not None)
            left = self.algorithm.work_left(job.state) - decoded / lanes
            ways.append(UnderWay((job.decoded + decoded) // lanes, max(0.0, left)))
        return ways

    def _leave_engine(self) -> None:
        """Drop what is in flight, and let the jobs under way wait for rows again, the longest first."""
        for job in self._running.values():
            for flight in job.rounds:
                job.dropped += sum(self.engine.tokens_decoded(row) for row in flight.rows if row is not None)
            job.rounds.clear()
            job.rows.clear()
        under_way = sorted(self._running.values(), key=lambda job: self.algorithm.work_left(job.state))
        self._waiting.extendleft(under_way)  # it reverses the order, so that the longest comes first
        self._running.clear()
        self._decoding.clear()
        self._queue.clear()
        del self.engine

    def _advance(self, job: ActiveJob) -> bool:
        """Settle all rounds whose outcome is known, and make the next one; True when the job is done."""
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
        """Commit or roll back, in the engine, what a move of the job's first round has decoded."""
        move, row = flight.moves[place], flight.rows[place]
        if move.request is None:
            return  # nothing was decoded
        if self.prefetch:
            self._decoded += 1
            self._rejected += not info.kept
            if info.kept:
                self._drop_ahead(job)
        if row is None:
            return  # its row was given up; the state has what the lane holds
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
        """Start the round that the job's settled state asks for, each move in its lane's row."""
        flight = Round(job.state, self.algorithm.propose(job.state, job.stream), ahead=False)
        job.rounds.append(flight)
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
        """Start decoding a move in its lane's row, or in an idle row, which then becomes its lane's."""
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
        """Take a row from a lane that waits for others; its content is in its job's state or round."""
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
        # Over all jobs: the steps settled in the time of one proposal, and the rows that are busy with them.
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
            if len(job.rounds) > self.ROUNDS_AHEAD:
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
        """Start the move that a rejection would lead to, in the job's own row or, if that is in use, in an idle one."""
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
        """Drop what was decoded ahead: all rounds in flight except the first."""
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
    """Indices of the jobs, longest expected work first, so that no long job is left over at the end.

    The length of a completion is not known in advance. Longer prompts go first, because they cost more per step and
    tend to ask for more. Equal prompts are neighbours and share one prefill.
    """
    return sorted(range(len(jobs)), key=lambda i: (-len(jobs[i].prompt_ids), jobs[i].prompt_ids, jobs[i].repeat))
