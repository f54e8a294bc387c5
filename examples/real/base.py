"""Four ways of sampling from one model on HumanEval, and the negative control with random weights.

    python examples/real/base.py MODEL OUT --n 4 --seeds 0 1 2

Table 1 of Tomihari & Sato (2026), its rows without distillation: accuracy, self-reward in nats per token, self-reward
best-of-N, and the tokens decoded for one completion. The control decodes at most 64 tokens: it never stops by itself.
"""

from commands import POWER, STANDARD, TEMPERATURE, Run, chosen, evaluate, parser, report
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
    args = parser(__doc__).parse_args()
    runs = chosen(RUNS, args)
    for seed in args.seeds:
        for run in runs:
            evaluate(args, run, seed)
    report(args, runs)
    write(args, "base.md", summary(args, runs))


if __name__ == "__main__":
    main()
