"""Power sampling for lm-evaluation-harness: completions from p(x)^alpha, a model's own law sharpened.

Every Python with lm-power installed imports this file at start-up (see `lm_power._autoload`), so it imports
nothing; the names below load on first use.
"""

TYPE_CHECKING = False  # as in `typing`, whose import would cost more than all the rest
if TYPE_CHECKING:
    from lm_power.completion import Completion
    from lm_power.config import SamplerConfig
    from lm_power.sampler import PowerSampler

__version__ = "0.2.0"
__all__ = ["Completion", "PowerSampler", "SamplerConfig", "__version__"]

_HOME = {
    "Completion": "lm_power.completion",
    "PowerSampler": "lm_power.sampler",
    "SamplerConfig": "lm_power.config",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
