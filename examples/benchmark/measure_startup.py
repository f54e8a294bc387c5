"""What the lm-power start-up hook costs every Python process, in milliseconds.

    python examples/benchmark/measure_startup.py [--runs 200]

Makes two throwaway virtual environments that differ only in what a wheel install of lm-power adds at start-up
(lm_power.pth and the modules that it imports), starts Python in each in turn, and prints the medians.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path

import lm_power
from lm_power._build import PTH_LINE, PTH_NAME


def make_environment(root: Path, with_hook: bool) -> Path:
    """Create a virtual environment, with the hook installed or not, and return its Python."""
    venv.create(root, with_pip=False, symlinks=os.name != "nt")
    python = next(path for path in (root / "bin" / "python", root / "Scripts" / "python.exe") if path.exists())
    if with_hook:
        site_packages = next(path for path in root.rglob("site-packages") if path.is_dir())
        (site_packages / PTH_NAME).write_text(PTH_LINE, encoding="utf-8")
        package = Path(lm_power.__file__).parent
        shutil.copytree(
            package,
            site_packages / "lm_power",
            ignore=lambda _, names: [n for n in names if not n.endswith(".py")],
        )
        compileall.compile_dir(site_packages / "lm_power", quiet=1)
    return python


def seconds_to_start(python: Path) -> float:
    """Return the wall-clock seconds of starting and ending Python (isolated: no cwd, no PYTHONPATH)."""
    start = time.perf_counter()
    subprocess.run([python, "-I", "-c", "pass"], check=True)
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, float]:
    """Start Python `runs` times with and without the hook in turn; return the medians in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        bare = make_environment(Path(folder) / "bare", with_hook=False)
        hooked = make_environment(Path(folder) / "hooked", with_hook=True)
        for python in (bare, hooked) * 3:  # fill the file cache
            seconds_to_start(python)
        pairs = [(seconds_to_start(bare), seconds_to_start(hooked)) for _ in range(runs)]
    return {
        "without the hook": 1000 * statistics.median(without for without, _ in pairs),
        "with the hook": 1000 * statistics.median(with_ for _, with_ in pairs),
        "difference (median of pairs)": 1000 * statistics.median(with_ - without for without, with_ in pairs),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the start-up cost of the lm-power hook.")
    parser.add_argument("--runs", type=int, default=200, help="starts of each kind (default: %(default)s)")
    runs = parser.parse_args().runs
    print(f"Python start-up, median of {runs} alternating runs")
    for name, milliseconds in measure(runs).items():
        print(f"  {name:<30}{milliseconds:8.2f} ms")


if __name__ == "__main__":
    main()
