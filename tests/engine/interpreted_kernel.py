"""The GPU kernel, run by Triton's interpreter on the CPU.

Not collected by itself: the interpreter must be chosen before Triton is imported, and for a whole process.
`test_attention.py` runs this file in one of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from models import make_model
from triton.runtime import interpreter

from lm_power import PowerSampler
from lm_power.engine import attention, attention_kernel
from lm_power.engine.attention import plain_attention
from lm_power.engine.attention_kernel import SPLIT, decode_attention
from lm_power.engine.masks import visible_keys

SLOTS = 2 * SPLIT + 76
# First slot alone, all, across a border, up to a border, one past it, inside the last split, a border's both sides.
SPANS = [
    (0, 1), (0, SLOTS), (SPLIT - 12, SPLIT + 88), (100, SPLIT), (SPLIT, SPLIT + 1), (SLOTS - 30, SLOTS - 3),
    (SPLIT - 1, 2 * SPLIT + 1),
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the norm


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 products in float32, as on a GPU (numpy has none: the interpreter multiplies their bits), poison."""
    dot, empty = interpreter.InterpreterBuilder.create_dot, torch.empty

    def widened(x):
        if x.dtype.scalar != interpreter.tl.bfloat16:
            return x
        numbers = (x.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(numbers, interpreter.tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    )
    # What a kernel leaves unwritten must show.
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def case(
    dtype: torch.dtype, heads: int, group: int, key_dim: int, value_dim: int, spans: list[tuple[int, int]] = SPANS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, value and spans: keys and values as the cache holds them, with NaN in all hidden slots."""
    draw = torch.Generator().manual_seed(group * key_dim)
    rows = len(spans)
    spans_ = torch.tensor(spans, dtype=torch.int32).view(rows, 1, 1, 2)
    hidden = ~visible_keys(spans_, SLOTS).transpose(2, 3)
    query = torch.randn((rows, 1, heads * group, key_dim), generator=draw).transpose(1, 2)
    key, value = (
        torch.randn((2, rows, heads, SLOTS + 5, dim), generator=draw)
        .to(dtype)[1][:, :, :SLOTS]
        .masked_fill_(hidden, torch.nan)
        for dim in (key_dim, value_dim)
    )
    return 2 * query.to(dtype), key, value, spans_


def expected(query, key, value, spans, *arguments):
    return plain_attention(
        query.double(), key.double().nan_to_num(), value.double().nan_to_num(), visible_keys(spans, SLOTS), *arguments
    )


def slow(*values: object) -> object:
    """A case for the long run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "heads", "group", "key_dim", "value_dim", "softcap", "with_sinks"),
    [
        slow(torch.float32, 2, 1, 64, 64, None, False),
        slow(torch.float32, 1, 2, 256, 256, 3.0, False),
        slow(torch.float32, 2, 3, 80, 48, None, True),
        slow(torch.float32, 1, 7, 128, 128, None, False),
        (torch.float32, 1, 17, 24, 40, 50.0, True),
        (torch.bfloat16, 1, 7, 128, 128, None, False),
        slow(torch.bfloat16, 2, 5, 96, 96, 50.0, True),
        (torch.float16, 2, 8, 64, 64, None, True),
    ],
)
def test_the_kernel_is_softmax_over_the_span(dtype, heads, group, key_dim, value_dim, softcap, with_sinks):
    """Guards: a wrong border, stride, padding, group or split; a hidden or unwritten number in a result."""
    query, key, value, spans = case(dtype, heads, group, key_dim, value_dim)
    sinks = torch.randn(heads * group, generator=torch.Generator().manual_seed(1)) if with_sinks else None
    arguments = (key_dim**-0.5, softcap, sinks)
    result = decode_attention(query, key, value, spans, *arguments)
    assert (result.shape, result.dtype) == ((len(SPANS), 1, heads * group, value_dim), dtype)
    right = expected(query, key, value, spans, *arguments)
    errors = (result - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)
    assert float(errors.max()) < TOLERANCE[dtype]


def test_a_row_depends_on_nothing_but_its_span():
    """Guards: numbers that change with the other rows, their number, or the slots shown (bit for bit)."""
    query, key, value, spans = case(torch.float32, 1, 4, 32, 32)
    together = decode_attention(query, key, value, spans, 0.2)
    for row in range(len(SPANS)):
        shown = int(spans[row, 0, 0, 1])
        at = slice(row, row + 1)
        alone = decode_attention(query[at], key[at, :, :shown], value[at, :, :shown], spans[at], 0.2)
        assert torch.equal(alone, together[at])


@pytest.mark.parametrize("with_sinks", [False, True])
def test_an_empty_span_gives_nan(with_sinks, monkeypatch):
    """Guards: a mask with a gap, which spans cannot say, passing for an answer."""
    monkeypatch.setattr(torch, "empty", torch.zeros)  # NaN from the kernel, not from the poison
    query, key, value, _ = case(torch.float32, 2, 2, 32, 32, [(0, 40), (0, 40)])
    spans = torch.tensor([[7, 7], [0, 40]], dtype=torch.int32).view(2, 1, 1, 2)
    result = decode_attention(query, key, value, spans, 0.2, None, torch.zeros(4) if with_sinks else None)
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_a_model_decodes_with_the_kernel_as_without(name, monkeypatch):
    """Guards: layouts, scalings or windows of a real model that the kernel takes for something else."""
    calls = []

    def counted(*arguments):
        calls.append(arguments[3])
        return decode_attention(*arguments)

    options = {"method": "standard", "max_new_tokens": 2}
    prompts = [[5], [7, 8, 9, 10, 11] * 3]  # shorter and longer than the window
    plain = PowerSampler(make_model(name, "lm_power"), None, eos_token_ids=[0]).generate(prompts, **options)
    monkeypatch.setattr(attention, "_kernel_takes", lambda query, key, value: query.dtype == torch.float32)
    monkeypatch.setattr(attention_kernel, "decode_attention", counted)
    drawn = PowerSampler(make_model(name, "lm_power"), None, eos_token_ids=[0]).generate(prompts, **options)
    assert any(bool((spans[..., 0] > 0).any()) for spans in calls) is (name != "qwen2"), "the window must slide"
    for (before,), (after,) in zip(plain, drawn, strict=True):
        assert after.token_ids == before.token_ids
        assert after.log_probs == pytest.approx(before.log_probs, abs=1e-4)


@pytest.mark.slow
def test_a_compiled_model_takes_the_kernel_as_it_is(monkeypatch):
    """Guards: a kernel that torch.compile cannot see past, or takes for something of another shape."""
    monkeypatch.undo()  # the checks make integers too, which have no NaN
    monkeypatch.setattr(attention, "_kernel_takes", lambda query, key, value: query.dtype == torch.float32)
    query, key, value, spans = case(torch.float32, 2, 2, 32, 16)
    torch.library.opcheck(decode_attention, (query, key.nan_to_num(), value.nan_to_num(), spans, 0.2))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    drawn = []
    for torch_compile in (False, True):
        sampler = PowerSampler(make_model("qwen2", "lm_power"), None, eos_token_ids=[0], torch_compile=torch_compile)
        drawn.append(sampler.generate([[5], [7, 8, 9]], method="standard", max_new_tokens=4)[1][0])
    assert drawn[0].token_ids == drawn[1].token_ids
