"""examples/real, its scripts run as a user runs them, on a tiny model with random weights and two problems."""

import functools
import importlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from tiny_tokenizers import byte_level
from transformers import Qwen2Config, Qwen2ForCausalLM

from lm_power.logs.samples import LoggedCompletion

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "real"
MODULES = ("commands", "scores", "base", "distilled", "methods", "ablations")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a model of bytes, so that every prompt can be read."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def start(monkeypatch, model, tmp_path):
    """Start a script on the model in OUT; the modules that it ran by `python -m`, in this process for speed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    every = lm_eval.tasks.TaskManager  # would list lm-eval's own tasks, which takes half a minute
    only_ours = functools.partial(every, include_path=str(ROOT / "tasks"), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_path, metadata: only_ours(metadata=metadata))
    ran = []

    def execute(module, *arguments):
        ran.append((module, *arguments))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as stop:
                assert not stop.code, stop.code

    def run(script, *arguments):
        ran.clear()
        small = ["--limit", "2", "--max_gen_toks", "6", "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", [script, model, str(tmp_path / "out"), *small])
        module = importlib.import_module(script)
        monkeypatch.setattr(sys.modules["commands"], "execute", execute)
        module.main()
        return list(ran)

    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


def titles(table: Path) -> list[str]:
    """The first cells of the rows."""
    return [line.split(" | ")[0].removeprefix("| ") for line in table.read_text().splitlines() if "±" in line]


def test_the_base_table_resumes(start, tmp_path):
    """Guards the commands, which lm-eval and the report parse here, and a second start that draws nothing."""
    arguments = ["--only", "power", "--n", "2", "--seeds", "0", "1"]
    assert [command[0] for command in start("base", *arguments)] == ["lm_eval", "lm_eval", "lm_power"]
    table = tmp_path / "out" / "base.md"
    written = table.read_text()
    assert titles(table) == ["power"]
    assert "of each seed" in written and "best of 2: accuracy" in written
    assert (tmp_path / "out" / "report" / "index.html").exists()
    stores = tmp_path.glob("out/seed*/power/store/*.jsonl")
    keys = [json.loads(line)["key"] for file in stores for line in file.open(encoding="utf-8")]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2
    assert [command[0] for command in start("base", *arguments)] == ["lm_power"]
    assert table.read_text() == written


def test_math500_has_runs_of_its_own_with_the_chat_template(start, tmp_path):
    problems = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(2)]
    (tmp_path / "math500.jsonl").write_text("\n".join(map(json.dumps, problems)))
    given = ["--task", "math500", "--math500_file", str(tmp_path / "math500.jsonl")]
    evaluation, _ = start("base", "--only", "standard", "--n", "1", *given)
    assert "--apply_chat_template" in evaluation and "math500" in evaluation
    assert titles(tmp_path / "out" / "base-math500.md") == ["standard"]
    (store,) = (tmp_path / "out" / "seed0" / "math500-standard" / "store").glob("*.jsonl")
    prompts = [json.loads(line)["prompt"] for line in store.open(encoding="utf-8")]
    assert len(prompts) == 2 and all(prompt.startswith("<user>Can you solve") for prompt in prompts)
    assert [command[0] for command in start("base", "--only", "standard", "--n", "1", *given)] == ["lm_power"]
    with pytest.raises(SystemExit, match=r"math500_file=.*math500.jsonl, and other.jsonl is wanted; name another OUT"):
        start("base", "--only", "standard", "--n", "1", *given[:-1], "other.jsonl")


def test_a_student_is_evaluated_beside_its_base(start, tmp_path):
    """Guards teacher, training and the adapter's evaluation, each by its own command, and that none is done twice."""
    row = {"code": "def add(x):\n    return x + 1", "test_list": ["assert add(1) == 2"]}
    rows = [row | {"task_id": 11 + i, "prompt": f"Add {i}."} for i in range(2)]
    (tmp_path / "mbpp.json").write_text(json.dumps(rows))
    arguments = ["--mbpp_file", str(tmp_path / "mbpp.json"), "--n", "1", "--only", "standard", "distilled, standard"]
    training = ["--epochs", "1", "--lora_r", "2", "--batch_size", "2", "--no-gradient_checkpointing"]
    ran = start("distilled", *arguments, *training)
    assert [command[0] for command in ran] == ["lm_eval", "lm_power.distill", "lm_eval", "lm_eval", "lm_power"]
    assert list(ran[1][-len(training) :]) == training
    models = [command[command.index("--model_args") + 1] for command in ran if command[0] == "lm_eval"]
    assert ["peft=" in model for model in models] == [False, False, True]
    table = tmp_path / "out" / "student.md"
    written = table.read_text()
    assert titles(table) == ["standard", "distilled, standard", "teacher"]
    again = start("distilled", *arguments, *training)
    assert [command[0] for command in again] == ["lm_power.distill", "lm_power"] and again[0][-1] == "--resume"
    assert table.read_text() == written
    beside = start("methods", "--only", "standard", "--n", "1", "--student", "student")
    assert len(beside) == 1 and "peft=" in beside[0][beside[0].index("--model_args") + 1]
    rows = ["standard", "distilled, standard", "distilled, temperature"]
    assert titles(tmp_path / "out" / "pass_at_k.md") == rows
    assert sorted(titles(tmp_path / "out" / "methods.md")) == sorted(rows)
    shutil.rmtree(tmp_path / "out" / "seed0" / "student")
    with pytest.raises(SystemExit, match=r"is older than the student .*student; remove it, or name"):
        start("distilled", *arguments, *training, "--learning_rate", "0.01")


def test_methods_and_ablations_share_their_runs(start, tmp_path):
    """Guards the tables of methods, pass@k and one option, and figures; `power` as published is drawn once."""
    ran = start("methods", "--only", "standard", "power", "smc, 2 particles", "--n", "2")
    assert len(ran) == 3
    lines = (tmp_path / "out" / "methods.md").read_text().splitlines()[2:]
    rows = ["best of 2, power", "best of 2, standard", "power", "smc, 2 particles", "standard"]
    assert sorted(titles(tmp_path / "out" / "methods.md")) == rows
    costs = [float(line.split(" | ")[1]) for line in lines]
    assert costs == sorted(costs)
    assert (tmp_path / "out" / "pass_at_k.md").read_text().startswith("|  | pass@1 | pass@2 |")
    assert (tmp_path / "out" / "pass_at_k.svg").stat().st_size > 1000
    module = importlib.import_module("ablations")
    module.VALUES["mcmc_steps"] = (0, 10)
    (store,) = (tmp_path / "out" / "seed0" / "power" / "store").glob("*.jsonl")
    before = store.read_bytes()
    without, paper = start("ablations", "--option", "mcmc_steps")
    assert "mcmc_steps=0" in without[without.index("--model_args") + 1]
    assert "mcmc_steps=10" in paper[paper.index("--model_args") + 1] and store.read_bytes() == before
    assert len((tmp_path / "out" / "ablation-mcmc_steps.md").read_text().splitlines()) == 4
    for name in ("ablation-mcmc_steps.svg", "ablations.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_every_setting_is_one_that_the_sampler_takes(start):
    """Guards a long table that ends at a misspelt option, hours after its start."""
    from lm_power.config import SamplerConfig

    for script in ("base", "methods", "ablations"):
        module = importlib.import_module(script)
        runs = {
            "base": lambda m: m.RUNS, "methods": lambda m: m.SEVERAL + m.ONE,
            "ablations": lambda m: [m.run_of(option, value) for option in m.VALUES for value in m.VALUES[option]],
        }[script](module)  # fmt: skip
        for run in runs:
            options = {name: value for name, value in run.options.items() if name != "randomize_weights"}
            SamplerConfig(**options)
        different = {(run.folder, tuple(sorted(run.options.items()))) for run in runs}
        assert len(different) == len({run.folder for run in runs})


def test_a_name_that_is_no_run_is_refused(start, capsys):
    with pytest.raises(SystemExit):
        start("base", "--only", "greedy")
    assert "invalid choice: 'greedy' (choose from" in capsys.readouterr().err


def test_results_of_other_settings_are_not_taken_for_those_wanted(start, tmp_path):
    """Guards a table of one model's figures under another's name, since finished runs are skipped."""
    folder = tmp_path / "out" / "seed0" / "standard" / "n4-limit2" / "model"
    folder.mkdir(parents=True)
    config = {"model_args": {"pretrained": "another", "dtype": "float32", "seed": 0, "method": "standard"}}
    (folder / "results_2026-01-01.json").write_text(json.dumps({"config": config | {"gen_kwargs": {"n": 4}}}))
    with pytest.raises(SystemExit, match="was made with max_gen_toks=None, and 6 is wanted; name another OUT"):
        start("base", "--only", "standard")
    config["model_args"]["method"] = "power"
    (folder / "results_2026-01-01.json").write_text(
        json.dumps({"config": config | {"gen_kwargs": {"n": 4, "max_gen_toks": 6}}})
    )
    with pytest.raises(SystemExit, match="was made with method=power, and standard is wanted"):
        start("base", "--only", "standard")


def test_the_best_of_k_is_the_mean_over_all_subsets(start):
    """By hand: of three completions the surest, which is wrong, is in two of the three pairs."""
    methods = importlib.import_module("methods")
    completions = [
        LoggedCompletion(text="", correct=correct, self_reward=reward)
        for correct, reward in ((1.0, -0.5), (0.0, -0.1), (0.0, -0.9))
    ]
    assert methods.best_of(completions, 1, "correct") == pytest.approx(1 / 3)
    assert methods.best_of(completions, 2, "correct") == pytest.approx(1 / 3)
    assert methods.best_of(completions, 3, "correct") == 0
    assert methods.best_of(completions, 2, "self_reward") == pytest.approx((-0.1 - 0.1 - 0.5) / 3)
