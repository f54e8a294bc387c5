"""Every option of the trainer once: its name, type, default, rule and one-line help."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from lm_power.config import OptionError
from lm_power.distill.rules import NAMED, NOT_NEGATIVE, POSITIVE, SHARE, Options, at_least, option

CONFIG = "distill.yaml"
"""Where a run keeps its options, in its output folder."""

_GROUPS = (
    "what to train on what",
    "which completions",
    "the adapter (rank, alpha and dropout are our choice: the paper names none)",
    "training (defaults of Tomihari & Sato 2026, unless said otherwise)",
    "watching and keeping",
)
_what, _data, _adapter, _run, _watch = (functools.partial(option, group) for group in _GROUPS)

_MUST_BE_GIVEN = ("model", "data", "output")


@dataclasses.dataclass(frozen=True)
class Selection(Options):
    """Which of the completions that are on disk a student learns from.

    Completions that fail one of the checks are dropped first. From the rest of a prompt's completions, `select` takes
    the first repeat ("one"), all repeats or the first `per_prompt` of them ("all"), or the one with the largest
    self-reward or the `per_prompt` best ("best").

    With `deduplicate`, only one of equal completions of a prompt is kept. Without it all equal draws count, in
    proportion to their probability; copies of a single draw count once in any case. `correct_only` needs the verdicts
    of samples files, since stores have none. With `assume_eos`, EOS is learnt at the end of every completion whose file
    does not say how it ended, which is wrong for one that a stop string or the length limit ended. `mixed_settings`
    allows several ways of drawing, for example of several tasks, but still only one model. Completions that differ in
    the seed alone are always allowed.

    Raises:
        OptionError: an option is of the wrong type, outside its range, or at odds with another.
    """

    select: Literal["one", "all", "best"] = _data("one", "of a prompt's completions: one | all | best (by self-reward)")
    per_prompt: int | None = _data(None, "with select=all or best: at most so many per prompt", at_least(1))
    finished_only: bool = _data(False, "only completions that ended by EOS or a stop string")
    correct_only: bool = _data(False, "only completions graded correct (lm-eval's sample files): needs labels")
    deduplicate: bool = _data(True, "of equal completions of a prompt, keep one")
    assume_eos: bool = _data(False, "if a file does not say how completions ended (other models'): all by EOS")
    mixed_settings: bool = _data(False, "allow completions drawn with different options")
    min_tokens: int = _data(1, "shortest completion, in tokens, EOS included", at_least(1))
    exclude_prompts_of: tuple[str, ...] = _data((), "evaluation data whose prompts must not occur: files as in data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_prompt is not None and self.select == "one":
            raise OptionError(f"per_prompt={self.per_prompt} with select=one, which takes one: set select=all or best")


@dataclasses.dataclass(frozen=True)
class DistillConfig(Selection):
    """How to distil: which completions to use, and what to do with them. It is checked when it is made.

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
    adapter: str | None = _what(None, "folder of an adapter of this model to continue training: another round")
    full: bool = _what(False, "train all weights rather than an adapter")
    revision: str | None = _what(None, "revision of the model on the hub")
    trust_remote_code: bool = _what(False, "run code that comes with the model")

    max_length: int = _data(1024, "tokens of prompt and completion; the rest is cut off", at_least(2))
    validation_share: float = _data(0.0, "share of the prompts held out for a validation loss", SHARE)

    target_modules: tuple[str, ...] | None = _adapter(
        None, "layers to adapt, by name; default: attention and MLP projections of the architecture", NAMED
    )
    lora_r: int = _adapter(32, "rank", at_least(1))
    lora_alpha: float = _adapter(64.0, "scale: updates are multiplied by lora_alpha / lora_r", POSITIVE)
    lora_dropout: float = _adapter(0.0, "dropout before the adapter", SHARE)

    epochs: float = _run(3.0, "passes over the data", POSITIVE)
    learning_rate: float | None = _run(None, "peak; default 5e-5 for adapters, 1e-5 with full: our choice", POSITIVE)
    lr_scheduler: str = _run(
        "linear", "shape, as transformers names it: linear, cosine, constant_with_warmup, constant (no warm-up) …"
    )
    warmup_ratio: float = _run(0.03, "share of the steps over which the learning rate rises", SHARE)
    weight_decay: float = _run(0.01, "AdamW's weight decay", NOT_NEGATIVE)
    batch_size: int = _run(1, "completions that a device computes at once", at_least(1))
    gradient_accumulation: int = _run(8, "batches of every device in one step", at_least(1))
    gradient_checkpointing: bool = _run(True, "recompute activations in the backward pass: slower, less memory")
    precision: Literal["auto", "bf16", "fp32"] = _run(
        "auto", "bf16 | fp32 | auto: bf16 where the hardware computes in it"
    )
    seed: int = _run(0, "of the order of the data, the adapter's start, dropout and the held-out share", at_least(0))
    trainer: Mapping[str, Any] = _run({}, 'further TrainingArguments of transformers, as JSON: \'{"optim": "…"}\'')

    logging_steps: int = _watch(10, "steps between two lines of the log", at_least(1))
    save_steps: int | None = _watch(
        None, "steps between checkpoints, each with a validation; default: every epoch", at_least(1)
    )
    early_stopping: int | None = _watch(
        None, "stop after so many validations without a gain, and keep the best", at_least(1)
    )
    report_to: tuple[str, ...] = _watch((), "tensorboard, wandb … as transformers names them")
    push_to_hub: str | None = _watch(None, "upload the result to this hub repository: USER/NAME")

    def __post_init__(self) -> None:
        for name in _MUST_BE_GIVEN:
            if not getattr(self, name):
                raise OptionError(f"{name}: must be given: --{name} {name.upper()}, or {name}: … in a --config file")
        super().__post_init__()
        self._check_combinations()

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default for adapters or full fine-tuning."""
        default = 1e-5 if self.full else 5e-5
        return default if self.learning_rate is None else self.learning_rate

    def resolved(self) -> dict[str, Any]:
        """All options in plain types, from which a YAML file can restore them.

        >>> config = DistillConfig(model="m", data=("store",), output="out")
        >>> DistillConfig(**config.resolved()) == config
        True
        """
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in FIELDS}

    def _check_combinations(self) -> None:
        adapter_only = [
            name
            for name in ("target_modules", "lora_r", "lora_alpha", "lora_dropout")
            if getattr(self, name) != FIELDS[name].default
        ]
        if self.full and self.adapter is not None:
            raise OptionError("full=True with adapter: merge the adapter into the model first, or train an adapter")
        if adapter_only and (self.full or self.adapter is not None):
            why = "full=True trains no adapter" if self.full else "the adapter that is continued decides it"
            raise OptionError(f"{adapter_only[0]}={getattr(self, adapter_only[0])}: {why}; leave it out")
        if self.early_stopping is not None and not self.validation_share:
            raise OptionError(f"early_stopping={self.early_stopping}: needs a validation_share > 0, such as 0.1")


FIELDS = {
    field.name: field
    for field in sorted(dataclasses.fields(DistillConfig), key=lambda field: _GROUPS.index(field.metadata["group"]))
}
"""Every option, in the order of the help; its metadata: group, help, rule."""
