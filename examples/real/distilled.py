"""Pay once: power samples of MBPP, a student trained on them, and the student on HumanEval beside its base.

    python examples/real/distilled.py MODEL OUT --mbpp_file sanitized-mbpp.json --learning_rate 5e-5 --epochs 2

Table 1 of Tomihari & Sato (2026), its distilled rows. Options that this script does not have go to
`python -m lm_power.distill`. Every seed has a teacher, a student and an evaluation of its own. Training sees no labels;
the share of the teacher's completions that are right is printed for the reader.
"""

import dataclasses
from pathlib import Path

import commands
from commands import POWER, STANDARD, TEMPERATURE, Run, adapter, evaluate, folder, parser, report
from scores import summary, write

from lm_power.distill.record import RECORD

TEACHER = Run("teacher", POWER, task="power_mbpp_train", n=1)
BASE = [Run("standard", STANDARD), Run("temperature", TEMPERATURE)]
STUDENT = [
    Run("distilled, standard", STANDARD),
    Run("distilled, temperature", TEMPERATURE),
    Run("distilled, power", POWER),
]


def students(name: str) -> list[Run]:
    """The rows of the student of that name, in folders of its own."""
    return [dataclasses.replace(run, name=f"{name}-{run.options['method']}", student=name) for run in STUDENT]


def train(model: str, data: Path, output: Path, seed: int, options: list[str]) -> None:
    """A student, unless it is there; one that was cut off goes on."""
    again = ["--resume"] if (output / RECORD).exists() else []
    where = ["--model", model, "--data", str(data), "--output", str(output), "--seed", str(seed)]
    commands.execute("lm_power.distill", *where, *options, *again)


def main() -> None:
    options = parser(__doc__, BASE + STUDENT)
    options.add_argument("--mbpp_file", help="sanitized MBPP as a file (default: from the hub)")
    options.add_argument("--student", default="student", help="its name: one per choice of options")
    args, training = options.parse_known_args()
    runs = [run for run in BASE + students(args.student) if run.title in args.only]
    for seed in args.seeds:
        evaluate(args, TEACHER, seed, mbpp_file=args.mbpp_file)
        store = folder(args, TEACHER, seed) / "store"
        train(args.model, store, adapter(args, args.student, seed), seed, training)
        for run in runs:
            evaluate(args, run, seed)
    report(args, runs)
    teacher = "The teacher, on MBPP:\n\n" + summary(args, [TEACHER])
    write(args, f"{args.student}.md", f"{summary(args, runs)}\n{teacher}")


if __name__ == "__main__":
    main()
