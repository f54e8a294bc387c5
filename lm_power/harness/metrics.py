r"""The numbers that our generation tasks return for one document, the same for every task.

`metric_list` declares them, `completion_metrics` computes them, `PowerTask` puts the two together.

What lm-eval 0.4.13 does with the dict of `process_results` explains its shape:

* A key becomes a row of the results table if some document returned it. A key that is declared and never returned
  leaves no row, no warning and no crash. `self_reward` is therefore always declared, and plain `hf`, which gives no
  log-probabilities, gets a clean table without it. (NaN would print `nan`; 0 would be false.)
* A key that is returned and not declared is averaged with a warning. Everything must therefore be declared.
* A key that only some documents return is averaged over those, with one warning that counts them. With several
  processes rank 0's keys are looked up on every rank: a key that a rank lacks altogether is a KeyError, and one that
  rank 0 lacks is dropped. A model must therefore give log-probabilities for all requests or for none.
* Scalars aggregated by `mean` get the standard error `s / sqrt(documents)`. A document's completions are averaged here,
  so that the unit is a problem: completions of one problem are not independent trials.
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
    # If the method estimates them.
    "log_z": None,
    "log_z_error": False,
    "kl_from_proposal": None,
    # With at least two completions.
    "bon_acc": True,
    "bon_self_reward": True,
    "maj_acc": True,
    "oracle": True,
    "cov_acc_self_reward": None,
}
"""Every metric except pass@k, which depends on N; `completion_metrics` says what each is."""


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

    With several processes lm-eval evens out the ranks with clones of a rank's last request, whose completions arrive
    together with that document's own. Our models mark them (`is_padding`); plain strings of other models are all kept.
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
        completions: the texts, in the same order. A completion with log-probabilities has an attribute `self_reward`,
            `(1/|x|) Σ_t log p(x_t | x_<t)`, nats per token (Tomihari & Sato 2026); one with its tokens has `token_ids`,
            and one with its cost has `stats` (`lm_power.completion`).
        answers: final answer of each completion, None if it has none; without answers there is no majority vote.
        equal: whether two answers are the same.

    Returns:
        Always `acc`, the mean of `correct` over all completions. Each of the following keys is present only if all
        completions have what it needs: `self_reward`, their mean; `tokens`, mean length; `tokens_decoded`, mean number
        of tokens decoded for one completion, rejected proposals included; `acceptance_rate`, the share of proposals
        that were accepted, and `change_rate`, the share that led to another completion; `log_z`, `log_z_error` and
        `kl_from_proposal`, nats, as in `_evidence_metrics`. For N > 1 also `pass@k` for k = 1, 2, 4, … N; `oracle`,
        which is pass@N; `maj_acc`, correctness of the majority's answer; `bon_acc` and `bon_self_reward`, of the
        completion with the largest self-reward; and `cov_acc_self_reward`, the sample covariance of correctness and
        self-reward, whose sign says whether sharpening helps (Proposition 4, with the self-reward in place of log p).

    Raises:
        ValueError: there are no completions, not as many completions as verdicts, or a verdict is neither 1 nor 0.

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
        if proposals:  # ancestral sampling makes none
            metrics["acceptance_rate"] = sum(s.accepted for s in stats) / proposals
            metrics["change_rate"] = sum(s.changed for s in stats) / proposals
    return metrics


def _evidence_metrics(completions: Sequence[str]) -> dict[str, float]:
    """Estimates of Z_alpha = Σ_x p(x)^alpha by the method, nats; each only if all completions have it.

    `log_z` and `kl_from_proposal` (KL(p^alpha ‖ q), how far token-wise sampling from the proposal q is from the target)
    are means over the completions, which are independent. `log_z_error` is the standard error of that `log_z`, computed
    from those of the completions. For `smc` the mean of log Ẑ is too low by about half the squared error of one log Ẑ.
    """
    told = [getattr(getattr(completion, "stats", None), "diagnostics", {}) for completion in completions]
    metrics = {}
    for name in ("log_z", "log_z_error", "kl_from_proposal"):
        values = [numbers[name] for numbers in told if name in numbers]
        if len(values) == len(completions):
            metrics[name] = math.hypot(*values) / len(values) if name == "log_z_error" else mean(values)
    return metrics


def self_reward(completion: str) -> float | None:
    """The completion's own self-reward, nats per token; None if the model gave no finite log-probs."""
    value = getattr(completion, "self_reward", None)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def log_completions(
    doc: dict[str, Any],
    correct: Sequence[float] | None,
    completions: Sequence[str],
    answers: Sequence[Any] | None = None,
) -> None:
    """Put what is known about each completion under `doc["lm_power"]`, for `--log_samples`.

    lm-eval logs `doc` after `process_results`, and hashes the copy that the request was built from (`doc_hash`). A
    `datasets.Dataset` makes a new dict at each reading, so the hash does not change. The entries are lists with one
    value per completion, in the order of `resps` and without padding: numbers, strings, None for what a model does not
    tell, and for a completion's cost a dict (`lm_power.completion`: the fields of `Stats`, and `steps`). Without
    verdicts (None) there is no `correct`. `drawn` has the texts as they were drawn; it is present only if a thinking
    section was cut off one of them (`think_end_token`).
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

    It compares each completion's answer with `doc["answer"]`, and logs what is known about it with the document.

    Args:
        doc: the document; `doc["lm_power"]` is added to it.
        results: as lm-eval passes them.
        extract: returns the final answer of a completion, or None if it has none (which is wrong).
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
        doc: the document; `doc["lm_power"]` is added to it, without verdicts.
        results: as lm-eval passes them.

    Returns:
        `self_reward`, `bon_self_reward` (N > 1), `tokens`, `tokens_decoded`, `acceptance_rate`, `change_rate`, `log_z`,
        `log_z_error` and `kl_from_proposal` as in `completion_metrics`, as far as the completions have them; a plain
        text has none of them.
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
