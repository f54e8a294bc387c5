"""What OpenAI-compatible servers answer, taken apart: tokens, log-probs and lists, models, messages of errors."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm_power.decoding import IntArray
from lm_power.remote.queries import Answer, ServerError
from lm_power.remote.topk import TopLists

_PREFIX = "token_id:"
_KEY = re.compile(rf"{_PREFIX}\d+")


class NoLists(ServerError):
    """An answer lacks what a `TopLists` is made of; the message says what the server does instead."""


class Transient(Exception):
    """Something that another try may get past.

    Attributes:
        pause: seconds to wait first, as the server asks; None where it does not.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


def entries(listed: Any) -> list[Mapping[str, Any]]:
    """The models in what /v1/models has answered; none where it is something else."""
    data = listed.get("data") if isinstance(listed, dict) else None
    return [entry for entry in data if isinstance(entry, dict) and "id" in entry] if isinstance(data, list) else []


def message_in(text: str) -> str:
    """The message of an error's JSON, or the text itself."""
    try:
        error = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        error = error.get(name, error) if isinstance(error, dict) else error
    return error if isinstance(error, str) else text


def answer_of(response: Any, top: int, model: str) -> Answer:
    """The tokens, log-probs and lists of a completions response.

    A token that was drawn although it is not among the K likeliest comes as one entry more: it is left out, so that a
    list does not depend on what was drawn, ties or not.

    Raises:
        Transient: the server has given the completion up.
        NoLists: token ids or lists are missing.
        ServerError: it comes from another model.
    """
    try:
        (choice,) = response["choices"]
        reason = choice.get("finish_reason")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Transient(f"an answer that is no completion: {json.dumps(response)[:80]}") from error
    if reason in ("abort", "error"):
        raise Transient(f"the server gave a completion up (finish_reason {reason!r})")
    if response.get("model", model) != model:
        raise ServerError(f"model={model} was asked for, and model={response['model']} has answered")
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict) or logprobs.get("top_logprobs") is None:
        raise NoLists("has no log-probs of the likeliest tokens (`logprobs.top_logprobs`) in its answers")
    try:
        tokens = _token_ids(logprobs.get("tokens") or ())
        own = np.fromiter(map(float, logprobs.get("token_logprobs") or ()), np.float64)
        listed = logprobs["top_logprobs"]
        lengths = np.array([len(one) for one in listed], np.int64)
        ids = _token_ids(itertools.chain.from_iterable(listed))
        log_p = np.fromiter(map(float, itertools.chain.from_iterable(one.values() for one in listed)), np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise NoLists(f"returns log-probs in another form than vLLM's ({error})") from error
    if not len(tokens) == len(lengths) == len(own):
        raise NoLists(f"returns {len(tokens)} tokens with {len(own)} log-probs and {len(lengths)} lists")
    if not lengths.all():
        raise NoLists("lists no token at all beside some that it has drawn")
    if not (np.isfinite(own).all() and np.isfinite(log_p).all()):
        raise ServerError(
            f"model={model} has log-probs that are not finite (NaN or inf): see that it is served in a dtype of larger "
            "range, such as bfloat16"
        )
    positions = np.repeat(np.arange(len(lengths)), lengths)
    kept = (lengths <= top)[positions] | (ids != tokens[positions])
    return Answer(tokens, own, TopLists.of(positions[kept], ids[kept], log_p[kept], (len(tokens), top)))


def _token_ids(texts: Iterable[str]) -> IntArray:
    """The ids in "token_id:17", "token_id:5" …; `NoLists` where a token comes as something else."""
    texts = list(texts)
    # One text taken apart in C: a list has K entries for each token, so this is most of what an answer costs.
    digits = f",{','.join(texts)}".replace(f",{_PREFIX}", " ")
    ids = np.fromstring(digits, np.int64, sep=" ") if digits.replace(" ", "").isdecimal() else np.empty(0, np.int64)
    if len(ids) != len(texts):
        strange = next((text for text in texts if not _KEY.fullmatch(text)), "")
        raise NoLists(f"spells tokens as texts ({strange!r}), not as ids (`return_tokens_as_token_ids`)")
    return ids
