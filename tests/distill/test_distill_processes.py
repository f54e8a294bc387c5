"""Real commands: two processes as one, and killed ones that go on; the results are those of one quiet run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from distill_runs import free_port, losses, options, run, sample_store
from safetensors.torch import load_file

from lm_power.distill.options import DistillConfig

ROOT = Path(__file__).parents[2]
TOGETHER = {"validation_share": 0.3, "learning_rate": 0.001}
LONG = {"epochs": 10, "save_steps": 3, "validation_share": 0.2}


class Command:
    """`lm_power.distill` with options from a file, in one process or two."""

    def __init__(self, given: dict[str, Any], folder: Path, processes: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output, self.log = Path(given["output"]), folder / "log.txt"
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(given))
        launch = [sys.executable]
        self.variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if processes > 1:
            # `--cpu` alone starts one process.
            launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
            launch += ["--main_process_port", free_port()]
            self.variables["ACCELERATE_USE_CPU"] = "1"
        self.arguments = [*launch, "-m", "lm_power.distill", "--config", str(config)]

    def start(self, *more: str) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen([*self.arguments, *more], env=self.variables, stdout=log, stderr=subprocess.STDOUT)

    def run(self, *more: str) -> str:
        assert self.start(*more).wait() == 0, self.log.read_text()
        return self.log.read_text()

    def run_as_ranks(self, processes: int) -> str:
        """Start every process ourselves, as a launcher does, and spare its start-up."""
        common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.variables |= {**common, "ACCELERATE_USE_CPU": "1"}
        started = []
        for rank in range(processes):
            self.variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(self.start())
        assert [process.wait() for process in started] == [0] * processes, self.log.read_text()
        return self.log.read_text()

    def kill_after_a_checkpoint(self) -> None:
        """SIGKILL to all its processes, as soon as a checkpoint is there."""
        process = self.start()
        deadline = time.monotonic() + 300
        while not list(self.output.glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        launched = psutil.Process(process.pid)
        for one in (launched, *launched.children(recursive=True)):
            one.kill()
        process.wait()
        assert not (self.output / "adapter_model.safetensors").exists(), "it was over before it was killed"


def assert_same_adapter(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    largest = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    assert largest <= tolerance, largest
    assert max(weight.abs().max().item() for weight in ours.values()) > 0.05


@pytest.fixture(scope="module")
def one_process(tiny: str, store: str, tmp_path_factory) -> Path:
    """A run in this process: 9 completions to learn, in global batches of 4."""
    output = tmp_path_factory.mktemp("one") / "out"
    record = run(tiny, store, output, gradient_accumulation=4, **TOGETHER)
    assert record["data"]["train"] == 9
    return output


def assert_as_one_process(two: Path, one: Path, printed: str) -> None:
    """Rounding alone may differ, which Adam blows up where a gradient is almost 0; only the main process prints."""
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert_same_adapter(two, one, tolerance=2e-5)
    assert printed.count("global batch") == 1
    assert "accelerate launch --num_processes 2" in (two / "README.md").read_text()


def test_two_processes_take_the_steps_of_one(tiny: str, store: str, one_process, tmp_path) -> None:
    """The last global batch of an epoch has one completion, and a process nothing to do."""
    given = options(tiny, store, tmp_path / "two", gradient_accumulation=2, **TOGETHER)
    printed = Command(given, tmp_path / "command").run_as_ranks(2)
    assert_as_one_process(tmp_path / "two", one_process, printed)


@pytest.mark.slow
def test_accelerate_launch_does_so_too(tiny: str, store: str, one_process, tmp_path) -> None:
    given = options(tiny, store, tmp_path / "two", gradient_accumulation=2, **TOGETHER)
    printed = Command(given, tmp_path / "command", processes=2).run()
    assert_as_one_process(tmp_path / "two", one_process, printed)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tiny: str, store: str, tmp_path, monkeypatch) -> None:
    """Two steps after a checkpoint, in the third epoch: what they learnt must be learnt once, by the same draws."""

    def interrupt(self, args, state, control, **others):
        if state.global_step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lm_power.distill.trainer.LossWatch.on_step_end", interrupt)
        run(tiny, store, tmp_path / "cut", lora_dropout=0.1, **LONG)
    run(tiny, store, tmp_path / "cut", resume=True, lora_dropout=0.1, **LONG)
    run(tiny, store, tmp_path / "quiet", lora_dropout=0.1, **LONG)
    assert_same_adapter(tmp_path / "cut", tmp_path / "quiet")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "quiet"), abs=1e-6)


def test_early_stopping_and_the_teacher_s_loss_survive_an_interruption(tiny: str, tmp_path, monkeypatch) -> None:
    """Cut off between the best epoch and the one at which it stops: the count of validations without a gain goes on."""
    store = sample_store(tmp_path / "store", tiny, temperature=0.4)
    given = {
        "validation_share": 0.3, "early_stopping": 2, "epochs": 30, "learning_rate": 0.003, "full": True, "lora_r": 32,
    }  # fmt: skip
    quiet = run(tiny, store, tmp_path / "quiet", **given)
    best, last = quiet["results"]["kept_step"], quiet["results"]["steps"]
    assert 0 < best < last

    def interrupt(self, args, state, control, **others):
        if state.global_step == last - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lm_power.distill.trainer.LossWatch.on_step_end", interrupt)
        run(tiny, store, tmp_path / "cut", **given)
    record = run(tiny, store, tmp_path / "cut", resume=True, **given)
    assert (record["results"]["kept_step"], record["results"]["steps"]) == (best, last)
    assert record["results"]["resumed_from"] is not None
    assert record["teacher"]["loss"] == quiet["teacher"]["loss"] is not None
    assert record["results"]["known_data"] == pytest.approx(quiet["results"]["known_data"], abs=1e-6)


def test_a_run_cut_off_after_it_stopped_early_trains_no_more(tiny: str, store: str, tmp_path, monkeypatch) -> None:
    """Between its last checkpoint and loading the best weights, at the end of an epoch and within one."""
    for place, steps in (("epoch", {}), ("within", {"save_steps": 3})):
        given = {
            "validation_share": 0.3, "early_stopping": 1, "epochs": 30, "learning_rate": 0.05, **steps,
        }  # fmt: skip
        quiet = run(tiny, store, tmp_path / place / "quiet", **given)

        def interrupt(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("lm_power.distill.trainer.DistillTrainer._load_best_model", interrupt)
            run(tiny, store, tmp_path / place / "cut", **given)
        record = run(tiny, store, tmp_path / place / "cut", resume=True, **given)
        assert record["results"]["epochs"] < 30
        for name in ("steps", "kept_step", "epochs", "loss"):
            assert record["results"][name] == quiet["results"][name], (place, name)
        assert_same_adapter(tmp_path / place / "cut", tmp_path / place / "quiet")


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(dropout: float, tiny: str, store: str, tmp_path) -> None:
    """SIGKILL in the middle; with dropout the random streams must go on too."""
    given = options(tiny, store, tmp_path / "killed", lora_dropout=dropout, **LONG)
    Command(given, tmp_path / "command").kill_after_a_checkpoint()
    run(tiny, store, tmp_path / "killed", resume=True, lora_dropout=dropout, **LONG)
    run(tiny, store, tmp_path / "quiet", lora_dropout=dropout, **LONG)
    assert_same_adapter(tmp_path / "killed", tmp_path / "quiet")
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "quiet"), abs=1e-6)
    results = json.loads((tmp_path / "killed" / "distill.json").read_text())["results"]
    assert results["resumed_from"].startswith("checkpoint-")


@pytest.mark.slow
def test_two_killed_processes_go_on_too(tiny: str, store: str, tmp_path) -> None:
    """In a later epoch, whose order must not be that of the first; in two processes only, as it was started."""
    changes = {**LONG, "gradient_accumulation": 2, "lora_dropout": 0.1, "save_steps": 8}
    killed, quiet = tmp_path / "killed", tmp_path / "quiet"
    command = Command(options(tiny, store, killed, **changes), tmp_path / "command", processes=2)
    command.kill_after_a_checkpoint()
    alone = subprocess.run(
        [sys.executable, "-m", "lm_power.distill", "--resume", "--output", str(killed)],
        env=command.variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 2
    assert "processes=1: this run was started with 2" in alone.stderr
    command.run("--resume")
    Command(options(tiny, store, quiet, **changes), tmp_path / "other", processes=2).run()
    assert_same_adapter(killed, quiet)


@pytest.mark.slow
def test_a_user_s_error_ends_all_processes(tiny: str, tmp_path) -> None:
    """Found by the main process alone, it must not leave the others waiting."""
    given = options(tiny, str(tmp_path / "no store"), tmp_path / "out")
    command = Command(given, tmp_path / "command", processes=2)
    assert command.start().wait(timeout=120) != 0
    assert command.log.read_text().count("lm_power.distill: ") == 1


@pytest.mark.parametrize("name", ["fsdp.yaml", "deepspeed.yaml"])
def test_accelerate_reads_the_example_configs(name: str) -> None:
    """It raises for keys that it does not know."""
    config = load_config_from_file(str(ROOT / "distill" / name))
    assert config.distributed_type.value == name.removesuffix(".yaml").upper()
    assert config.mixed_precision == "bf16"


def test_all_options_have_a_place_in_the_readme() -> None:
    text = (ROOT / "distill" / "README.md").read_text()
    missing = [name for name in DistillConfig.__dataclass_fields__ if f"`{name}`" not in text]
    assert not missing
