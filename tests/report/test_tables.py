"""Tables as written: raw numbers for machines, gaps and errors for readers, text that neither obeys."""

import csv
import dataclasses
import io
import re

import pytest
from report_runs import make_comparison, make_run

from lm_power.logs.samples import LoggedCompletion
from lm_power.report.formats import to_csv, to_latex, to_markdown, to_text
from lm_power.report.runs import Comparison
from lm_power.report.summary import summarise
from lm_power.report.tables import Column, Table, make_tables
from lm_power.stats.means import Estimate

HOSTILE = (
    "<script>alert(1)</script>",
    r"\input{/etc/passwd} $x^2$ 100% #1 a_b & {c} ~",
    "\x1b[31mred\x1b[0m\x00 \u202eright to left",
    "| a | `b` |\n\n# heading **bold** [link](javascript:1)",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "x" * 100_000,
)


def table_of(*texts):
    columns = (Column("name", "Name_%"), Column("hidden", None), Column("score", "Score", 2))
    return Table("key", "A_title", "A caption, 100%.", columns, tuple((t, "h", Estimate(-0.5, 0.1, 3)) for t in texts))


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_holds_every_number_in_full():
    """What is read back is what was computed, to the last bit; the sampler's options are there too."""
    comparison = make_comparison()
    results = read_csv(to_csv(make_tables(comparison)[0]))
    for row, run in zip(results, comparison.runs, strict=True):
        summary = summarise(run)
        assert row["label"] == run.label
        assert float(row["accuracy"]) == summary.accuracy.value
        assert float(row["accuracy_stderr"]) == summary.accuracy.error
        assert float(row["bon_self_reward_stderr"]) == summary.bon_self_reward.error
        assert float(row["problem_tokens_decoded"]) == summary.problem_tokens_decoded.value
        assert (row["task_version"], row["n"], row["problems"]) == ("1.0", "4", "20")
    assert "mcmc_steps=5" in results[2]["options"]


def test_gaps_are_gaps_in_every_format():
    """A run without self-reward: a dash or an empty field, and never a number."""
    plain = make_run("plain", method="standard")
    problems = tuple(
        dataclasses.replace(p, completions=tuple(LoggedCompletion(a.text, a.correct, a.answer) for a in p.completions))
        for p in plain.problems
    )
    plain = dataclasses.replace(plain, problems=problems, seconds=None, notes=("no self-reward",))
    (results, *_) = make_tables(Comparison("task", "none", (make_run("full"), plain)))
    full, gaps = read_csv(to_csv(results))
    for name in ("self_reward", "self_reward_stderr", "bon_accuracy", "problem_tokens_decoded", "problem_seconds"):
        assert full[name] and not gaps[name]
    assert gaps["accuracy"]
    markdown = to_markdown([results]).splitlines()
    assert next(line for line in markdown if line.startswith("| plain")).count("| — ") == 5
    assert to_latex(results).count("& ---") == 5
    assert "* plain: no self-reward" in markdown


def test_what_differs_is_with_every_table():
    comparison = dataclasses.replace(make_comparison(), notes=("Compared despite differences: N",))
    tables = make_tables(comparison)
    assert [table.key for table in tables] == ["results", "votes", "costs", "tests"]
    assert all("Compared despite" in to_markdown([t]) and "Compared despite" in to_latex(t) for t in tables)


def test_one_completion_per_problem_has_no_votes_and_no_best():
    """Guards against columns of dashes: nothing is the best of one."""
    results, costs = make_tables(Comparison("task", None, (make_run(n=1),)))
    assert (results.key, costs.key) == ("results", "costs")
    assert "best of N" not in " ".join([results.caption, *results.header]).lower()
    assert "Accuracy, best of N" in make_tables(Comparison("task", None, (make_run(n=2),)))[0].header


def test_what_methods_tell_of_their_target_is_a_table_where_one_does():
    plain, silent = make_run("plain", n=1), make_run("telling", n=1)
    told = {"log_z": -3.25, "kl_from_proposal": 0.5}
    problems = tuple(
        dataclasses.replace(p, completions=tuple(dataclasses.replace(a, **told) for a in p.completions))
        for p in silent.problems
    )
    telling = dataclasses.replace(silent, problems=problems)
    (targets,) = [t for t in make_tables(Comparison("task", None, (plain, telling))) if t.key == "targets"]
    first, second = read_csv(to_csv(targets))
    assert (first["log_z"], first["kl_from_proposal"]) == ("", "")
    assert (float(second["log_z"]), float(second["kl_from_proposal"])) == (-3.25, 0.5)


def test_the_run_is_named_where_model_and_sampling_do_not_tell():
    plain, other = make_run("pocket, power, alpha=4"), make_run("two, power, alpha=4", model="two")
    assert make_tables(Comparison("task", None, (plain, other)))[0].header[0] == "Model"
    assert make_tables(Comparison("task", None, (make_run("mine"),)))[0].header[0] == "Run"


def test_what_all_runs_share_is_told_once():
    """Guards narrow screens against columns that say the same in every row; the CSV keeps them."""
    for table in make_tables(make_comparison(n=4)):
        if table.key != "tests":
            assert table.caption.startswith("Model: pocket. N: 4. ")
            assert not {"Model", "N"} & set(table.header)
            assert {(row["model"], row["n"]) for row in read_csv(to_csv(table))} == {("pocket", "4")}
    alone = make_tables(Comparison("task", None, (make_run(),)))[0]
    assert {"Model", "N"} < set(alone.header) and not alone.caption.startswith("Model")


def test_numbers_for_readers():
    columns = (Column("a", "A", 3), Column("b", "B", 4), Column("c", "C"), Column("d", "D"))
    table = Table(
        "k", "t", "c", columns, ((Estimate(-0.25, None, 1), 2e-9, 7, None), (Estimate(1, 0.5, 2), -1e-9, 0, 0.0))
    )
    assert table.texts() == [["−0.250", "<0.0001", "7", "—"], ["1.000 ± 0.500", ">−0.0001", "0", "0.000"]]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_text(text):
    """Nothing that Markdown, HTML, LaTeX, a terminal or a spreadsheet would obey survives, and no row breaks."""
    table = table_of(text, "plain")

    markdown = to_markdown([table])
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 4
    assert "<" not in markdown and "\x1b" not in markdown and "\u202e" not in markdown
    assert not re.search(r"(?<!\\)[`*\[]", rows[2])
    assert max(map(len, rows)) < 2_000

    latex = to_latex(table)
    assert latex.count(r"\\") == 3
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    plain = re.sub(r"\\(text[a-z]+|ldots)\{\}|\\[{}$&%#_]|\$(\\pm|-)\$", "", body)
    assert not re.search(r"[{}$%#_^~]", plain) and plain.count("&") == 2
    assert set(re.findall(r"\\[a-z]+", plain)) == set()

    (row, _) = read_csv(to_csv(table))
    assert not row["name"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not re.search("[\x00-\x08\x1b\u202e]", row["name"])
    assert float(row["score"]) == -0.5
    if text.isalnum():
        assert row["name"] == text  # the CSV shortens nothing


def test_a_table_for_the_terminal_is_aligned_and_obeys_nothing():
    """Guards the terminal: numbers end in one column, and an escape sequence in a label is shown, not sent."""
    columns = (Column("label", "Run"), Column("hidden", None), Column("value", "Accuracy", 2))
    rows = (("a\x1b[31m", "x", 0.5), ("longer label", "y", 12.25))
    lines = to_text(Table("t", "Title", "caption", columns, rows, ("a note",))).splitlines()
    assert lines == [
        "Title", "",
        "Run           Accuracy",
        "a⟨ESC⟩[31m        0.50",
        "longer label     12.25",
        "note: a note",
    ]  # fmt: skip
