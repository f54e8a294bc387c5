"""`lm-power report RUN [RUN …] --output DIR`: compare lm-eval's output folders and stores.

    lm-power report runs/standard runs/power --output report
    lm-power report base=runs/base tuned=runs/tuned/results_2026-01-01T00-00-00.000000.json --output report

DIR then holds index.html, which opens offline; figures/ (SVG and PNG); tables/ (Markdown, CSV with full precision,
LaTeX); problems/, with one page per problem; and report.json, by which a later report recognises that it may replace
this one. --model-index adds model-index/ (`lm_power.report.hub`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lm_power.errors import UserError

HELP = "compare lm-eval runs and stores of completions: tables, paired tests, figures, one HTML page"

MARKER = "report.json"
_ENTRIES = ("index.html", "problems", "figures", "tables", "model-index")
_FORMAT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lm-power report`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="an lm-eval output folder (--output_path with --log_samples), one results_TIME.json, or the folder of a "
        "store (completions=); LABEL=RUN names it",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the report; an older report in it is replaced"
    )
    parser.add_argument(
        "--allow-differences", action="store_true",
        help="compare runs that differ in documents, prompts (a chat template, say), task version or N, using only the "
        "documents that all of them have",
    )  # fmt: skip
    parser.add_argument(
        "--model-index", action="store_true", help="also write each model's results for its Hugging Face model card"
    )


def run(arguments: argparse.Namespace) -> None:
    """Make the report.

    Raises:
        UserError: a run cannot be read or compared, or the folder cannot be written or holds something else.
    """
    # Here, and not above: matplotlib and scipy would slow down `lm-power --help`.
    from lm_power.report.formats import to_text
    from lm_power.report.matching import match
    from lm_power.report.reading import read_runs
    from lm_power.report.writing import write_report

    output = Path(arguments.output)
    _check_output(output)
    comparisons = match(read_runs(arguments.runs), arguments.allow_differences)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
            fresh = Path(scratch)
            sections = write_report(comparisons, fresh, arguments.model_index)
            (fresh / MARKER).write_text(
                json.dumps({"lm_power_report": _FORMAT, "runs": arguments.runs}), encoding="utf-8"
            )
            _put_in_place(fresh, output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error}); name a folder that can be") from error
    print("\n".join(to_text(section.tables[0], caption=True) for section in sections))
    print(f"Written: {output / 'index.html'}")


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier report, before the work is done."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output {output}: is a file; name a folder")
    if any(output.iterdir()) and not _is_report(output):
        raise UserError(
            f"--output {output}: is not empty and holds no report; name a new folder, or one with an older report"
        )


def _is_report(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / MARKER).read_text(encoding="utf-8"))["lm_power_report"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _put_in_place(fresh: Path, output: Path) -> None:
    """Move a report into place. Files of an older report are removed; all others stay."""
    output.mkdir(exist_ok=True)
    (fresh / MARKER).replace(output / MARKER)  # first, so that a report cut off here can be replaced by the next
    for name in _ENTRIES:
        old = output / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        if (fresh / name).exists():
            (fresh / name).replace(old)
