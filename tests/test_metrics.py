"""The metrics of one document, with values worked out by hand."""

import json
import logging
import pickle

import numpy as np
import pytest

from lm_power.harness import metrics
from lm_power.harness.metrics import completion_metrics, log_completions, real_completions, self_reward


class Told(str):
    """A completion with a record, as `lm_power.completion.Completion`; only the attributes matter."""

    is_padding = False

    def __new__(cls, text, self_reward=-0.5, **record):
        told = super().__new__(cls, text)
        told.self_reward = self_reward
        told.__dict__.update(record)
        return told


@pytest.fixture(autouse=True)
def fresh_notice():
    metrics._notice_no_self_reward.cache_clear()
    yield
    metrics._notice_no_self_reward.cache_clear()


def test_means_by_hand():
    completions = [Told("a", -0.25), Told("b", -0.5), Told("c", -1.5), Told("d", -0.75)]
    assert completion_metrics([1, 0, 0, 1], completions) == {"acc": 0.5, "self_reward": -0.75}
    assert completion_metrics([1.0], [Told("a", -0.125)]) == {"acc": 1.0, "self_reward": -0.125}
    assert completion_metrics([True, False, False], [Told("a")] * 3) == {
        "acc": pytest.approx(1 / 3),
        "self_reward": -0.5,
    }


@pytest.mark.parametrize("missing", ["plain", Told("x", None), Told("x", float("nan")), Told("x", float("-inf"))])
def test_self_reward_is_absent_if_one_lacks_it(missing):
    """Never zero, never the mean of the others."""
    assert completion_metrics([1, 0], [Told("a"), missing]) == {"acc": 0.5}


def test_one_notice_a_process(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            completion_metrics([0.0], ["plain"])
    assert len(caplog.records) == 1
    assert "self_reward" in caplog.text


def test_no_notice_where_all_is_known(caplog):
    completion_metrics([0.0], [Told("a")])
    assert not caplog.records


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="2 verdicts for 1 completions"):
        completion_metrics([1, 0], ["a"])
    with pytest.raises(ValueError, match="no completions"):
        completion_metrics([], [])


def test_any_real_number_is_a_self_reward():
    assert self_reward(Told("a", np.float32(-0.5))) == -0.5
    assert self_reward("a") is None


def test_completions_from_every_shape_of_results():
    """One request or more, first repeat only or all of them, padding clones in between."""
    padding = Told("", is_padding=True)
    assert real_completions(["only"]) == ["only"]
    assert real_completions([["a", "b", "c"]]) == ["a", "b", "c"]
    assert real_completions([["a", "b"], ["c"]]) == ["a", "b", "c"]
    assert real_completions([[Told("a"), Told("b"), padding, padding]]) == ["a", "b"]
    assert [c.self_reward for c in real_completions([[Told("a", -2.0), padding]])] == [-2.0]


def test_the_project_completion_has_the_attributes():
    completion = pytest.importorskip("lm_power.completion")
    answer = completion.Completion("4", token_ids=[7, 1], log_probs=[-0.5, -0.1], finish_reason="eos")
    results = [[pickle.loads(pickle.dumps(answer)), completion.padding_completion()]]
    completions = real_completions(results)
    assert completion_metrics([1.0], completions) == {"acc": 1.0, "self_reward": pytest.approx(-0.3)}
    doc = {}
    log_completions(doc, [1.0], completions)
    assert doc["lm_power"]["tokens"] == [2] and doc["lm_power"]["finish_reason"] == ["eos"]


def test_the_log_is_plain_data():
    doc = {"problem": "?"}
    log_completions(doc, [1, 0], [Told("a", -0.5, finish_reason="eos", token_ids=(1, 2, 3)), "plain"])
    assert json.loads(json.dumps(doc)) == {
        "problem": "?",
        "lm_power": {
            "correct": [1.0, 0.0],
            "self_reward": [-0.5, None],
            "finish_reason": ["eos", None],
            "tokens": [3, None],
        },
    }
