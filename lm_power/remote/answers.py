"""What OpenAI-compatible servers answer, taken apart: tokens, log-probs and lists, models, messages of errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_power.remote.decoder import Answer, ServerError
from lm_power.remote.topk import TopLists

_KEY = re.compile(r"token_id:(-?\d+)")


class NoLists(ServerError):
    """An answer lacks what a `TopLists` is made of; the message says what."""


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
        raise NoLists("no log-probs of the likeliest tokens (`logprobs.top_logprobs`)")
    try:
        tokens = [_token_id(text) for text in logprobs.get("tokens") or ()]
        listed = [{_token_id(text): float(log_p) for text, log_p in one.items()} for one in logprobs["top_logprobs"]]
        own = [float(log_p) for log_p in logprobs.get("token_logprobs") or ()]
    except (AttributeError, TypeError, ValueError) as error:
        raise NoLists(f"log-probs in the form that vLLM gives them ({error})") from error
    if not len(tokens) == len(listed) == len(own):
        raise NoLists(f"{len(tokens)} tokens with {len(own)} log-probs and {len(listed)} lists")
    if not all(map(math.isfinite, [*own, *(log_p for one in listed for log_p in one.values())])):
        raise ServerError(
            f"model={model} has log-probs that are not finite (NaN or inf): see that it is served in a dtype of larger "
            "range, such as bfloat16"
        )
    for token, one in zip(tokens, listed, strict=True):
        if len(one) > top:
            one.pop(token, None)
    return Answer(np.array(tokens, np.int64), np.array(own, np.float64), TopLists.of(listed, top))


def _token_id(text: str) -> int:
    found = _KEY.fullmatch(text)
    if found is None:
        raise NoLists(f"tokens come as texts ({text!r}), not as ids (`return_tokens_as_token_ids`)")
    return int(found[1])
