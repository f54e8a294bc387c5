"""`power-api`: lm-eval's model for servers of completions, whose `generate_until` samples from p(x)^alpha."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

from lm_power.config import LENGTH_NAMES, OptionError, SamplerConfig, check_names
from lm_power.harness.generation import ServedGeneration
from lm_power.harness.options import (
    LOADING_OPTIONS,
    SAMPLER_OPTIONS,
    refuse_several_processes,
    sampler_options,
    store_folder,
    token_ids,
)
from lm_power.identity import Identity
from lm_power.remote.client import API_KEY
from lm_power.remote.places import places
from lm_power.remote.server import Server
from lm_power.sampler import PowerSampler

_STOCK = ("header", "verify_certificate", "ca_cert_path", "custom_prefix_token_id", "max_retries", "revision",
          "trust_remote_code", "batch_size", "max_batch_size", "device")  # fmt: skip
"""Options passed on to lm-eval's own model. lm-eval gives every model a device, which has no effect here."""
_LOADING = ("revision", "trust_remote_code")  # options for loading the tokenizer
_STOCK_WINDOW = 2048  # positions that lm-eval assumes a server has


class PowerAPI(ServedGeneration, LocalCompletionsAPI):
    """`local-completions` with another `generate_until`; log-likelihoods and chat templates are lm-eval's.

    Example: `lm_eval --model power-api --model_args base_url=http://localhost:8000/v1/completions,method=power,alpha=4
    --tasks math500`, beside `vllm serve MODEL`.

    Args:
        base_url: URL of the server of completions; several servers of one model are joined by + and share the rows.
        model: the name under which the model is served; default: the only one. `pretrained` means the same.
        tokenizer: hub id or folder of the model's tokenizer; default: that of the checkpoint that the server names.
        num_concurrent: rows, that is, queries under way at a time.
        top_logprobs: number of tokens that the server lists with each token it draws; proposals are confined to them.
        completions: folder of a store; a run that was cut short resumes from it.
        max_length: positions for prompt and completion together; default: what the server says.
        data_parallel: replicas of each server (vLLM's `-dp N`); each row stays on one of them.
        timeout: seconds that an answer may take.
        patience: seconds for which a failing query is tried again.
        add_bos_token: whether prompts begin with BOS; default: as the tokenizer does it.
        think_end_token: the text, or the id of the token, that ends the thinking section, which is cut off the answer.
        eos_token_ids: tokens that end a completion, such as 1/2; default: those of the tokenizer and of the generation
            config beside it.
        arguments: sampler options (`lm_power.config.SamplerConfig`), including `explore` (0.03 by default), and the
            options of lm-eval's model in `_STOCK`.

    Raises:
        OptionError: a wrong option, or a server that cannot be used; it is raised before anything is drawn.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
        num_concurrent: int = 64,
        top_logprobs: int = 20,
        completions: str | None = None,
        max_length: int | None = None,
        data_parallel: int = 1,
        timeout: float = 1800,
        patience: float = 300,
        add_bos_token: bool | None = None,
        think_end_token: str | int | None = None,
        eos_token_ids: str | int | None = None,
        pretrained: str | None = None,
        **arguments: Any,
    ) -> None:
        ours, stock = sampler_options(arguments)
        self.sampler_config = SamplerConfig().replace(**ours)
        refuse_what_has_no_place(stock)
        if base_url is None:
            raise OptionError("base_url: must be given, such as base_url=http://localhost:8000/v1/completions")
        whole = {"num_concurrent": num_concurrent, "data_parallel": data_parallel}
        if max_length is not None:
            whole["max_length"] = max_length
        for name, number in whole.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise OptionError(f"{name}={number!r}: must be a whole number >= 1")
        for name, seconds in {"timeout": timeout, "patience": patience}.items():
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
                raise OptionError(f"{name}={seconds!r}: must be a number of seconds > 0")
        if not (add_bos_token is None or isinstance(add_bos_token, bool)):
            raise OptionError(f"add_bos_token={add_bos_token!r}: must be true or false")
        if not isinstance(stock.get("header") or {}, Mapping):
            raise OptionError(
                f"header={stock['header']!r}: must be a mapping, which a command line cannot give; for a key set the "
                f"environment variable {API_KEY}"
            )
        refuse_several_processes("power-api", "num_concurrent")
        self.completions = store_folder({"completions": completions})
        verify = stock.get("ca_cert_path") or stock.get("verify_certificate", True)
        server = Server.connect(
            base_url,
            None if model is None and pretrained is None else str(model or pretrained),
            None if tokenizer is None else str(tokenizer),
            top_logprobs=top_logprobs,
            eos_token_ids=token_ids(eos_token_ids),
            loading={name: stock[name] for name in _LOADING if name in stock},
            ranks=data_parallel,
            timeout=timeout,
            patience=patience,
            headers=stock.get("header"),
            verify=verify,
        )
        self._sampler = PowerSampler(server, server.tokenizer, max_rows=num_concurrent)
        self._window = min(filter(None, (server.max_positions, max_length)), default=None)
        self._add_bos = add_bos_token
        is_id = isinstance(think_end_token, str) and think_end_token.isdigit()
        self.think_end_token = int(str(think_end_token)) if is_id else think_end_token
        assert server.tokenizer is not None
        super().__init__(
            base_url=f"{places(base_url)[0].base}/completions",
            tokenizer_backend="huggingface",
            model=server.card.model,
            tokenizer=server.tokenizer.name_or_path,
            num_concurrent=num_concurrent,
            max_length=self._window or _STOCK_WINDOW,
            timeout=timeout,
            add_bos_token=bool(add_bos_token),
            **stock,
        )
        self.max_gen_toks = self._max_gen_toks

    @functools.cached_property
    def model_name(self) -> str:
        """The model as the store records it: its name, and where the server says that its weights come from."""
        assert isinstance(self._sampler.host, Server)
        return str(Identity(str(self._sampler.host.card)))

    def prompt_ids(self, context: str) -> Sequence[int]:
        """As the tokenizer encodes it, with its special tokens unless already there, or as `add_bos_token` says."""
        if self._add_bos is None:
            return self._sampler.encode(context)
        tokens: list[int] = self.tokenizer.encode(context, add_special_tokens=self._add_bos)
        return tokens

    def positions(self) -> int | None:
        """Those of the server, or `max_length`."""
        return self._window

    def one_row_hint(self) -> str | None:
        """Say that more rows are faster."""
        one = self._sampler.max_rows == 1
        return "num_concurrent=1 decodes one completion at a time; leave it at 64, or raise it" if one else None


def refuse_what_has_no_place(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` for options that the server decides, and for unknown names."""
    theirs = set(inspect.signature(HFLM.__init__).parameters) | {*LOADING_OPTIONS, "attn_implementation"}
    for name, value in options.items():
        if name == "proposal_peft":
            raise OptionError(
                f"proposal_peft={value}: needs each token's probability under two models, and a server gives that of "
                "one; use power-hf, or leave it out"
            )
        if name in LENGTH_NAMES:
            raise OptionError(f"{name} in --model_args: set it by --gen_kwargs max_gen_toks={value}")
        if name in theirs and name not in _STOCK:
            raise OptionError(
                f"{name}={value}: is an option of power-hf; here the weights are loaded where the server is started: "
                "set it there, and leave it out here"
            )
    own = inspect.signature(PowerAPI.__init__).parameters
    known = [name for name in own if name not in ("self", "arguments")]
    check_names(options, (*known, *SAMPLER_OPTIONS, *_STOCK), "option in --model_args")
