"""Formulas on distributions ("laws"), which are arrays of log-probabilities, nats, with the outcomes on the last axis.

Leading axes are independent distributions; each gives one value. An outcome of probability 0 has `log p = −inf`.
All functions here take array-likes, compute in float64, and raise ValueError for a distribution that does not sum to 1
within `NORMALISED_WITHIN`, for NaN, and for a parameter outside its range.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Numbers = FloatArray | np.float64  # one value for each leading index; a scalar where there is none

NORMALISED_WITHIN = 1e-9  # far above float64 rounding, far below float32's: renormalise what was computed in float32
_NEAR_ONE = 1e-2  # |order − 1| below which an entropy's numerator would cancel


def log_sum_exp(log_values: FloatArray) -> Numbers:
    """`log Σ exp(log_values)` over the last axis; −inf where all are."""
    largest = np.max(log_values, axis=-1, keepdims=True)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.sum(np.exp(log_values - shift), axis=-1)) + np.squeeze(shift, axis=-1)


def as_law(name: str, log_p: ArrayLike) -> FloatArray:
    """`log_p` as float64, checked: no NaN, at least one outcome, probabilities that sum to 1."""
    law = np.asarray(log_p, dtype=np.float64)
    if law.ndim == 0 or law.shape[-1] == 0:
        raise ValueError(f"{name} of shape {law.shape}: must have a last axis of one or more outcomes")
    total = log_sum_exp(law)
    off = np.max(np.abs(total))
    if not off <= NORMALISED_WITHIN:  # NaN included
        raise ValueError(
            f"{name}: |log Σ exp({name})| = {off:.3g}, must be at most {NORMALISED_WITHIN:g}; "
            f"subtract log Σ exp({name}), computed in float64, if only the scale is off"
        )
    return law


def two_laws(log_p: ArrayLike, log_q: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as `as_law`, checked to have equally many outcomes."""
    p, q = as_law("log_p", log_p), as_law("log_q", log_q)
    if p.shape[-1] != q.shape[-1]:  # a single outcome would pass as a broadcast
        raise ValueError(f"log_q has {q.shape[-1]} outcomes, log_p {p.shape[-1]}: must be over the same ones")
    return p, q


def positive(name: str, value: float, infinite: bool = False) -> float:
    """`value`, checked: > 0, and finite unless `infinite`."""
    if not value > 0 or (math.isinf(value) and not infinite):
        raise ValueError(f"{name}={value!r}: must be > 0{'' if infinite else ' and finite'}")
    return float(value)


def expectation(log_p: ArrayLike, values: ArrayLike) -> Numbers:
    """`E_p[f] = Σ_x p(x) f(x)`; outcomes of probability 0 do not count, whatever their value.

    Args:
        log_p: [..., outcomes] nats.
        values: f, [..., outcomes].
    """
    p = np.exp(as_law("log_p", log_p))
    return np.sum(np.where(p > 0, np.asarray(values, dtype=np.float64), 0.0) * p, axis=-1)


def covariance(log_p: ArrayLike, first: ArrayLike, second: ArrayLike) -> Numbers:
    """`Cov_p(f, g) = E_p[(f − E_p f)(g − E_p g)]`.

    Args:
        log_p: [..., outcomes] nats.
        first: f, [..., outcomes].
        second: g, [..., outcomes].
    """
    supported = np.isfinite(np.asarray(log_p, dtype=np.float64))
    f, g = (np.where(supported, np.asarray(values, dtype=np.float64), 0.0) for values in (first, second))
    f_mean, g_mean = (np.asarray(expectation(log_p, values))[..., None] for values in (f, g))
    return expectation(log_p, (f - f_mean) * (g - g_mean))


def log_power_sum(log_p: ArrayLike, alpha: float) -> Numbers:
    """`log Z_α = log Σ_x p(x)^α`.

    Args:
        log_p: [..., outcomes] nats.
        alpha: > 0.

    Returns:
        [...] nats.
    """
    return log_sum_exp(positive("alpha", alpha) * as_law("log_p", log_p))


def power_law(log_p: ArrayLike, alpha: float) -> FloatArray:
    """`log π_α(x) = α log p(x) − log Z_α`: the power distribution of p.

    Applied to next tokens, the same formula is token-wise tempering at temperature 1/α. Powers compose:
    `(p^α)^β = p^(αβ)`.

    Args:
        log_p: [..., outcomes] nats.
        alpha: > 0.

    Returns:
        [..., outcomes] nats.

    >>> np.exp(power_law(np.log([0.5, 0.25, 0.25]), 2)).round(4).tolist()
    [0.6667, 0.1667, 0.1667]
    """
    scaled = positive("alpha", alpha) * as_law("log_p", log_p)
    return scaled - np.asarray(log_sum_exp(scaled))[..., None]


def renyi_entropy(log_p: ArrayLike, order: float) -> Numbers:
    """`H_α(p) = log Σ p^α / (1 − α)`; `−Σ p log p` (Shannon) at α = 1, `−log max p` at α = ∞ (Rényi 1961).

    Args:
        log_p: [..., outcomes] nats.
        order: α, in (0, ∞].

    Returns:
        [...] nats; between 0 and log(outcomes), decreasing in α.

    >>> [round(float(renyi_entropy(np.log([0.5, 0.25, 0.25]), order)), 4) for order in (1, 2, math.inf)]
    [1.0397, 0.9808, 0.6931]
    """
    law, order = as_law("log_p", log_p), positive("order", order, infinite=True)
    if math.isinf(order):
        return -np.max(law, axis=-1)
    if order == 1:
        return -expectation(law, law)
    if abs(order - 1) < _NEAR_ONE:  # Σ p^α = 1 + Σ p (p^(α−1) − 1), without the cancellation
        surplus = np.exp(law) * np.expm1((order - 1) * np.where(np.exp(law) > 0, law, 0.0))
        return np.log1p(np.sum(surplus, axis=-1)) / (1 - order)
    return np.asarray(log_power_sum(law, order)) / (1 - order) + 0.0  # + 0.0: no −0.0


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Numbers:
    """`KL(p ‖ q) = Σ p (log p − log q)`; infinite where q lacks an outcome of p.

    With p = π_α and a student q this is what maximum likelihood on power samples minimises (forward KL).

    Args:
        log_p: [..., outcomes] nats.
        log_q: [..., outcomes] nats, over the same outcomes in the same order.

    Returns:
        [...] nats, >= 0 up to rounding.
    """
    p, q = two_laws(log_p, log_q)
    supported = np.isfinite(p)
    return expectation(p, np.where(supported, p, 0.0) - np.where(supported, q, 0.0))


def total_variation(log_p: ArrayLike, log_q: ArrayLike) -> Numbers:
    """`TV(p, q) = ½ Σ |p − q|`, in [0, 1]; arguments as for `kl_divergence`."""
    p, q = two_laws(log_p, log_q)
    return 0.5 * np.sum(np.abs(np.exp(p) - np.exp(q)), axis=-1)
