"""What the tests of all rooms share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def machine_described_once() -> Iterator[None]:
    """lm-eval describes the machine in each of its results, for which `pip list` runs for seconds: here only once."""
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", functools.cache(collect_env.get_pretty_env_info))
        yield
