"""A stand-in for the package vllm: its `LLM` and engine, as far as power sampling and lm-eval's model look at them.

It draws from exact laws, of a table or of a checkpoint in float64, with the noise of `fake_server`: the same queries
get the same answers from both. `installed` puts it where `import vllm` finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from remote.fake_server import draw_token, law_of_model

VERSION = "0.32.0"
Law = Callable[[tuple[int, ...]], np.ndarray]


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclasses.dataclass
class SamplingParams:
    """The fields that somebody here sets, with vLLM's defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclasses.dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclasses.dataclass
class EngineArgs:
    """A part of vLLM's options, by its names and with its defaults."""

    model: str
    tokenizer: str | None = None
    tokenizer_mode: str = "auto"
    tokenizer_revision: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    hf_overrides: Any = dataclasses.field(default_factory=dict)
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    block_size: int | None = None
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    speculative_config: Any = None
    logits_processors: Any = None
    enable_lora: bool = False
    max_lora_rank: int = 16
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    load_format: str = "auto"


@dataclasses.dataclass
class _Running:
    prompt: list[int]
    params: SamplingParams
    lora: LoRARequest | None
    tokens: list[int] = dataclasses.field(default_factory=list)
    ids: list[int] = dataclasses.field(default_factory=list)
    log_p: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """One token a step for each request that runs; the others wait.

    Attributes:
        raw: log-probs are the model's own, whatever the temperature; as `logprobs_mode` has it.
        reason: `finish_reason` of every answer; None for the true one.
        added, steps: all requests so far, by name; steps so far.
    """

    def __init__(self, laws: Callable[[str | None], Law], args: EngineArgs, eos_ids: list[int], sizes: tuple[int, int]):
        self.laws, self.args, vocabulary, positions = laws, args, *sizes
        self.raw, self.reason = args.logprobs_mode == "raw_logprobs", None
        self.added: dict[str, _Running] = {}
        self.running: dict[str, _Running] = {}
        self.steps = 0
        self.model_config = SimpleNamespace(
            max_model_len=args.max_model_len or positions,
            logprobs_mode=args.logprobs_mode,
            max_logprobs=args.max_logprobs,
            dtype=torch.float64,
            quantization=args.quantization,
            hf_overrides=args.hf_overrides,
            hf_text_config=SimpleNamespace(eos_token_id=eos_ids),
            get_vocab_size=lambda: vocabulary,
            try_get_generation_config=dict,
        )
        self.vllm_config = SimpleNamespace(
            model_config=self.model_config,
            parallel_config=SimpleNamespace(data_parallel_size=args.data_parallel_size),
            cache_config=SimpleNamespace(cache_dtype=args.kv_cache_dtype),
            scheduler_config=SimpleNamespace(max_num_seqs=args.max_num_seqs or 128),
            speculative_config=args.speculative_config,
        )

    def add_request(self, request_id: str, prompt: dict, params: SamplingParams, lora_request=None) -> str:
        assert prompt["type"] == "token"
        tokens = prompt["prompt_token_ids"]
        if len(tokens) + 1 > self.model_config.max_model_len:
            raise ValueError(f"The prompt (length {len(tokens)}) is longer than the maximum model length")
        if not 0 <= (params.logprobs or 0) <= self.model_config.max_logprobs:
            raise ValueError(f"Requested sample logprobs of {params.logprobs}, greater than max allowed")
        if lora_request is not None and not self.args.enable_lora:
            raise ValueError("Got lora_request but LoRA is not enabled!")
        assert request_id not in self.added, "a name was used twice"
        self.added[request_id] = self.running[request_id] = _Running(list(tokens), params, lora_request)
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.running.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[SimpleNamespace]:
        self.steps += 1
        outputs = []
        for name, one in list(self.running.items())[: self.vllm_config.scheduler_config.max_num_seqs]:
            reason = self._draw(one)
            if reason is not None:
                del self.running[name]
                outputs.append(self._output(name, one, reason))
        return outputs

    def _draw(self, one: _Running) -> str | None:
        """One token more, with its log-prob and list; why the request ends, if it does."""
        params, context = one.params, (*one.prompt, *one.tokens)
        log_p = self.law(one.lora)(context)
        weights = np.exp((log_p - log_p.max()) / max(params.temperature, 1e-2))
        token = draw_token(weights, params.seed or 0, len(context))
        told = log_p if self.raw else np.log(weights / weights.sum())
        listed = [token, *np.argsort(-told, kind="stable")[: params.logprobs or 0].tolist()]
        one.tokens.append(token)
        one.ids += listed
        one.log_p += told[listed].tolist()
        if token in (params.stop_token_ids or ()):
            return "stop"
        return "length" if len(one.tokens) == params.max_tokens else None

    def _output(self, name: str, one: _Running, reason: str) -> SimpleNamespace:
        flat = SimpleNamespace(token_ids=one.ids, logprobs=one.log_p)
        completion = SimpleNamespace(
            token_ids=one.tokens, logprobs=flat, finish_reason=reason if self.reason is None else self.reason
        )
        return SimpleNamespace(request_id=name, finished=True, outputs=[completion])

    def law(self, lora: LoRARequest | None) -> Law:
        return self.laws(None if lora is None else lora.lora_path)


class LLM:
    """Over a checkpoint in a folder; or over a table, by `LLM.over`."""

    def __init__(self, **options: Any) -> None:
        from transformers import AutoConfig, AutoTokenizer

        args = EngineArgs(**options)
        config = AutoConfig.from_pretrained(args.model)
        laws: dict[str | None, Law] = {}

        def law(adapter: str | None) -> Law:
            if adapter not in laws:
                laws[adapter] = law_of_model(args.model, adapter)
            return laws[adapter]

        sizes = config.vocab_size, config.max_position_embeddings
        self.llm_engine = Engine(law, args, [config.eos_token_id], sizes)
        self._tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)

    @classmethod
    def over(cls, next_log_p: Law, vocabulary: int, eos_ids: list[int], **options: Any) -> LLM:
        made = cls.__new__(cls)
        made.llm_engine = Engine(lambda _: next_log_p, EngineArgs("a table", **options), eos_ids, (vocabulary, 512))
        return made

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def generate(self, prompts, sampling_params, use_tqdm=True, lora_request=None) -> list[SimpleNamespace]:
        """What lm-eval asks for log-likelihoods: the log-probs of prompts."""
        assert all(params.prompt_logprobs == 1 for params in sampling_params)
        law = self.llm_engine.law(lora_request)
        return [SimpleNamespace(prompt_logprobs=_of_prompt(law, prompt["prompt_token_ids"])) for prompt in prompts]


def _of_prompt(law: Law, tokens: list[int]) -> list[dict | None]:
    laws = [law(tuple(tokens[:t])) for t in range(1, len(tokens))]
    asked = zip(laws, tokens[1:], strict=True)
    return [None, *({int(p.argmax()): float(p.max()), token: float(p[token])} for p, token in asked)]


def _modules() -> Iterator[ModuleType]:
    from transformers import AutoTokenizer

    def get_tokenizer(name, tokenizer_mode="auto", trust_remote_code=False, revision=None, **options):
        return AutoTokenizer.from_pretrained(name, **options)

    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.sampling_params": {"SamplingParams": SamplingParams, "RequestOutputKind": RequestOutputKind},
        "vllm.inputs": {"tokens_input": lambda tokens: {"type": "token", "prompt_token_ids": tokens}},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **_: None},
        "vllm.tokenizers": {"get_tokenizer": get_tokenizer},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(content)
        yield module


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`import vllm` finds the stand-in, whether or not there is a real one."""
    real = importlib.metadata.version
    ours = ("lm_eval.models.vllm_causallms", "lm_power.harness.power_vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: VERSION if name == "vllm" else real(name))
        for module in _modules():
            patch.setitem(sys.modules, module.__name__, module)
        for name in ours:
            patch.delitem(sys.modules, name, raising=False)
        yield
        for name in ours:
            sys.modules.pop(name, None)
