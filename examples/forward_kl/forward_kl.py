"""Does a distilled student approach the power distribution? Measured where every completion can be counted.

    python examples/forward_kl/forward_kl.py                       # about four minutes of one core, offline
    python examples/forward_kl/forward_kl.py --seeds 1 --samples 30 300      # a look at the machinery

A tiny transformer of four tokens has 40 completions of at most three tokens, so the laws of the base p, of its power
distribution π_α ∝ p^α and of any student are known exactly. Power samples go into a store, the store into the
trainer of `lm_power.distill`, and what comes out is compared with π_α: KL(π_α ‖ student) against the number of
samples. Then the student is sharpened once more at decode time. README.md says what to see.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from enumerable import POWER, STEPS, Tokens, draw, exact_law, load_sampler, save_base, student_law
from matplotlib.figure import Figure
from transformers.utils import logging

from lm_power.theory import SequenceDistribution

ALPHA, BETA = 2.0, 2.0
SAMPLES = (30, 100, 300, 1000, 3000)
CHAINS = 1000  # of a student, to sharpen it further
TEACHERS = {
    "power": {"alpha": ALPHA, **POWER},
    "standard": {"method": "standard"},
    "temperature": {"method": "temperature", "proposal_temperature": 1 / ALPHA},
}
CONTROLS = (("standard", False), ("temperature", False), ("power", True))
"""Teacher, and whether the student learns each completion once only."""


def table_law(completions: Sequence[Tokens], drawn: Sequence[Tokens], add: float) -> SequenceDistribution:
    """Frequencies among `drawn`, `add` being added to each count; what was never drawn is left out with add=0."""
    counts = collections.Counter(drawn)
    shares = {x: (counts[x] + add) / (len(drawn) + add * len(completions)) for x in completions if counts[x] + add}
    return SequenceDistribution.from_table(shares)


@dataclasses.dataclass
class Measured:
    """KL divergences, nats, one entry a seed, and how far from π_αβ the draws are.

    Attributes:
        student: n → KL(π_α ‖ student).
        misfit: n → KL(frequencies in the sample ‖ student): what training has left to fit.
        table: n → KL(π_α ‖ frequencies with 1/2 added to each count).
        control: what else was learnt, as many completions as the largest n → KL(π_α ‖ student).
        sharpened: decoding → KL(π_αβ ‖ ·) of the student of the largest n.
        distance: total variation of `CHAINS` completions, drawn by power sampling at β from that student, to π_αβ.
    """

    student: dict[int, list[float]]
    misfit: dict[int, list[float]]
    table: dict[int, list[float]]
    control: dict[str, list[float]]
    sharpened: dict[str, list[float]]
    distance: list[float]


def measure(base: Path, work: Path, samples: Sequence[int], seeds: int, steps: int = STEPS) -> Measured:
    """Draw, distil and compare, for every seed and number of samples (in rising order)."""
    law = exact_law(base)
    target, sharper = law.power(ALPHA), law.power(ALPHA * BETA)
    sampler = load_sampler(base)
    found = Measured(*(collections.defaultdict(list) for _ in range(5)), [])
    largest = samples[-1]
    for seed in range(seeds):
        stores = {teacher: work / f"{teacher}-{seed}" for teacher in TEACHERS}
        drawn = {teacher: draw(sampler, largest, seed, stores[teacher], **how) for teacher, how in TEACHERS.items()}
        for n in samples:
            output = work / f"student-{seed}-{n}"
            student = student_law(base, stores["power"], n, seed, output, steps=steps)
            frequencies, smoothed = (table_law(law.completions, drawn["power"][:n], add) for add in (0, 0.5))
            found.student[n].append(target.kl_divergence(student))
            found.misfit[n].append(frequencies.kl_divergence(student))
            found.table[n].append(target.kl_divergence(smoothed))
            print(f"seed {seed}, n = {n}: KL(π_α ‖ student) = {found.student[n][-1]:.4f}", flush=True)
        for how, decoded in decodings(student).items():
            found.sharpened[how].append(sharper.kl_divergence(decoded))
        # A seed of its own: by the teacher's it would be drawn with the random numbers that it was taught with.
        chains = draw(load_sampler(base, output), CHAINS, seeds + seed, alpha=BETA, **POWER)
        found.distance.append(sharper.total_variation(table_law(law.completions, chains, 0)))
        for teacher, deduplicate in CONTROLS:
            n = len(set(drawn[teacher])) if deduplicate else largest
            name = f"{teacher} samples{', each different one once' * deduplicate}"
            control = student_law(base, stores[teacher], n, seed, work / f"control-{seed}-{name}", deduplicate, steps)
            found.control[name].append(target.kl_divergence(control))
            print(f"seed {seed}, {name}: KL(π_α ‖ student) = {found.control[name][-1]:.4f}", flush=True)
    return found


def decodings(student: SequenceDistribution) -> dict[str, SequenceDistribution]:
    """The exact laws of three ways to decode a student."""
    return {
        "power sampling at β": student.power(BETA),
        "temperature 1/β": student.tempered(1 / BETA),
        "plain sampling": student,
    }


def noise_floor(law: SequenceDistribution, draws: int, repeats: int = 1000) -> float:
    """Mean total variation between a law and the frequencies of so many exact draws from it."""
    p = np.exp(law.log_p)
    counts = np.random.default_rng(0).multinomial(draws, p / p.sum(), size=repeats)
    return float(0.5 * np.abs(counts / draws - p).sum(axis=1).mean())


def shown(values: Sequence[float]) -> str:
    """Mean ± standard error over the seeds."""
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def print_tables(law: SequenceDistribution, found: Measured) -> None:
    """What README.md shows."""
    target, sharper = law.power(ALPHA), law.power(ALPHA * BETA)
    cells, largest = len(law.completions), max(found.student)
    seeds = len(found.distance)
    print(f"\nK = {cells} completions, α = {ALPHA:g}, β = {BETA:g}; nats, ± standard error over {seeds} seeds\n")
    print(
        "| n | KL(π_α ‖ student) | KL(sample ‖ student) | KL(π_α ‖ sample, ½ added) | (K−1)/2n |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for n in found.student:
        values = [shown(column[n]) for column in (found.student, found.misfit, found.table)]
        print(f"| {n} | {' | '.join(values)} | {(cells - 1) / (2 * n):.4f} |")
    print("\n| KL(π_α ‖ ·) | nats |\n|---|---:|")
    print(f"| base | {target.kl_divergence(law):.4f} |")
    print(f"| base at temperature 1/α | {target.kl_divergence(law.tempered(1 / ALPHA)):.4f} |")
    for name, values in found.control.items():
        print(f"| student of {largest} {name} | {shown(values)} |")
    print("\n| KL(π_αβ ‖ ·) | of the student | of π_α itself |\n|---|---:|---:|")
    for (how, values), exact in zip(found.sharpened.items(), decodings(target).values(), strict=True):
        print(f"| {how} | {shown(values)} | {abs(sharper.kl_divergence(exact)):.4f} |")
    print(f"\nBase at temperature 1/αβ: {sharper.kl_divergence(law.tempered(1 / (ALPHA * BETA))):.4f}.")
    print(
        f"Total variation to π_αβ: of {CHAINS} completions drawn by power sampling at β from the student "
        f"{shown(found.distance)}, of as many exact draws from π_αβ {noise_floor(sharper, CHAINS):.4f}, of π_α at "
        f"temperature 1/β {sharper.total_variation(target.tempered(1 / BETA)):.4f}."
    )


def draw_picture(law: SequenceDistribution, found: Measured, path: Path) -> None:
    """KL(π_α ‖ student) against the number of samples, double logarithmic."""
    target, n = law.power(ALPHA), np.array(list(found.student))
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, column, marker in (("student", found.student, "o"), ("sample, ½ added to each count", found.table, "s")):
        values = np.array(list(column.values()))
        axes.loglog(n, values.mean(axis=1), marker=marker, label=name)
        axes.plot(np.repeat(n, values.shape[1]), values.ravel(), ".", color=axes.lines[-1].get_color(), alpha=0.4)
    axes.loglog(n, (len(law.completions) - 1) / (2 * n), "k--", label="(K − 1) / 2n")
    axes.axhline(target.kl_divergence(law), color="0.5", linestyle=":", label="base, untrained")
    for (name, values), marker in zip(found.control.items(), "^vx", strict=True):
        axes.loglog(n.max(), np.mean(values), marker, color="k", linestyle="", label=f"student of {name}")
    axes.set(xlabel="samples n", ylabel=r"KL($π_α$ ‖ ·), nats")
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\n{path}")


def main() -> None:
    """Measure, print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description="KL(π_α ‖ student) against the number of power samples.")
    parser.add_argument("--seeds", type=int, default=3, help="repeats of everything (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=SAMPLES, help="numbers of samples (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimiser (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("forward-kl"), help="folder for the picture")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.steps, *arguments.samples) < 1:
        parser.error("--seeds, --samples and --steps must be at least 1")
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers will drop
    started = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = save_base(work / "base")
        found = measure(base, work, sorted(set(arguments.samples)), arguments.seeds, arguments.steps)
        law = exact_law(base)
    print_tables(law, found)
    draw_picture(law, found, arguments.output / "forward_kl.png")
    print(f"{time.perf_counter() - started[0]:.0f} s, {time.process_time() - started[1]:.0f} s of CPU")


if __name__ == "__main__":
    main()
