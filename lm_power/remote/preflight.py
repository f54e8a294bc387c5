"""Servers of completions before anything is drawn: which model they serve, and whether power sampling can use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_power.config import near_matches
from lm_power.remote.answers import NoLists, Transient, answer_of
from lm_power.remote.client import API_KEY, HTTPClient, Refused
from lm_power.remote.places import Card, Place, cards
from lm_power.remote.queries import Answer, ServerError
from lm_power.remote.trials import Trial, Unsuitable, probe_of, try_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAGE = "see examples/servers/README.md"
_KEY = f"put the right one into the environment variable {API_KEY}"


def check(client: HTTPClient, model: str | None) -> Card:
    """See which model a client's servers serve, the same at each, and set it; tries nothing yet.

    Args:
        client: of one or more servers.
        model: name that the model is served by; None for the only one.

    Raises:
        Unsuitable: no server there, not one of completions, a wrong key, no such model, different models.
    """
    first: Card | None = None
    for place in client.places:
        listed = _listed(client, place)
        names = list(listed)
        if model is None and len(names) != 1:
            raise _unsuitable(place, f"serves {', '.join(names)}", "name one by model=")
        wanted = names[0] if model is None else model
        if wanted not in names:
            near = near_matches(wanted, names)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise _unsuitable(place, f"does not serve model={wanted}", f"{hint}available: {', '.join(names)}")
        client.model = model = wanted
        card = place.card = listed[wanted]
        first = first or card
        if card != first:
            raise _unsuitable(
                place,
                f"serves {card}, window {card.window}, and {client.places[0].shown} serves {first}, window "
                f"{first.window}",
                "all servers of a run must serve the same",
            )
    assert first is not None
    return first


def try_out(client: HTTPClient, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Try everything that the decoder relies on, at every server.

    Args:
        client: of servers that `check` has looked at.
        tokenizer: the model's; None where texts are not wanted.

    Raises:
        Unsuitable: a server lacks something; the message names the option or flag that cures it.
    """
    for place in client.places:
        try_engine(ServerTrial(client, place, tokenizer))


class ServerTrial(Trial):
    """A server that `check` has looked at.

    Args:
        client: that asks.
        place: the server.
        tokenizer: the model's; None where texts are not wanted.
    """

    def __init__(self, client: HTTPClient, place: Place, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__(_name(place), client.top, probe_of(tokenizer), tokenizer)
        self._client, self._place = client, place

    def draw(
        self, tokens: Sequence[int], n: int, temperature: float, stop_token_ids: Sequence[int] = ()
    ) -> tuple[Answer, str]:
        """As in `Trial`, by one query that is not tried again; to the last replica, if there are several."""
        body = {**self._client.body(tokens, n, temperature, seed=20), "stop_token_ids": list(stop_token_ids)}
        rank = self._client.ranks - 1 or None
        try:
            response = self._client.call(self._client.post(self._place, "/completions", body, rank))
            answer = answer_of(response, self.top, self._client.model)  # which looks at the form of the response
            return answer, str(response["choices"][0].get("text") or "")
        except Transient as error:
            raise self.unsuitable(
                f"gave up while it was tried out ({error})", "see to the server, and try again"
            ) from error
        except NoLists as error:
            raise self.unsuitable(
                str(error),
                f"power sampling is made of token ids with the log-probs of the likeliest: vLLM has them, {_PAGE}",
            ) from error
        except Refused as error:
            raise self._refused(error) from error
        except ServerError as error:
            raise self.unsuitable(str(error), _PAGE) from error

    def _refused(self, error: Refused) -> Unsuitable:
        text = str(error).lower()
        if error.status in (404, 405, 501):
            return self.unsuitable(
                f"serves no /completions ({error})",
                "a server of chats alone does not let a completion be taken up in its middle, which power sampling "
                "does all the time: use one of completions",
            )
        if error.status in (401, 403):
            return self.unsuitable(f"wants a key (status {error.status})", _KEY)
        if "data_parallel_rank" in text:
            return self.unsuitable(
                f"has fewer replicas than data_parallel={self._client.ranks} ({error})",
                "set data_parallel= to what the server was started with (vLLM: --data-parallel-size)",
            )
        if "logprobs" in text:
            return self.unsuitable(
                f"refuses top_logprobs={self.top} ({error})",
                f"start vLLM with --max-logprobs {self.top}, or ask for fewer by top_logprobs=",
            )
        if "prompt" in text:
            return self.unsuitable(
                f"refuses a prompt of token ids, without which a completion cannot be taken up in its middle ({error})",
                "use a server that takes them, such as vLLM's",
            )
        return self.unsuitable(f"refuses what power sampling asks for ({error})", _PAGE)


def _name(place: Place) -> str:
    return f"base_url={place.shown}"


def _unsuitable(place: Place, lack: str, cure: str) -> Unsuitable:
    return Unsuitable(_name(place), lack, cure)


def _listed(client: HTTPClient, place: Place) -> dict[str, Card]:
    try:
        listed = client.call(client.get(place, "/models"))
    except Transient as error:
        raise _unsuitable(
            place,
            f"no server of completions answers there ({error})",
            "is it running, and is the URL right? It should look like http://HOST:PORT/v1/completions, or https://",
        ) from error
    except Refused as error:
        if error.status in (401, 403):
            raise _unsuitable(place, f"wants a key (status {error.status})", _KEY) from error
        raise _unsuitable(
            place,
            f"has no /models (status {error.status})",
            "the URL should end in /v1/completions, beside which an OpenAI-compatible server lists its models",
        ) from error
    found = cards(listed)
    if not found:
        raise _unsuitable(
            place, "answers, but lists no models", "it is no OpenAI-compatible server of completions; is the URL right?"
        )
    return found
