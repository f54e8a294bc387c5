"""What the covariance probe needs of stores: the completions of each way of sampling, by prompt."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lm_power.errors import UserError
from lm_power.identity import Identity
from lm_power.report.probe.estimates import Draws, hash_reward
from lm_power.store import Record, read_store

Prompt = tuple[int, ...]  # token ids: what the model saw
_ENDS = ("max_new_tokens", "stop", "eos_ids")  # options that decide what counts as a whole completion


@dataclasses.dataclass(frozen=True)
class StoredDraws:
    """Completions of one model, sampled in one way; all seeds together.

    Attributes:
        folder: the store.
        model: "name@fingerprint".
        options: the `config` of its lines, without the seed.
        draws: by prompt, in the order of the store.
        finish_reasons: "eos", "stop", "length" → completions.
    """

    folder: Path
    model: str
    options: Mapping[str, Any]
    draws: Mapping[Prompt, Draws]
    finish_reasons: Mapping[str, int]

    @property
    def size(self) -> int:
        """Number of completions."""
        return sum(self.finish_reasons.values())

    @property
    def label(self) -> str:
        """Method and options: "power, alpha=4, block_size=192, mcmc_steps=10", "temperature=0.25", "standard".

        Defaults are left out: proposals at temperature 1/alpha, coupled resume.
        """
        if self.options["method"] == "temperature":
            return f"temperature={_short(self.options['proposal_temperature'])}"
        left_out = {"method", *_ENDS}
        if self.options.get("proposal_temperature") == 1 / self.options.get("alpha", math.inf):
            left_out.add("proposal_temperature")
        if self.options.get("coupled_resume") is True:
            left_out.add("coupled_resume")
        rest = [f"{name}={_short(value)}" for name, value in self.options.items() if name not in left_out]
        return ", ".join([str(self.options["method"]), *rest])

    @property
    def n(self) -> str:
        """Completions per prompt: "8", or "3 to 8" where prompts differ."""
        counts = sorted({len(draws.log_prob) for draws in self.draws.values()})
        return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def read_draws(folder: Path) -> list[StoredDraws]:
    """The completions in a store, one `StoredDraws` for each way of sampling, with a count on stderr as they are read.

    Raises:
        StoreError: a line of it is damaged.
        UserError: no such store, it is empty, holds several models, or a completion has no
            finite log-probability.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one given to the run as completions=")
    lines: dict[str, list[Record]] = collections.defaultdict(list)
    models = set()
    for record in tqdm(read_store(folder), desc=f"Reading {folder}", unit=" completions"):
        models.add(record["model"])
        options = {name: value for name, value in record["config"].items() if name != "seed"}
        lines[repr(sorted(options.items()))].append(_slim(record, options))
    if not lines:
        raise UserError(
            f"{folder}: holds no completions (lines of *.jsonl); name the folder given to the run as completions="
        )
    if len({Identity.parse(model).key for model in models}) > 1:
        raise UserError(
            f"{folder}: holds completions of several models ({', '.join(sorted(models))}); keep one in each folder"
        )
    return [_sample(folder, min(models), records) for records in lines.values()]


def choose_base(samples: Sequence[StoredDraws]) -> StoredDraws:
    """The base among a store's samples: the one with method=standard, or else the only one.

    Raises:
        UserError: several could be the base.
    """
    standard = [sample for sample in samples if sample.options["method"] == "standard"]
    candidates = standard or samples
    if len(candidates) > 1:
        raise UserError(
            f"--base {candidates[0].folder}: holds {len(candidates)} ways of sampling that could be the base "
            f"({_list(candidates)}); give each a completions folder of its own"
        )
    return candidates[0]


def pair(base: StoredDraws, other: StoredDraws, common: bool) -> tuple[list[Draws], list[Draws]]:
    """The completions of both by prompt, in the same order.

    Args:
        base: two completions per prompt or more.
        other: one per prompt or more.
        common: omit prompts that only one of them has, instead of refusing.

    Raises:
        UserError: different models, ends of completions or prompts; too few completions or prompts.
    """
    both = f"{base.folder} and {other.folder}"
    if Identity.parse(base.model).key != Identity.parse(other.model).key:
        raise UserError(
            f"{both}: completions of different models ({base.model}, {other.model}); a gain compares two ways of "
            "sampling from one model"
        )
    for name in _ENDS:
        if base.options[name] != other.options[name]:
            raise UserError(
                f"{both}: {name} differs ({base.options[name]!r}, {other.options[name]!r}), so that "
                "completions end by different rules; sample both with the same"
            )
    prompts = [prompt for prompt in base.draws if prompt in other.draws]
    missing = len(base.draws) - len(prompts), len(other.draws) - len(prompts)
    if any(missing) and not (common and prompts):
        raise UserError(
            f"{both}: {missing[0]} prompts are in the first alone, {missing[1]} in the second alone, {len(prompts)} "
            "in both; evaluate both on the same problems"
            + (", or leave out the others with --common-prompts" if prompts else "")
        )
    if len(prompts) < 2:
        raise UserError(f"{both}: {len(prompts)} prompt; standard errors over prompts need two, better dozens")
    lonely = sum(len(base.draws[prompt].log_prob) < 2 for prompt in prompts)
    if lonely:
        raise UserError(
            f"{base.folder}: one completion for {lonely} of {len(prompts)} prompts; a covariance within a prompt needs "
            "two, better eight: evaluate with --gen_kwargs n=8"
        )
    return [base.draws[prompt] for prompt in prompts], [other.draws[prompt] for prompt in prompts]


def _slim(record: Record, options: Mapping[str, Any]) -> Record:
    """The part of a line that the probe needs; the token ids and steps of a large store would fill the memory."""
    if not math.isfinite(record["self_reward"]) or not math.isfinite(record["sum_log_prob"]):
        raise UserError(
            f"completion {record['key']}: log-probability {record['sum_log_prob']} is not finite; sample it again "
            "(in float32 or bfloat16, since float16 overflows)"
        )
    return {
        "options": options,
        "prompt": tuple(record["prompt_ids"]),
        "finish_reason": record["finish_reason"],
        "draw": (hash_reward(record["prompt"], record["text"]), record["self_reward"], record["sum_log_prob"]),
    }


def _sample(folder: Path, model: str, records: Sequence[Record]) -> StoredDraws:
    draws: dict[Prompt, list[tuple[float, ...]]] = collections.defaultdict(list)
    for record in records:
        draws[record["prompt"]].append(record["draw"])
    return StoredDraws(
        folder=folder,
        model=model,
        options=records[0]["options"],
        draws={prompt: Draws(*np.array(rows, dtype=np.float64).T) for prompt, rows in draws.items()},
        finish_reasons=collections.Counter(record["finish_reason"] for record in records),
    )


def _list(samples: Sequence[StoredDraws]) -> str:
    ends = [", ".join(f"{name}={sample.options[name]}" for name in _ENDS) for sample in samples]
    return "; ".join(f"{sample.label}, {end}" for sample, end in zip(samples, ends, strict=True))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
