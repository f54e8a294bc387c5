"""What fails on this machine, or disagrees, is switched off with one warning; what the user named fails."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.test_decode_step import Capture, Graph, graphs_on_the_cpu  # noqa: F401
from models import EOS, make_model

from lm_power import PowerSampler
from lm_power.engine import UnsupportedModelError, attention, decode_step
from lm_power.engine.attention import chosen_instead_of, prefer_spans
from lm_power.engine.fallback import REPORT, try_draw
from lm_power.errors import UnavailableError
from lm_power.target import draw_next_at_once

OPTIONS = {"method": "standard", "max_new_tokens": 8, "seed": 3}


def sampler(model, **options) -> PowerSampler:
    return PowerSampler(model, None, max_rows=3, eos_token_ids=(EOS,), **options)


def drawn(model, **options) -> list[list[int]]:
    return [c.token_ids for (c,) in sampler(model, **options).generate([[5], [6, 7]], **OPTIONS)]


@pytest.fixture
def graphs(monkeypatch, graphs_on_the_cpu):  # noqa: F811
    """A stand-in of CUDA graphs that works."""
    monkeypatch.setattr(decode_step, "draw_next", draw_next_at_once)


@pytest.fixture
def spans(monkeypatch):
    """As if the kernel could run where the weights are, and a model whose attention was chosen by default."""
    monkeypatch.setattr(attention, "_run_the_kernel", lambda devices: True)
    model = make_model("qwen2")
    prefer_spans(model)
    assert chosen_instead_of(model) == "sdpa"
    return model


def test_what_works_stays(graphs, caplog):
    """Guards: a trial that finds fault with what is right, or leaves its mark on what is drawn."""
    expected = drawn(make_model("qwen2"), cuda_graphs=False)
    assert drawn(make_model("qwen2")) == expected
    assert drawn(make_model("qwen2"), cuda_graphs=True) == expected
    made = sampler(make_model("qwen2"))
    assert made.host.backend.replays and made.host.backend.compiles_draw and Graph.replays > 10
    assert not caplog.records


def broken_replay(self) -> None:
    raise RuntimeError("CUDA error: an illegal instruction was encountered")


def idle_replay(self) -> None:
    """Computes nothing: the results are those of the step before."""


def wrong_replay(self, replay=Graph.replay) -> None:
    replay(self)
    Capture.step._result[1] -= 0.01


@pytest.mark.parametrize(
    ("replay", "says"),
    [(broken_replay, "illegal instruction"), (idle_replay, ""), (wrong_replay, "differ by 0.01 nats")],
)
def test_recorded_steps_that_fail_or_disagree_are_switched_off(graphs, monkeypatch, caplog, replay, says):
    """Guards: a first run that ends in a crash, or in wrong completions; a request that is not met in silence."""
    expected = drawn(make_model("qwen2"), cuda_graphs=False)
    monkeypatch.setattr(Graph, "replay", replay)
    assert drawn(make_model("qwen2")) == expected
    (record,) = caplog.records
    for part in ("CUDA graphs", says, "plain steps", "cuda_graphs=False", REPORT):
        assert part in record.getMessage()
    with pytest.raises(RuntimeError, match=rf"cuda_graphs=True.*{says}.*cuda_graphs=False"):
        sampler(make_model("qwen2"), cuda_graphs=True)


def test_recorded_steps_that_are_asked_for_where_there_is_no_gpu_are_refused():
    """Guards: an option without effect; by default the same model is taken as it is."""
    with pytest.raises(UnavailableError, match=r"cuda_graphs=True: .* cannot be recorded on cpu; leave it out"):
        sampler(make_model("qwen2"), cuda_graphs=True)
    assert not sampler(make_model("qwen2")).host.backend.replays


def test_a_step_that_cannot_be_recorded_is_switched_off(graphs_on_the_cpu, caplog):  # noqa: F811
    """Guards: a model whose step asks for a value: here the draw for CPUs does."""
    made = sampler(make_model("qwen2"))
    assert not made.host.backend.replays
    assert "not permitted" in caplog.records[-1].getMessage()


def test_out_of_memory_is_no_failure_of_what_is_tried(graphs, monkeypatch, caplog):
    """Guards: recorded steps switched off for good where another program had the memory."""

    def full(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Graph, "replay", full)
    with pytest.raises(torch.OutOfMemoryError):
        sampler(make_model("qwen2"))
    assert not caplog.records


@pytest.mark.parametrize("how", ["fails", "disagrees"])
def test_a_compiled_draw_that_fails_or_disagrees_is_left_out(graphs, monkeypatch, caplog, how):
    """Guards: a machine without a compiler on which nothing runs; tokens by a miscompiled law."""

    def compile_(function, **_):
        def compiled(*args):
            if how == "fails":
                raise RuntimeError("Failed to find C compiler")
            right = draw_next_at_once(*args)
            return dataclasses.replace(right, log_q=right.log_q + 0.1)

        return compiled

    expected = drawn(make_model("qwen2"), cuda_graphs=False)
    monkeypatch.setattr(torch, "compile", compile_)
    made = sampler(make_model("qwen2"))
    assert made.host.backend.replays and not made.host.backend.compiles_draw
    assert [c.token_ids for (c,) in made.generate([[5], [6, 7]], **OPTIONS)] == expected
    (record,) = caplog.records
    assert "the compiled draw does not work here" in record.getMessage() and REPORT in record.getMessage()
    assert {"fails": "C compiler", "disagrees": "differ by 0.1"}[how] in record.getMessage()


def test_the_compiled_draw_agrees_with_the_plain_one(monkeypatch):
    """Guards: a trial that always finds, or never finds, a difference. By the compiler's front end alone."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    try_draw(torch.device("cpu"), 1000)


def failing_kernel(self, *args, **kwargs):
    raise RuntimeError("PTX was compiled with an unsupported toolchain")


def wrong_kernel(query, key, value, mask, scaling, *rest):
    return torch.zeros_like(query.transpose(1, 2))


@pytest.mark.parametrize("kernel", [failing_kernel, wrong_kernel])
def test_an_attention_chosen_by_default_that_fails_gives_way(spans, monkeypatch, caplog, kernel):
    """Guards: as above, for the kernel; the path of devices without it stands in, which `plain_attention` is."""
    expected = drawn(make_model("qwen2"))
    monkeypatch.setattr(attention, "plain_attention", kernel)
    assert drawn(spans) == expected
    assert spans.config._attn_implementation == "sdpa"
    (record,) = caplog.records
    for part in ("attn_implementation=lm_power does not work here", "going on with sdpa", REPORT):
        assert part in record.getMessage()


@pytest.mark.parametrize("kernel", [failing_kernel, wrong_kernel])
def test_an_attention_that_the_user_named_fails(monkeypatch, kernel):
    """Guards: sdpa in place of what was asked for."""
    monkeypatch.setattr(attention, "plain_attention", kernel)
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"):
        sampler(make_model("qwen2", "lm_power"))


def test_a_model_that_fails_with_any_attention_says_why_at_first(spans, monkeypatch):
    """Guards: the second failure shown for the first; a warning that promises what does not come."""
    monkeypatch.setattr(attention, "plain_attention", failing_kernel)
    forward = spans.model.layers[1].self_attn.o_proj.forward
    spans.model.layers[1].self_attn.o_proj.forward = lambda x: forward(x) * torch.nan
    with pytest.raises(UnsupportedModelError):
        sampler(spans)
