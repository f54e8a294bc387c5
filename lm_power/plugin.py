"""What lm-power adds to lm-eval: the one place that names our models and our tasks.

lm-eval 0.4.13 looks for no third-party plugins, so `lm_power._autoload` calls the functions below while lm-eval is
imported. Releases that read entry points find the same models and tasks in pyproject.toml, and then `add_models` and
`add_tasks` change nothing. Nothing heavy is imported here: a model class is a `"module:Class"` string, which lm-eval
imports when somebody asks for the model.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

MODELS = {
    "power-hf": "lm_power.harness.power_hf:PowerHF",
    "power-api": "lm_power.harness.power_api:PowerAPI",
    "power-vllm": "lm_power.harness.power_vllm:PowerVLLM",
}
TASKS_PACKAGE = "lm_power.tasks"


def tasks_folder() -> Path:
    """Return the installed folder of our task configs (in an editable install, the repository's `tasks/`).

    Raises:
        ModuleNotFoundError: the folder is missing from the installation.
    """
    spec = importlib.util.find_spec(TASKS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{TASKS_PACKAGE}: the folder of task configs is not installed; reinstall lm-power",
            name=TASKS_PACKAGE,
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def add_models(models: ModuleType) -> None:
    """Register our models; a name that lm-eval already knows keeps its meaning.

    Args:
        models: the module `lm_eval.models`, which has just registered the built-in models (and, in releases
            that read entry points, ours).
    """
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def add_tasks(manager: ModuleType) -> None:
    """Put our folder on every TaskManager's list: after the built-in tasks, before the user's `include_path`.

    A later folder overrides an earlier one, so a user's task wins over ours. `include_defaults=False` leaves out our
    tasks together with the built-in ones. The list is changed where lm-eval reads it and not in `TaskManager.__init__`,
    because only there can we see whether our folder is on it already: from an entry point, from the user, or because
    the module was reloaded.

    Args:
        manager: the module `lm_eval.tasks.manager`.
    """
    build_index = manager.TaskIndex.build
    ours = tasks_folder()
    builtin = Path(str(manager.__file__)).parent

    def build(paths: Iterable[Path], **options: Any) -> Any:
        folders = list(paths)
        if builtin in folders and ours not in [folder.resolve() for folder in folders]:
            folders.insert(folders.index(builtin) + 1, ours)
        return build_index(folders, **options)

    manager.TaskIndex.build = staticmethod(build)


def add_checks(evaluator: Any) -> None:
    """Make `simple_evaluate` check options and data files of our models and tasks before it loads a model.

    Runs that use none of ours, and calls that pass no TaskManager, are not changed.

    Args:
        evaluator: the module `lm_eval.evaluator`.
    """
    evaluate = evaluator.simple_evaluate
    signature = inspect.signature(evaluate)

    @functools.wraps(evaluate)
    def simple_evaluate(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        if given.get("task_manager") is not None and given.get("tasks") and not given.get("check_integrity"):
            from lm_power.harness.preflight import prepare

            samples = isinstance(given.get("model"), str) and given["model"] in MODELS
            asked = given.get("model_args"), given["tasks"], given["task_manager"], given.get("gen_kwargs")
            confirmed = bool(given.get("confirm_run_unsafe_code"))
            given["tasks"] = prepare(samples, tasks_folder(), *asked, confirmed=confirmed)
        return evaluate(**given)

    vars(evaluator)["simple_evaluate"] = simple_evaluate


def add_short_errors(command: Any) -> None:
    """Make the command `lm_eval` end with one line and status 2 when the user's input to us is wrong.

    The traceback is logged at level DEBUG (`LMEVAL_LOG_LEVEL=DEBUG`).

    Args:
        command: the module `lm_eval._cli.harness`.
    """
    from lm_power.errors import LMPowerError, one_line

    execute = command.HarnessCLI.execute

    @functools.wraps(execute)
    def execute_shortly(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return execute(self, *arguments, **options)
        except LMPowerError as error:
            logging.getLogger("lm_eval.lm_power").debug("the run ended here", exc_info=True)
            print(f"lm_eval: {one_line(error)}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    command.HarnessCLI.execute = execute_shortly
