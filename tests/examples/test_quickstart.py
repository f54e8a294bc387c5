"""examples/quickstart.py, run as a user runs it."""

import runpy
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_power_sampling_beats_plain_sampling(monkeypatch, capsys) -> None:
    """True accuracies are about 0.95 and 0.48 (examples/pocket): in 60 problems a false alarm has odds below 1e-6."""
    monkeypatch.setattr(sys, "argv", [str(QUICKSTART), "--problems", "60"])
    runpy.run_path(str(QUICKSTART), run_name="__main__")
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["standard", "temperature", "power"]
    accuracy = {row[0]: float(row[1].rstrip("%")) for row in rows}
    assert accuracy["power"] > accuracy["standard"] + 10
    assert "Sampling: 100%" in printed.err
