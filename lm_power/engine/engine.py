"""The decode loop: rows at different positions, which are stepped together and rewound and restored one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from lm_power.decoding import FinishedBy, Measures, Request, Segment
from lm_power.engine.decode_step import NO_MEASURES, DecodeStep, Status
from lm_power.engine.kv_cache import RowCache
from lm_power.engine.paired import AnyBackend
from lm_power.engine.prefill import prefill, prefill_together
from lm_power.engine.stopping import StopStrings
from lm_power.engine.widths import Widths

BatchShape = Literal["shrinking", "fixed"]


@dataclasses.dataclass
class Counters:
    """What the engine has done so far, in tokens.

    Attributes:
        decoded: tokens drawn.
        prefilled: tokens of prompts and of loaded completions that were run through the model.
        steps: forward passes over the rows whose results have been read.
        attended: positions that the busy rows' queries saw, summed over the steps; a step has to read their keys and
            values.
        row_steps: rows of the batch, idle ones included, summed over the steps.
        moves: rows that changed their place so that the busy ones lie together.
    """

    loading: ClassVar[str] = "reading"  # prompts; for the progress bar

    decoded: int = 0
    prefilled: int = 0
    steps: int = 0
    attended: int = 0
    row_steps: int = 0
    moves: int = 0


class Engine:
    """Decodes one `Request` per row, with one forward pass over all rows per token.

    A row holds a prompt and a completion. `submit` rewinds it to the request's prefix and saves what may be
    overwritten. `step` draws one token in every busy row and returns the segments that have ended. `commit` keeps a
    row's new segment, and `rollback` restores the old completion. `copy` copies a completion to an idle row, so that
    several proposals can be decoded side by side. Only prompts are prefilled, and completions that `load` takes over
    from an engine that ran out of memory.

    A step runs on as many rows as are busy, rounded up to one of a few widths (see `Widths`). Idle rows within the
    width take part too, and write to a trash slot. With `batch_shape="fixed"` all rows always take part, so that the
    shapes of matrix products, and with them the last bits of a row's numbers, do not depend on how many other rows are
    busy.

    On a GPU a step is launched before the result of the previous one is read, so that the GPU computes while the host
    settles and makes moves. The step itself pauses a row that may have ended, and what follows a segment begins one
    step late. The tokens that are drawn are the same.

    Args:
        backend: runs the model, or two of them if another model proposes.
        rows: rows of the batch.
        prompt_length: longest prompt, tokens.
        max_new_tokens: longest completion, tokens.
        eos_ids: token ids that end a completion.
        stops: stop strings.
        counters: counters to add to; default: new ones.
        measures: what else to compute from each next-token distribution.
        ahead: steps that are launched before a result is read; default: 1 on CUDA, else 0.
        batch_shape: "shrinking" or "fixed".

    Attributes:
        row_cost: what one more row adds to the time of a step, as a share of the time of a step without rows. It is a
            constant for each kind of device, so that what is drawn depends on no clock.

    Raises:
        FloatingPointError: from `step`, if the model's logits are not finite.
    """

    # The attention is shown a multiple of so many slots, so that few shapes occur: on a GPU each needs its own graph.
    BUCKET, BUCKET_CUDA = 64, 256
    WIDTHS, WIDTHS_CUDA = 4, 2  # widths of the batch for each doubling of the rows
    # Half a billion parameters on two cores: a step of 16 rows takes twice as long as one of none. A GPU has to read
    # the weights for that, whatever the rows, up to some hundreds.
    ROW_COST, ROW_COST_CUDA = 1 / 16, 1 / 256
    PREFILL_CHUNK = 512  # largest number of prompt tokens per forward pass, which bounds the memory of a long prompt

    def __init__(
        self,
        backend: AnyBackend,
        rows: int,
        prompt_length: int,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        stops: StopStrings,
        counters: Counters | None = None,
        measures: Measures = NO_MEASURES,
        ahead: int | None = None,
        batch_shape: BatchShape = "shrinking",
    ) -> None:
        self.backend, self.rows, self.stops = backend, rows, stops
        self.counters = counters or Counters()
        on_gpu = backend.input_device.type == "cuda"
        self._ahead = int(on_gpu) if ahead is None else ahead
        self._bucket = self.BUCKET_CUDA if on_gpu else self.BUCKET
        self._widths: Widths | None = None  # None: all rows take part in every step, and prompts are read one by one
        self.row_cost = 0.0  # rows that take part in any case cost nothing more
        if batch_shape == "shrinking":
            self._widths = Widths(rows, self.WIDTHS_CUDA if on_gpu else self.WIDTHS)
            self.row_cost = self.ROW_COST_CUDA if on_gpu else self.ROW_COST
        self._cache = RowCache(backend.shapes, rows, prompt_length + max_new_tokens)
        self._is_eos = np.zeros(backend.vocabulary, dtype=bool)
        self._is_eos[list(eos_ids)] = True
        self._step = DecodeStep(backend, self._cache, max_new_tokens, self._is_eos | stops.candidates, measures)
        self._measures = measures
        self._launched = 0  # steps launched
        self._landed = 0  # steps whose results have been read
        self._prompts: list[tuple[int, ...]] = [()] * rows  # by row: the prompt that its first slots hold
        self._unread: dict[int, tuple[int, ...]] = {}  # by row: prompts that are still to be prefilled
        # Tokens [keep, length) of the settled completion are saved, in the cache and here.
        self._saved: list[tuple[int, int]] = [(0, 0)] * rows
        # Column 0 of the history is the last prompt token, column t + 1 the completion's token t: the
        # token to feed is always the one before the token to draw.
        self._history = np.zeros((rows, max_new_tokens + 1), np.int64)
        self._saved_history = np.zeros_like(self._history)
        self._log_p = np.zeros((rows, max_new_tokens))
        self._log_q = np.zeros((rows, max_new_tokens))
        self._measured = np.zeros((rows, max_new_tokens, len(measures.exponents) + measures.entropy))
        self._prompt_length = np.ones(rows, np.int64)
        # These are as of the last result that was read; the device may be `ahead` tokens further.
        self._busy = np.zeros(rows, dtype=bool)
        self._length = np.zeros(rows, np.int64)  # tokens of the completion
        self._keep = np.zeros(rows, np.int64)
        self._horizon = np.zeros(rows, np.int64)
        self._since = np.zeros(rows, np.int64)  # the first step that decodes what the row was last asked for

    def load(self, row: int, prompt: Sequence[int], completion: Sequence[int] = ()) -> None:
        """Make an idle row ready to decode completions of a prompt, or to continue a completion.

        All tokens except the last are prefilled, and the next decode step feeds the last. The prompt's keys and values
        are copied if another row still holds the same prompt. Prompts are read at the next step, so that they share
        forward passes.

        Args:
            row: the row.
            prompt: [n ≥ 1] token ids.
            completion: token ids of the settled completion, if there is one.
        """
        prompt = tuple(prompt)
        self._unread.pop(row, None)
        if self._prompts[row] != prompt:
            self._prompts[row] = ()
            self._unread[row] = prompt
        tokens = [prompt[-1], *completion]
        if completion:
            self._read_prompts()
            prefill(self.backend, self._cache, row, tokens[:-1], self.PREFILL_CHUNK, start=len(prompt) - 1)
            self.counters.prefilled += len(completion)
        self._history[row, : len(tokens)] = tokens
        self._prompt_length[row] = len(prompt)
        self._length[row] = self._keep[row] = len(completion)
        self._saved[row] = (len(completion), len(completion))

    def _read_prompts(self) -> None:
        """Prefill the prompts that wait, each once: several per pass, or one by one if the batch shape is fixed."""
        unread, self._unread = self._unread, {}
        first: dict[tuple[int, ...], int] = {}
        for row, prompt in unread.items():
            if prompt not in self._prompts:
                first.setdefault(prompt, row)
        together: dict[int, Sequence[int]] = {}
        for prompt, row in sorted(first.items(), key=lambda item: len(item[0])):
            tokens = prompt[:-1]
            self.counters.prefilled += len(tokens)
            if self._widths is None or len(tokens) > self.PREFILL_CHUNK // 2:
                prefill(self.backend, self._cache, row, tokens, self.PREFILL_CHUNK)
                continue
            if (len(together) + 1) * len(tokens) > self.PREFILL_CHUNK:
                prefill_together(self.backend, self._cache, together)
                together = {}
            together[row] = tokens
        if together:
            prefill_together(self.backend, self._cache, together)
        for prompt, row in first.items():
            self._prompts[row] = prompt
        for row, prompt in unread.items():
            if self._prompts[row] != prompt:
                self._cache.copy_row(self._prompts.index(prompt), row, 0, len(prompt) - 1)
                self._prompts[row] = prompt

    def copy(self, source: int, target: int, keep: int) -> None:
        """Make an idle row ready for a request that keeps `keep` tokens of another row's settled completion.

        The source may be decoding a proposal at the same time, because what that may overwrite is saved.
        """
        if source in self._unread:
            self._read_prompts()
        self._unread.pop(target, None)
        prompt, cut = self._prompts[source], min(keep, self._saved[source][0])
        before = len(prompt) - 1
        start = before if self._prompts[target] == prompt else 0
        self._cache.copy_row(source, target, start, before + cut)
        self._history[target, : cut + 1] = self._history[source, : cut + 1]
        if cut < keep:
            self._cache.copy_saved(source, target, before + cut, before + keep)
            self._history[target, cut + 1 : keep + 1] = self._saved_history[source, cut + 1 : keep + 1]
        self._prompts[target] = prompt
        self._prompt_length[target] = len(prompt)
        self._length[target] = keep
        self._saved[target] = (keep, keep)

    def submit(self, row: int, request: Request) -> None:
        """Rewind a settled row to the request's prefix and let it decode from there.

        Raises:
            ValueError: the request has a bound although another model proposes, whose token weights can be positive.
        """
        if self.backend.foreign and request.reject_below is not None and request.reject_below.log_q:
            raise ValueError("early rejection with proposals of another model: token weights may be positive")
        keep, length = request.keep, int(self._length[row])
        prompt = int(self._prompt_length[row])
        self._saved[row] = (keep, length)
        if keep < length:
            # Saved are the slots of tokens keep − 1 … length − 2: feeding token keep − 1 again rewrites its own slot,
            # and the last token's slot is filled only when something is drawn after it.
            self._cache.save(row, prompt - 1 + keep, prompt - 1 + length)
            self._saved_history[row, keep + 1 : length + 1] = self._history[row, keep + 1 : length + 1]
        self._length[row] = self._keep[row] = keep
        self._horizon[row] = request.horizon
        self._busy[row] = True
        self._since[row] = self._launched
        self._step.begin(row, prompt, int(self._history[row, keep]), request)

    def commit(self, row: int) -> None:
        """Make the segment that a row has decoded part of its settled completion."""
        self._cache.drop(row)
        self._saved[row] = (int(self._length[row]),) * 2

    def rollback(self, row: int) -> int:
        """Drop what a row is decoding or has decoded, and restore what it held; the number of tokens dropped."""
        given_up = self.tokens_decoded(row)
        if self._busy[row]:
            self._busy[row] = False
            self._step.stop(row)
        keep, length = self._saved[row]
        if keep < length:
            self._cache.restore(row)
            self._history[row, keep + 1 : length + 1] = self._saved_history[row, keep + 1 : length + 1]
        self._length[row] = length
        self._saved[row] = (length, length)
        return given_up

    def tokens_decoded(self, row: int) -> int:
        """Tokens decoded for a row's request, as of the last result that was read."""
        return int(self._length[row] - self._keep[row])

    def step(self) -> list[tuple[int, Segment]]:
        """Draw one token in every busy row, and return the (row, segment) pairs that are seen to have ended."""
        if self._busy.any():
            self._read_prompts()
            width = self._width()
            self._step.launch(width, self._shown())
            self.counters.row_steps += width
            self._launched += 1
            if self._launched - self._landed <= self._ahead:
                return []
        return self._land() if self._landed < self._launched else []

    def _width(self) -> int:
        """The width of the next step; rows that have to change their place for it are moved."""
        if self._widths is None:
            return self.rows
        width, pairs = self._widths.next(self._busy, self._cache.places)
        in_flight = self._launched - self._landed
        for row, other in pairs:
            filled = self._prompt_length[[row, other]] + self._length[[row, other]] + in_flight
            self._step.swap(row, other, min(int(filled.max()), self._cache.length))
        self.counters.moves += len(pairs)
        return width

    def _shown(self) -> int:
        """Slots that the attention is shown: as many as the longest row may have filled, rounded up to a bucket."""
        if self.backend.reads_spans:
            return self._cache.length
        longest = int((self._prompt_length + self._length)[self._busy].max()) + self._launched - self._landed
        return min(-(-longest // self._bucket) * self._bucket, self._cache.length)

    def _land(self) -> list[tuple[int, Segment]]:
        """Read the oldest unread result, and return the segments that have ended."""
        tokens, log_p, log_q, status, *measured = self._step.collect()
        ran = np.flatnonzero((status != Status.IDLE) & self._busy & (self._since <= self._landed))
        self._landed += 1
        self.counters.steps += 1
        if not np.isfinite([log_p[ran], log_q[ran]]).all():
            raise FloatingPointError(
                "the model's logits are not finite (NaN or inf): load it in a dtype of larger range "
                "(bfloat16 or float32), and check its weights"
            )
        at = self._length[ran]
        self._history[ran, at + 1] = tokens[ran]
        self._log_p[ran, at] = log_p[ran]
        self._log_q[ran, at] = log_q[ran]
        if measured:
            self._measured[ran, at] = np.stack(measured, axis=1)[ran]
        self._length[ran] += 1
        self.counters.decoded += len(ran)
        self.counters.attended += int((self._prompt_length[ran] + at).sum())
        finished = []
        for row in ran[status[ran] != Status.RUNNING].tolist():
            reason = self._ended_by(row)
            if reason is None and status[row] != Status.BELOW:  # paused at a token that completed no stop string
                self._step.resume(row)
                continue
            self._busy[row] = False
            finished.append((row, self._segment(row, reason)))
        return finished

    def _ended_by(self, row: int) -> FinishedBy | None:
        length = int(self._length[row])
        last = int(self._history[row, length])
        if self._is_eos[last]:
            return FinishedBy.EOS
        if self.stops.completed(self._history[row, 1 : length + 1]):
            return FinishedBy.STOP
        return FinishedBy.HORIZON if length >= self._horizon[row] else None

    def _segment(self, row: int, reason: FinishedBy | None) -> Segment:
        start, stop = int(self._keep[row]), int(self._length[row])
        measured, exponents = self._measured[row, start:stop].copy(), len(self._measures.exponents)
        return Segment(
            tokens=self._history[row, start + 1 : stop + 1].copy(),
            log_p=self._log_p[row, start:stop].copy(),
            log_q=self._log_q[row, start:stop].copy(),
            finished_by=reason,
            log_z=measured[:, :exponents] if exponents else None,
            entropy=measured[:, exponents] if self._measures.entropy else None,
        )
