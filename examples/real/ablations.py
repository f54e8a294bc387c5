"""One option of `power` at a time on HumanEval: accuracy against decoded tokens, a figure and a table for each.

    python examples/real/ablations.py MODEL OUT --n 1 --option mcmc_steps alpha

All other options are the paper's: alpha 4, blocks of 192, 10 steps, proposals at temperature 1/alpha.
"""

from commands import POWER, Run, evaluate, parser
from matplotlib.figure import Figure
from scores import accuracy, finished, over_problems, self_reward, table, tokens, write

from lm_power.report.tables import cell_text
from lm_power.stats.means import Estimate

VALUES = {
    "mcmc_steps": (0, 2, 5, 10, 20),
    "block_size": (48, 96, 192, 768),
    "alpha": (1, 2, 4, 8),
    "proposal_temperature": (0.25, 0.5, 1.0),
    "final_steps": (0, 10, 40),
    "cut": ("uniform", "entropy", "last_block"),
}
PAPER = POWER | {"proposal_temperature": 0.25, "final_steps": 0, "cut": "uniform"}


def run_of(option: str, value: float | str) -> Run:
    """The paper's settings but one."""
    options = POWER if value == PAPER[option] else POWER | {option: value}
    return Run(str(value), options, name="power" if options == POWER else f"power-{option}-{value}")


def figure_of(option: str, points: dict[str, tuple[Estimate, Estimate, Estimate]]) -> Figure:
    """Accuracy against tokens decoded, each point with its value."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    cost, right = [each[0].value for each in points.values()], [each[1] for each in points.values()]
    axes.errorbar(cost, [e.value for e in right], [e.error or 0 for e in right], marker="o", capsize=3, color="#0072B2")
    for value, x, y in zip(points, cost, right, strict=True):
        axes.annotate(value, (x, y.value), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel="tokens decoded per completion", ylabel="accuracy, ± standard error", title=option)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    options = parser(__doc__, n=1)
    options.add_argument("--option", nargs="+", choices=VALUES, default=list(VALUES), help="which (default: all)")
    args = options.parse_args()
    for option in args.option:
        points = {}
        for run in (run_of(option, value) for value in VALUES[option]):
            for seed in args.seeds:
                evaluate(args, run, seed)
            done = finished(args, run)
            points[run.title] = tuple(over_problems(done, each) for each in (tokens, accuracy, self_reward))
        rows = [[value, *(cell_text(each, 3 * (at > 0)) for at, each in enumerate(e))] for value, e in points.items()]
        write(args, f"ablation-{option}.md", table([option, "tokens decoded", "accuracy", "self-reward"], rows))
        figure_of(option, points).savefig(args.out / f"ablation-{option}.svg")


if __name__ == "__main__":
    main()
