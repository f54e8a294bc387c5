"""Runs a Hugging Face causal LM over rows of a `RowCache`, and refuses models that it cannot run correctly."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import CacheLayerMixin

from lm_power.engine.attention import check_kernel
from lm_power.engine.kv_cache import CacheLayers, LayerShape, RowCache
from lm_power.engine.masks import SPANS_ATTENTION, SUPPORTED_ATTENTION, accept_row_positions
from lm_power.engine.prefill import prefill
from lm_power.engine.products import FastLinears
from lm_power.errors import LMPowerError
from lm_power.target import log_probabilities

logger = logging.getLogger(__name__)

# Largest root-mean-square Δ log p between decoding in rows and one full forward, in units of the logits'
# spread. Measured on tiny models: rounding 2e-6 (float32) to 0.02 (bfloat16); positions ignored, 0.6 to 1.1.
# Not the largest |Δ log p|: over a large vocabulary in bfloat16 that is dominated by the rounding of logits.
# A float64 model still takes norms and eager softmax in float32.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}

_VERIFIED = 9  # tokens of the rows that the comparison decodes
_NARROW = 3  # tokens that a sliding window is narrowed to for it
_SPANNED = 1024  # tokens up to which a window that cannot be narrowed is spanned

# A layer that reads another layer's keys and values (Gemma 3n, 4), in transformers that have a class for it.
_SHARING: tuple[type, ...] = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()


class UnsupportedModelError(LMPowerError, ValueError):
    """The engine cannot serve this model correctly; the message says why and what can be done."""


class NextLogits(NamedTuple):
    """[rows, vocabulary] logits of the target p and of the proposal q; the same tensor if there is one model."""

    target: Tensor
    proposal: Tensor


class HFBackend:
    """A causal LM with a key/value cache, decoded row by row.

    Args:
        model: transformers causal LM, or a PEFT model around one; on one device or spread by a device map.
        verify: decode a few ragged rows and compare with a full forward pass (recommended: it catches
            architectures whose cache works in a way not foreseen here).
        cuda_graphs: on CUDA, record a decode step as a CUDA graph and replay it.
        torch_compile: compile the model's forward for decode steps, which takes minutes, once. Its gain is unmeasured.

    Attributes:
        foreign: whether q is another model's than p; see `lm_power.engine.paired`.
        reads_spans: whether the attention reads each row's visible positions only, however many it is shown.
        replays: whether decode steps are recorded and replayed.
        compiles_draw: whether the draw is compiled when decode steps are recorded.
        compiled: whether decode steps run a compiled model.
        cache_dtype: dtype of cached keys and values, such as "float32"; None if it is that of the embedding's weights,
            which is the case unless the model computes in another dtype than it is stored in.

    Raises:
        UnsupportedModelError: encoder-decoder; recurrent, convolutional or otherwise unknown cache;
            attention implementation without explicit masks; or the comparison failed.
        ImportError: the attention needs Triton, and it is not installed.
    """

    foreign = False

    def __init__(
        self, model: PreTrainedModel, verify: bool = True, cuda_graphs: bool = True, torch_compile: bool = False
    ) -> None:
        self.model = model
        # Decode steps have few shapes. Prompts have many, so the model is not compiled for them.
        self.compiled = torch_compile
        self._decoder: Callable[..., Any] = torch.compile(model) if torch_compile else model
        self._products = contextlib.nullcontext() if torch_compile else FastLinears(model)
        base: Any = getattr(model, "get_base_model", lambda: model)()
        self.config = base.config.get_text_config()
        self.name = type(base).__name__
        if getattr(base.config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{self.name} is an encoder-decoder model; power sampling here needs a decoder-only causal LM"
            )
        attention = getattr(self.config, "_attn_implementation", None)
        if attention not in SUPPORTED_ATTENTION:
            raise UnsupportedModelError(
                f"attn_implementation={attention!r}: rows at positions of their own need explicit masks; "
                f"load the model with attn_implementation={' or '.join(map(repr, SUPPORTED_ATTENTION))}"
            )
        self.reads_spans = attention == SPANS_ATTENTION
        self.max_positions = self._max_positions()
        if self.reads_spans:
            check_kernel(parameter.device for parameter in base.parameters())
        accept_row_positions()
        self.vocabulary: int = base.get_output_embeddings().weight.shape[0]
        embedding = base.get_input_embeddings()
        self.input_device: torch.device = embedding.weight.device
        if self.input_device.type == "meta":  # offloaded: accelerate's hook brings the weights to its device
            self.input_device = torch.device(embedding._hf_hook.execution_device)
        accepts = inspect.signature(base.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepts:
            self._options["logits_to_keep"] = 1
        self.cache_dtype: str | None = None
        try:
            self.shapes = self._probe(embedding.weight.dtype)
            if verify:
                self._verify()
        except (UnsupportedModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.name} ({self.config.model_type}) does not run on the engine's cache: "
                f"{type(error).__name__}: {error}{self._other_attention()}"
            ) from error
        heads = getattr(self.config, "num_attention_heads", self.shapes[0].heads)
        self.query_groups = max(1, heads // self.shapes[0].heads)  # query heads that share a key/value head
        self.replays = cuda_graphs and self._can_be_recorded()
        self.compiles_draw = True

    @property
    def models(self) -> tuple[HFBackend, ...]:
        """The models whose layers a cache of its `shapes` holds."""
        return (self,)

    def _can_be_recorded(self) -> bool:
        """Whether a decode step can be a CUDA graph; on CUDA, a warning says why not."""
        if self.input_device.type != "cuda":
            return False
        reasons = []
        if any(hasattr(module, "_hf_hook") for module in self.model.modules()):
            reasons.append("accelerate moves its inputs or weights between devices")
        if any(rope.get("rope_type", rope.get("type")) == "longrope" for rope in self._ropes()):
            reasons.append("its rope_type 'longrope' asks for the longest position at each step")
        if reasons:
            logger.warning("%s: decode steps are not recorded as CUDA graphs: %s", self.name, "; ".join(reasons))
        return not reasons

    @torch.inference_mode()
    def forward(
        self, cache: RowCache, first: int, tokens: Tensor, positions: Tensor, slots: Tensor, length: int
    ) -> Tensor:
        """Feed tokens to the rows at places [first, first + rows) of the cache.

        Args:
            cache: where keys and values are read and written.
            first: place of the first row.
            tokens: [rows, queries] int64 on `input_device`.
            positions: as tokens; see `RowCache.look_at`.
            slots: as tokens; see `RowCache.look_at`.
            length: slots shown to the attention.

        Returns:
            [rows, vocabulary] logits of the last query of each row.
        """
        cache.look_at(first, positions, slots, length)
        return self.logits(cache, tokens, positions)

    @torch.inference_mode()
    def decode(self, cache: RowCache, tokens: Tensor, positions: Tensor, slots: Tensor, length: int) -> NextLogits:
        """`forward` for one token in each of the first rows, by the compiled model if there is one."""
        cache.look_at(0, positions, slots, length)
        logits = self.logits(cache, tokens, positions, self._decoder)
        return NextLogits(logits, logits)

    def logits(
        self, cache: CacheLayers, tokens: Tensor, positions: Tensor, model: Callable[..., Any] | None = None
    ) -> Tensor:
        """As `forward`, over the rows that the cache looks at; `model` is the model itself or its compiled form."""
        run = self.model if model is None else model
        with self._products:
            output = run(input_ids=tokens, position_ids=positions, past_key_values=cache, **self._options)
        logits: Tensor = output.logits[:, -1]
        return logits

    @torch.inference_mode()
    def _probe(self, plain_dtype: torch.dtype) -> list[LayerShape]:
        """Shapes of what each layer caches, from a forward pass over two tokens; sets `cache_dtype`."""
        tokens = torch.zeros((1, 2), dtype=torch.long, device=self.input_device)
        cache = DynamicCache(config=self.config)
        output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        used = getattr(output, "past_key_values", None)
        layers = used.layers if used is cache else []
        shapes = []
        dtypes: set[torch.dtype] = set()
        for index, layer in enumerate(layers):
            if isinstance(layer, _SHARING):
                shapes.append(LayerShape(0, 0, 0, torch.float32, self.input_device))
                continue
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            plain = isinstance(layer, CacheLayerMixin) and not hasattr(layer, "conv_states")
            if not (plain and keys is not None and values is not None and keys.ndim == 4 and keys.shape[2] == 2):
                raise self._refused(f"its layer {index} keeps a {type(layer).__name__}")
            shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, keys.device))
            dtypes |= {keys.dtype, values.dtype}
        if not shapes:
            raise self._refused("it returns no key/value cache")
        if dtypes - {plain_dtype}:
            self.cache_dtype = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return shapes

    def _refused(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name} ({self.config.model_type}) cannot be rewound: {why}. The engine needs a key and a "
            "value per token in every layer; recurrent, convolutional and hybrid caches (Mamba, RWKV, Jamba …) "
            "have none. Use a transformer with attention layers only"
        )

    def _ropes(self) -> list[dict[str, Any]]:
        """The rotary embedding's settings: those for all layers, then those of single layer types."""
        ropes = getattr(self.config, "rope_parameters", None) or {}
        return [ropes, *(part for part in ropes.values() if isinstance(part, dict))]

    def _other_attention(self) -> str:
        """What else to try, for the end of an error message."""
        return "; it may run when loaded with attn_implementation='sdpa' or 'eager'" if self.reads_spans else ""

    def _max_positions(self) -> int | None:
        """Positions up to which the model's distribution does not depend on what else is in the batch, or None."""
        limit = getattr(self.config, "max_position_embeddings", None)
        for rope in self._ropes():
            kind = rope.get("rope_type", rope.get("type"))
            if kind == "dynamic":
                raise UnsupportedModelError(
                    f"{self.name}: rope_type 'dynamic' rescales all rows by the longest one; load the model "
                    "with another rope_scaling"
                )
            if kind == "longrope":
                # Beyond the original window transformers switches all rows of a batch to other angles.
                original = rope.get("original_max_position_embeddings") or getattr(
                    self.config, "original_max_position_embeddings", None
                )
                limit = min(filter(None, (limit, original)), default=None)
        return limit

    def _verify(self) -> None:
        """Compare decoding in rows with full forward passes, including tokens that a sliding window has left behind.

        Real windows have thousands of tokens, too many to read at every start. The window is therefore narrowed for a
        second comparison, in the configuration from which both ways make their masks. A model that keeps its window
        elsewhere gives unchanged logits; if its own window is short, a longer sequence is decoded instead.
        """
        plain = self._compare(_VERIFIED)
        windows = self._windows()
        if not windows:
            return
        before = {name: getattr(self.config, name) for name in windows}
        try:
            for name in windows:
                setattr(self.config, name, _NARROW)
            narrowed = self._compare(_VERIFIED)
        finally:
            for name, window in before.items():
                setattr(self.config, name, window)
        if not torch.equal(plain, narrowed):
            return
        longest = max(windows.values()) + _VERIFIED
        if longest <= _SPANNED and (self.max_positions is None or longest <= self.max_positions):
            self._compare(longest)
        elif "sliding_attention" in (getattr(self.config, "layer_types", None) or ()):
            window = max(windows.values())
            logger.warning("%s: whether it respects its window of %d tokens could not be checked", self.name, window)

    def _windows(self) -> dict[str, int]:
        """The window lengths, tokens, that the configuration sets, by name."""
        lengths = {name: getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")}
        return {name: length for name, length in lengths.items() if isinstance(length, int) and length > 0}

    @torch.inference_mode()
    def _compare(self, size: int) -> Tensor:
        """Decode three ragged rows of up to `size` tokens, one of them rewound, and compare with full forward passes.

        Returns:
            [vocabulary] logits of the last token of the first row's full pass.
        """
        device, behind = self.input_device, size - _VERIFIED
        mixed = torch.arange(3 * size, device=device).view(3, size) * 7919 + 13
        tokens = mixed % self.vocabulary
        start = torch.tensor([1, 4, 2], device=device) + behind
        cache = RowCache(self.shapes, rows=3, length=size)
        for row, stop in enumerate(start.tolist()):
            prefill(self, cache, row, tokens[row, :stop].tolist(), chunk=max(3, behind))
        rewound = 3 + behind
        cache.save(1, rewound - 1, rewound + 1)
        slots = torch.tensor([[cache.trash], [rewound], [cache.trash]], device=device)
        idle = torch.zeros_like(slots)
        self.forward(cache, 0, idle, torch.where(slots == rewound, slots, idle), slots, size)
        cache.restore(1)
        worst = spread = 0.0
        reference = [self.model(input_ids=tokens[row : row + 1], use_cache=False).logits[0] for row in range(3)]
        for step in range(4):
            at = start[:, None] + step
            logits = self.forward(cache, 0, tokens.gather(1, at), at, at, size)
            for row in range(3):
                expected = reference[row][int(at[row])]
                log_p, log_p_expected = log_probabilities(logits[row]), log_probabilities(expected)
                if bool((log_p.isnan() | log_p_expected.isnan()).any()):
                    raise UnsupportedModelError(
                        f"{self.name} ({self.config.model_type}): its logits are not finite in {expected.dtype}; "
                        "load it in a dtype of larger range (bfloat16 or float32)"
                    )
                possible = log_p_expected > -100  # some models put tokens at -inf or the dtype's minimum
                difference = (log_p - log_p_expected)[possible]
                worst = max(worst, float(difference.pow(2).mean().sqrt()))
                spread = max(spread, float(log_p_expected[possible].std()))
        tolerance = _TOLERANCE.get(expected.dtype, 0.25) * spread
        if worst > tolerance:
            raise UnsupportedModelError(
                f"{self.name} ({self.config.model_type}): decoding in rows differs from a full forward pass by "
                f"{worst:.3g} nats (tolerance {tolerance:.3g}); its cache or masks work in a way that the engine does "
                f"not support, and its samples would be wrong{self._other_attention()}"
            )
        return reference[0][-1]
