"""How many rows are chosen, what they take in truth, and what becomes of a run that memory does not suffice for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.limited_memory import make_sampler
from methods import suited
from models import make_model

import lm_power.engine.memory
from lm_power.config import SamplerConfig
from lm_power.engine import HFBackend
from lm_power.engine.memory import free_memory, needed, rows_that_fit, saved_share, total_memory, usable_memory

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def backend() -> HFBackend:
    """3 layers of 2 heads of 8 numbers, float32."""
    return HFBackend(make_model("qwen2"))


def test_as_many_rows_as_fit(backend, monkeypatch):
    """Guards: `batch_size=auto` that forgets what proposals save, ignores the memory, or ends in zero rows."""
    assert rows_that_fit(backend, 1000, rewound=900) == 64, "a tiny model: what a CPU can use"
    row = 3 * 2 * (8 + 8) * 4 * 1001  # layers · heads · (key + value) · bytes · (positions and trash)
    need = needed(backend, CPU, 1000, 900)
    assert need.row > row and need.saved == pytest.approx(0.9 * row, rel=0.01)
    monkeypatch.setattr(lm_power.engine.memory, "usable_memory", lambda _: need.fixed + 20 * row)
    plain, rewinding = (rows_that_fit(backend, 1000, rewound) for rewound in (0, 900))
    assert 8 <= rewinding < plain <= 20
    assert need.of(rewinding) <= need.fixed + 20 * row < need.of(rewinding + 1)
    with pytest.raises(MemoryError, match="max_gen_toks"):
        rows_that_fit(backend, 10**6, rewound=900)


def test_what_is_left_of_a_device_ends_at_92_percent(monkeypatch):
    """Guards: a share of what is free, which leaves next to nothing where little is free, and too much elsewhere."""
    assert 2**20 < free_memory(CPU) <= total_memory(CPU)
    monkeypatch.setattr(lm_power.engine.memory, "total_memory", lambda _: 100)
    for free, usable in [(100, 92), (60, 52), (5, -3)]:
        monkeypatch.setattr(lm_power.engine.memory, "free_memory", lambda _, free=free: free)
        assert usable_memory(CPU) == usable


@pytest.mark.parametrize("rows", [1, 8, 64, 256])
def test_the_share_of_saved_completions_is_seldom_passed(rows):
    """Guards: the mean over proposals (1/2) in place of that over moments: long proposals are under way for longer.

    Shares uniform in (0, 1), each for as long as it is large, one after another in each row. At one moment in 30,000 a
    normal variate is four standard deviations out; the sum of a few shares has lighter tails still. Of 20,000 moments
    none may be out (false alarm: below 1 in 2; 3 allowed: 1 in 500).
    """
    generator = np.random.default_rng(0)
    shares = generator.random((rows, 4000)).clip(1e-3)
    ends = shares.cumsum(axis=1)
    moments = generator.uniform(100, ends[:, -1].min(), 20_000)
    saved = sum(shares[row, np.searchsorted(ends[row], moments)] for row in range(rows)) / rows
    assert saved.mean() == pytest.approx(2 / 3, abs=0.05)
    assert (saved > saved_share(rows)).sum() <= 3
    assert saved_share(rows) <= 1


def in_a_process(*arguments: object) -> dict[str, Any]:
    """What `limited_memory.py` prints; its allocator hands large blocks back at once, so that figures can be told."""
    script = Path(__file__).with_name("limited_memory.py")
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@linux
def test_a_process_that_runs_out_of_memory_draws_the_same_completions():
    """A real limit: room for eight rows' caches, and not for what their proposals save beside them.

    Guards: an allocator's error that is not recognised; memory of the old engine that is not given back.
    """
    seen = in_a_process("run_out_of_memory", 192)
    assert seen["warnings"] and "out of memory with 8 rows" in seen["warnings"][0]
    free, limited = seen["tokens"]
    assert limited == free
    assert max(map(len, free)) == 40
    assert seen["dropped"][0] == 0 < seen["dropped"][1], "it was under way"


@linux
@pytest.mark.parametrize(
    ("method", "attention", "shared_by"),
    [
        ("power", "sdpa", 1),
        pytest.param("standard", "sdpa", 4, marks=pytest.mark.slow),
        pytest.param("power", "eager", 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_takes_what_was_planned(method, attention, shared_by):
    """Guards: a plan that forgets something, or that leaves half of the memory idle."""
    budget = 100  # MiB
    seen = in_a_process("peak", method, attention, shared_by, budget)
    assert seen["rows"] >= 4
    assert 0.6 < seen["share"] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["standard", "power"])
def test_a_run_on_a_gpu_takes_what_was_planned(method, monkeypatch):
    """The same by the allocator's figures: what it holds stays within the budget, what is in use fills most of it."""
    sampler = make_sampler("sdpa", torch.bfloat16, layers=8, heads=8, shared_by=4, dim=128, device="cuda")
    budget = 8 * 2**30
    monkeypatch.setattr(lm_power.engine.memory, "usable_memory", lambda _: budget)
    sampler.max_rows = "auto"
    options = suited(method, {"alpha": 2.0, "block_size": 256, "mcmc_steps": 2, "max_new_tokens": 500})
    rows = sampler.rows_for(1000, 508, SamplerConfig().replace(**options))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sampler.generate([[5] * 8], n=rows, **options)
    assert torch.cuda.max_memory_reserved() - before <= budget
    assert torch.cuda.max_memory_allocated() - before >= 0.6 * budget


@pytest.mark.gpu
def test_a_gpu_that_runs_out_of_memory_draws_the_same_completions(caplog):
    """As for a process, with a limit on what torch's allocator may take, met at the engine, a step or its recording."""
    sampler = make_sampler("sdpa", torch.float64, layers=8, heads=8, shared_by=1, dim=128, device="cuda")
    sampler.max_rows = 64
    options = {"alpha": 2.0, "block_size": 100, "mcmc_steps": 2, "max_new_tokens": 300}

    def drawn() -> list[tuple[int, ...]]:
        return [completion.token_ids for completion in sampler.generate([[5] * 8], n=80, **options)[0]]

    free = drawn()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    half = needed(sampler.host.backend, sampler.host.backend.input_device, 308, 300).row * 40  # rows' caches, of 64
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + half) / total)
    try:
        assert drawn() == free
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 64 rows" in caplog.text
