"""The chains against exact mathematics, on toys small enough to enumerate."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import (
    Scripted,
    Toy,
    WithCappedProposals,
    WithoutCutRatio,
    WithoutExclusion,
    WithTruncatedWeights,
    agreement,
    ancestral_law,
    decoded,
    law_after,
    own_law,
    power_law,
    proposals,
    random_toy,
    total_variation,
    trace,
    transition_matrix,
)

from lm_power.chains import EMPTY_PATH, Ancestral, BlockwiseMetropolis, PowerInf, Proposal, Stream
from lm_power.chains.metropolis import EMPTY_STATE
from lm_power.decoding import FinishedBy

BROKEN = [WithoutCutRatio, WithTruncatedWeights, WithCappedProposals]
MANY = 10**6  # steps a stage, where a test wants the stage never to end


@dataclasses.dataclass(frozen=True)
class Case:
    toy: Toy
    alpha: float
    tau: float
    horizon: int

    def chain(self, kind: type[BlockwiseMetropolis] = BlockwiseMetropolis, steps: int = MANY, **accelerations: bool):
        """A chain of one block."""
        return kind(self.alpha, 1 / self.tau, self.horizon, steps, self.horizon, **accelerations)


# Alpha is small and EOS unlikely, so that π spreads over completions of many lengths; the seeds are those of
# the first ten at which the known bugs show best (test_broken_chains_are_seen).
CASES = {
    "one EOS token": Case(random_toy(3, (2,), seed=6, eos_bias=-1), 2.0, 1 / 2, 4),
    "two EOS ids": Case(random_toy(4, (2, 3), seed=1, eos_bias=-2), 2.5, 1 / 2.5, 4),
    "a stop string of two tokens": Case(random_toy(3, (2,), stop=(1, 0), seed=9, eos_bias=-1), 2.0, 1 / 2, 5),
    "a proposal temperature other than 1/alpha": Case(random_toy(3, (2,), seed=6, eos_bias=-1), 3.0, 0.6, 4),
    "proposals from the model's own law": Case(random_toy(3, (2,), seed=6, eos_bias=-2), 2.0, 1.0, 4),
    "a length cap that cuts": Case(random_toy(3, (2,), seed=7, eos_bias=-2.5), 2.0, 1 / 2, 3),
}
coupled_or_not = pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "plain"])
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@coupled_or_not
@each_case
def test_the_target_is_invariant(case: Case, coupled: bool) -> None:
    """Guards against any error in the acceptance ratio: π P = π to 1e-12, with detailed balance.

    Exact, so no false alarms.
    """
    states, matrix = transition_matrix(case.toy, case.chain(coupled_resume=coupled))
    target = power_law(case.toy, states, case.alpha)
    assert states == list(case.toy.completions(case.horizon))
    assert np.exp(own_law(case.toy, states).log_p).sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12, rtol=0)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12, rtol=0)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-14, rtol=0)


@each_case
def test_coupled_resume_proposes_from_q(case: Case) -> None:
    """Guards the coupling: from any x and cut, what is proposed has the law q of a free draw, to 1e-12.

    So the matrix of a step is that of plain Metropolis-Hastings. Exact, so no false alarms. A coupling that may
    draw the refused token again is seen.
    """
    chain, seen = case.chain(), 0.0
    for x in case.toy.completions(case.horizon):
        for cut in range(len(x)):
            ends = list(case.toy.completions(case.horizon, x[:cut]))
            free = np.exp([case.toy.segment(y, cut, chain.beta, case.horizon).log_q.sum() for y in ends])
            laws = []
            for kind in (BlockwiseMetropolis, WithoutExclusion):
                law = dict.fromkeys(ends, 0.0)
                for _, y, probability in proposals(case.toy, case.chain(kind), x, cut):
                    law[y] += probability
                laws.append(np.array([*law.values()]))
            np.testing.assert_allclose(laws[0], free, atol=1e-12, rtol=0)
            seen = max(seen, total_variation(laws[1], free))
    assert seen > 0.1
    plain = transition_matrix(case.toy, case.chain(coupled_resume=False))[1]
    np.testing.assert_allclose(transition_matrix(case.toy, chain)[1], plain, atol=1e-12, rtol=0)


@each_case
@pytest.mark.parametrize("kind", [BlockwiseMetropolis, PowerInf])
def test_early_rejection_changes_no_verdict(case: Case, kind: type[BlockwiseMetropolis]) -> None:
    """Guards the bound: a proposal stopped early is one that would have been rejected, for every x, y and u.

    And the bound is worth having: some proposals are stopped. Exact, so no false alarms.
    """
    stopped = 0
    for repeat in range(100):
        stream = Stream.for_request(5, (1,), repeat)
        with_bound = list(trace(case.toy, case.chain(kind, steps=10), stream))
        without = list(trace(case.toy, case.chain(kind, steps=10, early_rejection=False), stream))
        for (before, move, info, after), (_, full, verdict, expected) in zip(with_bound, without, strict=True):
            assert info.kept is verdict.kept and after.tokens.tolist() == expected.tokens.tolist()
            if info.step and info.log_ratio is None:
                stopped += 1
                assert move.request.reject_below is not None and full.request.reject_below is None
                assert len(decoded(case.toy, before, move).tokens) < len(decoded(case.toy, before, full).tokens)
    assert stopped > 5


@each_case
def test_the_chain_tends_to_the_target(case: Case) -> None:
    """Guards against a chain that leaves π alone only because it does not move, or cannot grow back."""
    states, law = law_after(case.toy, case.chain(), steps=10_000)
    assert total_variation(law, power_law(case.toy, states, case.alpha)) < 1e-9


def test_the_cap_cuts() -> None:
    """Guards against a case of the list above that does not show what its name says."""
    case = CASES["a length cap that cuts"]
    states = list(case.toy.completions(case.horizon))
    cut = np.array([case.toy.ended(x, case.horizon) is FinishedBy.HORIZON for x in states])
    assert 0.3 < power_law(case.toy, states, case.alpha)[cut].sum() < 0.7


@each_case
@pytest.mark.parametrize("kind", [*BROKEN, WithoutExclusion])
def test_broken_chains_are_seen(case: Case, kind: type[BlockwiseMetropolis]) -> None:
    """Guards against an invariance test without teeth: each known bug moves π by > 5e-4 a step."""
    states, matrix = transition_matrix(case.toy, case.chain(kind))
    completions = list(case.toy.completions(case.horizon))
    target = np.zeros(len(states))  # a broken chain may also visit sequences that are not terminal
    target[: len(completions)] = power_law(case.toy, completions, case.alpha)
    assert total_variation(target @ matrix, target) > 5e-4


@coupled_or_not
@each_case
def test_one_step_follows_the_matrix(case: Case, coupled: bool) -> None:
    """Guards against a matrix of something else than what runs: one step of the chain, decoded and sampled.

    2000 steps each from the two likeliest completions, by chi-square; false-alarm probability 1e-5 a case.
    """
    chain = case.chain(coupled_resume=coupled)
    states, matrix = transition_matrix(case.toy, chain)
    index = {tokens: place for place, tokens in enumerate(states)}
    for start in np.argsort(power_law(case.toy, states, case.alpha))[-2:]:
        state = case.toy.state(states[start], chain.beta, case.horizon)
        counts = np.zeros(len(states))
        for repeat in range(2000):
            move = chain.next_move(state, Stream.for_request(0, states[start], repeat))
            after, _ = chain.settle(state, move, decoded(case.toy, state, move))
            counts[index[tuple(after.tokens.tolist())]] += 1
        assert agreement(counts, matrix[start]) > 5e-6


def test_cuts_are_uniform_and_variates_too() -> None:
    """Guards against a cut that is never 0 or never the last token, and against a skewed log u.

    Chi-square over (cut, fifth of u, fifth of the first uniform) jointly, so dependence shows as well;
    false-alarm probability 1e-5.
    """
    case = CASES["one EOS token"]
    state = case.toy.state((0, 1, 0, 2), 3.0, case.horizon)
    counts = np.zeros((4, 5, 5))
    for repeat in range(20_000):
        move = case.chain(coupled_resume=False).next_move(state, Stream.for_request(0, (7,), repeat))
        u = math.exp(move.log_uniform)
        counts[move.cut, min(int(5 * u), 4), int(5 * move.request.uniforms[0])] += 1
        assert move.request.keep == move.cut and len(move.request.uniforms) == case.horizon - move.cut
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-5


def test_coins_are_those_of_the_stored_log_q() -> None:
    """Guards coupled resume in `propose`: a cut or a u that depends on the coins, tokens kept too often or seldom.

    Chi-square over (cut, first refusal, fifth of u) jointly, and the first uniform of the draw is fresh in each;
    false-alarm probability 1e-5 each.
    """
    case = CASES["one EOS token"]
    state = case.toy.state((0, 1, 0, 2), 2.0, case.horizon)
    q, counts, law, fresh = np.exp(state.log_q), np.zeros((4, 5, 5)), np.zeros((4, 5)), np.zeros(5)
    for cut in range(4):
        law[cut, cut:4] = [q[cut:j].prod() * (1 - q[j]) / 4 for j in range(cut, 4)]
        law[cut, 4] = q[cut:].prod() / 4
    for repeat in range(20_000):
        move = case.chain().next_move(state, Stream.for_request(0, (7,), repeat))
        kept = 4 if move.request is None else move.request.keep
        counts[move.cut, kept, min(int(5 * math.exp(move.log_uniform)), 4)] += 1
        if move.request is not None:
            assert move.request.excluded_first_token == state.tokens[kept]
            assert len(move.request.uniforms) == case.horizon - kept
            fresh[int(5 * move.request.uniforms[0])] += 1
    assert agreement(counts.ravel(), np.repeat(law.ravel() / 5, 5)) > 1e-5
    assert scipy.stats.chisquare(fresh).pvalue > 1e-5


@pytest.mark.parametrize("kind", [BlockwiseMetropolis, WithoutCutRatio])
def test_acceptance_is_at_the_ratio(kind: type[BlockwiseMetropolis]) -> None:
    """Guards against an acceptance other than `log u ≤ r`, and against a rejection that changes the state."""
    case = CASES["a proposal temperature other than 1/alpha"]
    chain = case.chain(kind)
    ratios = []
    for x, y in itertools.permutations(case.toy.completions(case.horizon), 2):
        cut = next((t for t, (a, b) in enumerate(zip(x, y, strict=False)) if a != b))
        state = case.toy.state(x, chain.beta, case.horizon)
        coins = (np.arange(len(x)) == cut)[cut // 2 :]
        move = chain.next_move(state, Scripted(cut // 2, coins))  # the cut is not where they come to differ
        assert move.request.keep == cut
        segment = case.toy.segment(y, cut, chain.beta, case.horizon)
        _, info = chain.settle(state, move, segment)
        ratios.append(info.log_ratio)
        for log_uniform, accepted in [
            (info.log_ratio, True),
            (math.nextafter(info.log_ratio, math.inf), False),
            (math.nextafter(info.log_ratio, -math.inf), True),
        ]:
            after, info = chain.settle(state, dataclasses.replace(move, log_uniform=log_uniform), segment)
            expected = case.toy.state(y if accepted else x, chain.beta, case.horizon)
            assert info.kept is info.step.accepted is info.step.changed is accepted
            assert (after.step, after.stage, after.done) == (1, 1, False)
            for name in ("tokens", "log_p", "log_q"):
                np.testing.assert_array_equal(getattr(after, name), getattr(expected, name))
            assert after.finished_by is expected.finished_by
    assert min(ratios) < 0 < max(ratios)


@pytest.mark.parametrize("stop", [(), (1, 0)], ids=["EOS only", "stop string"])
def test_the_schedule_of_blocks(stop: tuple[int, ...]) -> None:
    """Guards against wrong horizons, a skipped or repeated stage, and a chain that ends early or late."""
    toy = random_toy(3, (2,), stop, seed=2, eos_bias=-2.0)
    block, steps, longest = 3, 2, 7
    chain = BlockwiseMetropolis(2.0, 2.0, block, steps, longest)
    assert [chain.horizon(k) for k in (1, 2, 3, 4)] == [3, 6, 7, 7]
    ends = set()
    for repeat in range(200):
        stage, step = 1, None
        for state, move, info, after in trace(toy, chain, Stream.for_request(0, (1,), repeat)):
            assert (state.stage, state.step) == (stage, step)
            horizon = min(stage * block, longest)
            if move.request is not None:
                assert move.request.horizon == horizon
                assert len(move.request.uniforms) == horizon - move.request.keep
            # A stage begins with an extension of everything so far, then makes N proposals.
            proposed = info.step is not None
            assert proposed is (step is not None) is isinstance(move, Proposal)
            assert proposed or move.request.keep == len(state)
            # What prefetch counts on: after a rejection, and where nothing was decoded, the next state is known.
            foretold = chain.after_rejection(state, move)
            assert (foretold is None) is not proposed
            if proposed and not info.step.changed:
                assert dataclasses.replace(foretold) == after and foretold.tokens is after.tokens
            assert proposed or state.finished_by in (None, FinishedBy.HORIZON)
            step = 0 if step is None else step + 1
            assert after.finished_by is toy.ended(tuple(after.tokens.tolist()), horizon)
            over = after.finished_by is not FinishedBy.HORIZON or horizon == longest
            assert after.done is (step == steps and over)
            if step == steps:
                stage, step = stage + 1, None
        ends.add((stage - 1, after.finished_by))
    last = {(3, FinishedBy.HORIZON), (3, FinishedBy.EOS), (2, FinishedBy.EOS), (1, FinishedBy.EOS)}
    # With the stop string hardly any chain gets to the end.
    assert ends >= (last - {(3, FinishedBy.HORIZON)} | {(1, FinishedBy.STOP)} if stop else last)


def test_a_completion_can_grow_back() -> None:
    """Guards against proposals capped at the current length: a chain that shortened must lengthen again."""
    case = CASES["one EOS token"]
    lengths = [
        len(after) - len(state)
        for repeat in range(20)
        for state, _, info, after in trace(case.toy, case.chain(steps=20), Stream.for_request(0, (1,), repeat))
        if info.step
    ]
    assert min(lengths) < 0 < max(lengths)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.integers(1, 4), tau=st.floats(0.2, 1.0))
def test_power_inf_never_lowers_log_p(seed: int, block: int, tau: float) -> None:
    """Guards against an acceptance of a worse completion, or of an equal one, and a refusal of a better."""
    toy = random_toy(3, (2,), seed=seed)
    chain = PowerInf(4.0, 1 / tau, block, 5, 4)
    for state, move, info, after in trace(toy, chain, Stream.for_request(seed, (1,), 0)):
        if not info.step:
            continue
        if move.request is None:
            assert info.kept and not info.step.changed and after.tokens is state.tokens
            continue
        asked = dataclasses.replace(move.request, reject_below=None)
        proposal = state.spliced(asked.keep, toy.decode(tuple(state.tokens[: asked.keep]), asked))
        before, offered = math.fsum(state.log_p), math.fsum(proposal.log_p)
        assert math.fsum(after.log_p) >= before
        assert info.log_ratio is None or info.log_ratio == pytest.approx(offered - before, abs=1e-12)
        if abs(offered - before) > 1e-12:
            assert info.step.changed is (offered > before)
        assert not (info.step.changed and np.array_equal(proposal.tokens, state.tokens))


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_ancestral_draws_once(beta: float) -> None:
    """Guards against a second step, a wrong temperature, or a state that is not marked as done."""
    toy = random_toy(4, (2, 3), seed=7)
    completions = list(toy.completions(4))
    counts = np.zeros(len(completions))
    for repeat in range(2000):
        ((state, move, info, after),) = trace(toy, Ancestral(beta, 4), Stream.for_request(0, (1,), repeat))
        assert state is EMPTY_PATH and move.lane == 0 and move.source is None
        request = move.request
        assert (request.keep, request.horizon, request.beta, request.reject_below) == (0, 4, beta, None)
        assert (info.step, info.kept) == (None, True)
        counts[completions.index(tuple(after.tokens.tolist()))] += 1
    # Chi-square; false-alarm probability 1e-5.
    assert agreement(counts, ancestral_law(toy, completions, beta)) > 1e-5


def test_streams_are_keyed_by_everything() -> None:
    """Guards against two chains, stages or steps that share random numbers, and against unseeded ones."""

    def numbers(seed=0, prompt=(1, 2), repeat=0, stage=1, step=1):
        return tuple(Stream.for_request(seed, prompt, repeat).at(stage, step).random(8).tolist())

    different = [
        numbers(),
        numbers(seed=1),
        numbers(seed=11),
        numbers(seed=1, repeat=1),
        numbers(repeat=1),
        numbers(repeat=11),
        numbers(prompt=(2, 1)),
        numbers(prompt=(12,)),
        numbers(prompt=(1, 2, 0)),
        numbers(prompt=(0, 1, 2)),
        *(numbers(stage=stage, step=step) for stage, step in itertools.product(range(1, 5), range(12))),
    ]
    different.remove(numbers())  # stage 1, step 1 is there twice: the same arguments, the same numbers
    seen = [number for row in different for number in row]
    assert len(set(seen)) == len(seen)
    assert numbers(seed=3, repeat=2) == numbers(seed=3, repeat=2)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(1.0, 20.0), share=st.floats(0.0, 1.0))
def test_token_weights_are_never_positive(seed: int, alpha: float, share: float) -> None:
    """Guards early rejection: for 1 ≤ 1/τ ≤ alpha every `w_t = alpha·log p − log q` is ≤ 0."""
    beta = 1 + share * (alpha - 1)
    toy = random_toy(5, (4,), seed=seed)
    chain = BlockwiseMetropolis(alpha, beta, 4, 1, 4)
    move = chain.next_move(EMPTY_STATE, Stream(b"%d" % seed))
    state, _ = chain.settle(EMPTY_STATE, move, decoded(toy, EMPTY_STATE, move))
    assert (alpha * state.log_p - state.log_q).max() <= 1e-12
