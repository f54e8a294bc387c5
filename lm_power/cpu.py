"""What Linux says about the CPU."""

from __future__ import annotations

from pathlib import Path


def bfloat16_units() -> str | None:
    """The CPU's units for products in bfloat16; None if Linux lists none.

    A CPU without them emulates bfloat16, and is faster in float32.
    """
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "BF16 (Arm)"}
    lists = [line for line in cpuinfo() if line.partition(":")[0].strip() in ("flags", "Features")]
    flags = set(lists[0].partition(":")[2].split()) if lists else set()
    found = [name for flag, name in known.items() if flag in flags]
    return " and ".join(found) or None


def cpuinfo() -> list[str]:
    """The lines of Linux's description of the CPU; none on other systems."""
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
