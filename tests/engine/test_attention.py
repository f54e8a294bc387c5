"""`attn_implementation="lm_power"`: the law of the attention, the spans it reads, and where it is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from models import WINDOW, make_model, with_lora
from tiny_tokenizers import words
from transformers import masking_utils
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as attention_with_sinks

from lm_power import PowerSampler
from lm_power.engine import HFBackend, UnsupportedModelError, attention
from lm_power.engine.attention import check_kernel, prefer_spans
from lm_power.engine.masks import spans_or_mask, visible_keys
from lm_power.fingerprint import fingerprint

HERE = Path(__file__).parent
POSITIONS = torch.tensor([[0], [1], [WINDOW - 1], [WINDOW], [30], [39]])
MASKS = {
    "causal": masking_utils.causal_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(WINDOW),
    "chunked": masking_utils.chunked_causal_mask_function(7, torch.zeros(len(POSITIONS), dtype=torch.long)),
}


def seen(function, position: int, key: int) -> bool:
    """Whether a mask function shows a key, asked for one pair at a time."""
    zero = torch.tensor(0)
    return bool(function(zero, zero, torch.tensor(position), torch.tensor(key)))


@pytest.mark.parametrize("name", MASKS)
def test_spans_say_what_the_mask_function_says(name):
    """Guards: a span that begins or ends one key off, or at another row's position."""
    spans = spans_or_mask(q_offset=POSITIONS, kv_length=41, mask_function=MASKS[name])
    assert (spans.shape, spans.dtype) == ((len(POSITIONS), 1, 1, 2), torch.int32)
    shown = visible_keys(spans, 41)[:, 0, 0]
    for row, position in enumerate(POSITIONS[:, 0].tolist()):
        assert shown[row].tolist() == [seen(MASKS[name], position, key) for key in range(41)]


def test_a_mask_with_a_gap_gives_an_empty_span_and_nan():
    """Guards: keys in a gap being read, silently, for a mask that no two numbers can say."""

    def with_gap(batch, head, query, key):
        return (key <= query) & ((key < 2) | (key > 5))

    spans = spans_or_mask(q_offset=torch.tensor([[4], [9]]), kv_length=12, mask_function=with_gap)
    assert visible_keys(spans, 12).sum(-1).flatten().tolist() == [2, 0]
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((2, heads, n, 8), generator=draw) for heads, n in ((4, 1), (2, 12), (2, 12)))
    output, _ = attention.attention(torch.nn.Module(), query, key, value, spans, s_aux=torch.zeros(4))
    assert output[0].isfinite().all()
    assert output[1].isnan().all()


@pytest.mark.parametrize("name", MASKS)
def test_spans_wait_for_no_gpu(name):
    """Guards: a look at the numbers, which a step recorded as a CUDA graph cannot take; meta tensors have none."""
    positions = torch.zeros((4, 1), dtype=torch.long, device="meta")
    function = MASKS[name]
    if name == "chunked":
        function = masking_utils.chunked_causal_mask_function(7, torch.zeros_like(positions[:, 0]))
    spans = spans_or_mask(q_offset=positions, kv_length=300, mask_function=function)
    assert spans.device.type == "meta"


def test_several_queries_a_row_get_a_mask():
    """Guards: the span of one query taken for that of a chunk of a prompt."""
    mask = spans_or_mask(q_offset=torch.tensor([[3, 4, 5]]), kv_length=9, mask_function=MASKS["causal"])
    assert mask.dtype == torch.bool
    assert mask.sum(-1).flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("masking", ["boolean", "additive", "none"])
def test_plain_attention_is_that_of_the_models(queries, softcap, masking):
    """Guards: groups in the wrong order, softcapping after the mask, sinks with a value or capped."""
    draw = torch.Generator().manual_seed(queries)
    rows, keys = 3, 11
    sizes = ((6, queries, 8), (2, keys, 8), (2, keys, 5))
    query, key, value = (torch.randn((rows, *size), generator=draw, dtype=torch.float64) for size in sizes)
    sinks = torch.randn(6, generator=draw, dtype=torch.float64)
    mask = torch.rand((rows, 1, queries, keys), generator=draw) < 0.6
    mask[..., 0] = True
    if masking == "none":  # no mask: for one query all keys, for several the first keys, causally
        mask = torch.ones((1, 1, queries, keys), dtype=torch.bool).tril(0 if queries > 1 else keys)
    hidden = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.sinks = 3, sinks
    if softcap is None:
        right, _ = attention_with_sinks(layer, query, key, value, hidden, 0.3)
    else:
        layer.sinks = sinks = torch.full((6,), -1e9, dtype=torch.float64)
        capped = softcap * torch.tanh(0.3 / softcap * (query @ key.repeat_interleave(3, 1).transpose(2, 3))) + hidden
        right = (capped.softmax(-1) @ value.repeat_interleave(3, 1)).transpose(1, 2)
    given = {"boolean": mask, "additive": hidden, "none": None}[masking]
    result, _ = attention.attention(layer, query, key, value, given, scaling=0.3, softcap=softcap, s_aux=sinks)
    torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)


def test_spans_on_the_cpu_equal_their_mask():
    """Guards: the path of devices without the kernel reading other keys than the spans say."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((3, heads, n, 8), generator=draw) for heads, n in ((6, 1), (2, 11), (2, 11)))
    spans = torch.tensor([[0, 1], [3, 11], [2, 9]], dtype=torch.int32).view(3, 1, 1, 2)
    result, _ = attention.attention(torch.nn.Module(), query, key, value, spans)
    right = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible_keys(spans, 11), enable_gqa=True
    )
    torch.testing.assert_close(result, right.transpose(1, 2))


@pytest.mark.parametrize("name", ["qwen2", "qwen2-sliding", "gemma2", "gemma3", "phi3"])
def test_outside_the_engine_the_model_is_what_it_was(name):
    """Guards: log-likelihoods, padded batches and `generate` that change with the attention's name."""
    usual, ours = make_model(name), make_model(name, "lm_power")
    tokens = torch.arange(60).view(2, 30) % 57 + 2
    padding = torch.ones_like(tokens)
    padding[1, :9] = 0
    with torch.inference_mode():
        for options in ({}, {"attention_mask": padding}):
            right, result = (model(input_ids=tokens, **options).logits[:, 9:] for model in (usual, ours))
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)
            options |= {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
            assert torch.equal(ours.generate(tokens, **options), usual.generate(tokens, **options))


def test_the_name_is_no_part_of_the_model(tmp_path):
    """Guards: stored completions or checkpoints of one attention taken for another model's."""
    usual, ours = make_model("qwen2"), make_model("qwen2", "lm_power")
    assert fingerprint(ours) == fingerprint(usual)
    ours.save_pretrained(tmp_path)
    assert tf.AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("argument", ["position_bias", "indices", "dropout"])
def test_an_argument_that_matters_and_is_not_known_is_refused(argument):
    """Guards: a bias or a choice of keys that the kernel drops."""
    spans = torch.tensor([0, 3], dtype=torch.int32).view(1, 1, 1, 2)
    tensor = torch.zeros((1, 2, 1, 4))
    options = {
        argument: 0.1 if argument == "dropout" else tensor,
        "sliding_window": 4,
        "position_ids": tensor,
        "output_router_logits": False,
    }
    with pytest.raises(NotImplementedError, match=f"{argument} of .*attn_implementation='sdpa'"):
        attention.attention(torch.nn.Module(), tensor, tensor, tensor, spans, **options)


def test_a_model_that_fails_with_it_is_told_what_else_to_try():
    """Guards: a refusal without the way out, where the default has chosen the attention."""
    model = make_model("qwen2", "lm_power")
    layer = model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs, position_bias=torch.zeros(1))
    with pytest.raises(UnsupportedModelError, match=r"position_bias .*attn_implementation='sdpa'"):
        HFBackend(model)


@pytest.mark.parametrize(("name", "reads"), [("lm_power", True), ("sdpa", False), ("eager", False)])
def test_the_backend_says_whether_it_reads_spans(name, reads):
    """Guards: an engine that shows whole rows to an attention that reads all it is shown."""
    assert HFBackend(make_model("qwen2", name), verify=False).reads_spans is reads


def test_a_gpu_without_triton_is_told_so(monkeypatch):
    """Guards: an ImportError in the middle of a run."""
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    check_kernel([torch.device("cpu")])
    with pytest.raises(ImportError, match="attn_implementation='sdpa'"):
        check_kernel([torch.device("cpu"), torch.device("cuda", 0)])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel could run where the weights are."""
    monkeypatch.setattr(attention, "_run_the_kernel", lambda devices: True)


def test_the_default_on_a_gpu(gpu, tmp_path):
    """Guards: the kernel left unused, or a choice of the user's or of transformers' overruled."""
    make_model("qwen2").save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    for model in (loaded, with_lora(make_model("gemma2"))):
        prefer_spans(model)
        assert model.config._attn_implementation == "lm_power"
    for other in ("t5", "mamba"):
        model = make_model(other)
        before = model.config._attn_implementation
        prefer_spans(model)
        assert model.config._attn_implementation == before


def test_from_pretrained_keeps_what_the_user_names(gpu, tmp_path):
    """Guards: the default taking the place of attn_implementation."""
    make_model("mistral").save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    for options, chosen in (({}, "lm_power"), ({"attn_implementation": "eager"}, "eager")):
        sampler = PowerSampler.from_pretrained(str(tmp_path), device="cpu", **options)
        assert sampler.host.backend.config._attn_implementation == chosen


def test_power_hf_keeps_what_the_user_names(gpu, tmp_path):
    """Guards: as above for `--model power-hf`; a model that was handed over loaded being changed."""
    from lm_power.harness.power_hf import PowerHF

    model = make_model("mistral")
    model.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    options = {"device": "cpu", "batch_size": 1, "dtype": "float32"}
    assert PowerHF(str(tmp_path), **options).model.config._attn_implementation == "lm_power"
    named = PowerHF(str(tmp_path), attn_implementation="eager", **options)
    assert named.model.config._attn_implementation == "eager"
    assert PowerHF(model, tokenizer=words(), batch_size=1).model.config._attn_implementation == "sdpa"


def run_python(*arguments: str, **environment: str) -> None:
    """A Python of its own, whose output is shown if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE.parent / "support"), "HF_HUB_OFFLINE": "1"} | environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernel_under_the_interpreter(which):
    """Guards: see `interpreted_kernel.py`."""
    pytest.importorskip("triton")
    arguments = ("-q", "-p", "no:cacheprovider", "-m", which, str(HERE / "interpreted_kernel.py"))
    run_python("-m", "pytest", *arguments, TRITON_INTERPRET="1")


@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_a_gpu(architecture, tmp_path):
    """Guards: what the interpreter lets pass and the compiler does not, registers that spill, too much shared memory.

    Compiling needs no GPU, running does.
    """
    pytest.importorskip("triton")
    run_python(str(HERE / "compiled_kernel.py"), str(architecture), TRITON_CACHE_DIR=str(tmp_path))
