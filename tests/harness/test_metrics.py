"""The metrics of one document, with values worked out by hand."""

import json
import logging
import pickle

import numpy as np
import pytest

from lm_power.completion import Stats
from lm_power.harness import metrics
from lm_power.harness.metrics import (
    completion_metrics,
    log_completions,
    metric_list,
    real_completions,
    self_reward,
    ungraded_results,
)


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


def test_one_completion_has_the_metrics_that_make_sense_for_one():
    told = Told("a", -0.125, token_ids=(5, 6, 7), stats=Stats(proposals=4, accepted=1, tokens_decoded=9))
    assert completion_metrics([1.0], [told], ["4"]) == {
        "acc": 1.0,
        "self_reward": -0.125,
        "tokens": 3.0,
        "tokens_decoded": 9.0,
        "acceptance_rate": 0.25,
        "change_rate": 0.0,
    }
    assert completion_metrics([0], ["plain"]) == {"acc": 0.0}


def test_what_a_method_tells_of_z_is_averaged_and_left_out_where_it_tells_nothing():
    """Means of independent estimates, and the error of the mean: √(0.3² + 0.4²)/2. A gap leaves no number at all."""
    numbers = [
        {"log_z": -2.0, "log_z_error": 0.3, "kl_from_proposal": 1.0, "ess": 4.0},
        {"log_z": -3.0, "log_z_error": 0.4, "kl_from_proposal": 2.0, "ess": 5.0},
    ]
    completions = [Told("a", stats=Stats(diagnostics=told)) for told in numbers]
    found = completion_metrics([1, 0], completions)
    assert (found["log_z"], found["kl_from_proposal"]) == (-2.5, 1.5)
    assert found["log_z_error"] == pytest.approx(0.25)
    assert "ess" not in found
    assert ungraded_results({}, [completions])["log_z"] == -2.5
    del numbers[1]["log_z_error"]
    assert "log_z_error" not in completion_metrics([1, 0], completions)
    assert not {"log_z", "log_z_error", "kl_from_proposal"} & completion_metrics([1], [Told("a", stats=Stats())]).keys()


def test_every_metric_by_hand():
    """Four completions: the second and the third share the largest self-reward, one of the two is right."""
    stats = [Stats(10, 5, 40), Stats(10, 0, 30), Stats(10, 5, 20), Stats(10, 10, 10, changed=10)]
    completions = [
        Told(text, reward, token_ids=tuple(range(length)), stats=stat)
        for text, reward, length, stat in zip("abcd", (-1.0, -0.5, -0.5, -2.0), (4, 3, 2, 1), stats, strict=True)
    ]
    assert completion_metrics([0, 1, 0, 0], completions, ["5", "4", "5", None]) == {
        "acc": 0.25,
        "pass@1": 0.25,
        "pass@2": 0.5,  # 3 of the 6 pairs
        "pass@4": 1.0,
        "oracle": 1.0,
        "maj_acc": 0.0,  # "5" has two votes
        "self_reward": -1.0,
        "bon_acc": 0.5,
        "bon_self_reward": -0.5,
        # deviations -1/4, 3/4, -1/4, -1/4 and 0, 1/2, 1/2, -1: (0 + 3/8 - 1/8 + 1/4) / 3
        "cov_acc_self_reward": pytest.approx(1 / 6),
        "tokens": 2.5,
        "tokens_decoded": 25.0,
        "acceptance_rate": 0.5,
        "change_rate": 0.25,
    }


def test_the_standard_error_is_over_problems():
    """lm-eval's mean and standard error of three problems of two completions, by hand."""
    from lm_eval.api.metrics import mean, mean_stderr

    problems = [completion_metrics(v, [Told("a", -1.0), Told("b", -2.0)]) for v in ([1, 1], [1, 0], [0, 0])]
    values = {name: [problem[name] for problem in problems] for name in problems[0]}
    assert (values["acc"], values["pass@2"], values["bon_acc"]) == ([1, 0.5, 0], [1, 1, 0], [1, 1, 0])
    assert values["cov_acc_self_reward"] == [0.0, 0.5, 0.0]
    # s² = (1/4 + 0 + 1/4)/2 and 3 problems: sqrt(1/12), not the sqrt(1/20) of six separate completions
    assert (mean(values["acc"]), mean_stderr(values["acc"])) == (0.5, pytest.approx((1 / 12) ** 0.5))
    assert mean_stderr(values["bon_acc"]) == pytest.approx(1 / 3)  # s² = 1/3


def test_everything_returned_is_declared():
    """Guards against lm-eval's warning, and its silence, about keys that one side lacks."""
    for n in (1, 2, 6, 8):
        told_of_z = {"log_z": -1.0, "log_z_error": 0.1, "kl_from_proposal": 0.2}
        stats = Stats(proposals=1, accepted=1, tokens_decoded=1, diagnostics=told_of_z)
        told = [Told("a", -1.0, token_ids=(1,), stats=stats) for _ in range(n)]
        returned = completion_metrics([1] * n, told, ["4"] * n)
        declared = {entry["metric"] for entry in metric_list(n)}
        assert set(returned) <= declared
        if n > 1:
            assert set(returned) == declared
    assert all(entry["aggregation"] == "mean" for entry in metric_list(4))


def test_no_rate_without_proposals():
    assert "acceptance_rate" not in completion_metrics([1], [Told("a", stats=Stats(tokens_decoded=5))])


@pytest.mark.parametrize("missing", ["plain", Told("x", None), Told("x", float("nan")), Told("x", float("-inf"))])
def test_self_reward_is_absent_if_one_lacks_it(missing):
    """Never zero, never the mean of the others."""
    metrics = completion_metrics([1, 0], [Told("a"), missing])
    assert metrics == {"acc": 0.5, "pass@1": 0.5, "pass@2": 1.0, "oracle": 1.0}


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
    with pytest.raises(ValueError, match="1 verdicts for 1 completions: must be as many, and so must answers"):
        completion_metrics([1], ["a"], ["4", "5"])
    with pytest.raises(ValueError, match="no completions"):
        completion_metrics([], [])
    with pytest.raises(ValueError, match="each must be 1 or 0"):
        completion_metrics([0.5], ["a"])


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
    assert completion_metrics([1.0], completions) == {
        "acc": 1.0,
        "self_reward": pytest.approx(-0.3),
        "tokens": 2.0,
        "tokens_decoded": 0.0,
    }
    doc = {}
    log_completions(doc, [1.0], completions)
    assert doc["lm_power"]["tokens"] == [2] and doc["lm_power"]["finish_reason"] == ["eos"]
    (cost,) = doc["lm_power"]["cost"]
    assert cost["tokens_decoded"] == 0 and cost["steps"] == {
        "stage": [],
        "cut": [],
        "length": [],
        "accepted": [],
        "changed": [],
    }


def test_the_log_is_plain_data():
    doc = {"problem": "?"}
    log_completions(doc, [1, 0], [Told("a", -0.5, finish_reason="eos", token_ids=(1, 2, 3)), "plain"], ["4", None])
    assert json.loads(json.dumps(doc)) == {
        "problem": "?",
        "lm_power": {
            "correct": [1.0, 0.0],
            "answer": ["4", None],
            "self_reward": [-0.5, None],
            "finish_reason": ["eos", None],
            "tokens": [3, None],
            "cost": [None, None],
        },
    }
