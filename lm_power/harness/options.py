"""From lm-eval's `--model_args` and `--gen_kwargs` to a SamplerConfig."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from lm_power.config import LENGTH_NAMES, OptionError, SamplerConfig, check_names, near_matches, option_names

# The horizon is lm-eval's own option, max_gen_toks, with lm-eval's own aliases.
SAMPLER_OPTIONS = tuple(name for name in option_names() if name != "max_new_tokens")
LOADING_OPTIONS = (  # for --model_args alone
    "batch_shape", "cuda_graphs", "merge_adapter", "proposal_peft", "randomize_weights", "torch_compile",
)  # fmt: skip
# Options of other libraries that change the distribution that is sampled.
_PENALTIES = (
    "repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty", "no_repeat_ngram_size",
    "typical_p", "logit_bias", "bad_words_ids",
)  # fmt: skip
# Options in tasks that assume greedy or plain sampled decoding; here the model's `method` decides instead.
_DECODING_NAMES = ("do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one group of requests is to be generated.

    Attributes:
        config: how completions are drawn.
        stop: stop strings.
        completions: folder of the store; None for none.
    """

    config: SamplerConfig
    stop: tuple[str, ...]
    completions: str | None


def sampler_options(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split some of lm-eval's options into (the sampler's, all others)."""
    ours = {name: value for name, value in arguments.items() if name in SAMPLER_OPTIONS}
    return ours, {name: value for name, value in arguments.items() if name not in SAMPLER_OPTIONS}


def split_model_args(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(sampler options, HFLM's arguments), from all of `--model_args`.

    As in `hf`, an option that neither knows goes to transformers' `from_pretrained`, unless it looks like a misspelling
    of ours.

    Raises:
        OptionError: an unknown name close to a known one, or a length, which belongs in `--gen_kwargs`.
    """
    ours, rest = sampler_options(arguments)
    known = set(inspect.signature(HFLM.__init__).parameters)
    for name in rest:
        if name in LENGTH_NAMES:
            raise OptionError(f"{name} in --model_args: set it by --gen_kwargs max_gen_toks={rest[name]}")
        near = near_matches(name, (*SAMPLER_OPTIONS, "completions", *LOADING_OPTIONS))
        if name not in known and near:
            raise OptionError(f"unknown option {name!r} in --model_args: did you mean {' or '.join(near)}?")
    return ours, rest


def plan_generation(
    generation: Mapping[str, Any], config: SamplerConfig, completions: str | None, default_length: int
) -> Plan:
    """What a request's generation kwargs (the task's, overridden by `--gen_kwargs`) ask for.

    Args:
        generation: as lm-eval passes them.
        config: the sampler's options from `--model_args`, which these override.
        completions: store folder from `--model_args`.
        default_length: `max_gen_toks` if none is given, tokens.

    Raises:
        OptionError: unknown or wrong options.
    """
    known = ("until", "completions", *LENGTH_NAMES, *_DECODING_NAMES, *SAMPLER_OPTIONS)
    for name in LOADING_OPTIONS:
        if name in generation:
            raise OptionError(f"{name} in --gen_kwargs: the model is loaded once; set it by --model_args")
    for name in _PENALTIES:
        if name in generation:
            raise OptionError(
                f"{name}={generation[name]}: there is no such option here, because the target is the model's own "
                "distribution to the power alpha, and a penalty would change it; leave it out"
            )
    check_names(generation, known, "option in generation kwargs")
    lengths = {name: generation[name] for name in LENGTH_NAMES if generation.get(name) is not None}
    if len(set(lengths.values())) > 1:
        given = " and ".join(f"{name}={length}" for name, length in lengths.items())
        raise OptionError(f"{given}: two names for one option; override the task's by the name that the task uses")
    length = next(iter(lengths.values()), default_length)
    chosen = {name: generation[name] for name in SAMPLER_OPTIONS if name in generation}
    try:
        config = config.replace(**chosen, max_new_tokens=length)
    except OptionError as error:
        raise OptionError(str(error).replace("max_new_tokens", "max_gen_toks")) from None
    return Plan(config, _stop_strings(generation.get("until")), store_folder(generation, completions))


def store_folder(options: Mapping[str, Any], default: str | None = None) -> str | None:
    """The folder that `completions` names. A number, which is how lm-eval reads 2024, is a valid name too."""
    folder = options.get("completions", default)
    if folder is None or (isinstance(folder, (str, int)) and not isinstance(folder, bool) and folder != ""):
        return None if folder is None else str(folder)
    raise OptionError(f"completions={folder!r}: must name a folder, such as completions=runs/alpha4")


def _stop_strings(until: Any) -> tuple[str, ...]:
    strings = [until] if isinstance(until, str) else until or []
    if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) and text for text in strings):
        raise OptionError(f"until={until!r}: must be a list of non-empty strings; for none write until: [] in the task")
    return tuple(strings)


def decoding_overruled(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The decoding options in a request that `method` overrules, for one notice to the user."""
    return {name: generation[name] for name in _DECODING_NAMES if name in generation}


def token_ids(option: str | int | Sequence[int] | None) -> list[int] | None:
    """Token ids as a command line gives them: 5, "5/7" or a list. Raises `OptionError`."""
    if option is None:
        return None
    parts = str(option).split("/") if isinstance(option, (str, int)) else [str(part) for part in option]
    if not parts or not all(part.strip().isdigit() for part in parts):
        raise OptionError(
            f"eos_token_ids={option!r}: must be token ids, such as eos_token_ids=2 or eos_token_ids=2/107"
        )
    return [int(part) for part in parts]


def refuse_several_processes(model: str, raised: str) -> None:
    """Raise `OptionError` with several processes, for a model that does not share its documents among them.

    Args:
        model: its name.
        raised: the option that makes one process faster.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"{model} under several processes: each would draw every completion; start one, without `accelerate "
            f"launch`, and raise {raised}"
        )
