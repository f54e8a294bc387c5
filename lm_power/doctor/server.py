"""The doctor's trials of a server of completions: what `power-api` tries before it draws, each by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lm_power.config import OptionError
from lm_power.doctor.finding import Finding
from lm_power.errors import UserError
from lm_power.remote.client import HTTPClient
from lm_power.remote.places import Card
from lm_power.remote.preflight import ServerTrial, check
from lm_power.remote.server import check_top, eos_ids_of, load_tokenizer, require_aiohttp
from lm_power.remote.trials import CHECKS, Unsuitable

PARTS = ("model", "context", "tokenizer", *CHECKS)
"""What is tried, in order."""

_PATIENCE = 120.0  # seconds that an answer may take


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is wanted of a server.

    Attributes:
        url: one, as http://HOST:PORT/v1/completions.
        model: name that the model is served by; None for the only one.
        tokenizer: hub id or folder; None for where the server says that the model comes from.
        top: K, tokens on a list.
        max_new_tokens: of the longest completion; None where it does not matter.
    """

    url: str
    model: str | None
    tokenizer: str | None
    top: int
    max_new_tokens: int | None


def examine(asked: Asked) -> list[Finding]:
    """Try each part. What cannot be tried as something before it fails is "absent".

    Raises:
        UserError: a wrong option.
    """
    try:
        require_aiohttp()
        check_top(asked.top)
        client = HTTPClient(asked.url, top=asked.top, timeout=_PATIENCE)
    except OptionError as error:
        raise UserError(str(error).replace("base_url", "--server").replace("top_logprobs", "--top-logprobs")) from error
    try:
        return _examine(asked, client)
    finally:
        client.close()


def _examine(asked: Asked, client: HTTPClient) -> list[Finding]:
    if len(client.places) > 1:
        raise UserError(f"--server {asked.url}: one server at a time")
    found: list[Finding] = []
    seen: list[Card] = []

    def model() -> str:
        card = check(client, asked.model)
        seen.append(card)
        return f"{client.places[0].shown} serves {card}"

    _try(found, "model", model)
    if not seen:
        return [*found, *(_not_tried(part, "model") for part in PARTS[1:])]
    (card,) = seen
    found.append(_context(card, asked.max_new_tokens))
    tokenizers = []

    def tokenizer() -> str:
        name = asked.tokenizer or card.checkpoint
        tokenizers.append(load_tokenizer(name, {}))
        eos = sorted(set(eos_ids_of(name, tokenizers[0], {})))
        if not eos:
            raise OptionError(f"tokenizer={name}: names no EOS token; pass eos_token_ids=")
        return f"{name}, {len(tokenizers[0])} tokens; completions end with {' or '.join(map(str, eos))}"

    _try(found, "tokenizer", tokenizer)
    trial = ServerTrial(client, client.places[0], tokenizers[0] if tokenizers else None)
    for part, one in CHECKS.items():
        if part != "ids" and found[PARTS.index("ids")].verdict != "works":
            found.append(_not_tried(part, "ids"))
        elif part == "texts" and not tokenizers:
            found.append(_not_tried(part, "tokenizer"))
        else:
            _try(found, part, lambda one=one: one(trial))  # type: ignore[misc]
    return found


def _try(found: list[Finding], part: str, trial: Callable[[], str]) -> None:
    try:
        found.append(Finding(part, "works", trial()))
    except Unsuitable as error:
        found.append(Finding(part, "fails", error.lack, error.cure))
    except OptionError as error:
        why, _, remedy = str(error).rpartition("; ")
        found.append(Finding(part, "fails", why or remedy, remedy if why else ""))


def _not_tried(part: str, before: str) -> Finding:
    return Finding(part, "absent", f"not tried, as {before} fails")


def _context(card: Card, longest: int | None) -> Finding:
    if card.window is None:
        return Finding(
            "context", "works", "the server does not tell how many tokens it takes",
            "max_length=N, if prompts and completions may be longer than it takes",
        )  # fmt: skip
    seen = f"{card.window} tokens for prompt and completion"
    if longest is None:
        return Finding("context", "works", seen)
    if longest >= card.window:
        return Finding(
            "context", "fails", f"{seen}: completions of {longest} leave no room for a prompt",
            f"start the server with a longer context (vLLM: --max-model-len), or set max_gen_toks={card.window // 2}",
        )  # fmt: skip
    return Finding("context", "works", f"{seen}: {card.window - longest} for the prompt")
