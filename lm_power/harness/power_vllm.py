"""`power-vllm`: lm-eval's model on vLLM in this process, whose `generate_until` samples from p(x)^alpha."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.vllm_causallms import VLLM
from vllm import LLM
from vllm.engine.arg_utils import EngineArgs

from lm_power.config import OptionError, SamplerConfig, near_matches
from lm_power.fingerprint import checkpoint_fingerprint
from lm_power.harness.generation import ServedGeneration
from lm_power.harness.options import (
    LOADING_OPTIONS,
    SAMPLER_OPTIONS,
    refuse_several_processes,
    sampler_options,
    store_folder,
    token_ids,
)
from lm_power.identity import Identity
from lm_power.remote.vllm_engine import engine_options, serve
from lm_power.sampler import PowerSampler

_ELSEWHERE = {
    "peft": "lora_local_path",
    "parallelize": "tensor_parallel_size",
    "max_memory_per_gpu": "gpu_memory_utilization",
    "load_in_4bit": "quantization=bitsandbytes",
    "load_in_8bit": "quantization",
}
"""Options of power-hf → what vLLM has in their place."""


class PowerVLLM(ServedGeneration, VLLM):
    """`vllm` with another `generate_until`; log-likelihoods, chat templates and all other options are lm-eval's.

    Example: `lm_eval --model power-vllm --model_args pretrained=ID,method=power,alpha=4 --tasks math500 --batch_size
    auto`.

    Args:
        pretrained: hub id or folder, as in `vllm`.
        completions: folder of a store; a run that was cut short resumes from it.
        top_logprobs: number of tokens that the engine lists with each token it draws; proposals are confined to them.
        kv_block_size: vLLM's `block_size`, tokens in a block of its cache. `block_size` and `seed` are the sampler's.
        eos_token_ids: tokens that end a completion, such as 1/2; default: those of the generation config (or config)
            and of the tokenizer.
        lora_local_path: folder of a LoRA adapter; `max_lora_rank` is its rank by default.
        arguments: sampler options (`lm_power.config.SamplerConfig`), including `explore` (0.03 by default), those of
            lm-eval's `vllm`, and vLLM's own. `batch_size` is the number of completions drawn side by side, or "auto"
            for as many as the engine takes (`max_num_seqs`).

    Raises:
        OptionError: a wrong or misspelt option, before the model is loaded.
    """

    def __init__(
        self,
        pretrained: str,
        completions: str | None = None,
        top_logprobs: int = 20,
        kv_block_size: int | None = None,
        eos_token_ids: str | int | None = None,
        lora_local_path: str | None = None,
        **arguments: Any,
    ) -> None:
        ours, theirs = sampler_options(arguments)
        self.sampler_config = SamplerConfig().replace(**ours)
        refuse_unknown(theirs)
        if theirs.get("truncation_side", "left") != "left":
            raise OptionError(
                f"truncation_side={theirs['truncation_side']}: prompts of power sampling are cut on the left; leave it "
                "out"
            )
        refuse_several_processes("power-vllm", "tensor_parallel_size")
        self.completions = store_folder({"completions": completions})
        eos_ids = token_ids(eos_token_ids)
        theirs = engine_options(pretrained, theirs, top_logprobs, lora_local_path)
        if kv_block_size is not None:
            theirs["block_size"] = kv_block_size
        super().__init__(pretrained, lora_local_path=lora_local_path, **theirs)
        server = serve(
            self.model,
            pretrained,
            self.tokenizer,
            top_logprobs=top_logprobs,
            lora_request=self.lora_request,
            eos_token_ids=eos_ids,
        )
        self._adapter = lora_local_path
        self._sampler = PowerSampler(server, self.tokenizer, max_rows=self._rows())

    @functools.cached_property
    def model_name(self) -> str:
        """The model as the store records it: "name@fingerprint" if the weights are those of its checkpoint.

        The checkpoint's fingerprint does not describe weights that vLLM quantises: "name (quantised, fp8)".
        """
        given, of_model = self.model_args, self.model.llm_engine.model_config
        name, made_up = given["model"], given.get("load_format") == "dummy"
        if of_model.quantization is not None:
            return str(Identity(f"{name} (quantised, {of_model.quantization})", self._adapter, made_up))
        if made_up:
            return str(Identity(name, self._adapter, randomized=True))
        found = checkpoint_fingerprint(name, given["revision"], of_model.dtype, self._adapter)
        return str(Identity(name, self._adapter, fingerprint=found))

    def prompt_ids(self, context: str) -> Sequence[int]:
        """As lm-eval's model encodes it."""
        tokens: list[int] = self.tok_encode(context)
        return tokens

    def positions(self) -> int:
        """Those of the engine."""
        return int(self.max_length)

    def one_row_hint(self) -> str | None:
        """Say that `--batch_size` is 1 by default."""
        one = self._sampler.max_rows == 1
        return "batch_size=1 decodes one completion at a time; --batch_size auto is far faster" if one else None

    def _rows(self) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        return int(self.model.llm_engine.vllm_config.scheduler_config.max_num_seqs)


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` for names that neither lm-eval's model nor vLLM knows."""
    for name in options:
        if name in _ELSEWHERE:
            raise OptionError(f"{name}: is an option of power-hf; on vLLM it is {_ELSEWHERE[name]}")
        if name in LOADING_OPTIONS:
            raise OptionError(f"{name}: is an option of power-hf, and vLLM has nothing in its place; leave it out")
    signatures = (PowerVLLM.__init__, VLLM.__init__, LLM.__init__, EngineArgs.__init__)
    known = {name for one in signatures for name in inspect.signature(one).parameters}
    known |= {*SAMPLER_OPTIONS, "device"}
    for name in options:
        if name not in known:
            near = near_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else "vLLM has none of this name"
            raise OptionError(f"unknown option {name!r} in --model_args: {hint}")
