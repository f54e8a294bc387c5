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
import scipy.integrate
import scipy.stats
from problems import Problem, held_out_problems

from lm_power import PowerSampler
from lm_power.report.forecast.estimates import reweight
from lm_power.stats.means import Estimate

MODEL = Path(__file__).parent / "model"
ALPHAS = (1.0, 1.25, 1.5)
TERMS = 4
LONGEST = 40  # tokens, as the task pocket_sums has it; no completion gets there


@dataclasses.dataclass(frozen=True)
class AtAlpha:
    """Completions at one alpha: two float64 arrays [problems, n].

    Attributes:
        correct: 1 where the answer is right, else 0.
        log_prob: log p(x | prompt), nats.
    """

    correct: np.ndarray
    log_prob: np.ndarray


def draw(
    sampler: PowerSampler, problems: Sequence[Problem], alpha: float, n: int, mcmc_steps: int, seed: int
) -> AtAlpha:
    """Draw n completions of each problem from p^alpha; at alpha = 1 plainly, without any steps."""
    method = {"method": "standard"} if alpha == 1 else {"alpha": alpha, "block_size": LONGEST, "mcmc_steps": mcmc_steps}
    prompts = [problem.prompt for problem in problems]
    drawn = sampler.generate(prompts, n=n, max_new_tokens=LONGEST, seed=seed, progress=True, **method)
    correct = [[c.endswith(f" so {problem.answer}") for c in row] for problem, row in zip(problems, drawn, strict=True)]
    return AtAlpha(np.array(correct, float), np.array([[c.sum_log_prob for c in row] for row in drawn]))


def reweighted_accuracy(plain: AtAlpha, alpha: float) -> np.ndarray:
    """Each problem's E_π[r] from plain draws, `Σ r p^(alpha−1) / Σ p^(alpha−1)`: [problems]."""
    pairs = zip(plain.correct, plain.log_prob, strict=True)
    return np.array([reweight(correct, log_prob, [alpha]).mean[0] for correct, log_prob in pairs])


@dataclasses.dataclass(frozen=True)
class SlopeAndCovariance:
    """Both sides of Proposition 4 from samples, with standard errors.

    Attributes:
        slope: `(E_b[r] − E_a[r]) / (b − a)`, averaged over prompts.
        covariance: Cov(r, log p) within prompts, averaged over prompts and over alpha from a to b.
        difference: slope minus covariance; its expectation is 0, up to the error of Simpson's rule.
        p_value: of a t-test over prompts that the difference is 0.
    """

    slope: Estimate
    covariance: Estimate
    difference: Estimate
    p_value: float


def slope_and_covariance(
    alphas: Sequence[float], rewards: Sequence[np.ndarray], log_probs: Sequence[np.ndarray]
) -> SlopeAndCovariance:
    """Measure `d/dα E_π[r] = Cov_π(r, log p)` (Tomihari & Sato 2026, Proposition 4) on samples of π ∝ p^alpha.

    The slope over an interval [a, b] is the mean of the derivative over it: `(E_b[r] − E_a[r]) / (b − a) =
    1/(b − a) ∫ Cov_α(r, log p) dα`. It is therefore compared with Simpson's integral of the covariances, whose error
    falls with the fifth power of the step, and not with a single covariance in the middle.

    Standard errors are those of the draws, given the prompts, since both sides estimate one number for each prompt.
    The errors of the two sides come from the variances of the draws. The same draws enter both, so the error of the
    difference comes from its scatter over prompts.

    Args:
        alphas: an odd number of them, three or more, evenly spaced and rising.
        rewards: for each alpha float64 [prompts, N]; N may differ between alphas.
        log_probs: likewise, log p(x | prompt) of the whole completion, nats (not a token).

    Raises:
        ValueError: the alphas are not evenly spaced, shapes differ, or fewer than two prompts or completions.
    """
    steps = np.diff(alphas)
    if len(alphas) < 3 or not len(alphas) % 2 or steps[0] <= 0 or not np.allclose(steps, steps[0]):
        raise ValueError(f"alphas {list(alphas)}: must be an odd number >= 3 of them, rising, evenly spaced")
    shapes = [(r.shape, x.shape) for r, x in zip(rewards, log_probs, strict=True)]
    if len(shapes) != len(alphas) or any(r != x or len(r) != 2 or min(r) < 2 for r, x in shapes):
        raise ValueError(f"shapes {shapes}: must be [prompts, N] twice for each of {len(alphas)} alphas, >= 2 each")
    width = alphas[-1] - alphas[0]
    slopes = (rewards[-1].mean(axis=1) - rewards[0].mean(axis=1)) / width
    products = [_centred(r) * _centred(x) for r, x in zip(rewards, log_probs, strict=True)]
    covariances = np.array([p.sum(axis=1) / (p.shape[1] - 1) for p in products])
    averages = scipy.integrate.simpson(covariances, x=np.asarray(alphas), axis=0) / width
    differences = slopes - averages
    # Simpson's weights: the integral of each unit vector.
    weights = scipy.integrate.simpson(np.eye(len(alphas)), x=np.asarray(alphas), axis=1) / width
    slope_error = np.hypot(_error(rewards[0]), _error(rewards[-1])) / width
    covariance_error = np.sqrt(sum((w * _error(p)) ** 2 for w, p in zip(weights, products, strict=True)))
    pairs = (slopes, slope_error), (averages, covariance_error), (differences, scipy.stats.sem(differences))
    slope, covariance, difference = (Estimate(float(x.mean()), float(error), len(x)) for x, error in pairs)
    p_value = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    return SlopeAndCovariance(slope, covariance, difference, p_value)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)


def _error(draws: np.ndarray) -> float:
    """Standard error of the mean over prompts of the means of `draws` [prompts, N], given the prompts."""
    prompts, n = draws.shape
    return float(np.sqrt((draws.var(axis=1, ddof=1) / n).sum()) / prompts)


def measure(draws: Sequence[AtAlpha]) -> SlopeAndCovariance:
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
        check = reweighted_accuracy(plain, alpha).mean()
        print(
            f"| {alpha:g} | {d.correct.mean():.3f} ± {_error(d.correct):.3f} | {check:.3f} | {d.log_prob.mean():.2f} |",
            flush=True,
        )
        draws.append(d)
    found = measure(draws)
    print(f"\nFrom alpha {ALPHAS[0]:g} to {ALPHAS[-1]:g}, ± standard error:")
    for name, estimate in (("slope", found.slope), ("covariance", found.covariance), ("difference", found.difference)):
        print(f"  {name:10} {estimate.value:.3f} ± {estimate.error:.3f}")
    print(f"t-test over problems that the difference is 0: p = {found.p_value:.2f}")


if __name__ == "__main__":
    main()
