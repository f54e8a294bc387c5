"""Power sampling for lm-evaluation-harness: completions from p(x)^alpha, a model's own law sharpened.

Importing the package imports nothing heavy: the names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_power.completion import Completion
    from lm_power.config import SamplerConfig
    from lm_power.sampler import PowerSampler

__version__ = "0.1.0"
__all__ = ["Completion", "PowerSampler", "SamplerConfig", "__version__"]

_HOME = {
    "Completion": "lm_power.completion",
    "PowerSampler": "lm_power.sampler",
    "SamplerConfig": "lm_power.config",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
