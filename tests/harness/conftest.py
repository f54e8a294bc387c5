"""Fixtures: the tiny model in a folder, and `evaluate`, lm-eval on it in this process."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from harness.tiny_lm import PROMPTS, Evaluation, save_model, write_task

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """Folder of the tiny model."""
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def scratch_cache(tmp_path_factory):
    """Data sets are cached in a folder of this run."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    """lm-eval's command line stops its loggers from reaching pytest's; here they do."""
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)


@pytest.fixture(scope="session")
def evaluate(tiny, tmp_path_factory):
    """Run lm-eval's `simple_evaluate` on a task written for the occasion, with `power-hf` on the tiny model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_power.harness.power_hf import PowerHF

    def run(task=(), prompts=PROMPTS, model=PowerHF, options=(), **arguments: Any) -> Evaluation:
        folder = write_task(tmp_path_factory.mktemp("task"), prompts, **dict(task))
        options = {"pretrained": tiny, "mcmc_steps": 2, "block_size": 4, "batch_size": 4, **dict(options)}
        if model is not PowerHF:
            del options["mcmc_steps"], options["block_size"]
        lm = model(device="cpu", **options)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        arguments = {"bootstrap_iters": 0, "tasks": ["tiny_task"], **arguments}
        return Evaluation(simple_evaluate(model=lm, task_manager=manager, **arguments), lm)

    return run
