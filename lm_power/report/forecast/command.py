"""`lm-power forecast RUN…`: will power sampling help, and at which alpha? From plain completions alone.

    lm-power forecast runs/standard                                          # table and answer on the terminal
    lm-power forecast runs/standard runs/power-2 runs/power-4 --output forecast     # beside what power sampling has

DIR then holds forecast.md with everything, the tables as CSV with full precision, the figure as SVG and PNG, and
forecast.json, which also has each problem's forecast and effective sample size. How it is computed, and when it
cannot tell: `lm_power.report.forecast.estimates`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_power.errors import UserError

HELP = "forecast from plain completions whether power sampling will help, and at which alpha"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="lm-eval output folders (--output_path, --log_samples): one or more seeds of method=standard with several "
        "completions per problem (--gen_kwargs n=16), and any runs of power to compare with; stores (completions=) for "
        "tasks whose samples have no log-probabilities",
    )  # fmt: skip
    parser.add_argument(
        "--alphas", nargs="+", type=float, metavar="ALPHA", help="exponents (default: eight from 1.1 to 8)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for page, figure, CSV and JSON")
    parser.add_argument(
        "--allow-differences", action="store_true",
        help="use the problems that all runs share with the same prompt, instead of refusing",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Make the forecast.

    Raises:
        UserError: the runs cannot be read or used, or the output folder cannot be written.
    """
    for alpha in arguments.alphas or ():
        if not 1 <= alpha < float("inf"):
            raise UserError(f"--alphas {alpha:g}: must be finite and >= 1; plain sampling is 1, the paper's default 4")
    if arguments.alphas and max(arguments.alphas) <= 1:
        raise UserError("--alphas 1: is plain sampling, with which the forecast compares; add exponents above 1")
    # Here, and not above: matplotlib and scipy would slow down `lm-power --help`.
    from lm_power.report.forecast.estimates import ALPHAS
    from lm_power.report.forecast.writing import make_forecast

    make_forecast(arguments.runs, arguments.alphas or ALPHAS, arguments.output, arguments.allow_differences)
