"""A model that is served elsewhere, as `PowerSampler` sees it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_power.chains import METHODS
from lm_power.config import OptionError, SamplerConfig
from lm_power.decoding import Measures
from lm_power.engine.stopping import eos_ids
from lm_power.loading import check_vocabulary, named_by
from lm_power.remote.client import HTTPClient
from lm_power.remote.decoder import TopKDecoder, Traffic
from lm_power.remote.places import Card
from lm_power.remote.preflight import check, try_out
from lm_power.remote.queries import Client

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lm_power.engine import Counters, StopStrings

logger = logging.getLogger(__name__)

EXPLORE = 0.03
"""Share of the steps that propose from p, where nothing else is asked for."""
_SHARPEST = 100.0  # inverse temperature: vLLM draws no sharper, whatever it is asked for
_MANY_REDRAWS = 0.01  # share of the draws; more deserves a notice


class Server:
    """A model behind an engine that lists the likeliest tokens, such as OpenAI-compatible servers of completions.

    Args:
        client: of the engine; `connect` makes one for servers, looks at them and tries them out.
        card: of the model.
        tokenizer: the model's; None if prompts are token ids and texts are not wanted.
        eos_ids: tokens that end a completion.
        settings: what else of the engine decides a completion, for keys.

    Attributes:
        vocabulary: tokens that the tokenizer knows; None without one.
        max_positions: for prompt and completion together; None where the server does not tell.
    """

    def __init__(
        self,
        client: Client,
        card: Card,
        tokenizer: PreTrainedTokenizerBase | None,
        eos_ids: Sequence[int],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = dict(settings or {})
        self.client, self.card, self.tokenizer, self.eos_ids = client, card, tokenizer, tuple(sorted(set(eos_ids)))
        self.vocabulary = None if tokenizer is None else len(tokenizer)
        self.max_positions = card.window
        self.foreign = False  # one model is all that there is
        client.eos_ids = list(self.eos_ids)

    @classmethod
    def connect(
        cls,
        base_url: str | Sequence[str],
        model: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        top_logprobs: int = 20,
        eos_token_ids: Sequence[int] | None = None,
        loading: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Server:
        """Look at the servers, load the tokenizer, and try out all that power sampling needs.

        Args:
            base_url: as http://HOST:PORT/v1/completions; several in a list, or with + between them.
            model: name that the model is served by; default: the only one that is.
            tokenizer: hub id, folder or tokenizer of the same model; default: where the server says that the model
                comes from.
            top_logprobs: K, tokens that the server lists.
            eos_token_ids: tokens that end a completion; default: those of the tokenizer and of the generation config
                beside it.
            loading: for the tokenizer's `from_pretrained`.
            options: of `HTTPClient`.

        Raises:
            OptionError: a wrong option, or a server that cannot be used; the message says how to start it.
        """
        require_aiohttp()
        check_top(top_logprobs)
        client = HTTPClient(base_url, top=top_logprobs, **options)
        try:
            card = check(client, model)
            name = tokenizer if isinstance(tokenizer, str) else card.checkpoint
            if tokenizer is None or isinstance(tokenizer, str):
                tokenizer = load_tokenizer(name, loading or {})
            if eos_token_ids is None:
                eos_token_ids = eos_ids_of(name, tokenizer, loading or {})
            elif not all(0 <= token < len(tokenizer) for token in eos_token_ids):
                raise OptionError(
                    f"eos_token_ids={'/'.join(map(str, eos_token_ids))}: must be among the {len(tokenizer)} tokens of "
                    f"tokenizer={tokenizer.name_or_path or '…'}"
                )
            if not eos_token_ids:
                raise OptionError("the model's EOS token: none is known; pass eos_token_ids, or another tokenizer")
            server = cls(client, card, tokenizer, eos_token_ids)
            try_out(client, tokenizer)
        except BaseException:
            client.close()
            raise
        return server

    @property
    def relevant_options(self) -> dict[str, Any]:
        """What of the server's options decides a completion, for keys."""
        return {"top_logprobs": self.client.top, **self._settings}

    def resolved(self, config: SamplerConfig) -> SamplerConfig:
        """The options with `explore` filled in.

        Raises:
            OptionError: the method would sample another distribution here, and was not told that it may.
        """
        if config.beta > _SHARPEST:
            raise OptionError(
                f"a proposal temperature of {1 / config.beta:g}: servers draw at {1 / _SHARPEST:g} where less is asked "
                f"for, which is another distribution; set proposal_temperature >= {1 / _SHARPEST:g}"
            )
        if not _confined(config) or config.explore is not None:
            return config
        if METHODS[config.method].explores:
            return config.replace(explore=EXPLORE)
        raise OptionError(
            f"method={config.method}: its draws cannot leave the {self.client.top} likeliest tokens that the server "
            "lists, so that it would sample p^alpha confined to these; use method=power or tempering, or set explore=0 "
            "to have it so, with top_logprobs as large as the server allows"
        )

    def counters(self) -> Traffic:
        """New counters."""
        return Traffic()

    def rows_that_fit(self, positions: int, rewound: int) -> int:
        """Raises `OptionError`: a server's memory is not known here."""
        raise rows_unknown("auto")

    @contextlib.contextmanager
    def decoder(
        self,
        config: SamplerConfig,
        rows: int,
        longest_prompt: int,
        stops: StopStrings,
        counters: Counters,
        measures: Measures,
    ) -> Iterator[TopKDecoder]:
        """A decoder, whose queries are given up at the end, however it comes. Arguments as in `Host`."""
        assert isinstance(counters, Traffic)
        decoder = TopKDecoder(self.client, rows, self.eos_ids, stops, _confined(config), counters, measures)
        before = counters.confined, counters.redrawn
        try:
            yield decoder
        finally:
            decoder.close()
        draws, redrawn = counters.confined - before[0], counters.redrawn - before[1]
        if redrawn > _MANY_REDRAWS * draws:
            logger.warning(
                "%.1f%% of the draws were not among the %d likeliest tokens, and were made again: a larger "
                "top_logprobs, or a proposal_temperature nearer to 1/alpha, saves that",
                100 * redrawn / draws, self.client.top,
            )  # fmt: skip

    def close(self) -> None:
        """Close all connections."""
        self.client.close()


def _confined(config: SamplerConfig) -> bool:
    """Whether draws are kept on the lists: not where a completion is the server's own draw, whole."""
    return "explore" in METHODS[config.method].options


def rows_unknown(max_rows: object, whose: str = "a server's") -> OptionError:
    """The error for rows that are to be as many as fit."""
    return OptionError(f"max_rows={max_rows!r}: {whose} memory is not known here; set a number, such as 64")


def require_aiohttp() -> None:
    """Raise `OptionError` where the package that speaks HTTP is not installed."""
    if importlib.util.find_spec("aiohttp") is None:
        raise OptionError("a server needs the package aiohttp: pip install 'lm-power[api]'")


def check_top(top_logprobs: object) -> None:
    """Raise `OptionError` for what is no K."""
    if isinstance(top_logprobs, bool) or not isinstance(top_logprobs, int) or top_logprobs < 2:
        raise OptionError(f"top_logprobs={top_logprobs!r}: must be a whole number >= 2")


def load_tokenizer(name: str, loading: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder. Raises `OptionError`."""
    from transformers import AutoTokenizer

    with named_by("tokenizer", name, "set tokenizer= to the hub id or folder of the served model's"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **loading)
    check_vocabulary(tokenizer, "tokenizer", name)
    return tokenizer


def eos_ids_of(name: str, tokenizer: PreTrainedTokenizerBase, loading: Mapping[str, Any]) -> list[int]:
    """EOS ids of the tokenizer, and of the generation config beside it if there is one."""
    from transformers import GenerationConfig

    revision = {key: value for key, value in loading.items() if key in ("revision", "token")}
    try:
        listed = GenerationConfig.from_pretrained(name, **revision).eos_token_id
    except (OSError, ValueError):  # a folder of a tokenizer alone
        listed = None
    return eos_ids(listed, tokenizer)
