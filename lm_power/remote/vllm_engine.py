"""vLLM in this process: what its engine must be told, what it must be able to do, and how it is loaded.

Nothing here imports vLLM before it is asked for.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.config import OptionError
from lm_power.engine.stopping import eos_ids
from lm_power.remote.places import Card
from lm_power.remote.queries import Answer, Query, ServerError
from lm_power.remote.server import Server, check_top
from lm_power.remote.trials import Trial, probe_of, try_engine
from lm_power.remote.vllm_client import EngineClient

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OTHER_LAWS = (
    "speculative_config", "spec_method", "spec_model", "logits_processors", "watermark_config", "diffusion_config",
)  # fmt: skip
"""Options with which vLLM draws from something else than the model's distribution, or has had wrong log-probs."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for


def load(
    model: str,
    *,
    top_logprobs: int = 20,
    lora_local_path: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
    **options: Any,
) -> Server:
    """Load a model into a vLLM engine of its own, and try out all that power sampling needs.

    Args:
        model: hub id or folder.
        top_logprobs: K, tokens that the engine lists.
        lora_local_path: folder of a LoRA adapter to sample with.
        eos_token_ids: tokens that end a completion; default: see `serve`.
        options: of vLLM's `LLM`.

    Raises:
        OptionError: a wrong option, or vLLM is not installed.
    """
    options = engine_options(model, options, top_logprobs, lora_local_path)
    if importlib.util.find_spec("vllm") is None:
        raise OptionError("vLLM is not installed: pip install 'lm-power[vllm]'")
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    adapter = None if lora_local_path is None else LoRARequest("adapter", 1, str(lora_local_path))
    if adapter is not None:
        options["enable_lora"] = True
    llm = LLM(model=model, **options)
    return serve(
        llm, model, llm.get_tokenizer(), top_logprobs=top_logprobs, lora_request=adapter, eos_token_ids=eos_token_ids
    )


def engine_options(
    model: str, options: Mapping[str, Any], top_logprobs: int, lora_local_path: str | None = None
) -> dict[str, Any]:
    """The options of `LLM` for power sampling: what it needs is filled in.

    Args:
        model: hub id or folder.
        options: the user's.
        top_logprobs: K.
        lora_local_path: folder of a LoRA adapter; its rank becomes `max_lora_rank`, if that is not given.

    Raises:
        OptionError: an option that would have the engine draw from something else than the model's own distribution,
            or not list enough of it.
    """
    check_top(top_logprobs)
    replicas = options.get("data_parallel_size") or 1
    if int(replicas) > 1:
        raise OptionError(
            f"data_parallel_size={replicas}: vLLM has replicas behind a server only; start `vllm serve {model} "
            f"--data-parallel-size {replicas}`, and then `lm_eval --model power-api --model_args "
            f"base_url=http://localhost:8000/v1/completions,data_parallel={replicas},…` with the other options as here"
        )
    mode = options.get("logprobs_mode", "raw_logprobs")
    if mode != "raw_logprobs":
        raise OptionError(f"logprobs_mode={mode}: power sampling needs raw_logprobs, vLLM's default; leave it out")
    for name in _OTHER_LAWS:
        if options.get(name):
            raise OptionError(f"{name}: draws must come from the model's own distribution, untouched; leave it out")
    listed = options.get("max_logprobs", max(top_logprobs, 20))
    if 0 <= listed < top_logprobs:
        raise OptionError(f"max_logprobs={listed}: must be >= top_logprobs={top_logprobs}; leave it out")
    rank = (
        {} if lora_local_path is None or "max_lora_rank" in options else {"max_lora_rank": _room_for(lora_local_path)}
    )
    return {**rank, **options, "logprobs_mode": mode, "max_logprobs": listed}


def _room_for(adapter: str) -> int:
    """The least `max_lora_rank` for a folder's adapter. Raises `OptionError`."""
    path = Path(adapter) / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
        return next(most for most in _LORA_RANKS if rank <= most)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise OptionError(
            f"lora_local_path={adapter}: must be the folder of a LoRA adapter of rank <= {_LORA_RANKS[-1]} "
            f"({path.name}: {type(error).__name__}: {error})"
        ) from error


def serve(
    llm: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    top_logprobs: int = 20,
    lora_request: Any = None,
    eos_token_ids: Sequence[int] | None = None,
) -> Server:
    """A vLLM engine that is there already, tried out.

    Args:
        llm: the `LLM`.
        name: the model's.
        tokenizer: the model's; None if prompts are token ids and texts are not wanted.
        top_logprobs: K, tokens that the engine lists.
        lora_request: adapter to sample with; None for none.
        eos_token_ids: tokens that end a completion; default: those of the generation config (or config) and of the
            tokenizer.

    Raises:
        OptionError: the engine cannot be used as it was made.
    """
    check_top(top_logprobs)
    engine = llm.llm_engine
    of_model, whole = engine.model_config, engine.vllm_config
    vocabulary = of_model.get_vocab_size()
    if top_logprobs > vocabulary:
        raise OptionError(f"top_logprobs={top_logprobs}: must be <= {vocabulary}, the model's number of tokens")
    engine_options(
        name,
        {
            "data_parallel_size": whole.parallel_config.data_parallel_size,
            "logprobs_mode": of_model.logprobs_mode,
            "max_logprobs": of_model.max_logprobs,
            "speculative_config": whole.speculative_config,
            "watermark_config": getattr(whole, "watermark_config", None),
        },
        top_logprobs,
    )
    found = find_eos_ids(of_model, tokenizer) if eos_token_ids is None else eos_token_ids
    if not found or not all(0 <= token < vocabulary for token in found):
        raise OptionError(
            f"the model's EOS tokens, {list(found)}: must be some of its {vocabulary} tokens; pass eos_token_ids"
        )
    client = EngineClient(llm, top_logprobs, lora_request)
    server = Server(client, Card(name, window=of_model.max_model_len), tokenizer, found, _settings(whole))
    try_engine(_EngineTrial(client, name, probe_of(tokenizer)[: of_model.max_model_len // 2]))
    return server


class _EngineTrial(Trial):
    def __init__(self, client: EngineClient, model: str, probe: Sequence[int]) -> None:
        super().__init__(f"model={model} in vLLM", client.top, probe)  # texts are not the engine's to make
        self._client = client

    def draw(
        self, tokens: Sequence[int], n: int, temperature: float, stop_token_ids: Sequence[int] = ()
    ) -> tuple[Answer, str]:
        eos_ids, self._client.eos_ids = self._client.eos_ids, list(stop_token_ids)
        try:
            self._client.add(0, Query(0, tokens, n, temperature, seed=20))
            ((_, answer),) = self._client.poll([0])
        except ServerError as error:
            raise self.unsuitable(str(error), "nothing has been drawn") from error
        finally:
            self._client.abort([0])  # where the trial was interrupted
            self._client.eos_ids = eos_ids
        return answer, ""


def find_eos_ids(of_model: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """EOS ids of the generation config, else of the config; and the tokenizer's. From vLLM's `ModelConfig`."""
    listed = of_model.try_get_generation_config().get("eos_token_id")
    if listed is None:
        listed = getattr(of_model.hf_text_config, "eos_token_id", None)
    return eos_ids(listed, tokenizer)


def _settings(whole: Any) -> dict[str, Any]:
    """What of an engine's configuration changes the numbers of a checkpoint, beside the dtype of its weights."""
    kv_cache = str(whole.cache_config.cache_dtype)
    found = {
        "quantization": whole.model_config.quantization,
        "kv_cache_dtype": None if kv_cache == "auto" else kv_cache,
        "hf_overrides": whole.model_config.hf_overrides or None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
