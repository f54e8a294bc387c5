"""Intervals and paired tests on plain numbers; with runs they are tested in `report/test_paired.py`."""

import itertools

import numpy as np
import pytest

from lm_power.stats.resampling import bootstrap_interval, holm, mcnemar, sign_flips


def test_holm_keeps_order_and_never_lowers():
    """By hand, m = 4: 0.01·4, 0.013·3 raised to its predecessor, 0.03·2, 0.04·1 raised."""
    assert holm([0.04, 0.01, 0.013, 0.03]) == pytest.approx([0.06, 0.04, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_swapping_counts_every_way_where_there_are_few():
    """Against all 2^6 signs; where every score is 1 or 0 it is McNemar's test."""
    difference = np.array([0.5, 0.25, 0.25, -0.125, 1.0, 0.0])
    means = [float(np.mean(difference * signs)) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean([abs(mean) >= abs(difference.mean()) - 1e-12 for mean in means])
    assert sign_flips(difference, 9999) == pytest.approx(expected)
    counted = np.array([1.0] * 5 + [-1.0] + [0.0] * 3)
    assert sign_flips(counted, 9999) == pytest.approx(mcnemar(5, 1))


def test_no_difference_is_no_evidence():
    assert sign_flips(np.zeros(4), 99) == mcnemar(0, 0) == 1.0


def test_intervals_are_of_each_column():
    values = np.random.default_rng(0).random((40, 3))
    low, high = bootstrap_interval(values, 500)
    assert low.shape == high.shape == (3,)
    assert ((low < values.mean(axis=0)) & (values.mean(axis=0) < high)).all()
