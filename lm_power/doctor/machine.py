"""What machine this is, and which packages it has: facts, which cannot fail."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from lm_power import cpu


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
    named = [line.partition(":")[2].strip() for line in cpu.cpuinfo() if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
