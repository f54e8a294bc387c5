"""Fixtures: the tiny model, its completions, and one finished run."""

from __future__ import annotations

import os

import pytest
from distill_runs import run, sample_store, save_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """Folder of the tiny model."""
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def store(tiny, tmp_path_factory) -> str:
    """Folder of a store of the tiny model's completions."""
    return sample_store(tmp_path_factory.mktemp("store"), tiny)


@pytest.fixture(scope="session")
def finished(tiny, store, tmp_path_factory):
    """Folder of a run of two epochs."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    run(tiny, store, output)
    return output
