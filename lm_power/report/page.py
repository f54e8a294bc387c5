"""The report as one HTML page that opens offline, with a page for each problem beside it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lm_power.chains import METHODS
from lm_power.report.figures import Figure, Omitted
from lm_power.report.problems import write_problems
from lm_power.report.rendering import data_uri, policy, unique_slugs, write_html
from lm_power.report.runs import Comparison, Run
from lm_power.report.tables import Table

VERSIONS_OF = ("lm-power", "lm-eval", "transformers", "torch", "numpy", "scipy", "matplotlib")


@dataclasses.dataclass(frozen=True)
class Section:
    """One comparison's part of the page.

    Attributes:
        comparison: the runs.
        tables: what `tables.make_tables` made of them.
        figures: what `figures.write_figures` wrote of them, under the page's folder.
    """

    comparison: Comparison
    tables: Sequence[Table]
    figures: Sequence[Figure | Omitted]


def write_page(sections: Sequence[Section], folder: Path) -> Path:
    """Write index.html and the problems' pages into an existing folder; the path of index.html.

    The page holds its pictures and style, runs no script, and its policy lets a browser fetch nothing. Only the
    problems' texts are in pages of their own, under problems/.

    Raises:
        ValueError: without any section.
    """
    if not sections:
        raise ValueError("sections: must be at least one")
    slugs = unique_slugs([section.comparison.name for section in sections])
    return write_html(
        folder / "index.html",
        "index.html",
        policy=policy(),
        sections=[_section(section, name, folder) for section, name in zip(sections, slugs, strict=True)],
        versions={"Python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS_OF}},
    )


def _section(section: Section, name: str, folder: Path) -> dict[str, Any]:
    comparison = section.comparison
    return {
        "id": name,
        "name": comparison.name,
        "size": comparison.size,
        "runs": [_run(run) for run in comparison.runs],
        "notes": list(dict.fromkeys(note for table in section.tables for note in table.notes)),
        "tables": [_table(table) for table in section.tables],
        "figures": [_figure(figure, folder) for figure in section.figures if isinstance(figure, Figure)],
        "omitted": [figure for figure in section.figures if isinstance(figure, Omitted)],
        "problems": write_problems(comparison, folder, name),
    }


def _table(table: Table) -> dict[str, Any]:
    kinds = [
        "words" if any(isinstance(row[i], str) for row in table.rows) else "number"
        for i, column in enumerate(table.columns)
        if column.title is not None
    ]
    return {
        "title": table.title,
        "caption": table.caption,
        "header": list(zip(table.header, kinds, strict=True)),
        "rows": [list(zip(row, kinds, strict=True)) for row in table.texts()],
    }


def _figure(figure: Figure, folder: Path) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt,
        "source": data_uri(figure.svg, "image/svg+xml"),
        "links": {path.suffix[1:].upper(): path.relative_to(folder).as_posix() for path in (figure.svg, figure.png)},
    }


def _run(run: Run) -> dict[str, Any]:
    method = METHODS.get(run.method)  # None for another model's
    facts: dict[str, Any] = {
        "read from": run.folder,
        "model": run.model,
        "sampling": run.method if method is None else f"{run.method}: {method.summary}",
        "distribution": None if method is None else method.exact,
        "completions per problem": run.n,
        "task version": run.task_version,
        "lm-eval's own metrics": _pairs({name: f"{value:.4g}" for name, value in run.metrics.items()}),
        "options": _pairs(run.options),
        "all settings": _pairs(run.settings),
    }
    return {"label": run.label, "facts": {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}}


def _pairs(values: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
