"""The model to train: base, adapter, precision, and whether the teacher was the same."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lm_power.adapter import load_adapter, refuse_adapted_ties
from lm_power.config import OptionError
from lm_power.distill.options import DistillConfig
from lm_power.distill.parallel import on_main
from lm_power.fingerprint import fingerprint
from lm_power.host import find_eos_ids
from lm_power.identity import Identity
from lm_power.loading import named_by

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The layers that Tomihari & Sato (2026) adapt."""

_WITHOUT_TIES = "leave embed_tokens and lm_head out, or train with --full"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Student:
    """The model that is trained, and what it starts from.

    Attributes:
        model: ready for the trainer: a PEFT model, or with `full` the base itself.
        tokenizer: its tokenizer.
        eos_ids: tokens that end a completion.
        target_modules: names of the adapted layers; empty with `full`.
        fingerprints: dtype of the base's weights → `lm_power.fingerprint` of the weights that training starts from;
            empty if the weights cannot be read here (DeepSpeed ZeRO-3).
        base_fingerprints: the same for the base without an adapter.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    target_modules: tuple[str, ...]
    fingerprints: Mapping[str, str]
    base_fingerprints: Mapping[str, str]

    def compare(self, teacher: str | None) -> Literal["same", "another", "unknown", "untold"]:
        """Whether training starts from the same weights that the teacher "name@fingerprint" had.

        A fingerprint covers the dtype, so ours are computed in every dtype to which the weights here can be rounded.
        The answer is "unknown" for a teacher in a wider dtype than the weights here, or with a merged adapter, which
        cannot be told from another model. It is "untold" for a teacher without a fingerprint or a name.
        """
        weights = Identity.parse(teacher or "")
        if weights.fingerprint is None:
            return "untold"
        if weights.fingerprint in self.fingerprints.values():
            return "same"
        return "another" if len(self.fingerprints) == len(_DTYPES) and not weights.merged else "unknown"


def load_student(config: DistillConfig, dtype: torch.dtype) -> Student:
    """The model of `config` with a fresh adapter, the adapter to continue, or none; `config.seed` seeds it.

    Args:
        config: options.
        dtype: dtype of the base's weights. Adapter weights, and with `full` all weights, are float32.

    Raises:
        OptionError: model, tokenizer or adapter cannot be loaded, or do not fit each other.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    hub: dict[str, Any] = {} if config.revision is None else {"revision": config.revision}
    if config.trust_remote_code:
        hub["trust_remote_code"] = True
    with named_by("model", config.model, "name a hub id, or the folder of a causal LM"):
        stored = AutoConfig.from_pretrained(config.model, **hub).dtype
        tokenizer = AutoTokenizer.from_pretrained(config.model, **hub)
        base: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, **hub)
    base_fingerprints = on_main(lambda: _fingerprints(base, stored))
    eos_ids = tuple(sorted(set(find_eos_ids(base, tokenizer))))
    set_seed(config.seed)
    if config.full:
        return Student(base, tokenizer, eos_ids, (), base_fingerprints, base_fingerprints)
    if config.adapter is None:
        targets = target_modules(base) if config.target_modules is None else config.target_modules
        model = _fresh_adapter(base, config, targets)
        refuse_adapted_ties(model, f"target_modules={' '.join(targets)}", _WITHOUT_TIES)
        return Student(model, tokenizer, eos_ids, tuple(targets), base_fingerprints, base_fingerprints)
    folder = config.adapter
    on_main(lambda: _check_adapter(folder, config.model, base_fingerprints))
    model = load_adapter(base, folder, trainable=True, option="adapter")
    for weights in model.parameters():  # peft does so for its own, and not for the copies of `modules_to_save`
        if weights.requires_grad:
            weights.data = weights.data.float()
    refuse_adapted_ties(model, f"adapter={folder}", _WITHOUT_TIES)
    settings: Any = model.peft_config[model.active_adapter]
    named = settings.target_modules
    return Student(
        model, tokenizer, eos_ids, tuple(sorted([named] if isinstance(named, str) else named or ())),
        on_main(lambda: _fingerprints(model, stored)), base_fingerprints,
    )  # fmt: skip


def target_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the layers that an adapter is put on: the seven projections, if the model has them.

    Otherwise it is every linear layer of the decoder's blocks except routers of a mixture of experts: fused or
    differently named projections of attention and MLP.

    Raises:
        OptionError: the model has none.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    found: dict[str, None] = {}
    for stack in (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)):
        for name, module in stack.named_modules():
            if isinstance(module, kinds):
                found[name.rpartition(".")[2]] = None
    if set(PROJECTIONS) <= set(found):
        return PROJECTIONS
    chosen = tuple(name for name in found if "router" not in name and name not in ("gate", "shared_expert_gate"))
    if not chosen:
        raise OptionError(
            f"target_modules: {type(model).__name__} has no linear layers in its blocks; name layers, or use --full"
        )
    return chosen


def _fresh_adapter(base: PreTrainedModel, config: DistillConfig, targets: tuple[str, ...]) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # a float works, and is documented elsewhere in peft
        lora_dropout=config.lora_dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
        revision=config.revision,
    )
    names = [name for name, _ in base.named_modules()]
    absent = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    linear = sorted({name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, nn.Linear)})
    try:
        if absent:  # peft complains only if it finds none at all
            raise ValueError(f"{', '.join(absent)} not found in the model")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about a name that transformers will remove
            return get_peft_model(base, settings)
    except ValueError as error:
        raise OptionError(
            f"target_modules={' '.join(targets)}: {_reason(error).rstrip('.')}. This model's linear layers are "
            f"{', '.join(linear)}; leave target_modules out for those that the method adapts"
        ) from error


def _check_adapter(folder: str, model: str, base_fingerprints: Mapping[str, str]) -> None:
    """Refuse an adapter that was made for another base."""
    from lm_power.distill.record import ADAPTER, public_name, read_record

    path = Path(folder) / ADAPTER
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise OptionError(f"adapter={folder}: holds no PEFT adapter ({path.name}: {_reason(error)})") from error
    record = read_record(folder)
    known = {} if record is None else record["model"]["base_fingerprints"]
    both = set(known) & set(base_fingerprints)
    if both:
        if all(known[dtype] == base_fingerprints[dtype] for dtype in both):
            return
    elif named is None or named in (model, public_name(model)) or _same_path(named, model):
        return
    raise OptionError(
        f"adapter={folder}: was trained on another base ({named}), --model is {model}; name that base as --model"
    )


def _same_path(one: str, other: str) -> bool:
    return Path(one).exists() and Path(other).exists() and Path(one).resolve() == Path(other).resolve()


def _fingerprints(model: Any, stored: torch.dtype | None) -> dict[str, str]:
    """Dtype → the fingerprint that the model would have with its base's weights loaded in that dtype.

    Dtypes to which the checkpoint might be rounded differently are left out, since the weights here have lost digits
    that the checkpoint has.

    Args:
        model: the model that is trained.
        stored: dtype of the checkpoint; None if it does not say.
    """
    from peft import PeftModel
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return {}
    adapted = isinstance(model, PeftModel)
    base = {
        name: weight.dtype
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight.is_floating_point() and not (adapted and weight.requires_grad)
    }
    here = set(base.values())
    lossless = here <= {torch.float32, stored}
    return {
        str(dtype).removeprefix("torch."): fingerprint(model, dict.fromkeys(base, dtype))
        for dtype in (_DTYPES if lossless else here)
        if lossless or len(here) == 1
    }


def _reason(error: Exception) -> str:
    """An error's first line; if it ends in a colon, with the first of the items that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].endswith(":") or len(lines) == 1:
        return lines[0]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return f"{lines[0]} {lines[1].rstrip('.')}{more}"
