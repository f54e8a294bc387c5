"""The ready files of examples/recipes: read by lm-eval's own loader, checked by our own rules, and one of them run."""

import inspect
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_power.config import SamplerConfig
from lm_power.harness.options import split_model_args

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "examples" / "recipes").glob("*.yaml"))
README = (REPOSITORY / "examples" / "recipes" / "README.md").read_text()
MODELS = ("phi-3.5-mini-instruct", "qwen2.5-7b", "qwen2.5-math-7b")
COLUMNS = {
    "math500": 0,
    "power_humaneval": 1,
    "power_humaneval_instruct": 1,
    "power_gpqa_diamond": 2,
    "power_alpaca_eval": 3,
}
NAMES = ("MATH500", "HumanEval", "GPQA-Diamond", "AlpacaEval 2.0")


@pytest.fixture(scope="module")
def our_tasks():
    return set(TaskManager(include_path=str(REPOSITORY / "tasks"), include_defaults=False).all_tasks)


@pytest.fixture(params=RECIPES, ids=lambda file: file.stem)
def recipe(request):
    """(file, what lm-eval's loader makes of it)."""
    return request.param, EvaluatorConfig.from_config(request.param)


def test_every_row_has_its_file():
    methods = ("power", "power-alpaca", "standard", "temperature")
    assert {file.stem for file in RECIPES} == {f"{model}-{method}" for model in MODELS for method in methods}


def test_what_is_run(recipe, our_tasks):
    """Guards against a task renamed, a store or a folder shared by two recipes, and a consent that is missing."""
    file, config = recipe
    assert config.model == "power-hf" and set(config.tasks) <= our_tasks
    assert config.output_path == config.model_args["completions"] == f"runs/{file.stem}"
    assert config.log_samples and config.batch_size == "auto" and config.model_args["dtype"] == "bfloat16"
    instruct = "instruct" in file.stem
    assert config.apply_chat_template is instruct
    assert ("power_humaneval" in config.tasks, "power_humaneval_instruct" in config.tasks) == (
        ("alpaca" not in file.stem and not instruct), ("alpaca" not in file.stem and instruct)
    )  # fmt: skip
    assert config.confirm_run_unsafe_code is any("humaneval" in task for task in config.tasks)
    assert not config.gen_kwargs  # so that the command line's adds and replaces nothing
    assert config.model_args["pretrained"].split("/")[1].lower() == re.sub("-(power|standard|temp).*", "", file.stem)


def test_how_it_is_sampled(recipe):
    """The settings of Karan & Du (2025), section 5.1, accepted by the sampler; all else is known to HFLM."""
    file, config = recipe
    ours, theirs = split_model_args({name: v for name, v in config.model_args.items() if name != "completions"})
    method, tau = file.stem.split("-")[-1].replace("alpaca", "power"), 0.5 if "alpaca" in file.stem else 0.25
    expected = {"method": method, "seed": 0, "max_new_tokens": 3072}
    if method != "standard":
        expected["proposal_temperature"] = tau
    if method == "power":
        expected |= {"alpha": 4.0, "block_size": 192, "mcmc_steps": 10}
    assert SamplerConfig().replace(**ours) == SamplerConfig(**expected)
    assert set(theirs) <= set(inspect.signature(HFLM.__init__).parameters)


def test_published_figures_stand_in_file_and_table(recipe):
    """Guards against figures of another row: the comment's, task by task, are those of the README's table."""
    file, config = recipe
    _, published, command = file.read_text().splitlines()[:3]
    assert command == f"#   lm_eval --config examples/recipes/{file.name}"
    name = file.stem.removesuffix("-alpaca")
    (row,) = re.findall(rf"^\| `{re.escape(name)}`[^|]*\|(.*)\|$", README, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    stated = ", ".join(f"{NAMES[COLUMNS[task]]} {cells[COLUMNS[task]]}" for task in config.tasks)
    assert published == f"# Published (Karan & Du 2025, Table 1): {stated}."


def decoded(n, block_size=192, steps=10):
    """Tokens decoded for a completion that ends with n, by the README's formula."""
    stages = range(1, math.ceil(n / block_size) + 1)
    return n + steps * sum((min(k * block_size, n) + 1) / 2 for k in stages)


def test_the_cost_table_follows_its_formula():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| (\d+) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for n, tokens, ratio, paper in rows:
        length = int(n)
        assert (float(tokens), float(ratio)) == (
            round(decoded(length)),
            pytest.approx(decoded(length) / length, abs=0.05),
        )
        assert float(paper) == pytest.approx(10 * length**2 / (4 * 192), abs=0.51)


def test_a_recipe_runs(tmp_path, monkeypatch, capsys):
    """The stock command on a copy with a model and data of this machine: Phi-3.5's, chat template and all."""
    from lm_eval.__main__ import cli_evaluate

    model = tmp_path / "model"
    shutil.copytree(REPOSITORY / "examples" / "pocket" / "model", model)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}))
    choices = {"Correct Answer": "a", **{f"Incorrect Answer {i}": f"b{i}" for i in (1, 2, 3)}}
    (tmp_path / "gpqa_diamond.jsonl").write_text("".join(json.dumps({"Question": q, **choices}) + "\n" for q in "?!"))
    (tmp_path / "math500.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?", "answer": "3"}')

    config = yaml.safe_load((REPOSITORY / "examples" / "recipes" / "phi-3.5-mini-instruct-power.yaml").read_text())
    own = {"pretrained": str(model), "dtype": "float32", "completions": str(tmp_path / "runs")}
    copy = tmp_path / "copy.yaml"
    copy.write_text(
        yaml.safe_dump({**config, "model_args": config["model_args"] | own, "output_path": str(tmp_path / "runs")})
    )
    original = TaskManager.__init__  # lm-eval's own tasks take ten seconds to index
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **o: original(self, **{**o, "include_defaults": False}))
    command = [
        "lm_eval",
        "--config",
        str(copy),
        "--limit",
        "2",
        "--device",
        "cpu",
        "--gen_kwargs",
        "max_gen_toks=6,n=2",
    ]
    command += ["--metadata", f"gpqa_folder={tmp_path},math500_file={tmp_path / 'math500.jsonl'}"]
    monkeypatch.setattr(sys, "argv", [*command, "--include_path", str(REPOSITORY / "tasks")])
    cli_evaluate()
    assert "pass@2" in capsys.readouterr().out
    (results,) = (tmp_path / "runs").rglob("results_*.json")
    table = json.loads(results.read_text())
    assert set(table["results"]) == set(config["tasks"])
    assert table["chat_template"] == template
    (store,) = (tmp_path / "runs").glob("*.jsonl")
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    assert len(lines) == 3 * 2 * 2 and all(line["prompt"].endswith("\n<assistant>") for line in lines)
    assert {line["config"]["proposal_temperature"] for line in lines} == {0.25}
