"""Runs from a store of completions, which has everything but the task's verdicts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_power.completion import Steps
from lm_power.errors import UserError
from lm_power.identity import Identity
from lm_power.logs.samples import LoggedCompletion, evidence, finite
from lm_power.report.naming import default_label, describe_store
from lm_power.report.runs import Problem, Run
from lm_power.store import StoreError, read_store

NO_VERDICTS = "accuracy: unknown, since a store holds completions without a task's verdicts"


def read_stored_runs(folder: Path) -> list[Run]:
    """The runs of a store, one for each model and way of sampling in it; it may still be growing.

    Prompts that have fewer completions than others of the run are left out, and a note says so.

    Raises:
        UserError: the folder is not a store, is damaged, or is empty.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    spelt: dict[str, str] = {}  # a resumed run may spell the same weights in another way; the first one counts
    try:
        for record in read_store(folder):
            config = json.dumps(record["config"], sort_keys=True)
            model = spelt.setdefault(Identity.parse(record["model"]).key, record["model"])
            groups[model, config][record["prompt"]][record["repeat"]] = record
    except StoreError as error:
        raise UserError(f"{folder}: read as a store: {error}") from error
    if not groups:
        raise UserError(f"{folder}: holds no completions yet; give a store that has some, or an lm-eval output folder")
    return [_run(folder, model, json.loads(config), prompts) for (model, config), prompts in groups.items()]


def _run(folder: Path, model: str, config: dict[str, Any], prompts: dict[str, dict[int, dict[str, Any]]]) -> Run:
    n = max(len(repeats) for repeats in prompts.values())
    whole = sorted(prompt for prompt, repeats in prompts.items() if len(repeats) == n)
    left_out = len(prompts) - len(whole)
    notes = [NO_VERDICTS]
    if left_out:
        notes.append(
            f"{left_out} of {len(prompts)} prompts have fewer than {n} completions in the store and are omitted"
        )
    run = Run(
        label="",
        **vars(describe_store(model, config)),
        task=None,
        filter=None,
        task_version=None,
        n=n,
        problems=tuple(
            _problem(place, prompt, [record for _, record in sorted(prompts[prompt].items())])
            for place, prompt in enumerate(whole)
        ),
        folder=folder,
        notes=tuple(notes),
    )
    return dataclasses.replace(run, label=default_label(run))


def _problem(place: int, prompt: str, records: Sequence[dict[str, Any]]) -> Problem:
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return Problem(place, None, digest, prompt, None, tuple(map(_completion, records)))


def _completion(record: dict[str, Any]) -> LoggedCompletion:
    return LoggedCompletion(
        text=record["text"],
        self_reward=finite(record["self_reward"]),
        sum_log_prob=finite(record["sum_log_prob"]),
        finish_reason=record["finish_reason"],
        tokens=len(record["token_ids"]),
        tokens_decoded=record["stats"].get("tokens_decoded"),
        seconds=finite(record["stats"].get("seconds")),
        steps=Steps.from_record(record["steps"]),
        **evidence(record["stats"].get("diagnostics")),
    )
