"""Every option of the trainer once: its name, type, default, rule and one-line help."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_power.config import OptionError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        text: completes "must be …".
        holds: whether a value of the right type is allowed.
    """

    text: str
    holds: Callable[[Any], bool]


def _at_least(least: int) -> Rule:
    return Rule(f"a whole number >= {least}", lambda value: value >= least)


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


_POSITIVE = Rule("a finite number > 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = Rule("a finite number >= 0", lambda value: 0 <= value < math.inf)
_SHARE = Rule("a number >= 0 and < 1", lambda value: 0 <= value < 1)
_ANY = Rule("a value", lambda value: True)
_NAMED = Rule("one name or more", lambda value: len(value) > 0)


def _option(group: str, default: Any, help: str, rule: Rule = _ANY) -> Any:
    metadata = {"group": group, "help": help, "rule": rule}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_what = functools.partial(_option, "what to train on what")
_data = functools.partial(_option, "which completions")
_adapter = functools.partial(_option, "the adapter (rank, alpha and dropout are our choice: the paper names none)")
_run = functools.partial(_option, "training (defaults of Tomihari & Sato 2026, unless said otherwise)")
_watch = functools.partial(_option, "watching and keeping")

CONFIG = "distill.yaml"
"""Where a run keeps its options, in its output folder."""

NOT_GIVEN: dict[str, Any] = {"model": None, "data": (), "output": None}
"""Defaults of the options that must be given."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How to distil; checked when made.

    Defaults are those of Tomihari & Sato (2026), section 7 of their settings, except `lora_r`, `lora_alpha`,
    `lora_dropout` and `learning_rate`, which the paper does not give.

    Raises:
        OptionError: an option is missing, of the wrong type, outside its range, or at odds with another.

    >>> DistillConfig(model="m", data=("store",), output="out", epochs="2").epochs
    2.0
    """

    model: str = _what(None, "hub id or folder of the model to train: the teacher's base")
    data: tuple[str, ...] = _what((), "completions: folders of a store, .jsonl files, or lm-eval's samples_*.jsonl")
    output: str = _what(None, "folder for the result: new, or empty")
    adapter: str | None = _what(None, "folder of an adapter for this model to go on from: another round")
    full: bool = _what(False, "train all weights rather than an adapter")
    revision: str | None = _what(None, "revision of the model on the hub")
    trust_remote_code: bool = _what(False, "run code that comes with the model")

    select: str = _data(
        "one", "of a prompt's completions: one | all | best (by self-reward)", _one_of("one", "all", "best")
    )
    per_prompt: int | None = _data(None, "with select=all or best: at most so many of a prompt", _at_least(1))
    finished_only: bool = _data(False, "only completions that ended by EOS or a stop string")
    correct_only: bool = _data(False, "only completions graded correct (lm-eval's sample files): needs labels")
    deduplicate: bool = _data(True, "of equal completions of a prompt, keep one")
    assume_eos: bool = _data(False, "where the file does not tell (other models' sample files): EOS ended all")
    mixed_settings: bool = _data(False, "allow completions drawn with different options")
    min_tokens: int = _data(1, "shortest completion, in tokens", _at_least(1))
    exclude_prompts_of: tuple[str, ...] = _data((), "evaluation data whose prompts must not occur: files as in data")
    max_length: int = _data(1024, "tokens of prompt and completion; the rest is cut off", _at_least(2))
    validation_share: float = _data(0.0, "share of the prompts held out for a validation loss", _SHARE)

    target_modules: tuple[str, ...] | None = _adapter(
        None, "layers to adapt, by name; default: attention and MLP projections of the architecture", _NAMED
    )
    lora_r: int = _adapter(32, "rank", _at_least(1))
    lora_alpha: float = _adapter(64.0, "scale: updates are multiplied by lora_alpha / lora_r", _POSITIVE)
    lora_dropout: float = _adapter(0.0, "dropout before the adapter", _SHARE)

    epochs: float = _run(3.0, "passes over the data", _POSITIVE)
    learning_rate: float | None = _run(None, "peak; default 2e-4 for adapters, 1e-5 with full: our choice", _POSITIVE)
    lr_scheduler: str = _run("linear", "shape after the warm-up, as transformers names it: linear, cosine, constant …")
    warmup_ratio: float = _run(0.03, "share of the steps over which the learning rate rises", _SHARE)
    weight_decay: float = _run(0.01, "AdamW's weight decay", _NOT_NEGATIVE)
    batch_size: int = _run(1, "completions a device computes at once", _at_least(1))
    gradient_accumulation: int = _run(8, "batches of every device in one step", _at_least(1))
    gradient_checkpointing: bool = _run(True, "recompute activations in the backward pass: slower, less memory")
    precision: str = _run(
        "auto", "bf16 | fp32 | auto: bf16 where the hardware computes in it", _one_of("auto", "bf16", "fp32")
    )
    seed: int = _run(0, "of the order of the data, the adapter's start, dropout and the held-out share", _at_least(0))
    trainer: Mapping[str, Any] = _run({}, 'further TrainingArguments of transformers, as JSON: \'{"optim": "…"}\'')

    logging_steps: int = _watch(10, "steps between two lines of the log", _at_least(1))
    save_steps: int | None = _watch(
        None, "steps between checkpoints, each with a validation; default: every epoch", _at_least(1)
    )
    early_stopping: int | None = _watch(
        None, "stop after so many validations without a gain, and keep the best", _at_least(1)
    )
    report_to: tuple[str, ...] = _watch((), "tensorboard, wandb … as transformers names them")
    push_to_hub: str | None = _watch(None, "upload the result to this hub repository: USER/NAME")

    def __post_init__(self) -> None:
        for name, kind in kinds().items():
            field = FIELDS[name]
            value = getattr(self, name)
            if name in NOT_GIVEN and not value:
                raise OptionError(f"{name}: must be given: --{name} {name.upper()}, or {name}: … in a --config file")
            if value is not None or not _optional(name):
                object.__setattr__(self, name, _checked(name, value, kind, field.metadata["rule"]))
        self._check_combinations()

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default for adapters or full fine-tuning."""
        default = 1e-5 if self.full else 2e-4
        return default if self.learning_rate is None else self.learning_rate

    def resolved(self) -> dict[str, Any]:
        """All options in plain types, as a YAML file takes them back.

        >>> config = DistillConfig(model="m", data=("store",), output="out")
        >>> DistillConfig(**config.resolved()) == config
        True
        """
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def _check_combinations(self) -> None:
        adapter_only = [
            name
            for name in ("target_modules", "lora_r", "lora_alpha", "lora_dropout")
            if getattr(self, name) != FIELDS[name].default
        ]
        if self.full and self.adapter is not None:
            raise OptionError("full=True with adapter: merge the adapter into the model first, or train an adapter")
        if adapter_only and (self.full or self.adapter is not None):
            why = "full=True trains no adapter" if self.full else "the adapter to go on from decides it"
            raise OptionError(f"{adapter_only[0]}={getattr(self, adapter_only[0])}: {why}; leave it out")
        if self.per_prompt is not None and self.select == "one":
            raise OptionError(f"per_prompt={self.per_prompt} with select=one, which takes one: set select=all or best")
        if self.early_stopping is not None and not self.validation_share:
            raise OptionError(f"early_stopping={self.early_stopping}: needs a validation_share > 0, such as 0.1")


FIELDS = {field.name: field for field in dataclasses.fields(DistillConfig)}
"""Every option, in the order of the help; its metadata: group, help, rule."""


@functools.cache
def kinds() -> dict[str, type]:
    """Option → the type of its values, None left out: str, int, float, bool, tuple or Mapping."""
    found = {}
    for name, hint in typing.get_type_hints(DistillConfig).items():
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        found[name] = typing.get_origin(hint) or hint
    return found


def _optional(name: str) -> bool:
    return FIELDS[name].default is None


def _checked(name: str, value: Any, kind: type, rule: Rule) -> Any:
    """`value` as its option's type, if the rule allows it; numbers may come as text (YAML reads 1e-4 as one)."""
    must = {bool: "true or false", str: "text", tuple: "a list of names", Mapping: "a mapping"}.get(kind, rule.text)
    try:
        converted = _READERS[kind](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{name}={value!r}: must be {must}") from error
    if not rule.holds(converted):
        raise OptionError(f"{name}={converted}: must be {rule.text}")
    return converted


def _whole(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError
    return int(float(value)) if not isinstance(value, int) else value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError
    return str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _names(value: Any) -> tuple[str, ...]:
    return (_text(value),) if isinstance(value, str | Path) else tuple(_text(item) for item in value)


def _mapping(value: Any) -> dict[str, Any]:
    mapping = json.loads(value) if isinstance(value, str) else value
    if not isinstance(mapping, dict):
        raise TypeError
    return dict(mapping)


_READERS: dict[type, Callable[[Any], Any]] = {
    int: _whole, float: _number, str: _text, bool: _switch, tuple: _names, Mapping: _mapping,
}  # fmt: skip
