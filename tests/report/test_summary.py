"""Means over problems, against values by hand."""

import dataclasses
import math

import pytest
from report_runs import make_run

from lm_power.completion import Steps
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.runs import Problem
from lm_power.report.summary import majority_matrix, pass_matrix, summarise
from lm_power.stats.means import Estimate


def run_of(*problems, **fields):
    """A run whose problems are tuples of answers."""
    made = tuple(
        Problem(i, f"d{i}", f"p{i}", f"prompt {i}", "4", completions) for i, completions in enumerate(problems)
    )
    return dataclasses.replace(make_run(), problems=made, n=len(problems[0]), **fields)


def right(reward=-0.1, **fields):
    return LoggedCompletion("so 4", correct=1.0, answer="4", self_reward=reward, **fields)


def wrong(reward=-0.5, answer="5", **fields):
    return LoggedCompletion(f"so {answer}", correct=0.0, answer=answer, self_reward=reward, **fields)


def test_by_hand():
    """Two problems of four: completions are averaged within problems first, errors are over the two."""
    s = summarise(
        run_of((right(), right(), wrong(), wrong()), (wrong(-0.1), right(-0.9), wrong(-0.2), wrong(-0.4, "6")))
    )
    assert s.accuracy == Estimate(0.375, pytest.approx(0.125), 2)  # 1/2 and 1/4
    assert s.self_reward.value == pytest.approx((-0.3 - 0.4) / 2)
    assert s.bon_accuracy == Estimate(0.5, pytest.approx(0.5), 2)  # both best are right; the best one is wrong
    assert s.bon_self_reward == Estimate(-0.1, pytest.approx(0.0), 2)
    assert s.majority.value == pytest.approx((0.5 + 0.0) / 2)  # 2 : 2 by a fair draw; 2 x "5" beat one "4"
    assert s.any_correct.value == 1.0
    assert s.covariance.value == pytest.approx((4 * 0.5 * 0.2 / 3 + (1 - 0.25) * (-0.9 + 0.7 / 3) / 3) / 2)


def test_what_a_run_does_not_tell_is_none():
    """Plain hf: verdicts and answers only. Nothing else may come out as a number, least of all 0."""
    s = summarise(run_of((LoggedCompletion("a", correct=1.0), LoggedCompletion("b", correct=0.0)), has_answers=False))
    known = {name for name, value in vars(s).items() if value is not None}
    assert known == {"accuracy", "any_correct"}
    s = summarise(run_of((right(), dataclasses.replace(wrong(), self_reward=None))))
    assert (s.self_reward, s.bon_accuracy, s.covariance) == (None, None, None)


def test_one_completion_has_no_best_of_n():
    s = summarise(run_of((right(),), (wrong(),)))
    assert s.accuracy == Estimate(0.5, pytest.approx(0.5), 2)
    assert (s.bon_accuracy, s.bon_self_reward, s.majority, s.any_correct, s.covariance) == (None,) * 5


def test_one_problem_has_no_standard_error():
    assert summarise(run_of((right(), wrong()))).accuracy == Estimate(0.5, None, 1)


def test_partial_credit_has_means_but_no_counts():
    half = dataclasses.replace(right(), correct=0.5)
    s = summarise(run_of((half, wrong()), (right(), wrong())))
    assert s.accuracy.value == pytest.approx((0.25 + 0.5) / 2)
    assert (s.any_correct, s.majority) == (None, None)


def test_completions_without_an_answer_are_wrong_where_answers_are_logged():
    """A model with random weights never answers: its majority is 0. Where no task logs answers it is unknown."""
    mute = (dataclasses.replace(wrong(), answer=None),) * 2
    assert summarise(run_of(mute, has_answers=True)).majority.value == 0.0
    assert summarise(run_of(mute, has_answers=False)).majority is None


def test_a_right_completion_without_an_answer_casts_no_vote():
    """As in `majority_vote`: two of the three right ones are mute, so that one vote stands against one."""
    mute = dataclasses.replace(right(), answer=None)
    assert summarise(run_of((right(), mute, mute, wrong()), has_answers=True)).majority.value == 0.5


def test_costs():
    steps = Steps((1, 1, 2), (0, 1, 0), (4, 4, 8), (1, 0, 1), (0, 0, 1))
    cheap = right(tokens=4, sum_log_prob=-1.0, tokens_decoded=4, seconds=1.0, finish_reason="eos", steps=Steps())
    dear = right(tokens=8, sum_log_prob=-4.0, tokens_decoded=20, seconds=3.0, finish_reason="length", steps=steps)
    s = summarise(run_of((cheap, dear), (dear, dear)))
    assert s.log_p.value == pytest.approx((-2.5 - 4) / 2)
    assert s.tokens.value == pytest.approx((6 + 8) / 2)
    assert s.tokens_decoded.value == pytest.approx((12 + 20) / 2)
    assert s.problem_tokens_decoded.value == pytest.approx((24 + 40) / 2)
    assert s.seconds.value == pytest.approx((2 + 3) / 2)
    assert s.truncated.value == pytest.approx((0.5 + 1) / 2)
    assert s.acceptance_rate.value == pytest.approx(2 / 3)
    assert s.change_rate.value == pytest.approx(1 / 3)
    old = dataclasses.replace(steps, changed=())  # of a log that does not tell
    assert summarise(run_of((right(steps=old),))).change_rate is None
    assert summarise(run_of((cheap, cheap))).acceptance_rate is None


def test_what_a_method_tells_of_its_target():
    """Means over problems of means over completions; not known if a completion does not tell."""
    told = [right(log_z=z, kl_from_proposal=kl) for z, kl in ((-3.0, 1.0), (-1.0, 0.5), (-4.0, 0.25))]
    s = summarise(run_of(tuple(told[:2]), (told[2], told[2])))
    assert (s.log_z.value, s.kl_from_proposal.value) == (-3.0, 0.5)
    assert summarise(run_of(tuple(told[:2]), (told[2], right()))).log_z is None


def test_curves_begin_and_end_where_they_must():
    """At k = 1 both are the accuracy, at k = N pass is whether any is right; none falls below 0 or exceeds 1."""
    run = make_run(problems=30, n=6, skill=0.5)
    passes, votes, accuracy = pass_matrix(run), majority_matrix(run), [s.correct for s in run.problems[0].completions]
    assert passes[0, 0] == votes[0, 0] == pytest.approx(sum(accuracy) / 6)
    assert passes[:, -1].tolist() == [float(any(a.correct for a in p.completions)) for p in run.problems]
    assert (passes[:, 1:] >= passes[:, :-1]).all()
    assert (votes <= passes + 1e-12).all()
    assert math.isclose(votes[:, -1].mean(), summarise(run).majority.value)
