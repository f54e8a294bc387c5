"""`power-hf`: lm-eval's Hugging Face model, whose `generate_until` samples from p(x)^alpha."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lm_eval.models.huggingface import HFLM

from lm_power.adapter import check_merging, with_adapters
from lm_power.config import OptionError, SamplerConfig
from lm_power.engine import BatchShape
from lm_power.engine.attention import prefer_spans
from lm_power.engine.device import default_device
from lm_power.fingerprint import fingerprint
from lm_power.harness.generation import PowerGeneration
from lm_power.harness.options import split_model_args, store_folder
from lm_power.host import check_batch_shape, reaching_all
from lm_power.identity import Identity
from lm_power.loading import check_device, check_dtype, check_vocabulary, named_by
from lm_power.sampler import PowerSampler


class PowerHF(PowerGeneration, HFLM):
    """`hf` with another `generate_until`; log-likelihoods, chat templates and all options are HFLM's.

    Example: `lm_eval --model power-hf --model_args pretrained=ID,method=power,alpha=4 --tasks math500`.

    Args:
        pretrained: hub id, folder or model, as in `hf`.
        completions: folder of a store; a run that was cut short goes on where it stopped.
        randomize_weights: evaluate the architecture with freshly initialised weights (the negative control
            RandW of Tomihari & Sato 2026).
        proposal_peft: hub id or folder of another adapter of the same base, such as a distilled student. Proposals of
            `method=power` and `method=smc` are drawn from it; the target is made of the base, with its own `peft`.
        merge_adapter: merge the adapter of `peft` into the base (see `lm_power.adapter.merged`).
        cuda_graphs, torch_compile, batch_shape: see `lm_power.PowerSampler`.
        arguments: sampler options (`lm_power.config.SamplerConfig`) and all of HFLM's. `batch_size` is the
            number of completions decoded side by side, "auto" for as many as fit. Without
            `attn_implementation`, a checkpoint that goes to NVIDIA GPUs gets `lm_power` where it can have it
            (see `lm_power.engine.attention`); any other, what transformers chooses.

    Raises:
        OptionError: a wrong or misspelt option, before the model is loaded.
    """

    def __init__(
        self,
        pretrained: Any,
        completions: str | None = None,
        randomize_weights: bool = False,
        proposal_peft: str | None = None,
        merge_adapter: bool = False,
        cuda_graphs: bool | None = None,
        torch_compile: bool = False,
        batch_shape: BatchShape = "shrinking",
        **arguments: Any,
    ) -> None:
        ours, theirs = split_model_args(arguments)
        self.sampler_config = reaching_all(SamplerConfig().replace(**ours))
        switches = {
            "randomize_weights": randomize_weights, "merge_adapter": merge_adapter,
            "cuda_graphs": cuda_graphs, "torch_compile": torch_compile,
        }  # fmt: skip
        for name, switch in switches.items():
            if not (isinstance(switch, bool) or (name == "cuda_graphs" and switch is None)):
                raise OptionError(f"{name}={switch!r}: must be true or false")
        peft, self._proposal_peft = theirs.pop("peft", None), proposal_peft
        for name, adapter in {"peft": peft, "proposal_peft": proposal_peft}.items():
            if not adapter:
                continue
            if randomize_weights:
                raise OptionError(f"randomize_weights=True with {name}: an adapter on random weights is no control")
            if not isinstance(pretrained, str):
                raise OptionError(f"{name} with a model that is loaded already: pass that model with the adapter on it")
            if theirs.get("delta"):
                raise OptionError(f"{name} with delta: name one of them")
        check_merging(merge_adapter, peft, proposal_peft)
        if proposal_peft:
            if torch_compile:
                raise OptionError("torch_compile=True with proposal_peft: is not tried; leave one of them out")
            self._effective(self.sampler_config)
        check_batch_shape(batch_shape)
        self.completions = store_folder({"completions": completions})
        self._most_rows = theirs.get("max_batch_size")
        if theirs.get("device") is None:  # HFLM would ask for "cuda" even where there is none
            theirs["device"] = default_device()
        elif isinstance(theirs["device"], str):  # HFLM would take the CPU instead of a GPU that is not there
            check_device(theirs["device"])
        check_stock_options(theirs)
        super().__init__(pretrained, **theirs)
        if isinstance(pretrained, str) and theirs.get("attn_implementation") is None:
            prefer_spans(self.model)
        # Not by HFLM: it cuts the embeddings to the tokenizer's tokens, and ties weights again that an adapter
        # has parted (lm-eval #2748, peft #2415).
        self._model: Any
        self._model, self._proposer = with_adapters(
            self._model, str(peft) if peft else None, proposal_peft or None, merge=merge_adapter, revision=self.revision
        )
        self.peft = peft
        self._join_processes()
        if randomize_weights:
            randomize(self.model, self.sampler_config.seed)
        self._randomized, self._merged = randomize_weights, merge_adapter
        self._cuda_graphs, self._torch_compile = cuda_graphs, torch_compile
        self._batch_shape: BatchShape = batch_shape

    @functools.cached_property
    def sampler(self) -> PowerSampler:
        """The sampler around the loaded model; made at the first generation, which alone needs it."""
        rows: int | Literal["auto"] = "auto" if self.batch_size == "auto" else int(self.batch_size)
        return PowerSampler(
            self.model,
            self.tokenizer,
            max_rows=rows,
            cuda_graphs=self._cuda_graphs,
            torch_compile=self._torch_compile,
            batch_shape=self._batch_shape,
            proposer=self._proposer,
        )

    @functools.cached_property
    def model_name(self) -> str:
        """The model as the store records it: "name@fingerprint"."""
        name = self.pretrained if isinstance(self.pretrained, str) else self.model.name_or_path
        return str(Identity(str(name), self.peft or None, self._randomized, fingerprint(self.model), self._merged))

    def check_generation(self) -> None:
        """Refuse mixed precision."""
        if self.mixed_precision_dtype is not None:
            raise OptionError(
                f"mixed_precision_dtype={self.mixed_precision_dtype}: is for log-likelihoods only; completions are "
                "sampled in the dtype of the weights: set dtype=bfloat16, say"
            )

    def prompt_ids(self, context: str) -> Sequence[int]:
        """As HFLM encodes it."""
        return self.tok_encode(context)

    def text_of(self, tokens: Sequence[int]) -> str:
        """As HFLM decodes it."""
        return self.tok_decode(tokens)

    def positions(self) -> int:
        """Those of the model, or `max_length`."""
        return min(filter(None, (self.sampler.host.max_positions, self.max_length)))

    def most_rows(self) -> int | None:
        """`max_batch_size`, which bounds `batch_size=auto`."""
        return self._most_rows if self.batch_size == "auto" else None

    def one_row_hint(self) -> str | None:
        """Say that `--batch_size` is 1 by default."""
        one = self.batch_size == 1
        return "batch_size=1 decodes one completion at a time; --batch_size auto is far faster" if one else None

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's facts, and the sampler's options and the weights' fingerprint."""
        ours = {**dataclasses.asdict(self._effective(self.sampler_config)), "model": self.model_name}
        return {**super().get_model_info(), "power_sampler": ours}

    def _get_config(self, pretrained: str, **options: Any) -> None:
        with named_by("pretrained", pretrained, "name a hub id, or the folder of a causal LM"):
            super()._get_config(pretrained, **options)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **options: Any) -> None:
        named = ("tokenizer", tokenizer) if tokenizer else ("pretrained", pretrained)
        with named_by(*named, "set tokenizer= to the hub id or folder of the model's"):
            super()._create_tokenizer(pretrained, tokenizer, **options)
        check_vocabulary(self.tokenizer, *named)

    def _create_model(self, pretrained: str, **options: Any) -> None:
        with named_by("pretrained", pretrained, "see that its weights and the options of loading are right"):
            super()._create_model(pretrained, **options)

    def _effective(self, config: SamplerConfig) -> SamplerConfig:
        return config.with_foreign_proposals() if self._proposal_peft else config

    def _join_processes(self) -> None:
        """Share the documents among the processes of `accelerate launch` on any kind of device.

        HFLM does so only where it sees several GPUs; with one visible device per process, or on CPUs, every
        process would do all the work.
        """
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:  # HFLM keeps it where there are several processes
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes


def check_stock_options(options: Mapping[str, Any]) -> None:
    """Refuse values of HFLM's own options that it would take for something else, or fail on after loading.

    Raises:
        OptionError: a switch that is neither true nor false, a number that is none or below 1, an unknown dtype.
    """
    kinds = {name: str(each.annotation) for name, each in inspect.signature(HFLM.__init__).parameters.items()}
    for name, value in options.items():
        kind = kinds.get(name, "")
        if value is None:
            continue
        if kind in ("bool", "bool | None") and not isinstance(value, bool):
            raise OptionError(f"{name}={value!r}: must be true or false")
        if name.endswith("dtype"):
            check_dtype(name, value)
        if kind == "int | None" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise OptionError(f"{name}={value!r}: must be a whole number")
        if name in ("max_length", "max_batch_size") and value < 1:
            raise OptionError(f"{name}={value!r}: must be >= 1")
    rows = str(options.get("batch_size", 1))
    if rows.split(":")[0] != "auto" and not (rows.isdigit() and int(rows) >= 1):
        raise OptionError(f"batch_size={rows}: must be a whole number >= 1, or auto for as many as fit")


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Replace all weights, in place, by those of a freshly initialised model of the same configuration.

    Raises:
        OptionError: a quantised model, whose integers are no weights.
    """
    if getattr(model, "is_quantized", False):
        raise OptionError("randomize_weights=True with a quantised model: load it without quantisation")
    with torch.random.fork_rng(devices=[]):  # made on the CPU: the same on every machine
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    weights = model.state_dict()
    for name, tensor in fresh.state_dict().items():
        weights[name].copy_(tensor)
