"""What the scripts of this folder share: their options, and one stock `lm_eval` command for each run.

A run has a folder, OUT/seedS/NAME: `store` holds its completions, and `nN` (`nN-limitL`) what lm-eval wrote. A run that
was cut off draws only what its store lacks; one whose results are there is not started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_power.distill.record import RECORD

STANDARD = {"method": "standard"}
TEMPERATURE = {"method": "temperature", "proposal_temperature": 0.25}
POWER = {"method": "power", "alpha": 4, "mcmc_steps": 10, "block_size": 192}
HUMANEVAL = "power_humaneval"


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of a table: one way to complete the problems of a task.

    Attributes:
        title: in the table.
        options: further `--model_args`: the sampler's options, `peft` …
        name: of its folder; default: the title, spelt as a file name.
        task: lm-eval's name of it.
        gen_kwargs: further `--gen_kwargs` than n.
        n: completions per problem; None: as the command line says.
        student: name of the student that completes them; None: the base model.
    """

    title: str
    options: Mapping[str, Any]
    name: str | None = None
    task: str = HUMANEVAL
    gen_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    n: int | None = None
    student: str | None = None

    @property
    def folder(self) -> str:
        """The last part of its folder's path.

        >>> Run("power, 10 steps", POWER).folder
        'power-10-steps'
        """
        return self.name or "-".join("".join(c if c.isalnum() or c in "._" else " " for c in self.title).split())


def parser(description: str, runs: Sequence[Run] = (), n: int = 4) -> argparse.ArgumentParser:
    """The options that the scripts share.

    Args:
        description: of the script.
        runs: those that `--only` may name.
        n: completions per problem, unless the user says so.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed, say, is an option of the trainer
    )
    parser.add_argument("model", help="a folder, or a hub id")
    parser.add_argument(
        "out", type=Path, help="folder of stores, results and tables; scripts of one model may share it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of everything per seed (default: 0)")
    parser.add_argument("--n", type=int, default=n, help="completions per problem and seed (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="the first so many problems only")
    parser.add_argument("--max_gen_toks", type=int, help="longest completion in tokens (default: the task's)")
    parser.add_argument("--rows", default="64", help="completions side by side, or auto (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the weights; bfloat16 on a GPU (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda … (default: lm-eval's choice)")
    if runs:
        titles = [run.title for run in runs]
        parser.add_argument("--only", nargs="+", choices=titles, default=titles, metavar="RUN", help="these rows only")
    return parser


def folder(args: argparse.Namespace, run: Run, seed: int) -> Path:
    """Everything of a run."""
    return args.out / f"seed{seed}" / run.folder


def adapter(args: argparse.Namespace, student: str, seed: int) -> Path:
    """A student's folder."""
    return args.out / f"seed{seed}" / student


def results(args: argparse.Namespace, run: Run, seed: int) -> Path:
    """What lm-eval writes for a run."""
    limit = "" if args.limit is None else f"-limit{args.limit}"
    return folder(args, run, seed) / f"n{run.n or args.n}{limit}"


def evaluate(args: argparse.Namespace, run: Run, seed: int, more: Sequence[str] = (), **files: str | None) -> Path:
    """Have lm-eval do a run, unless its results are there: the folder of its results.

    Args:
        args: the command line.
        run: which.
        seed: of the sampler.
        more: further arguments of `lm_eval`.
        files: data files of the task, by its names for them; None: from the hub.

    Raises:
        SystemExit: lm-eval failed, or the results that are there are of another model, other data or other settings.
    """
    output = results(args, run, seed)
    model = {"pretrained": args.model, "dtype": args.dtype, **run.options, "seed": seed}
    model["completions"] = folder(args, run, seed) / "store"
    if run.student is not None:
        model["peft"] = adapter(args, run.student, seed)
    generation = {"n": run.n or args.n, **run.gen_kwargs}
    if args.max_gen_toks is not None:
        generation["max_gen_toks"] = args.max_gen_toks
    if done := sorted(output.rglob("results_*.json")):
        _check_same(done[-1], {**model, **generation}, run.task, files)
        if run.student is not None:
            _check_newer(done[-1], adapter(args, run.student, seed))
        return output
    arguments = ["--model", "power-hf", "--tasks", run.task, "--model_args", _pairs(model)]
    arguments += ["--gen_kwargs", _pairs(generation), "--batch_size", args.rows, "--confirm_run_unsafe_code"]
    arguments += ["--output_path", str(output), "--log_samples", *more]
    if given := {name: file for name, file in files.items() if file is not None}:
        arguments += ["--metadata", json.dumps(given)]
    arguments += [f"--{name}={getattr(args, name)}" for name in ("device", "limit") if getattr(args, name) is not None]
    execute("lm_eval", *arguments)
    return output


def _check_same(file: Path, wanted: Mapping[str, Any], task: str, files: Mapping[str, str | None]) -> None:
    """Refuse results that were made otherwise; where the folder of a store or a student is may have changed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    had = content["config"]["model_args"] | content["config"]["gen_kwargs"]
    data = content["configs"][task]["metadata"] if files else {}
    pairs = {name: (had.get(name), wanted.get(name)) for name in (had.keys() | wanted.keys()) - {"completions", "peft"}}
    pairs |= {name: (data.get(name), path) for name, path in files.items()}
    for name, (was, would) in sorted(pairs.items()):
        if str(was) != str(would):
            raise SystemExit(f"{file.parent}: was made with {name}={was}, and {would} is wanted; name another OUT")


def _check_newer(file: Path, student: Path) -> None:
    """Refuse results that are older than the student, which was trained anew."""
    if (student / RECORD).stat().st_mtime > file.stat().st_mtime:
        raise SystemExit(
            f"{file.parent}: is older than the student {student}; remove it, or name the new one otherwise"
        )


def _pairs(options: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def execute(module: str, *arguments: str) -> None:
    """Print `python -m module arguments`, and run it with this Python.

    Raises:
        SystemExit: it failed; what it said stands above.
    """
    command = ["-m", module, *arguments]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        raise SystemExit(f"{module} ended with exit status {code}: mend that, and start this script again to go on")


def report(args: argparse.Namespace, runs: Sequence[Run], name: str = "report") -> None:
    """Set the runs of the first seed side by side by `lm-power report`, in OUT/NAME."""
    seed = args.seeds[0]
    sources = [f"{run.title}={results(args, run, seed)}" for run in runs]
    execute("lm_power", "report", *sources, "--output", str(args.out / name))
