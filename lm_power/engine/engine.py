"""The decode loop: rows at positions of their own, stepped together, rewound and restored one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lm_power.engine.backend import HFBackend
from lm_power.engine.kv_cache import RowCache
from lm_power.engine.stopping import StopStrings
from lm_power.records import Bound, FinishedBy, Request, Segment
from lm_power.target import draw_next


@dataclasses.dataclass
class Counters:
    """What the engine has done so far, in tokens.

    Attributes:
        decoded: tokens drawn.
        prefilled: prompt tokens run through the model.
        steps: forward passes over the rows.
        attended: positions that the busy rows' queries saw, summed over the steps: whose keys and values a step
            has to read.
    """

    decoded: int = 0
    prefilled: int = 0
    steps: int = 0
    attended: int = 0


NO_BOUND = Bound(0.0, 0.0, 0.0, -np.inf)


class Engine:
    """Decodes one `Request` a row, all rows in one forward pass a token.

    A row holds a prompt and a completion. `submit` rewinds it to the request's prefix and saves what may be
    overwritten; `step` draws one token in every busy row and hands back the segments that have ended;
    `settle` keeps a row's new segment or puts the old completion back; `fork` copies a completion to an idle row, so
    that several proposals can be decoded side by side. Nothing is prefilled after the prompt.

    The batch always has `rows` rows: idle ones run along, writing to a trash slot, so that the numbers of a
    row do not depend on how many others are busy.

    Args:
        backend: runs the model.
        rows: rows of the batch.
        prompt_length: longest prompt, tokens.
        max_new_tokens: longest completion, tokens.
        eos_ids: token ids that end a completion.
        stops: stop strings.
        rewinds: whether requests will ever be settled by rejection (needs twice the cache).
        counters: what to count in; default: counters of its own.

    Raises:
        FloatingPointError: from `step`, where the model's logits are not finite.
    """

    BUCKET = 64  # the attention sees a multiple of this many slots, so that few shapes occur
    PREFILL_CHUNK = 512  # prompt tokens a forward pass, at most: bounds the memory of a long prompt

    def __init__(
        self,
        backend: HFBackend,
        rows: int,
        prompt_length: int,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        stops: StopStrings,
        rewinds: bool = True,
        counters: Counters | None = None,
    ) -> None:
        self.backend, self.rows, self.stops = backend, rows, stops
        self.counters = counters or Counters()
        self._cache = RowCache(backend.shapes, rows, prompt_length + max_new_tokens, shadow=rewinds)
        self._is_eos = np.zeros(backend.vocabulary, dtype=bool)
        self._is_eos[list(eos_ids)] = True
        self._prompts: list[tuple[int, ...]] = [()] * rows  # whose keys and values lie in the row's first slots
        # Of the settled completion, tokens [keep, length) are in the shadow.
        self._saved: list[tuple[int, int]] = [(0, 0)] * rows
        # Column 0 of the history is the last prompt token, column t + 1 the completion's token t: the
        # token to feed is always the one before the token to draw.
        self._history = np.zeros((rows, max_new_tokens + 1), np.int64)
        self._saved_history = np.zeros_like(self._history)
        self._log_p = np.zeros((rows, max_new_tokens))
        self._log_q = np.zeros((rows, max_new_tokens))
        self._uniforms = np.zeros((rows, max_new_tokens))
        self._busy = np.zeros(rows, dtype=bool)
        self._length = np.zeros(rows, np.int64)  # tokens of the completion so far
        self._keep = np.zeros(rows, np.int64)
        self._horizon = np.zeros(rows, np.int64)
        self._prompt_length = np.ones(rows, np.int64)
        self._beta = np.ones(rows)
        self._excludes = np.zeros(rows, dtype=bool)  # whether the first new token has an excluded one
        self._excluded = np.zeros(rows, np.int64)
        self._bound = np.tile(np.array(dataclasses.astuple(NO_BOUND))[:, None], rows)  # a field of `Bound` a line
        self._weight = np.zeros(rows)  # the sum in `Bound`, over the new tokens

    def load(self, row: int, prompt: Sequence[int]) -> None:
        """Make an idle row ready for completions of `prompt` ([n] token ids, n ≥ 1).

        Prefills all but the last prompt token, which the first decode step feeds; or copies its keys and
        values from a row that still holds the same prompt.
        """
        prompt = tuple(prompt)
        stop = len(prompt) - 1
        if prompt not in self._prompts:
            self._prompts[row] = ()
            self.backend.prefill(self._cache, row, prompt[:-1], self.PREFILL_CHUNK)
            self.counters.prefilled += stop
        elif self._prompts[row] != prompt:
            self._cache.copy_row(self._prompts.index(prompt), row, 0, stop)
        self._prompts[row] = prompt
        self._prompt_length[row] = len(prompt)
        self._length[row] = 0
        self._saved[row] = (0, 0)
        self._history[row, 0] = prompt[-1]

    def fork(self, source: int, target: int, keep: int) -> None:
        """Make an idle row ready for a request that keeps `keep` tokens of another row's settled completion.

        The source may be decoding a proposal meanwhile: what that may overwrite lies in its shadow.
        """
        prompt, cut = self._prompts[source], min(keep, self._saved[source][0])
        before = len(prompt) - 1
        start = before if self._prompts[target] == prompt else 0
        self._cache.copy_row(source, target, start, before + cut)
        self._history[target, : cut + 1] = self._history[source, : cut + 1]
        if cut < keep:
            self._cache.copy_shadow(source, target, before + cut, before + keep)
            self._history[target, cut + 1 : keep + 1] = self._saved_history[source, cut + 1 : keep + 1]
        self._prompts[target] = prompt
        self._prompt_length[target] = len(prompt)
        self._length[target] = keep
        self._saved[target] = (keep, keep)

    def submit(self, row: int, request: Request) -> None:
        """Rewind a settled row to the request's prefix and let it decode from there."""
        keep, length = request.keep, int(self._length[row])
        self._saved[row] = (keep, length)
        if keep < length:
            # Slots of tokens keep − 1 … length − 2: feeding token keep − 1 again rewrites its own slot, and
            # the last token's slot is filled only once something is drawn after it.
            before = int(self._prompt_length[row]) - 1
            self._cache.save(row, before + keep, before + length)
            self._saved_history[row, keep + 1 : length + 1] = self._history[row, keep + 1 : length + 1]
        self._uniforms[row, keep : request.horizon] = request.uniforms
        self._length[row] = self._keep[row] = keep
        self._horizon[row] = request.horizon
        self._beta[row] = request.beta
        self._excludes[row] = request.excluded_first_token is not None
        self._excluded[row] = request.excluded_first_token or 0
        bound = request.reject_below or NO_BOUND
        self._bound[:, row] = bound.log_p, bound.log_q, bound.log_length, bound.value
        self._weight[row] = 0
        self._busy[row] = True

    def settle(self, row: int, accepted: bool) -> None:
        """Keep a row's new segment, or put back the completion that it was proposed against."""
        keep, length = self._saved[row]
        if not accepted and keep < length:
            before = int(self._prompt_length[row]) - 1
            self._cache.restore(row, before + keep, before + length)
            self._history[row, keep + 1 : length + 1] = self._saved_history[row, keep + 1 : length + 1]
        settled = int(self._length[row]) if accepted else length
        self._length[row] = settled
        self._saved[row] = (settled, settled)

    def cancel(self, row: int) -> int:
        """Give up what a row is decoding, or has decoded, and put back what it held; the tokens given up."""
        dropped = int(self._length[row] - self._keep[row])
        self._busy[row] = False
        self.settle(row, accepted=False)
        return dropped

    def step(self) -> list[tuple[int, Segment]]:
        """Draw one token in every busy row; the (row, segment) pairs that ended with it."""
        busy = np.flatnonzero(self._busy)
        if not len(busy):
            return []
        tokens, log_p, log_q = self._draw()
        if not np.isfinite(log_p[busy]).all():
            raise FloatingPointError(
                "the model's logits are not finite (NaN or inf): load it in a dtype of larger range "
                "(bfloat16 or float32), and check its weights"
            )
        at = self._length[busy]
        self._history[busy, at + 1] = tokens[busy]
        self._log_p[busy, at] = log_p[busy]
        self._log_q[busy, at] = log_q[busy]
        self._length[busy] += 1
        self.counters.decoded += len(busy)
        self.counters.steps += 1
        self.counters.attended += int((self._prompt_length[busy] + at).sum())
        drawn = tokens[busy]
        below = self._fallen_below(busy, log_p[busy], log_q[busy])
        ending = self._is_eos[drawn] | (self._length[busy] >= self._horizon[busy])
        ending |= self.stops.candidates[drawn] | below
        finished = []
        for row, stopped in zip(busy[ending].tolist(), below[ending].tolist(), strict=True):
            reason = self._ended_by(row)
            if stopped or reason is not None:
                self._busy[row] = False
                finished.append((row, self._segment(row, reason)))
        return finished

    def _fallen_below(self, busy: np.ndarray, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        """Whether each busy row, should it not be terminal with the token just drawn, is below its bound."""
        of_p, of_q, of_length, value = self._bound[:, busy]
        self._weight[busy] += np.minimum(of_p * log_p + of_q * log_q, 0)
        return self._weight[busy] + of_length * np.log(self._length[busy] + 1) < value

    def _draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([rows] tokens, [rows] log p, [rows] log q) of one draw in every row, idle ones included."""
        every = np.arange(self.rows)
        # An idle row sits at position 0, where it sees one finite key, and writes to the trash slot.
        positions = np.where(self._busy, self._prompt_length + self._length - 1, 0)
        slots = np.where(self._busy, positions, self._cache.trash)
        feed = np.where(self._busy, self._history[every, self._length], 0)
        room = self._uniforms.shape[1] - 1
        uniforms = self._uniforms[every, np.minimum(self._length, room)]
        longest = int(positions.max()) + 1
        shown = min(-(-longest // self.BUCKET) * self.BUCKET, self._cache.length)
        device = self.backend.input_device
        feed_, positions_, slots_ = torch.from_numpy(np.stack([feed, positions, slots])).to(device)[..., None]
        logits = self.backend.forward(self._cache, 0, feed_, positions_, slots_, shown)
        first = np.flatnonzero(self._busy & self._excludes & (self._length == self._keep))
        arguments = (self._beta, uniforms, first, self._excluded[first])
        with torch.inference_mode():
            drawn = draw_next(logits, *(torch.from_numpy(array).to(logits.device) for array in arguments))
            # One transfer: token ids are exact in float64.
            pack = torch.stack([drawn.tokens.double(), drawn.log_p.double(), drawn.log_q.double()])
        tokens, chosen_p, chosen_q = pack.cpu().numpy()
        return tokens.astype(np.int64), chosen_p, chosen_q

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
        return Segment(
            tokens=self._history[row, start + 1 : stop + 1].copy(),
            log_p=self._log_p[row, start:stop].copy(),
            log_q=self._log_q[row, start:stop].copy(),
            finished_by=reason,
        )
