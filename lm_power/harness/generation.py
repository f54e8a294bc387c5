"""`generate_until` by power sampling: what all of our lm-eval models share, whichever engine decodes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import postprocess_generated_text

from lm_power.completion import Completion, padding_completion
from lm_power.config import OptionError, SamplerConfig
from lm_power.harness.options import Plan, decoding_overruled, plan_generation
from lm_power.jobs import Job
from lm_power.progress import progress_bar
from lm_power.sampler import PowerSampler
from lm_power.store import CompletionStore, Provenance

logger = logging.getLogger("lm_eval.lm_power")  # lm-eval shows INFO of its own loggers only


class PowerGeneration:
    """The part of an lm-eval model that generates. It is the first base class, before the class that has the rest.

    Attributes:
        sampler_config: the options from `--model_args`.
        completions: folder of a store; None for none.
        sampler: draws the completions.
        model_name: the model as the store records it.
    """

    sampler_config: SamplerConfig
    completions: str | None
    rank: int
    world_size: int
    max_gen_toks: int
    cache_hook: Any
    think_end_token: str | int | None

    @property
    def sampler(self) -> PowerSampler:
        """The sampler."""
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """The model as the store records it."""
        raise NotImplementedError

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lm-eval's method, called for `--use_cache`; this model is not asked for what is in the cache already."""
        self.cache_hook = cache_hook
        if self.rank == 0:
            logger.warning(
                "--use_cache ignores sampler options and repeats, and can return another method's completions; "
                "to resume runs, use --model_args completions=DIR instead"
            )

    def check_generation(self) -> None:
        """Raise `OptionError` for options that concern log-likelihoods alone."""

    def prompt_ids(self, context: str) -> Sequence[int]:
        """Token ids of a prompt."""
        raise NotImplementedError

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        raise NotImplementedError

    def positions(self) -> int | None:
        """Positions that a prompt and its completion may take together; None for no limit."""
        raise NotImplementedError

    def most_rows(self) -> int | None:
        """A limit on the number of rows besides the sampler's own; None for no limit."""
        return None

    def one_row_hint(self) -> str | None:
        """A hint for the user if completions are decoded one at a time; None if they are not."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Completion]:
        """One `Completion` (a `str`) per request, in the order of the requests.

        The k-th occurrence of the same request is completion k of its prompt (lm-eval's `repeats`).

        Raises:
            OptionError: wrong generation kwargs or prompts; it is raised before anything is decoded.
            StoreError: the store cannot be used.
        """
        self.check_generation()
        groups = self._groups(requests)
        answers = [padding_completion()] * len(requests)
        with contextlib.ExitStack() as stack:
            # All stores are opened before anything is decoded.
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

    def _groups(self, requests: Sequence[Instance]) -> dict[Plan, list[_Wanted]]:
        """The requests, checked and grouped by how they are to be generated, without padding requests."""
        groups: dict[Plan, list[_Wanted]] = defaultdict(list)
        occurrences: dict[int, int] = defaultdict(int)
        overruled: dict[str, Any] = {}
        encode = functools.cache(self.prompt_ids)
        for place, request in enumerate(requests):
            repeat = occurrences[id(request)]
            occurrences[id(request)] += 1
            # With several processes lm-eval clones the last request of a rank with fewer requests, to keep the ranks in
            # step. Completing the clones would give their document too many completions, which biases best-of-N.
            if request.repeats is not None and repeat >= request.repeats:
                continue
            context, generation = request.args
            plan = plan_generation(generation, self.sampler_config, self.completions, self.max_gen_toks)
            plan = dataclasses.replace(plan, config=self.sampler.resolved(plan.config))
            overruled |= decoding_overruled(generation)
            ids = encode(context)
            room = self._room(plan.config.max_new_tokens, len(ids))
            groups[plan].append(_Wanted(place, context, tuple(ids[-room:]), repeat, len(ids) > room))
        for plan, wanted in groups.items():
            for request in wanted:
                self.sampler.check_prompt(request.prompt_ids, plan.config.max_new_tokens)
        self._notify(groups, overruled)
        return groups

    @functools.cached_property
    def _positions(self) -> int | None:
        return self.positions()

    def _room(self, max_new_tokens: int, wanted: int) -> int:
        """Positions for a prompt of `wanted` tokens, at least one."""
        if self._positions is None:
            return max(wanted, 1)
        room = self._positions - max_new_tokens
        if room < 1:
            raise OptionError(
                f"max_gen_toks={max_new_tokens}: leaves no room for a prompt in the model's {self._positions} "
                f"positions; set a smaller one, such as --gen_kwargs max_gen_toks={self._positions // 2}"
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
        if self.rank != 0:  # what follows is the same for all processes
            return
        if overruled:
            logger.info(
                "method=%s decides how completions are drawn; the task's %s has no effect",
                ", ".join(sorted({plan.config.method for plan in groups})),
                ", ".join(f"{name}={value}" for name, value in overruled.items()),
            )
        for config in {plan.config for plan in groups if plan.config.method == "temperature"}:
            if config.proposal_temperature is None:
                logger.info(
                    "method=temperature draws at temperature %g = 1/alpha, alpha=%g; set proposal_temperature for "
                    "another temperature, or method=standard for the model's own distribution",
                    1 / config.beta, config.alpha,
                )  # fmt: skip
        hint = self.one_row_hint()
        if hint is not None and sum(map(len, groups.values())) > 1:
            logger.warning(hint)

    def _draw(
        self, plan: Plan, wanted: Sequence[_Wanted], store: CompletionStore | None, show: bool
    ) -> Iterator[tuple[_Wanted, Completion]]:
        """Yield stored completions first, then the others as they finish; equal requests are drawn once."""
        source = Provenance(self.model_name, plan.config, plan.stop, self.sampler.eos_ids, self.sampler.engine_options)
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
        # With a fixed batch shape the number of rows follows from all jobs, not only from the missing ones, so that a
        # resumed run keeps the shape and with it the last bits of its numbers. After running out of memory, a resumed
        # run tries all its rows again: another program may have used the memory, and a number of rows kept in the store
        # would outlive its reason.
        jobs = len(askers) if self.sampler.batch_shape == "fixed" else len(missing)
        longest = max(len(job.prompt_ids) for job in askers) + plan.config.max_new_tokens
        most = self.most_rows()
        rows = self.sampler.rows_for(jobs, longest, plan.config)
        rows = rows if most is None else min(rows, most)
        # The ranks do not communicate until all have finished, so rank 0 shows its own share and says so.
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
            text = self.text_of(spoken[after:]).lstrip()
        return completion.with_text(
            postprocess_generated_text(text, list(stop), marker if isinstance(marker, str) else None)
        )


class ServedGeneration(PowerGeneration):
    """The same for a model on somebody else's engine, whose sampler is made when the model is loaded."""

    _sampler: PowerSampler
    tokenizer: Any

    @property
    def sampler(self) -> PowerSampler:
        """The sampler on the engine."""
        return self._sampler

    def text_of(self, tokens: Sequence[int]) -> str:
        """The decoded text, without special tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def get_model_info(self) -> dict[str, Any]:
        """The sampler's options, the engine's, and the model's name."""
        ours = {**dataclasses.asdict(self.sampler_config), **self.sampler.engine_options, "model": self.model_name}
        return {"power_sampler": ours}


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """A request's place in the call, and what is to be completed for it."""

    place: int
    context: str
    prompt_ids: tuple[int, ...]
    repeat: int
    truncated: bool
