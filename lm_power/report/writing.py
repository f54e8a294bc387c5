"""A report's files: tables, figures, the page, and the blocks for model cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_power.errors import UserError
from lm_power.report.figures import write_figures
from lm_power.report.formats import to_csv, to_latex, to_markdown
from lm_power.report.hub import write_model_indexes
from lm_power.report.page import Section, write_page
from lm_power.report.rendering import unique_slugs
from lm_power.report.runs import Comparison
from lm_power.report.tables import Table, make_tables


def write_report(comparisons: Sequence[Comparison], folder: Path, model_index: bool = False) -> list[Section]:
    """Write a report into an existing, empty folder.

    tables/TASK/ gets tables.md, and for every table a .csv and a .tex; figures/TASK/ the figures.

    Args:
        comparisons: what `matching.match` made.
        folder: where.
        model_index: whether to write model-index/ too.

    Returns:
        What was written of each comparison.

    Raises:
        UserError: `model_index`, and no model has a result for its card.
    """
    names = unique_slugs([comparison.name for comparison in comparisons])
    sections = []
    for comparison, name in zip(comparisons, names, strict=True):
        tables = make_tables(comparison)
        _write_tables(tables, folder / "tables" / name)
        home = folder / "figures" / name
        home.mkdir(parents=True)
        sections.append(Section(comparison, tables, write_figures(comparison, home)))
    write_page(sections, folder)
    if model_index:
        home = folder / "model-index"
        home.mkdir()
        if not write_model_indexes(comparisons, home):
            raise UserError(
                "--model-index: no run has an accuracy, which a model card is to show; leave the option out"
            )
    return sections


def _write_tables(tables: Sequence[Table], folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "tables.md").write_text(to_markdown(tables), encoding="utf-8")
    for table in tables:
        # newline="": CSV lines end as RFC 4180 has them, on every system.
        (folder / f"{table.key}.csv").write_text(to_csv(table), encoding="utf-8", newline="")
        (folder / f"{table.key}.tex").write_text(to_latex(table), encoding="utf-8")
