"""What a server must do for power sampling, tried out before anything is drawn: each lack is refused with its cure."""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_power.config import OptionError, near_matches
from lm_power.remote.answers import NoLists, Transient, answer_of, entries
from lm_power.remote.client import API_KEY, Card, HTTPClient, Place, Refused
from lm_power.remote.decoder import Answer, ServerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROBE = "The capital of France is a city that"
PROBE_IDS = (5, 6, 7, 8)  # where there is no tokenizer: any ids that a model has
_SHARPER = 4.0  # inverse temperature of the second probe
_ROUND_TRIP = 12  # tokens whose text is compared
RAW = (
    "power sampling needs the model's own: start vLLM with --logprobs-mode raw_logprobs (its default), SGLang with "
    "SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment"
)


class Unsuitable(OptionError, ServerError):
    """A server lacks what power sampling needs; the message says what, and how to start it."""


class Trial(abc.ABC):
    """An engine that is tried out.

    Args:
        name: what its user named it by, as "option=value".
        top: K, tokens that are to be on a list.
    """

    def __init__(self, name: str, top: int) -> None:
        self.name, self.top = name, top

    @abc.abstractmethod
    def draw(
        self, tokens: Sequence[int], n: int, temperature: float, stop_token_ids: Sequence[int] = ()
    ) -> tuple[Answer, str]:
        """At most `n` tokens, and their text as the engine has it."""

    def unsuitable(self, what: str) -> Unsuitable:
        """The error that says what is wrong with this engine."""
        return Unsuitable(f"{self.name}: {what}")


class _ServerTrial(Trial):
    def __init__(self, client: HTTPClient, place: Place) -> None:
        super().__init__(f"base_url={place.shown}", client.top)
        self.client, self.place = client, place

    def draw(
        self, tokens: Sequence[int], n: int, temperature: float, stop_token_ids: Sequence[int] = ()
    ) -> tuple[Answer, str]:
        body = {**self.client.body(tokens, n, temperature, seed=20), "stop_token_ids": list(stop_token_ids)}
        response = self.client.call(self.client.post(self.place, "/completions", body))
        text = response["choices"][0].get("text") if isinstance(response, dict) and response.get("choices") else ""
        return answer_of(response, self.top, self.client.model), str(text or "")


def check(client: HTTPClient, model: str | None) -> Card:
    """See which model a client's servers serve, the same at each, and set it; tries nothing yet.

    Args:
        client: of one or more servers.
        model: name that the model is served by; None for the only one.

    Raises:
        OptionError: no server there, not one of completions, a wrong key, no such model, different models.
    """
    for place in client.places:
        trial = _ServerTrial(client, place)
        listed = _listed(trial)
        names = [str(entry["id"]) for entry in listed]
        if model is None and len(names) != 1:
            raise trial.unsuitable(f"serves {', '.join(names)}: name one by model=")
        wanted = names[0] if model is None else model
        if wanted not in names:
            near = near_matches(wanted, names)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise trial.unsuitable(f"does not serve model={wanted}: {hint}available: {', '.join(names)}")
        client.model = model = wanted
        place.card = next(Card.of(entry) for entry in listed if entry["id"] == wanted)
        if place.card != client.places[0].card:
            raise trial.unsuitable(
                f"serves {place.card}, window {place.card.window}, and {client.places[0].shown} serves "
                f"{client.places[0].card}, window {_card(client).window}: all servers of a run must serve the same"
            )
    return _card(client)


def _card(client: HTTPClient) -> Card:
    card = client.places[0].card
    assert card is not None
    return card


def _listed(trial: _ServerTrial) -> Sequence[Any]:
    try:
        listed = trial.client.call(trial.client.get(trial.place, "/models"))
    except Transient as error:
        raise trial.unsuitable(
            f"no server of completions answers there ({error}); is it running, and is the URL right? It should look "
            "like http://HOST:PORT/v1/completions"
        ) from error
    except Refused as error:
        if error.status in (401, 403):
            raise trial.unsuitable(
                f"wants a key (status {error.status}): put it into the environment variable {API_KEY}"
            ) from error
        raise trial.unsuitable(
            f"has no /models (status {error.status}): the URL should end in /v1/completions, below which an "
            "OpenAI-compatible server lists its models"
        ) from error
    found = entries(listed)
    if not found:
        raise trial.unsuitable("answers, but lists no models: it is no OpenAI-compatible server of completions")
    return found


def try_out(client: HTTPClient, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Try everything that the decoder relies on, at every server, in five short queries each.

    Args:
        client: of servers that `check` has looked at.
        tokenizer: the model's; None where texts are not wanted.

    Raises:
        Unsuitable: a server lacks something; the message names the option or flag that cures it.
    """
    probe = list(PROBE_IDS) if tokenizer is None else list(tokenizer.encode(PROBE))
    for place in client.places:
        trial = _ServerTrial(client, place)
        try:
            try_engine(trial, probe, tokenizer)
        except Transient as error:
            raise trial.unsuitable(
                f"gave up while it was tried out ({error}); see to the server, and try again"
            ) from error
        except NoLists as error:
            raise trial.unsuitable(
                f"answers without {error}: token ids with the log-probs of the likeliest tokens are what power "
                "sampling is made of; vLLM has them, see examples/servers/README.md"
            ) from error
        except Refused as error:
            raise trial.unsuitable(_cure(error, client.top)) from error
        except Unsuitable:
            raise
        except ServerError as error:
            raise trial.unsuitable(str(error)) from error


def _cure(error: Refused, top: int) -> str:
    """What to do about a query that was refused."""
    text = str(error).lower()
    if error.status in (404, 405, 501):
        return (
            "serves no /completions: a server of chats alone does not let a completion be taken up in its middle, "
            f"which power sampling does all the time ({error})"
        )
    if error.status in (401, 403):
        return f"wants a key (status {error.status}): put it into the environment variable {API_KEY}"
    if "logprobs" in text:
        return (
            f"refuses top_logprobs={top}: start vLLM with --max-logprobs {top}, or ask for fewer by top_logprobs= "
            f"({error})"
        )
    if "prompt" in text:
        return f"refuses a prompt of token ids, without which a completion cannot be taken up in its middle ({error})"
    return f"refuses what power sampling asks for ({error}); see examples/servers/README.md"


def try_engine(trial: Trial, probe: list[int], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Try everything that the decoder relies on, at one engine.

    Args:
        trial: the engine.
        probe: a prompt, token ids.
        tokenizer: the model's, to compare texts; None where there is nothing to compare.

    Raises:
        Unsuitable: the engine lacks something.
        ServerError: it fails.
    """
    flat, _ = trial.draw(probe, 1, 1.0)
    sharp, _ = trial.draw(probe, 1, 1 / _SHARPER)
    for answer in (flat, sharp):
        if len(answer.tokens) != 1:
            raise trial.unsuitable(f"draws {len(answer.tokens)} tokens where max_tokens=1: power sampling counts them")
    _check_raw(trial, flat, sharp)
    listed = flat.lists.ids[0] >= 0
    mass = float(np.exp(flat.lists.log_p[0][listed]).sum())
    if listed.sum() < trial.top and mass < 0.999:
        raise trial.unsuitable(
            f"lists {listed.sum()} tokens of the {trial.top} that were asked for: set top_logprobs={listed.sum()}"
        )
    if mass > 1.001:
        raise trial.unsuitable(f"lists probabilities that sum to {mass:.4f}: they are no log-probs of tokens")
    _check_draw(trial, sharp)
    _check_stop(trial, probe, flat)
    if tokenizer is not None:
        _check_texts(trial, probe, tokenizer)


def _check_raw(trial: Trial, flat: Answer, sharp: Answer) -> None:
    """Log-probs must not depend on the temperature; other requests in a batch may move them a little."""
    before, after = (dict(zip(a.lists.ids[0].tolist(), a.lists.log_p[0].tolist(), strict=True)) for a in (flat, sharp))
    common = [token for token in before if token >= 0 and token in after]
    if len(common) < 2:
        raise trial.unsuitable("lists other tokens when it is asked again: its log-probs cannot be relied on")
    raw, seen = (np.array([listed[token] for token in common]) for listed in (before, after))
    processed = _SHARPER * raw - np.logaddexp.reduce(_SHARPER * raw)
    off, off_if_processed = (float(np.abs(seen - expected).max()) for expected in (raw, processed))
    if off > max(0.02, off_if_processed):
        raise trial.unsuitable(f"returns log-probs that follow the temperature (processed_logprobs): {RAW}")
    if off > 0.5:
        raise trial.unsuitable(
            f"returns log-probs that differ by {off:.2g} nats when it is asked again: they cannot be relied on"
        )


def _check_draw(trial: Trial, sharp: Answer) -> None:
    """At a low temperature a draw is on its list but once in a million; its own log-prob is the list's."""
    token, lists = int(sharp.tokens[0]), sharp.lists
    place = np.flatnonzero(lists.ids[0] == token)
    if not len(place):
        raise trial.unsuitable(
            f"drew token {token} at temperature {1 / _SHARPER:g}, which is not among the {trial.top} likeliest: "
            "it does not draw from the log-probs that it returns (does something else set its temperature?)"
        )
    listed, own = float(lists.log_p[0, place[0]]), float(sharp.log_p[0])
    if abs(listed - own) > 1e-3:
        raise trial.unsuitable(f"returns two log-probs for the token it drew, {own:.4f} and {listed:.4f}: {RAW}")


def _check_stop(trial: Trial, probe: list[int], flat: Answer) -> None:
    """The token at which a server stops must be in the answer: EOS is part of a completion."""
    likely = [token for token in flat.lists.ids[0].tolist() if token >= 0]
    answer, _ = trial.draw(probe, 3, 1 / _SHARPER, stop_token_ids=likely)
    if not len(answer.tokens):
        raise trial.unsuitable("leaves out the token at which it stops (stop_token_ids), so that EOS has no log-prob")
    if len(answer.tokens) > 1 and int(answer.tokens[0]) in likely:
        logger.warning(
            "%s: takes no notice of stop_token_ids, so that it goes on after EOS; what it draws there is dropped, at "
            "the price of decoding it", trial.name,
        )  # fmt: skip


def _check_texts(trial: Trial, probe: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Both sides must spell the same tokens alike; blanks at the ends and halves of characters do not count."""
    answer, theirs = trial.draw(probe, _ROUND_TRIP, 1.0)
    ours = str(tokenizer.decode(answer.tokens.tolist(), clean_up_tokenization_spaces=False))
    if _plain(ours) != _plain(theirs):
        raise trial.unsuitable(
            f"spells the tokens it drew {theirs[:40]!r}, and tokenizer={tokenizer.name_or_path or '…'} {ours[:40]!r}: "
            "set tokenizer= to that of the model that is served"
        )


def _plain(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())
