"""Token weights, tempered laws and draws: pure tensor functions against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lm_power.target import (
    Drawn,
    draw,
    draw_next,
    draw_next_at_once,
    draw_next_in_cache,
    exclude,
    log_probabilities,
    rising,
)

BELOW_ONE = math.nextafter(1.0, 0.0)
both_ways = pytest.mark.parametrize("draw_next", [draw_next_in_cache, draw_next_at_once])
DrawNext = Callable[..., Drawn]


def draw_all(log_q: torch.Tensor, uniforms: list[float]) -> list[int]:
    """One row of `log_q`, one draw for each uniform."""
    rows = log_q.exp().expand(len(uniforms), -1)
    return draw(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist()


def drawn_at(
    logits: torch.Tensor, beta: float, n: int = 200, excluded: int = -1, draw_next: DrawNext = draw_next
) -> Drawn:
    """`n` draws from one row of logits, spread evenly over q; without a token, unless that is −1."""
    betas, uniforms = torch.full((n,), beta, dtype=torch.float64), (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return draw_next(logits.expand(n, -1), betas, uniforms, torch.full((n,), excluded))


def some_rows(dtype: torch.dtype, size: int, rows: int = 64) -> tuple[torch.Tensor, ...]:
    """Arguments of `draw_next`: a third of the rows each exclude nothing, the likeliest token, some other token."""
    generator = torch.Generator().manual_seed(size)
    logits = (4 * torch.randn((rows, size), generator=generator)).to(dtype)
    betas, uniforms = torch.rand((2, rows), generator=generator, dtype=torch.float64)
    kind = torch.arange(rows) % 3
    excluded = torch.where(
        kind == 0, -1, torch.where(kind == 1, logits.argmax(dim=-1), (torch.arange(rows) + 5) % size)
    )
    return logits, 8 * betas, uniforms, excluded


def assert_same_draws(found: Drawn, expected: Drawn, logits: torch.Tensor) -> None:
    """The same tokens, of the same log p and log q, up to the rounding of sums taken in another order.

    That can move a boundary between tokens by about 1e-7 of the total, and a uniform falls between the two with
    that probability: the seeds are such that none does.
    """
    assert torch.equal(found.tokens, expected.tokens)
    close = {"atol": 1e-12, "rtol": 0} if logits.dtype is torch.float64 else {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(found.log_p, expected.log_p, **close)
    torch.testing.assert_close(found.log_q, expected.log_q, **close)


def random_log_p(seed: int, shape: tuple[int, ...] = (3, 50)) -> torch.Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return log_probabilities(4 * logits)


@pytest.mark.parametrize("boundary", [0.25, 0.5, 0.75])
def test_a_token_owns_its_half_open_interval(boundary: float) -> None:
    """Guards against a shifted inverse CDF (searchsorted's wrong side) at the exact boundaries.

    Four equal weights of exactly 1, so that no rounding decides; the excluded token owns nothing.
    """
    log_q = torch.tensor([0.0, -math.inf, 0.0, 0.0, 0.0], dtype=torch.float64)
    owners = [0, 2, 3, 4]
    right = owners[int(4 * boundary)]
    left = owners[int(4 * boundary) - 1]
    below, above = math.nextafter(boundary, 0), math.nextafter(boundary, 1)
    assert draw_all(log_q, [below, boundary, above]) == [left, right, right]
    assert draw_all(log_q, [0.0, BELOW_ONE]) == [0, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("excluded", [[0], [3], [0, 3], [0, 1, 3], [1, 2]])
def test_excluded_tokens_are_never_drawn(excluded: list[int], dtype: torch.dtype) -> None:
    """Guards against draws of zero probability: at u = 0 from the front, at u just below 1 from the back."""
    log_q = log_probabilities(torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=dtype))
    log_q[excluded] = -math.inf
    grid = [0.0, 5e-324, *(k / 200 for k in range(1, 200)), 1 - 1e-9, BELOW_ONE]
    drawn = draw_all(log_q, grid)
    assert set(drawn) == set(range(4)) - set(excluded)
    assert drawn == sorted(drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gap", [1.0, 20.0, 500.0])
def test_the_law_without_a_token_is_exact_even_where_it_had_nearly_all_mass(gap: float, dtype: torch.dtype) -> None:
    """Guards coupled resume where q(x_j) is next to 1: the others underflow in exp, and 1 − q(x_j) is all rounding."""
    rest = torch.tensor([0.3, -1.0, 0.1, -0.4], dtype=dtype)
    log_q = log_probabilities(torch.cat([rest[:2], rest.max()[None] + gap, rest[2:]]))
    law = exclude(log_q[None], torch.tensor([2]))[0].double().softmax(-1)
    assert law[2] == 0
    expected = rest.double().softmax(-1)
    torch.testing.assert_close(
        law[[0, 1, 3, 4]], expected, rtol=1e-3 if gap > 100 and dtype is torch.float32 else 1e-5, atol=0
    )
    drawn = draw_all(exclude(log_q[None], torch.tensor([2]))[0], [(k + 0.5) / 1000 for k in range(1000)])
    assert set(drawn) == {0, 1, 3, 4}


def test_where_no_other_token_is_possible_the_law_stays() -> None:
    """Guards against a draw from nothing (NaN) where a model has masked all tokens but one."""
    log_q = torch.tensor([[-math.inf, 0.0, -math.inf], [-math.inf, -0.5, -0.9]])
    law = exclude(log_q, torch.tensor([1, 1]))
    assert law.tolist() == [log_q[0].tolist(), [-math.inf, -math.inf, 0.0]]


@pytest.mark.parametrize("total", [1e-30, 1 / 3, 1.0, 7e20])
def test_an_unnormalised_row_is_drawn_as_its_normalised_one(total: float) -> None:
    """Guards against u compared with an unnormalised cumulated sum."""
    log_q = random_log_p(1, (50,))
    grid = [(k + 0.5) / 997 for k in range(997)]
    assert draw_all(log_q + math.log(total), grid) == draw_all(log_q, grid)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_grid_of_uniforms_gives_the_law(dtype: torch.dtype) -> None:
    """Guards the law of the draw: on a grid of n uniforms each token comes n·q times, up to one. Exact."""
    logits = (2 * torch.randn(20, generator=torch.Generator().manual_seed(0))).to(dtype)
    log_q = log_probabilities(logits)
    n = 20_000
    counts = torch.bincount(torch.tensor(draw_all(log_q, [(k + 0.5) / n for k in range(n)])), minlength=20)
    assert (counts - n * log_q.double().exp()).abs().max() < 1.01


@both_ways
def test_rows_are_drawn_each_with_its_own_law(draw_next: DrawNext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows mixed up in a batch, and against a draw that depends on the other rows."""
    arguments = some_rows(torch.float32, 700)
    monkeypatch.setattr("lm_power.target._CACHED", 7 * 700)  # seven rows at a time
    together = draw_next(*arguments)
    assert together.tokens.dtype == torch.int64
    for i in range(64):
        alone = draw_next(*(argument[i : i + 1] for argument in arguments))
        for name in ("tokens", "log_p", "log_q"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])


@both_ways
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_draw_is_by_the_formulas(dtype: torch.dtype, draw_next: DrawNext) -> None:
    """Guards the fused draw: tokens from q, or from q without one, and log p and log q both those of the whole law."""
    logits = (2 * torch.randn((1, 900), generator=torch.Generator().manual_seed(1))).to(dtype)
    n, likeliest = 3000, int(logits.argmax())
    for excluded in (-1, 0, likeliest):
        drawn = drawn_at(logits, 3.0, n, excluded, draw_next)
        log_p = log_probabilities(logits.double())[0]
        log_q = torch.log_softmax(3 * log_p, -1)
        close = {"atol": 1e-12 if dtype is torch.float64 else 3e-6, "rtol": 1e-6}
        torch.testing.assert_close(drawn.log_p.double(), log_p[drawn.tokens], **close)
        torch.testing.assert_close(drawn.log_q.double(), log_q[drawn.tokens], **close)
        law = log_q.exp()
        if excluded >= 0:
            law[excluded] = 0
        counts = torch.bincount(drawn.tokens, minlength=900)
        assert (counts - n * law / law.sum()).abs().max() < 1.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [61, 512, 5000])
def test_both_ways_to_draw_agree(size: int, dtype: torch.dtype) -> None:
    """Guards against a GPU that samples another law than a CPU; vocabularies of one block, of whole ones, and not."""
    arguments = some_rows(dtype, size)
    assert_same_draws(draw_next_at_once(*arguments), draw_next_in_cache(*arguments), arguments[0])


@pytest.mark.parametrize("size", [512, 5000])
def test_the_compiled_draw_is_the_same(size: int) -> None:
    """Guards against what a compiler would refuse, or take to mean something else."""
    arguments = some_rows(torch.bfloat16, size)
    torch.compiler.reset()
    compiled = torch.compile(draw_next, fullgraph=True, dynamic=False)(*arguments)
    assert_same_draws(compiled, draw_next_in_cache(*arguments), arguments[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_no_shape_depends_on_a_value(dtype: torch.dtype) -> None:
    """Guards against waiting for the GPU (`item`, `nonzero`, a mask as an index), which no CUDA graph can hold."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        logits = torch.empty((4, 700), device="cuda", dtype=dtype)
        of_rows = torch.empty((2, 4), device="cuda", dtype=torch.float64).unbind()
        drawn = draw_next(logits, *of_rows, torch.empty(4, device="cuda", dtype=torch.int64))
        assert drawn.tokens.device == drawn.log_q.device == logits.device
        assert (drawn.tokens.dtype, drawn.log_p.dtype, drawn.log_q.dtype) == (torch.int64, torch.float32, torch.float32)


@both_ways
@pytest.mark.parametrize("gap", [1.0, 20.0, 500.0])
def test_a_draw_without_a_token_is_exact_even_where_it_had_nearly_all_mass(gap: float, draw_next: DrawNext) -> None:
    """Guards coupled resume where all other tokens would underflow beside the excluded one."""
    rest, n = torch.tensor([0.3, -1.0, 0.1, -0.4], dtype=torch.float64), 2000
    logits = torch.cat([rest, rest.new_tensor([gap])])
    drawn = drawn_at(logits.float(), 2.0, n, 4, draw_next)
    log_q = (2 * logits).log_softmax(-1)[drawn.tokens]
    torch.testing.assert_close(drawn.log_q.double(), log_q, atol=1e-6, rtol=1e-6)
    counts = torch.bincount(drawn.tokens, minlength=5)
    assert (counts[:4] - n * (2 * rest).softmax(-1)).abs().max() < 1.01
    assert counts[4] == 0


@both_ways
def test_where_no_other_token_is_possible_it_is_drawn_all_the_same(draw_next: DrawNext) -> None:
    """Guards against a draw from nothing (NaN) where a model has masked all tokens but the excluded one."""
    logits = torch.full((300,), -math.inf)
    logits[270] = 2.0
    drawn = drawn_at(logits, 4.0, 5, 270, draw_next)
    assert drawn.tokens.tolist() == [270] * 5
    assert drawn.log_p.tolist() == drawn.log_q.tolist() == [0.0] * 5


@both_ways
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("excluded", [-1, 7, 650])
def test_logits_that_are_not_finite_show_in_the_log_probabilities(
    broken: float, excluded: int, draw_next: DrawNext
) -> None:
    """Guards against a broken model that goes on silently, and against an index that crashes the device."""
    logits = torch.randn((3, 700), generator=torch.Generator().manual_seed(9))
    logits[1, 650] = broken
    half = torch.full((3,), 0.5, dtype=torch.float64)
    drawn = draw_next(logits, 4 * half, half, torch.full((3,), excluded))
    assert drawn.log_p.isfinite().tolist() == drawn.log_q.isfinite().tolist() == [True, False, True]
    assert bool(((drawn.tokens >= 0) & (drawn.tokens < 700)).all())


def test_sums_that_are_cumulated_in_parallel_rise_at_positive_weights_only() -> None:
    """Guards against drawing a token without weight, where a sum exceeds the one before it by rounding alone."""
    weights = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    rounded = torch.tensor([[1.0, 1.0 + 1e-15, 2.0, 3.0, 3.0 - 1e-15]], dtype=torch.float64)
    assert rising(rounded, weights).tolist() == [[1.0, 1.0, 2.0, 3.0, 3.0]]


def test_a_draw_never_leaves_the_tokens_that_are_possible() -> None:
    """Guards against a token without weight next to a block's edge, where the level is rounded."""
    weights = torch.rand((1, 5000), generator=torch.Generator().manual_seed(7))
    weights[:, torch.rand(5000, generator=torch.Generator().manual_seed(8)) < 0.9] = 0
    edges = (weights.double().cumsum(-1) / weights.double().sum())[0]
    near = torch.cat([edges, edges.nextafter(torch.zeros(1).double()), edges * (1 - 1e-7), edges * (1 + 1e-7)])
    uniforms = near.clamp(0, BELOW_ONE)
    drawn = draw(weights.expand(len(uniforms), -1), uniforms)
    assert bool((weights[0, drawn] > 0).all())


def test_a_large_float32_vocabulary_keeps_its_tail() -> None:
    """Guards against a float32 cumulated sum: over 150,000 tokens its steps are coarser than a token's q."""
    size = 150_000
    log_q = torch.full((size,), -math.log(size), dtype=torch.float32)
    tokens = [0, 1, 77_777, 149_998, 149_999]
    assert draw_all(log_q, [(token + 0.5) / size for token in tokens]) == tokens


@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0.1, 20.0))
def test_log_q_is_the_tempered_log_p(seed: int, beta: float) -> None:
    """Guards the identity `log q = β log p − log Z_β`."""
    log_p = random_log_p(seed, (50,))
    drawn = drawn_at(log_p, beta)
    expected = beta * log_p - torch.log((log_p.exp() ** beta).sum())
    torch.testing.assert_close(drawn.log_q, expected[drawn.tokens], atol=1e-9, rtol=1e-9)


def test_beta_one_is_the_model_itself() -> None:
    """Guards against a temperature left over: at β = 1, log q = log p."""
    drawn = drawn_at(random_log_p(4, (50,)), 1.0)
    torch.testing.assert_close(drawn.log_q, drawn.log_p, atol=1e-14, rtol=0)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(1.0, 20.0), share=st.floats(0.0, 1.0))
def test_token_weights(seed: int, alpha: float, share: float) -> None:
    """Guards `w = α log p − log q`: at τ = 1/α it is log Z_α for every token; for 1 ≤ 1/τ ≤ α it is ≤ 0."""
    log_p = random_log_p(seed, (50,))
    drawn = drawn_at(log_p, alpha)
    weights = alpha * drawn.log_p - drawn.log_q
    expected = torch.logsumexp(alpha * log_p, -1).expand_as(weights)
    torch.testing.assert_close(weights, expected, atol=1e-11, rtol=0)
    drawn = drawn_at(log_p, 1 + share * (alpha - 1))
    assert (alpha * drawn.log_p - drawn.log_q).max() <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_log_p_is_computed_wide(dtype: torch.dtype) -> None:
    """Guards against a log-softmax in half precision: log p is that of the rounded logits, in float32 at least."""
    logits = (8 * torch.randn(3, 500, generator=torch.Generator().manual_seed(5))).to(dtype)
    log_p = log_probabilities(logits)
    assert log_p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(log_p.double(), exact, atol=1e-5 if dtype != torch.float64 else 1e-13, rtol=0)
    torch.testing.assert_close(log_p.double().exp().sum(-1), torch.ones(3).double(), atol=1e-5, rtol=0)


@both_ways
def test_excluded_logits_stay_excluded(draw_next: DrawNext) -> None:
    """Guards against NaN from 0·∞ or ∞ − ∞ where a model masks tokens with −inf."""
    for beta in (0.5, 1.0, 4.0):
        drawn = drawn_at(torch.tensor([0.0, -math.inf, 1.0]), beta, draw_next=draw_next)
        assert set(drawn.tokens.tolist()) == {0, 2}
        assert bool((torch.isfinite(drawn.log_p) & torch.isfinite(drawn.log_q)).all())
