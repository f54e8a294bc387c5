"""Six more pictures of the same law: what the paper's figures leave open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from drawing import ALPHA, ALPHAS, COLOURS, LINES, MARKERS, bars, line, panels
from matplotlib.figure import Figure
from monte_carlo import SIZES, power_by_rollouts, weight_estimates
from zipf import ZipfLaw

from lm_power import theory


def entropies(law: ZipfLaw) -> Figure:
    """How uncertain is what follows each token, by the order of the Rényi entropy."""
    figure, (right,) = panels(1)
    marks = np.unique(np.geomspace(1, law.candidates, 24).astype(int)) - 1
    for at, (order, name) in enumerate([(1, "1 (Shannon)"), (2, "2"), (ALPHA, f"{ALPHA:g}"), (np.inf, "∞")]):
        line(right, at, law.ranks, law.entropies(order), f"order {name}", every=1)
        right.lines[-1].set_markevery(marks[at::4].tolist())
    right.axhline(np.log(law.suffixes), color="0.4", linewidth=1)
    right.text(1, np.log(law.suffixes) + 0.1, f"log {law.suffixes}: uniform", color="0.3")
    right.set(title="Rényi entropy of the suffix", xlabel="rank of the token", ylabel="nats", xscale="log")
    right.set_ylim(0, np.log(law.suffixes) + 2.4)
    right.legend(ncols=2, loc="upper right")
    return figure


def power_against_temperature(law: ZipfLaw) -> Figure:
    """Proposition 1: the two conditionals, and their odds ratio against the entropy gap."""
    figure, (left, right) = panels()
    shown = slice(0, 12)
    tempered, sharp = (np.exp(log_q[shown]) for log_q in (law.tempered(1 / ALPHA), law.power(ALPHA)))
    base = np.exp(law.log_p[shown])
    names = ("model p", f"token-wise, τ = 1/{ALPHA:g}", f"power, α = {ALPHA:g}")
    for at, (values, name) in enumerate(zip((base, tempered, sharp), names, strict=True)):
        line(left, at, law.ranks[shown], values, name, every=1)
    left.set(title="Next token", xlabel="rank of the token", ylabel="probability", yscale="log", ylim=(1e-6, 3))
    left.set_xticks(range(1, 13))
    left.legend(loc="lower left")
    ranks = np.unique(np.geomspace(2, law.candidates, 24).astype(int)) - 1
    for at, alpha in enumerate(ALPHAS):
        entropies, sharp, tempered = law.entropies(alpha), law.power(alpha), law.tempered(1 / alpha)
        measured = (sharp[ranks] - sharp[0]) - (tempered[ranks] - tempered[0])
        gaps = entropies[0] - entropies[ranks]
        ends = np.array([gaps.min(), gaps.max()])
        right.plot(ends, theory.log_odds_ratio(0.0, ends, alpha), color=COLOURS[at], linestyle=LINES[at])
        right.plot(gaps, measured, color=COLOURS[at], linestyle="", marker=MARKERS[at])
        line(right, at, [], [], f"α = {alpha:g}")
    right.set(title="Odds of rank k to rank 1", xlabel=r"$H_α$ after rank 1 − $H_α$ after rank k, nats")
    right.set_ylabel("log odds ratio, power : token-wise")
    right.legend(title="points: the two laws\nlines: (α − 1) · gap", title_fontsize=8, loc="upper left")
    return figure


def tempering_gap(law: ZipfLaw) -> Figure:
    """How far token-wise tempering is from the power distribution as alpha grows."""
    figure, (left, right) = panels()
    alphas = np.geomspace(1, 16, 41)
    for at, share in enumerate((0.0, 0.25, 0.5, 1.0)):
        other = dataclasses.replace(law, amplitude=share * law.amplitude, trend=share * law.trend)
        pairs = [(other.power(alpha), other.tempered(1 / alpha)) for alpha in alphas]
        label = f"{share:.0%}" if share else "none: suffixes alike"
        line(left, at, alphas, [theory.total_variation(*pair) for pair in pairs], label)
        line(right, at, alphas, [theory.kl_divergence(*pair) for pair in pairs], label)
    left.set(title="Total variation", ylabel="TV(power, token-wise)")
    right.set(title="Forward KL", ylabel="KL(power ‖ token-wise), nats")
    right.set_yscale("symlog", linthresh=0.01)
    for axes in (left, right):
        axes.set(xlabel="α, at temperature 1/α", xscale="log")
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"], minor=False)
        axes.minorticks_off()
    left.legend(title="variation of the suffixes", title_fontsize=8, loc="upper left")
    return figure


def proposal_temperatures(law: ZipfLaw) -> Figure:
    """Proposition 2: weights of one-step proposals by their temperature."""
    figure, (left, middle, right) = panels(3)
    shown = slice(0, 100)
    for at, (tau, name) in enumerate([(1.0, "τ = 1"), (0.5, "τ = 1/2"), (1 / ALPHA, f"τ = 1/{ALPHA:g}")]):
        moments = law.moments(ALPHA, tau)
        line(left, at, law.ranks[shown], np.exp(law.log_weights(ALPHA, tau) - moments.log_mean)[shown], name, every=1)
        left.lines[-1].set_markevery((np.unique(np.geomspace(1, 100, 9).astype(int)) - 1).tolist())
    left.set(title=f"Weight / mean, α = {ALPHA:g}", xlabel="rank of the token", xscale="log", yscale="log")
    left.set_ylabel("w / E[w]")
    left.legend(loc="lower left")
    temperatures = np.geomspace(1 / 16, 1, 61)
    for at, alpha in enumerate(ALPHAS):
        moments = [law.moments(alpha, tau) for tau in temperatures]
        line(middle, at, temperatures, [m.cv for m in moments], f"α = {alpha:g}", every=8)
        line(right, at, temperatures, [m.ess_fraction for m in moments], f"α = {alpha:g}", every=8)
        own = law.moments(alpha, 1 / alpha)
        for axes, value in ((middle, own.cv), (right, own.ess_fraction)):
            axes.plot(1 / alpha, value, marker="*", markersize=13, color=COLOURS[at], markeredgecolor="white", zorder=4)
    blind = [law.moments(ALPHA, tau, suffixes=False) for tau in temperatures]
    right.plot(
        temperatures,
        [m.ess_fraction for m in blind],
        color=COLOURS[3],
        linestyle=LINES[3],
        label=f"α = {ALPHA:g}, no suffixes",
    )
    middle.set(title="Coefficient of variation", ylabel="sd(w) / E[w]", ylim=(0.4, 40), yscale="log")
    right.set(title="Effective sample size", ylabel="ESS a draw", ylim=(0, 1.42))
    right.set_yticks(np.linspace(0, 1, 6))
    for axes in (middle, right):
        axes.set(xlabel="proposal temperature τ   (stars: τ = 1/α)", xscale="log")
        axes.set_xticks([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], ["1/16", "1/8", "1/4", "1/2", "1"])
        axes.minorticks_off()
        axes.legend(loc="upper right", ncols=2 if axes is right else 1)
    return figure


def monte_carlo(law: ZipfLaw) -> Figure:
    """Estimates from samples against the exact values; bars hold the middle 95% of the repeats."""
    figure, (left, middle, right) = panels(3)
    for at, tau in enumerate((0.75, 0.5, 1 / ALPHA)):
        exact, name = law.moments(ALPHA, tau), f"τ = {tau:g}"
        estimates = weight_estimates(law.tempered(tau), law.log_weights(ALPHA, tau), seed=at)
        places = np.array(SIZES) * (0.88, 1.0, 1.14)[at]  # beside each other
        style = {"color": COLOURS[at], "marker": MARKERS[at], "linestyle": "", "capsize": 2.5}
        means = np.exp(estimates.log_mean - exact.log_mean)
        left.errorbar(places, means.mean(axis=1), bars(means), label=name, **style)
        band = 2 * exact.cv / np.sqrt(SIZES)
        left.plot(SIZES, 1 + band, color=COLOURS[at], linestyle=LINES[at], linewidth=1)
        left.plot(SIZES, 1 - band, color=COLOURS[at], linestyle=LINES[at], linewidth=1)
        shares = estimates.ess_fraction
        middle.errorbar(places, shares.mean(axis=1), bars(shares), label=name, **style)
        middle.axhline(exact.ess_fraction, color=COLOURS[at], linestyle=LINES[at], linewidth=1)
    left.set(title="Mean weight / exact", ylabel="ratio", ylim=(0, 2.9))
    middle.set(title="ESS a draw", ylabel="(Σw)² / (N Σw²)", ylim=(0, 1.35))
    middle.set_yticks(np.linspace(0, 1, 6))
    left.legend(title="lines: 1 ± 2 cv/√N, exact", loc="upper right")
    middle.legend(title="lines: exact", loc="upper right", ncols=3, columnspacing=0.8, handletextpad=0.2)
    for axes in (left, middle):
        axes.set(xlabel="draws N", xscale="log")
    rollouts = (1, 4, 16, 64, 256, 1024)
    target = law.power(ALPHA)
    distances = np.array([power_by_rollouts(law, ALPHA, count, target, seed=9) for count in rollouts])
    style = {"color": COLOURS[0], "marker": MARKERS[0], "linestyle": LINES[0], "capsize": 2.5}
    right.errorbar(rollouts, distances.mean(axis=1), bars(distances), label="suffix sums from R rollouts", **style)
    without = theory.total_variation(target, law.tempered(1 / ALPHA))
    right.axhline(without, color=COLOURS[2], linestyle=LINES[2], label="no rollouts: token-wise")
    right.set(title="Looking ahead", xlabel="rollouts R after each candidate", ylabel="TV to the power conditional")
    right.set(xscale="log", ylim=(0, 1.25))
    right.set_yticks(np.linspace(0, 1, 6))
    right.legend(loc="upper right")
    return figure


def limits_and_slopes(law: ZipfLaw) -> Figure:
    """Propositions 3 and 4: mass on the likeliest sequence, and what sharpening does for rewards."""
    figure, (left, right) = panels()
    alphas = np.geomspace(1, 64, 41)
    line(left, 0, alphas, [theory.maximiser_mass(law.joint, alpha) for alpha in alphas], "mass, power")
    line(left, 1, alphas, [theory.maximiser_mass_bound(law.joint, alpha) for alpha in alphas], "lower bound")
    tempered = [np.exp(law.log_tempered_maximum(alpha)) for alpha in alphas]
    line(left, 2, alphas, tempered, "mass, token-wise")
    left.set(title="Mass on the likeliest sequence", xlabel="α", ylabel="probability", xscale="log", ylim=(-0.02, 1.02))
    left.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    left.minorticks_off()
    left.legend(loc="upper left")
    first, second = np.divmod(np.arange(len(law.joint)), law.suffixes)
    rewards = {
        "suffix is the likeliest": (second == 0).astype(float),
        "scaled log p": 1 - law.joint / law.joint.min(),
        "first token is not rank 1 or 2": (first > 1).astype(float),
    }
    alphas = np.linspace(1, 6, 21)
    laws = [theory.power_law(law.joint, alpha) for alpha in alphas]
    tangent = np.array([-0.35, 0.35])
    for at, (name, reward) in enumerate(rewards.items()):
        expected = [theory.expectation(sharp, reward) for sharp in laws]
        line(right, at, alphas, expected, name)
        for place in (0, 6, 12):
            rise = tangent * theory.reward_slope(law.joint, alphas[place], reward)
            right.plot(alphas[place] + tangent, expected[place] + rise, color="0.7", linewidth=4, zorder=1)
    right.plot([], [], color="0.7", linewidth=4, label="slope: Cov(r*, log p)")
    right.set(title="Expected true reward", xlabel="α", ylabel="E[r*]", ylim=(-0.05, 1.55))
    right.set_yticks(np.linspace(0, 1, 6))
    right.legend(loc="upper right")
    return figure


OTHERS: dict[str, Callable[[ZipfLaw], Figure]] = {
    "other_entropies": entropies,
    "other_power_against_temperature": power_against_temperature,
    "other_tempering_gap": tempering_gap,
    "other_proposal_temperatures": proposal_temperatures,
    "other_monte_carlo": monte_carlo,
    "other_limits_and_slopes": limits_and_slopes,
}
