"""transformers' TrainingArguments, as the options say; what would break the trainer's promises is refused."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from lm_power.config import OptionError, check_names
from lm_power.distill.options import DistillConfig
from lm_power.distill.precision import Precision

logger = logging.getLogger(__name__)

_SET_BY = {
    "output_dir": "output", "num_train_epochs": "epochs", "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler", "warmup_steps": "warmup_ratio", "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay", "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation", "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing", "bf16": "precision", "fp16": "precision", "seed": "seed",
    "data_seed": "seed", "logging_steps": "logging_steps", "save_steps": "save_steps", "eval_steps": "save_steps",
    "report_to": "report_to", "push_to_hub": "push_to_hub", "hub_model_id": "push_to_hub",
    "resume_from_checkpoint": "resume",
}  # fmt: skip
"""TrainingArguments that have an option of ours."""

_FIXED = {
    "auto_find_batch_size", "average_tokens_across_devices", "dataloader_drop_last", "eval_strategy",
    "greater_is_better", "ignore_data_skip", "label_names", "label_smoothing_factor", "load_best_model_at_end",
    "logging_first_step", "logging_strategy", "metric_for_best_model", "remove_unused_columns", "save_strategy",
    "train_sampling_strategy",
}  # fmt: skip
"""TrainingArguments that would break what the trainer promises, or have no effect."""


def training_arguments(config: DistillConfig, precision: Precision) -> TrainingArguments:
    """TrainingArguments of the options; sets up the devices and the processes.

    Raises:
        OptionError: `trainer` names what does not exist or has an option of its own, or a value is refused.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in config.trainer:
        if name in _SET_BY:
            raise OptionError(f"trainer={{{name!r}: …}}: has an option of its own: --{_SET_BY[name]}")
        if name in _FIXED:
            raise OptionError(f"trainer={{{name!r}: …}}: is fixed here; leave it out")
        if name == "hub_token":
            raise OptionError("trainer={'hub_token': …}: options are published with the result: use `hf auth login`")
    check_names(config.trainer, sorted(known - _FIXED - set(_SET_BY)), "TrainingArgument")
    # transformers renamed it in 5.2x and warns about the old name.
    recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    when = "epoch" if config.save_steps is None else "steps"
    every = {} if config.save_steps is None else {"save_steps": config.save_steps, "eval_steps": config.save_steps}
    ours: dict[str, Any] = {
        "output_dir": config.output,
        "num_train_epochs": config.epochs,
        "learning_rate": config.peak_learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": config.weight_decay,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        recompute: config.gradient_checkpointing,
        "use_cpu": precision.on_cpu,
        "bf16": precision.is_bf16,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number ends the run: see LossWatch
        "save_strategy": when,
        "eval_strategy": when if config.validation_share else "no",
        **every,
        "save_total_limit": 1,
        "restore_callback_states_from_checkpoint": True,
        "report_to": list(config.report_to) or "none",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
    }
    if config.early_stopping is not None:
        ours |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    if config.push_to_hub is not None:
        ours |= {"push_to_hub": True, "hub_model_id": config.push_to_hub, "hub_strategy": "end"}
    try:
        for reporter in get_reporting_integration_callbacks(list(config.report_to)):
            reporter()  # raises if its package is missing, before anything is written
    except (ValueError, ImportError, RuntimeError) as error:
        raise OptionError(f"report_to={' '.join(config.report_to)}: {error}") from error
    try:
        arguments = TrainingArguments(**{**ours, **config.trainer})
        devices = arguments.n_gpu
    except (TypeError, ValueError, ImportError) as error:
        raise OptionError(f"transformers refuses these options: {error}") from error
    _check_scheduler(arguments)
    if devices > 1:
        # Without a launcher transformers would split each batch over all devices in one process (DataParallel),
        # which neither scales nor keeps the loss.
        logger.warning("%d devices are visible, one is used; for all of them: accelerate launch -m …", devices)
        arguments._n_gpu = 1
    return arguments


def _check_scheduler(arguments: TrainingArguments) -> None:
    """Make the scheduler once for nothing: Trainer makes it only when the model is loaded and the folder written."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))])
    given: Any = arguments.lr_scheduler_kwargs
    try:
        get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 2, given)
    except (TypeError, ValueError) as error:
        name = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
        raise OptionError(
            f"lr_scheduler={name}: {error}; its arguments are given as --trainer '{{\"lr_scheduler_kwargs\": {{…}}}}'"
        ) from error
