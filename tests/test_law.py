"""The law of the samples through the whole stack, against every completion's exact probability.

Tiny random Qwen2 models in float64, prompts of token ids, all completions enumerated with plain forward passes.
20,000 chains on fewer rows exercise refilling, copying of the prompt's keys and values, rewinding and restoring.
Each test is a chi-square test with rare cells pooled; the seeds are fixed, so a suite that passes once passes
always, and the stated false-alarm probability is that of an honest change of the random numbers.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from toy import (
    Tokens,
    Toy,
    WithoutCutRatio,
    WithoutExclusion,
    WithTruncatedWeights,
    agreement,
    ancestral_law,
    law_after,
    power_law,
    total_variation,
    transition_matrix,
)
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lm_power import Completion, PowerSampler
from lm_power.chains import BlockwiseMetropolis, make_algorithm
from lm_power.config import SamplerConfig
from lm_power.decoding import FloatArray

EXACT = ("early_rejection", "prefetch")  # switches that change no completion
CHAINS = 20_000
ROWS = 512
FALSE_ALARM = 1e-4
PROMPT = (0, 1, 2, 1, 0)
LONGEST = 3
EOS_IDS = (3, 4)
# Seed and options at which seven steps leave next to no bias (test_power_has_converged), while completions of all
# lengths are likely, so that a missing cut ratio shows.
SEED = 65
POWER = {"alpha": 1.5, "block_size": LONGEST, "mcmc_steps": 7}
# With proposals from p itself the token weights of an untempered tail are large: weights cut short show here.
FLAT_SEED = 9
FLAT = {"alpha": 2.0, "proposal_temperature": 1.0, "block_size": LONGEST, "mcmc_steps": 5}


@functools.cache
def tiny_model(vocabulary: int, seed: int) -> Qwen2ForCausalLM:
    """A transformer with random weights, wide enough that its law depends on all that came before."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).double().eval()


def enumerable(model: Qwen2ForCausalLM, eos_ids: tuple[int, ...], stop: Tokens = ()) -> Toy:
    """The model after `PROMPT` as a toy: each prefix by one plain forward pass, without a cache."""

    def next_log_p(prefix: Tokens) -> FloatArray:
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *prefix]]), use_cache=False).logits[0, -1]
        return torch.log_softmax(logits, -1).numpy()

    return Toy(next_log_p, frozenset(eos_ids), stop)


def completions_of(model: Qwen2ForCausalLM, eos_ids, chains: int = CHAINS, tokenizer=None, **options):
    """Completions of `PROMPT` on `ROWS` rows, so that each row serves many chains."""
    sampler = PowerSampler(model, tokenizer, max_rows=ROWS, eos_token_ids=eos_ids)
    (drawn,) = sampler.generate([PROMPT], n=chains, max_new_tokens=LONGEST, **options)
    return drawn


def p_value(drawn: list[Completion], completions: list[Tokens], law: FloatArray) -> float:
    """Of the chi-square test that `drawn` follows `law`."""
    counts = collections.Counter(completion.token_ids for completion in drawn)
    assert counts.keys() <= set(completions), "a completion that is not terminal, or longer than it may be"
    return agreement(np.array([float(counts[tokens]) for tokens in completions]), law)


def exact_power_law(toy: Toy, **options) -> tuple[list[Tokens], FloatArray]:
    """All completions and the exact law of `power` after its N steps, `init_q · P^N`."""
    config = SamplerConfig(max_new_tokens=LONGEST, **options)
    return law_after(toy, make_algorithm(config), config.mcmc_steps)


def test_power_has_converged() -> None:
    """Guards against comparing a chain with a law that is not yet π: what bias is left after N steps?

    Exact: total variation, and by how much the bias raises the chi-square statistic of the test below, whose
    standard deviation is about 8.
    """
    toy = enumerable(tiny_model(5, SEED), EOS_IDS)
    completions, law = exact_power_law(toy, **POWER)
    target = power_law(toy, completions, POWER["alpha"])
    assert total_variation(law, target) < 0.004
    assert CHAINS * ((law - target) ** 2 / target).sum() < 1.5
    assert total_variation(ancestral_law(toy, completions, POWER["alpha"]), target) > 0.1


@pytest.mark.parametrize(
    "coupled", [pytest.param(True, id="coupled"), pytest.param(False, id="plain", marks=pytest.mark.slow)]
)
def test_power_with_two_eos_ids(coupled: bool) -> None:
    """Guards the whole stack under `power`: 20,000 chains of one block against `init_q · P^N`, and against π.

    With and without coupled resume; the other accelerations change no completion (the next test). False-alarm
    probability 1e-4 each.
    """
    model = tiny_model(5, SEED)
    toy = enumerable(model, EOS_IDS)
    completions, law = exact_power_law(toy, **POWER)
    drawn = completions_of(model, EOS_IDS, **POWER, coupled_resume=coupled)
    assert p_value(drawn, completions, law) > FALSE_ALARM
    assert p_value(drawn, completions, power_law(toy, completions, POWER["alpha"])) > FALSE_ALARM
    # And the test can tell π from where the chains began, and from another alpha.
    assert p_value(drawn, completions, ancestral_law(toy, completions, POWER["alpha"])) < 1e-12
    assert p_value(drawn, completions, power_law(toy, completions, POWER["alpha"] + 0.3)) < 1e-12
    for completion in drawn[:100]:
        assert completion.finish_reason == toy.ended(completion.token_ids, LONGEST).value


@pytest.mark.parametrize("method", ["power", pytest.param("power_inf", marks=pytest.mark.slow)])
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "plain"])
def test_exact_accelerations_change_no_completion(coupled: bool, method: str) -> None:
    """Guards every acceleration on, off and in pairs: the same chains, token for token, with less decoded.

    In float64; by the test above those chains have the right law.
    """
    model = tiny_model(5, FLAT_SEED)
    drawn = {}
    for on in itertools.product([True, False], repeat=len(EXACT)):
        options = {**FLAT, "method": method, "coupled_resume": coupled, **dict(zip(EXACT, on, strict=True))}
        drawn[on] = completions_of(model, EOS_IDS, 700, **options)
    plain = drawn.pop((False,) * len(EXACT))
    for completions in drawn.values():
        for c, expected in zip(completions, plain, strict=True):
            assert (c.token_ids, c.steps) == (expected.token_ids, expected.steps)
            np.testing.assert_allclose(c.log_probs, expected.log_probs, atol=1e-12)
        assert sum(c.stats.tokens_decoded for c in completions) <= sum(c.stats.tokens_decoded for c in plain)


@pytest.mark.parametrize(
    ("kind", "seed", "options"),
    [(WithoutExclusion, SEED, POWER), (WithoutCutRatio, SEED, POWER), (WithTruncatedWeights, FLAT_SEED, FLAT)],
)
def test_broken_samplers_are_rejected(kind, seed: int, options: dict[str, float], monkeypatch) -> None:
    """Guards against a chi-square test without teeth: the released code's bugs, with a fifth of the chains."""

    def broken(config: SamplerConfig, foreign: bool = False) -> BlockwiseMetropolis:
        return kind(**vars(make_algorithm(config)))

    model = tiny_model(5, seed)
    completions, law = exact_power_law(enumerable(model, EOS_IDS), **options)
    monkeypatch.setattr("lm_power.sampler.make_algorithm", broken)
    assert p_value(completions_of(model, EOS_IDS, CHAINS // 5, **options), completions, law) < 1e-12


def test_power_with_proposals_from_the_models_own_law() -> None:
    """Guards a proposal temperature other than 1/alpha, at the options that reject truncated weights.

    4,000 chains; false-alarm probability 1e-4.
    """
    model = tiny_model(5, FLAT_SEED)
    completions, law = exact_power_law(enumerable(model, EOS_IDS), **FLAT)
    assert p_value(completions_of(model, EOS_IDS, CHAINS // 5, **FLAT), completions, law) > FALSE_ALARM


@pytest.mark.parametrize(
    ("method", "options", "beta"),
    [
        ("standard", {}, 1.0),
        ("temperature", {"alpha": 2.5}, 2.5),
        ("temperature", {"proposal_temperature": 0.5}, 2.0),
    ],
)
def test_ancestral_sampling(method: str, options: dict[str, float], beta: float) -> None:
    """Guards `standard` (Π p) and `temperature` (Π q): 20,000 draws each; false-alarm probability 1e-4."""
    model = tiny_model(5, FLAT_SEED)
    toy = enumerable(model, EOS_IDS)
    completions = list(toy.completions(LONGEST))
    drawn = completions_of(model, EOS_IDS, method=method, **options)
    assert p_value(drawn, completions, ancestral_law(toy, completions, beta)) > FALSE_ALARM
    # And the test can tell the two temperatures apart.
    assert p_value(drawn[:4000], completions, ancestral_law(toy, completions, beta + 0.5)) < 1e-12


def words() -> PreTrainedTokenizerFast:
    """One letter a token, and nothing between them in a text."""
    inner = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "</s>": 3}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def test_power_with_a_stop_string_of_two_tokens() -> None:
    """Guards ends by stop strings: they are part of the state, may be cut in two, and count in log p.

    4,000 chains of two steps at the default proposal temperature 1/alpha, against the exact law after two
    steps; false-alarm probability 1e-4.
    """
    model = tiny_model(4, seed=11)
    toy = enumerable(model, (3,), stop=(1, 0))
    options = {"alpha": 1.5, "block_size": LONGEST, "mcmc_steps": 2}
    completions, law = exact_power_law(toy, **options)
    ended = np.array([toy.ended(x, LONGEST).value for x in completions])
    assert min(law[ended == reason].sum() for reason in ("eos", "stop", "length")) > 0.05
    drawn = completions_of(model, (3,), CHAINS // 5, words(), stop=["ba"], **options)
    assert p_value(drawn, completions, law) > FALSE_ALARM
    for completion in drawn[:200]:
        letters = "".join("abc."[token] for token in completion.token_ids).rstrip(".")
        assert completion.finish_reason == toy.ended(completion.token_ids, LONGEST).value
        assert completion == letters.removesuffix("ba")


def test_the_blocks_follow_their_exact_law() -> None:
    """Guards the hand-over between stages: extension from the kept tokens, and early ends staying ended.

    4,000 chains of two blocks with one step each, against the exact law of that schedule, which is
    computed from the one-block transition matrices; false-alarm probability 1e-4.
    """
    model = tiny_model(5, FLAT_SEED)
    toy = enumerable(model, EOS_IDS)
    options = {"alpha": 2.0, "block_size": 2, "mcmc_steps": 1}
    chain = make_algorithm(SamplerConfig(max_new_tokens=LONGEST, **options))
    first, law = law_after(toy, dataclasses.replace(chain, max_new_tokens=2), 1)
    last, matrix = transition_matrix(toy, dataclasses.replace(chain, block_size=LONGEST))
    place = {tokens: at for at, tokens in enumerate(last)}
    extended, done = np.zeros(len(last)), np.zeros(len(last))
    for tokens, probability in zip(first, law, strict=True):
        if toy.ended(tokens, LONGEST):
            done[place[tokens]] += probability
            continue
        for longer in toy.completions(LONGEST, tokens):
            log_q = toy.segment(longer, len(tokens), chain.beta, LONGEST).log_q.sum()
            extended[place[longer]] += probability * np.exp(log_q)
    drawn = completions_of(model, EOS_IDS, CHAINS // 5, **options)
    assert p_value(drawn, last, done + extended @ matrix) > FALSE_ALARM
