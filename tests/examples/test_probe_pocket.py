"""The covariance probe and the forecast on the pocket model, by the commands of examples/pocket."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

POCKET = Path(__file__).parents[2] / "examples" / "pocket"


@pytest.mark.slow
def test_the_script_forecasts_the_pocket_model(tmp_path) -> None:
    """Five evaluations and the forecast by stock commands; exact samples of p^2 agree with it (4 sigma, 1e-4)."""
    subprocess.run(["bash", POCKET / "forecast.sh", tmp_path / "runs", "--limit", "30"], check=True, timeout=2400)
    (found,) = json.loads((tmp_path / "runs/forecast/forecast.json").read_text(encoding="utf-8"))["forecasts"]
    assert found["answer"]["outcome"] == "helps"
    (exact,) = [row for row in found["measured"] if "rejection, alpha=2" in row["sampling"]]
    (point,) = [point for point in found["points"] if point["alpha"] == 2]
    # Where all 120 completions are right the standard error is 0, but they cannot tell half a completion from none.
    error = exact["difference"]["stderr"] + 0.5 / 120
    assert point["resolved"] and abs(exact["difference"]["value"]) < 4 * error


@pytest.mark.slow
def test_the_script_probes_the_pocket_model(tmp_path) -> None:
    """Seven evaluations and the probe by stock commands: power raises self-reward, a high temperature lowers it."""
    subprocess.run(["bash", POCKET / "probe.sh", tmp_path / "runs", "--limit", "12"], check=True, timeout=1200)
    with (tmp_path / "runs" / "probe" / "lines.csv").open(newline="") as file:
        lines = {line["sampling"].partition(",")[0]: line for line in csv.DictReader(file)}
    assert float(lines["power"]["slope"]) > 4 * float(lines["power"]["slope_stderr"])
    with (tmp_path / "runs" / "probe" / "temperature.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["temperature"]) for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert float(rows[-1]["self_reward"]) < float(rows[3]["self_reward"]) < float(rows[0]["self_reward"])
