"""Where servers are, and what they tell of the models that they serve."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lm_power.config import OptionError
from lm_power.remote.answers import entries


@dataclasses.dataclass(frozen=True)
class Card:
    """What a server tells of a model.

    Attributes:
        model: the name it is served by.
        root: the checkpoint or adapter behind it; None where the server does not tell.
        window: positions for prompt and completion, tokens; None where the server does not tell.
        base: the model that it is an adapter of; None where it is none.
    """

    model: str
    root: str | None = None
    window: int | None = None
    base: Card | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any], base: Card | None = None) -> Card:
        """From an entry of /v1/models, and the card of its base; vLLM tells an adapter's window with its base."""
        meta = entry.get("meta")  # llama.cpp's
        told = entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, Mapping) else None
        windows = [window for window in told if type(window) is int and window > 0]
        window = windows[0] if windows else None if base is None else base.window
        root = entry.get("root")
        return cls(str(entry["id"]), root if isinstance(root, str) else None, window, base)

    @property
    def checkpoint(self) -> str:
        """Where the whole model may be found, with its tokenizer and its EOS ids: an adapter's folder has not all."""
        return (self.root or self.model) if self.base is None else self.base.checkpoint

    def __str__(self) -> str:
        """As messages and stores name it."""
        known = "weights not known" if self.root is None else f"root {self.root}"
        return f"{self.model} ({known}{'' if self.base is None else f', on {self.base}'})"


def cards(listed: Any) -> dict[str, Card]:
    """The models in what /v1/models has answered, by name."""
    found = {str(entry["id"]): entry for entry in entries(listed)}
    bases = {name: Card.of(entry) for name, entry in found.items() if entry.get("parent") not in found}
    return {name: Card.of(entry, bases.get(str(entry.get("parent")))) for name, entry in found.items()}


@dataclasses.dataclass
class Place:
    """A server, and what is known of it.

    Attributes:
        base: its URL up to and with /v1.
        shown: the same without user and password.
        card: of the model; None until it was looked at.
        failed: the last try did.
        told: a warning has said so.
        connections: made to it so far.
        vouched: how many of these had been made when it last told its model.
    """

    base: str
    shown: str
    card: Card | None = None
    failed: bool = False
    told: bool = False
    connections: int = 0
    vouched: int = 0


def places(base_url: str | Sequence[str]) -> list[Place]:
    """The servers that a base_url names: one, or several with + between them or in a list.

    Raises:
        OptionError: not a URL.

    >>> [place.base for place in places("http://a:8000/v1/completions+http://b:8000")]
    ['http://a:8000/v1', 'http://b:8000/v1']
    """
    urls = re.split(r"[+;\s]+(?=https?://)", base_url.strip()) if isinstance(base_url, str) else list(base_url)
    found = []
    for url in urls:
        parts = urlsplit(str(url).strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(
                f"base_url={url!r}: must be the URL of a server of completions, such as "
                "base_url=http://localhost:8000/v1/completions; several with + between them"
            )
        path = re.sub(r"/(chat/)?completions$", "", parts.path.rstrip("/"))
        path = path if re.search(r"/v\d+$", path) else f"{path}/v1"
        host = parts.netloc.rpartition("@")[2]
        base, shown = (urlunsplit((parts.scheme, netloc, path, "", "")) for netloc in (parts.netloc, host))
        found.append(Place(base, shown))
    return found
