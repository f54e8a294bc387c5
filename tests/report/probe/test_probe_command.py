"""`lm-power probe` from stores and lm-eval output folders to tables and figures, and what it refuses."""

from __future__ import annotations

import csv
import json
import logging
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lm_power.cli import main
from lm_power.completion import Completion
from lm_power.config import SamplerConfig
from lm_power.report.probe.stores import choose_base, pair, read_draws
from lm_power.report.probe.temperatures import read_temperatures
from lm_power.store import CompletionStore, Provenance

MODEL = "pocket@0123456789abcdef"
STANDARD = SamplerConfig(method="standard", max_new_tokens=40)
POWER = SamplerConfig(method="power", alpha=4, block_size=4, max_new_tokens=40)
PROMPTS = tuple(f"problem {i}:" for i in range(12))


def write_store(
    folder: Path,
    config: SamplerConfig = STANDARD,
    *,
    model: str = MODEL,
    prompts: tuple[str, ...] = PROMPTS,
    n: int = 4,
    stop: tuple[str, ...] = (),
    finish_reason: str = "eos",
    text: str = "answer",
) -> Path:
    """A store of random completions; those by power sampling are likelier."""
    source = Provenance(model, config, stop, (0,))
    spread = 0.2 if config.method == "power" else 1.0
    with CompletionStore(folder, model) as store:
        for prompt in prompts:
            for repeat in range(n):
                rng = random.Random(f"{prompt} {repeat} {config}")
                log_probs = [-spread * rng.random() for _ in range(rng.randint(2, 6))]
                ids = [rng.randrange(1, 50) for _ in log_probs]
                drawn = Completion(f"{text} {ids}", token_ids=ids, log_probs=log_probs, finish_reason=finish_reason)
                store.add(prompt, [ord(c) for c in prompt], repeat, source, drawn)
    return folder


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    return write_store(tmp_path / "base"), write_store(tmp_path / "power", POWER)


def run(*arguments: object) -> int:
    return main(["probe", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_probe_writes_tables_and_figures(stores, tmp_path, capsys) -> None:
    base, power = stores
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    out = tmp_path / "out"
    names = {"probe.md", "lines.csv", "points.csv", "gain_by_covariance.svg", "gain_by_covariance.png"}
    assert {path.name for path in out.iterdir()} == names
    points = rows(out / "points.csv")
    assert [float(p["weight"]) for p in points] == pytest.approx([i / 10 - 1 for i in range(21)])
    assert float(points[-1]["covariance"]) == pytest.approx(1.0)
    assert float(points[-1]["gain"]) > 0 < float(points[-1]["gain_stderr"])
    (line,) = rows(out / "lines.csv")
    assert line["sampling"] == "power, alpha=4, block_size=4, mcmc_steps=10" and line["prompts"] == "12"
    assert float(line["slope"]) > 0
    ElementTree.parse(out / "gain_by_covariance.svg")
    page = (out / "probe.md").read_text(encoding="utf-8")
    assert "](gain_by_covariance.png)" in page and "power, alpha=4" in page
    assert f"{float(line['slope']):.3f} ± {float(line['slope_stderr']):.3f}" in capsys.readouterr().out


def test_same_stores_same_files(stores, tmp_path) -> None:
    """A bootstrap, hash or figure that depends on the clock or on the process."""
    base, power = stores
    for out in ("one", "two"):
        run("--base", base, "--power", power, "--output", tmp_path / out)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_one_store_may_hold_everything(tmp_path) -> None:
    """The base is what method=standard drew, and every other way of sampling is compared with it; seeds are pooled."""
    folder = tmp_path / "all"
    for config in (POWER, STANDARD, STANDARD.replace(seed=1), POWER.replace(alpha=2.0)):
        write_store(folder, config)
    assert run("--base", folder, "--power", folder, "--output", tmp_path / "out") == 0
    assert {line["sampling"].split(", ")[1] for line in rows(tmp_path / "out" / "lines.csv")} == {"alpha=4", "alpha=2"}
    base = choose_base(read_draws(folder))
    assert base.options["method"] == "standard" and base.n == "8"


def test_hostile_text_is_text(tmp_path) -> None:
    model = "<script>alert(1)</script>|`\x1b[31m@0123456789abcdef"
    base = write_store(tmp_path / "<b>$x$ ba|se", model=model, text="\u202e\x00")
    power = write_store(tmp_path / "power", POWER, model=model)
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "probe.md").read_text(encoding="utf-8")
    assert "<script>" not in page and "\x1b" not in page and "<b>" not in page


def test_unequal_numbers_of_completions(tmp_path) -> None:
    base = write_store(tmp_path / "base", n=2)
    write_store(base, STANDARD, prompts=PROMPTS[:3], n=5)
    power = write_store(tmp_path / "power", POWER, n=1)
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    assert choose_base(read_draws(base)).n == "2 to 5"


def test_completions_without_an_end_are_pointed_out(tmp_path, capsys) -> None:
    base = write_store(tmp_path / "base", finish_reason="length")
    power = write_store(tmp_path / "power", POWER)
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    note = "48 of 48 completions of standard ended at max_new_tokens=40"
    assert note in capsys.readouterr().out
    assert note.replace("_", r"\_") in (tmp_path / "out" / "probe.md").read_text(encoding="utf-8")


def test_base_other_than_standard_is_pointed_out(tmp_path, capsys) -> None:
    base = write_store(tmp_path / "base", SamplerConfig(method="temperature", max_new_tokens=40))
    power = write_store(tmp_path / "power", POWER)
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    assert "Proposition 4 does not apply" in capsys.readouterr().out


def test_common_prompts_go_on_when_told_to(tmp_path) -> None:
    base = write_store(tmp_path / "base", prompts=PROMPTS[:10])
    power = write_store(tmp_path / "power", POWER, prompts=PROMPTS[2:])
    arguments = ("--base", base, "--power", power, "--output", tmp_path / "out")
    assert run(*arguments) == 2
    assert run(*arguments, "--common-prompts") == 0
    assert rows(tmp_path / "out" / "lines.csv")[0]["prompts"] == "8"


OTHER_MODEL = "pocket@fedcba9876543210"
BAD = {
    "no such folder": (lambda f: f / "nowhere", lambda f: write_store(f, POWER), "nowhere: there is no such folder"),
    "empty": (lambda f: f.mkdir() or f, lambda f: write_store(f, POWER), "holds no completions"),
    "one completion": (lambda f: write_store(f, n=1), lambda f: write_store(f, POWER), "one completion for 12 of 12"),
    "models": (write_store, lambda f: write_store(f, POWER, model=OTHER_MODEL), "different models"),
    "stop strings": (write_store, lambda f: write_store(f, POWER, stop=("\n",)), "stop differs"),
    "lengths": (write_store, lambda f: write_store(f, POWER.replace(max_new_tokens=9)), "max_new_tokens differs"),
    "prompts": (write_store, lambda f: write_store(f, POWER, prompts=("a", "b")), "12 prompts are in the first alone"),
    "one prompt": (
        lambda f: write_store(f, prompts=PROMPTS[:1]),
        lambda f: write_store(f, POWER, prompts=PROMPTS[:1]),
        "need two, better dozens",
    ),
    "same sampling": (write_store, write_store, "holds only completions sampled in the same way as the base"),
    "two bases": (
        lambda f: write_store(write_store(f, POWER), POWER.replace(alpha=2.0)),
        lambda f: write_store(f, POWER.replace(alpha=3.0)),
        "holds 2 ways of sampling that could be the base",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_stores_are_refused(case: str, tmp_path, capsys) -> None:
    """Each with status 2, a message that says what and where, and nothing written."""
    make_base, make_power, message = BAD[case]
    base, power = make_base(tmp_path / "base"), make_power(tmp_path / "power")
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_sampling_twice_is_refused(stores, tmp_path, capsys) -> None:
    """Two lines of one name; a folder named twice is one."""
    base, power = stores
    twin = write_store(tmp_path / "twin", POWER.replace(seed=1))
    assert run("--base", base, "--power", power, twin, "--output", tmp_path / "out") == 2
    assert "both hold power, alpha=4" in capsys.readouterr().err
    assert run("--base", base, "--power", power, power, base, "--output", tmp_path / "out") == 0
    assert len(rows(tmp_path / "out" / "lines.csv")) == 1


def test_all_completions_alike_are_refused(tmp_path, capsys) -> None:
    base = tmp_path / "base"
    with CompletionStore(base, MODEL) as store:
        for prompt in PROMPTS:
            for repeat in range(3):
                drawn = Completion("same", token_ids=[5, 0], log_probs=[-0.1, -0.2], finish_reason="eos")
                store.add(prompt, [ord(c) for c in prompt], repeat, Provenance(MODEL, STANDARD, (), (0,)), drawn)
    power = write_store(tmp_path / "power", POWER)
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 2
    assert "are alike" in capsys.readouterr().err


def test_infinite_log_probabilities_are_refused(tmp_path, capsys) -> None:
    base, power = write_store(tmp_path / "base"), write_store(tmp_path / "power", POWER)
    (file,) = base.glob("*.jsonl")
    record = json.loads(file.read_text().splitlines()[0])
    record |= {"key": "f" * 32, "repeat": 99, "sum_log_prob": -float("inf"), "self_reward": -float("inf")}
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 2
    assert "is not finite" in capsys.readouterr().err


def test_damaged_and_growing_stores(stores, tmp_path, capsys, caplog) -> None:
    """A torn last line (a run that is still writing) is left out with a warning; a broken one before it is an error."""
    base, power = stores
    (file,) = power.glob("*.jsonl")
    with file.open("a") as lines:
        lines.write('{"format": 2, "key": "torn')
    with caplog.at_level(logging.WARNING):
        assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 0
    assert "an incomplete last line" in caplog.text
    with file.open("a") as lines:
        lines.write("\n")
    assert run("--base", base, "--power", power, "--output", tmp_path / "out") == 2
    assert f"{file}:49" in capsys.readouterr().err


def test_output_that_cannot_be_written(stores, tmp_path, capsys) -> None:
    base, power = stores
    (tmp_path / "file").write_text("mine")
    assert run("--base", base, "--power", power, "--output", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert run("--base", base, "--power", power, "--output", tmp_path / "out", "--seed", "-1") == 2
    assert "--seed -1: must be >= 0" in capsys.readouterr().err


def test_pairs_keep_prompts_together(tmp_path) -> None:
    """Prompts in another order in the other store, as several processes leave them."""
    base = choose_base(read_draws(write_store(tmp_path / "base")))
    (power,) = read_draws(write_store(tmp_path / "power", POWER, prompts=PROMPTS[::-1]))
    before, after = pair(base, power, common=False)
    ids = [tuple(map(ord, prompt)) for prompt in PROMPTS]
    assert [b is base.draws[i] for b, i in zip(before, ids, strict=True)] == [True] * 12
    assert [a is power.draws[i] for a, i in zip(after, ids, strict=True)] == [True] * 12


def write_run(
    folder: Path, options: dict, *, limit: int = 6, n: int = 3, task: str = "pocket_sums", seed: int = 0
) -> Path:
    """What lm-eval writes for one task with --output_path and --log_samples, as far as readers look at it."""
    folder.mkdir()
    time = "2026-01-01T00-00-00.000001"
    results = {
        "results": {task: {"alias": task}},
        "configs": {task: {"task": task, "output_type": "generate_until", "repeats": n}},
        "versions": {task: 1.0},
        "n-samples": {task: {"original": limit, "effective": limit}},
        "config": {
            "model": "power-hf",
            "model_args": {"pretrained": "examples/pocket/model", **options},
            "power_sampler": {"model": MODEL, "max_new_tokens": 40, **options},
        },
        "model_name": "pocket",
        "total_evaluation_time_seconds": "5.0",
    }
    (folder / f"results_{time}.json").write_text(json.dumps(results))
    rng = random.Random(seed)
    with (folder / f"samples_{task}_{time}.jsonl").open("w") as file:
        for i in range(limit):
            correct = [float(rng.random() < 0.5) for _ in range(n)]
            doc = {"prompt": PROMPTS[i], "answer": "4"}
            doc["lm_power"] = {
                "correct": correct, "answer": ["4"] * n, "self_reward": [-rng.random() for _ in range(n)],
                "finish_reason": ["eos"] * n, "tokens": [5] * n, "cost": [None] * n,
            }  # fmt: skip
            line = {
                "doc_id": i, "doc": doc, "target": "4", "filter": "none", "metrics": ["acc"],
                "arguments": {"gen_args_0": {"arg_0": PROMPTS[i], "arg_1": {"until": [], "max_gen_toks": 40}}},
                "resps": [["so 4"] * n], "filtered_resps": [["so 4"] * n],
                "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": "t",
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return folder


def temperature(value: float) -> dict:
    return {"method": "temperature", "proposal_temperature": value}


def test_temperatures_become_a_table_and_a_figure(stores, tmp_path) -> None:
    base, power = stores
    given = [
        write_run(tmp_path / "t05", temperature(0.5), seed=1),
        write_run(tmp_path / "t1", {"method": "standard"}, seed=2),
        write_run(tmp_path / "t02", temperature(0.2), seed=3),
    ]
    out = tmp_path / "out"
    assert run("--base", base, "--power", power, "--temperatures", *given, "--output", out) == 0
    table = rows(out / "temperature.csv")
    assert [float(row["temperature"]) for row in table] == [0.2, 0.5, 1.0]
    (samples,) = given[0].glob("samples*")
    logs = [json.loads(line)["doc"]["lm_power"] for line in samples.read_text().splitlines()]
    means = [sum(log["correct"]) / 3 for log in logs]
    mean = sum(means) / 6
    assert float(table[1]["accuracy"]) == pytest.approx(mean)
    assert float(table[1]["accuracy_stderr"]) == pytest.approx((sum((x - mean) ** 2 for x in means) / 5 / 6) ** 0.5)
    assert float(table[1]["self_reward"]) == pytest.approx(sum(sum(log["self_reward"]) for log in logs) / 18)
    assert (out / "temperature.svg").exists() and "temperature.png" in (out / "probe.md").read_text(encoding="utf-8")


def test_default_temperature_is_read_as_the_sampler_takes_it(tmp_path) -> None:
    """method=temperature without proposal_temperature draws at 1/alpha."""
    given = [
        write_run(tmp_path / "a", {"method": "temperature", "alpha": 5}),
        write_run(tmp_path / "b", temperature(1.0)),
    ]
    assert [row.temperature for row in read_temperatures(list(map(str, given)))] == [0.2, 1.0]


BAD_RUNS = {
    "power": ({"method": "power", "alpha": 4}, {}, "has no decoding temperature"),
    "twice": (temperature(1.0), {"seed": 9}, "both at temperature 1"),
    "problems": (temperature(0.5), {"limit": 5}, "problems differ (6 and 5)"),
    "tasks": (temperature(0.5), {"task": "math500"}, "task differs"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_temperature_runs_are_refused(case: str, stores, tmp_path, capsys) -> None:
    base, power = stores
    options, fields, message = BAD_RUNS[case]
    given = [write_run(tmp_path / "one", {"method": "standard"}), write_run(tmp_path / "two", options, **fields)]
    assert run("--base", base, "--power", power, "--temperatures", *given, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_temperature_is_no_picture(stores, tmp_path, capsys) -> None:
    base, power = stores
    given = write_run(tmp_path / "one", {"method": "standard"})
    assert run("--base", base, "--power", power, "--temperatures", given, "--output", tmp_path / "out") == 2
    assert "two or more" in capsys.readouterr().err
