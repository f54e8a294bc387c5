"""`power-hf`: lm-eval's Hugging Face model, whose `generate_until` samples from p(x)^alpha."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from lm_power.adapter import load_adapter
from lm_power.completion import Completion, padding_completion
from lm_power.config import OptionError, SamplerConfig
from lm_power.engine.attention import prefer_spans
from lm_power.fingerprint import fingerprint
from lm_power.harness.options import Plan, decoding_overruled, plan_generation, split_model_args, store_folder
from lm_power.identity import Identity
from lm_power.jobs import Job
from lm_power.progress import progress_bar
from lm_power.sampler import PowerSampler
from lm_power.store import CompletionStore, Provenance

logger = logging.getLogger("lm_eval.power_hf")  # lm-eval shows INFO of its own loggers only


class PowerHF(HFLM):
    """`hf` with another `generate_until`; log-likelihoods, chat templates and all options are HFLM's.

    Example: `lm_eval --model power-hf --model_args pretrained=ID,method=power,alpha=4 --tasks math500`.

    Args:
        pretrained: hub id, folder or model, as in `hf`.
        completions: folder of a store; a run that was cut short goes on where it stopped.
        randomize_weights: evaluate the architecture with freshly initialised weights (the negative control
            RandW of Tomihari & Sato 2026).
        cuda_graphs, torch_compile: see `lm_power.PowerSampler`.
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
        cuda_graphs: bool | None = None,
        torch_compile: bool = False,
        **arguments: Any,
    ) -> None:
        ours, theirs = split_model_args(arguments)
        self.sampler_config = SamplerConfig().replace(**ours)
        switches = {"randomize_weights": randomize_weights, "cuda_graphs": cuda_graphs, "torch_compile": torch_compile}
        for name, switch in switches.items():
            if not (isinstance(switch, bool) or (name == "cuda_graphs" and switch is None)):
                raise OptionError(f"{name}={switch!r}: must be true or false")
        if randomize_weights and theirs.get("peft"):
            raise OptionError("randomize_weights=True with peft: an adapter on random weights is no control; drop one")
        self._completions = store_folder({"completions": completions})
        self._most_rows = theirs.get("max_batch_size")
        if theirs.get("device") is None and not torch.cuda.is_available():
            # HFLM would ask for "cuda" all the same.
            theirs["device"] = "mps" if torch.backends.mps.is_available() else "cpu"
        peft = theirs.pop("peft", None)
        if peft and not isinstance(pretrained, str):
            raise OptionError("peft with a model that is loaded already: pass that model with the adapter on it")
        if peft and theirs.get("delta"):
            raise OptionError("peft with delta: name one of them")
        super().__init__(pretrained, **theirs)
        if peft:
            # Not by HFLM: it cuts the embeddings to the tokenizer's tokens, and ties weights again that an adapter
            # has parted (lm-eval #2748, peft #2415).
            self._model: Any = load_adapter(self._model, str(peft), revision=self.revision)
            self.peft = peft
        if isinstance(pretrained, str) and theirs.get("attn_implementation") is None:
            prefer_spans(self.model)
        self._join_processes()
        if randomize_weights:
            randomize(self.model, self.sampler_config.seed)
        self._randomized, self._cuda_graphs, self._torch_compile = randomize_weights, cuda_graphs, torch_compile

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
        )

    @functools.cached_property
    def model_name(self) -> str:
        """The model as the store records it: "name@fingerprint"."""
        name = self.pretrained if isinstance(self.pretrained, str) else self.model.name_or_path
        return str(Identity(str(name), self.peft or None, self._randomized, fingerprint(self.model)))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Completion]:
        """One `Completion` (a `str`) a request, in the order of the requests.

        The k-th occurrence of the same request is completion k of its prompt (lm-eval's `repeats`).

        Raises:
            OptionError: wrong generation kwargs or prompts; nothing has been decoded then.
            StoreError: the store cannot be used.
        """
        if self.mixed_precision_dtype is not None:
            raise OptionError(
                f"mixed_precision_dtype={self.mixed_precision_dtype}: is for log-likelihoods only; completions are "
                "sampled in the dtype of the weights: set dtype=bfloat16, say"
            )
        groups = self._groups(requests)
        answers = [padding_completion()] * len(requests)
        with contextlib.ExitStack() as stack:
            # All of them before anything is decoded.
            stores = {
                folder: stack.enter_context(CompletionStore(folder, self.model_name))
                for folder in {plan.completions for plan in groups}
                if folder is not None
            }
            for plan, wanted in groups.items():
                store = None if plan.completions is None else stores[plan.completions]
                show = not disable_tqdm and self.rank == 0
                for request, completion in self._draw(plan, wanted, store, show):
                    answers[request.place] = self._shown(completion, plan.stop)
                    self.cache_hook.add_partial("generate_until", requests[request.place].args, answers[request.place])
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's facts, and the sampler's options and the weights' fingerprint."""
        ours = {**dataclasses.asdict(self.sampler_config), "model": self.model_name}
        return {**super().get_model_info(), "power_sampler": ours}

    def _join_processes(self) -> None:
        """Share the documents among the processes of `accelerate launch` on any kind of device.

        HFLM does so only where it sees several GPUs; with one visible device a process, or on CPUs, every
        process would do all the work.
        """
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:  # HFLM keeps it where there are several processes
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    @functools.cached_property
    def _positions(self) -> int:
        """Positions that a prompt and its completion may take together."""
        return min(filter(None, (self.sampler.backend.max_positions, self.max_length)))

    def _groups(self, requests: Sequence[Instance]) -> dict[Plan, list[_Wanted]]:
        """The requests by how they are to be generated, all checked; padding requests are left out."""
        groups: dict[Plan, list[_Wanted]] = defaultdict(list)
        occurrences: dict[int, int] = defaultdict(int)
        overruled: dict[str, Any] = {}
        encode = functools.cache(self.tok_encode)
        for place, request in enumerate(requests):
            repeat = occurrences[id(request)]
            occurrences[id(request)] += 1
            # Under several processes lm-eval clones a short rank's last request to keep the ranks in step;
            # computing it would give its document too many answers, which biases best-of-N.
            if request.repeats is not None and repeat >= request.repeats:
                continue
            context, generation = request.args
            plan = plan_generation(generation, self.sampler_config, self._completions, self.max_gen_toks)
            overruled |= decoding_overruled(generation)
            ids = encode(context)
            room = self._room(plan.config.max_new_tokens)
            groups[plan].append(_Wanted(place, context, tuple(ids[-room:]), repeat, len(ids) > room))
        for plan, wanted in groups.items():
            for request in wanted:
                self.sampler.check_prompt(request.prompt_ids, plan.config.max_new_tokens)
        self._notify(groups, overruled)
        return groups

    def _room(self, max_new_tokens: int) -> int:
        room = self._positions - max_new_tokens
        if room < 1:
            raise OptionError(
                f"max_gen_toks={max_new_tokens}: leaves no room for a prompt in the model's {self._positions} "
                f"positions; set --gen_kwargs max_gen_toks={self._positions // 2}, say"
            )
        return room

    def _notify(self, groups: dict[Plan, list[_Wanted]], overruled: dict[str, Any]) -> None:
        for plan, wanted in groups.items():
            cut = sum(request.truncated for request in wanted)
            if cut:
                logger.warning(
                    "%d of %d prompts are cut on the left: with max_gen_toks=%d they exceed the model's %d positions",
                    cut, len(wanted), plan.config.max_new_tokens, self._positions,
                )  # fmt: skip
        if self.rank != 0:  # the rest concerns all processes alike
            return
        if overruled:
            logger.info(
                "method=%s decides how completions are drawn; the task's %s has no effect",
                ", ".join(sorted({plan.config.method for plan in groups})),
                ", ".join(f"{name}={value}" for name, value in overruled.items()),
            )
        if self.batch_size == 1 and sum(map(len, groups.values())) > 1:
            logger.warning("batch_size=1 decodes one completion at a time; --batch_size auto is far faster")
        if getattr(self.cache_hook, "dbdict", None) is not None:
            logger.warning(
                "--use_cache ignores sampler options and repeats, and can hand back another method's completions; "
                "to resume runs, use --model_args completions=DIR instead"
            )

    def _draw(
        self, plan: Plan, wanted: Sequence[_Wanted], store: CompletionStore | None, show: bool
    ) -> Iterator[tuple[_Wanted, Completion]]:
        """Stored completions first, then the others as they finish; equal requests are drawn once."""
        source = Provenance(self.model_name, plan.config, plan.stop, self.sampler.eos_ids)
        askers: dict[Job, list[_Wanted]] = defaultdict(list)
        for request in wanted:
            askers[Job(request.prompt_ids, request.repeat)].append(request)
        missing = []
        for job, requests in askers.items():
            stored = None if store is None else store.get(source.key(job.prompt_ids, job.repeat))
            if stored is None:
                missing.append(job)
            else:
                yield from ((request, stored) for request in requests)
        # Rows by all the jobs, not by the missing ones: a resumed run keeps its batch shape, and with it the
        # last bit of its numbers. Where memory ran out, it tries with all its rows again: the lack may have been
        # another program's, and a number of rows kept in the store would outlive its reason.
        longest = max(len(job.prompt_ids) for job in askers) + plan.config.max_new_tokens
        most = self._most_rows if self.batch_size == "auto" else None
        rows = self.sampler.rows_for(min(len(askers), most or len(askers)), longest, plan.config)
        # The ranks do not speak to one another until all have finished: rank 0 shows its own share, and says so.
        title = "Sampling" if self.world_size == 1 else f"Sampling, process 1 of {self.world_size}"
        with progress_bar(len(askers), show, done=len(askers) - len(missing), title=title) as progress:
            for index, completion in self.sampler.sample(missing, plan.config, plan.stop, rows=rows, progress=progress):
                job = missing[index]
                if store is not None:
                    store.add(askers[job][0].context, job.prompt_ids, job.repeat, source, completion)
                yield from ((request, completion) for request in askers[job])

    def _shown(self, completion: Completion, stop: Sequence[str]) -> Completion:
        """The completion with the thinking section cut off its text, as HFLM does."""
        marker = self.think_end_token
        if marker is None:
            return completion
        text, tokens = completion.text, list(completion.token_ids)
        if isinstance(marker, int) and marker in tokens:
            spoken = tokens[:-1] if completion.finish_reason == "eos" else tokens
            after = len(tokens) - tokens[::-1].index(marker)
            text = self.tok_decode(spoken[after:]).lstrip()
        return completion.with_text(
            postprocess_generated_text(text, list(stop), marker if isinstance(marker, str) else None)
        )


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """A request's place in the call, and what is to be completed for it."""

    place: int
    context: str
    prompt_ids: tuple[int, ...]
    repeat: int
    truncated: bool


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
