"""Sequential Monte Carlo on p^alpha, and its exact form, particle independent Metropolis-Hastings: `smc`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm_power.chains.base import EMPTY_PATH, Info, Move, Path, Result, Stream
from lm_power.chains.evidence import Evidence, of_particles, pooled
from lm_power.decoding import FloatArray, IntArray, Measures, Request, Segment

if TYPE_CHECKING:
    from lm_power.config import SamplerConfig

# Addresses in the stream: a lane's tokens are at (sweep, 0, lane), the resampling after block b at (sweep, b).
_CHOICE = -1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What one sweep of particles has come to.

    Attributes:
        path: one particle, drawn in proportion to the final weights.
        log_z: log Ẑ, nats; E[Ẑ] = Z_alpha = Σ_x p(x)^alpha.
        ess: effective sample size 1/ΣV² of the final weights, in particles.
        ancestors: distinct first blocks that the particles at the end descend from.
        resamplings: times that the particles were resampled.
    """

    path: Path
    log_z: float
    ess: float
    ancestors: int
    resamplings: int


@dataclasses.dataclass(frozen=True)
class State:
    """The particles of the sweep under way, and what earlier sweeps have come to.

    Attributes:
        particles: one path per lane.
        log_weights: [particles] unnormalised log weights since the last resampling, nats.
        log_z: log Ẑ up to the last resampling, nats.
        origin: [particles] the lane in which each particle's first block was drawn.
        source: lane whose completion a lane has to take over before it goes on; None: its own.
        block: blocks drawn in this sweep.
        resamplings: in this sweep.
        sweep: of the sweep under way, 1, 2, …
        current: the sweep whose path is the state of the chain of sweeps; None in the first one.
        accepted: sweeps accepted, after the first.
        evidence: what each finished sweep tells of Z_alpha.
    """

    particles: tuple[Path, ...]
    log_weights: FloatArray
    log_z: float
    origin: tuple[int, ...]
    source: tuple[int | None, ...]
    block: int = 0
    resamplings: int = 0
    sweep: int = 1
    current: Sweep | None = None
    accepted: int = 0
    evidence: tuple[Evidence, ...] = ()


@dataclasses.dataclass(frozen=True)
class SMC:
    """Power-SMC (Azizi et al. 2026), with an estimate of Z that is unbiased, and sweeps that make it exact.

    N particles are drawn side by side from q, in blocks of b tokens. A particle's log weight grows by
    `w_t = alpha_t·log p − log q` with every token. After a block, where the effective sample size 1/ΣV² of the
    normalised weights V is below κN, the particles are resampled (systematically, Kitagawa 1996), and the mean weight
    goes into Ẑ. EOS is absorbing. At the end one particle is returned with probability V.

    **What is exact.** `E[Ẑ·Σ_k V_k·1(x_k = x)] = p(x)^alpha` for every completion x, whatever N, κ and b. So E[Ẑ] =
    Z_alpha, and the returned particle's distribution tends to p^alpha as N grows; with one particle it is token-wise
    temperature. With R > 1 sweeps, each fresh sweep replaces the one before it with probability min(1, Ẑ'/Ẑ): particle
    independent Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010, section 4.2), which tends to p^alpha as R
    grows, at any N.

    With `alpha_ramp`, alpha_t rises linearly to alpha over the first tokens, block by block; when it changes, every
    particle's log weight, finished or not, grows by `(alpha_t − alpha_{t−1})·log p(x_<t)`, so that the target at the
    end is p^alpha all the same.

    Departures from the authors' code: random streams are seeded, so that repeats and sweeps differ; q reaches every
    token (no top-p); sweeps are combined by Ẑ; a particle ends at EOS, a stop string or the length limit alone.

    Attributes:
        alpha: exponent of the target.
        beta: inverse temperature 1/τ of the proposal; None: alpha_t.
        max_new_tokens: T, tokens.
        particles: N.
        ess_threshold: κ, in [0, 1].
        resample_every: b, tokens.
        alpha_ramp: tokens over which alpha_t rises; 0: none.
        sweeps: R.
        foreign: log q comes from another model than log p, so that token weights may be positive.
    """

    alpha: float
    beta: float | None
    max_new_tokens: int
    particles: int = 16
    ess_threshold: float = 0.5
    resample_every: int = 32
    alpha_ramp: int = 0
    sweeps: int = 1
    foreign: bool = False
    rewinds = False
    measures = Measures()

    @classmethod
    def from_config(cls, config: SamplerConfig) -> SMC:
        """The sampler that some options describe."""
        return cls(
            config.alpha,
            None if config.proposal_temperature is None else config.beta,
            config.max_new_tokens,
            config.particles,
            config.ess_threshold,
            config.resample_every,
            config.alpha_ramp,
            config.sweeps,
        )

    @property
    def lanes(self) -> int:
        """One per particle."""
        return self.particles

    def start(self) -> State:
        """No token drawn yet."""
        return self._fresh(1, None, 0, ())

    def _fresh(self, sweep: int, current: Sweep | None, accepted: int, evidence: tuple[Evidence, ...]) -> State:
        n = self.particles
        return State(
            (EMPTY_PATH,) * n, np.zeros(n), 0.0, tuple(range(n)), (None,) * n,
            sweep=sweep, current=current, accepted=accepted, evidence=evidence,
        )  # fmt: skip

    def held(self, state: State) -> Sequence[IntArray]:
        """What each particle has drawn, as far as it stands in the lane itself: see `State.source`."""
        return [particle.tokens for particle in state.particles]

    def alpha_at(self, block: int) -> float:
        """The exponent in force in block 0, 1, …: that of its last token on the ramp."""
        if self.alpha_ramp == 0:
            return self.alpha
        return 1 + (self.alpha - 1) * min(1.0, (block + 1) * self.resample_every / self.alpha_ramp)

    def propose(self, state: State, stream: Stream) -> Sequence[Move]:
        """A block for every particle that has not finished."""
        start = state.block * self.resample_every
        stop = min(start + self.resample_every, self.max_new_tokens)
        beta = self.alpha_at(state.block) if self.beta is None else self.beta
        return [
            Move(Request(start, stop, beta, stream.at(state.sweep, 0, lane).random(stop)[start:]), lane, source)
            for lane, (particle, source) in enumerate(zip(state.particles, state.source, strict=True))
            if not self._finished(particle)
        ]

    def advance(
        self, state: State, moves: Sequence[Move], segments: Sequence[Segment | None], stream: Stream
    ) -> tuple[State, Sequence[Info]]:
        """Weigh the block; then resample if the weights have become too uneven, or end the sweep if all have ended."""
        return self._settled(self.weighed(state, moves, segments), stream), (Info(kept=True),) * len(moves)

    def weighed(self, state: State, moves: Sequence[Move], segments: Sequence[Segment | None]) -> State:
        """The state with a block more, before any resampling."""
        alpha = self.alpha_at(state.block)
        before = alpha if state.block == 0 else self.alpha_at(state.block - 1)
        log_weights = state.log_weights.copy()
        if alpha != before:
            log_weights += (alpha - before) * np.array([particle.log_p.sum() for particle in state.particles])
        particles = list(state.particles)
        for move, segment in zip(moves, segments, strict=True):
            assert segment is not None and move.request is not None
            particles[move.lane] = particles[move.lane].spliced(move.request.keep, segment)
            gain = alpha * segment.log_p - segment.log_q
            # At τ = 1/alpha_t every increment is log Z ≤ 0 but for rounding; of another model's q it may be anything.
            tempered = self.beta is None and not self.foreign
            log_weights[move.lane] += np.minimum(gain, 0).sum() if tempered else gain.sum()
        return dataclasses.replace(
            state, particles=tuple(particles), log_weights=log_weights, block=state.block + 1,
            source=(None,) * self.particles,
        )  # fmt: skip

    def _settled(self, state: State, stream: Stream) -> State:
        if all(self._finished(particle) for particle in state.particles):
            return self._swept(state, stream)
        if self.ess(state.log_weights) >= self.ess_threshold * self.particles:
            return state
        return self.resampled(state, float(stream.at(state.sweep, state.block).random()))

    def resampled(self, state: State, uniform: float) -> State:
        """The particles resampled systematically, by one uniform; those that survive keep their lanes."""
        n = self.particles
        weights = np.exp(state.log_weights - np.logaddexp.reduce(state.log_weights))
        copies = np.bincount(systematic(weights, uniform), minlength=n)
        ancestor = list(range(n))
        free = [lane for lane in range(n) if copies[lane] == 0]
        for lane in range(n):
            for _ in range(copies[lane] - 1):
                ancestor[free.pop(0)] = lane
        return dataclasses.replace(
            state,
            particles=tuple(state.particles[a] for a in ancestor),
            log_weights=np.zeros(n),
            log_z=state.log_z + log_mean(state.log_weights),
            origin=tuple(state.origin[a] for a in ancestor),
            source=tuple(None if a == lane else a for lane, a in enumerate(ancestor)),
            resamplings=state.resamplings + 1,
        )

    def final_log_weights(self, state: State) -> FloatArray:
        """[particles] log weights at the end of a sweep: those of a ramp that is not over catch up with alpha."""
        missing = self.alpha - self.alpha_at(state.block - 1)
        return state.log_weights + missing * np.array([particle.log_p.sum() for particle in state.particles])

    def _swept(self, state: State, stream: Stream) -> State:
        """On to the next sweep, from one whose particles have all finished; after the last, the result is there."""
        generator = stream.at(state.sweep, _CHOICE)
        log_weights = self.final_log_weights(state)
        weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        chosen = int(np.searchsorted(np.cumsum(weights)[:-1], generator.random(), side="right"))
        swept = Sweep(
            state.particles[chosen],
            state.log_z + log_mean(log_weights),
            self.ess(log_weights),
            len(set(state.origin)),
            state.resamplings,
        )
        current, accepted = state.current, state.accepted
        if current is None or math.log1p(-generator.random()) <= swept.log_z - current.log_z:
            accepted += current is not None
            current = swept
        gains = np.array([(self.alpha * path.log_p - path.log_q).sum() for path in state.particles])
        evidence = of_particles(swept.log_z, log_weights, state.origin, gains)
        return self._fresh(state.sweep + 1, current, accepted, (*state.evidence, evidence))

    def if_rejected(self, state: State, moves: Sequence[Move]) -> None:
        """Nothing is rejected before a sweep has ended."""

    def work_left(self, state: State) -> float:
        """What the horizon leaves room for, in this sweep and in those to come."""
        sweeps = self.sweeps - state.sweep
        return float(self.max_new_tokens * (sweeps + 1) - state.block * self.resample_every)

    def result(self, state: State) -> Result | None:
        """The path of the chain of sweeps, once the last has ended."""
        if state.sweep <= self.sweeps:
            return None
        assert state.current is not None
        current = state.current
        numbers = pooled(state.evidence).diagnostics() | {
            "ess": current.ess,
            "ancestors": float(current.ancestors),
            "resamplings": float(current.resamplings),
        }
        if self.sweeps > 1:
            numbers["sweeps_accepted"] = state.accepted / (self.sweeps - 1)
        return Result(current.path, numbers)

    def _finished(self, particle: Path) -> bool:
        return particle.ended or len(particle) >= self.max_new_tokens

    @staticmethod
    def ess(log_weights: FloatArray) -> float:
        """Effective sample size `(Σ W)²/Σ W²`, in particles."""
        return float(np.exp(2 * np.logaddexp.reduce(log_weights) - np.logaddexp.reduce(2 * log_weights)))


def log_mean(log_weights: FloatArray) -> float:
    """`log (1/N)Σ exp`, nats."""
    return float(np.logaddexp.reduce(log_weights)) - math.log(len(log_weights))


def systematic(weights: FloatArray, uniform: float) -> IntArray:
    """[N] ancestors, in rising order: the places of (u + k)/N, k = 0 … N−1, in the cumulated weights.

    Args:
        weights: [N] normalised weights.
        uniform: u in [0, 1).
    """
    n = len(weights)
    ancestors: IntArray = np.searchsorted(np.cumsum(weights)[:-1], (uniform + np.arange(n)) / n, side="right")
    return ancestors
