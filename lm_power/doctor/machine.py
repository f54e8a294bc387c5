"""What machine this is, and which packages it has: facts, which cannot fail."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def describe(device: torch.device) -> dict[str, str]:
    """System, processor, the device that is examined, and the versions of the packages that matter."""
    names = ("lm-power", "torch", "transformers", "lm-eval", "peft", "accelerate", "triton", "aiohttp", "vllm")
    return {
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "processor": f"{processor()}, {cores()} cores for this process",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "packages": ", ".join(f"{name} {found}" for name in names if (found := version(name))),
    }


def processor() -> str:
    """The CPU's name."""
    named = [line.partition(":")[2].strip() for line in cpuinfo() if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bfloat16_units() -> str | None:
    """The CPU's units for products in bfloat16, as Linux lists them; None where it lists none."""
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "BF16 (Arm)"}
    lists = [line for line in cpuinfo() if line.partition(":")[0].strip() in ("flags", "Features")]
    flags = set(lists[0].partition(":")[2].split()) if lists else set()
    found = [name for flag, name in known.items() if flag in flags]
    return " and ".join(found) or None


def cpuinfo() -> list[str]:
    """The lines of Linux's description of the CPU; none on other systems."""
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
