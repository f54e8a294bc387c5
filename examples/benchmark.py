"""What a completion from p^alpha costs: contenders in one process, on the same model, prompts and settings.

    python examples/benchmark.py                               # pocket model, 64 prompts, CPU
    python examples/benchmark.py --shape 50m --prompts 16 --rows 16 --max-new-tokens 32 --block-size 8 --only C E
    python examples/benchmark.py --model ID_OR_DIR --prompts-file prompts.txt --block-size 192 --max-new-tokens 3072

A  the algorithm as Karan & Du (2025) released it: one chain at a time, `model.generate` from the whole prefix at
   every step. Its chain is not exact, and since it cannot grow back it decodes fewer tokens than an exact one.
B  exact chains in lockstep batches over padded `model.generate`, prefilled anew at every step.
C  lm-power.
D  lm-power with one acceleration off, each in turn, and with all off: plain exact Metropolis-Hastings.
E  plain batched decoding of as many tokens as C decodes: the floor. Compare its tokens a second.

A, B, C and D finish as many completions. Wall and CPU seconds are medians over `--repeats` rounds, in each of which
every contender runs once; on a machine that others use, trust the CPU seconds. `forward` is the share of wall-clock
spent in the model's forward passes, prefill included; on a GPU, of the time to launch them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Lockstep, ReleasedChain, plain_decoding
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Config

from lm_power import PowerSampler, SamplerConfig
from lm_power.engine import UnsupportedModelError

HERE = Path(__file__).resolve().parent
PROBLEMS = HERE.parent / "tasks" / "pocket_sums" / "problems.jsonl"
SHAPES = {
    "50m": {
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen2.5-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
ACCELERATIONS = ("coupled_resume", "early_rejection", "prefetch")


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contender needed for all prompts.

    Attributes:
        wall, cpu, forward: seconds of wall-clock, of CPU, and of wall-clock in the model's forward.
        tokens: tokens decoded.
        completions: completions finished.
    """

    wall: float
    cpu: float
    forward: float
    tokens: int
    completions: int


class Stopwatch:
    """Measures a contender, and how much of its time the model's forward passes take."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._inside = 0.0
        model.register_forward_pre_hook(lambda *_: self._add(-1))
        model.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        self._inside += sign * time.perf_counter()

    def measure(self, run: Callable[[], int], completions: int) -> Result:
        """Time `run`, which returns the tokens it decoded."""
        self._inside, wall, cpu = 0.0, time.perf_counter(), time.process_time()
        tokens = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Result(time.perf_counter() - wall, time.process_time() - cpu, self._inside, tokens, completions)


def median(results: list[Result]) -> Result:
    """Field by field."""
    return Result(*(statistics.median(column) for column in zip(*map(dataclasses.astuple, results), strict=True)))


def load(args: argparse.Namespace) -> tuple[PowerSampler, list[list[int]]]:
    """The sampler, around the model that all contenders use, and the prompts as token ids."""
    if args.shape:
        torch.manual_seed(0)
        config = Qwen2Config(**SHAPES[args.shape], eos_token_id=1, bos_token_id=0, initializer_range=0.05)
        with torch.device(args.device):
            dtype = torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        tokenizer = None
        shape = (args.prompts, args.prompt_length)
        prompts = torch.randint(2, config.vocab_size, shape, device="cpu").tolist()
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device)
        if args.prompts_file:
            prompts = args.prompts_file.read_text().splitlines()
        else:
            prompts = [json.loads(line)["prompt"] for line in PROBLEMS.read_text().splitlines()]
    try:
        sampler = PowerSampler(model.eval(), tokenizer, max_rows=args.rows)
    except UnsupportedModelError as error:
        raise SystemExit(str(error)) from None
    return sampler, [list(sampler.encode(prompt)) for prompt in prompts[: args.prompts]]


def main() -> None:
    """Run the contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "pocket" / "model"), help="hub id or folder")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--prompts-file", type=Path, help="one prompt a line; default: pocket_sums problems")
    parser.add_argument("--prompts", type=int, default=64, help="how many of them")
    parser.add_argument("--prompt-length", type=int, default=16, help="tokens of a prompt, with --shape")
    parser.add_argument("--rows", type=int, default=64, help="completions side by side, in B, C, D and E")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--mcmc-steps", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; a tiny model gains nothing from more")
    parser.add_argument("--only", nargs="+", choices="ABCDE", default=list("ABCDE"), help="contenders; C always runs")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; the table shows medians")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    sampler, prompts = load(args)
    model: PreTrainedModel = sampler.backend.model
    eos_ids = list(sampler.eos_ids)
    options = {name: getattr(args, name) for name in ("alpha", "block_size", "mcmc_steps", "max_new_tokens")}
    config = SamplerConfig(**options)

    def ours(**switches: bool) -> Callable[[], int]:
        def run() -> int:
            drawn = sampler.generate(prompts, progress=True, **options, **switches)
            return sum(c.stats.tokens_decoded + c.stats.tokens_dropped for many in drawn for c in many)

        return run

    def released() -> int:
        chain = ReleasedChain(model, config, eos_ids)
        for ids in tqdm(prompts, desc="A released"):
            chain.sample(torch.tensor([ids], device=args.device))
        return chain.tokens_decoded

    def lockstep() -> int:
        chains = Lockstep(model, config, eos_ids)
        for start in tqdm(range(0, len(prompts), args.rows), desc="B lockstep"):
            chains.sample(prompts[start : start + args.rows])
        return chains.tokens_decoded

    contenders = {"C lm-power": ours(), "A released algorithm": released, "B lockstep batches": lockstep}
    contenders |= {f"D without {name}": ours(**{name: False}) for name in ACCELERATIONS}
    contenders["D without all three"] = ours(**dict.fromkeys(ACCELERATIONS, False))
    results: dict[str, list[Result]] = {}
    stopwatch = Stopwatch(model)
    with torch.inference_mode():
        sampler.generate(prompts[:2], max_new_tokens=4, block_size=4, mcmc_steps=1)  # warm up
        for _ in range(args.repeats):
            torch.manual_seed(0)
            for name, run in contenders.items():
                if name[0] in [*args.only, "C"]:
                    results.setdefault(name, []).append(stopwatch.measure(run, len(prompts)))
            if "E" in args.only:
                tokens = results["C lm-power"][-1].tokens
                floor = stopwatch.measure(lambda: plain_decoding(model, prompts, tokens, args.rows, eos_ids), 0)  # noqa: B023
                results.setdefault("E plain decoding", []).append(floor)

    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{args.shape or args.model}: {parameters / 1e6:.2f}M parameters, {model.dtype}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}")
    print(f"{len(prompts)} prompts, {args.rows} rows, {options}, medians of {args.repeats}\n")
    print(
        "| | wall, s | CPU, s | wall ratio to C | CPU ratio to C | tokens decoded | tokens/s | a completion | forward |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    ours_ = median(results["C lm-power"])
    for name in sorted(results):
        r = median(results[name])
        each = f"{r.tokens / r.completions:.0f}" if r.completions else ""
        print(
            f"| {name} | {r.wall:.1f} | {r.cpu:.1f} | {r.wall / ours_.wall:.2f} | {r.cpu / ours_.cpu:.2f} "
            f"| {r.tokens:.0f} | {r.tokens / r.wall:.0f} | {each} | {r.forward / r.wall:.0%} |"
        )


if __name__ == "__main__":
    main()
