"""A report of synthetic runs as files, and a text that tries everything a completion can try against its reader."""

import dataclasses
from pathlib import Path

from report_runs import make_comparison

from lm_power.report.figures import write_figures
from lm_power.report.page import Section, write_page
from lm_power.report.runs import Comparison, Run
from lm_power.report.tables import make_tables

HOSTILE = (
    '<script>document.title="owned"</script><img src="http://hostile.invalid/i.png" onerror="document.title=\'owned\'">'
    "</div></details></table></title></textarea><style>*{display:none}</style><svg onload=alert(1)>"
    '<meta http-equiv="refresh" content="0;url=http://hostile.invalid/"><a href="javascript:alert(1)">x</a> &lt;b&gt; '
    "{{ 7*7 }} {% raw %} ]]> -->\n\x1b[31mred\x1b[0m \x00 \x07 \x9b31m \r\n"
    "\u202eevil\u202c \u2066x\u2069 \u200f \ud800 \udfff "
    "\ufeff \u2028 \U000e0041 שלום مرحبا 漢字 🙂 e"
    + "\u0301" * 40
    + "\n\"quotes' `ticks` $x$ \\frac{1}{2} $ % & # _ ~ ^"
)
WIDE = "A" * 1_000_000
"""One line of a megabyte."""


def build_report(comparison: Comparison, folder: Path) -> Path:
    """The whole report of one comparison, figures in a folder of their own; index.html."""
    figures = folder / "figures"
    figures.mkdir(parents=True)
    return write_page([Section(comparison, make_tables(comparison), write_figures(comparison, figures))], folder)


def with_answers(run: Run, **fields) -> Run:
    """The run with these fields of all its answers replaced."""
    problems = [
        dataclasses.replace(p, completions=tuple(dataclasses.replace(a, **fields) for a in p.completions))
        for p in run.problems
    ]
    return dataclasses.replace(run, problems=tuple(problems))


def hostile_comparison() -> Comparison:
    """Three runs whose every text, names and notes included, is `HOSTILE`; one completion begins with `WIDE`."""
    comparison = make_comparison(problems=2, n=2)
    runs = []
    for run in comparison.runs:
        problems = []
        for problem in run.problems:
            first, second = (dataclasses.replace(a, text=HOSTILE, answer=HOSTILE) for a in problem.completions)
            completions = (first, dataclasses.replace(second, text=WIDE + HOSTILE))
            problems.append(dataclasses.replace(problem, prompt=HOSTILE, target=HOSTILE, completions=completions))
        fields = {"label": run.label + HOSTILE, "model": HOSTILE, "options": {HOSTILE: HOSTILE}, "notes": (HOSTILE,)}
        runs.append(dataclasses.replace(run, problems=tuple(problems), folder=Path("runs/<b>"), **fields))
    return dataclasses.replace(comparison, task=HOSTILE, filter=HOSTILE, runs=tuple(runs), notes=(HOSTILE,))
