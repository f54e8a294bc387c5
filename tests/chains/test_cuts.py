"""Cuts that are not uniform, exploring steps and foreign proposals: every kernel leaves the target as it is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from chains.test_kernel import CASES, Case
from toy import agreement, drawn, own_law, power_law, random_toy, total_variation, trace, transition_matrix

from lm_power.chains import BlockwiseMetropolis, Stream
from lm_power.chains.cuts import EntropyCuts, LastBlockCuts, UniformCuts

CUTS = [EntropyCuts(0.8, 4.0), EntropyCuts(0.5, 1.0), LastBlockCuts(0.7, 1), LastBlockCuts(0.5, 2)]
each_cut = pytest.mark.parametrize("cuts", CUTS, ids=str)
QUICK = ("one EOS token", "a length cap that cuts", "proposals from the model's own law")
each_case = pytest.mark.parametrize(
    "case",
    [case if name in QUICK else pytest.param(case, marks=pytest.mark.slow) for name, case in CASES.items()],
    ids=CASES.keys(),
)


@dataclasses.dataclass(frozen=True)
class WithoutCutRatio(BlockwiseMetropolis):
    """Broken: the probabilities of the cuts are left out of the ratio."""

    def log_ratio(self, current, segment, keep, cut, explore=False):
        proposed = current.spliced(keep, segment)
        cuts = self.cuts.log_probability(proposed, cut) - self.cuts.log_probability(current, cut)
        return super().log_ratio(current, segment, keep, cut, explore) - cuts


@each_cut
@each_case
def test_the_target_is_invariant_under_other_cuts(case: Case, cuts) -> None:
    """Guards the ratio of the cut probabilities: π P = π to 1e-12, and not without it. Exact, so no false alarms."""
    chain = dataclasses.replace(case.chain(), cuts=cuts)
    states, matrix = transition_matrix(case.toy, chain)
    target = power_law(case.toy, states, case.alpha)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12, rtol=0)
    _, broken = transition_matrix(case.toy, dataclasses.replace(case.chain(WithoutCutRatio), cuts=cuts))
    assert total_variation(target @ broken, target) > 1e-4


@each_cut
def test_cuts_are_a_distribution_and_fall_as_a_completion_grows(cuts) -> None:
    """Guards the draw against its own probabilities (chi-square, false-alarm probability 1e-5), and the bound.

    The bound of early rejection has to hold for every completion that begins alike.
    """
    case = CASES["one EOS token"]
    for x in case.toy.completions(case.horizon):
        state = case.toy.state(x, 2.0, case.horizon)
        law = np.exp([cuts.log_probability(state, cut) for cut in range(len(x))])
        assert law.sum() == pytest.approx(1, abs=1e-12) and law.min() > 0
        for cut in range(len(x)):
            for keep in range(cut, len(x)):
                for y in case.toy.completions(case.horizon, x[:keep]):
                    other = case.toy.state(y, 2.0, case.horizon)
                    slope, most = cuts.most(state, keep, cut)
                    assert cuts.log_probability(other, cut) <= slope * math.log(len(y)) + most + 1e-12
    state = case.toy.state((0, 1, 0, 2), 2.0, case.horizon)
    generator, counts = np.random.default_rng(0), np.zeros(4)
    for _ in range(4000):
        counts[cuts.draw(state, generator)] += 1
    law = np.exp([cuts.log_probability(state, cut) for cut in range(4)])
    assert agreement(counts, law) > 1e-5


def test_a_draw_weighs_every_position_once() -> None:
    """Guards long completions: what a draw costs grows with their length, not with its square."""

    class Counted(EntropyCuts):
        calls = 0

        def probabilities(self, path, length):
            Counted.calls += 1
            return super().probabilities(path, length)

    cuts = Counted()
    state = CASES["one EOS token"].toy.state((0, 1, 0, 2), 2.0, 4)
    cuts.draw(state, np.random.default_rng(0))
    assert Counted.calls == 1
    law = cuts.probabilities(state, 4)
    assert np.log(law).tolist() == pytest.approx([cuts.log_probability(state, cut) for cut in range(4)], abs=1e-14)


@each_cut
def test_early_rejection_changes_no_verdict_under_other_cuts(cuts) -> None:
    """Guards the bound on proposals: those that are stopped would have been rejected. Exact, so no false alarms."""
    case, stopped = CASES["proposals from the model's own law"], 0
    for repeat in range(150):
        stream = Stream.for_request(5, (1,), repeat)
        chain = dataclasses.replace(case.chain(steps=10), cuts=cuts)
        with_bound = list(trace(case.toy, chain, stream))
        without = list(trace(case.toy, dataclasses.replace(chain, early_rejection=False), stream))
        for (_, _, info, after), (_, _, verdict, expected) in zip(with_bound, without, strict=True):
            assert info.kept is verdict.kept and after.tokens.tolist() == expected.tokens.tolist()
            stopped += info.step is not None and info.log_ratio is None
    assert stopped > 5


def confined(reach: int = 2) -> Case:
    return Case(random_toy(4, (3,), seed=3, eos_bias=-1), 1.5, 1 / 1.5, 3)


def test_exploring_steps_restore_what_confined_proposals_cannot_reach() -> None:
    """Guards the two kernels of an engine that returns the likeliest tokens only. Exact, so no false alarms.

    Steps from q alone leave π as it is, but never move to a token out of reach; exploring steps leave π as it is
    too, and with a share of them the chain tends to π from the confined q.
    """
    case = confined()
    toy = dataclasses.replace(case.toy, reach=2, _tables={})
    states, inside = transition_matrix(toy, case.chain())
    target = power_law(toy, states, case.alpha)
    assert states == list(toy.completions(case.horizon))
    np.testing.assert_allclose(target @ inside, target, atol=1e-12, rtol=0)
    _, exploring = transition_matrix(toy, dataclasses.replace(case.chain(), explore=0.5))
    np.testing.assert_allclose(target @ exploring, target, atol=1e-12, rtol=0)
    start = np.array([math.exp(toy.segment(x, 0, case.alpha, case.horizon).log_q.sum()) for x in states])
    assert start.sum() == pytest.approx(1)
    stuck = start @ np.linalg.matrix_power(inside, 10_000)
    assert total_variation(stuck, target) > 0.1
    mixed = start @ np.linalg.matrix_power(0.9 * inside + 0.1 * exploring, 10_000)
    assert total_variation(mixed, target) < 1e-9


def test_a_share_of_the_steps_explores() -> None:
    """Guards the option: 600 chains with a share of exploring steps follow π; false-alarm probability 1e-5."""
    case = confined()
    toy = dataclasses.replace(case.toy, reach=2, _tables={})
    states = list(toy.completions(case.horizon))
    counts = {True: np.zeros(len(states)), False: np.zeros(len(states))}
    for share in (0.4, 0.0):
        chain = dataclasses.replace(case.chain(steps=25), explore=share)
        for repeat in range(600):
            result = drawn(toy, chain, Stream.for_request(1, (2,), repeat))
            counts[share > 0][states.index(tuple(result.path.tokens.tolist()))] += 1
    target = power_law(toy, states, case.alpha)
    assert agreement(counts[True], target) > 1e-5
    assert agreement(counts[False], target) < 1e-12


def test_what_an_exploring_step_has_drawn_is_weighed_by_the_chains_own_proposals() -> None:
    """Guards a state that carries log q of another temperature after an exploring step was accepted. Exact."""
    case, explored = confined(), 0
    toy = dataclasses.replace(case.toy, reach=2, _tables={})
    chain = dataclasses.replace(case.chain(steps=10), explore=0.5)
    for repeat in range(30):
        for _, move, info, after in trace(toy, chain, Stream.for_request(1, (2,), repeat)):
            expected = toy.state(tuple(after.tokens.tolist()), chain.beta, case.horizon)
            np.testing.assert_allclose(after.log_q, expected.log_q, atol=1e-12)
            explored += info.kept and move.request is not None and move.request.explore
    assert explored > 10


@pytest.mark.parametrize("coupled", [True, False])
def test_another_models_proposals(coupled: bool) -> None:
    """Guards a student as proposal: weights may be positive, and clipping them is another law. Exact."""
    case = CASES["one EOS token"]
    toy = dataclasses.replace(case.toy, student=random_toy(3, (2,), seed=12, eos_bias=-0.5), _tables={})
    chain = BlockwiseMetropolis(
        2.0, 1.0, case.horizon, 10**6, case.horizon, coupled_resume=coupled, early_rejection=False, foreign=True
    )
    states, matrix = transition_matrix(toy, chain)
    target = power_law(toy, states, 2.0)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12, rtol=0)
    _, clipped = transition_matrix(toy, dataclasses.replace(chain, foreign=False))
    assert total_variation(target @ clipped, target) > 1e-3


def test_the_papers_blocks_miss_the_target_and_final_steps_reach_it() -> None:
    """Guards what is claimed of blocks: the schedule's own limit is enumerated, and is not π; with final steps π is.

    Stage k ends at the limit p^alpha of sequences cut at L_k; those that ended stay, the others go on. Exact.
    """
    toy, alpha, block, longest = random_toy(3, (2,), seed=4, eos_bias=-0.5), 1.5, 2, 6
    done: dict[tuple[int, ...], float] = {}
    alive: dict[tuple[int, ...], float] = {(): 1.0}
    for horizon in range(block, longest + 1, block):
        # At this horizon the chain tends to p^alpha on every sequence that begins as those still under way may begin.
        states = list(toy.completions(horizon))
        law = power_law(toy, states, alpha)
        mass = sum(alive.values())
        alive = {}
        # A chain that has gone on may be cut anywhere, so its limit has all completions at this horizon.
        for x, probability in zip(states, law, strict=True):
            over = toy.ended(x, horizon) is not None and (x[-1] in toy.eos_ids or horizon == longest)
            (done if over else alive)[x] = (done if over else alive).get(x, 0.0) + mass * probability
    states = list(toy.completions(longest))
    schedule = np.array([done.get(x, 0.0) for x in states])
    target = power_law(toy, states, alpha)
    assert schedule.sum() == pytest.approx(1, abs=1e-12)
    gap = total_variation(schedule, target)
    assert gap > 0.03
    final = BlockwiseMetropolis(alpha, alpha, longest, 10**6, longest)
    _, matrix = transition_matrix(toy, final)
    gaps = [total_variation(schedule @ np.linalg.matrix_power(matrix, m), target) for m in (0, 1, 4, 64, 1000)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-9

    # And the chain's own code makes those steps: 600 chains, false-alarm probability 1e-5.
    counts = np.zeros(len(states))
    chain = BlockwiseMetropolis(alpha, alpha, block, 4, longest, final_steps=30)
    for repeat in range(600):
        path = drawn(toy, chain, Stream.for_request(3, (5,), repeat)).path
        counts[states.index(tuple(path.tokens.tolist()))] += 1
    assert agreement(counts, target) > 1e-5


def test_final_steps_are_made_however_a_chain_ended() -> None:
    """Guards the schedule: M steps at the full length after the last stage, in a stage of their own."""
    toy = random_toy(3, (2,), seed=2, eos_bias=-2.0)
    chain = BlockwiseMetropolis(2.0, 2.0, 3, 2, 7, final_steps=3)
    ends = set()
    for repeat in range(100):
        last = [
            (state, info)
            for state, _, info, _ in trace(toy, chain, Stream.for_request(0, (1,), repeat))
            if state.stage == chain.stages + 1
        ]
        assert [state.step for state, _ in last] == [0, 1, 2] and all(info.step is not None for _, info in last)
        ends.add(last[0][0].finished_by)
    assert len(ends) == 2


def test_uniform_cuts_are_the_default() -> None:
    """Guards the paper's cut where none is asked for, and that the model's own law enters no test of its own."""
    assert CASES["one EOS token"].chain().cuts == UniformCuts()
    assert own_law(CASES["one EOS token"].toy, list(CASES["one EOS token"].toy.completions(4))).log_p.max() < 0
