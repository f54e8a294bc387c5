"""What is wrong with a run of `lm_eval` is said in one line, before the model is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

from lm_power.errors import LMPowerError  # noqa: E402
from lm_power.harness.preflight import prepare  # noqa: E402
from lm_power.plugin import add_short_errors  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "tasks"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`lm_eval` with a model that cannot be loaded: whoever tries ends in another error than ours."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "power-hf",
            "--model_args",
            "pretrained=/no/such/model",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--tasks", "pocket_sums", "--gen_kwargs", "alpa=2"), ("'alpa'", "did you mean alpha")),
        pytest.param(
            ("--tasks", "math500", "--metadata", "math500_file=no.jsonl"),
            ("math500_file=no.jsonl", "does not exist"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_command_ends_in_one_line_before_the_model_is_loaded(
    arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    done = command(*arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lm_eval: ") and all(part in last for part in parts)
    assert "Traceback" not in done.stderr and "/no/such/model" not in last


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_in_one_line() -> None:
    done = command("--tasks", "pocket_sums")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stderr.strip().splitlines()[-1].startswith("lm_eval: pretrained=/no/such/model: cannot be loaded: ")


def test_other_errors_keep_their_traceback() -> None:
    class HarnessCLI:
        def execute(self, error: Exception) -> None:
            raise error

    add_short_errors(SimpleNamespace(HarnessCLI=HarnessCLI))
    with pytest.raises(ZeroDivisionError):
        HarnessCLI().execute(ZeroDivisionError())
    with pytest.raises(SystemExit, match="2"):
        HarnessCLI().execute(LMPowerError("a user's mistake"))


def manager(**options: object) -> TaskManager:
    return TaskManager(include_path=str(REPOSITORY / "tasks"), include_defaults=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model_args", "gen_kwargs", "message"),
    [
        ("pretrained=x", "alpha=0.5", "alpha=0.5"),
        ("pretrained=x", {"alpha": 0.5}, "alpha=0.5"),
        ({"pretrained": "x", "alpha": 0.5}, None, "alpha=0.5"),
        ("pretrained=x", "n=0", "n=0"),
        ("pretrained=x,method=standard", "mcmc_steps=3", "mcmc_steps"),
        ("pretrained=x", "max_new_tokens=10", "two names for one option"),
        ("pretrained=x", "repetition_penalty=1.2", "repetition_penalty"),
        ("pretrained=x", "cuda_graphs=False", "--model_args"),
        ("pretrained=x", "until=3", "until=3"),
    ],
)
def test_wrong_options(model_args: object, gen_kwargs: object, message: str) -> None:
    with pytest.raises(LMPowerError, match=message):
        prepare(True, FOLDER, model_args, ["pocket_sums"], manager(), gen_kwargs)  # type: ignore[arg-type]


def test_right_options_and_other_models_pass() -> None:
    """The model's own arguments are not ours to judge, and `hf` has other options."""
    given = "pretrained=x,completions=store,randomize_weights=True,cuda_graphs=False,peft=y,alpha=2"
    for model, model_args, gen_kwargs in (
        ("power-hf", given, "n=4,max_gen_toks=8,temperature=0.5"),
        ("hf", "pretrained=x", "n=4,repetition_penalty=1.2"),
        ("hf", None, None),
    ):
        (task,) = prepare(model == "power-hf", FOLDER, model_args, ["pocket_sums"], manager(), gen_kwargs)
        assert task.task_name == "pocket_sums"


def test_a_variant_of_the_users_own_and_a_group_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"include: {REPOSITORY}/tasks/pocket_sums/pocket_sums.yaml\ntask: mine\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [mine, pocket_sums]\n")
    (tmp_path / "other.yaml").write_text("task: other\noutput_type: generate_until\ndataset_path: no/such\n")
    tasks = TaskManager(include_path=[str(REPOSITORY / "tasks"), str(tmp_path)], include_defaults=False)
    mine, group, other = prepare(False, FOLDER, "", ["mine", "both", "other"], tasks, None)
    assert mine.task_name == "mine" and other == "other"
    assert group == "both" or group.name == "both"  # a group of the user's own is loaded later, by lm-eval
    with pytest.raises(LMPowerError, match="did you mean alpha"):
        prepare(True, FOLDER, "pretrained=x", ["other"], tasks, "alpa=2")


def test_programs_are_run_only_if_that_is_confirmed() -> None:
    """Guards: a refusal only after a large model has been loaded."""
    with pytest.raises(LMPowerError, match=r"power_humaneval: runs programs .* --confirm_run_unsafe_code"):
        prepare(True, FOLDER, "pretrained=x", ["power_humaneval"], manager(), None)
    (task,) = prepare(True, FOLDER, "pretrained=x", ["power_humaneval"], manager(), None, confirmed=True)
    assert task.task_name == "power_humaneval"


def test_what_was_loaded_is_evaluated(tmp_path: Path) -> None:
    """Through the wrapped `simple_evaluate`, tasks loaded beforehand give the results that names give."""
    from lm_eval.api.model import LM

    class Zero(LM):
        def generate_until(self, requests: list[object], disable_tqdm: bool = False) -> list[str]:
            return ["0" for _ in requests]

        def loglikelihood(self, requests: list[object], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[object], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

    results = [
        lm_eval.simple_evaluate(Zero(), tasks=tasks, limit=4, task_manager=manager(), check_integrity=False, **options)[
            "results"
        ]
        for tasks, options in (
            (["pocket_sums"], {}),
            (["pocket_sums"], {"gen_kwargs": "n=1"}),
            ("pocket_sums", {}),
        )
    ]
    assert json.dumps(results[0]) == json.dumps(results[1]) == json.dumps(results[2]) and "pocket_sums" in results[0]
