"""One option of `power` at a time on HumanEval: accuracy against decoded tokens, a figure and a table for each.

    python examples/real/ablations.py MODEL OUT --n 1 --option mcmc_steps alpha

The figures of all that were asked for stand together in `ablations.svg`, too.
All other options are the paper's: alpha 4, blocks of 192, 10 steps, proposals at temperature 1/alpha.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from commands import POWER, Run, evaluate, parser
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scores import accuracy, finished, log_p, over_problems, self_reward, table, tokens, write

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
Point = tuple[Estimate, ...]
"""Tokens decoded, accuracy, self-reward and log p of a setting."""


def run_of(option: str, value: float | str) -> Run:
    """The paper's settings but one."""
    options = POWER if value == PAPER[option] else POWER | {option: value}
    return Run(str(value), options, name="power" if options == POWER else f"power-{option}-{value}")


def draw(axes: Axes, option: str, points: Mapping[str, Point]) -> None:
    """Accuracy against tokens decoded, each point with its value."""
    cost, right = [each[0].value for each in points.values()], [each[1] for each in points.values()]
    axes.errorbar(cost, [e.value for e in right], [e.error or 0 for e in right], fmt="o", capsize=3, color="#0072B2")
    for value, x, y in zip(points, cost, right, strict=True):
        axes.annotate(value, (x, y.value), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel="tokens decoded per completion", ylabel="accuracy, ± standard error", title=option)
    axes.margins(x=0.25)  # room for the last value
    axes.grid(alpha=0.3)


def save(file: Path, found: Mapping[str, Mapping[str, Point]]) -> None:
    """A panel per option, three in a row, with one accuracy axis for all."""
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, (option, points) in zip(panels, found.items(), strict=False):
        draw(axes, option, points)
        axes.label_outer(remove_inner_ticks=False)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(found) :]:
        axes.remove()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lm-power"}):  # text as text; equal data, equal file
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    options = parser(__doc__, n=1)
    options.add_argument("--option", nargs="+", choices=VALUES, default=list(VALUES), help="which (default: all)")
    args = options.parse_args()
    found = {}
    for option in args.option:
        points = found[option] = {}
        for run in (run_of(option, value) for value in VALUES[option]):
            for seed in args.seeds:
                evaluate(args, run, seed)
            done = finished(args, run)
            points[run.title] = tuple(over_problems(done, each) for each in (tokens, accuracy, self_reward, log_p))
        rows = [[value, *map(cell_text, numbers, (0, 3, 3, 1))] for value, numbers in points.items()]
        header = [option, "tokens decoded", "accuracy", "self-reward", "log p"]
        write(args, f"ablation-{option}.md", table(header, rows))
        save(args.out / f"ablation-{option}.svg", {option: points})
    save(args.out / "ablations.svg", found)


if __name__ == "__main__":
    main()
