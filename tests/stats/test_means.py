"""The standard error of a share, by hand and by simulation."""

import numpy as np
import pytest

from lm_power.stats.means import share


def test_share_has_the_error_of_a_mean_where_all_problems_count_alike():
    """The ratio estimator's error is s / sqrt(m) of the problems' means then."""
    rng = np.random.default_rng(0)
    values = rng.random((30, 4))
    found = share(values.ravel(), np.repeat(np.arange(30), 4))
    means = values.mean(axis=1)
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / np.sqrt(30))


def test_share_allows_for_steps_that_go_together():
    """Problems of one mind: 200 steps of 20 problems tell no more than 20 tosses, whose error is far larger.

    Over 400 such samples the estimates scatter by what the errors say, to 15% (the scatter's own error is 3.5%: false
    alarm under 1e-4).
    """
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        counts = rng.integers(1, 20, size=20)
        found.append(share(np.repeat(rng.random(20) < 0.5, counts).astype(float), np.repeat(np.arange(20), counts)))
    scatter = np.std([f.value for f in found])
    assert np.sqrt(np.mean([f.error**2 for f in found])) == pytest.approx(scatter, rel=0.15)
