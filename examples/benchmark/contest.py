"""The contenders of `benchmark.py`, each run and measured on the same prompts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from contenders import Lockstep, PlainDecoding, ReleasedChain
from forced import ForcedChain, Lengths, forced, without_eos
from table import Pace, Result, Stopwatch, Work, medians, time_of
from tqdm import tqdm

from lm_power import PowerSampler, SamplerConfig
from lm_power.chains import Stream, make_algorithm
from lm_power.completion import Completion

ACCELERATIONS = ("coupled_resume", "early_rejection", "prefetch")
MATH500 = 500  # problems


class Contest:
    """The contenders, each a method that runs and says what it did.

    Args:
        args: the command line.
        sampler: lm-power, around the model that all contenders use.
        prompts: token ids.
    """

    def __init__(self, args: argparse.Namespace, sampler: PowerSampler, prompts: list[list[int]]) -> None:
        self.args, self.sampler, self.model, self.prompts = args, sampler, sampler.host.backend.model, prompts
        self.stopwatch = Stopwatch(self.model, sees_forward=self.model.device.type == "cpu" and not args.torch_compile)
        self.options = {name: getattr(args, name) for name in ("alpha", "block_size", "mcmc_steps", "max_new_tokens")}
        self.config = SamplerConfig(**self.options)
        longest = args.max_new_tokens
        self.lengths = Lengths(args.mean_length or longest * 680 / 3072, longest) if args.lengths else None
        self.eos_ids = () if self.lengths else sampler.eos_ids
        self.drawn: dict[str, list[Completion]] = {}  # what lm-power drew last
        self.rate: dict[str, float | None] = {}  # and its tokens per second while all rows were busy

    def length(self, prompt: list[int]) -> int:
        """The longest completion of a prompt; where lengths are forced, its length."""
        of = self.lengths.of if self.lengths else lambda _: self.args.max_new_tokens
        return of(Stream.for_request(0, prompt, 0))

    def part(self, count: int | None) -> list[list[int]]:
        """So many of the prompts, as they come, that cost on average about what all do.

        In order of length they are cut into as many groups, and each group gives the one nearest to its mean cost.
        """
        every = sorted(range(len(self.prompts)), key=self.cost)
        count = min(count or len(every), len(every))
        chosen = []
        for group in (every[i * len(every) // count : (i + 1) * len(every) // count] for i in range(count)):
            mean = sum(map(self.cost, group)) / len(group)
            chosen.append(min(group, key=lambda index, mean=mean: abs(self.cost(index) - mean)))
        return [self.prompts[index] for index in sorted(chosen)]

    def cost(self, index: int) -> float:
        """Tokens that a chain of the longest completion of a prompt decodes, half of it at every step."""
        length, block = self.length(self.prompts[index]), self.config.block_size
        horizons = range(block, length + block, block)
        return length + self.config.mcmc_steps * sum(min(horizon, length) for horizon in horizons) / 2

    def ours(self, name: str, **switches: bool) -> Work:
        """C, and D with some acceleration switched off."""
        with forced(self.sampler, self.lengths, self.args.acceptance):
            completions, work = self._generate(name, self.prompts, **self.options, **switches)
        tokens = sum(each.stats.tokens_decoded + each.stats.tokens_dropped for each in completions)
        return dataclasses.replace(work, completions=len(completions), tokens=tokens)

    def _generate(self, name: str, prompts: list[list[int]], **options: Any) -> tuple[list[Completion], Work]:
        """By lm-power; the work as its engine counts it."""
        counters = self.sampler.counters
        before = dataclasses.replace(counters)
        with tqdm(total=len(prompts), desc=name) as bar:
            pace = Pace(len(prompts), self.args.rows, counters, bar)
            drawn = self.sampler.generate(prompts, progress=pace, **options)
        self.drawn[name], self.rate[name] = [completion for many in drawn for completion in many], pace.rate
        decoded, steps, attended = (getattr(counters, n) - getattr(before, n) for n in ("decoded", "steps", "attended"))
        return self.drawn[name], Work(0, decoded, steps, attended)

    def released(self, name: str) -> Work:
        """A."""
        chain = ReleasedChain(self.model, self.config, self.eos_ids, self.args.acceptance)
        prompts = self.part(self.args.prompts_of_a)
        for ids in tqdm(prompts, desc=name):
            chain.sample(torch.tensor([ids], device=self.model.device), self.length(ids))
        return Work(len(prompts), chain.tokens_decoded)

    def lockstep(self, name: str) -> Work:
        """B."""
        plain = make_algorithm(self.config.replace(coupled_resume=False, early_rejection=False))
        chain = ForcedChain(plain, self.lengths, self.args.acceptance)
        chains = Lockstep(self.model, chain, 1 / self.config.beta, self.eos_ids)
        prompts, rows = self.part(self.args.prompts_of_b), self.args.rows
        with tqdm(total=len(prompts), desc=name) as bar:
            for start in range(0, len(prompts), rows):
                bar.update(len(chains.sample(prompts[start : start + rows])))
        return Work(len(prompts), chains.tokens_decoded)

    def plain(self, name: str, like: Work) -> Work:
        """E, for as much as `like`."""
        assert like.attended is not None
        decoding = PlainDecoding.like(like.tokens, like.attended / like.tokens, self.prompts, self.args.rows)
        decoding.run(self.model, self.prompts, name, self.stopwatch.paused)
        return Work(0, decoding.tokens, decoding.steps, decoding.attended(self.prompts))

    def busy(self, name: str) -> Work:
        """F."""
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.args.rows)]
        with without_eos(self.sampler):
            return self._generate(name, prompts, method="standard", max_new_tokens=self.args.max_new_tokens)[1]

    def run(self) -> dict[str, Result]:
        """All contenders that are wanted, so many rounds."""
        contenders: dict[str, Callable[[str], Work]] = {"A released algorithm": self.released}
        contenders["B lockstep batches"] = self.lockstep
        contenders["C lm-power"] = self.ours
        switches = {f"D without {name}": {name: False} for name in ACCELERATIONS}
        if self.args.acceptance is not None:
            del switches["D without early_rejection"]  # it is without already
        switches["D without all"] = dict.fromkeys(ACCELERATIONS, False)
        for title, off in switches.items():
            contenders[title] = lambda name, off=off: self.ours(name, **off)
        contenders["E plain decoding"] = lambda name: self.plain(name, results["C lm-power"][-1].work)
        contenders["F all rows busy"] = self.busy
        wanted = set(self.args.only) | ({"C"} if set(self.args.only) != {"F"} else set())
        results: dict[str, list[Result]] = {}
        with torch.inference_mode():
            self.sampler.generate(self.prompts[:2], max_new_tokens=4, block_size=4, mcmc_steps=1)  # warm up
            for _ in range(self.args.repeats):
                torch.manual_seed(0)
                for name, run in contenders.items():
                    if name[0] in wanted:
                        with self.attention(name):
                            self.stopwatch.start()
                            results.setdefault(name, []).append(self.stopwatch.stop(run(name)))
        return {name: medians(several) for name, several in results.items()}

    @contextlib.contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Those over `model.generate` may not know the attention of the others."""
        if self.args.attention is not None and name[0] in "ABE":
            self.model.set_attn_implementation("sdpa")
            yield
            self.model.set_attn_implementation(self.args.attention)
        else:
            yield

    def print_notes(self, results: dict[str, Result]) -> None:
        """What was forced, how C went, and how long it would take with 500 problems."""
        if self.lengths:
            lengths = sorted(map(self.length, self.prompts))
            print(
                f"Lengths of completions are forced: lognormal, mean {sum(lengths) / len(lengths):.0f}, median "
                f"{lengths[len(lengths) // 2]}, longest {lengths[-1]} tokens."
            )
        if (rate := self.args.acceptance) is not None:
            print(f"Proposals are accepted by a coin, at a rate of {rate}; in C and D rejected ones are decoded whole.")
        for name in results:
            if name[0] in "AB" and results[name].work.completions < len(self.prompts):
                count = results[name].work.completions
                print(f"{name[0]} drew for {count} of the {len(self.prompts)} prompts; ratios are a completion's.")
        if "C lm-power" in results:
            self._print_ours("C lm-power", results["C lm-power"])

    def _print_ours(self, name: str, result: Result) -> None:
        stats = [completion.stats for completion in self.drawn[name]]
        proposals, accepted, coupled, decoded = (
            sum(getattr(each, field) for each in stats) / len(stats)
            for field in ("proposals", "accepted", "tokens_coupled", "tokens_decoded")
        )
        print(f"C, a completion: {proposals:.1f} proposals, {accepted / proposals:.1%} of them accepted; ", end="")
        print(f"{coupled:.0f} tokens kept by coupling")
        what = "projected MATH500 time" if self.lengths else "time of 500 completions such as these"
        print(f"C, {what}: {time_of(MATH500, result, decoded, self.args.rows, self.rate[name])}.")
