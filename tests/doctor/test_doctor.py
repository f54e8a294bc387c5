"""`lm-power doctor` as a user runs it, on machines where one thing or another does not work."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch

from lm_power import cli, cpu
from lm_power.doctor import checks, machine
from lm_power.doctor.command import NEEDED, PARTS, table
from lm_power.engine import attention
from lm_power.sandbox import runner

POCKET = Path(__file__).parents[2] / "examples" / "pocket" / "model"
SLOW = ("sandbox", "math", "bfloat16", "engine")  # seconds each: stood in for where they are not what is looked at


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No network, and an interpreter that has read the .pth file, however the tests were started."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "lm_power._autoload", sys)


@pytest.fixture
def quick(monkeypatch):
    for part in SLOW:
        monkeypatch.setitem(
            checks.TRIALS, part, lambda setting, part=part: checks.Finding(part, "works", "stood in for")
        )


def doctor(capsys, *options: str) -> tuple[int, dict[str, dict], list[str]]:
    status = cli.main(["doctor", "--device", "cpu", "--json", *options])
    found = json.loads(capsys.readouterr().out)
    return status, {finding["part"]: finding for finding in found["findings"]}, found["missed"]


def test_every_part_is_tried_and_told_of(capsys):
    """Guards: a part that is listed and not tried; a table that leaves one out; a model that nobody loads."""
    assert cli.main(["doctor", "--device", "cpu", "--model", str(POCKET), "--max-new-tokens", "40"]) == 0
    shown = capsys.readouterr().out
    lines = {
        line.split()[0]: line.split()[1] for line in shown.splitlines() if line and line.split()[0] in (*PARTS, "model")
    }
    assert set(lines) == {*PARTS, "model"}
    for part in ("packages", "plugin", "engine", "math", "bfloat16", "sandbox", "model"):
        assert lines[part] == "works", shown
    for part in ("kernel", "graphs", "draw", "hub"):
        assert lines[part] == "absent", shown
    assert "is served: " in shown and " + 40 tokens fit" in " ".join(shown.split())
    assert torch.__version__ in shown and "all that was asked for works" in shown


def test_what_is_required_and_absent_is_a_failure(capsys, quick):
    """Guards: status 0 where a part that was asked for is not there."""
    assert doctor(capsys)[0] == 0
    status, found, missed = doctor(capsys, "--require", "kernel", "--require", "math")
    assert (status, missed) == (1, ["kernel"])
    assert found["kernel"]["verdict"] == "absent" and found["kernel"]["asked"]


def fail(*args, **kwargs):
    raise RuntimeError("the\nworst")


@pytest.mark.parametrize(
    ("part", "place", "name"),
    [
        ("engine", "lm_power.sampler.PowerSampler", "generate"),
        ("sandbox", "lm_power.sandbox.runner", "run_programs"),
        ("math", "lm_power.grading.math_grader.MathGrader", "equal"),
        ("memory", "lm_power.doctor.checks", "free_memory"),
        ("threads", "torch", "get_num_threads"),
    ],
)
def test_a_part_that_breaks_is_a_finding_and_the_others_go_on(capsys, monkeypatch, part, place, name):
    """Guards: a doctor that dies of what it is to find; a failure without its reason."""
    for other in SLOW:
        if other != part:
            monkeypatch.setitem(checks.TRIALS, other, lambda s, other=other: checks.Finding(other, "works", ""))
    monkeypatch.setattr(f"{place}.{name}", fail)
    if part == "sandbox":
        runner.require_sandbox.cache_clear()
    status, found, missed = doctor(capsys)
    assert found[part]["verdict"] == "fails" and found[part]["why"] == "RuntimeError: the worst"
    assert [p for p, finding in found.items() if finding["verdict"] == "fails"] == [part]
    assert (status, missed) == ((1, [part]) if part in NEEDED else (0, []))


def test_a_missing_package_and_an_old_one(capsys, quick, monkeypatch):
    """Guards: an ImportError in the middle of a run; a version that is too low."""
    version = importlib.metadata.version
    told = {"scipy": None, "transformers": "4.40.0"}

    def pretended(name):
        if told.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return told.get(name) or version(name)

    monkeypatch.setattr(importlib.metadata, "version", pretended)
    status, found, missed = doctor(capsys)
    assert (status, missed) == (1, ["packages"])
    for part in ("scipy (not installed)", "transformers>=5.19 (4.40.0)"):
        assert part in found["packages"]["why"]


def test_an_installation_without_the_pth_file(capsys, quick, monkeypatch):
    """Guards: "unknown model power-hf" from lm-eval while the doctor is content."""
    monkeypatch.delitem(sys.modules, "lm_power._autoload")
    status, found, _ = doctor(capsys)
    assert status == 1 and "pip" in found["plugin"]["remedy"]


def test_the_sandboxs_missing_layers_are_named(monkeypatch, caplog):
    """Guards: a sandbox without walls called whole; what it said once said no more."""
    run = runner.run_programs
    monkeypatch.setattr(runner, "run_programs", lambda *args, **options: run(*args, **options, layers=()))
    for _ in range(2):
        finding = checks._sandbox(setting())
        assert finding.verdict == "works" and "the network can be reached" in finding.why
    assert not caplog.records
    runner.require_sandbox.cache_clear()


def setting(**changes) -> checks.Setting:
    return checks.Setting(
        **{"device": torch.device("cpu"), "model": None, "dtype": "auto", "max_new_tokens": 9} | changes
    )


@pytest.mark.parametrize(
    ("flags", "units"),
    [("fma avx2", None), ("avx512_bf16 amx_tile amx_bf16", "AMX and AVX512-BF16"), ("avx512f", None)],
)
def test_which_cpus_emulate_bfloat16(monkeypatch, flags, units):
    """Guards: AVX512 taken for AVX512-BF16; float32 advised where bfloat16 is several times faster."""
    monkeypatch.setattr(cpu, "cpuinfo", lambda: ["model name : X", f"flags\t\t: fpu {flags}"])
    monkeypatch.setattr(
        checks, "_seconds", lambda dtype, device: 3.0 if (dtype == torch.float32) == bool(units) else 1.0
    )
    finding = checks._bfloat16(setting())
    if units:
        assert units in finding.why and "not emulated" in finding.why and finding.remedy == "dtype=bfloat16"
    else:
        assert "3.0 times slower" in finding.why and "emulates" in finding.why and "float32" in finding.remedy


def test_threads_and_a_busy_neighbour(monkeypatch):
    """Guards: a machine ten times as slow as it could be, and nobody who says why."""
    monkeypatch.setattr(machine, "cores", lambda: 4)
    for threads, load, verdict, remedy in (
        (4, 0.1, "works", ""),
        (8, 0.1, "fails", "OMP_NUM_THREADS=4"),
        (4, 3.0, "works", "OMP_NUM_THREADS=1, or run alone"),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0), raising=False)
        finding = checks._threads(setting())
        assert (finding.verdict, finding.remedy) == (verdict, remedy)


def test_a_kernel_that_computes_something_else_is_found(monkeypatch):
    """Guards: a trial of the kernel that cannot fail. What stands in for it on a CPU is `plain_attention`."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    pretended = type("Device", (), {"type": "cuda"})()
    monkeypatch.setattr(checks, "check_kernel", lambda devices: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *place: self)
    assert checks._kernel(setting(device=pretended)).verdict == "works"
    monkeypatch.setattr(attention, "plain_attention", lambda query, *rest: torch.zeros_like(query.transpose(1, 2)))
    with pytest.raises(ValueError, match="differs from a full forward pass"):
        checks._kernel(setting(device=pretended))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cuda:99"], "--device cuda:99: torch"),
        (["--device", "toaster"], "--device toaster: must be a device of torch's"),
        (["--dtype", "int4"], "--dtype int4: must be auto, float32"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: must be >= 1"),
        (["--require", "model"], "add --model ID"),
    ],
)
def test_wrong_options(capsys, options, says):
    """Guards: a traceback, or a trial of something else."""
    assert cli.main(["doctor", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_does_not_load_is_a_failure(capsys, quick, tmp_path):
    """Guards: status 0, or a traceback, where the model that was named cannot be had."""
    status, found, missed = doctor(capsys, "--model", str(tmp_path))
    assert (status, missed) == (1, ["model"]) and found["model"]["why"]


def test_the_table_wraps():
    assert table([("engine", "works", "a b", ""), ("hub", "fails", "c " * 50, "d")], width=60).splitlines() == [
        "engine    works     a b",
        f"hub       fails     {'c ' * 30}".rstrip(),
        f"{'':19} {'c ' * 20}".rstrip(),
        f"{'':19} → d",
    ]
