"""The output folder: whether a run may write there, what a run was, and from where it can be resumed."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from lm_power.config import OptionError
from lm_power.distill.options import CONFIG, DistillConfig
from lm_power.identity import Identity

RECORD = "distill.json"
LOG = "training_log.json"
CURVE = "loss.png"
ADAPTER = "adapter_config.json"  # PEFT's name
FORMAT = 1

Record = dict[str, Any]
"""What `distill.json` holds: command, options, model, teacher, data, versions, earlier rounds, results."""

_NO_ROOM = 2**20  # bytes: what is left where a larger part of a file did not fit
# A resumed run may have other values of these. What they lead to is compared instead: weights, data, bf16 or fp32.
_MAY_CHANGE = {
    "output", "model", "adapter", "revision", "trust_remote_code", "data", "exclude_prompts_of",
    "precision", "logging_steps", "report_to", "push_to_hub",
}  # fmt: skip


def read_record(folder: str | Path) -> Record | None:
    """The record of the run that made a folder; None if the folder was not made by a run.

    Raises:
        OptionError: the record is damaged, or a newer version wrote it.
    """
    path = Path(folder) / RECORD
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        version = record["format"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path}: is not a record of lm_power.distill ({error!r}); name another folder") from error
    if version > FORMAT:
        raise OptionError(f"{path}: written in format {version} by a newer lm-power; upgrade")
    return record


def nothing_to_resume(output: str) -> OptionError:
    """The error for `--resume` with a folder that no run has made."""
    return OptionError(f"output={output}: holds no run to resume; leave out --resume to start one")


def earlier_run(output: str, resume: bool) -> Record | None:
    """The record of the run to resume, or None for a new run in a new or empty folder.

    Raises:
        OptionError: without `resume`, the folder is not empty; with it, the folder holds no run.
    """
    folder = Path(output)
    record = read_record(folder)
    if resume:
        if record is None:
            raise nothing_to_resume(output)
        return record
    if record is not None:
        state = "a finished run" if record["results"] else "a run that was not finished: --resume continues it"
        raise OptionError(f"output={output}: holds {state}; nothing is overwritten: name another folder")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise OptionError(f"output={output}: is not empty; nothing is overwritten: name another folder")
    except NotADirectoryError as error:
        raise OptionError(f"output={output}: is a file; name a folder") from error
    return None


def begin(record: Record, config: DistillConfig) -> None:
    """Write the record and the resolved options of a run that is about to start.

    Raises:
        OptionError: the folder cannot be written.
    """
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = "# Options of this run; `python -m lm_power.distill --config FILE --output ANOTHER` repeats it.\n"
        replace(folder / CONFIG, text + yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
        write_record(record, folder)
    except OSError as error:
        raise OptionError(f"output={config.output}: cannot be written ({error.strerror}); name another") from error


@contextlib.contextmanager
def room_in(folder: str) -> Iterator[None]:
    """Make a user's error of what fails because the disk is full.

    Raises:
        OptionError: there is no room left in the folder.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # Safetensors and torch.save write by themselves, and say less of what went wrong.
        if not full and (isinstance(error, OSError) or shutil.disk_usage(folder).free > _NO_ROOM):
            raise
        raise OptionError(f"output={folder}: the disk is full; make room, and go on with --resume") from error


def write_record(record: Record, folder: Path) -> None:
    """Replace the record atomically."""
    replace(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def public_name(path: str) -> str:
    """The last part of an absolute path; anything else as it is.

    >>> public_name("/models/qwen"), public_name("runs/student"), public_name("USER/NAME")
    ('qwen', 'runs/student', 'USER/NAME')
    """
    return Path(path).name or path if Path(path).is_absolute() else path


def published_adapter(folder: Path) -> bytes:
    """An adapter's settings as they are published: they name its base without the path on this machine.

    The file itself keeps the path, by which PEFT finds the base when it loads the adapter here.
    """
    settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = public_name(settings["base_model_name_or_path"])
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def check_same_options(earlier: Record, options: Mapping[str, Any]) -> None:
    """Refuse to resume a run, also a finished one, with other options than it was started with.

    Raises:
        OptionError: an option that matters differs.
    """
    for name, value in options.items():
        was = earlier["options"].get(name)
        if name not in _MAY_CHANGE and was != value:
            raise OptionError(f"{name}={value}: this run was started with {was}; resume with that, or start another")


def check_same_run(earlier: Record, now: Record) -> None:
    """Refuse to resume a run with options, weights or data that are not those of its start.

    Raises:
        OptionError: an option that matters, the weights, the data or the number of processes differ.
    """
    check_same_options(earlier, now["options"])
    was, would = (record["model"].get("precision") for record in (earlier, now))
    if was != would:
        raise OptionError(
            f"precision={now['options']['precision']}: is {would} here ({now['model']['precision_reason']}), and this "
            f"run was started in {was}; resume with precision={was}"
        )
    if earlier["processes"] != now["processes"]:
        raise OptionError(
            f"processes={now['processes']}: this run was started with {earlier['processes']}; launch as many"
        )
    if earlier["data"]["digest"] != now["data"]["digest"]:
        raise OptionError("data: are not those that this run was started with; restore them, or start another run")
    if earlier["model"]["fingerprints"] != now["model"]["fingerprints"]:
        raise OptionError("model, adapter: not the weights that this run was started with; restore them, or start anew")


def last_checkpoint(output: str, processes: int) -> str | None:
    """The newest complete checkpoint; None if there is none yet.

    If a process is killed while it writes a checkpoint, the files that are written last are missing: the state of the
    random streams of every process, and the trainer's state.
    """
    streams = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    found: dict[int, Path] = {}
    for folder in Path(output).glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdigit() and all((folder / name).is_file() for name in streams) and _whole_json(folder):
            found[int(step)] = folder
    return str(found[max(found)]) if found else None


def _whole_json(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def earlier_rounds(start: str | None, teacher: str | None) -> list[Record]:
    """Records of the rounds that led to the teacher, oldest first.

    Args:
        start: the adapter or model that training starts from.
        teacher: "name@fingerprint"; a name "base+peft=FOLDER" says which adapter it had.
    """
    weights = Identity.parse(teacher or "")
    for folder in (weights.peft, weights.pretrained, start):
        record = read_record(folder) if folder else None
        if record is not None:
            previous: list[Record] = record["previous"]
            return [*previous, {key: value for key, value in record.items() if key != "previous"}]
    return []


def losses(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(step, nats per token) pairs from a Trainer's log: "train", means since the previous entry, and "validation"."""
    return {
        "train": [(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        "validation": [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry],
    }
