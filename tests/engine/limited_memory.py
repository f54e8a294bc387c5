"""Runs in a process of its own, for tests of memory: what a run takes, and what becomes of it where there is less.

Prints one JSON object. Linux only: it reads and resets the process's figures in /proc.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as tf

import lm_power.engine.memory
from lm_power import PowerSampler
from lm_power.config import SamplerConfig

MIB = 2**20


def in_use(name: str) -> int:
    """Bytes of VmSize (addresses taken), VmRSS (resident) or VmHWM (resident at most)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def make_sampler(
    attention: str, dtype: torch.dtype, layers: int, heads: int, shared_by: int, dim: int, device: str = "cpu"
) -> PowerSampler:
    """A small model with a large cache, that seldom ends a completion; it has run once, and loaded what it needs."""
    torch.manual_seed(0)
    config = tf.Qwen2Config(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads * shared_by,
        num_key_value_heads=heads,
        head_dim=dim,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(device, dtype).eval()
    sampler = PowerSampler(model, None, max_rows=1)
    sampler.generate([[5] * 8], method="power", block_size=4, mcmc_steps=1, max_new_tokens=8)
    return sampler


def release() -> None:
    """Hand all free memory back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def run_out_of_memory(mebibytes: int) -> dict[str, Any]:
    """The same run without and with a limit, of so many MiB beyond what is in use; eight rows' cache takes 162."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lm_power").addHandler(handler)
    sampler = make_sampler("eager", torch.float64, layers=8, heads=8, shared_by=1, dim=256)
    sampler.max_rows = 8
    options = {"alpha": 2.0, "block_size": 40, "mcmc_steps": 2, "max_new_tokens": 40, "prefetch": False}
    prompts = [[7] * 40, [5, 9, 2]]
    runs = [sampler.generate(prompts, n=4, **options)]
    release()
    resource.setrlimit(resource.RLIMIT_AS, (in_use("VmSize") + mebibytes * MIB, resource.RLIM_INFINITY))
    runs.append(sampler.generate(prompts, n=4, **options))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    drawn = [[completion for completions in out for completion in completions] for out in runs]
    return {
        "warnings": warnings,
        "tokens": [[completion.token_ids for completion in out] for out in drawn],
        "dropped": [sum(completion.stats.tokens_dropped for completion in out) for out in drawn],
    }


def peak(method: str, attention: str, shared_by: int, mebibytes: int) -> dict[str, Any]:
    """Bytes that a run of as many rows as fit into so many MiB has at most, beyond those before it."""
    sampler = make_sampler(attention, torch.float32, layers=4, heads=8 // shared_by, shared_by=shared_by, dim=512)
    lm_power.engine.memory.usable_memory = lambda _: mebibytes * MIB
    sampler.max_rows = "auto"
    options = {"method": method, "alpha": 2.0, "block_size": 60, "mcmc_steps": 2, "max_new_tokens": 60}
    rows = sampler.rows_for(1000, 68, SamplerConfig().replace(**options))
    release()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = in_use("VmRSS")
    sampler.generate([[5] * 8], n=rows, **options)
    return {"rows": rows, "share": (in_use("VmHWM") - before) / (mebibytes * MIB)}


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    function = {"run_out_of_memory": run_out_of_memory, "peak": peak}[what]
    print(json.dumps(function(*(int(value) if value.isdigit() else value for value in arguments))))
