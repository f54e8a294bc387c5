"""Where a model runs, as `PowerSampler` sees it: in this process, or behind somebody else's engine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, get_args

from lm_power.config import OptionError, SamplerConfig
from lm_power.decoding import Decoder, Measures
from lm_power.engine import BatchShape, Counters, Engine, StopStrings
from lm_power.engine.fallback import tried_backend
from lm_power.engine.memory import rows_that_fit
from lm_power.engine.paired import PairedBackend
from lm_power.engine.stopping import eos_ids
from lm_power.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Host(Protocol):
    """A model that is ready to be decoded: a `LocalHost` or a `remote.server.Server`.

    Attributes:
        tokenizer: the model's; None if prompts are token ids and texts are not needed.
        eos_ids: tokens that end a completion, ascending; at least one.
        vocabulary: number of token ids; None if it is not known.
        max_positions: largest number of tokens of prompt and completion together; None if no limit is known.
        foreign: whether proposals come from another model than the target.
    """

    foreign: bool
    tokenizer: PreTrainedTokenizerBase | None
    eos_ids: tuple[int, ...]
    vocabulary: int | None
    max_positions: int | None

    @property
    def relevant_options(self) -> Mapping[str, Any]:
        """The host's options that decide a completion, for its key."""
        ...

    def resolved(self, config: SamplerConfig) -> SamplerConfig:
        """The options with everything filled in that depends on the host.

        Raises:
            OptionError: the host cannot honour them.
        """
        ...

    def counters(self) -> Counters:
        """New counters, of the kind that `decoder` counts in."""
        ...

    def rows_that_fit(self, positions: int, rewound: int) -> int:
        """Rows for which there is memory.

        Args:
            positions: longest prompt plus longest completion, tokens.
            rewound: longest completion that a proposal may overwrite, tokens; 0 if nothing is ever overwritten.

        Raises:
            MemoryError: not even one row fits.
            OptionError: the host cannot know how many fit.
        """
        ...

    def decoder(
        self,
        config: SamplerConfig,
        rows: int,
        longest_prompt: int,
        stops: StopStrings,
        counters: Counters,
        measures: Measures,
    ) -> contextlib.AbstractContextManager[Decoder]:
        """A context whose value decodes requests.

        Args:
            config: as returned by `resolved`.
            rows: requests that are decoded side by side.
            longest_prompt: tokens.
            stops: stop strings.
            counters: as returned by `counters`; they are counted up.
            measures: what else to compute from each next-token distribution.
        """
        ...


class LocalHost:
    """A transformers model in this process: tried out when it is made, and decoded by `Engine`.

    Args:
        model: transformers causal LM, or a PEFT model around one.
        tokenizer: its tokenizer; None if prompts are token ids and texts are not needed.
        eos_token_ids: tokens that end a completion; default: those of the model's generation config (or config) and of
            the tokenizer.
        cuda_graphs: as in `tried_backend`.
        torch_compile: as in `tried_backend`.
        batch_shape: as in `Engine`.
        proposer: as in `tried_backend`.

    Attributes:
        backend: runs the model, or two of them if another model proposes.
        vocabulary: number of token ids that the model takes.
        max_positions: for prompt and completion together; None if the model has no limit.

    Raises:
        UnsupportedModelError: the engine cannot serve this architecture.
        OptionError: no EOS token is known, `batch_shape` is unknown, or `torch_compile` goes with a proposer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        eos_token_ids: Sequence[int] | None = None,
        cuda_graphs: bool | None = None,
        torch_compile: bool = False,
        batch_shape: BatchShape = "shrinking",
        proposer: PreTrainedModel | None = None,
    ) -> None:
        check_batch_shape(batch_shape)
        if proposer is not None:
            if torch_compile:
                raise OptionError("torch_compile=True with proposals from another model: is untested; leave it out")
            proposer.eval()
        model.eval()
        self.tokenizer, self.batch_shape = tokenizer, batch_shape
        self.backend = tried_backend(model, cuda_graphs=cuda_graphs, torch_compile=torch_compile, proposer=proposer)
        self.foreign = self.backend.foreign
        self.vocabulary: int | None = self.backend.vocabulary
        self.max_positions = self.backend.max_positions
        found = find_eos_ids(model, tokenizer) if eos_token_ids is None else eos_token_ids
        self.eos_ids = tuple(sorted(set(found)))
        outside = [token for token in self.eos_ids if not 0 <= token < self.backend.vocabulary]
        if not self.eos_ids or outside:
            what = f"ids {outside} lie outside the vocabulary" if outside else "none is known"
            raise OptionError(
                f"the model's EOS token: {what}; completions of variable length need one: set "
                "model.generation_config.eos_token_id, or pass eos_token_ids"
            )

    @property
    def relevant_options(self) -> Mapping[str, Any]:
        """See `Host`."""
        options = {} if self.backend.cache_dtype is None else {"cache_dtype": self.backend.cache_dtype}
        if isinstance(self.backend, PairedBackend):
            options["proposal_weights"] = fingerprint(self.backend.proposer.model)
        return options

    def resolved(self, config: SamplerConfig) -> SamplerConfig:
        """See `Host`."""
        return reaching_all(config.with_foreign_proposals() if self.foreign else config)

    def counters(self) -> Counters:
        """See `Host`."""
        return Counters()

    def rows_that_fit(self, positions: int, rewound: int) -> int:
        """See `Host`."""
        return rows_that_fit(self.backend, positions, rewound)

    def decoder(
        self,
        config: SamplerConfig,
        rows: int,
        longest_prompt: int,
        stops: StopStrings,
        counters: Counters,
        measures: Measures,
    ) -> contextlib.AbstractContextManager[Engine]:
        """See `Host`."""
        engine = Engine(
            self.backend,
            rows,
            longest_prompt,
            config.max_new_tokens,
            self.eos_ids,
            stops,
            counters=counters,
            measures=measures,
            batch_shape=self.batch_shape,
        )
        return contextlib.nullcontext(engine)


def check_batch_shape(batch_shape: object) -> None:
    """Raise `OptionError` for anything but a `BatchShape`."""
    shapes = get_args(BatchShape)
    if batch_shape not in shapes:
        raise OptionError(f"batch_shape={batch_shape!r}: must be {' or '.join(shapes)}")


def reaching_all(config: SamplerConfig) -> SamplerConfig:
    """The same options, for an engine whose proposals reach every token. Raises `OptionError` for `explore`."""
    if config.explore is not None:
        raise OptionError(
            f"explore={config.explore:g}: is for models on a server, whose proposals reach only some of the tokens; "
            "here they reach all of them: leave it out"
        )
    return config


def find_eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The EOS ids of the generation config, or else of the config, together with the tokenizer's.

    Nothing else in a checkpoint's generation config (temperature, top-k …) has any effect here.
    """
    holders = [getattr(model, "generation_config", None), model.config, model.config.get_text_config()]
    listed = next((ids for h in holders if (ids := getattr(h, "eos_token_id", None)) is not None), None)
    return eos_ids(listed, tokenizer)
