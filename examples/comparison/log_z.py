"""log Z_alpha of the pocket model by particles, by a ladder and by rejection; and accuracy along the ladder.

    python examples/comparison/log_z.py --output comparison          # about five minutes of one core, offline

Z_alpha = Σ_x p(x)^alpha over all completions x of a prompt, at alpha 4. Three estimates that share only the engine:

* particles (`smc`): Ẑ is unbiased; here the mean Ẑ of several sweeps;
* thermodynamic integration (`tempering`): log Z = ∫_1^alpha E_{π_a}[log p] da over the completions that the
  rungs of one ladder hold at the end (`completion.companions` and the completion), by the trapezoidal rule in log a;
* rejection: minus the sum of 1/j below the number of tries, which has the expectation log Z.

The same ladder gives E_{π_a}[accuracy] at every exponent a, and with it Proposition 4 of Tomihari & Sato (2026): its
slope is the covariance of correctness and log p under π_a. Stores and files as in compare.py.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from compare import Drawer, over_problems, verdicts
from matplotlib.figure import Figure

from lm_power.chains.tempering import thermodynamic_log_z
from lm_power.config import SamplerConfig
from lm_power.tasks.pocket_sums.utils import PROBLEMS, parse_answer

SMC = {"method": "smc", "particles": 32, "resample_every": 4}
LADDER = {"method": "tempering", "rungs": 9, "mcmc_steps": 40}
REJECTION = {"method": "rejection", "max_tries": 100_000}
EXPONENTS = np.array(SamplerConfig(**LADDER).ladder())


def smc_log_z(drawn) -> np.ndarray:
    """[problems] log of the mean Ẑ."""
    log_zs = np.array([[c.stats.diagnostics["log_z"] for c in row] for row in drawn])
    return np.logaddexp.reduce(log_zs, axis=1) - math.log(log_zs.shape[1])


def ladder_log_p(drawn) -> np.ndarray:
    """[problems, repeats, rungs] log p of the completion that each rung holds at the end, nats."""
    return np.array([[[x.sum_log_prob for x in (*c.companions, c)] for c in row] for row in drawn])


def ladder_correct(problems, drawn) -> np.ndarray:
    """[problems, repeats, rungs] 1 or 0."""
    return np.array(
        [
            [[float(parse_answer(x) == problem["answer"]) for x in (*c.companions, c)] for c in row]
            for problem, row in zip(problems, drawn, strict=True)
        ]
    )


def integrals(log_p: np.ndarray, every: int = 1) -> np.ndarray:
    """[problems, repeats] log Z by every so many rungs of the ladder."""
    ladder = tuple(EXPONENTS[::every])
    return np.array([[thermodynamic_log_z(ladder, means[::every]) for means in row] for row in log_p])


def slopes(correct: np.ndarray, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two [problems, 1] arrays: accuracy at alpha less accuracy at 1; ∫ Cov_{π_a}(correct, log p) da, trapezoidal."""
    centred = (correct - correct.mean(axis=1, keepdims=True)) * (log_p - log_p.mean(axis=1, keepdims=True))
    covariance = centred.sum(axis=1) / (correct.shape[1] - 1)
    rise = correct[:, :, -1].mean(axis=1) - correct[:, :, 0].mean(axis=1)
    heights = covariance * EXPONENTS
    area = ((heights[:, 1:] + heights[:, :-1]) / 2) @ np.diff(np.log(EXPONENTS))
    return rise[:, None], area[:, None]


def figure_of(by_particles, by_ladder, errors, accuracy, exact) -> Figure:
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.errorbar(by_particles, by_ladder, errors, fmt="o", color="#0072B2", markersize=3.5, elinewidth=0.8)
    ends = [min(by_particles.min(), by_ladder.min()), max(by_particles.max(), by_ladder.max())]
    left.plot(ends, ends, color="0.5", linewidth=1)
    left.set(title="log Z of each problem, nats", xlabel="particles", ylabel="thermodynamic integration")
    right.errorbar(EXPONENTS, *accuracy, marker="o", color="#0072B2", capsize=2, label="one run of tempering")
    right.errorbar(*exact, fmt="D", color="#D55E00", capsize=2, label="plain draws and rejection (exact)")
    right.set(title="accuracy under p(x)^a", xlabel="a", ylabel="accuracy")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Two estimates of log Z, and accuracy along a ladder.")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of stores and figures")
    parser.add_argument("--problems", type=int, default=40, help="at most so many (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=4, help="runs of the ladder per problem (default: %(default)s)")
    arguments = parser.parse_args()
    problems = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()][: arguments.problems]
    drawer, several = Drawer(arguments.output / "stores", problems), 4 * arguments.repeats
    particles, _ = drawer.draw(SMC, several)
    kept, _ = drawer.draw(REJECTION, several)
    plain, _ = drawer.draw({"method": "standard"}, several)
    ladder, _ = drawer.draw(LADDER, arguments.repeats)

    log_p, correct = ladder_log_p(ladder), ladder_correct(problems, ladder)
    fine, coarse = integrals(log_p), integrals(log_p, every=2)
    late = np.array([[c.stats.diagnostics["log_z"] for c in row] for row in ladder])
    tries = np.array([[c.stats.diagnostics["log_z"] for c in row] for row in kept])
    by_particles = smc_log_z(particles)[:, None]
    estimates = {
        "particles": by_particles,
        "thermodynamic integration": fine,
        "with half the rungs": coarse,
        "the two, extrapolated": (4 * fine - coarse) / 3,
        "means over the late rounds": late,
        "rejection": tries,
    }
    for name, values in estimates.items():
        mean, difference = over_problems(values), over_problems(values.mean(axis=1, keepdims=True) - by_particles)
        print(f"log Z, {name:26s} {mean[0]:7.3f}   less particles {difference[0]:+.3f} ± {difference[1]:.3f}")
    divergence = over_problems([[c.stats.diagnostics["kl_from_proposal"] for c in row] for row in particles])
    print("KL(p^4 || temperature 1/4) = {:.2f} ± {:.2f} nats".format(*divergence))

    accuracies = [over_problems(correct[:, :, rung]) for rung in range(len(EXPONENTS))]
    exact = [over_problems(verdicts(problems, drawn)) for drawn in (plain, kept)]
    for exponent, (mean, error) in zip(EXPONENTS, accuracies, strict=True):
        print(f"a = {exponent:.2f}   accuracy {mean:.3f} ± {error:.3f}")
    print("exactly drawn: a = 1 {:.3f} ± {:.3f}, a = 4 {:.3f} ± {:.3f}".format(*exact[0], *exact[1]))
    rise, area = slopes(correct, log_p)
    sides = {"rise of accuracy": rise, "integral of the covariance": area, "difference": rise - area}
    for name, values in sides.items():
        print("{:28s} {:+.3f} ± {:.3f}".format(name, *over_problems(values)))

    errors = fine.std(axis=1, ddof=1) / fine.shape[1] ** 0.5
    ends = ([EXPONENTS[0], EXPONENTS[-1]], *np.transpose(exact))
    figure = figure_of(by_particles[:, 0], fine.mean(axis=1), errors, np.transpose(accuracies), ends)
    for kind in ("svg", "png"):
        figure.savefig(arguments.output / f"log_z.{kind}", dpi=150)


if __name__ == "__main__":
    main()
