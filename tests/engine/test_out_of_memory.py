"""Out of memory while running: half the rows, the same completions, nothing lost and nothing drawn twice."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import suited
from models import make_model

import lm_power.host
from lm_power import Completion, PowerSampler
from lm_power.config import SamplerConfig
from lm_power.engine import Engine
from lm_power.engine.kv_cache import RowCache
from lm_power.engine.out_of_memory import out_of_memory, retry_with_fewer_rows
from lm_power.progress import Progress
from lm_power.scheduler import Job

PROMPTS = [[5], [9, 8, 7], [1, 2, 3, 4] * 6, [9, 8, 6]]
OPTIONS = {"alpha": 2.0, "block_size": 5, "mcmc_steps": 3, "max_new_tokens": 15, "seed": 3}
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."
CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@dataclasses.dataclass
class Failures:
    """When engines run out of memory, and what has been made of them.

    Attributes:
        at: of a method's calls, over all engines, those that fail; 1 is the first.
        ahead: steps that the engines launch before they read a result.
        error: raised then.
        calls: of each method so far.
        caches: of the engines made.
        rows: of the engines made.
    """

    at: dict[str, set[int]]
    ahead: int = 0
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError(CUDA)
    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    caches: list[weakref.ref[RowCache]] = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)

    def call(self, method: str) -> None:
        self.calls[method] += 1
        if self.calls[method] in self.at.get(method, ()):
            raise self.error()


def failing(failures: Failures) -> type[Engine]:
    """Engines that fail at the given calls; each finds its forerunners gone."""

    class Failing(Engine):
        def __init__(self, backend: Any, rows: int, *args: Any, **options: Any) -> None:
            assert all(cache() is None for cache in failures.caches), "the old engine still holds its memory"
            failures.rows.append(rows)
            super().__init__(backend, rows, *args, **options, ahead=failures.ahead)
            failures.caches.append(weakref.ref(self._cache))
            self.copied = False
            failures.call("__init__")

        def load(self, *args: Any) -> None:
            failures.call("load")
            super().load(*args)

        def copy(self, *args: Any) -> None:
            super().copy(*args)
            self.copied = True
            failures.call("copy")

        def submit(self, *args: Any) -> None:
            failures.call("submit")
            super().submit(*args)

        def commit(self, row: int) -> None:
            failures.call("settle")
            super().commit(row)

        def rollback(self, row: int) -> int:
            failures.call("settle")
            return super().rollback(row)

        def step(self) -> Any:
            failures.call("step")
            if self.copied:
                failures.call("step with a prefetch")
            return super().step()

    return Failing


@pytest.fixture(scope="module")
def sampler() -> PowerSampler:
    """In float64: another batch shape changes no draw. Some completions end by EOS, some at the limit."""
    return PowerSampler(make_model("qwen2", dtype=torch.float64), None, max_rows=7, eos_token_ids=range(4))


@pytest.fixture(autouse=True)
def _afresh(sampler: PowerSampler) -> None:
    sampler._fitted = None


@pytest.fixture(scope="module")
def expected(sampler: PowerSampler) -> dict[str, list[Completion]]:
    """By method: what is drawn when memory does not run out."""
    return {method: drawn(sampler, method=method) for method in ("power", "standard")}


def drawn(sampler: PowerSampler, **options: Any) -> list[Completion]:
    out = sampler.generate(PROMPTS, n=2, **suited(options.pop("method", "power"), OPTIONS | options))
    return [completion for completions in out for completion in completions]


MOMENTS = {
    "at the first engine": {"__init__": {1}},
    "at the first engine and a step": {"__init__": {1}, "step": {5}},
    "at two engines": {"__init__": {1, 2}},
    "while the first rows are loaded": {"load": {4}},
    "while chains are put back": {"step": {10}, "load": {9, 12}},
    "at a first request": {"submit": {1}},
    "at requests": {"submit": {17, 40}},
    "at the first step": {"step": {1}},
    "at steps": {"step": {20, 41}},
    "at the copy for a prefetch": {"copy": {1, 2}},
    "with prefetches in flight": {"step with a prefetch": {1, 4}},
    "at a verdict": {"settle": {5, 30}},
    "everywhere": {"__init__": {2}, "load": {5}, "submit": {40}},
}


@pytest.mark.parametrize(
    ("moment", "method", "ahead"),
    [
        *((moment, "power", 0) for moment in MOMENTS),
        ("at the first engine and a step", "standard", 0),
        ("at steps", "power", 1),
        ("with prefetches in flight", "power", 1),
        ("while chains are put back", "power", 1),
    ],
)
def test_the_same_completions_whenever_memory_runs_out(sampler, expected, monkeypatch, caplog, moment, method, ahead):
    """Guards: a chain that is lost, drawn twice, or resumed from anything but what it had settled.

    And: tokens given up that nobody counts; an old engine that is still there when the new one is made.
    """
    failures = Failures(MOMENTS[moment], ahead)
    monkeypatch.setattr(lm_power.host, "Engine", failing(failures))
    before = sampler.counters.decoded
    with caplog.at_level(logging.WARNING):
        got = drawn(sampler, method=method)
    times = sum(count <= failures.calls[name] for name, counts in failures.at.items() for count in counts)
    assert times == sum(map(len, failures.at.values())), "a failure that was not reached tests nothing"
    assert failures.rows == [7, 4, 2, 1][: times + 1]
    assert len(caplog.records) == times
    assert [c.token_ids for c in got] == [c.token_ids for c in expected[method]]
    assert [c.steps for c in got] == [c.steps for c in expected[method]]
    for ours, theirs in zip(got, expected[method], strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
        assert ours.stats.tokens_decoded == theirs.stats.tokens_decoded
        assert ours.stats.proposals == theirs.stats.proposals
    assert sampler.counters.decoded - before == sum(c.stats.tokens_decoded + c.stats.tokens_dropped for c in got)


def test_each_job_is_handed_out_once_and_the_bar_goes_on(sampler, monkeypatch):
    """Guards: a completion that is yielded again by the second engine; a bar that starts anew."""
    failures = Failures({"step": {25, 50}})
    monkeypatch.setattr(lm_power.host, "Engine", failing(failures))
    jobs = [Job(tuple(prompt), repeat) for prompt in PROMPTS for repeat in range(4)]
    progress = Progress(len(jobs))
    seen, done = [], []
    for index, _ in sampler.sample(jobs, SamplerConfig().replace(**OPTIONS), progress=progress):
        seen.append(index)
        done.append(progress.done)
    assert failures.rows == [7, 4, 2]
    assert sorted(seen) == list(range(16)) and done == list(range(1, 17))


def test_the_warning_says_how_many_rows_and_how_to_avoid_it(sampler, monkeypatch, caplog):
    """Guards: a run at half its speed that does not say why. Later calls begin with what was left."""
    failures = Failures({"step": {9}}, error=lambda: RuntimeError(CPU))
    monkeypatch.setattr(lm_power.host, "Engine", failing(failures))
    drawn(sampler)
    (record,) = caplog.records
    for part in ("7 rows", CPU, "going on with 4", "start with batch_size (max_rows) 4", "max_gen_toks"):
        assert part in record.getMessage()
    drawn(sampler)
    drawn(sampler, max_new_tokens=3, block_size=3)
    assert failures.rows == [7, 4, 4, 5], "as many positions, prompts and completions together, as were left"


def test_one_row_that_fails_is_the_end(sampler, monkeypatch):
    """Guards: a loop for ever; an error that leaves the user without a way out, or hides its cause."""
    failures = Failures({"step": set(range(1, 99))})
    monkeypatch.setattr(lm_power.host, "Engine", failing(failures))
    ways = r"single row \(CUDA out of memory.*max_gen_toks.*max_length.*dtype.*parallelize"
    with pytest.raises(MemoryError, match=ways) as caught:
        drawn(sampler)
    assert failures.rows == [7, 4, 2, 1]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_are_not_taken_for_it(sampler, monkeypatch):
    """Guards: a bug that is answered by trying again, five times."""
    failures = Failures({"step": {3}}, error=lambda: RuntimeError("expected all tensors on the same device"))
    monkeypatch.setattr(lm_power.host, "Engine", failing(failures))
    with pytest.raises(RuntimeError, match="same device"):
        drawn(sampler)
    assert failures.rows == [7]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA),
        RuntimeError(CPU),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        MemoryError("Unable to allocate 3 GiB for an array"),
    ],
)
def test_what_is_out_of_memory(error):
    """Guards: an allocator whose words are not known; one hidden by the error it led to."""
    assert out_of_memory(error) is error
    hidden = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    hidden.__context__ = error
    assert out_of_memory(hidden) is error
    unrelated = FloatingPointError("not finite")
    unrelated.__context__ = error
    assert out_of_memory(unrelated) is None


def test_half_is_rounded_up():
    """Guards: 3 rows made 1 where 2 may fit."""
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > 1:
            raise MemoryError
        yield rows

    assert list(retry_with_fewer_rows(attempt, 7)) == [1]
    assert tried == [7, 4, 2, 1]
