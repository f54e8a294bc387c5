r"""The numbers that our generation tasks return for one document, the same for every task.

What lm-eval 0.4.13 does with the dict of `process_results`, and why it is shaped as it is:

* A key becomes a row of the results table if some document returned it. One that is declared in `metric_list`
  and never returned leaves no row, no warning and no crash. So each task declares `self_reward`, and plain
  `hf`, which gives no log-probabilities, gets a clean table without it. (NaN would print `nan`; 0 would be
  false.)
* A key that is returned and not declared is averaged with a warning. So everything must be declared.
* A key that only some documents return is averaged over those, with one warning that counts them. Under
  several processes rank 0's keys are looked up on every rank: one that a rank lacks altogether is a
  KeyError, one that rank 0 lacks is dropped. So a model must give log-probabilities for all requests or for
  none.
* Scalars aggregated by `mean` get a standard error over documents, so a document's completions are averaged
  here.
* Without a `filter_list`, lm-eval keeps the first of a document's repeats. Our tasks write
  `filter_list: [{name: none, filter: []}]`, an empty pipeline, which hands over all, as one list in a list.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from functools import cache
from numbers import Real
from typing import Any

logger = logging.getLogger(__name__)

LOG_KEY = "lm_power"
"""The one key that `log_completions` adds to a document."""


def real_completions(results: Iterable[Any]) -> list[str]:
    """The completions that lm-eval hands to `process_results`: one flat list, data-parallel padding left out.

    Args:
        results: one entry a request: a completion (filter `take_first`) or a list of them (no filter).

    Under several processes lm-eval evens out the ranks with clones of a rank's last request, whose answers
    arrive with that document's own. Our model marks them (`is_padding`); other models' plain strings all
    stay.
    """
    flat = (c for result in results for c in ([result] if isinstance(result, str) else result))
    return [completion for completion in flat if not getattr(completion, "is_padding", False)]


def completion_metrics(correct: Sequence[float], completions: Sequence[str]) -> dict[str, float]:
    """The metrics of one document from its completions.

    Args:
        correct: 1.0 or 0.0 (or a score between) for each completion.
        completions: the texts, in the same order. One that carries its log-probabilities has an attribute
            `self_reward`, `(1/|x|) Σ_t log p(x_t | x_<t)`, nats a token (Tomihari & Sato 2026).

    Returns:
        `acc`: mean of `correct`, and `self_reward`: mean of the completions' own, present if all have one.

    Raises:
        ValueError: if there are no completions, or not as many as verdicts.

    >>> completion_metrics([1.0, 0.0], ["yes", "no"])
    {'acc': 0.5}
    """
    if len(correct) != len(completions):
        raise ValueError(f"{len(correct)} verdicts for {len(completions)} completions: must be one each")
    if not completions:
        raise ValueError("no completions for this document: `repeats` must be at least 1")
    metrics = {"acc": _mean([float(score) for score in correct])}
    rewards = [self_reward(completion) for completion in completions]
    known = [reward for reward in rewards if reward is not None]
    if len(known) == len(rewards):
        metrics["self_reward"] = _mean(known)
    else:
        _notice_no_self_reward()
    return metrics


def self_reward(completion: str) -> float | None:
    """The completion's own self-reward, nats a token; None where the model gave no finite log-probs."""
    value = getattr(completion, "self_reward", None)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def log_completions(doc: dict[str, Any], correct: Sequence[float], completions: Sequence[str]) -> None:
    """Put what is known of each completion under `doc["lm_power"]`, for `--log_samples`.

    lm-eval logs `doc` after `process_results`, and hashes the copy that the request was built from
    (`doc_hash`): a `datasets.Dataset` makes a new dict at each reading, so the hash stays as it was. What
    is added are lists of numbers, strings and None, one entry a completion, in the order of `resps`
    (padding left out).
    """
    tokens = [getattr(completion, "token_ids", None) for completion in completions]
    doc[LOG_KEY] = {
        "correct": [float(score) for score in correct],
        "self_reward": [self_reward(completion) for completion in completions],
        "finish_reason": [getattr(completion, "finish_reason", None) for completion in completions],
        "tokens": [None if ids is None else len(ids) for ids in tokens],
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@cache  # once a process
def _notice_no_self_reward() -> None:
    logger.warning(
        "this model gives no log-probabilities with its completions: the self_reward metric is left out. "
        "--model power-hf gives them, with method=standard for ordinary sampling."
    )
