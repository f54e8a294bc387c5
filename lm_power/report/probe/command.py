"""`lm-power probe`: the covariance probe of stored completions, and accuracy against decoding temperature.

    lm-power probe --base runs/standard/store --power runs/power/store --output probe
    lm-power probe --base store --power store --temperatures runs/t025 runs/t05 runs/t1 --output probe

DIR then holds probe.md, which explains and shows everything; lines.csv, points.csv and, with --temperatures,
temperature.csv, in full precision; the figures gain_by_covariance and temperature, as SVG and PNG.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_power.errors import UserError

HELP = "show how sampling raises self-reward, and rewards correlated with it, from stores of completions without labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--base", type=Path, required=True, metavar="STORE",
        help="completions= folder of a run with method=standard, two completions per prompt or more (--gen_kwargs n=8)",
    )  # fmt: skip
    parser.add_argument(
        "--power", type=Path, required=True, nargs="+", metavar="STORE",
        help="completions= folders of the same model on the same prompts; each way of sampling in them becomes a line",
    )  # fmt: skip
    parser.add_argument(
        "--temperatures", nargs="+", default=[], metavar="RUN",
        help="lm-eval output folders (--output_path, --log_samples) of runs with method=temperature or standard",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the tables and figures")
    parser.add_argument(
        "--common-prompts", action="store_true", help="omit prompts that some stores lack, instead of refusing"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Make the probe.

    Raises:
        UserError: the stores or runs cannot be read or compared, or the output folder cannot be written.
    """
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: must be >= 0")
    # Here, and not above: matplotlib and scipy would slow down `lm-power --help`.
    from lm_power.report.probe.writing import make_probe

    make_probe(
        arguments.base,
        arguments.power,
        arguments.temperatures,
        arguments.output,
        common=arguments.common_prompts,
        seed=arguments.seed,
    )
