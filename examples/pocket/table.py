"""Table 1 of the pocket model: sampling methods with self-reward best-of-N, and random weights as a control.

    python examples/pocket/table.py                     # 100 problems, N = 8; a few minutes on two cores, offline
    python examples/pocket/table.py --limit 10 --n 4    # a look at the machinery

Each row is one evaluation by stock lm-eval, in this process; by the command line it would be, for example:

    lm_eval --model power-hf --tasks pocket_sums --device cpu --batch_size 64 --limit 100 --gen_kwargs n=8 \
        --model_args pretrained=examples/pocket/model,dtype=float32,method=power,alpha=4,block_size=4,mcmc_steps=10
"""

import argparse
import logging
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval
from lm_eval.tasks import TaskManager

from lm_power.plugin import tasks_folder

MODEL = Path(__file__).parent / "model"
METHODS = {
    "standard": {"method": "standard"},
    "temperature 1/4": {"method": "temperature", "proposal_temperature": 0.25},
    "power, alpha 4": {"method": "power", "alpha": 4, "block_size": 4, "mcmc_steps": 10},
}
COLUMNS = ("acc", "bon_acc", "self_reward", "bon_self_reward")


def evaluate(options: dict[str, object], tasks: TaskManager, n: int, limit: int) -> dict[str, float]:
    """lm-eval's results of the task pocket_sums: `metric,none` and `metric_stderr,none`."""
    model = {"pretrained": str(MODEL), "dtype": "float32", **options}
    results = lm_eval.simple_evaluate(
        "power-hf", model, ["pocket_sums"], task_manager=tasks, gen_kwargs={"n": n}, limit=limit,
        batch_size=64, device="cpu", bootstrap_iters=1, log_samples=False,
    )  # fmt: skip
    return results["results"]["pocket_sums"]


def main() -> None:
    """Print the table, row by row as the evaluations end."""
    parser = argparse.ArgumentParser(description="Print Table 1 of the pocket model.")
    parser.add_argument("--n", type=int, default=8, help="completions a problem, at least 2 (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="problems (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.n < 2 or arguments.limit < 2:
        parser.error("--n and --limit must be at least 2: best-of-N compares, and so do standard errors")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    print(f"{arguments.limit} problems, N = {arguments.n}, ± standard error over problems\n")
    print("| model | method | acc, all completions | acc, best of N | self-reward | self-reward, best of N |")
    print("|---|---|---|---|---|---|", flush=True)
    for model, weights in (("pocket", {}), ("RandW", {"randomize_weights": True})):
        for method, options in METHODS.items():
            results = evaluate({**options, **weights}, tasks, arguments.n, arguments.limit)
            cells = [f"{results[f'{c},none']:.3f} ± {results[f'{c}_stderr,none']:.3f}" for c in COLUMNS]
            print(f"| {model} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
