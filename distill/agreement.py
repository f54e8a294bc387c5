"""Checks that the files of a teacher belong together: one model, one way of drawing, one run."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_power.distill.sources import Drawn, TeacherDataError
from lm_power.identity import Identity

logger = logging.getLogger(__name__)


def one_model(drawn: Iterable[Drawn]) -> str | None:
    """The model of all completions, by its fullest name."""
    where = {one.model: one.where for one in reversed(list(drawn)) if one.model is not None}
    models = sorted(where, key=lambda model: (Identity.parse(model).fingerprint is None, model))
    for other in models[1:]:
        if not _same_model(models[0], other):
            raise TeacherDataError(
                f"completions of two models: {models[0]} ({where[models[0]]}) and {other} ({where[other]}); a student "
                "has one teacher: give the files of one"
            )
    return models[0] if models else None


def _same_model(one: str, other: str) -> bool:
    """Whether two names stand for the same model: by fingerprint if both have one, else by name."""
    return Identity.parse(one).same_weights(Identity.parse(other))


def attach_verdicts(stored: list[Drawn], logged: dict[Path, list[Drawn]]) -> list[Drawn]:
    """The completions to learn from; stored ones get their verdicts and problems from the samples files of their run.

    They are matched by the texts of prompt and completion, because a task grades equal texts alike. Otherwise they are
    matched by self-reward and cost, because a log of lm-power 0.1 has completions without the thinking section that
    `think_end_token` ended.
    """
    known_names = {name for one in stored for name in _names(one)}
    verdicts: dict[tuple[Any, ...], bool | None] = {}
    problems: dict[str, str | None] = {}
    others: list[Drawn] = []
    for file, drawn in logged.items():
        own = [one for one in drawn if not one.is_padding]
        missing = [one for one in own if known_names.isdisjoint(_names(one))]
        if len(missing) == len(own):
            others += drawn
            continue
        if missing:
            raise TeacherDataError(
                f"{missing[0].where}: completion {missing[0].repeat} is in none of the stores given, like "
                f"{len(missing)} of the {len(own)} of this file; the others are. Give the store that its run wrote, or "
                "only one kind of file"
            )
        for one in own:
            verdicts |= dict.fromkeys(_names(one), one.correct)
            problems[one.prompt] = one.problem
        logger.info("%s: read for the verdicts on completions that are in the stores", file)
    known = [
        dataclasses.replace(
            one,
            correct=next((verdicts[name] for name in _names(one) if name in verdicts), None),
            problem=problems.get(one.prompt),
        )
        for one in stored
    ]
    return [*known, *others]


def _names(one: Drawn) -> list[tuple[Any, ...]]:
    """What identifies a completion in a store and in a samples file alike, the most reliable first."""
    by_numbers = [] if one.self_reward is None else [(one.prompt, one.self_reward, one.tokens_decoded)]
    return [(one.prompt, one.text), *by_numbers]


def shared_settings(drawn: Sequence[Drawn], mixed: bool) -> dict[str, Any] | None:
    """The options that all completions were drawn with; None if no file has any.

    Completions that differ in the seed alone count as drawn in the same way.
    """
    different: dict[str, Drawn] = {}
    for one in drawn:
        law = {name: value for name, value in one.config.items() if name != "seed"}
        different.setdefault(json.dumps(law, sort_keys=True), one)
    first, *others = different.values()
    if others and not mixed:
        said = [_differing(first.config, others[0].config), _differing(others[0].config, first.config)]
        raise TeacherDataError(
            f"completions drawn in two ways: {said[0]} ({first.where}) and {said[1]} ({others[0].where}); give the "
            "files of one, or allow both by mixed_settings, for example if they are of several tasks"
        )
    shared = {
        name: value for name, value in first.config.items() if all(one.config.get(name) == value for one in drawn)
    }
    return shared if any(one.config for one in drawn) else None


def _differing(config: dict[str, Any], other: dict[str, Any]) -> str:
    """The options of `config` whose values differ in `other`."""
    names = [name for name in config if name != "seed" and config[name] != other.get(name)]
    return ", ".join(f"{name}={config[name]}" for name in names) or "without these"
