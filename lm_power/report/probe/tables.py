"""The tables of the covariance probe, and what readers should know before they trust them."""

from __future__ import annotations

from collections.abc import Sequence

from lm_power.report.probe.estimates import Probe
from lm_power.report.probe.stores import StoredDraws
from lm_power.report.probe.temperatures import TemperatureRow
from lm_power.report.tables import Column, Table

_READING = (
    "A reward made from a hash of prompt and completion has nothing to do with the model. Mixed with self-reward, "
    "r = w z(self-reward) + √(1 − w²) z(hash), it has whatever covariance with it we choose. The gain is the mean of r "
    "over the sharpened completions minus its mean over those of the base; the line is gain = intercept + slope × "
    "Cov(r, z(self-reward)), fitted over the values of w. Everything is computed within a prompt and averaged over "
    "prompts; z divides by the standard deviation within base prompts, for both sets of completions. ± is a standard "
    "error over prompts (bootstrap). The points differ only in w. A straight line through 0 means that the hash gained "
    "nothing, and its slope tells by how many standard deviations self-reward rose. The error of the fit is small "
    "because the points share their completions; it does not tell how well the slope is known."
)


def line_table(base: StoredDraws, others: Sequence[StoredDraws], probes: Sequence[Probe]) -> Table:
    """One fitted line per way of sampling."""
    return Table(
        key="lines",
        title="Random rewards: gain against covariance with self-reward",
        caption=f"Model {base.model}. Base: {base.label}, {base.n} completions per prompt, {base.folder}. {_READING}",
        columns=(
            Column("sampling", "Sampling"),
            Column("prompts", "Prompts"),
            Column("n", "N"),
            Column("slope", "Slope"),
            Column("intercept", "Intercept"),
            Column("fit_stderr", "Slope, error of the fit", 4),
            Column("r_squared", "R²", 4),
            Column("self_reward_sd", "Self-reward, SD within base prompts, nats per token"),
            Column("hash_sd", None),
        ),
        rows=tuple(
            (
                other.label, probe.prompts, other.n, probe.line.slope, probe.line.intercept,
                probe.line.slope_stderr, probe.line.r_squared, probe.self_reward_sd, probe.hash_sd,
            )
            for other, probe in zip(others, probes, strict=True)
        ),
        notes=tuple(notes([base, *others])),
    )  # fmt: skip


def point_table(others: Sequence[StoredDraws], probes: Sequence[Probe]) -> Table:
    """Every point of every line."""
    return Table(
        key="points",
        title="The points",
        caption=(
            "Cov(r, log p) within base prompts, nats. If the base is method=standard, it is the derivative "
            "of the mean of r with respect to alpha at alpha = 1 (Tomihari & Sato 2026, Proposition 4)."
        ),
        columns=(
            Column("sampling", "Sampling"),
            Column("weight", "w", 2),
            Column("covariance", "Cov(r, z(self-reward))"),
            Column("log_prob_covariance", "Cov(r, log p)"),
            Column("gain", "Gain"),
        ),
        rows=tuple(
            (other.label, point.weight, point.covariance, point.log_prob_covariance, point.gain)
            for other, probe in zip(others, probes, strict=True)
            for point in probe.points
        ),
    )


def temperature_table(rows: Sequence[TemperatureRow]) -> Table:
    """One row per decoding temperature."""
    return Table(
        key="temperature",
        title="Decoding temperature",
        caption=(
            f"Sampling token by token: means over all completions of {rows[0].accuracy.problems} problems; ± is a "
            "standard error over problems. Self-reward is always that of the model at temperature 1."
        ),
        columns=(
            Column("temperature", "Temperature", 2),
            Column("run", "Run"),
            Column("n", "N"),
            Column("accuracy", "Accuracy"),
            Column("self_reward", "Self-reward, nats per token"),
        ),
        rows=tuple((row.temperature, row.label, row.n, row.accuracy, row.self_reward) for row in rows),
    )


def notes(samples: Sequence[StoredDraws]) -> list[str]:
    """What is unusual about the completions."""
    found = []
    for sample in samples:
        cut = sample.finish_reasons.get("length", 0)
        if 2 * cut > sample.size:
            found.append(
                f"{cut} of {sample.size} completions of {sample.label} ended at max_new_tokens="
                f"{sample.options['max_new_tokens']}, not by EOS or a stop string: only the beginnings are measured"
            )
    if samples[0].options["method"] != "standard":
        found.append(
            f"the base is {samples[0].label}, not method=standard: covariances are not those of the model's own "
            "distribution p, and Proposition 4 does not apply to them"
        )
    return found
