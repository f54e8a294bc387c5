"""One token in every busy row, as a function of tensors at fixed addresses, so that a CUDA graph can record it."""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_power.decoding import Bound, Measures, Request
from lm_power.engine.cuda_graphs import CudaGraphs
from lm_power.engine.kv_cache import RowCache
from lm_power.engine.paired import AnyBackend
from lm_power.engine.transfer import Fetch, send
from lm_power.target import Drawn, draw_next, log_probability_of, measure_next

NO_BOUND = Bound(0.0, 0.0, 0.0, -np.inf)
NO_TOKEN = -1
NO_MEASURES = Measures()


@dataclasses.dataclass(frozen=True)
class RowState:
    """The state of the rows on the device, as lines of one [fields, rows] float64 tensor, exact for ids and lengths.

    Attributes:
        busy: 1 or 0.
        prompt: tokens of the prompt.
        length: tokens of the completion so far.
        feed: the token that the model reads next: the last one of the completion, or of the prompt.
        horizon, beta: as in `Request`.
        excluded: the token that the next draw excludes, or `NO_TOKEN`.
        log_p, log_q, log_length, value: as in `Bound`.
        weight: the sum in `Bound`, over the new tokens.
    """

    busy: Tensor
    prompt: Tensor
    length: Tensor
    feed: Tensor
    horizon: Tensor
    beta: Tensor
    excluded: Tensor
    log_p: Tensor
    log_q: Tensor
    log_length: Tensor
    value: Tensor
    weight: Tensor


FIELDS = len(dataclasses.fields(RowState))


class Status(enum.IntEnum):
    """What a step has done in a row."""

    IDLE = 0
    RUNNING = 1
    PAUSED = 2  # at an EOS id, the horizon, or a token that could complete a stop string, for the host to decide
    BELOW = 3  # paused, because it fell below its bound


class DecodeStep:
    """Draws one token in every busy row, and pauses the rows that may have ended.

    A step runs on the first `width` places of the cache. The state of a row is stored at the row's place, and moves
    with it.

    Everything that a step reads and writes is on the device: the rows' state, their uniforms, the keys and values. The
    host posts changes to single rows, which the next launch applies. It may launch a step before it has read the result
    of the last one. Nothing in a step depends on Python values that change, or asks the device for a value, so the
    whole step can be recorded and replayed.

    Args:
        backend: runs the model, or two of them if another model proposes.
        cache: keys and values of the rows.
        max_new_tokens: longest completion, tokens.
        pauses: [vocabulary] bool, tokens that may end a completion.
        measures: what else to compute from each next-token distribution.
    """

    def __init__(
        self,
        backend: AnyBackend,
        cache: RowCache,
        max_new_tokens: int,
        pauses: NDArray[np.bool_],
        measures: Measures = NO_MEASURES,
    ) -> None:
        self.backend, self.cache = backend, cache
        self.device = backend.input_device
        self._table = torch.zeros((FIELDS, cache.rows), dtype=torch.float64, device=self.device)
        self._busy = self._table[0]
        # One more column than can be drawn: an idle row of the longest length still reads a uniform there.
        self._uniforms = torch.zeros((cache.rows, max_new_tokens + 1), dtype=torch.float64, device=self.device)
        self._pauses = torch.from_numpy(pauses).to(self.device)
        self.measures = measures
        extra = len(measures.exponents) + measures.entropy
        self._result = torch.zeros((4 + extra, cache.rows), dtype=torch.float64, device=self.device)
        # What the next launch applies: columns of the table, with the rows' uniforms, and rows to resume.
        self._posted: dict[int, tuple[float, ...]] = {}
        self._posted_uniforms = np.zeros(self._uniforms.shape)
        self._resumed: set[int] = set()
        self._results: deque[tuple[Fetch, NDArray[np.int64], NDArray[np.int64]]] = (
            deque()
        )  # of which rows, at which places
        self._draw: Callable[..., Drawn] = draw_next
        self._graphs: CudaGraphs | None = None
        if backend.replays:
            if backend.compiles_draw:
                self._draw = torch.compile(draw_next, fullgraph=True)  # recompiles for a second width, then fits all
            self._graphs = CudaGraphs(self.device)

    def begin(self, row: int, prompt: int, feed: int, request: Request) -> None:
        """From the next launch on, decode a request in a row.

        Args:
            row: the row; its slots hold the prompt and the tokens that the request keeps.
            prompt: number of tokens of the prompt.
            feed: the token before the one to draw.
            request: what to decode.
        """
        excluded = NO_TOKEN if request.excluded_first_token is None else request.excluded_first_token
        bound = request.reject_below or NO_BOUND
        limits = (bound.log_p, bound.log_q, bound.log_length, bound.value)
        self._post(row, (1, prompt, request.keep, feed, request.horizon, request.beta, excluded, *limits, 0))
        self._posted_uniforms[row, request.keep : request.horizon] = request.uniforms

    def resume(self, row: int) -> None:
        """Resume a paused row at the next launch."""
        self._resumed.add(row)

    def stop(self, row: int) -> None:
        """From the next launch on, leave a row idle."""
        self._post(row, (0,) * FIELDS)

    def swap(self, row: int, other: int, length: int) -> None:
        """Let two rows change places from the next launch on, together with their first `length` slots of the cache."""
        places = self.cache.places[[row, other]]
        here, there = send(places, self.device), send(places[::-1].copy(), self.device)
        self._table.index_copy_(1, here, self._table[:, there])
        self._uniforms.index_copy_(0, here, self._uniforms[there])
        self.cache.swap(row, other, length)

    def launch(self, width: int, shown: int) -> None:
        """Draw one token in every busy row.

        Args:
            width: rows that take part: those in places [0, width), which must hold all busy ones.
            shown: slots of each row that are shown to the attention.
        """
        places = self.cache.places
        if self._posted:
            posted = np.array(list(self._posted))
            at, columns = send(places[posted], self.device), np.array(list(self._posted.values()), np.float64)
            self._table.index_copy_(1, at, send(columns, self.device).T)
            self._uniforms.index_copy_(0, at, send(self._posted_uniforms[posted], self.device))
            self._posted = {}
        if self._resumed:
            self._busy.index_fill_(0, send(places[list(self._resumed)], self.device), 1)
            self._resumed = set()
        if self._graphs is None:
            self._step(width, shown)
        else:
            self._graphs.run(self._step, width, shown)
        rows = np.flatnonzero(places < width)
        self._results.append((Fetch(self._result), rows, places[rows]))

    def collect(self) -> NDArray[np.float64]:
        """[4 + measures, rows] from the oldest unread launch: token, log p, log q, `Status`, then `measure_next`.

        Rows that took no part have zeros, and therefore the status IDLE.
        """
        fetched, rows, places = self._results.popleft()
        values = np.zeros((len(self._result), self.cache.rows))
        values[:, rows] = fetched.wait()[:, places]
        return values

    def _post(self, row: int, column: tuple[float, ...]) -> None:
        self._posted[row] = column
        self._resumed.discard(row)

    @torch.inference_mode()
    def _step(self, width: int, shown: int) -> None:
        state = RowState(*self._table[:, :width].unbind())
        result = self._result[:, :width]
        busy = state.busy > 0
        # An idle row is put at position 0, where it sees one finite key, and writes to the trash slot.
        positions = ((state.prompt + state.length - 1) * state.busy).long()
        slots = torch.where(busy, positions, self.cache.trash)
        feed = (state.feed * state.busy).long()
        logits = self.backend.decode(self.cache, feed[:, None], positions[:, None], slots[:, None], shown)
        uniforms = self._uniforms[:width].gather(1, state.length.long()[:, None])[:, 0]
        arguments = (state.beta, uniforms, state.excluded.long())
        drawn = self._draw(logits.proposal, *(argument.to(logits.proposal.device) for argument in arguments))
        if self.backend.foreign:
            drawn = dataclasses.replace(drawn, log_p=log_probability_of(drawn.tokens, logits.target))
        tokens = drawn.tokens.to(self.device)
        log_p, log_q = (part.to(self.device, torch.float64) for part in (drawn.log_p, drawn.log_q))
        state.excluded.fill_(NO_TOKEN)  # it applies to a request's first token only
        state.feed.copy_(torch.where(busy, tokens, state.feed))
        state.length.add_(state.busy)
        gain = (state.log_p * log_p + state.log_q * log_q).clamp_(max=0)
        state.weight.add_(torch.where(busy, gain, 0))
        below = torch.addcmul(state.weight, state.log_length, state.length.log1p()) < state.value
        paused = self._pauses[tokens] | (state.length >= state.horizon)
        status = torch.where(below, Status.BELOW, paused + Status.RUNNING) * busy
        state.busy.copy_(status == Status.RUNNING)
        result[:4].copy_(torch.stack([tokens.double(), log_p, log_q, status.double()]))
        if len(result) > 4:
            result[4:].copy_(measure_next(logits.target, self.measures))
