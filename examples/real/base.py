"""Four ways of sampling from one model on HumanEval or MATH500, and the negative control with random weights.

    python examples/real/base.py MODEL OUT --n 4 --seeds 0 1 2
    python examples/real/base.py MODEL OUT --n 1 --task math500 --math500_file math500.jsonl --max_gen_toks 512

Table 1 of Tomihari & Sato (2026), its rows without distillation: accuracy, self-reward in nats per token, self-reward
best-of-N, and the tokens decoded for one completion. The control decodes at most 64 tokens: it never stops by itself.
HumanEval is given as it is, MATH500 with the model's chat template.
"""

import dataclasses

from commands import HUMANEVAL, POWER, STANDARD, TEMPERATURE, Run, evaluate, parser, report
from scores import summary, write

POWER_INF = {name: value for name, value in POWER.items() if name != "alpha"} | {"method": "power_inf"}
RANDOM, SHORT = {"randomize_weights": True}, {"max_gen_toks": 64}
RUNS = [
    Run("standard", STANDARD),
    Run("temperature", TEMPERATURE),
    Run("power", POWER),
    Run("power_inf", POWER_INF),
    Run("random weights, standard", RANDOM | STANDARD, gen_kwargs=SHORT),
    Run("random weights, power", RANDOM | POWER, gen_kwargs=SHORT),
]


def main() -> None:
    options = parser(__doc__, RUNS)
    options.add_argument("--task", choices=(HUMANEVAL, "math500"), default=HUMANEVAL, help="(default: %(default)s)")
    options.add_argument("--math500_file", help="MATH500 as a file (default: from the hub)")
    args = options.parse_args()
    runs, more, files, suffix = [run for run in RUNS if run.title in args.only], [], {}, ""
    if args.task != HUMANEVAL:
        suffix = f"-{args.task}"
        runs = [dataclasses.replace(run, task=args.task, name=f"{args.task}-{run.folder}") for run in runs]
        more, files = ["--apply_chat_template"], {"math500_file": args.math500_file}
    for seed in args.seeds:
        for run in runs:
            evaluate(args, run, seed, more, **files)
    report(args, runs, f"report{suffix}")
    write(args, f"base{suffix}.md", summary(args, runs))


if __name__ == "__main__":
    main()
