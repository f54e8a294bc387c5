"""The command `lm-power`: one subcommand per job. Sampling itself is `lm_eval --model power-hf`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol

from lm_power.errors import LMPowerError

COMMANDS = {
    "alpaca-eval": "lm_power.alpaca_eval",
    "doctor": "lm_power.doctor.command",
    "forecast": "lm_power.report.forecast.command",
    "probe": "lm_power.report.probe.command",
    "report": "lm_power.report.command",
}
"""Subcommand → the module that defines it, imported only when it is asked for (or for help)."""


class Command(Protocol):
    """What a module of `COMMANDS` has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommand's options."""
        ...

    def run(self, arguments: argparse.Namespace) -> int | None:
        """Do it, and return the exit status; None means 0.

        Raises `LMPowerError` for what the user can correct; it is shown without a traceback.
        """
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lm-power`, and return its exit status: the command's, or 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="lm-power", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command: Command = importlib.import_module(module)
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    arguments = parser.parse_args(argv)
    try:
        status: int | None = arguments.run(arguments)
    except LMPowerError as error:
        print(f"lm-power {arguments.command}: {error}", file=sys.stderr)
        return 2
    return status or 0
