"""One distillation from options to a finished folder."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from lm_power.config import OptionError
from lm_power.distill import record as records
from lm_power.distill import rote
from lm_power.distill.card import closing_table, model_card, settings_table
from lm_power.distill.options import DistillConfig
from lm_power.distill.parallel import on_main, say, together
from lm_power.distill.precision import Precision, choose_precision
from lm_power.distill.record import Record
from lm_power.distill.sources import find_files, kind_of
from lm_power.distill.student import Student, load_student
from lm_power.distill.teacher import TeacherData, read_teacher
from lm_power.distill.trainer import AtStart, DistillTrainer, EarlyStopping, LossWatch
from lm_power.distill.training_arguments import training_arguments
from lm_power.distill.windows import TrainingData, padded_tokens, shuffled, training_data

_PACKAGES = ("lm-power", "torch", "transformers", "peft", "accelerate")


def distill(config: DistillConfig, *, resume: bool = False, command: str = "") -> Record:
    """Train, and leave adapter (or model), tokenizer, card, options, log and loss curve in `config.output`.

    Args:
        config: options.
        resume: continue the run that is in `config.output`.
        command: the command as it was typed, for the model card.

    Returns:
        The record of the run, as in `distill.json`.

    Raises:
        OptionError: options, model, adapter or output folder cannot be used; it is raised before anything is written.
        TeacherDataError: the teacher data cannot be used.
    """
    precision = choose_precision(config)
    arguments = training_arguments(config, precision)
    earlier = on_main(lambda: records.earlier_run(config.output, resume))
    if earlier is not None and earlier["results"]:
        finished = earlier
        on_main(lambda: records.check_same_options(finished, config.resolved()))
        say(f"The run in {config.output} is finished: there is nothing to resume.")
        return earlier
    on_main(lambda: _check_files(config))
    student = load_student(config, torch.bfloat16 if precision.is_bf16 and not config.full else torch.float32)
    teacher = on_main(lambda: _read(config, student))
    data = training_data(teacher.samples, config.max_length, config.validation_share, config.seed)
    _check_fit(config, student, data)
    record = on_main(lambda: _record(config, command, arguments.world_size, precision, student, teacher, data))
    if earlier is None:
        on_main(lambda: records.begin(record, config))
        checkpoint = None
    else:
        on_main(lambda: records.check_same_run(earlier, record))
        record = {**record, "command": earlier["command"], "previous": earlier["previous"]}
        checkpoint = on_main(lambda: records.last_checkpoint(config.output, arguments.world_size))
        at = "the beginning: it has no checkpoint yet" if checkpoint is None else Path(checkpoint).name
        say(f"Going on with the run in {config.output} from {at}.")
    say(settings_table(record))
    if record["teacher"]["start"] == "another":
        say(
            f"Notice: the teacher {teacher.model} is another model than the one that training starts from: this is "
            "distillation from that model, not self-distillation."
        )
    arguments.eval_on_start = bool(data.validation) and checkpoint is None
    use_cache = student.model.config.use_cache
    callbacks: list[TrainerCallback] = [LossWatch()]
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(config.early_stopping))
    trainer = DistillTrainer(
        config, data, lambda: model_card(record), model=student.model, args=arguments, callbacks=callbacks
    )
    places = shuffled(len(data.train), config.seed, -1)[: rote.COMPARED]
    compared = [data.train[place] for place in places]
    if checkpoint is not None and earlier is not None:
        record["teacher"]["loss"] = earlier["teacher"].get("loss")
    elif (beta := rote.teacher_beta(teacher.config)) and record["teacher"]["start"] in ("same", "unknown"):
        trainer.add_callback(AtStart(lambda: _weigh_teacher(record, config, trainer.mean_loss(compared, beta))))
    with records.room_in(config.output):
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        record["results"] = _results(trainer, record, trainer.mean_loss(compared), seconds, checkpoint)
        # Trainer switches the cache off; saved like that, the model would always be slow.
        student.model.config.use_cache = use_cache
        # Sharded weights are gathered first; only then is a file written, and what fails there ends all processes.
        together(functools.partial(trainer.save_model, _internal_call=True))
        on_main(lambda: _finish(record, config, student, trainer))
    if config.push_to_hub is not None:
        trainer.publish()
    say(closing_table(record))
    if record["results"]["warning"]:
        say(f"Warning: {record['results']['warning']}.")
    return record


def _check_files(config: DistillConfig) -> None:
    """Look for all files before the model is loaded, which can take minutes."""
    for paths in filter(None, (config.data, config.exclude_prompts_of)):
        for file in find_files(paths):
            kind_of(file)


def _read(config: DistillConfig, student: Student) -> TeacherData:
    vocabulary = student.model.config.get_text_config().vocab_size
    data = read_teacher(config.data, student.tokenizer, config, eos_ids=student.eos_ids, vocabulary=vocabulary)
    say(data.summary())
    return data


def _check_fit(config: DistillConfig, student: Student, data: TrainingData) -> None:
    positions = getattr(student.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(window) for window in (*data.train, *data.validation))
    if positions is not None and longest > positions:
        raise OptionError(
            f"max_length={config.max_length}: the model has {positions} positions, the data reach {longest} tokens; "
            f"set max_length={positions}"
        )


def _record(
    config: DistillConfig,
    command: str,
    processes: int,
    precision: Precision,
    student: Student,
    teacher: TeacherData,
    data: TrainingData,
) -> Record:
    previous = records.earlier_rounds(config.adapter or config.model, teacher.model)
    return {
        "format": records.FORMAT,
        "round": 1 + len(previous),
        "command": command,
        "processes": processes,
        "options": config.resolved(),
        "learning_rate": config.peak_learning_rate,
        "model": {
            "name": config.model,
            "fingerprints": dict(student.fingerprints),
            "base_fingerprints": dict(student.base_fingerprints),
            "target_modules": list(student.target_modules),
            "precision": precision.name,
            "precision_reason": precision.reason,
            "dtype": str(next(student.model.parameters()).dtype).removeprefix("torch."),
            "parameters": get_model_param_count(student.model),
            "trained": get_model_param_count(student.model, trainable_only=True),
            "token_embeddings": student.model.config.get_text_config().vocab_size,
            "tokens": len(student.tokenizer),
        },
        "teacher": {
            "model": teacher.model,
            "start": student.compare(teacher.model),
            "loss": None,
            "config": teacher.config,
            "files": list(teacher.files),
            "counts": dict(teacher.counts),
        },
        "data": {
            "digest": data.digest(),
            "samples": data.samples,
            "train": len(data.train),
            "validation": len(data.validation),
            "truncated": data.truncated,
            "crowded_out": data.crowded_out,
            "tokens": sum(len(window) for window in data.train),
            "learnt_tokens": sum(window.learnt for window in data.train),
            "padded_tokens": padded_tokens(
                [len(w) for w in data.train], config.batch_size, config.gradient_accumulation, processes, config.seed
            ),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "previous": previous,
        "results": None,
    }


def _weigh_teacher(record: Record, config: DistillConfig, loss: float) -> None:
    """Record the teacher's loss on its own samples, so that a resumed run finds it."""
    record["teacher"]["loss"] = loss
    on_main(lambda: records.write_record(record, Path(config.output)))


def _results(
    trainer: DistillTrainer, record: Record, student: float, seconds: float, checkpoint: str | None
) -> dict[str, Any]:
    log, epochs = trainer.state.log_history, trainer.state.epoch or 0.0
    losses = records.losses(log)
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    kept = trainer.state.global_step if best is None else best
    known = rote.Losses(record["teacher"]["loss"], rote.unseen_loss(log, epochs), student)
    return {
        "known_data": dataclasses.asdict(known),
        "warning": rote.warning(known, losses["validation"], kept),
        "steps": trainer.state.global_step,
        "kept_step": kept,
        "epochs": epochs,
        "loss": losses,
        "seconds": round(seconds, 1),
        "resumed_from": None if checkpoint is None else Path(checkpoint).name,
    }


def _finish(record: Record, config: DistillConfig, student: Student, trainer: DistillTrainer) -> None:
    folder = Path(config.output)
    student.tokenizer.save_pretrained(folder)
    records.replace(folder / records.LOG, json.dumps(trainer.state.log_history, indent=1) + "\n")
    _draw_losses(record["results"]["loss"], folder / records.CURVE)
    trainer.create_model_card()
    records.write_record(record, folder)


def _draw_losses(losses: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Save losses, nats per completion token, against optimiser steps; an empty curve is left out."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in losses.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per completion token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
