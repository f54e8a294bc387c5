#!/usr/bin/env python3
"""What a decode step is made of, and plain decoding beside the `generate` of transformers, on the same rows.

    python examples/benchmark/step.py --model ID_OR_FOLDER --rows 1 16 64

Prompts are random tokens, all of one length, so that `generate` needs no padding. Nothing but the length ends a
completion. `generate` draws at temperature 1 with no other processor, over a cache that grows (dynamic) or one that is
preallocated (static). All run in one process on the same weights, in turn, for several rounds. Times are CPU seconds
of the process.

The first table has tokens per CPU second of decoding, the median over the rounds of their ratio to the faster
`generate`, and what the prefill took: of `generate` one forward pass over all prompts, of lm-power passes of 512 tokens
and the copies to its cache. `power` is Metropolis-Hastings with two blocks and four steps in each; its tokens are those
decoded, and few rows are busy towards its end.

The second table has the time of a step by its parts, from one more round in which each is clocked:

    matmuls       the model's linear layers, the output layer among them
    attention     scaled_dot_product_attention
    keys, values  writing them to the cache, or appending them to it
    model         all else in its forward pass: norms, rotations, activations, masks, and its Python
    draw          from the logits to tokens; of lm-power also their log p and log q
    loop          all else: rows that begin and end, moves, the scheduler; or the loop of `generate`
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from forced import without_eos
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, StaticLayer

from lm_power import PowerSampler
from lm_power.engine import Engine, decode_step, kv_cache

PARTS = ("matmuls", "attention", "keys, values", "model", "draw", "loop")
PREFILL, LOOP = "prefill", "loop"
POWER = {"method": "power", "alpha": 4.0, "mcmc_steps": 4}


class Clock:
    """CPU seconds by part. A part within another counts for itself alone; within the prefill, all counts for it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.steps = 0  # forward passes over one token a row
        self._open = [LOOP]
        self._since = time.process_time()

    def enter(self, part: str) -> None:
        """From here on it is the part's time."""
        self._switch()
        self._open.append(PREFILL if self._open[-1] == PREFILL else part)

    def leave(self, *_: object) -> None:
        """From here on it is the time of what the part lies in."""
        self._switch()
        self._open.pop()

    def stop(self) -> None:
        """Count what has been spent up to here."""
        self._switch()

    def _switch(self) -> None:
        now = time.process_time()
        self.spent[self._open[-1]] += now - self._since
        self._since = now

    def clocked(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time the part's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run

    @contextlib.contextmanager
    def on(self, model: PreTrainedModel, parts: bool) -> Iterator[None]:
        """Within: the model's passes are clocked; and each of `PARTS`, if wanted."""

        def begin(_: nn.Module, __: object, inputs: dict[str, Any]) -> None:
            step = inputs["input_ids"].shape[1] == 1
            self.steps += step
            self.enter("model" if step else PREFILL)

        with contextlib.ExitStack() as stack:
            hooks = [model.register_forward_pre_hook(begin, with_kwargs=True), model.register_forward_hook(self.leave)]
            read = self.clocked(PREFILL, Engine._read_prompts)
            stack.enter_context(mock.patch.object(Engine, "_read_prompts", read))
            if parts:
                for layer in model.modules():
                    if isinstance(layer, nn.Linear):
                        hooks.append(layer.register_forward_pre_hook(lambda *_: self.enter("matmuls")))
                        hooks.append(layer.register_forward_hook(self.leave))
                for holder, name, part in (
                    (nn.functional, "scaled_dot_product_attention", "attention"),
                    (kv_cache._RowLayer, "update", "keys, values"),
                    (DynamicLayer, "update", "keys, values"),
                    (StaticLayer, "update", "keys, values"),
                    (decode_step, "draw_next", "draw"),
                    (nn.functional, "softmax", "draw"),
                    (torch, "multinomial", "draw"),
                ):
                    clocked = self.clocked(part, getattr(holder, name))
                    stack.enter_context(mock.patch.object(holder, name, clocked))
            for hook in hooks:
                stack.callback(hook.remove)
            yield


@dataclasses.dataclass(frozen=True)
class Contest:
    """Completions of one length for the same prompts, by lm-power and by `generate`.

    Attributes:
        model: decodes.
        sampler: lm-power, around the model.
        prompts: [rows, length] token ids.
        length: tokens of a completion.
    """

    model: PreTrainedModel
    sampler: PowerSampler
    prompts: torch.Tensor
    length: int

    def ours(self, **options: Any) -> int:
        """Tokens decoded by lm-power."""
        before = self.sampler.counters.decoded
        with without_eos(self.sampler):
            self.sampler.generate(self.prompts.tolist(), max_new_tokens=self.length, **options)
        return self.sampler.counters.decoded - before

    def theirs(self, **options: Any) -> int:
        """Tokens decoded by `generate`; the first of a completion is drawn from the prefill, and does not count."""
        mask = torch.ones_like(self.prompts)
        self.model.generate(self.prompts, attention_mask=mask, max_new_tokens=self.length, **options)
        return self.prompts.shape[0] * (self.length - 1)

    def contenders(self) -> dict[str, Callable[[], int]]:
        """Each decodes, and says how many tokens."""
        block = -(-self.length // 2)
        return {
            "generate, dynamic": self.theirs,
            "generate, static": lambda: self.theirs(cache_implementation="static"),
            "lm-power, standard": lambda: self.ours(method="standard"),
            "lm-power, power": lambda: self.ours(block_size=block, **POWER),
        }

    def clocked(self, run: Callable[[], int], parts: bool = False) -> tuple[int, Clock]:
        """Tokens of a run, and its clock."""
        clock = Clock()
        with clock.on(self.model, parts):
            tokens = run()
        clock.stop()
        return tokens, clock


def print_rates(contest: Contest, rounds: int) -> None:
    """Lines of the first table."""
    contenders = contest.contenders()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}  # tokens per second, and prefill, s
    for _ in range(rounds):
        for name, run in contenders.items():
            tokens, clock = contest.clocked(run)
            prefill = clock.spent[PREFILL]
            seen[name].append((tokens / (clock.spent.total() - prefill), prefill))
    plain = [name for name in contenders if name.startswith("generate")]
    best = max(plain, key=lambda name: statistics.median(rate for rate, _ in seen[name]))
    for name, rates in seen.items():
        rate, prefill = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(mine / other for (mine, _), (other, _) in zip(rates, seen[best], strict=True))
        print(f"| {len(contest.prompts)} | {name} | {rate:.1f} | {ratio:.2f} | {prefill:.2f} |", flush=True)


def parts_line(contest: Contest, name: str) -> str:
    """A line of the second table."""
    _, clock = contest.clocked(contest.contenders()[name], parts=True)
    total = clock.spent.total() - clock.spent[PREFILL]
    cells = [f"{clock.spent[part] / total:.1%}" for part in PARTS]
    return f"| {len(contest.prompts)} | {name} | {1e3 * total / clock.steps:.1f} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--prompt-length", type=int, default=64, help="tokens")
    parser.add_argument("--length", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    sampler = PowerSampler(model, None)
    # Nothing of the checkpoint's own (EOS, top-k, repetition penalty …): each would cost `generate` a pass more.
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, pad_token_id=0)
    lines = []
    print("| rows | | tokens/s | ratio to the faster generate | prefill, s |\n|---:|---|---:|---:|---:|")
    for rows in args.rows:
        sampler.max_rows = rows
        prompts = torch.randint(2, model.config.vocab_size, (rows, args.prompt_length))
        contest = Contest(model, sampler, prompts, args.length)
        contest.ours(method="standard")  # warm up
        print_rates(contest, args.rounds)
        lines += [parts_line(contest, name) for name in contest.contenders()]
    print(f"\n| rows | | ms a step | {' | '.join(PARTS)} |\n|---:|---|---:|{'---:|' * len(PARTS)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
