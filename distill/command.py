"""The command line: options in, exit status out."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from lm_power.distill.arguments import parse
from lm_power.errors import LMPowerError


def main(arguments: Sequence[str]) -> int:
    """Run `python -m lm_power.distill ARGUMENTS`, and return its exit status: 0, or 2 for a user's error."""
    try:
        invocation = parse(arguments)
    except LMPowerError as error:
        return _refuse(error, os.environ.get("RANK", "0") == "0")
    # Torch is imported only here, so that --help and misspelt options are answered quickly.
    from accelerate import PartialState

    from lm_power.distill.run import distill

    try:
        distill(invocation.config, resume=invocation.resume, command=_command(arguments))
    except LMPowerError as error:
        return _refuse(error, PartialState().is_main_process)
    return 0


def _refuse(error: Exception, show: bool) -> int:
    if show:
        print(f"lm_power.distill: {error}", file=sys.stderr, flush=True)
    return 2


def _command(arguments: Sequence[str]) -> str:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    start = "python" if processes == 1 else f"accelerate launch --num_processes {processes}"
    return f"{start} -m lm_power.distill {shlex.join(arguments)}"
