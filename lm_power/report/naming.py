"""Names for a run's model and sampling, from lm-eval's `config` and from store lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from lm_power.errors import UserError
from lm_power.identity import Identity
from lm_power.logs.results import Results
from lm_power.report.runs import Run

_SAYS_LITTLE = re.compile(r"model|merged|adapter|final|best|last|checkpoint.*|step.*|epoch.*", re.IGNORECASE)
_NOT_SETTINGS = ("completions", "n")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a run is called; the fields are those of `Run`."""

    model: str
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]


def describe_evaluation(results: Results, generation: Mapping[str, Any]) -> Description:
    """The description of an lm-eval run, one of whose requests had these generation options."""
    drawn, weights, arguments = results.drawing(generation), results.identity, results.model_arguments
    options = {name: value for name, value in drawn.options.items() if name not in ("until", "stop")}
    method = drawn.method or ("greedy" if _is_greedy(generation) else "sampled")
    settings = {
        "method": method, **options, "model_source": results.content["config"].get("model"), **arguments, **options,
        # Weights that carry one name are told apart by their fingerprint, or by what a server tells of them.
        **({"weights": weights.key} if weights is not None and weights != results.named_weights else {}),
    }  # fmt: skip
    model = display_name(results.named_weights or Identity("unnamed model"))
    return Description(model, method, options, {k: v for k, v in settings.items() if k not in _NOT_SETTINGS})


def describe_store(model: str, config: Mapping[str, Any]) -> Description:
    """The description of a store's completions of one model ("name@fingerprint") and one `config`."""
    weights = Identity.parse(model)
    options = {key: value for key, value in config.items() if key not in ("method", "stop", "eos_ids")}
    return Description(
        model=display_name(weights.as_named),
        method=str(config["method"]),
        options=options,
        settings={
            "method": config["method"],
            **options,
            "model_source": "store",
            **config,
            "weights": weights.fingerprint or "",
        },
    )


def display_name(weights: Identity) -> str:
    """A short name: the last part of an id or path, with its parent where that says little.

    >>> display_name(Identity("Qwen/Qwen2.5-7B")), display_name(Identity("pocket/model", peft="runs/lora/adapter"))
    ('Qwen2.5-7B', 'pocket/model + lora/adapter')
    >>> display_name(Identity("some/m", peft="a", merged=True)), display_name(Identity("some/m", randomized=True))
    ('m + a (merged)', 'm (RandW)')
    """
    name = " + ".join(_last_part(path) for path in (weights.pretrained, weights.peft) if path)
    return f"{name}{' (merged)' * weights.merged}{' (RandW)' * weights.randomized}"


def with_unique_labels(runs: Sequence[Run]) -> list[Run]:
    """The runs of one task with unique labels; equal labels get the settings in which they differ, or else numbers.

    Raises:
        UserError: the user gave one label twice.
    """
    labelled = list(runs)
    for label in dict.fromkeys(run.label for run in runs):
        places = [place for place, run in enumerate(runs) if run.label == label]
        same = [runs[place] for place in places]
        if len(same) > 1 and any(run.label != default_label(run) for run in same):
            folders = ", ".join(str(run.folder) for run in same)
            raise UserError(
                f"label {label!r}: names {len(same)} runs of {same[0].task or 'a store'} ({folders}); a label must "
                "belong to one run; name results files, each with a label of its own"
            )
        for place, unique in zip(places, _told_apart(same), strict=True):
            labelled[place] = dataclasses.replace(runs[place], label=unique)
    return labelled


def default_label(run: Run) -> str:
    """The label of a run that the user did not label."""
    return f"{run.model}, {run.sampling}"


def _told_apart(runs: Sequence[Run]) -> list[str]:
    """Unique labels for runs that share one; a setting is added if it distinguishes some of them."""
    labels = [run.label for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        if len(set(labels)) == len(runs):
            break
        longer = [
            f"{label}, {name}={run.settings[name]}" if name in run.settings else label
            for label, run in zip(labels, runs, strict=True)
        ]
        labels = longer if len(set(longer)) > len(set(labels)) else labels
    return [
        f"{label}, #{labels[: place + 1].count(label)}" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]


def _last_part(path: str) -> str:
    parts = [part for part in PurePath(path).parts if part not in ("/", ".", "..")]
    few = parts[-2:] if parts and _SAYS_LITTLE.fullmatch(parts[-1]) else parts[-1:]
    return "/".join(few) or path


def _is_greedy(generation: Mapping[str, Any]) -> bool:
    """Whether lm-eval's models decode greedily (its `do_sample` and `temperature`)."""
    do_sample = generation.get("do_sample")
    return do_sample is False or (do_sample is None and not generation.get("temperature"))
