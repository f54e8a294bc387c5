"""Lists of the likeliest tokens, and the proposals on them, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
from remote.table_client import listed
from toy import agreement

LAW = {3: 0.5, 8: 0.2, 1: 0.1, 5: 0.1, 9: 0.06, 2: 0.04}
LISTED = listed([{token: float(np.log(p)) for token, p in LAW.items()}], 4)


def test_lists_are_sorted_cut_and_padded() -> None:
    """Guards ties and short lists: of equal probabilities the lower id stays, whatever the order they came in."""
    reverse = listed([dict(reversed(list({t: float(np.log(p)) for t, p in LAW.items()}.items())))], 3)
    assert reverse.ids.tolist() == [[3, 8, 1]]
    short = listed([{4: -0.1}, {}], 2)
    assert short.ids.tolist() == [[4, -1], [-1, -1]]
    assert short.known(0) and not short.known(1) and not short.known(2)
    assert short[:1].log_z(2.0)[0] == pytest.approx(-0.2)


@pytest.mark.parametrize("beta", [1.0, 2.5, 4.0])
def test_log_q_is_normalised_on_the_list(beta) -> None:
    top = [3, 8, 1, 5]
    z = sum(LAW[token] ** beta for token in top)
    for token, p in LAW.items():
        (log_q,) = LISTED.log_q(np.array([token]), np.log([p]), beta)
        assert log_q == (pytest.approx(np.log(p**beta / z)) if token in top else -np.inf)
        assert LISTED.hold(np.array([token])) == [token in top]


def test_probabilities_that_underflow_keep_their_order() -> None:
    """Guards sums of exp(beta·log p) that are all zero."""
    lists = listed([{1: -1e-300, 2: -400.0, 3: -401.0}], 3)
    token, log_p = lists.draw_without(1, 4.0, 0.5)
    assert (token, log_p) == (2, -400.0)
    assert lists.log_z(4.0)[0] == pytest.approx(0)


@pytest.mark.parametrize("excluded", [3, 5, 9])
def test_draws_without_a_token(excluded) -> None:
    """Guards the host's draw: 20,000 even uniforms give the law q_K without the token. False-alarm probability 1e-5."""
    beta, top = 2.0, [3, 8, 1, 5]
    weights = np.array([0.0 if token == excluded else LAW[token] ** beta for token in top])
    uniforms = np.random.default_rng(0).random(20_000)
    drawn = [LISTED.draw_without(excluded, beta, u) for u in [*uniforms, 0.0, np.nextafter(1, 0)]]
    assert all(log_p == pytest.approx(np.log(LAW[token])) for token, log_p in drawn)
    counts = np.array([float(sum(token == other for token, _ in drawn)) for other in top])
    assert agreement(counts, weights / weights.sum()) > 1e-5


def test_nothing_left_to_draw() -> None:
    with pytest.raises(ValueError, match="no token but 4"):
        listed([{4: -0.1}], 2).draw_without(4, 1.0, 0.5)


def test_entropy_takes_the_rest_for_one_token() -> None:
    p = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    assert LISTED.entropy()[0] == pytest.approx(-(p * np.log(p)).sum())
    assert listed([{4: 0.0}], 3).entropy()[0] == 0
