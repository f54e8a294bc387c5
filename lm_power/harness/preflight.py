"""Finds wrong data files, wrong options in `--gen_kwargs` and a missing confirmation before lm-eval loads the model.

lm-eval loads the model first and the tasks after it, so a misspelt file name would be found only after minutes. The
plugin makes lm-eval's `simple_evaluate` call `prepare` first. It loads our tasks, which draw nothing from the global
random numbers that lm-eval seeds later, and passes them on, so that nothing is loaded twice. All other tasks are loaded
when lm-eval loads them; wrong options for these are found before the first token is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from lm_power.config import SamplerConfig
from lm_power.errors import UserError
from lm_power.harness.options import plan_generation, sampler_options
from lm_power.harness.power_task import PowerTask, completions_per_problem

_ANY_LENGTH = 256  # HFLM's default; the model's real length is checked together with the prompts


def prepare(
    samples: bool,
    folder: Path,
    model_args: str | Mapping[str, Any] | None,
    tasks: str | Mapping[str, Any] | Task | list[Any],
    task_manager: TaskManager,
    gen_kwargs: str | Mapping[str, Any] | None,
    confirmed: bool = False,
) -> list[Any]:
    """`tasks`, with each of ours loaded, after a check of the options that our models would get.

    Args:
        samples: whether the model is one of ours, which takes sampler options.
        folder: the folder of our tasks.
        model_args: the model's options, as text or mapping; None for none.
        tasks: names, configs or tasks, or one of them alone.
        task_manager: loads the tasks.
        gen_kwargs: generation options that override the tasks', as text or mapping; None for none.

        confirmed: whether programs that the model writes may be run.

    Raises:
        LMPowerError: a wrong option, a data file that is missing or malformed, or one of our tasks would run programs
            and that is not confirmed.
    """
    prepared: list[Any] = []
    loaded: list[Task] = []
    others_generate = False
    for spec in tasks if isinstance(tasks, list) else [tasks]:
        entry = task_manager.task_index.get(spec) if isinstance(spec, str) else None
        if entry is not None and _is_ours(entry, folder):
            found = task_manager.load([spec])
            prepared += [found["groups"][spec]] if spec in found["groups"] else list(found["tasks"].values())
            loaded += found["tasks"].values()
        else:
            prepared.append(spec)
            others_generate |= (getattr(entry, "cfg", None) or {}).get("output_type") == "generate_until"
    for task in loaded:
        if getattr(task, "UNSAFE_CODE", False) and not confirmed:
            raise UserError(
                f"{task.config.task}: runs programs that the model writes, in a sandbox; to allow that, add "
                "--confirm_run_unsafe_code (in Python confirm_run_unsafe_code=True)"
            )
    given = _as_mapping(gen_kwargs)
    if "n" in given and any(isinstance(task, PowerTask) for task in loaded):
        completions_per_problem("n", given["n"], "--gen_kwargs n=8")
    if samples:
        # All others are the model's own arguments, which it checks itself before it loads anything.
        ours, _ = sampler_options(_as_mapping(model_args))
        config = SamplerConfig().replace(**ours)
        wanted = [task.config.generation_kwargs or {} for task in loaded if task.OUTPUT_TYPE == "generate_until"]
        for generation in wanted + [{}] * others_generate:
            asked = {name: value for name, value in {**generation, **given}.items() if name != "n"}
            plan_generation(asked, config, None, _ANY_LENGTH)
    return prepared


def _is_ours(entry: Any, folder: Path) -> bool:
    """Whether a task, a group or a user's variant of one is built from our folder or our class."""
    path = entry.yaml_path
    inside = path is not None and folder in path.resolve().parents
    return inside or "lm_power." in str((entry.cfg or {}).get("class", ""))


def _as_mapping(options: str | Mapping[str, Any] | None) -> dict[str, Any]:
    return simple_parse_args_string(options) if isinstance(options, str) else dict(options or {})
