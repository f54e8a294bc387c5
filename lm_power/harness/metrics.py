r"""The numbers that our generation tasks return for one document, the same for every task.

`metric_list` declares them, `completion_metrics` computes them, `PowerTask` puts the two together.

What lm-eval 0.4.13 does with the dict of `process_results`, and why it is shaped as it is:

* A key becomes a row of the results table if some document returned it. One that is declared and never
  returned leaves no row, no warning and no crash. So `self_reward` is declared always, and plain `hf`, which
  gives no log-probabilities, gets a clean table without it. (NaN would print `nan`; 0 would be false.)
* A key that is returned and not declared is averaged with a warning. So everything must be declared.
* A key that only some documents return is averaged over those, with one warning that counts them. Under
  several processes rank 0's keys are looked up on every rank: one that a rank lacks altogether is a
  KeyError, one that rank 0 lacks is dropped. So a model must give log-probabilities for all requests or for
  none.
* Scalars aggregated by `mean` get the standard error `s / sqrt(documents)`. A document's completions are
  averaged here, so that the unit is a problem: completions of one problem are no independent trials.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from numbers import Real
from typing import Any

from lm_power.completion import Stats, Steps
from lm_power.logs.samples import LOG_KEY
from lm_power.stats.best_of_n import best_of_n, ks, majority_vote, pass_at_k
from lm_power.stats.means import covariance, mean

logger = logging.getLogger(__name__)

HIGHER_IS_BETTER: dict[str, bool | None] = {
    "acc": True,
    "self_reward": True,
    "tokens": None,
    "tokens_decoded": False,
    "acceptance_rate": None,
    "change_rate": None,
    # Where the method estimates them.
    "log_z": None,
    "log_z_error": False,
    "kl_from_proposal": None,
    # From two completions on.
    "bon_acc": True,
    "bon_self_reward": True,
    "maj_acc": True,
    "oracle": True,
    "cov_acc_self_reward": None,
}
"""Every metric but pass@k, which depends on N; what each is: `completion_metrics`."""


def metric_list(n: int) -> list[dict[str, Any]]:
    """The `metric_list` of a task with n completions per problem, as its YAML would have it."""
    directions = {**HIGHER_IS_BETTER, **({f"pass@{k}": True for k in ks(n)} if n > 1 else {})}
    return [
        {"metric": name, "aggregation": "mean", "higher_is_better": direction} for name, direction in directions.items()
    ]


def real_completions(results: Iterable[Any]) -> list[str]:
    """The completions that lm-eval hands to `process_results`: one flat list, data-parallel padding left out.

    Args:
        results: one entry per request: a completion (filter `take_first`) or a list of them (no filter).

    Under several processes lm-eval evens out the ranks with clones of a rank's last request, whose answers
    arrive with that document's own. Our model marks them (`is_padding`); other models' plain strings all
    stay.
    """
    flat = (c for result in results for c in ([result] if isinstance(result, str) else result))
    return [completion for completion in flat if not getattr(completion, "is_padding", False)]


def completion_metrics(
    correct: Sequence[float],
    completions: Sequence[str],
    answers: Sequence[Any] | None = None,
    equal: Callable[[Any, Any], bool] = operator.eq,
) -> dict[str, float]:
    """The metrics of one document from its N completions.

    Args:
        correct: 1.0 or 0.0 for each completion.
        completions: the texts, in the same order. One that carries its log-probabilities has an attribute
            `self_reward`, `(1/|x|) Σ_t log p(x_t | x_<t)`, nats per token (Tomihari & Sato 2026), one that
            knows its tokens `token_ids`, and one that knows its cost `stats` (`lm_power.completion`).
        answers: final answer of each completion, None where it has none; without them no majority vote.
        equal: whether two answers are the same.

    Returns:
        Always `acc`, the mean of `correct` over all completions. With what the completions know (each key
        is present only if all of them know it): `self_reward`, their mean; `tokens`, mean length;
        `tokens_decoded`, mean number of tokens decoded for one, rejected proposals included;
        `acceptance_rate`, accepted over all proposals, and `change_rate`, those that led to another completion over
        all; `log_z`, `log_z_error` and `kl_from_proposal`, nats, as in `_evidence_metrics`. For N > 1 also `pass@k`
        for k = 1, 2, 4, … N;
        `oracle`, which is pass@N; `maj_acc`, correctness of the majority's answer; `bon_acc` and
        `bon_self_reward`, of the completion with the largest self-reward; `cov_acc_self_reward`, the sample
        covariance of correctness and self-reward, whose sign tells whether sharpening helps (the same,
        Proposition 4, with the self-reward for log p).

    Raises:
        ValueError: if there are no completions, not as many as verdicts, or a verdict is neither 1 nor 0.

    >>> completion_metrics([1.0], ["yes"])
    {'acc': 1.0}
    """
    n = len(completions)
    if len(correct) != n or (answers is not None and len(answers) != n):
        raise ValueError(f"{len(correct)} verdicts for {n} completions: must be as many, and so must answers")
    if n == 0:
        raise ValueError("no completions for this document: `repeats` must be at least 1")
    if not all(verdict in (0, 1) for verdict in correct):
        raise ValueError(f"verdicts {list(correct)}: each must be 1 or 0, since pass@k counts the correct ones")
    scores = [float(verdict) for verdict in correct]
    right = round(sum(scores))
    metrics = {"acc": right / n}
    if n > 1:
        metrics |= {f"pass@{k}": pass_at_k(n, right, k) for k in ks(n)}
        metrics["oracle"] = float(right > 0)
        if answers is not None:
            metrics["maj_acc"] = majority_vote(scores, answers, equal)
    parts = _self_reward_metrics(scores, completions), _cost_metrics(completions), _evidence_metrics(completions)
    return metrics | parts[0] | parts[1] | parts[2]


def _self_reward_metrics(scores: Sequence[float] | None, completions: Sequence[str]) -> dict[str, float]:
    known = [self_reward(completion) for completion in completions]
    rewards = [reward for reward in known if reward is not None]
    if len(rewards) < len(known):
        _notice_no_self_reward()
        return {}
    metrics = {"self_reward": mean(rewards)}
    if len(rewards) > 1:
        metrics["bon_self_reward"] = max(rewards)
        if scores is not None:
            metrics["bon_acc"] = best_of_n(rewards, scores)
            metrics["cov_acc_self_reward"] = covariance(scores, rewards)
    return metrics


def _cost_metrics(completions: Sequence[str]) -> dict[str, float]:
    lengths = [len(ids) for ids in (getattr(c, "token_ids", None) for c in completions) if ids is not None]
    stats = [s for s in (getattr(c, "stats", None) for c in completions) if s is not None]
    metrics = {}
    if len(lengths) == len(completions):
        metrics["tokens"] = mean(lengths)
    if len(stats) == len(completions):
        metrics["tokens_decoded"] = mean([s.tokens_decoded for s in stats])
        proposals = sum(s.proposals for s in stats)
        if proposals:  # none in ancestral sampling
            metrics["acceptance_rate"] = sum(s.accepted for s in stats) / proposals
            metrics["change_rate"] = sum(s.changed for s in stats) / proposals
    return metrics


def _evidence_metrics(completions: Sequence[str]) -> dict[str, float]:
    """What the method tells of Z_alpha = Σ_x p(x)^alpha, nats; each only if all completions tell it.

    `log_z` and `kl_from_proposal` (KL(p^alpha ‖ q), how far token-wise sampling from the proposal q is from the target)
    are means over the completions, which are independent. `log_z_error` is the standard error of that `log_z`, from
    those of the completions. A mean of log Ẑ of `smc` is low by about half the squared error of one completion's.
    """
    told = [getattr(getattr(completion, "stats", None), "diagnostics", {}) for completion in completions]
    metrics = {}
    for name in ("log_z", "log_z_error", "kl_from_proposal"):
        values = [numbers[name] for numbers in told if name in numbers]
        if len(values) == len(completions):
            metrics[name] = math.hypot(*values) / len(values) if name == "log_z_error" else mean(values)
    return metrics


def self_reward(completion: str) -> float | None:
    """The completion's own self-reward, nats per token; None where the model gave no finite log-probs."""
    value = getattr(completion, "self_reward", None)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def log_completions(
    doc: dict[str, Any],
    correct: Sequence[float] | None,
    completions: Sequence[str],
    answers: Sequence[Any] | None = None,
) -> None:
    """Put what is known of each completion under `doc["lm_power"]`, for `--log_samples`.

    lm-eval logs `doc` after `process_results`, and hashes the copy that the request was built from
    (`doc_hash`): a `datasets.Dataset` makes a new dict at each reading, so the hash stays as it was. What
    is added are lists, one entry per completion, in the order of `resps` (padding left out): numbers, strings,
    None for what a model does not tell, and for a completion's cost a dict (`lm_power.completion`: the
    fields of `Stats`, and `steps`). Without verdicts (None) there is no `correct`. `drawn` is there where a text is not
    as it was drawn, since a thinking section was taken off (`think_end_token`): the texts as they were drawn.
    """
    drawn = [getattr(completion, "drawn_text", completion) for completion in completions]
    tokens = [getattr(completion, "token_ids", None) for completion in completions]
    doc[LOG_KEY] = {
        **({} if correct is None else {"correct": [float(score) for score in correct]}),
        **({} if answers is None else {"answer": list(answers)}),
        **({} if drawn == list(completions) else {"drawn": [str(text) for text in drawn]}),
        "self_reward": [self_reward(completion) for completion in completions],
        "finish_reason": [getattr(completion, "finish_reason", None) for completion in completions],
        "tokens": [None if ids is None else len(ids) for ids in tokens],
        "cost": [_cost(completion) for completion in completions],
    }


def _cost(completion: str) -> dict[str, Any] | None:
    stats, steps = getattr(completion, "stats", None), getattr(completion, "steps", None)
    if not isinstance(stats, Stats) or not isinstance(steps, Steps):
        return None
    return {**dataclasses.asdict(stats), "steps": steps.record()}


def answer_results(
    doc: dict[str, Any],
    results: Iterable[Any],
    extract: Callable[[str], Any],
    equal: Callable[[Any, Any], bool] = operator.eq,
) -> dict[str, float]:
    """`process_results` of a task whose completions give an answer: the metrics of one document.

    Compare each completion's answer with `doc["answer"]`, and log what is known of it with the document.

    Args:
        doc: the document; gains `doc["lm_power"]`.
        results: as lm-eval hands them over.
        extract: the final answer of a completion, None where it has none (which is wrong).
        equal: whether two answers are the same.
    """
    completions = real_completions(results)
    answers = [extract(completion) for completion in completions]
    correct = [float(answer is not None and equal(answer, doc["answer"])) for answer in answers]
    log_completions(doc, correct, completions, answers)
    return completion_metrics(correct, completions, answers, equal)


def ungraded_results(doc: dict[str, Any], results: Iterable[Any]) -> dict[str, float]:
    """`process_results` of a task that is judged elsewhere: the metrics of one document that need no verdict.

    Args:
        doc: the document; gains `doc["lm_power"]`, without verdicts.
        results: as lm-eval hands them over.

    Returns:
        `self_reward`, `bon_self_reward` (N > 1), `tokens`, `tokens_decoded`, `acceptance_rate`, `change_rate`, `log_z`,
        `log_z_error` and `kl_from_proposal` as in `completion_metrics`, so far as the completions know them: of a plain
        text nothing is known.
    """
    completions = real_completions(results)
    log_completions(doc, None, completions)
    return _self_reward_metrics(None, completions) | _cost_metrics(completions) | _evidence_metrics(completions)


@cache  # once per process
def _notice_no_self_reward() -> None:
    logger.warning(
        "this model gives no log-probabilities with its completions: self_reward and the metrics computed from it are "
        "left out. --model power-hf gives them, with method=standard for ordinary sampling."
    )
