"""Options: one definition each, from the command line or YAML, refused where wrong."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import yaml

from lm_power.config import OptionError
from lm_power.distill.arguments import parse
from lm_power.distill.command import main
from lm_power.distill.options import DistillConfig

NEEDED = ["--model", "m", "--data", "store", "--output", "out"]


def test_defaults_are_the_papers() -> None:
    config = parse(NEEDED).config
    assert (config.epochs, config.weight_decay, config.warmup_ratio) == (3, 0.01, 0.03)
    assert (config.batch_size, config.gradient_accumulation, config.max_length) == (1, 8, 1024)
    assert config.gradient_checkpointing and config.select == "one" and not config.correct_only


def test_command_line_wins_over_yaml(tmp_path) -> None:
    """YAML reads 1e-4 as text; it is a number all the same, as on the command line."""
    file = tmp_path / "config.yaml"
    file.write_text("model: m\ndata: store\noutput: out\nlearning_rate: 1e-4\nepochs: 5\ntrainer: {optim: adafactor}\n")
    config = parse(["--config", str(file), "--epochs", "1", "--no-gradient_checkpointing"]).config
    assert (config.learning_rate, config.epochs, config.gradient_checkpointing) == (1e-4, 1.0, False)
    assert config.data == ("store",)
    assert config.trainer == {"optim": "adafactor"}


def test_resolved_options_make_the_same_config(tmp_path) -> None:
    """What a run writes to its folder repeats it."""
    config = parse([*NEEDED, "--target_modules", "q_proj", "--trainer", '{"optim": "sgd"}', "--lora_alpha", "7"]).config
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump(config.resolved()))
    assert parse(["--config", str(file)]).config == config


def test_resume_takes_the_options_that_the_run_was_started_with(tmp_path) -> None:
    config = DistillConfig(model="m", data=("store",), output=str(tmp_path), epochs=7)
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(config.resolved()))
    invocation = parse(["--resume", "--output", str(tmp_path)])
    assert invocation.resume and invocation.config == config
    with pytest.raises(OptionError, match="holds no run to resume"):
        parse(["--resume", "--output", str(tmp_path / "nothing")])


def test_help_fits_two_screens_and_names_every_option_once() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        parse(["--help"])
    lines = out.getvalue().splitlines()
    assert len(lines) < 80
    for name in DistillConfig.__dataclass_fields__:
        assert sum(line.split()[:1] in ([f"--{name}"], [f"--[no-]{name}"]) for line in lines) == 1, name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--learning_rate", "0"], ["learning_rate=0.0", "> 0"]),
        (["--learning_rate=-1e-4"], ["learning_rate=-0.0001", "> 0"]),
        (["--learning_rate", "nan"], ["learning_rate=nan"]),
        (["--epochs", "0"], ["epochs=0", "> 0"]),
        (["--epochs", "three"], ["epochs='three'"]),
        (["--batch_size", "1.5"], ["batch_size='1.5'", "whole number >= 1"]),
        (["--gradient_accumulation", "0"], ["gradient_accumulation=0"]),
        (["--max_length", "1"], ["max_length=1", ">= 2"]),
        (["--validation_share", "1"], ["validation_share=1", "< 1"]),
        (["--select", "worst"], ["select=worst", "best"]),
        (["--seed", "-1"], ["seed=-1"]),
        (["--learning_rat", "1"], ["learning_rat", "did you mean learning_rate"]),
        (["--lora-rr", "1"], ["lora_rr", "lora_r"]),
        (["stray"], ["stray"]),
        (["--trainer", "optim=sgd"], ["trainer='optim=sgd'", "mapping"]),
        (["--full", "--lora_r", "4"], ["lora_r=4", "full"]),
        (["--full", "--adapter", "a"], ["full=True", "merge"]),
        (["--adapter", "a", "--target_modules", "q_proj"], ["target_modules", "adapter"]),
        (["--per_prompt", "2"], ["per_prompt=2", "select"]),
        (["--early_stopping", "2"], ["early_stopping=2", "validation_share"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    ],
)
def test_wrong_options_name_value_and_way_out(arguments: list[str], told: list[str], capsys) -> None:
    """Refused before torch is loaded, with exit status 2 and no traceback."""
    assert main([*NEEDED, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told), error
    assert "Traceback" not in error


@pytest.mark.parametrize("left_out", ["model", "data", "output"])
def test_what_must_be_given(left_out: str) -> None:
    given = {"model": "m", "data": ("store",), "output": "out"}
    del given[left_out]
    with pytest.raises(OptionError, match=f"{left_out}: must be given"):
        DistillConfig(**given)


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [", "modle: m\n", "epochs: true\n", "full: 1\n", "data: [1]\n"])
def test_wrong_yaml_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(OptionError):
        parse(["--config", str(file), *NEEDED[: 2 if "data" in text else 6]])
