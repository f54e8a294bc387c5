"""Options from a command line and from YAML files."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_power.config import OptionError, check_names
from lm_power.distill.options import CONFIG, FIELDS, DistillConfig
from lm_power.distill.record import nothing_to_resume
from lm_power.distill.rules import kinds


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What a command line asks for.

    Attributes:
        config: all options.
        resume: continue the run in `config.output`.
    """

    config: DistillConfig
    resume: bool


def parse(arguments: Sequence[str]) -> Invocation:
    """The options of a command line and of `--config FILE.yaml`; the command line wins.

    `--resume --output FOLDER` takes the options with which the run in FOLDER was started.

    Raises:
        OptionError: an unknown name (near matches are named), a missing or wrong value.
        SystemExit: after `--help`.
    """
    given, unknown = _parser().parse_known_args(list(arguments))
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise OptionError(f"{name!r}: is not an option's value; options begin with --, and --help lists them")
        check_names({name.lstrip("-").replace("-", "_"): None}, [*FIELDS, "config", "resume", "help"])
        raise OptionError(f"{unknown[0]}: options have two dashes and end at a space: see --help")
    options = vars(given)
    resume = options.pop("resume")
    path = options.pop("config")
    if resume and path is None and "output" in options:
        path = Path(options["output"]) / CONFIG  # the options with which the run was started
        if not path.is_file():
            raise nothing_to_resume(options["output"])
    return Invocation(DistillConfig(**{**({} if path is None else read_yaml(path)), **options}), resume)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Options from a YAML file.

    Raises:
        OptionError: the file cannot be read, is not a mapping, or names an unknown option.
    """
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"config={path}: cannot be read ({error.strerror}); name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"config={path}: is not YAML: {error}") from error
    if not isinstance(options, dict):
        raise OptionError(f"config={path}: must be a mapping of options, such as `model: ID`")
    check_names(options, FIELDS)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lm_power.distill",
        usage="%(prog)s --model ID --data STORE --output DIR [options]",
        description="Fine-tune a model on its own power samples. With several devices: accelerate launch -m …",
        formatter_class=functools.partial(_Help, max_help_position=30, width=118),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    types = kinds(DistillConfig)
    groups: dict[str, Any] = {}
    for name, field in FIELDS.items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        kind = types[name]
        text = (field.metadata["help"] + _shown(field.default)).replace("%", "%%")
        if kind is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
        elif kind is tuple:
            group.add_argument(f"--{name}", nargs="+", metavar="X", help=text)
        else:  # values remain text here; DistillConfig converts them, as it does those of a YAML file
            metavar = {int: "N", float: "X", Mapping: "JSON"}.get(kind, "NAME")
            group.add_argument(f"--{name}", metavar=metavar, help=text)
    group = parser.add_argument_group("this command")
    group.add_argument("--config", metavar="FILE", default=None, help="YAML file of options; the command line wins")
    group.add_argument("--resume", action="store_true", default=False, help="continue the run that is in output")
    group.add_argument("--help", "-h", action="help", help="show this and exit")
    return parser


class _Help(argparse.HelpFormatter):
    """Shows a switch as `--[no-]name`, not in both spellings."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)


def _shown(default: Any) -> str:
    """A default as the help shows it; empty if there is none."""
    if default is True:
        return " [on]"
    if default is False or default is dataclasses.MISSING or default in (None, ()):
        return ""
    return f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
