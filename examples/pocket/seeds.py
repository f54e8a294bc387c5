"""Table 1 of the pocket model over several seeds: mean ± standard error over the seeds.

    for seed in 0 1 2; do bash examples/pocket/distill.sh runs/seed$seed $seed; done
    python examples/pocket/seeds.py runs/seed0 runs/seed1 runs/seed2

A seed decides all that is random: the teacher's completions, the adapter's start, the order of training and the
completions evaluated. The problems are the same for all seeds.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

MODELS = ("RandW", "base", "distilled")
METHODS = ("standard", "temperature", "power")
METRICS = {
    "acc": "acc, all completions",
    "bon_acc": "acc, best of N",
    "self_reward": "self-reward",
    "bon_self_reward": "self-reward, best of N",
    "tokens_decoded": "tokens decoded per completion",
}


def results(folder: Path) -> dict[str, float]:
    """lm-eval's metrics of the one task evaluated in `folder`, the newest if there are several."""
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise SystemExit(f"{folder}: holds no results; run examples/pocket/distill.sh first")
    (metrics,) = json.loads(files[-1].read_text())["results"].values()
    return {name.removesuffix(",none"): value for name, value in metrics.items()}


def cell(values: list[float]) -> str:
    """`mean ± standard error of the mean`, to three decimals below 10 and to whole numbers above."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    digits = 3 if abs(mean) < 10 else 0
    return f"{mean:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders that distill.sh has filled, one per seed")
    folders = parser.parse_args().folders
    if len(folders) < 2:
        parser.error("a standard error needs two folders at least")
    print(f"{len(folders)} seeds, ± standard error over seeds\n")
    print(f"| model | method | {' | '.join(METRICS.values())} |")
    print("|---|---" + "|---:" * len(METRICS) + "|")
    for model in MODELS:
        for method in METHODS:
            runs = [results(folder / f"{model}-{method}") for folder in folders]
            print(f"| {model} | {method} | {' | '.join(cell([run[name] for run in runs]) for name in METRICS)} |")
    teachers = [results(folder / "teacher")["tokens_decoded"] for folder in folders]
    print(f"\nThe teacher's completions, once: {cell(teachers)} tokens decoded each.")


if __name__ == "__main__":
    main()
