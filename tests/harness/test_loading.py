"""A model that cannot be loaded is refused in one line that names the option, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_power.config import OptionError
from lm_power.harness.power_hf import PowerHF

MODEL = Path(__file__).resolve().parents[2] / "examples" / "pocket" / "model"


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / "config.json").write_text('{"model', encoding="utf-8"),
        lambda folder: change_config(folder, model_type="no_such_type"),
        lambda folder: (folder / "model.safetensors").unlink(),
        cut_off,
        lambda folder: change_config(folder, hidden_size=32, vocab_size=77),
        without_tokenizer,
    ],
    ids=["no folder", "half a config", "unknown type", "no weights", "weights cut off", "other sizes", "no tokenizer"],
)
def test_a_folder_that_holds_no_model(damage: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    damage(folder)
    with pytest.raises(
        OptionError, match=r"pretrained=.*model: (cannot be loaded: .+; |has no tokenizer; )"
    ) as refusal:
        PowerHF(str(folder), method="standard")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "/no/such/tokenizer"}, "tokenizer=/no/such/tokenizer: cannot be loaded"),
        ({"dtype": "float17"}, "dtype=float17: is not known"),
        ({"dtype": "int8"}, "dtype=int8: is not known"),
        ({"mixed_precision_dtype": "half17"}, "mixed_precision_dtype=half17: is not known"),
        ({"parallelize": "maybe"}, "parallelize='maybe': must be true or false"),
        ({"max_length": 0}, "max_length=0: must be >= 1"),
        ({"max_batch_size": "x"}, "max_batch_size='x': must be a whole number"),
        ({"batch_size": "many"}, "batch_size=many: must be a whole number >= 1, or auto"),
        ({"batch_size": 0}, "batch_size=0: must be"),
        ({"device": "cuda:63"}, "device=cuda:63: this machine has none"),
        ({"device": "gpu"}, "device=gpu: this machine has none"),
        ({"attn_implementation": "no_such"}, "cannot be loaded: .*no_such"),
        ({"no_such_option": 3}, "no_such_option"),
    ],
)
def test_an_option_of_loading_that_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PowerHF(str(MODEL), method="standard", **options)
