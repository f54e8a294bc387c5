"""Proposition 4 measured on the pocket model: accuracy rises with alpha as fast as it co-varies with log p.

    python examples/pocket/proposition4.py                                   # about five minutes of one core, offline
    python examples/pocket/proposition4.py --n 4 --mcmc-steps 20 --problems 10     # a look at the machinery

Tomihari & Sato (2026): for π ∝ p^alpha and any reward r, d/dα E_π[r] = Cov_π(r, log p). Here r is correctness, and
completions are drawn at three alphas: at 1 by plain sampling, above by Metropolis-Hastings in one block, whose law
tends to π as its steps grow. (In several blocks a chain may stop before the last one, and its law is only close to
π.) Problems of four terms are taken, because a first word is mended only by a cut at 0, which a short text gets more
often.

Whether the chains have got there is checked against an estimate without chains: plain draws, each weighted by
p^(alpha − 1), which works for alphas this close to 1 and texts this short.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from problems import Problem, held_out_problems

from lm_power import PowerSampler
from lm_power.forecast.estimates import reweight
from lm_power.probe.estimates import SlopeAndCovariance, slope_and_covariance

MODEL = Path(__file__).parent / "model"
ALPHAS = (1.0, 1.25, 1.5)
TERMS = 4
LONGEST = 40  # tokens, as the task pocket_sums has it; no completion gets there


@dataclasses.dataclass(frozen=True)
class Draws:
    """Completions at one alpha: two float64 arrays [problems, n].

    Attributes:
        correct: 1 where the answer is right, else 0.
        log_prob: log p(x | prompt), nats.
    """

    correct: np.ndarray
    log_prob: np.ndarray


def draw(sampler: PowerSampler, problems: Sequence[Problem], alpha: float, n: int, mcmc_steps: int, seed: int) -> Draws:
    """Draw n completions of each problem from p^alpha; at alpha = 1 plainly, without any steps."""
    method = {"method": "standard"} if alpha == 1 else {"alpha": alpha, "block_size": LONGEST, "mcmc_steps": mcmc_steps}
    prompts = [problem.prompt for problem in problems]
    drawn = sampler.generate(prompts, n=n, max_new_tokens=LONGEST, seed=seed, progress=True, **method)
    correct = [[c.endswith(f" so {problem.answer}") for c in row] for problem, row in zip(problems, drawn, strict=True)]
    return Draws(np.array(correct, float), np.array([[c.sum_log_prob for c in row] for row in drawn]))


def reweighted_accuracy(plain: Draws, alpha: float) -> np.ndarray:
    """Each problem's E_π[r] from plain draws, `Σ r p^(alpha−1) / Σ p^(alpha−1)`: [problems]."""
    pairs = zip(plain.correct, plain.log_prob, strict=True)
    return np.array([reweight(correct, log_prob, [alpha]).mean[0] for correct, log_prob in pairs])


def measure(draws: Sequence[Draws]) -> SlopeAndCovariance:
    """Both sides of the proposition from draws at `ALPHAS`."""
    return slope_and_covariance(ALPHAS, [d.correct for d in draws], [d.log_prob for d in draws])


def main() -> None:
    """Draw, and print the accuracies and both sides of the proposition."""
    parser = argparse.ArgumentParser(description="Measure Proposition 4 on the pocket model.")
    parser.add_argument("--n", type=int, default=32, help="chains a problem and alpha (default: %(default)s)")
    parser.add_argument("--mcmc-steps", type=int, default=200, help="steps of a chain (default: %(default)s)")
    parser.add_argument("--problems", type=int, default=1000, help="at most so many (default: all of four terms)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.n < 2 or arguments.problems < 2:
        parser.error("--n and --problems must be at least 2: covariances and standard errors compare")
    problems = [p for p in held_out_problems() if len(p.digits) == TERMS][: arguments.problems]
    sampler = PowerSampler.from_pretrained(str(MODEL), device="cpu", dtype="float32", max_rows=256)
    plain = draw(sampler, problems, 1.0, 16 * arguments.n, 0, arguments.seed + 1)
    draws = []
    print(f"{len(problems)} problems of {TERMS} terms, n = {arguments.n}, {arguments.mcmc_steps} steps\n")
    print("| alpha | accuracy | the same, without chains | mean log p, nats |\n|---|---|---|---|", flush=True)
    for alpha in ALPHAS:
        d = draw(sampler, problems, alpha, arguments.n, arguments.mcmc_steps, arguments.seed)
        error = np.sqrt((d.correct.var(axis=1, ddof=1) / arguments.n).sum()) / len(problems)
        check = reweighted_accuracy(plain, alpha).mean()
        print(
            f"| {alpha:g} | {d.correct.mean():.3f} ± {error:.3f} | {check:.3f} | {d.log_prob.mean():.2f} |", flush=True
        )
        draws.append(d)
    found = measure(draws)
    print(f"\nFrom alpha {ALPHAS[0]:g} to {ALPHAS[-1]:g}, ± standard error:")
    for name, estimate in (("slope", found.slope), ("covariance", found.covariance), ("difference", found.difference)):
        print(f"  {name:10} {estimate.value:.3f} ± {estimate.error:.3f}")
    print(f"t-test over problems that the difference is 0: p = {found.p_value:.2f}")


if __name__ == "__main__":
    main()
