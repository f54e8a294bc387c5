"""The covariance probe from stores and runs to a folder of tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lm_power.errors import UserError
from lm_power.report.formats import to_csv, to_markdown
from lm_power.report.probe.estimates import Probe, probe
from lm_power.report.probe.figures import write_probe_figure, write_temperature_figure
from lm_power.report.probe.stores import StoredDraws, choose_base, pair, read_draws
from lm_power.report.probe.tables import line_table, notes, point_table, temperature_table
from lm_power.report.probe.temperatures import TemperatureRow, read_temperatures
from lm_power.report.tables import Table, cell_text


def make_probe(
    base_folder: Path, folders: Sequence[Path], runs: Sequence[str], output: Path, common: bool = False, seed: int = 0
) -> None:
    """Read everything, then compute, then write. Nothing is written if something cannot be read or compared.

    Args:
        base_folder: the base's store.
        folders: stores of what is compared with it.
        runs: lm-eval output folders, one per decoding temperature; empty for no such figure.
        output: made if missing; files of an earlier probe in it are replaced.
        common: omit prompts that some stores lack, instead of refusing.
        seed: of the bootstrap.

    Raises:
        UserError: the stores or runs cannot be read or compared, or the output folder cannot be written.
    """
    base, others = read(base_folder, folders)
    pairs = [pair(base, other, common) for other in others]
    rows = read_temperatures(runs) if runs else []
    try:
        probes = [
            probe(before, after, seed=seed) for before, after in tqdm(pairs, desc="Resampling prompts", unit=" probes")
        ]
    except ValueError as error:
        raise UserError(f"{base.folder}: {error}; sample the base with method=standard") from error
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output, base, others, probes, rows)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name a folder that can") from error
    for note in notes([base, *others]):
        print(f"note: {note}")
    for other, result in zip(others, probes, strict=True):
        slope = cell_text(result.line.slope, 3)
        print(f"{other.label}: gain = ({slope}) × covariance, over {result.prompts} prompts")
    print(output / "probe.md")


def read(base_folder: Path, folders: Sequence[Path]) -> tuple[StoredDraws, list[StoredDraws]]:
    """The base, and every other way of sampling in the folders, each once.

    Raises:
        UserError: a store cannot be read, or there is no base, or nothing beside it.
    """
    stored = {folder: read_draws(folder) for folder in dict.fromkeys([base_folder, *folders])}
    base = choose_base(stored[base_folder])
    others = [draws for folder in dict.fromkeys(folders) for draws in stored[folder] if draws.options != base.options]
    if not others:
        raise UserError(
            f"--power {' '.join(map(str, folders))}: holds only completions sampled in the same way as the base "
            f"({base.label}); name the completions= folder of a run with method=power"
        )
    for place, draws in enumerate(others):
        twin = next((other for other in others[:place] if other.options == draws.options), None)
        if twin is not None:
            raise UserError(
                f"--power {twin.folder} and {draws.folder}: both hold {draws.label}; leave one out (to pool several "
                "seeds, use one store for all of them)"
            )
    return base, others


def write(
    folder: Path,
    base: StoredDraws,
    others: Sequence[StoredDraws],
    probes: Sequence[Probe],
    rows: Sequence[TemperatureRow],
) -> None:
    """Write tables, figures and the page into the existing folder."""
    lines, points = line_table(base, others, probes), point_table(others, probes)
    gain = write_probe_figure([other.label for other in others], probes, folder)
    parts = ["# Covariance probe\n", to_markdown([lines]), gain.markdown]
    tables: list[Table] = [lines, points]
    if rows:
        temperatures = temperature_table(rows)
        tables.append(temperatures)
        parts += [to_markdown([temperatures]), write_temperature_figure(rows, folder).markdown]
    for table in tables:
        (folder / f"{table.key}.csv").write_text(to_csv(table), encoding="utf-8", newline="")
    (folder / "probe.md").write_text("\n".join([*parts, to_markdown([points])]), encoding="utf-8")
