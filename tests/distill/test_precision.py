"""`precision=auto`: bfloat16 where the hardware computes in it, and a run that goes on in the precision it began in."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from distill_runs import run
from safetensors.torch import load_file

from lm_power import cpu
from lm_power.config import OptionError
from lm_power.distill import precision as module
from lm_power.distill.options import DistillConfig
from lm_power.distill.precision import choose_precision


def chosen(**options) -> tuple[str, str]:
    found = choose_precision(DistillConfig(model="m", data=("store",), output="out", **options))
    return found.name, found.reason


def pretend_cpu(monkeypatch, flags: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(cpu, "cpuinfo", lambda: [f"flags\t\t: fpu {flags}"])


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [
        ("avx512f avx512_bf16", "bf16", "auto: this CPU has AVX512-BF16"),
        ("amx_tile amx_bf16", "bf16", "auto: this CPU has AMX"),
        ("avx2 avx512f", "fp32", "auto: this CPU has no units for bfloat16"),
    ],
)
def test_auto_on_a_cpu(monkeypatch, flags: str, name: str, reason: str) -> None:
    pretend_cpu(monkeypatch, flags)
    assert chosen() == (name, reason)
    for asked in ("bf16", "fp32"):
        assert chosen(precision=asked) == (asked, "as asked for")


@pytest.mark.parametrize("capable", [True, False])
def test_auto_on_a_gpu(monkeypatch, capable: bool) -> None:
    """The GPU decides, not the CPU beside it; unless the run is told to stay on the CPU."""
    pretend_cpu(monkeypatch, "" if capable else "amx_bf16")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(module, "is_torch_bf16_gpu_available", lambda: capable)
    assert chosen()[0] == ("bf16" if capable else "fp32")
    assert chosen(trainer={"use_cpu": True})[0] == ("fp32" if capable else "bf16")


def test_a_run_trains_in_the_precision_that_it_says(tiny: str, store: str, tmp_path, monkeypatch, capsys) -> None:
    """Notice, record and card name it, the adapter is float32, and the run goes on in it or not at all."""
    pretend_cpu(monkeypatch, "amx_bf16")
    out = tmp_path / "out"
    record = run(tiny, store, out, epochs=1, precision="auto")
    says = "bf16 (auto: this CPU has AMX); the base's weights in bfloat16, the adapter's in float32"
    assert says in capsys.readouterr().out and says in (out / "README.md").read_text()
    assert record["model"]["precision"] == "bf16" and record["model"]["dtype"] == "bfloat16"
    assert {weight.dtype for weight in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}

    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "distill.json").write_text(json.dumps({**record, "results": None}))
    (unfinished / "distill.yaml").write_text(yaml.safe_dump(record["options"]))
    pretend_cpu(monkeypatch, "avx2")
    with pytest.raises(OptionError, match=r"precision=auto: is fp32 here .* resume with precision=bf16"):
        run(tiny, store, unfinished, epochs=1, resume=True, precision="auto")
    run(tiny, store, unfinished, epochs=1, resume=True, precision="bf16")
    assert (unfinished / "adapter_model.safetensors").read_bytes() == (out / "adapter_model.safetensors").read_bytes()
