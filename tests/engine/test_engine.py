"""The decode loop: rewinding is exact, nothing is computed twice, and no row sees another."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from methods import suited
from models import EOS, VOCABULARY, WINDOW, make_model

import lm_power.host
from lm_power import PowerSampler
from lm_power.decoding import Bound, FinishedBy, Measures, Request, Segment
from lm_power.engine import Engine, HFBackend, StopStrings
from lm_power.engine.backend import NextLogits
from lm_power.engine.kv_cache import RowCache

NO_STOPS = StopStrings(None, [], VOCABULARY)
NO_EOS: tuple[int, ...] = ()
PROMPT = [5, 9, 33, 2, 17, 60, 8]


@pytest.fixture(scope="module")
def backend() -> HFBackend:
    """Sliding and full layers."""
    return HFBackend(make_model("qwen2-sliding", dtype=torch.float64))


def make_engine(
    backend: HFBackend, rows: int = 3, eos: Sequence[int] = NO_EOS, room: int = 80, bucket: int = 16, chunk: int = 4
) -> Engine:
    """An engine whose buckets and prefill chunks are small enough to be passed."""
    kind = type("SmallEngine", (Engine,), {"BUCKET": bucket, "PREFILL_CHUNK": chunk})
    return kind(backend, rows, 40, room, eos, NO_STOPS)


def request(keep: int, horizon: int, seed: int, beta: float = 2.0) -> Request:
    """A request with uniforms from a seed."""
    return Request(keep, horizon, beta, np.random.default_rng(seed).random(horizon - keep))


def run(engine: Engine, row: int) -> Segment:
    """Steps until `row` has finished; other rows' segments are dropped."""
    while True:
        for finished, segment in engine.step():
            if finished == row:
                return segment


def content(engine: Engine, row: int, slots: int) -> list[torch.Tensor]:
    """A copy of the keys and values in the first slots of a row."""
    place = engine._cache.places[row]
    return [tensor[:, place, :, :slots].clone() for tensor in engine._cache._storage]


def same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def equal(left: Segment, right: Segment) -> bool:
    """Whether two segments are the same, up to the rounding of float64.

    Not bit for bit: on some CPUs the rows of one batch differ in their last bits by their place.
    """
    if left.finished_by is not right.finished_by or left.tokens.tolist() != right.tokens.tolist():
        return False
    pairs = ((getattr(left, name), getattr(right, name)) for name in ("log_p", "log_q"))
    return all(np.allclose(a, b, atol=1e-10, rtol=0) for a, b in pairs)


# The proposals end before, at and after the end of the 20 tokens that they are made against.
@pytest.mark.parametrize("cut", [0, 1, 13, 19])
@pytest.mark.parametrize("horizon", [20, 24, 50])
def test_a_rejected_proposal_leaves_the_cache_bit_for_bit(backend, cut, horizon):
    """Guards: one slot too few saved, or restored to the wrong place, at either end of the suffix."""
    engine = make_engine(backend)
    engine.load(1, PROMPT)
    engine.submit(1, request(0, 20, seed=1))
    first = run(engine, 1)
    engine.commit(1)
    filled = len(PROMPT) - 1 + 20  # the last token's slot is filled when something is drawn after it
    before = content(engine, 1, filled)
    for seed in (2, 3):
        engine.submit(1, request(cut, horizon, seed))
        proposed = run(engine, 1)
        assert cut == 19 or not np.array_equal(proposed.tokens[: 20 - cut], first.tokens[cut:])
        engine.rollback(1)
        assert same(content(engine, 1, filled), before)
    engine.submit(1, request(20, 30, seed=4))
    after = run(engine, 1)

    untouched = make_engine(backend)
    untouched.load(1, PROMPT)
    untouched.submit(1, request(0, 20, seed=1))
    assert equal(run(untouched, 1), first)
    untouched.submit(1, request(20, 30, seed=4))
    assert equal(run(untouched, 1), after)


def test_the_first_token_alone_is_drawn_without_the_excluded_one(backend):
    """Guards coupled resume: the refused token drawn again, excluded at later places too, or log q of the reduced law.

    Each first token of a free draw is excluded in turn; the same uniforms, rows side by side.
    """
    engine = make_engine(backend, rows=20)
    for row in range(20):
        engine.load(row, PROMPT)
        engine.submit(row, request(0, 12, seed=row, beta=3.0))
    free = dict(pair for _ in range(12) for pair in engine.step())
    for row in range(20):
        engine.commit(row)
        excluded = int(free[row].tokens[4])
        engine.submit(row, dataclasses.replace(request(4, 12, row, beta=3.0), excluded_first_token=excluded))
    again = dict(pair for _ in range(8) for pair in engine.step())
    assert all(again[row].tokens[0] != free[row].tokens[4] for row in range(20))
    later = [(row, t) for row in range(20) for t in range(1, 8) if again[row].tokens[t] == free[row].tokens[4]]
    assert later, "a token that was excluded once may come later"
    for row in range(3):
        tokens = [*PROMPT, *free[row].tokens[:4], *again[row].tokens]
        with torch.inference_mode():
            log_p = backend.model(torch.tensor([tokens])).logits[0].log_softmax(-1)[-9:-1]
        log_q = (3 * log_p).log_softmax(-1)
        for law, stored in [(log_p, again[row].log_p), (log_q, again[row].log_q)]:
            expected = law.gather(1, torch.tensor(again[row].tokens)[:, None])[:, 0]
            np.testing.assert_allclose(stored, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("terms", [(4.0, -1.0, -1.0), (1.0, 0.0, 0.0)], ids=["power", "power_inf"])
def test_a_draw_stops_once_it_is_below_its_bound_and_not_before(backend, terms):
    """Guards early rejection: a stop one token early (a wrong law) or late, a sum that goes on in the next request.

    And a cache that is not put back after a stop in mid-sequence.
    """
    engine = make_engine(backend)
    engine.load(0, PROMPT)
    engine.submit(0, request(0, 20, seed=1))
    run(engine, 0)
    engine.commit(0)
    before = content(engine, 0, len(PROMPT) - 1 + 20)
    asked = request(3, 30, seed=2, beta=4.0)
    engine.submit(0, asked)
    free = run(engine, 0)
    engine.rollback(0)
    running = np.minimum(terms[0] * free.log_p + terms[1] * free.log_q, 0).cumsum()
    running += terms[2] * np.log(3 + np.arange(1, 28) + 1)
    for stop in (0, 4, 25):
        bound = Bound(*terms, value=float(running[stop - 1 : stop + 1].mean() if stop else running[0] + 1e-6))
        engine.submit(0, dataclasses.replace(asked, reject_below=bound))
        segment = run(engine, 0)
        assert segment.finished_by is None
        np.testing.assert_array_equal(segment.tokens, free.tokens[: stop + 1])
        engine.rollback(0)
        assert same(content(engine, 0, len(PROMPT) - 1 + 20), before)
    engine.submit(0, dataclasses.replace(asked, reject_below=Bound(*terms, value=float(running[-1] + 1e-6))))
    assert run(engine, 0).finished_by is FinishedBy.HORIZON, "terminal: its fate is the chain's to decide"
    engine.rollback(0)
    engine.submit(0, asked)
    assert equal(run(engine, 0), free), "no bound is left over"


@pytest.mark.parametrize("cut", [0, 12, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (4, 20))])
@pytest.mark.parametrize("busy", ["settled", "decoding", "decoded"])
def test_a_copy_decodes_as_its_source_would(backend, cut, busy):
    """Guards prefetch: the prefix copied from slots that the source's own proposal has overwritten, or is about to.

    Whether the target holds another prompt or the same one; and giving it up leaves the source bit for bit as it was.
    """
    alone = make_engine(backend)
    alone.load(0, PROMPT)
    alone.submit(0, request(0, 20, seed=1))
    run(alone, 0)
    alone.commit(0)
    alone.submit(0, request(cut, 40, seed=2))
    expected = run(alone, 0)

    for other in (PROMPT, [4, 4, 4] * 9):
        engine = make_engine(backend)
        engine.load(1, PROMPT)
        engine.load(2, other)
        engine.submit(2, request(0, 60, seed=3))
        run(engine, 2)
        engine.commit(2)
        engine.submit(1, request(0, 20, seed=1))
        run(engine, 1)
        engine.commit(1)
        before = content(engine, 1, len(PROMPT) - 1 + 20)
        if busy != "settled":
            engine.submit(1, request(6, 60, seed=4))
            for _ in range(10):
                engine.step()
            if busy == "decoded":
                run(engine, 1)
        engine.copy(1, 2, cut)
        engine.submit(2, request(cut, 40, seed=2))
        assert equal(run(engine, 2), expected)
        if busy != "settled":
            engine.rollback(1)
        assert same(content(engine, 1, len(PROMPT) - 1 + 20), before)
        engine.commit(2)
        engine.submit(2, request(30, 40, seed=5))
        alone.commit(0)
        alone.submit(0, request(30, 40, seed=5))
        assert equal(run(engine, 2), run(alone, 0)), "the copy is a row like any other"
        alone.rollback(0)
        alone.submit(0, request(cut, 40, seed=2))
        run(alone, 0)


@pytest.mark.parametrize("known", [False, True])
def test_a_row_loaded_with_a_completion_goes_on_as_the_one_that_drew_it(backend, known):
    """Guards: a slot that is not filled, or a token fed at the wrong place, when a completion is prefilled.

    Whether or not another row holds the prompt. Not bit for bit: prefilled in one piece, they are rounded otherwise.
    """
    segments = []
    for loaded in (False, True):
        engine = make_engine(backend)
        engine.load(1, PROMPT)
        engine.submit(1, request(0, 20, seed=1))
        first = run(engine, 1)
        engine.commit(1)
        if loaded:
            engine = engine if known else make_engine(backend)
            engine.load(2, PROMPT, first.tokens.tolist())
        row = 2 if loaded else 1
        for keep, horizon, accepted in [(11, 30, False), (20, 30, True), (4, 40, True)]:
            engine.submit(row, request(keep, horizon, seed=2))
            segments.append(run(engine, row))
            (engine.commit if accepted else engine.rollback)(row)
    for drawn, again in zip(segments[:3], segments[3:], strict=True):
        assert drawn.tokens.tolist() == again.tokens.tolist()
        np.testing.assert_allclose(drawn.log_p, again.log_p, atol=1e-4)


@pytest.mark.parametrize("ahead", [0, 1])
def test_measures_are_those_of_the_tokens_own_distributions(backend, ahead):
    """Guards log Z and entropy: a column or a position off, or what a rejected or copied completion left behind.

    Against a float64 log-softmax of a plain forward pass, while rows rewind, are given up, copied and settled.
    """
    measures = Measures(exponents=(0.5, 1.0, 4.0), entropy=True)
    engine = Engine(backend, 3, 40, 80, NO_EOS, NO_STOPS, measures=measures, ahead=ahead)
    settled: dict[int, list[int]] = {0: [], 2: []}

    def check(row: int, asked: Request, kept: bool) -> None:
        engine.submit(row, asked)
        segment = run(engine, row)
        tokens = settled[row][: asked.keep] + segment.tokens.tolist()
        with torch.inference_mode():
            logits = backend.model(torch.tensor([[*PROMPT, *tokens]]), use_cache=False).logits[0].double()
        law = logits.log_softmax(-1)[len(PROMPT) - 1 + asked.keep : -1]
        log_z = torch.stack([(exponent * law).logsumexp(-1) for exponent in measures.exponents], 1)
        np.testing.assert_allclose(segment.log_z, log_z.numpy(), atol=1e-9)
        np.testing.assert_allclose(segment.entropy, -(law.exp() * law).sum(-1).numpy(), atol=1e-9)
        assert np.ptp(segment.entropy) > 1e-3, "a wrong position would not show"
        if kept:
            engine.commit(row)
            settled[row] = tokens
        else:
            engine.rollback(row)

    engine.load(0, PROMPT)
    check(0, request(0, 20, seed=1), kept=True)
    check(0, request(6, 30, seed=2), kept=False)
    check(0, request(9, 25, seed=3), kept=True)
    engine.submit(0, request(4, 40, seed=4))  # overwrites what the copy needs
    for _ in range(5):
        engine.step()
    engine.copy(0, 2, 12)
    settled[2] = settled[0][:12]
    engine.rollback(0)
    check(2, request(12, 30, seed=5), kept=True)
    check(0, request(25, 40, seed=6), kept=True)
    check(2, request(3, 22, seed=7), kept=False)
    check(2, request(17, 33, seed=8), kept=True)


@pytest.mark.parametrize("exponents", [(0,), (2.0, -1.0), (math.inf,), (math.nan,)])
def test_exponents_without_a_meaning_are_refused(exponents):
    """Guards NaN: 0·log 0, for a token of probability 0, has no value."""
    with pytest.raises(ValueError, match="each must be finite and > 0"):
        Measures(exponents=exponents)


def test_cancelling_tells_what_was_given_up(backend):
    """Guards the count of tokens decoded for nothing, and a row that goes on after it was given up."""
    engine = make_engine(backend)
    engine.load(0, PROMPT)
    engine.submit(0, request(0, 20, seed=1))
    for _ in range(7):
        engine.step()
    assert engine.rollback(0) == 7
    assert engine.step() == []


def test_a_proposal_shorter_than_the_completion_is_rejected_cleanly(backend):
    """Guards: restoring only as many slots as the proposal wrote (chains that shrink by EOS)."""
    engine = make_engine(backend, eos=range(0, VOCABULARY, 2))
    engine.load(0, PROMPT)
    seeds = itertools.count()
    long = short = None
    while long is None or len(long.tokens) < 8:
        engine.submit(0, request(0, 20, next(seeds), beta=1.0))
        long = run(engine, 0)
        engine.commit(0)
    length = len(long.tokens)
    before = content(engine, 0, len(PROMPT) - 1 + length)
    while short is None or len(short.tokens) > 2:
        engine.submit(0, request(1, 20, next(seeds), beta=1.0))
        short = run(engine, 0)
        engine.rollback(0)
        assert same(content(engine, 0, len(PROMPT) - 1 + length), before)


def test_idle_and_busy_neighbours_change_nothing_bit_for_bit(backend):
    """Guards: a row that sees another's keys, or whose numbers depend on who is beside it.

    The neighbours are idle, or shorter, or so long that the row is shown more buckets of slots.
    """
    segments = []
    for neighbours in ([], [[3]], [[3], [7] * 5], [[11, 12] * 18, [4] * 30]):
        engine = make_engine(backend)
        engine.load(0, PROMPT)
        engine.submit(0, request(0, 30, seed=1))
        for row, prompt in enumerate(neighbours, start=1):
            engine.load(row, prompt)
            engine.submit(row, request(0, 40, seed=row))
        segments.append(run(engine, 0))
    assert all(equal(segment, segments[0]) for segment in segments)


def test_nothing_left_over_in_row_or_trash_slot_is_seen(backend):
    """Guards: stale keys of an earlier, longer occupant; and NaN in the trash slot times a zero weight."""
    fresh = make_engine(backend)
    fresh.load(0, PROMPT)
    fresh.submit(0, request(0, 30, seed=1))
    expected = run(fresh, 0)

    used = make_engine(backend)
    used.load(0, [4, 5] * 20)
    used.submit(0, request(0, 70, seed=9))
    run(used, 0)
    for tensor in used._cache._storage:
        tensor[..., used._cache.trash, :] = torch.nan
    used.load(0, PROMPT)
    used.submit(0, request(0, 30, seed=1))
    assert equal(run(used, 0), expected)


def test_idle_rows_write_to_the_trash_slot_only(backend):
    """Guards: an idle row's padding token written over a prompt that is kept for copying."""
    engine = make_engine(backend)
    engine.load(0, PROMPT)
    engine.load(1, PROMPT[:4])
    engine.submit(1, request(0, 1, seed=1))
    run(engine, 1)
    before = content(engine, 1, engine._cache.length)
    engine.submit(0, request(0, 20, seed=1))
    run(engine, 0)
    assert same(content(engine, 1, engine._cache.length), before)
    assert all(bool(tensor.isfinite().all()) for tensor in engine._cache._storage)


@pytest.mark.parametrize("chunk", [1, 3, WINDOW, WINDOW + 1, 64])
def test_prefill_in_chunks_equals_prefill_at_once(backend, chunk):
    """Guards: a chunk that does not see the chunks before it, or sees past the sliding window."""
    prompt = [int(t) for t in np.random.default_rng(0).integers(1, VOCABULARY, 40)]
    drawn = []
    for size in (chunk, 512):
        engine = make_engine(backend, chunk=size)
        engine.load(2, prompt)
        drawn.append(content(engine, 2, 39))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*drawn, strict=True))


class Recording(Engine):
    """Keeps every engine made, how many rows were busy at each step, and the tokens fed to the model."""

    made: list[Recording]

    def __init__(self, backend: HFBackend, *args: object, **options: object) -> None:
        super().__init__(backend, *args, **options)
        self.loads = self.fed = 0
        self.busy: list[tuple[int, int]] = []
        type(self).made.append(self)

    def load(self, row: int, prompt: Sequence[int], completion: Sequence[int] = ()) -> None:
        self.loads += 1
        super().load(row, prompt, completion)

    def step(self) -> list[tuple[int, Segment]]:
        self.busy.append((int(self._busy.sum()), self.loads))
        return super().step()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """Engines that `PowerSampler` makes from now on; their forward passes count tokens, padding apart."""
    Recording.made = []
    look_at = RowCache.look_at

    def counting(cache, first, positions, slots, length):
        if Recording.made:
            Recording.made[-1].fed += int((slots != cache.trash).sum())
        look_at(cache, first, positions, slots, length)

    monkeypatch.setattr(RowCache, "look_at", counting)
    monkeypatch.setattr(lm_power.host, "Engine", Recording)
    return Recording.made


PROMPTS = [[5], [9, 8, 7], [1, 2, 3, 4] * 6, [9, 8, 6]]
OPTIONS = {"alpha": 2.0, "block_size": 5, "mcmc_steps": 3, "max_new_tokens": 15}


def test_prompts_are_prefilled_once_and_nothing_after_them(backend, recorded):
    """Guards: a prefill a repeat, or one after a Metropolis-Hastings step (the paper's released code)."""
    sampler = PowerSampler(backend.model, None, max_rows=3)
    out = sampler.generate([*PROMPTS, PROMPTS[1]], n=5, **OPTIONS)
    (engine,) = recorded
    assert engine.counters.prefilled == sum(len(prompt) - 1 for prompt in PROMPTS)
    stats = [c.stats for cs in out for c in cs]
    assert engine.counters.decoded == sum(s.tokens_decoded + s.tokens_dropped for s in stats)
    assert sum(s.tokens_prefetched for s in stats) > 0 < sum(s.tokens_dropped for s in stats)
    assert engine.fed == engine.counters.prefilled + engine.counters.decoded
    assert sampler.counters is engine.counters


def test_positions_that_must_be_read_are_counted(backend):
    """By hand: a token drawn after s tokens of prompt and completion reads s positions; idle rows count nothing."""
    engine = make_engine(backend)
    engine.load(1, PROMPT)
    engine.submit(1, request(0, 5, seed=1))
    run(engine, 1)
    assert engine.counters.attended == sum(len(PROMPT) + t for t in range(5))


def test_a_run_leaves_no_cache_behind(backend, monkeypatch):
    """Guards: a cache that waits for the garbage collector, while the next run takes the memory for its own."""
    made = []
    make = RowCache.__init__

    def remembered(self, *args, **options):
        made.append(weakref.ref(self))
        make(self, *args, **options)

    sampler = PowerSampler(backend.model, None, max_rows=3)
    monkeypatch.setattr(RowCache, "__init__", remembered)
    gc.collect()
    gc.disable()
    try:
        sampler.generate(PROMPTS, n=2, **OPTIONS)
        assert made and all(cache() is None for cache in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["power", "standard"])
def test_a_finished_row_is_refilled_at_once(backend, recorded, method):
    """Guards: batches in lockstep, where rows idle until the slowest is done."""
    sampler = PowerSampler(backend.model, None, max_rows=3, eos_token_ids=range(20))
    sampler.generate(PROMPTS, n=4, **suited(method, OPTIONS))
    (engine,) = recorded
    assert len(engine.busy) > 10
    assert all(busy == 3 or loads == 16 for busy, loads in engine.busy)
    assert engine.busy[-1][0] >= 1


@pytest.mark.parametrize(
    "method",
    ["power", "standard", *(pytest.param(name, marks=pytest.mark.slow) for name in ("power_inf", "temperature"))],
)
def test_completions_do_not_depend_on_rows_or_order(method):
    """Guards: random numbers or states that depend on the batch. In float64: token for token the same.

    (float32 is not held to this: see docs/limits.md.)
    """
    sampler = PowerSampler(make_model("qwen2", dtype=torch.float64), None, eos_token_ids=range(4))
    drawn = []
    for rows, prompts in [(1, PROMPTS), (7, PROMPTS), (64, PROMPTS), (3, PROMPTS[::-1])]:
        sampler.max_rows = rows
        out = sampler.generate(prompts, n=3, **suited(method, OPTIONS), seed=3)
        drawn.append(out if prompts is PROMPTS else out[::-1])
    flat = [[c for cs in out for c in cs] for out in drawn]
    for other in flat[1:]:
        assert [c.token_ids for c in other] == [c.token_ids for c in flat[0]]
        assert [c.stats.accepted for c in other] == [c.stats.accepted for c in flat[0]]
        for a, b in zip(other, flat[0], strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)
    assert len({c.token_ids for c in flat[0]}) > 9, "repeats must differ"


def test_every_eos_id_ends_a_completion(backend):
    """Guards: only the first of several EOS ids honoured, or the EOS token left out of the segment."""
    eos, seen = (EOS, 7, 21), set()
    engine = make_engine(backend, eos=eos)
    engine.load(0, PROMPT)
    for seed in range(30):
        engine.submit(0, request(0, 40, seed, beta=1.0))
        segment = run(engine, 0)
        *inner, last = segment.tokens.tolist()
        assert not set(inner) & set(eos)
        assert (segment.finished_by is FinishedBy.EOS) == (last in eos)
        seen.add(last)
    assert set(eos) <= seen


def test_logits_that_are_not_finite_raise(backend, monkeypatch):
    """Guards: a draw from NaN, which runs off the end of the vocabulary."""
    engine = make_engine(backend)
    engine.load(0, PROMPT)
    engine.submit(0, request(0, 5, seed=0))

    def undefined(cache: RowCache, tokens: torch.Tensor, *_: object) -> NextLogits:
        return NextLogits(*[torch.full((len(tokens), VOCABULARY), torch.nan)] * 2)

    monkeypatch.setattr(backend, "decode", undefined)
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.step()
