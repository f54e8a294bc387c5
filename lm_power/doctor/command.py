"""`lm-power doctor`: tries each part of lm-power on this machine, and says what to set where one does not work.

    lm-power doctor
    lm-power doctor --model Qwen/Qwen2.5-0.5B-Instruct --dtype bfloat16
    lm-power doctor --require kernel --require sandbox --json
    lm-power doctor --server http://localhost:8000/v1/completions --top-logprobs 20

It needs no model and no network. With `--server` it tries a server of completions instead, as `power-api` does before
it draws. The exit status is 1 where something that a run needs, or that `--require` names, does not work.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Collection, Mapping, Sequence

from lm_power.doctor.finding import Finding
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


LONGEST = 1024  # tokens of a completion, for the rows that fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", metavar="ID",
        help="a model to load: hub id or folder; how many rows fit, how fast. With --server: the name it is served by",
    )  # fmt: skip
    parser.add_argument("--device", help="where to try: cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="of --model: auto, float32, bfloat16, float16")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help=f"longest completion: for the rows of --model that fit (default: {LONGEST}), for the context of --server",
    )  # fmt: skip
    parser.add_argument(
        "--require", action="append", default=[], choices=[*PARTS, "model"], metavar="PART",
        help=f"exit with status 1 unless this part works, too; may be repeated: {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--server", metavar="URL", help="try this server of completions, and not this machine")
    parser.add_argument("--tokenizer", metavar="ID", help="of --server's model (default: where the server has it from)")
    parser.add_argument(
        "--top-logprobs", type=int, metavar="K", help="tokens that --server is to list with each (default: 20)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Try everything and print it; the exit status.

    Raises:
        UserError: a wrong option: a device or dtype that does not exist, no URL.
    """
    longest = arguments.max_new_tokens
    if longest is not None and longest < 1:
        raise UserError(f"--max-new-tokens {longest}: must be >= 1")
    if arguments.server is not None:
        return _run_on_server(arguments)
    for name in ("tokenizer", "top_logprobs"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: is for --server URL")
    # Here, and not above: torch would slow down `lm-power --help`.
    from lm_power.doctor.checks import Setting, examine
    from lm_power.doctor.machine import describe

    if "model" in arguments.require and arguments.model is None:
        raise UserError("--require model: which one? add --model ID")
    try:
        setting = Setting.of(arguments.device, arguments.model, arguments.dtype, longest or LONGEST)
    except ValueError as error:
        raise UserError(str(error)) from error
    findings = examine(setting)
    return tell(findings, {*NEEDED, *arguments.require}, arguments.json, describe(setting.device))


def _run_on_server(arguments: argparse.Namespace) -> int:
    if arguments.require or arguments.device or arguments.dtype != "auto":
        raise UserError("--require, --device and --dtype: are for this machine; leave them out, or --server")
    from lm_power.doctor.server import PARTS as all_of_it
    from lm_power.doctor.server import Asked, examine

    top = 20 if arguments.top_logprobs is None else arguments.top_logprobs
    asked = Asked(arguments.server, arguments.model, arguments.tokenizer, top, arguments.max_new_tokens)
    return tell(examine(asked), all_of_it, arguments.json)


def tell(
    findings: Sequence[Finding], asked: Collection[str], as_json: bool, machine: Mapping[str, str] | None = None
) -> int:
    """Print what was found; the exit status.

    Args:
        findings: of all parts.
        asked: parts that must work.
        as_json: print JSON.
        machine: facts of it, where it is what was examined.
    """
    missed = [finding.part for finding in findings if finding.part in asked and finding.verdict != "works"]
    if as_json:
        rows = [{**vars(finding), "asked": finding.part in asked} for finding in findings]
        facts = {} if machine is None else {"machine": machine}
        print(json.dumps({**facts, "findings": rows, "missed": missed}, indent=2))
        return int(bool(missed))
    if machine is not None:
        for name, value in machine.items():
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
