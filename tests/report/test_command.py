"""`lm-power report` as a user runs it, on small synthetic folders: files, refusals, replacement, model cards."""

import csv
import json
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from report_files import TIME, fill_store, with_texts, write_evaluation
from report_runs import make_run

from lm_power.cli import main
from lm_power.report.hub import write_model_indexes
from lm_power.report.matching import match
from lm_power.report.reading import read_runs

HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred\u202e", "x" * 200_000, "| a |\n# b", r"\input{x}$%"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of 4 problems, one of them with hostile completions."""
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(folder / "power", with_texts(make_run("power", problems=4, n=2, seconds=99.0), HOSTILE))
    standard = make_run("standard", problems=4, n=2, method="standard", skill=0.4, seconds=99.0)
    write_evaluation(folder / "standard", standard)
    return folder


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """A report of both, made once."""
    output = tmp_path_factory.mktemp("reports") / "new" / "report"
    assert main(["report", str(runs / "power"), f"base={runs}/standard", "--output", str(output), "--model-index"]) == 0
    return output


@pytest.fixture
def no_figures(monkeypatch):
    """They take seconds, and have tests of their own."""
    monkeypatch.setattr("lm_power.report.writing.write_figures", lambda comparison, folder: [])


def refused(capsys, *arguments):
    """The message of a command that must fail."""
    assert main(["report", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_report_is_all_there(report):
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    assert {"index.html", "report.json", "model-index/pocket-model.yml", "tables/pocket_sums/tables.md"} <= names
    for table in ("results", "votes", "costs", "tests"):
        assert {f"tables/pocket_sums/{table}.csv", f"tables/pocket_sums/{table}.tex"} <= names
    assert any(name.startswith("figures/pocket_sums/") and name.endswith(".svg") for name in names)
    with (report / "tables/pocket_sums/results.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["pocket/model, power, alpha=4", "base"]
    assert list(report.parent.iterdir()) == [report]  # no scratch folder is left


def test_hostile_completions_reach_no_file_as_they_are(report):
    for path in report.rglob("*"):
        if path.is_file() and path.suffix not in (".png",):
            text = path.read_text(encoding="utf-8")
            assert not any(sign in text for sign in ("<script>alert", "\x1b", "\u202e")), path


def test_a_newer_report_replaces_an_older_one_and_nothing_else(report, runs, capsys, no_figures):
    (report / "notes.txt").write_text("mine")
    (report / "tables" / "stale.csv").write_text("old")
    assert main(["report", str(runs / "power"), "--output", str(report)]) == 0
    out = capsys.readouterr().out
    assert "pocket_sums: accuracy" in out and "\\" not in out and "|" not in out  # plain text, no Markdown
    assert (report / "notes.txt").read_text() == "mine"
    assert not (report / "tables" / "stale.csv").exists()
    assert not (report / "model-index").exists()
    assert not (report / "tables" / "pocket_sums" / "tests.csv").exists()


def test_folders_that_hold_something_else_are_left_alone(runs, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "report.json").write_text('{"title": "my own report"}')
    for name, message in {
        "full": "is not empty",
        "file": "is a file",
        "odd": "is not empty",
        "file/x": "be written",
    }.items():
        assert message in refused(capsys, runs / "power", "--output", tmp_path / name)
    assert (tmp_path / "full" / "index.html").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "odd"]


def test_runs_that_cannot_be_compared_leave_no_report(runs, tmp_path, capsys, no_figures):
    write_evaluation(tmp_path / "more", make_run("more", problems=6, n=2, seed=3, seconds=99.0))
    arguments = [runs / "power", f"more={tmp_path}/more", "--output", tmp_path / "out"]
    message = refused(capsys, *arguments)
    assert "documents: 4 in 'pocket/model, power, alpha=4', 6 in 'more', 4 shared" in message
    assert not (tmp_path / "out").exists()
    assert main(["report", *map(str, arguments), "--allow-differences"]) == 0
    assert "Restricted to the 4 documents" in (tmp_path / "out/tables/pocket_sums/tables.md").read_text()


def test_a_store_alone_and_no_model_card_of_it(tmp_path, capsys, no_figures):
    fill_store(tmp_path / "store", {"a": 2, "bb": 2})
    assert main(["report", str(tmp_path / "store"), "--output", str(tmp_path / "out")]) == 0
    assert "  —  " in capsys.readouterr().out
    message = refused(capsys, tmp_path / "store", "--output", tmp_path / "card", "--model-index")
    assert "no run has an accuracy" in message
    assert not (tmp_path / "card").exists()


def test_the_command_line(runs, tmp_path):
    """The installed command: an error is one message and status 2, with no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "lm_power", "report", str(tmp_path), "--output", str(tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"lm-power report: {tmp_path}: holds no results")
    assert "Traceback" not in done.stderr


def test_a_model_card_reads_back_what_was_measured(runs, tmp_path):
    """huggingface_hub's own reader: data set, metric, value, and how it was drawn."""
    write_evaluation(tmp_path / "run", make_run(problems=4, n=2, seconds=99.0))
    results = json.loads((tmp_path / "run" / f"results_{TIME}.json").read_text())
    task = results["configs"]["pocket_sums"]
    task |= {"dataset_path": "user/sums", "dataset_name": "easy", "test_split": "test"}
    results["n-samples"]["pocket_sums"]["original"] = 200
    (tmp_path / "run" / f"results_{TIME}.json").write_text(json.dumps(results))
    write_evaluation(tmp_path / "other", make_run(problems=4, n=2, seed=1), model_args={"pretrained": "pocket/model"})
    comparisons = match(read_runs([str(tmp_path / "run"), str(tmp_path / "other")]))
    path, other = write_model_indexes(comparisons, tmp_path)  # two models of one short name have a card each
    assert (path.name, other.name) == ("pocket-model.yml", "pocket-model-2.yml")
    block = yaml.safe_load(path.read_text())
    name, found = model_index_to_eval_results(block["model-index"])
    assert name == "pocket/model"
    assert ModelCardData(**block).to_dict() == block
    assert [result.metric_name for result in found] == [
        "accuracy (power, alpha=4, pretrained=examples/pocket/model)",
        "accuracy, self-reward best of 2 (power, alpha=4, pretrained=examples/pocket/model)",
    ]
    first = found[0]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("user/sums", "easy", "test")
    assert first.metric_value == sum(line["acc"] for line in _lines(tmp_path / "run")) / 4
    assert (first.metric_args["completions"], first.metric_args["problems"]) == (2, 4)
    assert (first.metric_args["problems_in_all"], first.metric_args["alpha"]) == (200, 4.0)


def _lines(folder):
    return [json.loads(line) for line in (folder / f"samples_pocket_sums_{TIME}.jsonl").read_text().splitlines()]
