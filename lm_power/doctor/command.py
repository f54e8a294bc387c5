"""`lm-power doctor`: tries each part of lm-power on this machine, and says what to set where one does not work.

    lm-power doctor
    lm-power doctor --model Qwen/Qwen2.5-0.5B-Instruct --dtype bfloat16
    lm-power doctor --require kernel --require sandbox --json

It needs no model and no network. The exit status is 1 where something that a run needs, or that `--require` names, does
not work.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence

from lm_power.errors import UserError

HELP = "try each part on this machine: what works, what does not, why, and what to set"
PARTS = {
    "packages": "the packages that lm-power needs",
    "plugin": "lm-eval finds power-hf and the tasks",
    "threads": "threads of the CPU, and its other work",
    "memory": "free memory",
    "gpu": "an NVIDIA GPU",
    "engine": "decoding a tiny model",
    "kernel": "the attention kernel against sdpa",
    "graphs": "recorded decode steps (CUDA graphs) against plain ones",
    "draw": "the compiled draw against the plain one",
    "bfloat16": "bfloat16 against float32",
    "sandbox": "the sandbox for model-written code",
    "math": "the worker that grades mathematics",
    "hub": "the Hugging Face hub",
    "vllm": "vLLM, an optional engine",
    "aiohttp": "aiohttp, for engines behind a server",
}
"""Part → what is tried; `model` comes on top where one is named."""

NEEDED = ("packages", "plugin", "engine", "model")
"""What every run needs; for the others there is another way, or the task says so before it starts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", metavar="ID", help="a model to load: hub id or folder; how many rows fit, how fast")
    parser.add_argument("--device", help="where to try: cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="of --model: auto, float32, bfloat16, float16")
    parser.add_argument(
        "--max-new-tokens", type=int, default=1024, metavar="N",
        help="longest completion, for the rows of --model that fit (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--require", action="append", default=[], choices=[*PARTS, "model"], metavar="PART",
        help=f"exit with status 1 unless this part works, too; may be repeated: {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Try everything and print it; the exit status.

    Raises:
        UserError: a device or dtype that does not exist.
    """
    # Here, and not above: torch would slow down `lm-power --help`.
    from lm_power.doctor.checks import Setting, examine
    from lm_power.doctor.machine import describe

    if "model" in arguments.require and arguments.model is None:
        raise UserError("--require model: which one? add --model ID")
    try:
        setting = Setting.of(arguments.device, arguments.model, arguments.dtype, arguments.max_new_tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    findings = examine(setting)
    asked = {*NEEDED, *arguments.require}
    missed = [finding.part for finding in findings if finding.part in asked and finding.verdict != "works"]
    if arguments.json:
        rows = [{**vars(finding), "asked": finding.part in asked} for finding in findings]
        print(json.dumps({"machine": describe(setting.device), "findings": rows, "missed": missed}, indent=2))
        return int(bool(missed))
    for name, value in describe(setting.device).items():
        print(f"{name + ':':10} {value}")
    print()
    print(table([(f.part, f.verdict, f.why, f.remedy) for f in findings]))
    print()
    print(f"does not work, and is needed: {', '.join(missed)}" if missed else "all that was asked for works")
    return int(bool(missed))


def table(rows: Sequence[tuple[str, str, str, str]], width: int = 74) -> str:
    """Rows of (part, verdict, why, remedy) as text: a line or more for the why, and one or more for what to do."""
    lines = []
    for part, verdict, why, remedy in rows:
        first, *rest = textwrap.wrap(why, width) or [""]
        lines.append(f"{part:9} {verdict:9} {first}".rstrip())
        lines.extend(f"{'':19} {line}" for line in [*rest, *textwrap.wrap(f"→ {remedy}" if remedy else "", width)])
    return "\n".join(lines)
