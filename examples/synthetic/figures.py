"""Twelve pictures of why sharpening sequences is not sharpening tokens, on a law where everything is exact.

    python examples/synthetic/figures.py --output figures      # SVG and PNG of each; seconds, no model, no network

s5 to s10 are the synthetic experiments of Tomihari & Sato 2026 (B.2.4 and B.2.5) under the numbers of their figures,
with sizes and constants of ours; the others stand beside them. README.md says what each shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from drawing import STYLE
from matplotlib.figure import Figure
from others import OTHERS
from paper import PAPER
from zipf import ZipfLaw

FIGURES: dict[str, Callable[[ZipfLaw], Figure]] = {**PAPER, **OTHERS}


def draw(output: Path, law: ZipfLaw) -> None:
    """Every figure as SVG and PNG into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for number, (name, make) in enumerate(FIGURES.items(), start=1):
            start = time.perf_counter()
            figure = make(law)
            figure.savefig(output / f"{name}.svg", metadata={"Date": None}, dpi=160)
            figure.savefig(output / f"{name}.png", dpi=160, metadata={"Software": None})
            print(f"[{number}/{len(FIGURES)}] {name}: {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder for the pictures (%(default)s)")
    parser.add_argument(
        "--candidates", type=int, default=ZipfLaw.candidates, help="next tokens of the law (%(default)s)"
    )
    parser.add_argument("--suffixes", type=int, default=ZipfLaw.suffixes, help="suffixes after each (%(default)s)")
    options = parser.parse_args()
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output {options.output}: must be a folder, and this is a file; name another place")
    for name in ("candidates", "suffixes"):
        if getattr(options, name) < 100:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 100; smaller laws have no tail to show")
    law = ZipfLaw(options.candidates, options.suffixes)
    draw(options.output, law)
    print(f"{len(FIGURES)} pictures, each as SVG and PNG, in {options.output}")


if __name__ == "__main__":
    main()
