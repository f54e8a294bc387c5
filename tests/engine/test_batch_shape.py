"""A batch as large as its work: rows change places, and nothing that is drawn changes with them."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from methods import suited
from models import VOCABULARY, make_model

import lm_power.host
from lm_power import PowerSampler
from lm_power.config import OptionError
from lm_power.decoding import Request, Segment
from lm_power.engine import Engine, HFBackend, StopStrings
from lm_power.engine.widths import Widths

ROWS, PROMPT_LENGTH, ROOM = 8, 9, 30
PROMPTS = [[5], [9, 8, 7], [1, 2, 3, 4] * 2, [9, 8, 6], [3, 3]]


@pytest.fixture(scope="module")
def backend() -> HFBackend:
    """Sliding and full layers, in float64."""
    return HFBackend(make_model("qwen2-sliding", dtype=torch.float64))


def make_engine(backend: HFBackend, shape: str = "shrinking", ahead: int = 0, rows: int = ROWS) -> Engine:
    """An engine without EOS: lengths are those of the requests."""
    stops = StopStrings(None, [], VOCABULARY)
    return Engine(backend, rows, PROMPT_LENGTH, ROOM, (), stops, ahead=ahead, batch_shape=shape)


def request(keep: int, horizon: int, seed: int) -> Request:
    """A request with uniforms from a seed."""
    return Request(keep, horizon, 2.0, np.random.default_rng(seed).random(horizon - keep))


def life(engine: Engine, seed: int) -> tuple[list[Segment], list[list[int]]]:
    """Requests, verdicts, copies and withdrawals at random moments; the segments handed back, and what rows hold last.

    What is asked for, and when, depends on the seed and on what rows have been handed back alone.
    """
    generator = np.random.default_rng(seed)
    held = [0] * engine.rows  # tokens of the settled completions
    asked: dict[int, tuple[int, int]] = {}
    segments: dict[tuple[int, int], Segment] = {}
    for row in range(engine.rows):
        engine.load(row, generator.integers(1, VOCABULARY, generator.integers(1, PROMPT_LENGTH + 1)).tolist())
    for number in itertools.count():
        idle = [row for row in range(engine.rows) if row not in asked]
        if number < 5 * engine.rows and idle and generator.random() < 0.6:
            row = int(generator.choice(idle))
            keep = int(generator.integers(held[row] + 1))
            other = int(generator.integers(engine.rows))
            if other in idle and other != row and generator.random() < 0.3:
                keep = int(generator.integers(held[other] + 1))
                engine.copy(other, row, keep)
                held[row] = keep
            asked[row] = number, int(generator.integers(keep + 1, ROOM + 1))
            engine.submit(row, request(keep, asked[row][1], seed=number))
        elif asked and generator.random() < 0.05:
            row = int(generator.choice(sorted(asked)))
            engine.rollback(row)
            del asked[row]
        elif asked:
            for row, segment in engine.step():
                number_asked, horizon = asked.pop(row)
                segments[number_asked, row] = segment
                if number_asked % 3:
                    engine.commit(row)
                    held[row] = horizon
                else:
                    engine.rollback(row)
        if number >= 5 * engine.rows and not asked:
            break
    # What a row holds shows in what it goes on with.
    last = []
    for row in range(engine.rows):
        engine.submit(row, request(held[row] - (held[row] == ROOM), ROOM, seed=row))
    while len(last) < engine.rows:
        last += [(row, segment.tokens.tolist()) for row, segment in engine.step()]
    return [segment for _, segment in sorted(segments.items())], [tokens for _, tokens in sorted(last)]


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_move_decode_as_rows_that_stay(backend, seed):
    """Guards: state, uniforms, keys, saved tails or results left behind at a row's old place.

    Both engines are asked for the same at the same moments, with rewinds, copies and withdrawals between. Float64: the
    same tokens, and log-probabilities to 1e-10.
    """
    fixed, shrinking = make_engine(backend, "fixed"), make_engine(backend)
    expected, held = life(fixed, seed)
    segments, same_held = life(shrinking, seed)
    assert shrinking.counters.moves > 3 and fixed.counters.moves == 0
    assert same_held == held and len(segments) == len(expected) > 8
    for segment, other in zip(segments, expected, strict=True):
        assert segment.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(segment.log_p, other.log_p, atol=1e-10)
        np.testing.assert_allclose(segment.log_q, other.log_q, atol=1e-10)
    assert shrinking.counters.row_steps < 0.9 * fixed.counters.row_steps


def test_a_moved_row_decodes_as_a_plain_forward_pass_would(backend):
    """The last of many rows, long after the others: log p of each token against one forward pass over the whole."""
    engine = make_engine(backend)
    prompt = [5, 9, 33, 2, 17]
    for row in range(ROWS):
        engine.load(row, prompt)
        engine.submit(row, request(0, ROOM if row == ROWS - 1 else 3 + row, seed=row))
    drawn = {}
    while ROWS - 1 not in drawn:
        drawn |= dict(engine.step())
    assert engine.counters.moves > 0
    segment = drawn[ROWS - 1]
    with torch.inference_mode():
        logits = backend.model(torch.tensor([prompt + segment.tokens.tolist()])).logits[0, len(prompt) - 1 : -1]
    expected = logits.double().log_softmax(-1)[torch.arange(ROOM), torch.from_numpy(segment.tokens)]
    np.testing.assert_allclose(segment.log_p, expected, atol=1e-8)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("method", ["power", "standard", "smc", "tempering"])
def test_completions_do_not_depend_on_the_batch_shape(backend, method, ahead, monkeypatch):
    """Guards: what is drawn decided by places or moments. Also where results are read late, as on a GPU."""
    monkeypatch.setattr(lm_power.host, "Engine", functools.partial(Engine, ahead=ahead))
    options = suited(method, {"alpha": 2.0, "block_size": 5, "mcmc_steps": 2, "max_new_tokens": 10})
    if method == "smc":
        options |= {"particles": 3, "resample_every": 4}
    drawn = []
    for shape in ("fixed", "shrinking"):
        sampler = PowerSampler(backend.model, None, max_rows=ROWS, eos_token_ids=range(4), batch_shape=shape)
        drawn.append([c for cs in sampler.generate(PROMPTS[:3], n=2, **options) for c in cs])
    assert sampler.counters.row_steps < ROWS * sampler.counters.steps
    for completion, other in zip(*drawn, strict=True):
        assert completion.token_ids == other.token_ids
        np.testing.assert_allclose(completion.log_probs, other.log_probs, atol=1e-9)


def test_idle_rows_cost_little(backend):
    """Guards: a long tail at the price of the whole batch. One completion is five times as long as 63 others.

    The rows run, summed over the steps, are at most 1.15 times the busy ones; so is the time, for any cost of a step
    that grows with its rows.
    """
    engine = make_engine(backend, rows=64)
    for row in range(64):
        engine.load(row, [7, 8])
        engine.submit(row, request(0, ROOM if row == 40 else ROOM // 5, seed=row))
    busy = 0
    while engine._busy.any():
        busy += int(engine._busy.sum())
        engine.step()
    assert busy == engine.counters.decoded == 63 * (ROOM // 5) + ROOM
    assert engine.counters.row_steps <= 1.15 * busy


def test_a_batch_of_falling_lengths_shrinks_with_them(backend):
    """Rows end one by one: rows run are at most 1.15 times the busy ones, and each row moves a few times at most."""
    engine = make_engine(backend, rows=48)
    for row in range(48):
        engine.load(row, [7, 8])
        engine.submit(row, request(0, 1 + (row * ROOM) // 48, seed=row))
    while engine._busy.any():
        engine.step()
    assert engine.counters.row_steps <= 1.15 * engine.counters.decoded
    assert engine.counters.moves <= 2 * 48


@pytest.mark.parametrize("per_doubling", [2, 4])
def test_widths_are_few_and_close(per_doubling):
    """Each width is enough, and at most 1 + 1/per_doubling times what is needed; there are so many per doubling."""
    widths = [Widths(64, per_doubling).rounded(rows) for rows in range(1, 65)]
    assert all(rows <= width < rows * (1 + 1 / per_doubling) + 1e-9 for rows, width in enumerate(widths, start=1))
    assert widths == sorted(widths) and widths[:4] == [1, 2, 3, 4] and widths[-1] == 64
    assert len({width for width in widths if 32 < width <= 64}) == per_doubling


def test_prompts_that_are_read_together_are_read_as_each_alone(backend, monkeypatch):
    """Guards: padding that is seen, prompts mixed up between rows, and one that is read twice or too late.

    Prompts of one token, of as many as a pass takes, and of more; equal ones; a copy of a row that waits to be read.
    """
    monkeypatch.setattr(Engine, "PREFILL_CHUNK", 16)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(1, VOCABULARY, n).tolist() for n in (1, 9, 4, 7, 2, 8, 4)]
    prompts.insert(3, prompts[1])
    drawn, counted = [], []
    for shape in ("fixed", "shrinking"):
        engine = make_engine(backend, shape, rows=len(prompts) + 1)
        for row, prompt in enumerate(prompts):
            engine.load(row, prompt)
        engine.copy(1, len(prompts), 0)
        for row in range(engine.rows):
            engine.submit(row, request(0, 12, seed=row))
        segments = {}
        while len(segments) < engine.rows:
            segments |= dict(engine.step())
        drawn.append(segments)
        counted.append(engine.counters.prefilled)
    assert counted == [sum(len(prompt) - 1 for prompt in prompts) - len(prompts[1]) + 1] * 2
    for row, segment in drawn[0].items():
        assert segment.tokens.tolist() == drawn[1][row].tokens.tolist()
        np.testing.assert_allclose(segment.log_p, drawn[1][row].log_p, atol=1e-10)


def test_a_wrong_shape_is_refused():
    with pytest.raises(OptionError, match="batch_shape='growing': must be shrinking or fixed"):
        PowerSampler(make_model("qwen2"), None, batch_shape="growing")
