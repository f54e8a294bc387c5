"""The decode step can be recorded and replayed, asks the device for nothing, and may be read late."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch
from methods import suited
from models import CONFIGS, EOS, VOCABULARY, make_model, student_of
from tiny_tokenizers import words
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import lm_power.host
from lm_power import PowerSampler
from lm_power.completion import Completion
from lm_power.decoding import Request
from lm_power.engine import Engine, HFBackend, StopStrings, decode_step
from lm_power.engine.decode_step import DecodeStep
from lm_power.engine.kv_cache import RowCache
from lm_power.target import draw_next_at_once

PROMPTS = [[5], [9, 8, 7], [1, 2, 3, 4] * 6, [9, 8, 6]]
OPTIONS = {"alpha": 2.0, "block_size": 7, "mcmc_steps": 4, "max_new_tokens": 28, "seed": 5}
ASKING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Graph:
    """`torch.cuda.CUDAGraph` on a CPU: a list of tensor operations, repeated without the Python around them.

    Tensors made while recording are made anew at each replay; all others are the very ones of the recording.
    """

    replays = 0

    def __init__(self) -> None:
        self.operations: list[tuple] = []

    def pool(self) -> None:
        """Of memory: there is none to share."""

    def replay(self) -> None:
        made: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for function, args, options, before in self.operations:
                args, options = tree_map_only(torch.Tensor, lambda t: made.get(id(t), t), (args, options))  # noqa: B023
                after = function(*args, **options)
                pairs = zip(before, after, strict=True) if isinstance(before, (tuple, list)) else [(before, after)]
                made |= {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}
        Graph.replays += 1


class Capture(TorchDispatchMode):
    """`torch.cuda.graph` on a CPU: what runs inside is recorded, and leaves nothing behind."""

    step: DecodeStep  # the one that is recorded

    def __init__(self, graph: Graph, pool: None, capture_error_mode: str) -> None:
        super().__init__()
        self.graph = graph

    def __enter__(self):
        written = (self.step._table, self.step._result, *self.step.cache._storage)
        self.before = [(tensor, tensor.clone()) for tensor in written]
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, value in self.before:
            tensor.copy_(value)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in ASKING:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.graph.operations.append((function, args, kwargs or {}, result))
        return result


@pytest.fixture
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps are recorded and replayed as on a GPU, but for the compiler."""
    make = DecodeStep.__init__

    def remembered(self, *args):
        make(self, *args)
        Capture.step = self

    monkeypatch.setattr(DecodeStep, "__init__", remembered)
    monkeypatch.setattr(HFBackend, "_can_be_recorded", lambda _: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(Graph, "replays", 0)


def draw(
    model: torch.nn.Module,
    stop: tuple[str, ...] = (),
    proposer: torch.nn.Module | None = None,
    **options: object,
) -> list[Completion]:
    """Three completions per prompt, from five rows."""
    sampler = PowerSampler(model, words(), max_rows=5, eos_token_ids=(EOS, 7), proposer=proposer)
    options = suited(str(options.pop("method", "power")), OPTIONS | options)
    return [c for cs in sampler.generate(PROMPTS, n=3, stop=stop, **options) for c in cs]


def same(left: list[Completion], right: list[Completion]) -> bool:
    """Whether two lists hold the same tokens, ended for the same reasons after the same steps."""
    return [(c.token_ids, c.finish_reason, c.steps) for c in left] == [
        (c.token_ids, c.finish_reason, c.steps) for c in right
    ]


@pytest.mark.parametrize("method", ["power", "power_inf", "standard"])
@pytest.mark.parametrize("ahead", [1, 2])
def test_results_that_are_read_late_change_no_completion(monkeypatch, method, ahead):
    """Guards: a row that runs on past its end, a late result taken for the next request's, a lost resumption.

    In float64, since a step more in flight may show the attention a longer bucket.
    """
    model = make_model("qwen2-sliding", dtype=torch.float64)
    at_once = draw(model, ("w9 w", "w33"), method=method)
    monkeypatch.setattr(lm_power.host, "Engine", functools.partial(Engine, ahead=ahead))
    late = draw(model, ("w9 w", "w33"), method=method)
    assert {c.finish_reason for c in late} >= {"eos", "stop"}
    assert same(late, at_once)


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_step_in_flight_sees_its_own_key(monkeypatch, ahead):
    """Guards: so many slots shown as the tokens that have been read need, and not those still in flight."""
    monkeypatch.setattr(Engine, "BUCKET", 4)
    backend = HFBackend(make_model("qwen2", dtype=torch.float64))
    request = Request(0, 20, 1.0, np.random.default_rng(1).random(20))
    drawn = []
    for steps in (0, ahead):
        engine = Engine(backend, 1, 8, 30, (), StopStrings(None, [], VOCABULARY), ahead=steps)
        engine.load(0, [5, 9, 3])
        engine.submit(0, request)
        while not (ended := engine.step()):
            pass
        drawn.append(ended[0][1].log_p)
    np.testing.assert_allclose(*drawn, atol=1e-9)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("meanwhile", [0, 15])
def test_a_cancelled_request_draws_for_nobody(ahead, meanwhile):
    """Guards: a late token of a request that was given up, in the segment of the next; or a row that runs on with it.

    The row holds a settled completion, a proposal against it is given up, and another row decodes for a while.
    """
    backend, drawn = HFBackend(make_model("qwen2")), []
    first, proposal, last = (
        Request(keep, keep + 12, 1.0, np.random.default_rng(keep).random(12)) for keep in (0, 3, 12)
    )
    for give_up in (False, True):
        engine = Engine(backend, 2, 8, 40, (), StopStrings(None, [], VOCABULARY), ahead=ahead)
        for row in (0, 1):
            engine.load(row, [5, 9])
        engine.submit(0, first)
        finish(engine)
        engine.commit(0)
        if give_up:
            engine.submit(0, proposal)
            for _ in range(5):
                engine.step()
            assert engine.rollback(0) == 5 - ahead
        if meanwhile:
            engine.submit(1, Request(0, meanwhile, 1.0, np.random.default_rng(9).random(meanwhile)))
            finish(engine)
        engine.submit(0, last)
        drawn.append(finish(engine))
    assert drawn[0] == drawn[1]


def finish(engine: Engine) -> list[int]:
    """Steps until a segment has ended; its tokens."""
    while not (ended := engine.step()):
        pass
    return ended[0][1].tokens.tolist()


@pytest.mark.parametrize(
    ("name", "attention", "paired"),
    [
        ("qwen2-sliding", "sdpa", False),
        pytest.param("gemma2", "lm_power", False, marks=pytest.mark.slow),
        pytest.param("qwen2-sliding", "sdpa", True, marks=pytest.mark.slow),
    ],
)
def test_a_step_can_be_recorded_and_replayed(monkeypatch, request, name, attention, paired):
    """Guards: a step in which something depends on Python values that change, or that is run as it is recorded.

    Of one model, and of two.
    """
    monkeypatch.setattr(Engine, "BUCKET", 16)
    monkeypatch.setattr(decode_step, "draw_next", draw_next_at_once)
    model = make_model(name, attention)
    proposer = student_of(model) if paired else None
    expected = draw(model, proposer=proposer)
    request.getfixturevalue("graphs_on_the_cpu")
    replayed = draw(model, proposer=proposer)
    assert Graph.replays > 50
    assert same(replayed, expected)
    assert [c.log_probs for c in replayed] == [c.log_probs for c in expected]


def test_a_step_that_cannot_be_recorded_tells_the_way_out(graphs_on_the_cpu):
    """Guards: a bare CUDA error; the draw for CPUs looks at values."""
    with pytest.raises(RuntimeError, match=r"not permitted.*cuda_graphs=False"):
        PowerSampler(make_model("qwen2"), words(), eos_token_ids=(EOS,), cuda_graphs=True)


class _OneDevice(TorchDispatchMode):
    """No operation reads one device and writes another; a number is no device's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor) and t.ndim]
        assert len({t.device for t in tensors}) <= 1, f"{function} moves values between devices"
        return result


@pytest.mark.parametrize("attention", [None, "lm_power"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "phi3-longrope"])
def test_a_step_neither_asks_its_device_for_a_value_nor_brings_it_one(name, attention):
    """Guards: what a CUDA graph cannot hold. Tensors on `meta` have shapes, and no values to ask for."""
    meta = torch.device("meta")
    backend = HFBackend(make_model(name, attention))
    backend.model, backend.input_device = backend.model.to(meta), meta
    shapes = [dataclasses.replace(shape, device=meta) for shape in backend.shapes]
    step = DecodeStep(backend, RowCache(shapes, rows=4, length=32), 16, np.zeros(VOCABULARY, bool))
    with _OneDevice():
        step._step(step.cache.rows, 32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        step._result[0, 0].item()
    with pytest.raises(AssertionError, match="moves values"), _OneDevice():
        step._result.copy_(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("batch_shape", "graphs"), [("fixed", 1), pytest.param("shrinking", 3, marks=pytest.mark.slow)]
)
def test_a_compiled_model_is_compiled_once_and_changes_no_completion(monkeypatch, batch_shape, graphs):
    """Guards: a graph of its own for every position or width, or a cache that the compiled model does not write.

    Where the batch shrinks, one graph for the first width, one for any, and one for a single row.

    The compiler's own front end, with its tracing and guards; not its code generator, which needs minutes.
    """
    model = make_model("qwen2-sliding")
    expected = draw(model)
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(compiled, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
        sampler = PowerSampler(
            model, words(), max_rows=5, eos_token_ids=(EOS, 7), torch_compile=True, batch_shape=batch_shape
        )
        again = [c for cs in sampler.generate(PROMPTS, n=3, **OPTIONS) for c in cs]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs
    assert same(again, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen2", "qwen2-sliding", "gemma2"])
def test_cuda_graphs_change_no_completion(name):
    """On a GPU: recorded or not, the same completions."""
    drawn = []
    for cuda_graphs in (True, False):
        sampler = PowerSampler(
            make_model(name).cuda(), None, max_rows=5, eos_token_ids=(EOS, 7), cuda_graphs=cuda_graphs
        )
        drawn.append([c for cs in sampler.generate(PROMPTS, n=3, **OPTIONS) for c in cs])
    assert same(*drawn)
