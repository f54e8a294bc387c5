"""lm-eval's `results_TIME.json`: which model, which options, which tasks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_power.config import LENGTH_NAMES, OptionError, SamplerConfig, option_names
from lm_power.identity import Identity
from lm_power.logs.samples import AGAIN, LogError, parse

_TIME = r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)"
_NAMES = {"results": re.compile(rf".+{_TIME}\.json"), "samples": re.compile(rf"samples_.+{_TIME}\.jsonl")}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a request's completions were drawn: the model's options, overruled by the request's.

    Attributes:
        method: of `power-hf`; None for another model.
        options: those that decide, as a store's `config` has them, but for the method, EOS tokens, and a length that no
            file tells; of another model, the request's own.
        complaint: why this version cannot make sense of the options, which are then as logged; None if it can.
    """

    method: str | None
    options: dict[str, Any]
    complaint: str | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """A whole results file.

    Attributes:
        path: the file.
        content: as lm-eval wrote it; `results`, `config` and `configs` are objects.
    """

    path: Path
    content: dict[str, Any]

    @property
    def time(self) -> str:
        """Of its name, and of those of its samples files."""
        return time_of("results", self.path) or ""

    @property
    def model_arguments(self) -> dict[str, Any]:
        """lm-eval's `model_args`: a dict, or, of older versions, the text of the command line."""
        given = self.content["config"].get("model_args")
        if isinstance(given, Mapping):
            return dict(given)
        parts = [part.split("=", 1) for part in str(given or "").split(",") if "=" in part]
        arguments: dict[str, Any] = {name.strip(): value.strip() for name, value in parts}
        return arguments | {name: value == "True" for name, value in arguments.items() if value in ("True", "False")}

    @property
    def identity(self) -> Identity | None:
        """The weights, by fingerprint where the model was `power-hf`; None where the file does not tell."""
        sampler = self._sampler
        if sampler is not None and "model" in sampler:
            return Identity.parse(str(sampler["model"]))
        return self.named_weights

    @property
    def named_weights(self) -> Identity | None:
        """The weights as the command line names them, without a fingerprint; None where the file does not tell.

        A command that names a server alone leaves it to the model to say what is served. lm-eval's own `model_name` is
        the last resort: without a name on the command line it is made up, and another one every time.
        """
        arguments, sampler = self.model_arguments, self._sampler
        name = arguments.get("pretrained") or arguments.get("model")
        if not name and sampler is not None and sampler.get("model"):
            return Identity.parse(str(sampler["model"])).as_named
        name = name or self.content.get("model_name")
        if not name:
            return None
        return Identity(
            str(name),
            peft=arguments.get("peft") or None,
            randomized=arguments.get("randomize_weights") is True,
            merged=arguments.get("merge_adapter") is True,
        )

    @property
    def _sampler(self) -> dict[str, Any] | None:
        sampler = self.content["config"].get("power_sampler")
        return dict(sampler) if isinstance(sampler, Mapping) else None

    def drawing(self, generation: Mapping[str, Any]) -> Drawing:
        """How completions were drawn for a request with these options, the task's and `--gen_kwargs` together."""
        if self._sampler is None:
            return Drawing(None, dict(generation))
        names = set(option_names())
        lengths = [generation[name] for name in LENGTH_NAMES if generation.get(name) is not None]
        chosen = {name: value for name, value in self._sampler.items() if name != "model"}
        chosen |= {name: value for name, value in generation.items() if name in names}
        chosen |= {"max_new_tokens": lengths[0]} if lengths else {}
        complaint = None
        try:
            options = SamplerConfig(**chosen).relevant_options()
        except (OptionError, TypeError) as error:
            options, complaint = chosen, str(error)
        if not lengths:  # lm-eval's default for the model, which no file tells
            options.pop("max_new_tokens", None)
        until = generation.get("until") or []
        stop = sorted({until} if isinstance(until, str) else set(until))
        return Drawing(str(options.pop("method", "power")), {**options, "stop": stop}, complaint)


def read_results(path: Path) -> Results:
    """A results file; raises `LogError` if it is not whole, or is something else."""
    try:
        content = parse(path.read_bytes(), str(path))
        config, configs = content["config"], content.setdefault("configs", {})
        parts = [content.setdefault("results", {}), config, configs, *configs.values()]
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise LogError(f"{path}: is not a complete results file of lm-eval ({error!r}); {AGAIN}") from error
    if not all(isinstance(part, dict) for part in parts):
        raise LogError(f"{path}: is not a results file of lm-eval: results, config and configs must be objects")
    return Results(path, content)


def results_beside(samples: Path) -> Results | None:
    """The results file of a samples file's command; None where there is none beside it."""
    path = samples.parent / f"results_{samples.stem.rpartition('_')[2]}.json"
    return read_results(path) if path.is_file() else None


def time_of(kind: str, path: Path) -> str | None:
    """The time in the name of a "results" or "samples" file; None if the name is no such file's."""
    match = _NAMES[kind].fullmatch(path.name)
    return None if match is None else match[1]
