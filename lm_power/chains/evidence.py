"""Estimates of Z_alpha = Σ_x p(x)^alpha, and of how far a proposal is from p^alpha."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lm_power.decoding import FloatArray


@dataclasses.dataclass(frozen=True)
class Evidence:
    """An estimate of log Z_alpha.

    Attributes:
        log_z: nats.
        error: its standard error, nats; None if it cannot be estimated.
        log_weight: estimate of E_π[Σ_t w_t], with π ∝ p^alpha and `w_t = alpha·log p − log q`; nats.
    """

    log_z: float
    error: float | None
    log_weight: float

    @property
    def kl_from_proposal(self) -> float:
        """`KL(π‖q) = E_π[log π − log q] = E_π[Σ_t w_t] − log Z_alpha`, nats; an estimate can fall below 0."""
        return self.log_weight - self.log_z

    def diagnostics(self) -> dict[str, float]:
        """The numbers by name, without those that are unknown or not finite."""
        numbers = {"log_z": self.log_z, "log_z_error": self.error, "kl_from_proposal": self.kl_from_proposal}
        return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def of_particles(
    log_z: float, log_weights: FloatArray, origin: Sequence[int], path_log_weights: FloatArray
) -> Evidence:
    """The evidence of a sweep of N ≥ 1 particles.

    The error is that of Chan & Lai (2013): particles that descend from the same first block count as one,

        Var Ẑ / Z² ≈ N/(N − 1) · Σ_e (V_e − 1/N)²,    V_e = Σ of the normalised final weights of e's descendants,

    Without resampling this is the sample variance of the weights divided by N. It is derived for multinomial resampling
    and somewhat too large for systematic resampling. If all particles descend from one, it is 1, which says only that
    the sweep cannot tell. The error of log Ẑ is that of Ẑ divided by Z.

    Args:
        log_z: log Ẑ, nats.
        log_weights: [N] final log weights, up to a constant.
        origin: [N] the first block that each particle descends from, in 0 … N−1.
        path_log_weights: [N] Σ_t w_t of each particle, nats.
    """
    n = len(log_weights)
    shares = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    families = np.bincount(np.asarray(origin), weights=shares, minlength=n)
    error = math.sqrt(n / (n - 1) * float(((families - 1 / n) ** 2).sum())) if n > 1 else None
    return Evidence(log_z, error, float(shares[shares > 0] @ path_log_weights[shares > 0]))


def pooled(independent: Sequence[Evidence]) -> Evidence:
    """The evidence from several independent Ẑ of equal cost: their mean, which is unbiased if each of them is."""
    log_zs = np.array([one.log_z for one in independent])
    total = float(np.logaddexp.reduce(log_zs))
    shares = np.exp(log_zs - total)
    known = [one.error for one in independent if one.error is not None]
    error: float | None = None
    if len(known) == len(log_zs):
        error = float(np.sqrt(((shares * np.array(known)) ** 2).sum()))
    elif len(log_zs) > 1:  # single draws have no error of their own: only their spread shows it
        error = relative_error(shares)
    log_weight = float(shares @ np.array([one.log_weight for one in independent]))
    return Evidence(total - math.log(len(log_zs)), error, log_weight)


def relative_error(values: FloatArray) -> float:
    """Standard error of the mean of [n ≥ 2] independent values, over their mean."""
    return float(values.std(ddof=1) / values.mean() / math.sqrt(len(values)))


def of_tries(tries: int, log_weight: float) -> Evidence:
    """The evidence from rejection sampling that kept its T-th try, where T is geometric with mean 1/Z.

    `−Σ_{j<T} 1/j` is an unbiased estimate of log Z, since `E[Σ_{j<T} 1/j] = Σ_j P(T > j)/j = Σ_j (1 − Z)^j/j = −log Z`;
    log(1/T) is biased. `Σ_{j<T} 1/j²` is an unbiased estimate of its variance, Li₂(1 − Z), which is at most π²/6.

    Args:
        tries: T.
        log_weight: Σ_t w_t of the completion that was kept: a draw from p^alpha.
    """
    inverse = 1 / np.arange(1, tries)
    return Evidence(-float(inverse.sum()), math.sqrt(float((inverse**2).sum())), log_weight)


def mean_of_series(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of successive values of a chain, and its standard error by the means of about √n batches of √n.

    The error is None for fewer than 4 values. It accounts for the chain's autocorrelation only as far as that dies off
    within a batch.
    """
    series = np.array(values)
    size = math.isqrt(len(series))
    if size < 2:
        return float(series.mean()), None
    # Batches are counted from the end; values left over at the start are not used for the error.
    count = len(series) // size
    means = series[len(series) - count * size :].reshape(count, size).mean(axis=1)
    return float(series.mean()), float(means.std(ddof=1) / math.sqrt(count))
