"""Figures S.5 to S.10 of Tomihari & Sato 2026 (B.2.4, B.2.5) on our law, under their numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from drawing import ALPHA, COLOURS, LINES, MARKERS, line, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monte_carlo import weight_estimates
from zipf import ZipfLaw

from lm_power import theory

TESTED = (1.5, 2.0, 4.0, 8.0)
DRAWS = (10, 30, 100, 300, 1000, 3000)
EXAMPLES = 6
_DOT = {"linestyle": "", "marker": ".", "markersize": 1.5, "markeredgewidth": 0, "rasterized": True}


def next_token_and_suffixes(law: ZipfLaw) -> Figure:
    """S.5: next-token probabilities, the suffix exponent of each token, and some suffix distributions."""
    figure, (left, middle, right) = panels(3)
    left.loglog(law.ranks, np.exp(law.log_p), color=COLOURS[0])
    left.set(title="Next token", xlabel="rank of the token", ylabel="p(token)")
    middle.semilogx(law.ranks, law.suffix_exponents, color=COLOURS[0])
    middle.set(title="Suffix exponent", xlabel="rank of the token", ylabel="γ")
    exponents = law.suffix_exponents
    for at, place in enumerate((0, int(exponents.argmax()), int(exponents.argmin()), law.candidates - 1)):
        rank, gamma = law.ranks[place], exponents[place]
        middle.plot(rank, gamma, color=COLOURS[at], marker=MARKERS[at], markersize=7, linestyle="")
        suffix_p = np.exp(law.suffix_log_p[place])
        line(right, at, np.arange(1, law.suffixes + 1), suffix_p, f"token of rank {rank}: γ = {gamma:.2f}", every=1)
        right.lines[-1].set_markevery(
            (np.unique(np.geomspace(1, law.suffixes, 9).astype(int)) - 1)[at % 2 :: 2].tolist()
        )
    right.set(title="Suffix distributions", xlabel="rank of the suffix", ylabel="p(suffix | token)")
    right.set(xscale="log", yscale="log")
    right.legend(loc="lower left")
    return figure


def entropy_corrections(law: ZipfLaw) -> Figure:
    """S.6: predicted corrections against those computed directly, for every pair of tokens; their distribution."""
    figure, (left, right) = panels()
    count = len(law.pairs()[0])
    reach = 0.0
    for at, alpha in reversed(list(enumerate(TESTED))):
        predicted, computed = corrections(law, alpha)
        left.plot(predicted, computed, color=COLOURS[at], **_DOT)
        reach = max(reach, float(np.abs(predicted).max()))
    for at, alpha in enumerate(TESTED):
        left.plot([], [], color=COLOURS[at], linestyle="", marker="o", label=f"α = {alpha:g}")
    left.plot([-reach, reach], [-reach, reach], color="0.5", linewidth=0.8, zorder=1)
    left.set(title=f"All {count:,} pairs a, b", xlabel=r"predicted: $(α - 1)(H_α(S_b) - H_α(S_a))$")
    left.set_ylabel("computed: log odds a : b,\npower − token-wise")
    left.legend(loc="upper left")
    predicted, _ = corrections(law, ALPHA)
    right.hist(predicted, bins=60, color=COLOURS[1], edgecolor="white", linewidth=0.3, label=f"{count:,} pairs")
    right.axvline(0, color="0.3", linewidth=1)
    right.set(
        title=f"Corrections at α = {ALPHA:g}", xlabel="correction, nats (a is the likelier token)", ylabel="pairs"
    )
    right.legend(loc="upper left")
    return figure


def corrections(law: ZipfLaw, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Of every pair, what Proposition 1 predicts and what a sum over all sequences gives, nats."""
    first, second = law.pairs()
    entropies, power, tempered = law.entropies(alpha), law.power_by_sequences(alpha), law.tempered(1 / alpha)
    predicted = np.asarray(theory.log_odds_ratio(entropies[first], entropies[second], alpha))
    return predicted, (power[first] - power[second]) - (tempered[first] - tempered[second])


def changed_preferences(law: ZipfLaw) -> Figure:
    """S.7: pairs in which temperature prefers the likelier token, and the power distribution the other one."""
    figure, (left, right) = panels()
    first, second = law.pairs()
    tempered, power = law.tempered(1 / ALPHA), law.power(ALPHA)
    by_temperature, by_power = tempered[first] - tempered[second], power[first] - power[second]
    changed = by_power < 0
    for at, (chosen, name) in enumerate([(~changed, "both prefer a"), (changed, "power prefers b")]):
        left.plot(by_temperature[chosen], by_power[chosen], color=COLOURS[1 + at], **_DOT)
        label = f"{name}: {chosen.mean():.0%}"
        left.plot([], [], color=COLOURS[1 + at], linestyle="", marker="o", label=label)
    top = float(by_temperature.max())
    left.plot([0, top], [0, top], color="0.4", linewidth=0.8, label="no correction")
    left.axhline(0, color="0.3", linewidth=1)
    left.set(title=f"All {len(first):,} pairs, α = {ALPHA:g}", xlabel="log odds a : b, token-wise")
    left.set_ylabel("log odds a : b, power")
    left.set_ylim(top=1.75 * float(by_power.max()))
    left.legend(loc="upper left")
    heaviest = heaviest_changes(law, ALPHA)[:EXAMPLES]
    rows = np.arange(EXAMPLES)[::-1]
    odds = {"model p": law.log_p[first] - law.log_p[second], "token-wise": by_temperature, "power": by_power}
    for at, (name, values) in enumerate(odds.items()):
        right.plot(values[heaviest], rows, color=COLOURS[at], marker=MARKERS[at], linestyle="", label=name)
    right.hlines(rows, by_power[heaviest], by_temperature[heaviest], color="0.7", linewidth=1, zorder=1)
    right.axvline(0, color="0.3", linewidth=1)
    gaps = law.entropies(ALPHA)[first] - law.entropies(ALPHA)[second]
    right.set_yticks(rows, [f"{law.ranks[first[i]]} : {law.ranks[second[i]]}\n({gaps[i]:.2f})" for i in heaviest])
    right.set_ylim(-0.6, EXAMPLES + 0.9)
    right.set(title="Some pairs where power prefers b", xlabel="log odds a : b")
    right.set_ylabel(r"ranks a : b   $(H_α(S_a) - H_α(S_b))$")
    right.legend(loc="upper center", ncols=3, columnspacing=0.8, handletextpad=0.2)
    return figure


def heaviest_changes(law: ZipfLaw, alpha: float) -> np.ndarray:
    """Places in `law.pairs()` where preferences differ, one for each a: the b that weighs most; the heaviest first.

    A pair weighs the probability of a under temperature times that of b under the power distribution.
    """
    first, second = law.pairs()
    tempered, power = law.tempered(1 / alpha), law.power(alpha)
    changed = np.flatnonzero(power[first] < power[second])
    ordered = changed[np.argsort(-(tempered[first] + power[second])[changed], kind="stable")]
    return ordered[np.sort(np.unique(first[ordered], return_index=True)[1])]


def proposals(law: ZipfLaw) -> Figure:
    """S.8: four one-step proposals for an empty prefix, and the log incremental weight of each token."""
    figure, (left, right) = panels()
    marks = np.unique(np.geomspace(1, law.candidates, 20).astype(int)) - 1
    weights = law.proposal_weights(ALPHA)
    for at, (name, log_q) in enumerate(law.proposals(ALPHA).items()):
        for axes, values in ((left, np.exp(log_q)), (right, weights[name])):
            line(axes, at, law.ranks, values, name, every=1)
            axes.lines[-1].set_markevery(marks[at::4].tolist())
    left.set(title=f"Proposals, α = {ALPHA:g}", ylabel="q(token)", yscale="log")
    right.set(title="Incremental weights", ylabel="log w(token), nats")
    for axes in (left, right):
        axes.set(xlabel="rank of the token", xscale="log")
    left.legend(loc="lower left")
    return figure


def proposal_quality(law: ZipfLaw) -> Figure:
    """S.9: exact coefficient of variation and ESS/N of the four proposals against alpha."""
    figure, (left, right) = panels()
    alphas = np.geomspace(1, 8, 31)
    for at, name in enumerate(law.proposals(ALPHA)):
        moments = [exact_moments(law, alpha)[name] for alpha in alphas]
        line(left, at, alphas, [m.cv for m in moments], name, every=8)
        line(right, at, alphas, [m.ess_fraction for m in moments], name, every=8)
    left.set(title="Coefficient of variation", ylabel="sd(w) / E[w]")
    left.set_yscale("symlog", linthresh=0.1)
    left.set_ylim(-0.02, 400)
    right.set(title="Effective sample size", ylabel="ESS / N", ylim=(-0.02, 1.05))
    for axes in (left, right):
        axes.set(xlabel="α", xscale="log")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
    left.legend(loc="upper left", ncols=2)
    return figure


def exact_moments(law: ZipfLaw, alpha: float) -> dict[str, theory.WeightMoments]:
    """Of the weights of the four proposals."""
    weights = law.proposal_weights(alpha)
    return {name: theory.weight_moments(weights[name], log_q) for name, log_q in law.proposals(alpha).items()}


def sampled_quality(law: ZipfLaw) -> Figure:
    """S.10: self-normalised ESS/N of N drawn tokens, mean over replicates, against the exact values of S.9."""
    figure, (left, right) = panels()
    for axes, alpha in ((left, 2.0), (right, ALPHA)):
        _draw_sampled(axes, law, alpha)
    right.legend(title="lines: exact, as in S.9", title_fontsize=8, loc="upper right", ncols=2)
    return figure


def _draw_sampled(axes: Axes, law: ZipfLaw, alpha: float) -> None:
    exact, sampled = exact_moments(law, alpha), sampled_ess(law, alpha)
    for at, (name, means) in enumerate(sampled.items()):
        axes.plot(DRAWS, means, color=COLOURS[at], marker=MARKERS[at], linestyle="", label=name)
        axes.axhline(exact[name].ess_fraction, color=COLOURS[at], linestyle=LINES[at], linewidth=1.2)
    axes.set(title=f"Drawn tokens, α = {alpha:g}", xlabel="draws N", ylabel="mean ESS / N", xscale="log")
    axes.set(yscale="log", ylim=(2e-3, 12))
    axes.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])


def sampled_ess(law: ZipfLaw, alpha: float) -> dict[str, np.ndarray]:
    """[DRAWS] mean ESS/N of N drawn tokens, of each proposal."""
    weights = law.proposal_weights(alpha)
    return {
        name: weight_estimates(log_q, weights[name], seed=at, sizes=DRAWS).ess_fraction.mean(axis=1)
        for at, (name, log_q) in enumerate(law.proposals(alpha).items())
    }


PAPER: dict[str, Callable[[ZipfLaw], Figure]] = {
    "s5_next_token_and_suffixes": next_token_and_suffixes,
    "s6_entropy_corrections": entropy_corrections,
    "s7_changed_preferences": changed_preferences,
    "s8_proposals": proposals,
    "s9_proposal_quality": proposal_quality,
    "s10_sampled_quality": sampled_quality,
}
