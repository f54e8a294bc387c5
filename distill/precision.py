"""The precision in which a student is trained: what the user asked for, or what is fast on this hardware."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

import torch
from transformers.utils import is_torch_bf16_gpu_available

from lm_power import cpu
from lm_power.distill.options import DistillConfig


@dataclasses.dataclass(frozen=True)
class Precision:
    """The precision of a run.

    Attributes:
        name: "bf16": the base's weights and all products are in bfloat16, while the weights that are trained stay in
            float32. "fp32": everything is in float32.
        reason: why, for the user.
        on_cpu: whether the run is on the CPU.
    """

    name: Literal["bf16", "fp32"]
    reason: str
    on_cpu: bool

    @property
    def is_bf16(self) -> bool:
        """Whether products are in bfloat16."""
        return self.name == "bf16"


def choose_precision(config: DistillConfig) -> Precision:
    """The precision that the options ask for; with `precision=auto`, bfloat16 if the hardware computes in it."""
    on_cpu = config.trainer.get("use_cpu", _on_cpu())
    if config.precision != "auto":
        return Precision(config.precision, "as asked for", on_cpu)
    if on_cpu:
        units = cpu.bfloat16_units()
        if units is None:
            return Precision("fp32", "auto: this CPU has no units for bfloat16", on_cpu)
        return Precision("bf16", f"auto: this CPU has {units}", on_cpu)
    if is_torch_bf16_gpu_available():
        return Precision("bf16", "auto: this GPU computes in it", on_cpu)
    return Precision("fp32", "auto: this GPU does not compute in bfloat16", on_cpu)


def _on_cpu() -> bool:
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()
