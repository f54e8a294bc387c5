"""Power sampling for lm-evaluation-harness: completions from p(x)^alpha, a model's own distribution sharpened.

What a user may import is in `__all__`; everything else in the package may change from one version to the next.

Every Python with lm-power installed imports this file at start-up (see `lm_power._autoload`), so it imports
nothing; the names below load on first use.
"""

TYPE_CHECKING = False  # as in `typing`, whose import would cost more than all the rest
if TYPE_CHECKING:
    from lm_power.completion import Completion, Stats, Steps
    from lm_power.config import OptionError, SamplerConfig
    from lm_power.engine import UnsupportedModelError
    from lm_power.sampler import PowerSampler

__version__ = "0.2.0"
__all__ = [
    "Completion",
    "OptionError",
    "PowerSampler",
    "SamplerConfig",
    "Stats",
    "Steps",
    "UnsupportedModelError",
    "__version__",
]

_HOME = {
    "Completion": "lm_power.completion",
    "OptionError": "lm_power.config",
    "PowerSampler": "lm_power.sampler",
    "SamplerConfig": "lm_power.config",
    "Stats": "lm_power.completion",
    "Steps": "lm_power.completion",
    "UnsupportedModelError": "lm_power.engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
