"""What a run prints and publishes: its settings at the start, a table at the end, and the model card."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from lm_power.distill.options import CONFIG
from lm_power.distill.record import CURVE, LOG, RECORD, Record, public_name
from lm_power.identity import Identity

_NO_POWER = (None, "standard", "temperature")
"""Methods whose completions are not power samples; None if the data do not say the method."""

_START = {
    "same": "yes: self-distillation",
    "another": "no: the teacher had other weights than those that training starts from",
    "unknown": "not known: the weights here have fewer digits than the teacher's, or are not all in one place, or its "
    "adapter was merged",
    "untold": "not known: the data do not say which weights the teacher had",
}

_NO_SIGN = {True: "no sign of it", False: "no sign of it in the training loss; nothing was held out"}


def settings_table(record: Record) -> str:
    """What is about to be trained on what, one setting per line."""
    rows = {**_model(record), **_data(record), **_how(record), "output": record["options"]["output"]}
    return _lines("Distillation", rows)


def closing_table(record: Record) -> str:
    """Losses, tokens, time, and the two commands that come next."""
    results, output = record["results"], record["options"]["output"]
    rows = {**_outcome(record), "time": _duration(results["seconds"]), "result": output}
    return "\n".join([_lines("Finished", rows), "", "Evaluate it:", *(f"  {line}" for line in _evaluation(record))])


def model_card(record: Record) -> str:
    """The README.md of the result: front matter for the hub, then everything that was done.

    It is meant to be published, so a folder that was given by its absolute path appears by its name alone. The paths
    are in `distill.json`.
    """
    base = record["options"]["model"]
    record = _published(record)
    method = (record["teacher"]["config"] or {}).get("method")
    options, full = record["options"], record["options"]["full"]
    metadata = ModelCardData(
        base_model=None if Path(base).exists() else base,
        library_name="transformers" if full else "peft",
        pipeline_tag="text-generation",
        tags=[
            *([] if method in _NO_POWER else ["power-sampling"]),
            "self-distillation" if record["teacher"]["start"] == "same" else "distillation",
            "lm-power",
            *([] if full else ["lora"]),
        ],
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {Path(options['output']).name}",
        _summary(record),
        _table("Model", _model(record)),
        _table("Teacher and data", {**_teacher(record), **_data(record)}),
        _table("Training", _how(record)),
        _table("Outcome", _outcome(record)) if record["results"] else "",
        f"![loss](./{CURVE})" if record["results"] else "",
        "## How it was made\n\n```bash\n"
        + (record["command"] or f"python -m lm_power.distill --config {CONFIG}")
        + "\n```",
        "## Use\n\n```bash\n" + "\n".join(_evaluation(record)) + "\n```\n\n```python\n" + _python(record) + "\n```",
        _earlier(record),
        f"`{LOG}` has the losses. In the folder where this was made, `{CONFIG}` has all options, and `{RECORD}` says "
        "where the data and the weights came from.",
        _table("Versions", record["versions"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _published(record: Record) -> Record:
    """The record with the names of folders in place of absolute paths, and the hub's name for the result."""
    public: Record = _named(record)
    output = record["options"]["push_to_hub"] or public["options"]["output"]
    return {**public, "options": {**public["options"], "output": output}}


def _named(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _named(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return shlex.join("=".join(map(public_name, word.split("="))) for word in shlex.split(value))
    weights = Identity.parse(value)
    if weights.peft is None and weights.fingerprint is None:
        return public_name(value)
    peft = None if weights.peft is None else public_name(weights.peft)
    return str(dataclasses.replace(weights, pretrained=public_name(weights.pretrained), peft=peft))


def _summary(record: Record) -> str:
    options, teacher = record["options"], record["teacher"]
    method = (teacher["config"] or {}).get("method")
    power = method in ("power", "power_inf") and teacher["start"] == "same"
    drawn = f" drawn with method `{method}`" if method else ""
    return (
        f"`{options['model']}`, fine-tuned by maximum likelihood on the tokens of completions{drawn}, "
        + ("kept only where graded correct" if options["correct_only"] else "without labels or rewards")
        + (": power self-distillation (Tomihari & Sato 2026, arXiv 2605.04542)." if power else ".")
    )


def _model(record: Record) -> dict[str, Any]:
    options, model = record["options"], record["model"]
    part = f"an adapter: {model['trained']:,} of {model['parameters']:,} weights"
    return {
        "model": options["model"] + (f", revision {options['revision']}" if options["revision"] else ""),
        "round": record["round"],
        **({"going on from": options["adapter"]} if options["adapter"] else {}),
        "trained": f"all {model['parameters']:,} weights" if options["full"] else part,
        **({"adapter on": ", ".join(model["target_modules"])} if model["target_modules"] else {}),
        "teacher is where training starts": _START[record["teacher"]["start"]],
    }


def _teacher(record: Record) -> dict[str, Any]:
    teacher = record["teacher"]
    sampling = ", ".join(f"{name} {value}" for name, value in (teacher["config"] or {}).items())
    return {
        "teacher": teacher["model"] or "unknown: the data do not say",
        "drawn with": sampling or "unknown: the data do not say",
        "files": ", ".join(record["options"]["data"]),
        "completions there": ", ".join(f"{count} {reason}" for reason, count in teacher["counts"].items()),
    }


def _data(record: Record) -> dict[str, Any]:
    data, longest = record["data"], record["options"]["max_length"]
    return {
        "completions": f"{data['train']} to learn, {data['validation']} held out",
        "tokens per epoch": f"{data['learnt_tokens']:,} learnt, {data['tokens']:,} with prompts, "
        f"{data['padded_tokens']:,} with padding",
        f"cut at {longest} tokens": _share(data["truncated"], data["samples"]),
        f"left out, prompt of {longest} tokens or more": _share(data["crowded_out"], data["samples"]),
    }


def _how(record: Record) -> dict[str, Any]:
    options, processes = record["options"], record["processes"]
    adapter = "rank {lora_r}, alpha {lora_alpha:g}, dropout {lora_dropout:g} (our choice)".format(**options)
    trainer = {f"trainer.{name}": value for name, value in options["trainer"].items()}
    warmup = "no warm-up" if options["lr_scheduler"] == "constant" else f"warm-up {options['warmup_ratio']:.0%}"
    return {
        **({} if options["full"] or options["adapter"] else {"LoRA": adapter}),
        "learning rate": f"{record['learning_rate']:g} (peak), {options['lr_scheduler']}, {warmup}"
        + (" (rate: our choice)" if options["learning_rate"] is None else ""),
        "optimiser": f"{options['trainer'].get('optim', 'AdamW')}, weight decay {options['weight_decay']:g}",
        "epochs": f"{options['epochs']:g}",
        "global batch": f"{options['batch_size']} × {options['gradient_accumulation']} × {processes} processes"
        f" = {options['batch_size'] * options['gradient_accumulation'] * processes}",
        "precision": _precision(record),
        "gradient checkpointing": "on" if options["gradient_checkpointing"] else "off",
        "seed": options["seed"],
        **trainer,
    }


def _precision(record: Record) -> str:
    model = record["model"]
    rounded = model["dtype"] != "float32"
    weights = f"the base's weights in {model['dtype']}, the adapter's" if rounded else "all weights"
    return f"{model['precision']} ({model['precision_reason']}); {weights} in float32"


def _outcome(record: Record) -> dict[str, Any]:
    results = record["results"]
    train, validation = results["loss"]["train"], results["loss"]["validation"]
    kept = dict(validation).get(results["kept_step"])
    return {
        "training loss": f"{train[0][1]:.4f} → {train[-1][1]:.4f} nats per token",
        **(
            {"validation loss": f"{validation[0][1]:.4f} → {validation[-1][1]:.4f} nats per token"}
            if validation
            else {}
        ),
        "loss on what was learnt": _known_data(results["known_data"]),
        "learnt by heart": results["warning"] or _NO_SIGN[bool(validation)],
        "steps": f"{results['steps']} ({results['epochs']:.3g} epochs)",
        **(
            {"kept": f"step {results['kept_step']}" + (f", validation loss {kept:.4f}" if kept is not None else "")}
            if results["kept_step"] != results["steps"]
            else {}
        ),
        "tokens learnt": f"{round(results['epochs'] * record['data']['learnt_tokens']):,}",
    }


def _known_data(losses: Mapping[str, float | None]) -> str:
    teacher = "" if losses["teacher"] is None else f"; the teacher's own {losses['teacher']:.4f}"
    return f"{losses['student']:.4f} nats per token{teacher}"


def _evaluation(record: Record) -> list[str]:
    options = record["options"]
    model, output = shlex.quote(options["model"]), shlex.quote(options["output"])
    named = f"pretrained={output}" if options["full"] else f"pretrained={model},peft={output}"
    ours = f"lm_eval --model power-hf --model_args {named},method=temperature --tasks TASK"
    rows, tokens = record["model"]["token_embeddings"], record["model"]["tokens"]
    if not options["full"] and rows != tokens:
        return [ours, f"# --model hf with peft= would take {tokens:,} of the {rows:,} token embeddings: another model"]
    return [ours, f"lm_eval --model hf --model_args {named} --tasks TASK"]


def _python(record: Record) -> str:
    options, load = record["options"], "from transformers import AutoModelForCausalLM"
    if options["full"]:
        return f"{load}\n\nmodel = AutoModelForCausalLM.from_pretrained({options['output']!r})"
    return (
        f"from peft import PeftModel\n{load}\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({options['model']!r})\n"
        f"model = PeftModel.from_pretrained(base, {options['output']!r})  # .merge_and_unload() for a plain model"
    )


def _earlier(record: Record) -> str:
    if not record["previous"]:
        return ""
    rounds = {
        f"round {earlier['round']}": earlier["command"] or earlier["model"]["name"] for earlier in record["previous"]
    }
    return _table("Earlier rounds", {name: f"`{command}`" for name, command in rounds.items()})


def _table(title: str, rows: Mapping[str, Any]) -> str:
    cells = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *cells])


def _lines(title: str, rows: Mapping[str, Any]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
