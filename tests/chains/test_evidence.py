"""log Z, its standard error, and how far the proposal is from p^alpha: each against the enumerated numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from toy import ancestral_law, drawn, own_law, power_law, random_toy

from lm_power.chains import SMC, Rejection, Stream, Tempering
from lm_power.chains.evidence import Evidence, mean_of_series, of_tries, pooled
from lm_power.chains.tempering import thermodynamic_log_z

ALPHA, LONGEST = 2.5, 4
TOY = random_toy(3, (2,), seed=6, eos_bias=-0.5)
STATES = list(TOY.completions(LONGEST))
LOG_Z = float(np.logaddexp.reduce(ALPHA * own_law(TOY, STATES).log_p))
TARGET = power_law(TOY, STATES, ALPHA)


def kl_from(beta: float) -> float:
    """KL(p^alpha ‖ q) by enumeration, nats."""
    return float((TARGET * np.log(TARGET / ancestral_law(TOY, STATES, beta))).sum())


def diagnostics(algorithm, runs: int) -> dict[str, np.ndarray]:
    results = [drawn(TOY, algorithm, Stream.for_request(1, (3,), repeat)).diagnostics for repeat in range(runs)]
    return {name: np.array([result[name] for result in results]) for name in results[0]}


def test_tries_tell_log_z_without_bias() -> None:
    """Guards the sums over tries: over the geometric distribution they have the stated expectations. Exact."""
    for z in (0.9, 0.3, 0.02):
        tries = np.arange(1, round(40 / z))
        law = z * (1 - z) ** (tries - 1)
        told = [of_tries(int(t), -0.5) for t in tries]
        log_z, error = np.array([one.log_z for one in told]), np.array([one.error for one in told])
        assert law @ log_z == pytest.approx(math.log(z), abs=1e-9)
        variance = law @ log_z**2 - (law @ log_z) ** 2
        assert law @ error**2 == pytest.approx(variance, abs=1e-9)
        assert law @ np.log(1 / tries) != pytest.approx(math.log(z), abs=1e-3)
        assert told[4].kl_from_proposal == pytest.approx(-0.5 + 1 + 1 / 2 + 1 / 3 + 1 / 4)


@pytest.mark.parametrize("beta", [ALPHA, 1.5])
def test_rejection_tells_log_z_and_the_divergence(beta: float) -> None:
    """Guards what a kept draw says, by its own code: within 4.5 standard errors over 1,000 draws."""
    found = diagnostics(Rejection(ALPHA, beta, LONGEST, 10_000), 1000)
    for name, expected in [("log_z", LOG_Z), ("kl_from_proposal", kl_from(beta))]:
        assert abs(found[name].mean() - expected) < 4.5 * scipy.stats.sem(found[name])
    assert (found["log_z_error"] ** 2).mean() == pytest.approx(found["log_z"].var(), rel=0.15)


@pytest.mark.parametrize(
    ("smc", "runs"),
    [
        (SMC(ALPHA, None, LONGEST, particles=64, resample_every=1, ess_threshold=0.0), 200),
        (SMC(ALPHA, None, LONGEST, particles=64, resample_every=1, ess_threshold=0.95), 200),
        (SMC(ALPHA, None, LONGEST, particles=16, resample_every=2, ess_threshold=0.9, sweeps=4), 200),
        (SMC(ALPHA, 1.0, LONGEST, particles=64, resample_every=2, ess_threshold=0.5), 200),
    ],
    ids=["never resampled", "resampled", "sweeps", "proposals from p"],
)
def test_particles_tell_log_z_with_its_error_and_the_divergence(smc: SMC, runs: int) -> None:
    """Guards the weights' mean, its error by families, and E[Σw]: within 4.5 standard errors over the runs.

    The stated error is that of the spread over runs: to a factor 1.3 where the particles are not resampled, and
    at most 1.8 times too large where they are, systematically. Means of log Ẑ are low by half the squared error.
    """
    found = diagnostics(smc, runs)
    z = np.exp(found["log_z"] - LOG_Z)
    assert abs(z.mean() - 1) < 4.5 * scipy.stats.sem(z)
    ratio = math.sqrt((found["log_z_error"] ** 2).mean()) / z.std()
    assert 1 / 1.3 < ratio < (1.3 if smc.ess_threshold == 0 else 1.8)
    bias = 2 * z.var()
    kl = found["kl_from_proposal"]
    expected = kl_from(ALPHA if smc.beta is None else smc.beta)
    assert abs(kl.mean() - expected) < 4.5 * scipy.stats.sem(kl) + bias


def test_a_ladder_tells_log_z_with_its_error_and_the_divergence() -> None:
    """Guards the ladder's integral and its error: to 2 % with six rungs, and the error that of the spread.

    The rounds of a chain are correlated; batches of six of them hold most of that.
    """
    ladder = (*(ALPHA ** (k / 5) for k in range(5)), ALPHA)
    found = diagnostics(Tempering(ladder, 72, LONGEST), 40)
    assert found["log_z"].mean() == pytest.approx(LOG_Z, rel=0.02)
    assert 0.7 < math.sqrt((found["log_z_error"] ** 2).mean()) / found["log_z"].std() < 1.4
    assert found["kl_from_proposal"].mean() == pytest.approx(kl_from(ALPHA), abs=0.03)


def test_the_first_half_of_the_rounds_is_left_out() -> None:
    """Guards log Z of a ladder against its start, which would be most of a mean over all of a few rounds."""
    told = []
    for repeat in range(20):
        tempering, stream = Tempering((1.0, 1.6, ALPHA), 7, LONGEST), Stream.for_request(1, (3,), repeat)
        state, rounds = tempering.start(), []
        while (result := tempering.result(state)) is None:
            moves = tempering.propose(state, stream)
            held = tempering.held(state)
            segments = [
                None if move.request is None else TOY.decode(
                    tuple(held[move.lane][: move.request.keep].tolist()), move.request, tempering.ladder
                )
                for move in moves
            ]  # fmt: skip
            state, _ = tempering.advance(state, moves, segments, stream)
            rounds.append([rung.log_p.sum() for rung in state.rungs])
        late = np.mean(rounds[4:], axis=0)  # the first entry is the start; four rounds of seven
        assert len(rounds) == 8
        assert [result.diagnostics[f"mean_log_p_{k + 1}"] for k in range(3)] == pytest.approx(list(late))
        assert result.diagnostics["log_z"] == pytest.approx(thermodynamic_log_z(tempering.ladder, list(late)))
        told.append(result.diagnostics["log_z_error"])
    assert min(told) >= 0


def test_what_cannot_be_told_is_left_out() -> None:
    """Guards metrics of nothing: one particle has no spread, few rounds no error, a ladder above 1 no log Z."""
    one = drawn(TOY, SMC(ALPHA, None, LONGEST, particles=1, resample_every=1), Stream.for_request(1, (3,), 0))
    assert "log_z" in one.diagnostics and "log_z_error" not in one.diagnostics
    few = drawn(TOY, Tempering((1.0, ALPHA), 6, LONGEST), Stream.for_request(1, (3,), 0))
    assert "log_z" in few.diagnostics and "log_z_error" not in few.diagnostics
    high = drawn(TOY, Tempering((1.5, ALPHA), 9, LONGEST), Stream.for_request(1, (3,), 0))
    assert not {"log_z", "log_z_error", "kl_from_proposal"} & high.diagnostics.keys()
    assert Evidence(-1.0, None, math.inf).diagnostics() == {"log_z": -1.0}


def test_independent_estimates_are_pooled_by_their_z() -> None:
    """Guards the mean over sweeps, worked out by hand: Z of 1 and 3, errors of 0.5 and 0.1 of them."""
    both = pooled([Evidence(0.0, 0.5, -1.0), Evidence(math.log(3), 0.1, -2.0)])
    assert both.log_z == pytest.approx(math.log(2))
    assert both.error == pytest.approx(math.hypot(0.5, 0.3) / 4)
    assert both.log_weight == pytest.approx((-1 - 3 * 2) / 4)
    singles = pooled([Evidence(0.0, None, -1.0), Evidence(math.log(3), None, -2.0)])
    assert singles.error == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))


def test_the_error_of_a_chains_mean_covers_its_correlation() -> None:
    """Guards the batches: AR(1) with correlation 0.5, whose mean has 3 times the variance of independent values."""
    generator, means, errors = np.random.default_rng(0), [], []
    for _ in range(300):
        noise, values = generator.normal(size=900), [0.0]
        for shock in noise:
            values.append(0.5 * values[-1] + shock)
        mean, error = mean_of_series(values[1:])
        means.append(mean)
        errors.append(error)
    assert math.sqrt(np.square(errors).mean()) == pytest.approx(np.std(means), rel=0.15)
    assert mean_of_series([1.0, 2.0, 6.0]) == (3.0, None)
