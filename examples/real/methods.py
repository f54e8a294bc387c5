"""The methods on HumanEval at about the same number of decoded tokens, best-of-N and pass@k beside them.

    python examples/real/methods.py MODEL OUT --n 16

A row of the first table is a way to one answer: one completion of a method, or the best of k plain ones by self-reward,
which cost k times one. The settings were chosen by their cost alone. The second table has pass@k, the chance that one
of k completions is right, estimated from N.
"""

from collections.abc import Sequence

from commands import POWER, STANDARD, TEMPERATURE, Run, evaluate, parser
from scores import accuracy, finished, over_problems, self_reward, table, tokens, write

from lm_power.logs.samples import LoggedCompletion
from lm_power.report import runs as report
from lm_power.report.tables import cell_text
from lm_power.stats.best_of_n import best_of_k, ks, pass_at_k
from lm_power.stats.means import Estimate

SEVERAL = [Run("standard", STANDARD), Run("temperature", TEMPERATURE)]
SMC, TEMPERING, SPS = ({"method": method, "alpha": 4} for method in ("smc", "tempering", "sps"))
ONE = [
    Run("power", POWER, n=1),
    Run("power, 40 steps", POWER | {"mcmc_steps": 40}, n=1),
    Run("power, entropy cuts", POWER | {"cut": "entropy"}, n=1),
    Run("smc, 2 particles", SMC | {"particles": 2}, n=1),
    Run("smc, 4 particles", SMC | {"particles": 4}, n=1),
    Run("tempering, 2 rungs", TEMPERING | {"rungs": 2, "mcmc_steps": 2}, n=1),
    Run("sps, 2 candidates", SPS | {"candidates": 2, "rollouts": 1, "block_size": 48}, n=1),
]


def best_of(completions: Sequence[LoggedCompletion], k: int, score: str) -> float:
    """`correct` or `self_reward` of the best of k completions by self-reward."""
    return best_of_k(
        [completion.self_reward for completion in completions],
        [getattr(completion, score) for completion in completions],
        k,
    )


def best_rows(title: str, runs: list[report.Run]) -> list[tuple[float, str, Estimate, Estimate]]:
    """(tokens, title, accuracy, self-reward) of the best of k, k = 1, 2, 4 …; k = 1 is one plain completion."""
    cost = over_problems(runs, tokens).value
    return [
        (
            k * cost,
            title if k == 1 else f"best of {k}, {title}",
            over_problems(runs, lambda completions, k=k: best_of(completions, k, "correct")),
            over_problems(runs, lambda completions, k=k: best_of(completions, k, "self_reward")),
        )
        for k in ks(runs[0].n)
    ]


def pass_row(title: str, runs: list[report.Run]) -> list[str]:
    """A row of the table of pass@k: k = 1, 2, 4 … and N."""

    def pass_at(completions: Sequence[LoggedCompletion], k: int) -> float:
        return pass_at_k(len(completions), sum(completion.correct == 1 for completion in completions), k)

    found = [over_problems(runs, lambda completions, k=k: pass_at(completions, k)) for k in ks(runs[0].n)]
    return [title, *(cell_text(each, 3) for each in found)]


def main() -> None:
    args = parser(__doc__, SEVERAL + ONE, n=16).parse_args()
    rows, passes = [], []
    for run in (run for run in SEVERAL + ONE if run.title in args.only):
        for seed in args.seeds:
            evaluate(args, run, seed)
        done = finished(args, run)
        if run in SEVERAL:
            rows += best_rows(run.title, done)
            passes.append(pass_row(run.title, done))
        else:
            found = [over_problems(done, each) for each in (tokens, accuracy, self_reward)]
            rows.append((found[0].value, run.title, *found[1:]))
    rows.sort(key=lambda row: row[0])
    cells = [[title, f"{cost:.0f}", *(cell_text(each, 3) for each in rest)] for cost, title, *rest in rows]
    write(args, "methods.md", table(["one answer by", "tokens per answer", "accuracy", "self-reward"], cells))
    if passes:
        write(args, "pass_at_k.md", table(["", *(f"pass@{k}" for k in ks(args.n))], passes))


if __name__ == "__main__":
    main()
