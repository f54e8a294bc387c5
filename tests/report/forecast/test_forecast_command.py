"""`lm-power forecast` from lm-eval output folders and stores to the answer and its files, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_files import fill_store, write_evaluation
from report_runs import make_run

from lm_power.cli import main
from lm_power.completion import Completion
from lm_power.config import SamplerConfig
from lm_power.report.runs import Run
from lm_power.store import CompletionStore, Provenance

MODEL = "examples/pocket/model@0123456789abcdef"
LIMIT = {"max_new_tokens": 40}


def plain_run(**fields) -> Run:
    return make_run("standard", **{"method": "standard", "skill": 0.5, "n": 16, "options": LIMIT, **fields})


def power_run(alpha: float = 4.0, **fields) -> Run:
    options = {"alpha": alpha, "block_size": 8, "mcmc_steps": 5, **LIMIT}
    return make_run("power", **{"skill": 0.9, "n": 2, "options": options, **fields})


def changed(run: Run, **fields) -> Run:
    """The run with these fields of all its answers replaced."""
    problems = [
        dataclasses.replace(p, completions=tuple(dataclasses.replace(a, **fields) for a in p.completions))
        for p in run.problems
    ]
    return dataclasses.replace(run, problems=tuple(problems))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change every line of the samples file in a folder."""
    (file,) = folder.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def forecast(*arguments: object) -> int:
    return main(["forecast", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def standard(tmp_path: Path) -> Path:
    write_evaluation(tmp_path / "standard", plain_run())
    return tmp_path / "standard"


def test_everything_is_written(standard, tmp_path, capsys) -> None:
    """Tables, figure, page and JSON say the same; alphas of measured runs join the grid."""
    write_evaluation(tmp_path / "power", power_run(4.0))
    write_evaluation(tmp_path / "power-5", power_run(5.0))
    out = tmp_path / "out"
    assert forecast(standard, tmp_path / "power", tmp_path / "power-5", "--alphas", 1.01, 2, "--output", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "forecast.md", "forecast.json", "forecast-pocket_sums.csv", "measured-pocket_sums.csv",
        "forecast-pocket_sums.svg", "forecast-pocket_sums.png",
    }  # fmt: skip
    ElementTree.parse(out / "forecast-pocket_sums.svg")
    (found,) = json.loads((out / "forecast.json").read_text(encoding="utf-8"))["forecasts"]
    assert [point["alpha"] for point in found["points"]] == [1.0, 1.01, 2.0, 4.0, 5.0]
    table = rows(out / "forecast-pocket_sums.csv")
    for row, point in zip(table, found["points"], strict=True):
        assert float(row["accuracy"]) == point["accuracy"]["value"]
        assert row["resolved"] == ("yes" if point["resolved"] else "no")
    measured = rows(out / "measured-pocket_sums.csv")
    assert [float(row["alpha"]) for row in measured] == [4.0, 5.0]
    for row, alpha in zip(measured, (4.0, 5.0), strict=True):
        point = next(point for point in found["points"] if point["alpha"] == alpha)
        assert float(row["difference"]) == pytest.approx(float(row["accuracy"]) - point["accuracy"]["value"])
    page, shown = (out / "forecast.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert found["answer"]["sentence"] in page and found["answer"]["sentence"] in shown
    assert "](forecast-pocket_sums.png)" in page


def test_numbers_are_those_of_the_logs(standard, tmp_path) -> None:
    """Guards the way from a samples file: log p = self-reward × tokens, verdicts, problems in their order."""
    forecast(standard, "--alphas", 1.5, "--output", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "forecast.json").read_text(encoding="utf-8"))["forecasts"]
    for problem, result in zip(plain_run().problems, found["problems"], strict=True):
        weight = np.exp([0.5 * a.self_reward * a.tokens for a in problem.completions])
        right = np.array([a.correct for a in problem.completions])
        assert result["accuracy"] == pytest.approx([right.mean(), (weight * right).sum() / weight.sum()], abs=1e-9)
        assert result["effective"] == pytest.approx([16, weight.sum() ** 2 / (weight**2).sum()])


def test_without_output_nothing_is_written(standard, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert forecast(standard) == 0
    shown = capsys.readouterr().out
    assert "Alpha " in shown and "gain" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_seeds_are_pooled(tmp_path, capsys) -> None:
    """Two seeds of 8 are one run of 16; so are two of power."""
    for seed in (0, 1):
        write_evaluation(tmp_path / f"s{seed}", plain_run(n=8, seed=seed, options={"seed": seed, **LIMIT}))
        options = {**power_run().options, "seed": seed}
        write_evaluation(tmp_path / f"p{seed}", power_run(n=1, seed=seed, options=options))
    assert forecast(*(tmp_path / name for name in ("s0", "s1", "p0", "p1")), "--output", tmp_path / "out") == 0
    (found,) = json.loads((tmp_path / "out" / "forecast.json").read_text(encoding="utf-8"))["forecasts"]
    assert found["completions_per_problem"] == 16
    assert [row["n"] for row in found["measured"]] == [2]


def stock_evaluation(folder: Path, seed: int) -> None:
    """One seed of a task of somebody else's: a verdict per document, one completion, no log-probabilities."""
    write_evaluation(folder, plain_run(n=1, seed=seed, options={"seed": seed, **LIMIT}))
    edit(folder, lambda line: line["doc"].pop("lm_power"))


def stored(folder: Path, seed: int, text: Callable[[str], str] = str) -> Path:
    """The store of `stock_evaluation`: log p of each completion is −1 per token."""
    source = Provenance(MODEL, SamplerConfig(method="standard", seed=seed, **LIMIT), (), (0,))
    with CompletionStore(folder, MODEL) as store:
        for problem in plain_run(n=1, seed=seed).problems:
            (completion,) = problem.completions
            ids = list(range(1, completion.tokens + 1))
            store.add(
                problem.prompt,
                [*problem.prompt.encode()],
                0,
                source,
                Completion(text(completion.text), ids, [-1.0] * len(ids), "eos"),
            )
    return folder


@pytest.mark.parametrize("thought", ["", "Let me think.</think>"])
def test_a_store_gives_log_probabilities_to_other_peoples_tasks(tmp_path, thought) -> None:
    """Seeds of a stock task and their store, which keeps a thinking section that the task did not see.

    A completion whose stored text is another one is not used.
    """
    for seed in (0, 1, 2):
        stock_evaluation(tmp_path / str(seed), seed)
        stored(tmp_path / "store", seed, text=lambda text: thought + text)
    sources = [tmp_path / str(seed) for seed in (0, 1, 2)]
    assert forecast(*sources, tmp_path / "store", "--alphas", 1.5, "--output", tmp_path / "out") == 0
    (found,) = json.loads((tmp_path / "out" / "forecast.json").read_text(encoding="utf-8"))["forecasts"]
    runs = [plain_run(n=1, seed=seed) for seed in (0, 1, 2)]
    for place, result in enumerate(found["problems"]):
        completions = [run.problems[place].completions[0] for run in runs]
        weight = np.exp([-0.5 * a.tokens for a in completions])
        expected = (weight * [a.correct for a in completions]).sum() / weight.sum()
        assert result["accuracy"][1] == pytest.approx(expected, abs=1e-9)


def test_completions_cut_at_the_limit_are_pointed_out(tmp_path, capsys) -> None:
    write_evaluation(tmp_path / "standard", changed(plain_run(), finish_reason="length"))
    assert forecast(tmp_path / "standard") == 0
    assert "320 of 320 plain completions ended at the length limit" in capsys.readouterr().out


def beside(run: Run, change: Callable[[dict], object] = bool) -> Callable[[Path], list[Path]]:
    """The plain completions and this run."""

    def make(folder: Path) -> list[Path]:
        write_evaluation(folder / "standard", plain_run())
        write_evaluation(folder / "other", run)
        edit(folder / "other", change)
        return [folder / "standard", folder / "other"]

    return make


def alone(run: Run, **how: object) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        write_evaluation(folder / "run", run, **how)
        return [folder / "run"]

    return make


def only_store(folder: Path) -> list[Path]:
    fill_store(folder / "store", {"a": 4, "b": 4}, method="standard")
    return [folder / "store"]


def other_texts(folder: Path) -> list[Path]:
    for seed in (0, 1):
        stock_evaluation(folder / str(seed), seed)
        stored(folder / "store", seed, text=lambda text: f"{text}!")
    return [folder / "0", folder / "1", folder / "store"]


def one_seed_twice(folder: Path) -> list[Path]:
    write_evaluation(folder / "few", plain_run(n=2))
    write_evaluation(folder / "more", plain_run(n=4))
    return [folder / "few", folder / "more"]


def other_model(folder: Path) -> list[Path]:
    write_evaluation(folder / "standard", plain_run())
    results = write_evaluation(folder / "power", power_run())
    content = json.loads(results.read_text())
    content["config"]["power_sampler"]["model"] = "examples/pocket/model@fedcba9876543210"
    results.write_text(json.dumps(content))
    return [folder / "standard", folder / "power"]


def shorter(line: dict) -> None:
    line["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 9


TEMPERATURE = make_run("temperature", method="temperature", options={"proposal_temperature": 0.25, **LIMIT})
BAD = {
    "temperature": (alone(TEMPERATURE), "sampled neither from the model itself nor from p^alpha"),
    "temperature beside": (beside(TEMPERATURE), "sampled neither from the model itself nor from p^alpha"),
    "another model class": (alone(plain_run(), power=False), "sampled neither from the model itself"),
    "power alone": (alone(power_run()), "evaluate with method=standard and --gen_kwargs n=16"),
    "one completion": (alone(plain_run(n=1)), "one completion per problem"),
    "one problem": (alone(plain_run(problems=1)), "has one problem"),
    "no log-probabilities": (alone(changed(plain_run(), self_reward=None)), "320 of 320 completions have no finite"),
    "no verdicts": (
        beside(power_run(), lambda line: line["doc"]["lm_power"].pop("correct")),
        "has no verdict on every completion",
    ),
    "a store alone": (only_store, "a store holds completions without verdicts"),
    "a store of other texts": (other_texts, "40 of 40 completions have no finite log-probability"),
    "one seed twice": (one_seed_twice, "with seed=0, which share completions"),
    "other model": (other_model, "runs of different models"),
    "other limit": (beside(power_run(), shorter), "max_new_tokens differs (40, 9)"),
    "other problems": (beside(power_run(problems=3)), "20 in"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_runs_are_refused(case: str, tmp_path, capsys) -> None:
    """One line that says what and what to do, and no output folder."""
    make, says = BAD[case]
    assert forecast(*make(tmp_path), "--output", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert says in message and "Traceback" not in message
    assert case == "other problems" or message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_shared_problems_go_on_when_told_to(tmp_path, capsys) -> None:
    runs = beside(power_run(problems=3))(tmp_path)
    assert forecast(*runs, "--allow-differences") == 0
    assert "Restricted to the 3 documents" in capsys.readouterr().out


def test_bad_options(standard, tmp_path, capsys) -> None:
    for alpha in ("0.5", "inf", "nan"):
        assert forecast(standard, "--alphas", alpha) == 2
        assert f"--alphas {alpha}: must be finite and >= 1" in capsys.readouterr().err
    assert forecast(standard, "--alphas", "1") == 2
    assert "add exponents above 1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert forecast(standard, "--output", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err
