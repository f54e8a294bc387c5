"""The methods on HumanEval at about the same number of decoded tokens, best-of-N and pass@k beside them.

    python examples/real/methods.py MODEL OUT --n 16

A row of the first table is a way to one answer: one completion of a method, or the best of k by self-reward, which cost
k times one. The settings were chosen by their cost alone. The second table and the figure have pass@k, the chance that
one of k completions is right, estimated from N. `--student NAME` adds a student that distilled.py has trained.
"""

from collections.abc import Sequence

from commands import POWER, STANDARD, TEMPERATURE, Run, evaluate, parser
from distilled import students
from matplotlib.figure import Figure
from scores import accuracy, finished, log_p, over_problems, self_reward, table, tokens, write

from lm_power.logs.samples import LoggedCompletion
from lm_power.report import runs as report
from lm_power.report.tables import cell_text
from lm_power.stats.best_of_n import best_of_k, ks, pass_at_k
from lm_power.stats.means import Estimate

SEVERAL = [Run("standard", STANDARD), Run("temperature", TEMPERATURE), Run("power", POWER)]
SMC, TEMPERING, SPS = ({"method": method, "alpha": 4} for method in ("smc", "tempering", "sps"))
ONE = [
    Run("power, 40 steps", POWER | {"mcmc_steps": 40}, n=1),
    Run("power, entropy cuts", POWER | {"cut": "entropy"}, n=1),
    Run("smc, 2 particles", SMC | {"particles": 2}, n=1),
    Run("smc, 4 particles", SMC | {"particles": 4}, n=1),
    Run("tempering, 2 rungs", TEMPERING | {"rungs": 2, "mcmc_steps": 2}, n=1),
    Run("sps, 2 candidates", SPS | {"candidates": 2, "rollouts": 1, "block_size": 48}, n=1),
]


def best_of(completions: Sequence[LoggedCompletion], k: int, score: str) -> float:
    """`correct`, `self_reward` or `sum_log_prob` of the best of k completions by self-reward."""
    return best_of_k(
        [completion.self_reward for completion in completions],
        [getattr(completion, score) for completion in completions],
        k,
    )


def best_rows(title: str, runs: list[report.Run]) -> list[tuple[float, str, list[Estimate]]]:
    """(tokens, title, [accuracy, self-reward, log p]) of the best of k, k = 1, 2, 4 …; k = 1 is one completion."""
    cost = over_problems(runs, tokens).value
    return [
        (
            k * cost,
            title if k == 1 else f"best of {k}, {title}",
            [
                over_problems(runs, lambda completions, k=k, score=score: best_of(completions, k, score))
                for score in ("correct", "self_reward", "sum_log_prob")
            ],
        )
        for k in ks(runs[0].n)
    ]


def pass_at_ks(runs: list[report.Run]) -> list[Estimate]:
    """Pass@k for k = 1, 2, 4 … and N."""

    def pass_at(completions: Sequence[LoggedCompletion], k: int) -> float:
        return pass_at_k(len(completions), sum(completion.correct == 1 for completion in completions), k)

    return [over_problems(runs, lambda completions, k=k: pass_at(completions, k)) for k in ks(runs[0].n)]


def pass_figure(n: int, curves: dict[str, list[Estimate]]) -> Figure:
    """Pass@k against k, a line for each way of sampling."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for title, curve in curves.items():
        right, errors = [each.value for each in curve], [each.error or 0 for each in curve]
        axes.errorbar(ks(n), right, errors, marker="o", capsize=3, label=title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks(n), [str(k) for k in ks(n)])
    axes.set(xlabel="k", ylabel="pass@k, ± standard error")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    options = parser(__doc__, SEVERAL + ONE, n=16)
    options.add_argument("--student", metavar="NAME", help="of distilled.py, to set beside its base")
    args = options.parse_args()
    trained = [run for run in students(args.student) if run.options["method"] != "power"] if args.student else []
    rows, curves = [], {}
    for run in [run for run in SEVERAL + ONE if run.title in args.only] + trained:
        for seed in args.seeds:
            evaluate(args, run, seed)
        done = finished(args, run)
        if run in ONE:
            found = [over_problems(done, each) for each in (accuracy, self_reward, log_p)]
            rows.append((over_problems(done, tokens).value, run.title, found))
        else:
            rows += best_rows(run.title, done)
            curves[run.title] = pass_at_ks(done)
    rows.sort(key=lambda row: row[0])
    cells = [[title, f"{cost:.0f}", *map(cell_text, found, (3, 3, 1))] for cost, title, found in rows]
    write(args, "methods.md", table(["one answer by", "tokens per answer", "accuracy", "self-reward", "log p"], cells))
    if curves:
        passes = [[title, *(cell_text(each, 3) for each in curve)] for title, curve in curves.items()]
        write(args, "pass_at_k.md", table(["", *(f"pass@{k}" for k in ks(args.n))], passes))
        pass_figure(args.n, curves).savefig(args.out / "pass_at_k.svg")


if __name__ == "__main__":
    main()
