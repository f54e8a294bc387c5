"""Every architecture served: decoding in rows equals a plain full forward pass. Every other: refused, with a reason."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch
from models import CONFIGS, EOS, REFUSED, VOCABULARY, WINDOW, make_model, with_lora
from transformers.masking_utils import causal_mask_function

from lm_power import Completion, PowerSampler
from lm_power.config import OptionError
from lm_power.engine import Engine, HFBackend, UnsupportedModelError, masks

# (architecture, attention): Gemma 2 has no sdpa, whose kernels know no softcapping.
SERVED = [(name, kind) for name in CONFIGS for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]
# Of our own attention, quickly: full layers, sliding ones, and softened scores.
SERVED += [
    pytest.param(name, "lm_power", marks=() if name in ("qwen2", "qwen2-sliding", "gemma2") else pytest.mark.slow)
    for name in CONFIGS
]
OPTIONS = {"alpha": 2.0, "block_size": 8, "mcmc_steps": 2, "max_new_tokens": 24}


def prompts() -> list[list[int]]:
    """Token ids of mixed lengths: one token, shorter and longer than the window, a prompt that comes twice."""
    draw = random.Random(0)
    made = [[draw.randrange(1, VOCABULARY) for _ in range(length)] for length in (1, 5, 2 * WINDOW, 30)]
    return [*made, made[1]]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts need several chunks, and sequences pass several key/value lengths."""
    monkeypatch.setattr(Engine, "PREFILL_CHUNK", 7)
    monkeypatch.setattr(Engine, "BUCKET", 16)


@torch.inference_mode()
def full_forward(model: torch.nn.Module, prompt: list[int], tokens: tuple[int, ...]) -> torch.Tensor:
    """Log p of `tokens` after `prompt`: one forward pass without cache, softmax in float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0].double()
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return log_p.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def worst_difference(model: torch.nn.Module, rows: int = 3, **options: object) -> tuple[float, list[Completion]]:
    """Largest |Δ log p| over all tokens of two completions per prompt, and the completions."""
    sampler = PowerSampler(model, None, max_rows=rows, eos_token_ids=range(4))
    drawn = sampler.generate(prompts(), n=2, **(OPTIONS | options))
    worst = 0.0
    for prompt, completions in zip(prompts(), drawn, strict=True):
        for c in completions:
            difference = torch.tensor(c.log_probs, dtype=torch.float64) - full_forward(model, prompt, c.token_ids)
            worst = max(worst, float(difference.abs().max()))
    return worst, [c for completions in drawn for c in completions]


@pytest.mark.parametrize(("name", "attention"), SERVED)
def test_log_probs_equal_a_full_forward_pass(name, attention):
    """Guards: a wrong position, mask, window, rope or stale key after rewinds, restores and refills.

    Every refill, every kept and every restored suffix is in the log-probs of the tokens after it.
    """
    worst, completions = worst_difference(make_model(name, attention))
    assert worst < 1e-4
    proposals = sum(c.stats.proposals for c in completions)
    accepted = sum(c.stats.accepted for c in completions)
    assert 2 < accepted < proposals - 2, "the run must rewind, keep and restore"
    assert max(map(len, (c.token_ids for c in completions))) > WINDOW
    assert len({len(c.token_ids) for c in completions}) > 1, "rows must end at different times"


@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=3))[1:], ids=str)
def test_log_probs_equal_a_full_forward_pass_without_accelerations(on):
    """Guards: a token, or its key, that is right only while coupling, bounds and copies play together."""
    switches = dict(zip(("coupled_resume", "early_rejection", "prefetch"), on, strict=True))
    worst, completions = worst_difference(make_model("qwen2-sliding"), **switches)
    assert worst < 1e-4
    assert (sum(c.stats.tokens_coupled for c in completions) > 0) is on[0]
    assert (sum(c.stats.rejected_early for c in completions) > 0) is on[1]
    assert (sum(c.stats.tokens_prefetched + c.stats.tokens_dropped for c in completions) > 0) is on[2]


def test_float64_agrees_to_rounding():
    """Guards: an error of size 1e-6 that float32 tests take for rounding (a cast to float32 on the way)."""
    worst, _ = worst_difference(make_model("mistral", "sdpa", torch.float64))
    assert worst < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen2-sliding", "gemma2", "gemma3"])
def test_half_precision_stays_close(name, dtype):
    """Guards: a softmax or a sum of log-probs in half precision, and a mask value that overflows float16."""
    worst, _ = worst_difference(make_model(name, dtype=dtype), mcmc_steps=1)
    assert worst < (0.3 if dtype is torch.bfloat16 else 0.05)


@pytest.mark.parametrize("name", ["qwen2", "phi3", "gemma3"])
def test_lora_adapter_is_served(name):
    """Guards: an adapter that the decode loop bypasses by calling the base model."""
    plain = make_model(name)
    worst, completions = worst_difference(with_lora(make_model(name)), mcmc_steps=1)
    assert worst < 1e-4
    c = completions[0]
    without = full_forward(plain, prompts()[0], c.token_ids)
    assert float((torch.tensor(c.log_probs) - without).abs().max()) > 0.1, "the adapter must matter"


def test_a_model_spread_by_a_device_map_is_served(tmp_path):
    """Guards: masks, positions or caches left on another device than the layer that uses them.

    Layers on disk make accelerate move inputs and weights by hooks, as between GPUs; the embedding among
    them has its weights on the meta device until it is called.
    """
    from accelerate import dispatch_model

    model = make_model("gemma3")
    parts = {"model.embed_tokens": "disk", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk"}
    rest = {f"model.{part}": "cpu" for part in ("layers.0", "layers.2", "rotary_emb")}
    dispatch_model(
        model,
        parts | rest,
        main_device="cpu",
        offload_dir=str(tmp_path),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )
    worst, _ = worst_difference(model, mcmc_steps=1, max_new_tokens=16)
    assert worst < 1e-4


def test_longrope_is_served_up_to_its_original_window():
    """Guards: a row past the window switching the angles of every row of the batch."""
    sampler = PowerSampler(make_model("phi3-longrope"), None)
    assert sampler.host.backend.max_positions == 96
    with pytest.raises(OptionError, match="96 positions"):
        sampler.generate([[5, 6, 7], [5]], max_new_tokens=94)


REASONS = {
    "mamba": "recurrent",
    "recurrentgemma": "recurrent",
    "lfm2": "convolutional",
    "qwen3-next": "hybrid",
    "t5": "encoder-decoder",
    "dynamic-rope": "dynamic",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_the_reason(name):
    """Guards: wrong numbers, or a TypeError from deep inside, where the cache cannot be rewound."""
    with pytest.raises(UnsupportedModelError, match=REASONS[name]):
        PowerSampler(make_model(name), None, eos_token_ids=[EOS])


def test_flash_attention_is_refused_with_the_way_out():
    """Guards: an attention implementation that ignores explicit masks."""
    model = make_model("qwen2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa' or 'eager' or 'lm_power'"):
        HFBackend(model)


def test_prompt_tuning_adapter_is_refused():
    """Guards: virtual tokens put before every forward pass, which shift what decoding sees."""
    from peft import PromptTuningConfig, get_peft_model

    adapted = get_peft_model(make_model("qwen2"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UnsupportedModelError):
        HFBackend(adapted.eval())


def broken(name: str, dtype: torch.dtype, spoil: str) -> torch.nn.Module:
    """A model that cannot be decoded in rows, in a way that no configuration tells."""
    model = make_model(name, dtype=dtype)
    forward = model.forward

    @functools.wraps(forward)
    def spoiled(*args, **kwargs):
        cache = kwargs.get("past_key_values")
        if spoil == "positions":
            kwargs.pop("position_ids", None)
        elif spoil == "mask" and cache is not None and hasattr(cache, "window"):
            rows, queries = kwargs["input_ids"].shape
            kwargs["attention_mask"] = torch.zeros((rows, 1, queries, cache.window.length), dtype=dtype)
        elif spoil == "nan":
            output = forward(*args, **kwargs)
            output.logits[..., 3] = torch.nan
            return output
        return forward(*args, **kwargs)

    model.forward = spoiled
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "phi3"])
@pytest.mark.parametrize("spoil", ["positions", "mask"])
def test_the_self_test_catches_a_broken_model(name, dtype, spoil):
    """Guards: a model (remote code, say) that ignores positions or masks being served with wrong numbers."""
    with pytest.raises(UnsupportedModelError, match="differs from a full forward pass"):
        HFBackend(broken(name, dtype, spoil))


def test_the_self_test_names_logits_that_are_not_finite():
    """Guards: 'differs by nan nats' for a model that overflows its dtype."""
    with pytest.raises(UnsupportedModelError, match="not finite"):
        HFBackend(broken("qwen2", torch.float32, "nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_false_refusal_of_nearly_flat_weights(name, dtype):
    """Guards: a tolerance that takes rounding for an error, for the random weights of `randomize_weights`."""
    config = CONFIGS[name]()
    config.initializer_range = 0.02
    HFBackend(type(make_model(name))(config).to(dtype).eval())


def without_window(real):
    """Rows see all that went before, whatever the layer's window."""
    return lambda *args, **named: real(*args, **{**named, "mask_function": causal_mask_function})


def window_of_one_more(real):
    """Rows see one token beyond the window, where there is one."""

    def mask(positions, additive, **named):
        inner = named["mask_function"]

        def wider(row, head, query, key):
            return inner(row, head, query, key) | (inner(row, head, query - 1, key) & (key <= query))

        return real(positions, additive, **{**named, "mask_function": wider})

    return mask


@pytest.mark.parametrize("breaks", [without_window, window_of_one_more])
@pytest.mark.parametrize(
    ("name", "attention"),
    [("mistral", "sdpa"), ("mistral", "eager"), ("qwen2-sliding", "lm_power"), ("gemma2", "eager"), ("gemma3", "sdpa")],
)
def test_a_wrong_window_is_found_at_load(monkeypatch, name, attention, breaks):
    """Guards the check at load, which decodes 9 tokens: a mask that forgets real windows must not pass it."""
    model = make_model(name, attention)
    model.config.sliding_window = 4096
    HFBackend(model)
    assert model.config.sliding_window == 4096
    monkeypatch.setattr(masks, "_row_mask", breaks(masks._row_mask))
    with pytest.raises(UnsupportedModelError, match="decoding in rows differs from a full forward pass"):
        HFBackend(model)
    assert model.config.sliding_window == 4096
    HFBackend(make_model("llama", attention))  # which has no window


def test_a_window_that_is_kept_elsewhere_is_spanned(monkeypatch, caplog):
    """Guards a model whose masks do not read the window from its configuration: it is spanned, or that is said."""
    spans, compare = [], HFBackend._compare

    def as_if_elsewhere(self, size):
        spans.append(size)
        return compare(self, size) * 0

    monkeypatch.setattr(HFBackend, "_compare", as_if_elsewhere)
    model = make_model("qwen2-sliding")
    HFBackend(model)
    assert spans == [9, 9, WINDOW + 9] and not caplog.records
    model.config.sliding_window = 4096
    HFBackend(model)
    assert spans[3:] == [9, 9] and "could not be checked" in caplog.text
