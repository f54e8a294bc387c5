"""The algorithms of several lanes, and rejection, against exact laws: particles, ladders, tries, candidates."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
from toy import (
    Tokens,
    Toy,
    agreement,
    ancestral_law,
    drawn,
    own_law,
    power_law,
    random_toy,
    total_variation,
    transition_matrix,
)

from lm_power.chains import (
    SMC,
    Ancestral,
    BlockwiseMetropolis,
    Rejection,
    ScalablePowerSampling,
    Stream,
    Tempering,
    TriesExhausted,
)
from lm_power.chains.smc import State, Sweep, systematic

ALPHA, LONGEST = 2.5, 3
TOY = random_toy(3, (2,), seed=6, eos_bias=-1)
STOPPED = random_toy(3, (2,), stop=(1, 0), seed=9, eos_bias=-1)


def tokens_of(path) -> Tokens:
    return tuple(path.tokens.tolist())


def systematic_draws(weights: np.ndarray) -> Iterator[tuple[float, float]]:
    """(probability, a uniform) of every outcome of systematic resampling."""
    n = len(weights)
    edges = {0.0, 1.0, *(n * c - k for c in np.cumsum(weights)[:-1] for k in range(n) if 0 < n * c - k < 1)}
    for low, high in itertools.pairwise(sorted(edges)):
        yield high - low, (low + high) / 2


def sweeps(toy: Toy, smc: SMC, reset: bool = True) -> Iterator[tuple[float, State, np.ndarray, float]]:
    """Every sweep of particles, by the sampler's own weights and copies.

    Yields:
        Its probability, its last state, the final log weights and log Ẑ.
    """
    stack = [(1.0, smc.start())]
    while stack:
        probability, state = stack.pop()
        if all(smc._finished(particle) for particle in state.particles):
            log_weights = smc.final_log_weights(state)
            yield (
                probability,
                state,
                log_weights,
                state.log_z + np.logaddexp.reduce(log_weights) - math.log(smc.particles),
            )
            continue
        moves = smc.propose(state, Stream(b""))
        ways = []
        for move in moves:
            prefix, asked = tokens_of(state.particles[move.lane]), move.request
            ends = [
                toy.segment(y, asked.keep, asked.beta, asked.horizon) for y in toy.completions(asked.horizon, prefix)
            ]
            ways.append([(math.exp(end.log_q.sum()), end) for end in ends])
        for chosen in itertools.product(*ways):
            after = smc.weighed(state, moves, [segment for _, segment in chosen])
            here = probability * math.prod(p for p, _ in chosen)
            over = all(smc._finished(particle) for particle in after.particles)
            if over or smc.ess(after.log_weights) >= smc.ess_threshold * smc.particles:
                stack.append((here, after))
                continue
            weights = np.exp(after.log_weights - np.logaddexp.reduce(after.log_weights))
            for share, uniform in systematic_draws(weights):
                again = smc.resampled(after, uniform)
                if not reset:
                    kept = [after.log_weights[a] for a in _ancestors(after, again)]
                    again = dataclasses.replace(again, log_weights=np.array(kept))
                stack.append((here * share, again))


def _ancestors(before: State, after: State) -> list[int]:
    return [lane if source is None else source for lane, source in enumerate(after.source)]


def estimate(toy: Toy, smc: SMC, **options) -> tuple[np.ndarray, np.ndarray]:
    """`E[Ẑ·Σ_k V_k·1(x_k = x)]`, and the law of the returned particle, for every completion x."""
    completions = list(toy.completions(LONGEST))
    weighted, returned = np.zeros(len(completions)), np.zeros(len(completions))
    for probability, state, log_weights, log_z in sweeps(toy, smc, **options):
        shares = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        for particle, share in zip(state.particles, shares, strict=True):
            place = completions.index(tokens_of(particle))
            weighted[place] += probability * math.exp(log_z) * share
            returned[place] += probability * share
    return weighted, returned


@pytest.mark.parametrize("toy", [TOY, STOPPED], ids=["EOS", "stop string"])
@pytest.mark.parametrize(
    "options",
    [
        {"resample_every": 1},
        {"resample_every": 2},
        {"resample_every": 1, "alpha_ramp": 2},
        {"resample_every": 1, "alpha_ramp": 9},  # not over when the completions are
        {"resample_every": 1, "beta": 1.3},
        {"resample_every": 1, "ess_threshold": 1.0},
        {"resample_every": 1, "ess_threshold": 0.0},
    ],
    ids=str,
)
def test_particles_estimate_every_completions_weight(toy: Toy, options) -> None:
    """Guards weights, resampling, ramps and catch-up: `E[Ẑ·Σ V_k 1(x_k = x)] = p(x)^alpha` for every x, to 1e-12.

    So E[Ẑ] = Z_alpha. The returned particle alone follows another law. Exact, so no false alarms.
    """
    options = {"beta": None, "ess_threshold": 0.9, **options}
    smc = SMC(ALPHA, max_new_tokens=LONGEST, particles=2, **options)
    completions = list(toy.completions(LONGEST))
    exact = np.exp(ALPHA * own_law(toy, completions).log_p)
    weighted, returned = estimate(toy, smc)
    np.testing.assert_allclose(weighted, exact, atol=1e-12, rtol=0)
    assert returned.sum() == pytest.approx(1, abs=1e-12)
    assert total_variation(returned, power_law(toy, completions, ALPHA)) > 1e-3


@dataclasses.dataclass(frozen=True)
class WithoutCatchUp(SMC):
    """Broken: a ramp that is not over at the end leaves another target."""

    def final_log_weights(self, state):
        return state.log_weights


@dataclasses.dataclass(frozen=True)
class ForgetfulZ(SMC):
    """Broken: the mean weight at a resampling is lost."""

    def resampled(self, state, uniform):
        return dataclasses.replace(super().resampled(state, uniform), log_z=0.0)


@pytest.mark.parametrize("ramp", [0, 3])
def test_particles_that_another_model_proposes(ramp: int) -> None:
    """Guards a student's particles, whose weights may be positive: the identity holds, and not if they are clipped.

    To 1e-12, by enumeration.
    """
    toy = dataclasses.replace(TOY, student=random_toy(3, (2,), seed=12, eos_bias=-0.5), _tables={})
    completions = list(toy.completions(LONGEST))
    exact = np.exp(ALPHA * own_law(toy, completions).log_p)
    for beta in (1.0, None):
        smc = SMC(ALPHA, beta, LONGEST, 2, 0.9, 1, alpha_ramp=ramp, foreign=True)
        weighted, _ = estimate(toy, smc)
        np.testing.assert_allclose(weighted, exact, atol=1e-12, rtol=0)
    clipped, _ = estimate(toy, dataclasses.replace(smc, foreign=False))
    assert np.abs(clipped - exact).max() > 1e-3


def test_broken_particles_are_seen() -> None:
    """Guards against an identity without teeth: slips of public code, one by one."""
    exact = np.exp(ALPHA * own_law(TOY, list(TOY.completions(LONGEST))).log_p)
    common = {"beta": 1.0, "max_new_tokens": LONGEST, "particles": 2, "resample_every": 1, "ess_threshold": 0.9}
    broken = [
        estimate(TOY, SMC(ALPHA, **common), reset=False)[0],
        estimate(TOY, WithoutCatchUp(ALPHA, alpha_ramp=9, **common))[0],
        estimate(TOY, ForgetfulZ(ALPHA, **common))[0],
    ]
    for weighted in broken:
        assert np.abs(weighted - exact).max() > 1e-3


def test_sweeps_are_accepted_at_the_ratio_of_z() -> None:
    """Guards particle independent Metropolis-Hastings: exact invariance of its acceptance, and the acceptance itself.

    On pairs (Ẑ, x) a sweep proposes with its own law g; with min(1, Ẑ'/Ẑ) the law g·Ẑ is invariant, whose share of x is
    p(x)^alpha. That `advance` accepts so is seen at uniforms on both sides of the ratio.
    """
    smc = SMC(ALPHA, None, LONGEST, particles=2, resample_every=1, ess_threshold=0.9, sweeps=2)
    law: dict[tuple[float, Tokens], float] = {}
    for probability, state, log_weights, log_z in sweeps(TOY, smc):
        for particle, share in zip(
            state.particles, np.exp(log_weights - np.logaddexp.reduce(log_weights)), strict=True
        ):
            key = round(log_z, 12), tokens_of(particle)
            law[key] = law.get(key, 0.0) + probability * share
    g, z = np.array([*law.values()]), np.exp([key[0] for key in law])
    accept = np.minimum(1, z[None, :] / z[:, None])
    matrix = g[None, :] * accept
    matrix[np.diag_indices(len(g))] += 1 - matrix.sum(axis=1)
    target = g * z / (g * z).sum()
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12, rtol=0)
    completions = list(TOY.completions(LONGEST))
    marginal = np.zeros(len(completions))
    for (_, tokens), mass in zip(law, target, strict=True):
        marginal[completions.index(tokens)] += mass
    np.testing.assert_allclose(marginal, power_law(TOY, completions, ALPHA), atol=1e-12, rtol=0)

    one = TOY.segment(completions[0], 0, ALPHA, LONGEST)
    paths = (smc.start().particles[0].spliced(0, one),) * 2
    for ratio, margin in itertools.product([-0.7, -0.1, 0.4], [-1e-9, 1e-9]):
        before = Sweep(paths[0], 1.0, 1.0, 1, 0)
        state = dataclasses.replace(smc.start(), particles=paths, log_z=1.0 + ratio, block=3, sweep=2, current=before)
        uniforms = iter([0.5, -math.expm1(ratio + margin) if ratio < 0 else 0.0])

        class Fixed:
            def at(self, *address: int):
                return self

            def random(self, values=uniforms) -> float:
                return next(values)

        after = smc._swept(state, Fixed())
        assert (after.current is not before) is (ratio > 0 or margin < 0)


def test_one_particle_is_temperature_and_sweeps_differ() -> None:
    """Guards the streams: `smc` of one particle equals `temperature` token for token; particles and sweeps differ."""
    for repeat in range(50):
        stream = Stream.for_request(3, (1,), repeat)
        plain = drawn(TOY, Ancestral(ALPHA, LONGEST), stream)
        single = drawn(TOY, SMC(ALPHA, None, LONGEST, particles=1, resample_every=2), stream)
        assert tokens_of(single.path) == tokens_of(plain.path)
    smc = SMC(ALPHA, None, LONGEST, particles=4, resample_every=1, sweeps=6)
    first = smc.propose(smc.start(), Stream(b"x"))
    again = smc.propose(dataclasses.replace(smc.start(), sweep=2), Stream(b"x"))
    uniforms = [tuple(move.request.uniforms) for move in (*first, *again)]
    assert len(set(uniforms)) == len(uniforms)


def test_survivors_keep_their_lanes() -> None:
    """Guards copies that form cycles, or overwrite a row that others still copy from."""
    smc = SMC(ALPHA, None, LONGEST, particles=8, resample_every=1)
    generator = np.random.default_rng(0)
    for _ in range(200):
        state = dataclasses.replace(smc.start(), log_weights=2 * generator.normal(size=8))
        after = smc.resampled(state, generator.random())
        weights = np.exp(state.log_weights - np.logaddexp.reduce(state.log_weights))
        ancestors = _ancestors(state, after)
        assert all(after.source[a] is None for a in ancestors)
        counts = np.bincount(ancestors, minlength=8)
        assert (np.abs(counts - 8 * weights) < 1 + 1e-9).all()
    assert systematic(np.array([0.5, 0.0, 0.5]), 0.999).tolist() == [0, 2, 2]


def ladder_matrix(tempering: Tempering, ratio=None) -> tuple[list[Tokens], np.ndarray, np.ndarray]:
    """A round of two rungs as a matrix on pairs of completions, and the product of their targets."""
    lower, upper = (transition_matrix(TOY, tempering.kernel(rung))[1] for rung in (0, 1))
    states = list(TOY.completions(LONGEST))
    if tempering.redrawn(0):
        lower = np.tile(ancestral_law(TOY, states, 1.0), (len(states), 1))
    paths = [TOY.state(x, 1.0, LONGEST) for x in states]
    size = len(states)
    swap = np.zeros((size * size, size * size))
    for a, b in itertools.product(range(size), repeat=2):
        accept = math.exp(min(0.0, (ratio or tempering.log_swap_ratio)(0, paths[a], paths[b])))
        swap[a * size + b, b * size + a] += accept
        swap[a * size + b, a * size + b] += 1 - accept
    targets = [power_law(TOY, states, exponent) for exponent in tempering.ladder]
    return states, np.kron(lower, upper) @ swap, np.kron(*targets)


@pytest.mark.parametrize("ladder", [(1.0, 2.5), (1.6, 2.5)], ids=["a rung drawn afresh", "two chains"])
def test_a_round_of_tempering_leaves_the_product_invariant(ladder) -> None:
    """Guards the swap: Π p^{a_k} on pairs of completions is invariant to 1e-12; under two slips it is not. Exact."""
    tempering = Tempering(ladder, 5, LONGEST)
    _, matrix, target = ladder_matrix(tempering)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12, rtol=0)

    def per_token(k, lower, upper):
        return (ladder[1] - ladder[0]) * (lower.log_p.mean() - upper.log_p.mean())

    def without_gap(k, lower, upper):
        return float(lower.log_p.sum() - upper.log_p.sum())

    for broken in (per_token, without_gap):
        _, matrix, _ = ladder_matrix(tempering, broken)
        assert total_variation(target @ matrix, target) > 1e-4


def test_a_swapped_completion_is_weighed_at_its_new_rung() -> None:
    """Guards log q after a swap, which later steps weigh by: it is the one that the rung's own engine would report."""
    tempering = Tempering((1.0, 1.7, 2.5), 5, LONGEST)
    for x in TOY.completions(LONGEST):
        for rung, exponent in enumerate(tempering.ladder):
            path = dataclasses.replace(
                TOY.state(x, 1.7, LONGEST), log_z=TOY.segment(x, 0, 1.7, LONGEST, tempering.ladder).log_z
            )
            expected = TOY.segment(x, 0, exponent, LONGEST).log_q
            np.testing.assert_allclose(tempering.weighed(rung, path).log_q, expected, atol=1e-12)


def test_tempering_by_its_own_code() -> None:
    """Guards the hand-over between rungs and lanes: 700 runs against p^alpha (false-alarm probability 1e-5).

    One rung is `power` with one block, token for token.
    """
    states = list(TOY.completions(LONGEST))
    counts, swaps = np.zeros(len(states)), []
    for repeat in range(700):
        result = drawn(TOY, Tempering((1.0, 1.7, 2.5), 12, LONGEST), Stream.for_request(0, (1,), repeat))
        counts[states.index(tokens_of(result.path))] += 1
        swaps.append([result.diagnostics["swap_rate_1"], result.diagnostics["swap_rate_2"]])
        assert len(result.companions) == 2
    assert agreement(counts, power_law(TOY, states, ALPHA)) > 1e-5
    assert 0.2 < np.mean(swaps) < 0.95
    for repeat in range(30):
        stream = Stream.for_request(4, (2,), repeat)
        single = drawn(TOY, Tempering((ALPHA,), 6, LONGEST), stream)
        chain = drawn(TOY, BlockwiseMetropolis(ALPHA, ALPHA, LONGEST, 6, LONGEST), stream)
        assert tokens_of(single.path) == tokens_of(chain.path)


@pytest.mark.parametrize("early", [True, False])
def test_rejection_is_exact_and_counts_its_tries(early: bool) -> None:
    """Guards the test of a try, and its early end: 1,500 draws, by chi-square; false-alarm probability 1e-5.

    A try is kept with probability Z_alpha: the mean number of tries is within 5 standard errors of 1/Z.
    """
    states = list(TOY.completions(LONGEST))
    z = np.exp(ALPHA * own_law(TOY, states).log_p).sum()
    counts, tries = np.zeros(len(states)), []
    for repeat in range(1500):
        result = drawn(TOY, Rejection(ALPHA, 2.0, LONGEST, 10_000, early), Stream.for_request(2, (1,), repeat))
        counts[states.index(tokens_of(result.path))] += 1
        tries.append(result.diagnostics["tries"])
    assert agreement(counts, power_law(TOY, states, ALPHA)) > 1e-5
    assert abs(np.mean(tries) - 1 / z) < 5 * scipy.stats.sem(tries)


def test_rejection_gives_up_loudly() -> None:
    """Guards against a silent fallback: when the tries run out, the error says how far the target is."""
    with pytest.raises(
        TriesExhausted, match=r"none of max_tries=3 tries was kept; log Z_alpha is about -\d.*method=smc"
    ):
        for repeat in range(50):
            drawn(TOY, Rejection(8.0, 1.0, LONGEST, 3), Stream.for_request(2, (1,), repeat))


def test_one_candidate_is_temperature_and_more_come_closer() -> None:
    """Guards `sps`: one candidate is a draw from q; the error against p^alpha falls with candidates and rollouts.

    400 draws with a fixed seed.
    """
    toy, states = TOY, list(TOY.completions(LONGEST))
    target = power_law(toy, states, ALPHA)

    def error(**options: int) -> float:
        sps = ScalablePowerSampling(ALPHA, 1.0, LONGEST, block_size=1, rollout_length=LONGEST, **options)
        counts = np.zeros(len(states))
        for repeat in range(400):
            counts[states.index(tokens_of(drawn(toy, sps, Stream.for_request(6, (1,), repeat)).path))] += 1
        return total_variation(counts / 400, target)

    assert error(candidates=1, rollouts=1) > 2 * error(candidates=8, rollouts=4)
    for repeat in range(20):
        stream = Stream.for_request(1, (3,), repeat)
        single = ScalablePowerSampling(ALPHA, ALPHA, LONGEST, candidates=1, rollouts=1, block_size=LONGEST)
        assert len(drawn(toy, single, stream).path) >= 1


def test_the_jackknife_of_candidates() -> None:
    """Guards the formula `M·f − (M−1)·mean f_{−s}`, cut at 0 and normalised, and that one rollout has none."""
    sps = ScalablePowerSampling(ALPHA, ALPHA, LONGEST, candidates=3, rollouts=4)
    generator = np.random.default_rng(1)
    blocks, futures = generator.normal(size=3), generator.normal(size=(3, 4))

    def plain(futures: np.ndarray) -> np.ndarray:
        weights = np.exp(blocks) * np.exp(futures).mean(axis=1)
        return weights / weights.sum()

    expected = 4 * plain(futures) - 3 * np.mean([plain(np.delete(futures, s, 1)) for s in range(4)], axis=0)
    expected = np.maximum(expected, 0) / np.maximum(expected, 0).sum()
    np.testing.assert_allclose(sps.candidate_law(blocks, futures), expected, atol=1e-12)
    np.testing.assert_allclose(sps.candidate_law(blocks, futures[:, :1]), plain(futures[:, :1]), atol=1e-12)
    off = dataclasses.replace(sps, jackknife=False)
    np.testing.assert_allclose(off.candidate_law(blocks, futures), plain(futures), atol=1e-12)
