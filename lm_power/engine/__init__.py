"""Decodes requests in a batch that is as large as its work: KV rows, stop rules, model backend. It knows no MCMC."""

from __future__ import annotations

from lm_power.engine.backend import HFBackend, UnsupportedModelError
from lm_power.engine.engine import BatchShape, Counters, Engine
from lm_power.engine.stopping import StopStrings

__all__ = ["BatchShape", "Counters", "Engine", "HFBackend", "StopStrings", "UnsupportedModelError"]
