"""Two models on the same rows: log p is the target's and log q the proposer's, whatever becomes of a row."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from engine.test_batch_shape import life, make_engine
from models import VOCABULARY, make_model, student_of
from toy import agreement

import lm_power.host
from lm_power import PowerSampler
from lm_power.decoding import Bound, Request
from lm_power.engine import Engine, HFBackend, StopStrings, UnsupportedModelError
from lm_power.engine.memory import needed
from lm_power.engine.paired import PairedBackend

PROMPTS = [[5], [9, 8, 7], [1, 2, 3, 4] * 2, [9, 8, 6], [3, 3]]
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def backend() -> PairedBackend:
    """Sliding and full layers, in float64; the student shares the weights and has an adapter."""
    base = make_model("qwen2-sliding", dtype=torch.float64)
    return PairedBackend(HFBackend(base), HFBackend(student_of(base)))


@pytest.fixture
def recorded(monkeypatch):
    """Every segment that an engine hands back, with the prompt and the tokens that it goes on from."""
    seen = []
    make = Engine._segment

    def segment(self, row, reason):
        made = make(self, row, reason)
        keep = int(self._keep[row])
        seen.append((self._prompts[row], self._history[row, 1 : keep + 1].tolist(), made))
        return made

    monkeypatch.setattr(Engine, "_segment", segment)
    return seen


def next_log_probs(model: torch.nn.Module, prompt, kept, tokens, beta: float = 1.0) -> torch.Tensor:
    """[tokens, vocabulary] nats, by one plain forward pass over the whole."""
    start = len(prompt) + len(kept) - 1
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *kept, *tokens]]), use_cache=False).logits[0, start:-1]
    return (beta * logits.double()).log_softmax(-1)


@pytest.mark.parametrize("ahead", [0, 1])
def test_both_models_see_what_a_plain_forward_pass_sees(backend, recorded, monkeypatch, ahead):
    """Guards: keys and values of one model left behind where a row is rewound, restored, copied, moved or refilled.

    Chains on fewer rows than there are jobs, with coupled resume and prefetch: log p and the entropy of every token
    against the base, log q against the student at the proposal's temperature, to 1e-8.
    """
    monkeypatch.setattr(lm_power.host, "Engine", functools.partial(Engine, ahead=ahead))
    models = [model.model for model in backend.models]
    sampler = PowerSampler(models[0], None, max_rows=5, eos_token_ids=range(4), proposer=models[1])
    options = {"alpha": 1.5, "proposal_temperature": TEMPERATURE, "block_size": 6, "mcmc_steps": 3, "cut": "entropy"}
    drawn = sampler.generate(PROMPTS, n=2, max_new_tokens=18, **options)
    stats = [completion.stats for completions in drawn for completion in completions]
    accepted, proposals = (sum(getattr(s, name) for s in stats) for name in ("accepted", "proposals"))
    assert 2 < accepted < proposals - 2, "the run must rewind, keep and restore"
    assert sampler.counters.moves > 0 and sum(s.tokens_coupled for s in stats) > 0
    assert len(recorded) > 40
    for prompt, kept, segment in recorded[::2]:
        at = torch.arange(len(segment.tokens)), torch.from_numpy(segment.tokens)
        log_p = next_log_probs(models[0], prompt, kept, segment.tokens)
        log_q = next_log_probs(models[1], prompt, kept, segment.tokens, 1 / TEMPERATURE)
        np.testing.assert_allclose(segment.log_p, log_p[at], atol=1e-8)
        np.testing.assert_allclose(segment.log_q, log_q[at], atol=1e-8)
        np.testing.assert_allclose(segment.entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-8)


def test_tokens_are_the_students(backend):
    """Guards: a draw from p whose log q is the student's. 4,000 first tokens; false-alarm probability 1e-5."""
    engine = make_engine(backend, rows=500)
    counts = np.zeros(VOCABULARY)
    for repeat in range(8):
        uniforms = np.random.default_rng(repeat).random((500, 1))
        for row in range(500):
            engine.load(row, [9, 8, 7])
            engine.submit(row, Request(0, 1, 1.0, uniforms[row]))
        for row, segment in engine.step():
            counts[segment.tokens[0]] += 1
            engine.rollback(row)
    base, student = (next_log_probs(m.model, [9, 8, 7], [], [0])[0].exp().numpy() for m in backend.models)
    assert counts.sum() == 4000
    assert agreement(counts, student) > 1e-5 > agreement(counts, base)


def test_rows_that_move_decode_as_rows_that_stay(backend):
    """Guards: one model's keys and values left behind at a row's old place. Float64: the same tokens."""
    fixed, shrinking = make_engine(backend, "fixed"), make_engine(backend)
    (expected, held), (segments, same_held) = life(fixed, 0), life(shrinking, 0)
    assert shrinking.counters.moves > 3 and held == same_held
    for segment, other in zip(segments, expected, strict=True):
        assert segment.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(segment.log_p, other.log_p, atol=1e-10)
        np.testing.assert_allclose(segment.log_q, other.log_q, atol=1e-10)


def test_a_bound_on_weights_that_may_rise_is_refused(backend):
    """Guards: an algorithm that was not told that its proposals are another model's; a bound on log p alone holds."""
    engine = make_engine(backend)
    engine.load(0, [5])
    request = Request(0, 3, 1.0, np.array([0.2, 0.5, 0.9]), reject_below=Bound(2.0, -1.0, 0.0, -9.0))
    with pytest.raises(ValueError, match="token weights may be positive"):
        engine.submit(0, request)
    engine.submit(0, dataclasses.replace(request, reject_below=Bound(1.0, 0.0, 0.0, -1e9)))


def test_the_plan_of_memory_counts_both_caches(backend):
    """Guards: `batch_size=auto` with twice as many rows as fit. Weights are shared, and counted by nobody."""
    device = backend.input_device
    one, both = (needed(models, device, 1000, 900) for models in (backend.target, backend))
    cache = sum(shape.bytes_per_position for shape in backend.target.shapes)
    assert both.saved == 2 * one.saved == 2 * cache * 900
    assert both.row - one.row >= cache * 1001 and both.row < 2.1 * one.row
    assert both.fixed > one.fixed


def test_models_of_other_tokens_are_refused(backend):
    """Guards: log p of a token that means another."""
    other = make_model("qwen2", dtype=torch.float64)
    other.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    with pytest.raises(UnsupportedModelError, match=f"is {VOCABULARY + 8}, that of the target {VOCABULARY}"):
        PairedBackend(backend.target, HFBackend(other))


def test_logits_of_the_proposer_that_are_not_finite_are_told():
    """Guards: tokens drawn from NaN, which the target finds ordinary."""
    base = make_model("qwen2")
    proposer = student_of(base)
    backend = PairedBackend(HFBackend(base), HFBackend(proposer))
    for name, weight in proposer.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(torch.nan)
    engine = Engine(backend, 1, 4, 4, (), StopStrings(None, [], VOCABULARY))
    engine.load(0, [5])
    engine.submit(0, Request(0, 2, 1.0, np.array([0.5, 0.5])))
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.step()
