"""Compiles the GPU kernels for an architecture, given as 80 or 90 on the command line, on a machine without one.

Prints what each needs; fails if one does not compile, spills registers or needs more than a GPU has. In a process of
its own, as the interpreter must not be chosen.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lm_power.engine.attention_kernel import COMBINED, SPLIT, attend_kernel, combine_kernel, tiling

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_MEMORY = 99 << 10  # bytes a block may have on the smallest GPUs of capability 8 and 9
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# query heads a key/value head, key_dim, value_dim, dtype
MODELS = {
    "Qwen2.5-7B": (7, 128, 128, torch.bfloat16),
    "Qwen2.5-7B in float32": (7, 128, 128, torch.float32),
    "Gemma 2 9B": (2, 256, 256, torch.bfloat16),
    "DeepSeek-V2-Lite": (1, 192, 128, torch.float16),
}


def compiled(kernel: triton.JITFunction, constants: dict, dtype: torch.dtype, architecture: int, **options: int):
    """The kernel as `decode_attention` has it compiled: tensors and strides are multiples of 16."""
    names = [parameter.name for parameter in kernel.params]
    given = {"query": NAMES[dtype], "key": NAMES[dtype], "value": NAMES[dtype], "output": NAMES[dtype], "spans": "i32"}
    given |= {"partial": "fp32", "state": "fp32", "sinks": NAMES[dtype]}
    numbers = {"scaling": "fp32", "softcap": "fp32"}
    signature = {
        name: "constexpr" if name in constants else f"*{given[name]}" if name in given else numbers.get(name, "i32")
        for name in names
    }
    aligned = [name for name in names if name in given or name.endswith(("_row", "_head", "_slot"))]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def check(what: str, kernel: triton.compiler.CompiledKernel) -> None:
    """Print registers, bytes on the stack (spilled) and shared memory; fail on spills, and on more memory than there is."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
    needs = dict(re.findall(r"(REG|STACK):(\d+)", usage.stdout))
    print(f"{what}: {needs['REG']} registers, {kernel.metadata.shared} bytes shared, {needs['STACK']} on the stack")
    assert int(needs["STACK"]) == 0, "registers spill"
    assert kernel.metadata.shared <= SHARED_MEMORY, "more shared memory than a block may have"


def main(architecture: int) -> None:
    """Both kernels, for a few models, with and without what some models have."""
    for name, (group, key_dim, value_dim, dtype) in MODELS.items():
        sizes = tiling(group, key_dim, value_dim, dtype)
        options = {option: sizes.pop(option) for option in ("num_warps", "num_stages")}
        constants = {**sizes, "SOFTCAP": name.startswith("Gemma")}
        kernel = compiled(attend_kernel, constants, dtype, architecture, **options)
        assert "cp.async.cg.shared.global" in kernel.asm["ptx"], (
            "keys and values must be loaded 16 bytes at a time, ahead"
        )
        check(f"sm_{architecture}, {name}", kernel)
    for sinks in (False, True):
        constants = {"SINKS": sinks, "VALUE_DIM": 128, "VALUE_TILE": 128, "COMBINED": COMBINED, "SPLIT": SPLIT}
        # One split: Triton compiles a kernel of its own for an argument that is 1.
        kernel = compiled(
            combine_kernel, {**constants, **({"splits": 1} if sinks else {})}, torch.bfloat16, architecture
        )
        check(f"sm_{architecture}, combining{' with sinks' * sinks}", kernel)


if __name__ == "__main__":
    main(int(sys.argv[1]))
