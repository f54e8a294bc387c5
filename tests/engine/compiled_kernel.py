"""Compiles the GPU kernels for an architecture, given as 80 or 90 on the command line, on a machine without one.

`decode_attention` runs with a driver that knows the architecture and nothing else: what it would launch is compiled,
with the types, strides and alignments it would launch it with. Prints what each kernel needs; fails if one does
not compile, spills registers or needs more than a GPU has. In a process of its own: the driver is Triton's for good.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from lm_power.engine.attention_kernel import decode_attention

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_MEMORY = 99 << 10  # bytes a block may have on the smallest GPUs of capability 8 and 9
# heads, kv_heads, key_dim, value_dim, slots, dtype, softcap, sinks
MODELS = {
    "Qwen2.5-7B": (28, 4, 128, 128, 3712, torch.bfloat16, None, False),
    "Qwen2.5-7B in float32": (28, 4, 128, 128, 3712, torch.float32, None, False),
    "Gemma 2 9B": (16, 8, 256, 256, 512, torch.bfloat16, 50.0, False),
    "GPT-OSS 20B": (64, 8, 64, 64, 8192, torch.bfloat16, None, True),
    "DeepSeek-V2-Lite": (16, 16, 192, 128, 3712, torch.float16, None, False),
}


class Driver:
    """What Triton asks of a GPU before it launches anything."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(architecture: int) -> None:
    """The launches of a few models."""
    driver.set_active(Driver(architecture))
    run, launches = jit.JITFunction.run, []

    def compile_only(self: jit.JITFunction, *arguments: Any, warmup: bool, **options: Any) -> Any:
        launches.append((self, run(self, *arguments, warmup=True, **options)))

    jit.JITFunction.run = compile_only
    for name, (heads, kv_heads, key_dim, value_dim, slots, dtype, softcap, with_sinks) in MODELS.items():
        query = torch.empty((2, 1, heads, key_dim), dtype=dtype).transpose(1, 2)
        key, value = (
            torch.empty((2, kv_heads, slots + 1, dim), dtype=dtype)[:, :, :slots] for dim in (key_dim, value_dim)
        )
        spans = torch.zeros((2, 1, 1, 2), dtype=torch.int32)
        launches.clear()
        decode_attention(
            query, key, value, spans, 0.1, softcap, torch.empty(heads, dtype=dtype) if with_sinks else None
        )
        for kernel, compiled in launches:
            what = f"sm_{architecture}, {name}, {kernel.__name__}"
            registers, stack = usage(compiled)
            print(f"{what}: {registers} registers, {compiled.metadata.shared} bytes of shared memory")
            assert stack == 0, f"{what}: {stack} bytes of registers spill"
            assert compiled.metadata.shared <= SHARED_MEMORY, f"{what}: more shared memory than a block may have"
        ptx = launches[0][1].asm["ptx"]
        assert "cp.async.cg.shared.global" in ptx, f"{name}: keys and values are not loaded ahead, 16 bytes at a time"
        assert ("mma.sync" in ptx) is (dtype != torch.float32), f"{name}: tensor cores, but for exact float32"


def usage(kernel: triton.compiler.CompiledKernel) -> tuple[int, int]:
    """Registers a thread, and bytes on its stack: what spills goes there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", printed).groups()
    return int(registers), int(stack)


if __name__ == "__main__":
    main(int(sys.argv[1]))
