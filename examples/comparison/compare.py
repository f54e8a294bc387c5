"""All methods on the pocket model at equal cost: accuracy against tokens decoded, beside votes and best-of-N.

    python examples/comparison/compare.py --output comparison        # about ten minutes of one core, offline

It may be killed and started again: what is in the stores of OUTPUT is not drawn twice. Written there at the end:
table.md, figure.svg and figure.png.

The settings below were chosen by their cost alone, never by accuracy: 1, 2, 4 and 10 times the 25 tokens of a plain
completion, as nearly as each method allows. Costs in the table are those of the run itself.
"""

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lm_power import Completion, PowerSampler, SamplerConfig
from lm_power.fingerprint import fingerprint
from lm_power.jobs import Job
from lm_power.stats.best_of_n import best_of_n, majority_vote
from lm_power.store import CompletionStore, Provenance
from lm_power.tasks.pocket_sums.utils import PROBLEMS, parse_answer

MODEL = Path(__file__).parents[1] / "pocket" / "model"
LONGEST = 40  # tokens, as the task pocket_sums has it
REPEATS = 2  # completions of each problem by a method
DRAWS = 20  # plain completions of each problem, for votes and best-of-N: DRAWS/N groups of N
GROUPS = (1, 2, 4, 10)
BLOCKS = {"method": "power", "block_size": 4}
SMC = {"method": "smc", "resample_every": 4}
LINES: dict[str, dict[str, dict]] = {
    "power": {f"{n} steps per block": {**BLOCKS, "mcmc_steps": n} for n in (10, 80, 270)},
    "power, final steps": {"10 per block, 600 final": {**BLOCKS, "mcmc_steps": 10, "final_steps": 600}},
    "power, entropy cuts": {"15 steps per block": {**BLOCKS, "mcmc_steps": 15, "cut": "entropy"}},
    "smc": {f"{n} particles": {**SMC, "particles": n} for n in (2, 4, 9)},
    "tempering": {
        f"{rungs} rungs, {rounds} rounds": {"method": "tempering", "rungs": rungs, "mcmc_steps": rounds}
        for rungs, rounds in ((2, 2), (2, 8), (4, 5))
    },
    "rejection": {"until one is kept": {"method": "rejection", "max_tries": 100_000}},
    "sps": {
        f"{m} candidates, {k} rollouts, blocks of {b}": {
            "method": "sps", "candidates": m, "rollouts": k, "block_size": b,
        }
        for m, k, b in ((2, 1, 4), (4, 2, 8))
    },
}  # fmt: skip
PLAIN = {"p": {"method": "standard"}, "temperature 1/4": {"method": "temperature"}}


@dataclasses.dataclass(frozen=True)
class Point:
    """A row of the table: a way to get one answer per problem.

    Attributes:
        line: what it is a setting of.
        setting: which.
        tokens: decoded per answer, mean over problems.
        accuracy, self_reward: (mean over problems, its standard error); self-reward in nats per token.
        seconds: [2] wall-clock and CPU time for one answer to every problem.
    """

    line: str
    setting: str
    tokens: float
    accuracy: tuple[float, float]
    self_reward: tuple[float, float] | None
    seconds: np.ndarray


class Drawer:
    """Draws completions of the held-out problems, and keeps them, and the time they took, in a folder."""

    def __init__(self, folder: Path, problems: list[dict], sampler: PowerSampler | None = None) -> None:
        self.sampler = sampler or PowerSampler.from_pretrained(str(MODEL), device="cpu", dtype="float32")
        self.folder, self.problems = folder, problems
        self.model = f"pocket@{fingerprint(self.sampler.host.backend.model)}"

    def draw(self, options: dict, repeats: int) -> tuple[list[list[Completion]], np.ndarray]:
        """(completions[problem][repeat]; wall-clock and CPU seconds for all of them, over all sessions)."""
        config = SamplerConfig(max_new_tokens=LONGEST, seed=0).replace(**options)
        source = Provenance(self.model, config, (), self.sampler.eos_ids)
        prompts = [self.sampler.encode(problem["prompt"]) for problem in self.problems]
        folder = self.folder / "-".join(str(value) for value in options.values())
        with CompletionStore(folder, self.model) as store:
            jobs = [Job(ids, repeat) for ids in prompts for repeat in range(repeats)]
            missing = [job for job in jobs if store.get(source.key(job.prompt_ids, job.repeat)) is None]
            texts = {ids: problem["prompt"] for ids, problem in zip(prompts, self.problems, strict=True)}
            before = clocks()
            for index, completion in self.sampler.sample(missing, config):
                job = missing[index]
                store.add(texts[job.prompt_ids], job.prompt_ids, job.repeat, source, completion)
                now = clocks()
                with (folder / "seconds.txt").open("a") as times:
                    times.write("{} {}\n".format(*(now - before)))
                before = now
            drawn = [[store.get(source.key(ids, repeat)) for repeat in range(repeats)] for ids in prompts]
        return drawn, np.loadtxt(folder / "seconds.txt", ndmin=2).sum(axis=0)


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def over_problems(values) -> tuple[float, float]:
    """Mean over problems and its standard error, from [problems, repeats]."""
    means = np.mean(values, axis=1)
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)


def verdicts(problems: list[dict], drawn: list[list[Completion]]) -> list[list[float]]:
    """1 or 0 of every completion."""
    return [[float(parse_answer(c) == p["answer"]) for c in row] for p, row in zip(problems, drawn, strict=True)]


def tokens_of(drawn: list[list[Completion]]) -> float:
    """Mean tokens decoded: rejected ones, and those decoded ahead in idle rows for nothing, included."""
    return float(np.mean([[c.stats.tokens_decoded + c.stats.tokens_dropped for c in row] for row in drawn]))


def method_point(drawer: Drawer, line: str, setting: str, options: dict, repeats: int) -> Point:
    """One completion is the answer."""
    drawn, seconds = drawer.draw(options, repeats)
    rewards = over_problems([[c.self_reward for c in row] for row in drawn])
    accuracy = over_problems(verdicts(drawer.problems, drawn))
    return Point(line, setting, tokens_of(drawn), accuracy, rewards, seconds / repeats)


def group_points(drawer: Drawer, name: str, options: dict, draws: int) -> list[Point]:
    """The majority of N plain completions, and the one of them with the largest self-reward."""
    drawn, seconds = drawer.draw(options, draws)
    correct, points = verdicts(drawer.problems, drawn), []
    for n in (n for n in GROUPS if n <= draws):
        votes, best, rewards = [], [], []
        for row, scores in zip(drawn, correct, strict=True):
            groups = [slice(at, at + n) for at in range(0, draws - n + 1, n)]
            votes.append([majority_vote(scores[g], [parse_answer(c) for c in row[g]], str.__eq__) for g in groups])
            best.append([best_of_n([c.self_reward for c in row[g]], scores[g]) for g in groups])
            rewards.append([max(c.self_reward for c in row[g]) for g in groups])
        cost, took = n * tokens_of(drawn), n * seconds / draws
        if n == 1:
            names = {"one draw from": ("", correct, rewards)}
        else:
            names = {
                "majority vote of": (f"{n} votes", votes, None),
                "best of": (f"{n}, by self-reward", best, rewards),
            }
        for what, (setting, accuracy, reward) in names.items():
            shown = None if reward is None else over_problems(reward)
            points.append(Point(f"{what} {name}", setting, cost, over_problems(accuracy), shown, took))
    return points


def table_of(points: list[Point]) -> str:
    """Markdown, cheapest first within each line."""
    rows = ["| | setting | tokens per answer | accuracy | self-reward | seconds | CPU |"]
    rows += ["|---|---|---:|---:|---:|---:|---:|"]
    for p in points:
        reward = "—" if p.self_reward is None else f"{p.self_reward[0]:.3f} ± {p.self_reward[1]:.3f}".replace("-", "−")
        wall, cpu = p.seconds
        accuracy = f"{p.accuracy[0]:.3f} ± {p.accuracy[1]:.3f}"
        rows.append(f"| {p.line} | {p.setting} | {p.tokens:.0f} | {accuracy} | {reward} | {wall:.0f} | {cpu:.0f} |")
    return "\n".join(rows) + "\n"


def figure_of(points: list[Point]) -> Figure:
    """Accuracy against tokens decoded: the methods, and votes and best-of-N in grey."""
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.subplots()
    lines = defaultdict(list)
    for point in points:
        lines[point.line].append(point)
    colours = iter(["#000000", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00"])
    for at, (line, settings) in enumerate(lines.items()):
        style = {"color": "0.55", "linestyle": (":", "--")["temperature" in line]}
        style = {"color": next(colours)} if line in LINES else style
        settings.sort(key=lambda point: point.tokens)
        x, y, error = zip(*((p.tokens, *p.accuracy) for p in settings), strict=True)
        axes.errorbar(x, y, error, label=line, marker="osD^vP*X<>dh"[at % 12], capsize=2, markersize=5, **style)
    axes.set(xscale="log", xlabel="tokens decoded per answer", ylabel="accuracy on 200 held-out sums")
    axes.set_xticks([25, 50, 100, 250], ["25", "50", "100", "250"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare all methods at equal cost on the pocket model.")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of stores, table and figure")
    parser.add_argument("--problems", type=int, default=200, help="at most so many (default: all 200)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="completions per problem (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=DRAWS, help="plain ones (default: %(default)s)")
    arguments = parser.parse_args()
    problems = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()][: arguments.problems]
    drawer = Drawer(arguments.output / "stores", problems)
    points = []
    for name, options in PLAIN.items():
        points += group_points(drawer, name, options, arguments.draws)
    points.sort(key=lambda point: (not point.line.startswith("one"), "majority" not in point.line))
    for line, settings in LINES.items():
        for setting, options in settings.items():
            points.append(method_point(drawer, line, setting, options, arguments.repeats))
            print(points[-1], flush=True)
    (arguments.output / "table.md").write_text(table_of(points), encoding="utf-8")
    figure = figure_of(points)
    for kind in ("svg", "png"):
        figure.savefig(arguments.output / f"figure.{kind}", dpi=150)
    print(table_of(points))


if __name__ == "__main__":
    main()
