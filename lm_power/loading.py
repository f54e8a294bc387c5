"""Load what a user named, and say in one line why it cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from lm_power.config import OptionError
from lm_power.errors import one_line

_FAILURES = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


@contextmanager
def named_by(option: str, value: object, advice: str) -> Iterator[None]:
    """Raise what transformers raises for a checkpoint, tokenizer or config as an `OptionError` about the option.

    Args:
        option: what the user calls it, such as "pretrained".
        value: the hub id, folder or object that the user gave.
        advice: what to do instead.

    Raises:
        OptionError: the block within raised OSError (nothing there, no network), ValueError (an unknown architecture,
            remote code that is not trusted), KeyError (a broken config), TypeError (an option that nobody knows),
            ImportError (a package is missing), RuntimeError (weights that do not fit, or too little memory) or
            SafetensorError (a file that was cut off).
    """
    try:
        yield
    except OptionError:
        raise
    except _FAILURES as error:
        raise OptionError(f"{option}={value}: cannot be loaded: {_reason(error)}; {advice}") from error


def check_device(device: str) -> None:
    """Raise `OptionError` unless this machine has the device, such as "cpu", "cuda" or "cuda:1".

    "cuda:0" is what the command `lm_eval` asks for where nobody names a device; without a GPU, HFLM then takes the CPU.
    """
    if device == "cuda:0" and not torch.cuda.is_available():
        return
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # AssertionError: by a PyTorch without CUDA
        raise OptionError(
            f"device={device}: this machine has none: {_reason(error)}; without device= the GPU is taken if there is "
            "one, else the CPU"
        ) from error


def check_dtype(option: str, dtype: object) -> None:
    """Raise `OptionError` unless weights can have it: None, "auto", a `torch.dtype` of real numbers, or its name."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else torch.float32
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise OptionError(f"{option}={dtype}: is not known; name one such as float32, bfloat16, float16 or auto")


def check_vocabulary(tokenizer: Any, option: str, value: object) -> None:
    """Raise `OptionError` for a tokenizer of special tokens alone, which transformers makes of a folder without one."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OptionError(f"{option}={value}: has no tokenizer; set tokenizer= to the hub id or folder of the model's")


def _reason(error: Exception) -> str:
    return one_line(error, 300).rstrip(" .;:") or type(error).__name__
